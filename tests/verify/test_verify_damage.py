"""Level full finds every single fault in a shard folder, names it, and finds nothing in a sound one."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pipeline_helpers import run_preprocess
from shard_sets import BLOCK, Member, ShardSet, members_of, named, tar_of, with_fields
from verify_builders import codes, content, edited_dataset, edited_manifest, run

from omniges.errors import UsageFault
from omniges.shards.schema import DATASET_FILE, MANIFEST_FILE, REPORT_FILE, STATS_FILE, TOKENIZER_FILE
from omniges.shards.tar import member_header
from omniges.storage.files import sha256_hex
from omniges.testing.settings import CorpusSettings
from omniges.testing.synthetic_corpus import write_sample_corpus

SHARD = "train-000000.tar"  # of two samples


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small shards of eight clips; each test puts back what it changes."""
    base = tmp_path_factory.mktemp("verify")
    write_sample_corpus(base / "corpus", CorpusSettings(clips=8, seconds=2.0, words=6, speakers=2, seed=3))
    run_preprocess(base / "corpus", base / "shards", keep_audio=True, shard_bytes=350_000)
    return base / "shards"


@pytest.fixture(scope="module")
def tiny(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same samples cut to three frames: shards of a few kilobytes whose every byte can be tried."""
    shards = ShardSet.read(folder)
    for sample in shards.samples:
        for name, length in (("gesture.npy", 3), ("jaw_eyes.npy", 3), ("mel.npy", 10)):
            sample.arrays[name] = sample.arrays[name][:length]
        lengths: dict[str, Any] = {"frames": 3, "mel_frames": 10, "ticks": 1, "seconds": 0.1}
        for name, value in (lengths | {"words": 1}).items():
            object.__setattr__(sample.row, name, value)
        sample.metadata |= lengths
        sample.metadata["motion"] |= {"frames": 3}
        sample.metadata["cut"] |= {"motion_s": 0.0}
        sample.metadata["cut"]["audio_s"] = round(sample.metadata["audio"]["samples"] / 16000 - 0.1, 6)
        sample.words = [{"word": "so", "start": 0.0, "end": 0.1}]
    shards.keep_files = False
    return shards.write(tmp_path_factory.mktemp("tiny") / "shards")


def found_in(folder: Path, damaged: bytes, name: str = SHARD) -> set[str]:
    with content(folder / name, damaged):
        return codes(run(folder))


def listed(data: bytes) -> Callable[[dict[str, Any]], None]:
    """An edit after which dataset.json lists the shard with other content."""

    def edit(document: dict[str, Any]) -> None:
        document["shards"][SHARD] |= {"bytes": len(data), "sha256": sha256_hex(data)}

    return edit


class TestSound:
    @pytest.mark.parametrize("level", ["quick", "full", "deep"])
    def test_nothing_is_found_at_any_level(self, folder: Path, tiny: Path, shards: Path, level: str) -> None:
        for place in (folder, tiny, shards):
            result = run(place, level)
            assert result.findings == (), place
            assert result.not_checked == ()
            assert result.exit_code == 0

    def test_nor_in_real_recordings(self, beat2_sample: Path, tmp_path: Path) -> None:
        run_preprocess(beat2_sample, tmp_path / "s", keep_audio=True, max_rejected=1.0)
        for level in ("quick", "full", "deep"):
            assert run(tmp_path / "s", level).findings == ()

    def test_nor_without_train_samples(self, corpus: Path, tmp_path: Path) -> None:
        from omniges.pipeline.settings import Selection

        run_preprocess(corpus, tmp_path / "s", selection=Selection(splits=("val",)))
        assert run(tmp_path / "s", "deep").findings == ()

    def test_nothing_is_written_and_a_linked_folder_is_read(self, folder: Path, tmp_path: Path) -> None:
        before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.iterdir()}
        (tmp_path / "link").symlink_to(folder)
        assert run(tmp_path / "link", "deep").valid
        assert before == {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.iterdir()}


class TestCuts:
    @pytest.mark.slow
    def test_every_block_boundary(self, tiny: Path) -> None:
        data = (tiny / SHARD).read_bytes()
        first = len(members_of(data)[0].raw)
        for length in range(0, len(data), BLOCK):
            found = found_in(tiny, data[:length])
            assert "file-size" in found
            assert found & {"shard-cut", "shard-end"}, length
            assert ("shard-end" in found) == (length >= len(data) - 2 * BLOCK), length
        with content(tiny / SHARD, data[:first]):
            (cut,) = [finding for finding in run(tiny).findings if finding.code == "shard-cut"]
        assert cut.offset == first
        assert f"{cut.key}.{cut.member}" == members_of(data)[1].name

    def test_random_bytes_and_a_cut_that_dataset_json_agrees_with(self, tiny: Path) -> None:
        data = (tiny / SHARD).read_bytes()
        for length in random.Random(1).sample(range(len(data)), 60):
            assert found_in(tiny, data[:length]) & {"shard-cut", "shard-end"}
        cut = data[: len(members_of(data)[0].raw)]
        with content(tiny / DATASET_FILE, edited_dataset(tiny, listed(cut))), content(tiny / SHARD, cut):
            assert {"manifest-layout", "shard-end"} <= codes(run(tiny))

    def test_longer_files(self, tiny: Path) -> None:
        data = (tiny / SHARD).read_bytes()
        for extra in (b"\0", bytes(BLOCK), bytes(9 * BLOCK), b"x", b"x" * BLOCK, data):
            assert {"file-size", "shard-trailing"} <= found_in(tiny, data + extra)


def places(data: bytes) -> dict[str, list[range]]:
    """The byte ranges of a shard by kind."""
    found: dict[str, list[range]] = {"header": [], "payload": [], "padding": []}
    position = 0
    for member in members_of(data):
        start, end = position + BLOCK, position + BLOCK + len(member.data)
        found["header"].append(range(position, start))
        found["payload"].append(range(start, end))
        position += len(member.raw)
        if end < position:
            found["padding"].append(range(end, position))
    return found | {"end": [range(position, len(data))]}


class TestFlips:
    EXPECTED: ClassVar = {
        "header": {"header-checksum"},
        "payload": {"member-digest"},
        "padding": {"member-padding"},
        "end": {"shard-end", "member-foreign", "header-checksum"},
    }

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", list(EXPECTED))
    def test_a_flipped_bit_is_found_and_placed(self, tiny: Path, kind: str) -> None:
        data = (tiny / SHARD).read_bytes()
        draw = random.Random(kind)
        for _ in range(25):
            place = draw.choice(draw.choice(places(data)[kind]))
            damaged = bytearray(data)
            damaged[place] ^= 1 << draw.randrange(8)
            with content(tiny / SHARD, bytes(damaged)):
                result = run(tiny)
            found = codes(result)
            assert "shard-checksum" in found
            assert found & self.EXPECTED[kind], (kind, place, found)
            near = [f for f in result.findings if f.code in self.EXPECTED[kind]]
            assert len(near) == 1
            if kind in {"padding", "end"}:
                assert near[0].offset == place
            if kind in {"header", "payload"}:
                owner = next(m for m, r in zip(members_of(data), places(data)[kind], strict=True) if place in r)
                assert f"{near[0].key}.{near[0].member}" == owner.name

    @pytest.mark.slow
    def test_bits_all_over_a_header(self, tiny: Path) -> None:
        data = (tiny / SHARD).read_bytes()
        start = places(data)["header"][3].start
        for place in [*range(start, start + 160, 9), *range(start + 160, start + BLOCK, 31)]:
            for bit in (0, 3, 5, 7):
                damaged = bytearray(data)
                damaged[place] ^= 1 << bit
                assert {"shard-checksum", "header-checksum"} <= found_in(tiny, bytes(damaged))

    @pytest.mark.slow
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_any_change_of_any_file_is_found(self, tiny: Path, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(path.name for path in tiny.iterdir())))
        before = (tiny / name).read_bytes()
        start = data.draw(st.integers(0, len(before)))
        stop = min(len(before), start + data.draw(st.integers(0, 700)))
        after = before[:start] + data.draw(st.binary(max_size=700)) + before[stop:]
        assert bool(found_in(tiny, after, name)) == (after != before)

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_flipped_bytes_are_found_by_deep_and_crash_nothing(self, tiny: Path, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([DATASET_FILE, MANIFEST_FILE, SHARD]))
        before = (tiny / name).read_bytes()
        after = bytearray(before)
        for _ in range(data.draw(st.integers(1, 4))):
            after[data.draw(st.integers(0, len(after) - 1))] ^= data.draw(st.integers(1, 255))
        with content(tiny / name, bytes(after)):
            run(tiny, "quick")
            assert run(tiny, "deep").valid == (after == before)


Members = list[Member]


def swapped(ms: Members, a: int, b: int) -> Members:
    ms = list(ms)
    ms[a], ms[b] = ms[b], ms[a]
    return ms


def other(ms: Members) -> Member:
    """A member that no contract names."""
    return Member("x.gesture.npy", member_header("x.gesture.npy", 5), b"hello")


def fields(ms: Members, place: int, **changed: bytes) -> Members:
    return [*ms[:place], with_fields(ms[place], **changed), *ms[place + 1 :]]


def pax(ms: Members) -> Member:
    data = b"18 path=../evil.js\n"
    return with_fields(Member("p", member_header("p", len(data)), data), flag=b"x")


REARRANGED: dict[str, tuple[str, Callable[[Members], Members]]] = {
    "doubled in place": ("member-twice", lambda ms: [*ms[:3], ms[2], *ms[3:]]),
    "doubled at the end": ("member-twice", lambda ms: [*ms, ms[0]]),
    "sample doubled": ("member-twice", lambda ms: [*ms[:9], *ms[:9], *ms[9:]]),
    "renamed to a foreign key": ("member-foreign", lambda ms: [ms[0], named(ms[1], "k.gesture.npy"), *ms[2:]]),
    "renamed to another member": ("member-twice", lambda ms: [*ms[:4], named(ms[4], ms[5].name), *ms[5:]]),
    "neighbours swapped": ("member-order", lambda ms: swapped(ms, 2, 3)),
    "samples swapped": ("member-order", lambda ms: [*ms[9:], *ms[:9]]),
    "interleaved": ("member-order", lambda ms: [m for pair in zip(ms[:9], ms[9:], strict=True) for m in pair]),
    "reversed": ("member-order", lambda ms: ms[::-1]),
    "removed": ("member-missing", lambda ms: [*ms[:5], *ms[6:]]),
    "first removed": ("member-missing", lambda ms: ms[1:]),
    "last removed": ("member-missing", lambda ms: ms[:-1]),
    "sample removed": ("member-missing", lambda ms: ms[:9]),
    "all removed": ("member-missing", lambda _: []),
    "added": ("member-foreign", lambda ms: [*ms[:4], other(ms), *ms[4:]]),
    "added at the end": ("member-foreign", lambda ms: [*ms, other(ms)]),
    "empty member added": ("member-foreign", lambda ms: [*ms, named(Member("", b"", b""), "e.json")]),
    "symbolic link": ("member-link", lambda ms: fields(ms, 2, flag=b"2", link=b"/etc/passwd")),
    "hard link": ("member-link", lambda ms: fields(ms, 2, flag=b"1", link=ms[1].name.encode())),
    "link added": ("member-link", lambda ms: [*ms, with_fields(named(Member("", b"", b""), "l"), flag=b"2")]),
    "character device": ("member-device", lambda ms: fields(ms, 2, flag=b"3")),
    "block device": ("member-device", lambda ms: fields(ms, 2, flag=b"4")),
    "folder": ("member-device", lambda ms: [with_fields(named(Member("", b"", b""), "d/"), flag=b"5"), *ms]),
    "pipe": ("member-device", lambda ms: fields(ms, 2, flag=b"6")),
    "contiguous file": ("member-extension", lambda ms: fields(ms, 2, flag=b"7")),
    "pax header": ("member-extension", lambda ms: [*ms[:3], pax(ms), *ms[3:]]),
    "global pax header": ("member-extension", lambda ms: [with_fields(pax(ms), flag=b"g"), *ms]),
    "GNU long name": ("member-extension", lambda ms: [*ms[:3], with_fields(pax(ms), flag=b"L"), *ms[3:]]),
    "GNU long link": ("member-extension", lambda ms: [*ms[:3], with_fields(pax(ms), flag=b"K"), *ms[3:]]),
    "GNU sparse": ("member-extension", lambda ms: fields(ms, 1, flag=b"S")),
    "absolute name": ("member-name", lambda ms: fields(ms, 1, name=b"/etc/passwd")),
    "name that leads out": ("member-name", lambda ms: fields(ms, 1, name=b"../../x.gesture.npy")),
    "prefix that leads out": ("member-name", lambda ms: fields(ms, 1, prefix=b"..")),
    "key with a dot": ("member-name", lambda ms: fields(ms, 1, name=b"a.b.gesture.npy")),
    "name not ASCII": ("member-name", lambda ms: fields(ms, 1, name=b"\xff\xfe.json")),
    "no name": ("member-name", lambda ms: fields(ms, 1, name=b"")),
    "unknown member": ("member-name", lambda ms: [*ms, named(Member("", b"", b""), "k.pickle")]),
    "negative size": ("member-size", lambda ms: fields(ms, 2, size=b"\xff" * 12)),
    "base-256 size": ("member-size", lambda ms: fields(ms, 2, size=b"\x80" + bytes(10) + b"\x05")),
    "size in spaces": ("member-size", lambda ms: fields(ms, 2, size=b"        100 ")),
    "signed size": ("member-size", lambda ms: fields(ms, 2, size=b"-0000000512\0")),
    "size too small": ("member-size", lambda ms: fields(ms, 2, size=b"00000000001\0")),
    "size too large": ("member-size", lambda ms: fields(ms, 2, size=b"00000003000\0")),
    "size beyond the file": ("member-size", lambda ms: fields(ms, 2, size=b"77777777777\0")),
    "other mode": ("header-not-canonical", lambda ms: fields(ms, 2, mode=b"0000755\0")),
    "other time": ("header-not-canonical", lambda ms: fields(ms, 2, mtime=b"14000000000\0")),
    "old regular type": ("header-not-canonical", lambda ms: fields(ms, 2, flag=b"\0")),
    "GNU magic": ("header-not-canonical", lambda ms: fields(ms, 2, magic=b"ustar  \0")),
    "link target of a file": ("header-not-canonical", lambda ms: fields(ms, 2, link=b"x")),
}


class TestMembers:
    @pytest.mark.parametrize("case", REARRANGED)
    def test_each_is_named(self, tiny: Path, case: str) -> None:
        code, change = REARRANGED[case]
        ms = members_of((tiny / SHARD).read_bytes())
        assert len(ms) == 18
        with content(tiny / SHARD, tar_of(change(ms))):
            result = run(tiny)
        assert code in codes(result), [f"{f.code}: {f.found}" for f in result.findings]
        assert codes(result) & {"shard-checksum", "file-size"}
        assert len(result.findings) < 60

    @pytest.mark.parametrize("case", REARRANGED)
    def test_each_is_found_when_all_hashes_agree_and_without_a_manifest(self, tiny: Path, case: str) -> None:
        """A hostile writer: dataset.json lists the damaged shard; then the manifest is taken away as well."""
        data = tar_of(REARRANGED[case][1](members_of((tiny / SHARD).read_bytes())))
        with content(tiny / DATASET_FILE, edited_dataset(tiny, listed(data))), content(tiny / SHARD, data):
            assert codes(run(tiny)), case
            with content(tiny / MANIFEST_FILE, None):
                assert codes(run(tiny)) >= {"file-missing"}

    def test_a_zeroed_block_in_the_middle(self, tiny: Path) -> None:
        data = (tiny / SHARD).read_bytes()
        for header in places(data)["header"]:
            hole = data[: header.start] + bytes(BLOCK) + data[header.stop :]
            assert "shard-early-end" in found_in(tiny, hole)

    def test_many_tiny_members_take_neither_for_ever_nor_much_memory(self, tiny: Path) -> None:
        ms = members_of((tiny / SHARD).read_bytes())
        many = b"".join(named(ms[0], f"{n}.json").raw for n in range(20_000))
        start = time.process_time()
        with content(tiny / SHARD, b"".join(m.raw for m in ms) + many + bytes(2 * BLOCK)):
            result = run(tiny)
        assert time.process_time() - start < 5
        assert "member-foreign" in codes(result)
        assert any("19980 more findings" in finding.found for finding in result.findings)


class TestFolder:
    def test_no_folder_and_an_empty_one(self, tmp_path: Path) -> None:
        with pytest.raises(UsageFault, match="expected a folder of shards"):
            run(tmp_path / "nowhere")
        result = run(tmp_path)
        assert codes(result) == {"dataset-missing"}
        assert result.exit_code == 1

    def test_shards_swapped_with_each_other(self, tiny: Path) -> None:
        one, two = ((tiny / name).read_bytes() for name in (SHARD, "train-000001.tar"))
        with content(tiny / SHARD, two), content(tiny / "train-000001.tar", one):
            result = run(tiny)
        assert {"member-foreign", "member-missing"} <= codes(result)
        assert any("which belongs to train-000001.tar" in finding.found for finding in result.findings)

    def test_a_shard_of_another_run(self, tiny: Path, folder: Path) -> None:
        assert codes_of_swap(tiny, folder) >= {"file-size"}

    def test_a_missing_shard(self, tiny: Path) -> None:
        for level in ("quick", "full", "deep"):
            with content(tiny / SHARD, None):
                assert codes(run(tiny, level)) == {"file-missing"}

    @pytest.mark.parametrize("name", [MANIFEST_FILE, STATS_FILE, TOKENIZER_FILE, REPORT_FILE])
    def test_other_files_missing_or_flipped(self, tiny: Path, name: str) -> None:
        data = bytearray((tiny / name).read_bytes())
        with content(tiny / name, None):
            assert codes(run(tiny, "quick")) == {"file-missing"}
        with content(tiny / name, bytes(data) + b" "):
            assert codes(run(tiny, "quick")) == {"file-size"}
        data[len(data) // 2] ^= 1
        with content(tiny / name, bytes(data)):
            assert codes(run(tiny)) == {"file-checksum"}
            assert codes(run(tiny, "deep")) == {"file-checksum"}

    @pytest.mark.parametrize(
        ("name", "code", "severity"),
        [
            ("train-000009.tar", "shard-unlisted", "error"),
            ("other.TAR", "shard-unlisted", "error"),
            (".train-000000.tar.tmp-123", "temporary-file", "error"),
            ("README.md", "file-unlisted", "note"),
            ("._train-000000.tar", "file-unlisted", "note"),
            ("a\n::error::\x1b[31m", "file-unlisted", "note"),
        ],
    )
    def test_unlisted_files(self, tiny: Path, name: str, code: str, severity: str) -> None:
        for level in ("quick", "full", "deep"):
            with content(tiny / name, b"x"):
                result = run(tiny, level)
            assert codes(result, severity) == {code}
            assert len(result.findings) == 1
            assert "\n" not in result.findings[0].file

    def test_the_folder_of_an_unfinished_run(self, tiny: Path) -> None:
        work = tiny / ".omniges-unfinished"
        for level in ("quick", "full", "deep"):
            with content(work, b"x"):
                assert codes(run(tiny, level)) == {"unfinished-foreign"}
            work.mkdir()
            assert codes(run(tiny, level), "note") == {"unfinished-run"}
            with content(work / "thesis.tex", b"x"):
                assert codes(run(tiny, level)) == {"unfinished-foreign"}
            assert run(tiny, level).valid
            work.rmdir()

    def test_links_folders_and_pipes_are_not_read(self, tiny: Path, tmp_path: Path) -> None:
        data = (tiny / SHARD).read_bytes()
        (tmp_path / "copy").write_bytes(data)
        makers: list[Callable[[Path], Any]] = [lambda p: p.symlink_to(tmp_path / "copy"), Path.mkdir, os.mkfifo]
        for level in ("quick", "full", "deep"):
            for make in makers:
                with content(tiny / SHARD, None):
                    make(tiny / SHARD)
                    assert codes(run(tiny, level)) == {"file-not-regular"}
                    Path.rmdir(tiny / SHARD) if make is Path.mkdir else (tiny / SHARD).unlink()

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_no_permission(self, tiny: Path) -> None:
        (tiny / SHARD).chmod(0)
        try:
            assert codes(run(tiny)) == {"file-unreadable"}
        finally:
            (tiny / SHARD).chmod(0o644)


def codes_of_swap(tiny: Path, folder: Path) -> set[str]:
    with content(tiny / SHARD, (folder / SHARD).read_bytes()):
        return codes(run(tiny))


def at(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """An edit that sets a field."""

    def edit(document: dict[str, Any]) -> None:
        for name in path[:-1]:
            document = document[name]
        document[path[-1]] = value

    return edit


EDITED: dict[str, tuple[str, Callable[[dict[str, Any]], None]]] = {
    "newer": ("dataset-newer", at("version", value=3)),
    "no version": ("dataset-version", lambda d: d.pop("version")),
    "version of text": ("dataset-version", at("version", value="1")),
    "version true": ("dataset-version", at("version", value=True)),
    "foreign": ("dataset-foreign", at("format", value="wds")),
    "features": ("dataset-features", at("features", "mel", "bands", value=80)),
    "totals": ("dataset-totals", at("totals", "frames", value=1)),
    "seconds": ("dataset-totals", at("totals", "seconds", value=1.0)),
    "split totals": ("dataset-totals", at("splits", "train", "samples", value=5)),
    "samples of a shard": ("dataset-totals", at("shards", SHARD, "samples", value=7)),
    "stems": ("dataset-plan", at("plan", "stems", value=99)),
    "settings": ("dataset-plan", at("settings", "shard_bytes", value=1)),
    "numbering": ("shard-name", lambda d: d["shards"].update({"val-000007.tar": d["shards"].pop("val-000000.tar")})),
    "unknown field": ("dataset-malformed", at("more", value=1)),
    "no shards": ("dataset-malformed", lambda d: d.pop("shards")),
    "shards of text": ("dataset-malformed", at("shards", value="many")),
    "shard of text": ("dataset-malformed", at("shards", SHARD, value="x")),
    "name that leads out": ("dataset-malformed", at("shards", "../x-000000.tar", value={})),
    "negative bytes": ("dataset-malformed", at("shards", SHARD, "bytes", value=-1)),
    "huge bytes": ("dataset-malformed", at("shards", SHARD, "bytes", value=10**30)),
    "bytes of float": ("dataset-malformed", at("shards", SHARD, "bytes", value=1.5)),
    "other split": ("dataset-malformed", at("shards", SHARD, "split", value="val")),
    "bad digest": ("dataset-malformed", at("shards", SHARD, "sha256", value="x")),
    "no manifest": ("dataset-malformed", lambda d: d["files"].pop(MANIFEST_FILE)),
    "unknown file": ("dataset-malformed", at("files", "/etc/passwd", value={"bytes": 1, "sha256": "0" * 64})),
    "totals of text": ("dataset-malformed", at("totals", value=[1])),
    "splits of text": ("dataset-malformed", at("splits", value=None)),
    "plan of text": ("dataset-malformed", at("plan", value="x")),
    "settings of text": ("dataset-malformed", at("settings", value=3)),
    "hash of text": ("dataset-malformed", at("manifest_hash", value=3)),
    "huge totals": ("dataset-malformed", at("totals", "seconds", value=10**400)),
}


class TestDataset:
    @pytest.mark.parametrize("case", EDITED)
    def test_resealed_edits_are_found_at_every_level(self, tiny: Path, case: str) -> None:
        code, edit = EDITED[case]
        with content(tiny / DATASET_FILE, edited_dataset(tiny, edit)):
            for level in ("quick", "full", "deep"):
                assert code in codes(run(tiny, level)), level

    def test_totals_that_agree_with_themselves_alone(self, tiny: Path) -> None:
        def edit(document: dict[str, Any]) -> None:
            for part in (document["totals"], document["splits"]["train"]):
                part["frames"] += 1

        def cut(document: dict[str, Any]) -> None:
            document["totals"]["cut"]["audio_s"] += 1

        with content(tiny / DATASET_FILE, edited_dataset(tiny, edit)):
            assert run(tiny, "quick").valid
            assert codes(run(tiny)) == {"manifest-totals"}
        with content(tiny / DATASET_FILE, edited_dataset(tiny, at("manifest_hash", value="0" * 64))):
            assert codes(run(tiny)) == {"manifest-hash"}
        with content(tiny / DATASET_FILE, edited_dataset(tiny, cut)):
            assert codes(run(tiny, "deep")) == {"cut-totals"}

    def test_truncated_at_every_byte_or_not_json(self, tiny: Path) -> None:
        data = (tiny / DATASET_FILE).read_bytes()
        for length in range(0, len(data), 97):
            assert found_in(tiny, data[:length], DATASET_FILE) == {"dataset-unreadable"}
        for hostile in (b"[]", b"null", b"\xff", b'{"format": NaN}', b'"\\ud800"', b"[" * 200_000, b"1" * 10_000):
            assert found_in(tiny, hostile, DATASET_FILE) == {"dataset-unreadable"}
        deep = b'{"a":' * 400 + b"1" + b"}" * 400
        assert found_in(tiny, deep, DATASET_FILE) <= {"dataset-unreadable", "dataset-foreign"}
        assert found_in(tiny, b'{"format": 1e999}', DATASET_FILE) == {"dataset-unreadable"}

    def test_rewritten_or_edited(self, tiny: Path) -> None:
        document = json.loads((tiny / DATASET_FILE).read_bytes())
        rewritten = json.dumps(document).encode()
        assert found_in(tiny, rewritten, DATASET_FILE) == {"dataset-not-canonical"}
        edited = (tiny / DATASET_FILE).read_bytes().replace(b'"loudness": "none"', b'"loudness": "peak"')
        assert "dataset-checksum" in found_in(tiny, edited, DATASET_FILE)

    @pytest.mark.slow
    def test_random_values_anywhere_are_findings_never_tracebacks(self, tiny: Path) -> None:
        draw = random.Random(7)
        values = [None, True, -1, 10**400, 1e308, "", "x", "0" * 64, [], {}, [[]], {"a": 1}, "\u202e", 0]
        for _ in range(60):
            with content(tiny / DATASET_FILE, edited_dataset(tiny, lambda d: scramble(d, draw, values))):
                assert not run(tiny, "deep").valid


def scramble(document: dict[str, Any], draw: random.Random, values: list[Any]) -> None:
    """Set one field somewhere to something that it was not; the tool's versions and some of the plan are free."""
    place, name = document, draw.choice(sorted(document.keys() - {"tool", "plan", "checksum"}))
    while isinstance(place[name], dict) and place[name] and draw.random() < 0.8:
        place = place[name]
        name = draw.choice(sorted(place))
    before = place[name]
    place[name] = draw.choice([value for value in values if value != before or type(value) is not type(before)])


class TestManifest:
    def damaged(self, tiny: Path, edit: Callable[[list[Any]], list[Any]], level: str = "full") -> set[str]:
        files = edited_manifest(tiny, edit)
        with content(tiny / MANIFEST_FILE, files[MANIFEST_FILE]), content(tiny / DATASET_FILE, files[DATASET_FILE]):
            return codes(run(tiny, level))

    def test_rows_removed_doubled_or_moved(self, tiny: Path) -> None:
        assert "manifest-shards" in self.damaged(tiny, lambda rows: rows[1:])
        assert "manifest-shards" in self.damaged(tiny, lambda rows: [*rows, rows[0]])
        assert "manifest-key-twice" in self.damaged(tiny, lambda rows: [rows[1], *rows[1:]])
        assert "manifest-shards" in self.damaged(
            tiny, lambda rows: [changed(rows[0], shard="val-000009.tar"), *rows[1:]]
        )

    @pytest.mark.parametrize(
        ("fields", "code"),
        [
            ({"split": "val"}, "manifest-shards"),
            ({"split": "dev"}, "manifest-malformed"),
            ({"key": "../x"}, "manifest-malformed"),
            ({"key": "other"}, "key-not-of-stem"),
            ({"stem": "other"}, "key-not-of-stem"),
            ({"shard": "/etc/passwd"}, "manifest-malformed"),
            ({"frames": -5}, "manifest-malformed"),
            ({"frames": 4}, "row-arithmetic"),
            ({"mel_frames": 11}, "row-arithmetic"),
            ({"mel_frames": 0}, "manifest-malformed"),
            ({"ticks": 2}, "row-arithmetic"),
            ({"seconds": 0.2}, "row-arithmetic"),
            ({"seconds": float("nan")}, "manifest-malformed"),
            ({"words": 2}, "manifest-totals"),
            ({"sources": {"npz": ("../x", "0" * 64)}}, "manifest-malformed"),
        ],
        ids=str,
    )
    def test_fields(self, tiny: Path, fields: dict[str, Any], code: str) -> None:
        assert code in self.damaged(tiny, lambda rows: [changed(rows[0], **fields), *rows[1:]])

    @pytest.mark.parametrize("field", ["offset", "size", "sha256"])
    @pytest.mark.parametrize("value", [-1, 0, 513, 2**62])
    def test_places(self, tiny: Path, field: str, value: int) -> None:
        def edit(rows: list[Any]) -> list[Any]:
            place = rows[0].members["mel.npy"]
            moved = changed(place, **{field: str(value) if field == "sha256" else value})
            return [changed(rows[0], members=rows[0].members | {"mel.npy": moved}), *rows[1:]]

        assert self.damaged(tiny, edit) & {"manifest-malformed", "manifest-layout", "manifest-hash"}

    def test_a_wrong_digest_with_the_right_manifest_hash_is_found_by_deep(self, tiny: Path) -> None:
        def edit(rows: list[Any]) -> list[Any]:
            moved = changed(rows[0].members["mel.npy"], sha256="0" * 64)
            return [changed(rows[0], members=rows[0].members | {"mel.npy": moved}), *rows[1:]]

        assert "member-digest" in self.damaged(tiny, edit, "deep")

    def test_values_of_a_member_that_is_not_there(self, tiny: Path) -> None:
        import io

        import pyarrow as pa
        import pyarrow.parquet as pq
        from shard_sets import relisted

        files = {name: (tiny / name).read_bytes() for name in (DATASET_FILE, MANIFEST_FILE)}
        table = pq.ParquetFile(io.BytesIO(files[MANIFEST_FILE])).read(use_threads=False)
        place = table.column_names.index("audio_npy_offset")
        nothing = pa.nulls(table.num_rows, pa.int64())
        buffer = io.BytesIO()
        pq.write_table(table.set_column(place, table.schema.field(place), nothing), buffer)
        data = buffer.getvalue()
        with content(tiny / DATASET_FILE, relisted(files, {MANIFEST_FILE: data})), content(tiny / MANIFEST_FILE, data):
            assert codes(run(tiny)) == {"manifest-malformed"}

    def test_not_parquet_in_spite_of_its_checksum(self, tiny: Path) -> None:
        from omniges.storage.files import sha256_hex

        whole = (tiny / MANIFEST_FILE).read_bytes()
        draw = random.Random(3)
        for _ in range(25):
            data = bytearray(whole[: draw.randrange(len(whole))] if draw.random() < 0.3 else whole)
            for _ in range(draw.randrange(1, 6)):
                if data:
                    data[draw.randrange(len(data))] ^= draw.randrange(1, 256)
            listed = {"bytes": len(data), "sha256": sha256_hex(bytes(data))}
            edit = at("files", MANIFEST_FILE, value=listed)
            with content(tiny / DATASET_FILE, edited_dataset(tiny, edit)), content(tiny / MANIFEST_FILE, bytes(data)):
                run(tiny, "deep")  # some bytes of a parquet file mean nothing: no crash is the promise here


def changed(value: Any, **fields: Any) -> Any:
    from dataclasses import replace

    return replace(value, **fields)


class TestQuick:
    """Level quick finds in a shard the faults that docs/how-to/verify.md lists, and no others."""

    @pytest.mark.slow
    def test_ends_are_looked_at(self, tiny: Path) -> None:
        data = (tiny / SHARD).read_bytes()
        with content(tiny / SHARD, b"x" + data[1:]):
            assert codes(run(tiny, "quick")) == {"header-checksum"}
        with content(tiny / SHARD, data[:-1] + b"x"):
            assert codes(run(tiny, "quick")) == {"shard-end"}
        for length in range(0, len(data), BLOCK):
            with content(tiny / SHARD, data[:length]):
                assert "file-size" in codes(run(tiny, "quick"))
        middle = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
        with content(tiny / SHARD, middle):
            assert run(tiny, "quick").valid


class TestSelection:
    def test_split_and_shard(self, tiny: Path) -> None:
        data = (tiny / SHARD).read_bytes()
        with content(tiny / SHARD, data[:-1] + b"x"):
            assert run(tiny, splits=("val",)).valid
            assert run(tiny, shard_names=("train-000001",)).valid
            assert not run(tiny, splits=("train",)).valid
        assert run(tiny, "deep", splits=("train",)).not_checked == ()
        assert "statistics" in run(tiny, "deep", shard_names=("train-000001",)).not_checked[0]
        with pytest.raises(UsageFault, match=r"--shard nothing\.tar"):
            run(tiny, shard_names=("nothing",))
        with pytest.raises(UsageFault, match="splits dev"):
            run(tiny, splits=("dev",))

    def test_fail_fast_and_max_findings(self, tiny: Path) -> None:
        names = sorted(path.name for path in tiny.glob("*.tar"))
        with content(tiny / names[0], b""), content(tiny / names[1], b""), content(tiny / names[2], b""):
            whole = run(tiny, num_workers=3)
            assert {finding.file for finding in whole.findings} == set(names[:3])
            fast = run(tiny, fail_fast=True, num_workers=3)
            assert {finding.file for finding in fast.findings} == {names[0]}
            assert fast.not_checked
            few = run(tiny, max_findings=2)
            assert (len(few.findings), few.left_out) == (2, len(whole.findings) - 2)
            assert few.errors == whole.errors

    def test_the_order_does_not_depend_on_workers(self, tiny: Path) -> None:
        names = sorted(path.name for path in tiny.glob("*.tar"))
        data = [(tiny / name).read_bytes() for name in names]
        with content(tiny / names[0], data[0][:5000]), content(tiny / names[2], data[2][::-1]):
            assert run(tiny, num_workers=1).findings == run(tiny, num_workers=4).findings


@pytest.fixture(autouse=True)
def _nothing_is_left_changed(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "tiny" in request.fixturenames:
        leftovers = [path.name for path in request.getfixturevalue("tiny").iterdir()]
        assert len(leftovers) == 10, leftovers


def test_a_copy_is_as_sound(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "copy")
    assert run(tmp_path / "copy", "deep").valid
