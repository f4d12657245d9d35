"""Synthetic words as chords: each word is three tones that sound at the same time."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from omniges.features.timebase import FRAME_RATE_HZ, SAMPLE_RATE_HZ
from omniges.testing.moving import SINE, Phone, SpokenWord
from omniges.testing.settings import CorpusSettings
from omniges.testing.signatures import WordSignature

F32 = npt.NDArray[np.float32]

_SAMPLES_PER_CENTISECOND: Final = SAMPLE_RATE_HZ // 100
_TONE_AMPLITUDE: Final = 0.2
_AUDIO_RAMP: Final = 320  # samples, 20 ms
_WORD_CS: Final = (25, 70)
_PAUSE_CS: Final = (5, 50)
_RAMP: Final = (0.5 - 0.5 * SINE[(np.arange(_AUDIO_RAMP) * 25 + SAMPLE_RATE_HZ // 4) % SAMPLE_RATE_HZ]).astype(
    np.float32
)


def chord_words(
    rng: np.random.Generator, settings: CorpusSettings, vocabulary: Sequence[WordSignature]
) -> list[SpokenWord]:
    """Choose random words of 0.25–0.7 s, each after a pause of 0.05–0.5 s, and never the same word twice in a row.

    Args:
        rng: Random number generator of the clip.
        settings: Settings of the corpus.
        vocabulary: Signatures of the words, by word index.

    Returns:
        The words of a clip. A word has two to four phones; the label of a phone is a piece of the word's spelling.
    """
    last_end = 100 * settings.frames // FRAME_RATE_HZ - _PAUSE_CS[0]
    maximum = last_end // (_WORD_CS[0] + _PAUSE_CS[0]) + 1
    durations = rng.integers(_WORD_CS[0], _WORD_CS[1] + 1, maximum)
    pauses = rng.integers(_PAUSE_CS[0], _PAUSE_CS[1] + 1, maximum)
    steps = rng.integers(1, settings.words, maximum)
    steps[0] = rng.integers(settings.words)
    ends = np.cumsum(pauses + durations)
    spoken = ends <= last_end
    words = np.cumsum(steps) % settings.words
    return [
        SpokenWord(index, start / 100, end / 100, _phones(index, vocabulary[index].word, start, end))
        for index, start, end in zip(
            *(array[spoken].tolist() for array in (words, ends - durations, ends)), strict=True
        )
    ]


def _phones(index: int, word: str, start_cs: int, end_cs: int) -> tuple[Phone, ...]:
    parts = 2 + index % 3
    times = [start_cs + (end_cs - start_cs) * k // parts for k in range(parts + 1)]
    letters = [len(word) * k // parts for k in range(parts + 1)]
    return tuple(
        Phone(word[letters[k] : letters[k + 1]].upper(), times[k] / 100, times[k + 1] / 100) for k in range(parts)
    )


@functools.lru_cache(maxsize=256)
def _chord(tones_hz: tuple[int, ...]) -> F32:
    """Return 1.7 s of audio at 16 kHz with all tones. A word uses up to 0.7 s, from a random start before 1 s."""
    steps = np.arange(SAMPLE_RATE_HZ + _WORD_CS[1] * _SAMPLES_PER_CENTISECOND)
    total = np.zeros(len(steps))
    for tone in tones_hz:
        total += SINE[tone * steps % SAMPLE_RATE_HZ]
    return (_TONE_AMPLITUDE * total).astype(np.float32)


def add_chords(
    rng: np.random.Generator,
    samples: F32,
    words: Sequence[SpokenWord],
    pitch: float,
    vocabulary: Sequence[WordSignature],
) -> None:
    """Add the sound of words to a clip; the peak stays below 0.7.

    Args:
        rng: Random number generator of the clip.
        samples: N audio samples of the clip, (N,), at 16 kHz; changed in place.
        words: Words of the clip, with their times.
        pitch: Factor by which the frequency of every tone is multiplied; it depends on the speaker.
        vocabulary: Signatures of the words, by word index.
    """
    phases = rng.integers(SAMPLE_RATE_HZ, size=len(words))
    chords = [_chord(tuple(int(np.rint(t * pitch)) for t in word.tones_hz)) for word in vocabulary]
    for word, phase in zip(words, phases, strict=True):
        first, stop = (round(100 * second) * _SAMPLES_PER_CENTISECOND for second in (word.start_s, word.end_s))
        tones = chords[word.index][phase : phase + stop - first].copy()
        tones[:_AUDIO_RAMP] *= _RAMP
        tones[-_AUDIO_RAMP:] *= _RAMP[::-1]
        samples[first:stop] += tones
