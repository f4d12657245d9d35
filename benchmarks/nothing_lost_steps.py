"""Steps that run with each tree. A step reads outputs that the earlier commit made in previous steps."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import typer
from nothing_lost_damage import RECORDINGS, SHARD_FAULTS, damage_recordings
from nothing_lost_facts import (
    VOLATILE,
    Facts,
    Found,
    content_facts,
    contract_version,
    file_facts,
    json_facts,
    json_file_facts,
    member_facts,
)
from nothing_lost_trees import Side

from omniges.cli import app
from omniges.commands import models, shards

CHECKS: Final = ("shards", "losses", "generated", "codes", "earlier")
_TENSORS: Final = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")
BYTES_OF: Final = "bytes of"
"""Part of the names of rows that are compared only if both trees write the same version of the shard contract."""
_HALFWAY, _STEPS = 10, 20
_RECIPE: Final = f"""\
preset: tiny
model: {{width: 16, layers: 1, heads: 2, piece_width: 8, mark_width: 4}}
window-ticks: 16
train-batch-size: 4
max-train-steps: {_STEPS}
lr-warmup-steps: 3
logging-steps: 5
checkpointing-steps: {_HALFWAY}
checkpoints-total-limit: 0
validation-steps: {_HALFWAY}
validation-windows: 2
validation-samples: 1
validation-sampling-steps: 2
"""
_VERSION: Final = frozenset({"omniges"})  # key of the version of omniges in records; it may differ
_SINCE: Final = frozenset(
    {"condition_streams", "condition_stream_dropout", "tell_absent", "validated_tasks", "gesture_channels"}
)
"""Settings that later commits added; their defaults change nothing."""
_LABELS: Final = ("1_synthetica_0_1_1", "2_syntheticb_0_1_1")  # clips of the test split


@dataclass(frozen=True, slots=True)
class Step:
    """A function that runs commands with one tree and returns facts. Later steps read its output folders `gives`."""

    check: str
    run: Callable[[Side], Found]
    gives: tuple[str, ...] = ()


# --- shards


def _make_corpora(side: Side) -> Found:
    """Write four synthetic corpora: two of different kinds, one for damaged shards, one for damaged recordings."""
    kinds: dict[str, tuple[str, ...]] = {
        "corpus": ("--clips", "12", "--seconds", "8"),
        "other": ("--clips", "3", "--seconds", "3", "--layout", "seed", "--audio", "float32", "--speakers", "1"),
        "small": ("--clips", "6", "--seconds", "2", "--seed", "5"),
        "many": ("--clips", str(RECORDINGS), "--seconds", "2", "--seed", "6"),
    }
    for name, flags in kinds.items():
        side.run(f"sample-corpus {name}", "sample-corpus", f"made/{name}", *flags)
    return {"corpora: files": file_facts(side.folder / "made", {".txt"})}  # without the README, which is for people


def _make_shards(side: Side) -> Found:
    """Convert the corpora, and the real recordings if there are any."""
    keep = ("--keep-audio", "--workers", "1")
    kinds: dict[str, tuple[str, ...]] = {
        "synthetic": ("--root", "given/corpus", *keep, "--shard-size", "2MB"),
        "other": ("--root", "given/other", "--workers", "2", "--loudness", "peak"),
        "small": ("--root", "given/small", *keep, "--shard-size", "300kB"),
    }
    if side.real is not None:
        kinds["real"] = ("--root", str(side.real), *keep, "--max-rejected", "0.8")
    found: Found = {}
    for name, flags in kinds.items():
        out = f"made/shards-{name}"
        side.run(f"preprocess {name}", "preprocess", *flags, "--out", out)
        found[f"{name}: content"] = content_facts(side.folder / out)
        found[f"{name}: {BYTES_OF} members"] = member_facts(side.folder / out)
        found[f"{name}: {BYTES_OF} files"] = file_facts(side.folder / out)
        side.contract = contract_version(side.folder / out)
    return found


# --- losses


def _log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def _losses(run: Path) -> Facts:
    """Return losses and gradient norms of every step, and the losses of every validation."""
    facts: Facts = {}
    for event in _log(run):
        if event["event"] == "steps":
            for name in ("losses", "gradient_norms"):
                first = event["step"] - len(event[name]) + 1
                facts |= {f"step {first + k:02d} {name}": json.dumps(value) for k, value in enumerate(event[name])}
        elif event["event"] == "validation":
            facts |= json_facts(event["losses"], f"validation at step {event['step']}")
    return facts


def _trained(run: Path, name: str) -> Found:
    """Return facts about the weights, logs and files of a run; none if the run did not finish."""
    last = run / "checkpoints" / f"step-{_STEPS:06d}"
    if not last.is_dir():
        return {}
    states = file_facts(last)
    state = json.loads((last / "state.json").read_text(encoding="utf-8"))
    fixed = ("stats.json", "tokenizer.json")
    grown = {file: json.loads((last / file).read_text(encoding="utf-8")) for file in ("config.json", "settings.json")}
    log = json_facts(_log(run), "log", VOLATILE | _VERSION | _SINCE)
    results = file_facts(run / "validation", {".json", ".png"})  # pictures show texts
    records = json_file_facts(run / "validation", VOLATILE | _VERSION)
    return {
        f"{name}: losses of all steps": _losses(run),
        f"{name}: tensors": {file: states[file] for file in _TENSORS},
        f"{name}: rest of the checkpoint": {file: states[file] for file in fixed}
        | json_facts(grown, "", _SINCE)
        | json_facts(state, "state.json", VOLATILE | _SINCE),
        f"{name}: log": log,
        f"{name}: validation": results | records,
    }


def _resume(side: Side, half: Path, name: str, *flags: str) -> Path:
    """Resume a copy of a run that was stopped half-way; return the folder of the copy."""
    run = side.folder / "made" / name
    if half.is_dir():
        shutil.copytree(half, run, symlinks=True)
    side.run(f"train {name}", "train", *_train_words(side), *flags, "--output-dir", f"made/{name}")
    return run


def _train_words(side: Side) -> tuple[str, ...]:
    (side.folder / "recipe.yaml").write_text(_RECIPE, encoding="utf-8")
    # Earlier trees do not have the flag, and always train on 415 channels.
    knows = (side.tree / "omniges" / "features" / "channels.py").is_file()
    channels = ("--gesture-channels", "415") if knows else ()
    return ("--shards", "given/shards-synthetic", "--recipe", "recipe.yaml", "--num-workers", "0", *channels)


def _train(side: Side) -> Found:
    """Train once without interruption, and once with a stop half-way and a resume."""
    outputs, words = side.folder / "made", _train_words(side)
    side.run("train", "train", *words, "--num-workers", "1", "--output-dir", "made/run")
    side.run("train half", "train", *words, "--max-train-steps", str(_HALFWAY), "--output-dir", "made/half")
    resumed = _resume(side, outputs / "half", "resumed", "--validation-steps", "0")
    straight, stopped = _trained(outputs / "run", "straight"), _trained(resumed, "stopped")
    found = straight | stopped
    return found | {"stopped as straight": _alike(found)} if straight and stopped else found


def _alike(found: Found) -> Facts:
    """Return whether the resumed run has the same losses and tensors as the run without interruption."""
    pairs = {
        name: (found[f"straight: {name}"], found[f"stopped: {name}"]) for name in ("losses of all steps", "tensors")
    }
    return {
        name: str(all(straight.get(fact) == value for fact, value in stopped.items()))
        for name, (straight, stopped) in pairs.items()
    }


# --- generated


def _generations() -> dict[str, tuple[str, ...]]:
    """Return the flags of each `generate` command, by the name of its output folder."""
    shards = ("--shards", "given/shards-synthetic")
    base = "given/corpus/beat_synthetic_v2.0.0"
    audio, text = f"{base}/wave16k/{_LABELS[0]}.wav", f"{base}/textgrid/{_LABELS[0]}.TextGrid"
    motion = f"{base}/smplxflame_30/{_LABELS[0]}.npz"
    kinds = {task: ("--task", task, *shards, "--split", "test") for task in ("t2g", "a2g", "t2a", "g2a", "g2t", "a2t")}
    return kinds | {
        "at2g": ("--task", "at2g", "--audio", audio, "--text", text, "--png", "--solver", "heun", "--body", motion),
        "gt2a": ("--task", "gt2a", "--gesture", motion, "--text", text, "--seconds", "3", "--solver", "dpm++"),
        "plain": ("--task", "t2g", "--text", "plain.txt", *shards, "--guidance", "1.5", "--num-samples", "2"),
        "joint": ("--task", "unconditional", "--seconds", "2.5", "--weights", "last", "--start", "1,2"),
    }


def _generate(side: Side) -> Found:
    """Generate results of all kinds with the checkpoint of the earlier commit, score them, and trace batches."""
    outputs = side.folder / "made"
    (side.folder / "plain.txt").write_text("paper winter seven, garden. Music tiger!\n", encoding="utf-8")
    common = ("--checkpoint", "given/run", "--seed", "3", "--steps", "3")
    commands = {
        f"generate {name}": ("generate", *common, *flags, "-o", f"made/generated/{name}")
        for name, flags in _generations().items()
    }
    side.run_all(commands)
    return {
        "results: files": file_facts(outputs / "generated", {".json", ".png"}),  # pictures show texts
        "results: records": json_file_facts(outputs / "generated", _VERSION | {"picture"}),
        "evaluation": _evaluate(side),
        "batches": _trace(side),
    }


def _evaluate(side: Side) -> Facts:
    """Score the results of the six tasks, and a checkpoint."""
    common = ("--shards", "given/shards-synthetic", "--resamples", "50", "--format", "json")
    ways: dict[str, tuple[str, ...]] = {
        "files": tuple(f"made/generated/{task}" for task in ("t2g", "a2g", "t2a", "g2a", "g2t", "a2t")),
        "checkpoint": ("--checkpoint", "given/run", "--tasks", "a2g,g2t", "--steps", "2", "--work", "made/work"),
    }
    reports = {name: f"made/evaluation-{name}.json" for name in ways}
    side.run_all({f"evaluate {name}": ("evaluate", *ways[name], *common, "-o", reports[name]) for name in ways})
    facts: Facts = {}
    for name, report in reports.items():
        if (side.folder / report).is_file():
            facts |= json_facts(json.loads((side.folder / report).read_text(encoding="utf-8")), name, _VERSION)
    return facts


def _trace(side: Side) -> Facts:
    """Return the windows that each rank reads, with checksums of their arrays."""
    flags = ("--shards", "given/shards-synthetic", "--window-ticks", "16", "--batch-size", "3", "--seed", "2")
    facts: Facts = {}
    for rank in ("0", "1"):
        place = ("--world-size", "2", "--rank", rank, "--from-step", "5", "--steps", "4", "--decode")
        done = side.run(f"trace-batches rank {rank}", "trace-batches", *flags, *place)
        facts |= {f"rank {rank} line {k:02d}": line for k, line in enumerate(done.out.splitlines())}
    return facts


# --- codes


def _verdict(code: int, out: str) -> str:
    """Return the exit code, the level and the sorted findings (code, file, key, member) as one text."""
    try:
        document = json.loads(out)
    except json.JSONDecodeError:
        return f"exit {code}, no JSON"
    names = ("code", "file", "key", "member")
    findings = sorted("/".join(str(finding[name] or "-") for name in names) for finding in document["findings"])
    return f"exit {code}; {document['level']}; {', '.join(findings) or 'none'}"


def _damage_shards(side: Side) -> Facts:
    """Verify damaged copies of a small shard folder at every level."""
    commands: dict[str, tuple[str, ...]] = {}
    for place, (name, fault) in enumerate(SHARD_FAULTS.items()):
        case = f"made/cases/{place:02d}"
        fault(shutil.copytree(side.folder / "given/shards-small", side.folder / case))
        for level in ("quick", "full", "deep"):
            words = ("verify-shards", case, "--level", level, "--format", "json", "--workers", "1")
            commands[f"{name}, {level}"] = words
    done = side.attempt(commands)
    return {label: _verdict(one.code, one.out) for label, one in done.items()}


def _repair(side: Side) -> Facts:
    """Convert, damage a shard, move it aside by ``--quarantine``, and convert again, which restores the folder."""
    folder = "made/repaired"
    again = ("--root", "given/small", "--out", folder, "--keep-audio", "--shard-size", "300kB", "--workers", "1")
    side.run("preprocess what will be damaged", "preprocess", *again)
    sound = file_facts(side.folder / folder)
    SHARD_FAULTS["bit in gesture"](side.folder / folder)
    commands = {
        "quarantine": ("verify-shards", folder, "--quarantine", "--workers", "1"),
        "repair": ("preprocess", *again),
        "verify the repaired": ("verify-shards", folder, "--level", "deep", "--workers", "1"),
    }
    facts = {label: f"exit {done.code}" for label, done in side.attempt(commands).items()}
    moved = file_facts(side.folder / f"{folder}.quarantine")
    facts |= {"moved": " ".join(sorted(moved)), "restored": str(file_facts(side.folder / folder) == sound)}
    return facts | content_facts(side.folder / folder)


def _damage_recordings(side: Side) -> Facts:
    """Convert a corpus of damaged recordings; return the finding codes of each recording."""
    corpus = shutil.copytree(side.folder / "given/many", side.folder / "made/root/corpus")
    damage_recordings(corpus)
    words = ("--root", "made/root/corpus", "--out", "made/rejected", "--workers", "1", "--keep-audio")
    done = side.attempt({"preprocess damaged recordings": ("preprocess", *words)})
    facts = {label: f"exit {one.code}" for label, one in done.items()}
    report = side.folder / "made/rejected/report.jsonl"
    lines = report.read_text(encoding="utf-8").splitlines() if report.is_file() else []
    codes: dict[str, list[str]] = {}
    for finding in map(json.loads, lines):
        codes.setdefault(str(finding["stem"]), []).append(f"{finding['code']} ({finding['severity']})")
    codes.pop(_LONGER_AUDIO, None)
    return facts | {stem: ", ".join(sorted(found)) for stem, found in codes.items()}


_LONGER_AUDIO: Final = "1_synthetica_0_3_3"
"""Recording whose audio is longer than its motion. Earlier commits reject it; later ones cut the audio, with a note."""
_USAGE: Final = (
    "",
    "--version",
    "--nonsense",
    "no-such-command",
    "sample-corpus",
    "sample-corpus given/corpus",
    "sample-corpus made/none --clips 0",
    "sample-corpus made/none --layout odd",
    "preprocess",
    "preprocess --root nowhere",
    "preprocess --root made/empty --out made/none",
    "preprocess --root given/small --out made/none --nonsense",
    "preprocess --root given/small --out made/none --speakers nobody",
    "preprocess --root given/small --out made/none --include 9_*",
    "preprocess --root given/small --out made/none --max-rejected 7",
    "preprocess --root given/small --out made/none --shard-size many",
    "preprocess --root given/small --out made/none --split-csv nowhere.csv",
    "preprocess --root given/small --out made/none --split-csv plain.csv",
    "preprocess --root given/small --out made/other-settings --loudness peak",
    "preprocess --root given/small --out recipe.txt",
    "preprocess --root given/small --out made/none --plan",
    "verify-shards nowhere",
    "verify-shards made/empty",
    "verify-shards given/shards-small --level odd",
    "verify-shards given/shards-small --shard none.tar",
    "verify-shards given/shards-small -o given/shards-small/report",
    "inspect nowhere",
    "inspect given/shards-small no-such-key",
    "inspect given/shards-small --png made/none.png",
    "export --shards nowhere -o made/none",
    "export --shards given/shards-small -o given/corpus",
    "export --shards given/shards-small -o made/none --key no-such-key",
    "encode --shards given/shards-small",
    "encode --shards given/shards-small --with no-codec=nowhere",
    "encode --shards given/shards-small --with audioldm2-vae=nowhere",
    "train --shards nowhere --output-dir made/none",
    "train --shards given/shards-small --output-dir made/none --preset huge",
    "train --shards given/shards-small --output-dir made/none --recipe nowhere.yaml",
    "train --shards given/shards-small --output-dir made/none --recipe bad.yaml",
    "train --shards given/shards-small --output-dir made/none --window-ticks 999",
    "train --shards given/shards-small --output-dir made/none --max-train-steps 0",
    "train --shards given/shards-small --output-dir made/none --audio-codec audioldm2-vae",
    "train --shards given/shards-small --output-dir made/none --resume nowhere",
    "trace-batches --shards nowhere",
    "trace-batches --shards given/shards-small --world-size 2 --rank 2",
    "trace-batches --shards given/shards-small --split odd",
    "trace-batches --shards given/shards-small --window-ticks 999",
    "convert-omniflow nowhere -o made/none",
    "convert-omniflow made/empty -o made/none",
    "generate --task a2g -o made/none",
    "generate --checkpoint nowhere --task a2g -o made/none",
    "generate --checkpoint made/empty --task a2g --audio recipe.txt -o made/none",
    "generate --checkpoint made/empty --task a2z -o made/none",
    "evaluate nowhere --shards given/shards-small",
    "evaluate made/empty --shards given/shards-small",
    "evaluate made/empty --shards nowhere",
    "evaluate made/empty --shards given/shards-small --profile emage-2024",
    "benchmark",
    "benchmark loader --shards nowhere",
    "benchmark train --shards nowhere",
)
_COMMANDS: Final = (
    "",
    "preprocess",
    "export",
    "inspect",
    "sample-corpus",
    "verify-shards",
    "encode",
    "train",
    "trace-batches",
    "convert-omniflow",
    "generate",
    "evaluate",
    "benchmark",
    "benchmark loader",
    "benchmark train",
)


def _misuse(side: Side) -> Facts:
    """Run commands that must be refused; return the exit code of each."""
    outputs = side.folder / "made"
    (outputs / "empty").mkdir()
    (side.folder / "recipe.txt").write_text("no folder\n", encoding="utf-8")
    (side.folder / "bad.yaml").write_text("window-tikcs: 16\n", encoding="utf-8")
    (side.folder / "plain.csv").write_text("name;split\n", encoding="utf-8")
    shutil.copytree(side.folder / "given/shards-small", outputs / "other-settings")
    commands = {f"omniges {words}": words.split() for words in _USAGE}
    done = side.attempt(commands)
    return {label: f"exit {one.code}" for label, one in done.items()}


def _hidden(words: str) -> set[str]:
    """Return the flags that a command of the working tree accepts and does not show."""
    command: Any = typer.main.get_command(app)
    for word in words.split():
        command = command.commands[word]
    return {name for each in command.params if getattr(each, "hidden", False) for name in each.opts}


def _flags(side: Side) -> Facts:
    """Run every command with ``--help``; return the flags and commands that the help shows."""
    commands = {f"help of omniges {words}": [*words.split(), "--help"] for words in _COMMANDS}
    word = re.compile(r"(?<![\w-])--?[a-z][a-z0-9-]*|(?<=^│ )[a-z][a-z-]+(?= )", re.MULTILINE)
    found = side.attempt(commands)
    facts: Facts = {}
    for words, (label, done) in zip(_COMMANDS, found.items(), strict=True):
        command = words.replace("-", "_").replace(" ", "_")
        # The working tree accepts former names and does not show them.
        present = getattr(getattr(models, command, None) or getattr(shards, command, None), "present", {})
        shown = re.sub(r"--\[no-\]([\w-]+)", r"--\1 --no-\1", done.out)
        flags = {present.get(flag, flag) for flag in word.findall(shown)} - _hidden(words)
        facts |= {label: f"exit {done.code}"} | {f"{label}: {flag}": "there" for flag in flags}
    return facts


def _find_codes(side: Side) -> Found:
    """Collect the exit codes and finding codes of damaged files and invalid commands."""
    return {
        "damaged shards: codes": _damage_shards(side),
        "damaged shards: repair": _repair(side),
        "damaged recordings: codes": _damage_recordings(side),
        "misuse: exit codes": _misuse(side),
        "commands and flags": _flags(side),
    }


# --- earlier


def _read_earlier(side: Side) -> Found:
    """Use outputs of the earlier commit: verify, show, export, update, resume and generate."""
    outputs, shards = side.folder / "made", "given/shards-synthetic"
    verified = side.run("verify deep", "verify-shards", shards, "--level", "deep", "--format", "json")
    seen = {"verify": _verdict(verified.code, verified.out)}
    for name, words in {"folder": (), "sample": (_LABELS[0],)}.items():
        shown = side.run(f"inspect {name}", "inspect", shards, *words, "--json").out
        seen |= json_facts(json.loads(shown), f"inspect {name}")
    side.run("export", "export", "--shards", shards, "-o", "made/export")
    same = ("--root", "given/corpus", "--keep-audio", "--shard-size", "2MB", "--workers", "1")
    fewer = ("--include", "1_*", "--allow-removal", "--force")
    shutil.copytree(side.folder / shards, outputs / "fewer")
    side.run("preprocess fewer", "preprocess", *same, "--out", "made/fewer", *fewer)
    side.contract = contract_version(outputs / "fewer")
    shutil.copytree(side.folder / shards, outputs / "updated")
    if side.contract == contract_version(outputs / "updated"):  # a set of another version is not updated
        side.run("preprocess again", "preprocess", *same, "--out", "made/updated")
    given = ("--checkpoint", "given/run", "--steps", "2", "--shards", shards, "--key", _LABELS[0])
    side.run("generate earlier", "generate", *given, "--task", "a2g", "-o", "made/from-earlier")
    resumed = _trained(_resume(side, side.folder / "given/half", "from-half"), "resumed")
    return resumed | {
        "verify and inspect": seen,
        "exported files": file_facts(outputs / "export"),
        "shards of fewer recordings": content_facts(outputs / "fewer"),
        f"{BYTES_OF} shards of fewer recordings": file_facts(outputs / "fewer"),
        "updated shards": file_facts(outputs / "updated"),
        "generated": file_facts(outputs / "from-earlier", {".json"}),
    }


STEPS: Final = (
    Step("shards", _make_corpora, ("corpus", "other", "small", "many")),
    Step("shards", _make_shards, ("shards-synthetic", "shards-small")),
    Step("losses", _train, ("run", "half")),
    Step("generated", _generate),
    Step("codes", _find_codes),
    Step("earlier", _read_earlier),
)
