"""Published protocols: the clips that a paper's table is about, the length that is scored, and the required files."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any, Final

from omniges import __version__
from omniges.errors import DataError, UsageFault
from omniges.evaluation import scores
from omniges.evaluation.gesture import BeatRows, face_sums, lacking_face
from omniges.evaluation.motion import ClipMotion, FeatureRows, MetricTools, generated_motion, recorded_motion
from omniges.evaluation.results import FileResult
from omniges.evaluation.settings import EvaluateSettings
from omniges.features.body import BodyModel
from omniges.features.timebase import FRAME_RATE_HZ
from omniges.metrics import gesture
from omniges.metrics.profiles import BODY_MODEL, ENCODER, GRIDS, MEAN_SPEEDS, PublishedFile
from omniges.model.tasks import TASKS
from omniges.storage.atomic import os_errors
from omniges.storage.files import file_sha256

_FRECHET: Final = scores.Heading("Fréchet gesture distance", "")
_BEATS: Final = scores.Heading("beat consistency", "")
_DIVERSITY: Final = scores.Heading("L1 diversity", "m")
_FACE_MSE: Final = scores.Heading("face MSE", "m²")
_FACE_LVD: Final = scores.Heading("face LVD", "m/frame")
_ENCODER: Final = (("--gesture-encoder", ENCODER),)
_BODY_MODEL: Final = (("--body-model", BODY_MODEL),)
_MEAN_SPEEDS: Final = (("--mean-speeds", MEAN_SPEEDS),)
_PACKAGES: Final = ("numpy", "librosa", "soxr", "torch")  # packages whose versions affect values


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """A published protocol: its name, and the stems of the clips that it scores with profile ``emage-2024``."""

    name: str
    stems: tuple[str, ...]


PROTOCOLS: Final[Mapping[str, Protocol]] = MappingProxyType(
    {
        "beat2-speaker2": Protocol(
            name="beat2-speaker2",
            stems=tuple(f"2_scott_0_{k}_{k}" for k in (*range(1, 9), 65, 73, 81, 87, 95, 103, 111)),
        )
    }
)
"""Protocols by name. ``beat2-speaker2``: the English clips of type ``test`` of BEAT2's speaker 2."""


def protocol_results(
    found: Mapping[str, Sequence[FileResult]], protocol: Protocol
) -> tuple[str, list[FileResult], list[str]]:
    """Select the results for the clips of a protocol; all results must be of one task.

    Args:
        found: Results by task.
        protocol: The protocol.

    Returns:
        Name of the task, results sorted by recording, and warnings.

    Raises:
        UsageFault: The results are of several tasks, or of a task that does not generate gesture from a condition. The
            error is also raised if no result belongs to a clip of the protocol, or if no recording of these clips has a
            complete body (upper, hands, lower and root).
    """
    if len(found) != 1 or not all("gesture" in TASKS[name].targets and TASKS[name].conditions for name in found):
        raise UsageFault(
            f"--protocol {protocol.name}: expected results of one task from speech or text to gesture, found "
            f"{', '.join(found)}; give the results of one such task"
        )
    ((task, results),) = found.items()
    of_protocol = [result for result in results if result.row.stem in protocol.stems]
    own, warnings = scores.with_recorded(of_protocol, "gesture")
    if not of_protocol:
        raise UsageFault(
            f"--protocol {protocol.name}: expected results for its {len(protocol.stems)} clips, such as "
            f"{protocol.stems[0]}, found none among {len(results)}; generate them from its clips"
        )
    if not own:
        raise UsageFault(f"--protocol {protocol.name}: {warnings[0]}; give shards whose recordings have motion")
    clips = len({result.row.stem for result in own})
    if clips < len(protocol.stems):
        warnings.append(f"{clips} of {len(protocol.stems)} clips: rows of papers have all, and are not comparable")
    if len(own) > clips:
        warnings.append(
            f"{len(own)} results for {clips} clips: rows of papers have one for each, and are not comparable"
        )
    if others := len(results) - len(of_protocol):
        warnings.append(f"left out: {others} results for clips that are not of {protocol.name}")
    return task, own, warnings


class _BodyRows:
    """Accumulator of the scores that need the body model: beat consistency, L1 diversity and the face metrics."""

    def __init__(self, tools: MetricTools, model: BodyModel, shards: scores.Recordings) -> None:
        self._with, self._model, self._shards = tools, model, shards
        speeds = tools.mean_speeds_m_s
        self._beats = None if speeds is None else BeatRows(tools.profile.beats, speeds)
        self._values = {heading: scores.Values() for heading in (_DIVERSITY, _FACE_MSE, _FACE_LVD)}

    def add(self, result: FileResult, generated: ClipMotion, recorded: ClipMotion) -> None:
        """Score one result.

        Args:
            result: The result; the body shape is read from its recording.
            generated: Motion of the result (T frames).
            recorded: Motion of the recording, cut to the same T frames.
        """
        key, person = result.key, self._model.person(self._shards.array(result.row, "betas.npy"))
        own, true = (self._with.scored_joints(motion, person) for motion in (generated, recorded))
        self._values[_DIVERSITY].add(key, partial(gesture.l1_diversity, own))
        if self._beats is not None:
            self._beats.add(key, own, true, self._shards.waveform(result.row))
        if lacking := lacking_face(generated, recorded):
            for heading in (_FACE_MSE, _FACE_LVD):
                self._values[heading].leave_out(lacking)
            return
        (sums,) = face_sums(person, generated, [recorded])
        self._values[_FACE_MSE].add(key, sums.mse)
        self._values[_FACE_LVD].add(key, partial(sums.velocity, self._with.profile.face))

    def figures(self, how: scores.Resampling) -> list[scores.Figure]:
        """Return the figures (values of metrics) in the order of the published table."""
        beats = _missing(_BEATS, _MEAN_SPEEDS) if self._beats is None else self._beats.figures(how)[0]
        return [beats, *(scores.figure_of_mean(heading, values, how) for heading, values in self._values.items())]


def score_protocol(
    results: Sequence[FileResult],
    shards: scores.Recordings,
    tools: MetricTools,
    grid: str,
    how: scores.Resampling,
    count: Callable[[], None],
) -> scores.Scored:
    """Score results by the definitions of a published table.

    If a metric needs a file that is missing, the figure of this metric contains the reason instead of a value.

    Args:
        results: Results, sorted by recording.
        shards: The recordings.
        tools: Settings of profile ``emage-2024``, with the body model and the encoder that the user passed as files.
        grid: Rule for the scored length: ``generated`` (length of the result), or a name in `GRIDS`.
        how: Seed and number of resamples of the bootstrap over recordings.
        count: Function that is called after each result.

    Returns:
        Figures (values of metrics), scored seconds of each recording, and warnings.

    Raises:
        DataError: A file cannot be read, or a result is shorter than a window of the grid.
    """
    features, seconds, jawless = FeatureRows(tools, None), dict[str, float](), {"results": 0, "recordings": 0}
    model = tools.bodies.model
    body = None if model is None else _BodyRows(tools, model, shards)
    for result in results:
        recorded = recorded_motion(shards, result.row)
        generated = generated_motion(result, recorded.frames)
        frames = _scored_frames(result, generated.frames, recorded.frames, grid)
        generated, recorded = generated.cut(frames), recorded.cut(frames)
        seconds[result.key] = frames / FRAME_RATE_HZ
        jawless["results"] += "jaw_eyes" not in generated.present
        jawless["recordings"] += "jaw_eyes" not in recorded.present
        if tools.encoder is not None:
            features.add_poses(result.key, generated, recorded)
        if body is not None:
            body.add(result, generated, recorded)
        count()
    missing = _MEAN_SPEEDS if tools.mean_speeds_m_s is None else ()
    figures = [_missing(_FRECHET, _ENCODER) if tools.encoder is None else features.figures(how)[0]]
    if body is not None:
        figures += body.figures(how)
    else:
        figures += [_missing(_BEATS, (*_BODY_MODEL, *missing))]
        figures += [_missing(heading, _BODY_MODEL) for heading in (_DIVERSITY, _FACE_MSE, _FACE_LVD)]
    warnings = [
        f"no jaw and eyes in {number} of {len(results)} {side}, scored as zero: rows of papers have a jaw, and are not "
        "comparable"
        for side, number in jawless.items()
        if number
    ]
    return scores.Scored(figures, seconds, warnings)


def _scored_frames(result: FileResult, generated: int, recorded: int, grid: str) -> int:
    if grid == "generated":
        return generated
    frames = GRIDS[grid].frames(generated, recorded)
    if frames < GRIDS[grid].window_frames:
        raise DataError(
            f"{result.place}: expected at least {GRIDS[grid].window_frames} frames for --grid {grid}, found "
            f"{generated}; give longer results"
        )
    return frames


def _missing(heading: scores.Heading, files: Sequence[tuple[str, PublishedFile]]) -> scores.Figure:
    return scores.absent(heading, "; ".join(f"missing {flag}: {file.described()}" for flag, file in files))


def protocol_facts(settings: EvaluateSettings) -> dict[str, Any]:
    """Return the report's fields with which a reader can repeat the evaluation of a protocol.

    Args:
        settings: Settings of the command.

    Returns:
        Fields of the report: ``protocol``, ``grid``, ``command`` and ``versions`` (of packages).
    """
    packages = [name for name in _PACKAGES if find_spec(name) is not None]  # torch is optional
    return {
        "protocol": settings.protocol,
        "grid": settings.grid,
        "command": command_of(settings),
        "versions": {"omniges": __version__, "python": platform.python_version()}
        | {name: metadata.version(name) for name in packages},
    }


def published_files(settings: EvaluateSettings) -> tuple[dict[str, Any], list[str]]:
    """Return name and sha256 of the user's files for published profiles, and warnings about unknown files.

    Args:
        settings: Settings of the command.

    Returns:
        First, a dictionary with the entries ``gesture_encoder``, ``mean_speeds`` and ``body_model``. The entry of a
        file that the user did not pass has the value None. Other entries have the fields ``file``, ``sha256`` and
        ``published``. ``published`` is True if the file has the checksum of the published file, False if it has another
        checksum, and None if omniges does not know the published checksum.
        Second, the warnings.
    """
    given = (
        ("gesture_encoder", settings.gesture_encoder, ENCODER),
        ("mean_speeds", settings.mean_speeds, MEAN_SPEEDS),
        ("body_model", settings.body_model, BODY_MODEL),
    )
    warnings: list[str] = []
    files: dict[str, Any] = {}
    for name, path, published in given:
        if path is None:
            files[name] = None
            continue
        with os_errors(path, "read"):
            sha256 = file_sha256(path)
        known = sha256 in published.sha256 if published.sha256 else None
        files[name] = {"file": path.name, "sha256": sha256, "published": known}
        if known is False:
            kind = name.removeprefix("gesture_").replace("_", " ")
            expected = " or ".join(published.sha256)
            warnings.append(f"unknown {kind}: {path.name} has sha256 {sha256}; published is {expected}")
    return files, warnings


def command_of(settings: EvaluateSettings) -> str:
    """Return the command line that repeats the evaluation of a protocol."""
    words = ["omniges", "evaluate", *map(str, settings.generated), "--shards", str(settings.shards)]
    words += ["--protocol", str(settings.protocol), "--grid", settings.grid]
    paths = {
        "--gesture-encoder": settings.gesture_encoder,
        "--body-model": settings.body_model,
        "--mean-speeds": settings.mean_speeds,
        "--task": settings.task,
    }
    words += [word for flag, path in paths.items() if path is not None for word in (flag, str(path))]
    words += ["--trust-encoder-program"] * settings.trust_encoder_program
    return shlex.join([*words, "--seed", str(settings.seed), "--resamples", str(settings.resamples)])
