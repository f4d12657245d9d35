"""Fixtures all tests share: the optional folder of real data, and a small corpus with its shards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from pipeline_helpers import run_preprocess

from omniges.testing.synthetic_corpus import CorpusSettings, write_sample_corpus

# How long an example takes says something about the machine, which may be busy, and nothing about the code.
settings.register_profile("omniges", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("omniges")

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
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a small synthetic corpus: six clips of four seconds, two speakers, all splits."""
    folder = tmp_path_factory.mktemp("corpus") / "synthetic"
    write_sample_corpus(folder, CorpusSettings(clips=6, seconds=4.0, words=6, speakers=2, seed=3))
    return folder


@pytest.fixture(scope="session")
def shards(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus as shards, audio kept."""
    out = tmp_path_factory.mktemp("shards") / "shards"
    assert run_preprocess(corpus, out, keep_audio=True).exit_code == 0
    return out
