"""A checkpoint's model, ready to sample from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from omniges.data.state import trained_on
from omniges.errors import UsageFault
from omniges.features.text_slots import SlotCodec
from omniges.generation.inputs import Input, Reading
from omniges.generation.long_form import WindowSettings
from omniges.generation.settings import Weights
from omniges.model.checkpoint import SavedCheckpoint, find_checkpoint
from omniges.model.flow import FlowModel
from omniges.model.spec import ModelIdentity, load_model
from omniges.model.streams import StreamName
from omniges.model.tasks import TASKS, FlowSettings

__all__ = ["Loaded", "load", "trained_tasks"]

SETTINGS_FILE: Final = "settings.json"
STATE_FILE: Final = "state.json"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint's model, ready to sample from."""

    model: FlowModel
    identity: ModelIdentity
    codec: SlotCodec
    saved: SavedCheckpoint
    weights: Weights

    def speaker_number(self, name: str | None, *, named: bool) -> int:
        """The number of a speaker, 0 for None and for one who was not in training unless `named` by a person."""
        if name is None:
            return 0
        if name in self.identity.speakers:
            return 1 + self.identity.speakers.index(name)
        if named:
            some = ", ".join(self.identity.speakers[:5])
            more = f" and {len(self.identity.speakers) - 5} more" if len(self.identity.speakers) > 5 else ""
            raise UsageFault(f"--speaker {name}: the model knows {some}{more}")
        return 0

    def require_trained(self, task: str) -> None:
        """Raise UsageFault where the checkpoint says that a task had no share in its training."""
        trained = trained_tasks(self.saved)
        if trained is not None and task not in trained:
            raise UsageFault(
                f"{self.saved.path}: it was not trained on {task}, only on {', '.join(trained)}: take another task"
            )

    def knows(self, shards: Path) -> bool | None:
        """Whether it was trained on a folder of shards; None where the checkpoint does not say on which."""
        loader = self._told(STATE_FILE).get("loader", {})
        if not loader.get("manifest_hashes"):
            return None
        return bool(trained_on(loader, shards, self.identity.codec_names))

    def remarks_on(self, item: Input, speaker: str | None, *, known: bool | None) -> list[str]:
        """What a person should know of an input to this model, when they chose this speaker or none.

        `known`: what `knows` says of the shards that it is a sample of, if it is one.
        """
        remarks = []
        if item.source is not None and known is False:
            remarks.append("the sample is of other shards than those the model was trained on")
        if speaker is None and item.speaker is not None and item.speaker not in self.identity.speakers:
            remarks.append(f"the model does not know the speaker {item.speaker}: an unknown one was taken")
        return remarks

    def facts(self) -> dict[str, Any]:
        """The model as a record names it."""
        return {
            "checkpoint": str(self.saved.path),
            "step": self.saved.step,
            "preset": self.identity.preset,
            "weights": self.weights,
            "codecs": {
                stream: {"name": entry.name, "fingerprint": entry.fingerprint}
                for stream, entry in self.identity.codecs.items()
            },
            "sha256": {file: entry["sha256"] for file, entry in self.saved.files.items()},
        }

    def windows(self, overlap_ticks: int | None, task: str) -> WindowSettings:
        """Windows as the model was trained on; overlaps of a quarter unless told otherwise.

        Where the task makes text that is latents, windows touch instead.
        """
        window, multiple = self.identity.window_ticks, self.identity.tick_multiple
        apart = any(self.model.stream(name).whole_windows for name in TASKS[task].targets)
        usual = 0 if apart else window // 4 - window // 4 % multiple
        overlap = usual if overlap_ticks is None else overlap_ticks
        return WindowSettings(window_ticks=window, overlap_ticks=overlap, tick_multiple=multiple, apart=apart)

    def reading(self, folder: Path | None = None, recorded: tuple[StreamName, ...] = ()) -> Reading:
        """How inputs are read for the model."""
        identity = self.identity
        slots = None if "text" in identity.codecs else self.codec
        return Reading(slots, identity.tick_multiple, identity.loudness, identity.codecs, folder, recorded)

    def history(self) -> dict[str, bytes]:
        """The documents that tell how it was trained, as far as the checkpoint has them."""
        return {name: self.saved.content(name) for name in (SETTINGS_FILE, STATE_FILE) if name in self.saved.files}

    def _told(self, name: str) -> dict[str, Any]:
        """A document that a checkpoint of training has and a saved pipeline need not."""
        return dict(self.saved.document(name)) if name in self.saved.files else {}


def trained_tasks(saved: SavedCheckpoint) -> tuple[str, ...] | None:
    """The tasks that had a share in a checkpoint's training; None where it does not say how it was trained."""
    flow = saved.document(SETTINGS_FILE).get("flow") if SETTINGS_FILE in saved.files else None
    shares = flow.get("shares", FlowSettings().shares) if isinstance(flow, dict) else None
    return tuple(name for name, share in shares.items() if share) if isinstance(shares, dict) else None


def load(checkpoint: Path, weights: Weights = "ema") -> Loaded:
    """The model of a checkpoint or run, on the GPU where there is one. Raises UsageFault or DataError."""
    saved = find_checkpoint(checkpoint)
    model, identity = load_model(saved, weights)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Loaded(model.to(device), identity, SlotCodec(identity.tokenizer), saved, weights)
