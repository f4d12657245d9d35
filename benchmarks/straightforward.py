"""The conversion a user would write first: librosa, scipy and praatio in one process. `preprocess` is compared with it.

Run it as ``python straightforward.py LIST OUT``. LIST is a JSON file of ``[wav, npz, textgrid]`` paths. OUT is a folder
for NPZ files. Imports and a first conversion for warm-up are not timed. The program prints one line of JSON. It does
not check or hash files, and does not wait for the disk. A test compares its arrays with those of the shards.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import librosa
import numpy as np
from praatio import textgrid
from scipy.spatial.transform import Rotation

# The 52 joints of the gesture channels: upper body, hands, lower body.
JOINTS = [3, 6, 9, *range(12, 22), *range(25, 55), 0, 1, 2, 4, 5, 7, 8, 10, 11]


def convert(wav: str, npz: str, grid: str, out: str) -> float:
    """Convert one recording to an NPZ file; return its length in seconds."""
    audio, rate = librosa.load(wav, sr=16000)
    motion = np.load(npz)
    frames = min(len(motion["poses"]), 30 * len(audio) // 16000)
    mel = librosa.feature.melspectrogram(
        y=audio, sr=rate, n_fft=1024, hop_length=160, n_mels=64, fmax=8000, power=1, pad_mode="reflect"
    )
    log_mel = np.log(np.maximum(mel, 1e-5)).T[: frames * 10 // 3]
    vectors = motion["poses"][:frames].reshape(frames, 55, 3)[:, JOINTS].reshape(-1, 3)
    rotations = Rotation.from_rotvec(vectors).as_matrix()[:, :2].reshape(frames, -1)
    trans = motion["trans"][:frames]
    root = np.diff(trans, axis=0, prepend=2 * trans[:1] - trans[1:2])  # the first step is a copy of the second
    root[:, 1] = trans[:, 1]
    gesture = np.concatenate([rotations, root, motion["expressions"][:frames]], axis=1).astype(np.float32)
    tier = textgrid.openTextgrid(grid, includeEmptyIntervals=False).getTier("words")
    words = [(entry.label, entry.start, entry.end) for entry in tier.entries]
    labels, starts, ends = zip(*words, strict=True)
    np.savez(out, gesture=gesture, mel=log_mel, words=labels, starts=starts, ends=ends, betas=motion["betas"])
    return frames / 30


def main() -> None:
    """Convert the listed recordings and print the time."""
    sources = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    out = Path(sys.argv[2])
    wav, npz, grid = sources[0]
    convert(wav, npz, grid, str(out / "warm-up.npz"))
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    seconds = 0.0
    for place, (wav, npz, grid) in enumerate(sources):
        seconds += convert(wav, npz, grid, str(out / f"{place}.npz"))
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    print(json.dumps({"recordings": len(sources), "seconds": seconds, "wall_s": wall_s, "cpu_s": cpu_s}))


if __name__ == "__main__":
    main()
