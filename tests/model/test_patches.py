"""Patches of audio latents as OmniFlow's tokens: each number's place, times, table, order of the head, the loss."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from omniflow_grids import grid_embedding

from omniges.errors import UsageFault
from omniges.model.patches import PatchGrid, PatchTokens
from omniges.model.spec import PRESETS, CodecLatents, ModelConfig, build_model
from omniges.shards.latents import FrameEntry
from omniges.storage.documents import Document

GRID = PatchGrid(channels=8, patch=2, table_side=192, table_base=128)
PUBLISHED = PatchTokens(GRID, columns=16, rows_per_tick=Fraction(5, 2))
ODD = PatchTokens(PatchGrid(channels=2, patch=3, table_side=20, table_base=8), columns=6, rows_per_tick=Fraction(3, 2))
STREAMS = {"published": PUBLISHED, "three by three": ODD}


def rows_of(stream: PatchTokens, rows: int) -> torch.Tensor:
    width = stream.channels // stream.grid.patch * stream.tokens_at_once
    return torch.randn(2, rows, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", STREAMS)
class TestPlaces:
    def test_every_number_stands_where_a_convolution_looks_for_it(self, name: str) -> None:
        stream = STREAMS[name]
        patch, columns = stream.grid.patch, stream.tokens_at_once
        rows = rows_of(stream, 4 * patch)
        tokens = stream.tokens(rows)
        width = columns * patch
        for pair in range(4):
            for column in range(columns):
                for channel in range(stream.grid.channels):
                    for i in range(patch):
                        for j in range(patch):
                            feature = (channel * patch + i) * patch + j
                            wanted = rows[:, pair * patch + i, channel * width + column * patch + j]
                            assert torch.equal(tokens[:, pair * columns + column, feature], wanted)

    def test_rows_come_back_to_the_bit(self, name: str) -> None:
        rows = rows_of(STREAMS[name], 12)
        assert torch.equal(STREAMS[name].arrays(STREAMS[name].tokens(rows)), rows)

    def test_a_linear_layer_on_them_is_the_convolution(self, name: str) -> None:
        stream = STREAMS[name]
        patch, channels = stream.grid.patch, stream.grid.channels
        kernel = torch.randn(5, channels, patch, patch, generator=torch.Generator().manual_seed(2))
        rows = rows_of(stream, 6)
        latents = rows.reshape(2, 6, channels, -1).transpose(1, 2)
        wanted = torch.nn.functional.conv2d(latents, kernel, stride=patch).flatten(2).mT
        torch.testing.assert_close(stream.tokens(rows) @ kernel.flatten(1).T, wanted, atol=1e-5, rtol=1e-5)

    def test_the_heads_velocity_is_read_row_column_channel(self, name: str) -> None:
        """A head that gives ε − x in its own order leads to x and costs nothing, a wrong number costs its square."""
        stream = STREAMS[name]
        patch, channels = stream.grid.patch, stream.grid.channels
        clean = stream.tokens(rows_of(stream, 6))
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))
        velocity = noise - clean
        output = torch.empty_like(velocity)
        for channel in range(channels):
            for i in range(patch):
                for j in range(patch):
                    output[..., (i * patch + j) * channels + channel] = velocity[..., (channel * patch + i) * patch + j]
        levels = torch.tensor([0.3, 1.0])
        at = (1 - levels[:, None, None]) * clean + levels[:, None, None] * noise
        torch.testing.assert_close(stream.clean(output, at, levels), clean, atol=1e-5, rtol=1e-5)
        assert not stream.losses(output, torch.empty(0), clean, noise).any()
        output[1, 0, 0] += 2.0
        wanted = torch.tensor([0.0, 4.0 / output[0].numel()])
        torch.testing.assert_close(stream.losses(output, torch.empty(0), clean, noise), wanted)


class TestTimes:
    def test_a_window_holds_whole_pairs_of_rows(self) -> None:
        assert [PUBLISHED.count(ticks) for ticks in (0, 4, 64)] == [0, 40, 640]
        for ticks in (1, 2, 3, 6, 66):
            with pytest.raises(ValueError, match="do not contain a whole number of tokens"):
                PUBLISHED.count(ticks)

    def test_the_patches_of_a_pair_have_the_time_between_its_rows(self) -> None:
        wanted = np.repeat([0.04, 0.12, 0.20], 8)
        np.testing.assert_allclose(PUBLISHED.seconds(24).numpy(), wanted, rtol=1e-6)

    def test_ten_seconds_have_the_table_that_omniflow_crops(self) -> None:
        found = PUBLISHED.positions(1024, 32)
        assert torch.equal(found, grid_embedding(128, 8, side=192, base=128, width=32))

    def test_a_shorter_window_begins_where_ten_seconds_do_and_a_longer_one_goes_on(self) -> None:
        whole = PUBLISHED.positions(1024, 16)
        assert torch.equal(PUBLISHED.positions(640, 16), whole[:640])
        longer = PUBLISHED.positions(1280, 16)
        assert torch.equal(longer[:1024], whole)
        assert torch.equal(longer[:, :8].reshape(160, 8, 8), whole[:8, :8].expand(160, 8, 8))


def config(**changes: object) -> ModelConfig:
    own: dict[str, object] = {"width": 16, "layers": 1, "heads": 2, "rotary_periods_s": None}
    patches = {"audio_tokens": "patches", "audio_grid": GRID, "audio_prediction": "velocity"}
    return ModelConfig(**(own | patches | changes))  # type: ignore[arg-type]


def entry(channels: int) -> FrameEntry:
    return FrameEntry(name="a-b", fingerprint="0" * 64, source="mel.npy", frames_per_row=4, channels=channels)


class TestConfiguration:
    def test_it_survives_being_saved_and_an_earlier_one_means_rows(self) -> None:
        assert ModelConfig.read(Document(config().as_json(), "x", "y")) == config()
        earlier = PRESETS["tiny"].as_json()
        del earlier["audio_tokens"], earlier["audio_grid"]
        assert ModelConfig.read(Document(earlier, "x", "y")).audio_tokens == "rows"

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"audio_grid": None}, "found none; initialize from its weights"),
            ({"audio_tokens": "rows"}, "initialize from its weights"),
            ({"rotary_periods_s": (0.5, 120.0)}, "initialize from its weights"),
            ({"audio_prediction": "clean"}, "expected velocity, .* predicts, found clean with audio_tokens patches"),
            ({"audio_tokens": "pixels"}, "audio_tokens: expected rows, patches, found 'pixels'"),
            ({"audio_tokens": ["patches"]}, r"audio_tokens: expected rows, patches, found \['patches'\]"),
        ],
    )
    def test_what_no_weights_have_learned_is_refused(self, changes: dict[str, object], said: str) -> None:
        with pytest.raises(UsageFault, match=said):
            config(**changes)

    @pytest.mark.parametrize(("channels", "found"), [(None, "no codec"), (84, "84 numbers"), (24, "24 numbers")])
    def test_rows_that_are_not_made_of_whole_patches_are_refused(self, channels: int | None, found: str) -> None:
        codecs = {} if channels is None else {"audio": CodecLatents(entry(channels), {})}
        statistics = {"gesture": {"mean": [0.0] * 415, "std": [1.0] * 415}}
        with pytest.raises(UsageFault, match=f"found {found}.*; set audio_tokens to rows"):
            build_model(config(), statistics=statistics, vocab_size=3, speakers=1, codecs=codecs)  # type: ignore[arg-type]
