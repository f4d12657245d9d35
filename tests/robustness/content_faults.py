"""Faults in what the data mean, drawn at random, to be written with every checksum right: level deep must find each.

A fault changes a `ShardSet` in place; `ShardSet.build` then recomputes offsets, sizes, counts and all checksums.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from shard_faults import pick
from shard_sets import Sample, ShardSet

from omniges.shards.manifest import ManifestRow, MemberPlace
from omniges.shards.schema import CONTRACT, PARTS, REPORT_FILE, STATS_FILE, TOKENIZER_FILE
from omniges.shards.tar import npy_parts
from omniges.storage.files import canonical_json, json_document

Rng = np.random.Generator


@dataclass(frozen=True)
class ContentKind:
    """A kind of fault; `codes` are those of which at least one must be found, whole or by their beginning."""

    name: str
    codes: tuple[str, ...]
    insert: Callable[[Rng, ShardSet], None]


def _in_a_sample(change: Callable[[Rng, Sample], None]) -> Callable[[Rng, ShardSet], None]:
    def insert(rng: Rng, shards: ShardSet) -> None:
        change(rng, pick(rng, shards.samples))

    return insert


# --- arrays

_ARRAY_NAMES: Final = ("gesture.npy", "mel.npy", "jaw_eyes.npy", "betas.npy", "start_xz.npy")


def _not_finite(rng: Rng, sample: Sample) -> None:
    array = sample.arrays[pick(rng, _ARRAY_NAMES)]
    array.reshape(-1)[int(rng.integers(array.size))] = pick(rng, (np.nan, np.inf, -np.inf))


def _number_type(rng: Rng, sample: Sample) -> None:
    name = pick(rng, _ARRAY_NAMES)
    allowed = {"betas.npy": {"<f4", "<f8"}, "start_xz.npy": {"<f8"}}.get(name, {"<f4"})
    types = [kind for kind in ("<f2", "<f4", "<f8", "<i4", "<i8", "|u1", "<c8") if kind not in allowed]
    kind = pick(rng, types)
    with np.errstate(invalid="ignore", over="ignore"):
        sample.arrays[name] = np.nan_to_num(sample.arrays[name]).astype(kind)


def _shape(rng: Rng, sample: Sample) -> None:
    name = pick(rng, _ARRAY_NAMES)
    array = sample.arrays[name]
    shapes: list[npt.NDArray[Any]] = [
        *(array[:-1], np.concatenate([array, array[:1]]), array[None], array[..., None], array[:0])
    ]
    if array.ndim == 2:
        shapes += [array[:, :-1], array.reshape(-1), np.ascontiguousarray(array.T), np.concatenate([array] * 2, 1)]
    sample.arrays[name] = pick(rng, [shape for shape in shapes if shape.shape != array.shape])


def _npy_form(rng: Rng, sample: Sample) -> None:
    """Headers that numpy reads, or reads otherwise, and the contract has not."""
    name = pick(rng, _ARRAY_NAMES)
    header, data = (bytes(part) for part in npy_parts(np.ascontiguousarray(sample.arrays[name])))
    text = header[10:]
    forms = (
        *(header[:6] + b"\x02\x00" + header[8:10] + b"\0\0" + text + data, header + data + b"\0", header + data[:-1]),
        *(header.replace(b"False", b"True ") + data, header.replace(b"<f", b"|O") + data, b"", header[:20], header),
        *(header.replace(b"'descr': ", b"'descr' :") + data, b"\x93NUMPX" + header[6:] + data),
        *(header[:-2] + b"\0\n" + data, header[:8] + b"\xff\xff" + text + data, header.replace(b"<f", b">f") + data),
        *(header[:8] + (len(text) + 64).to_bytes(2, "little") + text[:-1] + b" " * 64 + b"\n" + data, data),
    )
    sample.raw[name] = pick(rng, forms)


def _rotation(rng: Rng, sample: Sample) -> None:
    gesture = sample.arrays["gesture.npy"]
    frame, joint = int(rng.integers(len(gesture))), int(rng.integers(52))
    rows = gesture[frame, 6 * joint : 6 * joint + 6]
    way = int(rng.integers(6))
    if way == 0:
        rows *= np.float32(pick(rng, (1.0001, 0.9999, -2.0, 1e20, 0.0)))
    elif way == 1:
        rows[int(rng.integers(6))] += np.float32(pick(rng, (0.3, -0.3, 2.0, 3e38)))
    elif way == 2:
        rows[3:] = rows[:3]
    elif way == 3:
        rows[3:] = rows[3:] + np.float32(1e-3) * rows[:3]
    elif way == 4:
        gesture[frame, :312] = np.roll(gesture[frame, :312], 1)
    else:
        rows[: int(rng.integers(1, 6))] = 0
    if np.abs(_gram(gesture[frame, :312].astype(np.float64)) - np.eye(2)).max() < 3e-5:  # not broken after all
        rows[0] += np.float32(0.5) + np.float32(2) * np.abs(rows[0])


def _gram(rotations: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Inner products of each rotation's two rows, (52, 2, 2)."""
    pairs = rotations.reshape(-1, 2, 3)
    products: npt.NDArray[np.float64] = pairs @ pairs.transpose(0, 2, 1)
    return products


def _mel_floor(rng: Rng, sample: Sample) -> None:
    mel = sample.arrays["mel.npy"]
    mel.reshape(-1)[int(rng.integers(mel.size))] = pick(rng, (-11.6, -12.0, -1e30))


def _root_step(rng: Rng, sample: Sample) -> None:
    sample.arrays["gesture.npy"][0, pick(rng, (312, 314))] += np.float32(pick(rng, (1e-3, 7.0, -0.5)))


# --- JSON members


def _bad_words(rng: Rng, sample: Sample) -> None:
    words: list[dict[str, Any]] = sample.words
    place = int(rng.integers(len(words)))
    word = words[place]
    changes: tuple[dict[str, Any], ...] = (
        *({"word": ""}, {"word": " \t"}, {"word": 5}, {"word": None}, {"start": "0.1"}, {"start": True}),
        *({"end": None}, {"more": 1}, {"start": 10**400}, {"end": [1]}),
    )
    forms: tuple[Callable[[], Any], ...] = (
        lambda: [{**w, **pick(rng, changes)} if k == place else w for k, w in enumerate(words)],
        lambda: [{n: v for n, v in w.items() if n != "end" or k != place} for k, w in enumerate(words)],
        lambda: pick(rng, ([], {}, None, 1, "x", [[]], {"word": word})),
    )
    sample.words = pick(rng, forms)()


def _json_form(member: str) -> Callable[[Rng, Sample], None]:
    """Bytes that JSON readers take for the same value, or for no value at all."""

    def change(rng: Rng, sample: Sample) -> None:
        value = sample.words if member == CONTRACT.words else sample.metadata
        data = canonical_json(value)
        forms = (
            *(json_document(value), data + b"\n", b" " + data, data.replace(b'":', b'": ', 1), b"\xef\xbb\xbf" + data),
            *(
                data[:-1],
                data + data,
                b"",
                b"[NaN]",
                b"\xff",
                b'"\\ud800"',
                b"[" * 100_000,
                data.decode().encode("utf-16"),
            ),
            data[:1] + b'"more":1,' + data[1:] if member == "json" else data.replace(b'"end":', b'"end":0,"end":', 1),
        )
        sample.raw[member] = pick(rng, forms)

    return change


def _word_order(rng: Rng, sample: Sample) -> None:
    """Words that overlap, or stand in another order."""
    words = sample.words
    place = int(rng.integers(len(words)))
    if len(words) > 1 and rng.integers(2):
        sample.words = words[::-1]
    else:
        sample.words = [*words[: place + 1], dict(words[place]), *words[place + 1 :]]
    sample.row = replace(sample.row, words=len(sample.words))


def _word_outside(rng: Rng, sample: Sample) -> None:
    place = int(rng.integers(len(sample.words)))
    word = sample.words[place]
    changes = (
        *({"end": 99.0}, {"start": -0.1}, {"end": word["start"]}, {"end": sample.row.seconds + 1e-6}),
        {"start": word["end"], "end": word["start"]},
    )
    sample.words[place] = word | pick(rng, changes)


def _annotation(rng: Rng, sample: Sample) -> None:
    span = {"end": 1.0, "keywords": "", "name": "beat", "score": 0.5, "start": 0.0}
    changes: tuple[dict[str, Any], ...] = (
        *({"score": 1.5}, {"score": -0.1}, {"score": None}, {"start": 2.0}, {"start": -1.0}, {"name": ""}),
        *({"keywords": 5}, {"more": 1}, {"end": "1"}, {"name": None}, {"score": True}),
    )
    spans: tuple[Any, ...] = ([span | pick(rng, changes)], {}, None, [1], [span, []])
    sample.others[CONTRACT.semantic] = canonical_json(pick(rng, spans))


def _column_against_json(rng: Rng, sample: Sample) -> None:
    """KEY.json says one thing, the manifest another."""
    fields: dict[str, tuple[Any, ...]] = {
        **dict.fromkeys(("key", "stem", "speaker", "language"), ("x", None, 7)),
        **dict.fromkeys(("labels", "present"), ({}, None, [], sample.metadata["labels"] | {"more": ""})),
        **dict.fromkeys(("frames", "mel_frames", "ticks"), (-1, 7.0, 77, None, True)),
        "split": ("dev", "additional"),
        "speaker_id": (True, 77, "1"),
        "seconds": (0, 77.7, None),
    }
    name = pick(rng, sorted(fields))
    values = [v for v in fields[name] if v != sample.metadata[name] or type(v) is not type(sample.metadata[name])]
    sample.metadata[name] = pick(rng, values)


def _provenance(rng: Rng, sample: Sample) -> None:
    sources = sample.metadata["sources"]
    source = pick(rng, sorted(sources))
    way = int(rng.integers(4))
    if way == 0:
        sources[source]["sha256"] = "0" * 64
    elif way == 1:
        sources[source]["path"] += "x"
    elif way == 2:
        del sources[source]
    else:
        sources[source]["more"] = 1


def _parts(rng: Rng, sample: Sample) -> None:
    """The parts of KEY.json that the manifest does not repeat."""
    fields: dict[tuple[str, ...], tuple[Any, ...]] = {
        ("audio",): (None, {}, []),
        ("motion",): (None, {}, 1),
        ("cut",): (None, {}, "x"),
        ("audio", "rate_hz"): (0, -1, "16000", True, 16000.0),
        ("audio", "channels"): (0, None, 1.0),
        ("audio", "samples"): (0, 1, 10**9, None),
        ("audio", "samples_16k"): (0, 7, None, 10**9),
        ("audio", "gain"): (3.0, -1, None, "1", 0),
        ("audio", "encoding"): (None, 16, []),
        ("motion", "frames"): (0, 1, 10**7, None),
        ("motion", "frame_stride"): (0, 99, None),
        ("motion", "frame_rate_hz"): (0, -30, "30"),
        ("motion", "betas"): (-1, None, 3.5),
        ("motion", "key_style"): (None, 5),
        ("cut", "audio_s"): (77.7, -1, None),
        ("cut", "motion_s"): (77.7, -1, "0"),
        ("cut", "words_dropped"): (-1, 0.5, None),
        ("cut", "words_clipped"): (-1, 0.5, None),
        ("notes",): (None, {}, [], ["x"], [{"code": "no-such-code", "found": "x"}], "no-such-code: x"),
        ("more",): (1,),
        ("audio", "more"): (1,),
    }
    path = pick(rng, sorted(fields))
    place = sample.metadata
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = pick(rng, fields[path])


def _field_gone(rng: Rng, sample: Sample) -> None:
    place = pick(rng, (sample.metadata, *(sample.metadata[part] for part in ("audio", "motion", "cut"))))
    del place[pick(rng, sorted(place))]


def _kept_audio(rng: Rng, sample: Sample) -> None:
    """Audio lost, garbled, cut, of another length, or kept where it should not be."""
    member = "audio.npy"
    data = sample.others.pop(member, None)
    if data is None:
        sample.others[member] = b"fLaC" + rng.bytes(60)
        return
    values = np.zeros(int(rng.integers(0, 99)), np.float32)
    short = b"".join(map(bytes, npy_parts(values)))
    forms = (None, b"", rng.bytes(300), data[: len(data) // 2], b"fLaC" + bytes(100), data[:4], short)
    if (changed := pick(rng, forms)) is not None:
        sample.others[member] = changed


def _said_absent(rng: np.random.Generator, sample: Sample) -> None:
    """A part that manifest and KEY.json call absent, though it is there."""
    part = pick(rng, [part for part in sample.row.present if part not in {"sem", "labels"}])
    sample.row = replace(sample.row, present=tuple(other for other in sample.row.present if other != part))
    sample.metadata["present"][part] = False


def _absent_in_part(rng: np.random.Generator, sample: Sample) -> None:
    """Channels that are NaN in some frames, or in all of them though nobody says that they are absent."""
    member = pick(rng, ("gesture.npy", "mel.npy", "jaw_eyes.npy"))
    array = sample.arrays[member]
    column = int(rng.integers(array.shape[1]))
    array[pick(rng, (slice(None), slice(1), slice(1, None), slice(-1, None))), column] = np.nan


# --- the manifest, true in no column


def _column(name: str, *values: Any) -> Callable[[Rng, ShardSet], None]:
    """A column of one row that says something else than the shard does."""

    def insert(rng: Rng, shards: ShardSet) -> None:
        place = int(rng.integers(len(shards.samples)))

        def edit(rows: list[ManifestRow]) -> list[ManifestRow]:
            was = getattr(rows[place], name)
            now = pick(rng, [value for value in values if value != was])
            return [*rows[:place], replace(rows[place], **{name: now}), *rows[place + 1 :]]

        shards.edit_rows = edit

    return insert


def _source_column(rng: Rng, shards: ShardSet) -> None:
    place = int(rng.integers(len(shards.samples)))

    def edit(rows: list[ManifestRow]) -> list[ManifestRow]:
        sources = dict(rows[place].sources)
        source = pick(rng, sorted(sources))
        path, digest = sources[source]
        if source == "sem" and rng.integers(2):
            del sources[source]
        else:
            sources[source] = pick(rng, ((path + "x", digest), (path, "0" * 64)))
        return [*rows[:place], replace(rows[place], sources=sources), *rows[place + 1 :]]

    shards.edit_rows = edit


def _member_column(member: str) -> Callable[[Rng, ShardSet], None]:
    def insert(rng: Rng, shards: ShardSet) -> None:
        place = int(rng.integers(len(shards.samples)))

        def edit(rows: list[ManifestRow]) -> list[ManifestRow]:
            was = rows[place].members[member]
            places: tuple[MemberPlace, ...] = (
                *(replace(was, offset=was.offset + 512), replace(was, size=was.size + 1)),
                *(replace(was, size=max(0, was.size - 1)), replace(was, sha256="0" * 64)),
            )
            members = rows[place].members | {member: pick(rng, places)}
            return [*rows[:place], replace(rows[place], members=members), *rows[place + 1 :]]

        shards.edit_rows = edit

    return insert


# --- the whole set


def _leak(rng: Rng, shards: ShardSet) -> None:
    """A recording once more in another split, under another name, features or sources the same."""
    source = pick(rng, shards.samples)
    target = pick(rng, sorted({s.row.split for s in shards.samples} - {source.row.split}))
    shard = next(s.row.shard for s in shards.samples[::-1] if s.row.split == target)
    keys = [s.row.key for s in shards.samples if s.row.split == target]
    key = max(keys) + "z"
    twin = copy.deepcopy(source)
    twin.row = replace(twin.row, key=key, stem=key, split=target, shard=shard)
    twin.metadata |= {"key": key, "stem": key, "split": target}
    if rng.integers(2):  # another conversion of the same files
        twin.arrays["mel.npy"] = twin.arrays["mel.npy"] + np.float32(0.25)
    else:  # the same features from renamed files
        digests = {name: (path, "ab" * 32) for name, (path, _) in twin.row.sources.items()}
        twin.row = replace(twin.row, sources=digests)
        twin.metadata["sources"] |= {name: {"path": path, "sha256": d} for name, (path, d) in digests.items()}
    shards.samples = sorted([*shards.samples, twin], key=lambda s: (s.row.shard, s.row.key))
    shards.keep_files = False


def _statistics(rng: Rng, shards: ShardSet) -> None:
    document = json.loads(shards.files[STATS_FILE])
    numbers = [
        (document[part], name, k)
        for part in ("gesture", "mel", "jaw_eyes")
        for name in ("mean", "std", "min", "max", "counts", "difference_std")
        for k in range(len(document[part][name]))
    ]
    place, name, k = pick(rng, numbers)
    was = place[name][k]
    place[name][k] = pick(rng, (float(np.nextafter(was, 9)), was + 0.1, 0.123))
    ways: tuple[Callable[[], object], ...] = (
        *(lambda: None,) * 4,
        lambda: document.update(samples=document["samples"] + 1),
        lambda: document["words"].update(total=document["words"]["total"] + 1),
        lambda: document["seconds"].update(total=0.5),
        lambda: document["gesture"].update(channels=document["gesture"]["channels"][::-1]),
        lambda: document.pop("speakers"),
    )
    pick(rng, ways)()
    shards.files[STATS_FILE] = json_document(document)


def _tokenizer(rng: Rng, shards: ShardSet) -> None:
    data = shards.files[TOKENIZER_FILE]
    forms = (data.replace(b'"BPE"', b'"WordPiece"'), b"", data + b"\n", data[:-9], data.replace(b'"merges"', b'"m"'))
    shards.files[TOKENIZER_FILE] = pick(rng, forms)


def _report(rng: Rng, shards: ShardSet) -> None:
    base = {"code": "length-cut", "severity": "note", "stem": None, "file": None, "found": "", "expected": ""}
    base |= {"meaning": "m", "remedy": "r"}
    edits: tuple[dict[str, Any], ...] = (
        *({"code": "no-such-code"}, {"severity": "rejected"}, {"found": 5}, {"more": 1}, {"stem": 7}),
        {"stem": pick(rng, shards.samples).row.stem, "code": "wav-empty", "severity": "rejected"},
    )
    line = canonical_json(base | pick(rng, edits)) + b"\n"
    data = shards.files[REPORT_FILE]
    shards.files[REPORT_FILE] = pick(rng, (line + data, data + b"x", b"{}\n" + data, b"[]\n" + data))


def _meta(name: str, codes: Sequence[str], change: Callable[[Rng, Sample], None]) -> ContentKind:
    return ContentKind(name, tuple(codes), _in_a_sample(change))


_TEXTS: Final = ("wayne", "x", None)
_LABELS: Final = (("x", ""), ("", "speech"), ("", ""))
_ANY_ARRAY: Final = ("array-invalid", "array-dtype", "array-shape")
_METADATA: Final = ("metadata-",)
_PLACED: Final = ("manifest-", "member-", "row-arithmetic", "metadata-", "key-not-of-stem", "array-")

CONTENT_KINDS: Final[tuple[ContentKind, ...]] = (
    _meta("NaN or infinite", ("array-not-finite",), _not_finite),
    _meta("another number type", ("array-dtype", "array-invalid"), _number_type),
    _meta("another shape", ("array-shape", "array-invalid"), _shape),
    _meta("another npy form", (*_ANY_ARRAY, "array-not-finite"), _npy_form),
    _meta("rotation broken", ("rotation-broken", "array-not-finite"), _rotation),
    _meta("mel below its floor", ("mel-below-floor",), _mel_floor),
    _meta("first root step", ("root-first-step",), _root_step),
    _meta("words not in form", ("transcript-invalid",), _bad_words),
    _meta("words in another byte form", ("transcript-invalid",), _json_form(CONTRACT.words)),
    _meta("words out of order", ("transcript-order",), _word_order),
    _meta("words outside the clip", ("transcript-outside", "transcript-order"), _word_outside),
    _meta("annotation not in form", ("annotation-invalid", "absent-not-nan"), _annotation),
    _meta("KEY.json against the manifest", ("metadata-differs",), _column_against_json),
    _meta("KEY.json in another byte form", ("metadata-invalid",), _json_form("json")),
    _meta("provenance", ("metadata-differs",), _provenance),
    _meta("audio, motion, cut and notes", ("metadata-", "waveform-"), _parts),
    _meta("a field of KEY.json gone", ("metadata-invalid",), _field_gone),
    _meta("kept audio", ("waveform-", "array-invalid", "array-shape", "metadata-"), _kept_audio),
    _meta("said to be absent", ("absent-not-nan", "metadata-invalid"), _said_absent),
    _meta("NaN in some frames, or not said", ("array-not-finite",), _absent_in_part),
    ContentKind("column key", _PLACED, _column("key", "other", "x", "../x", "")),
    ContentKind("column stem", _PLACED, _column("stem", "other", "x", "")),
    ContentKind("column split", _PLACED, _column("split", "train", "val", "test", "dev")),
    ContentKind("column shard", _PLACED, _column("shard", "val-000000.tar", "train-000000.tar", "train-000044.tar")),
    ContentKind("column frames", _PLACED, _column("frames", 1, 2, 4, 10**6)),
    ContentKind("column mel_frames", _PLACED, _column("mel_frames", 1, 10**6)),
    ContentKind("column ticks", _PLACED, _column("ticks", 99, 10**6)),
    ContentKind("column words", _METADATA, _column("words", 99, 0)),
    ContentKind("column seconds", _PLACED, _column("seconds", 99.0, 1e300, 0.1000001)),
    ContentKind("column speaker_id", _METADATA, _column("speaker_id", 99, 0, None)),
    *(ContentKind(f"column {name}", _METADATA, _column(name, *_TEXTS)) for name in ("speaker", "language")),
    ContentKind("column labels", _METADATA, _column("labels", *({"emotion": e, "scenario": s} for e, s in _LABELS))),
    ContentKind("columns present", (*_METADATA, "absent-not-nan"), _column("present", (), PARTS, PARTS[1:], PARTS[:2])),
    ContentKind("column notes", (*_METADATA, "report-"), _column("notes", ("betas-extended", "x"), ("x",))),
    ContentKind("source columns", (*_METADATA, "manifest-malformed"), _source_column),
    *(ContentKind(f"columns of {member}", _PLACED, _member_column(member)) for member in CONTRACT.members),
    ContentKind("recording leaked to another split", ("recording-in-two-splits",), _leak),
    ContentKind("statistics", ("statistics-differ",), _statistics),
    ContentKind("tokenizer", ("tokenizer-differs", "tokenizer-invalid"), _tokenizer),
    ContentKind("report", ("report-",), _report),
)
