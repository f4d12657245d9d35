"""The JSON documents of a run in a checkpoint: types and ranges of their fields, and checks between fields.

A user may have edited a checkpoint and updated its checksums. Therefore this module checks every value of these
documents before the value is used. docs/reference/checkpoint.md lists the documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Final, Literal, cast

from omniges.data.catalog import Filters
from omniges.data.sequence import LoaderState
from omniges.errors import DataError, UsageFault
from omniges.generation.sampler import PROVENANCE_FILE, SETTINGS_FILE, STATE_FILE
from omniges.model.checkpoint import SavedCheckpoint
from omniges.model.draws import FlowSettings
from omniges.model.spec import ModelConfig
from omniges.model.tasks import SIX
from omniges.options import Setting, present_names, settings_of
from omniges.storage.documents import Count, Document, Is, Range, Sha256, shown
from omniges.trainer.config import TrainSettings
from omniges.trainer.validation.best import Best

STATE_VERSION: Final = 1
RANDOM: Final = "philox4x32-10 of (seed, position, purpose)"
"""Definition of all random draws: hashes of seed, position and purpose. The generator has no other state."""
_OTHER_VERSION: Final = "use the omniges version that wrote it"
_SINCE_FIRST: Final = (
    *("batch_size", "gradient_accumulation_steps", "seed", "window_ticks", "shard_weights", "mixed_precision"),
    *("flow", "model"),
)
"""Settings that the checks of this module need. Every version of omniges stores them in settings.json."""
_Seconds = Annotated[float, Range(0.0, 1e10)]
_Loss = Annotated[float, Range(0.0)]
_Some = Annotated[int, Range(1, 1 << 31)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Randomness:
    """Generator and seed of the random numbers of a run."""

    kind: Literal["philox4x32-10 of (seed, position, purpose)"]
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LossScale:
    """State of fp16 loss scaling; the fields have torch's names."""

    scale: Annotated[float, Range(maximum=3.5e38, above=0.0)]
    growth_factor: Annotated[float, Range(above=1.0)]
    backoff_factor: Annotated[float, Range(above=0.0, maximum=1.0)]
    growth_interval: _Some
    _growth_tracker: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothedLoss:
    """The smoothed loss and its minimum; both are null until the first loss is read."""

    value: _Loss | None
    lowest: _Loss | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Properties of the machine that saved a checkpoint."""

    device: str
    threads: _Some
    world_size: _Some
    cores: _Some
    processor: str
    platform: str


_Tasks = Annotated[
    tuple[str, ...],
    Is(f"different tasks of {', '.join(SIX)}", lambda found: len(set(found)) == len(found) and set(found) <= set(SIX)),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedState:
    """The fields of state.json."""

    version: int
    step: Count
    loader: LoaderState
    random: Randomness
    loss_scale: LossScale | None
    smoothed_loss: SmoothedLoss
    elapsed_s: _Seconds
    machine: Machine
    validated: Count = 0  # older checkpoints do not have the field
    validated_tasks: _Tasks | None = SIX  # older checkpoints were validated on all tasks of `SIX`
    best: Best | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedOn:
    """Provenance of one shard set of the training data."""

    shards: str
    weight: Annotated[float, Range(above=0.0)]
    manifest_hash: Sha256
    filters: Filters
    clips: Count
    hours: Annotated[float, Range(0.0, 1e9)]
    speakers: Count
    tool: Mapping[str, str] | None = None
    codecs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # older checkpoints do not have the field


@dataclass(frozen=True, slots=True, kw_only=True)
class GitState:
    """Git commit of the package, and the files that differ from this commit."""

    commit: str
    changed: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """Size and checksum of a file of pretrained weights."""

    bytes: Count
    sha256: Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretrained:
    """Provenance of the pretrained weights that initialized a run."""

    path: str
    files: Mapping[str, SourceFile]


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """The fields of provenance.json."""

    data: tuple[TrainedOn, ...]
    git: GitState | None
    packages: Mapping[str, str]
    machine: Machine
    pretrained: Pretrained | None = None


def state_of(document: Document) -> SavedState:
    """Check the type and range of each field of a state.json, and return the fields.

    Args:
        document: Content of the file.

    Returns:
        The state.

    Raises:
        DataError: A field is absent, unknown, of another type or out of range.
    """
    if document.value("version") != STATE_VERSION:
        found = shown(document.found["version"])
        raise DataError(f"{document.where}: expected version {STATE_VERSION}, found {found}; {_OTHER_VERSION}")
    document.require_only_keys([one.name for one in fields(SavedState)])
    return document.values(SavedState, loader=LoaderState.read(document.part("loader")))


def read_state(saved: SavedCheckpoint) -> SavedState:
    """Read state.json. Check each field, and its agreement with other fields, settings.json and the checkpoint's step.

    Args:
        saved: The checkpoint.

    Returns:
        The state.

    Raises:
        DataError: A field is invalid (see `state_of`), or contradicts another field.
    """
    document = saved.fields(STATE_FILE)
    state = state_of(document)
    for name, value, expected in _contradictions(state, saved.step, read_training_settings(saved)):
        raise document.fault(name, shown(value), expected)
    return state


def _contradictions(state: SavedState, step: int, settings: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Yield name, value and expected value (as text) of each field that contradicts another field or a setting."""
    loader, best, batch = state.loader, state.best, settings["batch_size"] * settings["gradient_accumulation_steps"]
    scaled = "null" if state.loss_scale is None else "a loss scale"
    equal: dict[str, tuple[Any, Any, str]] = {
        "step": (state.step, step, "checkpoint.json"),
        "random.seed": (state.random.seed, loader.seed, "loader"),
        "loader.seed": (loader.seed, settings["seed"], SETTINGS_FILE),
        "loader.window_ticks": (loader.window_ticks, settings["window_ticks"], SETTINGS_FILE),
        "loader.weights": (loader.weights, settings["shard_weights"] or (1.0,) * len(loader.weights), SETTINGS_FILE),
        "loader.global_batch": (loader.global_batch, batch * state.machine.world_size, f"{SETTINGS_FILE} and machine"),
        "loss_scale": (scaled, "a loss scale" if settings["mixed_precision"] == "fp16" else "null", SETTINGS_FILE),
    }
    if best is not None:
        equal["best.metric"] = (best.metric, settings.get("best_metric", best.metric), SETTINGS_FILE)
    for name, (found, other, where) in equal.items():
        if found != other:
            yield name, found, f"{shown(other)} as in {where}"
    if state.validated > state.step:
        yield "validated", state.validated, f"at most the step, {state.step}"
    if best is not None and best.step > state.step:
        yield "best.step", best.step, f"at most the step, {state.step}"
    if loader.position < state.step or (loader.position and not state.step):
        yield "loader.position", loader.position, f"at least one window for each of {state.step} steps"
    value, lowest = state.smoothed_loss.value, state.smoothed_loss.lowest
    if (value is None) != (lowest is None) or (lowest or 0.0) > (value or 0.0):
        yield ("smoothed_loss.lowest", lowest, f"at most smoothed_loss.value ({shown(value)}), or null if that is null")


def read_training_settings(saved: SavedCheckpoint) -> dict[str, Any]:
    """Read settings.json, and replace former names of settings by current names.

    Args:
        saved: The checkpoint.

    Returns:
        The settings. A setting is absent if the version that wrote the file did not have it.

    Raises:
        DataError: A setting is unknown, or its value is invalid for `omniges train`.
    """
    document = saved.fields(SETTINGS_FILE)
    try:
        present = present_names(TrainSettings, document.found)
    except UsageFault as error:
        raise document.fault("", str(error), "one name for each setting") from error
    document = Document(present, document.where, document.remedy)
    document.require_keys(_SINCE_FIRST)
    found = document.given(TrainSettings)
    for name, value in found.items():
        setting = cast("Setting", settings_of(TrainSettings)[name])
        try:
            setting.checked(value)
        except UsageFault as error:  # out of the range that the setting declares
            raise document.fault(name, shown(document.found[name]), setting.expected) from error
    document.part("flow").read(FlowSettings)
    document.part("model").given(ModelConfig)
    return found


def read_provenance(saved: SavedCheckpoint) -> dict[str, Any]:
    """Read provenance.json and check its fields.

    Args:
        saved: The checkpoint.

    Returns:
        The content of the file.

    Raises:
        DataError: A field is absent, unknown, of another type or out of range.
    """
    document = saved.fields(PROVENANCE_FILE)
    document.read(Provenance)
    return document.found
