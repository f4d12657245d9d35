"""What went wrong in learning: losses or gradients that are no number, losses that grow without end. Named, refused."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Final, NoReturn

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError
from omniges.model.tasks import TASKS, FlowSettings, draw_plan
from omniges.trainer.batches import Feed
from omniges.trainer.logging import Logbook

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_SHOWN: Final = 3


class Refusals:
    """Ends a run with the samples that it went wrong on, and the command that lists their batch."""

    def __init__(
        self, feed: Feed, logbook: Logbook, flow: FlowSettings, seed: int, trace: tuple[str, ...] | None
    ) -> None:
        """``trace``: words of that command, but for ranks and steps; None where there is none."""
        self._feed, self._logbook, self._flow, self._seed, self._trace = feed, logbook, flow, seed, trace

    def check(self, first: int, starts: list[int], losses: F64, norms: F64, *, scaled: bool) -> None:
        """Raise where a loss or a gradient is not finite; the first step counts, for it spoils the later ones.

        Args:
            first: number of the first step.
            starts: first position of each step.
            losses: (steps, G, 3) of all samples.
            norms: (steps,) of the gradients.
            scaled: with fp16 a gradient that overflows lowers the loss scale, and its step is left out.
        """
        for k, start in enumerate(starts):
            bad = np.flatnonzero(~np.isfinite(losses[k]).all(axis=1))
            if len(bad):
                what = f"the loss of {len(bad)} of {losses.shape[1]} samples is no number"
                self.refuse(first + k, start + bad, what)
            if not np.isfinite(norms[k]) and not scaled:
                whole = np.arange(start, start + losses.shape[1])
                self.refuse(first + k, whole, "the gradient is no number, though each sample's loss is one")

    def refuse(self, step: int, positions: I64, what: str) -> NoReturn:
        """End the run, naming samples and the command that lists their batch; no checkpoint is made of it."""
        places = self._feed.places(positions)
        plan = draw_plan(self._flow, self._seed, positions)
        tasks = [list(TASKS)[number] for number in plan.task.tolist()]
        samples = [
            {"position": p.position, "key": p.key, "start_tick": p.start_tick, "source": p.source, "task": task}
            for p, task in zip(places, tasks, strict=True)
        ]
        command = self._command(int(positions[0]))
        self._logbook.write("refused", step=step, what=what, samples=samples, command=command)
        self._logbook.sync()
        some = ", ".join(f"{s['key']} from tick {s['start_tick']} ({s['task']})" for s in samples[:_SHOWN])
        more = f" and {len(samples) - _SHOWN} more" if len(samples) > _SHOWN else ""
        seen = f"; list the batch with: {command}" if command else ""
        raise DataError(
            f"step {step}: {what}: {some}{more}{seen}; nothing was saved of it: lower --learning-rate, or look at the "
            f"data with omniges verify-shards --level deep; all samples are in {self._logbook.path}"
        )

    def _command(self, position: int) -> str | None:
        """The command line that lists the micro-batch at a position."""
        if self._trace is None:
            return None
        share = self._feed.share
        step, within = divmod(position, share.micro_batch)
        if self._feed.position % share.micro_batch:  # after a resume with another global batch
            words: Mapping[str, int] = {"world-size": 1, "rank": 0, "batch-size": 1, "from-step": position}
        else:
            words = {
                "world-size": share.world_size,
                "rank": within // share.batch_size,
                "batch-size": share.batch_size,
                "from-step": step,
            }
        return shlex.join([*self._trace, *(f"--{name}={value}" for name, value in words.items())])
