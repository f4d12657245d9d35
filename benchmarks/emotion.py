"""Does the emotion that is asked for decide the pose? Eight emotions, each with an idle pose, five minutes of tiny.

    python benchmarks/emotion.py --folder emotion --minutes 5

writes a corpus of eight emotions, preprocesses it and trains ``--preset tiny --condition-streams emotion`` through the
command line. Then the command `generate` makes gesture from the audio of each held-out clip once for every emotion,
with all else equal: audio, seed and speaker. The pose of a result is the emotion whose mean pose in the train split is
nearest to the result's mean pose. The recordings of the held-out clips are told in the same way, to show that the
measure is right; chance is one in eight.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from omniges.features.gesture import gesture_from_motion
from omniges.features.timebase import FRAME_RATE_HZ
from omniges.formats.npz import decode_motion
from omniges.shards.reader import ShardFolder

BODY = slice(0, 78)
"""Channels of the upper body, which carry the idle pose."""
F64 = npt.NDArray[np.float64]


def omniges(*arguments: object) -> None:
    """Run a command of ours."""
    subprocess.run([sys.executable, "-m", "omniges.cli", *map(str, arguments)], check=True, stdout=sys.stderr)


def pose_of(gesture: npt.NDArray[Any]) -> F64:
    """Mean channels of the upper body over time."""
    return np.asarray(gesture[:, BODY].mean(axis=0, dtype=np.float64))


def poses_by_emotion(shards: ShardFolder) -> dict[str, F64]:
    """Mean pose of each emotion's clips of the train split."""
    poses: dict[str, list[F64]] = {}
    for row in shards.rows:
        if row.split == "train":
            poses.setdefault(row.labels["emotion"], []).append(pose_of(shards.gesture(row).gesture))
    return {name: np.mean(own, axis=0) for name, own in sorted(poses.items())}


def told(pose: F64, known: Mapping[str, F64]) -> str:
    """The emotion whose mean pose is nearest."""
    return min(known, key=lambda name: float(np.linalg.norm(pose - known[name])))


def prepare(folder: Path, clips: int, seconds: float) -> None:
    """Corpus and shards."""
    omniges(
        "sample-corpus", folder / "corpus", "--clips", clips, "--seconds", seconds, "--emotions", 8, "--speakers", 2
    )
    omniges("preprocess", "--root", folder / "corpus", "--out", folder / "shards")


def train(folder: Path, minutes: float, window_ticks: int, batch: int) -> None:
    """The run, without validation, which is no part of what is measured."""
    omniges(
        *("train", "--shards", folder / "shards", "--output-dir", folder / "run", "--preset", "tiny"),
        *("--condition-streams", "emotion", "--max-minutes", minutes, "--window-ticks", window_ticks),
        *("--train-batch-size", batch, "--validation-steps", 0, "--num-workers", 1),
    )


def score(folder: Path, seconds: float, steps: int) -> dict[str, Any]:
    """Generate for every held-out clip and emotion, and count the poses that follow."""
    shards = ShardFolder(folder / "shards")
    known = poses_by_emotion(shards)
    held_out = [row for row in shards.rows if row.split != "train"]
    frames = round(seconds * FRAME_RATE_HZ)
    recorded = [told(pose_of(shards.gesture(row).gesture[:frames]), known) == row.labels["emotion"] for row in held_out]
    table = {}
    for emotion in known:
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
            found.append(told(pose_of(clip.gesture), known))
        table[emotion] = sum(name == emotion for name in found)
    cases = len(known) * len(held_out)
    return {
        "cases": cases,
        "share": sum(table.values()) / cases,
        "followed": table,
        "of_each": len(held_out),
        "recordings": sum(recorded) / len(recorded),
    }


def main() -> None:
    """Run what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="For corpus, shards, run and results.")
    parser.add_argument("--minutes", type=float, default=5.0, help="Of training.")
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--seconds", type=float, default=10.0, help="Of each clip.")
    parser.add_argument("--window-ticks", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--generate-seconds", type=float, default=3.2, help="Of each result.")
    parser.add_argument("--steps", type=int, default=10, help="Sampling steps.")
    asked = parser.parse_args()
    began = time.monotonic()
    if not (asked.folder / "shards" / "dataset.json").exists():
        prepare(asked.folder, asked.clips, asked.seconds)
    if not (asked.folder / "run").exists():
        train(asked.folder, asked.minutes, asked.window_ticks, asked.batch)
    found = score(asked.folder, asked.generate_seconds, asked.steps) | {
        "minutes": asked.minutes,
        "seconds": round(time.monotonic() - began),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
