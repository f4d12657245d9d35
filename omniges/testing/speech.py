"""Synthetic speech: random sentences of frequent English words, spoken by eSpeak NG, with exact times of the words.

Words are random and follow Zipf's law: the lower a word's index, the more often it occurs. Loudness and pitch of each
word are random too. A louder word has a larger gesture, and each stressed syllable has a beat gesture. The bytes depend
on the versions of eSpeak NG and soxr.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.errors import EnvironmentFault
from omniges.features.audio import resample
from omniges.features.timebase import SAMPLE_RATE_HZ
from omniges.testing.moving import Phone, SpokenWord
from omniges.testing.settings import SPOKEN_WORDS, CorpusSettings

F32 = npt.NDArray[np.float32]

_VOICES: Final = tuple(
    f"{accent}+{variant}"
    for variant in ("m1", "f2", "m3", "f4", "m7", "f5", "m4", "f1")
    for accent in ("en-us", "en-gb-x-rp", "en-gb-scotland", "en-029")
)
_ZIPF_OFFSET: Final = 2.7  # Mandelbrot's offset for English
_SENTENCE_WORDS: Final = (4, 9)
_PAUSE_S: Final = (0.2, 0.6)
_SHORTEST_SENTENCE_S: Final = 1.3  # few sentences are shorter; determines how many sentences are drawn for a clip
_QUIET_S: Final = 0.1  # silence at the end of a clip
_GAIN: Final = (0.5, 1.5)
_PITCH_PERCENT: Final = 25
_PEAK: Final = 0.45  # peak of speech before gains, so that no sample exceeds 0.7
_RAMP_S: Final = 0.01
_TIMEOUT_S: Final = 300


def speak(
    rng: np.random.Generator, settings: CorpusSettings, speaker: int, seconds: float
) -> tuple[list[SpokenWord], F32]:
    """Synthesize random sentences until a clip is full.

    Args:
        rng: Random number generator of the clip.
        settings: Settings of the corpus.
        speaker: Index of the speaker, from 1; it determines voice, speaking rate and pitch.
        seconds: Length of the clip in seconds.

    Returns:
        The words with their times, and N audio samples at 16 kHz, (N,), which are as long as the clip.

    Raises:
        EnvironmentFault: eSpeak NG is not installed, or does not answer as expected.
    """
    sentences = [_sentence(rng, settings.words) for _ in range(2 + int(seconds / _SHORTEST_SENTENCE_S))]
    answer, pcm = _synthesize(
        {
            "voice": _VOICES[(speaker - 1) % len(_VOICES)],
            "words_per_minute": 150 + 7 * (speaker % 5),
            "pitch": 38 + 5 * (speaker % 6),
            "sentences": [_ssml(sentence) for sentence in sentences],
        }
    )
    rate_hz, first = int(answer["rate_hz"]), 0
    words: list[SpokenWord] = []
    samples = np.zeros(round(seconds * SAMPLE_RATE_HZ), np.float32)
    start_s = rng.uniform(*_PAUSE_S)
    for sentence, spoken in zip(sentences, answer["sentences"], strict=True):
        recorded = pcm[first : first + spoken["samples"]]
        first += spoken["samples"]
        found = _timed(sentence, spoken["events"], rate_hz)
        if start_s + len(recorded) / rate_hz + _QUIET_S > seconds:
            break
        sound = resample((recorded / 32768).astype(np.float32), rate_hz)
        sound *= np.float32(_PEAK / max(1e-3, float(np.abs(sound).max())))
        sound *= _gains(found, len(sound))
        place = round(start_s * SAMPLE_RATE_HZ)
        samples[place : place + len(sound)] += sound[: len(samples) - place]
        words += [_shifted(word, place / SAMPLE_RATE_HZ) for word in found]
        start_s += len(sound) / SAMPLE_RATE_HZ + rng.uniform(*_PAUSE_S)
    return words, samples


def _sentence(rng: np.random.Generator, words: int) -> list[tuple[int, float, float]]:
    """Return a random sentence as (index, gain, pitch) of each word; no word occurs twice in a row.

    `words` is the size of the vocabulary. The pitch is from −1 (low) to 1 (high).
    """
    weights = 1 / (np.arange(words) + 1 + _ZIPF_OFFSET)
    drawn: list[tuple[int, float, float]] = []
    for _ in range(rng.integers(_SENTENCE_WORDS[0], _SENTENCE_WORDS[1] + 1)):
        others = weights.copy()
        if drawn:
            others[drawn[-1][0]] = 0
        bounds = np.cumsum(others)
        index = int(np.searchsorted(bounds, rng.uniform() * bounds[-1], side="right"))
        drawn.append((min(index, words - 1), rng.uniform(*_GAIN), rng.uniform(-1, 1)))
    return drawn


def _ssml(sentence: Sequence[tuple[int, float, float]]) -> str:
    words = [
        f'<prosody pitch="{round(_PITCH_PERCENT * pitch):+d}%">{SPOKEN_WORDS[index]}</prosody>'
        for index, _, pitch in sentence
    ]
    return " ".join(words) + "."


def _synthesize(request: Mapping[str, Any]) -> tuple[dict[str, Any], npt.NDArray[np.int16]]:
    """Run `omniges.testing.espeak` in a process; return its JSON object and its N int16 audio samples, (N,)."""
    command = [sys.executable, "-m", "omniges.testing.espeak"]
    done = subprocess.run(
        command, input=json.dumps(request).encode(), capture_output=True, timeout=_TIMEOUT_S, check=False
    )
    if done.returncode:
        why = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise EnvironmentFault(
            f"--voice: expected eSpeak NG to speak, found an error ({why or f'exit code {done.returncode}'}); run "
            "pip install 'omniges[speech]', or install espeak-ng"
        )
    head, _, samples = done.stdout.partition(b"\n")
    return json.loads(head), np.frombuffer(samples, np.int16)


def _timed(
    sentence: Sequence[tuple[int, float, float]], events: Sequence[Sequence[Any]], rate_hz: int
) -> list[SpokenWord]:
    """Return the words of a sentence with their phones. All times are in seconds from the start of the sentence."""
    groups: list[list[Phone]] = []
    ends = [event[1] for event in events[1:]] + [events[-1][1] if events else 0]
    for (kind, sample, label), end in zip(events, ends, strict=True):
        if kind == "word":
            groups.append([])
        elif groups and not label.startswith("_") and end > sample:  # _ is a pause
            groups[-1].append(Phone(label, sample / rate_hz, end / rate_hz))
    if len(groups) != len(sentence) or not all(groups):
        raise EnvironmentFault(
            f"--voice: expected {len(sentence)} words from eSpeak NG, found {sum(map(bool, groups))}; install "
            "another version of eSpeak NG"
        )
    return [
        SpokenWord(
            index,
            phones[0].start_s,
            phones[-1].end_s,
            tuple(Phone(phone.label.lstrip("',"), phone.start_s, phone.end_s) for phone in phones),
            gain,
            pitch,
            tuple(phone.start_s for phone in phones if phone.label.startswith("'")),
        )
        for (index, gain, pitch), phones in zip(sentence, groups, strict=True)
    ]


def _shifted(word: SpokenWord, offset_s: float) -> SpokenWord:
    phones = tuple(Phone(p.label, p.start_s + offset_s, p.end_s + offset_s) for p in word.phones)
    stresses = tuple(moment + offset_s for moment in word.stresses_s)
    times = word.start_s + offset_s, word.end_s + offset_s
    return SpokenWord(word.index, *times, phones, word.gain, word.pitch, stresses)


def _gains(words: Sequence[SpokenWord], samples: int) -> F32:
    """Return the gain of each audio sample at 16 kHz, (samples,).

    During a word, it is the gain of the word. Between words, it changes linearly.
    """
    times = [moment for word in words for moment in (word.start_s + _RAMP_S, word.end_s - _RAMP_S)]
    levels = [word.gain for word in words for _ in range(2)]
    return np.interp(np.arange(samples) / SAMPLE_RATE_HZ, np.maximum.accumulate(times), levels).astype(np.float32)
