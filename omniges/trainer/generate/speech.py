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

__all__ = ["waveform_from_mel"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_UPDATES: Final = 30
_ITERATIONS: Final = 32
_SEGMENT_FRAMES: Final = 2000
_FADE_FRAMES: Final = 50
_TINY: Final = 1e-10


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


def waveform_from_mel(mel: F32, seed: int) -> F32:
    """16 kHz samples (160 F,) float32 of a log-mel (F, 64), in [−1, 1]: louder ones are scaled down.

    Long mels are done in segments of 20 s that fade into each other over 0.5 s, so memory does not grow with length
    but for the result. Same mel and seed, same bytes. Raises ValueError for another shape or fewer than 4 frames.
    """
    if mel.ndim != 2 or mel.shape[1] != MEL_BANDS or len(mel) < N_FFT // HOP_SAMPLES // 2 + 1:
        raise ValueError(f"log-mel ({N_FFT // HOP_SAMPLES // 2 + 1} or more, {MEL_BANDS}) expected, found {mel.shape}")
    samples = np.zeros(len(mel) * HOP_SAMPLES)
    for number, start in enumerate(range(0, max(1, len(mel) - _FADE_FRAMES), _SEGMENT_FRAMES)):
        stop = min(start + _SEGMENT_FRAMES + _FADE_FRAMES, len(mel))
        piece = _griffin_lim(mel[start:stop], seed + number)
        if start:
            fade = (np.arange(_FADE_FRAMES * HOP_SAMPLES) + 0.5) / (_FADE_FRAMES * HOP_SAMPLES)
            piece[: len(fade)] *= fade
            samples[start * HOP_SAMPLES : start * HOP_SAMPLES + len(fade)] *= 1 - fade
        samples[start * HOP_SAMPLES : stop * HOP_SAMPLES] += piece
    peak = np.abs(samples).max()
    return np.asarray(samples / max(1.0, peak), dtype=np.float32)


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
