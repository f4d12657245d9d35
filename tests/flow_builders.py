"""Small flow models, windows and batches that tests of the flow, sampling, presets and OmniFlow's weights share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omniges.features.audio import MEL_BANDS
from omniges.features.gesture import JAW_EYES, LAYOUT
from omniges.model.draws import FlowSettings, Plan, draw_plan, levels_of, uniform
from omniges.model.flow import Conditioning, FlowModel, Windows, draw_noise, guided_clean, integrate, step_levels
from omniges.model.spec import ModelConfig, build_model
from omniges.model.streams import STREAMS, StreamName
from omniges.model.tasks import SamplingSettings

TICKS, VOCAB_SIZE = 6, 9
CONFIG = ModelConfig(width=16, layers=2, heads=2, piece_width=12, mark_width=4)


def statistics() -> dict[str, Any]:
    sizes = {
        "gesture": (LAYOUT.channels, 0.5, 2.0, 0.25),
        "jaw_eyes": (JAW_EYES, 0.01, 0.02, 0.003),
        "mel": (MEL_BANDS, -5.0, 3.0, 1.0),
    }
    return {
        name: {"mean": [mean] * count, "std": [std] * count, "difference_std": [difference] * count}
        for name, (count, mean, std, difference) in sizes.items()
    }


def model_of(config: ModelConfig = CONFIG) -> FlowModel:
    """A model with every parameter drawn at random, so that nothing is hidden by zeros."""
    model = build_model(config, statistics=statistics(), vocab_size=VOCAB_SIZE, speakers=2)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model


def draw_levels(flow: FlowSettings, seed: int, positions: np.ndarray[Any, Any], purpose: int) -> np.ndarray[Any, Any]:
    """The noise levels of one purpose, as plans draw them."""
    return levels_of(flow, uniform(seed, torch.from_numpy(positions), purpose, 4).unbind(1)).numpy()


def windows_of(positions: list[int], channels: int = LAYOUT.channels) -> Windows:
    """Windows whose content follows from their position."""
    arrays: dict[str, list[Tensor]] = {name: [] for name in STREAMS}
    for position in positions:
        generator = torch.Generator().manual_seed(position)
        arrays["gesture"].append(torch.randn(3 * TICKS, channels, generator=generator))
        arrays["audio"].append(torch.randn(10 * TICKS, MEL_BANDS, generator=generator) - 5)
        arrays["text"].append(torch.randint(0, 1 + 4 * VOCAB_SIZE, (TICKS,), generator=generator, dtype=torch.int32))
    return Windows(
        {name: torch.stack(found) for name, found in arrays.items()},
        torch.tensor(positions),
        torch.tensor([1 + position % 2 for position in positions]),
    )


def run(model: FlowModel, positions: list[int], flow: FlowSettings, *, rounded: bool = False) -> tuple[Any, Plan]:
    plan = draw_plan(flow, 7, np.array(positions))
    return model(windows_of(positions), plan, flow, 7, rounded=rounded), plan


def gradients(model: FlowModel, total: Tensor) -> list[Tensor]:
    model.zero_grad()
    total.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


class Recorder(torch.nn.Module):
    """A trunk that keeps what it was given and passes it on."""

    def __init__(self, trunk: torch.nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.calls: list[dict[str, Any]] = []

    def forward(self, tokens: Any, levels: Any, **others: Any) -> Any:
        self.calls.append({"tokens": tokens, "levels": levels, **others})
        return self.trunk(tokens, levels, **others)


@dataclass(frozen=True, slots=True)
class Draws:
    """The samples of a draw: B of them, on the model's device."""

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
    """Arrays (B, …) of the targets, as shards hold them, drawn for windows of one length at once."""
    given = {name: model.stream(name).tokens(arrays) for name, arrays in conditions.items()}

    def noise_of(names: Sequence[StreamName]) -> dict[StreamName, Tensor]:
        shapes = {n: (model.stream(n).count(draws.ticks), model.stream(n).channels) for n in names}
        return {name: draw_noise(draws.seed, draws.positions, name, shape) for name, shape in shapes.items()}

    noise = noise_of(targets)
    carried = noise_of(model.carried(targets))
    clean_of = guided_clean(model, Conditioning(given, draws.speakers), targets, settings.guidance, carried)
    generated = integrate(noise, step_levels(settings), clean_of, settings.solver)
    return {name: model.stream(name).arrays(tokens) for name, tokens in generated.items()}
