"""Discovery pairs files by stem in every layout, reads nothing outside the root, and explains every stem it drops."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from omniges.errors import DataError, UsageFault
from omniges.pipeline.corpora.beat2 import discover
from omniges.pipeline.discover import Discovery
from omniges.pipeline.settings import Selection

OFFICIAL = {"wave16k": "wav", "smplxflame_30": "npz", "textgrid": "TextGrid"}
SEED = {"wave16k": "wav", "speakers_1234_smplx_neutral_npz": "npz", "word": "TextGrid"}


def lay(root: Path, stems: list[str], folders: dict[str, str] = OFFICIAL, below: str = "") -> Path:
    """Empty files are enough: discovery does not open them."""
    for folder, extension in folders.items():
        place = root / folder / below
        place.mkdir(parents=True, exist_ok=True)
        for stem in stems:
            (place / f"{stem}.{extension}").touch()
    return root


def found(root: Path, **selection: object) -> Discovery:
    return discover(root, Selection(**selection))  # type: ignore[arg-type]


def stems_of(discovery: Discovery) -> list[str]:
    return [recording.stem for recording in discovery.recordings]


def codes(discovery: Discovery, stem: str) -> set[str]:
    return {finding.problem.code for finding in discovery.rejected[stem]}


A, B, C = "2_scott_0_1_1", "2_scott_0_20_20", "12_zhao_2_1_1"


class TestLayouts:
    def test_several_language_folders_under_the_root(self, tmp_path: Path) -> None:
        lay(tmp_path / "beat_english_v2.0.0", [A, B])
        lay(tmp_path / "beat_chinese_v2.0.0", [C])
        got = found(tmp_path)
        assert stems_of(got) == sorted([A, B, C])
        assert got.data_folders == ("beat_chinese_v2.0.0", "beat_english_v2.0.0")
        assert got.recordings[0].files["wav"].relative == f"beat_chinese_v2.0.0/wave16k/{C}.wav"

    def test_one_language_folder_as_the_root(self, tmp_path: Path) -> None:
        assert stems_of(found(lay(tmp_path / "beat_english_v2.0.0", [A]))) == [A]

    def test_the_seed_layout_in_speaker_folders(self, tmp_path: Path) -> None:
        lay(tmp_path, [A, B], SEED, "2_scott")
        lay(tmp_path, ["1_wayne_0_1_1"], SEED, "speaker1")
        got = found(tmp_path)
        assert stems_of(got) == ["1_wayne_0_1_1", A, B]
        assert not any(recording.notes for recording in got.recordings)

    def test_extensions_in_any_case_and_hidden_files_left_out(self, tmp_path: Path) -> None:
        lay(tmp_path, [A], {"wave16k": "WAV", "smplxflame_30": "Npz", "textgrid": "TEXTGRID"})
        (tmp_path / "wave16k" / f"._{A}.wav").touch()
        (tmp_path / "wave16k" / ".DS_Store").touch()
        assert found(tmp_path).stems == 1

    def test_folder_flags(self, tmp_path: Path) -> None:
        lay(tmp_path, [A], {"sound": "wav", "motion": "npz", "deep/words": "TextGrid"})
        with pytest.raises(UsageFault, match="expected a folder of wav"):
            found(tmp_path, gesture_dir="motion", text_dir="deep/words")
        assert stems_of(found(tmp_path, wav_dir="sound", gesture_dir="motion", text_dir="deep/words")) == [A]

    @pytest.mark.parametrize("kind", ["nothing", "file", "empty"])
    def test_a_root_without_a_data_set_is_a_usage_error(self, tmp_path: Path, kind: str) -> None:
        root = tmp_path / "root"
        if kind == "file":
            root.touch()
        elif kind == "empty":
            root.mkdir()
        with pytest.raises(UsageFault, match="--root"):
            found(root)


class TestPairing:
    @pytest.mark.parametrize(
        ("folder", "code"),
        [("wave16k", "missing-audio"), ("smplxflame_30", "missing-gesture"), ("textgrid", "missing-text")],
    )
    def test_a_missing_modality_is_a_rejection_that_names_the_file(
        self, tmp_path: Path, folder: str, code: str
    ) -> None:
        lay(tmp_path, [A, B])
        (tmp_path / folder / f"{A}.{OFFICIAL[folder]}").unlink()
        got = found(tmp_path)
        assert stems_of(got) == [B]
        (finding,) = got.rejected[A]
        assert finding.problem.code == code
        assert finding.problem.expected == f"{folder}/{A}.{OFFICIAL[folder]}"

    def test_a_stem_twice_in_one_modality_rejects_all_copies_by_path(self, tmp_path: Path) -> None:
        lay(tmp_path, [A, B], SEED, "2_scott")
        (tmp_path / "word" / "copy").mkdir()
        (tmp_path / "word" / "copy" / f"{A}.TextGrid").touch()
        got = found(tmp_path)
        assert stems_of(got) == [B]
        (finding,) = got.rejected[A]
        assert finding.problem.code == "duplicate-stem"
        assert f"word/2_scott/{A}.TextGrid" in finding.problem.found
        assert f"word/copy/{A}.TextGrid" in finding.problem.found

    def test_the_same_stem_in_two_language_folders_is_rejected(self, tmp_path: Path) -> None:
        lay(tmp_path / "beat_english_v2.0.0", [A])
        lay(tmp_path / "beat_spanish_v2.0.0", [A])
        assert codes(found(tmp_path), A) == {"duplicate-stem"}

    def test_a_stem_that_differs_in_case_alone_is_pointed_out(self, tmp_path: Path) -> None:
        lay(tmp_path, ["take_a"])
        (tmp_path / "wave16k/take_a.wav").rename(tmp_path / "wave16k/Take_A.wav")
        got = found(tmp_path)
        assert "only the case differs from Take_A" in got.rejected["take_a"][0].problem.found

    def test_stems_outside_the_grammar_are_used_with_a_note(self, tmp_path: Path) -> None:
        (recording,) = found(lay(tmp_path, ["video 1.take"])).recordings
        assert recording.key == "video_x20_1_x2e_take"
        assert recording.fields.speaker is None
        assert {note.problem.code for note in recording.notes} == {"stem-outside-grammar", "split-inferred"}

    def test_a_speaker_folder_that_disagrees_is_a_note(self, tmp_path: Path) -> None:
        (recording,) = found(lay(tmp_path, [A], SEED, "wayne")).recordings
        assert {note.problem.code for note in recording.notes} == {"speaker-folder-mismatch"}
        assert recording.fields.speaker == "scott"

    def test_names_too_long_or_not_utf8_are_rejected(self, tmp_path: Path) -> None:
        lay(tmp_path, [A, "x" * 87])
        for folder, extension in OFFICIAL.items():
            Path(os.fsdecode(os.fsencode(tmp_path / folder) + b"/bad\xff." + extension.encode())).touch()
        got = found(tmp_path)
        assert stems_of(got) == [A]
        assert codes(got, "x" * 87) == {"stem-too-long"}
        assert codes(got, "bad\\udcff") == {"stem-not-utf8"}


ENGLISH = "beat_english_v2.0.0"
LIST = f"id,type\n{A},test\n{B},val\n"


class TestWhoseList:
    """A recording has the split that the list beside its motion gives it, wherever its other files are."""

    @pytest.mark.parametrize(
        ("place", "text_dir"),
        [
            (f"{ENGLISH}/mfa", f"{ENGLISH}/mfa"),
            (f"{ENGLISH}/mfa", "mfa/"),
            (f"{ENGLISH}/mfa", "absolute"),
            ("textgrid", None),
            ("textgrid", "textgrid/"),
            ("words/of mine", "./words//of mine"),
            ("beat_words", "beat_words"),
        ],
    )
    def test_words_kept_elsewhere(self, tmp_path: Path, place: str, text_dir: str | None) -> None:
        sound = {name: extension for name, extension in OFFICIAL.items() if name != "textgrid"}
        lay(tmp_path / ENGLISH, [A, B], sound)
        lay(tmp_path, [A, B], {place: "TextGrid"})
        (tmp_path / ENGLISH / "train_test_split.csv").write_text(LIST)
        got = found(tmp_path, text_dir=str(tmp_path / place) if text_dir == "absolute" else text_dir)
        assert {recording.stem: recording.split for recording in got.recordings} == {A: "test", B: "val"}
        assert {recording.files["textgrid"].relative for recording in got.recordings} == {
            f"{place}/{stem}.TextGrid" for stem in (A, B)
        }
        assert got.split_source == "split list"
        assert not got.findings

    @pytest.mark.parametrize("elsewhere", ["wave16k", "smplxflame_30", "textgrid"])
    def test_any_one_modality_beside_the_folder(self, tmp_path: Path, elsewhere: str) -> None:
        for name, extension in OFFICIAL.items():
            lay(tmp_path if name == elsewhere else tmp_path / ENGLISH, [A, B], {name: extension})
        (tmp_path / ENGLISH / "train_test_split.csv").write_text(LIST)
        assert {recording.split for recording in found(tmp_path).recordings} == {"test", "val"}

    def test_the_list_of_the_motion_goes_before_that_of_the_words(self, tmp_path: Path) -> None:
        lay(tmp_path / "beat_motion", [A], {"smplxflame_30": "npz", "wave16k": "wav"})
        lay(tmp_path / "beat_a_words", [A], {"textgrid": "TextGrid"})
        (tmp_path / "beat_motion/train_test_split.csv").write_text(f"id,type\n{A},val\n")
        (tmp_path / "beat_a_words/train_test_split.csv").write_text(f"id,type\n{A},train\n")
        assert [recording.split for recording in found(tmp_path).recordings] == ["val"]

    def test_a_list_beside_the_folders_counts_where_they_have_none(self, tmp_path: Path) -> None:
        lay(tmp_path / ENGLISH, [A, B])
        (tmp_path / "train_test_split.csv").write_text(LIST)
        assert {recording.split for recording in found(tmp_path).recordings} == {"test", "val"}

    def test_a_folder_outside_of_the_root_is_refused_by_its_flag(self, tmp_path: Path) -> None:
        lay(tmp_path / "elsewhere", [A])
        lay(tmp_path / "root", [A])
        with pytest.raises(UsageFault, match=r"--text-dir .* under --root .* --allow-root"):
            found(tmp_path / "root", text_dir=str(tmp_path / "elsewhere/textgrid"))

    @pytest.mark.parametrize("kind", ["link out", "dangling", "folder"])
    def test_a_list_that_may_not_be_read_is_noted(self, tmp_path: Path, kind: str) -> None:
        root = lay(tmp_path / "root", [A])
        place = root / "train_test_split.csv"
        if kind == "folder":
            place.mkdir()
        else:
            place.symlink_to(tmp_path / "list.csv")
        if kind == "link out":
            (tmp_path / "list.csv").write_text(LIST)
        (finding,) = found(root).findings
        assert (finding.problem.code, finding.file) == ("split-list-unreadable", "train_test_split.csv")
        if kind == "link out":
            (recording,) = discover(root, Selection(), allow_roots=(tmp_path,)).recordings
            assert recording.split == "test"


class TestNames:
    def test_composed_and_decomposed_names_belong_together(self, tmp_path: Path) -> None:
        composed, decomposed = "j\u00f6rg", "jo\u0308rg"
        for (folder, extension), stem in zip(OFFICIAL.items(), (composed, decomposed, composed), strict=True):
            lay(tmp_path, [stem], {folder: extension})
        (tmp_path / "train_test_split.csv").write_text(f"id,type\n{decomposed},test\n")
        (recording,) = found(tmp_path, include=(decomposed,)).recordings
        assert (recording.stem, recording.split) == (composed, "test")
        assert recording.files["npz"].relative == f"smplxflame_30/{decomposed}.npz"

    def test_two_forms_of_a_name_in_one_modality_are_two_files(self, tmp_path: Path) -> None:
        lay(tmp_path, ["j\u00f6rg"])
        lay(tmp_path, ["jo\u0308rg"], {"wave16k": "wav"})
        assert codes(found(tmp_path), "j\u00f6rg") == {"duplicate-stem"}


class TestBounds:
    def test_a_data_set_linked_under_the_root_is_reported(self, tmp_path: Path) -> None:
        lay(tmp_path / "disk" / ENGLISH, [A])
        root = tmp_path / "root"
        root.mkdir()
        (root / ENGLISH).symlink_to(tmp_path / "disk" / ENGLISH)
        with pytest.raises(UsageFault, match=rf"out of the root .*{ENGLISH}/.*--allow-root"):
            found(root)
        allowed = discover(root, Selection(), allow_roots=(tmp_path / "disk",))
        assert stems_of(allowed) == [A]

    def test_folders_without_files_are_reported(self, tmp_path: Path) -> None:
        with pytest.raises(UsageFault, match=r"found no \.wav.* in smplxflame_30, textgrid, wave16k"):
            found(lay(tmp_path, []))

    def test_a_folder_linked_twice_under_the_root_is_read_once(self, tmp_path: Path) -> None:
        lay(tmp_path / ENGLISH, [A])
        (tmp_path / "beat_current").symlink_to(tmp_path / ENGLISH)
        (tmp_path / "textgrid").symlink_to(tmp_path / ENGLISH / "textgrid")
        got = found(tmp_path)
        assert stems_of(got) == [A]
        assert got.recordings[0].files["wav"].relative == f"{ENGLISH}/wave16k/{A}.wav"

    def test_a_link_to_a_file_outside_is_rejected_unless_allowed(self, tmp_path: Path) -> None:
        root = lay(tmp_path / "root", [A, B])
        outside = tmp_path / "elsewhere"
        outside.mkdir()
        (outside / "x.wav").touch()
        target = root / "wave16k" / f"{A}.wav"
        target.unlink()
        target.symlink_to(outside / "x.wav")
        got = found(root)
        assert stems_of(got) == [B]
        assert codes(got, A) == {"path-outside-root"}
        allowed = discover(root, Selection(), allow_roots=(outside,))
        assert stems_of(allowed) == [A, B]

    def test_a_link_to_a_folder_outside_is_a_finding(self, tmp_path: Path) -> None:
        root = lay(tmp_path / "root", [A])
        outside = lay(tmp_path / "elsewhere", [B])
        (root / "wave16k" / "more").symlink_to(outside / "wave16k")
        got = found(root)
        assert stems_of(got) == [A]
        assert [(f.problem.code, f.file) for f in got.findings] == [("folder-outside-root", "wave16k/more")]

    def test_the_root_may_be_a_link_and_links_may_go_in_circles(self, tmp_path: Path) -> None:
        root = lay(tmp_path / "root", [A])
        (root / "wave16k" / "again").symlink_to(root / "wave16k")
        (tmp_path / "link").symlink_to(root)
        assert stems_of(found(tmp_path / "link")) == [A]

    def test_a_pipe_is_not_waited_for(self, tmp_path: Path) -> None:
        root = lay(tmp_path, [A])
        (root / "wave16k" / f"{A}.wav").unlink()
        os.mkfifo(root / "wave16k" / f"{A}.wav")
        assert codes(found(root), A) == {"file-unreadable"}

    def test_a_dangling_link_is_rejected(self, tmp_path: Path) -> None:
        root = lay(tmp_path, [A])
        (root / "wave16k" / f"{A}.wav").unlink()
        (root / "wave16k" / f"{A}.wav").symlink_to(root / "nowhere")
        assert codes(found(root), A) == {"file-unreadable"}


class TestSplitsAndFilters:
    def test_each_language_folder_brings_its_own_list(self, tmp_path: Path) -> None:
        lay(tmp_path / "beat_english_v2.0.0", [A, B])
        lay(tmp_path / "beat_chinese_v2.0.0", [C])
        (tmp_path / "beat_english_v2.0.0/train_test_split.csv").write_text(
            f"id,type\n{A},val\n{B},test\nabsent,train\n"
        )
        got = found(tmp_path)
        splits = {recording.stem: recording.split for recording in got.recordings}
        assert splits[A] == "val"
        assert splits[B] == "test"
        assert {note.problem.code for note in got.recordings[0].notes} == {"split-inferred"}
        (finding,) = got.findings
        assert (finding.problem.code, finding.problem.found) == ("split-id-not-on-disk", "1 ids: absent")

    def test_a_given_list_overrides_all(self, tmp_path: Path) -> None:
        root = lay(tmp_path / "root", [A, B])
        (root / "train_test_split.csv").write_text(f"id,type\n{A},val\n{B},val\n")
        other = tmp_path / "other.csv"
        other.write_text(f"id,type\n{A},train\n{B},train\n")
        got = discover(root, Selection(), split_csv=other)
        assert {recording.split for recording in got.recordings} == {"train"}
        assert list(got.split_lists) == ["other.csv"]

    @pytest.mark.parametrize("rows", ["", "absent,train\n", f"x/{A},train\n"])
    def test_a_given_list_that_names_no_recording_is_refused(self, tmp_path: Path, rows: str) -> None:
        root = lay(tmp_path / "root", [A, B])
        other = tmp_path / "other.csv"
        other.write_text(f"id,type\n{rows}")
        with pytest.raises(
            UsageFault, match=rf"other\.csv: expected ids of recordings such as '{A}', found no id of a recording"
        ):
            discover(root, Selection(), split_csv=other)

    def test_a_given_list_that_is_no_regular_file_is_refused_at_once(self, tmp_path: Path) -> None:
        root = lay(tmp_path / "root", [A])
        os.mkfifo(tmp_path / "pipe.csv")
        (tmp_path / "zeros.csv").symlink_to("/dev/zero")
        for name in ("pipe.csv", "zeros.csv"):
            with pytest.raises(DataError, match=rf"{name}: expected a regular file"):
                discover(root, Selection(), split_csv=tmp_path / name)

    def test_a_conflict_rejects_its_recording_alone(self, tmp_path: Path) -> None:
        lay(tmp_path, [A, B])
        (tmp_path / "train_test_split.csv").write_text(f"id,type\n{A},val\n{A},train\n{B},val\n")
        got = found(tmp_path)
        assert stems_of(got) == [B]
        assert codes(got, A) == {"split-conflict"}

    def test_a_broken_list_ends_the_run(self, tmp_path: Path) -> None:
        lay(tmp_path, [A])
        (tmp_path / "train_test_split.csv").write_text("nonsense")
        with pytest.raises(DataError, match=r"train_test_split\.csv"):
            found(tmp_path)

    @pytest.mark.parametrize(
        ("selection", "expected"),
        [
            ({"speakers": ("2",)}, [A, B]),
            ({"speakers": ("zhao", "2")}, [C, A, B]),
            ({"languages": ("chinese",)}, [C]),
            ({"include": ("*_20_*", "12_*")}, [C, B]),
            ({"splits": ("test",)}, [A]),
            ({"speakers": ("scott",), "splits": ("train",)}, [B]),
        ],
    )
    def test_filters(self, tmp_path: Path, selection: dict[str, object], expected: list[str]) -> None:
        lay(tmp_path, [A, B, C])
        assert stems_of(found(tmp_path, **selection)) == expected

    def test_filters_that_leave_nothing_are_a_usage_error(self, tmp_path: Path) -> None:
        lay(tmp_path, [A])
        with pytest.raises(UsageFault, match="all of them excluded by the filters"):
            found(tmp_path, speakers=("nobody",))

    def test_a_semantic_file_is_taken_along_but_makes_no_recording(self, tmp_path: Path) -> None:
        lay(tmp_path, [A])
        lay(tmp_path, [A, B], {"sem": "txt"})
        got = found(tmp_path)
        assert got.stems == 1
        assert got.recordings[0].files["sem"].relative == f"sem/{A}.txt"

    @pytest.mark.parametrize("fault", ["link outside", "twice"])
    def test_a_faulty_semantic_file_is_left_out_with_a_note(self, tmp_path: Path, fault: str) -> None:
        root = lay(lay(tmp_path / "root", [A]), [A], {"sem": "txt"})
        if fault == "twice":
            lay(root, [A], {"sem": "txt"}, "2_scott")
        else:
            (tmp_path / "x.txt").touch()
            (root / f"sem/{A}.txt").unlink()
            (root / f"sem/{A}.txt").symlink_to(tmp_path / "x.txt")
        (recording,) = found(root).recordings
        assert "sem" not in recording.files
        assert {note.problem.code for note in recording.notes} == {"sem-invalid"}

    def test_a_stem_outside_the_grammar_is_no_speakers(self, tmp_path: Path) -> None:
        lay(tmp_path, ["video"])
        with pytest.raises(UsageFault, match="all of them excluded by the filters"):
            found(tmp_path, speakers=("None",))
