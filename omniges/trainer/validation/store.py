"""The files of a validation: RUN/validation/step-…/, published as a whole, and what the log and trackers are told."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from omniges import __version__
from omniges.storage.atomic import make_folder, pending_folder, publish_bytes, remove_folder
from omniges.storage.canonical_json import json_document
from omniges.trainer.logging import Shown
from omniges.trainer.validation.losses import LEVELS, VALIDATION_SEED
from omniges.trainer.validation.run import Found, Validation
from omniges.trainer.validation.samples import Kept, record_of

VALIDATIONS: Final = "validation"
"""Their folder in a run's folder."""
REPORT: Final = "validation.json"
PICTURES: Final = "pictures"
_FORMAT: Final = "omniges-validation"


def write_validation(run: Path, validation: Validation, found: Found) -> Path:
    """Publish a validation's folder in one step, in place of one of the same step; returns its path.

    Raises EnvironmentFault where the disk is in the way; then nothing is left of it.
    """
    windows = validation.held_out.windows
    final = run / VALIDATIONS / f"step-{found.by.step:06d}"
    make_folder(final.parent)
    if final.exists():  # a run repeats steps after a kill
        remove_folder(final)
    with pending_folder(final) as folder:
        for made in found.kept:
            if made.why_not is None:
                _write_result(folder / made.task, made, validation, found)
        if found.pictures:
            make_folder(folder / PICTURES)
        for number, png in found.pictures.items():
            publish_bytes(folder / PICTURES / f"{windows[number].name}.png", png)
        document = {
            "format": _FORMAT,
            "version": 1,
            "omniges": __version__,
            "step": found.by.step,
            "weights": "ema",
            "codecs": found.by.model()["codecs"],
            "seed": VALIDATION_SEED,
            "levels": list(LEVELS),
            "sampling": asdict(found.by.sampling),
            "windows": [{"name": window.name} | window.provenance() for window in windows],
            "windows_available": validation.held_out.available,
            "loss": found.loss,
            "losses": found.losses,
            "figures": {task: [asdict(figure) for figure in figures] for task, figures in found.figures.items()},
            "remarks": found.remarks,
            "samples": samples_of(validation, found),
        }
        publish_bytes(folder / REPORT, json_document(document))
    return final


def _write_result(folder: Path, made: Kept, validation: Validation, found: Found) -> None:
    """All files of a result, its record last."""
    window = validation.held_out.windows[made.number]
    make_folder(folder)
    for ending, content in made.contents.items():
        publish_bytes(folder / f"{window.name}{ending}", content)
    publish_bytes(folder / f"{window.name}.json", record_of(made, window, found.by).document())


def samples_of(validation: Validation, found: Found) -> list[dict[str, Any]]:
    """What was kept, with where it comes from; files relative to the validation's folder."""
    samples = []
    for made in found.kept:
        window = validation.held_out.windows[made.number]
        files = [f"{made.task}/{window.name}{ending}" for ending in made.contents]
        facts = {"task": made.task, "name": window.name, "files": files, "why_not": made.why_not}
        picture = f"{PICTURES}/{window.name}.png" if made.number in found.pictures else None
        samples.append(facts | {"picture": picture} | window.provenance())
    return samples


def shown_samples(folder: Path, validation: Validation, found: Found) -> list[Shown]:
    """The same for trackers."""
    shown = []
    for made in found.kept:
        window = validation.held_out.windows[made.number]
        recorded = " ".join(word["word"] for word in validation.recorded_words(made.number))
        shown.append(
            Shown(
                task=made.task,
                recording=window.row.stem,
                speaker=window.row.speaker or "unknown",
                source_path=window.source_path,
                start_tick=window.start_tick,
                ticks=window.ticks,
                files=str(folder / made.task),
                made=_in_words(made),
                recorded=recorded,
                picture=folder / PICTURES / f"{window.name}.png",
            )
        )
    return shown


def _in_words(made: Kept) -> str:
    if made.why_not is not None:
        return f"nothing: {made.why_not}"
    return ", ".join(sorted(made.kinds.values())) if made.said is None else made.said
