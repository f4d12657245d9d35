"""Measures whether one model learns all six tasks from a synthetic corpus, in ten minutes on two cores.

    python benchmarks/six_tasks.py --folder six --minutes 10

The program writes a corpus (60 clips of 24 s, 12 words), preprocesses it, and trains ``--preset tiny`` with the command
line. Then it generates every task from windows of the test split and scores the results: words in gesture and sound by
template matching (`wordscore`), text by word error rate. For comparison, it scores the recordings, and the recordings
of other windows. At the end, the commands `generate` and `evaluate` process complete test clips. The scores of their
files are compared with the targets. ``--evaluate RUN`` scores the checkpoints of an existing run, without training.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from wordscore import Score, Templates, learn_templates, score_words, word_error_rate

from omniges.features.gesture import LAYOUT, gesture_from_motion, stream_channels
from omniges.features.text_tokens import TextTokenCodec
from omniges.formats.npz import decode_motion
from omniges.model.checkpoint import CHECKPOINTS, checkpoints, open_checkpoint
from omniges.model.flow import Conditioning, FlowModel, draw_noise, guided_clean, integrate, step_levels
from omniges.model.spec import load_model
from omniges.model.streams import StreamName
from omniges.model.tasks import TASKS, SamplingSettings
from omniges.shards.reader import SampleArrays, ShardFolder

SIX = ("t2g", "a2g", "t2a", "g2a", "g2t", "a2t")
RATES: Mapping[StreamName, float] = {"gesture": 30.0, "audio": 100.0}
FRAMES_PER_TICK: Mapping[StreamName, int] = {"gesture": 3, "audio": 10, "text": 1}


@dataclass(frozen=True)
class Window:
    """A window of a test clip: its arrays as shards store them, and words with times in seconds from its start."""

    arrays: dict[StreamName, Any]
    words: list[dict[str, Any]]
    speaker: str | None


def windows_of(clip: SampleArrays, codec: TextTokenCodec, ticks: int, channels: int) -> list[Window]:
    """Return the complete windows of a clip, without overlap, with the gesture channels that a model uses."""
    streams: dict[StreamName, Any] = {
        "gesture": stream_channels(clip.gesture, channels),
        "audio": clip.mel,
        "text": codec.encode(clip.words, clip.row.ticks).ids,
    }
    found = []
    for start in range(0, clip.row.ticks - ticks + 1, ticks):
        arrays = {
            name: array[start * FRAMES_PER_TICK[name] : (start + ticks) * FRAMES_PER_TICK[name]]
            for name, array in streams.items()
        }
        words = [w | {"start": w["start"] - start / 10, "end": w["end"] - start / 10} for w in clip.words]
        found.append(Window(arrays, words, clip.row.speaker))
    return found


def clips_of(shards: ShardFolder, split: str) -> list[SampleArrays]:
    """Return all samples of a split."""
    return [shards.sample(row) for row in shards.rows if row.split == split]


def templates_of(clips: Sequence[SampleArrays]) -> dict[StreamName, Templates]:
    """Learn templates of words in gesture and in audio from recorded clips."""
    return {
        "gesture": learn_templates([(clip.gesture.gesture, clip.words) for clip in clips], RATES["gesture"]),
        "audio": learn_templates([(clip.mel, clip.words) for clip in clips], RATES["audio"]),
    }


def generate(
    model: FlowModel, speakers: Sequence[str], windows: Sequence[Window], task: str, sampling: SamplingSettings
) -> list[np.ndarray[Any, Any]]:
    """Generate the target stream of a task for each window, from the window's condition streams."""
    numbers = {name: k + 1 for k, name in enumerate(speakers)}
    (target,) = TASKS[task].targets
    conditions = {
        name: torch.from_numpy(np.stack([window.arrays[name] for window in windows])) for name in TASKS[task].conditions
    }
    spoken_by = torch.tensor([numbers.get(window.speaker or "", 0) for window in windows])
    stream = model.stream(target)
    shape = (stream.count(len(windows[0].arrays["text"])), stream.channels)
    with torch.no_grad():
        given = {name: model.stream(name).tokens(arrays) for name, arrays in conditions.items()}
        noise = draw_noise(1, torch.arange(len(windows)), target, shape)
        clean_of = guided_clean(model, Conditioning(given, spoken_by), (target,), sampling.guidance)
        generated = integrate({target: noise}, step_levels(sampling), clean_of, sampling.solver)
        return list(stream.arrays(generated[target]).numpy())


def score_task(
    task: str,
    generated: Sequence[np.ndarray[Any, Any]],
    windows: Sequence[Window],
    templates: Mapping[StreamName, Templates],
    codec: TextTokenCodec,
) -> float:
    """Return the share of recognized words, or for text the word error rate."""
    (target,) = TASKS[task].targets
    if target == "text":
        found = [[word.word for word in codec.decode(ids)] for ids in generated]
        expected = [[word.word for word in codec.decode(window.arrays["text"])] for window in windows]
        return word_error_rate(zip(found, expected, strict=True))
    total = Score(0, 0)
    for array, window in zip(generated, windows, strict=True):
        total += score_words(templates[target], array[:, : LAYOUT.channels], window.words, RATES[target])
    return total.accuracy


def references(windows: Sequence[Window], templates: Mapping[StreamName, Templates], codec: TextTokenCodec) -> str:
    """Return as text the scores of the recordings (the best score) and of the next window's recordings (chance)."""
    lines = []
    for task in ("t2g", "t2a", "g2t"):
        (target,) = TASKS[task].targets
        true = [window.arrays[target] for window in windows]
        full = score_task(task, true, windows, templates, codec)
        chance = score_task(task, [*true[1:], true[0]], windows, templates, codec)
        lines.append(f"{target}: recordings {full:.3f}, those of another window {chance:.3f}")
    return "; ".join(lines)


def evaluate(run: Path, shards: Path, steps: int | None) -> list[dict[str, Any]]:
    """Return the scores of every checkpoint of a run on the test split."""
    source = ShardFolder(shards)
    templates = templates_of(clips_of(source, "train"))
    test = clips_of(source, "test")
    rows: list[dict[str, Any]] = []
    for path in reversed(checkpoints(run / CHECKPOINTS)):
        saved = open_checkpoint(path)
        model, identity = load_model(saved)
        codec = TextTokenCodec(identity.tokenizer)
        like = identity.window_ticks, identity.config.gesture_channels
        windows = [window for clip in test for window in windows_of(clip, codec, *like)]
        if not rows:
            print(f"{len(windows)} windows of {len(test)} test clips; {references(windows, templates, codec)}")
        began = time.monotonic()
        sampling = SamplingSettings(num_inference_steps=steps)
        generated = {
            task: generate(model, identity.speakers, windows, task, sampling.for_task(TASKS[task], identity.guidance))
            for task in SIX
        }
        scores = {task: score_task(task, generated[task], windows, templates, codec) for task in SIX}
        minutes = saved.document("state.json")["elapsed_s"] / 60
        rows.append({"step": saved.step, "minutes": minutes, "scores": scores})
        shown = ", ".join(f"{task} {score:.3f}" for task, score in scores.items())
        print(f"step {saved.step:6d}, {minutes:5.1f} min: {shown} ({time.monotonic() - began:.1f} s)", flush=True)
    return rows


def from_files(run: Path, shards: Path, folder: Path, steps: int | None) -> dict[str, float]:
    """Generate complete test clips with the command line, and return the scores of the files."""
    source = ShardFolder(shards)
    templates = templates_of(clips_of(source, "train"))
    test = clips_of(source, "test")
    generated = folder / "generated"
    shutil.rmtree(generated, ignore_errors=True)
    for task in SIX:
        words = ("--shards", shards, "--split", "test", "-o", generated / task, *(("--steps", steps) if steps else ()))
        command("generate", "--checkpoint", run, "--task", task, *words)
    report = folder / "evaluation.json"
    command("evaluate", generated, "--shards", shards, "--resamples", 200, "--format", "json", "-o", report)
    tasks = json.loads(report.read_text())["tasks"]
    scores = {}
    for task in SIX:
        (target,) = TASKS[task].targets
        if target == "text":
            scores[task] = next(f["value"] for f in tasks[task]["figures"] if f["metric"] == "word error rate")
            continue
        total = Score(0, 0)
        for clip in test:
            total += score_words(
                templates[target], read_generated(generated / task, clip.row.key), clip.words, RATES[target]
            )
        scores[task] = total.accuracy
    return scores


def read_generated(folder: Path, key: str) -> np.ndarray[Any, Any]:
    """Return the gesture channels of a generated NPZ, or a generated mel."""
    motion_file = folder / f"{key}.npz"
    if not motion_file.exists():
        mel: np.ndarray[Any, Any] = np.load(folder / f"{key}.mel.npy", allow_pickle=False)
        return mel
    motion = decode_motion(motion_file.read_bytes())
    return gesture_from_motion(motion.poses, motion.expressions, motion.trans).gesture


def draw(rows: Sequence[Mapping[str, Any]], run: Path, picture: Path) -> None:
    """Draw learning curves: recognized words, word error rates, and the loss of each task in the log."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, (shown, errors, losses) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for task in SIX:
        axis = errors if task in {"g2t", "a2t"} else shown
        axis.plot([row["minutes"] for row in rows], [row["scores"][task] for row in rows], marker=".", label=task)
    shown.axhline(0.97, color="grey", linestyle=":")
    errors.axhline(0.03, color="grey", linestyle=":")
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    curve = [row for row in log if row["event"] == "steps"]
    for task in SIX:
        points = [(row["step"], row["tasks"][task]["loss"]) for row in curve if task in row["tasks"]]
        losses.plot(*zip(*points, strict=True), label=task)
    shown.set(title="words recognized", xlabel="minutes of training", ylim=(0, 1.02))
    errors.set(title="word error rate", xlabel="minutes of training", ylim=(0, 1.5))
    losses.set(title="training loss", xlabel="step", yscale="log")
    for axis in (shown, errors, losses):
        axis.legend(fontsize=8)
    figure.savefig(picture, dpi=110)


def command(*words: object) -> None:
    """Run the installed command `omniges` with the given arguments."""
    subprocess.run([str(Path(sys.executable).with_name("omniges")), *map(str, words)], check=True)


def prepare(folder: Path, seed: int, minutes: float, extra: Sequence[str]) -> Path:
    """Prepare corpus, shards and a trained run in a folder; return the folder of the run."""
    corpus, shards, run = folder / "corpus", folder / "shards", folder / "run"
    if not corpus.exists():
        command("sample-corpus", corpus, "--clips", 60, "--seconds", 24, "--words", 12, "--seed", seed)
    command("preprocess", "--root", corpus, "--output-dir", shards)
    command(
        *("train", "--shards", shards, "--output-dir", run, "--preset", "tiny", "--max-minutes", minutes),
        *("--checkpointing-steps", 50, "--checkpoints-total-limit", 0, "--validation-steps", 0, *extra),
    )
    return run


def main() -> None:
    """Train unless a run is given, score and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("six"),
        help="folder for corpus, shards, run and results (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the corpus (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=10.0, help="training time in minutes (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="sampling steps (default: those of omniges generate)")
    parser.add_argument("--evaluate", type=Path, help="run to score on the shards of --folder, without training")
    arguments, extra = parser.parse_known_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    run = arguments.evaluate or prepare(folder, arguments.seed, arguments.minutes, extra)
    rows = evaluate(run, folder / "shards", arguments.steps)
    (folder / "scores.json").write_text(json.dumps(rows, indent=1))
    draw(rows, run, folder / "curves.png")
    last = from_files(run, folder / "shards", folder, arguments.steps)
    shown = ", ".join(f"{task} {score:.3f}" for task, score in last.items())
    print(f"complete test clips through generate and evaluate, from files: {shown}")
    met = all(last[task] >= 0.97 for task in SIX[:4]) and all(last[task] <= 0.03 for task in SIX[4:])
    print(
        f"targets (0.97 of words shown, word error rate 0.03): {'met' if met else 'NOT met'}; {folder / 'curves.png'}"
    )


if __name__ == "__main__":
    main()
