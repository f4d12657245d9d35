"""What lies beside the shards: the statistics and the tokenizer recomputed, the report of findings read."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any, Final

import numpy as np

from omniges.errors import CODES
from omniges.features.tokenizer import tokenizer_problem
from omniges.shards.dataset import statistics_document, train_tokenizer
from omniges.shards.latents import CodecEntry, latents_document
from omniges.shards.manifest import ManifestRow
from omniges.shards.schema import DATASET_FILE, LATENTS_FILE, REPORT_FILE, STATS_FILE, TOKENIZER_FILE
from omniges.shards.statistics import Partial
from omniges.storage.canonical_json import canonical_json, json_document
from omniges.verify.dataset import strict_json
from omniges.verify.findings import Collector, VerifyFinding

_FINDING: Final = {"code", "severity", "stem", "file", "found", "expected", "meaning", "remedy"}


def check_statistics(
    data: bytes, rows: Sequence[ManifestRow], partials: Sequence[tuple[Partial, Partial]], words: Counter[str]
) -> list[VerifyFinding]:
    """stats.json against a recomputation by the functions that wrote it, byte for byte."""
    out = Collector(STATS_FILE)
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            wanted = json_document(statistics_document(rows, partials, words))
    except (ValueError, OverflowError) as error:  # values whose squares are infinite
        out.add("statistics-differ", "statistics", f"finite ones ({error})")
        return out.finish()
    if data == wanted:
        return []
    try:
        found = strict_json(data)
    except ValueError as error:
        out.add("statistics-differ", str(error), "a JSON object")
        return out.finish()
    out.add("statistics-differ", *_first_difference(found, json.loads(wanted)))
    return out.finish()


def check_latents(
    data: bytes, codecs: Mapping[str, CodecEntry], partials: Mapping[str, Sequence[Partial]]
) -> list[VerifyFinding]:
    """latents.json against a recomputation by the function that wrote it, byte for byte."""
    out = Collector(LATENTS_FILE)
    try:
        wanted = json_document(latents_document(codecs.values(), partials))
        found = strict_json(data)
    except (ValueError, OverflowError) as error:
        out.add("latents-differ", str(error), "finite statistics as a JSON object")
        return out.finish()
    if data != wanted:
        out.add("latents-differ", *_first_difference(found, json.loads(wanted)))
    return out.finish()


def _first_difference(found: Any, wanted: Any, name: str = "") -> tuple[str, str]:
    """Where two JSON values differ first: what was found and what was expected."""
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
    """tokenizer.json against one trained on the same words; another version of the package is told apart."""
    wanted = train_tokenizer(words)
    if data == wanted:
        return []
    if tokenizer_problem(data) is not None:  # reported already, as tokenizer-invalid
        return []
    out = Collector(TOKENIZER_FILE)
    installed = metadata.version("tokenizers")
    made_with = tool.get("tokenizers")
    found, expected = json.loads(data), json.loads(wanted)
    if made_with != installed:
        if found["model"] != expected["model"]:
            out.add("tokenizer-other-version", f"tokenizers {installed}", f"{made_with}")
        return out.finish()
    difference = _first_difference(found, expected) if len(data) < len(wanted) * 4 else ("more", "less")
    out.add("tokenizer-differs", *difference)
    return out.finish()


def check_tokenizer_form(data: bytes) -> list[VerifyFinding]:
    """tokenizer.json by itself: the pipeline that preprocess writes, and nothing that could change a word."""
    problem = tokenizer_problem(data)
    return [] if problem is None else [VerifyFinding("tokenizer-invalid", TOKENIZER_FILE, problem, "preprocess's own")]


def check_cut_totals(document: dict[str, Any], cuts: Sequence[dict[str, float | int]]) -> list[VerifyFinding]:
    """totals.cut of dataset.json against the samples' own."""
    out = Collector(DATASET_FILE)
    totals = document.get("totals")
    found = totals.get("cut") if isinstance(totals, dict) else None
    wanted = {name: round(math.fsum(cut[name] for cut in cuts), 6) for name in ("audio_s", "motion_s")}
    wanted |= {name: sum(cut[name] for cut in cuts) for name in ("words_dropped", "words_clipped")}
    if found != wanted:
        out.add("cut-totals", f"{found!r}", f"{wanted!r}")
    return out.finish()


def check_report(data: bytes, rows: Sequence[ManifestRow]) -> list[VerifyFinding]:
    """report.jsonl: every line a finding, in order, and none that contradicts the manifest."""
    out = Collector(REPORT_FILE)
    told: dict[str, set[str]] = defaultdict(set)  # stem -> codes
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
            told[finding["stem"] or ""].add(finding["code"])
        offset += len(line)
    for row in rows:
        codes = told.get(row.stem, set())
        rejected = sorted(code for code in codes if code in CODES and CODES[code].severity == "rejected")
        if rejected:
            out.add("report-contradiction", f"{row.stem} rejected: {rejected[0]}", "no sample of it", key=row.key)
        if not set(row.notes) <= codes:
            found = f"{row.stem}: no {', '.join(sorted(set(row.notes) - codes))}"
            out.add("report-contradiction", found, "the notes of the manifest", key=row.key)
    return out.finish()


def _finding(line: bytes, offset: int, out: Collector) -> dict[str, Any] | None:
    """One line of the report, or None after a finding."""
    try:
        row = strict_json(line)
    except ValueError as error:
        out.add("report-invalid", str(error), "a JSON object", offset=offset)
        return None
    texts = _FINDING - {"stem", "file"}
    if not isinstance(row, dict) or row.keys() != _FINDING or canonical_json(row) + b"\n" != line:
        out.add("report-invalid", f"{line[:80]!r}", "a finding as canonical JSON", offset=offset)
        return None
    sound = all(isinstance(row[name], str) for name in texts)
    if not sound or not all(row[name] is None or isinstance(row[name], str) for name in ("stem", "file")):
        out.add("report-invalid", f"{line[:80]!r}", "texts", offset=offset)
        return None
    if row["code"] not in CODES or CODES[row["code"]].severity != row["severity"]:
        known = CODES[row["code"]].severity if row["code"] in CODES else "a known code"
        out.add("report-unknown-code", f"{row['severity']} {row['code']}", known, offset=offset)
    return row
