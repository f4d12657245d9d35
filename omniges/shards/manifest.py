"""The manifest, a parquet file with one row for each sample, and the hash of a shard set's content.

The manifest is read either as rows or, for large sets, as columns.
"""

from __future__ import annotations

import hashlib
import io
import math
import string
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError
from omniges.features import timebase
from omniges.shards import schema
from omniges.shards.tar import BLOCK_BYTES, END_OF_ARCHIVE
from omniges.storage.files import canonical_json, is_sha256
from omniges.storage.redact import one_line

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


SOURCES: Final = ("wav", "npz", "textgrid", "sem")
_MAX_MEMBER_BYTES: Final = 8**11 - 1
_MAX_TEXT_BYTES: Final = 64 << 20  # largest JSON member; the words of a day take half of this size
_MAX_FRAMES: Final = int(timebase.LONGEST_S * timebase.FRAME_RATE_HZ)  # longest arrays that readers allocate
_DIGEST_BYTES: Final = 32  # size of a sha256, which cannot be compressed
_ROW_BYTES: Final = 16 << 10  # largest average size of an unpacked row
_SCHEMA_BYTES: Final = 1 << 20
_ROWS_AT_ONCE: Final = 4096  # rows that are converted together; a row as a dict takes ten times as much memory


@dataclass(frozen=True, slots=True)
class MemberPlace:
    """Position of a member's data in its shard, and the sha256 of the data."""

    offset: int
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One sample in the manifest, with everything that readers need before they open its shard."""

    key: str
    stem: str
    split: str
    shard: str
    frames: int  # gesture frames at 30 per second
    mel_frames: int  # mel frames at 100 per second
    ticks: int  # whole ticks of 0.1 s
    words: int  # number of words
    seconds: float  # length of the clip
    speaker_id: int | None
    speaker: str | None
    language: str | None
    labels: dict[str, str]  # such as emotion; the same names in all rows of a set, "" if unknown
    present: tuple[schema.Part, ...]  # parts that the sample has, in the order of `schema.PARTS`
    sources: dict[str, tuple[str, str]]  # type of source file, such as wav -> (path in the data set, sha256)
    notes: tuple[str, ...]  # codes of notes, sorted
    members: dict[str, MemberPlace]

    @property
    def contract(self) -> schema.Contract:
        """Contract version that the sample follows."""
        return schema.CONTRACTS[1 if schema.CONTRACTS[1].words in self.members else schema.FORMAT_VERSION]

    @property
    def keeps_audio(self) -> bool:
        """True if the waveform is in the shard."""
        return bool({"flac", "audio.npy"} & self.members.keys())


def identities(row: ManifestRow) -> tuple[tuple[str, ...], ...]:
    """Return two tuples of sha256 that identify the recording of a sample, to find copies of one recording.

    The first tuple has the sha256 of the gesture and mel arrays, the second the sha256 of the npz and wav source files.
    If two samples have an equal first or an equal second tuple, they are copies of one recording. An empty second tuple
    means that the source files are unknown; do not compare it.
    """
    content = (row.members["gesture.npy"].sha256, row.members["mel.npy"].sha256)
    return content, tuple(row.sources[name][1] for name in ("npz", "wav") if name in row.sources)


def manifest_hash(rows: Sequence[ManifestRow]) -> str:
    """Return the sha256 of a set's content: key, split, frames and member digests of each row, sorted by key.

    Shard names, offsets and the bytes of the parquet file do not affect the hash. So it does not
    change if the samples are packed into other shards.
    """
    digest = hashlib.sha256(b"[")
    for number, row in enumerate(sorted(rows, key=lambda row: row.key)):
        content = {
            "key": row.key,
            "split": row.split,
            "frames": row.frames,
            "members": {member: place.sha256 for member, place in row.members.items()},
        }
        digest.update((b"," if number else b"") + canonical_json(content))
    digest.update(b"]")
    return digest.hexdigest()


def column_of(member: str) -> str:
    """Return the prefix that all manifest columns of a member have, such as ``mel_npy`` for ``mel.npy``."""
    return member.replace(".", "_")


def latent_members(columns: Iterable[str]) -> tuple[str, ...]:
    """Return the sorted names of the latent members in a manifest with these columns."""
    named = (name.removesuffix("_npy_offset") + ".npy" for name in columns if name.endswith("_npy_offset"))
    return tuple(sorted(member for member in named if schema.LATENT_MEMBER.fullmatch(member)))


@dataclass(frozen=True, slots=True)
class _Form:
    """Contract version, names of labels and names of latent members; they determine the columns of a manifest."""

    contract: schema.Contract
    labels: tuple[str, ...] = ()  # sorted
    latents: tuple[str, ...] = ()  # sorted; their columns come last

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the members that have columns, in the order of the columns."""
        return *self.contract.members, *self.contract.optional, *self.latents

    @classmethod
    def of_columns(cls, names: Sequence[str]) -> _Form:
        """Return the form of a manifest with these column names."""
        first = column_of(schema.CONTRACTS[1].words) + "_offset" in names
        labels = () if first else tuple(sorted(n.removeprefix(_LABEL) for n in names if n.startswith(_LABEL)))
        return cls(schema.CONTRACTS[1 if first else schema.FORMAT_VERSION], labels, latent_members(names))


def optional_members(columns: Sequence[str]) -> tuple[str, ...]:
    """Return the members that some samples may lack, in a manifest with these columns."""
    form = _Form.of_columns(columns)
    return *form.contract.optional, *form.latents


_LABEL: Final = "label_"
_PRESENT: Final = "present_"
_LABELS_OF_1: Final = ("scenario", "emotion")  # columns of version 1


def _arrow_schema(form: _Form) -> pa.Schema:
    import pyarrow as pa  # noqa: PLC0415 - takes 0.3 s, not needed for --help

    text, count, nullable = pa.string(), pa.int64(), True
    fields = [pa.field(name, text, nullable=False) for name in ("key", "stem", "split", "shard")]
    fields += [pa.field(name, count, nullable=False) for name in ("frames", "mel_frames", "ticks", "words")]
    fields += [pa.field("seconds", pa.float64(), nullable=False), pa.field("speaker_id", pa.int32())]
    fields += [pa.field(name, text) for name in ("speaker", "language")]
    if form.contract.version == 1:
        fields += [pa.field(name, text) for name in _LABELS_OF_1]
    else:
        fields += [pa.field(_LABEL + name, text, nullable=False) for name in form.labels]
        fields += [pa.field(_PRESENT + part, pa.bool_(), nullable=False) for part in schema.PARTS]
    for source in SOURCES:
        fields += [pa.field(f"{source}_path", text, nullable), pa.field(f"{source}_sha256", text, nullable)]
    fields.append(pa.field("notes", pa.list_(text), nullable=False))
    for member in form.members:
        optional = member not in form.contract.members
        fields += [
            pa.field(f"{column_of(member)}_offset", count, optional),
            pa.field(f"{column_of(member)}_size", count, optional),
            pa.field(f"{column_of(member)}_sha256", text, optional),
        ]
    return pa.schema(fields)


def _flatten(row: ManifestRow, form: _Form) -> dict[str, Any]:
    flat = asdict(row)
    sources, members, labels, present = (flat.pop(name) for name in ("sources", "members", "labels", "present"))
    flat["notes"] = list(row.notes)
    if form.contract.version == 1:
        flat |= {name: labels[name] or None for name in _LABELS_OF_1}
    else:
        flat |= {_LABEL + name: labels[name] for name in form.labels}
        flat |= {_PRESENT + part: part in present for part in schema.PARTS}
    for source in SOURCES:
        flat[f"{source}_path"], flat[f"{source}_sha256"] = sources.get(source, (None, None))
    for member in form.members:
        place = members.get(member, {"offset": None, "size": None, "sha256": None})
        for name, value in place.items():
            flat[f"{column_of(member)}_{name}"] = value
    return flat


def _unflatten(flat: dict[str, Any], form: _Form) -> ManifestRow:
    sources = {
        source: (path, digest)
        for source in SOURCES
        for path, digest in [(flat.pop(f"{source}_path"), flat.pop(f"{source}_sha256"))]
        if path is not None
    }
    members = {}
    for member in form.members:
        offset, size, digest = (flat.pop(f"{column_of(member)}_{name}") for name in ("offset", "size", "sha256"))
        if offset is not None:
            members[member] = MemberPlace(offset, size, digest)
    present: tuple[schema.Part, ...]
    if form.contract.version == 1:
        labels = {name: flat.pop(name) or "" for name in _LABELS_OF_1}
        lacking = {"labels"} if not any(labels.values()) else set()
        lacking |= set() if form.contract.semantic in members else {"sem"}
        present = tuple(part for part in schema.PARTS if part not in lacking)
    else:
        labels = {name: flat.pop(_LABEL + name) for name in form.labels}
        present = tuple(part for part in schema.PARTS if flat.pop(_PRESENT + part))
    flat["notes"] = tuple(flat["notes"])
    return ManifestRow(**flat, labels=labels, present=present, sources=sources, members=members)


def row_from_json(fields: dict[str, Any]) -> ManifestRow:
    """Return the row from its JSON object, the inverse of ``dataclasses.asdict``; values are not checked.

    Pass only objects from a process of this run or from journal lines that are already checked. Equal texts of
    different rows share one string object, which saves a quarter of the memory.
    """
    changed = {name: _shared(fields[name]) for name in ("split", "speaker", "language")} | {
        "labels": {_shared(name): _shared(value) for name, value in fields["labels"].items()},
        "sources": {_shared(name): (path, digest) for name, (path, digest) in fields["sources"].items()},
        "notes": tuple(map(_shared, fields["notes"])),
        "present": tuple(map(_shared, fields["present"])),
        "members": {_shared(member): MemberPlace(**place) for member, place in fields["members"].items()},
    }
    return ManifestRow(**(fields | changed))


def _shared(value: Any) -> Any:
    return sys.intern(value) if isinstance(value, str) else value


def row_from_journal(fields: Any) -> ManifestRow:
    """Convert a JSON object from a journal of unknown origin to a row, with the same checks as for a manifest.

    ValueError is raised if a field is unknown or missing, or if a value is invalid.
    """
    try:
        row = row_from_json(fields)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError("not a row of a manifest") from error
    # The schema of a parquet file guarantees these types, but JSON does not.
    texts = all(value is None or isinstance(value, str) for value in (row.speaker, row.language))
    if not texts or not isinstance(row.labels, dict) or not all(isinstance(part, str) for part in row.present):
        raise ValueError(f"speaker {row.speaker!r:.40}, labels {row.labels!r:.40}, present {row.present!r:.40}")
    if row.speaker_id is not None and not schema.is_count(row.speaker_id):
        raise ValueError(f"speaker_id {row.speaker_id!r:.40}")
    _require_valid(row)
    return row


def serialize_manifest(rows: Sequence[ManifestRow]) -> bytes:
    """Return the bytes of a manifest with the given rows, sorted by shard and offset.

    The bytes depend only on the rows and on the version of pyarrow. All rows must have the same contract version and
    the same label names. A member that is not in the contract raises ValueError.
    """
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    ordered = sorted(rows, key=lambda row: (row.shard, row.members["json"].offset))
    members = sorted({member for row in rows for member in row.members}, key=schema.member_order)
    latents = tuple(member for member in members if schema.LATENT_MEMBER.fullmatch(member))
    labels = tuple(sorted({name for row in rows for name in row.labels}))
    form = _Form(schema.CONTRACTS[1 if schema.CONTRACTS[1].words in members else 2], labels, latents)
    arrow = _arrow_schema(form)
    tables = [
        pa.Table.from_pylist([_flatten(row, form) for row in ordered[start : start + _ROWS_AT_ONCE]], schema=arrow)
        for start in range(0, len(ordered), _ROWS_AT_ONCE)
    ]
    table = pa.concat_tables(tables or [arrow.empty_table()]).combine_chunks()
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _open_parquet(stream: BinaryIO | pa.BufferReader) -> tuple[pq.ParquetFile, _Form]:
    """Open a manifest as a parquet file, and check its schema and declared sizes; no column is read yet.

    Callers must read the data with ``use_threads=False``. Otherwise pyarrow's thread pools may abort a process that
    exits soon after (in 4 % of short commands).

    Raises:
        ValueError: The columns are not those of a contract version, or the file declares too many rows for memory.
    """
    import pyarrow.parquet as pq  # noqa: PLC0415

    file = pq.ParquetFile(stream, pre_buffer=False)
    stream.seek(0, io.SEEK_END)
    packed, facts = stream.tell(), file.metadata
    unpacked = sum(facts.row_group(k).total_byte_size for k in range(facts.num_row_groups))
    if not 0 <= facts.num_rows <= packed // _DIGEST_BYTES:  # each row has a unique sha256
        raise ValueError(f"{packed} bytes cannot hold the {facts.num_rows} rows they claim")
    if not 0 <= unpacked <= _ROW_BYTES * facts.num_rows + _SCHEMA_BYTES:
        raise ValueError(f"expected at most {_ROW_BYTES} bytes a row, found {facts.num_rows} rows of {unpacked} bytes")
    form = _Form.of_columns(file.schema_arrow.names)
    if not file.schema_arrow.equals(_arrow_schema(form)):
        raise ValueError(f"the manifest's columns are not those of shard contract version {form.contract.version}")
    return file, form


def parse_manifest(data: bytes) -> list[ManifestRow]:
    """Return the rows of a manifest without checking them; the verifier checks them and reports every fault.

    ValueError or its subclass pyarrow.ArrowInvalid is raised if the bytes are not a parquet file with the schema of the
    contract.
    """
    import pyarrow as pa  # noqa: PLC0415

    file, form = _open_parquet(pa.BufferReader(data))
    return [_unflatten(flat, form) for flat in file.read(use_threads=False).to_pylist()]


def read_manifest(data: bytes) -> list[ManifestRow]:
    """Return the rows of a manifest after checking each row; all readers except the verifier use this.

    ValueError is raised if the bytes are not a manifest, or if a row has an invalid value.
    """
    import pyarrow as pa  # noqa: PLC0415

    try:
        rows = parse_manifest(data)
    except (pa.ArrowException, OSError, TypeError, KeyError, OverflowError) as error:
        raise ValueError(f"expected a manifest, found another file ({type(error).__name__}: {error})") from error
    for row in rows:
        _require_valid(row)
    return rows


def _require_valid(row: ManifestRow) -> None:
    problem = row_problem(row)
    if not problem and schema.key_from_stem(row.stem) != row.key:
        problem = f"stem {row.stem!r}"
    if problem:
        raise ValueError(f"sample {ascii(row.key)[:100]}: expected a row of the contract, found {problem}")


def row_problem(row: ManifestRow) -> str:
    """Describe the first unsafe name or invalid value in a row; return "" for a valid row."""
    if not schema.is_key(row.key) or row.split not in schema.SPLITS or not schema.is_shard_name(row.shard):
        return f"key {row.key!r}, split {row.split!r}, shard {row.shard!r}"
    if not schema.is_stem(row.stem):
        return f"stem {row.stem!r}"
    counts = (row.mel_frames, row.ticks, row.words)
    minimum = schema.is_count(row.frames, timebase.FRAMES_PER_TICK) and schema.is_count(row.mel_frames, 1)
    if not minimum or not all(map(schema.is_count, counts)) or row.frames > _MAX_FRAMES:
        return f"frames {row.frames}, mel frames, ticks and words {counts}"
    if not isinstance(row.seconds, (int, float)) or not math.isfinite(row.seconds):
        return f"seconds {row.seconds}"
    if not all(isinstance(note, str) for note in row.notes):
        return "a note that is not a text"
    if not all(schema.is_label(name) and isinstance(value, str) for name, value in row.labels.items()):
        return f"labels {row.labels!r:.100}"
    if not set(row.present) <= set(schema.PARTS):
        return f"present {row.present!r:.100}"
    return _places_problem(row)


def places_problem(rows: Iterable[ManifestRow], shards: Mapping[str, Any]) -> str:
    """Describe the first contradiction between rows, or between the rows and the shards in dataset.json.

    Args:
        rows: All rows of a manifest, each valid.
        shards: Entries of shards in dataset.json, by name.

    Returns:
        One line that names the row or the shard; an empty text if there is no contradiction.
    """
    keys: set[str] = set()
    samples, ends = Counter(dict.fromkeys(shards, 0)), dict.fromkeys(shards, 0)
    for row in rows:
        if row.key in keys:
            return f"expected each key once, found {row.key} twice"
        keys.add(row.key)
        if row.shard not in shards:
            return f"row {row.key}: expected a shard that dataset.json lists, found {row.shard}"
        if row.split != shards[row.shard]["split"]:
            return f"row {row.key}: expected the split of its shard {row.shard}, found {row.split}"
        samples[row.shard] += 1
        lengths = timebase.mel_frames_for(row.frames), timebase.ticks_of_frames(row.frames)
        if (row.mel_frames, row.ticks) != lengths:
            found = f"{row.frames} frames, {row.mel_frames} mel frames and {row.ticks} ticks"
            return f"row {row.key}: expected consistent lengths, found {found}"
        size = shards[row.shard]["bytes"]
        for member, place in row.members.items():
            if place.offset + place.size > size:
                end = place.offset + place.size
                return f"row {row.key}: expected {member} in the {size} bytes of {row.shard}, found its end at {end}"
            ends[row.shard] = max(ends[row.shard], place.offset + place.size)
    for shard, count in samples.items():
        if count != shards[shard]["samples"]:
            return f"expected {shards[shard]['samples']} rows of {shard} as in dataset.json, found {count}"
        end, size = ends[shard] + -ends[shard] % BLOCK_BYTES + len(END_OF_ARCHIVE), shards[shard]["bytes"]
        if end != size:
            return f"{shard}: expected {end} bytes (the end of its members), found {size} in dataset.json"
    return ""


def _places_problem(row: ManifestRow) -> str:
    """Describe the first invalid or missing member position or source file of a row; return "" if all are valid."""
    contract = row.contract
    if not set(contract.members) <= row.members.keys():
        return "no position of a required member"
    for member, place in row.members.items():
        if member not in {*contract.members, *contract.optional} and not schema.LATENT_MEMBER.fullmatch(member):
            return f"member {member!r}"
        largest = _MAX_MEMBER_BYTES if member.endswith(".npy") or member == "flac" else _MAX_TEXT_BYTES
        valid = schema.is_count(place.offset, 512) and schema.is_count(place.size) and place.size <= largest
        if not valid or not is_sha256(place.sha256):
            return f"{member}: offset {place.offset}, size {place.size}, sha256 {place.sha256}"
    for source, (path, digest) in row.sources.items():
        if not is_sha256(digest) or not schema.is_relative_path(path):
            return f"{source}: {path!r}, sha256 {digest!r}"
    needed = set(SOURCES) - {"sem"} if contract.version == 1 else set()
    return "" if needed <= row.sources.keys() else f"sources {', '.join(sorted(row.sources))}"


_IN_KEYS: Final = np.isin(
    np.arange(256), np.frombuffer(f"\0{string.ascii_letters}{string.digits}_-".encode(), np.uint8)
)
"""For each byte value (256,), True if keys may contain it. Zero is allowed, because zeros pad shorter keys."""


class ManifestColumns:
    """A manifest that is read as arrays, one column at a time. This takes seconds for a million rows.

    A column is read when it is requested. Every method raises DataError if a column is missing or has invalid values.
    In all shapes, N is the number of rows.
    """

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        import pyarrow as pa  # noqa: PLC0415 - takes 0.3 s, not needed for --help

        self.path = path
        try:
            self._file, self._form = _open_parquet(stream)
        except (ValueError, OSError, OverflowError, pa.ArrowException) as error:
            raise DataError(
                f"{path}: expected a manifest of the contract, found another file ({one_line(str(error), 200)}); "
                f"{schema.VERIFY}"
            ) from error

    def _column(self, name: str) -> pa.Array:
        table = self._file.read(columns=[name], use_threads=False)
        if name not in table.column_names:
            raise DataError(f"{self.path}: expected a column {name!r}, found none; {schema.VERIFY}")
        return table.column(name).combine_chunks()

    def numbers(self, name: str) -> npt.NDArray[Any]:
        """Return a numeric column (N,). A column with nulls is converted to float64, with NaN for each null."""
        found: npt.NDArray[Any] = self._column(name).to_numpy(zero_copy_only=False)
        return found

    def labels(self, name: str) -> tuple[list[str], npt.NDArray[np.int32]]:
        """Return the distinct texts of a column, and for each row (N,) the index of its text, -1 for null."""
        encoded = self._column(name).dictionary_encode()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
        return encoded.dictionary.to_pylist(), codes

    def labels_of(self, label: str) -> tuple[list[str], npt.NDArray[np.int32]]:
        """Return the distinct values of a label, such as emotion, and for each row (N,) the index of its value.

        The index is -1 for a row without a value.
        """
        names = self._file.schema_arrow.names
        own = label in {"speaker", "language", *_LABELS_OF_1}  # labels whose column has the label's name
        column = _LABEL + label if _LABEL + label in names or not own else label
        if column not in names:
            return [], np.full(self._file.metadata.num_rows, -1, np.int32)
        values, codes = self.labels(column)
        if "" in values:
            codes = np.where(codes == values.index(""), np.int32(-1), codes)
        return values, codes

    def present(self, parts: Sequence[schema.Part]) -> npt.NDArray[np.uint8]:
        """Return bit masks (N,) of at most eight parts: bit k is set if the sample has ``parts[k]``.

        In version 1, all bits are set.
        """
        count = self._file.metadata.num_rows
        if self._form.contract.version == 1:
            return np.full(count, (1 << len(parts)) - 1, np.uint8)
        found = np.zeros(count, np.uint8)
        for k, part in enumerate(parts):
            found |= self.numbers(_PRESENT + part).astype(np.uint8) << np.uint8(k)
        return found

    def _bytes(self, name: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
        """Return the concatenated bytes of a text column, and the offsets (N + 1,) at which the texts begin and end."""
        column = self._column(name)
        if column.null_count:
            raise DataError(
                f"{self.path}: column {name!r}: expected no nulls, found {column.null_count}; {schema.VERIFY}"
            )
        if not len(column):
            return np.empty(0, np.uint8), np.zeros(1, np.int32)
        _, ends, data = column.buffers()
        ends = np.frombuffer(ends, np.int32)[column.offset : column.offset + len(column) + 1]
        return np.frombuffer(data or b"", np.uint8)[ends[0] : ends[-1]], ends - ends[0]

    def keys(self) -> npt.NDArray[np.bytes_]:
        """Return the keys (N,) as fixed-width bytes. Refuse invalid keys, because file names are made from keys."""
        data, ends = self._bytes("key")
        if data.size and not 0 < data.min() <= data.max() < 128:
            raise DataError(f"{self.path}: column 'key': expected ASCII texts; {schema.VERIFY}")
        lengths = np.diff(ends)
        width = int(lengths.max(initial=1))
        if width > schema.MAX_KEY_BYTES:  # refused before this many bytes are allocated for each row
            raise self._no_key(f"a key of {width} bytes")
        fixed = np.zeros((len(lengths), width), dtype=np.uint8)
        fixed[np.arange(width) < lengths[:, None]] = data
        found = fixed.view(f"S{width}").reshape(-1)
        valid = _IN_KEYS[fixed].all(axis=1) & (fixed[:, 0] != 0)
        if not valid.all():
            raise self._no_key(ascii(found[int(np.flatnonzero(~valid)[0])].decode("ascii", "replace"))[:100])
        return found

    def _no_key(self, found: str) -> DataError:
        grammar = f"at most {schema.MAX_KEY_BYTES} of A-Z, a-z, 0-9, _ and -"
        return DataError(f"{self.path}: column 'key': expected {grammar}, found {found}; {schema.VERIFY}")

    def digests(self, name: str) -> npt.NDArray[np.uint8]:
        """Convert a column of hexadecimal sha256 to bytes (N, 32)."""
        data, ends = self._bytes(name)
        if (np.diff(ends) != 64).any():
            raise DataError(
                f"{self.path}: column {name!r}: expected sha256 of 64 digits, found other texts; {schema.VERIFY}"
            )
        try:
            raw = bytes.fromhex(str(data.data, "ascii"))
        except ValueError as error:
            raise DataError(f"{self.path}: column {name!r}: expected sha256 ({error}); {schema.VERIFY}") from error
        return np.frombuffer(raw, np.uint8).reshape(-1, 32)
