"""Stems tell speaker, language, scenario and emotion as BEAT2's tables say, and nothing outside their grammar."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniges.pipeline.stems import StemFields, parse_stem, speaker_of_folder


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
