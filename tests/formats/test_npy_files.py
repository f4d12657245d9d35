"""An .npy file gives its array, or one line that names it."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniges.errors import DataError, UsageFault
from omniges.formats.arrays import read_array

ARRAY = np.arange(12, dtype=np.float32).reshape(3, 4)


class TestReading:
    @pytest.mark.parametrize("array", [ARRAY, ARRAY.T, ARRAY.astype(">f8"), ARRAY[0], np.int64(3)])
    def test_gives_the_array(self, tmp_path, array):
        np.save(tmp_path / "a.npy", array)
        found = read_array(tmp_path / "a.npy", "expected numbers")
        assert found.dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found, array)

    def test_a_pipe_in_its_place_is_named_and_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "a.npy")
        with pytest.raises(DataError, match="expected a regular file, found a pipe"):
            read_array(tmp_path / "a.npy", "expected numbers")

    def test_files_that_are_not_there(self, tmp_path):
        with pytest.raises(
            UsageFault, match=r"a\.npy: expected numbers, found that the file does not exist; check the path"
        ):
            read_array(tmp_path / "a.npy", "expected numbers")

    def test_pickled_objects(self, tmp_path):
        np.save(tmp_path / "a.npy", np.array([{}, None]), allow_pickle=True)
        with pytest.raises(DataError, match=r"a\.npy: expected numbers, found .*objects"):
            read_array(tmp_path / "a.npy", "expected numbers")

    @pytest.mark.parametrize("data", [b"", b"\x93NUMPY", b"PK\x03\x04 an archive", b"\x80\x04 a pickle"])
    def test_another_kind(self, tmp_path, data):
        (tmp_path / "a.npy").write_bytes(data)
        with pytest.raises(DataError, match=r"a\.npy: expected numbers, found "):
            read_array(tmp_path / "a.npy", "expected numbers")

    @pytest.mark.parametrize("shape", [(1 << 40,), (3, 1 << 62), (10**30,), (-3, 4)])
    def test_a_header_that_claims_more_than_the_file_has(self, tmp_path, shape):
        with (tmp_path / "a.npy").open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.write(ARRAY.tobytes())
        with pytest.raises(DataError, match=r"a\.npy: expected numbers, found "):
            read_array(tmp_path / "a.npy", "expected numbers")

    @given(place=st.integers(0, 175), bit=st.integers(0, 7), length=st.integers(0, 176))
    def test_any_damage_is_one_line_or_an_array(self, tmp_path_factory, place, bit, length):
        path = tmp_path_factory.getbasetemp() / "damaged.npy"
        np.save(path, ARRAY)
        data = bytearray(path.read_bytes())
        data[place] ^= 1 << bit
        path.write_bytes(data[:length])
        try:
            assert isinstance(read_array(path, "expected numbers"), np.ndarray)
        except DataError as error:
            assert "\n" not in str(error)
