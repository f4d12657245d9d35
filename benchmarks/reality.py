"""Measures what one minute of a real person can teach: training on 50 s, evaluation on 12 s that were held out.

    python benchmarks/reality.py --recordings ../shared/beat2_sample --folder reality --minutes 6

The recording 2_scott_0_1_1 is first cut into two recordings in BEAT2 layout: 0 to 50 s is the train split, 51 to 63 s
is the val split. A tiny model is trained on the train split with the command line. Then these values are measured on
both parts:

* losses of all six tasks at every checkpoint, with the same noise;
* correlation of the wrists in generated and recorded motion (Pearson), and, for comparison, with recorded motion that
  is shifted by half its length;
* word error rates.

The model memorizes one minute of data. The measurements show this: the train part has good scores, and the val part
does not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from omniges.features.body import GENERIC
from omniges.features.gesture import JOINT_NAMES, stream_channels
from omniges.features.text_tokens import TextTokenCodec
from omniges.formats.audio import decode_wav, encode_wav
from omniges.formats.npz import Motion, decode_motion, encode_motion
from omniges.formats.textgrid import WordInterval, decode_words, encode_words
from omniges.model.checkpoint import CHECKPOINTS, checkpoints, open_checkpoint
from omniges.model.draws import FlowSettings, draw_plan
from omniges.model.flow import FlowModel, Windows
from omniges.model.spec import ModelIdentity, load_model
from omniges.model.streams import STREAMS
from omniges.model.tasks import TASKS
from omniges.shards.reader import SampleArrays, ShardFolder

STEM: Final = "2_scott_0_1_1"
PARTS: Final = {"train": ("2_scott_0_1_1", 0, 50), "val": ("2_scott_0_2_2", 51, 63)}
SIX: Final = ("t2g", "a2g", "t2a", "g2a", "g2t", "a2t")
_DRAWS: Final = 64  # number of windows of a part, counted once for each noise
_WRISTS: Final = [JOINT_NAMES.index("left_wrist"), JOINT_NAMES.index("right_wrist")]


def cut_recording(recordings: Path, stem: str, folder: Path, name: str, start_s: int, end_s: int | None) -> None:
    """Write a part of a recording as a new recording in BEAT2 layout; without `end_s`, to the end of the recording."""
    motion = decode_motion(next(recordings.rglob(f"{stem}.npz")).read_bytes())
    wav = decode_wav(next(recordings.rglob(f"{stem}.wav")).read_bytes())
    words = decode_words(next(recordings.rglob(f"{stem}.TextGrid")).read_bytes()).words
    end_s = len(motion.poses) // 30 if end_s is None else end_s
    for kind in ("smplxflame_30", "wave16k", "textgrid"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    frames = slice(start_s * 30, end_s * 30)
    npz = encode_motion(
        motion.poses[frames],
        motion.expressions[frames],
        motion.trans[frames],
        motion.betas,
        gender=motion.gender,
        model=motion.model,
    )
    (folder / "smplxflame_30" / f"{name}.npz").write_bytes(npz)
    samples = np.asarray(wav.samples)[start_s * 16000 : end_s * 16000]
    (folder / "wave16k" / f"{name}.wav").write_bytes(encode_wav(samples, 16000, "pcm16"))
    inside = [
        WordInterval(word.word, word.start - start_s, word.end - start_s)
        for word in words
        if word.start >= start_s and word.end <= end_s
    ]
    (folder / "textgrid" / f"{name}.TextGrid").write_bytes(encode_words(inside, end_s - start_s))


def write_splits(folder: Path, splits: Mapping[str, str]) -> None:
    """Write a split list; `splits` maps stems to splits."""
    lines = ["id,type", *(f"{stem},{split}" for stem, split in splits.items())]
    (folder / "train_test_split.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def cut(recordings: Path, root: Path) -> None:
    """Write the recording as two recordings in BEAT2 layout, with their split list."""
    folder = root / "beat_english_v2.0.0"
    for name, start, end in PARTS.values():
        cut_recording(recordings, STEM, folder, name, start, end)
    write_splits(folder, {stem: split for split, (stem, _, _) in PARTS.items()})


def windows_of(sample: SampleArrays, codec: TextTokenCodec, identity: ModelIdentity, speaker: int) -> Windows:
    """Return all complete windows of a clip as a model reads them; each window is repeated for several noises.

    The windows overlap by half.
    """
    ticks, gesture = identity.window_ticks, stream_channels(sample.gesture, identity.config.gesture_channels)
    tokens = codec.encode(sample.words, sample.row.ticks).ids
    starts = range(0, sample.row.ticks - ticks + 1, ticks // 2)
    stacked = {
        "gesture": np.stack([gesture[3 * s : 3 * (s + ticks)] for s in starts]),
        "audio": np.stack([sample.mel[10 * s : 10 * (s + ticks)] for s in starts]),
        "text": np.stack([tokens[s : s + ticks] for s in starts]),
    }
    each = max(1, _DRAWS // len(starts))
    count = each * len(starts)
    arrays: dict[Any, torch.Tensor] = {
        name: torch.from_numpy(np.repeat(a, each, axis=0)) for name, a in stacked.items()
    }
    return Windows(arrays, torch.arange(count), torch.full((count,), speaker))


@torch.no_grad()
def losses(model: FlowModel, windows: Windows) -> dict[str, float]:
    """Return the loss of every task; noise and noise levels are the same for every model."""
    found = {}
    for task in SIX:
        settings = FlowSettings(shares={task: 1.0}, condition_dropout=0.0, speaker_dropout=0.0)
        plan = draw_plan(settings, 7, windows.positions.numpy())
        (target,) = TASKS[task].targets
        each = model(windows, plan, settings, 7).each[:, STREAMS.index(target)]
        found[task] = float(each.mean())
    return found


def wrists(motion: Motion) -> npt.NDArray[np.float64]:
    """Return the positions (T, 6) of both wrists relative to the pelvis, in metres."""
    joints = GENERIC.joints(np.asarray(motion.poses, np.float64), np.asarray(motion.trans, np.float64))
    return (joints[:, _WRISTS] - joints[:, :1]).reshape(len(joints), 6)


def follows(found: npt.NDArray[np.float64], true: npt.NDArray[np.float64]) -> float:
    """Return Pearson's correlation of two trajectories (T, 6), as a mean over the six coordinates."""
    return float(np.mean([np.corrcoef(found[:, k], true[:, k])[0, 1] for k in range(found.shape[1])]))


def command(*words: object) -> None:
    """Run the installed command `omniges` with the given arguments."""
    subprocess.run([str(Path(sys.executable).with_name("omniges")), *map(str, words)], check=True)


def generated(folder: Path) -> dict[str, Any]:
    """Generate both parts with the command line; return correlations of the wrists, and word error rates."""
    facts: dict[str, Any] = {}
    shards = folder / "shards"
    for split, (stem, _, _) in PARTS.items():
        for task in ("a2g", "t2g", "a2t", "g2t"):
            out = folder / "generated" / split / task
            words = ("--shards", shards, "--key", stem, "-o", out, "--overwrite", "--png")
            command("generate", "--checkpoint", folder / "run", "--task", task, *words)
            report = out / "report.txt"
            if task.endswith("g"):
                generated = wrists(decode_motion((out / f"{stem}.npz").read_bytes()))
                source = next((folder / "corpus").rglob(f"{stem}.npz"))
                true = wrists(decode_motion(source.read_bytes()))[: len(generated)]
                shifted = np.roll(true, len(true) // 2, axis=0)
                facts[f"{split} {task}"] = {
                    "correlation": follows(generated, true),
                    "shifted": follows(generated, shifted),
                }
                np.savez(folder / f"wrists-{split}-{task}.npz", generated=generated, true=true)
            else:
                command("evaluate", out, "--shards", shards, "--format", "csv", "-o", report)
                rate = next(line for line in report.read_text().splitlines() if "word error rate" in line)
                facts[f"{split} {task}"] = {"word error rate": float(rate.split(",")[4])}
                report.unlink()
    return facts


def draw(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Draw for both parts the losses of each task, and the recorded and generated height of a wrist."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(2, 4, figsize=(14, 6), layout="constrained")
    for axis, task in zip(axes[:, :3].flat, SIX, strict=True):
        for split, style in (("train", "-"), ("val", "--")):
            axis.plot([row["minutes"] for row in rows], [row[split][task] for row in rows], style, label=split)
        axis.set(title=task, xlabel="minutes", ylabel="loss")
        axis.legend(fontsize=8)
    for axis, split in zip(axes[:, 3], PARTS, strict=True):
        with np.load(folder / f"wrists-{split}-a2g.npz", allow_pickle=False) as found:
            generated, true = found["generated"], found["true"]
        times = np.arange(len(true)) / 30
        shown = slice(0, 360)
        axis.plot(times[shown], true[shown, 4], label="recorded")
        axis.plot(times[shown], generated[shown, 4], label="generated from audio")
        axis.set(title=f"right wrist, {split}", xlabel="s", ylabel="height over pelvis (m)")
        axis.legend(fontsize=8)
    figure.savefig(folder / "reality.png", dpi=90)


def main() -> None:
    """Cut the recording unless the corpus exists, train, measure and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--recordings",
        type=Path,
        default=Path("../shared/beat2_sample"),
        help="folder that contains 2_scott_0_1_1 (default: %(default)s)",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("reality"),
        help="folder for corpus, shards, run and results (default: %(default)s)",
    )
    parser.add_argument("--minutes", type=float, default=6.0, help="training time in minutes (default: %(default)s)")
    arguments, extra = parser.parse_known_args()  # other arguments go to omniges train
    folder: Path = arguments.folder
    shards, run = folder / "shards", folder / "run"
    if not (folder / "corpus").exists():
        cut(arguments.recordings, folder / "corpus")
        command("preprocess", "--root", folder / "corpus", "--output-dir", shards)
    command(
        *("train", "--shards", shards, "--output-dir", run, "--preset", "tiny", "--max-minutes", arguments.minutes),
        *("--checkpointing-steps", 50, "--checkpoints-total-limit", 0, "--validation-steps", 0, *extra),
    )
    source = ShardFolder(shards)
    samples = {split: source.sample(source.row(stem)) for split, (stem, _, _) in PARTS.items()}
    print("one recording cut in two: 0 to 50 s to train on, 51 to 63 s held out; losses with the same noise")
    rows: list[dict[str, Any]] = []
    for path in reversed(checkpoints(run / CHECKPOINTS)):
        saved = open_checkpoint(path)
        model, identity = load_model(saved)
        codec = TextTokenCodec(identity.tokenizer)
        row: dict[str, Any] = {"step": saved.step, "minutes": saved.document("state.json")["elapsed_s"] / 60}
        for split, sample in samples.items():
            row[split] = losses(model, windows_of(sample, codec, identity, speaker=1))
        rows.append(row)
        shown = ", ".join(f"{task} {row['train'][task]:.3f}/{row['val'][task]:.3f}" for task in SIX)
        print(f"step {row['step']:5d}, {row['minutes']:4.1f} min: train/val {shown}", flush=True)
    facts = generated(folder)
    for name, values in facts.items():
        print(f"{name}: " + ", ".join(f"{what} {value:.3f}" for what, value in values.items()))
    (folder / "reality.json").write_text(json.dumps({"losses": rows, "generated": facts}, indent=1))
    draw(rows, folder)
    print(f"picture: {folder / 'reality.png'}")


if __name__ == "__main__":
    main()
