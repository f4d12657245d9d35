"""Decoding every sample of a shard: members by digest, metadata against the manifest, arrays, words, audio."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from omniges.errors import CODES
from omniges.features import timebase
from omniges.shards.latents import CodecEntry
from omniges.shards.manifest import ManifestRow
from omniges.shards.schema import is_count, is_real
from omniges.shards.statistics import Partial, partial_of
from omniges.verify.arrays import array_specs, check_finite, check_gesture, check_mel, npy_array
from omniges.verify.dataset import strict_json_form
from omniges.verify.files import Source
from omniges.verify.findings import Collector

_AUDIO_BLOCK: Final = 1 << 16
_SCALARS: Final = (
    *("key", "stem", "split", "speaker_id", "speaker", "language", "scenario", "emotion"),
    *("frames", "mel_frames", "ticks", "seconds"),
)
_AUDIO: Final = {"encoding", "rate_hz", "channels", "samples", "samples_16k", "gain"}
_MOTION: Final = {"frame_rate_hz", "frame_stride", "frames", "key_style", "betas", "gender", "model"}
_WORD: Final = {"word", "start", "end"}
_SPAN: Final = {"name", "start", "end", "score", "keywords"}
_CUT: Final = {"audio_s", "motion_s", "words_dropped", "words_clipped"}
_ABSENT: Final = object()  # what a JSON member gives that cannot be read; null is a value like others
_FIELDS: Final = {*_SCALARS, "audio", "motion", "cut", "sources", "notes"}


@dataclass(slots=True)
class Content:
    """What a shard's samples give to statistics, tokenizer and totals; partials and words of the train split alone."""

    partials: list[tuple[Partial, Partial]] = field(default_factory=list)
    latents: dict[str, list[Partial]] = field(default_factory=dict)  # by codec
    words: Counter[str] = field(default_factory=Counter)
    cuts: list[dict[str, float | int]] = field(default_factory=list)  # of every split


class _Sample:
    """One sample being checked."""

    def __init__(self, source: Source, row: ManifestRow, settings: dict[str, Any], out: Collector) -> None:
        self.row, self.settings, self.out = row, settings, out
        self._source = source

    def add(self, code: str, member: str, found: str, expected: str = "") -> None:
        """File a finding at the beginning of a member's data."""
        place = self.row.members.get(member)
        at = place.offset if place else None
        self.out.add(code, found, expected, key=self.row.key, member=member, offset=at)

    def data(self, member: str) -> memoryview | None:
        """A member's bytes, good until the next call, if they are those of the manifest's digest."""
        place = self.row.members[member]
        view = self._source.view(place.size, place.offset)
        digest = hashlib.sha256(view).hexdigest()
        if digest == place.sha256:
            return view
        self.add("member-digest", member, f"sha256 {digest}", place.sha256)
        return None

    def json(self, member: str, code: str) -> Any:
        """A JSON member in canonical form, or _ABSENT after a finding."""
        data = self.data(member)
        if data is None:
            return _ABSENT
        try:
            value, canonical = strict_json_form(bytes(data))
        except ValueError as error:
            self.add(code, member, str(error), "canonical JSON")
            return _ABSENT
        if canonical != data:
            self.add(code, member, "JSON in another byte form", "canonical JSON")
        return value


def check_samples(
    source: Source, rows: Sequence[ManifestRow], settings: dict[str, Any], codecs: Sequence[CodecEntry], out: Collector
) -> Content:
    """Decode and check the samples of an open shard whose layout is sound."""
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
            if {"gesture.npy", "mel.npy"} <= partials.keys():
                content.partials.append((partials["gesture.npy"], partials["mel.npy"]))
            for codec in codecs:
                if codec.member in partials:
                    content.latents.setdefault(codec.name, []).append(partials[codec.member])
    return content


def _check_metadata(sample: _Sample, metadata: Any) -> dict[str, Any] | None:
    """KEY.json against its schema and the manifest's row; its audio facts where they can be used."""
    row = sample.row
    if not isinstance(metadata, dict) or metadata.keys() != _FIELDS:
        found = ", ".join(sorted(metadata.keys() ^ _FIELDS)) if isinstance(metadata, dict) else str(type(metadata))
        sample.add("metadata-invalid", "json", f"fields unknown or absent: {found}", "the contract's fields")
        return None
    for name in _SCALARS:
        wanted = getattr(row, name)
        if type(metadata[name]) is not type(wanted) or metadata[name] != wanted:
            sample.add("metadata-differs", "json", f"{name} {metadata[name]!r}", f"{wanted!r} of the manifest")
    sources = {name: {"path": path, "sha256": digest} for name, (path, digest) in row.sources.items()}
    if metadata["sources"] != sources:
        sample.add("metadata-differs", "json", f"sources {metadata['sources']!r}", f"{sources!r}")
    _check_notes(sample, metadata["notes"])
    if not _parts_sound(sample, metadata):
        return None
    _check_lengths(sample, metadata["audio"], metadata["motion"], metadata["cut"])
    audio: dict[str, Any] = metadata["audio"]
    return audio


def _check_notes(sample: _Sample, notes: Any) -> None:
    shaped = isinstance(notes, list) and all(
        isinstance(note, dict) and note.keys() == {"code", "found"} and all(isinstance(v, str) for v in note.values())
        for note in notes
    )
    if not shaped:
        sample.add("metadata-invalid", "json", f"notes {notes!r}", "a list of code and found")
        return
    codes = tuple(sorted({note["code"] for note in notes}))
    if codes != sample.row.notes:
        sample.add("metadata-differs", "json", f"notes {codes}", f"{sample.row.notes} of the manifest")
    for code in codes:
        if code not in CODES or CODES[code].severity != "note":
            sample.add("metadata-invalid", "json", f"note {code!r}", "the code of a note")


def _parts_sound(sample: _Sample, metadata: dict[str, Any]) -> bool:
    """Whether audio, motion and cut hold what the contract says."""
    audio, motion, cut = metadata["audio"], metadata["motion"], metadata["cut"]
    parts = (("audio", audio, _AUDIO), ("motion", motion, _MOTION), ("cut", cut, _CUT))
    for name, part, fields in parts:
        if not isinstance(part, dict) or part.keys() != fields:
            sample.add("metadata-invalid", "json", f"{name} {part!r}", ", ".join(sorted(fields)))
            return False
    counts = {name: audio[name] for name in ("rate_hz", "channels", "samples", "samples_16k")}
    counts |= {name: motion[name] for name in ("frame_rate_hz", "frame_stride", "frames")}
    wrong = [f"{name} {value!r}" for name, value in counts.items() if not is_count(value, 1)]
    counts = {name: cut[name] for name in ("words_dropped", "words_clipped")} | {"betas": motion["betas"]}
    wrong += [f"{name} {value!r}" for name, value in counts.items() if not is_count(value)]
    reals = {"audio_s": cut["audio_s"], "motion_s": cut["motion_s"], "gain": audio["gain"]}
    wrong += [f"{name} {value!r}" for name, value in reals.items() if not is_real(value) or value < 0]
    texts = {"encoding": audio["encoding"], "key_style": motion["key_style"]}
    wrong += [f"{name} {value!r}" for name, value in texts.items() if not isinstance(value, str)]
    if wrong:
        sample.add("metadata-invalid", "json", "; ".join(wrong), "numbers and texts of the contract")
    return not wrong


def _check_lengths(sample: _Sample, audio: dict[str, Any], motion: dict[str, Any], cut: dict[str, Any]) -> None:
    """The common length and what was cut follow from the lengths of the sources."""
    kept = -(-motion["frames"] // motion["frame_stride"])
    frames = timebase.common_frames(kept, audio["samples"], audio["rate_hz"])
    if sample.row.frames != frames:
        sample.add("metadata-invalid", "json", f"frames {sample.row.frames}", f"{frames}, by the sources' lengths")
        return
    audio_s = round(max(0.0, audio["samples"] / audio["rate_hz"] - frames / timebase.FRAME_RATE_HZ), 6)
    motion_s = round((kept - frames) / timebase.FRAME_RATE_HZ, 6)
    if (cut["audio_s"], cut["motion_s"]) != (audio_s, motion_s):
        found = f"cut {cut['audio_s']} s of audio, {cut['motion_s']} s of motion"
        sample.add("metadata-invalid", "json", found, f"{audio_s} s, {motion_s} s")
    if audio["rate_hz"] == timebase.SAMPLE_RATE_HZ and audio["samples_16k"] != audio["samples"]:
        sample.add("metadata-invalid", "json", f"samples_16k {audio['samples_16k']}", str(audio["samples"]))
    if sample.settings.get("loudness") == "none" and audio["gain"] != 1:
        sample.add("metadata-invalid", "json", f"gain {audio['gain']}", "1, for loudness none")


def _check_arrays(sample: _Sample, audio: dict[str, Any] | None, codecs: Sequence[CodecEntry]) -> dict[str, Partial]:
    """Every array member; by member the partial statistics of what is sound in a train sample."""
    row, out = sample.row, sample.out
    partials: dict[str, Partial] = {}
    vectors = {codec.member: codec.vectors for codec in codecs}
    summed = {"gesture.npy", "mel.npy", *vectors}
    for member, spec in array_specs(row, audio["samples_16k"] if audio else None, codecs).items():
        data = sample.data(member)
        if data is None:
            continue
        place = row.members[member]
        array = npy_array(data, spec, out, key=row.key, member=member, offset=place.offset)
        if array is None:
            continue
        partial = None
        if row.split == "train" and member in summed and len(array):
            with np.errstate(over="ignore", invalid="ignore"):
                partial = partial_of(vectors[member](array) if member in vectors else array)
        # Minimum and maximum of every channel are finite where all values are.
        known = partial is not None and bool(np.isfinite(partial.rows[2:]).all())
        if not known and not check_finite(array, out, key=row.key, member=member, offset=place.offset + len(data)):
            continue
        if member == "gesture.npy":
            check_gesture(array, out, row.key)
        if member == "mel.npy":
            check_mel(array if partial is None else partial.rows[2], out, row.key)
        if partial is not None:
            partials[member] = partial
    return partials


def _check_transcript(sample: _Sample) -> Counter[str]:
    """KEY.words.json: in form, in order, inside the clip, as many as the manifest says."""
    rows = sample.json("words.json", "transcript-invalid")
    if rows is _ABSENT:
        return Counter()
    if not isinstance(rows, list) or not rows:
        sample.add("transcript-invalid", "words.json", f"{type(rows).__name__}", "a list with at least one word")
        return Counter()
    now, seconds = 0.0, sample.row.seconds
    for place, row in enumerate(rows):
        shaped = isinstance(row, dict) and row.keys() == _WORD
        shaped = shaped and isinstance(row["word"], str) and bool(row["word"].strip())
        if not shaped or not is_real(row["start"]) or not is_real(row["end"]):
            sample.add("transcript-invalid", "words.json", f"word {place}: {row!r}", "word, start and end")
            return Counter()
        start, end = row["start"], row["end"]
        if not 0 <= start < end <= seconds or start < now:
            text = f"word {place}, {row['word']!r} from {start} to {end} s"
            if 0 <= start < end <= seconds:
                sample.add("transcript-order", "words.json", text, f"a start at {now} s or later")
            else:
                sample.add("transcript-outside", "words.json", text, f"inside 0 to {seconds} s")
        now = max(now, end)
    if len(rows) != sample.row.words:
        sample.add("metadata-differs", "words.json", f"{len(rows)} words", f"{sample.row.words} of the manifest")
    return Counter(row["word"] for row in rows)


def _check_annotation(sample: _Sample) -> None:
    """KEY.sem.json where there is one; its spans are not cut to the clip."""
    if "sem.json" not in sample.row.members:
        return
    spans = sample.json("sem.json", "annotation-invalid")
    if spans is _ABSENT:
        return
    if not isinstance(spans, list):
        sample.add("annotation-invalid", "sem.json", type(spans).__name__, "a list")
        return
    for place, span in enumerate(spans):
        shaped = isinstance(span, dict) and span.keys() == _SPAN
        shaped = shaped and isinstance(span["name"], str) and isinstance(span["keywords"], str) and bool(span["name"])
        shaped = shaped and is_real(span["start"]) and is_real(span["end"]) and is_real(span["score"])
        if not shaped or not 0 <= span["start"] <= span["end"] or not 0 <= span["score"] <= 1:
            expected = "name, 0 <= start <= end, score in 0..1, keywords"
            sample.add("annotation-invalid", "sem.json", f"span {place}: {span!r}", expected)
    if "sem" not in sample.row.sources:
        sample.add("metadata-differs", "sem.json", "no source of the annotation", "its path and sha256")


def _check_waveform(sample: _Sample, audio: dict[str, Any] | None) -> None:
    """Kept audio is there exactly where the settings say, in the right form, and decodes to its length."""
    present = [member for member in ("flac", "audio.npy") if member in sample.row.members]
    if audio is None:
        return
    plain = audio["rate_hz"] == timebase.SAMPLE_RATE_HZ and audio["channels"] == 1
    member = "flac" if plain and audio["encoding"] in {"pcm16", "pcm24"} else "audio.npy"
    wanted = [member] if sample.settings.get("keep_audio") else []
    if present != wanted:
        found = f"{' and '.join(present) or 'no audio'} of a {audio['encoding']} source"
        sample.add("waveform-invalid", (present or wanted)[0], found, wanted[0] if wanted else "no audio kept")
        return
    if "flac" in present:
        data = sample.data("flac")
        if data is not None:
            _check_flac(sample, bytes(data), audio)


def _check_flac(sample: _Sample, data: bytes, audio: dict[str, Any]) -> None:
    import soundfile  # noqa: PLC0415 - libsndfile, only where audio was kept

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
        sample.add("waveform-invalid", "flac", f"{error}", "a FLAC stream")
        return
    if found != wanted:
        sample.add("waveform-invalid", "flac", f"{found}", f"{wanted}")
    elif count != audio["samples_16k"]:
        sample.add("waveform-length", "flac", f"{count} samples", f"{audio['samples_16k']}")
