"""Golden data of the original nets, where they are present."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("OMNIGES_SHARED", Path(__file__).resolve().parents[3] / "shared"))


@pytest.fixture(scope="session")
def rvqvae_parity() -> Path:
    """Folder of tiny nets with random weights, and what the original computes with them; skips where it is absent."""
    folder = SHARED / "rvqvae_parity"
    if not folder.is_dir():
        pytest.skip(f"no golden data at {folder} (set OMNIGES_SHARED to where they are)")
    return folder
