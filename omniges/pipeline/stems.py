"""File-name stems of BEAT2: ``<speaker>_<name>_<rec>_<start>_<end>`` to speaker, language, scenario and emotion."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_GRAMMAR: Final = re.compile(r"(\d{1,4})_([a-z]+)_([0-7])_(\d{1,4})_(\d{1,4})")
_LANGUAGES: Final = ("english", "chinese", "spanish", "japanese")  # rec digit // 2
_SCENARIOS: Final = ("speech", "conversation")  # rec digit % 2

# First start index of each emotion of a speech recording; the label's id is its place here.
EMOTION_STARTS: Final = {
    "neutral": 0,
    "happiness": 65,
    "anger": 73,
    "sadness": 81,
    "contempt": 87,
    "surprise": 95,
    "fear": 103,
    "disgust": 111,
}
_LAST_EMOTION_START: Final = 118
_FOLDER: Final = re.compile(r"(?:speaker)?_?(\d{1,4})(?:_([a-z]+))?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class StemFields:
    """What a stem says; every field is None where the stem is outside the grammar."""

    speaker_id: int | None = None
    speaker: str | None = None
    language: str | None = None
    scenario: str | None = None
    emotion: str | None = None
    start: int | None = None

    @property
    def known(self) -> bool:
        """Whether the stem follows the grammar."""
        return self.speaker_id is not None


def parse_stem(stem: str) -> StemFields:
    """Fields of a stem. A conversation is neutral; a speech index beyond 118 has no emotion (None)."""
    match = _GRAMMAR.fullmatch(stem)
    if match is None:
        return StemFields()
    rec, start = int(match[3]), int(match[4])
    scenario = _SCENARIOS[rec % 2]
    return StemFields(
        speaker_id=int(match[1]),
        speaker=match[2],
        language=_LANGUAGES[rec // 2],
        scenario=scenario,
        emotion=_emotion(start) if scenario == "speech" else "neutral",
        start=start,
    )


def _emotion(start: int) -> str | None:
    if start > _LAST_EMOTION_START:
        return None
    return max((first, name) for name, first in EMOTION_STARTS.items() if first <= start)[1]


def speaker_of_folder(folder: str) -> tuple[int | None, str | None]:
    """Speaker id and name that a folder such as ``2``, ``speaker2``, ``2_scott`` or ``scott`` names, else Nones."""
    match = _FOLDER.fullmatch(folder)
    if match:
        return int(match[1]), match[2].lower() if match[2] else None
    return None, folder.lower() if re.fullmatch(r"[A-Za-z]+", folder) else None
