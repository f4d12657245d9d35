"""Published protocols: which clips a row of a paper scores, how they are cut, and the files that its metrics need."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from types import MappingProxyType
from typing import Any, Final

from omniges import __version__
from omniges.errors import DataError, UsageFault
from omniges.evaluation import scores
from omniges.evaluation.gesture import BeatRows
from omniges.evaluation.motion import ClipMotion, FeatureRows, MetricTools, generated_motion, recorded_motion
from omniges.evaluation.results import FileResult
from omniges.evaluation.settings import EvaluateSettings
from omniges.features.timebase import FRAME_RATE_HZ
from omniges.metrics import gesture
from omniges.metrics.profiles import BODY_MODEL, ENCODER, GRIDS, MEAN_SPEEDS, PublishedFile
from omniges.storage.atomic import os_errors
from omniges.storage.canonical_json import file_sha256

_FRECHET: Final = scores.Heading("Fréchet gesture distance", "")
_BEATS: Final = scores.Heading("beat consistency", "")
_DIVERSITY: Final = scores.Heading("L1 diversity", "m")
_PACKAGES: Final = ("numpy", "librosa", "torch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """Clips of a published row, scored by the profile ``emage-2024``."""

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
"""The clips of type ``test`` of BEAT2's speaker 2, in English."""


def protocol_results(
    found: Mapping[str, Sequence[FileResult]], protocol: Protocol
) -> tuple[str, list[FileResult], list[str]]:
    """Return the task, its results for clips of a protocol, and warnings.

    Args:
        found: Results by task.
        protocol: The protocol.

    Returns:
        Name of the task, results sorted by recording, and warnings.

    Raises:
        UsageFault: There is not exactly one task of gesture, or no result is of the protocol's clips.
    """
    if len(found) != 1:
        raise UsageFault(f"--protocol {protocol.name}: results of one task expected, found {', '.join(found)}")
    ((task, results),) = found.items()
    own = [result for result in results if result.row.stem in protocol.stems]
    if not own:
        raise UsageFault(
            f"--protocol {protocol.name}: results for its {len(protocol.stems)} clips expected, such as "
            f"{protocol.stems[0]}, found none among {len(results)}"
        )
    clips, warnings = len({result.row.stem for result in own}), list[str]()
    if clips < len(protocol.stems):
        warnings.append(f"{clips} of {len(protocol.stems)} clips: rows of papers have all, and are not comparable")
    if len(own) < len(results):
        warnings.append(f"left out: {len(results) - len(own)} results for clips that are not of {protocol.name}")
    return task, own, warnings


def score_protocol(
    results: Sequence[FileResult],
    shards: scores.Recordings,
    tools: MetricTools,
    grid: str,
    how: scores.Resampling,
    count: Callable[[], None],
) -> scores.Scored:
    """Score results as a row of a paper does; metrics whose files are missing have no value and a reason.

    Args:
        results: Results, sorted by recording.
        shards: The recordings.
        tools: Profile ``emage-2024`` with the files that were given.
        grid: Name of the cut: ``generated``, or one of `GRIDS`.
        how: Bootstrap over recordings.
        count: Called after each result.

    Returns:
        The scores.

    Raises:
        DataError: A file cannot be read, or a result is shorter than a window of the grid.
    """
    features, diversity, seconds = FeatureRows(tools, None), scores.Values(), dict[str, float]()
    speeds = tools.mean_speeds_m_s
    beats = None if speeds is None else BeatRows(tools.profile.beats, speeds)
    for result in results:
        recording = recorded_motion(shards, result.row)
        generated = generated_motion(result, recording.frames)
        frames = _scored_frames(result, generated.frames, recording.frames, grid)
        generated, true = generated.cut(frames), recording.cut(frames)
        seconds[result.key] = frames / FRAME_RATE_HZ
        if tools.encoder is not None:
            features.add_poses(result.key, generated, true)
        if tools.bodies.model is not None:
            own, recorded = _joints(tools, shards, result, generated, true)
            diversity.add(result.key, partial(gesture.l1_diversity, own))
            if beats is not None:
                beats.add(result.key, own, recorded, shards.waveform(result.row))
        count()
    body = () if tools.bodies.model is not None else (("--body-model", BODY_MODEL),)
    means = () if beats is not None else (("--mean-speeds", MEAN_SPEEDS),)
    encoders = () if tools.encoder is not None else (("--gesture-encoder", ENCODER),)
    figures = [
        _missing(_FRECHET, encoders) if encoders else features.figures(how)[0],
        _missing(_BEATS, (*body, *means)) if beats is None or body else beats.figures(how)[0],
        _missing(_DIVERSITY, body) if body else scores.figure_of_mean(_DIVERSITY, diversity, how),
    ]
    return scores.Scored(figures, seconds)


def _scored_frames(result: FileResult, generated: int, recorded: int, grid: str) -> int:
    if grid == "generated":
        return generated
    frames = GRIDS[grid].frames(generated, recorded)
    if frames < GRIDS[grid].window_frames:
        raise DataError(
            f"{result.place}: {generated} frames found; --grid {grid} expects at least {GRIDS[grid].window_frames}"
        )
    return frames


def _joints(
    tools: MetricTools, shards: scores.Recordings, result: FileResult, generated: ClipMotion, true: ClipMotion
) -> tuple[Any, Any]:
    body = tools.bodies.of(shards.array(result.row, "betas.npy"))
    return tools.scored_joints(generated, body), tools.scored_joints(true, body)


def _missing(heading: scores.Heading, files: Sequence[tuple[str, PublishedFile]]) -> scores.Figure:
    return scores.absent(heading, "; ".join(f"missing {flag}: {file.described()}" for flag, file in files))


def protocol_facts(settings: EvaluateSettings) -> dict[str, Any]:
    """Return command, versions and cut of a row.

    Args:
        settings: Settings of the command.

    Returns:
        Facts for the report.
    """
    packages = [name for name in _PACKAGES if name != "torch" or settings.gesture_encoder is not None]
    return {
        "protocol": settings.protocol,
        "grid": settings.grid,
        "command": command_of(settings),
        "versions": {"omniges": __version__, "python": platform.python_version()}
        | {name: metadata.version(name) for name in packages},
    }


def published_files(settings: EvaluateSettings) -> tuple[dict[str, Any], list[str]]:
    """Return name and sha256 of the files that published profiles need, and a warning for each unknown one.

    Args:
        settings: Settings of the command.

    Returns:
        Facts by setting, None for a file that was not given, and warnings.
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
    """Return the command that repeats a protocol's scores."""
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
