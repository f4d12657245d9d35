"""The learner and its training step: losses, gradients, clipping, AdamW, EMA. A step does not wait for the device.

The learner stores the weights, the EMA weights, the optimizer's moments and the loss scale of fp16. Learning rate and
EMA decay depend only on the step. Therefore, neither time nor a restart changes them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from omniges.errors import DataError, UsageFault
from omniges.model.checkpoint import EMA_FILE, MODEL_FILE, OPTIMIZER_FILE, require_learned
from omniges.model.draws import Plan
from omniges.model.flow import FlowLoss, FlowModel, Windows
from omniges.model.spec import ModelConfig, model_for_weights
from omniges.storage.tensors import require_same, shapes_of
from omniges.trainer.config import Schedule, TrainSettings
from omniges.trainer.distributed import Ranks
from omniges.trainer.sharding import copy_rows, gathered, local, norm_of_all, receive, shard_model, skeleton_of, whole
from omniges.trainer.state import LossScale


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRate:
    """A learning-rate schedule: linear warm-up to `peak` over `warmup_steps`, then constant or decreasing to 0.

    A decreasing schedule (linear or cosine) reaches 0 at `total_steps`. The constructor raises UsageFault if this step
    is within the warm-up.
    """

    peak: float
    schedule: Schedule = "constant"
    warmup_steps: int = 0
    total_steps: int | None = None  # None: no last step; only for a constant schedule

    def __post_init__(self) -> None:
        """Raise UsageFault if a decreasing schedule ends within the warm-up."""
        if self.schedule != "constant" and self.total_steps is not None and self.total_steps <= self.warmup_steps:
            raise UsageFault(
                f"--lr-warmup-steps {self.warmup_steps}: expected fewer than the {self.total_steps} steps of the run"
            )

    def at(self, step: int) -> float:
        """Return the learning rate of the update with index `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.schedule == "constant" or self.total_steps is None:
            return self.peak
        done = min(1.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        return self.peak * ((1 - done) if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2)


def ema_decay(decay: float, step: int) -> float:
    """Return the EMA decay of the update with index `step`: min(decay, (1 + step) / (10 + step)).

    Early in training, the result is smaller than the upper bound and grows with `step`. During this time, the EMA
    weights are mainly an average over the last ninth of the steps so far.

    Args:
        decay: Upper bound of the decay.
        step: Index of the update, counted from 0.

    Returns:
        The decay.
    """
    return min(decay, (1 + step) / (10 + step))


_OTHER: Final = "choose another checkpoint"
_MOMENTS: Final = ("step", "exp_avg", "exp_avg_sq")


def decaying(model: nn.Module) -> set[str]:
    """Return the names of parameters with weight decay: linear weights, but no biases, norms or embeddings."""
    return {
        f"{name}.weight" if name else "weight" for name, module in model.named_modules() if type(module) is nn.Linear
    }


def make_optimizer(model: nn.Module, *, betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
    """Create a fused AdamW (Loshchilov and Hutter 2019). Its learning rate is 0; the learner sets it at each step.

    Args:
        model: Module whose trainable parameters are optimized.
        betas: Decay rates of AdamW's two moving averages: of gradients, and of squared gradients.
        weight_decay: Weight decay of linear weights.

    Returns:
        The optimizer.
    """
    matrices = decaying(model)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if name in matrices], "weight_decay": weight_decay},
        {"params": [p for name, p in named if name not in matrices], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=betas, fused=True)


def moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as ``NAME.exp_avg``, ``NAME.exp_avg_sq`` and ``NAME.step`` for each parameter.

    Args:
        model: Module that is optimized.
        optimizer: Its optimizer.

    Returns:
        Tensors by name; parameters without a state are left out.
    """
    states = {name: optimizer.state.get(p) for name, p in model.named_parameters() if p.requires_grad}
    return {f"{name}.{part}": state[part] for name, state in states.items() if state for part in _MOMENTS}


def _require_moments(model: nn.Module, found: Mapping[str, Tensor], last_step: int | None, where: str) -> None:
    """Raise DataError if an optimizer's state does not fit the model, or has values that AdamW cannot produce.

    Args:
        model: Module that is optimized.
        found: Result of `moments`, or an open file that contains it.
        last_step: Training step at which the state was saved; None: not known.
        where: Path of the tensors, for the error.
    """
    expected = {
        f"{name}.{part}": (() if part == "step" else tuple(parameter.shape))
        for name, parameter in model.named_parameters()
        for part in _MOMENTS
        if parameter.requires_grad
    }
    require_same(expected, shapes_of(found), where, f"the file belongs to another model; {_OTHER}")
    steps = set()
    for name in expected:
        tensor = found[name]
        require_learned(name, tensor, where)
        if name.endswith(".exp_avg_sq") and (tensor < 0).any():
            raise DataError(f"{where}: {name}: expected means of squares of at least 0, found negative ones; {_OTHER}")
        if name.endswith(".step"):
            steps.add(float(tensor))
    most = math.inf if last_step is None else last_step
    if len(steps) > 1 or not all(step.is_integer() and 0 <= step <= most for step in steps):
        shown = ", ".join(f"{step:g}" for step in sorted(steps)[:3])
        limits = "at least 0" if last_step is None else f"0 to {last_step}"
        raise DataError(
            f"{where}: expected the same whole number of updates for every parameter, {limits}, found {shown}; {_OTHER}"
        )


def empty_moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Reset an optimizer to the state of step 0, and return the tensors of this state, which a caller may overwrite.

    Args:
        model: Module that is optimized.
        optimizer: Optimizer whose state is replaced.

    Returns:
        Zeros, with the names of `moments`. They are sharded if the parameters are sharded.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            zeros = {part: torch.zeros_like(parameter, dtype=torch.float32) for part in _MOMENTS[1:]}
            step = torch.zeros((), dtype=torch.float32, device=parameter.device)
            optimizer.state[parameter] = {"step": step} | zeros
    return moments(model, optimizer)


def load_moments(model: nn.Module, optimizer: torch.optim.Optimizer, saved: Mapping[str, Tensor], where: str) -> None:
    """Load the saved state of an optimizer that is used in one process.

    Args:
        model: Module that is optimized.
        optimizer: Optimizer whose state is replaced.
        saved: Result of `moments`.
        where: Path of the tensors, for the error.

    Raises:
        DataError: Names, shapes or values do not fit the model.
    """
    _require_moments(model, saved, None, where)
    own = empty_moments(model, optimizer)
    copy_rows(own.values(), (saved[name] for name in own))


class Ema:
    """Exponential moving averages (EMA) of a module's parameters, by name, initialized to the parameters."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        parameters = dict(module.named_parameters())
        self._parameters = list(parameters.values())
        self.tensors: Mapping[str, Tensor] = {
            name: parameter.detach().to(torch.float32, copy=True) for name, parameter in parameters.items()
        }
        self._averages = list(self.tensors.values())

    @torch.no_grad()
    def reset(self) -> None:
        """Set the EMA weights to the current parameters."""
        torch._foreach_copy_([local(a) for a in self._averages], [local(p.detach()) for p in self._parameters])

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the EMA weights after step `step` (counted from 0): ema ← ema + (1 − decay)(parameter − ema)."""
        weight = 1.0 - ema_decay(self.decay, step)
        current = [local(p.detach()).float() for p in self._parameters]
        torch._foreach_lerp_([local(a) for a in self._averages], current, weight)


class Learner:
    """A model in training, with its optimizer and EMA weights, on the accelerator's device and processes."""

    def __init__(self, model: FlowModel, accelerator: Accelerator, settings: TrainSettings, rate: LearningRate) -> None:
        self.model, self.rate = model, rate
        self._settings, self._flow = settings, settings.flow_settings()
        self._accelerator = accelerator
        self.sharded = settings.sharding == "full"
        # A copy of the modules for `averaged`, made before the model is wrapped.
        self._skeleton = skeleton_of(model, empty=self.sharded)
        self._averaged: FlowModel | None = None
        if self.sharded:
            shard_model(model, self.device, bf16=settings.mixed_precision == "bf16")
        self._wrapped: nn.Module = model if self.sharded else accelerator.prepare_model(model)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = make_optimizer(
            model, betas=(settings.adam_beta1, settings.adam_beta2), weight_decay=settings.weight_decay
        )
        self._stepper = accelerator.prepare_optimizer(self._optimizer)
        self.average = Ema(model, settings.ema_decay)
        if settings.compile:
            model.stack_streams()
            model.losses_of = torch.compile(model.losses_of, fullgraph=True, dynamic=False)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return cast("torch.device", self._accelerator.device)

    def averaged(self) -> FlowModel:
        """Create a model in evaluation mode for the EMA weights; use it inside ``with learner.average_gathered():``."""
        model = skeleton_of(self._skeleton, empty=self.sharded)
        buffers = {name: buffer.to(self.device) for name, buffer in model.named_buffers()}
        weights = dict(model.named_parameters()) if self.sharded else dict(self.average.tensors)
        model.load_state_dict(weights | buffers, assign=True)
        self._averaged = model.requires_grad_(False).eval()
        return self._averaged

    @contextlib.contextmanager
    def average_gathered(self) -> Iterator[None]:
        """Load the complete EMA weights into the model from `averaged`, for the duration of the ``with`` block.

        All ranks must enter the block together. If parameters are not sharded over ranks, the model always has the EMA
        weights, because it shares their memory.

        Yields:
            Nothing.
        """
        if not self.sharded or self._averaged is None:
            yield
            return
        model = self._averaged
        empty = {name: parameter.detach() for name, parameter in model.named_parameters()}
        model.load_state_dict({name: whole(x) for name, x in self.average.tensors.items()}, assign=True, strict=False)
        try:
            yield
        finally:
            model.load_state_dict(empty, assign=True, strict=False)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context manager for computations in the precision of training."""
        return cast("contextlib.AbstractContextManager[Any]", self._accelerator.autocast())

    def micro_step(self, windows: Windows, plan: Plan, *, last: bool) -> Tensor:
        """Compute the losses of a micro-batch, and add its gradients to those of the step.

        Args:
            windows: The micro-batch.
            plan: Tasks, noise levels and drop-outs that were drawn for the micro-batch.
            last: True for the last micro-batch of a step. Ranks average their gradients after this micro-batch only.
                With parameters that are sharded over ranks, `last` is ignored: ranks average after every micro-batch.

        Returns:
            Unweighted losses (B, 3): one for each of the B windows and the 3 streams (`FlowLoss.each`), on the device.
        """
        settings = self._settings
        if self.sharded:  # ranks average after every micro-batch, because each rank keeps only its rows
            with self.autocast():
                loss: FlowLoss = self._wrapped(windows, plan, self._flow, settings.seed)
            self._accelerator.backward(loss.total / settings.gradient_accumulation_steps)
            return loss.each
        alone = contextlib.nullcontext() if last else self._accelerator.no_sync(self._wrapped)
        with alone:
            loss = self._wrapped(windows, plan, self._flow, settings.seed, rounded=bool(settings.compile))
            self._accelerator.backward(loss.total / settings.gradient_accumulation_steps)
        return loss.each

    def finish_step(self, step: int) -> Tensor:
        """Clip the gradients, update weights and EMA weights; return the gradient's norm (a scalar) before clipping."""
        self._accelerator.unscale_gradients(self._stepper)
        gradients = [local(p.grad) for p in self._parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        if self.sharded:
            norm = norm_of_all(norm)
        if self._settings.max_grad_norm:  # as torch's clip_grads_with_norm_
            torch._foreach_mul_(gradients, (self._settings.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate.at(step)
        self._stepper.step()
        self._stepper.zero_grad(set_to_none=True)
        self.average.update(step)
        return norm

    def discard(self) -> None:
        """Discard the gradients of an unfinished step."""
        self._stepper.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Return all learned tensors, by file and name. Sharded tensors are DTensors."""
        weights = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        state = moments(self.model, self._optimizer)
        return {MODEL_FILE: weights, EMA_FILE: self.average.tensors, OPTIMIZER_FILE: state}

    def scale(self) -> dict[str, Any] | None:
        """Return the state of fp16's loss scale; None for other precisions."""
        scaler = self._accelerator.scaler
        return None if scaler is None else asdict(LossScale(**scaler.state_dict()))

    def require_fit(self, files: Mapping[str, Mapping[str, Tensor]], step: int, where: Path) -> None:
        """Raise DataError for saved weights or moments that do not fit the model, or that training cannot produce.

        Args:
            files: Tensors by file and name. They are accessed one at a time.
            step: Step at which the files were saved.
            where: Folder of the files, for the error.

        Raises:
            DataError: Names, shapes, types or values do not fit.
        """
        own = shapes_of(dict(self.model.named_parameters()))
        for name in (MODEL_FILE, EMA_FILE):
            require_same(own, shapes_of(files[name]), str(where / name), _OTHER)
            for each in own:
                require_learned(each, files[name][each], str(where / name))
        _require_moments(self.model, files[OPTIMIZER_FILE], step, str(where / OPTIMIZER_FILE))

    @contextlib.contextmanager
    def complete(self, ranks: Ranks) -> Iterator[Mapping[str, Mapping[str, Tensor]]]:
        """Let the first rank read the complete tensors of this learner: weights, EMA weights and optimizer state.

        The other ranks send their rows until the first rank leaves its ``with`` block.

        Args:
            ranks: Ranks of the run; all of them enter together.

        Yields:
            Complete tensors by file and name; only the first rank may read them.
        """
        if not self.sharded:
            yield self.tensors()
            return
        with gathered(self.tensors(), ranks) as files:
            yield files

    @torch.no_grad()
    def initialize(self, model: FlowModel) -> None:
        """Initialize weights and EMA weights from another model. All ranks must pass the same complete model."""
        copy_rows(self.model.parameters(), model.parameters())
        self.average.reset()

    def load(self, files: Mapping[str, Mapping[str, Tensor]], scale: LossScale | None, ranks: Ranks) -> None:
        """Load saved weights, moments and loss scale on all ranks; only the first rank passes tensors.

        Args:
            files: Complete tensors by file and name, checked by `require_fit`; empty on ranks other than the first.
            scale: State of the loss scale; None: it was not saved, because the precision was not fp16.
            ranks: Ranks of the run; all of them call this.
        """
        empty_moments(self.model, self._optimizer)
        slots = [(file, name, tensor) for file, own in self.tensors().items() for name, tensor in own.items()]
        receive([tensor for _, _, tensor in slots], (files[file][name] for file, name, _ in slots), ranks)
        scaler = self._accelerator.scaler
        if scaler is not None and scale is not None:
            scaler.load_state_dict(asdict(scale))


_FLOAT32: Final = 4


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Memory of training on each GPU in bytes, without activations."""

    weights: int
    gradients: int
    moments: int  # AdamW's mean and mean square of each gradient
    average: int
    gathered: int  # with FSDP: weights of the current and the next block, and gradients of one block

    @property
    def total(self) -> int:
        """Total memory in bytes."""
        return self.weights + self.gradients + self.moments + self.average + self.gathered


def training_memory(
    config: ModelConfig, *, vocab_size: int, speakers: int, average: bool = True, shards: int = 1
) -> TrainingMemory:
    """Return the GPU memory that training needs for float32 weights, gradients, AdamW's moments and EMA weights.

    The memory for activations is not included.

    Args:
        config: Configuration of the model.
        vocab_size: Size of the tokenizer's vocabulary.
        speakers: Number of speakers.
        average: True to include the memory of EMA weights, which `omniges train` always keeps.
        shards: Number of GPUs over which ``--sharding full`` divides all tensors; 1: each GPU has a complete copy.

    Returns:
        Memory on one GPU in bytes, by type of tensor.
    """
    with torch.device("meta"):
        model = model_for_weights(config, vocab_size=vocab_size, speakers=speakers)
    count = sum(p.numel() for p in model.parameters())
    block = max(sum(p.numel() for p in block.parameters()) for block in model.trunk.blocks)
    own = _FLOAT32 * -(-count // shards)
    gathered = 3 * _FLOAT32 * block if shards > 1 else 0
    return TrainingMemory(own, own, 2 * own, own if average else 0, gathered)
