"""Measures the cost of generation and the effect of more steps: speed, quality, memory, window boundaries.

    python benchmarks/generate.py --run run --shards shards --folder generated

The inputs are a run that was trained on the synthetic corpus, and the shards of this corpus. The parts are:

* quality: scores of results for the test split, by solver and number of steps (2, 4, 8, 16, 32). The score of gesture
  and sound is the share of recognized words (`wordscore`); the score of text is the word error rate. Recordings and
  other clips are scored for comparison. The table also has the number of model evaluations per window. For gesture and
  sound, it has the distance from the result of 64 steps of Heun's method with the same noise, in standard deviations;
* speed: seconds that the model needs for a minute of gesture from audio, by number of steps and of inputs at once;
* memory: peak memory of the command ``generate`` for 1 and 10 minutes of audio and of gesture;
* seams: velocity and acceleration of motion that was generated for complete clips (``--seam-shards``). Frames at the
  start, the end and the middle of windows are compared with all other frames, also for the recordings;
* stutter: gain of generated over recorded velocity, for some of these clips, by number of steps and last noise level.
  The gain between ticks and the gain within ticks differ if the motion stutters at 10 Hz.

Measure on a machine that does no other work. ``--only`` selects some of the parts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import soundfile
import torch
from machine import describe_machine
from measure import run_measured
from six_tasks import clips_of, references, score_task, templates_of, windows_of
from six_tasks import generate as made_windows

from omniges.features.body import GENERIC
from omniges.features.gesture import LAYOUT
from omniges.features.text_tokens import TextTokenCodec
from omniges.features.timebase import FRAMES_PER_TICK, SAMPLE_RATE_HZ, TICKS_PER_SECOND
from omniges.generation.audio import Held, read_log_mel
from omniges.generation.long_form import Timeline, WindowSettings, sample_timelines, window_starts
from omniges.generation.sampler import Loaded, load
from omniges.generation.writers import valid_motion
from omniges.metrics.gesture import SeamComparison, SeamScore, seam_score
from omniges.model.tasks import SamplingSettings, Solver
from omniges.shards.reader import ShardFolder

STEPS: Final = (2, 4, 8, 16, 32)
SOLVERS: Final[tuple[Solver, ...]] = ("euler", "heun", "dpm++")
TASKS: Final = ("t2g", "a2g", "t2a", "g2a", "a2t", "g2t")
PARTS: Final = ("quality", "speed", "memory", "seams", "stutter")

F64 = npt.NDArray[np.float64]


def quality(loaded: Loaded, shards: ShardFolder, tasks: Sequence[str]) -> dict[str, Any]:
    """Score every task for every solver and number of steps, over the complete windows of the test split."""
    templates = templates_of(clips_of(shards, "train"))
    ticks, codec = loaded.identity.window_ticks, TextTokenCodec(loaded.identity.tokenizer)
    channels = loaded.identity.config.gesture_channels
    windows = [w for clip in clips_of(shards, "test") for w in windows_of(clip, codec, ticks, channels)]
    print(f"{len(windows)} windows; {references(windows, templates, codec)}", flush=True)
    rows = []

    def made_by(sampling: SamplingSettings) -> dict[str, list[npt.NDArray[Any]]]:
        model, speakers = loaded.model, loaded.identity.speakers
        return {task: made_windows(model, speakers, windows, task, sampling) for task in tasks}

    exact = made_by(SamplingSettings(num_inference_steps=64, solver="heun"))
    for solver, steps in itertools.product(SOLVERS, STEPS):
        sampling = SamplingSettings(num_inference_steps=steps, solver=solver)
        generated = made_by(sampling)
        scores = {task: score_task(task, generated[task], windows, templates, codec) for task in tasks}
        apart = {
            task: distance(loaded, task, generated[task], exact[task]) for task in tasks if not task.endswith("2t")
        }
        row = {"solver": solver, "steps": steps, "evaluations": evaluations(solver, steps)}
        rows.append(row | {"scores": scores, "distance": apart})
        shown = "  ".join(f"{task} {score:.3f} ({apart.get(task, 0):.3f})" for task, score in scores.items())
        print(f"{solver:6s} {steps:3d} steps, {row['evaluations']:3d} evaluations: {shown}", flush=True)
    return {"rows": rows}


def evaluations(solver: Solver, steps: int) -> int:
    """Return the number of model evaluations for a window, without guidance."""
    return 2 * steps - 1 if solver == "heun" else steps


def distance(
    loaded: Loaded, task: str, generated: Sequence[npt.NDArray[Any]], exact: Sequence[npt.NDArray[Any]]
) -> float:
    """Return the root mean square difference between the normalised tokens of generated and exact arrays."""
    stream = loaded.model.stream("gesture" if task.endswith("g") else "audio")
    found, wanted = (stream.tokens(torch.from_numpy(np.stack(arrays))) for arrays in (generated, exact))
    return float((found - wanted).square().mean().sqrt())


def minute_of(shards: ShardFolder, seconds: int) -> npt.NDArray[np.float32]:
    """Return audio (N,) of a number of seconds: all clips of the shards one after the other, repeated if necessary."""
    found = [wave for row in shards.rows if (wave := shards.waveform(row)) is not None]
    if not found:
        sys.exit(f"{shards.folder}: kept audio expected: preprocess with --keep-audio")
    repeats = -(-seconds * SAMPLE_RATE_HZ // sum(map(len, found)))
    return np.concatenate(found * repeats)[: seconds * SAMPLE_RATE_HZ]


def speed(loaded: Loaded, mel: Held) -> dict[str, Any]:
    """Measure the seconds that the model needs for a minute of gesture, by number of steps and of inputs at once."""
    rows = []
    for steps, inputs in [*((steps, 1) for steps in STEPS), *((20, count) for count in (1, 2, 4, 8))]:
        timelines = [timeline_of(mel, 60 * TICKS_PER_SECOND, sample) for sample in range(inputs)]
        began = time.perf_counter()
        for _ in sampled(loaded, timelines, SamplingSettings(num_inference_steps=steps)):
            pass
        seconds = (time.perf_counter() - began) / inputs
        rows.append({"steps": steps, "inputs": inputs, "seconds_per_minute": round(seconds, 3)})
        print(f"{steps:3d} steps, {inputs} at once: {seconds:.2f} s per minute", flush=True)
    return {"rows": rows}


def timeline_of(mel: Held, ticks: int, sample: int) -> Timeline:
    """Return a timeline to generate gesture from audio, for an unknown speaker."""
    return Timeline(ticks, {"audio": lambda first, count: mel.rows(10 * first, 10 * (first + count))}, 0, sample)


def sampled(loaded: Loaded, timelines: Sequence[Timeline], sampling: SamplingSettings, windows: int = 6) -> Any:
    """Return an iterator over the generated parts of timelines."""
    window = loaded.identity.window_ticks
    cut = WindowSettings(window_ticks=window, overlap_ticks=window // 4, windows=windows)
    return sample_timelines(loaded.model, timelines, ("gesture",), 0, cut, sampling)


def memory(run: Path, audio: npt.NDArray[np.float32], folder: Path, steps: int) -> dict[str, Any]:
    """Measure memory and time of the command for 1 and 10 minutes.

    Gesture and text are generated from audio, then audio is generated from this gesture.
    """
    command = [str(Path(sys.executable).with_name("omniges")), "generate", "--checkpoint", str(run)]
    command += ["--steps", str(steps), "--overwrite"]
    rows = []
    for minutes in (1, 10):
        name = f"audio{minutes}"
        source = folder / f"{name}.wav"
        soundfile.write(source, np.resize(audio, minutes * 60 * SAMPLE_RATE_HZ), SAMPLE_RATE_HZ)
        motion = folder / "a2g" / f"{name}.npz"
        for task, given in (("a2g", ("--audio", source)), ("a2t", ("--audio", source)), ("g2a", ("--gesture", motion))):
            used = run_measured(
                [*command, "--task", task, *map(str, given), "-o", str(folder / task)], folder / f"{task}{minutes}"
            )
            rows.append(
                {"task": task, "minutes": minutes, "peak_mb": round(used.main_mb), "wall_s": round(used.wall_s, 1)}
            )
            print(f"{task}, {minutes} min: peak {used.main_mb:.0f} MB, {used.wall_s:.1f} s", flush=True)
    return {"rows": rows}


def seams(loaded: Loaded, folders: Sequence[Path], steps: int) -> dict[str, Any]:
    """Compare motion at window boundaries with motion elsewhere, in generated and in recorded complete clips.

    If recorded motion is fast at the same places, the clip is the cause. If the middle of windows is as fast, the
    boundaries are not the cause. `generate` samples six windows together. This function also samples single windows.
    """
    rows = []
    for folder, per_stretch in itertools.product(folders, (6, 1)):
        compared: dict[tuple[str, str, str], list[SeamComparison]] = {}
        shards = ShardFolder(folder)
        for row in shards.rows:
            clip = shards.sample(row)
            timelines = [timeline_of(Held(clip.mel), row.ticks, 0)]
            generated = whole(sampled(loaded, timelines, SamplingSettings(num_inference_steps=steps), per_stretch))
            for whose, gesture in (("made", generated), ("recorded", clip.gesture.gesture)):
                for what, score in at_borders(gesture, row.ticks, loaded.identity.window_ticks).items():
                    compared.setdefault((what, whose, "velocity"), []).append(score.velocity)
                    compared.setdefault((what, whose, "acceleration"), []).append(score.acceleration)
        for (what, whose, order), found in compared.items():
            counts = np.array([len(one.at_seams) for one in found])
            above = np.array([one.above for one in found]) * counts
            share = above.sum() / counts.sum()
            error = np.sqrt(np.square(above - share * counts).sum()) / counts.sum()  # of a ratio over clips
            row_of = {"shards": folder.name, "windows_per_stretch": per_stretch, "windows": what, "motion": whose}
            figures = {"above_percent": round(100 * share, 2), "standard_error": round(100 * error, 2)}
            figures["clips_with_none_percent"] = round(100 * float((above == 0).mean()), 1)
            rows.append(row_of | {"what": order, "values": int(counts.sum())} | figures)
            print(json.dumps(rows[-1]), flush=True)
    return {"rows": rows}


def at_borders(gesture: npt.NDArray[np.float32], ticks: int, window: int) -> dict[str, SeamScore]:
    """Return `seam_score` of a clip at the starts, the ends and the middles of windows that overlap by a quarter."""
    starts = window_starts(ticks, window, window // 4)
    joints = joints_of(gesture[: FRAMES_PER_TICK * ticks])
    begin, end = starts[1:], [start + window for start in starts[:-1]]
    middle = [start + window // 2 for start in starts]
    places = {"begin": begin, "end": end, "either": begin + end, "middle": middle}
    return {what: seam_score(joints, [FRAMES_PER_TICK * tick for tick in of]) for what, of in places.items()}


def stutter(loaded: Loaded, folders: Sequence[Path], clips: int = 16) -> dict[str, Any]:
    """Return the gain <m, r> / <r, r> between and within ticks, for generated (m) and recorded (r) joint velocities."""
    rows = []
    for folder, steps, last in itertools.product(folders, (1, 5, 20, 60), (0.0, 0.3)):
        shards = ShardFolder(folder)
        sums = np.zeros((FRAMES_PER_TICK, 2))
        for row in shards.rows[:clips]:
            clip, frames = shards.sample(row), FRAMES_PER_TICK * row.ticks
            timelines = [timeline_of(Held(clip.mel), row.ticks, 0)]
            generated = whole(sampled(loaded, timelines, SamplingSettings(num_inference_steps=steps, sigma_min=last)))
            m, r = (np.diff(joints_of(gesture[:frames]), axis=0) for gesture in (generated, clip.gesture.gesture))
            for place in range(FRAMES_PER_TICK):
                at = slice((place - 1) % FRAMES_PER_TICK, None, FRAMES_PER_TICK)  # velocity 0 is from frame 0 to 1
                sums[place] += (m[at] * r[at]).sum(), np.square(r[at]).sum()
        border, *within = (sums[:, 0] / sums[:, 1]).round(3).tolist()
        rows.append({"steps": steps, "last_level": last, "at_borders": border, "within": within})
        print(json.dumps(rows[-1]), flush=True)
    return {"rows": rows}


def whole(parts: Iterable[tuple[int, dict[str, torch.Tensor], int]]) -> npt.NDArray[np.float32]:
    """Join the generated parts of one timeline to gesture channels (T, 415), without jaw and eyes."""
    return np.concatenate([arrays["gesture"].numpy()[:, : LAYOUT.channels] for _, arrays, _ in parts])


def joints_of(gesture: npt.NDArray[np.float32]) -> F64:
    """Convert gesture channels to joint positions (T, 55, 3) in metres."""
    motion = valid_motion(gesture, np.zeros(2))
    blocks = range(0, len(gesture), 2000)
    return np.concatenate([GENERIC.joints(motion.poses[k : k + 2000], motion.trans[k : k + 2000]) for k in blocks])


def main() -> None:
    """Measure the selected parts, print the results and write them to generate.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--run", type=Path, required=True, help="folder of a run that was trained on the synthetic corpus"
    )
    parser.add_argument("--shards", type=Path, required=True, help="shards of this corpus")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("generated"),
        help="folder for generated files and generate.json (default: %(default)s)",
    )
    parser.add_argument(
        "--seam-shards",
        type=Path,
        action="append",
        default=[],
        help="shards with clips of a minute, for seams and stutter",
    )
    parser.add_argument("--only", choices=PARTS, action="append", help="measure only this part; may be repeated")
    parser.add_argument(
        "--steps", type=int, default=20, help="sampling steps for memory and seams (default: %(default)s)"
    )
    parser.add_argument(
        "--tasks", default=",".join(TASKS), help="tasks for quality, separated by commas (default: %(default)s)"
    )
    arguments = parser.parse_args()
    parts: Sequence[str] = arguments.only or PARTS
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    shards, loaded = ShardFolder(arguments.shards), load(arguments.run)
    found: dict[str, Any] = {"machine": describe_machine(folder), "torch_threads": torch.get_num_threads()}
    audio = minute_of(shards, 600)
    if "quality" in parts:
        found["quality"] = quality(loaded, shards, arguments.tasks.split(","))
    if "speed" in parts:
        found["speed"] = speed(loaded, mel_of(audio[: 60 * SAMPLE_RATE_HZ], folder))
    if "memory" in parts:
        found["memory"] = memory(arguments.run, audio, folder, arguments.steps)
    if "seams" in parts:
        found["seams"] = seams(loaded, arguments.seam_shards, arguments.steps)
    if "stutter" in parts:
        found["stutter"] = stutter(loaded, arguments.seam_shards)
    (folder / "generate.json").write_text(json.dumps(found, indent=1))
    print(f"{folder / 'generate.json'}")


def mel_of(audio: npt.NDArray[np.float32], folder: Path) -> Held:
    """Write a waveform to a file, and return its mel spectrogram as `generate` reads it."""
    path = folder / "read.wav"
    soundfile.write(path, audio, SAMPLE_RATE_HZ)
    loaded = read_log_mel(path, None)
    return Held(loaded.mel.rows(0, 10 * loaded.ticks))


if __name__ == "__main__":
    main()
