"""No mutation of a foreign folder, recipe or record hangs its reader, exhausts memory or ends in a traceback.

Each reader gets a valid folder, which it has to take, and then the same folder with one file changed. A change ends in
a result or in one line, within 5 s and 500 MB.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from foreign_folders import KINDS, TASKS, World, make_world
from latent_builders import generated
from mutations import MAX_BYTES, MAX_S, mutated, outcome
from pipeline_helpers import scripted

ALL = 2000


@pytest.fixture(scope="module")
def world(corpus: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("mutations"), corpus, shards)


def tried(name: str, count: int, world: World, folder: Path, seed: int) -> tuple[int, list[str]]:
    """Mutate so often; return how often it was refused, and what went wrong."""
    kind = KINDS[name]
    folder.mkdir()
    kind.make(folder, world)
    assert outcome(lambda: kind.read(folder, world)) is None
    refused, wrong = 0, []
    for number in range(seed, seed + count):
        with mutated(folder, random.Random(number), kind.seal) as what:
            try:
                refused += outcome(lambda: kind.read(folder, world)) is not None
            except Exception as error:  # noqa: BLE001 - each is a finding
                wrong.append(f"{number} ({what}): {type(error).__name__}: {str(error)[:200]}")
    assert outcome(lambda: kind.read(folder, world)) is None
    return refused, wrong


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_change_is_read_or_refused_in_one_line(name: str, world: World, tmp_path: Path) -> None:
    refused, wrong = tried(name, KINDS[name].sample, world, tmp_path / "folder", 0)
    assert not wrong, "\n".join(wrong)
    assert refused > 0 or name == "verified"  # which reports


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", sorted(KINDS))
def test_two_thousand_changes(name: str, world: World, tmp_path: Path) -> None:
    _, wrong = tried(name, ALL, world, tmp_path / "folder", 10_000)
    assert not wrong, "\n".join(wrong)


# --- as commands

MEASURED = """
import resource, sys
from omniges.cli import main
try:
    main()
finally:
    most = max(resource.getrusage(whose).ru_maxrss for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    sys.stderr.write(f"most memory {most}\\n")
"""
TRAIN = ("--num-workers", "0", "--max-train-steps", "2", "--validation-steps", "0", "--window-ticks", "16")


def _clip(world: World, ending: str) -> str:
    return str(min(world.corpus.rglob(f"1_*.{ending}")))


def _gestures(world: World) -> Path:
    """Results of a2g, generated at their first use."""
    folder = world.run.with_name("gestures")
    if not folder.exists():
        generated(world.run, folder, "a2g", {}, audio=(Path(_clip(world, "wav")),))
    return folder


COMMANDS: dict[str, tuple[str, Callable[[Path, World], tuple[object, ...]]]] = {
    "verify-shards": ("shards", lambda folder, _: (folder,)),
    "inspect": ("shards", lambda folder, _: (folder, "1_synthetica_0_1_1")),
    "export": ("shards", lambda folder, _: ("--shards", folder, "--out", OUT)),
    "trace-batches": ("shards", lambda folder, _: ("--shards", folder, "--window-ticks", 16)),
    "train": ("shards", lambda folder, _: ("--shards", folder, "--output-dir", OUT, *TRAIN)),
    "generate": (
        "checkpoint",
        lambda folder, world: (
            *("--checkpoint", folder, "--task", "a2g", "--audio", _clip(world, "wav"), "--out", OUT, "--steps", 1),
        ),
    ),
    "evaluate": ("results", lambda folder, world: (*(folder / task for task in TASKS), "--shards", world.shards)),
    "preprocess": ("recording", lambda folder, _: ("--root", folder, "--out", OUT, "--workers", 1)),
    "encode": (
        "audio-vae",
        lambda folder, world: ("--shards", world.shards, "--out", OUT, "--with", f"audioldm2-vae={folder}"),
    ),
    "convert-omniflow": ("omniflow", lambda folder, _: (folder, "--out", OUT)),
    "train by a recipe": (
        "recipe",
        lambda folder, world: (
            *("--recipe", folder / "recipe.yaml", "--shards", world.shards, "--shard-weights", 1),
            *("--lr-warmup-steps", 0, "--output-dir", OUT, *TRAIN),
        ),
    ),
    "generate with a vocoder": (
        "vocoder",
        lambda folder, world: (
            *("--checkpoint", world.run, "--task", "t2a", "--text", _clip(world, "TextGrid")),
            *("--vocoder", folder, "--out", OUT, "--steps", 1),
        ),
    ),
    "encode gesture": (
        "gesture-rvqvae",
        lambda folder, world: ("--shards", world.shards, "--out", OUT, "--with", f"gesture-rvqvae={folder}"),
    ),
    "encode text": (
        "text-vae",
        lambda folder, world: (
            *("--shards", world.shards, "--out", OUT, "--with", f"omniflow-text-vae={folder}", "--max-lost", 1),
            *("--window-ticks", 16),
        ),
    ),
    "evaluate with an encoder": (
        "encoder",
        lambda folder, world: (
            *(_gestures(world), "--shards", world.shards, "--resamples", 10),
            *("--gesture-encoder", folder / "e.safetensors"),
        ),
    ),
}
"""By command, and what follows it: the kind of folder that changes, and the other words."""
OUT = "out"  # in the folder that the test runs in


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_thirty_changes_as_processes(name: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind_name, words = COMMANDS[name]
    command = name.partition(" ")[0]
    kind, folder = KINDS[kind_name], tmp_path / "folder"
    folder.mkdir()
    kind.make(folder, world)
    monkeypatch.chdir(tmp_path)

    def run_once() -> tuple[int, str, float, int]:
        shutil.rmtree(tmp_path / OUT, ignore_errors=True)
        began = time.monotonic()
        done = scripted(MEASURED, command, *words(folder, world))
        took = time.monotonic() - began
        *lines, last = done.stderr.splitlines()
        assert last.startswith("most memory"), done.stderr[-2000:]
        return done.returncode, "\n".join(lines), took, int(last.split()[-1]) << 10

    code, said, usual_s, usual_bytes = run_once()
    assert code == 0, said
    wrong = []
    for number in range(30):
        with mutated(folder, random.Random(20_000 + number), kind.seal) as what:
            code, said, took_s, most_bytes = run_once()
        lines = [line for line in said.splitlines() if line.startswith("omniges: ")]
        explained = len(lines) == 1 or (code == 1 and command in {"verify-shards", "preprocess"})
        if code not in {0, 1, 2, 3} or "Traceback" in said or (code and not explained):
            wrong.append(f"{number} ({what}): exit {code}: {said[-300:]}")
        if took_s > usual_s + MAX_S or most_bytes > usual_bytes + MAX_BYTES:
            wrong.append(f"{number} ({what}): {took_s:.1f} s, {most_bytes >> 20} MiB")
    assert not wrong, "\n".join(wrong)
    code, said, *_ = run_once()
    assert code == 0, said
