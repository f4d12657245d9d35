"""Last step of a run: write the files beside the shards, dataset.json last, and publish all at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omniges.errors import Finding, Problem
from omniges.pipeline.summary import Tally, cut_totals
from omniges.shards.dataset import dataset_document, seal, statistics_document, train_tokenizer
from omniges.shards.manifest import serialize_manifest
from omniges.shards.schema import DATASET_FILE, MANIFEST_FILE, REPORT_FILE, STATS_FILE, TOKENIZER_FILE
from omniges.shards.transaction import Workspace, commit
from omniges.shards.writer import ShardWriter
from omniges.storage.atomic import publish_bytes
from omniges.storage.canonical_json import canonical_json, json_document, sha256_hex


def publish_set(
    workspace: Workspace, tally: Tally, writer: ShardWriter, settings: dict[str, Any], plan: Mapping[str, Any]
) -> str:
    """Write the files beside the shards, dataset.json last, and publish the set in the output folder.

    Args:
        workspace: Folder that holds the shards so far.
        tally: Collected samples and findings; its findings are sorted.
        writer: Closed writer of the shards.
        settings: Settings that decide output bytes, as in dataset.json.
        plan: Origin of the samples, as in dataset.json.

    Returns:
        The manifest hash of the set.
    """
    folder = workspace.folder
    if not tally.partials:
        tally.findings.append(Finding(Problem("no-train-samples", "0 samples in train", "at least 1")))
    tally.findings.sort(key=lambda finding: finding.sort_key)
    contents = {
        MANIFEST_FILE: serialize_manifest(tally.rows),
        STATS_FILE: json_document(statistics_document(tally.rows, tally.partials, tally.words)),
        TOKENIZER_FILE: train_tokenizer(tally.words),
        REPORT_FILE: b"".join(canonical_json(finding.as_json()) + b"\n" for finding in tally.findings),
    }
    files = {name: (len(data), publish_bytes(folder / name, data)) for name, data in contents.items()}
    whole_plan = {"settings_sha256": sha256_hex(canonical_json(settings)), **plan}
    dataset = dataset_document(tally.rows, writer.shards, files, settings, whole_plan, cut_totals(tally.cuts))
    publish_bytes(folder / DATASET_FILE, seal(dataset))
    commit(workspace, writer.paths)
    return str(dataset["manifest_hash"])
