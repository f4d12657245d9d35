"""`encode`: complete shard folders with latents, the same from any start, and nothing lost on the way."""

from __future__ import annotations

import io
import json
import os
import shutil
import traceback
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import webdataset
from pipeline_helpers import digests, omniges, run_preprocess, scripted
from vae_builders import write_vae
from verify_builders import ShardSet, codes, edited_dataset, rebuilt, run

from omniges.codecs import encode as encode_module
from omniges.codecs.encode import EncodeSummary, encode
from omniges.codecs.registry import load_codec
from omniges.codecs.settings import EncodeSettings
from omniges.errors import DataError, EnvironmentFault, UsageFault
from omniges.shards.latents import FrameEntry
from omniges.shards.reader import ShardFolder
from omniges.shards.schema import DATASET_FILE, LATENTS_FILE, UNFINISHED_FILE
from omniges.shards.transaction import UnfinishedRun, Workspace
from omniges.storage import atomic
from omniges.storage.files import sha256_hex
from omniges.testing.settings import CorpusSettings
from omniges.testing.synthetic_corpus import write_sample_corpus

NAME = "audioldm2-vae"
F32 = npt.NDArray[np.float32]


class Halves:
    """A codec that needs no torch: pairs of gesture frames, their first numbers side by side."""

    def __init__(self, weight: float = 1.0, name: str = "test-halves") -> None:
        digit = f"{int(weight) % 16:x}"
        self.weight = np.float32(weight)
        self.calls = 0
        self.entry = FrameEntry(name=name, fingerprint=digit * 64, source="gesture.npy", frames_per_row=4, channels=6)

    def encode(self, array: F32) -> F32:
        self.calls += 1
        rows = len(array) // 4
        return np.ascontiguousarray(array[: 4 * rows].reshape(rows, 4, -1)[:, :2, :3].reshape(rows, 6) * self.weight)

    def decode(self, latents: F32) -> F32:
        raise NotImplementedError


@pytest.fixture
def halves(monkeypatch: pytest.MonkeyPatch) -> Callable[[Halves], None]:
    """Put a codec in the place of every other."""

    def use(codec: Halves) -> None:
        monkeypatch.setattr(encode_module, "load_codec", lambda *_, **__: codec)

    use(Halves())
    return use


def settings_of(shards: Path, out: Path | None = None, **changes: Any) -> EncodeSettings:
    return EncodeSettings(shards=shards, codecs=(("test-halves", Path()),), output_dir=out, **changes)


def copied(shards: Path, folder: Path) -> Path:
    return Path(shutil.copytree(shards, folder))


class TestOutput:
    def test_is_a_sound_folder_at_every_level(self, encoded: Path) -> None:
        for level in ("quick", "full", "deep"):
            assert run(encoded, level).findings == ()

    def test_latents_are_the_codecs_of_the_samples_own_mel(self, encoded: Path, vae: Path) -> None:
        codec = load_codec(NAME, vae, torch.device("cpu"))
        folder = ShardFolder(encoded)
        for row in folder.rows:
            sample = folder.sample(row)
            np.testing.assert_array_equal(sample.latents[NAME], codec.encode(sample.mel))
            assert sample.latents[NAME].shape == (row.mel_frames // 4, 128)

    def test_all_else_is_what_it_was(self, encoded: Path, shards: Path) -> None:
        before, after = ShardFolder(shards), ShardFolder(encoded)
        for old, new in zip(before.rows, after.rows, strict=True):
            assert replace(old, members={}) == replace(new, members={})
            assert new.members.keys() - old.members.keys() == {f"{NAME}.npy"}
            for member in old.members:
                assert before.member(old, member) == after.member(new, member)
        for name in ("stats.json", "tokenizer.json", "report.jsonl"):
            assert (shards / name).read_bytes() == (encoded / name).read_bytes()
        same = ("plan", "settings", "tool", "features", "totals", "splits")
        assert all(before.dataset[name] == after.dataset[name] for name in same)

    def test_dataset_json_names_the_codec_and_the_manifest_hash_covers_it(
        self, encoded: Path, shards: Path, vae: Path
    ) -> None:
        entry = ShardFolder(encoded).codecs[NAME]
        assert entry.fingerprint == load_codec(NAME, vae, torch.device("cpu")).entry.fingerprint
        assert entry.settings["loudness"] == "none"
        assert entry.settings["tool"]["torch"] == metadata.version("torch")
        hashes = {ShardFolder(folder).dataset["manifest_hash"] for folder in (encoded, shards)}
        assert len(hashes) == 2

    def test_statistics_are_those_of_the_train_samples(self, encoded: Path) -> None:
        folder = ShardFolder(encoded)
        train = [folder.sample(row).latents[NAME] for row in folder.rows if row.split == "train"]
        rows = np.concatenate(train).astype(np.float64)
        found = json.loads((encoded / LATENTS_FILE).read_bytes())[NAME]
        assert (found["samples"], found["rows"]) == (len(train), len(rows))
        np.testing.assert_allclose(found["mean"], rows.mean(0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found["std"], rows.std(0), rtol=1e-9)
        np.testing.assert_array_equal(found["max"], rows.max(0))

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves files open
    def test_plain_webdataset_reads_them(self, encoded: Path) -> None:
        folder = ShardFolder(encoded)
        urls = sorted(map(str, encoded.glob("*.tar")))
        found = {s["__key__"]: s for s in webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode()}
        assert found.keys() == {row.key for row in folder.rows}
        for row in folder.rows:
            np.testing.assert_array_equal(found[row.key][f"{NAME}.npy"], folder.array(row, f"{NAME}.npy"))

    @pytest.mark.slow
    def test_inspect_shows_them(self, encoded: Path) -> None:
        key = ShardFolder(encoded).rows[0].key
        shown = omniges("inspect", encoded).stdout
        assert NAME in shown
        assert ShardFolder(encoded).codecs[NAME].fingerprint[:16] in shown
        assert f"{NAME}.npy" in omniges("inspect", encoded, key).stdout
        facts = json.loads(omniges("inspect", encoded, key, "--json").stdout)
        assert facts["arrays"][f"{NAME}.npy"]["shape"][1] == 128

    @pytest.mark.slow
    def test_export_gives_the_same_recordings(self, encoded: Path, shards: Path, tmp_path: Path) -> None:
        for name, folder in (("a", encoded), ("b", shards)):
            assert omniges("export", "--shards", folder, "-o", tmp_path / name).returncode == 0
        files = [sorted(path.relative_to(tmp_path / n) for path in (tmp_path / n).rglob("*.*")) for n in "ab"]
        assert files[0] == files[1]


@pytest.mark.usefixtures("halves")
class TestStarts:
    def test_in_place_and_into_another_folder_give_the_same_bytes(self, shards: Path, tmp_path: Path) -> None:
        encode(settings_of(shards, tmp_path / "out"))
        encode(settings_of(copied(shards, tmp_path / "in")))
        assert digests(tmp_path / "out") == digests(tmp_path / "in")
        assert run(tmp_path / "in", "deep").findings == ()

    @pytest.mark.slow
    def test_one_codec_after_the_other_or_again(
        self, shards: Path, vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = {NAME: lambda: load_codec(NAME, vae, torch.device("cpu")), "test-halves": Halves}
        monkeypatch.setattr(encode_module, "load_codec", lambda name, *_, **__: real[name]())
        both = (("test-halves", vae), (NAME, vae))
        encode(EncodeSettings(shards=shards, codecs=both, output_dir=tmp_path / "both"))
        folder = copied(shards, tmp_path / "in")
        for codec in both:
            encode(EncodeSettings(shards=folder, codecs=(codec,)))
        assert digests(tmp_path / "both") == digests(tmp_path / "in")
        assert run(tmp_path / "in", "deep").findings == ()

    def test_what_is_there_is_left(self, shards: Path, tmp_path: Path, halves: Callable[[Halves], None]) -> None:
        folder = copied(shards, tmp_path / "s")
        encode(settings_of(folder))
        before = digests(folder)
        codec = Halves()
        halves(codec)
        summary = encode(settings_of(folder))
        assert (summary.there, summary.encoded, codec.calls) == (("test-halves",), (), 0)
        assert "already" in summary.lines[0]
        assert digests(folder) == before

    def test_what_another_command_has_begun_there_is_left_too(self, shards: Path, tmp_path: Path) -> None:
        folder = copied(shards, tmp_path / "s")
        encode(settings_of(folder))
        workspace = Workspace(folder)
        workspace.begin(UnfinishedRun({"convert": {}}, {}, anew=True))
        assert encode(settings_of(folder)).there == ("test-halves",)
        assert workspace.begun() is not None

    def test_a_finished_out_is_left_and_another_refused(self, shards: Path, tmp_path: Path, halves: Any) -> None:
        encode(settings_of(shards, tmp_path / "out"))
        assert encode(settings_of(shards, tmp_path / "out")).there == ("test-halves",)
        halves(Halves(2.0))
        with pytest.raises(UsageFault, match="found shards of other recordings or codecs"):
            encode(settings_of(shards, tmp_path / "out"))

    def test_latents_of_another_codec_are_not_replaced_unasked(
        self, shards: Path, tmp_path: Path, halves: Callable[[Halves], None]
    ) -> None:
        folder = copied(shards, tmp_path / "s")
        encode(settings_of(folder))
        before = digests(folder)
        halves(Halves(2.0))
        with pytest.raises(
            UsageFault, match=r"latents of test-halves with fingerprint .*found latents with 1111.* --overwrite"
        ):
            encode(settings_of(folder))
        assert digests(folder) == before
        encode(settings_of(folder, overwrite=True))
        encode(settings_of(shards, tmp_path / "fresh"))
        assert digests(folder) == digests(tmp_path / "fresh")

    def test_of_any_size_of_shards(self, tmp_path: Path) -> None:
        write_sample_corpus(tmp_path / "c", CorpusSettings(clips=5, seconds=2.0, words=2, speakers=1))
        run_preprocess(tmp_path / "c", tmp_path / "s", shard_bytes=1)
        encode(settings_of(tmp_path / "s"))
        assert len(list((tmp_path / "s").glob("*.tar"))) == 5
        assert run(tmp_path / "s", "deep").findings == ()

    def test_progress_is_reported_in_seconds(self, shards: Path, tmp_path: Path) -> None:
        calls: list[tuple[int, int]] = []
        encode(settings_of(shards, tmp_path / "out"), lambda done, total: calls.append((done, total)))
        assert calls == sorted(calls)
        assert calls[-1][0] == calls[-1][1] == int(ShardFolder(shards).dataset["totals"]["seconds"])


class Killed:
    """Ends this process without any clean-up before the n-th of some calls."""

    def __init__(self, left: int) -> None:
        self._left = left

    def before(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                os._exit(9)
            return inner(*given, **named)

        return call


def killed_run(settings: EncodeSettings, turn: int) -> int:
    """The exit code of a run in a process of its own that dies at its turn-th rename, removal or sync; 0 if none."""
    child = os.fork()
    if child == 0:
        try:
            killer = Killed(turn)
            for owner, name in ((Path, "rename"), (Path, "unlink"), (os, "fsync"), (atomic, "sync_folder")):
                setattr(owner, name, killer.before(getattr(owner, name)))
            encode(settings)
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def stopped_after_a_shard(shards: Path, out: Path, halves: Any) -> int:
    """Encode the first shard only; the number of its samples."""
    folder = ShardFolder(shards)
    first = next(iter(folder.dataset["shards"]))
    stop = sum(row.shard == first for row in folder.rows)

    class Stopping(Halves):
        def encode(self, array: F32) -> F32:
            if self.calls == stop:
                raise KeyboardInterrupt
            return super().encode(array)

    halves(Stopping())
    with pytest.raises(KeyboardInterrupt):
        encode(settings_of(shards, out))
    return stop


class TestKills:
    @pytest.mark.parametrize("in_place", [False, True])
    @pytest.mark.parametrize("stride", [13, pytest.param(1, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
    def test_the_same_command_finishes_what_a_kill_left_to_the_byte(
        self, shards: Path, tmp_path: Path, in_place: bool, stride: int, halves: Any
    ) -> None:
        encode(settings_of(shards, tmp_path / "whole"))
        wanted = digests(tmp_path / "whole")
        turn, code = 0, 9
        while code:
            turn += stride
            folder = tmp_path / f"s{turn}"
            source = copied(shards, folder) if in_place else shards
            settings = settings_of(source, None if in_place else folder)
            code = killed_run(settings, turn)
            assert code in {0, 9}
            if (folder / DATASET_FILE).exists():  # what a reader takes for whole is whole
                assert [f for f in run(folder, "full").findings if f.code != "unfinished-run"] == []
            halves(Halves())
            encode(settings)
            assert digests(folder) == wanted
            assert not (folder / UNFINISHED_FILE).exists()
            shutil.rmtree(folder)
        assert turn > 20

    def test_finished_shards_are_not_encoded_again(self, shards: Path, tmp_path: Path, halves: Any) -> None:
        first = stopped_after_a_shard(shards, tmp_path / "out", halves)
        assert not (tmp_path / "out" / DATASET_FILE).exists()
        codec = Halves()
        halves(codec)
        summary: EncodeSummary = encode(settings_of(shards, tmp_path / "out"))
        assert summary.resumed == 1
        assert codec.calls == len(ShardFolder(shards).rows) - first

    @pytest.mark.parametrize("kind", ["no latents", "another sample", "no rows"])
    def test_shards_of_a_journal_with_other_samples_are_encoded_again(
        self, shards: Path, tmp_path: Path, halves: Any, kind: str
    ) -> None:
        halves(Halves())
        encode(settings_of(shards, tmp_path / "whole"))
        stopped_after_a_shard(shards, tmp_path / "out", halves)
        halves(Halves())
        journal = Workspace(tmp_path / "out").journal
        lines = journal.load()
        assert lines
        for row in lines[0]["rows"]:
            if kind == "no latents":
                del row["members"]["test-halves.npy"]
            else:
                row["frames"] += 1
        lines[0]["rows"] = lines[0]["rows"] if kind != "no rows" else []
        (tmp_path / "out" / UNFINISHED_FILE / "journal.jsonl").write_bytes(b"")
        journal.open()
        journal.append(lines[0], durable=False)
        journal.close()
        assert encode(settings_of(shards, tmp_path / "out")).resumed == 0
        assert digests(tmp_path / "out") == digests(tmp_path / "whole")

    def test_an_unfinished_run_of_another_codec_is_not_mixed_in(
        self, shards: Path, tmp_path: Path, halves: Any
    ) -> None:
        assert killed_run(settings_of(shards, tmp_path / "out"), 8) == 9
        halves(Halves(2.0))
        with pytest.raises(
            UsageFault, match="an unfinished run of this command, found one of another command or codec"
        ):
            encode(settings_of(shards, tmp_path / "out"))


@pytest.mark.usefixtures("halves")
class TestRefusals:
    def test_a_damaged_member_ends_the_run_and_leaves_all_as_it_was(self, shards: Path, tmp_path: Path) -> None:
        folder = copied(shards, tmp_path / "s")
        row = ShardFolder(folder).rows[-1]
        data = bytearray((folder / row.shard).read_bytes())
        data[row.members["gesture.npy"].offset + 1000] ^= 1
        (folder / row.shard).write_bytes(data)
        before = {p.name: p.read_bytes() for p in folder.iterdir()}
        with pytest.raises(DataError, match=rf"{row.key}.gesture.npy at byte \d+: expected sha256 \w+, found \w+"):
            encode(settings_of(folder))
        assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before

    @pytest.mark.parametrize("content", [b"[]", b"3", b"{", b"[" * 10**5, b'{"a": NaN}'])
    def test_statistics_of_earlier_latents_that_are_no_object(
        self, shards: Path, tmp_path: Path, halves: Any, content: bytes
    ) -> None:
        folder = copied(shards, tmp_path / "s")
        encode(settings_of(folder))
        (folder / LATENTS_FILE).write_bytes(content)
        listed = {"bytes": len(content), "sha256": sha256_hex(content)}
        edited = edited_dataset(folder, lambda document: document["files"].update({LATENTS_FILE: listed}))
        (folder / DATASET_FILE).write_bytes(edited)
        halves(Halves(name="test-others"))
        with pytest.raises(DataError, match=r"latents\.json: expected a JSON object"):
            encode(EncodeSettings(shards=folder, codecs=(("test-others", Path()),)))

    def test_latents_that_are_no_numbers(self, shards: Path, tmp_path: Path, halves: Any) -> None:
        halves(NotNumbers())
        with pytest.raises(DataError, match="NaN or infinite"):
            encode(settings_of(shards, tmp_path / "out"))
        assert not (tmp_path / "out" / DATASET_FILE).exists()

    def test_a_full_disk_is_reported_before_the_work(
        self, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
        with pytest.raises(EnvironmentFault, match="GB of free space, found"):
            encode(settings_of(shards, tmp_path / "out"))

    def test_a_refused_codec_or_nothing_to_do_leaves_no_new_folder(
        self, shards: Path, vae: Path, encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(encode_module, "load_codec", load_codec)
        out = tmp_path / "new" / "out"
        (tmp_path / "empty").mkdir()
        write_vae(tmp_path / "other", seed=1)
        for source, codec, words in (
            (shards, tmp_path / "none", "expected a folder with the codec's files"),
            (shards, tmp_path / "empty", "config.json"),
            (tmp_path / "none", vae, "no"),
            (
                encoded,
                vae,
                "expected shards without latents of audioldm2-vae, found these latents already; a copy would add",
            ),
            (encoded, tmp_path / "other", "expected latents of audioldm2-vae with fingerprint"),
        ):
            with pytest.raises((UsageFault, DataError), match=words):
                encode(EncodeSettings(shards=source, codecs=((NAME, codec),), output_dir=out))
            assert not out.parent.exists()

    def test_names_that_no_tar_header_holds(self, shards: Path, tmp_path: Path, halves: Any) -> None:
        halves(Halves(name="test-" + "b" * 80))
        with pytest.raises(DataError, match=r"expected a name of at most 100 bytes \(as in a tar header\)"):
            encode(EncodeSettings(shards=shards, codecs=(("test-" + "b" * 80, Path()),), output_dir=tmp_path / "out"))

    def test_folders_that_are_not_ours(self, shards: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageFault, match="found none"):
            encode(settings_of(tmp_path / "absent"))
        assert not (tmp_path / "absent").exists()
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "stats.json").write_text("mine")
        with pytest.raises(UsageFault, match=r"called stats.json, found a file that is not from an omniges run"):
            encode(settings_of(shards, tmp_path / "out"))
        with pytest.raises(UsageFault, match="each codec once"):
            EncodeSettings(shards=shards, codecs=())

    def test_a_folder_inside_the_shards_is_refused_before_the_work(
        self, shards: Path, tmp_path: Path, halves: Callable[[Halves], None]
    ) -> None:
        codec = Halves()
        halves(codec)
        (tmp_path / "link").symlink_to(shards)
        for out in (shards / "sub", shards / "a" / "b", tmp_path / "link" / "sub", shards / ".." / shards.name / "x"):
            with pytest.raises(UsageFault, match=r"--output-dir .*: expected a folder outside of the shards"):
                encode(settings_of(shards, out))
        assert codec.calls == 0
        assert list(run(shards).findings) == []


class NotNumbers(Halves):
    """A codec that fails on what it is given."""

    def encode(self, array: F32) -> F32:
        return np.full_like(super().encode(array), np.nan)


class TestPreprocess:
    """A later `preprocess` never drops latents in silence."""

    @pytest.fixture
    def folder(self, tmp_path: Path, halves: Any) -> Path:
        del halves
        write_sample_corpus(tmp_path / "c", CorpusSettings(clips=5, seconds=2.0, words=3, speakers=2))
        run_preprocess(tmp_path / "c", tmp_path / "s")
        encode(settings_of(tmp_path / "s"))
        return tmp_path

    def test_unchanged_inputs_leave_them(self, folder: Path) -> None:
        before = digests(folder / "s")
        run_preprocess(folder / "c", folder / "s")
        assert digests(folder / "s") == before

    @pytest.mark.slow
    def test_an_update_is_refused_and_force_starts_over(self, folder: Path) -> None:
        before = digests(folder / "s")
        grid = next((folder / "c").rglob("*.TextGrid"))
        grid.write_text(grid.read_text() + "\n")
        with pytest.raises(UsageFault, match=r"because an update drops them, found latents of test-halves; .* --force"):
            run_preprocess(folder / "c", folder / "s")
        assert digests(folder / "s") == before
        run_preprocess(folder / "c", folder / "s", force=True)
        assert not (folder / "s" / LATENTS_FILE).exists()
        assert run(folder / "s", "deep").findings == ()


def latents_fault(change: Callable[[F32], npt.NDArray[Any]]) -> Callable[[ShardSet], None]:
    def fault(shards: ShardSet) -> None:
        sample = next(s for s in shards.samples if s.row.split == "train")
        data = sample.others[f"{NAME}.npy"]
        stream = io.BytesIO()
        np.lib.format.write_array(
            stream, change(np.load(io.BytesIO(data), allow_pickle=False)), (1, 0), allow_pickle=False
        )
        sample.raw[f"{NAME}.npy"] = stream.getvalue()

    return fault


class TestVerify:
    @pytest.mark.parametrize(
        ("change", "code"),
        [
            (lambda x: x[:-1], "array-shape"),
            (lambda x: x[:, :-1], "array-shape"),
            (lambda x: x.astype(np.float64), "array-dtype"),
            (lambda x: np.where(np.arange(128) == 5, np.nan, x).astype(np.float32), "array-not-finite"),
            (np.asfortranarray, "array-invalid"),
            (lambda x: x + np.float32(1), "latents-differ"),
        ],
    )
    def test_deep_finds_what_latents_cannot_be(
        self, encoded: Path, tmp_path: Path, change: Callable[[F32], npt.NDArray[Any]], code: str
    ) -> None:
        assert codes(run(rebuilt(encoded, tmp_path / "s", latents_fault(change)), "deep")) == {code}

    def test_the_builder_builds_sound_shards_with_latents(self, encoded: Path, tmp_path: Path) -> None:
        assert run(rebuilt(encoded, tmp_path / "s", lambda _: None), "deep").findings == ()

    def test_every_flipped_bit_of_latents_is_found_at_its_member(self, encoded: Path, tmp_path: Path) -> None:
        folder = copied(encoded, tmp_path / "s")
        row = ShardFolder(folder).rows[2]
        place = row.members[f"{NAME}.npy"]
        path = folder / row.shard
        whole = path.read_bytes()
        for offset in (0, 127, 128, place.size // 2, place.size - 1):
            data = bytearray(whole)
            data[place.offset + offset] ^= 4
            path.write_bytes(data)
            found = [f for f in run(folder, "full").findings if f.code == "member-digest"]
            assert [(f.key, f.member) for f in found] == [(row.key, f"{NAME}.npy")]

    def test_a_sample_without_latents_is_found(self, encoded: Path, tmp_path: Path) -> None:
        def fault(shards: ShardSet) -> None:
            del shards.samples[0].others[f"{NAME}.npy"]
            shards.samples[0].row = replace(
                shards.samples[0].row,
                members={k: v for k, v in shards.samples[0].row.members.items() if k != f"{NAME}.npy"},
            )

        assert "manifest-latents" in codes(run(rebuilt(encoded, tmp_path / "s", fault)))

    @pytest.mark.parametrize(
        "edit",
        [
            lambda d: d.pop("codecs"),
            lambda d: d["codecs"][NAME].update(frames_per_row=0),
            lambda d: d["codecs"][NAME].update(channels=True),
            lambda d: d["codecs"][NAME].update(fingerprint="x"),
            lambda d: d["codecs"][NAME].update(source="betas.npy"),
            lambda d: d["codecs"][NAME].update(extra=1),
            lambda d: d["codecs"].update(mel={}),
            lambda d: d.update(codecs=[]),
            lambda d: d.update(codecs={}),
            lambda d: d["files"].pop(LATENTS_FILE),
        ],
    )
    def test_codecs_in_another_form_are_found(
        self, encoded: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], Any]
    ) -> None:
        folder = copied(encoded, tmp_path / "s")
        (folder / DATASET_FILE).write_bytes(edited_dataset(folder, edit))
        assert "dataset-malformed" in codes(run(folder))


class TestCommand:
    def test_exit_codes_and_words(self, shards: Path, vae: Path, tmp_path: Path) -> None:
        done = omniges("encode", "--shards", shards, "--with", f"{NAME}={vae}", "--out", tmp_path / "out")
        assert done.returncode == 0, done.stderr
        assert f"{NAME}: latents of 6 samples (24 s) in {tmp_path / 'out'}" in done.stdout
        assert "--loudness peak" in done.stdout
        assert run(tmp_path / "out", "deep").findings == ()
        wrong = omniges("encode", "--shards", shards, "--with", f"encodec={vae}")
        assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)

    def test_a_signal_ends_it_with_75_and_the_same_command_goes_on(self, shards: Path, tmp_path: Path) -> None:
        words = [Path(__file__).parent, "encode", "--shards", shards]
        words += ["--with", f"{NAME}={tmp_path}", "--out", tmp_path / "out"]
        first = scripted(STOPPED, *words)
        assert first.returncode == 75, first.stderr
        assert not (tmp_path / "out" / DATASET_FILE).exists()
        assert list((tmp_path / "out" / UNFINISHED_FILE).glob("staged-*.tar"))
        again = scripted(STOPPED, *words)
        assert again.returncode == 0, again.stderr
        assert "were kept from a stopped run" in again.stdout
        assert run(tmp_path / "out", "deep").findings == ()


STOPPED = """
import os, signal, sys
sys.path.insert(0, sys.argv.pop(1))
sys.path.insert(0, os.path.dirname(sys.path[0]))
sys.path.insert(0, os.path.join(sys.path[0], "robustness"))
from test_encode import NAME, Halves
from omniges import cli
from omniges.codecs import encode as module

class Stops(Halves):
    def encode(self, array):
        if self.calls == 3 and not os.path.exists(sys.argv[-1] + ".stopped"):
            open(sys.argv[-1] + ".stopped", "w").close()
            os.kill(os.getpid(), signal.SIGTERM)
        return super().encode(array)

module.load_codec = lambda *_, **__: Stops(name=NAME)
cli.main()
"""


class TestForeignPlaces:
    """What a codec's folder has in place of a file is named: a pipe or a link to nothing is not said to be absent."""

    @pytest.mark.parametrize("kind", ["a pipe", "a folder", "a link to nothing"])
    @pytest.mark.parametrize("name", ["config.json", "diffusion_pytorch_model.safetensors"])
    def test_in_place_of_a_file(self, name: str, kind: str, vae: Path, shards: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(vae, tmp_path / "vae"))
        (folder / name).unlink()
        if kind == "a pipe":
            os.mkfifo(folder / name)
        elif kind == "a folder":
            (folder / name).mkdir()
        else:
            (folder / name).symlink_to(folder / "nowhere")
        with pytest.raises(DataError, match=rf"{name}: expected .*found {kind}; put the file itself"):
            encode(EncodeSettings(shards=shards, codecs=((NAME, folder),), output_dir=tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    def test_a_url_is_no_folder(self) -> None:
        with pytest.raises(UsageFault, match="expected a local path, found a URL of https://; copy"):
            EncodeSettings(shards=Path("s"), codecs=f"{NAME}=https://host/vae")  # type: ignore[arg-type]
