"""Check the files beside the shards: manifest, statistics, latents.json, tokenizer and report.

The manifest is compared with dataset.json. Statistics, latents.json and the tokenizer are recomputed from the samples.
The report of findings is read line by line.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from omniges.errors import CODES
from omniges.features import timebase
from omniges.features.text_tokens import tokenizer_problem
from omniges.shards import manifest, schema
from omniges.shards.dataset import PartialSpool, statistics_document, totals_of, train_tokenizer
from omniges.shards.latents import CodecEntry, latents_document
from omniges.shards.schema import key_from_stem
from omniges.shards.tar import END_OF_ARCHIVE
from omniges.storage.files import json_document
from omniges.verify.dataset import Inventory, as_object, strict_json
from omniges.verify.findings import Collector, VerifyFinding
from omniges.verify.tar_walk import ShardPlan

if TYPE_CHECKING:
    import pyarrow.parquet as pq


_FINDING: Final = {"code", "severity", "stem", "file", "found", "expected", "meaning", "remedy"}


# --- the manifest


def read_rows(data: bytes, samples: int, out: Collector) -> list[manifest.ManifestRow] | None:
    """Decode the manifest, and check each row alone. Return the rows, or None after a finding.

    Args:
        data: Bytes of manifest.parquet.
        samples: Number of samples according to dataset.json.
        out: Collector of the manifest's findings.

    Returns:
        All rows; None after a finding. `check_rows` compares the rows with each other.
    """
    import pyarrow as pa  # noqa: PLC0415 - takes 0.3 s, not needed by level quick
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        file = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False)
        if (found := file.metadata.num_rows) != samples:
            out.add("manifest-shards", f"{found} rows", f"{samples} samples")
            return None
        rows = manifest.parse_manifest(data)
        torn = _first_torn_column(file)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError) as error:
        out.add("manifest-unreadable", f"{type(error).__name__}: {error}", "a manifest of the contract")
        return None
    if torn:
        out.add(
            "manifest-malformed",
            f"column {torn}: other rows are null than in columns of its part",
            "nulls in the same rows",
        )
    wrong = [(row, problem) for row in rows for problem in [manifest.row_problem(row)] if problem]
    for row, problem in wrong:
        out.add("manifest-malformed", problem, key=row.key)
    return None if wrong or torn else rows


def _first_torn_column(file: pq.ParquetFile) -> str:
    """Return the name of the first column that contradicts a related column; "" if all columns agree.

    Related columns are the columns of one source file (path, sha256), or the columns of one optional member (offset,
    size, sha256). In each row, either all related columns must be null, or all must have a value.
    """
    groups = [[f"{source}_path", f"{source}_sha256"] for source in manifest.SOURCES]
    for member in manifest.optional_members(file.schema_arrow.names):
        column = manifest.column_of(member)
        groups.append([f"{column}_offset", f"{column}_size", f"{column}_sha256"])
    table = file.read(columns=[name for group in groups for name in group], use_threads=False)
    for first, *others in groups:
        absent = table.column(first).is_null()
        torn = [name for name in others if not table.column(name).is_null().equals(absent)]
        if torn:
            return torn[0]
    return ""


def check_rows(
    rows: Sequence[manifest.ManifestRow], inventory: Inventory
) -> tuple[dict[str, list[manifest.ManifestRow]], list[VerifyFinding]]:
    """Compare the rows of the manifest with each other and with dataset.json.

    Args:
        rows: All rows of the manifest.
        inventory: Valid contents of dataset.json.

    Returns:
        A dictionary of the rows of each shard, by shard name, and the findings. The dictionary contains only shards
        with a consistent layout: the members of the shard follow each other without gaps and fill the file.
    """
    out = Collector(schema.MANIFEST_FILE)
    for name in ("key", "stem"):
        seen: set[str] = set()
        for row in rows:
            value = getattr(row, name)
            if value in seen:
                out.add("manifest-key-twice", f"{name} {value!r} again in {row.shard}", "once", key=row.key)
            seen.add(value)
    if rows and rows[0].contract.version != inventory.version:
        found = f"columns of version {rows[0].contract.version}"
        out.add("manifest-malformed", found, f"those of version {inventory.version}, which dataset.json names")
    _check_each(rows, {entry.member for entry in inventory.codecs.values()}, out)
    _check_packing(rows, out)
    shards: dict[str, list[manifest.ManifestRow]] = defaultdict(list)
    for row in rows:
        shards[row.shard].append(row)
    _check_shards(shards, inventory, out)
    if not out.failed:
        _check_document(rows, inventory, out)
    planned = {}
    for name, listed in inventory.shards.items():
        own = sorted(shards.get(name, []), key=lambda row: row.members["json"].offset)
        plan = ShardPlan.of_rows(own)
        gap = plan.gap()
        if gap is not None:
            first, position = gap
            found = f"{name}: offset {first.offset}"
            out.add("manifest-layout", found, f"{position}", key=first.key, member=first.member)
        elif own and plan.end + len(END_OF_ARCHIVE) != listed.size:
            end = plan.end + len(END_OF_ARCHIVE)
            out.add("manifest-layout", f"{name}: the members end at {end}", f"{listed.size} bytes")
        elif own:
            planned[name] = own
    return planned, out.finish()


def _check_each(rows: Sequence[manifest.ManifestRow], latents: set[str], out: Collector) -> None:
    """Check each row: the key follows from the stem, and the lengths follow from the number of frames.

    A row must list the latents of all codecs, and must not list two waveforms.
    """
    for row in rows:
        if key_from_stem(row.stem) != row.key:
            out.add("key-not-of-stem", f"stem {row.stem!r}", key_from_stem(row.stem), key=row.key)
        frames = row.frames
        given = (row.mel_frames, row.ticks, row.seconds)
        wanted = (timebase.mel_frames_for(frames), timebase.ticks_of_frames(frames), timebase.seconds_of_frames(frames))
        if given != wanted:
            found, expected = (f"mel frames, ticks, seconds {values} of {frames} frames" for values in (given, wanted))
            out.add("row-arithmetic", found, expected, row.key)
        if {"flac", "audio.npy"} <= row.members.keys():
            out.add("waveform-invalid", "flac and audio.npy", "one of them", key=row.key)
        own = {member for member in row.members if schema.LATENT_MEMBER.fullmatch(member)}
        if own != latents:
            found, expected = (", ".join(sorted(members)) or "no latents" for members in (own, latents))
            out.add("manifest-latents", found, expected, row.key)


def _check_packing(rows: Sequence[manifest.ManifestRow], out: Collector) -> None:
    places = [(row.shard, row.members["json"].offset) for row in rows]
    for before, after, row in zip(places, places[1:], rows[1:], strict=False):
        if after <= before:
            out.add("manifest-order", f"a row of {after} after one of {before}", "ascending", key=row.key)
            return
    last: dict[str, str] = {}
    for row in rows:
        if row.key <= last.get(row.split, ""):
            out.add("manifest-order", f"{row.key} after {last[row.split]}", "keys ascending in a split", key=row.key)
            return
        last[row.split] = row.key


def _check_shards(shards: dict[str, list[manifest.ManifestRow]], inventory: Inventory, out: Collector) -> None:
    for name in sorted(shards.keys() | inventory.shards.keys()):
        own, listed = shards.get(name, []), inventory.shards.get(name)
        if listed is None:
            out.add("manifest-shards", f"{len(own)} rows in {name}", "a shard of dataset.json", key=own[0].key)
        elif len(own) != listed.samples:
            out.add("manifest-shards", f"{len(own)} rows in {name}", f"{listed.samples} samples")
        elif any(row.split != listed.split for row in own):
            wrong = next(row for row in own if row.split != listed.split)
            out.add("manifest-shards", f"split {wrong.split} in {name}", listed.split, key=wrong.key)


def _check_document(rows: Sequence[manifest.ManifestRow], inventory: Inventory, out: Collector) -> None:
    """Recompute the totals and the manifest hash from the rows, and compare them with dataset.json."""
    document = inventory.document
    splits = {split: totals_of(row for row in rows if row.split == split) for split in schema.SPLITS}
    for name, wanted in (("totals", totals_of(rows)), ("splits", splits)):
        given = document.get(name)
        if isinstance(given, dict):
            given = {field: value for field, value in given.items() if field != "cut"}
        if given != wanted:
            out.add("manifest-totals", f"{name}: {given!r}", f"{wanted!r}")
    digest = manifest.manifest_hash(rows)
    if document.get("manifest_hash") != digest:
        out.add("manifest-hash", f"{document.get('manifest_hash')}", digest)


def check_recordings(rows: Sequence[manifest.ManifestRow]) -> list[VerifyFinding]:
    """Report recordings with equal content or equal sources: an error across splits, a note within one split."""
    out = Collector(schema.MANIFEST_FILE)
    reported: set[str] = set()
    for number in range(2):
        # The first row of each recording in each split.
        firsts: dict[tuple[str, ...], dict[str, manifest.ManifestRow]] = defaultdict(dict)
        for row in rows:
            identity = manifest.identities(row)[number]
            if not identity:
                continue
            earlier = firsts[identity]
            if earlier and row.key not in reported:
                elsewhere = [other for split, other in earlier.items() if split != row.split]
                first = elsewhere[0] if elsewhere else earlier[row.split]
                code = "recording-in-two-splits" if elsewhere else "recording-twice"
                found = f"{row.key} in {row.split} is {first.key} in {first.split}"
                out.add(code, found, "each recording once", key=row.key)
                reported.add(row.key)
            earlier.setdefault(row.split, row)
    return out.finish()


# --- statistics, tokenizer, report


def check_statistics(
    data: bytes, rows: Sequence[manifest.ManifestRow], partials: PartialSpool, words: Counter[str], version: int
) -> list[VerifyFinding]:
    """Recompute stats.json with the functions that write it, and compare the bytes.

    Args:
        data: Bytes of stats.json.
        rows: Manifest rows of the train samples.
        partials: Partial statistics of each train sample, in the order of `STATISTICS`.
        words: How often each word occurs in the train split.
        version: Contract version of the set.

    Returns:
        Findings; an empty list if there is no fault.
    """
    out = Collector(schema.STATS_FILE)
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            wanted = json_document(statistics_document(rows, partials, words, version))
    except (ValueError, OverflowError) as error:  # the squares of the values overflow
        out.add("statistics-differ", "statistics", f"finite ones ({error})")
        return out.finish()
    if data == wanted:
        return []
    try:
        found, _ = strict_json(data)
    except ValueError as error:
        out.add("statistics-differ", str(error), "a JSON object")
        return out.finish()
    out.add("statistics-differ", *_first_difference(found, json.loads(wanted)))
    return out.finish()


def check_latents(
    data: bytes, codecs: Mapping[str, CodecEntry], partials: Mapping[str, PartialSpool]
) -> list[VerifyFinding]:
    """Recompute latents.json with the function that writes it, and compare the bytes.

    Args:
        data: Bytes of latents.json.
        codecs: Codecs in dataset.json, by name.
        partials: Partial statistics of the train samples' latents, by codec.

    Returns:
        Findings; an empty list if there is no fault.
    """
    out = Collector(schema.LATENTS_FILE)
    try:
        wanted = json_document(latents_document(codecs.values(), partials))
        found, _ = strict_json(data)
    except (ValueError, OverflowError) as error:
        out.add("latents-differ", str(error), "finite statistics as a JSON object")
        return out.finish()
    if data != wanted:
        out.add("latents-differ", *_first_difference(found, json.loads(wanted)))
    return out.finish()


def _first_difference(found: Any, wanted: Any, name: str = "") -> tuple[str, str]:
    """Return, as texts, the found and the expected value at the first difference between two JSON values."""
    if isinstance(found, dict) and isinstance(wanted, dict) and found.keys() == wanted.keys():
        for key in sorted(found):
            if found[key] != wanted[key]:
                return _first_difference(found[key], wanted[key], f"{name}.{key}" if name else key)
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        for place, (one, other) in enumerate(zip(found, wanted, strict=True)):
            if one != other:
                return _first_difference(one, other, f"{name}[{place}]")
    if found == wanted:
        return "another byte form", "sorted keys, indented"
    return f"{name}: {found!r}".removeprefix(": "), f"{wanted!r}"


def check_tokenizer(data: bytes, words: Counter[str], tool: dict[str, Any]) -> list[VerifyFinding]:
    """Train a tokenizer on the words, and compare its bytes with the bytes of tokenizer.json.

    The version of the installed tokenizers package may differ from the version in `tool`. Then, a difference in the
    field ``model`` is a note, and other differences are not reported.

    Args:
        data: Bytes of tokenizer.json.
        words: How often each word occurs in the train split.
        tool: Package versions from dataset.json.

    Returns:
        Findings; an empty list if there is no fault.
    """
    wanted = train_tokenizer(words)
    if data == wanted:
        return []
    if tokenizer_problem(data) is not None:  # already reported with the code tokenizer-invalid
        return []
    out = Collector(schema.TOKENIZER_FILE)
    installed = metadata.version("tokenizers")
    trained_with = tool.get("tokenizers")
    found, expected = json.loads(data), json.loads(wanted)
    if trained_with != installed:
        if found["model"] != expected["model"]:
            out.add("tokenizer-other-version", f"tokenizers {installed}", f"{trained_with}")
        return out.finish()
    difference = _first_difference(found, expected) if len(data) < len(wanted) * 4 else ("more", "less")
    out.add("tokenizer-differs", *difference)
    return out.finish()


def check_tokenizer_form(data: bytes) -> list[VerifyFinding]:
    """Check that tokenizer.json has the form that preprocess writes; its tokens then restore every word exactly."""
    problem = tokenizer_problem(data)
    if problem is None:
        return []
    return [VerifyFinding("tokenizer-invalid", schema.TOKENIZER_FILE, problem, "preprocess's own")]


def check_cut_totals(document: dict[str, Any], cuts: Sequence[dict[str, float | int]]) -> list[VerifyFinding]:
    """Compare totals.cut of dataset.json with the sum over the samples.

    Args:
        document: Content of dataset.json.
        cuts: Seconds and words that were cut from each sample.

    Returns:
        Findings; an empty list if there is no fault.
    """
    out = Collector(schema.DATASET_FILE)
    found = as_object(document.get("totals")).get("cut")
    wanted = {name: round(math.fsum(cut[name] for cut in cuts), 6) for name in ("audio_s", "motion_s")}
    wanted |= {name: sum(cut[name] for cut in cuts) for name in ("words_dropped", "words_clipped")}
    if found != wanted:
        out.add("cut-totals", f"{found!r}", f"{wanted!r}")
    return out.finish()


def check_report(data: bytes, rows: Sequence[manifest.ManifestRow]) -> list[VerifyFinding]:
    """Check that every line of report.jsonl is a finding, that the lines are sorted, and that they fit the manifest.

    Args:
        data: Bytes of report.jsonl.
        rows: All rows of the manifest.

    Returns:
        Findings; an empty list if there is no fault.
    """
    out = Collector(schema.REPORT_FILE)
    reported: dict[str, set[str]] = defaultdict(set)  # codes by stem
    last: tuple[str, ...] = ()
    offset = 0
    for line in data.splitlines(keepends=True):
        finding = _finding(line, offset, out)
        if finding is not None:
            fields = ("severity", "code", "file", "found", "expected")
            order = tuple(finding[name] or "" for name in ("stem", *fields))
            if order < last:
                out.add("report-invalid", "findings out of order", "sorted by stem", offset=offset)
            last = order
            reported[finding["stem"] or ""].add(finding["code"])
        offset += len(line)
    for row in rows:
        codes = reported.get(row.stem, set())
        rejected = sorted(code for code in codes if code in CODES and CODES[code].severity == "rejected")
        if rejected:
            out.add("report-contradiction", f"{row.stem} rejected: {rejected[0]}", "no sample of it", key=row.key)
        if not set(row.notes) <= codes:
            found = f"{row.stem}: no {', '.join(sorted(set(row.notes) - codes))}"
            out.add("report-contradiction", found, "the notes of the manifest", key=row.key)
    return out.finish()


def _finding(line: bytes, offset: int, out: Collector) -> dict[str, Any] | None:
    """Return the JSON object in one line of the report, or None after a finding."""
    try:
        row, canonical = strict_json(line)
    except ValueError as error:
        out.add("report-invalid", str(error), "a JSON object", offset=offset)
        return None
    texts = _FINDING - {"stem", "file"}
    if not isinstance(row, dict) or row.keys() != _FINDING or canonical + b"\n" != line:
        out.add("report-invalid", f"{line[:80]!r}", "a finding as canonical JSON", offset=offset)
        return None
    valid = all(isinstance(row[name], str) for name in texts)
    if not valid or not all(row[name] is None or isinstance(row[name], str) for name in ("stem", "file")):
        out.add("report-invalid", f"{line[:80]!r}", "texts", offset=offset)
        return None
    if row["code"] not in CODES or CODES[row["code"]].severity != row["severity"]:
        known = CODES[row["code"]].severity if row["code"] in CODES else "a known code"
        out.add("report-unknown-code", f"{row['severity']} {row['code']}", known, offset=offset)
    return row
