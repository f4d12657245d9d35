"""Log-mels to waveforms: least-squares magnitudes and Griffin-Lim phases.

Magnitudes are those of the filters' pseudo-inverse, at least 0, brought nearer to the mel by multiplicative updates
(Lee and Seung 2001), which keep them non-negative. Phases come from librosa's Griffin-Lim with momentum 0.99 (Griffin
and Lim 1984; Perraudin et al. 2013), begun with random ones of a seed. What a mel of 64 bands does not tell is not
there: the sound is that of a telephone in a hall, for listening, not for measuring.
"""

from __future__ import annotations

import functools
from typing import Final

import numpy as np
import numpy.typing as npt

from omniges.features.audio import MEL_BANDS, N_FFT, mel_filterbank
from omniges.features.timebase import HOP_SAMPLES
from omniges.generation.writers import MelVoice

__all__ = ["LEAST_FRAMES", "GriffinLim", "waveform_from_mel"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_UPDATES: Final = 30
_ITERATIONS: Final = 32
_SEGMENT_FRAMES: Final = 2000
_FADE_FRAMES: Final = 50
_TINY: Final = 1e-10

LEAST_FRAMES: Final = N_FFT // HOP_SAMPLES // 2 + 1
"""Of a mel that has a waveform."""


@functools.cache
def _inverse_filters() -> F64:
    return np.asarray(np.linalg.pinv(mel_filterbank()))


def _magnitudes(mel: F32) -> F64:
    """STFT magnitudes (513, F) whose mel is nearest to exp of log-mels (F, 64)."""
    wanted = np.exp(mel.astype(np.float64)).T
    filters = mel_filterbank()
    found = np.maximum(_inverse_filters() @ wanted, _TINY)
    for _ in range(_UPDATES):
        found *= (filters.T @ wanted) / (filters.T @ (filters @ found) + _TINY)
    return np.asarray(found)


class GriffinLim:
    """A voice: 16 kHz samples of a log-mel that comes in pieces, by Griffin–Lim.

    Segments of 20 s fade into each other over 0.5 s, so memory does not grow with length. Same mel and seed, same
    samples, however the mel is cut into pieces.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._held: F32 = np.zeros((0, MEL_BANDS), np.float32)
        self._tail: F64 | None = None  # the end of the last segment, fading out

    def push(self, mel: F32) -> F32:
        """More of the mel (F, 64); returns the samples that are ready, 0 or more."""
        if mel.ndim != 2 or mel.shape[1] != MEL_BANDS:
            raise ValueError(f"log-mel (F, {MEL_BANDS}) expected, found {mel.shape}")
        self._held = np.concatenate([self._held, mel])
        ready = []
        while len(self._held) > _SEGMENT_FRAMES + _FADE_FRAMES:
            piece = self._segment(self._held[: _SEGMENT_FRAMES + _FADE_FRAMES])
            ready.append(piece[: _SEGMENT_FRAMES * HOP_SAMPLES])
            self._tail = piece[_SEGMENT_FRAMES * HOP_SAMPLES :] * _fade()[::-1]
            self._held = self._held[_SEGMENT_FRAMES:]
        return _joined(ready)

    def finish(self) -> F32:
        """The last samples. Raises ValueError where there were fewer than 4 frames in all."""
        if len(self._held) < LEAST_FRAMES:
            raise ValueError(f"log-mel of at least {LEAST_FRAMES} frames expected, found {len(self._held)}")
        return _joined([self._segment(self._held)])

    def _segment(self, mel: F32) -> F64:
        piece = _griffin_lim(mel, self._seed)
        self._seed += 1
        if self._tail is not None:
            piece[: len(self._tail)] = piece[: len(self._tail)] * _fade() + self._tail
        return piece


def _fade() -> F64:
    count = _FADE_FRAMES * HOP_SAMPLES
    return (np.arange(count) + 0.5) / count


def _joined(pieces: list[F64]) -> F32:
    return np.concatenate([np.zeros(0), *pieces]).astype(np.float32)


def waveform_from_mel(mel: F32, voice: MelVoice) -> F32:
    """16 kHz samples (160 F,) float32 of a whole log-mel (F, 64), in [−1, 1]: louder ones are scaled down.

    Raises what the voice does; Griffin–Lim ValueError for another shape or fewer than 4 frames.
    """
    samples = np.concatenate([voice.push(mel), voice.finish()])
    return np.asarray(samples / max(1.0, float(np.abs(samples).max())), dtype=np.float32)


def _griffin_lim(mel: F32, seed: int) -> F64:
    """Samples (160 F,) of a segment."""
    import librosa  # noqa: PLC0415 - seconds that only audio pays

    padded = np.concatenate([mel, mel[-1:]])  # frame F is centred on the last sample's end
    found = librosa.griffinlim(
        _magnitudes(padded),
        n_iter=_ITERATIONS,
        hop_length=HOP_SAMPLES,
        win_length=N_FFT,
        n_fft=N_FFT,
        length=len(mel) * HOP_SAMPLES,
        random_state=seed % 2**32,
        momentum=0.99,
        dtype=np.float64,
        pad_mode="reflect",
    )
    return np.asarray(found, dtype=np.float64)
