"""Settings of the sample corpus. This module imports quickly, so that `omniges --help` is fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from omniges.errors import UsageFault
from omniges.features.timebase import FRAME_RATE_HZ
from omniges.options import check, declared, option

MAX_WORDS: Final = 7**3
"""Largest vocabulary: the number of ways to choose one of seven tones in each of three registers."""
SPOKEN_WORDS: Final = (
    *("some", "and", "that", "we", "have", "with", "this", "people", "about", "when", "make", "time"),
    *("because", "good", "work", "first", "always", "every", "think", "home", "never", "music", "family", "little"),
    *("morning", "school", "friend", "water", "country", "together", "question", "story", "happy", "number", "money"),
    *(
        "summer",
        "coffee",
        "garden",
        "picture",
        "window",
        "travel",
        "problem",
        "river",
        "mountain",
        "dinner",
        "hospital",
    ),
    *("yellow", "captain", "holiday", "orange", "village", "doctor", "butter", "elephant", "thunder", "bicycle"),
    *("market", "purple", "silver", "umbrella", "kitchen", "forest", "dangerous", "chocolate", "football", "library"),
    *("camera", "engine", "winter", "paper", "island", "magazine", "beautiful", "tomorrow", "potato", "animal"),
    *("seven", "university", "jacket", "ocean", "record", "supper", "castle", "tiger", "planet", "bottle", "hammer"),
)
"""Words of a corpus with a voice; the most frequent word is first."""
_MAX_CLIPS_PER_SPEAKER: Final = 9999
Layout = Literal["official", "seed"]
Audio = Literal["pcm16", "float32"]


@declared
@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusSettings:
    """Settings of a synthetic corpus. An invalid value raises UsageFault, which names the option."""

    clips: int = option(12, "Number of recordings of all speakers together: at least one and at most 9999 per speaker.")
    seconds: float = option(
        12.0, "Length of each recording in seconds, 2 to 1200; rounded to frames of 1/30 s.", minimum=2, maximum=1200
    )
    words: int = option(12, "Size of the vocabulary, 2 to 343.", minimum=2, maximum=MAX_WORDS)
    speakers: int = option(2, "Number of speakers, 1 to 26.", minimum=1, maximum=26)  # one letter each
    seed: int = option(0, "Random seed; the same settings and seed give the same bytes.", minimum=0, maximum=2**63 - 1)
    layout: Layout = option(
        "official", "Folder layout; official: that of BEAT2; seed: an older one with speaker folders."
    )
    emotions: int = option(
        1,
        "Number of emotions, 1 to 8. Each has its own idle pose, and the recordings of a speaker cycle through them.",
        minimum=1,
        maximum=8,
    )
    voice: bool = option(
        False, "Let eSpeak NG speak frequent English words, in place of musical chords; needs omniges[speech]."
    )
    audio: Audio = option("pcm16", "Sample format of the WAV files.")

    def __post_init__(self) -> None:
        """Check the settings; raise UsageFault for a value that is invalid."""
        check(self)
        maximum = _MAX_CLIPS_PER_SPEAKER * self.speakers
        if not self.speakers <= self.clips <= maximum:
            raise UsageFault(f"--clips {self.clips}: expected a number from {self.speakers} to {maximum}")
        if self.voice and self.words > len(SPOKEN_WORDS):
            raise UsageFault(f"--words {self.words}: expected at most {len(SPOKEN_WORDS)} with --voice; choose fewer")

    @property
    def frames(self) -> int:
        """Number of motion frames of a clip."""
        return round(self.seconds * FRAME_RATE_HZ)
