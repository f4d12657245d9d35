"""Presets: sizes by formula, JSON round trip, refusals, and that a built model has what the data says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from flow_builders import statistics

from omniges.errors import UsageFault
from omniges.model.spec import PRESETS, CodecLatents, ModelConfig, build_model, model_for_weights
from omniges.shards.latents import FrameEntry
from omniges.storage.documents import Document
from omniges.trainer.config import TrainSettings


def formula(config: ModelConfig, vocab_size: int, speakers: int) -> int:
    """Learned numbers, counted by hand from the layers' shapes."""
    d, m = config.width, config.mlp_ratio * config.width
    text = config.piece_width + config.mark_width
    widths = [(3 * 415, 6 * 415), (text, vocab_size + 6), (10 * 64, 20 * 64)]  # channels and outputs of each stream
    branch = (d * 6 * d + 6 * d) + (d * 3 * d + 3 * d) + (d * d + d) + (d * m + m) + (m * d + d) + 2 * d // config.heads
    outside = sum(c * d + d + (d * 2 * d + 2 * d) + d * o + o + (256 * d + d) + (d * d + d) for c, o in widths)
    tables = (vocab_size + 1) * config.piece_width + 5 * config.mark_width
    return 3 * config.layers * branch + outside + (speakers + 1) * d + tables


def parameter_count(config: ModelConfig, **sizes: Any) -> int:
    """Learned numbers of a model, which are not allocated."""
    with torch.device("meta"):
        return sum(p.numel() for p in model_for_weights(config, **sizes).parameters())


class TestSizes:
    @pytest.mark.parametrize("name", PRESETS)
    def test_the_count_is_that_of_the_layers(self, name):
        assert parameter_count(PRESETS[name], vocab_size=1000, speakers=25) == formula(PRESETS[name], 1000, 25)

    def test_a_built_model_has_as_many(self):
        model = build_model(PRESETS["tiny"], statistics=statistics(), vocab_size=300, speakers=4)
        assert sum(p.numel() for p in model.parameters()) == parameter_count(
            PRESETS["tiny"], vocab_size=300, speakers=4
        )

    @pytest.mark.parametrize("name", PRESETS)
    def test_the_page_has_them(self, name):
        config = PRESETS[name]
        counts = [formula(config, vocab_size, speakers) for vocab_size, speakers in ((300, 2), (20_000, 25))]
        row = f"| `{name}` | {config.width} | {config.layers} | {config.heads} | {counts[0]:,} | {counts[1]:,} |"
        page = Path(__file__).resolve().parents[2] / "docs/explanation/model.md"
        assert row in page.read_text().splitlines()

    @pytest.mark.parametrize("name", PRESETS)
    def test_over_latents_it_differs_by_the_projections_of_tokens_alone(self, name):
        config, codecs = PRESETS[name], {}
        for stream, codec, source, channels in (
            ("gesture", "gesture-rvqvae", "gesture.npy", 512),
            ("audio", "audioldm2-vae", "mel.npy", 128),
        ):
            entry = FrameEntry(name=codec, fingerprint="0" * 64, source=source, frames_per_row=4, channels=channels)
            codecs[stream] = CodecLatents(entry, {"mean": [0.0] * channels, "std": [1.0] * channels})
        inputs, outputs = (3 * 415 - 512) + (10 * 64 - 128), (6 * 415 - 512) + (20 * 64 - 128)
        expected = formula(config, 1000, 25) - inputs * config.width - outputs * (config.width + 1)
        assert parameter_count(config, vocab_size=1000, speakers=25, codecs=codecs) == expected

    def test_they_grow(self):
        counts = [formula(config, 1000, 25) for config in PRESETS.values()]
        assert counts == sorted(counts)
        assert list(PRESETS) == ["tiny", "small", "base", "omniflow"]


class TestConfig:
    @pytest.mark.parametrize("found", [-1.0, float("nan"), float("inf"), "x", None])
    def test_a_weight_that_is_invalid_is_refused(self, found):
        with pytest.raises(UsageFault, match="gesture_difference_weight: expected"):
            dataclasses.replace(PRESETS["tiny"], gesture_difference_weight=found)

    @pytest.mark.parametrize("found", [3, "ab", [0.5, 120.0], (1.0,), (2.0, 1.0), (0.0, 1.0), (1.0, float("nan"))])
    def test_rotary_periods_that_are_no_range_are_refused(self, found):
        with pytest.raises(UsageFault, match=r"rotary_periods_s: expected the shortest and .*, found"):
            dataclasses.replace(PRESETS["tiny"], rotary_periods_s=found)

    @pytest.mark.parametrize("name", PRESETS)
    def test_it_survives_json(self, name):
        config = dataclasses.replace(PRESETS[name], gesture_prediction="velocity", qk_norm=None)
        assert ModelConfig.read(Document(json.loads(json.dumps(config.as_json())), "x", "y")) == config

    def test_an_unknown_name_is_refused_with_the_known_ones(self):
        with pytest.raises(UsageFault, match=r"^preset huge: expected one of tiny, small, base, omniflow"):
            TrainSettings(preset="huge")

    @pytest.mark.parametrize("changes", [{"layers": 0}, {"width": 100, "heads": 3}, {"width": 12, "heads": 4}])
    def test_sizes_no_trunk_has_are_refused(self, changes):
        with pytest.raises(UsageFault, match=r"^[a-z, ]+: expected"):
            dataclasses.replace(PRESETS["tiny"], **changes)


class TestBuilding:
    def test_statistics_reach_the_streams(self):
        model = build_model(PRESETS["tiny"], statistics=statistics(), vocab_size=300, speakers=4)
        frames = torch.full((1, 3, 415), 4.5)
        torch.testing.assert_close(model.stream("gesture").tokens(frames), torch.full((1, 1, 1245), 2.0))
        assert model.stream("text").outputs == 300 + 6

    def test_the_same_seed_builds_the_same_model(self):
        built = []
        for _ in range(2):
            torch.manual_seed(3)
            built.append(build_model(PRESETS["tiny"], statistics=statistics(), vocab_size=30, speakers=1).state_dict())
        assert all(torch.equal(value, built[1][name]) for name, value in built[0].items())

    def test_a_state_dict_holds_all_there_is(self):
        """Weights and the statistics that arrays are normalised by."""
        built = build_model(PRESETS["tiny"], statistics=statistics(), vocab_size=30, speakers=1)
        loaded = model_for_weights(PRESETS["tiny"], vocab_size=30, speakers=1)
        loaded.load_state_dict(built.state_dict(), strict=True)
        frames = torch.randn(1, 3, 415)
        assert torch.equal(loaded.stream("gesture").tokens(frames), built.stream("gesture").tokens(frames))
