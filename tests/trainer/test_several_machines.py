"""Two machines, as two torchrun agents or SLURM tasks on loopback, which share no files."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torchrun_helpers import VARIABLES, finish, train_words, until_logged
from training_helpers import log_of, losses_of, run

from omniges.model.checkpoint import open_checkpoint

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
PAGE = Path(__file__).parents[2] / "docs/how-to/several-machines.md"
ENDLESS = {"max_train_steps": 1_000_000, "checkpointing_steps": 3}


def free_port() -> int:
    """Return a port of this machine that nothing uses at the moment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def agents(
    recipe: Path, machines: list[Path], *, in_order: bool = False, **flags: object
) -> list[subprocess.Popen[str]]:
    """Start an agent with one process for each machine, a folder that has shards; each is a group of its own.

    Args:
        recipe: Recipe of the run.
        machines: The folders.
        in_order: The first machine has the first process; otherwise the agents agree on it, as the page says.
        flags: Flags of ``omniges train``.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(len(machines)), "--nproc-per-node", "1"]
    port = free_port()
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "run"]
    fixed = ["--master-addr", "127.0.0.1", "--master-port", str(port), "--node-rank"]
    return [
        subprocess.Popen(
            [*command, *([*fixed, str(number)] if in_order else meeting), "-m"]
            + train_words(recipe, machine / "shards", machine / "run", **flags),
            stderr=subprocess.PIPE, text=True, env=VARIABLES, start_new_session=True,
        )
        for number, machine in enumerate(machines)
    ]  # fmt: skip


@pytest.fixture
def machines(shards: Path, tmp_path: Path) -> list[Path]:
    """Two folders with a copy of the shards each."""
    found = [tmp_path / "a", tmp_path / "b"]
    for machine in found:
        shutil.copytree(shards, machine / "shards")
    return found


def home_of(machines: list[Path]) -> Path:
    """Return the run's folder on the machine whose process is the first."""
    (found,) = (machine / "run" for machine in machines if (machine / "run/log.jsonl").exists())
    return found


def until_one_saves(machines: list[Path]) -> Path:
    """Wait until the first process has saved a checkpoint; return the run's folder on its machine."""
    deadline = time.monotonic() + 200
    while not any((machine / "run/log.jsonl").exists() for machine in machines):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    until_logged(home_of(machines), "checkpoint")
    return home_of(machines)


@pytest.mark.parametrize("sharding", ["full", "none"])
def test_only_the_first_has_the_run_and_it_is_resumed(
    sharding: str, recipe: Path, machines: list[Path], shards: Path, tmp_path: Path
) -> None:
    for steps in (4, 8):
        for agent in agents(recipe, machines, in_order=True, max_train_steps=steps, sharding=sharding):
            finish(agent)
    home, other = (machine / "run" for machine in machines)
    assert not other.exists()
    run(shards, tmp_path / "one", gradient_accumulation_steps=2, max_train_steps=8)
    assert [event["step"] for event in log_of(home, "start")] == [0, 4]
    assert list(losses_of(home).values()) == pytest.approx(list(losses_of(tmp_path / "one").values()), rel=1e-5)


LOST = "omniges: expected 2 processes, found that another process ended or does not answer"


def require_complete_checkpoints(home: Path) -> None:
    """A run's folder has checkpoints, and each of them is complete."""
    found = sorted((home / "checkpoints").glob("step-*"))
    assert found
    for path in found:
        open_checkpoint(path)


def test_an_agent_that_is_killed_with_its_process_ends_the_other(recipe: Path, machines: list[Path]) -> None:
    both = agents(recipe, machines, **ENDLESS, sharding="full")
    home = until_one_saves(machines)
    place = machines.index(home.parent)
    kept, lost = both[place], both[1 - place]
    began = time.monotonic()
    for process in processes_of(lost.pid):
        os.kill(process, signal.SIGKILL)
    _, errors = kept.communicate(timeout=120)
    lost.communicate(timeout=60)
    assert time.monotonic() - began < 120
    assert LOST in errors, errors
    require_complete_checkpoints(home)


@pytest.mark.parametrize(
    ("sharding", "lost", "how"), [("none", 1, "killed"), ("full", 0, "killed"), ("full", 1, "silent")]
)
def test_a_process_that_is_lost_ends_the_other_with_code_3(
    sharding: str, lost: int, how: str, recipe: Path, shards: Path, tmp_path: Path
) -> None:
    limit = {"rank_timeout_s": 45} if how == "silent" else {}  # connections of killed processes close by themselves
    words = train_words(recipe, shards, tmp_path, **ENDLESS, sharding=sharding, **limit)
    shared = VARIABLES | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    both = [
        subprocess.Popen(
            [sys.executable, "-m", *words], stderr=subprocess.PIPE, text=True,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in (0, 1)
    ]  # fmt: skip
    until_logged(tmp_path, "checkpoint")
    began = time.monotonic()
    both[lost].send_signal(signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    _, errors = both[1 - lost].communicate(timeout=200)
    both[lost].kill()
    both[lost].communicate(timeout=60)
    assert both[1 - lost].returncode == 3, errors
    assert time.monotonic() - began < 120
    (line,) = re.findall("^omniges: .*$", errors, re.MULTILINE)
    assert line.startswith(LOST)
    assert "Traceback" not in errors
    require_complete_checkpoints(tmp_path)


def processes_of(agent: int) -> list[int]:
    """Return an agent and the processes that it started."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    return [agent, *map(int, children)]


# --- SLURM

SRUN = """#!/bin/bash
# srun of two tasks on this machine: starts them, passes SIGTERM on, exits with the largest code.
pids=()
for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & pids+=($!); done
trap 'kill -TERM "${pids[@]}"' TERM
largest=0
for pid in "${pids[@]}"; do
  wait "$pid"; code=$?
  while kill -0 "$pid" 2>/dev/null; do wait "$pid"; code=$?; done
  if [ $code -gt $largest ]; then largest=$code; fi
done
exit $largest
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "$REQUEUED"; fi
"""


def test_the_slurm_script_queues_the_job_again_and_resumes(recipe: Path, shards: Path, tmp_path: Path) -> None:
    (script,) = re.findall(r"^```bash\n(.+?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    python = f'#!/bin/bash\nexec {sys.executable} "$@"\n'
    for name, content in (("train.sh", script), ("srun", SRUN), ("scontrol", SCONTROL), ("python", python)):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    own = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NTASKS": "2"}
    own |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "REQUEUED": str(tmp_path / "requeued")}

    def job(**flags: object) -> subprocess.Popen[str]:
        words = train_words(recipe, shards, tmp_path / "run", sharding="full", **flags)[2:]
        variables = VARIABLES | own | {"MASTER_PORT": str(free_port())}
        return subprocess.Popen(
            [str(tmp_path / "train.sh"), *words],
            stderr=subprocess.PIPE,
            text=True,
            env=variables,
            start_new_session=True,
        )

    first = job(max_train_steps=1_000_000)
    until_logged(tmp_path / "run")
    (srun,) = (child for child in processes_of(first.pid)[1:] if b"srun" in Path(f"/proc/{child}/cmdline").read_bytes())
    os.kill(srun, signal.SIGTERM)
    _, errors = first.communicate(timeout=200)
    assert first.returncode == 75, errors
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    step = log_of(tmp_path / "run", "end")[-1]["step"]
    finish(job(max_train_steps=step + 2))
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    assert [event["step"] for event in log_of(tmp_path / "run", "start")] == [0, step]
