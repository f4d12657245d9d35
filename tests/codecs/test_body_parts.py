"""The nets' inputs are those of the original, and come back as the channels that they were."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rvqvae_builders import WIDTHS, gesture, write_statistics

from omniges.codecs.gesture_rvqvae import PARTS, part_columns, read_scales, statistics_files
from omniges.errors import DataError, UsageFault
from omniges.features.gesture import GestureClip, gesture_from_motion, matrix_from_six_d, motion_from_gesture

COLUMNS = {part: part_columns(part, width, part) for part, width in WIDTHS.items()}


def golden_scales(arrays, folder):
    (folder / "mean_std").mkdir()
    names = {"330_mean": "mean", "330_std": "std", "trans_mean": "trans_mean", "trans_std": "trans_std"}
    for name, key in names.items():
        np.save(folder / "mean_std" / f"beatx_2_{name}.npy", arrays[f"in_{key}"])
    return read_scales(folder, COLUMNS)


class TestGolden:
    @pytest.fixture
    def arrays(self, rvqvae_parity):
        return dict(np.load(rvqvae_parity / "features" / "features.npz", allow_pickle=False))

    def test_every_part(self, arrays, tmp_path):
        scales = golden_scales(arrays, tmp_path)
        channels = gesture_from_motion(arrays["in_poses"], arrays["in_expressions"], arrays["in_trans"]).gesture
        for part, key in {"upper": "upper", "hands": "hands", "lower": "lower_trans", "face": "face"}.items():
            found = scales[part].normalised(channels[:, COLUMNS[part]])
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, arrays[f"out_{key}"], rtol=0, atol=2e-5, err_msg=part)

    def test_a_lower_net_without_the_root(self, arrays, tmp_path):
        golden_scales(arrays, tmp_path)
        columns = {"lower": part_columns("lower", 54, "net")}
        scale = read_scales(tmp_path, columns)["lower"]
        channels = gesture_from_motion(arrays["in_poses"], arrays["in_expressions"], arrays["in_trans"]).gesture
        found = scale.normalised(channels[:, columns["lower"]])
        np.testing.assert_allclose(found, arrays["out_lower"], rtol=0, atol=2e-5)

    def test_back_to_rotations_and_positions(self, arrays, tmp_path):
        scales = golden_scales(arrays, tmp_path)
        channels = np.empty((len(arrays["in_poses"]), 415), np.float32)
        for part, key in {"upper": "upper", "hands": "hands", "lower": "lower_trans", "face": "face"}.items():
            channels[:, COLUMNS[part]] = scales[part].restored(arrays[f"out_{key}"])
        for part, joints in {"upper": 13, "hands": 30, "lower": 9}.items():
            start = COLUMNS[part].start
            matrices = matrix_from_six_d(channels[:, start : start + 6 * joints].reshape(-1, joints, 6))
            np.testing.assert_allclose(matrices, arrays[f"back_{part}_matrix"], rtol=0, atol=2e-5)
        # The original begins one step away from the origin, ours at the start that is kept beside the channels.
        start_xz = arrays["back_trans"][0, [0, 2]].astype(np.float64)
        clip = GestureClip(channels, np.zeros((len(channels), 9), np.float32), start_xz)
        np.testing.assert_allclose(motion_from_gesture(clip).trans, arrays["back_trans"], rtol=0, atol=2e-5)


class TestColumns:
    def test_the_four_parts_cover_every_channel_once(self):
        covered = sorted(k for part in PARTS for k in range(415)[COLUMNS[part]])
        assert covered == list(range(415))

    @pytest.mark.parametrize(
        ("part", "channels", "wanted"), [("upper", 180, "78"), ("lower", 56, "54 or 57"), ("face", 0, "100")]
    )
    def test_a_net_of_another_part_is_refused(self, part, channels, wanted):
        with pytest.raises(
            DataError,
            match=rf"net\.pth: expected a network of {part} with {wanted} channels, found {channels} channels;",
        ):
            part_columns(part, channels, "net.pth")


class TestScales:
    @given(seed=st.integers(0, 1 << 16))
    def test_normalising_and_back(self, tmp_path_factory, seed):
        folder = tmp_path_factory.getbasetemp() / "statistics"
        write_statistics(folder)
        channels = gesture(6, seed)
        for part, scale in read_scales(folder, COLUMNS).items():
            own = channels[:, COLUMNS[part]]
            np.testing.assert_allclose(scale.restored(scale.normalised(own)), own, rtol=0, atol=2e-6)

    def test_the_face_is_taken_as_it_is(self, tmp_path):
        write_statistics(tmp_path)
        channels = gesture(5)[:, COLUMNS["face"]]
        np.testing.assert_array_equal(read_scales(tmp_path, COLUMNS)["face"].normalised(channels), channels)

    def test_each_channel_has_the_statistics_of_its_joint(self, tmp_path):
        """The names of the channels give joint and entry; in the files, jaw and eyes stand between them."""
        from omniges.features.gesture import JOINT_NAMES, LAYOUT

        arrays = write_statistics(tmp_path)
        scales = read_scales(tmp_path, COLUMNS)
        names = LAYOUT.channel_names()
        for part in ("upper", "hands", "lower"):
            for k, name in enumerate(names[COLUMNS[part]]):
                joint, entry = name.split(".")
                if joint == "root":
                    at = ["dx", "y", "dz"].index(entry)
                    expected = arrays["beatx_2_trans_mean"][at], arrays["beatx_2_trans_std"][at]
                else:
                    at = 6 * JOINT_NAMES.index(joint) + 3 * int(entry[1]) + int(entry[2])
                    expected = arrays["beatx_2_330_mean"][at], arrays["beatx_2_330_std"][at]
                assert (scales[part].mean[k], scales[part].std[k]) == expected


class TestFiles:
    def change(self, folder, name, array):
        write_statistics(folder)
        np.save(folder / "mean_std" / f"beatx_2_{name}.npy", array)

    def test_without_the_root_its_files_are_not_needed(self, tmp_path):
        columns = COLUMNS | {"lower": part_columns("lower", 54, "net")}
        write_statistics(tmp_path)
        for kind in ("mean", "std"):
            (tmp_path / "mean_std" / f"beatx_2_trans_{kind}.npy").unlink()
        assert len(read_scales(tmp_path, columns)["lower"].mean) == 54
        assert not any("trans" in name for name in statistics_files(columns).values())
        with pytest.raises(UsageFault, match=r"beatx_2_trans_mean.npy: expected .* found that the file does not exist"):
            read_scales(tmp_path, COLUMNS)

    @pytest.mark.parametrize(
        ("name", "array", "message"),
        [
            ("330_mean", np.zeros(330, np.int64), r"expected 330 numbers .*found an array \(330,\) of int64"),
            ("330_mean", np.zeros((1, 330), np.float32), r"found an array \(1, 330\)"),
            ("trans_std", np.ones(330), r"expected 3 numbers .*found an array \(330,\) of float64"),
            ("330_mean", np.full(330, np.nan, np.float32), "found NaN or infinity at index 0"),
            ("trans_mean", np.array([0, 1, np.inf]), "found NaN or infinity at index 2"),
            (
                "330_std",
                np.linspace(-1, 1, 330, dtype=np.float32),
                r"expected positive standard deviations of upper, found -0\.89\d*; .*not the file of means",
            ),
            ("trans_std", np.array([0.1, 0.0, 0.1]), "expected positive standard deviations of the root, found 0"),
        ],
    )
    def test_that_hold_something_else(self, tmp_path, name, array, message):
        self.change(tmp_path, name, array)
        with pytest.raises(DataError, match=message) as error:
            read_scales(tmp_path, COLUMNS)
        assert f"beatx_2_{name}.npy" in str(error.value)

    def test_deviations_of_jaw_and_eyes_may_be_zero(self, tmp_path):
        std = np.ones(330, np.float32)
        std[6 * 22 : 6 * 25] = 0
        self.change(tmp_path, "330_std", std)
        assert all((scale.std == 1).all() for part, scale in read_scales(tmp_path, COLUMNS).items() if part != "lower")
