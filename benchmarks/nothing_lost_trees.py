"""The two trees that are compared: where they come from, and how their command line is run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_ENTRY: Final = "from omniges.cli import main; main()"
_WHERE: Final = "import omniges; print(omniges.__file__)"
_BATCH: Final = Path(__file__).with_name("nothing_lost_batch.py")
_LIMIT_S: Final = 900.0
_ENVIRONMENT: Final = {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}


class Stopped(Exception):
    """The comparison is over, so no further command is started."""


@dataclass(frozen=True, slots=True)
class Done:
    """Exit code, standard output and standard error of a command."""

    code: int
    out: str
    err: str


@dataclass(slots=True)
class Side:
    """One tree, and the folder in which its commands run.

    Both sides use the same relative paths, so that paths in outputs are equal. On both sides, the folder `given`
    contains outputs of the earlier commit. The folder `made` contains outputs of this side.
    """

    name: str
    tree: Path
    folder: Path
    real: Path | None = None  # folder of real recordings, if there is one
    earlier: bool = False  # this is the earlier commit, whose commands must succeed
    exits: dict[str, str] = field(default_factory=dict)  # exit codes of commands that should succeed, by label
    words: dict[str, str] = field(default_factory=dict)  # first lines of errors of commands that may fail, by label
    contract: int = 0  # version of the shard contract that it writes; 0 until it is known
    over: bool = False
    _process: subprocess.Popen[str] | None = None

    def prepare(self) -> None:
        """Create the folders, and check that Python imports omniges from this tree."""
        for name in ("given", "made"):
            (self.folder / name).mkdir(parents=True)
        for flags in ([], ["-P"]):  # worker processes are started with -P
            found = self._start([sys.executable, *flags, "-c", _WHERE]).out.strip()
            if not found or not Path(found).resolve().is_relative_to(self.tree.resolve()):
                raise SystemExit(f"{self.name}: Python imports omniges from {found or 'nowhere'}, not from {self.tree}")
        print(f"{self.name}: {found}", file=sys.stderr, flush=True)

    def run(self, label: str, *words: str) -> Done:
        """Run a command that should succeed, and store its exit code under the label."""
        return self._settle(label, words, self._start([sys.executable, "-c", _ENTRY, *words]))

    def run_all(self, commands: Mapping[str, Sequence[str]]) -> None:
        """Run commands that should succeed: the first in a new process, the others as in `attempt`."""
        first, *rest = commands
        self.run(first, *commands[first])
        for label, done in self.attempt({label: commands[label] for label in rest}).items():
            self._settle(label, commands[label], done)

    def attempt(self, commands: Mapping[str, Sequence[str]]) -> dict[str, Done]:
        """Run commands that may fail, in processes that `nothing_lost_batch.py` forks.

        The first line of each error is stored under the label of the command.
        """
        questions = json.dumps([list(words) for words in commands.values()])
        batch = self._start([sys.executable, "-P", str(_BATCH)], questions)
        if batch.code != 0:
            raise SystemExit(f"{self.name}: {_BATCH.name}: exit code {batch.code}\n{batch.err[-2000:]}")
        found = {label: Done(*one) for label, one in zip(commands, json.loads(batch.out), strict=True)}
        self.words |= {label: _reported(done.err) for label, done in found.items()}
        return found

    def _settle(self, label: str, words: Sequence[str], done: Done) -> Done:
        if label in self.exits:
            raise ValueError(f"{label}: this label was used before")
        last_line = next(reversed(done.err.splitlines()), "")
        self.exits[label] = "0" if done.code == 0 else f"{done.code} ({last_line})"
        if done.code != 0 and self.earlier:
            last = done.err.strip()[-2000:]
            raise SystemExit(f"{self.name}: omniges {' '.join(words)}: exit code {done.code}\n{last}")
        return done

    def stop(self) -> None:
        """Kill the running command, and start no other command."""
        self.over = True
        if self._process is not None and self._process.poll() is None:
            self._process.kill()

    def _start(self, command: list[str], questions: str = "") -> Done:
        if self.over:
            raise Stopped
        environment = os.environ | _ENVIRONMENT | {"PYTHONPATH": str(self.tree)}
        self._process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
        try:
            out, err = self._process.communicate(questions, timeout=_LIMIT_S)
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
        return Done(self._process.returncode, out, err)


def _reported(text: str) -> str:
    """Return the first line of an error of omniges or of its command-line parser."""
    return next((line.strip("│ ") for line in text.splitlines() if line.startswith(("omniges:", "│"))), "")


def _git(repository: Path, *words: str) -> str:
    program = shutil.which("git")
    if program is None:
        raise SystemExit("git: not found; install git, which provides the earlier commit")
    done = subprocess.run([program, "-C", str(repository), *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"git {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()


def resolve_commit(repository: Path, name: str) -> str:
    """Return the full id of a commit from any name that git knows."""
    return _git(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")


@contextlib.contextmanager
def earlier_tree(repository: Path, commit: str, folder: Path) -> Iterator[Path]:
    """Check a commit out into a new folder, and remove it at the end."""
    _git(repository, "worktree", "add", "--detach", str(folder), commit)
    try:
        yield folder
    finally:
        _git(repository, "worktree", "remove", "--force", str(folder))
