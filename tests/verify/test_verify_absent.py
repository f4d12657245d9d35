"""Absent parts: every valid form is valid, and each contradiction has its finding at level deep."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shard_sets import Sample, ShardSet
from verify_builders import codes, rebuilt, run

from omniges.features.gesture import LAYOUT
from omniges.shards.schema import GESTURE_PARTS, PARTS
from omniges.shards.tar import npy_parts

MOTION = (*GESTURE_PARTS, "jaw_eyes")
NO_AUDIO = {"encoding": "", "rate_hz": 0, "channels": 0, "samples": 0, "samples_16k": 0, "gain": 1.0}
NO_MOTION = {"frame_rate_hz": 0, "frame_stride": 0, "frames": 0, "key_style": "", "betas": 0, "gender": "", "model": ""}
NO_SAMPLES = b"".join(map(bytes, npy_parts(np.empty(0, np.float32))))

Edit = Callable[[Sample], object]


def lack(sample: Sample, parts: Sequence[str]) -> None:
    """Take parts from a sample, in all the places where the contract says that they are absent."""
    sample.metadata["present"] |= dict.fromkeys(parts, False)
    sample.row = replace(sample.row, present=tuple(p for p in PARTS if sample.metadata["present"][p]))
    for part in set(parts) & set(GESTURE_PARTS):
        sample.arrays["gesture.npy"][:, getattr(LAYOUT, part)] = np.nan
    if "root" in parts:
        sample.arrays["start_xz.npy"][:] = np.nan
    if "jaw_eyes" in parts:
        sample.arrays["jaw_eyes.npy"][:] = np.nan
    if "audio" in parts:
        sample.arrays["mel.npy"][:] = np.nan
        sample.metadata["audio"] = dict(NO_AUDIO)
        sample.metadata["cut"]["audio_s"] = 0.0
        if "audio.npy" in sample.others:
            sample.others["audio.npy"] = NO_SAMPLES
    if not set(sample.row.present) & set(MOTION):
        sample.arrays["betas.npy"][:] = 0
        sample.metadata["motion"] = dict(NO_MOTION)
        sample.metadata["cut"]["motion_s"] = 0.0
    if "text" in parts:
        sample.words, sample.row = [], replace(sample.row, words=0)
    if "sem" in parts:
        sample.others["sem.txt"] = b"[]"
    if "labels" in parts:
        labels = dict.fromkeys(sample.row.labels, "")
        sample.row, sample.metadata["labels"] = replace(sample.row, labels=labels), labels


def lacking(shards: Path, target: Path, parts: Sequence[str], *edits: Edit) -> Path:
    """A set whose first train sample lacks parts, and was edited then; all checksums fit."""

    def fault(taken: ShardSet) -> None:
        sample = next(sample for sample in taken.samples if sample.row.split == "train")
        for edit in (lambda one: lack(one, parts), *edits):
            edit(sample)
        taken.keep_files = bool(edits)  # statistics of what contradicts itself may be NaN

    return rebuilt(shards, target, fault)


@pytest.fixture(scope="module")
def small(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three of the samples, so that a verification is quick."""

    def few(taken: ShardSet) -> None:
        taken.samples = [sample for sample in taken.samples if sample.row.split == "train"][:3]
        taken.keep_files = False

    return rebuilt(shards, tmp_path_factory.mktemp("few") / "s", few)


class TestSound:
    @settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(parts=st.sets(st.sampled_from(PARTS)))
    def test_a_sample_may_lack_anything_but_both_motion_and_audio(
        self, small: Path, tmp_path: Path, parts: set[str]
    ) -> None:
        findings = run(lacking(small, tmp_path / "s", sorted(parts)), "deep").findings
        if {"audio", *MOTION} <= parts:
            assert {finding.code for finding in findings} == {"metadata-invalid"}  # it has no length
        else:
            assert findings == ()


def number(member: str, place: tuple[int, ...]) -> Edit:
    return lambda sample: sample.arrays[member].__setitem__(place, 0.5)


def nan(member: str, place: Any) -> Edit:
    return lambda sample: sample.arrays[member].__setitem__(place, np.nan)


def other(member: str, data: bytes | None) -> Edit:
    return lambda s: s.others.pop(member) if data is None else s.others.__setitem__(member, data)


def said(**present: bool) -> Edit:
    """`present` of KEY.json alone, not the manifest's."""
    return lambda sample: sample.metadata["present"].update(present)


def facts(part: str, **values: Any) -> Edit:
    return lambda sample: sample.metadata[part].update(values)


def speak(sample: Sample) -> None:
    sample.words = [{"word": "so", "start": 0.1, "end": 0.2}]


def hum(sample: Sample) -> None:
    sample.others["audio.npy"] = b"".join(map(bytes, npy_parts(np.ones(5, np.float32))))


def break_waveform(sample: Sample) -> None:
    samples = np.load(io.BytesIO(sample.others["audio.npy"]))
    samples[7] = np.nan
    sample.others["audio.npy"] = b"".join(map(bytes, npy_parts(samples)))


FACE = LAYOUT.face.start

CASES: dict[str, tuple[str, Sequence[str], Edit]] = {
    "numbers in an absent face": ("absent-not-nan", ["face"], number("gesture.npy", (3, FACE))),
    "infinity in an absent face": (
        "absent-not-nan",
        ["face"],
        lambda s: s.arrays["gesture.npy"].__setitem__((-1, FACE), np.inf),
    ),
    "numbers in absent hands": ("absent-not-nan", ["hands"], number("gesture.npy", (-1, LAYOUT.hands.stop - 1))),
    "numbers in an absent root": ("absent-not-nan", ["root"], number("gesture.npy", (0, LAYOUT.root.start))),
    "a start of an absent root": ("absent-not-nan", ["root"], number("start_xz.npy", (1,))),
    "numbers in an absent jaw": ("absent-not-nan", ["jaw_eyes"], number("jaw_eyes.npy", (0, 8))),
    "numbers in an absent mel": ("absent-not-nan", ["audio"], number("mel.npy", (5, 63))),
    "a shape of an absent body": ("absent-not-nan", MOTION, number("betas.npy", (2,))),
    "words of an absent text": ("absent-not-nan", ["text"], speak),
    "spans of an absent annotation": (
        "absent-not-nan",
        ["sem"],
        other("sem.txt", b'[{"end":1.0,"keywords":"","name":"beat","score":0.5,"start":0.0}]'),
    ),
    "samples of absent audio": ("waveform-length", ["audio"], hum),
    "NaN in one frame of a present face": ("array-not-finite", [], nan("gesture.npy", (2, FACE))),
    "NaN in all frames of a present face": ("array-not-finite", [], nan("gesture.npy", (slice(None), LAYOUT.face))),
    "NaN beside an absent face": ("array-not-finite", ["face"], nan("gesture.npy", (2, 0))),
    "NaN in a present mel": ("array-not-finite", [], nan("mel.npy", (slice(None), 3))),
    "NaN in a present jaw": ("array-not-finite", [], nan("jaw_eyes.npy", (slice(None), slice(None)))),
    "NaN in a present start": ("array-not-finite", [], nan("start_xz.npy", (slice(None),))),
    "NaN in kept audio": ("array-not-finite", [], break_waveform),
    "a broken rotation beside absent hands": (
        "rotation-broken",
        ["hands"],
        lambda s: s.arrays["gesture.npy"].__setitem__((4, LAYOUT.lower.start), 5.0),
    ),
    "a text that is there and has no words": ("transcript-invalid", [], lambda s: setattr(s, "words", [])),
    "KEY.json calls the face absent": ("metadata-differs", [], said(face=False)),
    "KEY.json calls absent text present": ("metadata-differs", ["text"], said(text=True)),
    "KEY.json names a part less": ("metadata-differs", [], lambda s: s.metadata["present"].pop("sem")),
    "labels that nothing names": ("metadata-invalid", ["labels"], lambda s: relabel(s, "anger")),
    "labels that are all empty": ("metadata-invalid", [], lambda s: relabel(s, "")),
    "audio.npy gone": ("waveform-invalid", [], other("audio.npy", None)),
    "audio.npy of absent audio gone": ("waveform-invalid", ["audio"], other("audio.npy", None)),
    "facts of absent audio": ("metadata-invalid", ["audio"], facts("audio", rate_hz=16_000)),
    "absent audio without a gain": ("metadata-invalid", ["audio"], facts("audio", gain=0.0)),
    "null for absent audio": ("metadata-invalid", ["audio"], facts("audio", encoding=None)),
    "zeros for present audio": ("metadata-invalid", [], facts("audio", **NO_AUDIO)),
    "facts of absent motion": ("metadata-invalid", MOTION, facts("motion", gender="neutral")),
    "zeros for present motion": ("metadata-invalid", [], facts("motion", **NO_MOTION)),
    "a cut of absent audio": ("metadata-invalid", ["audio"], facts("cut", audio_s=0.5)),
    "a speaker that is null": ("metadata-differs", [], lambda s: s.metadata.update(speaker=None)),
    "a source less": ("metadata-differs", [], lambda s: s.metadata["sources"].pop("sem")),
}


def relabel(sample: Sample, emotion: str) -> None:
    labels = {"emotion": emotion, "scenario": ""}
    sample.row, sample.metadata["labels"] = replace(sample.row, labels=labels), labels


class TestContradictions:
    def test_a_broken_rotation_is_reported_by_its_channels_whatever_is_absent(
        self, small: Path, tmp_path: Path
    ) -> None:
        _, parts, edit = CASES["a broken rotation beside absent hands"]
        (finding,) = [
            finding
            for finding in run(lacking(small, tmp_path / "s", parts, edit), "deep").findings
            if finding.code == "rotation-broken"
        ]
        assert f"channels {LAYOUT.lower.start} to {LAYOUT.lower.start + 5}" in finding.found

    @pytest.mark.slow
    @pytest.mark.parametrize("case", CASES)
    def test_each_is_found_by_its_code(self, small: Path, tmp_path: Path, case: str) -> None:
        code, parts, edit = CASES[case]
        result = run(lacking(small, tmp_path / "s", parts, edit), "deep")
        assert code in codes(result), [f"{f.code}: {f.found}" for f in result.findings]
