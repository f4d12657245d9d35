"""The picture of a held-out window: what was recorded and what every task made of it, on one time line."""

from __future__ import annotations

from collections.abc import Sequence

from omniges.features.gesture import gesture_from_motion
from omniges.features.timebase import TICKS_PER_SECOND
from omniges.formats.arrays import decode_npy
from omniges.formats.npz import decode_motion
from omniges.model.streams import StreamName
from omniges.model.tasks import TASKS
from omniges.trainer.validation.held_out import Window, WindowFolder
from omniges.trainer.validation.samples import Made, words_of
from omniges.visualize import Version, draw_comparison

__all__ = ["window_picture"]

_GIVEN: dict[StreamName, str] = {"text": "the words", "audio": "the audio", "gesture": "the gesture"}


def window_picture(window: Window, samples: WindowFolder, results: Sequence[Made], step: int) -> bytes:
    """PNG of a window and of the files made of it; results that are no motion are left out."""
    sample = samples.sample(samples.row(window.name))
    recorded = Version("recorded", sample.gesture.gesture, sample.gesture.start_xz, sample.mel, sample.words)
    made = [_version(one) for one in results if one.why_not is None]
    start_s, seconds = window.start_tick / TICKS_PER_SECOND, window.ticks / TICKS_PER_SECOND
    row = window.row
    return draw_comparison(
        f"{row.stem}, {start_s:.1f} to {start_s + seconds:.1f} s, step {step}",
        f"speaker {row.speaker or 'unknown'}, split {row.split}, {window.source_path}, ticks {window.start_tick} to "
        f"{window.start_tick + window.ticks}; averaged weights",
        [recorded, *made],
        seconds,
    )


def _version(made: Made) -> Version:
    """What a result's files hold."""
    task = TASKS[made.task]
    name = f"{made.task}: from {' and '.join(_GIVEN[stream] for stream in task.conditions)}"
    contents = made.files.contents
    (target,) = task.targets
    if target == "audio":
        return Version(name, mel=decode_npy(contents[".mel.npy"]))
    if target == "text":
        words = [{"word": word.word, "start": word.start, "end": word.end} for word in words_of(made)]
        return Version(name, words=words)
    motion = decode_motion(contents[".npz"], standing=False)
    clip = gesture_from_motion(motion.poses, motion.expressions, motion.trans)
    return Version(name, clip.gesture, clip.start_xz)
