"""Read and check dataset.json. The file may be damaged: wrong types and values become findings.

Later checks use the valid fields.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from omniges.shards import schema
from omniges.shards.dataset import COUNTS, sealed_correctly
from omniges.shards.document import entry_problem, field_faults
from omniges.shards.latents import CodecEntry, read_entries
from omniges.shards.schema import is_count, shard_name
from omniges.storage.atomic import is_temporary_name
from omniges.storage.files import canonical_json, json_document, parse_json, sha256_hex
from omniges.verify.findings import Collector, VerifyFinding
from omniges.verify.folders import FileFault, Folder

_MAX_DOCUMENT_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Listed:
    """Entry of a file in dataset.json. Only entries of shards have `split` and `samples`."""

    name: str
    size: int
    sha256: str
    split: str = ""
    samples: int = 0


@dataclass(frozen=True, slots=True)
class Inventory:
    """The valid contents of dataset.json."""

    document: dict[str, Any]
    shards: dict[str, Listed] = field(default_factory=dict)
    files: dict[str, Listed] = field(default_factory=dict)
    codecs: dict[str, CodecEntry] = field(default_factory=dict)

    @property
    def version(self) -> int:
        """Contract version, one of the versions that omniges can read."""
        return int(self.document["version"])

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the conversion; empty if they are not a JSON object."""
        return as_object(as_object(self.document.get("settings")).get("convert"))

    @property
    def tool(self) -> dict[str, Any]:
        """Versions of the packages that wrote the shards."""
        return as_object(self.document.get("tool"))


def as_object(found: object) -> dict[str, Any]:
    """Return a JSON object unchanged; return an empty object for any other value."""
    return found if isinstance(found, dict) else {}


def strict_json(data: bytes) -> tuple[Any, bytes]:
    """Parse JSON of unknown origin with `parse_json`; return the value and its canonical bytes.

    Invalid JSON raises ValueError.
    """
    value = parse_json(data)
    return value, canonical_json(value)


def read_inventory(folder: Folder) -> tuple[Inventory | None, list[VerifyFinding]]:
    """Read dataset.json, and check that its fields are consistent. Return its valid contents and the findings.

    The contents are None if dataset.json is too damaged to compare other files with it.
    """
    out = Collector(schema.DATASET_FILE)
    document = _read_document(folder, out)
    if document is None:
        return None, out.finish()
    shards = _listed(document.get("shards"), "shards", out)
    files = _listed(document.get("files"), "files", out)
    faults = [*field_faults(document)]
    for fault in faults:
        code = "dataset-features" if fault.field == "features" else "dataset-malformed"
        out.add(code, f"{fault.field}: {fault.found}", fault.expected)
    codecs = {} if any(fault.field == "codecs" for fault in faults) else read_entries(document)
    if files is not None:
        for name in sorted(set(schema.SIDE_FILES) - files.keys()):
            out.add("dataset-malformed", f"files: no {name}", "manifest, statistics, tokenizer and report")
        latents = schema.LATENTS_FILE
        if (latents in files) != bool(codecs):
            there = f"{'a' if latents in files else 'no'} {latents} and {len(codecs)} codecs"
            out.add("dataset-malformed", f"files: {there}", f"{latents} if and only if there is a codec")
    inventory = Inventory(document, shards or {}, files or {}, codecs)
    if out.failed:
        return inventory, out.finish()
    _check_names_of_fields(document, out)
    for split in schema.SPLITS:
        names = sorted(name for name, shard in inventory.shards.items() if shard.split == split)
        gap = next((index for index, name in enumerate(names) if int(name[-10:-4]) != index), None)
        if gap is not None:
            out.add("shard-name", names[gap], shard_name(split, gap))
    _check_totals(inventory, out)
    _check_plan(document, out)
    return inventory, out.finish()


def _read_document(folder: Folder, out: Collector) -> dict[str, Any] | None:
    try:
        with folder.opened(schema.DATASET_FILE) as source:
            data = source.read(min(source.size, _MAX_DOCUMENT_BYTES + 1), 0)
    except FileFault as fault:
        missing = fault.code == "file-missing"
        out.add("dataset-missing" if missing else fault.code, fault.found, fault.expected)
        return None
    if len(data) > _MAX_DOCUMENT_BYTES:
        out.add("dataset-unreadable", f"{len(data)} bytes or more", f"at most {_MAX_DOCUMENT_BYTES}")
        return None
    try:
        document, _ = strict_json(data)
        canonical = json_document(document)
    except (ValueError, RecursionError) as error:
        out.add("dataset-unreadable", str(error), "a JSON object")
        return None
    if not isinstance(document, dict):
        out.add("dataset-unreadable", type(document).__name__, "a JSON object")
        return None
    version = document.get("version")
    if document.get("format") != schema.FORMAT:
        out.add("dataset-foreign", f"format {document.get('format')!r}", repr(schema.FORMAT))
        return None
    if type(version) is not int or version not in schema.CONTRACTS:
        newer, known = is_count(version, schema.FORMAT_VERSION + 1), " or ".join(map(str, schema.CONTRACTS))
        out.add("dataset-newer" if newer else "dataset-version", f"version {version!r}", known)
        return None
    if not sealed_correctly(document):
        out.add("dataset-checksum", f"checksum {document.get('checksum')!r}", "the sha256 of the other fields")
    if canonical != data:
        out.add("dataset-not-canonical", f"{len(data)} bytes", f"{len(canonical)} bytes, keys sorted and indented")
    return document


def _listed(found: object, field_name: str, out: Collector) -> dict[str, Listed] | None:
    """Return the valid entries of the field ``shards`` or ``files``, by name; None if the field is not an object."""
    if not isinstance(found, dict):
        out.add("dataset-malformed", f"{field_name}: {type(found).__name__}", "an object")
        return None
    listed = {}
    for name, entry in found.items():
        problem = entry_problem(name, entry, field_name)
        if problem:
            out.add("dataset-malformed", f"{field_name}: {name!r}: {problem}", "bytes and sha256 of a contract file")
        else:
            shard = (entry["split"], entry["samples"]) if field_name == "shards" else ()
            listed[name] = Listed(name, entry["bytes"], entry["sha256"], *shard)
    return listed


def _check_names_of_fields(document: Mapping[str, Any], out: Collector) -> None:
    """Check that dataset.json has exactly the fields of the contract."""
    fields = {"format", "version", "tool", "features", "settings", "plan", "manifest_hash", "totals", "splits"}
    fields |= {"shards", "files", "checksum"}
    if document.keys() - {"codecs"} != fields:  # `codecs` exists only if a codec has encoded the shards
        found = ", ".join(sorted((document.keys() - {"codecs"}) ^ fields))
        out.add("dataset-malformed", f"fields unknown or absent: {found}", "the contract's fields")


def _check_totals(inventory: Inventory, out: Collector) -> None:
    """Check that the totals are the sums over the splits, and that the sample counts agree with the shards."""
    splits, totals = inventory.document["splits"], inventory.document["totals"]
    for name in COUNTS:
        added = sum(part[name] for part in splits.values())
        if added != totals[name]:
            out.add("dataset-totals", f"totals.{name} {totals[name]}", f"{added}, the sum over the splits")
    seconds = math.fsum(part["seconds"] for part in splits.values())
    if not math.isclose(seconds, totals["seconds"], rel_tol=1e-9, abs_tol=1e-6):
        out.add("dataset-totals", f"totals.seconds {totals['seconds']}", f"{seconds}, the sum over the splits")
    samples: Counter[str] = Counter()
    for shard in inventory.shards.values():
        samples[shard.split] += shard.samples
    for split, part in splits.items():
        if part["samples"] != samples[split]:
            found = f"splits.{split}.samples {part['samples']}"
            out.add("dataset-totals", found, f"{samples[split]}, the sum over its shards")


def _check_plan(document: Mapping[str, Any], out: Collector) -> None:
    """Check the field ``plan``: the digest of the settings, and that each stem was either converted or rejected."""
    plan = document["plan"]
    digest = sha256_hex(canonical_json(document["settings"]))
    if plan["settings_sha256"] != digest:
        out.add("dataset-plan", f"plan.settings_sha256 {plan['settings_sha256']!r}", digest)
    stems, rejected, samples = plan["stems"], plan["rejected"], document["totals"]["samples"]
    if stems != rejected + samples:
        found = f"{stems} stems, {rejected} rejected, {samples} samples"
        out.add("dataset-plan", found, "each stem a sample or rejected")
    if len(plan["rejected_inputs"]) > rejected:
        found = f"inputs of {len(plan['rejected_inputs'])} stems, {rejected} rejected"
        out.add("dataset-plan", found, "inputs of rejected stems only")


def check_names(names: Sequence[str], listed: set[str]) -> list[VerifyFinding]:
    """Report files in the folder that dataset.json does not list.

    Args:
        names: Names of all files in the folder.
        listed: Names that dataset.json lists.

    Returns:
        One finding for each name that is not listed.
    """
    findings = []
    for name in names:
        if name in listed or name == schema.DATASET_FILE:
            continue
        # On disks of other systems, macOS creates ._NAME beside NAME. No reader treats it as a shard.
        shard = name.lower().endswith(".tar") and not name.startswith("._")
        code = "shard-unlisted" if shard else "file-unlisted"
        if is_temporary_name(name):
            code = "temporary-file"
        if name == schema.UNFINISHED_FILE:
            code = "unfinished-run"
        findings.append(VerifyFinding(code, name, "a file that dataset.json does not list"))
    return findings
