"""Whether a checkpoint fits shards and tasks, before anything is generated with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from omniges.data.sequence import trained_on
from omniges.errors import DataError, UsageFault
from omniges.generation.sampler import trained_tasks
from omniges.generation.settings import task_named
from omniges.model.checkpoint import SavedCheckpoint
from omniges.model.spec import load_identity
from omniges.shards.reader import ShardFolder
from omniges.shards.schema import SPLITS

SIX: Final = ("t2g", "a2g", "t2a", "g2a", "g2t", "a2t")


def require_fit(
    saved: SavedCheckpoint, shards: ShardFolder, split: str, named: Sequence[str]
) -> tuple[tuple[str, ...], list[str]]:
    """The tasks to generate, and remarks on data the checkpoint was not made for; ``named``: by the user, or none.

    Raises UsageFault for a task the model was not trained on, and for a split without samples.
    """
    tasks, remarks = _tasks(saved, named)
    rows = [row for row in shards.rows if row.split == split]
    if split not in SPLITS:
        raise UsageFault(f"--split {split}: one of {', '.join(SPLITS)} expected")
    if not rows:
        held = ", ".join(sorted({row.split for row in shards.rows}))
        raise UsageFault(f"--split {split}: {shards.folder} has no sample of it: choose among {held}")
    remarks += _of_other_data(saved, shards, split)
    known = set(load_identity(saved).speakers)
    strange = sorted({row.speaker for row in rows if row.speaker is not None and row.speaker not in known})
    if strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        remarks.append(f"speakers the model was not trained on, generated as unknown: {', '.join(strange[:3])}{more}")
    return tasks, remarks


def _tasks(saved: SavedCheckpoint, named: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    trained = trained_tasks(saved)
    if trained is None:
        raise DataError(
            f"{saved.path}/settings.json: flow settings expected, found none: use the omniges that wrote it"
        )
    if named:
        tasks = tuple(dict.fromkeys(task_named(name) for name in named))
        for name in tasks:
            if name not in trained:
                raise UsageFault(
                    f"--tasks {name}: {saved.path} was not trained on it, only on {', '.join(sorted(trained))}"
                )
        return tasks, []
    lost = [name for name in SIX if name not in trained]
    remarks = [f"not generated, for the model was not trained on them: {', '.join(lost)}"] if lost else []
    tasks = tuple(name for name in SIX if name in trained)
    if not tasks:
        raise UsageFault(f"--tasks: {saved.path} was trained on {', '.join(sorted(trained))}: name some of them")
    return tasks, remarks


def _of_other_data(saved: SavedCheckpoint, shards: ShardFolder, split: str) -> list[str]:
    """What the clips of a split are to the model: new, known, or of data that it says nothing about."""
    loader = saved.document("state.json").get("loader")
    state = loader if isinstance(loader, dict) else {}
    numbers = trained_on(state, shards.folder, load_identity(saved).codec_names)
    if not numbers:
        found = f"the checkpoint was trained on other shards than {shards.folder}"
        return [f"{found}: it does not say whether these clips were among them"]
    splits = {str(state["filters"][number].get("split")) for number in numbers}
    return [f"the model was trained on these very clips, the {split} split"] if split in splits else []
