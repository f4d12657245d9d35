"""Runs of several processes on this machine, which torchrun starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from training_helpers import SMALLEST, TOKEN_WIDTHS, log_of

RECIPE: dict[str, Any] = {
    "window_ticks": 16,
    "batch_size": 2,
    "gradient_accumulation_steps": 2,
    "lr_warmup_steps": 3,
    "logging_steps": 4,
    "validation_steps": 0,
    "model": SMALLEST | TOKEN_WIDTHS,
}
VALIDATION = {"validation_steps": 3, "validation_windows": 8, "validation_samples": 2, "validation_sampling_steps": 2}
_TESTS = Path(__file__).parent
_PATHS = [str(_TESTS), str(_TESTS / "robustness"), *filter(None, [os.environ.get("PYTHONPATH")])]
VARIABLES = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(_PATHS)}


def started(processes: int, words: list[str]) -> subprocess.Popen[str]:
    """Start a program in processes of one group, by torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.Popen(
        [*command, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=VARIABLES
    )


def train_words(recipe: Path, shards: Path, folder: Path, **flags: object) -> list[str]:
    """Return the words of ``omniges train`` after ``python -m``."""
    named = {f"--{name.replace('_', '-')}": value for name, value in flags.items()}
    words = [name if value is True else f"{name}={value}" for name, value in named.items()]
    places = ["--recipe", str(recipe), "--shards", str(shards), "--output-dir", str(folder)]
    return ["omniges.cli", "train", *places, *words]


def torchrun(recipe: Path, shards: Path, folder: Path, processes: int = 2, **flags: object) -> subprocess.Popen[str]:
    """Start ``omniges train`` in several processes, as docs/how-to/training.md says."""
    return started(processes, ["-m", *train_words(recipe, shards, folder, **flags)])


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a run that has to succeed; return what it wrote to stderr."""
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return errors


def until_logged(folder: Path, event: str = "steps") -> None:
    """Wait until a run has logged an event."""
    deadline = time.monotonic() + 200
    while not (folder / "log.jsonl").exists() or not log_of(folder, event):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def rank_1_of(launcher: int) -> int:
    """Return the process that torchrun started as its second."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    for child in children:
        variables = Path(f"/proc/{child}/environ").read_bytes()
        if re.search(rb"(?:^|\0)RANK=1\0", variables):
            return int(child)
    raise AssertionError(f"no rank 1 among {children}")
