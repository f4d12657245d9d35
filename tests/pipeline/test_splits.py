"""Splits: BEAT2's own counts by the rule, and a split list in any form people save one."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniges.errors import DataError
from omniges.pipeline.splits import official_test_starts, parse_split_list, split_by_rule
from omniges.pipeline.stems import parse_stem

SPEAKERS = [1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 15, 16, 17, 18, 20, 21, 22, 23, 24, 25, 27, 28, 30]


class TestRule:
    def test_english_has_265_test_clips(self) -> None:
        assert sum(len(official_test_starts(speaker) or ()) for speaker in SPEAKERS) == 265

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

    @given(st.binary(max_size=300))
    def test_any_bytes_are_answered_or_refused(self, data: bytes) -> None:
        try:
            parse_split_list(b"id,type\n" + data, "x.csv")
        except DataError as error:
            assert "\n" not in str(error)
