"""A codec of another package encodes shards, trains and generates, with no file of omniges changed."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from latent_builders import STEM, generated
from pipeline_helpers import omniges
from plugin_builders import install
from training_helpers import checkpoint_of, run

from omniges.codecs.registry import CODECS, load_codec, register_codec
from omniges.errors import UsageFault
from omniges.registry import Registry
from omniges.shards.reader import ShardFolder

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAME = "toy-pairs"


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of sys.path with the metadata of a package that announces the example."""
    return install(tmp_path_factory.mktemp("site"), {"omniges.codecs": {NAME: "toy_codec:load"}})


@pytest.fixture(scope="module")
def codec(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder, fitted to the shards."""
    folder = tmp_path_factory.mktemp("codec") / "toy"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        import toy_codec

        toy_codec.fit(shards, folder)
    return folder


@pytest.fixture(scope="module")
def encoded(shards: Path, codec: Path, plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with its latents, written by the command; its interpreter knows the package by its metadata alone."""
    out = tmp_path_factory.mktemp("encoded") / "shards"
    path = os.pathsep.join([str(plugin), str(EXAMPLES), os.environ.get("PYTHONPATH", "")])
    done = omniges("encode", "--shards", shards, "--with", f"{NAME}={codec}", "-o", out, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_the_command_encodes_shards_by_an_entry_point(encoded: Path, codec: Path) -> None:
    """Latents are the projection of the mean of each pair, computed here once more in float64."""
    mean, components = (np.load(codec / f"{name}.npy").astype(np.float64) for name in ("mean", "components"))
    folder = ShardFolder(encoded)
    for row in folder.rows:
        gesture = folder.array(row, "gesture.npy").astype(np.float64)
        even, odd = (gesture[start : row.frames // 2 * 2 : 2] for start in (0, 1))
        wanted = ((even + odd) / 2 - mean) @ components.T
        np.testing.assert_allclose(folder.array(row, f"{NAME}.npy"), wanted, atol=1e-4)


def test_a_model_of_its_latents_trains_and_generates(
    encoded: Path, codec: Path, plugin: Path, recording: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.syspath_prepend(plugin)
    summary = run(encoded, tmp_path / "run", gesture_codec=NAME, max_train_steps=2)
    assert summary.step == 2
    output = generated(
        checkpoint_of(tmp_path / "run", 2), tmp_path / "out", "t2g", {NAME: codec}, text=recording["text"]
    )
    motion = np.load(io.BytesIO(output[f"{STEM}.npz"]), allow_pickle=False)
    assert motion["poses"].shape == (120, 165)
    assert np.isfinite(motion["poses"]).all()
    pairs = motion["expressions"].reshape(60, 2, 100)
    np.testing.assert_array_equal(pairs[:, 0], pairs[:, 1])  # as this codec alone decodes


class TestRegister:
    @pytest.fixture(autouse=True)
    def _registry(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A registry of this test's own."""
        fresh = Registry("codec", "omniges.codecs", CODECS.kind, CODECS.builtin)
        monkeypatch.setattr(sys.modules["omniges.codecs.registry"], "CODECS", fresh)
        monkeypatch.syspath_prepend(EXAMPLES)

    def test_a_script_makes_it_known_without_a_package(self, codec: Path) -> None:
        import toy_codec

        with pytest.raises(UsageFault, match=f"codec '{NAME}': expected one of audioldm2-vae"):
            load_codec(NAME, codec)
        register_codec(NAME, toy_codec.load)
        assert load_codec(NAME, codec, torch.device("cpu")).entry.channels == 24

    def test_an_entry_of_another_name_is_refused(self, codec: Path) -> None:
        import toy_codec

        register_codec("another", toy_codec.load)
        with pytest.raises(UsageFault, match=f"codec 'another': expected an entry of this name, found '{NAME}'"):
            load_codec("another", codec)
