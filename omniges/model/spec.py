"""What a checkpoint says of its model: enough to build it again without the shards."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

import torch

from omniges.data.tracks import Tracks
from omniges.errors import DataError, UsageFault
from omniges.features.audio import Loudness
from omniges.features.text_slots import SlotCodec
from omniges.model.checkpoint import EMA_FILE, MODEL_FILE, SavedCheckpoint, load_into
from omniges.model.flow import FlowModel
from omniges.model.presets import CodecLatents, ModelConfig, build_model
from omniges.model.streams import StreamName
from omniges.shards.latents import CodecEntry, FrameEntry
from omniges.shards.schema import LATENTS_FILE, STATS_FILE, TOKENIZER_FILE
from omniges.storage.canonical_json import json_document

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
    codecs: Mapping[StreamName, CodecEntry] = field(default_factory=dict)  # whose latents stand for streams
    latents: bytes = b""  # latents.json, where there is a codec
    loudness: Loudness = "none"  # rule by which preprocess scaled the audio that the model learned from

    @property
    def tick_multiple(self) -> int:
        """Ticks that windows and inputs have to be multiples of, to hold whole rows and whole tokens."""
        rows = Tracks.with_codecs({str(name): entry for name, entry in self.codecs.items()}).row_multiple
        grid = self.config.audio_grid
        if grid is None:
            return rows
        return math.lcm(rows, (cast("FrameEntry", self.codecs["audio"]).rows_per_tick / grid.patch).denominator)

    @property
    def codec_names(self) -> dict[str, str]:
        """Names of the codecs by stream, as they are chosen for a run."""
        return {stream: entry.name for stream, entry in self.codecs.items()}

    def codec_latents(self) -> dict[StreamName, CodecLatents]:
        """The codecs with their statistics, as a model is built from them."""
        statistics = json.loads(self.latents) if self.codecs else {}
        return {stream: CodecLatents(entry, statistics[entry.name]) for stream, entry in self.codecs.items()}

    def build(self, seed: int) -> FlowModel:
        """The untrained model that a seed gives; torch's generators stay as they are."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_model(
                self.config,
                statistics=json.loads(self.statistics),
                pieces=SlotCodec(self.tokenizer).pieces,
                speakers=len(self.speakers),
                codecs=self.codec_latents(),
            )

    def documents(self) -> dict[str, bytes]:
        """The files of a checkpoint that say it."""
        config: dict[str, Any] = {
            "preset": self.preset,
            "model": self.config.as_json(),
            "window_ticks": self.window_ticks,
            "speakers": list(self.speakers),
            "loudness": self.loudness,
        }
        files = {STATS_FILE: self.statistics, TOKENIZER_FILE: self.tokenizer}
        if self.codecs:
            config["codecs"] = {
                # Of how latents were made a model has to know this; versions of packages do not make another codec.
                stream: {"name": entry.name}
                | entry.as_json()
                | {"settings": {name: value for name, value in entry.settings.items() if name == "loudness"}}
                for stream, entry in self.codecs.items()
            }
            files[LATENTS_FILE] = self.latents
        return {CONFIG_FILE: json_document(config)} | files

    def require_same(self, saved: SavedCheckpoint) -> None:
        """Raise UsageFault where a checkpoint is of another model or of other data."""
        own = {name: json.loads(content) for name, content in self.documents().items()}
        # Through today's form, so that a setting that came later is at its default in an earlier checkpoint.
        said = json.loads(load_identity(saved).documents()[CONFIG_FILE])
        was, now = (_flat(config) for config in (said, own[CONFIG_FILE]))
        differences = [
            f"{name} was {was.get(name)}, is {now.get(name)}"
            for name in sorted(was.keys() | now.keys())
            if was.get(name) != now.get(name) and name != "preset"
        ]
        used = {entry.name for entry in self.codecs.values()}
        differences += [
            f"{name} is another" for name in sorted(own.keys() - {CONFIG_FILE}) if _other(saved, name, own[name], used)
        ]
        if differences:
            more = [f"and {len(differences) - 3} more"] if len(differences) > 3 else []
            raise UsageFault(
                f"{saved.path}: it is of another model: {'; '.join(differences[:3] + more)}. Go on with the settings "
                "and shards it was made with, or choose another --output-dir"
            )


def _other(saved: SavedCheckpoint, name: str, own: Any, codecs: set[str]) -> bool:
    """Whether a checkpoint has another document of a name; one that it has not at all shows in its configuration.

    Statistics of codecs that the model does not use may come and go.
    """
    if name not in saved.files:
        return False
    was = saved.document(name)
    if name == LATENTS_FILE:
        return any(was.get(codec) != own.get(codec) for codec in codecs)
    return bool(was != own)


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    plain = {"loudness": "none"} | {name: value for name, value in config.items() if name not in {"model", "codecs"}}
    codecs = {
        f"{stream} codec": f"{entry['name']} {entry['fingerprint'][:16]}…"
        for stream, entry in config.get("codecs", {}).items()
    }
    return plain | dict(config.get("model", {})) | codecs


def load_identity(saved: SavedCheckpoint) -> ModelIdentity:
    """What a checkpoint says of its model; raises DataError where it does not say it."""
    found: Mapping[str, Any] = saved.document(CONFIG_FILE)
    try:
        codecs: dict[StreamName, CodecEntry] = {
            cast("StreamName", stream): CodecEntry.from_json(
                entry["name"], {name: value for name, value in entry.items() if name != "name"}
            )
            for stream, entry in found.get("codecs", {}).items()
        }
        return ModelIdentity(
            preset=found["preset"],
            config=ModelConfig.from_json(found["model"]),
            window_ticks=found["window_ticks"],
            speakers=tuple(found["speakers"]),
            statistics=saved.content(STATS_FILE),
            tokenizer=saved.content(TOKENIZER_FILE),
            codecs=codecs,
            latents=saved.content(LATENTS_FILE) if codecs else b"",
            loudness=found.get("loudness", "none"),  # before there was the key, nothing else could be said
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{saved.path / CONFIG_FILE}: {error}; use the omniges that wrote it") from error


def weights_file(weights: Literal["ema", "last"]) -> str:
    """The file of a checkpoint that holds the averaged weights or the last ones."""
    return EMA_FILE if weights == "ema" else MODEL_FILE


def load_model(saved: SavedCheckpoint, weights: Literal["ema", "last"] = "ema") -> tuple[FlowModel, ModelIdentity]:
    """The model of a checkpoint in evaluation mode on the host, with its averaged weights or the last ones."""
    identity = load_identity(saved)
    model = identity.build(seed=0)
    name = weights_file(weights)
    load_into(dict(model.named_parameters()), saved.tensors(name), f"{saved.path}/{name}")
    return model.eval(), identity
