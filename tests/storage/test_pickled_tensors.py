"""Files of torch.save give tensors, or one line: nothing else is built from them and no damage passes for weights."""

from __future__ import annotations

import argparse
import functools
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omniges.errors import DataError, EnvironmentFault, UsageFault
from omniges.storage.tensors import read_weight_list, read_weights

WEIGHTS = {"encoder.weight": torch.arange(12.0).reshape(3, 4), "scale": torch.tensor(2.5, dtype=torch.float64)}
ZIP_OR_LEGACY = pytest.mark.parametrize("as_zip", [True, False])


def saved(path: Path, value: object, *, as_zip: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=as_zip)
    return path


@functools.cache
def content(*, as_zip: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"net": WEIGHTS}, buffer, _use_new_zipfile_serialization=as_zip)
    return buffer.getvalue()


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in expected.items()
    )


class TestReading:
    @ZIP_OR_LEGACY
    def test_gives_the_tensors_that_were_saved(self, tmp_path, as_zip):
        assert same(read_weights(saved(tmp_path / "w.bin", WEIGHTS, as_zip=as_zip)), WEIGHTS)

    @ZIP_OR_LEGACY
    def test_of_one_entry_among_others(self, tmp_path, as_zip):
        path = saved(tmp_path / "w.pth", {"step": 3, "net": WEIGHTS, "optimizer": [1.0]}, as_zip=as_zip)
        assert same(read_weights(path, "net"), WEIGHTS)

    @ZIP_OR_LEGACY
    def test_of_a_list_without_names(self, tmp_path, as_zip):
        path = saved(tmp_path / "w.pt", {"decay": 0.9, "shadow_params": list(WEIGHTS.values())}, as_zip=as_zip)
        for mapped in (False, True):
            found = read_weight_list(path, "shadow_params", mapped=mapped)
            assert all(torch.equal(a, b) for a, b in zip(found, WEIGHTS.values(), strict=True))

    @pytest.mark.parametrize("value", [{"a": torch.ones(1)}, [], [1], torch.ones(1)])
    def test_what_is_no_list_of_tensors_is_refused(self, tmp_path, value):
        with pytest.raises(DataError, match="entry 'shadow_params'"):
            read_weight_list(saved(tmp_path / "w.pt", {"shadow_params": value}), "shadow_params")

    def test_mapped_it_is_the_same(self, tmp_path):
        assert same(read_weights(saved(tmp_path / "w.bin", WEIGHTS), mapped=True), WEIGHTS)

    def test_parameters_come_as_plain_tensors(self, tmp_path):
        path = saved(tmp_path / "w.pth", {"w": torch.nn.Parameter(torch.ones(2))})
        found = read_weights(path)["w"]
        assert type(found) is torch.Tensor
        assert not found.requires_grad


class Local:
    """Something that torch does not know."""


class TestWhatIsNotTensors:
    @ZIP_OR_LEGACY
    @pytest.mark.parametrize(
        ("value", "name"),
        [
            (argparse.Namespace(lr=1), "argparse.Namespace"),
            (Local(), "test_pickled_tensors.Local"),
            (Path("x"), "pathlib"),
            (np.zeros(3), "numpy"),
            (print, "print"),
            (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ],
    )
    def test_objects_are_named_and_not_loaded(self, tmp_path, value, name, as_zip):
        path = saved(tmp_path / "w.pth", {"net": value}, as_zip=as_zip)
        with pytest.raises(
            DataError, match=rf"w.pth: .* found a pickled Python object \({name}\S*\), which is never"
        ) as e:
            read_weights(path, "net")
        assert "\n" not in str(e.value)

    def test_a_program_in_a_file_does_not_run(self, tmp_path):
        class Program:
            def __reduce__(self):
                return (open, (str(tmp_path / "was here"), "w"))

        for as_zip in (True, False):
            with pytest.raises(DataError, match="pickled Python object"):
                read_weights(saved(tmp_path / "w.pth", {"net": Program()}, as_zip=as_zip))
        assert not (tmp_path / "was here").exists()

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ({"a": 3}, "expected a tensor, found a an object of type int"),
            ({"net": WEIGHTS}, "expected a tensor, found net a dictionary of 'encoder.weight', 'scale'"),
            (None, "expected tensors by name, found an object of type NoneType"),
            ([torch.ones(2)], "found an object of type list"),
            ({}, "found a dictionary of nothing"),
            ({3: torch.ones(2)}, "found the key 3"),
            ({"a\nb": torch.ones(2)}, r"found the key 'a\\nb'"),
            ({"a": torch.eye(3).to_sparse()}, "expected a plain, dense tensor, found a torch.sparse_coo on cpu"),
            ({"a": torch.ones(3, device="meta")}, "a torch.strided on meta"),
        ],
    )
    def test_is_said(self, tmp_path, value, message):
        with pytest.raises(DataError, match=message):
            read_weights(saved(tmp_path / "w.pth", value))

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (
                WEIGHTS,
                "expected a dictionary with weights under 'net', found a dictionary of 'encoder.weight', 'scale'",
            ),
            ([1], "expected a dictionary with weights under 'net', found an object of type list"),
            ({"net": torch.ones(2)}, "entry 'net': expected tensors by name, found a tensor"),
        ],
    )
    def test_an_entry_that_is_not_there_or_something_else(self, tmp_path, value, message):
        with pytest.raises(DataError, match=message):
            read_weights(saved(tmp_path / "w.pth", value), "net")

    @ZIP_OR_LEGACY
    def test_a_tensor_larger_than_its_file_is_not_believed(self, tmp_path, as_zip):
        path = saved(tmp_path / "w.pth", {"a": torch.zeros(1).expand(1 << 40)}, as_zip=as_zip)
        with pytest.raises(DataError, match=f"found {4 << 40} of a; "):
            read_weights(path)


class TestFiles:
    def test_that_are_not_there(self, tmp_path):
        with pytest.raises(UsageFault, match="the file does not exist"):
            read_weights(tmp_path / "w.pth")
        with pytest.raises(DataError, match="expected a regular file, found a folder"):
            read_weights(tmp_path)

    @pytest.mark.parametrize("data", [b"", b"PK", b"PK\x03\x04", b"<html>404</html>", b"version https://git-lfs\n" * 5])
    def test_of_another_kind(self, tmp_path, data):
        (tmp_path / "w.pth").write_bytes(data)
        with pytest.raises(DataError, match=r"w\.pth: .*download it again"):
            read_weights(tmp_path / "w.pth")

    def test_torchscript_is_a_program_and_refused(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_STORED) as archive:
            for name in ("data.pkl", "constants.pkl", "version"):
                archive.writestr(f"w/{name}", b"3\n")
        with pytest.raises(DataError, match="TorchScript"):
            read_weights(tmp_path / "w.pth")

    def test_repacked_with_compression(self, tmp_path):
        with (
            zipfile.ZipFile(io.BytesIO(content(as_zip=True))) as old,
            zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as new,
        ):
            for name in old.namelist():
                new.writestr(name, old.read(name))
        with pytest.raises(DataError, match="compressed"):
            read_weights(tmp_path / "w.pth", "net")

    def test_a_torch_with_an_unsafe_reader_reads_none(self, tmp_path, monkeypatch):
        path = saved(tmp_path / "w.pth", WEIGHTS)
        for release in ("2.6.0", "2.9.1+cpu"):
            monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(release))
            with pytest.raises(
                EnvironmentFault, match=rf"expected torch 2\.10 or newer .*, found {release.partition('+')[0]}"
            ):
                read_weights(path)
        monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.10.0"))
        assert same(read_weights(path), WEIGHTS)


class TestDamage:
    def test_data_marked_as_a_folder_is_not_read_as_whatever_was_in_memory(self, tmp_path):
        data = bytearray(content(as_zip=True))
        entry = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
        while data[entry + 46 : entry + 60] != b"archive/data/0":
            entry = data.index(b"PK\x01\x02", entry + 1)
        data[entry + 38] |= 0x10
        (tmp_path / "w.pth").write_bytes(data)
        with pytest.raises(DataError, match="'archive/data/0' marked as a folder"):
            read_weights(tmp_path / "w.pth", "net")

    def test_a_directory_that_points_out_of_the_file(self, tmp_path):
        data = bytearray(content(as_zip=True))
        data[data.index(b"PK\x06\x06") + 50] ^= 0x80  # of the directory's place
        (tmp_path / "w.pth").write_bytes(data)
        with pytest.raises(DataError, match="expected offsets inside the archive"):
            read_weights(tmp_path / "w.pth", "net")

    @given(as_zip=st.booleans(), part=st.floats(0, 1, exclude_max=True), mapped=st.booleans())
    def test_a_file_cut_anywhere_is_refused_in_one_line(self, tmp_path_factory, as_zip, part, mapped):
        data = content(as_zip=as_zip)
        path = tmp_path_factory.getbasetemp() / "cut.pth"
        path.write_bytes(data[: int(part * len(data))])
        with pytest.raises(DataError, match=r"cut\.pth: ") as error:
            read_weights(path, "net", mapped=mapped)
        assert "\n" not in str(error.value)

    @given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), mapped=st.booleans())
    def test_a_flipped_bit_is_refused_or_changes_nothing(self, tmp_path_factory, place, bit, mapped):
        data = bytearray(content(as_zip=True))
        data[int(place * len(data))] ^= 1 << bit
        path = tmp_path_factory.getbasetemp() / "flipped.pth"
        path.write_bytes(data)
        try:
            found = read_weights(path, "net", mapped=mapped)
        except DataError as error:
            assert "\n" not in str(error)
        else:
            assert same(found, WEIGHTS)

    @given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
    def test_a_flipped_bit_of_the_old_format_is_one_line_or_weights(self, tmp_path_factory, place, bit):
        data = bytearray(content(as_zip=False))
        data[int(place * len(data))] ^= 1 << bit
        path = tmp_path_factory.getbasetemp() / "flipped.pth"
        path.write_bytes(data)
        try:
            found = read_weights(path, "net")
        except DataError as error:
            assert "\n" not in str(error)
        else:
            assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())
