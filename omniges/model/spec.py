"""Definition of a model: its configuration, presets, and the JSON files of a checkpoint that describe the model.

A `ModelConfig` contains the settings that do not depend on the data. A `ModelIdentity` adds the statistics, the
tokenizer and the speakers, so that the model can be built without the shards.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, cast, get_args

import torch

from omniges.conditions.base import ConditionStream, full_name
from omniges.conditions.registry import labels_read, saved_streams, specification
from omniges.errors import DataError, UsageFault
from omniges.features.audio import MEL_BANDS, Loudness
from omniges.features.channels import WITH_JAW_EYES, GestureChannels
from omniges.features.gesture import JAW_EYES, LAYOUT
from omniges.features.text_tokens import TextTokenCodec
from omniges.features.timebase import FRAMES_PER_TICK, MEL_FRAMES_PER_TICK
from omniges.model.checkpoint import EDITED, EMA_FILE, MODEL_FILE, SavedCheckpoint, load_into
from omniges.model.flow import AbsentStreams, FlowModel
from omniges.model.gesture import SplineTokens
from omniges.model.patches import PatchGrid, PatchTokens
from omniges.model.speaking_rate import SPEAKING_RATE_FILE, SpeakingRate
from omniges.model.streams import FrameTokens, Prediction, Stream, StreamName, SubwordTokens, WindowTokens
from omniges.model.tasks import Task
from omniges.model.trunk import Conditioning, JointFlowTransformer, QKNormKind
from omniges.registry import foreign
from omniges.shards.dataset import is_numbers, read_statistics
from omniges.shards.latents import CodecEntry, FrameEntry, WindowEntry
from omniges.shards.present import STREAM_BITS, absent_parts, trained_bits, unused_bits
from omniges.shards.schema import LATENTS_FILE, STATS_FILE, TOKENIZER_FILE, Part
from omniges.storage.documents import Document, Is, Range, shown
from omniges.storage.files import json_document
from omniges.storage.redact import one_line
from omniges.storage.tensors import require_same, shapes_of

OF_TRUNK: Final = ("width", "layers", "heads", "mlp_ratio", "qk_norm", "conditioning", "pooled_width")
"""Fields of a configuration that are arguments of `JointFlowTransformer` with the same names."""
AudioTokens = Literal["rows", "patches"]
"""Content of a token of a codec's audio latents: a row, or a patch of rows and columns as in OmniFlow."""
GestureTokens = Literal["frames", "splines"]
"""Form of gesture predictions: overlapping frames (`FrameTokens`), or splines (`SplineTokens`)."""
_FRAMES: Final[Mapping[Literal["gesture", "audio"], tuple[int, tuple[str, ...]]]] = MappingProxyType(
    {"gesture": (FRAMES_PER_TICK, ("gesture",)), "audio": (MEL_FRAMES_PER_TICK, ("mel",))}
)
"""For each stream: the number of frames in a tick, and the names in stats.json of the arrays that form a frame."""
_OMNIFLOW_TEXT: Final = "omniflow-text-vae"  # the codec whose latents are the text tokens of OmniFlow
CONFIG_FILE: Final = "config.json"
_MAX_TICKS: Final = 1 << 20
_SINCE_FIRST: Final = (
    *("width", "layers", "heads", "mlp_ratio", "qk_norm", "conditioning", "rotary_periods_s", "piece_width"),
    *("mark_width", "gesture_prediction", "audio_prediction", "blank_weight"),
)
"""Fields of a configuration that every checkpoint has. Other fields were added after the first version."""
_SIZES: Final = ("width", "layers", "heads", "mlp_ratio", "piece_width", "mark_width")
_OPTIONAL_SIZES: Final = ("pooled_width", "text_head_width")
_MAX_SIZE: Final = 1 << 20
_OTHER_VERSION: Final = "use the omniges version that wrote it"
_OTHER_MODEL: Final = "the file belongs to another model; choose another checkpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Configuration of a model: sizes and kinds of its parts.

    The fields that the constant `OF_TRUNK` lists are arguments of `JointFlowTransformer`, and are described there.
    """

    width: int
    layers: int
    heads: int
    mlp_ratio: int = 4
    qk_norm: QKNormKind | None = "rms"
    conditioning: Conditioning = "summed"
    rotary_periods_s: tuple[float, float] | None = (0.5, 120.0)
    """Shortest and longest period of the rotary positions, in seconds; None: add sinusoidal embeddings of the time."""
    pooled_width: int | None = None
    """Features of a vector for the complete sample, which is always zero; None: no such vector."""
    text_head_width: int | None = None
    """Width of an extra layer before the text head; None: no extra layer."""
    context_only: tuple[StreamName, ...] = ()
    """Streams that provide only keys and values in the last block."""
    absent: AbsentStreams = "left-out"
    """How to handle streams that a sample lacks."""
    piece_width: int = 48
    """Features of the embedding of a text token's subword."""
    mark_width: int = 16
    """Features of the embedding of a text token's marks, see `SubwordTokens`."""
    gesture_prediction: Prediction = "clean"
    audio_prediction: Prediction = "clean"
    text_prediction: Prediction = "clean"
    """Output of the text head; used only if text is stored as latents of a codec."""
    normalise_text: bool = True
    """Normalise text latents of a codec by the statistics of the train split; OmniFlow's weights expect False."""
    gesture_difference_weight: float = 30.0
    """Loss weight of the differences between successive gesture frames; not used for latents of a codec."""
    gesture_tokens: GestureTokens = "frames"
    """Form of gesture predictions. Latents of a codec and predicted velocities always use frames. Checkpoints without
    this field use frames; new runs use splines."""
    gesture_feet_weight: float = 0.1
    """Loss weight of errors of the toes' velocities; used only with splines."""
    audio_difference_weight: float = 5.0
    """Loss weight of the differences between successive mel frames; not used for latents of a codec."""
    audio_tokens: AudioTokens = "rows"
    audio_grid: PatchGrid | None = None
    """Sizes of patches and of their position table, from the pretrained weights; None if audio tokens are rows."""
    blank_weight: float = 0.25
    """Weight of a tick without speech in the text loss; a tick with speech has the weight 1."""
    gesture_channels: GestureChannels = 415
    """Channels of the gesture stream: 415, or 424 with jaw and eyes. Checkpoints without this field have 415."""
    tell_absent: bool = False
    """True: the absent parts of a sample are an input of the model. Training sets this if any sample lacks a part."""

    def __post_init__(self) -> None:
        """Raise UsageFault for a number out of range, an unknown kind, or settings that do not fit together."""
        for name in (*_SIZES, *_OPTIONAL_SIZES):
            size = getattr(self, name)
            absent = size is None and name in _OPTIONAL_SIZES
            if not absent and not (type(size) is int and 1 <= size <= _MAX_SIZE):
                raise UsageFault(f"{name}: expected a whole number from 1 to {_MAX_SIZE}, found {size!r:.40}")
        if self.width % (2 * self.heads):
            raise UsageFault(
                f"width, heads: expected an even number of features a head, found width {self.width} and "
                f"{self.heads} heads"
            )
        periods = self.rotary_periods_s
        if periods is not None and not (
            isinstance(periods, tuple)
            and [type(period) in {int, float} for period in periods] == [True, True]
            and 0 < periods[0] < periods[1] < math.inf
        ):
            raise UsageFault(
                f"rotary_periods_s: expected the shortest and the longest period in seconds, or none, found {periods!r}"
            )
        weights = ("gesture_difference_weight", "gesture_feet_weight", "audio_difference_weight", "blank_weight")
        for name in weights:
            weight = getattr(self, name)
            if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
                raise UsageFault(f"{name}: expected a number of at least 0, found {weight!r}")
        for name in ("normalise_text", "tell_absent"):
            if not isinstance(getattr(self, name), bool):
                raise UsageFault(f"{name}: expected true or false, found {getattr(self, name)!r}")
        kinds = {"absent": AbsentStreams, "context_only": StreamName, "audio_tokens": AudioTokens}
        kinds |= {"gesture_tokens": GestureTokens}
        kinds |= {"conditioning": Conditioning} | ({} if self.qk_norm is None else {"qk_norm": QKNormKind})
        kinds |= {f"{name}_prediction": Prediction for name in get_args(StreamName)}
        for name, kind in kinds.items():
            found = getattr(self, name)
            several = name == "context_only" and not isinstance(found, str)
            if any(one not in get_args(kind) for one in (found if several else (found,))):
                raise UsageFault(f"{name}: expected {', '.join(get_args(kind))}, found {found!r}")
        if self.gesture_channels not in get_args(GestureChannels):
            raise UsageFault(f"gesture_channels: expected 415 or 424, found {self.gesture_channels!r:.40}")
        self._check_patches()

    def _check_patches(self) -> None:
        """Raise UsageFault if audio patches are combined with settings that do not fit OmniFlow's weights.

        Patches require a position table (`audio_grid`), predicted velocities, and position embeddings that are added.
        With rotary positions, all patches of the same rows would have the same position. A position table without
        patches is refused too.
        """
        patches = self.audio_tokens == "patches"
        if patches != (self.audio_grid is not None) or (patches and self.rotary_periods_s is not None):
            raise UsageFault(
                "audio_tokens patches: expected OmniFlow's weights, to which patches belong, found none; initialize "
                "from its weights (--pretrained-model-name-or-path), or set audio_tokens to rows"
            )
        if patches and self.audio_prediction != "velocity":
            raise UsageFault(
                f"audio_prediction: expected velocity, which OmniFlow's head predicts, found {self.audio_prediction} "
                "with audio_tokens patches; set audio_prediction to velocity"
            )

    @property
    def with_jaw_eyes(self) -> bool:
        """True if the gesture stream has channels of jaw and eyes."""
        return self.gesture_channels == WITH_JAW_EYES

    def as_json(self) -> dict[str, Any]:
        """Return the configuration as the JSON object that checkpoints store."""
        return asdict(self)

    @classmethod
    def read(cls, document: Document) -> ModelConfig:
        """Create a configuration from the JSON object that `as_json` returns.

        Args:
            document: The JSON object. Fields that earlier versions did not have may be absent.

        Returns:
            The configuration.

        Raises:
            DataError: A field is unknown, absent, of another type or out of range.
        """
        document.require_keys(_SINCE_FIRST)
        return document.read(cls)


PRESETS: Final[Mapping[str, ModelConfig]] = MappingProxyType(
    {
        "tiny": ModelConfig(width=128, layers=4, heads=4, gesture_tokens="splines"),
        "small": ModelConfig(width=384, layers=8, heads=6, gesture_tokens="splines"),
        "base": ModelConfig(width=768, layers=12, heads=12, gesture_tokens="splines"),
        "omniflow": ModelConfig(width=1536, layers=24, heads=24, gesture_tokens="splines"),
    }
)
"""Model sizes by name. ``omniflow`` has the width and depth of OmniFlow's published trunk, with tokens of omniges."""


@dataclass(frozen=True, slots=True)
class CodecLatents:
    """The codec whose latents replace the array of a stream, and the statistics of these latents in latents.json."""

    entry: CodecEntry
    statistics: Mapping[str, Any]


def build_model(
    config: ModelConfig,
    *,
    statistics: Mapping[str, Any],
    vocab_size: int,
    speakers: int,
    codecs: Mapping[StreamName, CodecLatents] | None = None,
    conditions: Mapping[str, ConditionStream] = MappingProxyType({}),
) -> FlowModel:
    """Build an untrained model on the current default device, with weights from torch's global generator.

    Args:
        config: Configuration of the model.
        statistics: Content of stats.json.
        vocab_size: Size of the tokenizer's vocabulary.
        speakers: Number of speakers.
        codecs: For each stream that is stored as latents: its codec and statistics. The model contains no part
            of a codec.
        conditions: Condition streams by name.

    Returns:
        The model.

    Raises:
        UsageFault: The audio latents do not fit the patches.
    """
    codecs = codecs or {}

    gesture, audio = (_frame_tokens(name, config, statistics, codecs.get(name)) for name in _FRAMES)
    text = (
        _window_tokens(codecs["text"], config)
        if "text" in codecs
        else SubwordTokens(
            vocab_size=vocab_size,
            piece_width=config.piece_width,
            mark_width=config.mark_width,
            blank_weight=config.blank_weight,
        )
    )
    streams: dict[StreamName, Stream] = {"gesture": gesture, "text": text, "audio": audio}
    sizes: dict[str, dict[str, int | None]] = {
        name: {"inputs": stream.channels, "outputs": stream.outputs} for name, stream in streams.items()
    }
    sizes["text"]["head_width"] = config.text_head_width
    own = {name: getattr(config, name) for name in (*OF_TRUNK, "rotary_periods_s", "context_only")}
    trunk = JointFlowTransformer(streams=sizes, speakers=speakers, **own)
    encoders = {}
    for name, stream in conditions.items():  # built last, so that they do not change the draws of the other weights
        with foreign(full_name(stream), "making its encoder"):
            encoders[name] = stream.encoder(config.width)
    return FlowModel(
        trunk,
        streams,
        config.absent,
        latents=tuple(codecs),
        tell_absent=config.tell_absent,
        trained=trained_bits(statistics),
        encoders=encoders,
        gesture_channels=config.gesture_channels,
    )


def _frame_tokens(
    name: Literal["gesture", "audio"], config: ModelConfig, statistics: Mapping[str, Any], latents: CodecLatents | None
) -> Stream:
    """Create the gesture or audio stream, for arrays or for latents of a codec."""
    if name == "audio" and config.audio_grid is not None:
        return _patch_tokens(config.audio_grid, latents)
    frames, members = _FRAMES[name]
    members = (*members, "jaw_eyes") if name == "gesture" and config.with_jaw_eyes else members
    scales = [statistics[member] for member in members] if latents is None else [latents.statistics]
    mean, std = ([value for scale in scales for value in scale[one]] for one in ("mean", "std"))
    prediction: Prediction = getattr(config, f"{name}_prediction")
    difference_weight: float = getattr(config, f"{name}_difference_weight")
    if latents is not None:
        rate = cast("FrameEntry", latents.entry).rows_per_tick
        return FrameTokens(frames=1, mean=mean, std=std, prediction=prediction, tokens_per_tick=rate)
    if name == "gesture" and prediction == "clean" and config.gesture_tokens == "splines":
        return SplineTokens(
            frames=frames,
            mean=mean,
            std=std,
            difference_std=[value for scale in scales for value in scale["difference_std"]],
            difference_weight=difference_weight,
            feet_weight=config.gesture_feet_weight,
        )
    return FrameTokens(frames=frames, mean=mean, std=std, prediction=prediction, difference_weight=difference_weight)


def _patch_tokens(grid: PatchGrid, latents: CodecLatents | None) -> PatchTokens:
    """Create an audio stream with patches as tokens; raise UsageFault if latents do not split into complete patches."""
    channels = 0 if latents is None else latents.entry.channels
    columns, left = divmod(channels, grid.channels)
    if latents is None or left or columns % grid.patch:
        raise UsageFault(
            f"--audio-codec: expected latents of {grid.channels} channels with a multiple of {grid.patch} columns, "
            f"for audio_tokens patches, found {(f'{channels} numbers a row' if latents else 'no codec')}; set "
            "audio_tokens to rows"
        )
    rate = cast("FrameEntry", latents.entry).rows_per_tick
    return PatchTokens(grid, columns=columns, rows_per_tick=rate)


def _window_tokens(latents: CodecLatents, config: ModelConfig) -> WindowTokens:
    """Create the text stream whose tokens are the latents of a codec."""
    entry = cast("WindowEntry", latents.entry)
    plain = {"mean": [0.0] * entry.channels, "std": [1.0] * entry.channels}
    statistics = latents.statistics if config.normalise_text else plain
    return WindowTokens(
        latents=entry.latents,
        window_ticks=entry.window_ticks,
        width=config.width,
        mean=statistics["mean"],
        std=statistics["std"],
        prediction=config.text_prediction,
        omniflow_tokens=entry.name == _OMNIFLOW_TEXT and not config.normalise_text,
    )


def model_for_weights(
    config: ModelConfig,
    *,
    vocab_size: int,
    speakers: int,
    codecs: Mapping[StreamName, CodecLatents] | None = None,
    conditions: Mapping[str, ConditionStream] = MappingProxyType({}),
) -> FlowModel:
    """Build a model whose weights and statistics are placeholders.

    The caller replaces all of them by a complete state dict, which contains the statistics too.

    Args:
        config: Configuration of the model.
        vocab_size: Size of the tokenizer's vocabulary.
        speakers: Number of speakers.
        codecs: For each stream that is stored as latents: its codec and statistics.
        conditions: Condition streams by name.

    Returns:
        The model.
    """
    channels = {"gesture": LAYOUT.channels, "jaw_eyes": JAW_EYES, "mel": MEL_BANDS}
    statistics = {
        name: {"mean": [0.0] * count, "std": [1.0] * count, "difference_std": [1.0] * count}
        for name, count in channels.items()
    }
    return build_model(
        config, statistics=statistics, vocab_size=vocab_size, speakers=speakers, codecs=codecs, conditions=conditions
    )


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """The complete description of a trained model, without the weights."""

    preset: str
    config: ModelConfig
    window_ticks: int  # length of the training windows
    speakers: tuple[str, ...]  # the first has number 1
    statistics: bytes  # stats.json
    tokenizer: bytes  # tokenizer.json
    codecs: Mapping[StreamName, CodecEntry] = field(default_factory=dict)  # by the stream that their latents replace
    latents: bytes = b""  # latents.json, if there is a codec
    loudness: Loudness = "none"  # loudness normalisation of the training audio
    speaking_rate: bytes = b""  # speaking_rate.json, the speaking rate of the training words; b"": not known
    conditions: Mapping[str, ConditionStream] = field(default_factory=dict)  # condition streams by name
    guidance: Mapping[StreamName, float] = field(default_factory=dict)
    """Default guidance scale of generation by target; 1 for targets that are not listed."""

    @property
    def absent(self) -> tuple[Part, ...]:
        """Parts that all training samples lacked."""
        trained = trained_bits(json.loads(self.statistics))
        return absent_parts(trained | unused_bits(self.config.gesture_channels))

    def never_had(self, task: Task) -> list[StreamName]:
        """Return those streams of a task that were absent from all training samples."""
        trained = trained_bits(json.loads(self.statistics))
        return [name for name in (*task.conditions, *task.targets) if not trained & STREAM_BITS[name]]

    @property
    def tick_multiple(self) -> int:
        """Smallest number of ticks that contains a whole number of tokens and of rows of latents in every stream.

        Window lengths must be multiples of this number, so that no window begins or ends inside a token or row.
        """
        multiples = [entry.tick_multiple for entry in self.codecs.values() if isinstance(entry, FrameEntry)]
        grid = self.config.audio_grid
        if grid is not None:
            multiples.append((cast("FrameEntry", self.codecs["audio"]).rows_per_tick / grid.patch).denominator)
        return math.lcm(*multiples)

    @property
    def codec_names(self) -> dict[str, str]:
        """Name of the codec for each stream that is stored as latents."""
        return {stream: entry.name for stream, entry in self.codecs.items()}

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the metadata labels that the condition streams read, sorted."""
        return labels_read(self.conditions.values())

    @property
    def read_by_training(self) -> tuple[dict[str, str], tuple[str, ...], GestureChannels]:
        """Arguments of `read_catalog` for training batches: codec names by stream, labels, and gesture channels."""
        return self.codec_names, self.label_names, self.config.gesture_channels

    def codec_latents(self) -> dict[StreamName, CodecLatents]:
        """Return the codecs with their statistics, by stream, as `build_model` needs them."""
        statistics = json.loads(self.latents) if self.codecs else {}
        return {stream: CodecLatents(entry, statistics[entry.name]) for stream, entry in self.codecs.items()}

    def build(self, seed: int) -> FlowModel:
        """Build an untrained model with weights drawn from a seed, without changing torch's generators."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_model(
                self.config,
                statistics=json.loads(self.statistics),
                vocab_size=TextTokenCodec(self.tokenizer).vocab_size,
                speakers=len(self.speakers),
                codecs=self.codec_latents(),
                conditions=self.conditions,
            )

    def documents(self) -> dict[str, bytes]:
        """Return the files that store the identity in a checkpoint: bytes by file name."""
        config: dict[str, Any] = {
            "preset": self.preset,
            "model": self.config.as_json(),
            "window_ticks": self.window_ticks,
            "speakers": list(self.speakers),
            "loudness": self.loudness,
        }
        if self.guidance:
            config["guidance"] = dict(self.guidance)
        if self.conditions:
            config["conditions"] = {name: specification(stream) for name, stream in self.conditions.items()}
        files = {STATS_FILE: self.statistics, TOKENIZER_FILE: self.tokenizer}
        if self.codecs:
            config["codecs"] = {
                # The loudness is the only setting of encoding that a model needs; versions of packages are left out.
                stream: {"name": entry.name}
                | entry.as_json()
                | {"settings": {name: value for name, value in entry.settings.items() if name == "loudness"}}
                for stream, entry in self.codecs.items()
            }
            files[LATENTS_FILE] = self.latents
        if self.speaking_rate:
            files[SPEAKING_RATE_FILE] = self.speaking_rate
        return {CONFIG_FILE: json_document(config)} | files

    def require_same(self, saved: SavedCheckpoint) -> None:
        """Raise UsageFault if a checkpoint's configuration, or a file such as stats.json, differs from this model's.

        Only the preset's name, the default guidance scales and the speaking rate may differ.
        """
        own = {name: json.loads(content) for name, content in self.documents().items()}
        # The stored settings are read and written again, so that settings newer than the checkpoint have their default.
        stored = json.loads(load_identity(saved).documents()[CONFIG_FILE])
        was, now = (_flat(config) for config in (stored, own[CONFIG_FILE]))
        differences = [
            f"{name}: {was.get(name)} in the checkpoint, {now.get(name)} in this run"
            for name in sorted(was.keys() | now.keys())
            if was.get(name) != now.get(name) and name not in {"preset", "guidance"}
        ]
        used = {entry.name for entry in self.codecs.values()}
        # The speaking rate is an estimate: its last bits, or the clips it is learned from, may differ between machines.
        compared = sorted(own.keys() - {CONFIG_FILE, SPEAKING_RATE_FILE})
        differences += [f"{name} differs" for name in compared if _other(saved, name, own[name], used)]
        if differences:
            more = [f"and {len(differences) - 3} more"] if len(differences) > 3 else []
            raise UsageFault(
                f"{saved.path}: expected the model of this run, found another model "
                f"({'; '.join(differences[:3] + more)}); resume with the settings and shards of the checkpoint, or "
                "choose another --output-dir"
            )


def _other(saved: SavedCheckpoint, name: str, own: Any, codecs: set[str]) -> bool:
    """Return whether a JSON file of a checkpoint differs from the same file of this model.

    Args:
        saved: The checkpoint.
        name: Name of the file.
        own: Parsed content of this model's file.
        codecs: Names of the codecs that this model uses. In latents.json, only their statistics are compared.

    Returns:
        True if the contents differ; False if they are equal. Also False if the checkpoint lacks the file: config.json
        differs in this case, and `require_same` reports the settings that differ.
    """
    if name not in saved.files:
        return False
    was = saved.document(name)
    if name == LATENTS_FILE:
        return any(was.get(codec) != own.get(codec) for codec in codecs)
    return bool(was != own)


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    sections = {"model", "codecs", "conditions"}
    plain = {"loudness": "none"} | {name: value for name, value in config.items() if name not in sections}
    codecs = {
        f"{stream} codec": f"{entry['name']} {entry['fingerprint'][:16]}…"
        for stream, entry in config.get("codecs", {}).items()
    }
    conditions = {f"condition stream {name}": one["settings"] for name, one in config.get("conditions", {}).items()}
    return plain | dict(config.get("model", {})) | codecs | conditions


@dataclass(frozen=True, slots=True, kw_only=True)
class _Config:
    """The fields of config.json, except ``model``."""

    preset: str
    window_ticks: Annotated[int, Range(1, _MAX_TICKS)]
    speakers: Annotated[tuple[str, ...], Is("different names", lambda found: len(set(found)) == len(found))]
    loudness: Loudness = "none"  # older checkpoints do not have the key
    codecs: Mapping[StreamName, Mapping[str, Any]] = field(default_factory=dict)
    conditions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    guidance: Mapping[StreamName, Annotated[float, Range(0)]] = field(default_factory=dict)


def load_identity(saved: SavedCheckpoint) -> ModelIdentity:
    """Read the identity of a checkpoint's model; raise DataError if a file is absent or malformed."""
    document = saved.fields(CONFIG_FILE, _OTHER_VERSION)
    found = document.values(_Config)
    document.require_only_keys({"model", *(one.name for one in fields(_Config))})
    codecs = {name: _codec(document.part("codecs").part(name)) for name in found.codecs}
    config = ModelConfig.read(document.part("model"))
    statistics = saved.content(STATS_FILE)
    read = read_statistics(statistics, str(saved.path / STATS_FILE))
    if "gesture" not in read:
        raise DataError(f"{saved.path / STATS_FILE}: expected statistics of train samples, found none; {EDITED}")
    if config.with_jaw_eyes and ("gesture" in codecs or "jaw_eyes" not in read):
        expected = f"415 with latents of gesture or without jaw_eyes in {STATS_FILE}"
        raise document.fault("model.gesture_channels", "424", expected)
    if "gesture" not in codecs:
        _check_differences(config, Document(read, str(saved.path / STATS_FILE), EDITED))
    rate = saved.content(SPEAKING_RATE_FILE) if SPEAKING_RATE_FILE in saved.files else b""
    if rate:
        SpeakingRate.from_json(rate, str(saved.path / SPEAKING_RATE_FILE))
    try:
        conditions = saved_streams(document)
    except UsageFault as error:  # a stream that is not installed here
        raise DataError(str(error)) from error
    return ModelIdentity(
        preset=found.preset,
        config=config,
        window_ticks=found.window_ticks,
        speakers=found.speakers,
        statistics=statistics,
        tokenizer=saved.content(TOKENIZER_FILE),
        codecs=codecs,
        latents=_latents(saved, codecs) if codecs else b"",
        loudness=found.loudness,
        speaking_rate=rate,
        conditions=conditions,
        guidance=found.guidance,
    )


def _codec(document: Document) -> CodecEntry:
    """Parse the description of a codec in config.json."""
    name = document.typed("name", str)
    try:
        return CodecEntry.from_json(name, {key: value for key, value in document.found.items() if key != "name"})
    except ValueError as error:
        raise document.fault("", one_line(str(error), 200), "the entry of a codec") from error


def _latents(saved: SavedCheckpoint, codecs: Mapping[StreamName, CodecEntry]) -> bytes:
    """Return the bytes of latents.json; raise DataError if the mean or std of a codec's channels is invalid."""
    document = saved.fields(LATENTS_FILE)
    for entry in codecs.values():
        own = document.part(entry.name)
        for column, minimum in (("mean", -math.inf), ("std", 0)):
            if not is_numbers(own.value(column), entry.channels, minimum):
                raise own.fault(column, shown(own.found[column]), f"{entry.channels} finite numbers")
    return saved.content(LATENTS_FILE)


def _check_differences(config: ModelConfig, statistics: Document) -> None:
    """Raise DataError if gesture tokens are splines, but the statistics lack a valid ``difference_std``."""
    channels = {"gesture": LAYOUT.channels} | ({"jaw_eyes": JAW_EYES} if config.with_jaw_eyes else {})
    for name, count in channels.items() if config.gesture_tokens == "splines" else ():
        part = statistics.part(name)
        if not is_numbers(part.value("difference_std"), count, 0):
            raise part.fault("difference_std", shown(part.found["difference_std"]), f"{count} numbers of at least 0")


def weights_file(weights: Literal["ema", "last"]) -> str:
    """Return the name of the file in a checkpoint that contains the EMA weights or the weights of the last step."""
    return EMA_FILE if weights == "ema" else MODEL_FILE


def load_model(saved: SavedCheckpoint, weights: Literal["ema", "last"] = "ema") -> tuple[FlowModel, ModelIdentity]:
    """Load the model of a checkpoint on the CPU, in evaluation mode.

    Args:
        saved: The checkpoint.
        weights: ``ema`` for the EMA weights, ``last`` for the weights of the last training step, without averaging.

    Returns:
        The model and its identity.

    Raises:
        DataError: The weights do not fit the configuration, or a file is malformed.
    """
    identity = load_identity(saved)
    name = weights_file(weights)
    where = f"{saved.path}/{name}"
    require_shapes(identity, saved.shapes(name), where)
    model = identity.build(seed=0)
    load_into(dict(model.named_parameters()), saved.tensors(name), where)
    return model.eval(), identity


def require_shapes(identity: ModelIdentity, found: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Refuse weights that do not fit the configuration, before memory for a model is allocated.

    Args:
        identity: Identity in the checkpoint.
        found: Shapes of the weights by name, from the header of their file.
        where: Path of the weights, for the error.

    Raises:
        DataError: Names or shapes differ from the configuration, or no model can be built from the configuration.
    """
    layers = identity.config.layers
    if layers > len(found):  # each layer has several tensors; building this many layers could take hours
        raise DataError(f"{where}: expected weights of {layers} layers, found {len(found)} tensors; {_OTHER_MODEL}")
    try:
        with torch.device("meta"):
            model = identity.build(seed=0)
    except (RuntimeError, OverflowError) as error:  # sizes that are too large for a tensor
        raise DataError(f"{where}: {one_line(str(error), 200)}; {_OTHER_MODEL}") from error
    require_same(shapes_of(dict(model.named_parameters())), found, where, _OTHER_MODEL)
