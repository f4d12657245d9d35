"""Fixtures all tests share: the optional folder of real data, and a small corpus with its shards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
