"""Fixtures of runs in several processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torchrun_helpers import RECIPE


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipe of a model of one layer, in a file."""
    path = tmp_path_factory.mktemp("recipe") / "two.yaml"
    path.write_text(json.dumps(RECIPE))  # JSON is YAML
    return path


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with enough held-out windows for two groups."""
    from pipeline_helpers import run_preprocess

    from omniges.testing.settings import CorpusSettings
    from omniges.testing.synthetic_corpus import write_sample_corpus

    folder = tmp_path_factory.mktemp("many")
    write_sample_corpus(folder / "corpus", CorpusSettings(clips=12, seconds=8.0, words=6, speakers=2, seed=3))
    run_preprocess(folder / "corpus", folder / "shards", keep_audio=True)
    return folder / "shards"
