"""Metrics of generated speech, computed from log-mels or from text.

Metrics of log-mels are L1, mel-cepstral distortion and the agreement of onsets. Metrics of text are the word and
character error rates, and the time differences of words.

Letters: F mel frames, B bands, K cepstra. Log-mels are natural logarithms of amplitudes, as in shards.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError, UsageFault
from omniges.features.body import Numbers
from omniges.features.timebase import HOP_SAMPLES, SAMPLE_RATE_HZ
from omniges.formats.arrays import F64, checked
from omniges.formats.textgrid import WordInterval
from omniges.metrics.clips import ClipValue, checked_pair
from omniges.storage.librosa_import import load_librosa

I64 = npt.NDArray[np.int64]

_APOSTROPHES: Final = str.maketrans(dict.fromkeys("\u2019\u02bc\uff07", "'"))
_PAIR, _DELETION, _INSERTION = range(3)
_SPACELESS_SCRIPTS: Final = (
    *("CJK UNIFIED", "CJK COMPATIBILITY", "HIRAGANA", "KATAKANA", "IDEOGRAPHIC", "BOPOMOFO"),
    *("THAI", "LAO", "KHMER", "MYANMAR"),
)

CEPSTRA: Final = 13
ONSET_TOLERANCE_S: Final = 0.05
_DB: Final = 10 * math.sqrt(2) / math.log(10)  # Kubichek (1993)
_MIN_FRAMES: Final = 4  # fewer frames have no peaks


@dataclass(frozen=True, slots=True)
class OnsetCounts:
    """Counts of matched, found and expected onsets. The counts of several clips can be added with +."""

    matched: int
    found: int
    expected: int

    @property
    def f_score(self) -> float:
        """F score: 2 · matched / (found + expected).

        Raises:
            DataError: There are neither found nor expected onsets.
        """
        if self.found + self.expected == 0:
            raise DataError("onset agreement: expected speech, found no onsets on either side")
        return 2 * self.matched / (self.found + self.expected)

    def __add__(self, other: OnsetCounts) -> OnsetCounts:
        return OnsetCounts(self.matched + other.matched, self.found + other.found, self.expected + other.expected)


def log_mel_l1(generated: Numbers, recorded: Numbers) -> ClipValue:
    """Compute the mean absolute difference between two log-mels, over frames and bands.

    Args:
        generated: Log-mel (F, B).
        recorded: Log-mel (F, B).

    Returns:
        The difference in nats, with weight F.

    Raises:
        UsageFault: The shapes are wrong or differ.
        DataError: There are no frames, or values that are NaN or infinite.
    """
    found, expected = _mels(generated, recorded)
    return ClipValue(float(np.abs(found - expected).mean()), float(len(found)))


def mel_cepstral_distortion(generated: Numbers, recorded: Numbers) -> ClipValue:
    """Compute the mel-cepstral distortion between two log-mels, without time warping (Kubichek 1993).

    The value is (10 √2 / ln 10) · mean over frames of √(Σ_k (c_k − c'_k)²), with k = 1..13 and
    c_k = (2/B) Σ_b L_b cos(π k (b + ½)/B). L_b is the log-mel in band b.

    Args:
        generated: Log-mel (F, B) with at least 14 bands.
        recorded: Log-mel (F, B).

    Returns:
        The distortion in dB, with weight F.

    Raises:
        UsageFault: The shapes are wrong or differ, or there are fewer than 14 bands.
        DataError: There are no frames, or values that are NaN or infinite.
    """
    found, expected = _mels(generated, recorded)
    bands = found.shape[1]
    if not bands > CEPSTRA:
        raise UsageFault(f"mel-cepstral distortion: expected more than {CEPSTRA} bands, found {bands}")
    k, b = np.arange(1, CEPSTRA + 1)[:, None], np.arange(bands)
    basis = 2 / bands * np.cos(np.pi * k * (b + 0.5) / bands)
    difference = (found - expected) @ basis.T
    return ClipValue(float(_DB * np.linalg.norm(difference, axis=1).mean()), float(len(found)))


def _mels(generated: Numbers, recorded: Numbers) -> tuple[F64, F64]:
    found, expected = checked_pair(generated, recorded, "log-mels", (None, None))
    if found.shape[1] == 0:
        raise UsageFault("log-mels: expected (frames, bands), found no bands")
    return found, expected


def mel_onsets(mel: Numbers) -> F64:
    """Find the onsets of a log-mel with librosa.

    For each frame, the increase of each band since the previous frame is averaged over the bands; a decrease counts as
    0. Onsets are peaks of this average. Silence has no onsets.

    Args:
        mel: Log-mel (F, B) with hop 160 (100 Hz) and at least 4 frames.

    Returns:
        Onset times (N,) in seconds.

    Raises:
        UsageFault: The shape is wrong.
        DataError: There are fewer than 4 frames, or values that are NaN or infinite.
    """
    levels = checked(mel, "log-mel", (None, None), at_least=_MIN_FRAMES)
    if levels.shape[1] == 0:
        raise UsageFault("log-mel: expected (frames, bands), found no bands")
    rise = np.concatenate([[0.0], np.maximum(np.diff(levels, axis=0), 0.0).mean(axis=1)])
    if rise.max() == 0:
        return np.empty(0)
    detect = load_librosa().onset.onset_detect
    times = detect(onset_envelope=rise, sr=SAMPLE_RATE_HZ, hop_length=HOP_SAMPLES, units="time")
    return np.asarray(times, dtype=np.float64)


def onset_agreement(found_s: Numbers, expected_s: Numbers) -> OnsetCounts:
    """Count matching onsets: pairs of a found and an expected onset that are at most 0.05 s apart.

    Each onset is in at most one pair. The pairs are chosen so that their number is as large as possible.

    Args:
        found_s: Onset times (N,) in seconds, in any order.
        expected_s: Onset times (M,) in seconds, in any order.

    Returns:
        The number of pairs, and the numbers N of found and M of expected onsets.

    Raises:
        UsageFault: The shape is wrong.
        DataError: A time is NaN or infinite.
    """
    found = np.sort(checked(found_s, "onsets found", (None,), at_least=0))
    expected = np.sort(checked(expected_s, "expected onsets", (None,), at_least=0))
    i = j = matched = 0
    # Times are sorted, so pairing the two earliest onsets that match gives the largest number of pairs.
    while i < len(found) and j < len(expected):
        apart = found[i] - expected[j]
        if abs(apart) <= ONSET_TOLERANCE_S:
            matched, i, j = matched + 1, i + 1, j + 1
        elif apart < 0:
            i += 1
        else:
            j += 1
    return OnsetCounts(matched, len(found), len(expected))


# --- text


@dataclass(frozen=True, slots=True)
class EditCounts:
    """Counts of the edits that turn the expected items into the found items.

    The counts of several clips can be added with +.
    """

    substitutions: int
    deletions: int
    insertions: int
    expected: int

    @property
    def edits(self) -> int:
        """Total number of edits."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Error rate: edits divided by expected items. It exceeds 1 if there are many insertions.

        Raises:
            DataError: There are no expected items.
        """
        if self.expected == 0:
            raise DataError(f"error rate: expected a reference text, found none for {self.insertions} generated units")
        return self.edits / self.expected

    def __add__(self, other: EditCounts) -> EditCounts:
        return EditCounts(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.expected + other.expected,
        )


def normalised_text(text: str) -> str:
    """Normalise a text, so that it can be compared with another text.

    The text is normalised to NFKC, case folded and normalised again. Letters, marks and numbers are kept. Curly
    apostrophes become straight ones, and apostrophes inside words are kept. All other characters become spaces.

    Args:
        text: Text in any language.

    Returns:
        The normalised words, joined by single spaces.
    """
    folded = _folded(text)
    kept = []
    for k, character in enumerate(folded):
        inside = character == "'" and 0 < k < len(folded) - 1 and _is_word(folded[k - 1]) and _is_word(folded[k + 1])
        kept.append(character if inside or _is_word(character) else " ")
    return " ".join("".join(kept).split())


def normalised_word(word: str) -> str:
    """Return the letters, marks and numbers of a word, case folded; "" for a word of only punctuation."""
    return "".join(character for character in _folded(word) if _is_word(character))


def _folded(text: str) -> str:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return folded.translate(_APOSTROPHES)


def _is_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN"


def word_errors(found: str, expected: str) -> EditCounts:
    """Count the edits between the normalised words of two texts.

    Args:
        found: Generated text.
        expected: Recorded text.

    Returns:
        Edits and the number of expected words.
    """
    return count_edits(normalised_text(found).split(), normalised_text(expected).split())


def character_errors(found: str, expected: str) -> EditCounts:
    """Count the edits between the characters (code points) of two normalised texts.

    A space counts as a character, except between two characters of a script without word spaces, such as Chinese.

    Args:
        found: Generated text.
        expected: Recorded text.

    Returns:
        Edits and the number of expected characters.
    """
    return count_edits(_as_written(normalised_text(found)), _as_written(normalised_text(expected)))


def _as_written(text: str) -> str:
    """Remove spaces between two characters of scripts without word spaces, such as Chinese."""
    kept = [
        character
        for k, character in enumerate(text)
        if character != " " or not (_is_spaceless(text[k - 1]) and _is_spaceless(text[k + 1]))
    ]
    return "".join(kept)


def _is_spaceless(character: str) -> bool:
    return unicodedata.name(character, "").startswith(_SPACELESS_SCRIPTS)


def count_edits(found: Sequence[Hashable], expected: Sequence[Hashable]) -> EditCounts:
    """Count the edits of the alignment that `align` chooses.

    This needs less memory than `align`: only two rows of the table of edit distances are stored at a time.

    Args:
        found: Generated items.
        expected: Recorded items.

    Returns:
        Edits and the number of expected items.
    """
    have, want = _numbered(found, expected)
    columns = np.arange(len(want) + 1)
    row, substituted = columns, np.zeros(len(want) + 1, dtype=np.int64)  # fewest edits, and their substitutions
    for i in range(1, len(have) + 1):
        differs = want != have[i - 1]
        row, steps = _next_row(row, differs, i)
        paired = np.concatenate([[0], substituted[:-1] + differs])
        # A deletion adds no substitution, so take the number at the last column that another step reached.
        start = np.maximum.accumulate(np.where(steps == _DELETION, 0, columns))
        substituted = np.where(steps == _PAIR, paired, substituted)[start]
    edits, substitutions = int(row[-1]), int(substituted[-1])
    deletions = (edits - substitutions - (len(have) - len(want))) // 2
    return EditCounts(substitutions, deletions, edits - substitutions - deletions, len(want))


def _numbered(found: Sequence[Hashable], expected: Sequence[Hashable]) -> tuple[I64, I64]:
    """Replace the items of both sequences by integers; equal items get equal integers."""
    numbers: dict[Hashable, int] = {}
    have, want = (
        np.array([numbers.setdefault(item, len(numbers)) for item in items], dtype=np.int64)
        for items in (found, expected)
    )
    return have, want


def align(found: Sequence[Hashable], expected: Sequence[Hashable]) -> tuple[tuple[int, int], ...]:
    """Align two sequences with the fewest edits, and return the pairs of aligned positions (Levenshtein 1966).

    Edits are substitutions, deletions and insertions. If several alignments have the fewest edits, one is chosen step
    by step from the end of the sequences. Each step is a pair of items (equal or substituted), a deletion or an
    insertion: the first of these that leads to the fewest edits. The function needs one byte of memory for each
    combination of a found and an expected item.

    Args:
        found: Generated items.
        expected: Recorded items.

    Returns:
        Pairs of a position in `found` and a position in `expected`, in order.
    """
    have, want = _numbered(found, expected)
    steps = np.empty((len(have) + 1, len(want) + 1), dtype=np.uint8)  # last step of a best path to each cell
    steps[0] = _DELETION
    row = np.arange(len(want) + 1)
    for i in range(1, len(have) + 1):
        row, steps[i] = _next_row(row, want != have[i - 1], i)
    i, j = len(have), len(want)
    pairs: list[tuple[int, int]] = []
    while i or j:
        step = steps[i, j]
        if step == _PAIR:
            i, j = i - 1, j - 1
            pairs.append((i, j))
        elif step == _DELETION:
            j -= 1
        else:
            i -= 1
    return tuple(reversed(pairs))


def _next_row(row: I64, differs: npt.NDArray[np.bool_], i: int) -> tuple[I64, npt.NDArray[np.uint8]]:
    """Compute row i of the table of edit distances from row i − 1.

    With n expected items, a row has the cells j = 0 to n. Cell j describes one alignment of the first i found items
    with the first j expected items: the alignment with the fewest edits.

    Return two arrays with one value for each cell: the number of edits (n + 1,) of its alignment, and the last step
    (n + 1,) of its alignment, which is a pair, a deletion or an insertion.
    """
    columns = np.arange(len(row))
    paired = row[:-1] + differs
    best = np.concatenate([[i], np.minimum(paired, row[1:] + 1)])
    # A deletion moves one column right and costs 1, so a running minimum of (cost − column) covers all deletions.
    now = np.minimum.accumulate(best - columns) + columns
    steps = np.full(len(row), _INSERTION, dtype=np.uint8)
    steps[1:] = np.where(now[1:] == paired, _PAIR, np.where(now[1:] == now[:-1] + 1, _DELETION, _INSERTION))
    return now, steps


def word_time_differences(found: Sequence[WordInterval], expected: Sequence[WordInterval]) -> tuple[F64, F64]:
    """Compute the time differences between generated and recorded words with equal text.

    Words are aligned by their normalised text. Times do not influence the alignment.

    Args:
        found: Generated words with times in seconds.
        expected: Recorded words with times in seconds.

    Returns:
        Absolute differences of the start times and of the end times, each (pairs,) in seconds.

    Raises:
        DataError: There are no equal words, or a time is NaN or infinite.
    """
    have = [(word, text) for word in found if (text := normalised_word(word.word))]
    want = [(word, text) for word in expected if (text := normalised_word(word.word))]
    pairs = align([text for _, text in have], [text for _, text in want])
    equal = [(have[i][0], want[j][0]) for i, j in pairs if have[i][1] == want[j][1]]
    if not equal:
        raise DataError(
            f"word times: expected equal words, found none of the {len(want)} recorded words among "
            f"{len(have)} generated ones"
        )
    starts = np.abs([a.start - b.start for a, b in equal])
    ends = np.abs([a.end - b.end for a, b in equal])
    if not (np.isfinite(starts).all() and np.isfinite(ends).all()):
        raise DataError("word times: expected finite seconds, found a time that is NaN or infinite")
    return starts, ends
