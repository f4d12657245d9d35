"""Compares faces and bodies of gesture streams with and without jaw and eyes: 415 against 424 channels.

    python benchmarks/jaw_eyes.py --recordings ../shared/beat2_sample ../shared/beat2_more --folder jaw --steps 600

Both settings train `tiny` on gesture from audio, with the same seeds and numbers of steps, on all of 2_scott_0_1_1 and
the first 30 s of 2_scott_0_2_2. The rest of 2_scott_0_2_2 is held out. Each model generates several samples of it. The
printed Markdown table has the mean over seeds and samples, and the standard deviation over seeds.

The jaw of a model with 415 channels does not move. Two rows give references for its error: a jaw that stays at its mean
over the train recordings, and a jaw that a linear map predicts from the generated expressions. In BEAT2, the jaw is
such a map of the expressions, because both come from the same capture. The table shows how well the map fits the
recording.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from reality import command, cut_recording, write_splits

from omniges.errors import DataError
from omniges.features.gesture import JAW_EYES_COLUMNS
from omniges.formats.npz import decode_motion
from omniges.metrics.gesture import expression_speeds, jaw_rotation_error, jaw_speeds, speed_correlation

F64 = npt.NDArray[np.float64]

PARTS: Final = {
    "2_scott_0_1_1": ("2_scott_0_1_1", 0, None, "train"),
    "2_scott_0_2_2": ("2_scott_0_2_2", 0, 30, "train"),
    "2_scott_0_3_3": ("2_scott_0_2_2", 30, None, "val"),
}
"""For each stem of the corpus: the source recording, start and end in seconds (None: its end), and the split."""
HELD_OUT: Final = "2_scott_0_3_3"
SETTINGS: Final = (415, 424)
ROW: Final = "generated"
_JAW: Final = slice(JAW_EYES_COLUMNS.start, JAW_EYES_COLUMNS.start + 3)
_BODY: Final = ("Fréchet gesture distance", "beat consistency", "L1 diversity", "jerk", "foot skate")
"""Metrics of `omniges evaluate` that the channels of jaw and eyes must not make worse."""


@dataclass(frozen=True)
class Motion:
    """Motion of a clip: poses (T, 165) in radians and expressions (T, 100)."""

    poses: F64
    expressions: F64

    @classmethod
    def read(cls, path: Path) -> Motion:
        """Read an NPZ file."""
        found = decode_motion(path.read_bytes())
        return cls(np.asarray(found.poses, np.float64), np.asarray(found.expressions, np.float64))

    def with_jaw(self, jaw: F64) -> Motion:
        """Return a copy with other angles of the jaw: axis-angles (T, 3) or (3,) in radians."""
        poses = self.poses.copy()
        poses[:, _JAW] = jaw
        return Motion(poses, self.expressions)


def prepare(recordings: Sequence[Path], folder: Path) -> None:
    """Write the corpus of `PARTS` and its shards."""
    english = folder / "corpus" / "beat_english_v2.0.0"
    for name, (stem, start_s, end_s, _) in PARTS.items():
        own = next(one for one in recordings if any(one.rglob(f"{stem}.npz")))
        cut_recording(own, stem, english, name, start_s, end_s)
    write_splits(english, {name: split for name, (*_, split) in PARTS.items()})
    command("preprocess", "--root", folder / "corpus", "--output-dir", folder / "shards", "--keep-audio")


def train_and_generate(folder: Path, channels: int, seed: int, steps: int, samples: int) -> None:
    """Train one model, generate the held-out part and score it."""
    run, out = folder / f"run-{channels}-{seed}", folder / f"results-{channels}-{seed}"
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps({"flow": {"shares": {"a2g": 1.0}}}), encoding="utf-8")
    flags: list[object] = ["--preset", "tiny", "--batch-size", 8, "--max-train-steps", steps, "--seed", seed]
    flags += ["--validation-steps", 0, "--checkpointing-steps", steps, "--gesture-channels", channels]
    command("train", "--shards", folder / "shards", "--output-dir", run, "--recipe", recipe, *flags)
    if not (scores := folder / f"scores-{channels}-{seed}.json").exists():
        held_out = ["--shards", folder / "shards", "--split", "val", "--tasks", "a2g", "--num-samples", samples]
        kept = ["--work-dir", out, "--format", "json", "-o", scores]
        command("evaluate", "--checkpoint", run, *held_out, "--seed", seed, *kept)


def face_figures(found: Motion, true: Motion) -> dict[str, float]:
    """Return the metrics of jaw and expressions of one result; the jaw correlation is NaN if the jaw does not move."""
    frames = min(len(found.poses), len(true.poses))
    own, other = (Motion(one.poses[:frames], one.expressions[:frames]) for one in (found, true))
    figures = {"jaw rotation error (rad)": jaw_rotation_error(own.poses, other.poses).value}
    try:
        figures["jaw correlation"] = speed_correlation(jaw_speeds(own.poses), jaw_speeds(other.poses)).value
    except DataError:  # a jaw at rest
        figures["jaw correlation"] = float("nan")
    speeds = [expression_speeds(one.expressions) for one in (own, other)]
    figures["expression correlation"] = speed_correlation(*speeds).value
    figures["mean jaw speed, share of the recorded"] = float(
        jaw_speeds(own.poses).mean() / jaw_speeds(other.poses).mean()
    )
    return figures


def body_figures(scores: Path) -> dict[str, float]:
    """Return the metrics of the body that `evaluate` computed."""
    task = json.loads(scores.read_text("utf-8"))["tasks"]["a2g"]
    return {row["metric"]: row["value"] for row in task["figures"] if row["metric"] in _BODY and row["row"] == ROW}


def jaw_map(folder: Path) -> F64:
    """Fit a linear map (101, 3) from expressions and a constant to the jaw, on the train recordings.

    The fit leaves out directions in which recorded expressions hardly vary, because generated ones are noise there.
    """
    train = [name for name, (*_, split) in PARTS.items() if split == "train"]
    motions = [Motion.read(next((folder / "corpus").rglob(f"{name}.npz"))) for name in train]
    expressions = np.concatenate([one.expressions for one in motions])
    jaw = np.concatenate([one.poses[:, _JAW] for one in motions])
    return np.asarray(np.linalg.lstsq(_with_constant(expressions), jaw, rcond=1e-3)[0])


def _with_constant(expressions: F64) -> F64:
    return np.concatenate([expressions, np.ones((len(expressions), 1))], axis=1)


def figures_of(folder: Path, seeds: Sequence[int]) -> dict[str, list[dict[str, float]]]:
    """Return the metrics for each column of the table: one dictionary per seed."""
    true = Motion.read(next((folder / "corpus").rglob(f"{HELD_OUT}.npz")))
    linear = jaw_map(folder)
    train = np.concatenate(
        [
            Motion.read(next((folder / "corpus").rglob(f"{name}.npz"))).poses[:, _JAW]
            for name, (*_, split) in PARTS.items()
            if split == "train"
        ]
    )
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in seeds:
        for channels in SETTINGS:
            out = folder / f"results-{channels}-{seed}"
            motions = [Motion.read(path) for path in sorted(out.rglob("*.npz"))]
            versions = {f"{channels} channels": motions}
            if channels == SETTINGS[0]:
                versions["415, jaw at its mean"] = [one.with_jaw(train.mean(axis=0)) for one in motions]
                mapped = [one.with_jaw(_with_constant(one.expressions) @ linear) for one in motions]
                versions["415, jaw from expressions"] = mapped
            for name, own in versions.items():
                faces = [face_figures(one, true) for one in own]
                mean = {metric: float(np.mean([face[metric] for face in faces])) for metric in faces[0]}
                body = body_figures(folder / f"scores-{channels}-{seed}.json") if own is motions else {}
                rows.setdefault(name, []).append(mean | body)
    read = true.with_jaw(_with_constant(true.expressions) @ linear)
    rows["recorded, jaw from expressions"] = [face_figures(read, true)]
    return rows


def table(rows: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Return a Markdown table: mean over seeds ± standard deviation."""
    metrics = list(dict.fromkeys(metric for own in rows.values() for metric in own[0]))
    lines = ["| | " + " | ".join(rows) + " |", "| --- " * (len(rows) + 1) + "|"]
    for metric in metrics:
        cells = [_cell([one[metric] for one in own if metric in one]) for own in rows.values()]
        lines.append(f"| {metric} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: Sequence[Any]) -> str:
    there = [value for value in values if value is not None and np.isfinite(value)]
    if not there:
        return "–"
    return f"{np.mean(there):.4g}" + (f" ± {np.std(there, ddof=1):.2g}" if len(there) > 1 else "")


def main() -> None:
    """Train, generate and print the table; outputs that exist already are used again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--recordings", type=Path, nargs="+", required=True, help="folders that contain both recordings"
    )
    parser.add_argument("--folder", type=Path, required=True, help="folder for corpus, shards, runs and results")
    parser.add_argument("--steps", type=int, default=600, help="training steps of each model (default: %(default)s)")
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[0, 1, 2],
        help="seeds of training; each gives one model per setting (default: 0 1 2)",
    )
    parser.add_argument("--samples", type=int, default=4, help="generated samples of each model (default: %(default)s)")
    asked = parser.parse_args()
    if not (asked.folder / "shards").exists():
        prepare(asked.recordings, asked.folder)
    for seed in asked.seeds:
        for channels in SETTINGS:
            train_and_generate(asked.folder, channels, seed, asked.steps, asked.samples)
    print(table(figures_of(asked.folder, asked.seeds)))


if __name__ == "__main__":
    main()
