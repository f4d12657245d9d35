"""Reading of a dataset.json of unknown origin; the type and range of every field are checked.

All commands read dataset.json with this module. The verifier reports every fault from `field_faults` as a finding;
other readers stop with an error at the first fault.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast, get_args

from omniges.errors import DataError, UsageFault
from omniges.features import audio
from omniges.features.timebase import seconds_of_frames
from omniges.shards import schema
from omniges.shards.dataset import COUNTS, FEATURES, sealed_correctly, totals_of
from omniges.shards.latents import read_entries
from omniges.shards.manifest import ManifestRow, places_problem
from omniges.shards.schema import is_count, is_real
from omniges.shards.tar import BLOCK_BYTES, END_OF_ARCHIVE
from omniges.storage.files import canonical_json, is_sha256, read_json
from omniges.storage.redact import one_line

_VERIFY: Final = "run omniges verify-shards on it"
_ABSENT: Final = "nothing"
_PROVENANCE: Final = ("tool.", "settings.", "plan.", "totals.cut")
"""Prefixes of the names of optional fields. Only the verifier and `preprocess` need these fields."""
_MAX_TEXT: Final = 4096  # longest setting in characters: a path, a name or a pattern
_MAX_NUMBER: Final = 1e15  # seconds or hertz
_MAX_VERSION: Final = 80  # longest name or version of a package in characters


@dataclass(frozen=True, slots=True)
class FieldFault:
    """A field of dataset.json that is missing or has an invalid value."""

    field: str  # such as "plan.stems"
    found: str
    expected: str

    @property
    def absent(self) -> bool:
        """True if the field is missing."""
        return self.found == _ABSENT


@dataclass(frozen=True, slots=True)
class _Field:
    """Rule for one field of dataset.json: its valid values, and whether it must exist (`needed`)."""

    expected: str
    valid: Callable[[object], bool]
    needed: bool = True


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_TEXT


def _is_length(value: object) -> bool:
    return is_real(value) and 0 <= cast("float", value) <= _MAX_NUMBER


def _is_rate(value: object) -> bool:
    return is_real(value) and 0 < cast("float", value) <= _MAX_NUMBER


def _or_null(valid: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or valid(value)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_versions(value: object) -> bool:
    return isinstance(value, dict) and all(
        _is_text(text) and len(text) <= _MAX_VERSION for pair in value.items() for text in pair
    )


def _is_rejected_inputs(value: object) -> bool:
    """Return whether a value lists the input files of rejected recordings.

    The value must be a dictionary from stem to the input files of the recording. These files are a dictionary from
    relative path to sha256, or to None for a file that could not be read.
    """
    return isinstance(value, dict) and all(
        schema.is_relative_path(stem)
        and "/" not in stem
        and isinstance(inputs, dict)
        and all(
            schema.is_relative_path(path) and (digest is None or is_sha256(digest)) for path, digest in inputs.items()
        )
        for stem, inputs in value.items()
    )


_COUNT: Final = _Field("a whole number of at least 0", is_count)
_DIGEST: Final = _Field("a sha256 of 64 hexadecimal digits", is_sha256)
_SECONDS: Final = _Field("a number of seconds of at least 0", _is_length)
_TEXTS: Final = _Field("a list of texts", _is_texts, needed=False)
_TEXT_OR_NULL: Final = _Field("a text or null", _or_null(_is_text), needed=False)
_TEXT: Final = _Field("a text", _is_text, needed=False)
_SOURCES: Final = ("data set", "--split-csv")

_CUT: Final = {"audio_s": _SECONDS, "motion_s": _SECONDS, "words_dropped": _COUNT, "words_clipped": _COUNT}
_TOTALS: Final = dict.fromkeys(COUNTS, _COUNT) | {"seconds": _SECONDS}
_PLAN: Final = {
    "settings_sha256": _DIGEST,
    "inputs_sha256": _DIGEST,
    "stems": _COUNT,
    "rejected": _COUNT,
    "rejected_inputs": _Field("an object of the rejected stems' files and their sha256", _is_rejected_inputs),
}
_SETTINGS: Final = {
    "shard_bytes": _Field("a whole number of at least 1", lambda value: is_count(value, 1)),
    "split_source": _Field(" or ".join(_SOURCES), lambda value: value in _SOURCES, needed=False),
    "allow_roots": _TEXTS,
    "written_by": _TEXT,
    "corpus": _TEXT,
}
_CONVERT: Final = {
    "loudness": _Field(" or ".join(get_args(audio.Loudness)), lambda value: value in get_args(audio.Loudness)),
    "keep_audio": _Field("true or false", lambda value: isinstance(value, bool)),
    "max_length_mismatch_s": _Field("seconds of at least 0, or null", _or_null(_is_length), needed=False),
    "motion_rate_hz": _Field("a rate in Hz above 0, or null", _or_null(_is_rate), needed=False),
    "word_tier": _TEXT_OR_NULL,
}
_SELECTION: Final = dict.fromkeys(("speakers", "languages", "include", "splits"), _TEXTS) | dict.fromkeys(
    ("wav_dir", "gesture_dir", "text_dir"), _TEXT_OR_NULL
)


def field_faults(document: Mapping[str, Any]) -> Iterator[FieldFault]:
    """Yield the faults of fields in dataset.json: absent fields, and fields with an invalid type or range.

    Settings that this version does not know are allowed, because a reader does not need them. The entries in
    ``shards`` and ``files`` are not checked here but by `entry_problem`.

    Args:
        document: Content of dataset.json.

    Yields:
        One fault for each absent or invalid field.
    """
    yield from _faults_of(document, "tool", {"omniges": _Field("a version", _is_text)})
    tool = document.get("tool")
    if isinstance(tool, dict) and not _is_versions(tool):
        yield FieldFault("tool", f"{tool!a:.80}", "versions by package")
    if canonical_json(document.get("features")) != canonical_json(FEATURES):
        yield _features_fault(document.get("features"))
    yield from _faults_of(document, "settings", _SETTINGS)
    settings = document.get("settings")
    if isinstance(settings, dict):
        yield from _faults_of(settings, "convert", _CONVERT, "settings.")
        if "selection" in settings:
            yield from _faults_of(settings, "selection", _SELECTION, "settings.")
    yield from _faults_of(document, "plan", _PLAN)
    if not is_sha256(document.get("manifest_hash")):
        yield FieldFault("manifest_hash", _shown(document, "manifest_hash"), _DIGEST.expected)
    yield from _totals_faults(document)
    try:
        read_entries(document)
    except ValueError as error:
        yield FieldFault("codecs", one_line(str(error), 300), "valid entries of codecs by name")


def _shown(fields: Mapping[str, Any], name: str) -> str:
    return f"{fields[name]!a:.80}" if name in fields else _ABSENT


def _faults_of(
    parent: Mapping[str, Any], name: str, fields: Mapping[str, _Field], prefix: str = "", *, exact: bool = False
) -> Iterator[FieldFault]:
    """Check each field of the JSON object ``parent[name]`` with its rule in `fields`, and yield each fault.

    If ``parent[name]`` is not an object, only this fault is yielded. If `exact` is True, fields without a rule are a
    fault too. `prefix` is put before the field's name in every fault.
    """
    found = parent.get(name)
    if not isinstance(found, dict):
        yield FieldFault(prefix + name, _shown(parent, name), "an object")
        return
    for own, field in fields.items():
        if not field.valid(found[own]) if own in found else field.needed:
            yield FieldFault(f"{prefix}{name}.{own}", _shown(found, own), field.expected)
    if exact and (unknown := sorted(found.keys() - fields.keys())):
        yield FieldFault(f"{prefix}{name}", f"{', '.join(unknown)!a:.80}", f"{', '.join(fields)}")


def _totals_faults(document: Mapping[str, Any]) -> Iterator[FieldFault]:
    """Yield the faults of all fields in ``totals`` and ``splits``."""
    splits, totals = document.get("splits"), document.get("totals")
    if isinstance(splits, dict) and splits.keys() == set(schema.SPLITS):
        for split in schema.SPLITS:
            yield from _faults_of(splits, split, _TOTALS, "splits.", exact=True)
    else:
        yield FieldFault("splits", _shown(document, "splits"), ", ".join(schema.SPLITS))
    if isinstance(totals, dict):
        counts = {name: value for name, value in totals.items() if name != "cut"}
        yield from _faults_of({"totals": counts}, "totals", _TOTALS, exact=True)
        yield from _faults_of(totals, "cut", _CUT, "totals.", exact=True)
    else:
        yield FieldFault("totals", _shown(document, "totals"), "an object")


def _features_fault(features: object) -> FieldFault:
    """Return the fault of a dataset.json whose ``features`` differ from `FEATURES`, the features of this version."""
    wrong = sorted(k for k in FEATURES if not isinstance(features, dict) or features.get(k) != FEATURES[k])
    return FieldFault("features", f"other {', '.join(wrong) or 'fields'}", "those of this version of omniges")


def read_dataset(folder: Path) -> dict[str, Any]:
    """Read and check dataset.json.

    UsageFault is raised if the folder is missing. DataError is raised if the set is incomplete, damaged or of another
    version.
    """
    path = folder / schema.DATASET_FILE
    if not folder.is_dir():
        raise UsageFault(f"{folder}: expected a folder of shards, found none; run omniges preprocess first")
    try:
        document = read_json(path, "make the shards again", folder)
    except FileNotFoundError as error:
        raise DataError(
            f"{folder}: expected {schema.DATASET_FILE}, found none, so the shards are not complete; run omniges "
            "preprocess"
        ) from error
    return check_document(document, str(path))


def check_document(document: object, path: str) -> dict[str, Any]:
    """Return the content of dataset.json unchanged after checking its version, checksum and all entries.

    Args:
        document: Content of dataset.json.
        path: Path of dataset.json, for errors.

    Returns:
        The same object as `document`.

    Raises:
        DataError: The document is damaged, has another version, has an invalid field or entry, or contradicts itself.
    """
    if isinstance(document, dict) and document.get("format") == schema.UNFINISHED_FORMAT:
        raise DataError(
            f"{path}: expected a complete set, found one that omniges preprocess is replacing; wait until preprocess "
            "ends, or run the same preprocess command again"
        )
    if not isinstance(document, dict) or document.get("format") != schema.FORMAT:
        raise DataError(
            f"{path}: expected format {schema.FORMAT!r}, found another format; give a folder of omniges shards"
        )
    version = document.get("version")
    if type(version) is not int or version not in schema.CONTRACTS:
        known = " or ".join(map(str, schema.CONTRACTS))
        raise DataError(
            f"{path}: expected shard contract version {known}, found {version!r:.40}; use the omniges that wrote it"
        )
    if not sealed_correctly(document):
        raise DataError(
            f"{path}: expected content that fits the checksum, found other content, so it was edited or damaged; "
            "make the shards again"
        )
    for field_name in ("shards", "files"):
        listed = document.get(field_name)
        if not isinstance(listed, dict):
            raise DataError(f"{path}: {field_name}: expected an object, found {type(listed).__name__}; {_VERIFY}")
        for name, entry in listed.items():
            problem = entry_problem(name, entry, field_name)
            if problem:
                raise DataError(
                    f"{path}: {field_name}: {ascii(name)[:80]}: expected an entry of the contract, found {problem}; "
                    f"{_VERIFY}"
                )
    for fault in field_faults(document):
        if not (fault.absent and fault.field.startswith(_PROVENANCE)):
            raise DataError(f"{path}: {fault.field}: expected {fault.expected}, found {fault.found}; {_VERIFY}")
    if problem := _counts_problem(document):
        raise DataError(f"{path}: {problem}; {_VERIFY}")
    return document


def loudness_of(dataset: Mapping[str, Any], folder: Path) -> audio.Loudness:
    """Return the loudness rule with which the audio of a set was normalised.

    Args:
        dataset: Checked dataset.json.
        folder: Folder of the set, for errors.

    Returns:
        One of the values of ``omniges preprocess --loudness``.

    Raises:
        DataError: The settings in dataset.json lack a valid loudness rule.
    """
    convert = dataset["settings"].get("convert")
    found = convert.get("loudness") if isinstance(convert, dict) else None
    for rule in get_args(audio.Loudness):
        if found == rule:
            return cast("audio.Loudness", rule)
    expected = " or ".join(get_args(audio.Loudness))
    raise DataError(
        f"{folder / schema.DATASET_FILE}: settings.convert.loudness: expected {expected}, found {found!a:.40}, so "
        "it was edited; make the shards again"
    )


def _counts_problem(document: Mapping[str, Any]) -> str:
    """Compare the numbers of samples in ``splits`` and ``totals`` with the sums over ``shards``.

    Return a description of the first difference, or "" if all numbers agree.
    """
    splits, totals = document["splits"], document["totals"]
    samples = Counter(dict.fromkeys(schema.SPLITS, 0))
    for entry in document["shards"].values():
        samples[entry["split"]] += entry["samples"]
    for name, count in samples.items():
        if splits[name]["samples"] != count:
            return f"splits.{name}: expected {count} samples as in its shards, found {splits[name]['samples']}"
    if totals["samples"] != samples.total():
        return f"totals: expected {samples.total()} samples as in the shards, found {totals['samples']}"
    return ""


def rows_problem(rows: Sequence[ManifestRow], dataset: Mapping[str, Any]) -> str:
    """Describe the first contradiction between rows, or between the rows and dataset.json.

    Args:
        rows: All rows of a manifest, each valid.
        dataset: Checked dataset.json.

    Returns:
        One line that names the row or the count; an empty text if there is no contradiction.
    """
    if problem := places_problem(rows, dataset["shards"]):
        return problem
    for split, wanted in dataset["splits"].items():
        found = totals_of(row for row in rows if row.split == split)
        for name in COUNTS:
            if found[name] != wanted[name]:
                return f"expected {wanted[name]} {name} of split {split} as in dataset.json, found {found[name]}"
        if not math.isclose(found["seconds"], wanted["seconds"], rel_tol=1e-9, abs_tol=1e-6):
            found_s, wanted_s = found["seconds"], wanted["seconds"]
            return f"expected {wanted_s:g} s of split {split} as in dataset.json, found {found_s:g}"
    for row in rows:
        if not math.isclose(row.seconds, wanted_s := seconds_of_frames(row.frames), rel_tol=1e-9):
            return f"row {row.key}: expected {wanted_s:g} s of {row.frames} frames, found {row.seconds:g}"
    return ""


def _is_shard_size(size: int) -> bool:
    """Return whether a shard can have this size in bytes: a multiple of 512 that is larger than 1024.

    A tar file without members has 1024 bytes: the two empty blocks at its end.
    """
    return size > len(END_OF_ARCHIVE) and size % BLOCK_BYTES == 0


def entry_problem(name: str, entry: object, field_name: str) -> str:
    """Describe why an entry of ``shards`` or ``files`` is invalid; return an empty text for a valid entry.

    Only names in the contract are allowed, because readers join the name to the folder's path.

    Args:
        name: Name of the shard or file.
        entry: Its entry in dataset.json.
        field_name: ``shards`` or ``files``.

    Returns:
        The reason, or an empty text.
    """
    match = schema.SHARD_NAME.fullmatch(name)
    if (match is None) if field_name == "shards" else name not in {*schema.SIDE_FILES, schema.LATENTS_FILE}:
        return "a name that is not in the contract"
    if not isinstance(entry, dict):
        return f"{type(entry).__name__}"
    fields = {"bytes", "sha256"} | ({"split", "samples"} if match else set())
    if entry.keys() != fields:
        return f"fields {', '.join(sorted(entry))!a:.80}"
    if not schema.is_count(entry["bytes"]) or (match and not _is_shard_size(entry["bytes"])):
        return f"bytes {entry['bytes']!a:.80}"
    if not is_sha256(entry["sha256"]):
        return f"sha256 {entry['sha256']!a:.80}"
    if match and entry["split"] != match["split"]:
        return f"split {entry['split']!a:.80}"
    return f"samples {entry['samples']!a:.80}" if match and not schema.is_count(entry["samples"], 1) else ""
