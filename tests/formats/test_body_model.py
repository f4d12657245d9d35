"""Body model files: needed arrays as numpy reads them, everything else refused in words and never unpickled."""

from __future__ import annotations

import io
import pickle
import zipfile

import numpy as np
import pytest
from body_builders import TREE, body_arrays, body_file
from hypothesis import given, settings
from hypothesis import strategies as st
from recording_builders import npy_header

from omniges.errors import RecordingFault
from omniges.formats.arrays import decode_npy
from omniges.formats.body_model import decode_body_model

GOOD = body_file(20)


def fault_of(data: bytes) -> RecordingFault:
    with pytest.raises(RecordingFault) as caught:
        decode_body_model(data)
    return caught.value


def test_arrays_are_those_that_numpy_reads_and_objects_beside_them_are_passed_over() -> None:
    found = decode_body_model(GOOD)
    with np.load(io.BytesIO(GOOD), allow_pickle=False) as reference:
        np.testing.assert_array_equal(found.template, reference["v_template"])
        np.testing.assert_array_equal(found.shape_directions, reference["shapedirs"][..., :300])
        np.testing.assert_array_equal(found.expression_directions, reference["shapedirs"][..., 300:])
        np.testing.assert_array_equal(found.pose_directions, reference["posedirs"])
        np.testing.assert_array_equal(found.joint_regressor, reference["J_regressor"])
        np.testing.assert_array_equal(found.weights, reference["weights"])
        np.testing.assert_array_equal(found.mean_hands[45:], reference["hands_meanr"])
        with pytest.raises(ValueError, match="allow_pickle"):
            reference["joint2num"]
        np.testing.assert_array_equal(found.triangles, reference["f"])
    assert found.parents == tuple(TREE)


def test_faces_may_be_absent() -> None:
    assert decode_body_model(body_file(20, f=None)).triangles is None


def test_expression_directions_in_an_array_of_their_own() -> None:
    arrays = body_arrays(20)
    split = body_file(20, shapedirs=arrays["shapedirs"][..., :300], exprdirs=arrays["shapedirs"][..., 300:])
    for name in ("shape_directions", "expression_directions"):
        np.testing.assert_array_equal(getattr(decode_body_model(split), name), getattr(decode_body_model(GOOD), name))


@pytest.mark.parametrize("parent", [-1, 2**32 - 1])
def test_the_pelvis_has_no_parent_however_it_is_written(parent: int) -> None:
    table = np.array([[parent, *TREE[1:]], range(55)], dtype=np.int64)
    assert decode_body_model(body_file(20, kintree_table=table)).parents[0] == -1


WRONG = body_arrays(20)


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"posedirs": None}, "npz-missing-key", "no posedirs among"),
        ({"hands_meanl": None}, "npz-missing-key", "hands_meanl"),
        ({"J_regressor": np.array({"sparse": 1}, dtype=object)}, "npz-object-array", "pickled objects in J_regressor"),
        ({"shapedirs": WRONG["shapedirs"][..., :20]}, "npz-wrong-shape", "300 shape and 100 expression directions"),
        ({"weights": WRONG["weights"][:, :52]}, "npz-wrong-shape", "weights of shape (20, 52)"),
        ({"J_regressor": WRONG["J_regressor"][:, :19]}, "npz-wrong-shape", "J_regressor of shape (55, 19)"),
        ({"v_template": np.zeros((0, 3))}, "npz-wrong-shape", "(vertices, 3)"),
        ({"v_template": np.zeros((20, 3), dtype=np.int64)}, "npz-wrong-dtype", "float32 or float64"),
        ({"kintree_table": np.zeros((2, 55))}, "npz-wrong-dtype", "whole numbers"),
        ({"kintree_table": np.zeros((2, 55), np.int64)}, "npz-damaged", "no tree"),
        ({"weights": WRONG["weights"] * 2}, "npz-out-of-range", "sum to 2"),
        ({"f": np.array([[0, 1, 20]])}, "npz-out-of-range", "vertices that are not there"),
        ({"f": np.array([[0, 1, -1]])}, "npz-out-of-range", "vertices that are not there"),
        ({"f": np.zeros((4, 4), np.uint32)}, "npz-wrong-shape", "f of shape (4, 4)"),
        ({"f": np.zeros((4, 3))}, "npz-wrong-dtype", "whole numbers"),
        ({"posedirs": WRONG["posedirs"] * np.nan}, "npz-not-finite", "posedirs"),
    ],
)
def test_what_is_no_such_model_is_refused(changes: dict, code: str, words: str) -> None:
    fault = fault_of(body_file(20, **changes))
    assert fault.problem.code == code
    assert words in str(fault)


def test_a_pickle_is_not_opened() -> None:
    fault = fault_of(pickle.dumps({"v_template": np.zeros((20, 3))}))
    assert "a pickle, which runs code" in str(fault)
    assert "the model as .npz" in str(fault)


def test_a_claim_beyond_the_file_allocates_nothing() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(GOOD)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, npy_header("(1000000000, 3, 400)", "'<f8'") if name == "shapedirs.npy" else content)
    fault = fault_of(buffer.getvalue())
    assert fault.problem.code == "npz-damaged"
    assert "expected 9600000000000 bytes, found" in str(fault)


@given(st.integers(0, len(GOOD) - 1))
@settings(max_examples=40, deadline=None)
def test_a_file_cut_anywhere_is_refused(length: int) -> None:
    with pytest.raises(RecordingFault, match="npz-"):
        decode_body_model(GOOD[:length])


class TestNpy:
    @pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8", "<i4", ">u2", "|i1"])
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_numbers_are_those_that_numpy_reads(self, dtype: str, order: str) -> None:
        buffer = io.BytesIO()
        np.save(buffer, np.asarray(np.arange(12).reshape(3, 4), dtype, order=order))
        found = decode_npy(buffer.getvalue())
        np.testing.assert_array_equal(found, np.arange(12).reshape(3, 4))
        assert found.dtype.isnative

    def test_what_holds_no_numbers_or_lies_is_refused(self) -> None:
        buffer = io.BytesIO()
        np.save(buffer, np.array({"a": 1}, dtype=object), allow_pickle=True)
        for data, words in (
            (buffer.getvalue(), "pickled objects"),
            (b"", "with the first bytes"),
            (npy_header("(1000000000000,)", "'<f8'"), "expected 8000000000000 bytes"),
            (npy_header("(1,)", "'<U3'") + b"\0" * 12, "an array of <U3"),
        ):
            with pytest.raises(RecordingFault, match=words):
                decode_npy(data)
