"""NPZ: the arrays are what numpy reads, or the reason is named; nothing is unpickled or over-allocated."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recording_builders import SAMPLE, motion, needs_sample, npy, npy_header, npz, npz_raw, split_motion

from omniges.errors import RecordingFault
from omniges.formats.arrays import MAX_TOTAL_BYTES
from omniges.formats.npz import decode_motion, encode_motion, write_motion

GOOD = npz(motion(2))
MEMBERS = {key: npy(array) for key, array in motion(2).items()}


def fault_of(data: bytes) -> RecordingFault:
    with pytest.raises(RecordingFault) as caught:
        decode_motion(data)
    return caught.value


def code_of(data: bytes) -> str:
    return fault_of(data).problem.code


def axis_angle(x: float, y: float, z: float, frames: int = 5) -> np.ndarray:
    poses = motion(frames)["poses"].copy()
    poses[:, :3] = (x, y, z)
    return poses


@given(st.integers(1, 20), st.booleans(), st.sampled_from(["<f4", ">f4", "<f8", ">f8"]), st.booleans())
@settings(deadline=None)
def test_arrays_are_those_that_numpy_reads(frames, compressed, dtype, fortran):
    arrays = motion(frames)
    for key in ("poses", "expressions", "trans", "betas"):
        arrays[key] = np.asarray(arrays[key], dtype, order="F" if fortran else "C")
    data = npz(arrays, compressed=compressed)
    got = decode_motion(data)
    with np.load(io.BytesIO(data), allow_pickle=False) as reference:
        for key in ("poses", "expressions", "trans", "betas"):
            array = getattr(got, key)
            np.testing.assert_array_equal(array, reference[key])
            assert array.dtype.isnative
            assert array.dtype.itemsize == int(dtype[-1])
            assert array.flags.c_contiguous
    assert (got.gender, got.model, got.key_style, got.notes) == ("neutral", "smplx2020", "beat2", ())
    assert (got.frame_rate_hz, got.frame_stride, got.source_frames, got.betas_columns) == (30, 1, frames, 300)


@needs_sample
def test_the_real_file():
    data = (SAMPLE / "smplxflame_30" / "2_scott_0_1_1.npz").read_bytes()
    got = decode_motion(memoryview(data))
    with np.load(io.BytesIO(data), allow_pickle=False) as reference:
        for key in ("poses", "expressions", "trans", "betas"):
            np.testing.assert_array_equal(getattr(got, key), reference[key], strict=True)
    assert got.poses.shape == (1906, 165)
    assert (got.gender, got.model, got.key_style, got.frame_rate_hz) == ("neutral", "smplx2020", "beat2", 30)


@given(st.integers(1, 6), st.sampled_from([10, 16, 300]), st.sampled_from([np.float32, np.float64]))
@settings(deadline=None)
def test_encode_is_deterministic_stored_and_readable_by_numpy(frames, columns, betas_dtype):
    a = motion(frames)
    betas = a["betas"][:columns].astype(betas_dtype)
    words = {"gender": "neutral", "model": "smplx2020"}
    data = encode_motion(a["poses"], a["expressions"], a["trans"], betas, **words)
    assert data == encode_motion(a["poses"].copy(), a["expressions"], a["trans"], betas, **words)
    assert all(i.compress_type == zipfile.ZIP_STORED for i in zipfile.ZipFile(io.BytesIO(data)).infolist())
    with np.load(io.BytesIO(data), allow_pickle=False) as reference:
        dtypes = {key: reference[key].dtype.str for key in reference.files}
        assert reference["mocap_frame_rate"].shape == ()
    assert dtypes == {
        "betas": np.dtype(betas_dtype).str,
        "poses": "<f4",
        "expressions": "<f8",
        "trans": "<f8",
        "model": "<U9",
        "gender": "<U7",
        "mocap_frame_rate": "<i4",
    }
    got = decode_motion(data)
    np.testing.assert_array_equal(got.poses, a["poses"], strict=True)
    np.testing.assert_array_equal(got.trans, a["trans"], strict=True)
    np.testing.assert_array_equal(got.betas[: got.betas_columns], betas, strict=True)


def test_encode_refuses_other_shapes():
    a = motion(3)
    with pytest.raises(ValueError, match="expressions"):
        encode_motion(a["poses"], a["expressions"][:2], a["trans"], a["betas"], gender="", model="")
    with pytest.raises(ValueError, match="betas"):
        encode_motion(a["poses"], a["expressions"], a["trans"], a["betas"][None], gender="", model="")


def test_split_keys_are_assembled_to_the_same_columns():
    got = decode_motion(npz(split_motion(5)))
    np.testing.assert_array_equal(got.poses, motion(5)["poses"], strict=True)
    assert got.key_style == "split"
    arrays = split_motion(4, mocap_frame_rate=None, mocap_framerate=120.0, expressions=None)
    arrays["expression"] = motion(4)["expressions"]
    got = decode_motion(npz(arrays))
    np.testing.assert_array_equal(got.expressions, motion(4)["expressions"][::4])
    assert (got.frame_rate_hz, got.frame_stride, got.source_frames) == (120, 4, 4)


@pytest.mark.parametrize(
    ("rate", "stride"),
    [
        (np.int32(30), 1),
        (30.0, 1),
        (np.array([60]), 2),
        (np.float32(90), 3),
        (120, 4),
        (59.9999885559082, 2),
        (119.999985, 4),
        (30.00001, 1),
    ],
)
def test_whole_multiples_of_30_keep_every_kth_frame(rate, stride):
    got = decode_motion(npz(motion(7, mocap_frame_rate=rate)))
    for key in ("poses", "expressions", "trans"):
        np.testing.assert_array_equal(getattr(got, key), motion(7)[key][::stride])
        assert getattr(got, key).flags.c_contiguous
    assert (got.frame_rate_hz, got.frame_stride, got.source_frames) == (30 * stride, stride, 7)
    assert [note.code for note in got.notes] == (["motion-decimated"] if stride > 1 else [])


@pytest.mark.parametrize("rate", [29.97, 29.999, 59.94, 119.9, 0, -30, 25, 45, np.nan, np.inf, 15, 10**9])
def test_other_rates_are_refused(rate):
    assert code_of(npz(motion(mocap_frame_rate=rate))) == "npz-frame-rate"


@pytest.mark.parametrize("columns", [10, 16, 300])
@pytest.mark.parametrize("form", ["vector", "row", "tile"])
def test_betas_of_every_length_and_form(columns, form):
    vector = motion()["betas"][:columns]
    given_as = {"vector": vector, "row": vector[None], "tile": np.tile(vector, (5, 1))}[form]
    got = decode_motion(npz(motion(5, betas=given_as)))
    assert got.betas_columns == columns
    np.testing.assert_array_equal(got.betas[:columns], vector)
    assert got.betas.shape == (300,)
    assert not got.betas[columns:].any()
    assert [note.code for note in got.notes] == ([] if columns == 300 else ["betas-extended"])


def test_betas_that_change_over_time_are_refused():
    tile = np.tile(motion()["betas"], (5, 1))
    tile[3, 7] += 1
    assert "row 3" in fault_of(npz(motion(5, betas=tile))).problem.found


@pytest.mark.parametrize("key", ["poses", "trans"])
def test_a_missing_key_is_named(key):
    problem = fault_of(npz(motion(**{key: None}))).problem
    assert (problem.code, problem.expected) == ("npz-missing-key", key)


@pytest.mark.parametrize("key", ["pose_body", "trans"])
def test_a_missing_split_key_is_named(key):
    problem = fault_of(npz(split_motion(**{key: None}))).problem
    assert (problem.code, problem.expected) == ("npz-missing-key", key)


@pytest.mark.parametrize(
    ("changes", "code", "word"),
    [
        ({"poses": np.zeros((5, 156), "f4")}, "npz-wrong-shape", "SMPL-H"),
        ({"poses": np.zeros((5, 55, 3), "f4")}, "npz-wrong-shape", "(5, 55, 3)"),
        ({"poses": np.float32(3)}, "npz-wrong-shape", "()"),
        ({"expressions": np.zeros((5, 101))}, "npz-wrong-shape", "(5, 101)"),
        ({"expressions": np.zeros((5, 0))}, "npz-wrong-shape", "(5, 0)"),
        ({"trans": np.zeros(5)}, "npz-wrong-shape", "(5,)"),
        ({"betas": np.zeros(301)}, "npz-wrong-shape", "(301,)"),
        ({"betas": np.zeros(0)}, "npz-wrong-shape", "(0,)"),
        ({"betas": np.zeros((4, 300))}, "npz-wrong-shape", "(4, 300)"),
        ({"poses": np.zeros((5, 165), "i4")}, "npz-wrong-dtype", "<i4"),
        ({"poses": np.zeros((5, 165), "c8")}, "npz-wrong-dtype", "<c8"),
        ({"betas": np.array("word")}, "npz-wrong-dtype", "<U4"),
        ({"betas": np.zeros(3, "f4,f4")}, "npz-wrong-dtype", "betas"),
        ({"mocap_frame_rate": np.array("30")}, "npz-wrong-dtype", "mocap_frame_rate"),
        ({"mocap_frame_rate": np.array([30, 30])}, "npz-wrong-dtype", "(2,)"),
        ({"trans": np.zeros((4, 3))}, "npz-unequal-lengths", "trans 4"),
        ({"trans": np.full((5, 3), 1001.0)}, "npz-out-of-range", "trans: 1001"),
        ({"poses": np.full((5, 165), 13.0)}, "npz-out-of-range", "frame 0, column 0, 825 such"),
        ({"expressions": np.full((5, 100), -2e4)}, "npz-out-of-range", "expressions"),
        ({"betas": np.full(300, 2e3)}, "npz-out-of-range", "betas"),
        ({"betas": np.full(300, np.nan)}, "npz-not-finite", "betas"),
    ],
)
def test_unfit_arrays_are_named(changes, code, word):
    problem = fault_of(npz(motion(**changes))).problem
    assert problem.code == code
    assert word in problem.found


def smplx_motion(frames: int = 5, **changes: object) -> dict[str, np.ndarray]:
    """The same motion as the package smplx calls its arrays, joints with an axis of their own."""
    whole = motion(frames)
    poses, trans = whole.pop("poses"), whole.pop("trans")
    parts = {
        "global_orient": poses[:, :3],
        "body_pose": poses[:, 3:66].reshape(-1, 21, 3),
        "jaw_pose": poses[:, 66:69],
        "leye_pose": poses[:, 69:72],
        "reye_pose": poses[:, 72:75],
        "left_hand_pose": poses[:, 75:120].reshape(-1, 15, 3),
        "right_hand_pose": poses[:, 120:],
        "transl": trans,
    }
    arrays = {**whole, **parts, **changes}
    return {key: np.asarray(value) for key, value in arrays.items() if value is not None}


class TestMotionOfOthers:
    """Files of other tools: missing parts are absent, never invented; other names and types are read with a note."""

    def test_keys_of_smplx_give_the_same_columns(self):
        got = decode_motion(npz(smplx_motion()))
        assert (got.key_style, [note.code for note in got.notes]) == ("smplx", ["npz-smplx-keys"])
        for name in ("poses", "trans", "expressions"):
            np.testing.assert_array_equal(getattr(got, name), motion()[name], strict=True)
        assert not got.absent

    @pytest.mark.parametrize("columns", [1, 10, 50, 99])
    def test_fewer_expressions_are_extended_with_zeros(self, columns):
        got = decode_motion(npz(motion(expressions=motion()["expressions"][:, :columns])))
        np.testing.assert_array_equal(got.expressions[:, :columns], motion()["expressions"][:, :columns])
        assert got.expressions.shape == (5, 100)
        assert not got.expressions[:, columns:].any()
        assert [note.code for note in got.notes] == ["expressions-extended"]

    @pytest.mark.parametrize("columns", [0, 1, 11, 20, 299])
    def test_any_number_of_betas(self, columns):
        betas = motion()["betas"][:columns] if columns else None
        got = decode_motion(npz(motion(betas=betas)))
        assert (got.betas_columns, got.betas.shape) == (columns, (300,))
        np.testing.assert_array_equal(got.betas[:columns], motion()["betas"][:columns])
        assert [note.code for note in got.notes] == ["betas-extended"]

    @pytest.mark.parametrize("build", [split_motion, smplx_motion])
    @pytest.mark.parametrize(
        ("lost", "absent"),
        [
            (("pose_hand", "left_hand_pose"), {"hands"}),
            (("pose_hand", "left_hand_pose", "right_hand_pose"), {"hands"}),
            (("pose_jaw", "jaw_pose"), {"jaw_eyes"}),
            (("pose_eye", "reye_pose"), {"jaw_eyes"}),
            (("expressions",), {"face"}),
            (("pose_hand", "right_hand_pose", "pose_jaw", "jaw_pose", "expressions"), {"hands", "jaw_eyes", "face"}),
        ],
    )
    def test_what_is_not_there_is_absent(self, build, lost, absent):
        arrays = build()
        got = decode_motion(npz({key: array for key, array in arrays.items() if key not in lost}))
        assert got.absent == absent
        there = ~np.isnan(got.poses[0])
        np.testing.assert_array_equal(got.poses[:, there], motion()["poses"][:, there])
        assert "motion-parts-absent" in {note.code for note in got.notes}
        rest = got.at_rest()
        assert not rest.absent
        assert not rest.poses[:, ~there].any()

    @pytest.mark.parametrize(
        "arrays",
        [
            split_motion(5, pose_hand=np.zeros((5, 24))),
            split_motion(5, pose_hand=np.zeros((5, 12))),
            smplx_motion(5, left_hand_pose=np.zeros((5, 6)), right_hand_pose=np.zeros((5, 6))),
            smplx_motion(5, left_hand_pose=np.zeros((5, 12))),
        ],
    )
    def test_pca_hands_are_absent_and_named(self, arrays):
        got = decode_motion(npz(arrays))
        assert got.absent == {"hands"}
        (found,) = [note.found for note in got.notes if note.code == "motion-parts-absent"]
        assert "PCA columns" in found

    def test_float16_is_taken_with_a_note(self):
        got = decode_motion(npz(motion(poses=motion()["poses"].astype("f2"), betas=motion()["betas"].astype("f2"))))
        assert got.poses.dtype == got.betas.dtype == np.float32
        np.testing.assert_allclose(got.poses, motion()["poses"], atol=2e-3)
        assert [(note.code, note.found) for note in got.notes] == [("npz-float16", "betas, poses")]

    def test_without_a_rate_it_is_refused_unless_one_is_given(self):
        data = npz(motion(7, mocap_frame_rate=None))
        assert code_of(data) == "npz-no-rate"
        assert len(decode_motion(data, rate_hz=60).poses) == 4
        with pytest.raises(RecordingFault, match="--motion-rate 25"):
            decode_motion(data, rate_hz=25)
        assert len(decode_motion(npz(motion(7)), rate_hz=60).poses) == 7  # the file's own rate comes first

    def test_z_up_is_refused_with_the_remedy(self):
        poses = motion()["poses"].copy()
        poses[:, :3] = [np.pi / 2, 0, 0]
        fault = fault_of(npz(motion(poses=poses)))
        assert fault.problem.code == "npz-not-y-up"
        assert "by -90 degrees about x if z is up" in str(fault.refusal("a.npz"))


def test_no_frames():
    empty = {"poses": np.zeros((0, 165)), "expressions": np.zeros((0, 100)), "trans": np.zeros((0, 3))}
    assert code_of(npz(motion(**empty))) == "npz-no-frames"


@pytest.mark.parametrize("key", ["poses", "expressions", "trans"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named_with_place_and_count(key, value):
    array = motion(5)[key].copy()
    array[3, 2] = array[4, 1] = value
    problem = fault_of(npz(motion(5, **{key: array}))).problem
    assert problem.code == "npz-not-finite"
    assert f"{key}:" in problem.found
    assert "frame 3, column 2, 2 such" in problem.found


@pytest.mark.parametrize(
    ("root", "axis"),
    [((np.pi / 2, 0, 0), "+z"), ((-np.pi / 2, 0, 0), "-z"), ((0, 0, np.pi / 2), "-x"), ((np.pi, 0, 0), "-y")],
)
def test_a_body_that_does_not_stand_along_y_is_refused(root, axis):
    problem = fault_of(npz(motion(poses=axis_angle(*root)))).problem
    assert problem.code == "npz-not-y-up"
    assert f"along {axis}" in problem.found
    lying = decode_motion(npz(motion(poses=axis_angle(*root))), standing=False)  # as a model's motion may be
    np.testing.assert_array_equal(lying.poses, axis_angle(*root))


@pytest.mark.parametrize("root", [(0, 0, 0), (0, np.pi, 0), (0.5, 1.0, 0.3), (0, 2 * np.pi, 0)])
def test_a_body_that_turns_about_y_is_upright(root):
    decode_motion(npz(motion(poses=axis_angle(*root))))


class Touch:
    """An object whose unpickling would make a directory."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("key", ["poses", "expressions", "trans", "betas", "mocap_frame_rate"])
def test_pickled_objects_are_refused_and_never_loaded(key, tmp_path):
    trap = np.empty(1, object)
    trap[0] = Touch(tmp_path / "touched")
    data = npz(motion(**{key: trap}))
    with np.load(io.BytesIO(data), allow_pickle=True) as loaded:  # the trap works
        loaded[key]
    (tmp_path / "touched").rmdir()
    assert code_of(data) == "npz-object-array"
    assert not (tmp_path / "touched").exists()


def test_optional_fields_are_never_made_up_nor_unpickled(tmp_path):
    trap = np.empty((), object)
    trap[()] = Touch(tmp_path / "touched")
    got = decode_motion(npz(motion(gender=trap, model=None)))
    assert (got.gender, got.model) == ("", "")
    assert not (tmp_path / "touched").exists()
    got = decode_motion(npz(motion(gender=np.array(b"male"), model=np.array([1, 2]), other=trap)))
    assert (got.gender, got.model) == ("male", "")


def peak_of(data: bytes) -> tuple[str, int]:
    tracemalloc.start()
    try:
        return code_of(data), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_zip_bomb_is_refused_in_little_memory():
    head = npy_header("(3000000, 165)")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(head) + b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    size = len(head) + 3_000_000 * 165 * 4
    bomb = one_member_archive(b"poses.npy", packed, size, MEMBERS)
    code, peak = peak_of(bomb)
    assert code == "npz-too-large"
    assert size > MAX_TOTAL_BYTES
    assert peak < 4 << 20


def test_a_member_that_unpacks_to_more_than_it_claims_is_refused_in_little_memory():
    head = npy_header("(2, 165)")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(head) + b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    code, peak = peak_of(one_member_archive(b"poses.npy", packed, len(head) + 2 * 165 * 4, MEMBERS))
    assert code == "npz-damaged"
    assert peak < 4 << 20


@pytest.mark.parametrize("extra", [-4, 1, 4])
def test_a_member_of_another_length_than_claimed_is_refused_even_with_a_matching_check_sum(extra):
    honest = MEMBERS["poses"]
    content = honest[:extra] if extra < 0 else honest + bytes(extra)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(content) + packer.flush()
    seen = zlib.crc32(content[: len(honest) + 1])
    problem = fault_of(one_member_archive(b"poses.npy", packed, len(honest), MEMBERS, seen)).problem
    assert problem.code == "npz-damaged"
    assert "bytes after unpacking" in problem.found


def one_member_archive(name: bytes, packed: bytes, size: int, others: dict[str, bytes], crc: int = 0) -> bytes:
    """`others` as an archive, with one member replaced by raw deflated data that claims ``size`` bytes."""
    rest = npz_raw({key: body for key, body in others.items() if f"{key}.npy".encode() != name})
    with zipfile.ZipFile(io.BytesIO(rest)) as archive:
        start, count = archive.start_dir, len(archive.infolist())
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 33, crc, len(packed), size, len(name), 0) + name + packed
    entry = struct.pack(
        "<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 8, 0, 33, crc, len(packed), size, len(name), 0, 0, 0, 0, 0, start
    )
    directory = rest[start : rest.rindex(b"PK\5\6")] + entry + name
    tail = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count + 1, count + 1, len(directory), start + len(local), 0)
    return rest[:start] + local + directory + tail


@pytest.mark.parametrize("shape", ["(1000000000000, 165)", "(3, 165)", "(1, 165)", "(2, 165, 99999999999)"])
def test_a_header_that_lies_about_its_shape_is_refused_before_allocation(shape):
    body = npy_header(shape) + bytes(2 * 165 * 4)
    code, peak = peak_of(npz_raw({**MEMBERS, "poses": body}))
    assert code == "npz-damaged"
    assert peak < 1 << 20


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00\xff\xff",
        b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{",
        b"not an array at all",
        b"\x93NUMPY\t\x00\x10\x00" + bytes(16),
        npy_header("(2, 165)", order="Maybe"),
        npy_header("__import__"),
        npy_header("(2 165)") + bytes(1320),
        npy_header("(2\x1d, 165 1)") + bytes(1320),
        npy_header("(+2, 165)") + bytes(1320),
        npy_header("(" * 900),
    ],
)
def test_a_damaged_array_header_is_refused(body):
    assert code_of(npz_raw({**MEMBERS, "poses": body})) == "npz-damaged"


def test_duplicate_members_are_refused():
    buffer = io.BytesIO(GOOD)
    with zipfile.ZipFile(buffer, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("poses.npy", MEMBERS["poses"])
    problem = fault_of(buffer.getvalue()).problem
    assert problem.code == "npz-damaged"
    assert "poses.npy" in problem.found


def test_a_member_with_two_names_is_refused():
    place = GOOD.index(b"trans.npy")
    assert "another name" in fault_of(GOOD[:place] + b"trams.npy" + GOOD[place + 9 :]).problem.found


@pytest.mark.parametrize("compressed", [False, True])
def test_one_flipped_bit_in_a_needed_array_is_found(compressed):
    data = npz(motion(2), compressed=compressed)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        info = archive.getinfo("trans.npy")
    damaged = bytearray(data)
    damaged[info.header_offset + 30 + 9 + info.compress_size] ^= 1
    assert code_of(bytes(damaged)) == "npz-damaged"


def test_encrypted_and_foreign_compression_are_refused():
    for flag, method in ((1, 0), (0, 12), (0, 14), (0, 99)):
        data = bytearray(GOOD)
        for place in (m for m in range(len(data)) if data[m : m + 4] == b"PK\1\2"):
            struct.pack_into("<HH", data, place + 8, flag, method)
        assert code_of(bytes(data)) == "npz-damaged"


def test_other_files_are_no_archives():
    for data in (b"", b"RIFF", bytes(100), npy(np.zeros(3)), b"PK\5\6" + bytes(18)[:5]):
        assert code_of(data) == "npz-not-zip"
    assert code_of(b"PK\5\6" + bytes(18)) == "npz-missing-key"  # a valid archive of nothing


def test_truncation_is_a_finding():
    places = {m for m in range(len(GOOD)) if GOOD[m : m + 2] == b"PK"}
    for length in sorted({0, *(m + k for m in places for k in (0, 1, 4, 30)), len(GOOD) - 1, *range(0, len(GOOD), 97)}):
        if length < len(GOOD):
            assert code_of(GOOD[:length]) == "npz-not-zip", length


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8), st.booleans())
@settings(deadline=None, max_examples=300)
def test_mutated_archives_raise_only_findings(changes, directory):
    data = bytearray(GOOD)
    first = GOOD.index(b"PK\1\2") if directory else 0
    for place, value in changes:
        data[first + place % (len(data) - first)] = value
    try:
        got = decode_motion(bytes(data))
    except RecordingFault:
        return
    assert np.isfinite(got.poses).all()


@given(st.binary(max_size=300), st.sampled_from(sorted(MEMBERS)))
@settings(deadline=None)
def test_random_members_raise_only_findings(body, key):
    for content in (body, b"\x93NUMPY\x01\x00" + body):
        with contextlib.suppress(RecordingFault):
            decode_motion(npz_raw({**MEMBERS, key: content}))
    assert code_of(body) in {"npz-not-zip", "npz-missing-key"}


@given(st.text(alphabet="0123456789(), L'{}:<>fiOUS4", max_size=80))
@settings(deadline=None)
def test_random_array_headers_raise_only_findings(text):
    for head in (npy_header(text), npy_header("(2, 165)", descr=text), npy_header("(2, 165)", descr=f"'{text}'")):
        with contextlib.suppress(RecordingFault):
            decode_motion(npz_raw({**MEMBERS, "poses": head + bytes(1320), "gender": head}))


@pytest.mark.parametrize("block", [1, 7, 40])
def test_motion_in_blocks_is_the_same_bytes(block):
    rng = np.random.default_rng(1)
    arrays = {
        "poses": rng.normal(0, 1, (40, 165)),
        "expressions": rng.normal(0, 1, (40, 100)),
        "trans": rng.normal(0, 1, (40, 3)),
    }
    whole = encode_motion(*arrays.values(), np.zeros(300), gender="neutral", model="smplx2020")
    stream = io.BytesIO()
    blocks = {name: [array[k : k + block] for k in range(0, 40, block)] for name, array in arrays.items()}
    write_motion(stream, 40, blocks, np.zeros(300), gender="neutral", model="smplx2020")
    assert stream.getvalue() == whole
    with np.load(io.BytesIO(whole), allow_pickle=False) as found:
        np.testing.assert_array_equal(found["poses"], arrays["poses"].astype(np.float32))
        np.testing.assert_array_equal(found["trans"], arrays["trans"])
    with pytest.raises(ValueError, match="poses has 40 frames, expected 41"):
        write_motion(io.BytesIO(), 41, blocks, np.zeros(300), gender="neutral", model="smplx2020")


PARTS = {key: array for key, array in split_motion(5).items() if key.startswith(("pose_", "root_"))}
SIDES = {key: array for key, array in smplx_motion(5).items() if key.endswith(("_pose", "_orient", "transl"))}


class TestTwoNamesOfOneThing:
    """A file may have an array under two names, as those of AMASS have; both must then say the same."""

    @pytest.mark.parametrize("second", [PARTS, SIDES, PARTS | SIDES])
    @pytest.mark.parametrize("first", [motion, split_motion, smplx_motion])
    @pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
    def test_equal_arrays_change_nothing(self, first, second, kind):
        alone = first(5)
        more = {key: array.astype(kind) for key, array in second.items() if key not in alone}
        reference = decode_motion(npz(alone))
        if "poses" not in alone and "root_orient" not in alone:
            more.pop("root_orient", None)  # it decides the style
        got = decode_motion(npz(alone | more))
        for name in ("poses", "trans", "expressions"):
            np.testing.assert_array_equal(getattr(got, name), getattr(reference, name), strict=True)
        assert (got.notes, got.key_style) == (reference.notes, reference.key_style)

    @pytest.mark.parametrize("key", sorted(PARTS | SIDES))
    def test_arrays_that_differ_are_refused(self, key):
        second = np.array((PARTS | SIDES)[key])
        second[3] += 0.1
        problem = fault_of(npz(motion(5) | {key: second})).problem
        assert problem.code == "npz-contradiction"
        assert key in problem.found
        assert "first in frame 3" in problem.found

    def test_second_expressions_that_differ_are_refused(self):
        arrays = motion(5)
        assert code_of(npz(arrays | {"expression": arrays["expressions"] * 2})) == "npz-contradiction"

    @pytest.mark.parametrize(
        "second",
        [
            {"pose_hand": np.zeros((5, 24), "f4")},
            {"body_pose": np.zeros((5, 69), "f4")},
            {"body_pose": np.zeros((1, 63), "f4")},
            {"global_orient": np.array("none")},
        ],
    )
    def test_what_cannot_be_compared_is_noted(self, second):
        (note,) = decode_motion(npz(motion(5) | second)).notes
        assert (note.code, note.found) == ("npz-keys-unread", next(iter(second)))

    def test_rates_that_differ_are_refused_in_any_order(self):
        rates = {"mocap_frame_rate": 30, "mocap_framerate": 60.0, "fps": 120}
        for first, second in itertools.permutations(rates, 2):
            arrays = motion(mocap_frame_rate=None) | {key: np.array(rates[key]) for key in (first, second)}
            problem = fault_of(npz(arrays)).problem
            assert problem.code == "npz-contradiction"
            assert first in problem.found
            assert second in problem.found
        got = decode_motion(npz(motion(fps=np.float32(30.0), mocap_framerate=29.99999)))
        assert (got.frame_rate_hz, got.notes) == (30, ())


class TestUnits:
    """Motion in other units than radians, metres and coefficients is refused, never guessed."""

    @pytest.mark.parametrize("rest", [0.0, 1.3, -0.4])
    @given(scale=st.sampled_from([1, 100]), seed=st.integers(0, 99))
    @settings(deadline=None, max_examples=20)
    def test_centimetres_are_refused_or_noted(self, rest, scale, seed):
        rng = np.random.default_rng(seed)
        trans = (np.cumsum(rng.normal(0, 0.01, (200, 3)), axis=0) + [0, rest, 0]) * scale
        data = npz(motion(200, trans=trans))
        if scale == 1:
            assert decode_motion(data).notes == ()
        elif rest > 1:
            problem = fault_of(data).problem
            assert problem.code == "npz-out-of-range"
            assert "centimetres" in problem.expected
        elif abs(np.median(trans[:, 1])) < 10 and np.ptp(trans, axis=0).max() > 20:
            assert [note.code for note in decode_motion(data).notes] == ["motion-far"]

    @needs_sample
    @pytest.mark.parametrize(
        ("key", "scale"), [("trans", 100), ("trans", 1000), ("expressions", 1000), ("betas", 1000)]
    )
    def test_the_real_file_in_other_units(self, key, scale):
        with np.load(SAMPLE / "smplxflame_30" / "2_scott_0_1_1.npz") as file:
            arrays = dict(file)
        arrays[key] = arrays[key] * arrays[key].dtype.type(scale)
        assert fault_of(npz(arrays)).problem.code == "npz-out-of-range"

    def test_our_own_results_lie_wherever_a_model_puts_them(self):
        arrays = motion(trans=np.full((5, 3), 100.0))
        assert decode_motion(npz(arrays), standing=False).notes == ()
        assert code_of(npz(arrays)) == "npz-out-of-range"

    def test_one_broken_frame_of_a_face_decides_nothing(self):
        face = motion(50)["expressions"]
        face[7] = 900.0
        assert decode_motion(npz(motion(50, expressions=face))).notes == ()


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4), st.sampled_from("<>"))
@settings(deadline=None)
def test_text_of_any_codes_is_read_or_noted(codes, order):
    """NumPy makes no str of codes beyond Unicode; the error that it raises once ended the worker."""
    item = np.array(codes, f"{order}u4").view(f"{order}U{len(codes)}").reshape(())
    buffer = io.BytesIO()
    np.save(buffer, item)
    found = decode_motion(npz_raw({**MEMBERS, "gender": buffer.getvalue()}))
    valid = all(code <= 0x10FFFF and not 0xD800 <= code < 0xE000 for code in codes)
    text = "".join(map(chr, codes)).rstrip("\0") if valid else "\0"
    noted = [note.found for note in found.notes if note.code == "npz-text-unread"]
    assert (found.gender, noted) == ((text, []) if text.isprintable() else ("", ["gender"]))
