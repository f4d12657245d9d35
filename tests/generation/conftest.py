"""A run of a few steps, which the tests of generation share."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_helpers import run

STEM = "1_synthetica_0_1_1"


@pytest.fixture(scope="session")
def checkpoint(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps of the smallest model: it has learned nothing, which is not what is tried here."""
    folder = tmp_path_factory.mktemp("generate") / "run"
    run(shards, folder, max_train_steps=2)
    return folder


@pytest.fixture(scope="session")
def files(corpus: Path) -> dict[str, Path]:
    """The files of one recording."""
    return {ending: next(corpus.rglob(f"{STEM}.{ending}")) for ending in ("wav", "npz", "TextGrid")}
