"""Writing of the files beside the shards: statistics and tokenizer of the train split, and dataset.json.

dataset.json is written last, so its presence means that the set is complete. `omniges.shards.document` reads it.

In all shapes, T is the number of frames of a clip, C the number of channels of an array.

The channel statistics of one array of one clip are called a *partial*: count, mean, sum of squared deviations (M2),
minimum, maximum, and mean and M2 of the differences between frames, all in float64. The partials of all clips are
combined by the formula of Chan, Golub & LeVeque (1983) with `math.fsum`. The result of `math.fsum` does not depend on
the order of its terms. So the statistics do not depend on the number of workers.
"""

from __future__ import annotations

import functools
import math
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from omniges import __version__
from omniges.errors import DataError
from omniges.features import audio, timebase
from omniges.features.gesture import JAW_EYES, LAYOUT
from omniges.shards import schema
from omniges.shards.manifest import ManifestRow, manifest_hash
from omniges.shards.schema import parse_document
from omniges.shards.writer import ShardFile
from omniges.storage.atomic import os_errors
from omniges.storage.files import canonical_json, json_document, sha256_hex

F64 = npt.NDArray[np.float64]

SMALLEST_STD: Final = 1e-6  # channels with a smaller standard deviation have divisor 1
_BLOCK_FRAMES = 256
_SPOOL_CLIPS: Final = 64  # clips in a block of partials on disk, 1.7 MB
_SPOOL_READ_BYTES: Final = 16 << 20  # bytes of partials in memory at once when they are combined
_MOST: Final = 1e30  # largest valid magnitude of a statistic, so that float32 can represent it
_VERIFY_DEEP: Final = "run omniges verify-shards --level deep on it"  # other levels only compare the file's checksum
_PACKAGES: Final = ("librosa", "numpy", "praatio", "pyarrow", "scipy", "soundfile", "soxr", "tokenizers")
FEATURES: Final[dict[str, Any]] = {
    "tick_s": 0.1,
    "gesture": {"frame_rate_hz": timebase.FRAME_RATE_HZ, "channels": LAYOUT.channels, "rotation": "6d-rows"},
    "mel": {
        "sample_rate_hz": timebase.SAMPLE_RATE_HZ,
        "n_fft": audio.N_FFT,
        "win_samples": audio.N_FFT,
        "hop_samples": timebase.HOP_SAMPLES,
        "window": "hann-periodic",
        "padding": "centred-reflect",
        "power": 1,
        "bands": audio.MEL_BANDS,
        "fmin_hz": 0,
        "fmax_hz": audio.FMAX_HZ,
        "scale": "slaney",
        "norm": "slaney",
        "log": "natural",
        "floor": audio.LOG_FLOOR,
    },
}
COUNTS: Final = ("samples", "frames", "mel_frames", "ticks", "words")
"""Names of the counts in ``totals`` and ``splits`` of dataset.json, which also contain ``seconds``."""
_version: Final = functools.cache(metadata.version)  # each call reads a file in 3 ms


def divisors(std: Sequence[float] | F64) -> npt.NDArray[np.float32]:
    """Return the number by which to divide each channel: its standard deviation, or 1 if below `SMALLEST_STD`.

    Args:
        std: Standard deviations (C,), in the units of the channels.

    Returns:
        Divisors (C,), float32.
    """
    spread = np.asarray(std, dtype=np.float64)
    return np.where(spread < SMALLEST_STD, 1.0, spread).astype(np.float32)


STATISTICS_ROWS: Final = 7
STATISTICS: Final[Mapping[str, str]] = {"gesture": "gesture.npy", "mel": "mel.npy", "jaw_eyes": "jaw_eyes.npy"}
"""The arrays that stats.json describes, and their members. Version 1 has the first two."""


@dataclass(frozen=True, slots=True)
class Partial:
    """Statistics of each channel in one array (T, C) of a clip, in float64.

    `rows` has shape (7, C): count, mean, sum of squared deviations, minimum, maximum, and mean and sum of squared
    deviations of the differences between successive frames. All values of an absent channel are 0, including its count.
    """

    rows: F64

    @property
    def counts(self) -> F64:
        """Number of frames (C,) in which each channel is present."""
        counts: F64 = self.rows[0]
        return counts


def partial_of(array: npt.NDArray[np.float32]) -> Partial:
    """Return the statistics of one array (T, C) of a clip, T >= 1; an absent channel is NaN in all frames.

    Deviations are computed from the first frame, not from the mean. This saves one pass over the data, and a constant
    channel gets a variance of exactly zero. Sums are accumulated over the frames in order.
    """
    first = array[0].astype(np.float64)
    total, squares, steps = np.zeros((3, *first.shape))  # sums of deviations and of differences
    # One row more than a block: row 0 is the last deviation of the previous block.
    block = np.zeros((min(_BLOCK_FRAMES, len(array)) + 1, array.shape[1]))
    differences = np.empty_like(block[1:])
    origin = np.tile(first, (len(block) - 1, 1))  # size of a block, because broadcasting a row is slower
    for start in range(0, len(array), _BLOCK_FRAMES):
        frames = array[start : start + _BLOCK_FRAMES]
        deviation = block[1 : len(frames) + 1]
        np.copyto(deviation, frames)  # converted first, because subtraction of mixed types uses small buffers
        deviation -= origin[: len(frames)]
        # The first difference is zero and adds nothing.
        difference = np.subtract(deviation, block[: len(frames)], out=differences[: len(frames)])
        np.multiply(difference, difference, out=difference)
        steps += difference.sum(axis=0)
        block[0] = deviation[-1]
        total += deviation.sum(axis=0)
        np.multiply(deviation, deviation, out=deviation)
        squares += deviation.sum(axis=0)
    count, step_count = len(array), max(len(array) - 1, 1)
    mean = first + total / count
    mean_step = block[0] / step_count  # the sum of all differences is the last deviation
    rows = np.stack(
        [
            np.full_like(first, count),
            mean,
            np.maximum(squares - total * (total / count), 0.0),
            array.min(axis=0).astype(np.float64),
            array.max(axis=0).astype(np.float64),
            mean_step,
            np.maximum(steps - block[0] * mean_step, 0.0),
        ]
    )
    rows[:, np.isnan(first)] = 0.0
    return Partial(rows)


def combine(partials: Sequence[Partial], *, plain: bool = False) -> dict[str, Any]:
    """Return the statistics of each channel over all clips, in the form of stats.json.

    The result is bit-identical for any order of the clips. The standard deviation is that of the population: the sum of
    squared deviations is divided by the number of frames, not by this number minus 1. A channel that is absent from all
    clips has zeros and a count of 0. The result is empty if there are no clips.

    Args:
        partials: One partial for each clip.
        plain: Leave out `counts` and `difference_std`. Contract version 1 and latents.json have this form.

    Returns:
        A list (C,) for each statistic, and the number of frames.
    """
    if not partials:
        return {}
    return _combine_stacked(np.stack([p.rows for p in partials], axis=1), plain=plain)


def _combine_stacked(stacked: F64, *, plain: bool) -> dict[str, Any]:
    """Return the result of `combine` for ``stacked`` (7, clips, C): the `Partial.rows` of one array in all clips."""
    counts, means, m2s, minimum, maximum, difference_means, difference_m2s = stacked
    mean, std = _mean_and_std(counts, means, m2s)
    there = counts > 0
    found: dict[str, Any] = {
        "frames": int(counts.max(axis=1).sum()),
        "mean": mean.tolist(),
        "std": std.tolist(),
        "min": _where_any(there, minimum.min(axis=0, where=there, initial=np.inf)),
        "max": _where_any(there, maximum.max(axis=0, where=there, initial=-np.inf)),
    }
    if not plain:
        _, difference_std = _mean_and_std(np.maximum(counts - 1, 0), difference_means, difference_m2s)
        found |= {"counts": counts.sum(axis=0).astype(int).tolist(), "difference_std": difference_std.tolist()}
    return found


def _mean_and_std(counts: F64, means: F64, m2s: F64) -> tuple[F64, F64]:
    """Combine counts, means and M2, each (clips, C), into mean and standard deviation (C,); 0 for absent channels."""
    count = np.maximum(counts.sum(axis=0), 1.0)
    mean = _fsum_columns(means * counts) / count
    variance = _fsum_columns(np.concatenate([m2s, counts * (means - mean) ** 2])) / count
    return mean, np.sqrt(variance)


def _where_any(there: npt.NDArray[np.bool_], values: F64) -> list[float]:
    found: list[float] = np.where(there.any(axis=0), values, 0.0).tolist()
    return found


def _fsum_columns(values: F64) -> F64:
    return np.array([math.fsum(column.tolist()) for column in values.T])


class PartialSpool:
    """A list of partials that needs little memory, because most partials are in an unnamed temporary file."""

    def __init__(self, partials: Iterable[tuple[Partial, ...]] = (), folder: Path | None = None) -> None:
        """Create the list. Up to 63 clips are kept in memory; each block of 64 clips is written to the temporary file.

        Args:
            partials: Initial content: for each clip, the partials of its arrays. All clips have the same arrays.
            folder: Folder for the temporary file; None: the system's folder for temporary files.
        """
        self._file: IO[bytes] | None = None
        self._folder = Path(tempfile.gettempdir()) if folder is None else folder
        self._blocks = 0
        self._recent: list[F64] = []  # (7, C) for each clip; the channels of all arrays are concatenated
        self._channels: tuple[int, ...] = ()  # number of channels of each array
        self._frames: tuple[int, ...] = ()  # number of frames of each array in all clips
        self.extend(partials)

    def __len__(self) -> int:
        return self._blocks * _SPOOL_CLIPS + len(self._recent)

    def append(self, partials: tuple[Partial, ...]) -> None:
        """Add the partials of a clip's arrays."""
        channels = tuple(partial.rows.shape[1] for partial in partials)
        frames = tuple(int(partial.counts.max()) for partial in partials)
        if not len(self):
            self._channels, self._frames = channels, (0,) * len(channels)
        if channels != self._channels:
            raise ValueError(f"expected arrays of {self._channels} channels, found {channels}")
        self._frames = tuple(map(sum, zip(self._frames, frames, strict=True)))
        self._recent.append(np.concatenate([partial.rows for partial in partials], axis=1))
        if len(self._recent) == _SPOOL_CLIPS:
            self._write(np.stack(self._recent).transpose(2, 1, 0).tobytes())  # (C, 7, clips)
            self._recent = []

    def extend(self, partials: Iterable[tuple[Partial, ...]]) -> None:
        """Add the partials of several clips."""
        for own in partials:
            self.append(own)

    def combined(self, *, plain: bool = False) -> list[dict[str, Any]]:
        """Return the statistics of each array, bit-identical to the result of `combine`.

        Args:
            plain: Leave out `counts` and `difference_std`.

        Returns:
            For each array, the dictionary that `combine` returns. An empty list if there are no clips.
        """
        width = max(1, _SPOOL_READ_BYTES // (8 * STATISTICS_ROWS * max(1, len(self))))
        found, first = [], 0
        for channels, frames in zip(self._channels, self._frames, strict=True):
            parts = [
                _combine_stacked(self._read(start, min(start + width, first + channels)), plain=plain)
                for start in range(first, first + channels, width)
            ]
            names = parts[0].keys() - {"frames"}
            found.append({"frames": frames} | {name: [*chain.from_iterable(p[name] for p in parts)] for name in names})
            first += channels
        return found

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()

    def _write(self, block: bytes) -> None:
        with os_errors(self._folder, "write to"):
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 - closed with the object
            left = memoryview(block)
            while left:
                left = left[self._file.write(left) :]
        self._blocks += 1

    def _read(self, first: int, stop: int) -> F64:
        """Return `Partial.rows` of all clips for the channels ``first`` to ``stop`` (exclusive).

        Channels are counted over all arrays of a clip, in order. The shape is (7, clips, stop − first).
        """
        found = np.empty((stop - first, STATISTICS_ROWS, len(self)))
        clip_bytes = 8 * STATISTICS_ROWS * _SPOOL_CLIPS
        for number in range(self._blocks):
            offset = (number * sum(self._channels) + first) * clip_bytes
            data = self._read_range(offset, (stop - first) * clip_bytes)
            own = slice(number * _SPOOL_CLIPS, (number + 1) * _SPOOL_CLIPS)
            found[:, :, own] = np.frombuffer(data).reshape(stop - first, STATISTICS_ROWS, _SPOOL_CLIPS)
        if self._recent:
            recent = np.stack([rows[:, first:stop] for rows in self._recent])
            found[:, :, self._blocks * _SPOOL_CLIPS :] = recent.transpose(2, 1, 0)
        return found.transpose(1, 2, 0)

    def _read_range(self, offset: int, size: int) -> bytes:
        if self._file is None:
            raise RuntimeError("no block has been written")
        with os_errors(self._folder, "read from"):
            self._file.seek(offset)
            data = b""
            while len(data) < size:
                piece = self._file.read(size - len(data))
                if not piece:
                    raise OSError(f"{size - len(data)} bytes of a temporary file are gone")
                data += piece
        return data


def tool_versions() -> dict[str, str]:
    """Return the versions of omniges and of the packages that affect the output bytes."""
    return {"omniges": __version__} | {name: _version(name) for name in _PACKAGES}


def seal(document: dict[str, Any]) -> bytes:
    """Encode a document, such as dataset.json, as JSON, and add a checksum of its canonical form."""
    return json_document(document | {"checksum": sha256_hex(canonical_json(document))})


def sealed_correctly(document: dict[str, Any]) -> bool:
    """Return whether the checksum in a document is that of its other content."""
    rest = {name: value for name, value in document.items() if name != "checksum"}
    return document.get("checksum") == sha256_hex(canonical_json(rest))


def read_statistics(data: bytes, place: str) -> dict[str, Any]:
    """Parse a stats.json of unknown origin, and check the statistics that models use.

    A file that states 0 train samples needs no statistics. Any other file needs ``words.total``, and the means and
    standard deviations of the 415 gesture channels, of the 64 mel bands and, if the file has jaw_eyes, of its 9
    channels. If gesture or mel has ``counts``, as in version 2, then all these arrays need a count for each channel.

    Args:
        data: Bytes of the file.
        place: Path of the file, for errors.

    Returns:
        The content of the file.

    Raises:
        DataError: The bytes are not a JSON object, or a required statistic is missing or invalid.
    """
    found = parse_document(data, place)
    if found.get("samples") == 0:
        return found
    arrays = {"gesture": LAYOUT.channels, "mel": audio.MEL_BANDS}
    for name in arrays:
        if not isinstance(found.get(name), dict):
            raise DataError(f"{place}: {name}: expected an object, found something else; {_VERIFY_DEEP}")
    counts = ["counts"] if any("counts" in found[name] for name in arrays) else []  # version 1 lacks them
    if "jaw_eyes" in found:  # version 1 lacks it; models with jaw and eyes add it
        if not isinstance(found["jaw_eyes"], dict):
            raise DataError(f"{place}: jaw_eyes: expected an object, found something else; {_VERIFY_DEEP}")
        arrays["jaw_eyes"] = JAW_EYES
    for name, channels in arrays.items():
        for column in ("mean", "std", *counts):
            minimum = -math.inf if column == "mean" else 0
            if not is_numbers(found[name].get(column), channels, minimum):
                raise DataError(
                    f"{place}: {name}.{column}: expected {channels} finite numbers, found something else; "
                    f"{_VERIFY_DEEP}"
                )
    words = found.get("words")
    if not isinstance(words, dict) or not schema.is_count(words.get("total")):
        raise DataError(f"{place}: words.total: expected a number of words, found something else; {_VERIFY_DEEP}")
    return found


def is_numbers(values: object, count: int, minimum: float = -math.inf) -> bool:
    """Return whether a value from JSON is a list of finite numbers.

    Args:
        values: Value to check.
        count: Required length.
        minimum: Smallest allowed number.

    Returns:
        True for a valid list.
    """
    return (
        isinstance(values, list)
        and len(values) == count
        and all(schema.is_real(value) and minimum <= value <= _MOST and value >= -_MOST for value in values)
    )


def statistics_document(
    rows: Sequence[ManifestRow],
    partials: PartialSpool | Sequence[tuple[Partial, ...]],
    words: Counter[str],
    version: int = schema.FORMAT_VERSION,
) -> dict[str, Any]:
    """Return the content of stats.json, the statistics of the train samples.

    Args:
        rows: Manifest rows. Only rows of the train split are used.
        partials: For each train sample, the partials of its arrays, in the order of `STATISTICS`. Version 1 has only
            the first two arrays.
        words: How often each word occurs in the train split.
        version: Contract version of the set.

    Returns:
        The content as a dictionary; it has only ``samples: 0`` if there are no train samples.
    """
    train = [row for row in rows if row.split == "train"]
    if not partials:
        return {"samples": 0}
    speakers: dict[str, list[ManifestRow]] = defaultdict(list)
    for row in train:
        speakers[row.speaker or "unknown"].append(row)
    spool = partials if isinstance(partials, PartialSpool) else PartialSpool(partials)
    arrays = dict(zip(STATISTICS, spool.combined(plain=version == 1), strict=False))
    arrays["gesture"]["channels"] = LAYOUT.channel_names()
    return arrays | {
        "samples": len(train),
        "smallest_std": SMALLEST_STD,
        "seconds": {
            "total": math.fsum(row.seconds for row in train),
            "min": min(row.seconds for row in train),
            "max": max(row.seconds for row in train),
        },
        "words": {"total": words.total(), "distinct": len(words)},
        "speakers": {
            name: {"samples": len(own), "seconds": math.fsum(row.seconds for row in own)}
            for name, own in speakers.items()
        },
    }


def train_tokenizer(words: Mapping[str, int]) -> bytes:
    """Train a tokenizer on words and their counts, and return the bytes of its tokenizer.json.

    The tokenizer uses byte-level byte-pair encoding. All 256 bytes are in the vocabulary, so every Unicode string is
    restored exactly: decode(encode(s)) = s. Merging continues until no pair of subwords occurs twice. So a word that
    occurs at least twice is a single subword. The order of the words in `words` does not affect the result.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415 - native, 70 ms

    # One thread, so that the result does not depend on how counting is split.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        # Each merge joins two subwords inside a word, so this is an upper bound.
        vocab_size=256 + sum(len(word.encode()) for word in words),
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    tokenizer.train_from_iterator(([word] * count for word, count in sorted(words.items())), trainer)
    document: str = tokenizer.to_str(pretty=True)
    return document.encode() + b"\n"


def dataset_document(
    rows: Sequence[ManifestRow],
    shards: Sequence[ShardFile],
    files: dict[str, tuple[int, str]],
    settings: dict[str, Any],
    plan: dict[str, Any],
    cut: dict[str, Any],
) -> dict[str, Any]:
    """Return the content of dataset.json without its checksum.

    Args:
        rows: All rows of the manifest.
        shards: All shards.
        files: Size in bytes and sha256 of each other file beside the shards, by name.
        settings: Settings that affect the output bytes.
        plan: Description of the inputs: digests of settings and source files, numbers of stems and rejections.
        cut: Totals of what was cut off: ``audio_s``, ``motion_s``, ``words_dropped`` and ``words_clipped``.

    Returns:
        The content, to which `seal` can add the checksum.
    """
    return {
        "format": schema.FORMAT,
        "version": schema.FORMAT_VERSION,
        "tool": tool_versions(),
        "features": FEATURES,
        "settings": settings,
        "plan": plan,
        "manifest_hash": manifest_hash(rows),
        "totals": totals_of(rows) | {"cut": cut},
        "splits": {split: totals_of(row for row in rows if row.split == split) for split in schema.SPLITS},
        "shards": {
            shard.name: {"split": shard.split, "samples": shard.samples, "bytes": shard.size, "sha256": shard.sha256}
            for shard in shards
        },
        "files": {name: {"bytes": size, "sha256": digest} for name, (size, digest) in files.items()},
    }


def totals_of(rows: Iterable[ManifestRow]) -> dict[str, Any]:
    """Return the sums of `COUNTS` and of seconds over the rows, in the form of ``totals`` in dataset.json."""
    chosen = list(rows)
    return {
        "samples": len(chosen),
        "seconds": math.fsum(row.seconds for row in chosen),
        **{name: sum(getattr(row, name) for row in chosen) for name in COUNTS if name != "samples"},
    }
