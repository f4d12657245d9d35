"""Losses by level are those of the flow written out, and depend on nothing but weights, window and level."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from omniges.errors import DataError
from omniges.model.draws import Purpose, normal
from omniges.model.flow import FlowModel, draw_noise
from omniges.model.spec import ModelConfig, build_model
from omniges.model.streams import STREAMS
from omniges.model.tasks import SIX, TASKS
from omniges.trainer.validation.run import LEVELS, grid_losses, loss_table, streams_of
from omniges.trainer.validation.samples import VALIDATION_SEED

TICKS, VOCAB_SIZE = 8, 20
CONFIG = ModelConfig(width=16, layers=1, heads=2, piece_width=8, mark_width=4)
CARRYING = replace(
    CONFIG, rotary_periods_s=None, pooled_width=6, text_head_width=20, context_only=("text",), absent="noise"
)


def model_of(config: ModelConfig) -> FlowModel:
    statistics = {"gesture": {"mean": [0.1] * 415, "std": [0.5] * 415}, "mel": {"mean": [-4.0] * 64, "std": [2.0] * 64}}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(config, statistics=statistics, vocab_size=VOCAB_SIZE, speakers=2)
        for p in model.parameters():  # heads that start at zero would answer zero whatever they are given
            torch.nn.init.normal_(p, std=0.2)
    return model.eval()


def squares(error: torch.Tensor, target: str) -> float:
    """Mean square of errors (1, N, C) of frames, and of their differences with the weight of the configuration."""
    frames = error.reshape(-1, 415 if target == "gesture" else 64).double()
    weight = CONFIG.gesture_difference_weight if target == "gesture" else CONFIG.audio_difference_weight
    return float(frames.square().mean() + weight * (frames[1:] - frames[:-1]).square().mean())


@pytest.fixture(scope="module")
def model() -> FlowModel:
    return model_of(CONFIG)


@pytest.fixture(scope="module")
def arrays() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "gesture": torch.randn(3, TICKS * 3, 415, generator=generator),
        "audio": torch.randn(3, TICKS * 10, 64, generator=generator) - 4,
        "text": torch.randint(0, 1 + 4 * VOCAB_SIZE, (3, TICKS), generator=generator),
    }


@pytest.mark.parametrize("task", SIX)
def test_a_loss_is_the_formula_by_itself(task: str, model: FlowModel, arrays: dict[str, torch.Tensor]) -> None:
    """x_σ = (1 − σ) x + σ ε with ε of (window, level); squares of what is expected, or cross-entropy."""
    numbers, speakers = [5, 6, 9], [1, 0, 2]
    found = grid_losses(model, arrays, numbers, speakers, task)
    (condition,), (target,) = TASKS[task].conditions, TASKS[task].targets
    purpose = {"gesture": Purpose.NOISE_GESTURE, "text": Purpose.NOISE_TEXT, "audio": Purpose.NOISE_AUDIO}[target]
    with torch.no_grad():
        for row in range(3):
            for k, level in enumerate(LEVELS):
                clean = model.stream(target).tokens(arrays[target][row : row + 1])
                where = torch.tensor([numbers[row] * 6 + k])
                noise = normal(VALIDATION_SEED, where, purpose, clean.numel()).reshape(clean.shape)
                tokens = {
                    target: (1 - level) * clean + level * noise,
                    condition: model.stream(condition).tokens(arrays[condition][row : row + 1]),
                }
                levels = {target: torch.tensor([level]), condition: torch.tensor([0.0])}
                outputs = model.trunk(
                    tokens,
                    levels,
                    seconds={name: (torch.arange(TICKS) + 0.5) / 10 for name in tokens},
                    speakers=torch.tensor([speakers[row]]),
                    rows={target: torch.tensor([0])},
                )[target]
                if target == "text":
                    ids = arrays["text"][row]
                    weights = torch.where(ids == 0, 0.25, 1.0)
                    subword = torch.where(ids == 0, 0, (ids - 1) // 4 + 1)
                    marks = torch.where(ids == 0, 0, (ids - 1) % 4 + 1)
                    split = VOCAB_SIZE + 1
                    nats = functional.cross_entropy(outputs[0, :, :split], subword, reduction="none")
                    nats += functional.cross_entropy(outputs[0, :, split:], marks, reduction="none")
                    expected = float((nats * weights).sum() / weights.sum())
                else:
                    generated = model.stream(target).clean(outputs, tokens[target], levels[target])
                    expected = squares(generated - clean, target)
                assert found[row, k] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("task", ["t2g", "a2g", "g2a", "t2a"])
def test_what_a_model_carries_as_noise_is_noise_of_window_and_level(task: str, arrays: dict[str, torch.Tensor]) -> None:
    """The loss of a trunk that is given all streams: the third one, that the task has not, as noise at level 1."""
    model = model_of(CARRYING)
    assert streams_of(model, task) == list(STREAMS)
    found = grid_losses(model, arrays, [5, 6, 9], [1, 0, 2], task)
    (condition,), (target,) = TASKS[task].conditions, TASKS[task].targets
    (third,) = {*STREAMS} - {condition, target}
    with torch.no_grad():
        for k, level in enumerate(LEVELS):
            where = torch.tensor([6 * 6 + k])
            clean = {name: model.stream(name).tokens(arrays[name][1:2]) for name in STREAMS}
            noise = {name: draw_noise(VALIDATION_SEED, where, name, x.shape[1:]) for name, x in clean.items()}
            tokens = {target: torch.lerp(clean[target], noise[target], level)}
            tokens |= {condition: clean[condition], third: noise[third]}
            levels = {target: torch.tensor([level]), condition: torch.zeros(1), third: torch.ones(1)}
            generated = model.predict(tokens, levels, [target], torch.tensor([0]))[target]
            assert found[1, k] == pytest.approx(squares(generated - clean[target], target), rel=1e-4)


def test_a_window_has_its_losses_whatever_is_beside_it(model: FlowModel, arrays: dict[str, torch.Tensor]) -> None:
    together = grid_losses(model, arrays, [0, 1, 2], [1, 1, 1], "a2g")
    alone = grid_losses(model, {name: array[2:] for name, array in arrays.items()}, [2], [1], "a2g")
    np.testing.assert_allclose(together[2:], alone, rtol=1e-5)
    moved = grid_losses(model, {name: array[2:] for name, array in arrays.items()}, [3], [1], "a2g")
    assert (moved != alone).all()


def test_the_table_has_means_over_windows_and_levels() -> None:
    losses = np.arange(2 * 6 * len(LEVELS), dtype=np.float64).reshape(2, 6, -1)
    table = loss_table(losses, ["first", "second"])
    assert list(table) == list(SIX)
    for k, task in enumerate(SIX):
        assert table[task]["loss"] == pytest.approx(losses[:, k].mean())
        assert list(table[task]["levels"].values()) == pytest.approx(losses[:, k].mean(axis=0).tolist())
    assert list(table["t2g"]["levels"]) == ["0.1", "0.3", "0.5", "0.7", "0.9", "1"]


def test_a_loss_that_is_no_number_names_window_task_and_level() -> None:
    losses = np.zeros((2, 6, len(LEVELS)))
    losses[1, 4, 2] = np.nan
    with pytest.raises(DataError, match=r"found NaN or infinity for t2a at noise level 0.5 on second"):
        loss_table(losses, ["first", "second"])
