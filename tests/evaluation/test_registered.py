"""Metrics that are added: means over results, values of sets, rows, and results without a value."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from plugin_builders import install

from omniges.errors import DataError, EnvironmentFault, UsageFault
from omniges.evaluation.report import Report, TaskReport, render
from omniges.evaluation.scores import UNCONDITIONAL, Figure, RegisteredScores, Resampling
from omniges.metrics import registry
from omniges.metrics.registry import BUILT_IN, METRICS, Metric, MotionClip, SoundClip, metric_name, register_metric
from omniges.registry import Registry
from omniges.trainer.validation.best import Best, better, check_metric

HOW = Resampling(seed=0, resamples=50)


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry of this test's own."""
    fresh: Registry[Metric] = Registry("metric", METRICS.group, Metric)
    for module in ("omniges.metrics.registry.METRICS", "omniges.trainer.validation.best.METRICS"):
        monkeypatch.setattr(module, fresh)


def clip(level: float) -> SoundClip:
    return SoundClip(np.full((10, 64), level, np.float32))


def difference(generated: SoundClip, recorded: SoundClip) -> float | None:
    if recorded.mel[0, 0] < 0:
        return None
    if recorded.mel[0, 0] == 7:
        raise DataError("seven: recorded by nobody")
    return float((generated.mel - recorded.mel).mean())


def spread(generated: list[SoundClip], recorded: list[SoundClip]) -> float:
    """Largest difference of levels of all generated clips, over that of the recorded ones."""
    ranges = [max(levels) - min(levels) for levels in ([c.mel[0, 0] for c in side] for side in (generated, recorded))]
    return float(ranges[0] / max(ranges[1], 1.0))


def scored(pairs: list[tuple[str, float, float]], *, unconditional: bool = False) -> list[Figure]:
    found = RegisteredScores("audio", unconditional=unconditional)
    for key, generated, recorded in pairs if found.wanted else []:
        found.add("generated", key, clip(generated), clip(recorded))
    return found.figures(HOW)


def test_a_mean_over_results_and_the_recordings_own_row() -> None:
    register_metric(Metric(label="mean level, off", stream="audio", unit="nat", of=difference, better="lower"))
    generated, recorded = scored([("a", 3.0, 1.0), ("a", 5.0, 1.0), ("b", 2.0, 2.0), ("c", 0.0, -1.0), ("d", 1.0, 7.0)])
    assert (generated.metric, generated.unit, generated.row) == ("mean level, off", "nat", "generated")
    assert generated.value == pytest.approx((2.0 + 4.0 + 0.0) / 3)
    assert (generated.recordings, generated.results) == (2, 3)
    assert generated.by_recording == {"a": 3.0, "b": 0.0}
    assert generated.left_out == {"expected a value, found none": 1, "recorded by nobody": 1}
    assert (recorded.row, recorded.value, recorded.results) == ("recorded", 0.0, 2)


@pytest.mark.parametrize("form", ["table", "csv", "markdown"])
def test_every_form_of_a_report_has_it(form: Any) -> None:
    register_metric(Metric(label="level off", stream="audio", unit="nat", of=difference))
    task = TaskReport(
        figures=scored([("a", 3.0, 1.0)]),
        recordings=["a"],
        results=1,
        splits={"test": (1, 1)},
        seconds=1.0,
        recorded_seconds=1.0,
    )
    text = render(Report(tasks={"t2a": task}, facts={}), form)
    wanted = {
        "table": "level off (nat)  2 ",
        "csv": "t2a,level off,nat,generated,2.0,",
        "markdown": "| level off (nat) |",
    }
    assert wanted[form] in text


def test_a_set_metric_has_one_value_of_all_results() -> None:
    register_metric(Metric(label="spread", stream="audio", of=spread, over_set=True))
    (figure,) = scored([("a", 1.0, 1.0), ("b", 5.0, 2.0), ("c", 9.0, 5.0)])
    assert figure.value == 8.0 / 4.0
    assert figure.low is not None
    assert figure.by_recording == {}


def test_other_streams_and_tasks_without_a_condition_have_no_value() -> None:
    register_metric(Metric(label="of words", stream="text", of=difference))
    register_metric(Metric(label="off", stream="audio", of=difference))
    (figure,) = scored([("a", 1.0, 1.0)], unconditional=True)
    assert (figure.metric, figure.value, figure.why_not) == ("off", None, UNCONDITIONAL)


def test_a_value_that_is_no_number_is_left_out_with_the_reason() -> None:
    register_metric(Metric(label="off", stream="audio", of=lambda *_: math.nan))
    generated, _ = scored([("a", 1.0, 1.0)])
    assert generated.why_not == "1 × expected a finite number, found nan"


@pytest.mark.parametrize("broken", [lambda *_: {}["x"], lambda *_: "loud", lambda *_: 1 / 0])
def test_a_metric_that_fails_is_one_line(broken: Any) -> None:
    register_metric(Metric(label="off", stream="audio", of=broken))
    with pytest.raises(EnvironmentFault, match="metric 'off': scoring failed") as caught:
        scored([("a", 1.0, 1.0)])
    assert "\n" not in str(caught.value)


def test_names_of_ours_and_names_that_differ_are_refused(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageFault, match="metric 'jerk': expected another label than those of omniges"):
        register_metric(Metric(label="Jerk", stream="gesture", of=difference))
    (tmp_path / "misnamed_metric.py").write_text(
        "from omniges.metrics.registry import Metric\nM = Metric(label='off', stream='audio', of=lambda a, b: 1.0)\n"
    )
    monkeypatch.syspath_prepend(install(tmp_path, {METRICS.group: {"level": "misnamed_metric:M"}}))
    with pytest.raises(EnvironmentFault, match=r"metric 'level': .* found the label 'off', which gives 'off'"):
        scored([])


def motion(value: float, *present: str) -> MotionClip:
    joints = np.full((9, 55, 3), value)
    return MotionClip(np.zeros((9, 165)), np.full((9, 100), value), np.zeros((9, 3)), joints, frozenset(present))


@pytest.mark.parametrize("over_set", [False, True])
def test_clips_without_a_part_that_a_metric_needs_are_left_out_and_counted(over_set: bool) -> None:
    def off(generated: Any, recorded: Any) -> float:
        pairs = zip(generated, recorded, strict=True) if over_set else [(generated, recorded)]
        return float(np.mean([(a.expressions - b.expressions).mean() for a, b in pairs]))

    register_metric(Metric(label="face off", stream="gesture", of=off, over_set=over_set, needs=("face", "text")))
    found = RegisteredScores("gesture", unconditional=False)
    found.add("generated", "a", motion(3.0, "face"), motion(1.0, "face", "text"))
    found.add("generated", "b", motion(9.0, "face"), motion(0.0, "upper", "text"))
    found.add("generated", "c", motion(0.0, "upper"), motion(5.0, "face", "text"))
    found.add("generated", "d", motion(9.0, "face"), motion(1.0, "face"))
    figure, *others = found.figures(HOW)
    assert figure.value == 2.0
    assert figure.left_out == {"no face in the recording": 1, "no face in the result": 1, "no text in the recording": 1}
    assert [one.results for one in others] == ([] if over_set else [2])  # recordings against themselves: a and c


@pytest.mark.parametrize(
    ("needs", "stream", "message"),
    [
        (("nose",), "gesture", "needs: expected text, audio, upper, .*, found 'nose'"),
        ("face", "gesture", "needs: expected text, audio, upper, .*, found 'f'"),
        (("audio",), "audio", "needs: expected none of stream 'audio'"),
    ],
)
def test_needs_that_are_invalid_are_refused(needs: Any, stream: str, message: str) -> None:
    with pytest.raises(UsageFault, match=f"metric 'off': {message}"):
        register_metric(Metric(label="off", stream=stream, of=difference, needs=needs))


def test_a_checkpoint_is_chosen_by_one_that_says_what_is_better() -> None:
    for label, way in (("more", "higher"), ("less", "lower"), ("neither", None)):
        register_metric(Metric(label=label, stream="audio", of=difference, better=way))  # type: ignore[arg-type]
    check_metric("t2a/more")
    assert better("t2a/more", 2.0, Best(1, "t2a/more", 1.0))
    assert not better("g2a/less", 2.0, Best(1, "g2a/less", 1.0))
    for name in ("t2a/neither", "t2g/more", "more"):
        with pytest.raises(UsageFault, match="--best-metric"):
            check_metric(name)


def test_built_in_names_are_unique() -> None:
    assert len({metric_name(measure.label) for measure in BUILT_IN}) == len(BUILT_IN)
    assert registry.units("audio") == {"log-mel L1": "nat", "mel-cepstral distortion": "dB", "onset agreement": "F"}
