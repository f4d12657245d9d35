"""Decode every sample in a shard, and check its metadata, words, audio and arrays.

The digest of each member (a file in the shard, such as ``KEY.mel.npy``) is checked first. Then the npy header of an
array is parsed as text and compared with the shard contract. Last, the values are checked block by block.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.errors import CODES
from omniges.features import timebase
from omniges.features.audio import LOG_FLOOR
from omniges.features.gesture import LAYOUT
from omniges.shards.dataset import STATISTICS, Partial, partial_of
from omniges.shards.latents import CodecEntry, array_specs
from omniges.shards.manifest import SOURCES, ManifestRow
from omniges.shards.present import CHANNELS_OF
from omniges.shards.schema import MOTION_PARTS, PARTS, Part, is_count, is_real
from omniges.shards.tar import NPY_MAGIC, npy_header
from omniges.storage.files import canonical_json
from omniges.verify.dataset import strict_json
from omniges.verify.findings import Collector
from omniges.verify.folders import Source

_AUDIO_BLOCK: Final = 1 << 16
_SCALARS: Final = (
    *("key", "stem", "split", "speaker_id", "speaker", "language"),
    *("frames", "mel_frames", "ticks", "seconds"),
)
_LABELS_OF_1: Final = ("scenario", "emotion")
_AUDIO: Final = {"encoding", "rate_hz", "channels", "samples", "samples_16k", "gain"}
_MOTION: Final = {"frame_rate_hz", "frame_stride", "frames", "key_style", "betas", "gender", "model"}
_NO_AUDIO: Final = {"encoding": "", "rate_hz": 0, "channels": 0, "samples": 0, "samples_16k": 0, "gain": 1.0}
_NO_MOTION: Final = {
    "frame_rate_hz": 0,
    "frame_stride": 0,
    "frames": 0,
    "key_style": "",
    "betas": 0,
    "gender": "",
    "model": "",
}
_WORD: Final = {"word", "start", "end"}
_SPAN: Final = {"name", "start", "end", "score", "keywords"}
_CUT: Final = {"audio_s", "motion_s", "words_dropped", "words_clipped"}
_ABSENT: Final = object()  # returned for an unreadable JSON member; None is the value of JSON's null
_FIELDS: Final = {*_SCALARS, "audio", "motion", "cut", "sources", "notes"}
_FIELDS_OF: Final = {
    1: _FIELDS | {*_LABELS_OF_1},
    2: _FIELDS | {"labels", "present"},
}  # fields of KEY.json by contract version
_LENGTHS: Final = ("rate_hz", "channels", "samples", "samples_16k", "frame_rate_hz", "frame_stride", "frames")
_KINDS: Final[tuple[tuple[tuple[str, ...], Callable[[Any], bool]], ...]] = (
    (_LENGTHS, lambda value: is_count(value, 1)),
    (("words_dropped", "words_clipped", "betas"), is_count),
    (("audio_s", "motion_s", "gain"), lambda value: is_real(value) and value >= 0),
    (("encoding", "key_style"), lambda value: isinstance(value, str)),
)
"""Names of fields of audio, motion and cut, and the function that returns whether their values are valid.

The values of other fields are not checked.
"""

_HEADER: Final = re.compile(
    rb"\{'descr': '(?P<dtype>[<>|=]?[a-zA-Z][0-9]{1,3})', 'fortran_order': False, 'shape': "
    rb"\((?P<shape>[0-9]{1,18}(?:, [0-9]{1,18})*),?\), \} *\n"
)
_BLOCK_VALUES: Final = 1 << 16
_BLOCK_FRAMES: Final = 512
_ORTHONORMAL: Final = 1e-5
_MEL_FLOOR: Final = float(np.float32(np.log(LOG_FLOOR))) - 1e-4


@dataclass(slots=True)
class Content:
    """Data of the samples in one shard, from which statistics, tokenizer and totals are recomputed.

    `partials` (partial statistics), `latents` and `words` cover the train split only.
    """

    partials: list[tuple[Partial, ...]] = field(default_factory=list)
    latents: dict[str, list[Partial]] = field(default_factory=dict)  # partial statistics of latents, by codec
    words: Counter[str] = field(default_factory=Counter)
    cuts: list[dict[str, float | int]] = field(default_factory=list)  # seconds and words cut from each sample


class _Sample:
    """One sample during its check; the methods read its members and add findings about them."""

    def __init__(self, source: Source, row: ManifestRow, settings: dict[str, Any], out: Collector) -> None:
        self.row, self.settings, self.out = row, settings, out
        self._source = source

    def add(self, code: str, member: str, found: str, expected: str = "") -> None:
        """Add a finding about a member. The finding's byte offset is the start of the member's data.

        Args:
            code: Key of `VERIFY_CODES`.
            member: Member of the sample, such as ``mel.npy``.
            found: Text that shows what the shard contains.
            expected: Text that shows what the contract or the manifest requires.
        """
        place = self.row.members.get(member)
        at = place.offset if place else None
        self.out.add(code, found, expected, key=self.row.key, member=member, offset=at)

    def data(self, member: str) -> memoryview | None:
        """Return the bytes of a member. If the digest is wrong, add a finding and return None.

        The bytes are valid until the next call.
        """
        place = self.row.members[member]
        view = self._source.view(place.size, place.offset)
        digest = hashlib.sha256(view).hexdigest()
        if digest == place.sha256:
            return view
        self.add("member-digest", member, f"sha256 {digest}", place.sha256)
        return None

    def json(self, member: str, code: str) -> Any:
        """Decode a JSON member, and check that its bytes have the canonical form.

        Args:
            member: Member of the sample, such as ``json``.
            code: Code of the finding if the member is not canonical JSON.

        Returns:
            The value; `_ABSENT` if the digest is wrong or the member is not JSON.
        """
        data = self.data(member)
        if data is None:
            return _ABSENT
        try:
            value, canonical = strict_json(bytes(data))
        except ValueError as error:
            self.add(code, member, str(error), "canonical JSON")
            return _ABSENT
        if canonical != data:
            self.add(code, member, "JSON in another byte form", "canonical JSON")
        return value


def check_samples(
    source: Source, rows: Sequence[ManifestRow], settings: dict[str, Any], codecs: Sequence[CodecEntry], out: Collector
) -> Content:
    """Decode and check the samples of an open shard. The headers of the shard are already checked.

    Args:
        source: The open shard.
        rows: Manifest rows of the shard's samples, in their order in the shard.
        settings: Conversion settings from dataset.json.
        codecs: Codecs in dataset.json; the samples contain their latents.
        out: Collector of the shard's findings.

    Returns:
        Data from which later checks recompute the files beside the shards.
    """
    content = Content()
    for row in rows:
        sample = _Sample(source, row, settings, out)
        metadata = sample.json("json", "metadata-invalid")
        audio = _check_metadata(sample, metadata) if metadata is not _ABSENT else None
        if audio is not None:
            content.cuts.append(metadata["cut"])
        partials = _check_arrays(sample, audio, codecs)
        words = _check_transcript(sample)
        _check_annotation(sample)
        _check_waveform(sample, audio)
        if row.split == "train":
            content.words += words
            wanted = _summed(row)
            if set(wanted) <= partials.keys():
                content.partials.append(tuple(partials[member] for member in wanted))
            for codec in codecs:
                if codec.member in partials:
                    content.latents.setdefault(codec.name, []).append(partials[codec.member])
    return content


def _check_metadata(sample: _Sample, metadata: Any) -> dict[str, Any] | None:
    """Compare KEY.json with its schema and the manifest. Return its field ``audio``, or None if a field is unusable."""
    row = sample.row
    fields = _FIELDS_OF[row.contract.version]
    if not isinstance(metadata, dict) or metadata.keys() != fields:
        found = ", ".join(sorted(metadata.keys() ^ fields)) if isinstance(metadata, dict) else str(type(metadata))
        sample.add("metadata-invalid", "json", f"fields unknown or absent: {found}", "the contract's fields")
        return None
    for name, wanted in _facts_of(row).items():
        if canonical_json(metadata[name]) != canonical_json(wanted):
            sample.add("metadata-differs", "json", f"{name} {metadata[name]!r}", f"{wanted!r} of the manifest")
    _check_notes(sample, metadata["notes"])
    if ("labels" in row.present) != any(row.labels.values()):
        sample.add("metadata-invalid", "json", f"labels {row.labels}", "labels if and only if present lists them")
    if not _parts_valid(sample, metadata):
        return None
    _check_lengths(sample, metadata["audio"], metadata["motion"], metadata["cut"])
    audio: dict[str, Any] = metadata["audio"]
    return audio


def _facts_of(row: ManifestRow) -> dict[str, Any]:
    """Return the fields that KEY.json must contain according to a manifest row."""
    facts: dict[str, Any] = {name: getattr(row, name) for name in _SCALARS}
    sources = {name: {"path": path, "sha256": digest} for name, (path, digest) in row.sources.items()}
    if row.contract.version == 1:
        return facts | {name: row.labels[name] or None for name in _LABELS_OF_1} | {"sources": sources}
    facts |= {"speaker_id": -1 if row.speaker_id is None else row.speaker_id}
    facts |= {name: facts[name] or "" for name in ("speaker", "language")}
    return facts | {
        "labels": row.labels,
        "present": {part: part in row.present for part in PARTS},
        "sources": {name: sources.get(name, {"path": "", "sha256": ""}) for name in SOURCES},
    }


def _check_notes(sample: _Sample, given: Any) -> None:
    notes = given
    if sample.row.contract.version > 1:  # version 2 stores notes as one text
        split = (line.partition(": ") for line in given.splitlines()) if isinstance(given, str) else None
        notes = split and [{"code": code, "found": found} for code, _, found in split]
    shaped = isinstance(notes, list) and all(
        isinstance(note, dict) and note.keys() == {"code", "found"} and all(isinstance(v, str) for v in note.values())
        for note in notes
    )
    if not shaped:
        sample.add("metadata-invalid", "json", f"notes {given!r}", "notes of code and found")
        return
    codes = tuple(sorted({note["code"] for note in notes}))
    if codes != sample.row.notes:
        sample.add("metadata-differs", "json", f"notes {codes}", f"{sample.row.notes} of the manifest")
    for code in codes:
        if code not in CODES or CODES[code].severity != "note":
            sample.add("metadata-invalid", "json", f"note {code!r}", "the code of a note")


def _has_motion(row: ManifestRow) -> bool:
    return any(part in row.present for part in MOTION_PARTS)


def _parts_valid(sample: _Sample, metadata: dict[str, Any]) -> bool:
    """Return True if ``audio``, ``motion`` and ``cut`` of KEY.json follow the contract; add a finding otherwise."""
    audio, motion, cut = metadata["audio"], metadata["motion"], metadata["cut"]
    for name, part, fields in (("audio", audio, _AUDIO), ("motion", motion, _MOTION), ("cut", cut, _CUT)):
        if not isinstance(part, dict) or part.keys() != fields:
            sample.add("metadata-invalid", "json", f"{name} {part!r}", ", ".join(sorted(fields)))
            return False
    facts = dict(cut)
    for part, there, nothing in (
        (audio, "audio" in sample.row.present, _NO_AUDIO),
        (motion, _has_motion(sample.row), _NO_MOTION),
    ):
        if there:
            facts |= part
        elif canonical_json(part) != canonical_json(nothing):
            sample.add("metadata-invalid", "json", f"{part!r} of an absent part", f"{nothing!r}")
            return False
    wrong = [f"{n} {facts[n]!r}" for names, valid in _KINDS for n in names if n in facts and not valid(facts[n])]
    if wrong:
        sample.add("metadata-invalid", "json", "; ".join(wrong), "numbers and texts of the contract")
    return not wrong


def _check_lengths(sample: _Sample, audio: dict[str, Any], motion: dict[str, Any], cut: dict[str, Any]) -> None:
    """Check the length of the clip, and how much was cut, against the lengths of the source files."""
    has_audio, moved = "audio" in sample.row.present, _has_motion(sample.row)
    kept = -(-motion["frames"] // motion["frame_stride"]) if moved else 0
    audio_frames = audio["samples"] * timebase.FRAME_RATE_HZ // audio["rate_hz"] if has_audio else 0
    frames = audio_frames if not moved else kept
    if has_audio and moved:
        frames = timebase.common_frames(kept, audio["samples"], audio["rate_hz"])
    if sample.row.frames != frames:
        sample.add("metadata-invalid", "json", f"frames {sample.row.frames}", f"{frames}, by the sources' lengths")
        return
    audio_s = max(0.0, audio["samples"] / audio["rate_hz"] - frames / timebase.FRAME_RATE_HZ) if has_audio else 0.0
    motion_s = (kept - frames) / timebase.FRAME_RATE_HZ if moved else 0.0
    audio_s, motion_s = round(audio_s, 6), round(motion_s, 6)
    if (cut["audio_s"], cut["motion_s"]) != (audio_s, motion_s):
        found = f"cut {cut['audio_s']} s of audio, {cut['motion_s']} s of motion"
        sample.add("metadata-invalid", "json", found, f"{audio_s} s, {motion_s} s")
    if audio["rate_hz"] == timebase.SAMPLE_RATE_HZ and audio["samples_16k"] != audio["samples"]:
        sample.add("metadata-invalid", "json", f"samples_16k {audio['samples_16k']}", str(audio["samples"]))
    if sample.settings.get("loudness") == "none" and audio["gain"] != 1:
        sample.add("metadata-invalid", "json", f"gain {audio['gain']}", "1, for loudness none")


def _list_of(sample: _Sample, part: Part, member: str, code: str) -> list[Any] | None:
    """Return the list in a JSON member: an empty list if the part is absent. Return None if the member has a fault."""
    rows = sample.json(member, code)
    if rows is _ABSENT:
        return None
    there = part in sample.row.present
    if not isinstance(rows, list) or (there and part == "text" and not rows):
        sample.add(code, member, f"{type(rows).__name__}", "a list with at least one word" if there else "a list")
        return None
    if rows and not there:
        sample.add("absent-not-nan", member, f"{len(rows)} entries", f"an empty list, because {part} is absent")
        return None
    return rows


def _check_transcript(sample: _Sample) -> Counter[str]:
    """Check the form, order, times and number of the words; return how often each word occurs."""
    member = sample.row.contract.words
    rows = _list_of(sample, "text", member, "transcript-invalid")
    if rows is None:
        return Counter()
    now, seconds = 0.0, sample.row.seconds
    for place, row in enumerate(rows):
        shaped = isinstance(row, dict) and row.keys() == _WORD
        shaped = shaped and isinstance(row["word"], str) and bool(row["word"].strip())
        if not shaped or not is_real(row["start"]) or not is_real(row["end"]):
            sample.add("transcript-invalid", member, f"word {place}: {row!r}", "word, start and end")
            return Counter()
        start, end = row["start"], row["end"]
        if not 0 <= start < end <= seconds or start < now:
            text = f"word {place}, {row['word']!r} from {start} to {end} s"
            if 0 <= start < end <= seconds:
                sample.add("transcript-order", member, text, f"a start at {now} s or later")
            else:
                sample.add("transcript-outside", member, text, f"inside 0 to {seconds} s")
        now = max(now, end)
    if len(rows) != sample.row.words:
        sample.add("metadata-differs", member, f"{len(rows)} words", f"{sample.row.words} of the manifest")
    return Counter(row["word"] for row in rows)


def _check_annotation(sample: _Sample) -> None:
    """Check the semantic spans if there are any. Spans may extend beyond the clip."""
    member = sample.row.contract.semantic
    if member not in sample.row.members:
        return
    spans = _list_of(sample, "sem", member, "annotation-invalid")
    for place, span in enumerate(spans or ()):
        shaped = isinstance(span, dict) and span.keys() == _SPAN
        shaped = shaped and isinstance(span["name"], str) and isinstance(span["keywords"], str) and bool(span["name"])
        shaped = shaped and is_real(span["start"]) and is_real(span["end"]) and is_real(span["score"])
        if not shaped or not 0 <= span["start"] <= span["end"] or not 0 <= span["score"] <= 1:
            expected = "name, 0 <= start <= end, score in 0..1, keywords"
            sample.add("annotation-invalid", member, f"span {place}: {span!r}", expected)
    if sample.row.contract.version == 1 and "sem" not in sample.row.sources:
        sample.add("metadata-differs", member, "no source of the annotation", "its path and sha256")


def _check_waveform(sample: _Sample, audio: dict[str, Any] | None) -> None:
    """Check that a waveform is stored if and only if the settings require it, and that FLAC has the correct length."""
    present = [member for member in ("flac", "audio.npy") if member in sample.row.members]
    if audio is None:
        return
    plain = audio["rate_hz"] == timebase.SAMPLE_RATE_HZ and audio["channels"] == 1
    lossless = sample.row.contract.version == 1 and plain and audio["encoding"] in {"pcm16", "pcm24"}
    wanted = ["flac" if lossless else "audio.npy"] if sample.settings.get("keep_audio") else []
    if present != wanted:
        found = f"{' and '.join(present) or 'no audio'} of a {audio['encoding']} source"
        sample.add("waveform-invalid", (present or wanted)[0], found, wanted[0] if wanted else "no audio kept")
        return
    if "flac" in present:
        data = sample.data("flac")
        if data is not None:
            _check_flac(sample, bytes(data), audio)


def _check_flac(sample: _Sample, data: bytes, audio: dict[str, Any]) -> None:
    import soundfile  # noqa: PLC0415 - loads libsndfile, needed for kept audio only

    subtype = "PCM_16" if audio["encoding"] == "pcm16" else "PCM_24"
    wanted = ("FLAC", subtype, 1, timebase.SAMPLE_RATE_HZ)
    count = 0
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            found = (file.format, file.subtype, file.channels, file.samplerate)
            while found == wanted and count <= audio["samples_16k"]:
                block = len(file.read(_AUDIO_BLOCK, dtype="int32"))
                count += block
                if block == 0:
                    break
    except (soundfile.SoundFileError, ValueError, OverflowError, MemoryError) as error:
        # The message of libsndfile contains a memory address, which differs between runs.
        reason = error.error_string if isinstance(error, soundfile.LibsndfileError) else f"{error}"
        sample.add("waveform-invalid", "flac", reason, "a FLAC stream")
        return
    if found != wanted:
        sample.add("waveform-invalid", "flac", f"{found}", f"{wanted}")
    elif count != audio["samples_16k"]:
        sample.add("waveform-length", "flac", f"{count} samples", f"{audio['samples_16k']}")


# --- arrays


def _summed(row: ManifestRow) -> tuple[str, ...]:
    """Return the members that have statistics in stats.json; contract version 1 has fewer of them."""
    members = tuple(STATISTICS.values())
    return members[:2] if row.contract.version == 1 else members


def _check_arrays(sample: _Sample, audio: dict[str, Any] | None, codecs: Sequence[CodecEntry]) -> dict[str, Partial]:
    """Check every array member. For a train sample, return the partial statistics of valid arrays, by member."""
    row = sample.row
    partials: dict[str, Partial] = {}
    vectors = {codec.member: codec.vectors for codec in codecs}
    summed = {*_summed(row), *vectors}
    for member, (dtypes, shape) in array_specs(row, audio["samples_16k"] if audio else None, codecs).items():
        data = sample.data(member)
        array = None if data is None else _npy_array(sample, member, data, dtypes, shape)
        if array is None:
            continue
        absent = _absent_columns(row, member, shape)
        partial = None
        if row.split == "train" and member in summed and len(array):
            with np.errstate(over="ignore", invalid="ignore"):
                partial = partial_of(vectors[member](array) if member in vectors else array)
        # All values are finite if and only if the minima and maxima of the channels are finite.
        known = partial is not None and bool(np.isfinite(partial.rows).all()) and bool(partial.counts.all())
        if absent.any():
            if not _check_absent(sample, member, array, absent):
                continue
        elif not known and not _check_finite(sample, member, array):
            continue
        if member == "betas.npy" and not _has_motion(row) and array.any():
            sample.add("absent-not-nan", member, "a body shape", "zeros, because there is no motion")
        if member == "gesture.npy":
            _check_gesture(sample, array)
        if member == "mel.npy" and not absent.any():  # the minima of the bands show values below the floor
            minimum = float((array if partial is None else partial.rows[3]).min(initial=0.0))
            if minimum < _MEL_FLOOR:
                sample.out.add(
                    "mel-below-floor", f"{minimum}", f"at least {_MEL_FLOOR:.4f}", key=row.key, member=member
                )
        if partial is not None:
            partials[member] = partial
    return partials


def _absent_columns(row: ManifestRow, member: str, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Return a flag for each column of an array, True if the column belongs to an absent part.

    `shape` is the shape of the array, (frames, columns) or (columns,). The result has the shape (columns,).
    """
    absent = np.zeros(shape[-1] if shape else 0, dtype=bool)
    if member == "gesture.npy":
        for part in CHANNELS_OF.keys() - set(row.present):
            absent[CHANNELS_OF[part]] = True
    part_of: dict[str, Part] = {"mel.npy": "audio", "jaw_eyes.npy": "jaw_eyes", "start_xz.npy": "root"}
    if member in part_of:
        absent[:] = part_of[member] not in row.present
    return absent


def _check_absent(sample: _Sample, member: str, array: npt.NDArray[Any], absent: npt.NDArray[np.bool_]) -> bool:
    """Return True if an array is NaN in absent columns and finite in all others; add a finding otherwise."""
    for start in range(0, len(array) if array.ndim > 1 else 1, _BLOCK_FRAMES):
        block = array[start : start + _BLOCK_FRAMES] if array.ndim > 1 else array[None]
        numbers, broken = ~np.isnan(block[:, absent]), ~np.isfinite(block[:, ~absent])
        for wrong, code, columns in ((numbers, "absent-not-nan", absent), (broken, "array-not-finite", ~absent)):
            if wrong.any():
                frame, column = np.argwhere(wrong)[0]
                place = (start + int(frame), int(np.flatnonzero(columns)[column]))
                found = f"{block[:, columns][frame, column]} at {place}"
                sample.add(code, member, found, "NaN" if columns is absent else "finite values")
                return False
    return True


def _npy_array(
    sample: _Sample, member: str, data: memoryview, dtypes: tuple[str, ...], expected_shape: tuple[int, ...]
) -> npt.NDArray[Any] | None:
    """Return an array member as a view of its bytes, or None after a finding. Nothing is copied or unpickled."""
    head = bytes(data[:10])
    length = int.from_bytes(head[8:10], "little")
    text = bytes(data[10 : 10 + length])
    match = _HEADER.fullmatch(text)
    if head[:8] != NPY_MAGIC or len(text) != length or (10 + length) % 64 or match is None:
        sample.add("array-invalid", member, f"{head + text[:80]!r}", "an npy 1.0 header")
        return None
    dtype, shape = match["dtype"].decode(), tuple(int(part) for part in match["shape"].split(b", "))
    if dtype not in dtypes:
        sample.add("array-dtype", member, dtype, " or ".join(dtypes))
        return None
    if shape != expected_shape:
        code = "waveform-length" if member == "audio.npy" else "array-shape"
        sample.add(code, member, f"{shape}", f"{expected_shape}")
        return None
    if head + text != npy_header(dtype, shape):
        sample.add("array-invalid", member, f"{head + text[:80]!r}, {10 + length} bytes", "the header of the contract")
        return None
    wanted = int(np.prod(shape, dtype=object)) * int(dtype[2:])
    if len(data) - 10 - length != wanted:
        sample.add("array-invalid", member, f"{len(data) - 10 - length} bytes of data", f"{wanted}")
        return None
    array: npt.NDArray[Any] = np.frombuffer(data, dtype, offset=10 + length).reshape(shape)
    return array


def _check_finite(sample: _Sample, member: str, array: npt.NDArray[Any]) -> bool:
    """Return True if all values are finite; otherwise add a finding for the first NaN or infinite value."""
    flat = array.reshape(-1)
    for start in range(0, len(flat), _BLOCK_VALUES):
        finite = np.isfinite(flat[start : start + _BLOCK_VALUES])
        if not finite.all():
            place = start + int(finite.argmin())
            index = tuple(int(k) for k in np.unravel_index(place, array.shape))
            stored = sample.row.members[member]
            where = stored.offset + stored.size - array.nbytes + place * array.itemsize
            found = f"{flat[place]} at {index}"
            sample.out.add("array-not-finite", found, "finite values", key=sample.row.key, member=member, offset=where)
            return False
    return True


def _check_gesture(sample: _Sample, gesture: npt.NDArray[np.float32]) -> None:
    """Check that 6D rotations have orthonormal rows and that the first two root steps are equal."""
    parts = [CHANNELS_OF[part] for part in ("upper", "hands", "lower") if part in sample.row.present]
    channels = np.concatenate([np.arange(part.start, part.stop) for part in parts]) if parts else np.empty(0, int)
    columns: Any = LAYOUT.rotations if len(parts) == 3 else channels  # a slice needs no copy
    for start in range(0, len(gesture) if parts else 0, _BLOCK_FRAMES):
        block = gesture[start : start + _BLOCK_FRAMES, columns]
        with np.errstate(over="ignore", invalid="ignore"):
            orthonormal = _orthonormal(np.ascontiguousarray(block.T).reshape(-1, 2, 3, len(block)))
        if not orthonormal and _report_rotation(sample, block, start, channels):
            break
    root = gesture[:2, LAYOUT.root]
    if "root" in sample.row.present and len(root) == 2 and not np.array_equal(root[0, ::2], root[1, ::2]):
        found, expected = (f"dx, dz {root[k, ::2].tolist()}" for k in (0, 1))
        sample.out.add("root-first-step", found, expected, key=sample.row.key, member="gesture.npy")


def _orthonormal(planes: npt.NDArray[np.float32]) -> bool:
    """Return True if the two rows of each 6D rotation are orthonormal within a margin.

    `planes` has the shape (joints, 2 rows, 3 values, frames). This check is fast but approximate, so the margin is
    smaller than the limit of the contract. If the result is False, the caller checks exactly with `_report_rotation`.
    """
    # Near 1, |r|² − 1 is about 2 (|r| − 1).
    spare = 0.9 * _ORTHONORMAL
    work = planes * planes
    norms = work[:, :, 0] + work[:, :, 1]
    norms += work[:, :, 2]
    if not (norms.min() >= 1 - 2 * spare and norms.max() <= 1 + 2 * spare):
        return False
    inner = np.multiply(planes[:, 0], planes[:, 1], out=work[:, 0])
    products = np.add(inner[:, 0], inner[:, 1], out=norms[:, 0])
    products += inner[:, 2]
    return bool(products.max() <= spare and products.min() >= -spare)


def _report_rotation(
    sample: _Sample, block: npt.NDArray[np.float32], start: int, channels: npt.NDArray[np.int_]
) -> bool:
    """Return True if the error of any rotation in a block exceeds the contract's limit.

    In this case, add a finding for the worst rotation. `block` has the shape (frames, columns) and begins at frame
    `start` of the clip. `channels` contains, for each column of the block, the index of the channel in the gesture.
    """
    planes = block.astype(np.float64).T.reshape(-1, 2, 3, len(block))
    norms = np.abs((planes**2).sum(axis=2) - 1).max(axis=1) / 2
    worst = np.maximum(norms, np.abs((planes[:, 0] * planes[:, 1]).sum(axis=1)))
    if (worst <= _ORTHONORMAL).all():
        return False
    joint, frame = np.unravel_index(int(worst.argmax()), worst.shape)
    first = int(channels[6 * joint])
    found = f"frame {start + int(frame)}, channels {first} to {first + 5}: off by {worst.max():.3g}"
    expected = f"at most {_ORTHONORMAL:g}"
    sample.out.add("rotation-broken", found, expected, key=sample.row.key, member="gesture.npy")
    return True
