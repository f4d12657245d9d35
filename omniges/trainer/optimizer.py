"""AdamW over a model: which weights decay, and its state by parameter name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import torch
from torch import Tensor, nn

from omniges.errors import DataError

__all__ = ["decaying", "load_moments", "make_optimizer", "moments"]

_MOMENTS: Final = ("step", "exp_avg", "exp_avg_sq")


def decaying(model: nn.Module) -> set[str]:
    """Names of the parameters that weight decay pulls to 0: matrices of linear layers.

    Biases, weights of norms and embeddings are left alone, whatever their shape.
    """
    return {
        f"{name}.weight" if name else "weight" for name, module in model.named_modules() if type(module) is nn.Linear
    }


def make_optimizer(model: nn.Module, *, betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019), fused; the learning rate is set at each step."""
    matrices = decaying(model)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if name in matrices], "weight_decay": weight_decay},
        {"params": [p for name, p in named if name not in matrices], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=betas, fused=True)


def moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as ``NAME.exp_avg``, ``NAME.exp_avg_sq`` and ``NAME.step`` for each parameter."""
    return {
        f"{name}.{part}": state[part]
        for name, parameter, state in _states(model, optimizer)
        if state
        for part in _MOMENTS
    }


def load_moments(model: nn.Module, optimizer: torch.optim.Optimizer, saved: Mapping[str, Tensor], where: str) -> None:
    """Put saved state back; raises DataError where it is not this model's."""
    expected = {
        f"{name}.{part}": (parameter.shape if part != "step" else torch.Size())
        for name, parameter, _ in _states(model, optimizer)
        for part in _MOMENTS
    }
    if {name: tensor.shape for name, tensor in saved.items()} != expected:
        raise DataError(f"{where}: the optimizer's state is not of this model's shapes. Choose another checkpoint")
    for name, parameter, state in _states(model, optimizer):
        for part in _MOMENTS:
            # Copies: what was read is mapped from a file that may be pruned.
            state[part] = saved[f"{name}.{part}"].to(parameter.device, torch.float32, copy=True)


def _states(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, nn.Parameter, dict[str, Tensor]]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter, optimizer.state[parameter]
