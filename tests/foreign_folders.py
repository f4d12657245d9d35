"""A valid folder of each foreign kind, small, and its reader, for `test_mutations.py`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from body_builders import body_file
from latent_builders import generated, recording_files
from mutations import seal_checkpoint, seal_conversion, seal_result, seal_shards
from omniflow_checkpoints import Tiny, write_folder
from rvqvae_builders import write_codec
from safetensors.numpy import save_file
from text_latents_builders import write_text_vae
from training_helpers import checkpoint_of, run
from vae_builders import write_vae

from omniges.codecs import audio_vae
from omniges.codecs.base import Loading
from omniges.codecs.gesture_rvqvae import load_gesture_rvqvae
from omniges.codecs.text_vae.codec import TextCodec
from omniges.evaluation.motion import load_bodies
from omniges.evaluation.results import find_results
from omniges.formats.arrays import read_array
from omniges.formats.motion import read_motion
from omniges.generation.inputs import read_audio, read_text
from omniges.generation.sampler import load
from omniges.generation.vocoder import load_hifi_gan
from omniges.metrics.frechet import load_encoder, load_features
from omniges.pretrained.convert import convert, read_converted
from omniges.pretrained.trunk import read_omniflow
from omniges.shards.reader import ShardFolder
from omniges.trainer.recipe import load_settings
from omniges.verify.run import verify
from omniges.verify.settings import VerifySettings

Seal = Callable[[Path, Path], None]
TASKS: Mapping[str, str] = MappingProxyType({"a2g": "audio", "t2a": "text", "a2t": "audio"})
"""The recordings of results, and the stream that is their condition."""
_RECIPE = """\
preset: tiny
shards: [shards, more]
shard_weights: [1, 2.5]
learning_rate: 1e-3
max_train_steps: 10
lr_schedule: cosine
report_to: []
compile: no
model: {width: 64, heads: 4, rotary_periods_s: [0.5, 60], context_only: [text]}
flow:
  shares: {t2g: 1, a2g: 0.5}
  shift: 2.0
"""
_VOCODER = {
    "model_in_dim": 64,
    "sampling_rate": 16000,
    "upsample_rates": [5, 4, 2, 2, 2],
    "upsample_kernel_sizes": [16, 16, 8, 4, 4],
    "upsample_initial_channel": 32,
}


@dataclass(frozen=True)
class World:
    """Shards of the corpus, and a run that was trained on them."""

    corpus: Path
    shards: Path
    run: Path


@dataclass(frozen=True)
class Kind:
    """A kind of folder: how to write and read a valid one, and how to update its checksums after a change."""

    make: Callable[[Path, World], object]
    read: Callable[[Path, World], object]
    seal: Seal | None = None
    sample: int = 50
    """Changes in the default suite; fewer where a read takes a tenth of a second."""


def _copy(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder, dirs_exist_ok=True)


def _read_shards(folder: Path, _world: World) -> None:
    source = ShardFolder(folder)
    for row in source.rows[:2]:
        source.sample(row)


def _verify(folder: Path, _world: World) -> None:
    verify(VerifySettings(folder=str(folder), level="deep"))


def _make_recipe(folder: Path, _world: World) -> None:
    (folder / "recipe.yaml").write_text(_RECIPE)


def _make_results(folder: Path, world: World) -> None:
    files = recording_files(world.corpus)
    for task, stream in TASKS.items():
        generated(world.run, folder / task, task, {}, **{stream: files[stream]})


def _read_results(folder: Path, world: World) -> None:
    for task in TASKS:
        for results in find_results([folder / task], ShardFolder(world.shards), None).values():
            for result in results:
                {"a2g": result.motion, "t2a": result.mel, "a2t": result.spoken}[task]()


def _make_vocoder(folder: Path, _world: World) -> None:
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    SpeechT5HifiGan(SpeechT5HifiGanConfig(**_VOCODER)).save_pretrained(folder)


def _read_text_vae(folder: Path, _world: World) -> None:
    codec = TextCodec.load(folder)
    codec.lost(["hello world", "日本 ﬁ 😀"])


def _make_encoder(folder: Path, _world: World) -> None:
    rng = np.random.default_rng(0)
    shapes = {
        "layers.0.weight": (8, 330, 3),
        "layers.0.bias": (8,),
        "layers.1.weight": (4, 8, 1),
        "layers.1.bias": (4,),
    }
    save_file(
        {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}, folder / "e.safetensors"
    )
    layers = [{"stride": 2, "padding": 1, "activation": "relu"}, {"stride": 1, "padding": 0, "activation": "none"}]
    settings = {"format": "omniges-encoder", "version": 1, "multiple_of_frames": 32, "layers": layers}
    (folder / "e.json").write_text(json.dumps(settings))


def _read_encoder(folder: Path, _world: World) -> None:
    load_encoder(folder / "e.safetensors").encode(np.zeros((64, 165)))


def _read_omniflow(folder: Path, _world: World) -> None:
    source = read_omniflow(folder)
    for name in source.shapes:
        source.read(name)


def _read_converted(folder: Path, _world: World) -> None:
    source = read_converted(folder)
    for name in source.shapes:
        source.read(name)


def _make_omniflow(folder: Path, _world: World) -> None:
    write_folder(folder, Tiny(qk_norm="rms", dual=(0,)))


def _make_converted(folder: Path, world: World) -> None:
    _make_omniflow(folder.with_name("source"), world)
    convert(folder.with_name("source"), folder.with_name("made"))
    _copy(folder.with_name("made"), folder)


_PLACES = {"wav": "wave16k", "npz": "smplxflame_30", "TextGrid": "textgrid"}


def _make_recording(folder: Path, world: World) -> None:
    for ending, place in _PLACES.items():
        (folder / place).mkdir()
        shutil.copy(min(world.corpus.rglob(f"1_*.{ending}")), folder / place / f"clip.{ending}")
    np.save(folder / "speeds.npy", np.ones(55))


def _read_recording(folder: Path, _world: World) -> None:
    clip = {ending: folder / place / f"clip.{ending}" for ending, place in _PLACES.items()}
    read_motion(clip["npz"])
    read_audio(clip["wav"])
    read_text(str(clip["TextGrid"]), None, None)
    read_array(folder / "speeds.npy", "expected speeds")


def _make_measures(folder: Path, _world: World) -> None:
    (folder / "body.npz").write_bytes(body_file())
    np.save(folder / "features.npy", np.ones((4, 6), np.float32))


def _read_measures(folder: Path, _world: World) -> None:
    load_bodies(folder / "body.npz")
    load_features(folder / "features.npy")


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "shards": Kind(lambda folder, world: _copy(world.shards, folder), _read_shards, seal_shards),
        "verified": Kind(lambda folder, world: _copy(world.shards, folder), _verify, seal_shards, sample=25),
        "checkpoint": Kind(
            lambda folder, world: _copy(checkpoint_of(world.run, 1), folder),
            lambda folder, _: load(folder),
            seal_checkpoint,
        ),
        "recipe": Kind(_make_recipe, lambda folder, _: load_settings(folder / "recipe.yaml", {})),
        "results": Kind(_make_results, _read_results, seal_result, sample=25),
        "audio-vae": Kind(
            lambda folder, _: write_vae(folder),
            lambda folder, _: audio_vae.load(folder, Loading(device=torch.device("cpu"))),
        ),
        "gesture-rvqvae": Kind(
            lambda folder, _: write_codec(folder), lambda folder, _: load_gesture_rvqvae(folder), sample=25
        ),
        "text-vae": Kind(lambda folder, _: write_text_vae(folder), _read_text_vae, sample=25),
        "vocoder": Kind(_make_vocoder, lambda folder, _: load_hifi_gan(folder)),
        "encoder": Kind(_make_encoder, _read_encoder),
        "omniflow": Kind(_make_omniflow, _read_omniflow),
        "converted": Kind(_make_converted, _read_converted, seal_conversion),
        "measures": Kind(_make_measures, _read_measures),
        "recording": Kind(_make_recording, _read_recording),
    }
)


def make_world(folder: Path, corpus: Path, shards: Path) -> World:
    """Train one step."""
    run(shards, folder / "run", max_train_steps=1)
    return World(corpus, shards, folder / "run")
