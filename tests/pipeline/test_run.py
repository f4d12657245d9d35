"""Preprocess end to end: the real recording comes out right, and output bytes follow from inputs and settings alone."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import webdataset
from pipeline_helpers import COMMAND, changed_unseen, digests, omniges, report, run_preprocess
from scipy.spatial.transform import Rotation
from tokenizers import Tokenizer

from omniges.errors import EnvironmentFault, UsageFault
from omniges.features.gesture import LAYOUT
from omniges.formats.textgrid import decode_words
from omniges.pipeline.settings import Selection
from omniges.shards.dataset import combine, partial_of
from omniges.shards.manifest import manifest_hash
from omniges.shards.reader import ShardFolder
from omniges.storage.files import sha256_hex
from omniges.storage.librosa_import import load_librosa

STEM = "2_scott_0_1_1"


@pytest.fixture(scope="module")
def real(beat2_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the real sample, written by the command as a user types it."""
    out = tmp_path_factory.mktemp("real") / "shards"
    run = omniges("preprocess", "--root", beat2_sample, "--out", out)
    assert run.returncode == 1, run.stderr
    assert "exit code 1" in run.stdout.splitlines()[-1]
    return out


class TestRealRecording:
    @pytest.mark.slow
    def test_lengths_and_words(self, real: Path, beat2_sample: Path) -> None:
        source = ShardFolder(real)
        (row,) = source.rows
        assert (row.frames, row.mel_frames, row.ticks) == (1906, 6353, 635)
        assert (row.speaker_id, row.speaker, row.language) == (2, "scott", "english")
        assert (row.split, row.labels) == ("test", {"emotion": "neutral", "scenario": "speech"})
        tier = decode_words((beat2_sample / f"beat_english_v2.0.0/textgrid/{STEM}.TextGrid").read_bytes())
        words = source.sample(row).words
        assert [(w["word"], w["start"], w["end"]) for w in words] == [(w.word, w.start, w.end) for w in tier.words]
        assert len(words) == 196

    def test_gesture_equals_an_independent_float64_computation(self, real: Path, beat2_sample: Path) -> None:
        source = ShardFolder(real)
        gesture = source.array(source.rows[0], "gesture.npy")
        npz = np.load(beat2_sample / f"beat_english_v2.0.0/smplxflame_30/{STEM}.npz", allow_pickle=False)
        rows = Rotation.from_rotvec(npz["poses"].astype(np.float64).reshape(-1, 3)).as_matrix()[:, :2]
        six = rows.reshape(1906, 55, 6)
        steps = np.diff(npz["trans"], axis=0)
        root = np.concatenate([steps[:1], steps])
        root[:, 1] = npz["trans"][:, 1]
        expected = np.concatenate([*(six[:, j] for j in LAYOUT.joints), root, npz["expressions"]], axis=1)
        assert gesture.dtype == np.float32
        assert np.abs(gesture - expected).max() < 3e-7
        # The golden value of each block, as found by others.
        assert abs(gesture[0, 258] - 0.9956709252) < 3e-7

    @pytest.mark.slow
    def test_mel_equals_librosas(self, real: Path, beat2_sample: Path) -> None:
        source = ShardFolder(real)
        mel = source.array(source.rows[0], "mel.npy")
        samples = soundfile.read(beat2_sample / f"beat_english_v2.0.0/wave16k/{STEM}.wav", dtype="float64")[0]
        expected = load_librosa().feature.melspectrogram(
            y=samples, sr=16000, n_fft=1024, hop_length=160, pad_mode="reflect", power=1.0, n_mels=64, fmin=0, fmax=8000
        )
        assert np.abs(mel - np.log(np.maximum(expected, 1e-5)).T[:6353]).max() < 1e-3

    def test_provenance_is_true(self, real: Path, beat2_sample: Path) -> None:
        row = ShardFolder(real).rows[0]
        assert set(row.sources) == {"wav", "npz", "textgrid"}
        for path, digest in row.sources.values():
            assert sha256_hex((beat2_sample / path).read_bytes()) == digest

    def test_clips_without_motion_are_findings(self, real: Path) -> None:
        rejected = [row for row in report(real) if row["severity"] == "rejected"]
        assert {row["stem"]: row["code"] for row in rejected} == {
            f"2_scott_0_{k}_{k}": "missing-gesture" for k in (2, 3, 4, 5)
        }

    def test_shards_are_complete_and_the_same_when_rejections_are_allowed(
        self, real: Path, beat2_sample: Path, tmp_path: Path
    ) -> None:
        run = omniges("preprocess", "--root", beat2_sample, "--out", tmp_path / "o", "--max-rejected", 0.8)
        assert run.returncode == 0, run.stderr
        assert digests(tmp_path / "o") == digests(real)


class TestExport:
    def test_the_real_recording_comes_back(self, beat2_sample: Path, tmp_path: Path) -> None:
        run_preprocess(beat2_sample, tmp_path / "shards", keep_audio=True)
        run = omniges("export", "--shards", tmp_path / "shards", "-o", tmp_path / "back")
        assert run.returncode == 0, run.stderr
        part = beat2_sample / "beat_english_v2.0.0"
        before = np.load(part / f"smplxflame_30/{STEM}.npz", allow_pickle=False)
        after = np.load(tmp_path / f"back/smplxflame_30/{STEM}.npz", allow_pickle=False)
        assert sorted(after.files) == sorted(before.files)
        turned = Rotation.from_rotvec(after["poses"].astype(np.float64).reshape(-1, 3))
        meant = Rotation.from_rotvec(before["poses"].astype(np.float64).reshape(-1, 3))
        assert (turned * meant.inv()).magnitude().max() < 1e-5
        assert np.abs(after["trans"] - before["trans"]).max() < 1e-5
        assert np.abs(after["expressions"] - before["expressions"]).max() < 1e-6
        for name in ("betas", "gender", "model", "mocap_frame_rate"):
            assert np.array_equal(after[name], before[name]), name
            kept = np.float64 if name == "betas" else before[name].dtype  # shards hold betas as float64
            assert after[name].dtype == kept, name
        wav = f"wave16k/{STEM}.wav"
        assert (tmp_path / "back" / wav).read_bytes() == (part / wav).read_bytes()
        words = decode_words((tmp_path / f"back/textgrid/{STEM}.TextGrid").read_bytes()).words
        assert words == decode_words((part / f"textgrid/{STEM}.TextGrid").read_bytes()).words

    def test_exported_files_preprocess_to_the_same_samples(self, corpus: Path, shards: Path, tmp_path: Path) -> None:
        assert omniges("export", "--shards", shards, "-o", tmp_path / "back").returncode == 0
        run_preprocess(tmp_path / "back", tmp_path / "again", keep_audio=True)
        before, after = ShardFolder(shards), ShardFolder(tmp_path / "again")
        assert [row.key for row in before.rows] == [row.key for row in after.rows]
        for row in before.rows:
            one, other = before.sample(row), after.sample(after.row(row.key))
            assert np.abs(one.gesture.gesture - other.gesture.gesture).max() < 2e-6
            assert np.abs(one.mel[:-8] - other.mel[:-8]).max() < 1e-6
            assert one.words == other.words

    def test_pcm_audio_comes_back_bit_for_bit(self, corpus: Path, shards: Path, tmp_path: Path) -> None:
        stem = "1_synthetica_0_1_1"
        run = omniges("export", "--shards", shards, "-o", tmp_path, "--key", stem)
        assert run.returncode == 0, run.stderr
        (original,) = corpus.rglob(f"{stem}.wav")
        assert (tmp_path / f"wave16k/{stem}.wav").read_bytes() == original.read_bytes()

    def test_an_output_folder_with_files_is_refused(self, shards: Path, tmp_path: Path) -> None:
        (tmp_path / "mine").touch()
        run = omniges("export", "--shards", shards, "-o", tmp_path)
        assert run.returncode == 2
        assert "new or empty folder" in run.stderr


class TestContract:
    @pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files to the garbage collector
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_plain_webdataset_reads_the_shards_with_its_stock_decoders(self, shards: Path) -> None:
        source = ShardFolder(shards)
        urls = sorted(str(path) for path in shards.glob("*.tar"))
        read = {
            sample["__key__"]: sample
            for sample in webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode()
        }
        assert set(read) == {row.key for row in source.rows}
        for row in source.rows:
            ours, theirs = source.sample(row), read[row.key]
            assert np.array_equal(theirs["gesture.npy"], ours.gesture.gesture)
            assert np.array_equal(theirs["mel.npy"], ours.mel)
            assert json.loads(theirs["words.txt"]) == ours.words
            assert theirs["json"] == ours.metadata
        gc.collect()

    def test_arrays_start_where_a_view_needs_no_copy(self, shards: Path) -> None:
        source = ShardFolder(shards)
        for row in source.rows:
            data = np.memmap(source.folder / row.shard, mode="r")
            place = row.members["gesture.npy"]
            header = 10 + int.from_bytes(bytes(data[place.offset + 8 : place.offset + 10]), "little")
            view = np.frombuffer(data, np.float32, row.frames * 415, place.offset + header).reshape(-1, 415)
            assert view.ctypes.data % 64 == 0
            assert np.array_equal(view, source.array(row, "gesture.npy"))

    def test_dataset_json_describes_every_file(self, shards: Path) -> None:
        dataset = json.loads((shards / "dataset.json").read_text())
        listed = dataset["files"] | dataset["shards"]
        assert set(listed) | {"dataset.json"} == {path.name for path in shards.iterdir()}
        for name, facts in listed.items():
            data = (shards / name).read_bytes()
            assert (len(data), sha256_hex(data)) == (facts["bytes"], facts["sha256"])
        rows = ShardFolder(shards).rows
        assert dataset["manifest_hash"] == manifest_hash(rows)
        assert dataset["totals"]["samples"] == len(rows) == 6

    def test_statistics_are_those_of_the_train_split(self, shards: Path) -> None:
        source = ShardFolder(shards)
        stats = json.loads((shards / "stats.json").read_text())
        train = [source.sample(row) for row in source.rows if row.split == "train"]
        assert stats["samples"] == len(train) > 1
        for name, arrays in (("gesture", [s.gesture.gesture for s in train]), ("mel", [s.mel for s in train])):
            whole = np.concatenate(arrays).astype(np.float64)
            assert np.allclose(stats[name]["mean"], whole.mean(axis=0), atol=1e-12)
            assert np.allclose(stats[name]["std"], whole.std(axis=0), atol=1e-12)
            again = combine([partial_of(array) for array in reversed(arrays)])
            assert stats[name]["std"] == again["std"]

    def test_the_tokenizer_knows_the_words_of_the_train_split_whole(self, shards: Path) -> None:
        source = ShardFolder(shards)
        tokenizer = Tokenizer.from_file(str(shards / "tokenizer.json"))
        words = [w["word"] for row in source.rows if row.split == "train" for w in source.sample(row).words]
        repeated = {word for word in words if words.count(word) > 1}
        assert repeated
        assert all(len(tokenizer.encode(word).ids) == 1 for word in repeated)

    def test_without_train_samples_statistics_are_empty_and_a_note_says_so(self, corpus: Path, tmp_path: Path) -> None:
        summary = run_preprocess(corpus, tmp_path / "o", selection=Selection(splits=("val",)))
        assert summary.exit_code == 0
        assert json.loads((tmp_path / "o/stats.json").read_text()) == {"samples": 0}
        assert Tokenizer.from_file(str(tmp_path / "o/tokenizer.json")).get_vocab_size() == 256
        assert "no-train-samples" in {row["code"] for row in report(tmp_path / "o")}

    def test_shard_size_splits_the_work(self, corpus: Path, shards: Path, tmp_path: Path) -> None:
        run_preprocess(corpus, tmp_path / "o", keep_audio=True, shard_bytes=400_000)
        many, one = ShardFolder(tmp_path / "o"), ShardFolder(shards)
        assert len(many.dataset["shards"]) > len(one.dataset["shards"])
        assert many.dataset["manifest_hash"] == one.dataset["manifest_hash"]


VARIANTS = {
    "one worker": {"workers": 1},
    "three workers": {"workers": 3},
    "time zone, locale, hash seed": {
        "TZ": "Asia/Kolkata",
        "LANG": "tr_TR.UTF-8",
        "LC_ALL": "C",
        "PYTHONHASHSEED": "77",
    },
    "umask": {"umask": 0o077},
    "another BLAS kernel": {"OPENBLAS_CORETYPE": "Prescott"},
    "numpy without AVX2 and FMA": {"NPY_DISABLE_CPU_FEATURES": "X86_V3"},
    "C library without AVX2 and FMA": {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4,-AVX2_Usable,-FMA_Usable"},
    "seed layout of the threads": {"OMP_NUM_THREADS": "3", "RAYON_NUM_THREADS": "3"},
}


class TestDeterminism:
    @pytest.mark.slow
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_every_output_byte_is_the_same(self, corpus: Path, shards: Path, tmp_path: Path, variant: str) -> None:
        settings = {"workers": 2, "umask": 0o022} | VARIANTS[variant]
        variables = {name: value for name, value in settings.items() if isinstance(value, str)}
        out = tmp_path / "shards"
        words = ["preprocess", "--root", corpus, "--out", out, "--keep-audio", "--workers", settings["workers"]]
        run = subprocess.run(
            [*COMMAND, *map(str, words)], capture_output=True, text=True, env=os.environ | variables,
            umask=settings["umask"], timeout=100,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        assert digests(out) == digests(shards)

    @pytest.mark.slow
    def test_a_real_recording_gives_the_same_bytes_without_fused_multiply_add(
        self, real: Path, beat2_sample: Path, tmp_path: Path
    ) -> None:
        variables = VARIANTS["C library without AVX2 and FMA"] | VARIANTS["numpy without AVX2 and FMA"]
        omniges("preprocess", "--root", beat2_sample, "--out", tmp_path / "o", fresh=True, **variables)  # type: ignore[arg-type]
        assert digests(tmp_path / "o") == digests(real)

    def test_the_variants_do_differ_where_the_c_library_is_used_as_it_is(self) -> None:
        # The two CPU variants are worth something only while they change something.
        script = "import math, zlib; print(zlib.crc32(repr([math.sin(k * 1e-3) for k in range(100000)]).encode()))"
        variants: list[dict[str, str]] = [{}, VARIANTS["C library without AVX2 and FMA"]]  # type: ignore[list-item]
        outputs = {
            subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | v).stdout
            for v in variants
        }
        if len(outputs) == 1:
            pytest.skip("this machine's C library has one variant of sin")


class TestRunningAgain:
    def test_the_same_command_over_the_same_inputs_does_nothing_and_says_so(self, corpus: Path, tmp_path: Path) -> None:
        first = run_preprocess(corpus, tmp_path / "o")
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "o").iterdir()}
        again = run_preprocess(corpus, tmp_path / "o")
        assert again.unchanged
        assert not first.unchanged
        assert again.computed_s == 0
        same = {"unchanged": False, "elapsed_s": 0.0, "computed_s": 0.0}
        assert replace(again, **same) == replace(first, **same)
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "o").iterdir()} == before

    @pytest.mark.slow
    def test_an_input_of_other_content_but_the_same_size_and_date_is_noticed(
        self, corpus: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(corpus, tmp_path / "c")
        run_preprocess(tmp_path / "c", tmp_path / "o")
        (path,) = (tmp_path / "c").rglob("1_synthetica_0_1_1.wav")
        changed_unseen(path)
        assert not run_preprocess(tmp_path / "c", tmp_path / "o").unchanged
        run_preprocess(tmp_path / "c", tmp_path / "fresh")
        assert digests(tmp_path / "o") == digests(tmp_path / "fresh")

    def test_a_shard_that_lost_its_tail_is_made_again(self, corpus: Path, tmp_path: Path) -> None:
        run_preprocess(corpus, tmp_path / "o")
        before = digests(tmp_path / "o")
        os.truncate(tmp_path / "o/train-000000.tar", 1000)
        assert not run_preprocess(corpus, tmp_path / "o").unchanged
        assert digests(tmp_path / "o") == before

    def test_other_settings_are_refused_with_the_difference(self, corpus: Path, tmp_path: Path) -> None:
        run_preprocess(corpus, tmp_path / "o")
        before = digests(tmp_path / "o")
        with pytest.raises(UsageFault, match=r"convert\.keep_audio was false, is now true.*--force"):
            run_preprocess(corpus, tmp_path / "o", keep_audio=True)
        assert digests(tmp_path / "o") == before
        run_preprocess(corpus, tmp_path / "o", keep_audio=True, force=True)
        assert digests(tmp_path / "o") != before

    def test_leftovers_of_a_killed_run_go_and_foreign_files_stay(self, corpus: Path, tmp_path: Path) -> None:
        run_preprocess(corpus, tmp_path / "o")
        expected = digests(tmp_path / "o")
        (tmp_path / "o/dataset.json").unlink()
        (tmp_path / "o/.omniges-unfinished").mkdir()
        (tmp_path / "o/.omniges-unfinished/.staged-000000.tar.tmp-4711").write_bytes(b"half")
        (tmp_path / "o/.omniges-unfinished/staged-000001.tar").write_bytes(b"whole, but the journal lacks it")
        (tmp_path / "o/.omniges-unfinished/journal.jsonl").write_bytes(b"0123456789abcdef {")
        (tmp_path / "o/.train-000000.tar.tmp-4711").write_bytes(b"half")
        (tmp_path / "o/.thesis.tex.tmp-4711").write_bytes(b"another tool's")
        (tmp_path / "o/train-000099.tar").write_bytes(b"of another time")
        (tmp_path / "o/notes.txt").write_text("mine")
        (tmp_path / "o/train-1.tar").write_text("mine too")
        run_preprocess(corpus, tmp_path / "o")
        after = digests(tmp_path / "o")
        assert after.keys() - expected.keys() == {"notes.txt", "train-1.tar", ".thesis.tex.tmp-4711"}
        assert expected.items() <= after.items()

    @pytest.mark.parametrize("name", ["tokenizer.json", "train-000000.tar", "manifest.parquet"])
    @pytest.mark.parametrize("force", [False, True])
    def test_files_that_bear_our_names_but_are_not_ours_are_refused_and_stay(
        self, corpus: Path, tmp_path: Path, name: str, force: bool
    ) -> None:
        (tmp_path / name).write_text("precious")
        with pytest.raises(UsageFault, match="not from an omniges run"):
            run_preprocess(corpus, tmp_path, force=force)
        assert [path.name for path in tmp_path.iterdir()] == [name]
        assert (tmp_path / name).read_text() == "precious"

    def test_a_second_run_in_the_folder_is_refused(self, corpus: Path, tmp_path: Path) -> None:
        (tmp_path / "o").mkdir()
        descriptor = os.open(tmp_path / "o", os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            with pytest.raises(EnvironmentFault, match="another omniges run"):
                run_preprocess(corpus, tmp_path / "o")
        finally:
            os.close(descriptor)

    def test_a_disk_that_is_plainly_too_small_is_named_before_any_work(
        self, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1000))
        with pytest.raises(EnvironmentFault, match="GB of free space, found"):
            run_preprocess(corpus, tmp_path / "o")


class TestMemory:
    @pytest.mark.slow
    def test_an_eleven_minute_conversation_stays_within_300_mb(self, tmp_path: Path) -> None:
        assert (
            omniges(
                "sample-corpus", tmp_path / "c", "--clips", 1, "--seconds", 660, "--speakers", 1, "--audio", "float32"
            ).returncode
            == 0
        )
        script = (
            "import re, sys\nfrom pathlib import Path\n"
            "from omniges.pipeline.convert import convert\nfrom omniges.pipeline.settings import ConvertSettings\n"
            "from omniges.pipeline.corpora.beat2 import discover\nfrom omniges.pipeline.settings import Selection\n"
            "(recording,) = discover(Path(sys.argv[1]), Selection()).recordings\n"
            "sample = convert(recording, ConvertSettings(keep_audio=True))\n"
            # Not getrusage: its peak outlives exec and would be that of this test process.
            "peak_kib = re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]\n"
            "print(sample.row.seconds, int(peak_kib) / 1024)"
        )
        run = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "c")], capture_output=True, text=True, check=True
        )
        seconds, peak_mib = map(float, run.stdout.split())
        assert seconds > 650
        assert peak_mib < 300
