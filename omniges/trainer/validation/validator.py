"""Validation in the training loop: it validates a step, writes files, links the best checkpoint, and reports.

The folder of a validation, RUN/validation/step-…/, appears only when all its files are complete.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from omniges import __version__
from omniges.features.timebase import TICKS_PER_SECOND
from omniges.generation.records import GeneratedRecord
from omniges.model.checkpoint import prune
from omniges.model.tasks import TASKS
from omniges.progress import Reporter, duration
from omniges.storage.atomic import make_folder, pending_folder, publish_bytes, remove_folder
from omniges.storage.files import json_document, sha256_hex
from omniges.trainer.config import DEFAULT_VALIDATION_STEPS
from omniges.trainer.distributed import SharedWork, Stopper
from omniges.trainer.logging import Logbook, Shown
from omniges.trainer.run import Run, RunState
from omniges.trainer.validation.best import BEST, Best, better, point_best
from omniges.trainer.validation.run import LEVELS, Validation, ValidationResult
from omniges.trainer.validation.samples import VALIDATION_SEED, VOCODER, ResultFiles

VALIDATIONS: Final = "validation"
"""Name of the folder of validations in a run's folder."""
REPORT: Final = "validation.json"
PICTURES: Final = "pictures"
_FORMAT: Final = "omniges-validation"
_COSTLY: Final = 0.1
"""If validation takes more than this share of a run's time, a warning is reported."""


class RunValidator:
    """The validation of a run, for the training loop. All ranks must call its methods together."""

    def __init__(self, run: Run, validation: Validation, logbook: Logbook, reporter: Reporter) -> None:
        self._run, self._validation, self._metric = run, validation, run.settings.best_metric
        self._logbook, self._reporter = logbook, reporter
        self._folder = run.settings.output_dir / VALIDATIONS
        self.every_steps = run.settings.validation_steps or DEFAULT_VALIDATION_STEPS
        """Number of steps from one validation to the next."""
        self._began_s = time.monotonic()
        self._spent_s = 0.0
        self._warned = False

    def validate(self, state: RunState, stopper: Stopper) -> None:
        """Validate the current EMA weights, write the files, and report the results.

        Args:
            state: State of the run; its `best` is replaced if this step is the best so far.
            stopper: Object that receives requests to stop.

        Raises:
            Interrupted: A rank has to stop.
            OmnigesError: A rank failed.
        """
        ranks, began_s = self._run.ranks, time.monotonic()
        self._reporter.say(f"validating step {state.step} on {len(self._validation.held_out.windows)} windows")
        with self._run.learner.average_gathered():
            found = self._validation.run(state.step, SharedWork(ranks, stopper))
        value = found.value(self._metric)
        if value is not None and better(self._metric, value, state.best):
            state.best = Best(state.step, self._metric, value)
        folder = self._folder / f"step-{state.step:06d}"
        with ranks.together("write the validation"):
            if ranks.first:
                self._write(folder, found)
                protected = () if state.best is None else (state.best.step,)
                prune(self._folder, self._run.settings.checkpoints_total_limit, protected)
        seconds = time.monotonic() - began_s
        self._spent_s += seconds
        self._log(state, found, folder, seconds)

    def mark_best(self, state: RunState) -> bool:
        """Point RUN/best to the checkpoint of the step `state.step`; return False if it does not exist yet."""
        run, checkpoint, found = self._run.settings.output_dir, self._run.checkpoint(state.step), 0
        with self._run.ranks.together(f"make {run / BEST}"):
            if self._run.ranks.first and checkpoint.is_dir():
                point_best(run, checkpoint)
                found = 1
        return self._run.ranks.largest(found) == 1

    # --- files

    def _write(self, folder: Path, found: ValidationResult) -> None:
        """Write a validation's folder atomically; replace an older folder of the same step.

        Raise EnvironmentFault if the disk is full or not writable; no incomplete folder remains.
        """
        held_out = self._validation.held_out
        make_folder(folder.parent)
        if os.path.lexists(folder):  # a killed run validated this step
            remove_folder(folder)
        with pending_folder(folder) as pending:
            for saved in found.saved:
                if saved.why_not is None:
                    own, name = pending / saved.task, held_out.windows[saved.number].name
                    make_folder(own)
                    for ending, content in saved.contents.items():
                        publish_bytes(own / f"{name}{ending}", content)
                    publish_bytes(own / f"{name}.json", self._record(saved, found.step).document())  # written last
            if found.pictures:
                make_folder(pending / PICTURES)
            for number, png in found.pictures.items():
                publish_bytes(pending / PICTURES / f"{held_out.windows[number].name}.png", png)
            document = {
                "format": _FORMAT,
                "version": 1,
                "omniges": __version__,
                "step": found.step,
                "weights": "ema",
                "codecs": self._codecs(),
                "seed": VALIDATION_SEED,
                "levels": list(LEVELS),
                "sampling": self._validation.sampling.document(),
                "windows": [{"name": window.name} | window.provenance() for window in held_out.windows],
                "windows_available": held_out.available,
                "loss": found.loss,
                "losses": found.losses,
                "figures": {task: [asdict(figure) for figure in figures] for task, figures in found.figures.items()},
                "remarks": found.warnings,
                "samples": self._samples(found),
            }
            publish_bytes(pending / REPORT, json_document(document))

    def _codecs(self) -> dict[str, Any]:
        entries = self._validation.sampler.codecs.entries
        return {name: {"name": one.name, "fingerprint": one.fingerprint} for name, one in entries.items()}

    def _record(self, saved: ResultFiles, step: int) -> GeneratedRecord:
        """Return the record of a result, as `omniges generate` writes it, with the origin of the window."""
        window, codecs = self._validation.held_out.windows[saved.number], self._validation.sampler.codecs
        members = {"text": window.row.contract.words, "gesture": "gesture.npy", "audio": "mel.npy"}
        members |= {stream: entry.member for stream, entry in codecs.entries.items()}
        inputs = [
            {
                "stream": stream,
                "path": f"{window.shard}#{window.row.key}.{members[stream]}",
                "sha256": window.row.members[members[stream]].sha256,
                "remarks": [f"{window.ticks} ticks from tick {window.start_tick}"],
            }
            for stream in TASKS[saved.task].conditions
        ]
        of_run = {"run": str(self._run.settings.output_dir), "step": step, "preset": self._run.identity.preset}
        return GeneratedRecord(
            omniges=__version__,
            task=saved.task,
            name=window.name,
            source=window.provenance(),
            sample=saved.number,
            ticks=window.ticks,
            seconds=window.ticks / TICKS_PER_SECOND,
            files={
                saved.kinds[ending]: {"path": f"{window.name}{ending}", "sha256": sha256_hex(content)}
                for ending, content in saved.contents.items()
            },
            inputs=tuple(inputs),
            model={"checkpoint": None} | of_run | {"weights": "ema", "codecs": self._codecs()},
            settings=self._validation.sampling.document()
            | {
                "seed": VALIDATION_SEED,
                "window_ticks": window.ticks,
                "overlap_ticks": 0,
                "speaker": window.row.speaker,
                "voice": VOCODER.name if ".wav" in saved.contents else None,
                "quantised": codecs.through_codes(TASKS[saved.task].targets),
            }
            | self._validation.conditions_shown(saved.number),
            seams_s=(),
            measures=saved.measures,
            remarks=(*saved.warnings, *self._validation.sampler.absence_warnings(TASKS[saved.task].targets)),
            absent=self._validation.sampler.absent_from(TASKS[saved.task].targets),
        )

    # --- reports

    def _log(self, state: RunState, found: ValidationResult, folder: Path, seconds: float) -> None:
        """Report a validation to the log, the trackers and the terminal."""
        step, metric, value = state.step, self._metric, found.value(self._metric)
        share = self._spent_s / max(time.monotonic() - self._began_s, 1e-9)
        numbers: dict[str, Any] = {
            "loss": found.loss,
            "losses": found.losses,
            "metrics": found.metrics(),
            "recorded": found.metrics("recorded"),
            "shuffled": found.metrics("shuffled"),
            "seconds": round(seconds, 3),
            "share_of_time": round(share, 5),
        }
        self._logbook.write(
            "validation",
            step=step,
            **numbers,
            not_computed=found.not_computed(),
            windows=len(self._validation.held_out.windows),
            folder=str(folder),
            samples=self._samples(found),
            best_metric={"name": metric, "value": value},
            best=None if state.best is None else asdict(state.best),
        )
        self._logbook.track(step, {"validation": numbers})
        if self._run.ranks.first:
            self._logbook.show(step, [self._shown(folder, saved) for saved in found.saved])
        shown = "not computed" if value is None else f"{value:.4g}"
        rank = ", the best so far" if state.best is not None and state.best.step == step else ""
        self._reporter.say(
            f"validation at step {step}: {metric} {shown}{rank}; {duration(seconds)}, {share:.1%} of the time; {folder}"
        )
        if share > _COSTLY and not self._warned and state.validated:  # the first also loads libraries
            self._warned = True
            self._reporter.say(
                f"validation takes {share:.1%} of the time; raise --validation-steps, or lower --validation-windows, "
                "--validation-samples or --validation-sampling-steps"
            )

    def _samples(self, found: ValidationResult) -> list[dict[str, Any]]:
        """Return the kept samples with their origin; paths are relative to the validation's folder."""
        samples = []
        for saved in found.saved:
            window = self._validation.held_out.windows[saved.number]
            files = [f"{saved.task}/{window.name}{ending}" for ending in saved.contents]
            facts = {"task": saved.task, "name": window.name, "files": files, "why_not": saved.why_not}
            picture = f"{PICTURES}/{window.name}.png" if saved.number in found.pictures else None
            samples.append(facts | {"picture": picture} | window.provenance())
        return samples

    def _shown(self, folder: Path, saved: ResultFiles) -> Shown:
        """Return a kept result as a row for the tables in trackers."""
        window = self._validation.held_out.windows[saved.number]
        in_words = ", ".join(sorted(saved.kinds.values())) if saved.said is None else saved.said
        return Shown(
            task=saved.task,
            recording=window.row.stem,
            speaker=window.row.speaker or "unknown",
            source_path=window.source_path,
            start_tick=window.start_tick,
            ticks=window.ticks,
            files=str(folder / saved.task),
            generated=f"nothing: {saved.why_not}" if saved.why_not is not None else in_words,
            recorded=" ".join(word["word"] for word in self._validation.recorded_words(saved.number)),
            picture=folder / PICTURES / f"{window.name}.png",
        )
