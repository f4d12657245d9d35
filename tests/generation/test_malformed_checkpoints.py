"""Whatever the documents of a checkpoint say, sealed or not, loading it or resuming from it ends in one clear line."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from training_helpers import checkpoint_of, run

from omniges.errors import OmnigesError
from omniges.generation.sampler import load
from omniges.model.checkpoint import CHECKPOINT_FILE
from omniges.shards.dataset import seal
from omniges.storage.files import sha256_hex

_JUNK: list[Any] = [None, True, -1, 65536, 10**7, 10**30, 1.5, 1e300, "", "x", "../x", [], {}, [[]], {"a": 1}]

_READ = {
    "settings.json": ["flow"],
    "state.json": ["loader"],
    "stats.json": ["samples", "gesture", "mel", "words", "jaw_eyes"],
}
"""What readers use of a document; the rest is for people."""


def rewritten(folder: Path, name: str, data: bytes) -> None:
    """Replace a document of a checkpoint and seal the index again, as an attacker would."""
    (folder / name).write_bytes(data)
    index = json.loads((folder / CHECKPOINT_FILE).read_bytes())
    index["files"][name] = {"bytes": len(data), "sha256": sha256_hex(data)}
    del index["checksum"]
    (folder / CHECKPOINT_FILE).write_bytes(seal(index))


def mutations(document: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every value of a document replaced by junk, or left out, one at a time; long lists by their first entry."""
    if not isinstance(document, dict | list) or depth > 3:
        return
    for key in list(document) if isinstance(document, dict) else range(min(1, len(document))):
        rest = document.copy()
        del rest[key]
        yield f"{key} left out", rest
        for junk in _JUNK if depth < 1 else _JUNK[::3]:
            changed = document.copy()
            changed[key] = junk
            yield f"{key} = {junk!r}", changed
        for what, inner in mutations(document[key], depth + 1):
            changed = document.copy()
            changed[key] = inner
            yield f"{key}.{what}", changed


@pytest.fixture(scope="module")
def copy(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(checkpoint_of(checkpoint, 2), tmp_path_factory.mktemp("malformed") / "step-000002"))


def refused(folder: Path, shards: Path) -> str | None:
    """The error of loading a checkpoint, all of its documents read; None where it loads."""
    began_s = time.monotonic()
    try:
        loaded = load(folder)
        loaded.require_trained("a2g")
        loaded.knows(shards)
    except OmnigesError as error:
        line = str(error)
        assert "\n" not in line
        assert len(line) < 1500
        return line
    finally:
        assert time.monotonic() - began_s < 20  # a hang, not a figure
    return None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.json", "stats.json", "settings.json", "state.json", "speaking_rate.json"])
def test_every_junk_value_loads_or_is_one_line(copy: Path, shards: Path, name: str) -> None:
    original = (copy / name).read_bytes()
    document, tried = json.loads(original), 0
    read = _READ.get(name, list(document))
    try:
        for what, changed in mutations({key: document[key] for key in read}):
            whole = {key: value for key, value in document.items() if key not in read} | changed
            rewritten(copy, name, json.dumps(whole).encode())
            try:
                refused(copy, shards)
            except Exception as error:
                raise AssertionError(f"{name}: {what}: {error!r}") from error
            tried += 1
        for junk in (b"", b"[", b"\xff", b"NaN", b"[" * 10**5, b'{"a": 1, "a": 2}', b"3", b'["\\ud800"]'):
            rewritten(copy, name, junk)
            assert name == "speaking_rate.json" or refused(copy, shards) is not None, junk
    finally:
        rewritten(copy, name, original)
    assert tried > 10
    assert refused(copy, shards) is None


@pytest.mark.parametrize(("field", "value"), [("width", 65536), ("layers", 10**6), ("pooled_width", 1 << 20)])
def test_sizes_are_compared_before_memory_is_taken(copy: Path, shards: Path, field: str, value: int) -> None:
    original = (copy / "config.json").read_bytes()
    document = json.loads(original)
    document["model"][field] = value
    try:
        rewritten(copy, "config.json", json.dumps(document).encode())
        line = refused(copy, shards)
        assert line is not None
        assert "to another model" in line
    finally:
        rewritten(copy, "config.json", original)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("state.json", "loader", None),
        ("state.json", "step", "x"),
        ("state.json", "best", {"step": 1}),
        ("state.json", "smoothed_loss", {}),
        ("state.json", "machine", []),
        ("config.json", "speakers", 3),
        ("settings.json", None, b"[]"),
        ("provenance.json", None, b"{"),
    ],
)
def test_resuming_goes_on_from_an_earlier_checkpoint(
    shards: Path, checkpoint: Path, tmp_path: Path, name: str, field: str | None, value: Any
) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "run", symlinks=True))
    newer = Path(shutil.copytree(checkpoint_of(folder, 2), folder / "checkpoints/step-000003"))
    document = json.loads((newer / name).read_bytes())
    if field is not None:
        document[field] = value
    rewritten(newer, name, value if field is None else json.dumps(document).encode())
    summary = run(shards, folder, max_train_steps=2)
    assert summary.step == 2
    assert any(path.name.startswith("passed-step-000003") for path in (folder / "checkpoints").iterdir())
