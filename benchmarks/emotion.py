"""Measures whether the requested emotion determines the pose, with a synthetic corpus of eight emotions.

    python benchmarks/emotion.py --folder emotion --minutes 5

The program writes a corpus in which each emotion has its own idle pose. It preprocesses the corpus, and trains
``--preset tiny --condition-streams emotion`` with the command line. Then the command `generate` generates gesture from
the audio of each held-out clip, once for every emotion, with the same audio, seed and speaker. A linear discriminant
analysis of the train recordings recognizes the emotion of a result from its mean pose. It also classifies the
recordings of the held-out clips, which shows how reliable the score is. Chance is one in eight.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from omniges.features.gesture import gesture_from_motion
from omniges.features.timebase import FRAME_RATE_HZ
from omniges.formats.npz import decode_motion
from omniges.shards.reader import ShardFolder

BODY = slice(0, 78)
"""Channels of the upper body, which show the idle pose."""
F64 = npt.NDArray[np.float64]


def omniges(*arguments: object) -> None:
    """Run an omniges command."""
    subprocess.run([sys.executable, "-m", "omniges.cli", *map(str, arguments)], check=True, stdout=sys.stderr)


def pose_of(gesture: npt.NDArray[Any]) -> F64:
    """Return the mean channels of the upper body over time."""
    return np.asarray(gesture[:, BODY].mean(axis=0, dtype=np.float64))


@dataclass(frozen=True)
class Telling:
    """Classifier of emotions by poses: linear discriminant analysis of the train recordings' windows."""

    means: Mapping[str, F64]
    precision: F64  # inverse covariance of poses around the mean of their emotion

    @classmethod
    def learn(cls, shards: ShardFolder, frames: int) -> Telling:
        """Learn from all windows of the train recordings; a window has `frames` frames."""
        poses: dict[str, list[F64]] = {}
        for row in shards.rows:
            if row.split == "train":
                gesture = shards.gesture(row).gesture
                starts = range(0, len(gesture) - frames + 1, frames)
                poses.setdefault(row.labels["emotion"], []).extend(pose_of(gesture[k : k + frames]) for k in starts)
        means = {name: np.mean(own, axis=0) for name, own in sorted(poses.items())}
        apart = np.concatenate([np.array(own) - means[name] for name, own in poses.items()])
        covariance = apart.T @ apart / len(apart)
        ridge = 0.01 * np.trace(covariance) / len(covariance)
        return cls(means, np.linalg.inv(covariance + ridge * np.eye(len(covariance))))

    def emotion(self, pose: F64) -> str:
        """Return the emotion whose mean pose is nearest (Mahalanobis distance)."""

        def distance(name: str) -> float:
            apart = pose - self.means[name]
            return float(apart @ self.precision @ apart)

        return min(self.means, key=distance)


def prepare(folder: Path, clips: int, seconds: float) -> None:
    """Write the corpus and the shards."""
    omniges(
        "sample-corpus", folder / "corpus", "--clips", clips, "--seconds", seconds, "--emotions", 8, "--speakers", 2
    )
    omniges("preprocess", "--root", folder / "corpus", "--output-dir", folder / "shards")


def train(folder: Path, minutes: float, window_ticks: int, batch: int, tasks: str) -> None:
    """Train with the command line, without validation."""
    recipe = folder / "recipe.yaml"
    shares = ", ".join(f"{task}: 1" for task in tasks.split(","))
    recipe.write_text(f"flow: {{shares: {{{shares}}}}}\n" if tasks != "all" else "preset: tiny\n")
    omniges(
        *("train", "--recipe", recipe, "--shards", folder / "shards", "--output-dir", folder / "run"),
        *("--condition-streams", "emotion", "--max-minutes", minutes, "--window-ticks", window_ticks),
        *("--batch-size", batch, "--validation-steps", 0, "--num-workers", 1),
        *("--lr-warmup-steps", 20, "--preset", "tiny"),
    )


def score(folder: Path, seconds: float, steps: int) -> dict[str, Any]:
    """Generate each held-out clip with each emotion; count the results that show the requested emotion."""
    shards = ShardFolder(folder / "shards")
    frames = round(seconds * FRAME_RATE_HZ)
    telling = Telling.learn(shards, frames)
    held_out = [row for row in shards.rows if row.split != "train"]
    recorded = [telling.emotion(pose_of(shards.gesture(row).gesture[:frames])) for row in held_out]
    right = sum(name == row.labels["emotion"] for name, row in zip(recorded, held_out, strict=True))
    table = {}
    for emotion in telling.means:
        out = folder / "generated" / emotion
        omniges(
            *("generate", "--checkpoint", folder / "run", "--task", "a2g", "--shards", folder / "shards", "-o", out),
            *("--key", ",".join(row.key for row in held_out), "--condition", f"emotion={emotion}", "--steps", steps),
            *("--seconds", seconds, "--overwrite"),
        )
        found = []
        for row in held_out:
            motion = decode_motion((out / f"{row.key}.npz").read_bytes())
            clip = gesture_from_motion(motion.poses, motion.expressions, motion.trans)
            found.append(telling.emotion(pose_of(clip.gesture)))
        table[emotion] = sum(name == emotion for name in found)
    cases = len(telling.means) * len(held_out)
    return {
        "cases": cases,
        "share": sum(table.values()) / cases,
        "followed": table,
        "of_each": len(held_out),
        "recordings": right / len(held_out),
    }


def main() -> None:
    """Prepare, train and score; skip the preparation or the training if its folder exists."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder for corpus, shards, run and results")
    parser.add_argument("--minutes", type=float, default=5.0, help="training time in minutes (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=96, help="clips of the corpus (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="length of each clip in seconds (default: %(default)s)"
    )
    parser.add_argument(
        "--window-ticks", type=int, default=32, help="length of a window in ticks of 0.1 s (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=16, help="windows per training step (default: %(default)s)")
    parser.add_argument(
        "--tasks",
        default="all",
        help="tasks to train, separated by commas; a2g must be one of them (default: %(default)s)",
    )
    parser.add_argument(
        "--generate-seconds", type=float, default=3.2, help="length of each result in seconds (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=8, help="sampling steps (default: %(default)s)")
    asked = parser.parse_args()
    began = time.monotonic()
    if not (asked.folder / "shards" / "dataset.json").exists():
        prepare(asked.folder, asked.clips, asked.seconds)
    if not (asked.folder / "run").exists():
        train(asked.folder, asked.minutes, asked.window_ticks, asked.batch, asked.tasks)
    found = score(asked.folder, asked.generate_seconds, asked.steps) | {
        "minutes": asked.minutes,
        "seconds": round(time.monotonic() - began),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
