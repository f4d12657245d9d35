"""The mesh of a body model in a page: what the browser gets is the model's, and only people who ask get it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from body_builders import slow_body
from browser import started
from mesh_builders import figure_arrays
from page_builders import motion, track
from pipeline_helpers import omniges

from omniges.errors import DataError, UsageFault
from omniges.exchange.pages import JOINTS_OF_VERTEX, Clip, EmbeddedModel, pack_body, pack_mesh, page
from omniges.exchange.settings import ViewSettings
from omniges.exchange.view import view
from omniges.features.body import BodyModel
from omniges.formats.body_model import decode_body_model
from omniges.formats.motion import SmplxMotion, encode_smplx

NOTICE = "do not publish this page: it holds the licensed body model"


def model_file(**changes: Any) -> bytes:
    stream = io.BytesIO()
    arrays = figure_arrays() | changes
    np.savez(stream, **{key: array for key, array in arrays.items() if array is not None})
    return stream.getvalue()


@pytest.fixture(scope="module")
def model() -> BodyModel:
    return decode_body_model(model_file())


def moving(seconds: float = 1.0, betas: float = 0.0) -> SmplxMotion:
    found = motion(seconds, seed=4)
    return SmplxMotion(found.poses, found.trans, found.expressions, np.array([betas, *np.zeros(299)]))


class TestPacking:
    def test_the_mesh_is_the_models(self, model: BodyModel) -> None:
        packed = pack_mesh(model, "model.npz")
        facts, vertices = packed.facts, model.vertices
        at = 0

        def take(kind: str, *shape: int) -> np.ndarray:
            nonlocal at
            found = np.frombuffer(packed.content, kind, int(np.prod(shape)), at).reshape(shape)
            at += found.nbytes
            return found

        np.testing.assert_array_equal(take("<u4", facts["triangles"], 3), model.triangles)
        moved = take("<u4", facts["moved"])
        directions = take("<i2", 100, facts["moved"], 3) * facts["directionStep"]
        np.testing.assert_allclose(directions.transpose(1, 2, 0), model.expression_directions[moved], atol=2e-6)
        still = np.delete(model.expression_directions, moved, axis=0)
        assert np.abs(still).max() <= 1e-6
        weights, joints = take("<u2", vertices, JOINTS_OF_VERTEX) / 65535, take("u1", vertices, JOINTS_OF_VERTEX)
        found = np.zeros((vertices, 55))
        np.put_along_axis(found, joints.astype(int), weights, axis=1)
        np.testing.assert_allclose(found, model.weights, atol=2e-5)
        assert at == len(packed.content)

    def test_a_body_has_the_persons_shape(self, model: BodyModel) -> None:
        betas = np.array([1.5])
        packed = pack_body(model, betas)
        vertices = model.vertices
        places = np.frombuffer(packed.content, "<i2", 3 * vertices).reshape(-1, 3) * packed.step_m
        person = model.person(np.pad(betas, (0, 299)))
        np.testing.assert_allclose(places, person.rest_vertices - person.rest_joints[0], atol=packed.step_m)
        normals = np.frombuffer(packed.content, "i1", offset=6 * vertices).reshape(-1, 3) / 127
        np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=0.02)

    def test_a_model_without_triangles_is_refused(self) -> None:
        with pytest.raises(DataError, match=r"model\.npz: expected the triangles f"):
            pack_mesh(decode_body_model(model_file(f=None)), "model.npz")

    def test_a_minute_of_a_track_stays_small(self, model: BodyModel) -> None:
        embedded = EmbeddedModel(model, "model.npz")
        sizes = [
            sum(
                map(
                    len,
                    page([Clip("c", tuple(track(str(k), 60.0, motion=moving(60.0)) for k in range(n)))], (), embedded),
                )
            )
            for n in (1, 2)
        ]
        assert sizes[1] - sizes[0] < 3e6


class TestCommand:
    @pytest.fixture
    def files(self, tmp_path: Path) -> tuple[Path, Path]:
        (tmp_path / "model.npz").write_bytes(model_file())
        (tmp_path / "clip.npz").write_bytes(encode_smplx(moving()))
        return tmp_path / "model.npz", tmp_path / "clip.npz"

    def test_it_says_not_to_publish(self, files: tuple[Path, Path], tmp_path: Path) -> None:
        model, clip = files
        words = ("view", clip, "-o", tmp_path / "page.html")
        shown = omniges(*words, "--body-model", model, "--embed-body-model")
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout.splitlines()[-1] == NOTICE
        assert NOTICE not in omniges(*words).stdout

    @pytest.mark.parametrize("flags", [("--embed-body-model",), ("--body-model", "MODEL")])
    def test_one_flag_without_the_other_is_refused(
        self, files: tuple[Path, Path], tmp_path: Path, flags: tuple[str, ...]
    ) -> None:
        model, clip = files
        shown = omniges("view", clip, "-o", tmp_path / "p.html", *(str(model) if f == "MODEL" else f for f in flags))
        assert shown.returncode == 2
        assert "--embed-body-model: expected both" in shown.stderr
        assert not (tmp_path / "p.html").exists()

    def test_keywords_in_python(self, files: tuple[Path, Path], tmp_path: Path) -> None:
        with pytest.raises(UsageFault, match="embed_body_model"):
            ViewSettings(paths=(str(files[1]),), output_file=tmp_path / "p.html", body_model=files[0])

    @pytest.mark.parametrize("content", [b"", b"\x80\x04", b"no model"])
    def test_another_file_is_one_line(self, files: tuple[Path, Path], tmp_path: Path, content: bytes) -> None:
        (tmp_path / "other.npz").write_bytes(content)
        settings = ViewSettings(
            paths=(str(files[1]),),
            output_file=tmp_path / "p.html",
            body_model=tmp_path / "other.npz",
            embed_body_model=True,
        )
        with pytest.raises(DataError, match=r"other\.npz"):
            view(settings)
        assert not (tmp_path / "p.html").exists()


@pytest.mark.slow
def test_the_browser_draws_the_models_vertices(model: BodyModel, tmp_path: Path) -> None:
    """Positions by the page's program against a plain restatement of the model, and pixels of two bodies."""
    ours, taller = moving(), moving(betas=2.0)
    tracks = (track("a", 1.0, motion=ours), track("b", 1.0, motion=taller))
    path = tmp_path / "page.html"
    path.write_bytes(b"".join(page([Clip("c", tracks)], (), EmbeddedModel(model, "model.npz"))))
    arrays, numbers, frame = figure_arrays(), list(range(0, model.vertices, 97)), 17
    with started(tmp_path / "profile") as browser:
        browser.open(path)
        for number, moved in enumerate((ours, taller)):
            found = np.array(browser.evaluate(f"omniges.vertices({number}, {frame}, {numbers})"))
            _, expected = slow_body(
                arrays, moved.betas, moved.expressions[frame], moved.poses[frame], moved.trans[frame]
            )
            # The page leaves the shift of the rest joints by expressions out, which is below these 5 mm here.
            assert np.abs(found - expected[numbers]).max() < 5e-3
        pixels = browser.pixels()
        left, right = pixels[:, : pixels.shape[1] // 2 - 2], pixels[:, pixels.shape[1] // 2 + 2 :]
        width = min(left.shape[1], right.shape[1])
        assert (left[:, :width] != right[:, :width]).any(axis=-1).mean() > 0.02
        assert browser.errors == []
