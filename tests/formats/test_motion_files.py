"""`read_motion` and `write_motion`: what is written comes back, and what no reader takes is refused in one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import omniges
from omniges.errors import DataError, EnvironmentFault, UsageFault
from omniges.features.body import GENERIC, PELVIS_BELOW_TRANS_M
from omniges.formats.npz import decode_motion


def arrays(frames: int = 8, betas: int = 300) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "poses": rng.normal(0, 0.1, (frames, 165)).astype(np.float32),
        "trans": rng.normal(0, 1, (frames, 3)),
        "expressions": rng.normal(0, 1, (frames, 100)),
        "betas": rng.normal(0, 1, betas),
    }


PAGE = Path(__file__).parents[2] / "docs/how-to/other-motion.md"


class TestConversions:
    """The code of the page about other motion, as it stands there."""

    @pytest.fixture
    def code(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
            exec(block, found)  # noqa: S102 - the page of this project
        return found

    def test_z_up_motion_is_turned_as_its_joints_are(self, code: dict[str, Any]) -> None:
        given = arrays()
        root, trans = code["y_up"](given["poses"][:, :3], given["trans"], pelvis=(0.0, -PELVIS_BELOW_TRANS_M, 0.0))
        poses = given["poses"].copy()
        poses[:, :3] = root
        x, y, z = np.moveaxis(GENERIC.joints(given["poses"], given["trans"]), -1, 0)
        np.testing.assert_allclose(GENERIC.joints(poses, trans), np.stack([x, z, -y], axis=-1), atol=1e-6)

    @pytest.mark.parametrize("rate_hz", [25.0, 29.97, 120.0])
    def test_a_steady_turn_stays_steady_at_another_rate(self, code: dict[str, Any], rate_hz: float) -> None:
        times = np.arange(int(2 * rate_hz)) / rate_hz
        poses, trans = np.zeros((len(times), 6)), np.stack([times, -times, 0 * times], axis=1)
        poses[:, 3] = times
        found, (moved,) = code["at_30_hz"](poses, [trans], rate_hz)
        wanted = np.arange(len(found)) / 30
        np.testing.assert_allclose(found[:, 3], wanted, atol=1e-9)
        np.testing.assert_allclose(moved[:, 0], wanted, atol=1e-9)
        assert times[-1] - wanted[-1] < 1 / 30


class TestRoundTrip:
    @pytest.mark.parametrize("betas", [10, 16, 300])
    def test_every_array_comes_back_to_the_bit(self, tmp_path: Path, betas: int) -> None:
        given = arrays(betas=betas)
        omniges.write_motion(str(tmp_path / "a.npz"), **given, gender="female")
        found = omniges.read_motion(tmp_path / "a.npz")
        for name, array in given.items():
            assert np.array_equal(getattr(found, name), array), name
        assert (found.frame_rate_hz, found.gender) == (30, "female")

    def test_plain_numpy_reads_the_file(self, tmp_path: Path) -> None:
        omniges.write_motion(tmp_path / "a.npz", **arrays())
        with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
            assert np.array_equal(found["trans"], arrays()["trans"])
            assert (int(found["mocap_frame_rate"]), str(found["gender"])) == (30, "neutral")

    def test_equal_input_gives_equal_bytes_and_replaces_the_file(self, tmp_path: Path) -> None:
        for name in ("a", "b", "a"):
            omniges.write_motion(tmp_path / f"{name}.npz", **arrays())
        assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
        assert {path.name for path in tmp_path.iterdir()} == {"a.npz", "b.npz"}

    def test_of_a_faster_rate_thirty_frames_are_read(self, tmp_path: Path) -> None:
        omniges.write_motion(tmp_path / "a.npz", **arrays(12), frame_rate_hz=120)
        found = omniges.read_motion(tmp_path / "a.npz")
        assert found.frame_rate_hz == 30
        assert np.array_equal(found.poses, arrays(12)["poses"][::4])

    def test_a_file_of_the_data_set_is_read_as_preprocess_reads_it(self, corpus: Path) -> None:
        path = next(corpus.rglob("*.npz"))
        mine, theirs = omniges.read_motion(str(path)), decode_motion(path.read_bytes())
        for name in ("poses", "trans", "expressions", "betas"):
            assert np.array_equal(getattr(mine, name), getattr(theirs, name)), name


class TestRefusal:
    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"poses": np.zeros((8, 156))}, "poses of shape (8, 156): SMPL-H without face?"),
            ({"poses": np.full((8, 165), np.nan)}, "poses: nan at frame 0, column 0"),
            ({"trans": np.zeros((7, 3))}, "trans 7"),
            ({"expressions": np.zeros((8, 50))}, "(8, 50)"),
            ({"betas": np.zeros(12)}, "(12,)"),
            ({"frame_rate_hz": 25}, "frame_rate_hz 25"),
        ],
    )
    def test_nothing_is_written_that_no_reader_takes(
        self, tmp_path: Path, changes: dict[str, Any], expected: str
    ) -> None:
        with pytest.raises(DataError) as raised:
            omniges.write_motion(tmp_path / "a.npz", **(arrays() | changes))
        assert expected in str(raised.value)
        assert "\n" not in str(raised.value)
        assert list(tmp_path.iterdir()) == []

    def test_no_file_another_file_and_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UsageFault, match="the file does not exist"):
            omniges.read_motion(tmp_path / "a.npz")
        with pytest.raises(UsageFault, match="found a folder, not a regular file; give a file"):
            omniges.read_motion(tmp_path)
        (tmp_path / "b.npz").write_bytes(b"junk")
        with pytest.raises(DataError, match=r"b\.npz: npz-not-zip"):
            omniges.read_motion(tmp_path / "b.npz")
        with pytest.raises(EnvironmentFault, match="the folder does not exist"):
            omniges.write_motion(tmp_path / "none/a.npz", **arrays())
