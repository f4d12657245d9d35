"""What a training run is asked to do: defaults, then a YAML recipe, then flags; values checked by flag name."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import yaml  # type: ignore[import-untyped]

from omniges.errors import OmnigesError, UsageFault
from omniges.model.presets import PRESETS, ModelConfig, preset
from omniges.model.tasks import FlowSettings
from omniges.storage.remote import parse_location
from omniges.trainer.optimizer import SCHEDULES
from omniges.trainer.validation.best import check_metric

__all__ = ["DEFAULT_VALIDATION_STEPS", "LEARNING_RATES", "TrainSettings", "differences", "flag_of", "load_settings"]

LEARNING_RATES: Final[Mapping[str, float]] = MappingProxyType(
    {"tiny": 1e-3, "small": 5e-4, "base": 2e-4, "omniflow": 1e-4}
)
"""Peak learning rate of each preset where none is given."""

DEFAULT_VALIDATION_STEPS: Final = 500
PRETRAINED_LEARNING_RATE: Final = 1e-4
"""The same for pretrained weights."""

TRACKERS: Final = ("tensorboard", "wandb")
PRECISIONS: Final = ("no", "bf16", "fp16")
_NO_FLAGS: Final = frozenset({"model", "flow", "adam_beta1", "adam_beta2"})


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a field may be."""

    kind: type = str
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    optional: bool = False
    many: bool = False
    keys: frozenset[str] = frozenset()  # of a mapping


def _model_keys() -> frozenset[str]:
    return frozenset(f.name for f in fields(ModelConfig)) - {"audio_grid"}  # which the pretrained weights say


_RULES: Final[Mapping[str, _Rule]] = MappingProxyType(
    {
        "shards": _Rule(many=True),
        "shard_weights": _Rule(float, above=0, many=True),
        "cache_dir": _Rule(Path),
        "cache_gb": _Rule(float, above=0),
        "output_dir": _Rule(Path),
        "preset": _Rule(choices=tuple(PRESETS), optional=True),
        "pretrained_model_name_or_path": _Rule(Path, optional=True),
        "pretrained_weights": _Rule(choices=("last", "ema"), optional=True),
        "audio_codec": _Rule(optional=True),
        "gesture_codec": _Rule(optional=True),
        "text_codec": _Rule(optional=True),
        "window_ticks": _Rule(int, least=1),
        "train_batch_size": _Rule(int, least=1),
        "gradient_accumulation_steps": _Rule(int, least=1),
        "num_train_epochs": _Rule(float, above=0, optional=True),
        "max_train_steps": _Rule(int, least=1, optional=True),
        "max_minutes": _Rule(float, above=0, optional=True),
        "learning_rate": _Rule(float, above=0, optional=True),
        "lr_schedule": _Rule(choices=SCHEDULES),
        "lr_warmup_steps": _Rule(int, least=0),
        "weight_decay": _Rule(float, least=0),
        "adam_beta1": _Rule(float, least=0, below=1),
        "adam_beta2": _Rule(float, least=0, below=1),
        "max_grad_norm": _Rule(float, least=0),
        "mixed_precision": _Rule(choices=PRECISIONS),
        "ema_decay": _Rule(float, least=0, below=1),
        "seed": _Rule(int, least=0, most=2**63 - 1),
        "checkpointing_steps": _Rule(int, least=1),
        "checkpoints_total_limit": _Rule(int, least=0),
        "resume": _Rule(),
        "validation_steps": _Rule(int, least=0, optional=True),
        "validation_windows": _Rule(int, least=1),
        "validation_samples": _Rule(int, least=0),
        "validation_sampling_steps": _Rule(int, least=1),
        "validation_codec": _Rule(many=True),
        "t5_tokenizer": _Rule(Path, optional=True),
        "best_metric": _Rule(),
        "report_to": _Rule(choices=TRACKERS, many=True),
        "num_workers": _Rule(int, least=0),
        "compile": _Rule(bool),
        "gradient_checkpointing": _Rule(bool),
        "logging_steps": _Rule(int, least=1),
        "divergence_factor": _Rule(float, above=1),
        "model": _Rule(dict, keys=_model_keys()),
        "flow": _Rule(dict, keys=frozenset(f.name for f in fields(FlowSettings))),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """A training run. Fields are flags with ``_`` for ``-``; those of AdamW's decays, model and flow are none."""

    shards: tuple[str, ...] = ("shards",)
    """Shard folders: paths or URLs."""
    shard_weights: tuple[float, ...] = ()
    """Share of each folder; none: all alike."""
    cache_dir: Path = Path("~/.cache/omniges")
    """Folder that keeps shards of URLs."""
    cache_gb: float = 100.0
    """Its largest size in gigabytes."""
    output_dir: Path = Path("run")
    """Folder of the run."""
    preset: str | None = None
    """Size of the model: tiny if none is given, or that of the pretrained weights."""
    pretrained_model_name_or_path: Path | None = None
    """Folder of weights to begin with."""
    pretrained_weights: str | None = None
    """Which of its weights: the last ones or their average."""
    audio_codec: str | None = None
    """Codec whose latents stand for the mel; the shards hold them."""
    gesture_codec: str | None = None
    """Codec whose latents stand for the gesture channels; the shards hold them."""
    text_codec: str | None = None
    """Codec whose latents stand for the text slots; the shards hold them, for windows of the same length."""
    window_ticks: int = 64
    """Ticks of 0.1 s in a window."""
    train_batch_size: int = 32
    """Windows per process and micro-step."""
    gradient_accumulation_steps: int = 1
    """Micro-steps per step."""
    num_train_epochs: float | None = None
    """Passes over the windows; 100 where neither steps nor minutes are given."""
    max_train_steps: int | None = None
    """Steps."""
    max_minutes: float | None = None
    """Minutes of training, those before a restart included."""
    learning_rate: float | None = None
    """Peak learning rate; the preset's if none is given."""
    lr_schedule: str = "constant"
    """What follows the warm-up."""
    lr_warmup_steps: int = 100
    """Steps of linear warm-up."""
    weight_decay: float = 0.01
    """Of matrices."""
    adam_beta1: float = 0.9
    """Decay of AdamW's mean of gradients."""
    adam_beta2: float = 0.95
    """Decay of AdamW's mean of squares."""
    max_grad_norm: float = 1.0
    """Norm to which gradients are clipped; 0: not at all."""
    mixed_precision: str = "no"
    """Precision of matrix products."""
    ema_decay: float = 0.999
    """Largest decay of the averaged weights."""
    seed: int = 0
    """Decides initial weights, the order of windows, tasks and noise."""
    checkpointing_steps: int = 500
    """Steps between checkpoints."""
    checkpoints_total_limit: int = 3
    """Checkpoints kept; 0: all."""
    resume: str = "latest"
    """latest, never, or a checkpoint's folder."""
    validation_steps: int | None = None
    """Steps between validations; 0: none; None: `DEFAULT_VALIDATION_STEPS` where the val split has a window."""
    validation_windows: int = 16
    """Held-out windows to validate on."""
    validation_samples: int = 2
    """Of these, windows whose results are kept as files and pictures."""
    validation_sampling_steps: int = 10
    """Steps of sampling in a validation."""
    validation_codec: tuple[str, ...] = ()
    """Codecs that decode what is sampled as latents: NAME=FOLDER."""
    t5_tokenizer: Path | None = None
    """Folder of T5's tokenizer, of a validation codec of text; None: in its folder."""
    best_metric: str = "loss"
    """What the best checkpoint is chosen by."""
    report_to: tuple[str, ...] = ()
    """Trackers beside the log."""
    num_workers: int = 2
    """Processes that read batches."""
    compile: bool = False
    """Compile the trunk's blocks."""
    gradient_checkpointing: bool = False
    """Compute activations twice to save memory."""
    logging_steps: int = 10
    """Steps between lines of the log."""
    divergence_factor: float = 100.0
    """The run stops when the smoothed loss is this many times the lowest it was."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ModelConfig that differ from the preset's."""
    flow: Mapping[str, Any] = field(default_factory=dict)
    """Fields of FlowSettings that differ from the default."""

    def __post_init__(self) -> None:
        """Refuse values out of range, and those that do not go together."""
        for name, rule in _RULES.items():
            object.__setattr__(self, name, _checked(name, rule, getattr(self, name)))
        if not self.shards:
            raise UsageFault("--shards: at least one folder expected, found none")
        if self.shard_weights and len(self.shard_weights) != len(self.shards):
            raise UsageFault(
                f"--shard-weights: one for each of {len(self.shards)} folders expected, found {len(self.shard_weights)}"
            )
        self._settle_the_model()
        if self.num_train_epochs is self.max_train_steps is self.max_minutes is None:
            object.__setattr__(self, "num_train_epochs", 100.0)
        if self.learning_rate is None:
            own = PRETRAINED_LEARNING_RATE if self.preset is None else LEARNING_RATES[self.preset]
            object.__setattr__(self, "learning_rate", own)
        if self.lr_schedule != "constant" and self.max_train_steps is self.num_train_epochs is None:
            raise UsageFault(
                f"--lr-schedule {self.lr_schedule}: a clock must not decide the learning rate: give "
                "--max-train-steps or --num-train-epochs too, or take --lr-schedule constant"
            )
        self._refuse_unread_model_keys()
        check_metric(self.best_metric)
        self._check_validation_codecs()
        if self.preset is not None:
            self.model_config()
        self.flow_settings()

    @property
    def codecs(self) -> dict[str, str]:
        """The codecs that stand for streams, where one was chosen."""
        chosen = {"audio": self.audio_codec, "gesture": self.gesture_codec, "text": self.text_codec}
        return {stream: name for stream, name in chosen.items() if name is not None}

    @property
    def validation_codecs(self) -> dict[str, Path]:
        """Folders of the codecs that validation decodes with, by the codec's name."""
        return {name: Path(folder) for name, _, folder in (text.partition("=") for text in self.validation_codec)}

    def _refuse_unread_model_keys(self) -> None:
        """Refuse what the model would not read, for a stream is latents of a codec or is not."""
        unread = sorted({"text_prediction", "normalise_text"} & self.model.keys()) if self.text_codec is None else []
        if unread:
            raise UsageFault(
                f"recipe key model: {unread[0]} is of text that is latents; give --text-codec, or leave it"
            )
        slots = sorted({"piece_width", "mark_width", "blank_weight"} & self.model.keys())
        if slots and self.text_codec is not None:
            raise UsageFault(
                f"recipe key model: {slots[0]} is of text in slots, and text is latents of {self.text_codec}; leave it"
            )
        for stream, codec in (("gesture", self.gesture_codec), ("audio", self.audio_codec)):
            if codec is not None and f"{stream}_difference_weight" in self.model:
                raise UsageFault(
                    f"recipe key model: {stream}_difference_weight is of frames, and {stream} is latents of {codec}, "
                    "whose loss has no differences; leave it"
                )

    def _check_validation_codecs(self) -> None:
        """Refuse what names no folder, a codec that the run has no latents of, and one that is given twice."""
        seen: set[str] = set()
        for text in self.validation_codec:
            name, _, folder = text.partition("=")
            if not folder:
                raise UsageFault(f"--validation-codec {_shown(text)}: NAME=FOLDER expected")
            if name not in self.codecs.values():
                own = f"latents of {' and '.join(self.codecs.values())}" if self.codecs else "no latents"
                raise UsageFault(f"--validation-codec {_shown(name)}: the run learns from {own}: leave it away")
            if name in seen:
                raise UsageFault(f"--validation-codec {name}: it is given twice: name one folder")
            seen.add(name)
        if self.t5_tokenizer is not None and self.text_codec not in seen:
            raise UsageFault(
                "--t5-tokenizer: it goes with a codec of text, --text-codec NAME and --validation-codec NAME=FOLDER"
            )

    def _settle_the_model(self) -> None:
        """A preset, or pretrained weights in its place."""
        if self.pretrained_model_name_or_path is None:
            object.__setattr__(self, "preset", self.preset or "tiny")
            if self.pretrained_weights is not None:
                raise UsageFault("--pretrained-weights: it goes with --pretrained-model-name-or-path, which is missing")
        elif self.preset is not None:
            raise UsageFault(
                f"--preset {self.preset}: the sizes are those of --pretrained-model-name-or-path; leave one of them "
                "away"
            )

    def model_config(self) -> ModelConfig:
        """The model of a preset; raises UsageFault for sizes that no model has."""
        changed = dict(self.model)
        if "rotary_periods_s" in changed:
            periods = changed["rotary_periods_s"]
            changed["rotary_periods_s"] = None if periods is None else tuple(periods)
        if isinstance(changed.get("context_only"), list):
            changed["context_only"] = tuple(changed["context_only"])
        with _said_of("model"):
            return replace(preset(self.preset or "tiny"), **changed)

    def flow_settings(self) -> FlowSettings:
        """The flow; raises UsageFault for what cannot be drawn."""
        with _said_of("flow"):
            return FlowSettings(**self.flow)

    def as_json(self) -> dict[str, Any]:
        """The settings as a recipe would have them, whole."""
        found = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        shown = {"shards": [parse_location(text).shown for text in self.shards]}  # a URL may hold credentials
        paths = {name: str(value) for name, value in found.items() if isinstance(value, Path)}
        return found | shown | paths


def flag_of(name: str) -> str:
    """What a field is called on the command line, or in a recipe where it is no flag."""
    return f"recipe key {name}" if name in _NO_FLAGS else f"--{name.replace('_', '-')}"


def load_settings(recipe: Path | None, flags: Mapping[str, Any]) -> TrainSettings:
    """Settings of a recipe, overridden by flags; None and an empty list stand for a flag that was not given.

    Raises UsageFault with the recipe's line or the flag's name.
    """
    given = {name: value for name, value in flags.items() if value is not None and value != []}
    chosen = _read_recipe(recipe) if recipe is not None else {}
    return TrainSettings(**(chosen | given))


def differences(saved: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Settings that two runs do not share, by flag name, in words."""
    return [
        f"{flag_of(name)} was {saved[name]}, is {own[name]}"
        for name in _RULES
        if name in saved and name in own and saved[name] != own[name]
    ]


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """The safe loader, but a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
        found: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return found


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise UsageFault(f"--recipe {path}: {error.strerror}: name a YAML file") from error
    except UnicodeDecodeError as error:
        raise UsageFault(f"--recipe {path}: not UTF-8 text: name a YAML file") from error
    except yaml.YAMLError as error:
        raise UsageFault(f"--recipe {path}{_place(error)}: not YAML ({_problem(error)})") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise UsageFault(f"--recipe {path}: lines of the form 'key: value' expected, found {document!r:.60}")
    found = {str(name).replace("-", "_"): value for name, value in document.items()}
    _known(f"--recipe {path}", found, _RULES)
    return found


def _place(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"


def _problem(error: yaml.YAMLError) -> str:
    return getattr(error, "problem", None) or " ".join(str(error).split())


def _known(where: str, found: Iterable[str], known: Iterable[str]) -> None:
    """Refuse keys that mean nothing, with the name that was perhaps meant."""
    names = sorted(known)
    for name in found:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1)
            guess = f"; did you mean {near[0]}?" if near else f"; expected some of {', '.join(names)}"
            raise UsageFault(f"{where}: unknown key {name}{guess}")


def _checked(name: str, rule: _Rule, value: Any) -> Any:
    """A value in its field's type; raises UsageFault by flag name."""
    flag = flag_of(name)
    if value is None and rule.optional:
        return None
    if rule.many:
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        return tuple(_one(flag, rule, each) for each in values)
    return _one(flag, rule, value)


def _one(flag: str, rule: _Rule, value: Any) -> Any:
    if rule.kind is dict:
        if not isinstance(value, Mapping):
            raise UsageFault(f"{flag}: lines of the form 'key: value' expected, found {value!r}")
        _known(flag, value, rule.keys)
        return dict(value)
    converted = _converted(flag, rule.kind, value)
    if rule.choices and converted not in rule.choices:
        raise UsageFault(f"{flag} {_shown(value)}: one of {', '.join(rule.choices)} expected")
    if rule.kind in {int, float}:
        _in_range(flag, rule, converted)
    return converted


def _converted(flag: str, kind: type, value: Any) -> Any:
    """YAML reads ``no`` as false and ``1e-3`` as text: both are taken for what was meant."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a name", Path: "a path"}
    if kind is bool and isinstance(value, bool):
        return value
    if kind is str and value is False:
        return "no"
    if not isinstance(value, bool):
        try:
            if kind is int and isinstance(value, (int, str)):
                return int(value)
            if kind is float and isinstance(value, (int, float, str)):
                return float(value)
        except ValueError:
            pass
        if kind in {str, Path} and isinstance(value, (str, Path)) and str(value):
            return kind(value)
    raise UsageFault(f"{flag} {_shown(value)}: {names[kind]} expected")


def _shown(value: Any) -> str:
    """A value in one line, as it was written where it can be."""
    text = str(value)
    return text if text.isprintable() else repr(value)


def _in_range(flag: str, rule: _Rule, value: float) -> None:
    limits = (
        (rule.least, "at least", lambda limit: value >= limit),
        (rule.above, "above", lambda limit: value > limit),
        (rule.most, "at most", lambda limit: value <= limit),
        (rule.below, "below", lambda limit: value < limit),
    )
    wanted = [f"{words} {limit:g}" for limit, words, _ in limits if limit is not None]
    good = value == value and abs(value) != float("inf")  # noqa: PLR0124 - NaN is not itself
    if not good or not all(fits(limit) for limit, _, fits in limits if limit is not None):  # type: ignore[no-untyped-call]
        raise UsageFault(f"{flag} {value}: a number {' and '.join(wanted)} expected")


class _said_of:  # noqa: N801 - used as a statement
    """Turn what is wrong with a section into one line that names it."""

    def __init__(self, section: str) -> None:
        self._section = section

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OmnigesError):
            raise UsageFault(f"{flag_of(self._section)}: {error}") from error
        if isinstance(error, (TypeError, ValueError, AttributeError)):
            raise UsageFault(f"{flag_of(self._section)}: a value is of the wrong type ({error})") from error
