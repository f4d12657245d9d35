"""Semantic spans: every row of the real annotation is read; a row that is not one names its line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recording_builders import SHARED, needs_sample

from omniges.errors import RecordingFault
from omniges.formats.semantic import SemanticSpan, decode_semantic


@needs_sample
def test_the_real_annotation():
    spans = decode_semantic((SHARED / "beat2_sample" / "reference" / "2_scott_0_1_1.sem.txt").read_bytes())
    assert len(spans) == 21
    assert spans[0] == SemanticSpan("01_beat_align", 0.0, 3.119, 3.119, 0.1, "")
    assert spans[7] == SemanticSpan("10_metaphoric_h", 13.494, 15.358, 1.864, 1.0, "Monday through Friday")


def test_line_ends_byte_order_mark_blank_lines_and_no_spans():
    assert len(decode_semantic("\ufeffa\t0\t1\t1\t0\r\n\r\nb\t1\t2\t1\t1\t今日は\r\n".encode())) == 2
    assert decode_semantic(b"") == ()


@pytest.mark.parametrize(
    "row",
    [
        b"a\t0\t1\t1",
        b"a 0 1 1 0.5",
        b"a\t0\tx\t1\t0.5",
        b"a\t2\t1\t1\t0.5",
        b"a\t0\tnan\t1\t0.5",
        b"a\t0\t1\t1\t1.5",
        b"a\t-1\t1\t1\t0.5",
        b"a\t0\t1\t1\t1\tk\tl",
        b"\t0\t1\t1\t1",
        b"a\x00\t0\t1\t1\t1",
    ],
)
def test_a_malformed_row_names_its_line(row):
    with pytest.raises(RecordingFault, match="line 2") as caught:
        decode_semantic(b"a\t0\t1\t1\t0.5\n" + row)
    assert caught.value.problem.code == "sem-invalid"


def test_wrong_encoding_names_the_offset():
    with pytest.raises(RecordingFault, match="offset 3"):
        decode_semantic(b"abc\xff")


@given(st.binary(max_size=100) | st.text(alphabet="a01.\t\n-e", max_size=60).map(str.encode))
def test_random_bytes_raise_only_findings(data):
    try:
        spans = decode_semantic(data)
    except RecordingFault:
        return
    assert all(0 <= span.start <= span.end for span in spans)
