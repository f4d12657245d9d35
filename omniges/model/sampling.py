"""Sampling: any streams from any others, by steps of Euler or Heun from noise to clean tokens.

A model gives expected clean tokens x; the velocity at level σ is (x_σ − x) / σ, and a step to σ' is
x_σ' = x_σ + (σ' − σ) v. Heun's method takes the mean of the velocities at both ends of the step, the second at the
point that Euler's step leads to (Karras et al. 2022); the last step, at whose end there is no velocity, is Euler's.
Guidance without a classifier (Ho and Salimans 2022) takes x = x_u + w (x_c − x_u), where
for x_u the conditions are left out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from omniges.errors import UsageFault
from omniges.model.flow import FlowModel, draw_noise
from omniges.model.settings import SamplingSettings, Solver
from omniges.model.streams import STREAMS, StreamName, velocity_from_clean

CleanOf = Callable[[Mapping[StreamName, Tensor], Tensor], Mapping[StreamName, Tensor]]
"""Expected clean tokens for tokens (B, …) at levels (B,)."""


def step_levels(settings: SamplingSettings) -> list[float]:
    """The steps + 1 levels from 1 down to 0: even but for the shift, and squeezed where one would be below the last."""
    shift, last = settings.shift, settings.last_level
    lowest = max(1 / settings.steps, last / (shift - (shift - 1) * last))
    even = np.linspace(1, lowest, settings.steps).tolist()
    return [*(shift * u / (shift * u + (1 - u)) for u in even), 0.0]  # exactly 1 at 1


def follow(
    start: Mapping[StreamName, Tensor],
    levels: Sequence[float],
    clean_of: CleanOf,
    solver: Solver = "euler",
    after_step: Callable[[], None] = lambda: None,
) -> dict[StreamName, Tensor]:
    """Follow the flow from tokens (B, …) at levels[0] to levels[-1]; `after_step` is called after each step."""
    x = dict(start)
    memory: list[tuple[float, Mapping[StreamName, Tensor]]] = []  # of the step before, for dpm++
    for level, following in itertools.pairwise(levels):
        if solver == "dpm++":
            first = next(iter(x.values()))
            clean = clean_of(x, torch.full((len(first),), level, device=first.device))
            x = _multistep(x, clean, level, following, memory)
            memory = [(level, clean)]
        else:
            velocity = _velocity(x, level, clean_of)
            if solver == "heun" and following > 0:
                second = _velocity(_moved(x, velocity, following - level), following, clean_of)
                velocity = {name: torch.lerp(v, second[name], 0.5) for name, v in velocity.items()}
            x = _moved(x, velocity, following - level)
        after_step()
    return x


def _multistep(
    x: Mapping[StreamName, Tensor],
    clean: Mapping[StreamName, Tensor],
    level: float,
    following: float,
    memory: Sequence[tuple[float, Mapping[StreamName, Tensor]]],
) -> dict[StreamName, Tensor]:
    """A step of DPM-Solver++(2M) (Lu et al. 2022): x' = σ'/σ x + (α' − α σ'/σ) D with α = 1 − σ.

    D is x expected at the middle of the step, extrapolated in λ = log(α / σ) from this step and the one before; the
    first two steps and the last, where λ has no end, take what is expected at their beginning.
    """
    ratio = following / level
    share = 0.0
    if memory and following > 0 and memory[0][0] < 1:
        share = (_log_ratio(following) - _log_ratio(level)) / (_log_ratio(level) - _log_ratio(memory[0][0])) / 2
    found = {}
    for name, tokens in x.items():
        expected = clean[name]
        if share:
            expected = expected + share * (expected - memory[0][1][name])
        found[name] = ratio * tokens + ((1 - following) - (1 - level) * ratio) * expected
    return found


def _log_ratio(level: float) -> float:
    return math.log((1 - level) / level)


def _velocity(x: Mapping[StreamName, Tensor], level: float, clean_of: CleanOf) -> dict[StreamName, Tensor]:
    # Streams of long timelines lie side by side without a batch axis, each with as many tokens as it has.
    at = {name: torch.full((len(tokens),), level, device=tokens.device) for name, tokens in x.items()}
    clean = clean_of(x, next(iter(at.values())))
    return {name: velocity_from_clean(clean[name], tokens, at[name]) for name, tokens in x.items()}


def _moved(
    x: Mapping[StreamName, Tensor], velocity: Mapping[StreamName, Tensor], step: float
) -> dict[StreamName, Tensor]:
    return {name: tokens + step * velocity[name] for name, tokens in x.items()}


def guided_clean(
    model: FlowModel,
    given: Mapping[StreamName, Tensor],
    targets: Sequence[StreamName],
    speakers: Tensor,
    guidance: float,
    carried: Mapping[StreamName, Tensor] = MappingProxyType({}),
) -> CleanOf:
    """Expected clean tokens of the targets from given clean tokens (B, N, C) of speakers (B,), with guidance.

    ``carried``: noise (B, N, C) of the streams that `FlowModel.carried` names. It stands at level 1, the same at all
    steps, for a stream that is not given, and for one that is given where the conditions are left out.
    """

    def expected(tokens: Mapping[StreamName, Tensor], at: Tensor, *, with_conditions: bool) -> dict[StreamName, Tensor]:
        seen = given if with_conditions else {}
        levels = dict.fromkeys(carried, torch.ones_like(at)) | dict.fromkeys(seen, torch.zeros_like(at))
        return model.predict({**carried, **seen, **tokens}, levels | dict.fromkeys(tokens, at), targets, speakers)

    def guided(tokens: Mapping[StreamName, Tensor], at: Tensor) -> dict[StreamName, Tensor]:
        if not given or guidance == 1:
            return expected(tokens, at, with_conditions=True)
        without = expected(tokens, at, with_conditions=False)
        if guidance == 0:
            return without
        with_them = expected(tokens, at, with_conditions=True)
        return {name: torch.lerp(without[name], with_them[name], guidance) for name in without}

    return guided


@dataclass(frozen=True, slots=True)
class Draws:
    """Which samples are asked for; B of them, on the model's device."""

    ticks: int  # length of the windows
    seed: int  # of the noise, which is keyed by seed and position
    positions: Tensor  # (B,) int64, tell the samples of one seed apart
    speakers: Tensor  # (B,) int64, 0: unknown


@torch.no_grad()
def sample(
    model: FlowModel,
    conditions: Mapping[StreamName, Tensor],
    targets: Sequence[StreamName],
    draws: Draws,
    settings: SamplingSettings,
) -> dict[StreamName, Tensor]:
    """Arrays of the targets, as shards hold them.

    Args:
        model: in evaluation mode.
        conditions: arrays (B, …) of the streams that are given, as long as the draws; none for unconditional samples.
        targets: the streams to make, none of which is given.
        draws: how long, how many, for whom.
        settings: steps, guidance, shift.
    """
    if not targets or set(targets) & set(conditions):
        raise UsageFault(
            f"sampling: found targets {', '.join(targets) or 'none'} and conditions {', '.join(conditions) or 'none'}; "
            f"expected at least one target among {', '.join(STREAMS)}, and none that is given"
        )
    given = {name: model.stream(name).tokens(arrays) for name, arrays in conditions.items()}

    def noise_of(names: Sequence[StreamName]) -> dict[StreamName, Tensor]:
        shapes = {n: (model.stream(n).count(draws.ticks), model.stream(n).channels) for n in names}
        return {name: draw_noise(draws.seed, draws.positions, name, shape) for name, shape in shapes.items()}

    noise = noise_of(targets)
    carried = noise_of(model.carried(targets))
    clean_of = guided_clean(model, given, targets, draws.speakers, settings.guidance, carried)
    made = follow(noise, step_levels(settings), clean_of, settings.solver)
    return {name: model.stream(name).arrays(tokens) for name, tokens in made.items()}
