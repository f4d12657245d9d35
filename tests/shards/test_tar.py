"""Segments are plain tar members: the standard library reads back every byte, and arrays start aligned."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, floating_dtypes

from omniges.shards.tar import END_OF_ARCHIVE, NPY_MAGIC, build_segment, member_header, npy_parts, read_npy

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


contract_arrays: st.SearchStrategy[np.ndarray] = st.sampled_from([np.float32, np.float64]).flatmap(
    lambda kind: arrays(np.dtype(kind), array_shapes(min_dims=1, max_dims=3, min_side=0))
)


def saved(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


class TestReadNpy:
    @given(contract_arrays)
    def test_what_numpy_saves_reads_as_numpy_loads_it(self, array: np.ndarray) -> None:
        found = read_npy(memoryview(saved(array)))
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert found.tobytes() == array.tobytes()

    @given(contract_arrays, st.data())
    def test_a_damaged_header_is_refused_or_gives_the_same_array(self, array: np.ndarray, data: st.DataObject) -> None:
        sound = saved(array)
        start = len(sound) - array.nbytes
        damaged = bytearray(sound)
        for _ in range(data.draw(st.integers(1, 3))):
            damaged[data.draw(st.integers(0, start - 1))] = data.draw(st.integers(0, 255))
        try:
            found = read_npy(bytes(damaged))
        except ValueError:
            return
        # Another type or shape of as many bytes is an array too; never are its bytes others.
        assert found.tobytes() == array.tobytes()

    @given(contract_arrays, st.data())
    def test_any_other_length_is_refused(self, array: np.ndarray, data: st.DataObject) -> None:
        sound = saved(array)
        cut = data.draw(st.integers(0, len(sound) - 1))
        for damaged in (sound[:cut], sound + b"\0"):
            with pytest.raises(ValueError, match=r"npy version 1\.0|for an array"):
                read_npy(damaged)

    @pytest.mark.parametrize(
        "text",
        [
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 999999999999999999, 999999999999999999), }",
            "{'descr': '<f4', 'fortran_order': True, 'shape': (0, 2), }",
            "{'descr': '>f4', 'fortran_order': False, 'shape': (0,), }",
            "{'descr': '|O', 'fortran_order': False, 'shape': (0,), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "0, " * 99 + "0), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (0",
            "(" * 5000,
        ],
        ids=lambda text: text[:70],
    )
    def test_claims_cost_nothing(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"npy version 1\.0|for an array|dimension|too big"):
            read_npy(NPY_MAGIC + (len(text) + 1).to_bytes(2, "little") + text.encode() + b"\n")
