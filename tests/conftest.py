"""Fixtures all tests share: the optional folder of real data, and a small corpus with its shards.

Small codecs and shards with their latents, which tests of codecs, training, validation and generation share.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from pipeline_helpers import run_preprocess

from omniges import registry
from omniges.testing.settings import CorpusSettings
from omniges.testing.synthetic_corpus import write_sample_corpus

# How long an example takes says something about the machine, which may be busy, and nothing about the code.
# Examples differ from run to run, so that fifty at a time add up.
settings.register_profile("omniges", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("omniges")


gc.disable()  # until all is imported and collected: the collector would walk it again and again


def pytest_collection_finish() -> None:
    """Let the garbage collector look after what tests make, and after nothing that was there before."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _entry_points_read_once() -> Iterator[None]:
    """Read the metadata of all installed packages once; what a test installs is found, as it changes `sys.path`."""

    @cache
    def of(_path: tuple[str, ...], group: str) -> EntryPoints:
        return entry_points(group=group)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "entry_points", lambda group: of(tuple(sys.path), group))
        yield


REPOSITORY = Path(__file__).resolve().parents[1]


def shared_folder() -> Path:
    """The optional folder of real recordings beside the checkout."""
    return Path(os.environ.get("OMNIGES_SHARED", REPOSITORY.parent / "shared"))


@pytest.fixture(scope="session")
def beat2_sample() -> Path:
    """Root of the real BEAT2 sample; skips where it is absent."""
    folder = shared_folder() / "beat2_sample"
    if not folder.is_dir():
        pytest.skip(f"no real recordings at {folder} (set OMNIGES_SHARED to where they are)")
    return folder


@pytest.fixture(scope="session")
def beat2_more() -> Path:
    """A second real recording with another system's result for it; skips where it is absent."""
    folder = shared_folder() / "beat2_more"
    if not folder.is_dir():
        pytest.skip(f"no real recordings at {folder} (set OMNIGES_SHARED to where they are)")
    return folder


@pytest.fixture(scope="session")
def fgd_parity() -> Path:
    """Return outputs of EMAGE's motion encoder and metrics with random weights; skip if they are absent."""
    folder = shared_folder() / "fgd_parity"
    if not folder.is_dir():
        pytest.skip(f"no golden data at {folder} (set OMNIGES_SHARED to where they are)")
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a small synthetic corpus: six clips of four seconds, two speakers, all splits."""
    folder = tmp_path_factory.mktemp("corpus") / "synthetic"
    write_sample_corpus(folder, CorpusSettings(clips=6, seconds=4.0, words=6, speakers=2, seed=3))
    return folder


@pytest.fixture(scope="session")
def shards(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus as shards by two workers, audio kept."""
    out = tmp_path_factory.mktemp("shards") / "shards"
    assert run_preprocess(corpus, out, keep_audio=True, num_workers=2).exit_code == 0
    return out


@pytest.fixture(scope="session")
def version_1(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The samples as contract version 1 had them, some without semantic spans. Whoever changes them takes a copy."""
    from shard_sets import ShardSet
    from version1_builders import version_1, without_spans

    return version_1(without_spans(ShardSet.read(shards))).write(tmp_path_factory.mktemp("version-1") / "shards")


Folders = dict[str, Path]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A folder of each codec, by name."""
    from latent_builders import write_codecs  # diffusers: 2 s that most tests do not need

    return write_codecs(tmp_path_factory.mktemp("codecs"))


@pytest.fixture(scope="session")
def vae(folders: Folders) -> Path:
    """The folder of the codec of audio."""
    from latent_builders import AUDIO

    return folders[AUDIO]


@pytest.fixture(scope="session")
def encoded(shards: Path, vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with latents of audio. Whoever changes them takes a copy."""
    from latent_builders import AUDIO, encoded_shards

    return encoded_shards(shards, tmp_path_factory.mktemp("encoded") / "shards", {AUDIO: vae})


@pytest.fixture(scope="session")
def encoded_both(shards: Path, folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with latents of audio and gesture. Whoever changes them takes a copy."""
    from latent_builders import encoded_shards

    return encoded_shards(shards, tmp_path_factory.mktemp("encoded-both") / "shards", folders)


@pytest.fixture(scope="session")
def text_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a codec of text."""
    from text_latents_builders import write_text_vae

    return write_text_vae(tmp_path_factory.mktemp("text-vae"))


@pytest.fixture(scope="session")
def encoded_text(shards: Path, text_vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with latents of text. Whoever changes them takes a copy."""
    from text_latents_builders import encoded_shards

    out = tmp_path_factory.mktemp("encoded-text") / "shards"
    encoded_shards(shards, text_vae, out)
    return out


@pytest.fixture(scope="session")
def recording(corpus: Path) -> dict[str, tuple[Path, ...]]:
    """The files of one recording, by what they are given as."""
    from latent_builders import recording_files

    return recording_files(corpus)
