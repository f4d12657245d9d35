"""Generated samples of held-out windows: arrays to score, files and pictures, with the code of `omniges generate`."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.codecs.base import SpokenText
from omniges.conditions.base import Array, ValueOf, constant
from omniges.errors import DataError
from omniges.evaluation.motion import MetricTools, TrainSplit, load_bodies
from omniges.evaluation.run import score_stream
from omniges.evaluation.scores import Figure, Heading, Resampling, Result, Scored, absent
from omniges.features.gesture import MotionArrays, gesture_from_motion
from omniges.features.timebase import TICKS_PER_SECOND
from omniges.formats.textgrid import WordInterval
from omniges.generation.inputs import Body
from omniges.generation.long_form import TicksOf, Timeline, WindowSettings
from omniges.generation.sampler import Part, Sampler
from omniges.generation.vocoder import GRIFFIN_LIM, Vocoder
from omniges.generation.writers import Results
from omniges.metrics.profiles import PROFILES
from omniges.model.streams import StreamName
from omniges.model.tasks import TASKS, SamplingSettings
from omniges.shards.present import ALL_PRESENT, STREAM_BITS, at_rest, bits_of, present_bits
from omniges.trainer.validation.held_out import Window, WindowFolder
from omniges.visualize.pictures import Version, draw_comparison

VALIDATION_SEED: Final = 0x56414C
"""Seed of noise and samples. It is the same for all runs, so that runs with different seeds are comparable."""

METRIC_TOOLS: Final = MetricTools(
    profile=PROFILES["corrected"], bodies=load_bodies(None), encoder=None, mean_speeds_m_s=None
)
"""Settings for the metrics of motion, with the generic skeleton as body."""
VOCODER: Final = GRIFFIN_LIM

_RESAMPLES: Final = 200
_NOT_OF_WINDOWS: Final = ("seams", "face")
"""Prefixes of metrics that are left out. Seams need several windows, and face metrics need an SMPL-X model."""
_CONDITION_NAMES: Final[Mapping[StreamName, str]] = {
    "text": "the words",
    "audio": "the audio",
    "gesture": "the gesture",
}


@dataclass(frozen=True, slots=True)
class HeldOutWindow:
    """The content of a held-out window."""

    number: int  # index among all held-out windows
    window: Window
    arrays: Mapping[StreamName, npt.NDArray[Any]]  # in the units of shards; text as tokens
    speaker: int  # 0: unknown to the model
    conditions: Mapping[str, Array | None]  # values of the model's condition streams
    present: int = ALL_PRESENT  # bit mask of `STREAM_PARTS`

    def allows(self, task: str) -> bool:
        """Return True if the window has all streams of a task."""
        streams = (*TASKS[task].conditions, *TASKS[task].targets)
        return all(self.present & STREAM_BITS[name] for name in streams)

    def present_for(self, task: str) -> int:
        """Return a bit mask of `STREAM_PARTS`: 0 for absent parts of the task's conditions, 1 for all other parts."""
        return self.present | ALL_PRESENT & ~bits_of(TASKS[task].conditions)

    @property
    def described(self) -> dict[str, ValueOf]:
        """Functions of the condition streams, by name.

        Each takes (first tick, number of ticks), ignores them, and returns the value that the window has.
        """
        return {name: constant(value) for name, value in self.conditions.items()}

    def ticks_of(self, name: StreamName) -> TicksOf:
        """Return a function with which the sampler reads the array of a stream that is a condition.

        The function takes (first tick, number of ticks). It raises ValueError for all ticks except those of the
        complete window, because latents cannot be cut.
        """

        def complete(first: int, count: int) -> npt.NDArray[Any]:
            if (first, count) != (0, self.window.ticks):
                found = f"{first} to {first + count}"
                raise ValueError(f"expected ticks 0 to {self.window.ticks} of a window, found {found}")
            return self.arrays[name]

        return complete


@dataclass(frozen=True, slots=True)
class GeneratedWindow:
    """The generated content of one window for one task, or the reason why it was not generated."""

    task: str
    number: int  # index of the window
    content: Any = None  # the task's target: a decoded array, or SpokenText
    measures: Mapping[str, float] = field(default_factory=dict)
    why_not: str | None = None


@dataclass(frozen=True, slots=True)
class ResultFiles:
    """Files, measurements and warnings of one kept result."""

    task: str
    number: int  # index of the window
    contents: Mapping[str, bytes]  # bytes of each file, by suffix
    kinds: Mapping[str, str]  # type of each file, by suffix
    measures: Mapping[str, float]
    warnings: Sequence[str]
    said: str | None = None  # the words, if the target is text
    why_not: str | None = None


def sample_windows(sampler: Sampler, task: str, held: Sequence[HeldOutWindow], how: SamplingSettings) -> list[Part]:
    """Sample one task for the given windows, as `omniges generate` does.

    Args:
        sampler: The sampler.
        task: Name of the task.
        held: The windows, all of one length.
        how: Settings of the sampler.

    Returns:
        For each window, in order, its generated arrays. Latents are not decoded yet.
    """
    ticks, targets = held[0].window.ticks, TASKS[task].targets
    conditions = TASKS[task].conditions
    timelines = [
        Timeline(
            ticks,
            {name: one.ticks_of(name) for name in conditions},
            one.speaker,
            one.number,
            one.present_for(task),
            one.described,
        )
        for one in held
    ]
    windows = WindowSettings(window_ticks=ticks, overlap_ticks=0, disjoint=True)
    parts = sampler.sample(timelines, targets, VALIDATION_SEED, windows, how)
    return sorted(parts, key=lambda part: part.number)  # each timeline is one window, so it has one part


@dataclass(frozen=True, slots=True)
class WindowResults:
    """Held-out windows and the sampler, with methods that convert generated content to results, files and pictures."""

    samples: WindowFolder
    windows: Sequence[Window]
    sampler: Sampler

    def of(self, generated: GeneratedWindow, vocoder: Vocoder | None = None) -> Results:
        """Pass the generated content of a window to the writers of `omniges generate`.

        Args:
            generated: Content of the window for one task.
            vocoder: Vocoder that computes a waveform, which is slow; None: no waveform.

        Returns:
            The writers, which return the content as arrays, words or files.

        Raises:
            DataError: The content has invalid rotations or NaN.
        """
        window = self.windows[generated.number]
        body = Body.of_sample(self.samples.sample(self.samples.row(window.name)))
        spans = [(0, window.ticks)] if self.sampler.codecs.untimed_text else None
        targets, seed = TASKS[generated.task].targets, VALIDATION_SEED + generated.number
        results = Results(targets, body, self.sampler.token_codec, vocoder, seed, None, spans)
        results.append(
            {
                name: [generated.content] if isinstance(generated.content, SpokenText) else generated.content
                for name in targets
            }
        )
        return results

    def files_of(self, generated: GeneratedWindow) -> ResultFiles:
        """Encode the files of a result as `omniges generate` writes them; generated audio includes a waveform.

        If `generated` contains a reason (`why_not`) and no content, return this reason and no files.
        """
        if generated.why_not is not None:
            return ResultFiles(generated.task, generated.number, {}, {}, {}, (), None, generated.why_not)
        results = self.of(generated, VOCODER)
        contents, kinds = {}, {}
        for file in results.files():
            contents[file.ending], kinds[file.ending] = b"".join(file.parts), file.kind
        said = " ".join(one.word for one in results.spoken()[0]) if "text" in results.sinks else None
        return ResultFiles(generated.task, generated.number, contents, kinds, results.measures, results.warnings, said)

    def picture(self, number: int, generated: Sequence[GeneratedWindow], step: int) -> bytes:
        """Draw a window and its generated results; leave out invalid results.

        Args:
            number: Index of the window.
            generated: Generated contents of this window, one for each task.
            step: Step of the weights, for the title.

        Returns:
            The picture as PNG.
        """
        window = self.windows[number]
        sample = self.samples.sample(self.samples.row(window.name))
        bits, clip = present_bits(sample.row.present), at_rest(sample.gesture, sample.row.present)
        moved = bits & STREAM_BITS["gesture"]
        recorded = Version(
            "recorded",
            clip.gesture if moved else None,
            clip.start_xz if moved else None,
            sample.mel if bits & STREAM_BITS["audio"] else None,
            sample.words if bits & STREAM_BITS["text"] else None,
        )
        start_s, seconds = window.start_tick / TICKS_PER_SECOND, window.ticks / TICKS_PER_SECOND
        row = window.row
        return draw_comparison(
            f"{row.stem}, {start_s:.1f} to {start_s + seconds:.1f} s, step {step}",
            f"speaker {row.speaker or 'unknown'}, split {row.split}, {window.source_path}, ticks {window.start_tick} "
            f"to {window.start_tick + window.ticks}; EMA weights",
            [recorded, *(self._version(one) for one in generated if one.why_not is None)],
            seconds,
        )

    def _version(self, generated: GeneratedWindow) -> Version:
        """Return a result as a `Version`, the input of the picture's panels."""
        task, found = TASKS[generated.task], self.of(generated)
        name = f"{generated.task}: from {' and '.join(_CONDITION_NAMES[stream] for stream in task.conditions)}"
        if "audio" in task.targets:
            return Version(name, mel=found.mel())
        if "text" in task.targets:
            words = [{"word": word.word, "start": word.start, "end": word.end} for word in found.spoken()[0]]
            return Version(name, words=words)
        motion = found.motion()
        clip = gesture_from_motion(motion.poses, motion.expressions, motion.trans)
        return Version(name, clip.gesture, clip.start_xz)


def make_result(task: str, one: HeldOutWindow, part: Part, results: WindowResults) -> GeneratedWindow:
    """Decode what the sampler generated for a window, and check that it can be scored and written.

    Args:
        task: Name of the task.
        one: The window.
        part: Output of the sampler for this window.
        results: Held-out windows, with the method that converts generated content to a result.

    Returns:
        The decoded content, or the reason why it is invalid.
    """
    try:
        ((_, array),) = part.arrays().items()
        content = array[0] if isinstance(array, list) else array  # texts are a list with one item for each window
        generated = GeneratedWindow(task, one.number, content)
        found = results.of(generated)
    except DataError as error:  # an untrained model may give invalid rotations or NaN, which reports count
        return GeneratedWindow(task, one.number, why_not=str(error).partition("; the model")[0])
    # This also checks face and root, which are not rotations.
    if "gesture" in found.sinks and not np.isfinite(generated.content).all():
        return GeneratedWindow(
            task, one.number, why_not="generated motion: expected finite channels, found NaN or infinite values"
        )
    return replace(generated, measures=found.measures)


@dataclass(frozen=True, slots=True, kw_only=True)
class _ArrayResult(Result):
    """A result in memory, without files."""

    results: Callable[[], Results]  # computed when scored, to save memory

    def motion(self) -> MotionArrays:
        return self.results().motion()

    def mel(self) -> tuple[npt.NDArray[np.float32], str]:
        return self.results().mel(), "the model's mel"

    def spoken(self) -> tuple[list[WordInterval], bool]:
        return self.results().spoken()


def score_task(
    generated: Sequence[GeneratedWindow], results: WindowResults, train: Callable[[], TrainSplit | None]
) -> Scored:
    """Score the results of one task with the functions of `omniges evaluate`; each window counts as a recording.

    Args:
        generated: Generated contents of the task. Invalid contents are left out and counted.
        results: Held-out windows, with the method that converts generated content to a result.
        train: Function that returns statistics of the train split, called only for gesture.

    Returns:
        The scores.
    """
    task, samples = generated[0].task, results.samples
    (target,) = TASKS[task].targets
    invalid = Counter(one.why_not for one in generated if one.why_not is not None)
    found: list[Result] = [
        _ArrayResult(
            task=task,
            row=row,
            name=row.key,
            seconds=row.seconds,
            invalid_rotations=one.measures.get("invalid_rotations"),
            absent=results.sampler.at_rest(TASKS[task].targets),
            results=partial(results.of, one),
        )
        for one in generated
        if one.why_not is None
        for row in (samples.row(results.windows[one.number].name),)
    ]
    if not found:
        why = "; ".join(f"{count} × {reason}" for reason, count in invalid.items())
        return Scored([replace(absent(Heading(f"{target} metrics", ""), why), left_out=invalid)], {})
    how = Resampling(seed=0, resamples=_RESAMPLES)
    scored = score_stream(found, target, samples, METRIC_TOOLS, train, how, lambda: None)
    figures = [one for one in scored.figures if not one.metric.startswith(_NOT_OF_WINDOWS)]
    if invalid:
        figures = [replace(one, left_out=dict(Counter(one.left_out) + invalid)) for one in figures]
    return replace(scored, figures=figures)


# --- exchange between ranks

_CLASSES: Final[Mapping[str, Callable[..., Any]]] = {
    each.__name__: each for each in (GeneratedWindow, ResultFiles, SpokenText, Figure)
}


def pack(items: Sequence[Any]) -> bytes:
    """Serialize items as JSON, so that ranks can send them to each other.

    Items may consist of the dataclasses in `_CLASSES`, arrays, bytes, texts, numbers, lists, tuples and dictionaries.
    """

    def plain(value: Any) -> dict[str, Any]:
        if isinstance(value, bytes):
            return {"base64": b64encode(value).decode()}
        if isinstance(value, np.ndarray):
            return {"array": value.dtype.str, "shape": value.shape, "bytes": value.tobytes()}
        return {"class": type(value).__name__} | {each.name: getattr(value, each.name) for each in fields(value)}

    return json.dumps(items, default=plain).encode()


def unpack(data: bytes) -> list[Any]:
    """Restore the items that `pack` serialized; tuples become lists."""

    def restored(found: dict[str, Any]) -> Any:
        match found:
            case {"base64": text}:
                return b64decode(text)
            case {"array": kind, "shape": shape, "bytes": content}:
                return np.frombuffer(content, kind).reshape(shape)
            case {"class": name, **facts}:
                return _CLASSES[name](**facts)
        return found

    items: list[Any] = json.loads(data, object_hook=restored)
    return items
