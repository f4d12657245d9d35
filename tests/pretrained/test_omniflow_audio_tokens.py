"""OmniFlow's audio tokens in a model that is trained: what the weights know of audio is still there, to 5e-5.

The model's own audio stream over latents of the codec; text and gesture are OmniFlow's text and image here, for their
outputs hang on one another. The original's outputs and the restatement in float64 are what it is held against.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flow_builders import statistics
from omniflow_checkpoints import Given, Reference, Tiny, tensors_of, write_folder
from omniflow_grids import grid_embedding
from torch import Tensor

from omniges.errors import UsageFault
from omniges.model import spec
from omniges.model.flow import FlowModel
from omniges.model.patches import PatchGrid, PatchTokens
from omniges.model.spec import CodecLatents, ModelIdentity, build_model
from omniges.model.streams import Stream
from omniges.pretrained.convert import convert
from omniges.pretrained.initialize import open_start
from omniges.shards.latents import FrameEntry

SHARED = Path(os.environ.get("OMNIGES_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "omniflow_parity"
PARITY = SHARED / "qknorm_layer"
TOLERANCE = 5e-5
CODEC = "audioldm2-vae"


def entry(latent_channels: int, columns: int = 16) -> FrameEntry:
    """The codec as shards name it."""
    return FrameEntry(
        name=CODEC,
        fingerprint="0" * 64,
        source="mel.npy",
        frames_per_row=4,
        channels=latent_channels * columns,
        settings={"latent_channels": latent_channels, "columns": columns},
    )


class TextLatents(Stream):
    """OmniFlow's own text input and output: numbers as they are, without places."""

    omniflow_tokens = True

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.channels, self.outputs = inputs, outputs

    def tokens(self, arrays: Tensor) -> Tensor:
        return arrays

    def arrays(self, tokens: Tensor) -> Tensor:
        return tokens

    def seconds(self, count: int) -> Tensor:
        raise AssertionError(count)

    def positions(self, count: int, width: int) -> None:
        return None

    def clean(self, output: Tensor, noised: Tensor, levels: Tensor) -> Tensor:
        return output

    def losses(self, *_: Tensor) -> Tensor:
        raise AssertionError


class ImagePatches(PatchTokens):
    """OmniFlow's own image, of one size, for which its crop of the table is in the middle of both axes."""

    def __init__(self, channels: int, rows: int, columns: int, side: int, base: int) -> None:
        grid = PatchGrid(channels=channels, patch=2, table_side=side, table_base=base)
        super().__init__(grid, columns=2 * columns, rows_per_tick=Fraction(1))
        self._size = rows, columns

    def positions(self, count: int, width: int) -> Tensor:
        rows, columns = self._size
        assert count == rows * columns
        return grid_embedding(rows, columns, side=self.grid.table_side, base=self.grid.table_base, width=width)


def model_over(
    folder: Path, patch: pytest.MonkeyPatch, text: TextLatents, image: ImagePatches, audio: FrameEntry
) -> FlowModel:
    """The model that a run on a folder's weights has, but for its text and gesture, filled as the run fills it."""
    start = open_start(folder, None, {}, CODEC)
    with patch.context() as patched:
        patched.setattr(spec, "SubwordTokens", lambda **_: text)
        patched.setattr(spec, "SplineTokens", lambda **_: image)
        codecs: Any = {"audio": CodecLatents(audio, {})}
        model = build_model(start.config, statistics=statistics(), vocab_size=1, speakers=1, codecs=codecs)
    identity = ModelIdentity("pretrained", start.config, 16, ("a",), b"", b"", {"audio": audio})
    start.fill(model, start.adopt(identity))
    return model.eval()


def as_rows(latents: Tensor) -> Tensor:
    """Latents (B, K, R, W) as shards hold them, (B, R, K · W)."""
    return torch.from_numpy(np.ascontiguousarray(latents.numpy().transpose(0, 2, 1, 3))).flatten(2)


@torch.no_grad()
def held_against(
    model: FlowModel, patch: pytest.MonkeyPatch, given: Given, velocity: Tensor, expected_text: Tensor
) -> None:
    """The model's velocity, the clean latents that it expects and its loss follow from the original's velocity."""
    stream = model.stream("audio")
    rows = as_rows(given.audio)
    levels: dict[Any, Tensor] = {
        "gesture": given.times["image"] / 1000,
        "text": given.times["text"] / 1000,
        "audio": given.times["audio"] / 1000,
    }
    gesture = model.stream("gesture").tokens(as_rows(given.image))
    tokens: dict[Any, Tensor] = {"gesture": gesture, "text": given.text, "audio": stream.tokens(rows)}
    patch.setattr(model, "_pooled", lambda _speakers: given.pooled)
    unknown = torch.zeros(len(rows), dtype=torch.int64)
    found = model.predict(tokens, levels, ["text", "audio"], unknown)
    sigma = levels["audio"][:, None, None]
    wanted = rows - sigma * as_rows(velocity)
    torch.testing.assert_close(stream.arrays(found["audio"]), wanted, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(found["text"], expected_text, rtol=0, atol=TOLERANCE)
    outputs = model.trunk(tokens, levels, **model._places(tokens), pooled=given.pooled)["audio"]
    # At level 1, x = ε − v: with zeros in the place of noise what is left is the velocity, whatever its order.
    minus = stream.clean(outputs, torch.zeros_like(tokens["audio"]), torch.ones(len(rows)))
    torch.testing.assert_close(-stream.arrays(minus), as_rows(velocity), rtol=0, atol=TOLERANCE)
    clean = torch.randn(rows.shape, generator=torch.Generator().manual_seed(8))
    noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(9))
    losses = stream.losses(outputs, rows, stream.tokens(clean), stream.tokens(noise))
    plain = (as_rows(velocity) - (noise - clean)).square().mean(dim=(1, 2))
    torch.testing.assert_close(losses, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not PARITY.is_dir(), reason=f"no golden data at {PARITY} (set OMNIGES_SHARED to where they are)")
@pytest.mark.parametrize("form", ["original", "converted"])
def test_the_originals_audio_comes_out_of_the_model_that_is_trained(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = {
        name: torch.from_numpy(array)
        for name, array in np.load(PARITY / "case_all_summed.npz", allow_pickle=False).items()
    }
    folder = PARITY
    if form == "converted":
        folder = tmp_path / "converted"
        convert(PARITY, folder)
    given = Given(
        image=golden["in_hidden_states"],
        audio=golden["in_audio_hidden_states"],
        text=golden["in_encoder_hidden_states"],
        pooled=golden["in_pooled_projections"],
        times={
            "image": golden["in_timestep"],
            "text": golden["in_timestep_text"],
            "audio": golden["in_timestep_audio"],
        },
    )
    assert given.audio.shape[1:] == (8, 256, 16)
    text = TextLatents(given.text.shape[-1], golden["out_text"].shape[-1])
    image = ImagePatches(given.image.shape[1], 4, 6, side=12, base=8)
    model = model_over(folder, monkeypatch, text, image, entry(8))
    held_against(model, monkeypatch, given, golden["out_audio"], golden["out_text"])


KINDS = {
    "layer": Tiny(audio_channels=8),
    "rms": Tiny(qk_norm="rms", audio_channels=8, text_outputs=9),
    "none": Tiny(qk_norm=None, audio_channels=4),
    "dual": Tiny(qk_norm="rms", dual=(0,), layers=3, audio_channels=8),
}


def inputs_of(tiny: Tiny, times: Mapping[str, Tensor]) -> Given:
    generator = torch.Generator().manual_seed(4)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    # 16 rows of 16 columns are 8 × 8 patches, as many as the tiny table's base: its latents of full length.
    return Given(draw(2, 3, 4, 4), draw(2, tiny.audio_channels, 16, 16), draw(2, 5, 12), draw(2, 10), times)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("audio", [[0.0, 1000.0], [77.0, 612.5]])
def test_every_kind_of_checkpoint_keeps_its_audio(
    name: str, audio: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = KINDS[name]
    times = {"image": torch.tensor([1000.0, 3.0]), "text": torch.tensor([0.0, 900.0]), "audio": torch.tensor(audio)}
    given = inputs_of(tiny, times)
    expected = Reference(tensors_of(tiny), tiny.heads)(given)
    text = TextLatents(12, tiny.text_outputs)
    image = ImagePatches(3, 2, 2, side=6, base=3)
    folder = write_folder(tmp_path / "omniflow", tiny)
    model = model_over(folder, monkeypatch, text, image, entry(tiny.audio_channels))
    held_against(model, monkeypatch, given, expected["audio"].float(), expected["text"].float())


class TestChoice:
    @pytest.fixture
    @classmethod
    def omniflow(cls, tmp_path: Path) -> Path:
        return write_folder(tmp_path / "omniflow", Tiny(audio_channels=8))

    def test_patches_are_the_default_on_omniflows_latents_alone(self, omniflow: Path) -> None:
        config = open_start(omniflow, None, {}, CODEC).config
        assert (config.audio_tokens, config.audio_prediction) == ("patches", "velocity")
        assert config.audio_grid == PatchGrid(channels=8, patch=2, table_side=10, table_base=8)
        for codec in (None, "another-codec"):
            config = open_start(omniflow, None, {}, codec).config
            assert (config.audio_tokens, config.audio_grid, config.audio_prediction) == ("rows", None, "clean")

    def test_a_recipe_decides(self, omniflow: Path) -> None:
        config = open_start(omniflow, None, {"audio_tokens": "rows"}, CODEC).config
        assert (config.audio_tokens, config.audio_grid, config.audio_prediction) == ("rows", None, "clean")
        assert open_start(omniflow, None, {"audio_tokens": "patches"}, "another-codec").config.audio_grid is not None

    def test_the_folder_and_its_converted_form_have_one_grid(self, omniflow: Path, tmp_path: Path) -> None:
        convert(omniflow, tmp_path / "converted")
        found = [open_start(folder, None, {}, CODEC).config for folder in (omniflow, tmp_path / "converted")]
        assert found[0] == found[1]

    def test_what_the_weights_do_not_know_is_refused(self, omniflow: Path) -> None:
        with pytest.raises(
            UsageFault,
            match="audio_tokens: expected patches only with --audio-codec audioldm2-vae, found no --audio-codec",
        ):
            open_start(omniflow, None, {"audio_tokens": "patches"}, None)
        with pytest.raises(UsageFault, match=r"expected velocity, .*, found clean with audio_tokens patches"):
            open_start(omniflow, None, {"audio_prediction": "clean"}, CODEC)
        with pytest.raises(UsageFault, match=r"audio_tokens: .*found .pixels."):
            open_start(omniflow, None, {"audio_tokens": "pixels"}, CODEC)

    def test_latents_of_another_number_of_channels_are_refused(self, omniflow: Path) -> None:
        start = open_start(omniflow, None, {}, CODEC)
        identity = ModelIdentity("pretrained", start.config, 16, ("a",), b"", b"", {"audio": entry(4)})
        with pytest.raises(UsageFault, match=r"expected latents of 8 channels .*, found 4; .*audio_tokens: rows"):
            start.adopt(identity)
