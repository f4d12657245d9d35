"""Initialize a run from pretrained weights: OmniFlow, original or converted, or a checkpoint of omniges.

A `Start` defines the model before any weight is read, and copies the weights into the model when the run begins. It
lists how every pretrained tensor is used, and where every weight of the model comes from. A pretrained tensor without
a known use is an error.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor

from omniges.errors import DataError, UsageFault
from omniges.model import checkpoint
from omniges.model.flow import FlowModel
from omniges.model.patches import PatchGrid
from omniges.model.spec import OF_TRUNK, ModelConfig, ModelIdentity, load_identity
from omniges.model.streams import StreamName
from omniges.pretrained.convert import converted_config, is_converted, read_converted
from omniges.pretrained.tensors import file_entry, is_omniflow
from omniges.pretrained.trunk import (
    SourceTrunk,
    TensorStatus,
    WhichWeights,
    audio_grid_of,
    config_of,
    read_omniflow,
    table_of,
)

_SPEAKERS: Final = "trunk.speaker.weight"
_LACKING: Final = "lacking"
_TEXT_PLACES: Final = "streams.text.place"
_ENCODERS: Final = "conditions."
_OF_TRAINING: Final = frozenset(
    {"blank_weight", "absent", "gesture_difference_weight", "gesture_feet_weight", "audio_difference_weight"}
)
_OF_TOKENS: Final = _OF_TRAINING | {
    *("gesture_channels", "gesture_tokens"),
    *("piece_width", "mark_width", "audio_tokens"),
    *("gesture_prediction", "audio_prediction", "text_prediction"),
}
_OMNIFLOW_AUDIO: Final = "audioldm2-vae"
"""Codec of the latents that OmniFlow's audio stream was trained on."""


@dataclass(frozen=True, slots=True)
class Initialization:
    """Result of `Start.fill`: the source files, the use of every tensor, and warnings."""

    where: str
    files: tuple[Path, ...]
    statuses: tuple[TensorStatus, ...]
    warnings: tuple[str, ...]

    @property
    def lines(self) -> list[str]:
        """Path of the weights, table of how tensors are used, and warnings, as lines of text."""
        return [f"begins with {self.where}", *table_of(self.statuses), *self.warnings]

    def provenance(self) -> dict[str, Any]:
        """Return the path of the weights, and size and digest of each source file."""
        return {"path": self.where, "files": {str(path): file_entry(path) for path in self.files}}


class Start(ABC):
    """Pretrained weights from which a run is initialized."""

    preset: str
    """Name of the model preset that checkpoints store."""
    config: ModelConfig

    def adopt(self, identity: ModelIdentity) -> ModelIdentity:
        """Return the identity of the model to train: `identity`, changed to fit the pretrained weights."""
        return identity

    @abstractmethod
    def fill(self, model: FlowModel, identity: ModelIdentity) -> Initialization:
        """Copy the weights into a model.

        Args:
            model: Model that was built from the identity.
            identity: Result of `adopt`.

        Returns:
            Source files, use of every tensor, and warnings.

        Raises:
            DataError: The weights do not fit the model.
        """


def open_start(
    path: Path, weights: WhichWeights | None, changes: Mapping[str, Any], audio_codec: str | None = None
) -> Start:
    """Open the pretrained weights in a folder.

    Args:
        path: Folder of OmniFlow, of ``convert-omniflow``, or of a run or checkpoint of omniges.
        weights: ``last`` for the weights of the last training step, ``ema`` for the EMA weights. None: EMA weights of
            a run or checkpoint of omniges, last weights of an OmniFlow folder. Must be None for a folder of
            ``convert-omniflow``, because it contains only one of the two.
        changes: Fields of `ModelConfig` that a recipe sets.
        audio_codec: Name of the codec whose latents the audio stream has; None for mel.

    Returns:
        The `Start`, which has not read the weights yet.

    Raises:
        UsageFault: The folder has no pretrained weights, or `weights` or a change does not fit them.
        DataError: The folder is damaged.
    """
    if not path.is_dir():
        raise UsageFault(
            f"--pretrained-model-name-or-path {path}: expected a folder, found none; to get one from the Hub, "
            "run hf download NAME --local-dir DIR first"
        )
    if (path / checkpoint.CHECKPOINT_FILE).is_file() or (path / checkpoint.CHECKPOINTS).is_dir():
        return CheckpointStart(checkpoint.find_checkpoint(path), weights or "ema", changes)
    if is_converted(path):
        if weights is not None:
            raise UsageFault(
                "--pretrained-weights: expected a folder with last and EMA weights, found a converted folder, which "
                "has only one of them; remove the flag"
            )
        return OmniFlowStart(path, "last", changes, audio_codec)
    if is_omniflow(path):
        return OmniFlowStart(path, weights or "last", changes, audio_codec)
    raise UsageFault(
        f"--pretrained-model-name-or-path {path}: expected an OmniFlow folder (transformer/config.json and weights), "
        "a folder that convert-omniflow wrote, or a run or checkpoint of omniges, found none of them; check the path"
    )


def _changed(config: ModelConfig, changes: Mapping[str, Any], allowed: frozenset[str]) -> ModelConfig:
    fixed = sorted(name for name in changes.keys() - allowed if changes[name] != getattr(config, name))
    if "gesture_channels" in fixed:
        raise UsageFault(
            f"--gesture-channels {changes['gesture_channels']}: expected {config.gesture_channels}, which the "
            "pretrained weights have; remove the flag"
        )
    if fixed:
        raise UsageFault(
            f"recipe key model: expected only keys that pretrained weights leave open ({', '.join(sorted(allowed))}), "
            f"found {', '.join(fixed)}; remove {'it' if len(fixed) == 1 else 'them'}"
        )
    return replace(config, **{name: value for name, value in changes.items() if name in allowed})


class CheckpointStart(Start):
    """A start from a checkpoint of omniges: the run gets all its weights, its statistics and its tokenizer.

    Speakers of the checkpoint keep their numbers. New speakers in the shards get the next numbers. The weights of each
    new speaker are initialized as a copy of the weights of the *unknown* speaker.
    """

    def __init__(self, saved: checkpoint.SavedCheckpoint, weights: WhichWeights, changes: Mapping[str, Any]) -> None:
        self._saved = saved
        self._file = checkpoint.EMA_FILE if weights == "ema" else checkpoint.MODEL_FILE
        self._identity = load_identity(saved)
        self.preset = self._identity.preset
        self.config = _changed(self._identity.config, changes, _OF_TRAINING)

    def adopt(self, identity: ModelIdentity) -> ModelIdentity:
        """Return the identity with the checkpoint's statistics, tokenizer and speakers; new speakers are last.

        Raises UsageFault if the codecs or the loudness of the audio differ from those of the checkpoint.
        """
        was = self._identity
        added = tuple(name for name in identity.speakers if name not in was.speakers)
        codecs = [{name: entry.fingerprint for name, entry in x.codecs.items()} for x in (was, identity)]
        if codecs[0] != codecs[1]:
            raise UsageFault(
                f"{self._saved.path}: expected the codecs of these weights ({', '.join(codecs[0]) or 'none'}), "
                f"found {', '.join(codecs[1]) or 'none'} or other versions; use the codecs that the weights were "
                "trained with"
            )
        if was.loudness != identity.loudness:
            raise UsageFault(
                f"{self._saved.path}: expected audio of loudness {was.loudness} (as in its training), found "
                f"{identity.loudness} in these shards; preprocess them with --loudness {was.loudness}"
            )
        own = replace(identity, statistics=was.statistics, tokenizer=was.tokenizer, latents=was.latents)
        # A condition stream in both models keeps the values that it learned when the weights were trained.
        conditions = {name: was.conditions.get(name, stream) for name, stream in identity.conditions.items()}
        return replace(own, speakers=was.speakers + added, conditions=conditions)

    def fill(self, model: FlowModel, identity: ModelIdentity) -> Initialization:
        """Copy all weights by name.

        Args:
            model: Model that was built from the identity.
            identity: Result of `adopt`.

        Returns:
            Source files, use of every tensor, and warnings.
        """
        where = f"{self._saved.path}/{self._file}"
        saved = self._saved.tensors(self._file)
        own = dict(model.named_parameters())
        statuses = {
            name: TensorStatus("loaded", name, name, x.numel(), "the same weights") for name, x in saved.items()
        }
        added = len(identity.speakers) - len(self._identity.speakers)
        if _SPEAKERS in own and added > 0:
            reason = f"{added} new speakers begin as unknown"
            if _SPEAKERS in saved:
                saved[_SPEAKERS] = torch.cat([saved[_SPEAKERS], saved[_SPEAKERS][:1].expand(added, -1)])
                statuses[_SPEAKERS] = TensorStatus("converted", _SPEAKERS, _SPEAKERS, own[_SPEAKERS].numel(), reason)
            else:
                saved[_SPEAKERS] = torch.zeros(own[_SPEAKERS].shape)
                statuses[_SPEAKERS] = TensorStatus("new", None, _SPEAKERS, own[_SPEAKERS].numel(), reason)
        if _LACKING in own and _LACKING not in saved:
            saved[_LACKING] = torch.zeros(own[_LACKING].shape)
            statuses[_LACKING] = TensorStatus(
                "new", None, _LACKING, own[_LACKING].numel(), "embedding of absent parts; initialized to zero"
            )
        for name in sorted(name for name in own.keys() ^ saved.keys() if name.startswith(_ENCODERS)):
            if name in own:
                saved[name] = own[name].detach()
                statuses[name] = TensorStatus(
                    "new", None, name, own[name].numel(), "a new condition stream; newly initialized"
                )
            else:
                statuses[name] = TensorStatus(
                    "left out", name, None, saved.pop(name).numel(), "a condition stream left out"
                )
        checkpoint.load_into(own, saved, where)
        return Initialization(where, (self._saved.path / self._file,), tuple(statuses.values()), ())


def config_over_tokens(trunk: Mapping[str, Any]) -> ModelConfig:
    """Return a model configuration with the sizes and layer types of OmniFlow's trunk.

    Args:
        trunk: Arguments of `JointFlowTransformer`.

    Returns:
        The configuration. Gesture tokens are splines, and streams that a sample lacks get tokens of pure noise.
    """
    return ModelConfig(
        **{name: trunk[name] for name in OF_TRUNK},
        rotary_periods_s=None,
        text_head_width=trunk["streams"]["text"]["head_width"],
        context_only=tuple(trunk["context_only"]),
        absent="noise",
        gesture_tokens="splines",
    )


class OmniFlowStart(Start):
    """A start from OmniFlow's trunk: text and audio use its text and audio weights, gesture uses its image weights.

    If audio is stored as latents of OmniFlow's autoencoder, audio tokens are patches, as in OmniFlow. A recipe with
    ``audio_tokens: rows`` selects rows of latents instead.
    """

    preset = "pretrained"

    def __init__(
        self, folder: Path, weights: WhichWeights, changes: Mapping[str, Any], audio_codec: str | None
    ) -> None:
        self._folder, self._weights = folder, weights
        converted = converted_config(folder) if is_converted(folder) else None
        config = config_over_tokens(converted["trunk"] if converted else config_of(folder))
        default = "patches" if audio_codec == _OMNIFLOW_AUDIO else "rows"
        if changes.get("audio_tokens", default) == "patches":
            if audio_codec is None:
                raise UsageFault(
                    f"recipe key model.audio_tokens: expected patches only with --audio-codec {_OMNIFLOW_AUDIO}, "
                    f"found no --audio-codec; add --audio-codec {_OMNIFLOW_AUDIO}"
                )
            grid = PatchGrid(**(converted["grids"]["audio"] if converted else audio_grid_of(folder)))
            config = replace(config, audio_tokens="patches", audio_grid=grid, audio_prediction="velocity")
        self.config = _changed(config, changes, _OF_TOKENS)

    def adopt(self, identity: ModelIdentity) -> ModelIdentity:
        """Return the identity without normalisation of text latents, because OmniFlow was trained on raw latents.

        Raises UsageFault if the audio latents have another number of channels than OmniFlow's projections expect.
        """
        grid = self.config.audio_grid
        found = None if grid is None else identity.codecs["audio"].settings.get("latent_channels")
        if grid is not None and found != grid.channels:
            raise UsageFault(
                f"--audio-codec: expected latents of {grid.channels} channels as in {self._folder}, found "
                f"{found}; encode with that model's autoencoder, or set audio_tokens: rows under model in a "
                "recipe"
            )
        if "text" not in identity.codecs:
            return identity
        return replace(identity, config=replace(identity.config, normalise_text=False))

    def fill(self, model: FlowModel, identity: ModelIdentity) -> Initialization:
        """Copy the trunk's weights, but not the token projections of a stream whose tokens differ from OmniFlow's.

        Args:
            model: Model that was built from the identity.
            identity: Unused.

        Returns:
            Source files, use of every tensor, and warnings.
        """
        del identity
        source = (
            read_converted(self._folder) if is_converted(self._folder) else read_omniflow(self._folder, self._weights)
        )
        own = dict(model.named_parameters())
        plan = _plan(model, own, source)
        with torch.no_grad():
            for name, target in plan.carried.items():
                tensor, wanted = source.read(name), own[target].shape
                if tensor.ndim == 2 and tensor.shape != wanted:  # fewer features than OmniFlow's
                    tensor = tensor[:, : wanted[1]]
                own[target].copy_(tensor)
            if _SPEAKERS in own:  # then the first outputs equal OmniFlow's
                own[_SPEAKERS].zero_()
        return Initialization(source.where, source.files, _all_statuses(source, plan, own), source.warnings)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Plan of the initialization: which source weights are copied or left out, and which model weights are new."""

    carried: Mapping[str, str]
    """Weights that are copied: name in the source -> name in the model."""
    left: Mapping[str, str]
    """Source weights that are left out: name in the source -> reason."""
    new: Mapping[str, str]
    """Model weights without a source: name in the model -> reason."""


def _plan(model: FlowModel, own: Mapping[str, Tensor], source: SourceTrunk) -> _Plan:
    carried: dict[str, str] = {}
    left: dict[str, str] = {}
    for name, shape in source.shapes.items():
        stream, projection = _place(name)
        if stream is not None and projection and not model.stream(stream).omniflow_tokens:
            left[name] = _other_tokens(stream)
            continue
        target = "trunk." + name.replace(".image.", ".gesture.")
        found = tuple(own[target].shape) if target in own else None
        if found != shape and not (name == "embed.text.weight" and found is not None and found[1] < shape[1]):
            raise DataError(
                f"{source.where}: {name}: expected the shape {found or 'none'} of {target} in this model, found "
                f"{shape}; choose another checkpoint"
            )
        carried[name] = target
    filled = set(carried.values())
    new = {name: _reason_new(name) for name in own if name not in filled}
    unexplained = sorted(name for name, reason in new.items() if not reason)
    if unexplained:
        raise DataError(
            f"{source.where}: expected a complete trunk, found no tensor for "
            f"{', '.join(unexplained[:3])}; download it again"
        )
    return _Plan(carried, left, new)


def _place(name: str) -> tuple[StreamName | None, bool]:
    """Return a trunk tensor's stream in omniges (None: all streams), and whether its layer reads or outputs tokens."""
    words = name.split(".")
    streams = [word.replace("image", "gesture") for word in words if word in {"image", "text", "audio"}]
    projection = words[0] == "embed" or (words[0] == "head" and words[2] == "out")
    return (cast("StreamName", streams[0]) if streams else None), projection


def _reason_new(name: str) -> str:
    """Return why a weight of the model is not in OmniFlow; return "" if OmniFlow must have this weight."""
    if name == _SPEAKERS:
        return "OmniFlow has no speakers; initialized to zero"
    if name == _LACKING:
        return "embedding of absent parts, which OmniFlow lacks; initialized to zero"
    if name == _TEXT_PLACES:
        return "positions of text latents, which OmniFlow lacks; initialized to zero"
    if name.startswith("streams."):
        return "makes tokens of this project"
    if name.startswith(_ENCODERS):
        return "OmniFlow has no condition streams; newly initialized"
    stream, projection = _place(name.removeprefix("trunk."))
    return _other_tokens(stream or "gesture") if projection else ""


def _other_tokens(stream: StreamName) -> str:
    return f"{stream} has other tokens than OmniFlow's {'image' if stream == 'gesture' else stream}"


def _all_statuses(source: SourceTrunk, plan: _Plan, own: Mapping[str, Tensor]) -> tuple[TensorStatus, ...]:
    """Return the use of every source tensor, and the origin of every weight of the model."""
    found: list[TensorStatus] = []
    for status in source.statuses:
        if status.target is None:
            found.append(status)
        elif status.target in plan.left:
            found.append(TensorStatus("left out", status.source, None, status.numbers, plan.left[status.target]))
        elif own[target := plan.carried[status.target]].shape != source.shapes[status.target]:
            reason = "columns of features that the tokens have"
            found.append(TensorStatus("converted", status.source, target, own[target].numel(), reason))
        else:
            begins = "begins as image; " if target != f"trunk.{status.target}" else ""
            found.append(replace(status, target=target, reason=begins + status.reason))
    found += [TensorStatus("new", None, name, own[name].numel(), reason) for name, reason in plan.new.items()]
    return tuple(found)
