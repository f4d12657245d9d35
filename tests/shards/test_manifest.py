"""The manifest reads back row for row, and its hash names the content, not the packing."""

from __future__ import annotations

import io
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omniges.shards import manifest
from omniges.shards.manifest import ManifestRow, MemberPlace, manifest_hash, parse_manifest, serialize_manifest
from omniges.shards.schema import CONTRACTS, PARTS, SPLITS
from omniges.storage.files import canonical_json, sha256_hex

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
labels = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)


@st.composite
def manifest_rows(draw: st.DrawFn, version: int, labels: tuple[str, ...]) -> ManifestRow:
    """A row of a version; in version 1 what is absent follows from the members and labels."""
    contract = CONTRACTS[version]
    names = [*contract.members, *draw(st.lists(st.sampled_from(contract.optional), unique=True))]
    members = {
        name: MemberPlace(draw(st.integers(0, 2**40)), draw(st.integers(0, 2**33)), draw(digests)) for name in names
    }
    values = {name: draw(st.just("") | texts) for name in labels}
    lacking = set(draw(st.lists(st.sampled_from(PARTS))))
    if version == 1:
        lacking = set() if any(values.values()) else {"labels"}
        lacking |= set() if contract.semantic in members else {"sem"}
    count = st.integers(0, 2**31)
    return ManifestRow(
        key=draw(texts), stem=draw(texts), split=draw(st.sampled_from(SPLITS)), shard=draw(texts),
        frames=draw(count), mel_frames=draw(count), ticks=draw(count), words=draw(count),
        seconds=draw(st.floats(0, 1e6)), speaker_id=draw(st.none() | st.integers(0, 9999)),
        speaker=draw(st.none() | texts), language=draw(st.none() | texts), labels=values,
        present=tuple(part for part in PARTS if part not in lacking),
        sources={name: (draw(texts), draw(digests)) for name in ("wav", "npz", "textgrid")},
        notes=tuple(draw(st.lists(texts, max_size=3))), members=members,
    )  # fmt: skip


@st.composite
def row_lists(draw: st.DrawFn) -> list[ManifestRow]:
    """Rows of one version, all with the same names of labels."""
    version = draw(st.sampled_from(sorted(CONTRACTS)))
    names = ("scenario", "emotion") if version == 1 else tuple(draw(st.sets(labels, max_size=3)))
    return draw(st.lists(manifest_rows(version, names), max_size=5, unique_by=lambda row: row.key))


class TestManifest:
    @settings(max_examples=40, deadline=None)
    @given(row_lists())
    def test_rows_come_back_sorted_by_place(self, rows: list[ManifestRow]) -> None:
        expected = sorted(rows, key=lambda row: (row.shard, row.members["json"].offset))
        assert parse_manifest(serialize_manifest(rows)) == expected

    @settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(row_lists())
    def test_rows_in_several_parts_give_the_same_bytes(
        self, monkeypatch: pytest.MonkeyPatch, rows: list[ManifestRow]
    ) -> None:
        whole = serialize_manifest(rows)
        with monkeypatch.context() as patch:
            patch.setattr(manifest, "_ROWS_AT_ONCE", 2)
            assert serialize_manifest(rows) == whole

    @settings(max_examples=10, deadline=None)
    @given(row_lists())
    def test_the_hash_is_that_of_one_json_list(self, rows: list[ManifestRow]) -> None:
        content = [
            {"key": row.key, "split": row.split, "frames": row.frames}
            | {"members": {name: place.sha256 for name, place in row.members.items()}}
            for row in sorted(rows, key=lambda row: row.key)
        ]
        assert manifest_hash(rows) == sha256_hex(canonical_json(content))

    @pytest.mark.slow
    @settings(max_examples=40, deadline=None)
    @given(row_lists(), st.randoms())
    def test_the_hash_ignores_order_and_packing(self, rows: list[ManifestRow], rng: object) -> None:
        moved = [
            replace(
                row, shard="elsewhere", members={n: replace(p, offset=p.offset + 512) for n, p in row.members.items()}
            )
            for row in reversed(rows)
        ]
        assert manifest_hash(moved) == manifest_hash(rows)

    @settings(max_examples=20, deadline=None)
    @given(st.sampled_from(sorted(CONTRACTS)).flatmap(lambda version: manifest_rows(version, ("emotion", "scenario"))))
    def test_the_hash_sees_every_part_of_the_content(self, row: ManifestRow) -> None:
        other = dict(row.members)
        other["mel.npy"] = replace(other["mel.npy"], sha256="another")
        changed = [replace(row, key=row.key + "x"), replace(row, frames=row.frames + 1), replace(row, members=other)]
        hashes = {manifest_hash([one]) for one in [row, *changed]}
        assert len(hashes) == 4

    def test_other_columns_are_refused(self) -> None:
        import io

        import pyarrow as pa

        buffer = io.BytesIO()
        pq.write_table(pa.table({"key": ["a"]}), buffer)
        with pytest.raises(ValueError, match="columns"):
            parse_manifest(buffer.getvalue())

    @given(st.binary(max_size=200))
    def test_bytes_that_are_no_parquet_are_refused(self, data: bytes) -> None:
        with pytest.raises(ValueError):
            parse_manifest(data)

    @pytest.mark.slow
    @settings(max_examples=1)
    @given(manifest_rows(2, ()))
    def test_few_bytes_that_claim_many_rows_are_refused_unread(self, row: ManifestRow) -> None:
        table = pq.ParquetFile(pa.BufferReader(serialize_manifest([row]))).read()
        columns = [pa.repeat(column[0], 300_000) for column in table.columns]
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns, schema=table.schema), buffer, compression="zstd")
        assert buffer.tell() < 300_000
        with pytest.raises(ValueError, match="cannot hold the 300000 rows they claim"):
            parse_manifest(buffer.getvalue())

    @settings(max_examples=1)
    @given(manifest_rows(2, ()))
    def test_a_row_that_unpacks_to_a_flood_is_refused_unread(self, row: ManifestRow) -> None:
        data = serialize_manifest([replace(row, notes=("a" * (1 << 24),))])
        assert len(data) < 100_000
        with pytest.raises(ValueError, match="bytes a row"):
            parse_manifest(data)
