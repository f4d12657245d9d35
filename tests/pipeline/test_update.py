"""Stopped runs go on, changed inputs are an update, and in the end the bytes are those of a fresh run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline_helpers import changed_unseen, digests, omniges, run_preprocess
from shard_sets import ShardSet
from verify_builders import rebuilt

from omniges.errors import UsageFault
from omniges.pipeline.worker import ConvertPool
from omniges.shards.dataset import seal
from omniges.shards.reader import ShardFolder
from omniges.shards.schema import DATASET_FILE, REPORT_FILE
from omniges.shards.tar import npy_parts
from omniges.shards.transaction import Journal
from omniges.storage.files import sha256_hex
from omniges.testing.settings import CorpusSettings
from omniges.testing.synthetic_corpus import write_sample_corpus

SHARD_BYTES = 1 << 20  # a 4 s clip takes 0.3 MB: shards of two to four


class Stop(Exception):
    """Ends a run in the middle."""


@pytest.fixture(scope="module")
def long_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen short clips."""
    folder = tmp_path_factory.mktemp("resume") / "synthetic"
    write_sample_corpus(folder, CorpusSettings(clips=16, seconds=3.0, words=6, speakers=2, seed=5))
    return folder


@pytest.fixture
def root(long_corpus: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(long_corpus, tmp_path / "root"))


def convert(root: Path, out: Path, **settings: object) -> dict[str, object]:
    """Preprocess with small shards; the last line of the run log."""
    run_preprocess(root, out, shard_bytes=SHARD_BYTES, **settings)
    return json.loads(out.with_name(out.name + ".run.jsonl").read_text().splitlines()[-1])


def resealed(out: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Edit a set's dataset.json and make its checksum fit."""
    document = json.loads((out / DATASET_FILE).read_bytes())
    change(document)
    del document["checksum"]
    (out / DATASET_FILE).write_bytes(seal(document))


def fresh(root: Path, tmp_path: Path) -> dict[str, str]:
    """Digests of a run into a new folder."""
    out = tmp_path / f"fresh-{len(os.listdir(tmp_path))}"
    convert(root, out)
    return digests(out)


def files(root: Path, stem: str) -> list[Path]:
    return sorted(path for path in root.rglob(f"{stem}.*"))


def remove(root: Path, stem: str) -> None:
    for path in files(root, stem):
        path.unlink()


def change_audio(root: Path, stem: str) -> None:
    """Another sample value: same size, same date."""
    (path,) = root.rglob(f"{stem}.wav")
    changed_unseen(path)


def stems(root: Path) -> list[str]:
    return sorted(path.stem for path in root.rglob("*.TextGrid"))


def stop_after(monkeypatch: pytest.MonkeyPatch, outcomes: int) -> None:
    """Make the next run end with an exception after so many outcomes."""
    inner = ConvertPool.run

    def run(self: ConvertPool, recordings: list[object]) -> object:
        for number, pair in enumerate(inner(self, recordings)):  # type: ignore[arg-type]
            if number == outcomes:
                raise Stop
            yield pair

    monkeypatch.setattr(ConvertPool, "run", run)


class TestUpdate:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("change", "computed"),
        [
            pytest.param(lambda root: change_audio(root, stems(root)[3]), 1, id="changed"),
            pytest.param(lambda root: remove(root, stems(root)[5]), 0, id="removed"),
            pytest.param(lambda root: files(root, stems(root)[2])[0].write_bytes(b"junk"), 1, id="damaged"),
            pytest.param(
                lambda root: [change_audio(root, stems(root)[0]), remove(root, stems(root)[-1])], 1, id="both"
            ),
        ],
    )
    def test_equals_a_fresh_run_and_computes_only_what_changed(
        self, root: Path, tmp_path: Path, change: Callable[[Path], object], computed: int
    ) -> None:
        out = tmp_path / "o"
        assert convert(root, out)["computed"] == 16
        change(root)
        log = convert(root, out)
        assert log["computed"] == computed
        assert digests(out) == fresh(root, tmp_path)

    def test_added_recordings_shift_others_between_shards_without_computing_them(
        self, root: Path, tmp_path: Path
    ) -> None:
        aside = {path: path.read_bytes() for stem in stems(root)[1:3] for path in files(root, stem)}
        for path in aside:
            path.unlink()
        out = tmp_path / "o"
        convert(root, out)
        for path, data in aside.items():
            path.write_bytes(data)
        log = convert(root, out)
        assert (log["computed"], log["reused"]) == (2, 14)
        assert digests(out) == fresh(root, tmp_path)

    def test_another_split_is_another_sample(self, root: Path, tmp_path: Path) -> None:
        out = tmp_path / "o"
        convert(root, out)
        (table,) = root.rglob("train_test_split.csv")
        before = table.read_text()
        table.write_text(before.replace(",val", ",train", 1))
        assert table.read_text() != before
        assert convert(root, out)["computed"] == 1
        assert digests(out) == fresh(root, tmp_path)

    def test_rejected_recordings_are_remembered_too(self, root: Path, tmp_path: Path) -> None:
        next(root.rglob(f"{stems(root)[0]}.npz")).write_bytes(b"junk")
        out = tmp_path / "o"
        convert(root, out)
        change_audio(root, stems(root)[3])
        assert convert(root, out)["computed"] == 1
        assert digests(out) == fresh(root, tmp_path)

    @pytest.mark.slow
    def test_a_damaged_shard_is_computed_again_and_the_others_are_not(self, root: Path, tmp_path: Path) -> None:
        out = tmp_path / "o"
        convert(root, out)
        lost = json.loads((out / "dataset.json").read_bytes())["shards"]["train-000001.tar"]["samples"]
        before = digests(out)
        (out / "train-000001.tar").unlink()
        log = convert(root, out)
        assert log["computed"] == lost
        assert digests(out) == before
        data = bytearray((out / "train-000000.tar").read_bytes())
        data[70000] ^= 1
        (out / "train-000000.tar").write_bytes(data)
        change_audio(root, stems(root)[-1])  # an update looks at every byte that it takes over
        convert(root, out)
        assert digests(out) == fresh(root, tmp_path)

    @pytest.mark.parametrize("name", ["manifest.parquet", "report.jsonl"])
    def test_a_set_whose_lists_are_damaged_is_made_again(self, root: Path, tmp_path: Path, name: str) -> None:
        out = tmp_path / "o"
        convert(root, out)
        before = digests(out)
        os.truncate(out / name, 10) if name != "report.jsonl" else (out / name).write_bytes(b"{}\n")
        assert convert(root, out)["computed"] == 16
        assert digests(out) == before

    @pytest.mark.parametrize("line", [b"{", b"3", b"{}", b"[" * 100_000])
    def test_so_is_one_whose_report_has_the_right_digest_and_another_form(
        self, root: Path, tmp_path: Path, line: bytes
    ) -> None:
        out = tmp_path / "o"
        convert(root, out)
        before = digests(out)
        (out / REPORT_FILE).write_bytes(line)
        entry = {"bytes": len(line), "sha256": sha256_hex(line)}
        resealed(out, lambda document: document["files"].update({REPORT_FILE: entry}))
        assert convert(root, out)["computed"] == 16
        assert digests(out) == before

    @pytest.mark.parametrize(
        ("member", "data"),
        [
            ("words.txt", b'[{"word": 5, "start": 0, "end": 1}]'),
            ("words.txt", b"5"),
            ("json", b'{"cut": {}}'),
            ("mel.npy", b"".join(npy_parts(np.zeros((3, 64), np.float32)))),
        ],
    )
    def test_a_sample_of_another_form_with_the_right_digest_is_computed_again(
        self, root: Path, tmp_path: Path, member: str, data: bytes
    ) -> None:
        out = tmp_path / "o"
        convert(root, out)

        def fault(found: ShardSet) -> None:
            train = next(sample for sample in found.samples if sample.row.split == "train")
            train.raw[member] = data

        rebuilt(out, tmp_path / "edited", fault)
        change_audio(root, stems(root)[-1])
        assert convert(root, tmp_path / "edited")["computed"] > 1
        assert digests(tmp_path / "edited") == fresh(root, tmp_path)

    def test_the_old_set_stays_readable_until_the_new_one_is_complete(
        self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "o"
        convert(root, out)
        before = digests(out)
        for stem in stems(root)[:8]:
            change_audio(root, stem)
        with monkeypatch.context() as patch, pytest.raises(Stop):
            stop_after(patch, 5)
            convert(root, out)
        assert digests_of_files(out) == before
        convert(root, out)
        assert digests(out) == fresh(root, tmp_path)

    def test_other_package_versions_are_refused_for_an_update(
        self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "o"
        convert(root, out)
        from omniges.shards import transaction

        real = transaction.tool_versions()
        monkeypatch.setattr(transaction, "tool_versions", lambda: real | {"numpy": "9.9"})
        assert run_preprocess(root, out, shard_bytes=SHARD_BYTES).unchanged  # nothing to mix
        change_audio(root, stems(root)[0])
        with pytest.raises(UsageFault, match=r"package versions of this run.*numpy was .* is now \"9\.9\".*--force"):
            convert(root, out)


def digests_of_files(folder: Path) -> dict[str, str]:
    """Return the same as `digests`, without folders."""
    import hashlib

    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()}


class TestRemoval:
    @pytest.mark.parametrize("recorded", [5.0, 1.0])
    def test_a_set_of_an_earlier_default_goes_on_with_the_flag_that_the_error_names(
        self, root: Path, tmp_path: Path, recorded: float
    ) -> None:
        """Older versions recorded --max-length-mismatch 5 and had no --motion-rate."""
        out = tmp_path / "out"
        words = ("preprocess", "--root", root, "--output-dir", out, "--shard-size", SHARD_BYTES, "--workers", 1)
        as_made = ("--max-length-mismatch", f"{recorded:g}")
        assert omniges(*words, *as_made).returncode == 0
        resealed(out, lambda document: document["settings"]["convert"].pop("motion_rate_hz"))
        before = digests(out)
        refused = omniges(*words)
        assert refused.returncode == 2
        assert (
            f"max_length_mismatch_s was {recorded}, is now null); run again with the earlier settings ("
            in refused.stderr
        )
        assert f"settings ({' '.join(as_made)}), choose" in refused.stderr
        done = omniges(*words, *as_made)
        assert done.returncode == 0, done.stderr
        assert digests(out) == before

    @pytest.mark.parametrize(
        "change",
        [
            lambda document: document["plan"].update(rejected="1"),
            lambda document: document["plan"].pop("inputs_sha256"),
            lambda document: document["plan"].update(rejected_inputs={"a": []}),
            lambda document: document["totals"].pop("cut"),
            lambda document: document["totals"]["cut"].update(words_dropped=[]),
        ],
    )
    def test_an_edited_plan_is_refused_in_one_line(self, root: Path, tmp_path: Path, change: Any) -> None:
        out = tmp_path / "out"
        convert(root, out)
        resealed(out, change)
        with pytest.raises(UsageFault, match=r"dataset\.json: .*(plan|totals)\S* .*--force"):
            convert(root, out)

    def test_so_is_a_set_without_settings_and_manifest(self, root: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        convert(root, out)
        resealed(out, lambda document: (document.pop("settings"), document["files"].pop("manifest.parquet")))
        with pytest.raises(UsageFault, match=r"dataset\.json: settings: expected an object.*--force"):
            convert(root, out)

    def test_so_are_edited_codecs_before_an_update(self, root: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        convert(root, out)
        resealed(out, lambda document: document.update(codecs=5))
        change_audio(root, stems(root)[-1])
        with pytest.raises(UsageFault, match=r"dataset\.json: codecs: expected .*--force"):
            convert(root, out)

    def test_dropping_many_recordings_is_refused_before_any_work(self, root: Path, tmp_path: Path) -> None:
        out = tmp_path / "o"
        convert(root, out)
        before = digests(out)
        for stem in stems(root)[:2]:
            remove(root, stem)
        with pytest.raises(UsageFault, match=r"samples to be removed, found 2 of 16 .*--allow-removal"):
            convert(root, out)
        assert digests(out) == before
        convert(root, out, allow_removal=True)
        assert digests(out) == fresh(root, tmp_path)

    def test_so_is_rejecting_many_that_were_fine_and_the_work_is_kept(self, root: Path, tmp_path: Path) -> None:
        out = tmp_path / "o"
        convert(root, out)
        before = digests(out)
        for stem in stems(root)[:2]:
            next(root.rglob(f"{stem}.npz")).write_bytes(b"junk")
        with pytest.raises(UsageFault, match="samples to be removed, found 2 of 16"):
            convert(root, out)
        assert digests_of_files(out) == before
        assert convert(root, out, allow_removal=True)["computed"] == 0
        assert digests(out) == fresh(root, tmp_path)


class TestUnfinished:
    def test_a_stopped_run_goes_on_with_the_shards_it_had(
        self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "o"
        with monkeypatch.context() as patch, pytest.raises(Stop):
            stop_after(patch, 11)
            convert(root, out)
        assert not (out / "dataset.json").exists()
        assert not list(out.glob("*.tar"))  # nothing under a final name
        log = convert(root, out)
        assert 5 <= int(str(log["computed"])) < 11
        assert int(str(log["computed"])) + int(str(log["reused"])) == 16
        assert digests(out) == fresh(root, tmp_path)

    @pytest.mark.slow
    def test_inputs_may_change_between_the_stop_and_the_next_run(
        self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "o"
        with monkeypatch.context() as patch, pytest.raises(Stop):
            stop_after(patch, 11)
            convert(root, out)
        change_audio(root, stems(root)[1])
        remove(root, stems(root)[4])
        assert int(str(convert(root, out)["reused"])) >= 4
        assert digests(out) == fresh(root, tmp_path)

    @pytest.mark.slow
    def test_other_settings_are_refused_and_force_starts_over(
        self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "o"
        with monkeypatch.context() as patch, pytest.raises(Stop):
            stop_after(patch, 11)
            convert(root, out)
        with pytest.raises(UsageFault, match=r"omniges-unfinished.*convert\.keep_audio was false, is now true"):
            convert(root, out, keep_audio=True)
        assert convert(root, out, keep_audio=True, force=True)["computed"] == 16

    @pytest.mark.slow
    def test_a_forced_run_keeps_the_old_set_till_its_end_and_goes_on_where_it_stopped(
        self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "o"
        convert(root, out)
        before = digests(out)
        with monkeypatch.context() as patch, pytest.raises(Stop):
            stop_after(patch, 11)
            convert(root, out, keep_audio=True, force=True)
        assert digests_of_files(out) == before
        assert int(str(convert(root, out, keep_audio=True, force=True)["computed"])) < 11
        assert convert(root, out, keep_audio=True)["event"] == "unchanged"

    @pytest.mark.slow
    def test_a_lost_recording_is_tried_again_and_the_others_are_kept(
        self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from omniges.workers import Lost

        out = tmp_path / "o"
        inner = ConvertPool.run

        def losing(self: ConvertPool, recordings: list[object]) -> object:
            for number, (recording, outcome) in enumerate(inner(self, recordings)):  # type: ignore[arg-type]
                yield recording, Lost("of no fault of its own") if number == 3 else outcome

        with monkeypatch.context() as patch:
            patch.setattr(ConvertPool, "run", losing)
            assert run_preprocess(root, out, shard_bytes=SHARD_BYTES).exit_code == 1
        assert not (out / "dataset.json").exists()
        assert convert(root, out)["computed"] == 1
        assert digests(out) == fresh(root, tmp_path)

    def test_a_foreign_file_in_the_workspace_is_refused_and_stays(self, root: Path, tmp_path: Path) -> None:
        out = tmp_path / "o"
        (out / ".omniges-unfinished").mkdir(parents=True)
        (out / ".omniges-unfinished/thesis.tex").write_text("precious")
        for force in (False, True):
            with pytest.raises(UsageFault, match=r"thesis\.tex: expected a file of an omniges run"):
                convert(root, out, force=force)
        assert (out / ".omniges-unfinished/thesis.tex").read_text() == "precious"


class TestJournal:
    @staticmethod
    def rejection(stem: str) -> dict[str, Any]:
        return {"rejected": stem, "findings": [], "inputs": {}}

    def test_a_torn_line_is_cut_off_and_the_lines_before_it_hold(self, tmp_path: Path) -> None:
        whole = [self.rejection("ü" * n) for n in range(5)]
        journal = Journal(tmp_path / "j")
        journal.open()
        for row in whole:
            journal.append(row, durable=False)
        journal.close()
        data = (tmp_path / "j").read_bytes()
        ends = [n + 1 for n, byte in enumerate(data) if byte == ord("\n")]
        for cut in range(len(data) + 1):
            (tmp_path / "j").write_bytes(data[:cut])
            kept = sum(end <= cut for end in ends)
            again = Journal(tmp_path / "j")
            assert again.load() == whole[:kept]
            again.open()
            again.append(self.rejection("new"), durable=True)
            again.close()
            assert Journal(tmp_path / "j").load() == [*whole[:kept], self.rejection("new")]

    @pytest.mark.parametrize(
        "change",
        [
            {"labels": 5},
            {"labels": {"emotion": 5}},
            {"speaker": []},
            {"language": 5},
            {"speaker_id": "1"},
            {"present": [[]]},
            {"present": ["text", "tail"]},
        ],
    )
    def test_a_row_of_other_types_is_not_from_omniges(self, shards: Path, tmp_path: Path, change: Any) -> None:
        row = asdict(ShardFolder(shards).rows[0])
        line = {"staged": "staged-000000.tar", "bytes": 1, "sha256": "0" * 64, "rows": [row]}
        for number, fields in enumerate((row, row | change)):
            journal = Journal(tmp_path / str(number))
            journal.open()
            journal.append(line | {"rows": [fields]}, durable=False)
            journal.close()
        assert len(Journal(tmp_path / "0").load()) == 1
        with pytest.raises(UsageFault, match=r"expected a file of an omniges run.*\(line 1: "):
            Journal(tmp_path / "1").load()

    def test_a_line_with_a_flipped_bit_ends_what_is_believed(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path / "j")
        journal.open()
        for n in range(3):
            journal.append(self.rejection(f"n{n}"), durable=False)
        journal.close()
        data = bytearray((tmp_path / "j").read_bytes())
        place = data.index(b"n1") + 1
        data[place] ^= 1
        (tmp_path / "j").write_bytes(data)
        assert Journal(tmp_path / "j").load() == [self.rejection("n0")]


class TestCommand:
    @pytest.mark.slow
    def test_says_what_was_taken_over_and_how_to_allow_a_removal(self, root: Path, tmp_path: Path) -> None:
        words = ("preprocess", "--root", root, "--out", tmp_path / "o", "--shard-size", "1MiB")
        assert omniges(*words).returncode == 0
        change_audio(root, stems(root)[0])
        done = omniges(*words)
        assert done.returncode == 0
        assert "(15 reused unchanged)" in done.stdout
        for stem in stems(root)[:4]:
            remove(root, stem)
        refused = omniges(*words)
        assert refused.returncode == 2
        assert "samples to be removed, found 4 of 16" in refused.stderr
        assert omniges(*words, "--allow-removal").returncode == 0
