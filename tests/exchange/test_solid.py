"""The solid figure: a closed skin around every joint, and a face that expressions and the jaw move."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree

from omniges.exchange.solid import (
    BONES,
    BROWS,
    COLOURS,
    TINTS,
    Faces,
    Surface,
    face_depth,
    mouth,
    mouth_at,
    palette,
    solid_figure,
)
from omniges.features.body import GENERIC
from omniges.features.gesture import JOINT_NAMES

OPENING = slice(57, 85)
"""Vertices of the mouth on the edge of its opening, from the person's left corner."""


def faces(jaw_x: float = 0.0, **components: float) -> Faces:
    """The face of one frame: `e5=1` sets the sixth expression."""
    expressions = np.zeros((1, 8))
    for name, value in components.items():
        expressions[0, int(name[1:])] = value
    return Faces.of(expressions, np.array([[jaw_x, 0.0, 0.0]]))


@pytest.mark.parametrize("surface", [solid_figure(), mouth()], ids=["body", "mouth"])
def test_normals_have_length_one_and_lie_on_the_side_from_which_triangles_are_counterclockwise(
    surface: Surface,
) -> None:
    np.testing.assert_allclose(np.linalg.norm(surface.normals, axis=1), 1, atol=1e-4)
    a, b, c = (surface.positions[surface.triangles[:, k]].astype(np.float64) for k in range(3))
    crossed = np.cross(b - a, c - a)
    size = np.linalg.norm(crossed, axis=1)
    solid = size > 1e-9  # rings that close a tube are thin
    agree = np.sum(crossed * surface.normals[surface.triangles].mean(axis=1), axis=1) > 0
    assert np.mean(agree[solid]) > (0.99 if surface is solid_figure() else 0.9)  # closed lips touch each other


def test_the_figure_covers_every_joint_and_stands_on_its_shoes() -> None:
    figure, rest = solid_figure(), GENERIC.rest_positions
    nearest = np.array([np.linalg.norm(figure.positions - place, axis=1).min() for place in rest])
    assert nearest.max() < 0.12, JOINT_NAMES[int(nearest.argmax())]
    bound = {int(bone) for bone in figure.bones.ravel()}
    assert bound >= {JOINT_NAMES.index(name) for name in JOINT_NAMES if "eye" in name or "index" in name}
    assert bound >= {*BROWS.values(), JOINT_NAMES.index("jaw")}
    assert max(bound) < BONES
    shoes = figure.colours == COLOURS.index("shoe")
    assert figure.positions[shoes, 1].min() == pytest.approx(figure.positions[:, 1].min())


def test_the_figure_is_the_same_on_both_sides() -> None:
    places = solid_figure().positions
    distances, _ = cKDTree(places).query(places * (-1, 1, 1))
    assert distances.max() < 0.004  # sides of rings need not be opposite


def test_the_depth_of_the_face_is_on_the_head() -> None:
    depths = face_depth(np.arange(0, 0.04, 0.002), np.full(20, 0.62))
    assert np.all(np.diff(depths) < 0)  # it falls away to the sides
    head = solid_figure()
    skin = head.positions[head.bones[:, 0] == JOINT_NAMES.index("head")]
    near = np.linalg.norm(skin - (0.0, 0.64, float(face_depth(0.0, 0.64)[0])), axis=1).min()
    assert near < 0.012


class TestMouth:
    def height(self, face: Faces) -> float:
        positions, _ = mouth_at(face, 0)
        return float(np.ptp(positions[OPENING, 1]))

    def test_the_jaw_and_expressions_open_it(self) -> None:
        rest = self.height(faces())
        assert self.height(faces(jaw_x=0.2)) == pytest.approx(rest + 0.07 * np.sin(0.2), abs=1e-6)
        assert self.height(faces(e5=1.0)) > rest + 0.004
        assert self.height(faces(jaw_x=-0.2)) == pytest.approx(rest)  # a jaw does not close into the skull

    def test_expressions_widen_it_and_raise_its_corners_within_limits(self) -> None:
        width = [np.ptp(mouth_at(faces(e1=value), 0)[0][OPENING, 0]) for value in (-50.0, -1.0, 0.0, 1.0, 50.0)]
        assert np.all(np.diff(width) > 0)
        assert width[-1] - width[0] <= 4 * 0.008 + 1e-6
        corner, middle = (mouth_at(faces(e2=1.0), 0)[0][k, 1] - mouth_at(faces(), 0)[0][k, 1] for k in (57, 64))
        assert corner > middle + 0.003

    @pytest.mark.parametrize("face", [faces(), faces(0.06), faces(0.2, e5=1.5), faces(0.05, e1=-1.0, e2=1.0)])
    def test_the_opening_lies_on_the_face(self, face: Faces) -> None:
        positions, normals = mouth_at(face, 0)
        x, y, z = positions[: OPENING.stop].astype(np.float64).T
        assert np.abs(z - face_depth(x, y) - 0.8e-3).max() < 4e-3
        assert np.linalg.norm(normals, axis=1).min() > 0.5

    def test_brows_rise_together_and_apart(self) -> None:
        both, apart = faces(e3=1.0), faces(e7=1.0)
        assert both.left == both.right > 0
        assert apart.left == -apart.right > 0


def test_tracks_have_tints_of_their_own() -> None:
    tints = {tuple(palette(track)[COLOURS.index("tint")]) for track in range(len(TINTS))}
    assert len(tints) == len(TINTS)
    np.testing.assert_array_equal(palette(0), palette(len(TINTS)))
    np.testing.assert_array_equal(palette(0)[1:6], palette(1)[1:6])
