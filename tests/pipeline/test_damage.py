"""Damaged recordings are rejected or noted by name, nothing is invented, and their healthy neighbours are converted.

One run over a corpus in which every recording but the last ones carries one fault.
"""

from __future__ import annotations

import io
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import soundfile
from pipeline_helpers import report, run_preprocess

from omniges.formats.textgrid import WordInterval, encode_tiers, encode_words
from omniges.pipeline.settings import Summary
from omniges.shards.reader import ShardFolder

SECONDS = 4.0
LAYOUT = {"wav": "wave16k", "npz": "smplxflame_30", "TextGrid": "textgrid"}


@dataclass
class Files:
    """The three files of one recording, and where they lie."""

    root: Path
    stem: str

    def path(self, kind: str) -> Path:
        return self.root / LAYOUT[kind] / f"{self.stem}.{kind}"

    def edit(self, kind: str, change: Callable[[bytes], bytes]) -> None:
        self.path(kind).write_bytes(change(self.path(kind).read_bytes()))

    def motion(self, **changes: object) -> None:
        """Write the NPZ again with some arrays replaced, or left out where None is given."""
        with np.load(self.path("npz"), allow_pickle=False) as source:
            arrays = dict(source)
        arrays |= changes  # type: ignore[arg-type]
        np.savez(self.path("npz"), **{name: value for name, value in arrays.items() if value is not None})  # type: ignore[arg-type]

    def array(self, name: str) -> np.ndarray:
        with np.load(self.path("npz"), allow_pickle=False) as source:
            return source[name]

    def audio(self) -> np.ndarray:
        return soundfile.read(self.path("wav"), dtype="float32")[0]

    def words(self, *words: tuple[str, float, float], xmax: float = SECONDS) -> None:
        self.path("TextGrid").write_bytes(encode_words([WordInterval(*word) for word in words], xmax))


class _Touch:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def _streamed(data: bytes) -> bytes:
    return data[:4] + b"\xff" * 4 + data[8:40] + b"\xff" * 4 + data[44:]


def _nan_audio(files: Files) -> None:
    samples = files.audio()
    samples[1000] = np.nan
    soundfile.write(files.path("wav"), samples, 16_000, subtype="FLOAT")


def _stereo(files: Files) -> None:
    slow = np.repeat(files.audio(), 3)
    soundfile.write(files.path("wav"), np.stack([slow, slow], axis=1), 48_000)


def _pickled(files: Files) -> None:
    files.motion(poses=np.array([_Touch(files.root / "unpickled")], dtype=object))


def _lying_shape(files: Files) -> None:
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (100000000000, 165), }".ljust(117) + "\n"
    with zipfile.ZipFile(files.path("npz")) as source:
        members = {name: source.read(name) for name in source.namelist()}
    members["poses.npy"] = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(660)
    with zipfile.ZipFile(files.path("npz"), "w") as target:
        for name, data in members.items():
            target.writestr(name, data)


def _zip_bomb(files: Files) -> None:
    frames = 1_700_000  # over a gigabyte of zeros in a few megabytes
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({frames}, 165), }}".ljust(117) + "\n"
    with zipfile.ZipFile(files.path("npz"), "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
        with target.open("poses.npy", "w", force_zip64=True) as member:
            member.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode())
            for _ in range(50):
                member.write(bytes(frames * 660 // 50))
        for name, columns in (("expressions", 100), ("trans", 3), ("betas", 300)):
            buffer = io.BytesIO()
            np.save(buffer, np.zeros((2, columns)))
            target.writestr(f"{name}.npy", buffer.getvalue())
        buffer = io.BytesIO()
        np.save(buffer, np.array(30))
        target.writestr("mocap_frame_rate.npy", buffer.getvalue())


def _nan_motion(files: Files) -> None:
    trans = files.array("trans")
    trans[7, 1] = np.nan
    files.motion(trans=trans)


def _sixty_fps(files: Files) -> None:
    files.motion(
        **{name: np.repeat(files.array(name), 2, axis=0) for name in ("poses", "expressions", "trans")},
        mocap_frame_rate=np.array(60),
    )


def _split_keys(files: Files) -> None:
    poses = files.array("poses")
    files.motion(
        poses=None, root_orient=poses[:, :3], pose_body=poses[:, 3:66], pose_jaw=poses[:, 66:69],
        pose_eye=poses[:, 69:75], pose_hand=poses[:, 75:], betas=files.array("betas")[:16],
    )  # fmt: skip


def _z_up(files: Files) -> None:
    poses = files.array("poses")
    poses[:, :3] = [np.pi / 2, 0, 0]
    files.motion(poses=poses)


def _audio_seconds(files: Files, seconds: int) -> None:
    soundfile.write(files.path("wav"), np.tile(files.audio(), 12)[: seconds * 16_000], 16_000)


def _motion_seconds(files: Files, seconds: int) -> None:
    names, repeats = ("poses", "expressions", "trans"), 3
    files.motion(**{name: np.tile(files.array(name), (repeats, 1))[: 30 * seconds] for name in names})


def _antiphase(files: Files) -> None:
    mono = files.audio()
    soundfile.write(files.path("wav"), np.stack([mono, -mono], axis=1), 16_000)


def _shifted(files: Files) -> None:
    times, late = f"\n0\n{SECONDS}\n<", f"\n100\n{100 + SECONDS}\n<"
    grid = _intervals((100, 101, "one")).replace(times.encode(), late.encode())
    files.path("TextGrid").write_bytes(grid)


def _two_speakers(files: Files) -> None:
    tiers = [(f"{name} - words", [WordInterval("hi", 0.1, 0.5)]) for name in ("guest", "host")]
    files.path("TextGrid").write_bytes(encode_tiers(tiers, SECONDS))


def _link_outside(files: Files) -> None:
    outside = files.root.parent / "outside.wav"
    shutil.move(files.path("wav"), outside)
    files.path("wav").symlink_to(outside)


def _copy(files: Files) -> None:
    (files.root / "textgrid/more").mkdir(exist_ok=True)
    shutil.copy(files.path("TextGrid"), files.root / "textgrid/more")


def _enormous_semantics(files: Files) -> None:
    path = files.root / "sem" / f"{files.stem}.txt"
    path.touch()
    os.truncate(path, 2 << 30)  # a sparse file


def _intervals(*rows: tuple[object, object, str]) -> bytes:
    """A TextGrid that the encoder would refuse to write."""
    head = f'File type = "ooTextFile"\nObject class = "TextGrid"\n\n0\n{SECONDS}\n<exists>\n1\n"IntervalTier"\n"words"\n0\n{SECONDS}\n'
    return (head + f"{len(rows)}\n" + "".join(f'{a}\n{b}\n"{text}"\n' for a, b, text in rows)).encode()


REJECTED: dict[str, tuple[str, Callable[[Files], object]]] = {
    "truncated audio": ("wav-truncated", lambda f: f.edit("wav", lambda d: d[: len(d) // 2])),
    "empty audio": ("wav-empty", lambda f: f.path("wav").write_bytes(b"")),
    "headerless audio": ("wav-not-riff", lambda f: f.edit("wav", lambda d: d[44:])),
    "NaN audio": ("wav-not-finite", _nan_audio),
    "MP3 named WAV": ("wav-not-riff", lambda f: f.path("wav").write_bytes(b"ID3\x03" + bytes(5000))),
    "silence": ("wav-silent", lambda f: soundfile.write(f.path("wav"), np.zeros(64_000), 16_000)),
    "audio far longer than motion": ("length-mismatch", lambda f: _audio_seconds(f, 40)),
    "motion far longer than audio": ("length-mismatch", lambda f: _motion_seconds(f, 10)),
    "channels that cancel": ("wav-channels-cancel", _antiphase),
    "float audio in the unit of int16": (
        "wav-out-of-range", lambda f: soundfile.write(f.path("wav"), f.audio() * 32768, 16_000, subtype="FLOAT"),
    ),
    "times of a longer recording": ("textgrid-shifted", _shifted),
    "tiers of two strangers": ("textgrid-several-speakers", _two_speakers),
    "NaN motion": ("npz-not-finite", _nan_motion),
    "infinite expressions": ("npz-not-finite", lambda f: f.motion(expressions=f.array("expressions") * np.inf)),
    "pickled objects": ("npz-object-array", _pickled),
    "shape beyond the file": ("npz-damaged", _lying_shape),
    "zip bomb": ("npz-too-large", _zip_bomb),
    "missing key": ("npz-missing-key", lambda f: f.motion(trans=None)),
    "no rate": ("npz-no-rate", lambda f: f.motion(mocap_frame_rate=None)),
    "156 columns": ("npz-wrong-shape", lambda f: f.motion(poses=f.array("poses")[:, :156])),
    "unequal lengths": ("npz-unequal-lengths", lambda f: f.motion(trans=f.array("trans")[:-1])),
    "25 fps": ("npz-frame-rate", lambda f: f.motion(mocap_frame_rate=np.array(25))),
    "no frames": ("npz-no-frames", lambda f: f.motion(**{n: f.array(n)[:0] for n in ("poses", "expressions", "trans")})),
    "z up": ("npz-not-y-up", _z_up),
    "degrees": ("npz-out-of-range", lambda f: f.motion(poses=f.array("poses") * 57.3)),
    "truncated motion": ("npz-not-zip", lambda f: f.edit("npz", lambda d: d[:-500])),
    "damaged motion": ("npz-damaged", lambda f: f.edit("npz", lambda d: d[:9000] + b"?" + d[9001:])),
    "overlapping intervals": (
        "textgrid-overlap", lambda f: f.path("TextGrid").write_bytes(_intervals((0, 2, "one"), (1, 3, "two"))),
    ),
    "negative interval": ("textgrid-bad-interval", lambda f: f.path("TextGrid").write_bytes(_intervals((2, 1, "one")))),
    "interval before zero": ("textgrid-bad-interval", lambda f: f.path("TextGrid").write_bytes(_intervals((-1, 1, "one")))),
    "empty TextGrid": ("textgrid-empty", lambda f: f.path("TextGrid").write_bytes(b"")),
    "no words": ("textgrid-no-words", lambda f: f.path("TextGrid").write_bytes(_intervals((0, SECONDS, "")))),
    "words all beyond the clip": ("textgrid-no-words", lambda f: f.words(("late", 10.0, 11.0), xmax=12.0)),
    "no word tier": ("textgrid-no-word-tier", lambda f: f.edit("TextGrid", lambda d: d.replace(b'"words"', b'"phonemes"'))),
    "latin-1 TextGrid": ("textgrid-encoding", lambda f: f.path("TextGrid").write_bytes(_intervals((0, 1, "é")).replace(b"\xc3\xa9", b"\xe9"))),
    "truncated TextGrid": ("textgrid-syntax", lambda f: f.edit("TextGrid", lambda d: d[: len(d) // 2].rpartition(b'"')[0])),
    "same stem in two folders": ("duplicate-stem", _copy),
    "link out of the root": ("path-outside-root", _link_outside),
    "no motion": ("missing-gesture", lambda f: f.path("npz").unlink()),
}  # fmt: skip

NOTED: dict[str, tuple[str, Callable[[Files], object]]] = {
    "streamed header": ("wav-streamed-header", lambda f: f.edit("wav", _streamed)),
    "48 kHz": ("audio-resampled", _stereo),
    "stereo": ("audio-mixed-down", _stereo),
    "no face": ("motion-parts-absent", lambda f: f.motion(expressions=None)),
    "ten expressions": ("expressions-extended", lambda f: f.motion(expressions=f.array("expressions")[:, :10])),
    "float16": ("npz-float16", lambda f: f.motion(poses=f.array("poses").astype(np.float16))),
    "60 fps": ("motion-decimated", _sixty_fps),
    "older keys, 16 betas": ("betas-extended", _split_keys),
    "words beyond the end": ("words-clipped", lambda f: f.words(("in", 0.5, 1.0), ("out", 3.0, 9.0), ("late", 9.0, 10.0), xmax=10.0)),
    "long TextGrid": ("textgrid-length-mismatch", lambda f: f.words(("word", 0.5, 1.0), xmax=60.0)),
    "half a second of audio more": (
        "length-cut", lambda f: soundfile.write(f.path("wav"), np.tile(f.audio(), 2)[:72_000], 16_000),
    ),
    "audio left on after the motion": ("length-cut", lambda f: _audio_seconds(f, 30)),
    "labels of an aligner": (
        "words-silence", lambda f: f.words(("<p:>", 0.1, 0.5), ("in", 0.5, 1.0), ("[SIL]", 1.0, 1.5), xmax=SECONDS),
    ),
    "unknown words": ("words-unknown", lambda f: f.words(("in", 0.5, 1.0), ("<unk>", 1.0, 1.5), xmax=SECONDS)),
    "an overlap of an aligner": (
        "words-overlap", lambda f: f.path("TextGrid").write_bytes(_intervals((0, 1, "one"), (0.99, 2, "two"))),
    ),
    "times that begin late": (
        "textgrid-start", lambda f: f.edit("TextGrid", lambda d: d.replace(b"xmin = 0 \n", b"xmin = 0.25 \n", 1)),
    ),
    "a gender that is a pickled object": ("npz-text-unread", lambda f: f.motion(gender=np.array("male", object))),
    "audio shorter than motion": ("length-cut", lambda f: _audio_seconds(f, 1)),
    "enormous semantics": ("sem-invalid", _enormous_semantics),
    "broken semantics": (
        "sem-invalid", lambda f: (f.root / "sem" / f"{f.stem}.txt").write_text("beat\tnot a number\n"),
    ),
}  # fmt: skip

SCRIPTS = {
    "chinese": "你好", "japanese": "こんにちは", "korean": "안녕하세요", "arabic": "مرحبا", "hebrew": "שלום",
    "emoji": "👋🏽", "decomposed": "e\u0301", "quotes": 'say "hi"',
}  # fmt: skip


@dataclass
class Damaged:
    """The run over the damaged corpus."""

    root: Path
    out: Path
    summary: Summary
    stems: dict[str, str]
    findings: list[dict[str, str]] = field(default_factory=list)

    def codes(self, case: str) -> set[str]:
        return {row["code"] for row in self.findings if row["stem"] == self.stems[case]}


@pytest.fixture(scope="module")
def damaged(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Damaged:
    root = tmp_path_factory.mktemp("damaged") / "root"
    (healthy,) = corpus.rglob("1_synthetica_0_1_1.wav")
    source = healthy.parents[1]
    cases = [*REJECTED, *NOTED, *SCRIPTS, "healthy one", "healthy two"]
    for folder in (*LAYOUT.values(), "sem"):
        (root / folder).mkdir(parents=True)
    stems = {}
    for number, case in enumerate(cases, 20):
        stems[case] = stem = f"2_scott_0_{number}_{number}"
        for kind, folder in LAYOUT.items():
            shutil.copy(source / folder / f"1_synthetica_0_1_1.{kind}", root / folder / f"{stem}.{kind}")
        files = Files(root, stem)
        if case in SCRIPTS:
            files.words((SCRIPTS[case], 0.25, 0.75))
        elif case in REJECTED | NOTED:
            (REJECTED | NOTED)[case][1](files)
    (root / "train_test_split.csv").write_text("id,type\n../../../etc/passwd,train\n")
    summary = run_preprocess(root, root.parent / "shards")
    return Damaged(root, root.parent / "shards", summary, stems, report(root.parent / "shards"))


class TestDamage:
    @pytest.mark.slow
    @pytest.mark.parametrize("case", REJECTED)
    def test_is_rejected_with_the_code_that_names_it(self, damaged: Damaged, case: str) -> None:
        assert REJECTED[case][0] in damaged.codes(case)
        assert damaged.stems[case] not in {row.stem for row in ShardFolder(damaged.out).rows}

    @pytest.mark.slow
    @pytest.mark.parametrize("case", NOTED)
    def test_is_converted_with_a_note(self, damaged: Damaged, case: str) -> None:
        assert NOTED[case][0] in damaged.codes(case)
        row = ShardFolder(damaged.out).row(damaged.stems[case])
        assert NOTED[case][0] in row.notes

    @pytest.mark.parametrize("case", ["healthy one", "healthy two"])
    def test_healthy_neighbours_are_untouched(self, damaged: Damaged, case: str, shards: Path) -> None:
        ours = ShardFolder(damaged.out).row(damaged.stems[case])
        alone = ShardFolder(shards).row("1_synthetica_0_1_1")
        for member in ("gesture.npy", "mel.npy", "words.txt", "jaw_eyes.npy", "betas.npy", "start_xz.npy"):
            assert ours.members[member].sha256 == alone.members[member].sha256

    def test_nothing_was_unpickled(self, damaged: Damaged) -> None:
        assert not (damaged.root / "unpickled").exists()

    def test_no_fault_met_a_bug(self, damaged: Damaged) -> None:
        assert "internal-error" not in damaged.summary.finding_counts
        assert not damaged.summary.lost

    def test_every_rejected_finding_says_what_was_found(self, damaged: Damaged) -> None:
        assert all(row["found"] and "\n" not in row["found"] for row in damaged.findings)

    def test_a_split_id_that_leaves_the_root_is_a_note(self, damaged: Damaged) -> None:
        assert "split-id-invalid" in {row["code"] for row in damaged.findings if row["stem"] is None}

    def test_the_summary_counts_them(self, damaged: Damaged) -> None:
        assert damaged.summary.rejected == len(REJECTED)
        assert damaged.summary.converted == len(NOTED) + len(SCRIPTS) + 2
        assert damaged.summary.exit_code == 1


class TestWhatNotedRecordingsHold:
    @pytest.mark.parametrize("script", SCRIPTS)
    def test_words_are_kept_to_the_letter(self, damaged: Damaged, script: str) -> None:
        source = ShardFolder(damaged.out)
        (word,) = source.sample(source.row(damaged.stems[script])).words
        assert word == {"word": SCRIPTS[script], "start": 0.25, "end": 0.75}

    def test_sixty_fps_gives_every_second_frame(self, damaged: Damaged) -> None:
        source = ShardFolder(damaged.out)
        halved = source.array(source.row(damaged.stems["60 fps"]), "gesture.npy")
        assert np.array_equal(halved, source.array(source.row(damaged.stems["healthy one"]), "gesture.npy"))

    def test_older_keys_give_the_same_channels(self, damaged: Damaged) -> None:
        source = ShardFolder(damaged.out)
        older = source.sample(source.row(damaged.stems["older keys, 16 betas"]))
        plain = source.sample(source.row(damaged.stems["healthy one"]))
        assert np.array_equal(older.gesture.gesture, plain.gesture.gesture)
        assert np.array_equal(older.betas[:16], plain.betas[:16])
        assert not older.betas[16:].any()
        assert older.metadata["motion"]["betas"] == 16

    def test_a_streamed_header_loses_no_audio(self, damaged: Damaged) -> None:
        source = ShardFolder(damaged.out)
        streamed = source.row(damaged.stems["streamed header"])
        assert streamed.members["mel.npy"].sha256 == source.row(damaged.stems["healthy one"]).members["mel.npy"].sha256

    def test_a_word_beyond_the_end_is_cut_and_a_later_one_dropped(self, damaged: Damaged) -> None:
        source = ShardFolder(damaged.out)
        sample = source.sample(source.row(damaged.stems["words beyond the end"]))
        assert [(w["word"], w["end"]) for w in sample.words] == [("in", 1.0), ("out", sample.row.seconds)]
        assert sample.metadata["cut"]["words_dropped"] == 1

    def test_cut_seconds_are_recorded(self, damaged: Damaged) -> None:
        source = ShardFolder(damaged.out)
        sample = source.sample(source.row(damaged.stems["half a second of audio more"]))
        assert sample.metadata["cut"]["audio_s"] == pytest.approx(72_000 / 16_000 - sample.row.seconds)


class TestUnreadableFiles:
    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_permission_denied_is_a_finding(self, corpus: Path, tmp_path: Path) -> None:
        shutil.copytree(corpus, tmp_path / "c")
        (path,) = (tmp_path / "c").rglob("1_synthetica_0_1_1.wav")
        path.chmod(0)
        run_preprocess(tmp_path / "c", tmp_path / "o")
        assert "file-unreadable" in {row["code"] for row in report(tmp_path / "o")}

    def test_an_io_error_on_one_file_is_a_finding_and_the_others_go_on(
        self, corpus: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from omniges.pipeline import convert as module
        from omniges.pipeline.convert import convert
        from omniges.pipeline.corpora.beat2 import discover
        from omniges.pipeline.settings import ConvertSettings, Rejected, Sample, Selection

        bad, good = discover(corpus, Selection()).recordings[:2]
        real = module.open_regular

        def fail(path: Path, *, follow: bool) -> BinaryIO:
            if path.name == f"{bad.stem}.wav":
                raise OSError(5, "Input/output error")
            return real(path, follow=follow)

        monkeypatch.setattr(module, "open_regular", fail)
        outcome = convert(bad, ConvertSettings())
        assert isinstance(outcome, Rejected)
        assert [f.problem.code for f in outcome.findings] == ["file-unreadable"]
        assert "EIO" in outcome.findings[0].problem.found
        assert isinstance(convert(good, ConvertSettings()), Sample)
