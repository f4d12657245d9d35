"""Conversion of a waveform to the log-mel spectrogram of AudioLDM2, with librosa's filters.

The input is 16 kHz mono. The FFT has n_fft = win = 1024, hop 160 and a periodic Hann window; frames are centred, with
reflect padding. The FFT's magnitude (power 1) is summed in 64 Slaney bands of 0–8000 Hz with Slaney normalisation. The
log-mel of a sum x is the natural logarithm of max(x, 1e-5).

The transform runs in float32. A frame is computed again in float64 if its quietest band is so far below its loudest one
that float32 is not accurate enough. Shards must be identical on all CPUs. So the logarithm is correctly rounded,
because the last bit of the C library's logarithm differs between CPUs.
"""

from __future__ import annotations

import decimal
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from omniges.errors import RecordingFault
from omniges.features.timebase import HOP_SAMPLES, SAMPLE_RATE_HZ
from omniges.storage.librosa_import import load_librosa

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Loudness = Literal["none", "peak"]

N_FFT: Final = 1024
MEL_BANDS: Final = 64
FMAX_HZ: Final = 8000.0
LOG_FLOOR: Final = 1e-5
PEAK_LEVEL: Final = 0.5

_TABLE_DECIMALS = 12  # window and filters are rounded, because the last bits of sine, log and exp differ between CPUs
_HALF_WINDOW_FRAMES = -(-(N_FFT // 2) // HOP_SAMPLES)
_BLOCK_FRAMES = 160  # frames in one transform; its temporaries fit in the second-level cache
_SURPLUS_BITS = 2**29 - 1  # bits of a float64's fraction that a float32 does not have
_HALFWAY = 2**28
_LOG_ULPS = 16  # larger than the error of any C library's float64 logarithm
# Smallest allowed level of the channels' mean, as a share of its level for uncorrelated channels. Two equally loud
# channels fall below it at a correlation below -0.94.
_CANCELLED = 0.25
_FLOAT32_RANGE = 2e-5  # below this ratio of quietest to loudest band, float32 rounding reaches 1e-4 in the log


def _hz_from_mel(mel: float) -> float:
    """Convert mel to Hz (Slaney, Auditory Toolbox, 1998): linear to 1 kHz, then a factor of 6.4 for every 27 mels."""
    if mel < 15.0:
        return 200.0 / 3.0 * mel
    return 1000.0 * math.exp(math.log(6.4) / 27.0 * (mel - 15.0))


@functools.cache
def mel_filterbank() -> F64:
    """Return triangular Slaney filters of unit area, (64, 513) float64; equal to ``librosa.filters.mel``.

    They are computed here because the import of librosa takes two to three seconds in every worker.
    """
    top_mel = 15.0 + math.log(FMAX_HZ / 1000.0) * 27.0 / math.log(6.4)
    edges = np.array([_hz_from_mel(top_mel * k / (MEL_BANDS + 1)) for k in range(MEL_BANDS + 2)])
    bins = np.arange(N_FFT // 2 + 1) * (SAMPLE_RATE_HZ / N_FFT)
    lower, centre, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising = (bins - lower) / (centre - lower)
    falling = (upper - bins) / (upper - centre)
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return np.asarray(np.round(triangles * (2.0 / (upper - lower)), _TABLE_DECIMALS))


@functools.cache
def _analysis(precision: str) -> tuple[npt.NDArray[Any], Any, Callable[..., Any]]:
    """Return the FFT's Hann window (1024,), the sparse mel filters (64, 513) and the FFT function.

    The arrays have the given precision, ``float32`` or ``float64``.
    """
    import scipy.fft  # noqa: PLC0415 - the import takes half a second, too long for --help
    import scipy.sparse  # noqa: PLC0415

    window = np.round(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT), _TABLE_DECIMALS)  # periodic Hann
    return window.astype(precision), scipy.sparse.csr_matrix(mel_filterbank().astype(precision)), scipy.fft.rfft


def _blocks_of_frames(samples: F32, frames: int) -> Iterator[tuple[int, F32]]:
    """Yield blocks of n frames as (index of the first frame, strided view (n, 1024) of the audio).

    Frame j is centred on sample 160·j. Most frames are views of the audio itself. A frame that reaches past the start
    or the end of the audio is a view of a copy, in which reflection extends the audio.
    """
    half = N_FFT // 2
    windows = np.lib.stride_tricks.sliding_window_view
    if len(samples) < 2 * N_FFT:  # a frame may reach past both ends
        yield 0, windows(np.pad(samples, half, mode="reflect"), N_FFT)[: frames * HOP_SAMPLES : HOP_SAMPLES]
        return
    head = min(-(-half // HOP_SAMPLES), frames)  # number of frames that reach before the first sample
    tail = max(min((len(samples) - half) // HOP_SAMPLES + 1, frames), head)  # first frame that reaches past the end
    if head:
        reach = samples[: (head - 1) * HOP_SAMPLES + N_FFT]
        yield 0, windows(np.pad(reach, (half, 0), mode="reflect"), N_FFT)[: head * HOP_SAMPLES : HOP_SAMPLES]
    if tail > head:
        inside = windows(samples, N_FFT)[head * HOP_SAMPLES - half :: HOP_SAMPLES]
        for start in range(head, tail, _BLOCK_FRAMES):
            yield start, inside[start - head : min(start + _BLOCK_FRAMES, tail) - head]
    if frames > tail:
        reach = samples[max(tail * HOP_SAMPLES - half, 0) :]
        skipped = tail * HOP_SAMPLES - half - max(tail * HOP_SAMPLES - half, 0)
        padded = np.pad(reach, (-skipped, half), mode="reflect")
        yield tail, windows(padded, N_FFT)[: (frames - tail) * HOP_SAMPLES : HOP_SAMPLES]


def _mel_block(frames: npt.NDArray[Any], precision: Literal["float32", "float64"]) -> npt.NDArray[Any]:
    """Return mel magnitudes (64, n) of n frames (n, 1024); the frames are not yet multiplied by the window."""
    window, filters, rfft = _analysis(precision)
    windowed = np.multiply(frames, window, dtype=precision)
    spectrum = rfft(windowed.T, axis=0, overwrite_x=True)
    magnitude = np.square(spectrum.real)
    magnitude += np.square(spectrum.imag)
    np.sqrt(magnitude, out=magnitude)
    return np.asarray(filters @ magnitude)


def log_mel(samples: F32, frames: int) -> F32:
    """Return the log-mel of 16 kHz mono audio: natural log with floor 1e-5.

    Args:
        samples: The complete audio (N,) float32 in [−1, 1].
        frames: Number of frames to compute.

    Returns:
        Log-mel (frames, 64) float32.

    Raises:
        ValueError: `frames` is larger than 1 + N // 160, or N is at most 512, so that reflection cannot pad the audio.
    """
    if len(samples) <= N_FFT // 2 or frames > 1 + len(samples) // HOP_SAMPLES:
        raise ValueError(f"{frames} mel frames need more than {len(samples)} samples")
    mel = np.empty((frames, MEL_BANDS), dtype=np.float32)
    for start, framed in _blocks_of_frames(samples, frames):
        block = _mel_block(framed, "float32")
        np.maximum(block, np.float32(LOG_FLOOR), out=block)
        wide = np.flatnonzero(block.min(axis=0) < _FLOAT32_RANGE * block.max(axis=0))
        if len(wide):
            block[:, wide] = np.maximum(_mel_block(framed[wide], "float64"), LOG_FLOOR)
        mel[start : start + len(framed)] = log_correctly_rounded(block).T
    return mel


class MelStream:
    """A log-mel transform of 16 kHz audio that arrives in blocks.

    All returned frames together equal `log_mel` of the complete audio, except for rounding. Only the last block of
    audio and about 0.07 s of audio before it are in memory.
    """

    def __init__(self) -> None:
        self._held: F32 = np.zeros(0, np.float32)  # audio from the centre of frame `_first`
        self._first = 0
        self._returned = 0  # frames returned so far

    def push(self, samples: F32) -> F32:
        """Append samples (N,), and return the frames (n, 64) that are now complete; n may be 0."""
        self._held = np.concatenate([self._held, samples])
        seen = self._first * HOP_SAMPLES + len(self._held)
        return self._frames((seen - N_FFT // 2) // HOP_SAMPLES + 1 if seen >= N_FFT else self._returned)

    def finish(self) -> F32:
        """Return the last frames (n, 64); raise ValueError if the audio has at most 512 samples in total."""
        return self._frames(self._first + len(self._held) // HOP_SAMPLES + 1)

    def _frames(self, stop: int) -> F32:
        """Return the new frames before frame `stop`, and keep the samples that later frames need."""
        if stop <= self._returned:
            return np.zeros((0, MEL_BANDS), np.float32)
        found = log_mel(self._held, stop - self._first)[self._returned - self._first :]
        self._returned = stop
        # A frame reaches back half a window, so earlier frames would contain reflected samples.
        first = max(self._first, stop - _HALF_WINDOW_FRAMES)
        self._held = self._held[(first - self._first) * HOP_SAMPLES :]
        self._first = first
        return found


def log_correctly_rounded(values: F32) -> F32:
    """Return the natural logarithm of positive float32 values, correctly rounded to float32.

    A float64 logarithm has an error of a few units in the last place. In about one of 10^7 values, a rounding boundary
    of float32 lies within this error. Such a value is computed in 60-digit decimal arithmetic (Ziv 1991).

    Args:
        values: Positive values.

    Returns:
        Their logarithms, of the same shape.
    """
    log = np.log(values, dtype=np.float64)
    rounded = log.astype(np.float32)
    # A float64 lies half-way between two float32 values if its last 29 bits are 1000…0.
    surplus = log.view(np.int64)
    surplus -= _HALFWAY - _LOG_ULPS
    surplus &= _SURPLUS_BITS
    doubtful = surplus < 2 * _LOG_ULPS
    if doubtful.any():
        for index in np.argwhere(doubtful):
            place = tuple(index)
            rounded[place] = _log_decimal(float(values[place]))
    return rounded


def _log_decimal(value: float) -> np.float32:
    """Return the correctly rounded float32 logarithm of one value, computed with 60 decimal digits."""
    with decimal.localcontext() as context:
        context.prec = 60
        exact = decimal.Decimal(value).ln()
        near = np.float32(float(exact))
        candidates = (np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf)))
        return min(candidates, key=lambda c: abs(decimal.Decimal(float(c)) - exact))


def mix_down(samples: npt.NDArray[np.floating]) -> F32:
    """Return the mean (N,) float32 of channels (N, C); mono audio (N,) is only converted to float32."""
    if samples.ndim == 1:
        return np.asarray(samples, dtype=np.float32)
    total = samples[:, 0].astype(np.float64)
    for channel in range(1, samples.shape[1]):
        total += samples[:, channel]
    return np.asarray(total / samples.shape[1], dtype=np.float32)


class Cancellation:
    """Detector of audio channels that cancel each other in their mean; it sums values and squares over blocks."""

    def __init__(self) -> None:
        self._count = self._channels = 0
        self._sums: F64 = np.zeros((2, 0))  # rows: sums of values, of squares; columns: each channel, then their mean

    def add(self, samples: npt.NDArray[np.floating], mono: F32) -> None:
        """Add a block of audio.

        Args:
            samples: Channels (N, C), or mono audio (N,), which cannot cancel.
            mono: Mean (N,) of the channels.
        """
        if samples.ndim == 1:
            return
        self._channels = samples.shape[1]
        found = np.array([_sums(track) for track in (*samples.T, mono)]).T
        self._sums = found if not self._count else self._sums + found
        self._count += len(mono)

    @property
    def problem(self) -> str | None:
        """Description of the cancellation; None if the channels do not cancel.

        Let s be the standard deviation over time of the mixed-down signal, the mean of C channels. Uncorrelated
        channels with standard deviations σ have s = sqrt(Σ σ²) / C. Channels cancel if s is below a quarter of this
        value.
        """
        if not self._count:
            return None
        mean, squares = self._sums / self._count
        *powers, mixed = np.maximum(squares - mean**2, 0.0)
        unrelated = math.sqrt(sum(powers)) / self._channels
        if math.sqrt(mixed) >= _CANCELLED * unrelated:
            return None
        return f"{self._channels} channels of level {math.sqrt(max(powers)):.3g} whose mean has {math.sqrt(mixed):.3g}"


def mix_down_in_phase(samples: npt.NDArray[np.floating]) -> F32:
    """Return the mean of the channels as `mix_down` does, and refuse channels that cancel each other.

    Args:
        samples: Audio of C channels (N, C), or mono audio (N,).

    Returns:
        Mono samples (N,) float32.

    Raises:
        RecordingFault: The channels cancel each other (``wav-channels-cancel``).
    """
    mono = mix_down(samples)
    cancelled = Cancellation()
    cancelled.add(samples, mono)
    if problem := cancelled.problem:
        raise RecordingFault("wav-channels-cancel", problem, "channels that are in phase")
    return mono


def _sums(track: npt.NDArray[np.floating]) -> tuple[float, float]:
    """Return the sum of the values and the sum of their squares."""
    wide = track.astype(np.float64)
    return float(wide.sum()), float(np.square(wide).sum())


def resample(samples: F32, rate_hz: int) -> F32:
    """Resample mono audio to 16 kHz with librosa and soxr (high quality); 16 kHz audio is unchanged.

    Args:
        samples: Mono audio of N samples, (N,).
        rate_hz: Sample rate of the input in Hz.

    Returns:
        Mono audio at 16 kHz, of M samples, (M,).
    """
    if rate_hz == SAMPLE_RATE_HZ:
        return samples
    converted = load_librosa().resample(samples, orig_sr=rate_hz, target_sr=SAMPLE_RATE_HZ, res_type="soxr_hq")
    return np.ascontiguousarray(converted, dtype=np.float32)


def loudness_gain(samples: F32, rule: Loudness) -> float:
    """Return the factor by which audio is multiplied before the mel transform.

    The factor is 1 for ``none``. For ``peak`` it scales the peak to 0.5, the level of AudioLDM2's training. The
    sample's metadata stores the factor, so that the scaling can be undone.

    Args:
        samples: Mono audio (N,).
        rule: Loudness rule, ``none`` or ``peak``.

    Returns:
        The factor; multiply the audio by it.
    """
    if rule == "none":
        return 1.0
    peak = float(max(samples.max(), -samples.min()))
    return PEAK_LEVEL / peak
