"""Segments are plain tar members: the standard library reads back every byte, and arrays start aligned."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, floating_dtypes

from omniges.shards.tar import END_OF_ARCHIVE, build_segment, member_header, npy_parts

names = st.from_regex(r"\A[A-Za-z0-9_-]{1,86}\Z")
contents = st.dictionaries(
    st.sampled_from(["json", "gesture.npy", "flac", "words.json"]), st.binary(max_size=2000), min_size=1
)


class TestSegments:
    @given(names, contents)
    def test_the_standard_library_reads_the_members_in_order(self, key: str, members: dict[str, bytes]) -> None:
        segment = build_segment(key, {name: (data[:7], data[7:]) for name, data in members.items()})
        whole = b"".join(segment.buffers)
        assert len(whole) == segment.size
        with tarfile.open(fileobj=io.BytesIO(whole + END_OF_ARCHIVE), mode="r:") as archive:
            read = {info.name: archive.extractfile(info).read() for info in archive}  # type: ignore[union-attr]
        assert read == {f"{key}.{name}": data for name, data in members.items()}
        assert list(read) == [f"{key}.{name}" for name in members]
        for name, data in members.items():
            start = segment.data_offsets[name]
            assert start % 512 == 0
            assert whole[start : start + segment.data_sizes[name]] == data

    @given(names, st.integers(0, 8**11 - 1))
    def test_headers_hold_nothing_of_when_or_where(self, name: str, size: int) -> None:
        info = tarfile.TarInfo.frombuf(member_header(name, size), "ascii", "strict")
        assert (info.name, info.size, info.mode, info.type) == (name, size, 0o644, tarfile.REGTYPE)
        assert (info.mtime, info.uid, info.gid, info.uname, info.gname) == (0, 0, 0, "", "")

    @pytest.mark.parametrize(("name", "size"), [("", 1), ("a" * 101, 1), ("a", 8**11), ("a", -1)])
    def test_what_needs_an_extension_header_is_refused(self, name: str, size: int) -> None:
        with pytest.raises(ValueError, match="does not fit"):
            member_header(name, size)


class TestArrays:
    @given(arrays(floating_dtypes(endianness="<"), array_shapes(min_dims=1, max_dims=3, min_side=0)))
    def test_bytes_are_those_of_numpys_own_writer(self, array: np.ndarray) -> None:
        header, data = npy_parts(array)
        expected = io.BytesIO()
        np.save(expected, array, allow_pickle=False)
        assert header + bytes(data) == expected.getvalue()
        assert len(header) % 64 == 0

    @pytest.mark.parametrize("array", [np.zeros((3, 4))[:, ::2], np.zeros(3, ">f4"), np.array([None])])
    def test_what_would_need_a_copy_or_a_pickle_is_refused(self, array: np.ndarray) -> None:
        with pytest.raises(ValueError, match="C-contiguous little-endian"):
            npy_parts(array)
