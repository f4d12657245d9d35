"""`audioldm2-vae`: equal to diffusers' own autoencoder at any length and in any blocks; other folders are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from vae_builders import SMALL, mel_like, random_vae, write_vae

from omniges.codecs.audio_vae import decoded, encoded
from omniges.codecs.base import fingerprint_of
from omniges.codecs.registry import load_codec
from omniges.codecs.settings import named_folder
from omniges.errors import DataError, UsageFault

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vae")
    write_vae(path)
    return path


class TestBlocks:
    """Means, variances and attention are those of the whole, so no border can be seen at any block length."""

    @pytest.mark.parametrize("frames", [4, 7, 64, 333, 1023, 1026])
    @pytest.mark.parametrize("elements", [1, 8 * 64 * 30, 1 << 24])
    def test_encoding_in_blocks_is_diffusers_encoding_of_the_whole(self, frames: int, elements: int) -> None:
        vae = random_vae()
        mel = torch.from_numpy(mel_like(frames))[None]
        with torch.no_grad():
            whole = vae._encode(mel[None])[0]
        assert whole.std() > 0.1
        torch.testing.assert_close(encoded(vae, mel, elements), whole, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("rows", [1, 2, 83])
    @pytest.mark.parametrize("elements", [1, 16 * 16 * 30, 1 << 24])
    def test_decoding_in_blocks_is_diffusers_decoding_of_the_whole(self, rows: int, elements: int) -> None:
        vae = random_vae()
        latents = torch.randn(8, rows, 16, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            whole = vae._decode(latents[None]).sample[0]
        assert whole.std() > 0.1
        torch.testing.assert_close(decoded(vae, latents, elements), whole, atol=2e-5, rtol=0)

    def test_blocks_that_were_coded_apart_would_show(self) -> None:
        """The reason for all this: with a context of 2.56 s on each side, ten times the convolutions' reach."""
        vae = random_vae()
        mel = torch.from_numpy(mel_like(1024))[None]
        whole, part = encoded(vae, mel), encoded(vae, mel[:, :768])
        apart = (whole[:, 64:128] - part[:, 64:128]).abs().max()
        assert apart > 100 * (encoded(vae, mel, 1) - whole).abs().max()

    @pytest.mark.parametrize(
        "changes", [{"mid_block_add_attention": False}, {"use_quant_conv": False, "use_post_quant_conv": False}]
    )
    def test_of_autoencoders_with_fewer_layers_too(self, changes: dict[str, Any]) -> None:
        vae = random_vae(**changes)
        mel = torch.from_numpy(mel_like(64))[None]
        with torch.no_grad():
            moments = vae._encode(mel[None])[0]
            frames = vae._decode(moments[None, :8]).sample[0]
        torch.testing.assert_close(encoded(vae, mel, 1), moments, atol=1e-5, rtol=0)
        torch.testing.assert_close(decoded(vae, moments[:8], 1), frames, atol=2e-5, rtol=0)


class TestCodec:
    def test_latents_are_the_posterior_mean_times_the_scaling_factor(self, folder: Path) -> None:
        codec = load_codec("audioldm2-vae", folder, CPU)
        mel = mel_like(250)
        with torch.no_grad():
            posterior = random_vae().encode(torch.from_numpy(mel)[None, None]).latent_dist
        expected = (posterior.mean * 0.4110932946205139)[0].permute(1, 0, 2).reshape(62, 128)
        np.testing.assert_allclose(codec.encode(mel), expected.numpy(), atol=1e-5)

    def test_decoding_undoes_the_scale_alone(self, folder: Path) -> None:
        codec = load_codec("audioldm2-vae", folder, CPU)
        latents = np.random.default_rng(0).standard_normal((25, 128)).astype(np.float32)
        grid = torch.from_numpy(latents).reshape(25, 8, 16).permute(1, 0, 2)[None] / 0.4110932946205139
        with torch.no_grad():
            expected = random_vae().decode(grid).sample[0, 0]
        found = codec.decode(latents)
        assert found.shape == (100, 64)
        np.testing.assert_allclose(found, expected.numpy(), atol=3e-5)

    def test_a_shift_factor_is_taken_off_and_put_back(self, tmp_path: Path) -> None:
        write_vae(tmp_path / "shifted", shift_factor=0.25)
        write_vae(tmp_path / "plain")
        shifted, plain = (load_codec("audioldm2-vae", tmp_path / name, CPU) for name in ("shifted", "plain"))
        mel = mel_like(40)
        scaled = 0.25 * 0.4110932946205139
        np.testing.assert_allclose(shifted.encode(mel), plain.encode(mel) - scaled, atol=1e-6)
        latents = plain.encode(mel)
        np.testing.assert_allclose(shifted.decode(latents - np.float32(scaled)), plain.decode(latents), atol=1e-5)

    def test_25_rows_a_second_of_128_numbers_in_this_layout(self, folder: Path) -> None:
        entry = load_codec("audioldm2-vae", folder, CPU).entry
        assert (entry.source, entry.frames_per_row, entry.channels, entry.tick_multiple) == ("mel.npy", 4, 128, 2)
        assert float(entry.rows_per_tick * 10) == 25
        assert entry.settings["scaling_factor"] == 0.4110932946205139

    def test_shapes_come_from_the_configuration(self, tmp_path: Path) -> None:
        two = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
        write_vae(tmp_path, block_out_channels=[8, 16], latent_channels=3, **two)
        codec = load_codec("audioldm2-vae", tmp_path, CPU)
        assert (codec.entry.frames_per_row, codec.entry.channels) == (2, 3 * 32)
        assert codec.encode(mel_like(11)).shape == (5, 96)

    def test_a_clip_shorter_than_a_row_has_none(self, folder: Path) -> None:
        codec = load_codec("audioldm2-vae", folder, CPU)
        assert codec.encode(mel_like(3)).shape == (0, 128)
        assert codec.decode(np.empty((0, 128), np.float32)).shape == (0, 64)

    def test_the_same_array_gives_the_same_bits(self, folder: Path) -> None:
        mel = mel_like(100)
        codec = load_codec("audioldm2-vae", folder, CPU)
        torch.manual_seed(5)
        first = codec.encode(mel)
        assert first.tobytes() == codec.encode(mel).tobytes()
        assert first.dtype == np.float32
        assert first.flags.c_contiguous

    def test_nothing_of_it_can_learn(self, folder: Path) -> None:
        codec: Any = load_codec("audioldm2-vae", folder, CPU)
        assert not any(parameter.requires_grad for parameter in codec._vae.parameters())
        assert not codec._vae.training


class TestFingerprint:
    def test_is_that_of_content_not_of_files(self, tmp_path: Path) -> None:
        write_vae(tmp_path / "safe")
        write_vae(tmp_path / "bin", safe=False)
        assert (tmp_path / "bin" / "diffusion_pytorch_model.bin").is_file()
        first, second = (load_codec("audioldm2-vae", tmp_path / name, CPU) for name in ("safe", "bin"))
        assert first.entry == second.entry

    def test_changes_with_one_bit_of_a_weight_and_with_the_scaling_factor(self, tmp_path: Path) -> None:
        write_vae(tmp_path / "a")
        write_vae(tmp_path / "b", scaling_factor=0.41)
        write_vae(tmp_path / "c")
        path = tmp_path / "c" / "diffusion_pytorch_model.safetensors"
        weights = load_file(path)
        bits = weights["quant_conv.bias"].view(torch.int32)
        bits[3] ^= 1
        save_file(weights, path)
        found = {load_codec("audioldm2-vae", tmp_path / name, CPU).entry.fingerprint for name in "abc"}
        assert len(found) == 3

    def test_depends_on_names_types_and_shapes(self) -> None:
        one = torch.arange(6.0)
        variants = [{"a": one}, {"b": one}, {"a": one.reshape(2, 3)}, {"a": one.view(torch.int32)}]
        assert len({fingerprint_of({}, weights) for weights in variants}) == 4
        assert fingerprint_of({"k": 1}, {"a": one}) != fingerprint_of({"k": 2}, {"a": one})


def changed(source: Path, target: Path, **changes: Any) -> Path:
    """A copy with other values in config.json; None takes a key away."""
    target.mkdir()
    config = json.loads((source / "config.json").read_text()) | changes
    (target / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    (target / "diffusion_pytorch_model.safetensors").hardlink_to(source / "diffusion_pytorch_model.safetensors")
    return target


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"in_channels": 3}, "in_channels: expected 1, found 3"),
            ({"scaling_factor": None}, "scaling_factor: expected this key, found that it is missing"),
            ({"scaling_factor": 0}, "scaling_factor: expected a number other than 0, found 0"),
            ({"_class_name": "AutoencoderTiny"}, "expected an AutoencoderKL of diffusers, found AutoencoderTiny"),
            ({"latents_mean": [0.0]}, "latents_mean: expected null"),
            ({"act_fn": "gelu"}, 'act_fn: expected "silu", found "gelu"'),
            ({"down_block_types": ["AttnDownEncoderBlock2D"] * 3}, "down_block_types"),
            ({"block_out_channels": [8, -1, 16]}, "block_out_channels[1]: expected a whole number from 1 to 65536"),
            ({"use_quant_conv": "yes"}, 'use_quant_conv: expected true or false, found "yes"'),
            (
                {"down_sampler": "fir"},
                "down_sampler: expected no key of this name, because omniges does not use its value",
            ),
            ({"latent_channels": 4}, "config.json and weights belong to different codecs"),
            ({"norm_num_groups": 3}, "expected the configuration of an AutoencoderKL"),
        ],
    )
    def test_other_configurations_by_their_key(
        self, folder: Path, tmp_path: Path, changes: dict[str, Any], words: str
    ) -> None:
        with pytest.raises(DataError) as caught:
            load_codec("audioldm2-vae", changed(folder, tmp_path / "v", **changes), CPU)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_files_that_hold_more_than_weights_are_not_unpickled(self, folder: Path, tmp_path: Path) -> None:
        target = changed(folder, tmp_path / "v")
        (target / "diffusion_pytorch_model.safetensors").unlink()
        marker = tmp_path / "ran"
        torch.save({"conv": Touch(marker)}, target / "diffusion_pytorch_model.bin")
        with pytest.raises(DataError, match="found a pickled Python object"):
            load_codec("audioldm2-vae", target, CPU)
        assert not marker.exists()

    def test_damaged_missing_and_infinite_weights(self, folder: Path, tmp_path: Path) -> None:
        target = changed(folder, tmp_path / "v")
        path = target / "diffusion_pytorch_model.safetensors"
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(DataError, match="found neither"):
            load_codec("audioldm2-vae", target, CPU)
        path.write_bytes(content[:1000])
        with pytest.raises(DataError, match="expected a safetensors file"):
            load_codec("audioldm2-vae", target, CPU)
        weights = load_file(folder / path.name)
        weights["quant_conv.bias"][0] = float("nan")
        save_file(weights, path)
        with pytest.raises(DataError, match=r"found NaN or infinite ones in .*quant_conv.bias"):
            load_codec("audioldm2-vae", target, CPU)

    def test_names_and_folders_that_are_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(UsageFault, match="one of audioldm2-vae"):
            load_codec("encodec", tmp_path)
        with pytest.raises(UsageFault, match="found none"):
            load_codec("audioldm2-vae", tmp_path / "absent")
        with pytest.raises(DataError, match="give the folder that contains the codec"):
            load_codec("audioldm2-vae", tmp_path)

    @pytest.mark.parametrize("text", ["audioldm2-vae", "audioldm2-vae=", "encodec=x", "=x"])
    def test_words_that_are_no_name_and_folder(self, text: str) -> None:
        with pytest.raises(UsageFault, match=r"NAME=FOLDER|NAME '(encodec)?': expected one of audioldm2-vae"):
            named_folder("--with", text)
        assert named_folder("--with", "audioldm2-vae=a=b") == ("audioldm2-vae", Path("a=b"))


class Touch:
    """Unpickling one makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


def test_weights_under_the_names_of_older_diffusers_are_the_same(folder: Path, tmp_path: Path) -> None:
    target = changed(folder, tmp_path / "v")
    path = target / "diffusion_pytorch_model.safetensors"
    path.unlink()
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    old = {}
    for name, tensor in load_file(folder / path.name).items():
        former = name
        for new, before in names.items():
            former = former.replace(new, before)
        old[former] = tensor
    assert any(".proj_attn." in name for name in old)
    save_file(old, path)
    assert load_codec("audioldm2-vae", target, CPU).entry == load_codec("audioldm2-vae", folder, CPU).entry


def test_the_builders_scaling_factor_is_the_published_one() -> None:
    assert SMALL["scaling_factor"] == 0.4110932946205139
