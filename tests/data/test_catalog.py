"""The clips of a folder that pass the filters; nothing is trusted, and errors say what to do if no clip is left."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batch_builders import write_shards

from omniges.data.catalog import Filters, read_catalog
from omniges.data.tracks import PLAIN_TRACKS
from omniges.errors import DataError, UsageFault
from omniges.shards.dataset import seal, totals_of
from omniges.shards.manifest import ManifestRow, parse_manifest, serialize_manifest
from omniges.shards.schema import CONTRACT, DATASET_FILE, MANIFEST_FILE
from omniges.storage.documents import Document
from omniges.storage.files import sha256_hex

LENGTHS = (30, 9, 17, 8, 25, 7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("catalog") / "shards", LENGTHS, per_shard=2)


def edited(folder: Path, target: Path, edit: Callable[[list[ManifestRow]], list[ManifestRow]]) -> Path:
    """The small files of a folder with other rows in the manifest, every checksum right."""
    target.mkdir()
    rows = edit(parse_manifest((folder / MANIFEST_FILE).read_bytes()))
    document = json.loads((folder / DATASET_FILE).read_bytes())
    data = serialize_manifest(rows)
    for name in document["files"]:
        (target / name).write_bytes(data if name == MANIFEST_FILE else (folder / name).read_bytes())
    document["files"][MANIFEST_FILE] = {"bytes": len(data), "sha256": sha256_hex(data)}
    document.pop("checksum")
    (target / DATASET_FILE).write_bytes(seal(document))
    return target


def with_first(**change: Any) -> Callable[[list[ManifestRow]], list[ManifestRow]]:
    return lambda rows: [replace(rows[0], **change), *rows[1:]]


class TestColumns:
    def test_are_the_manifests_in_key_order(self, folder: Path) -> None:
        catalog = read_catalog(folder, Filters())
        rows = sorted(parse_manifest((folder / MANIFEST_FILE).read_bytes()), key=lambda row: row.key)
        table = catalog.table
        assert [table.key(n) for n in range(len(table))] == [row.key for row in rows]
        assert table.frames.tolist() == [row.frames for row in rows]
        assert table.mel_frames.tolist() == [row.mel_frames for row in rows]
        assert table.ticks.tolist() == [row.ticks for row in rows]
        assert [table.shard_name(n) for n in table.shard] == [row.shard for row in rows]
        for number, member in enumerate((*PLAIN_TRACKS.members[:2], CONTRACT.words)):
            places = [row.members[member] for row in rows]
            assert table.offsets[:, number].tolist() == [place.offset for place in places]
            assert table.sizes[:, number].tolist() == [place.size for place in places]
            assert [bytes(digest).hex() for digest in table.digests[:, number]] == [place.sha256 for place in places]
        for n, name in enumerate(row.shard for row in rows):
            assert table.shard_bytes[table.shard[n]] == (folder / name).stat().st_size
        assert catalog.speakers_of(np.arange(len(table))) == [row.speaker for row in rows]
        assert catalog.manifest_hash == json.loads((folder / DATASET_FILE).read_bytes())["manifest_hash"]

    def test_rows_in_another_order_give_the_same(self, folder: Path, tmp_path: Path) -> None:
        def renamed(rows: list[ManifestRow]) -> list[ManifestRow]:
            keys = sorted((row.key for row in rows), reverse=True)
            return [replace(row, key=key) for row, key in zip(rows, keys, strict=True)]

        table = read_catalog(edited(folder, tmp_path / "s", renamed), Filters()).table
        assert table.keys.tolist() == sorted(table.keys.tolist())
        assert (
            table.frames.tolist() == [row.frames for row in parse_manifest((folder / MANIFEST_FILE).read_bytes())][::-1]
        )

    def test_no_speaker_is_none(self, folder: Path, tmp_path: Path) -> None:
        changed = edited(folder, tmp_path / "s", with_first(speaker=None, speaker_id=None))
        assert read_catalog(changed, Filters()).speakers_of(np.array([0])) == [None]

    def test_torch_is_not_loaded(self, folder: Path) -> None:
        script = (
            "import sys\nfrom pathlib import Path\nfrom omniges.data.catalog import Filters, read_catalog\n"
            "import omniges.data.trace, omniges.data.collate\n"
            "read_catalog(Path(sys.argv[1]), Filters())\nprint('torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "False"


class TestFilters:
    @pytest.mark.parametrize(
        ("filters", "wanted"),
        [
            ({}, lambda _: True),
            ({"speakers": ("2",)}, lambda row: row.speaker_id == 2),
            ({"speakers": ("speaker0", "3")}, lambda row: row.speaker_id in {1, 3}),
            ({"languages": ("chinese",)}, lambda row: row.language == "chinese"),
            ({"emotions": ("neutral",)}, lambda row: row.labels["emotion"] == "neutral"),
            ({"min_seconds": 0.9, "max_seconds": 2.0}, lambda row: 0.9 <= row.seconds <= 2.0),
            (
                {"speakers": ("2", "3"), "languages": ("english",), "min_seconds": 1.0},
                lambda row: row.speaker_id == 2 and row.seconds >= 1,
            ),
        ],
    )
    def test_leave_what_they_say(
        self, folder: Path, filters: dict[str, Any], wanted: Callable[[ManifestRow], bool]
    ) -> None:
        rows = parse_manifest((folder / MANIFEST_FILE).read_bytes())
        expected = sorted(row.key for row in rows if wanted(row))
        table = read_catalog(folder, Filters(**filters)).table
        assert expected
        assert [table.key(n) for n in range(len(table))] == expected

    @pytest.mark.parametrize(
        ("filters", "words"),
        [
            ({"split": "val"}, "expected samples of split 'val', found train 6.*--split-csv"),
            ({"speakers": ("9", "scott")}, "speaker 9 or scott, found none; choose from speaker0, speaker1, speaker2"),
            ({"speakers": ("1",), "languages": ("chinese",)}, "language chinese, found none; choose from english"),
            ({"emotions": ("happy",)}, "emotion happy, found none; choose from neutral"),
            (
                {"speakers": ("3",), "emotions": ("happy",)},
                "emotion happy, found none; remove this filter, because no selected sample",
            ),
            ({"min_seconds": 60.0}, r"last 60 to inf s, found only 0\.76\d* to 3 s"),
        ],
    )
    def test_that_leave_nothing_are_refused_with_the_choice(
        self, folder: Path, filters: dict[str, Any], words: str
    ) -> None:
        with pytest.raises(UsageFault, match=words) as caught:
            read_catalog(folder, Filters(**filters))
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"split": "dev"},
            {"min_seconds": -1.0},
            {"min_seconds": None},
            {"max_seconds": ""},
            {"max_seconds": float("inf")},
            {"min_seconds": 3.0, "max_seconds": 2.0},
        ],
    )
    def test_that_mean_nothing_are_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(UsageFault):
            Filters(**wrong)

    def test_as_json_does_not_depend_on_order(self) -> None:
        assert Filters(speakers=("b", "a", "b")).as_json() == Filters(speakers=("a", "b")).as_json()
        assert Filters(speakers=("a",)).as_json() != Filters(languages=("a",)).as_json()


class TestNothingIsTrusted:
    @pytest.mark.parametrize("name", ["manifest.parquet", "stats.json", "tokenizer.json"])
    @pytest.mark.parametrize("how", ["flipped", "missing"])
    def test_a_damaged_file_is_named(self, folder: Path, tmp_path: Path, name: str, how: str) -> None:
        target = edited(folder, tmp_path / "s", lambda rows: rows)
        data = bytearray((target / name).read_bytes())
        data[len(data) // 2] ^= 1
        (target / name).write_bytes(data) if how == "flipped" else (target / name).unlink()
        with pytest.raises(DataError, match=rf"{name}.*omniges verify-shards"):
            read_catalog(target, Filters())

    def test_no_folder_and_no_dataset(self, tmp_path: Path) -> None:
        with pytest.raises(UsageFault, match="expected a folder of shards"):
            read_catalog(tmp_path / "none", Filters())
        with pytest.raises(DataError, match="not complete"):
            read_catalog(tmp_path, Filters())

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"frames": 31}, "lengths in frames"),
            ({"mel_frames": 1}, "lengths in frames"),
            ({"ticks": 99}, "lengths in frames"),
            ({"shard": "train-000009.tar"}, "that dataset.json lists, found train-000009.tar"),
        ],
    )
    def test_rows_that_contradict_themselves(
        self, folder: Path, tmp_path: Path, change: dict[str, Any], words: str
    ) -> None:
        with pytest.raises(DataError, match=words):
            read_catalog(edited(folder, tmp_path / "s", with_first(**change)), Filters())

    @pytest.mark.parametrize("change", [{"offset": -512}, {"size": 10**12}, {"offset": 2**62}, {"size": -1}])
    def test_byte_ranges_outside_of_the_shard(self, folder: Path, tmp_path: Path, change: dict[str, int]) -> None:
        def edit(rows: list[ManifestRow]) -> list[ManifestRow]:
            members = dict(rows[0].members)
            members["mel.npy"] = replace(members["mel.npy"], **change)
            return [replace(rows[0], members=members), *rows[1:]]

        with pytest.raises(DataError, match="expected consistent byte ranges"):
            read_catalog(edited(folder, tmp_path / "s", edit), Filters())

    def test_a_key_twice(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="expected each key once"):
            read_catalog(edited(folder, tmp_path / "s", lambda rows: [replace(r, key="a") for r in rows]), Filters())

    def test_a_manifest_that_is_no_parquet(self, folder: Path, tmp_path: Path) -> None:
        target = edited(folder, tmp_path / "s", lambda rows: rows)
        document = json.loads((target / DATASET_FILE).read_bytes())
        (target / MANIFEST_FILE).write_bytes(b"not parquet")
        digest = hashlib.sha256(b"not parquet").hexdigest()
        document["files"][MANIFEST_FILE] = {"bytes": len(b"not parquet"), "sha256": digest}
        document.pop("checksum")
        (target / DATASET_FILE).write_bytes(seal(document))
        with pytest.raises(DataError, match="expected a manifest of the contract, found another file"):
            read_catalog(target, Filters())

    def test_a_shard_name_that_leads_out(self, folder: Path, tmp_path: Path) -> None:
        target = edited(folder, tmp_path / "s", lambda rows: rows)
        document = json.loads((target / DATASET_FILE).read_bytes())
        document["shards"]["../other.tar"] = document["shards"]["train-000000.tar"]
        document.pop("checksum")
        (target / DATASET_FILE).write_bytes(seal(document))
        with pytest.raises(DataError, match="a name that is not in the contract"):
            read_catalog(target, Filters())


class TestStatistics:
    @pytest.mark.parametrize(
        "change",
        [{"mean": [0.0]}, {"std": None}, {"std": [-1.0] * 64}, {"mean": [float("nan")] * 64}, {"mean": ["x"] * 64}],
    )
    def test_of_other_shape_or_content_are_refused(self, folder: Path, change: dict[str, Any]) -> None:
        statistics = json.loads((folder / "stats.json").read_text())
        statistics["mel"] |= change
        with pytest.raises(DataError, match=r"stats\.json: .*omniges verify-shards"):
            replace(read_catalog(folder, Filters()), statistics=statistics).normaliser()

    @pytest.mark.parametrize("frames", [1, 7, 8, 50])
    def test_tiles_of_any_length_give_the_same_bits(self, folder: Path, frames: int) -> None:
        scale = read_catalog(folder, Filters()).normaliser().gesture
        values = np.random.default_rng(0).standard_normal((50, 415), dtype=np.float32)
        out = np.empty(values.size, np.float32)
        scale.tiled(frames).normalise_into(values.reshape(-1), out)
        np.testing.assert_array_equal(out.reshape(50, 415), (values - scale.mean) / scale.divisor)


def write_large_manifest(folder: Path, source: Path, samples: int) -> None:
    """A folder without shards whose manifest has so many rows, written from one of `source` column by column."""
    table = pq.read_table(source / MANIFEST_FILE)
    random = np.random.default_rng(0)
    ticks = random.integers(40, 700, samples)
    shards = np.arange(samples) // 2000
    values_of = {
        "key": [f"{1 + n // 40_000}_speaker{n // 40_000}_0_{n:07}_{n:07}" for n in range(samples)],
        "shard": [f"train-{shard:06d}.tar" for shard in shards.tolist()],
        "frames": ticks * 3,
        "mel_frames": ticks * 10,
        "ticks": ticks,
        "seconds": ticks / 10,
    }
    values_of["key"].sort()
    digests = [row.tobytes().hex() for row in random.integers(0, 256, (samples, 32), dtype=np.uint8)]
    columns = []
    for field in table.schema:
        if field.name in values_of:
            values = values_of[field.name]
        elif field.name.endswith("_sha256"):
            values = digests
        elif field.name.endswith("_offset"):
            values = np.arange(samples) % 2000 * 20_000 + 512
        elif field.name.endswith("_size"):
            values = np.full(samples, 15_000)
        else:
            values = [table.column(field.name)[0].as_py()] * samples
        columns.append(pa.array(values, type=field.type))
    folder.mkdir()
    pq.write_table(pa.table(columns, schema=table.schema), folder / MANIFEST_FILE, compression="zstd")
    document = json.loads((source / DATASET_FILE).read_bytes())
    for name in document["files"]:
        if name != MANIFEST_FILE:
            (folder / name).write_bytes((source / name).read_bytes())
    data = (folder / MANIFEST_FILE).read_bytes()
    document["files"][MANIFEST_FILE] = {"bytes": len(data), "sha256": sha256_hex(data)}
    entry = {"split": "train", "samples": 2000, "bytes": 2000 * 20_000 + 2000, "sha256": "0" * 64}
    document["shards"] = {f"train-{shard:06d}.tar": entry for shard in np.unique(shards).tolist()}
    counts = {name: int(values_of[name].sum()) for name in ("frames", "mel_frames", "ticks")}
    counts |= {"samples": samples, "seconds": math.fsum((ticks / 10).tolist())}
    counts["words"] = table.column("words")[0].as_py() * samples
    document["totals"] |= counts
    document["splits"] = {split: totals_of([]) for split in document["splits"]} | {"train": counts}
    document.pop("checksum")
    (folder / DATASET_FILE).write_bytes(seal(document))


@pytest.mark.long
def test_a_million_samples_are_ordered_in_seconds(folder: Path, tmp_path: Path) -> None:
    """First batch order in under 5 s of processor time and 1.5 GB, imports included, in a process of its own."""
    write_large_manifest(tmp_path / "large", folder, 1_000_000)
    script = (
        "import resource, sys\nfrom pathlib import Path\nimport numpy as np\n"
        "from omniges.data.catalog import Filters, read_catalog\n"
        "from omniges.data.sequence import DataSource, Sequencing, make_order\n"
        "catalog = read_catalog(Path(sys.argv[1]), Filters())\n"
        "picks = make_order([DataSource(catalog)], Sequencing()).windows_at(np.arange(64))\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        # Not ru_maxrss: it never falls below what this process held when it started the other.
        "peak = next(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM'))\n"
        "print(len(catalog.table), len(picks.sample), used.ru_utime + used.ru_stime, int(peak) * 1024 / 1e9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "large")], capture_output=True, text=True, check=True
    )
    samples, windows, cpu_s, gigabytes = map(float, done.stdout.split())
    assert (samples, windows) == (1_000_000, 64)
    assert cpu_s < 5
    assert gigabytes < 1.5


def test_filters_come_back_from_json() -> None:
    for filters in (Filters(), Filters(split="val", speakers=("b", "a"), languages=("english",), max_seconds=9.5)):
        found = Document(json.loads(json.dumps(filters.as_json())), "filters of clips", "").read(Filters)
        assert found.as_json() == filters.as_json()


@pytest.mark.parametrize(
    "damaged", [None, {"more": 1}, {"split": 3}, {"speakers": 3}, {"min_seconds": None}, {"streams": ["legs"]}]
)
def test_filters_of_a_damaged_state_are_bad_data(damaged: Any) -> None:
    with pytest.raises(DataError, match=r"filters of clips.* choose another checkpoint"):
        Document(damaged, "filters of clips", "choose another checkpoint").read(Filters)
