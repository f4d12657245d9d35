"""A gesture codec in one file. Latents are principal components of the means of two successive frames.

Fit the codec to the train split of shards, and write it to a folder: `python examples/toy_codec.py SHARDS FOLDER`.

Register it in a script with `register_codec("toy-pairs", load)`, or in the pyproject.toml of your own package:

    [project.entry-points."omniges.codecs"]
    toy-pairs = "toy_codec:load"

Then `omniges encode --codec toy-pairs=FOLDER`, `omniges train --gesture-codec toy-pairs` and
`omniges generate --codec toy-pairs=FOLDER` accept it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from omniges.codecs.base import F32, Loading, fingerprint_of
from omniges.errors import DataError
from omniges.shards.latents import FrameEntry
from omniges.shards.reader import ShardFolder

NAME = "toy-pairs"
FRAMES_PER_ROW = 2
CHANNELS = 24


class ToyCodec:
    """Converts gesture frames (T, 415) to latents (T // 2, 24) and back."""

    def __init__(self, mean: F32, components: F32) -> None:
        self.mean, self.components = mean, components
        weights = {"mean": torch.from_numpy(mean), "components": torch.from_numpy(components)}
        self.entry = FrameEntry(
            name=NAME,
            fingerprint=fingerprint_of({"frames_per_row": FRAMES_PER_ROW}, weights),
            source="gesture.npy",
            frames_per_row=FRAMES_PER_ROW,
            channels=len(components),
        )

    def encode(self, array: F32) -> F32:
        """Return latents (T // 2, 24) of frames (T, 415)."""
        return np.asarray((_pairs(array) - self.mean) @ self.components.T, np.float32)

    def decode(self, latents: F32) -> F32:
        """Return frames (2 · rows, 415) of latents (rows, 24)."""
        return np.repeat(latents @ self.components + self.mean, FRAMES_PER_ROW, axis=0)


def _pairs(array: F32) -> F32:
    rows = len(array) // FRAMES_PER_ROW
    return np.asarray(array[: rows * FRAMES_PER_ROW].reshape(rows, FRAMES_PER_ROW, -1).mean(axis=1), np.float32)


def load(folder: Path, loading: Loading) -> ToyCodec:
    """Load the codec from a folder. It computes with NumPy on the CPU, so it does not use `loading`."""
    try:
        mean, components = (np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("mean", "components"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: expected mean.npy and components.npy ({error}); fit the codec again") from error
    return ToyCodec(mean, components)


def fit(shards: Path, folder: Path) -> None:
    """Compute the mean and the principal components of the train split's gesture, and write them to a folder."""
    source = ShardFolder(shards)
    frames = np.concatenate([_pairs(source.array(row, "gesture.npy")) for row in source.rows if row.split == "train"])
    mean = frames.mean(axis=0)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "mean.npy", mean)
    np.save(folder / "components.npy", np.linalg.svd(frames - mean, full_matrices=False)[2][:CHANNELS])


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    fit(Path(sys.argv[1]), Path(sys.argv[2]))
