"""What went wrong in learning: losses or gradients that are no number, losses that grow without end. Named, refused."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import Any, Final, NoReturn

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError
from omniges.model.tasks import TASKS, draw_plan
from omniges.storage.remote import parse_location
from omniges.trainer.logging import Logbook
from omniges.trainer.run import Run

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_SHOWN: Final = 3


def require_finite(run: Run, logbook: Logbook, first: int, starts: list[int], losses: F64, norms: F64) -> None:
    """Raise where a loss or a gradient is not finite; the first step counts, for it spoils the later ones.

    With fp16 a gradient that overflows lowers the loss scale, and its step is left out.

    Args:
        run: what learns.
        logbook: told of it.
        first: number of the first step.
        starts: first position of each step.
        losses: (steps, G, 3) of all samples.
        norms: (steps,) of the gradients.
    """
    scaled = run.learner.scale() is not None
    for k, start in enumerate(starts):
        bad = np.flatnonzero(~np.isfinite(losses[k]).all(axis=1))
        if len(bad):
            what = f"the loss of {len(bad)} of {losses.shape[1]} samples is no number"
            refuse(run, logbook, first + k, start + bad, what)
        if not np.isfinite(norms[k]) and not scaled:
            whole = np.arange(start, start + losses.shape[1])
            refuse(run, logbook, first + k, whole, "the gradient is no number, though each sample's loss is one")


def refuse(run: Run, logbook: Logbook, step: int, positions: I64, what: str) -> NoReturn:
    """End the run, naming samples and the command that lists their batch; no checkpoint is made of it."""
    plan = draw_plan(run.settings.flow_settings(), run.settings.seed, positions)
    tasks = [list(TASKS)[number] for number in plan.task.tolist()]
    places = run.feed.places(positions)
    samples = [asdict(place) | {"task": task} for place, task in zip(places, tasks, strict=True)]
    command = _trace_command(run, int(positions[0]))
    logbook.write("refused", step=step, what=what, samples=samples, command=command)
    logbook.sync()
    some = ", ".join(f"{s['key']} from tick {s['start_tick']} ({s['task']})" for s in samples[:_SHOWN])
    more = f" and {len(samples) - _SHOWN} more" if len(samples) > _SHOWN else ""
    seen = f"; list the batch with: {command}" if command else ""
    raise DataError(
        f"step {step}: {what}: {some}{more}{seen}; nothing was saved of it: lower --learning-rate, or look at the "
        f"data with omniges verify-shards --level deep; all samples are in {logbook.path}"
    )


def _trace_command(run: Run, position: int) -> str | None:
    """The command line that lists the micro-batch at a position; None where no command reads the shards."""
    settings, share = run.settings, run.feed.share
    location = parse_location(settings.shards[0])
    if len(settings.shards) > 1 or not location.path:
        return None
    words: dict[str, Any] = {"shards": location, "window-ticks": settings.window_ticks}
    words |= {f"{stream}-codec": name for stream, name in settings.codecs.items()}
    words |= {"tick-multiple": run.identity.tick_multiple} if run.identity.config.audio_grid else {}
    words |= {"seed": settings.seed}
    step, within = divmod(position, share.micro_batch)
    if run.feed.position % share.micro_batch:  # after a resume with another global batch
        words |= {"world-size": 1, "rank": 0, "batch-size": 1, "from-step": position}
    else:
        rank = within // share.batch_size
        words |= {"world-size": share.world_size, "rank": rank, "batch-size": share.batch_size, "from-step": step}
    return shlex.join(["omniges", "trace-batches", *(f"--{name}={value}" for name, value in words.items())])
