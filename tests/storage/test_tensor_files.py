"""A safetensors file with claims that torch cannot read gives an error of one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from omniges.errors import DataError
from omniges.storage.tensors import TensorFile, kinds_of, read_tensors


def _written(path: Path, dtype: str, shape: list[int], size: int) -> Path:
    header = json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\1" * size)
    return path


@pytest.mark.parametrize(
    ("dtype", "shape", "size"), [("F6_E2M3", [4], 3), ("F32", [0, 1 << 63], 0), ("F32", [1 << 63, 0], 0)]
)
def test_a_tensor_that_torch_cannot_hold_is_bad_data(tmp_path: Path, dtype: str, shape: list[int], size: int) -> None:
    path = _written(tmp_path / "x.safetensors", dtype, shape, size)
    with pytest.raises(
        DataError, match=r"x\.safetensors: expected a tensor, found 'a', which cannot be read"
    ) as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)


def test_a_type_without_a_place_in_omniges_is_named_from_the_header(tmp_path: Path) -> None:
    path = _written(tmp_path / "x.safetensors", "C64", [1], 8)
    with pytest.raises(DataError, match=r"found tensor 'a' of type C64"):
        kinds_of(TensorFile(path))
