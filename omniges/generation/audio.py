"""Convert audio of any format, sample rate and number of channels to log-mels.

Audio is read in blocks and the mel is stored on disk, so memory does not grow with the length of a recording.
"""

from __future__ import annotations

import io
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError, EnvironmentFault, RecordingFault
from omniges.features.audio import MEL_BANDS, Cancellation, Loudness, MelStream, loudness_gain, mix_down
from omniges.features.timebase import FRAMES_PER_TICK, LONGEST_S, MEL_FRAMES_PER_TICK, SAMPLE_RATE_HZ, SAMPLES_PER_TICK
from omniges.formats.audio import FORMS, LOUDEST, MAX_CHANNELS, MAX_RATE_HZ, MIN_RATE_HZ, WavStream, open_wav
from omniges.model.streams import StreamName
from omniges.storage.atomic import os_errors
from omniges.storage.files import open_file

ROWS_PER_TICK: Final[dict[StreamName, int]] = {"gesture": FRAMES_PER_TICK, "audio": MEL_FRAMES_PER_TICK, "text": 1}
"""Number of rows of each stream's array in one tick."""

_BLOCK_BYTES: Final = 1 << 20
F32 = npt.NDArray[np.float32]
_BLOCK_FRAMES: Final = 1 << 16
_SLACK_S: Final = 0.1  # samples that may be missing at the end, because compressed formats count complete packets
_UNKNOWN_FRAMES: Final = 1 << 62  # the header of a streamed file may not contain its length
_OGG_PAGE: Final = b"OggS"
_OGG_FLAGS: Final = 5  # offset of a page's flags
_OGG_LAST: Final = 4  # flag of a stream's last page
_OGG_HEADER_BYTES: Final = 27
_OGG_MAX_BYTES: Final = 65307  # largest page
_OTHER_DECODER: Final = frozenset({"wav-unsupported-encoding", "wav-not-riff"})  # libsndfile may read such files


class Held:
    """Rows of a stream that are stored in memory."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self._array = array

    def rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Return a range of rows, as a view.

        Args:
            start: First row of the range.
            stop: Row after the last row of the range.

        Returns:
            The rows that exist in this range.
        """
        return self._array[start:stop]


class Spool:
    """Rows of a stream that are stored on disk, in an unnamed temporary file.

    The system removes the file when this object is deleted or the process ends.

    Args:
        folder: Folder for the file; None: the system's folder for temporary files.
        row: Shape of a row.
        kind: Data type of the values, as a numpy string such as ``<f4``.
    """

    def __init__(self, folder: Path | None, row: tuple[int, ...], kind: str = "<f4") -> None:
        self._folder = Path(tempfile.gettempdir()) if folder is None else folder
        self._row, self._dtype = row, np.dtype(kind)
        self._row_bytes = math.prod(row) * self._dtype.itemsize
        self._count = 0
        self._file: IO[bytes] = io.BytesIO()  # `__del__` needs a file to close, even if the next lines fail
        with os_errors(self._folder, "write to"):
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 - closed with the last reference

    def __len__(self) -> int:
        return self._count

    def append(self, rows: npt.NDArray[Any]) -> None:
        """Append rows (n, …)."""
        if rows.shape[1:] != self._row:
            raise ValueError(f"expected rows of shape {self._row}, found {rows.shape}")
        left = np.ascontiguousarray(rows, self._dtype).reshape(-1).view(np.uint8).data
        with os_errors(self._folder, "write to"):
            self._file.seek(self._count * self._row_bytes)
            while len(left):
                left = left[self._file.write(left) :]
        self._count += len(rows)

    def rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Read a range of rows.

        Args:
            start: First row of the range.
            stop: Row after the last row of the range.

        Returns:
            The rows that exist in this range.
        """
        stop = min(stop, self._count)
        found = np.empty((max(0, stop - start), *self._row), self._dtype)
        into = found.reshape(-1).view(np.uint8).data
        with os_errors(self._folder, "read from"):
            self._file.seek(start * self._row_bytes)
            while len(into):
                part = self._file.read(len(into))
                if not part:
                    raise OSError(f"{len(into)} bytes of a temporary file are gone")
                into[: len(part)] = part
                into = into[len(part) :]
        return found

    def blocks(self) -> Iterator[npt.NDArray[Any]]:
        """Yield all rows, in blocks of about 1 MiB."""
        step = max(1, _BLOCK_BYTES // self._row_bytes)
        for start in range(0, self._count, step):
            yield self.rows(start, start + step)

    def __del__(self) -> None:
        """Close the file, which frees its disk space."""
        self._file.close()


@dataclass(frozen=True, slots=True)
class LoadedAudio:
    """The log-mel of an audio file, and warnings about the file."""

    mel: Spool
    """Log-mel (frames, 64), with at least 10 frames for each complete tick."""
    ticks: int
    """Number of complete ticks (0.1 s) of the audio."""
    warnings: list[str]


class _FileBytes:
    """An open file as a sequence of bytes; a slice reads its bytes from the file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._descriptor = file.fileno()
        self._size = os.fstat(self._descriptor).st_size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, place: slice, /) -> bytes:
        start, stop, _ = place.indices(self._size)
        return os.pread(self._descriptor, max(0, stop - start), start)


def read_log_mel(path: Path, folder: Path | None, loudness: Loudness = "none") -> LoadedAudio:
    """Compute the log-mel of an audio file.

    Args:
        path: The file, in any format that libsndfile reads.
        folder: Folder for the temporary file with the mel; None: the system's folder for temporary files.
        loudness: Loudness rule, "none" or "peak", by which the audio is scaled (see `loudness_gain`).

    Returns:
        The log-mel, its length in ticks, and warnings.

    Raises:
        DataError: The audio is damaged, silent, NaN or infinite, too long, or shorter than a tick.
        EnvironmentFault: The file cannot be read, or the package soundfile is needed but not installed.
    """
    with os_errors(path, "read"), open(open_file(path), "rb") as file:
        wav = _wav(path, file)
        if wav is None:
            return _by_libsndfile(path, file, folder, loudness)
        _require_form(path, wav.rate_hz, wav.channels, wav.frames)
        notes = [f"{note.code}: {note.found}" for note in wav.notes]
        try:
            blocks = partial(wav.blocks, _BLOCK_FRAMES)
            return _mel_of(path, blocks, (wav.rate_hz, wav.channels), folder, loudness, notes)
        except RecordingFault as fault:
            raise fault.refusal(path) from fault


def log_mel_of_samples(
    samples: npt.NDArray[np.floating], rate_hz: int, folder: Path | None, loudness: Loudness = "none"
) -> LoadedAudio:
    """Compute the log-mel of audio samples in memory; see `read_log_mel` for files.

    Args:
        samples: Samples (N,) or (N, channels), nominally in [−1, 1].
        rate_hz: Sample rate in Hz.
        folder: Folder for the temporary file with the mel; None: the system's folder for temporary files.
        loudness: Loudness rule, "none" or "peak", by which the audio is scaled (see `loudness_gain`).

    Returns:
        The log-mel, its length in ticks, and warnings.
    """
    name = Path("audio")

    def blocks() -> Iterator[F32]:
        cut = (samples[k : k + _BLOCK_FRAMES].astype(np.float32) for k in range(0, len(samples), _BLOCK_FRAMES))
        return _checked(name, cut)

    return _mel_of(name, blocks, (rate_hz, 1 if samples.ndim == 1 else samples.shape[1]), folder, loudness)


def _wav(path: Path, file: IO[bytes]) -> WavStream | None:
    """Open the file as a WAV; return None if it is not a WAV or has an encoding that libsndfile has to read."""
    if os.pread(file.fileno(), 4, 0) not in FORMS and path.suffix.lower() != ".wav":
        return None
    try:
        return open_wav(_FileBytes(file))
    except RecordingFault as fault:
        if fault.problem.code in _OTHER_DECODER:
            return None
        raise fault.refusal(path) from fault


def _by_libsndfile(path: Path, file: IO[bytes], folder: Path | None, loudness: Loudness) -> LoadedAudio:
    try:
        import soundfile  # noqa: PLC0415 - libsndfile, only where audio is given
    except ModuleNotFoundError as error:
        raise EnvironmentFault(
            f"{path}: expected the package soundfile to read it, found that it is not installed; run pip install "
            "soundfile"
        ) from error
    _require_end_of_ogg(path, file)
    try:
        # Opened without its name, because soundfile would choose a headerless format by the name.
        with soundfile.SoundFile(file.fileno(), closefd=False) as reader:
            known = reader.frames if reader.frames < _UNKNOWN_FRAMES else 0
            _require_form(path, reader.samplerate, reader.channels, known)

            def blocks() -> Iterator[F32]:
                reader.seek(0)
                return _checked(path, _all_of(path, reader))

            return _mel_of(path, blocks, (reader.samplerate, reader.channels), folder, loudness)
    except soundfile.LibsndfileError as error:
        raise DataError(
            f"{path}: expected audio that libsndfile can read, found an error ({error.error_string}); export it as WAV"
        ) from error


def _require_end_of_ogg(path: Path, file: IO[bytes]) -> None:
    """Refuse an Ogg file (RFC 3533) without its last page, because libsndfile reads such a file without an error."""
    descriptor = file.fileno()
    if os.pread(descriptor, len(_OGG_PAGE), 0) != _OGG_PAGE:
        return
    tail = os.pread(descriptor, _OGG_MAX_BYTES, max(0, os.fstat(descriptor).st_size - _OGG_MAX_BYTES))
    page = tail[tail.rfind(_OGG_PAGE) :] if _OGG_PAGE in tail else b""
    segments = page[_OGG_HEADER_BYTES - 1] if len(page) >= _OGG_HEADER_BYTES else 0
    table = page[_OGG_HEADER_BYTES : _OGG_HEADER_BYTES + segments]
    complete = len(table) == segments and len(page) >= _OGG_HEADER_BYTES + segments + sum(table)
    if not complete or not page[_OGG_FLAGS] & _OGG_LAST:
        raise DataError(
            f"{path}: expected the last page of an Ogg stream, found none, so the file is cut off; copy it again, "
            "or export it as WAV"
        )


def _all_of(path: Path, reader: Any) -> Iterator[F32]:
    """Yield all samples; refuse a file with fewer samples than its header states.

    `SoundFile.blocks` is not used, because for a truncated file it returns old content of its buffer.
    """
    read = 0
    while len(block := reader.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)):
        read += len(block)
        yield block
    missing = reader.frames - read
    if reader.samplerate * _SLACK_S < missing < _UNKNOWN_FRAMES:
        raise DataError(
            f"{path}: expected {reader.frames} samples, found {read}, so the file is cut off; copy it again"
        )


def _checked(path: Path, blocks: Iterator[F32]) -> Iterator[F32]:
    """Yield the blocks; refuse values that are NaN, infinite or far too loud, and samples that are all equal."""
    first: F32 | None = None
    count, silent = 0, True
    for block in blocks:
        if not np.isfinite(block).all():
            raise DataError(f"{path}: expected finite samples, found NaN or infinite ones; check the recording")
        if len(block) and (loudest := float(np.abs(block).max())) > LOUDEST:
            raise RecordingFault("wav-out-of-range", f"values up to {loudest:g}", "floats in [-1, 1]").refusal(path)
        first = block[:1] if first is None else first
        silent = silent and bool((block == first).all())
        count += len(block)
        yield block
    if not count:
        raise DataError(f"{path}: expected samples, found none; check the recording")
    if silent:
        raise DataError(f"{path}: expected sound, found silence ({count} equal samples); check the recording")


def _require_form(path: Path, rate_hz: float, channels: int, count: int = 0) -> None:
    """Refuse an implausible sample rate, number of channels or length, because they determine the required memory."""
    if not (MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ and 1 <= channels <= MAX_CHANNELS):
        raise DataError(
            f"{path}: expected {MIN_RATE_HZ} to {MAX_RATE_HZ} samples per second in 1 to {MAX_CHANNELS} channels, "
            f"found {rate_hz} samples per second in {channels} channels; export the file again"
        )
    if count > LONGEST_S * rate_hz:
        raise DataError(f"{path}: expected at most {LONGEST_S / 3600:g} h of audio, found more; cut the file")


def _mel_of(
    path: Path,
    blocks: Callable[[], Iterator[F32]],
    form: tuple[int, int],
    folder: Path | None,
    loudness: Loudness,
    notes: Sequence[str] = (),
) -> LoadedAudio:
    """Compute the log-mel of audio in blocks (n,) or (n, channels).

    `form` is the sample rate in Hz and the number of channels. `blocks` returns a new iterator over all blocks, and may
    be called twice.
    """
    rate_hz, channels = form
    _require_form(path, rate_hz, channels)
    cancelled = Cancellation()

    def mixed() -> Iterator[F32]:
        read = 0
        for block in blocks():
            read += len(block)
            _require_form(path, rate_hz, channels, read)
            found = mix_down(block)
            cancelled.add(block, found)
            yield found

    def mono() -> Iterator[F32]:
        return _resampled(mixed(), rate_hz)

    gain = 1.0
    if loudness != "none":  # a first pass finds the peak
        gain = loudness_gain(np.array([np.abs(samples).max(initial=0.0) for samples in mono()], np.float32), loudness)
    mel = Spool(folder, (MEL_BANDS,))
    stream = MelStream()
    count = 0
    for samples in mono():
        count += len(samples)
        mel.append(stream.push(samples if gain == 1.0 else samples * np.float32(gain)))
    if problem := cancelled.problem:
        raise RecordingFault("wav-channels-cancel", problem, "channels that are in phase").refusal(path)
    ticks = count // SAMPLES_PER_TICK
    if ticks < 1:
        raise DataError(
            f"{path}: expected at least 0.1 s of audio, found {count / SAMPLE_RATE_HZ:.3f} s; check the recording"
        )
    mel.append(stream.finish())
    if len(mel) < ticks * MEL_FRAMES_PER_TICK:
        raise AssertionError(f"{len(mel)} mel frames of {ticks} ticks")
    warnings = [] if gain == 1.0 else [f"scaled by {gain:.3g} to loudness {loudness}, as the training audio"]
    warnings += notes
    if channels > 1:
        warnings.append(f"{channels} channels averaged")
    if rate_hz != SAMPLE_RATE_HZ:
        lost = f", with nothing above {rate_hz / 2:g} Hz" if rate_hz < SAMPLE_RATE_HZ else ""
        warnings.append(f"{rate_hz} Hz resampled to {SAMPLE_RATE_HZ} Hz{lost}")
    return LoadedAudio(mel, ticks, warnings)


def _resampled(blocks: Iterator[F32], rate_hz: int) -> Iterator[F32]:
    """Resample blocks of mono audio to 16 kHz with soxr's high quality, as `features.audio.resample` does in memory."""
    if rate_hz == SAMPLE_RATE_HZ:
        yield from blocks
        return
    import soxr  # noqa: PLC0415 - only where rates differ

    stream = soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32", quality="HQ")
    count = written = 0
    for block in blocks:
        count += len(block)
        found = stream.resample_chunk(block)
        written += len(found)
        yield found
    found = stream.resample_chunk(np.zeros(0, np.float32), last=True)
    wanted = -(-count * SAMPLE_RATE_HZ // rate_hz)
    yield np.pad(found, (0, max(0, wanted - written - len(found))))[: max(0, wanted - written)]
