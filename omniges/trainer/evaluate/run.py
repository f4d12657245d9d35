"""`evaluate`: generated files against the samples they belong to; no model is needed for that."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from omniges import __version__
from omniges.errors import DataError, UsageFault
from omniges.features.gesture import JOINT_NAMES
from omniges.publish import os_errors
from omniges.shards.reader import ShardFolder
from omniges.shards.schema import MANIFEST_FILE
from omniges.trainer.evaluate.figures import Figure, Resampling
from omniges.trainer.evaluate.gesture import measures_of, score_gesture
from omniges.trainer.evaluate.pairs import Pair, find_pairs
from omniges.trainer.evaluate.report import Report
from omniges.trainer.evaluate.speech import score_speech
from omniges.trainer.evaluate.text import score_text
from omniges.trainer.metrics.descriptor import DESCRIPTOR_NAME
from omniges.trainer.metrics.encoders import Encoder, load_encoder
from omniges.trainer.metrics.profiles import Profile, profile
from omniges.trainer.streams import StreamName
from omniges.trainer.tasks import TASKS

__all__ = ["EvaluateSettings", "evaluate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateSettings:
    """All that scoring files can be told."""

    generated: tuple[Path, ...]
    shards: Path
    task: str | None = None  # of files without records
    profile: str = "corrected"
    encoder: Path | None = None
    trust_program: bool = False  # run a TorchScript encoder, which is a program
    mean_speeds: Path | None = None
    resamples: int = 2000
    seed: int = 0


def evaluate(settings: EvaluateSettings, count: Callable[[int, int], None] = lambda _done, _total: None) -> Report:
    """Score generated files; `count` is told how many tasks of how many are done.

    Raises UsageFault or DataError; nothing that could not be read is left out.
    """
    chosen = _profile(settings)
    shards = ShardFolder(settings.shards)
    pairs = find_pairs(settings.generated, shards, settings.task)
    encoder = _encoder(settings)
    how = Resampling(seed=settings.seed, resamples=settings.resamples)
    tasks: dict[str, list[Pair]] = {}
    for pair in pairs:
        tasks.setdefault(pair.task, []).append(pair)
    speeds = None if settings.mean_speeds is None else _mean_speeds(settings.mean_speeds)
    scored: dict[str, list[Figure]] = {}
    measures = None
    for done, (task, own) in enumerate(tasks.items(), 1):
        scored[task] = []
        for target in TASKS[task].targets:
            if target == "gesture" and measures is None:
                measures = measures_of(shards, chosen, encoder, speeds)
            if target == "gesture" and measures is not None:
                scored[task] += score_gesture(own, shards, measures, how)
            else:
                scored[task] += _SCORERS[target](own, shards, how)
        count(done, len(tasks))
    facts = {
        "omniges": __version__,
        "shards": str(shards.folder),
        "manifest_sha256": shards.dataset["files"][MANIFEST_FILE]["sha256"],
        "profile": chosen.name,
        "skeleton": "generic",
        "encoder": DESCRIPTOR_NAME if encoder is None else encoder.name,
        "mean_speeds": "of the train split" if settings.mean_speeds is None else str(settings.mean_speeds),
        "resamples": settings.resamples,
        "seed": settings.seed,
    }
    return Report(tasks=scored, clips={task: [pair.name for pair in own] for task, own in tasks.items()}, facts=facts)


_SCORERS: dict[StreamName, Callable[[Sequence[Pair], ShardFolder, Resampling], list[Figure]]] = {
    "text": score_text,
    "audio": score_speech,
}


def _profile(settings: EvaluateSettings) -> Profile:
    """The profile; a published one would print numbers that look like a paper's and are not."""
    chosen = profile(settings.profile)
    if chosen.published:
        raise UsageFault(
            f"--profile {chosen.name}: its numbers mean something only with the joints and vertices of SMPL-X, the "
            "published encoder and the published mean speeds, and joints here are the generic skeleton's: take "
            "corrected, or call omniges.trainer.metrics with your own joints"
        )
    return chosen


def _encoder(settings: EvaluateSettings) -> Encoder | None:
    if settings.encoder is None:
        return None
    if settings.encoder.suffix != ".safetensors" and not settings.trust_program:
        raise UsageFault(
            f"--encoder {settings.encoder}: a .safetensors file with its .json expected; a TorchScript file is a "
            "program that runs with your rights: add --trust-encoder-program if you trust where it comes from"
        )
    return load_encoder(settings.encoder)


def _mean_speeds(path: Path) -> npt.NDArray[np.float64]:
    """Mean speeds (55,) m/s from an .npy file."""
    with os_errors(path, "read"):
        if not path.is_file():
            raise UsageFault(f"--mean-speeds {path}: an .npy file expected, found none there")
        data = path.read_bytes()
    try:
        found = np.load(io.BytesIO(data), allow_pickle=False)
    except ValueError as error:
        raise DataError(f"{path}: an .npy file of numbers expected: {error}") from error
    if found.shape != (len(JOINT_NAMES),) or found.dtype.kind != "f":
        raise DataError(f"{path}: ({len(JOINT_NAMES)},) floats expected, found {found.shape} of {found.dtype}")
    return np.asarray(found, dtype=np.float64)
