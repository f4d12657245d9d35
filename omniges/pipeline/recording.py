"""`Recording`, the input of `write_shards`, and its conversion to a `Take`.

The checks are those that `preprocess` applies to files. So `write_shards` and `preprocess` refuse the same input.
"""

from __future__ import annotations

import hashlib
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, TypeGuard

import numpy as np
import numpy.typing as npt

from omniges.errors import CODES, DataError, RecordingFault
from omniges.features.gesture import POSE_PARTS
from omniges.features.timebase import FRAME_RATE_HZ
from omniges.formats.audio import Wav, wav_from_array
from omniges.formats.npz import Motion, motion_from_arrays
from omniges.formats.semantic import SemanticSpan, check_span
from omniges.formats.textgrid import WordInterval, WordTier, one_line, words_in_order
from omniges.pipeline.convert import Take
from omniges.shards.schema import (
    MAX_KEY_BYTES,
    SPLITS,
    Part,
    as_split,
    is_label,
    is_relative_path,
    is_stem,
    key_from_stem,
)
from omniges.storage.files import canonical_json

_MOTION_PARTS: Final = (*POSE_PARTS, "root", "face")
_MAX_CHANNELS: Final = 8
_AFTER_END_S: Final = 0.1  # a word may end this much after the recording, because times are rounded
_MAX_SPEAKER_ID: Final = 2**31 - 1
# Remedies for users of the Python API, for codes whose usual remedy is about files.
_REMEDIES: Final = {
    "wav-unsupported-encoding": "convert the samples",
    "wav-damaged-header": "check samples and sample_rate_hz",
    "wav-empty": "give samples=None if there is no sound",
    "wav-out-of-range": "divide the samples by their full scale, such as 32768 for 16 bits",
    "wav-silent": "give samples=None if there is no sound",
    "wav-not-finite": "repair the samples, or give samples=None",
    "npz-not-finite": "repair the motion, or list the part in absent",
    "npz-wrong-shape": "give arrays of SMPL-X, and list missing parts in absent",
    "npz-wrong-dtype": "convert the array",
    "npz-no-frames": "give None if there is no motion",
    "npz-unequal-lengths": "cut the arrays to equal length",
    "textgrid-no-words": "give words=None if there is no transcript",
    "textgrid-bad-interval": "sort the words and correct their times",
    "textgrid-overlap": "correct the times",
    "sem-invalid": "correct the span",
    "length-mismatch": "check the pair, or raise max_length_mismatch_s",
    "nothing-recorded": "give poses, trans or expressions, or samples",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recording:
    """One recording for `write_shards`. None in a field means that the recording does not have this data.

    An array may be anything that ``numpy.asarray`` accepts. Arrays are checked when the recording is written.
    """

    key: str
    """Name, unique in the set: any file name without extension."""
    poses: npt.ArrayLike | None = None
    """(T, 165) SMPL-X axis-angle in radians: root 0:3, body 3:66, jaw 66:69, eyes 69:75, hands 75:165; y up."""
    trans: npt.ArrayLike | None = None
    """(T, 3) positions in metres."""
    expressions: npt.ArrayLike | None = None
    """(T, up to 100) expression coefficients; fewer columns are extended with zeros."""
    betas: npt.ArrayLike | None = None
    """(up to 300,) shape coefficients."""
    gender: str = ""
    """Gender of the body model."""
    frame_rate_hz: float | None = None
    """Frames per second of poses, trans and expressions: a multiple of 30; frames are dropped to get 30."""
    absent: Part | Sequence[Part] = ()
    """Parts that were not recorded: any of upper, hands, lower, jaw_eyes, root, face. Their columns are ignored."""
    samples: npt.ArrayLike | None = None
    """(N,) or (N, channels): float32 or float64 in [-1, 1], or int16 or int32 at full scale."""
    sample_rate_hz: float | None = None
    """Audio samples per second; audio with another rate than 16000 is resampled to 16000."""
    words: Iterable[Any] | None = None
    """Words in order of time, each (word, start_s, end_s), or a mapping or object with word, start and end."""
    semantic: Iterable[Any] | None = None
    """Semantic spans, each (name, start_s, end_s, score[, keywords]), or a mapping or object with name, start, …."""
    split: str = "train"
    """Split: train, val, test or additional."""
    speaker: str | None = None
    """Name of the speaker."""
    speaker_id: int | None = None
    """Number of the speaker, at least 0."""
    language: str | None = None
    """Language, such as english."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Values by label name, such as emotion. A label that only other recordings have gets the value ""."""
    source: str | None = None
    """Origin of the recording: a text, or a path relative to the data set."""


def take_of(recording: Recording) -> Take:
    """Convert a recording to a take; raise DataError with a text of one line if the recording cannot be used."""
    try:
        return _build_take(recording)
    except RecordingFault as fault:
        raise refused(recording.key, fault) from fault


def refused(key: object, fault: RecordingFault) -> DataError:
    """Return the error for a recording that cannot be used.

    Args:
        key: Key of the recording.
        fault: Reason why it cannot be used.

    Returns:
        The error, with a remedy for users of the Python API.
    """
    problem = fault.problem
    expected = f"expected {problem.expected}, found " if problem.expected else ""
    remedy = _REMEDIES.get(problem.code, CODES[problem.code].remedy)
    return DataError(f"recording {key!r}: {expected}{problem.found}; {remedy}")


def _build_take(recording: Recording) -> Take:
    key = recording.key
    if not is_stem(key):
        raise DataError(
            f"recording {key!r}: expected a key that is a file name without extension, of at most "
            f"{MAX_KEY_BYTES} bytes after characters other than A-Z, a-z, 0-9, _ and - are escaped; rename it"
        )
    split = as_split(recording.split) if isinstance(recording.split, str) else None
    if split is None:
        raise DataError(f"recording {key!r}: expected one of {', '.join(SPLITS)}, found split {recording.split!r}")
    _check_texts(recording)
    motion, wav = _motion(recording), _wav(recording)
    motion_s = 0.0 if motion is None else len(motion.poses) / FRAME_RATE_HZ
    audio_s = motion_s if wav is None else len(wav.samples) / wav.rate_hz
    take = Take(
        key=key_from_stem(key),
        stem=key,
        split=split,
        speaker_id=None if recording.speaker_id is None else int(recording.speaker_id),
        speaker=recording.speaker or None,
        language=recording.language or None,
        labels=dict(recording.labels),
        motion=motion,
        wav=wav,
        tier=_tier(recording, audio_s, max(audio_s, motion_s)),
        semantic=_spans(recording),
        sources={},
    )
    if recording.source is None:
        return take
    return replace(take, sources={name: (recording.source, digest) for name, digest in digests_of(take).items()})


def digests_of(take: Take) -> dict[str, str]:
    """Return the sha256 of each modality that a take has; the keys are npz, wav, textgrid and sem."""
    found = {}
    if (motion := take.motion) is not None:
        facts = [motion.frame_rate_hz, motion.source_frames, motion.betas_columns, motion.gender]
        found["npz"] = _digest(facts, motion.poses, motion.trans, motion.expressions, motion.betas)
    if take.wav is not None:
        found["wav"] = _digest([take.wav.rate_hz, take.wav.encoding], take.wav.samples)
    if take.tier is not None:
        found["textgrid"] = _digest([asdict(word) for word in take.tier.words])
    if take.semantic is not None:
        found["sem"] = _digest([asdict(span) for span in take.semantic])
    return found


def _digest(facts: Sequence[Any], *arrays: npt.NDArray[Any]) -> str:
    """Return one sha256 of JSON values and arrays, including the data types and shapes of the arrays."""
    digest = hashlib.sha256(canonical_json([*facts, *([array.dtype.str, *array.shape] for array in arrays)]))
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data.cast("B"))
    return digest.hexdigest()


def _check_texts(recording: Recording) -> None:
    """Refuse names and labels that the manifest cannot store."""
    key = recording.key
    texts = {name: getattr(recording, name) for name in ("speaker", "language", "source")}
    if not isinstance(recording.labels, Mapping):
        raise DataError(
            f"recording {key!r}: expected values by name, {{}} for none, found labels {recording.labels!r:.80}"
        )
    texts |= {"gender": recording.gender} | {f"label {name}": value for name, value in recording.labels.items()}
    for name, text in texts.items():
        optional = name in {"speaker", "language", "source"}
        if not (text is None and optional) and not _is_text(text):
            raise DataError(f"recording {key!r}: expected a text, found {name} {text!r}")
    for name in recording.labels:
        if not is_label(name):
            expected = "expected a lower-case letter, then up to 31 of a-z, 0-9 and _"
            raise DataError(f"recording {key!r}: {expected}, found label name {name!r}; rename it")
    if recording.source is not None and not is_relative_path(recording.source):
        raise DataError(
            f"recording {key!r}: expected a text, or a path relative to the data set and without '..', because "
            f"shards must be equal on every machine, found source {recording.source!r}"
        )
    speaker_id = recording.speaker_id
    if speaker_id is not None and not (_is_number(speaker_id) and speaker_id in range(_MAX_SPEAKER_ID + 1)):
        raise DataError(f"recording {key!r}: expected a whole number of at least 0, found speaker_id {speaker_id!r}")


def _is_text(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


def _motion(recording: Recording) -> Motion | None:
    """Return the motion of a recording, or None if all parts of the motion are absent."""
    if not isinstance(recording.absent, Iterable):
        raise DataError(
            f"recording {recording.key!r}: expected names of parts, () for none, found absent {recording.absent!r}"
        )
    absent: set[str] = {recording.absent} if isinstance(recording.absent, str) else {*recording.absent}
    if unknown := sorted(map(str, absent - {*_MOTION_PARTS})):
        expected = f"expected one of {', '.join(_MOTION_PARTS)}"
        raise DataError(f"recording {recording.key!r}: {expected}, found absent {unknown[0]!r}; correct the name")
    poses = recording.poses if set(POSE_PARTS) - absent else None
    arrays = {
        "poses": poses,
        "trans": None if "root" in absent else recording.trans,
        "expressions": None if "face" in absent else recording.expressions,
    }
    given = {name: _array(recording, name, array) for name, array in arrays.items() if array is not None}
    if not given:
        if recording.betas is not None:
            raise DataError(f"recording {recording.key!r}: expected motion with betas, found none; remove betas")
        return None
    rate = recording.frame_rate_hz
    if not _is_number(rate):
        raise DataError(
            f"recording {recording.key!r}: expected frames per second, found motion with frame_rate_hz "
            f"{rate!r}; give frame_rate_hz=30, or the actual rate"
        )
    betas = None if recording.betas is None else _array(recording, "betas", recording.betas)
    hidden = sorted(absent & set(POSE_PARTS))
    return motion_from_arrays({**given, "betas": betas}, rate, absent=hidden, gender=recording.gender)


def _is_number(value: Any) -> TypeGuard[float]:
    return not isinstance(value, bool) and isinstance(value, numbers.Real) and math.isfinite(value)


def _wav(recording: Recording) -> Wav | None:
    if recording.samples is None:
        return None
    rate = recording.sample_rate_hz
    if not _is_number(rate):
        raise DataError(
            f"recording {recording.key!r}: expected samples per second, found samples with sample_rate_hz "
            f"{rate!r}; give sample_rate_hz=16000, or the actual rate"
        )
    samples = _array(recording, "samples", recording.samples)
    if samples.ndim == 2 and samples.shape[0] <= _MAX_CHANNELS < samples.shape[1]:
        raise DataError(
            f"recording {recording.key!r}: expected (n,) or (n, channels), found samples of shape "
            f"{samples.shape}; give samples.T"
        )
    return wav_from_array(samples, rate)


def _array(recording: Recording, name: str, given: Any) -> npt.NDArray[Any]:
    """Convert an array, a tensor on any device or nested lists to a NumPy array; raise DataError for anything else."""
    place = f"recording {recording.key!r}: {name}"
    if isinstance(given, np.ma.MaskedArray):
        raise DataError(f"{place}: expected an array without a mask, found a masked one; name its part in absent")
    try:
        return np.asarray(given.detach().cpu() if hasattr(given, "detach") else given)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = one_line(str(error))[:120]
        raise DataError(f"{place}: expected an array of numbers, found {type(given).__name__} ({reason})") from error


def _fields(item: Any, names: tuple[str, ...], what: str) -> tuple[Any, ...]:
    """Return the fields of a word or span, which may be a tuple, list, mapping or object; absent fields are None."""
    if isinstance(item, Mapping):
        return tuple(item.get(name) for name in names)
    if isinstance(item, (tuple, list)):
        return *item, *[None] * (len(names) - len(item))
    if hasattr(item, names[0]):
        return tuple(getattr(item, name, None) for name in names)
    raise DataError(f"{what}: expected ({', '.join(names)}), found {item!r:.80}")


def _tier(recording: Recording, audio_s: float, seconds: float) -> WordTier | None:
    """Return the checked words of a recording, without silences, in the form of a decoded TextGrid.

    `seconds` is the length of the recording, and `audio_s` the length of its audio, in seconds.
    """
    if recording.words is None:
        return None
    if not isinstance(recording.words, Iterable):
        raise DataError(f"recording {recording.key!r}: expected a list of words, found words {recording.words!r:.80}")
    intervals = []
    for place, item in enumerate(recording.words):
        what = f"recording {recording.key!r}: word {place}:"
        try:
            one = WordInterval.of(item)
        except ValueError as error:
            raise DataError(f"{what} {error}") from error
        if one.end > seconds + _AFTER_END_S:
            raise DataError(
                f"{what} {one.word!r:.40}: expected an end within the recording, {seconds:g} s, found {one.end:g} "
                "s; correct the times"
            )
        intervals.append(WordInterval(one_line(one.word), one.start, one.end))
    words, notes = words_in_order(intervals)
    if not words:
        raise RecordingFault("textgrid-no-words", f"words: {len(intervals)} intervals, none of them a word", "words")
    return WordTier("words", tuple(words), audio_s, notes)


def _spans(recording: Recording) -> tuple[SemanticSpan, ...] | None:
    if recording.semantic is None:
        return None
    if not isinstance(recording.semantic, Iterable):
        raise DataError(
            f"recording {recording.key!r}: expected a list of spans, found semantic {recording.semantic!r:.80}"
        )
    spans = []
    for place, item in enumerate(recording.semantic):
        what = f"recording {recording.key!r}: semantic span {place}"
        name, start, end, score, keywords, *more = _fields(item, ("name", "start", "end", "score", "keywords"), what)
        keywords = "" if keywords is None else keywords
        if not (_is_text(name) and name and _is_text(keywords) and all(map(_is_number, (start, end, score)))) or more:
            raise DataError(
                f"{what}: expected a name, numbers start, end and score, and optional keywords as text, "
                f"found {item!r:.80}; correct this span"
            )
        span = SemanticSpan(name, float(start), float(end), float(end) - float(start), float(score), keywords)
        check_span(span, f"semantic span {place}")
        spans.append(span)
    return tuple(spans)
