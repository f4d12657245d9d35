"""HiFi-GAN folders: any cut of the mel sounds as the whole, other mels and damaged folders are one line."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from omniges.errors import DataError, EnvironmentFault, OmnigesError, UsageFault
from omniges.generation.records import read_record
from omniges.generation.run import generate
from omniges.generation.settings import GenerateSettings, Sources
from omniges.generation.vocoder import load_hifi_gan
from omniges.model.tasks import SamplingSettings

SMALL: dict[str, Any] = {
    "model_in_dim": 64,
    "sampling_rate": 16000,
    "upsample_rates": [5, 4, 2, 2, 2],
    "upsample_kernel_sizes": [16, 16, 8, 4, 4],
    "upsample_initial_channel": 32,
    "normalize_before": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random HiFi-GAN with AudioLDM2's rates, saved by transformers itself."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    place = tmp_path_factory.mktemp("vocoder") / "hifi"
    model = transformers.SpeechT5HifiGan(transformers.SpeechT5HifiGanConfig(**SMALL))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0)  # else its sound is too faint to tell cuts apart
    model.save_pretrained(place)
    return place


def mel_of(frames: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(2).normal(-4, 2, (frames, 64)).astype(np.float32)


def test_pieces_sound_as_transformers_own_whole(folder: Path) -> None:
    import transformers

    mel = mel_of(1300)
    with torch.no_grad():
        whole = transformers.SpeechT5HifiGan.from_pretrained(folder)(torch.from_numpy(mel)).numpy()[: 1300 * 160]
    for step in (1300, 170, 10):
        vocoder = load_hifi_gan(folder).begin(0)
        pieces = [vocoder.push(mel[k : k + step]) for k in range(0, 1300, step)]
        found = np.concatenate([*pieces, vocoder.finish()])
        assert found.shape == whole.shape
        np.testing.assert_allclose(found, whole, rtol=0, atol=1e-3 * float(whole.std()))
    assert whole.std() > 1e-4


def test_a_sound_that_is_no_number_is_one_line(folder: Path, tmp_path: Path) -> None:
    """Finite weights may be so large that what they give is not."""
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor * 1e30 for name, tensor in weights.items()}, tmp_path / "model.safetensors")
    vocoder = load_hifi_gan(tmp_path).begin(0)
    with pytest.raises(DataError, match=r"model\.safetensors: expected finite samples"):
        np.concatenate([vocoder.push(mel_of(20)), vocoder.finish()])


def test_weights_of_torch_are_read_without_unpickling(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    first, second = (load_hifi_gan(place).begin(0) for place in (folder, tmp_path))
    for vocoder in (first, second):
        vocoder.push(mel_of(40))
    np.testing.assert_array_equal(first.finish(), second.finish())


@pytest.mark.parametrize(
    ("change", "kind", "line"),
    [
        ({"model_in_dim": 80}, DataError, "expected 64 mel bands (model_in_dim), found 80"),
        ({"sampling_rate": 22050}, DataError, "expected 16000 Hz (sampling_rate), found 22050"),
        (
            {"upsample_rates": [4, 4, 4, 4]},
            DataError,
            "expected 160 samples a frame (product of upsample_rates), found 256",
        ),
        ({"upsample_initial_channel": 64}, DataError, "expected the weights that config.json describes"),
        ({"norm": "layer"}, DataError, "norm: expected no key of this name, because omniges does not use its value"),
        ({"resblock_kernel_sizes": [3]}, DataError, "dilation_sizes: expected as many as resblock_kernel_sizes, 1"),
        ({"leaky_relu_slope": "x"}, DataError, 'leaky_relu_slope: expected a number from 0 to 1, found "x"'),
        ({"upsample_rates": None}, DataError, "upsample_rates: expected a list, found null"),
    ],
)
def test_another_mel_or_model_is_refused(
    folder: Path, tmp_path: Path, change: dict[str, Any], kind: type[OmnigesError], line: str
) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | change), encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(kind, match=re.escape(line)) as caught:
        load_hifi_gan(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_parts_and_a_missing_package_are_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageFault, match=r"config\.json, found none there"):
        load_hifi_gan(tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(UsageFault, match="found neither"):
        load_hifi_gan(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"no weights")
    with pytest.raises(DataError, match=r"expected a file of torch\.save, found damage or another file"):
        load_hifi_gan(tmp_path)
    with pytest.raises(UsageFault, match="expected a task that produces audio, found a2g"):
        GenerateSettings(checkpoint=tmp_path, task="a2g", output_dir=tmp_path, sources=Sources(), vocoder=folder)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(EnvironmentFault, match=r"pip install 'omniges\[vocoder\]'"):
        load_hifi_gan(folder)


def test_generate_speaks_with_it_and_the_record_says_so(
    folder: Path, checkpoint: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    summary = generate(
        GenerateSettings(
            checkpoint=checkpoint,
            task="t2a",
            output_dir=tmp_path,
            sources=Sources(text=(str(files["TextGrid"]),), seconds=1.0),
            sampling=SamplingSettings(num_inference_steps=1),
            vocoder=folder,
        )
    )
    record = read_record(summary.records[0])
    assert record.settings["voice"].startswith(f"hifi-gan {folder}/model.safetensors sha256 ")
    assert any("computed by a HiFi-GAN from 64 mel bands" in warning for warning in record.remarks)
