"""Stems tell speaker, language, scenario and emotion as BEAT2's tables say, and nothing outside their grammar.

Splits: BEAT2's own counts by the rule, and a split list in any form people save one.
"""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniges.errors import DataError, Problem
from omniges.pipeline.labels import (
    TEST_STARTS,
    StemFields,
    encode_split_list,
    parse_split_list,
    parse_stem,
    plain_stem,
    speaker_of_folder,
    split_by_rule,
)
from omniges.shards.schema import SPLITS, Split, is_stem


class TestParseStem:
    @pytest.mark.parametrize(
        ("stem", "fields"),
        [
            ("2_scott_0_1_1", StemFields(2, "scott", "english", "speech", "neutral", 1)),
            ("1_wayne_1_12_12", StemFields(1, "wayne", "english", "conversation", "neutral", 12)),
            ("12_zhao_2_65_65", StemFields(12, "zhao", "chinese", "speech", "happiness", 65)),
            ("13_lu_3_1_1", StemFields(13, "lu", "chinese", "conversation", "neutral", 1)),
            ("15_carlos_4_80_80", StemFields(15, "carlos", "spanish", "speech", "anger", 80)),
            ("17_itoi_6_118_118", StemFields(17, "itoi", "japanese", "speech", "disgust", 118)),
            ("28_tiffnay_7_2_2", StemFields(28, "tiffnay", "japanese", "conversation", "neutral", 2)),
            ("1_wayne_0_1_8", StemFields(1, "wayne", "english", "speech", "neutral", 1)),
            ("1_wayne_0_119_119", StemFields(1, "wayne", "english", "speech", None, 119)),
        ],
    )
    def test_fields(self, stem: str, fields: StemFields) -> None:
        assert parse_stem(stem) == fields

    @pytest.mark.parametrize(
        ("first", "last", "emotion"),
        [
            (0, 64, "neutral"), (65, 72, "happiness"), (73, 80, "anger"), (81, 86, "sadness"),
            (87, 94, "contempt"), (95, 102, "surprise"), (103, 110, "fear"), (111, 118, "disgust"),
        ],
    )  # fmt: skip
    def test_emotion_ranges(self, first: int, last: int, emotion: str) -> None:
        assert {parse_stem(f"2_scott_0_{k}_{k}").emotion for k in range(first, last + 1)} == {emotion}

    @pytest.mark.parametrize(
        "stem", ["", "video1", "2_Scott_0_1_1", "2_scott_8_1_1", "2_scott_0_1", "0_65_a", "2_scott_0_1_1.v2"]
    )
    def test_outside_the_grammar_everything_is_unknown(self, stem: str) -> None:
        assert parse_stem(stem) == StemFields()
        assert not parse_stem(stem).known

    @given(st.text())
    def test_any_text_is_answered(self, stem: str) -> None:
        parse_stem(stem)


class TestFolders:
    @pytest.mark.parametrize(
        ("folder", "speaker"),
        [
            ("2", (2, None)),
            ("speaker2", (2, None)),
            ("2_scott", (2, "scott")),
            ("Scott", (None, "scott")),
            ("take-3", (None, None)),
        ],
    )
    def test_speaker_folders(self, folder: str, speaker: tuple[int | None, str | None]) -> None:
        assert speaker_of_folder(folder) == speaker


class TestRule:
    def test_english_has_265_test_clips(self) -> None:
        assert len(TEST_STARTS) == 25
        assert sum(map(len, TEST_STARTS.values())) == 265

    def test_speaker_two_has_the_counted_split(self) -> None:
        stems = [f"2_scott_0_{k}_{k}" for k in range(1, 119)]
        found = [split_by_rule(stem, parse_stem(stem)) for stem in stems]
        assert Counter(split for split, _ in found) == {"train": 95, "val": 8, "test": 15}
        assert not any(inferred for _, inferred in found)

    def test_speaker_two_equals_the_published_list(self, beat2_sample: Path) -> None:
        with (beat2_sample / "reference/speaker2_split.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        assert len(rows) == 118
        for row in rows:
            assert split_by_rule(row["id"], parse_stem(row["id"]))[0] == row["type"]

    @pytest.mark.parametrize("stem", ["2_scott_1_1_1", "12_zhao_3_2_2"])
    def test_conversations_are_additional(self, stem: str) -> None:
        assert split_by_rule(stem, parse_stem(stem)) == ("additional", False)

    def test_elsewhere_a_hash_chooses_about_one_val_in_thirteen_and_says_so(self) -> None:
        stems = [f"12_zhao_2_{k}_{k}" for k in range(1, 119)] + [f"other-{k}" for k in range(2000)]
        found = [split_by_rule(stem, parse_stem(stem)) for stem in stems]
        assert all(inferred for _, inferred in found)
        share = sum(split == "val" for split, _ in found) / len(found)
        assert 0.06 < share < 0.1
        assert {split for split, _ in found} == {"train", "val"}


class TestSplitList:
    @pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
    @pytest.mark.parametrize("end", [b"\n", b"\r\n"])
    def test_forms(self, mark: bytes, end: bytes) -> None:
        rows = [b"id,type", b"", b"a,train", b" b , val ", b"  ", b"c,test", b"d,additional,more", b""]
        assert parse_split_list(mark + end.join(rows), "x.csv").splits == {
            "a": "train",
            "b": "val",
            "c": "test",
            "d": "additional",
        }

    @given(st.dictionaries(st.text(min_size=1).filter(is_stem), st.sampled_from(SPLITS)))
    def test_what_export_writes_is_read_back(self, splits: dict[str, Split]) -> None:
        splits = {plain_stem(stem): split for stem, split in splits.items()}
        splits = {stem: split for stem, split in splits.items() if is_stem(stem) and stem == plain_stem(stem.strip())}
        splits = {stem: split for stem, split in splits.items() if "\\" not in stem}
        assert parse_split_list(encode_split_list(splits.items()), "x.csv").splits == splits

    @pytest.mark.parametrize("separator", [",", ";", "\t"])
    @pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
    def test_other_separators_and_codecs_give_the_same_list(self, separator: str, codec: str) -> None:
        text = "ID,Type\r\na,train\r\n2_scott_0_1_1,test\r\n".replace(",", separator)
        assert parse_split_list(text.encode(codec), "x.csv").splits == {"a": "train", "2_scott_0_1_1": "test"}

    def test_the_separator_line_of_a_spreadsheet_is_skipped(self) -> None:
        assert parse_split_list(b"sep=;\r\nid;type\r\na;val\r\n", "x.csv").splits == {"a": "val"}

    @pytest.mark.parametrize(
        "id_", ["j\u00f6rg", "jo\u0308rg", "jo\u0308rg.wav", "j\u00f6rg.TextGrid", "j\u00f6rg.NPZ"]
    )
    @pytest.mark.parametrize("stem", ["j\u00f6rg", "jo\u0308rg"])
    def test_ids_are_stems_in_any_form_of_their_letters_with_or_without_extension(self, id_: str, stem: str) -> None:
        found = parse_split_list(f"id,type\n{id_},test\n".encode(), "x.csv")
        assert found.find(stem) == "test"
        assert found.find("other") is None

    def test_one_id_under_two_extensions_is_one_recording(self) -> None:
        found = parse_split_list(b"id,type\na.wav,test\na.npz,train\n", "x.csv")
        assert isinstance(found.find("a"), Problem)

    def test_columns_are_found_by_name(self) -> None:
        assert parse_split_list(b"n,type,id\n1,val,a\n", "x.csv").splits == {"a": "val"}

    def test_conflicting_and_unknown_splits_make_the_id_faulty(self) -> None:
        found = parse_split_list(b"id,type\na,train\na,test\nb,dev\nc,val\nc,val\n", "x.csv")
        assert {stem: problem.code for stem, problem in found.faulty.items()} == {
            "a": "split-conflict",
            "b": "split-unknown",
        }
        assert found.splits["c"] == "val"

    @pytest.mark.parametrize("stem", ["../../etc/passwd", "/etc/passwd", "..", "a\\b", ""])
    def test_ids_that_are_no_stem_are_ignored_with_a_note(self, stem: str) -> None:
        found = parse_split_list(f"id,type\n{stem},train\n".encode(), "x.csv")
        assert not found.splits
        assert [finding.problem.code for finding in found.findings] == ["split-id-invalid"]

    @pytest.mark.parametrize(
        "data", [b"", b"\n\n", b"name,split\na,train\n", b"\xff\xfe\x00", b"id,type\n\xe9,train\n"]
    )
    def test_other_files_are_refused_by_name(self, data: bytes) -> None:
        with pytest.raises(DataError, match=r"x\.csv"):
            parse_split_list(data, "x.csv")

    @pytest.mark.parametrize("row", range(3))
    def test_a_quote_that_is_never_closed_does_not_take_in_the_rows_below(self, row: int) -> None:
        rows = ["a,test", "b,val", "c,train"]
        rows[row] = '"' + rows[row]
        with pytest.raises(DataError, match=r"x\.csv"):
            parse_split_list("\n".join(["id,type", *rows]).encode(), "x.csv")

    @given(st.binary(max_size=300))
    def test_any_bytes_are_answered_or_refused(self, data: bytes) -> None:
        try:
            parse_split_list(b"id,type\n" + data, "x.csv")
        except DataError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("header", ["id,id,type", "id,type,type", "x" * 10**5, "id|type"])
def test_a_header_without_one_column_of_each_is_refused_in_a_short_line(header: str) -> None:
    with pytest.raises(DataError, match="one column id and one column type, found") as caught:
        parse_split_list(f"{header}\na,a,train\n".encode(), "s.csv")
    assert len(str(caught.value)) < 300
