"""One step of learning: losses of micro-batches, gradients, clipping, AdamW, the average. Nothing waits for the device.

What is learned lives here and nowhere else: weights, their average, the optimizer's moments, the loss scale of fp16.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from omniges.model.checkpoint import EMA_FILE, MODEL_FILE, OPTIMIZER_FILE, load_into
from omniges.model.flow import FlowLoss, FlowModel, Windows
from omniges.model.tasks import Plan
from omniges.trainer.config import TrainSettings
from omniges.trainer.optimizer import Ema, LearningRate, load_moments, make_optimizer, moments

Filled = TypeVar("Filled")


class Learner:
    """A model that learns; on the accelerator's device, spread over its processes."""

    def __init__(self, model: FlowModel, accelerator: Accelerator, settings: TrainSettings, rate: LearningRate) -> None:
        self.model = model
        self._settings, self._flow, self._rate = settings, settings.flow_settings(), rate
        self._accelerator = accelerator
        # Before anything wraps the model: a copy of its modules, not of its weights.
        self._skeleton = copy.deepcopy(model, {id(p): p for p in model.parameters()})
        self._wrapped: nn.Module = accelerator.prepare_model(model)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = make_optimizer(
            model, betas=(settings.adam_beta1, settings.adam_beta2), weight_decay=settings.weight_decay
        )
        self._stepper = accelerator.prepare_optimizer(self._optimizer)
        self._ema = Ema(model, settings.ema_decay)
        if settings.compile:
            for block in model.trunk.blocks:
                block.compile()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return cast("torch.device", self._accelerator.device)

    def averaged(self) -> FlowModel:
        """A model in evaluation mode whose weights are the averages themselves, as they are at any moment."""
        model = copy.deepcopy(self._skeleton, {id(p): p for p in self._skeleton.parameters()})
        model.load_state_dict(dict(self._ema.tensors) | dict(model.named_buffers()), assign=True)
        return model.requires_grad_(False).to(self.device).eval()

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision of matrix products in training."""
        return cast("contextlib.AbstractContextManager[Any]", self._accelerator.autocast())

    def micro_step(self, windows: Windows, plan: Plan, *, last: bool) -> Tensor:
        """Add a micro-batch's gradients; returns losses (B, 3) as `FlowLoss.each`, on the device.

        ``last`` of the step: with several processes, their gradients are averaged in it.
        """
        settings = self._settings
        alone = contextlib.nullcontext() if last else self._accelerator.no_sync(self._wrapped)
        with alone:
            loss: FlowLoss = self._wrapped(windows, plan, self._flow, settings.seed, dense=settings.compile)
            self._accelerator.backward(loss.total / settings.gradient_accumulation_steps)
        return loss.each

    def finish_step(self, step: int) -> Tensor:
        """Update weights and average with the gradients added so far; returns their norm () before clipping."""
        self._accelerator.unscale_gradients(self._stepper)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        if self._settings.max_grad_norm:
            nn.utils.clip_grads_with_norm_(self._parameters, self._settings.max_grad_norm, norm, foreach=True)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate.at(step)
        self._stepper.step()
        self._stepper.zero_grad(set_to_none=True)
        self._ema.update(step)
        return norm

    def begin_with(self, fill: Callable[[FlowModel], Filled]) -> Filled:
        """Let somebody fill the model before the first step; the average begins with the same weights."""
        found = fill(self.model)
        self._ema.begin_anew()
        return found

    def discard(self) -> None:
        """Drop the gradients of a step that will not be finished."""
        self._stepper.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Everything learned, by file and name."""
        weights = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        state = moments(self.model, self._optimizer)
        return {MODEL_FILE: weights, EMA_FILE: self._ema.tensors, OPTIMIZER_FILE: state}

    def scale(self) -> dict[str, Any] | None:
        """The state of fp16's loss scale; None for other precisions."""
        scaler = self._accelerator.scaler
        return None if scaler is None else dict(scaler.state_dict())

    @torch.no_grad()
    def load(self, files: Mapping[str, Mapping[str, Tensor]], scale: Mapping[str, Any] | None, where: str) -> None:
        """Put back what `tensors` and `scale` gave; raises DataError where it is not of this model."""
        weights = dict(self.model.named_parameters())
        for name, own in ((MODEL_FILE, weights), (EMA_FILE, self._ema.tensors)):
            load_into(own, files[name], f"{where}/{name}")
        load_moments(self.model, self._optimizer, files[OPTIMIZER_FILE], f"{where}/{OPTIMIZER_FILE}")
        scaler = self._accelerator.scaler
        if scaler is not None and scale is not None:
            scaler.load_state_dict(dict(scale))
