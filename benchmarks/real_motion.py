r"""Compares the smoothness and the amount of generated motion with the person's motion, on held-out real recordings.

    python benchmarks/real_motion.py --recordings ../shared/beat2_sample ../shared/beat2_more --folder motion \
        --steps 600 --variant default - --variant noise NOISE.yaml

Each variant is a recipe of `omniges train` (``-``: the defaults). Each variant trains `tiny` with the same seeds and
numbers of steps on all of 2_scott_0_1_1 and the first 30 s of 2_scott_0_2_2. The rest of 2_scott_0_2_2 is held out. Its
audio and its text are the conditions for generated gesture, with the same noise for all variants. The Markdown table
has metrics of the generated motion, divided by those of the person, as means over seeds and samples; ± is the standard
deviation over seeds. Existing files in the folder are kept and used. Other flags are passed to `omniges train`, such as
``--batch-size 16`` or ``--max-minutes 8``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from jaw_eyes import HELD_OUT, prepare
from reality import command

from omniges.features.body import GENERIC
from omniges.features.gesture import JOINT_NAMES, POSE_PARTS, MotionArrays, motion_from_gesture
from omniges.generation.pipeline import OmnigesPipeline
from omniges.metrics.gesture import foot_skate, jerk, joint_speeds
from omniges.shards.reader import ShardFolder

F64 = npt.NDArray[np.float64]

TASKS: Final = ("a2g", "t2g")
_UPPER, _HANDS = list(POSE_PARTS["upper"]), list(POSE_PARTS["hands"])
_WRISTS: Final = [JOINT_NAMES.index("left_wrist"), JOINT_NAMES.index("right_wrist")]
FIGURES: Final = ("jerk", "foot skate", "speed of upper body", "speed of hands", "expressions' changes", "spread")


def figures_of(motion: MotionArrays) -> dict[str, float]:
    """Return the metrics `FIGURES` of one motion, in metres and seconds; expressions change per frame."""
    placed = GENERIC.joints(motion.poses, motion.trans)
    wrists = (placed[:, _WRISTS] - placed[:, :1]).reshape(len(placed), -1)
    hands = placed[:, _HANDS] - np.repeat(placed[:, _WRISTS], len(_HANDS) // 2, axis=1)
    return {
        "jerk": jerk(placed).value,
        "foot skate": foot_skate(placed).value,
        "speed of upper body": float(joint_speeds(placed[:, _UPPER] - placed[:, :1]).mean()),
        "speed of hands": float(joint_speeds(hands).mean()),
        "expressions' changes": float(np.abs(np.diff(motion.expressions, axis=0)).mean()),
        "spread": float(wrists.std(axis=0).mean()),
    }


def generated_figures(run: Path, shards: Path, task: str, samples: int, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Generate the held-out clip; return the mean of each metric, divided by its value in the recording."""
    source = ShardFolder(shards)
    clip = source.sample(source.row(HELD_OUT))
    pipeline = OmnigesPipeline.from_pretrained(run)
    condition = {"audio": clip.audio, "audio_rate_hz": 16_000} if task == "a2g" else {"text": clip.words}
    seconds = clip.row.ticks / 10
    began_s = time.process_time()
    found = pipeline(
        task, **condition, seconds=seconds, speaker=clip.row.speaker, num_samples=samples, seed=1, **sampling
    )
    spent_s = time.process_time() - began_s
    true = figures_of(motion_from_gesture(clip.gesture))
    own = [figures_of(sample.motion()) for sample in found.samples]
    ratios = {name: float(np.mean([one[name] for one in own])) / true[name] for name in FIGURES}
    return ratios | {"CPU s to generate": spent_s}


def train(folder: Path, name: str, recipe: Path | None, seed: int, flags: Sequence[object]) -> Path:
    """Train one variant, unless its run exists; return the folder of the run."""
    run = folder / f"{name}-{seed}"
    if not (run / "checkpoints").exists():
        of_recipe = [] if recipe is None else ["--recipe", recipe]
        limits = ["--preset", "tiny", "--seed", seed, "--validation-steps", 0, *flags]
        command("train", "--shards", folder / "shards", "--output-dir", run, *of_recipe, *limits)
    return run


def table(rows: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Return a Markdown table: one row for each variant and task."""
    metrics = list(dict.fromkeys(metric for own in rows.values() for metric in own[0]))
    lines = ["| | " + " | ".join(metrics) + " |", "|---" + "|---:" * len(metrics) + "|"]
    for name, own in rows.items():
        cells = [_cell([one[metric] for one in own]) for metric in metrics]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
    return f"{np.mean(values):.3g}{spread}"


def main() -> None:
    """Train the variants, generate and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--recordings", type=Path, nargs="+", required=True, help="folders that contain both recordings"
    )
    parser.add_argument("--folder", type=Path, required=True, help="folder for corpus, shards and runs")
    parser.add_argument("--variant", nargs=2, action="append", metavar=("NAME", "RECIPE"), help="recipe, or - for none")
    parser.add_argument("--steps", type=int, help="training steps; without it, pass --max-minutes for omniges train")
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[0],
        help="seeds of training; each gives one model per variant (default: 0)",
    )
    parser.add_argument(
        "--samples", type=int, default=4, help="generated samples of each model and task (default: %(default)s)"
    )
    parser.add_argument(
        "--sampling", type=json.loads, default={}, help="arguments of OmnigesPipeline calls, as a JSON object"
    )
    asked, flags = parser.parse_known_args()
    if not (asked.folder / "shards").exists():
        prepare(asked.recordings, asked.folder)
    limit = [] if asked.steps is None else ["--max-train-steps", asked.steps]
    rows: dict[str, list[dict[str, float]]] = {}
    for name, recipe in asked.variant or [("default", "-")]:
        for seed in asked.seeds:
            run = train(asked.folder, name, None if recipe == "-" else Path(recipe), seed, [*limit, *flags])
            for task in TASKS:
                found = generated_figures(run, asked.folder / "shards", task, asked.samples, asked.sampling)
                rows.setdefault(f"{name}, {task}", []).append(found)
    print(table(rows))


if __name__ == "__main__":
    main()
