"""Pipeline helpers of several test modules: run it quietly, run the command, compare folders."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from command_server import server

from omniges.features.audio import Loudness
from omniges.pipeline import worker as worker_module
from omniges.pipeline.run import preprocess
from omniges.pipeline.settings import ConvertSettings, PreprocessSettings, Summary
from omniges.progress import LineReporter
from omniges.workers import Answer, Answering

COMMAND = (str(Path(sys.executable).with_name("omniges")),)


class Inline:
    """A worker that converts in the thread that waits for it; it gets and gives the messages of a process."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self._answer, self._answers = worker_module.prepare(setup), deque[Answer]()

    def submit(self, task: Any) -> None:
        self._answers.append(self._answer(json.loads(json.dumps(task))))

    def receive(self, limit_s: float | None = None) -> tuple[Any, list[memoryview]]:
        value, buffers = self._answers.popleft()
        joined = [b"".join(bytes(memoryview(piece).cast("B")) for piece in pieces) for pieces in buffers]
        return json.loads(json.dumps(value)), list(map(memoryview, joined))

    def kill(self) -> None: ...

    def close(self) -> None: ...


def run_preprocess(
    root: Path, out: Path | str, *, keep_audio: bool = False, loudness: Loudness = "none", **settings: Any
) -> Summary:
    """Preprocess in this process alone or, if `num_workers` is set, in so many workers, each of which takes 0.4 s."""
    start = worker_module.start_worker

    def inline(setup: dict[str, Any], command: Sequence[str]) -> Answering:
        return Inline(setup) if command is worker_module.WORKER_COMMAND else start(setup, command)

    with Path(os.devnull).open("w") as stream, pytest.MonkeyPatch.context() as patch:
        if "num_workers" not in settings:
            patch.setattr(worker_module, "start_worker", inline)
        chosen = PreprocessSettings(
            root=root,
            output_dir=out,
            convert=ConvertSettings(keep_audio=keep_audio, loudness=loudness),
            **({"num_workers": 1} | settings),
        )
        return preprocess(chosen, LineReporter(stream))


def scripted(script: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run Python as `python -c` does, where all that commands import is there already."""
    return server().run(tuple(map(str, words)), script)


def omniges(*words: object, fresh: bool = False, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command, as a user does, in an environment with these variables; fresh: in a separate interpreter."""
    if not fresh:
        return server().run(tuple(map(str, words)), variables=variables)
    return subprocess.run(
        [*COMMAND, *map(str, words)], capture_output=True, text=True, env=os.environ | variables, timeout=100
    )


def digests(folder: Path) -> dict[str, str]:
    """Sha256 of every file in a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def changed_unseen(path: Path) -> None:
    """Another bit in a file of the same size and date."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def report(folder: Path) -> list[dict[str, Any]]:
    """The findings of a run."""
    return [json.loads(line) for line in (folder / "report.jsonl").read_text("utf-8").splitlines()]
