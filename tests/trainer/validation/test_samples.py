"""Results that are sent to other ranks return unchanged: arrays to the bit, texts, files, reasons."""

from __future__ import annotations

import numpy as np
import pytest

from omniges.codecs.base import SpokenText
from omniges.evaluation.scores import Figure
from omniges.trainer.validation.samples import GeneratedWindow, ResultFiles, pack, unpack


@pytest.mark.parametrize(
    "array", [np.arange(830, dtype=np.float32).reshape(2, 415), np.array([3, 0, 7], np.int32), np.zeros((0, 64), "f4")]
)
def test_arrays(array: np.ndarray) -> None:
    generated = GeneratedWindow("a2g", 3, array, {"invalid_rotations": 0.1})
    (found,) = unpack(pack([generated]))
    assert (found.task, found.number, found.measures, found.why_not) == ("a2g", 3, {"invalid_rotations": 0.1}, None)
    assert isinstance(found.content, np.ndarray)
    assert (found.content.dtype, found.content.shape, found.content.tobytes()) == (
        array.dtype,
        array.shape,
        array.tobytes(),
    )


def test_texts_and_reasons_beside_each_other() -> None:
    several = [
        GeneratedWindow("a2t", 0, SpokenText("né \ufffd", ended=False)),
        GeneratedWindow("t2g", 1, why_not="no rotation"),
    ]
    assert unpack(pack(several)) == several


def test_files() -> None:
    kept = ResultFiles(
        "t2a", 2, {".mel.npy": b"\x00\x01", ".wav": b""}, {".mel.npy": "mel", ".wav": "audio"}, {}, ["loud"]
    )
    nothing = ResultFiles("a2t", 0, {}, {}, {}, [], None, "text is stored as latents")
    assert unpack(pack([kept, nothing])) == [kept, nothing]


def test_figures_and_plain_values_in_lists() -> None:
    figure = Figure(metric="m", unit="s", row="generated", value=0.1, left_out={"no rotation": 2}, details={"k": [1]})
    assert unpack(pack([("a2t", [figure], ["said"]), (3, 0.1 + 0.2, b"png")])) == [
        ["a2t", [figure], ["said"]],
        [3, 0.1 + 0.2, b"png"],
    ]
