"""Speaking rate: durations of words and pauses, learned from the training words.

Checkpoints contain these durations, so that `generate` can assign times to plain text.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Final

from omniges.errors import DataError
from omniges.storage.documents import Count, Document, Range
from omniges.storage.files import json_document, parse_json

SPEAKING_RATE_FILE: Final = "speaking_rate.json"
_MIN_S: Final = 0.05
_MAX_S: Final = 3600.0
_OTHER: Final = "choose another checkpoint"
_Seconds = Annotated[float, Range(-_MAX_S, _MAX_S)]
_Pause = Annotated[float, Range(0.0, _MAX_S)]


@dataclass(frozen=True, slots=True)
class SpeakingRate:
    """Durations of words and of the pauses between words, in seconds.

    A word of n letters takes ``base_s`` + n · ``letter_s``.
    """

    base_s: _Seconds
    letter_s: _Seconds
    gap_s: _Pause  # pause between words of a phrase
    phrase_s: _Pause  # pause after a comma and similar
    sentence_s: _Pause  # pause after a full stop and similar
    words: Count  # number of words from which the durations were learned

    def as_json(self) -> bytes:
        """Return the speaking rate as JSON, which is the content of `SPEAKING_RATE_FILE`."""
        return json_document(asdict(self))

    @classmethod
    def from_json(cls, content: bytes, where: str = SPEAKING_RATE_FILE) -> SpeakingRate:
        """Parse the result of `as_json`.

        Args:
            content: Bytes of the file.
            where: Path of the file, for errors.

        Returns:
            The speaking rate.

        Raises:
            DataError: The content is not a speaking rate.
        """
        try:
            found = parse_json(content)
        except ValueError as error:
            raise DataError(f"{where}: expected a JSON document, found damage ({error}); {_OTHER}") from error
        return Document(found, where, _OTHER).read(cls)

    def word_s(self, word: str) -> float:
        """Return the duration of a word in seconds, from its number of letters and digits; at least 0.05."""
        return max(_MIN_S, self.base_s + self.letter_s * letter_count(word))


def letter_count(word: str) -> int:
    """Return the number of letters and digits of a word."""
    return sum(character.isalnum() for character in word)
