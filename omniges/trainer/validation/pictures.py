"""The picture of a held-out window: what was recorded and what every task made of it, on one time line."""

from __future__ import annotations

from collections.abc import Sequence

from omniges.features.gesture import gesture_from_motion
from omniges.features.timebase import TICKS_PER_SECOND
from omniges.model.streams import StreamName
from omniges.model.tasks import TASKS
from omniges.trainer.validation.samples import Made, WindowResults
from omniges.visualize.pictures import Version, draw_comparison

_GIVEN: dict[StreamName, str] = {"text": "the words", "audio": "the audio", "gesture": "the gesture"}


def window_picture(number: int, results: WindowResults, made: Sequence[Made], step: int) -> bytes:
    """PNG of a window and of what was made of it; results that are no motion are left out."""
    window = results.windows[number]
    sample = results.samples.sample(results.samples.row(window.name))
    recorded = Version("recorded", sample.gesture.gesture, sample.gesture.start_xz, sample.mel, sample.words)
    versions = [_version(one, results) for one in made if one.why_not is None]
    start_s, seconds = window.start_tick / TICKS_PER_SECOND, window.ticks / TICKS_PER_SECOND
    row = window.row
    return draw_comparison(
        f"{row.stem}, {start_s:.1f} to {start_s + seconds:.1f} s, step {step}",
        f"speaker {row.speaker or 'unknown'}, split {row.split}, {window.source_path}, ticks {window.start_tick} to "
        f"{window.start_tick + window.ticks}; averaged weights",
        [recorded, *versions],
        seconds,
    )


def _version(made: Made, results: WindowResults) -> Version:
    """What a result's files would hold."""
    task = TASKS[made.task]
    name = f"{made.task}: from {' and '.join(_GIVEN[stream] for stream in task.conditions)}"
    found = results.of(made.task, made.number, made.made)
    (target,) = task.targets
    if target == "audio":
        return Version(name, mel=found.mel())
    if target == "text":
        words = [{"word": word.word, "start": word.start, "end": word.end} for word in found.spoken()[0]]
        return Version(name, words=words)
    motion = found.motion()
    clip = gesture_from_motion(motion.poses, motion.expressions, motion.trans)
    return Version(name, clip.gesture, clip.start_xz)
