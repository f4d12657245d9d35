"""What a checkpoint says of its model: enough to build it again without the shards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch

from omniges.errors import DataError, UsageFault
from omniges.shards.schema import STATS_FILE, TOKENIZER_FILE, json_document
from omniges.trainer.checkpoint import SavedCheckpoint
from omniges.trainer.flow import FlowModel
from omniges.trainer.learner import EMA_FILE, MODEL_FILE, load_into
from omniges.trainer.presets import ModelConfig, build_model
from omniges.trainer.slots import SlotCodec

__all__ = ["CONFIG_FILE", "ModelIdentity", "load_identity", "load_model"]

CONFIG_FILE: Final = "config.json"


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """A model but for its weights."""

    preset: str
    config: ModelConfig
    window_ticks: int  # length it was trained on
    speakers: tuple[str, ...]  # the first has number 1
    statistics: bytes  # stats.json
    tokenizer: bytes  # tokenizer.json

    def build(self, seed: int) -> FlowModel:
        """The untrained model that a seed gives; torch's generators stay as they are."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_model(
                self.config,
                statistics=json.loads(self.statistics),
                pieces=SlotCodec(self.tokenizer).pieces,
                speakers=len(self.speakers),
            )

    def documents(self) -> dict[str, bytes]:
        """The files of a checkpoint that say it."""
        config = {
            "preset": self.preset,
            "model": self.config.as_json(),
            "window_ticks": self.window_ticks,
            "speakers": list(self.speakers),
        }
        return {CONFIG_FILE: json_document(config), STATS_FILE: self.statistics, TOKENIZER_FILE: self.tokenizer}

    def require_same(self, saved: SavedCheckpoint) -> None:
        """Raise UsageFault where a checkpoint is of another model or of other data."""
        own = {name: json.loads(content) for name, content in self.documents().items()}
        was, now = (_flat(config) for config in (saved.document(CONFIG_FILE), own[CONFIG_FILE]))
        differences = [
            f"{name} was {was.get(name)}, is {now.get(name)}"
            for name in sorted(was.keys() | now.keys())
            if was.get(name) != now.get(name) and name != "preset"
        ]
        differences += [
            f"{name} is another" for name in (STATS_FILE, TOKENIZER_FILE) if saved.document(name) != own[name]
        ]
        if differences:
            raise UsageFault(
                f"{saved.path}: it is of another model: {'; '.join(_short(differences))}. Go on with the settings and "
                "shards it was made with, or choose another --output-dir"
            )


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != "model"} | dict(config.get("model", {}))


def _short(differences: list[str]) -> list[str]:
    return differences[:3] + ([f"and {len(differences) - 3} more"] if len(differences) > 3 else [])


def load_identity(saved: SavedCheckpoint) -> ModelIdentity:
    """What a checkpoint says of its model; raises DataError where it does not say it."""
    found: Mapping[str, Any] = saved.document(CONFIG_FILE)
    try:
        return ModelIdentity(
            preset=found["preset"],
            config=ModelConfig.from_json(found["model"]),
            window_ticks=found["window_ticks"],
            speakers=tuple(found["speakers"]),
            statistics=saved.content(STATS_FILE),
            tokenizer=saved.content(TOKENIZER_FILE),
        )
    except (KeyError, TypeError) as error:
        raise DataError(f"{saved.path / CONFIG_FILE}: {error}; use the omniges that wrote it") from error


def load_model(saved: SavedCheckpoint, weights: Literal["ema", "last"] = "ema") -> tuple[FlowModel, ModelIdentity]:
    """The model of a checkpoint in evaluation mode on the host, with its averaged weights or the last ones."""
    identity = load_identity(saved)
    model = identity.build(seed=0)
    name = EMA_FILE if weights == "ema" else MODEL_FILE
    load_into(dict(model.named_parameters()), saved.tensors(name), f"{saved.path}/{name}")
    return model.eval(), identity
