"""Runs that the tests of a file share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training_helpers import Trained, run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Trains in a folder of its own, which comes back."""

    def made(shards: Path, **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp("trained") / "run"
        run(shards, folder, **changes)
        return folder

    return made
