"""Blendshape weights come back from the expressions that a known matrix computed from them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from exchange_builders import random_motion
from hypothesis import given
from hypothesis import strategies as st

from omniges.errors import UsageFault
from omniges.exchange.arkit import NAMES, encode_csv, matrix_from_array


def test_the_names_are_arkits() -> None:
    assert len(NAMES) == len(set(NAMES)) == 52
    assert list(NAMES) == sorted(NAMES)
    assert {"eyeBlinkLeft", "jawOpen", "mouthSmileRight", "browInnerUp", "cheekPuff", "tongueOut"} <= set(NAMES)


@given(st.integers(0, 1000), st.sampled_from([51, 52]), st.sampled_from([100, 103]), st.booleans())
def test_weights_return(seed: int, shapes: int, coefficients: int, inverted: bool) -> None:
    draw = np.random.default_rng(seed)
    matrix, weights = draw.normal(size=(shapes, coefficients)), draw.uniform(size=(9, shapes))
    generated = weights @ matrix
    motion = random_motion(9)
    motion.poses[:, 66:69] = 0 if coefficients == 100 else generated[:, 100:]
    motion = replace(motion, expressions=generated[:, :100])
    found, clipped = matrix_from_array(np.linalg.pinv(matrix) if inverted else matrix, "m").weights(motion)
    np.testing.assert_allclose(found, weights, atol=1e-4)
    assert clipped == 0
    lines = encode_csv(found, 30).decode().splitlines()
    assert lines[0].split(",") == ["time_s", *NAMES[:shapes]]
    read = np.array([line.split(",") for line in lines[1:]], dtype=np.float64)
    np.testing.assert_allclose(read[:, 0], np.arange(9) / 30, atol=1e-6)
    np.testing.assert_allclose(read[:, 1:], weights, atol=1e-4)


def test_what_is_clipped_is_counted() -> None:
    matrix = np.eye(52, 100)
    motion = replace(random_motion(2), expressions=np.zeros((2, 100)))
    motion.expressions[0, :4] = (-0.5, 1.5, 1.00001, 0.5)
    found, clipped = matrix_from_array(matrix, "m").weights(motion)
    assert clipped == 2
    assert found[0, :4].tolist() == [0.0, 1.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        (np.zeros((52, 100)), "independent rows, found 0"),
        (np.zeros((52, 99)), r"found \(52, 99\)"),
        (np.zeros(52), r"found \(52,\)"),
        (np.full((52, 100), np.nan), "found NaN"),
    ],
)
def test_other_matrices_are_refused(matrix: np.ndarray, said: str) -> None:
    with pytest.raises(UsageFault, match=said):
        matrix_from_array(matrix, "m")
