"""Settings of a training run: types, defaults, ranges and help texts.

The module imports quickly, so that `omniges --help` is fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

from omniges.codecs.settings import t5_tokenizer_option
from omniges.errors import UsageFault
from omniges.features.channels import WITH_JAW_EYES, GestureChannels
from omniges.options import Setting, check, declared, option, present_names, refuse_unknown, settings_of, shown
from omniges.storage.documents import Document

if TYPE_CHECKING:
    from omniges.model.draws import FlowSettings
    from omniges.model.spec import ModelConfig


Preset = Literal["tiny", "small", "base", "omniflow"]
Precision = Literal["no", "bf16", "fp16"]
Schedule = Literal["constant", "cosine", "linear"]
Sharding = Literal["none", "full"]

LEARNING_RATES: Final[Mapping[str, float]] = MappingProxyType(
    {"tiny": 2e-3, "small": 5e-4, "base": 2e-4, "omniflow": 1e-4}
)
"""Default peak learning rate of each preset."""

DEFAULT_VALIDATION_STEPS: Final = 500
_CORRECT: Final = "correct the recipe"
PRETRAINED_LEARNING_RATE: Final = 1e-4
"""Default peak learning rate of a run that starts from pretrained weights."""


def _condition_names() -> tuple[str, ...]:
    """Return the names of condition streams, for the shell completion of flags."""
    from omniges.conditions.registry import CONDITIONS

    return CONDITIONS.names()


@declared
@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """Settings of a training run.

    Each field is a key of recipes. Most fields are also flags of `omniges train`: ``batch_size`` is ``--batch-size``.
    """

    shards: tuple[str, ...] = option(
        ("shards",),
        "Folder of shards, or its URL (s3, gs, hf, http); may be repeated.",
        metavar="DIR-OR-URL",
        panel="Data",
    )
    shard_weights: tuple[float, ...] = option(
        (), "Sampling weight of each folder of shards.", above=0, commas=True, shown="equal"
    )
    window_ticks: int = option(64, "Length of a window in ticks of 0.1 s.", minimum=1)
    num_workers: int = option(
        2,
        "Processes that read batches; 0: the training process reads them.",
        minimum=0,
        was=("dataloader_num_workers", "workers"),
    )
    cache_dir: Path = option(Path("~/.cache/omniges"), "Folder that keeps shards of URLs.")
    cache_gb: float = option(100.0, "Largest size of the cache in GB.", above=0)
    preset: Preset | None = option(None, "Size of the model.", shown="tiny", panel="Model")
    pretrained_model_name_or_path: Path | None = option(
        None,
        "Weights to initialize from, in place of --preset: a folder of OmniFlow, a converted one, a run or a "
        "checkpoint.",
    )
    pretrained_weights: Literal["last", "ema"] | None = option(
        None,
        "Pretrained weights to use: those of the last step or the EMA weights.",
        shown="last for OmniFlow, ema for a run",
    )
    condition_streams: tuple[str, ...] = option(
        (), "Condition streams to train with, such as emotion.", commas=True, values=_condition_names
    )
    audio_codec: str | None = option(None, "Codec whose latents replace the mel.", shown="mel")
    gesture_codec: str | None = option(None, "Codec whose latents replace the gesture channels.", shown="channels")
    gesture_channels: GestureChannels | None = option(
        None,
        "Channels of the gesture stream: 415, or 424 with jaw and eyes.",
        shown="424; 415 with a gesture codec; or those of the pretrained weights",
    )
    text_codec: str | None = option(None, "Codec whose latents replace text tokens.", shown="text tokens")
    batch_size: int = option(
        32, "Windows per process and micro-step.", minimum=1, was=("train_batch_size",), panel="Optimization"
    )
    gradient_accumulation_steps: int = option(1, "Micro-steps per training step.", minimum=1)
    num_train_epochs: float | None = option(
        None, "Passes over the windows; may be a fraction.", above=0, shown="100 if no other length is given"
    )
    max_train_steps: int | None = option(None, "Training steps.", minimum=1, was=("steps",))
    max_minutes: float | None = option(None, "Training time in minutes, added up over all restarts.", above=0)
    learning_rate: float | None = option(None, "Peak learning rate.", above=0, shown="the preset's")
    lr_scheduler: Schedule = option("constant", "Learning-rate schedule after warm-up.", was=("lr_schedule",))
    lr_warmup_steps: int = option(100, "Steps of linear warm-up of the learning rate.", minimum=0)
    weight_decay: float = option(0.01, "Weight decay of linear weights.", minimum=0)
    adam_beta1: float = option(0.9, "Decay of AdamW's mean of gradients.", minimum=0, below=1, only_recipe=True)
    adam_beta2: float = option(
        0.95, "Decay of AdamW's mean of squared gradients.", minimum=0, below=1, only_recipe=True
    )
    max_grad_norm: float = option(
        1.0, "Largest gradient norm, above which gradients are clipped; 0: no clipping.", minimum=0
    )
    ema_decay: float = option(0.999, "Upper bound of the EMA decay.", minimum=0, below=1)
    seed: int = option(
        0, "Random seed of initial weights, window order, tasks and noise.", minimum=0, maximum=2**63 - 1
    )
    divergence_factor: float = option(
        100.0, "Abort when the smoothed loss exceeds this multiple of its minimum.", above=1
    )
    mixed_precision: Precision = option(
        "no", "Precision of matrix products; fp16 needs a GPU.", panel="Speed and memory"
    )
    compile: bool | None = option(
        None, "Compile the pass through the model as one graph.", "--compile/--no-compile", shown="on for a GPU"
    )
    gradient_checkpointing: bool = option(
        False,
        "Save memory: compute activations again in the backward pass.",
        "--gradient-checkpointing/--no-gradient-checkpointing",
    )
    sharding: Sharding = option(
        "none",
        "none: each process holds the complete model; full: each process holds a part of the weights, gradients, "
        "moments and EMA weights.",
    )
    rank_timeout_s: float = option(1800.0, "Seconds to wait for another process, after which the run ends.", minimum=1)
    output_dir: Path = option(
        Path("run"), "Folder of the run.", "--output-dir", "-o", was=("out",), panel="Checkpoints and logs"
    )
    checkpointing_steps: int = option(500, "Training steps between checkpoints; the last step is saved too.", minimum=1)
    checkpoints_total_limit: int = option(3, "Number of newest checkpoints to keep; 0: all.", minimum=0)
    resume_from_checkpoint: str = option(
        "latest",
        "Checkpoint to resume from: latest, never or a folder.",
        was=("resume",),
        values=lambda: ("latest", "never"),
    )
    logging_steps: int = option(10, "Training steps between lines of the log.", minimum=1)
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = option(
        (), "Trackers that get the numbers of the log too: tensorboard, wandb.", commas=True
    )
    validation_steps: int | None = option(
        None,
        "Training steps between validations; 0: no validation.",
        minimum=0,
        shown="500 where there is a val split",
        panel="Validation",
    )
    validation_windows: int = option(16, "Number of windows of the val split in each validation.", minimum=1)
    validation_samples: int = option(2, "Validation windows whose generated files and pictures are kept.", minimum=0)
    validation_sampling_steps: int = option(10, "Sampling steps of generation in a validation.", minimum=1)
    validation_codec: tuple[str, ...] = option(
        (),
        "Codec of the run, and its folder; validations decode generated latents with it; may be repeated.",
        metavar="NAME=FOLDER",
    )
    t5_tokenizer: Path | None = t5_tokenizer_option("a text codec in --validation-codec")
    best_metric: str = option(
        "loss", "Metric that decides which checkpoint is RUN/best: loss, TASK/loss or TASK/METRIC."
    )
    model: Mapping[str, Any] = option({}, "Fields of ModelConfig that differ from the preset's.", only_recipe=True)
    flow: Mapping[str, Any] = option({}, "Fields of FlowSettings that differ from the default.", only_recipe=True)

    def __post_init__(self) -> None:
        """Set defaults that depend on other settings; raise UsageFault for invalid values and combinations."""
        from omniges.model.draws import FlowSettings
        from omniges.model.spec import ModelConfig
        from omniges.trainer.validation.best import check_metric

        check(self)
        elsewhere = {"audio_grid", "gesture_channels"}  # the pretrained weights or another setting determine these
        known = {each.name for each in fields(ModelConfig)} - elsewhere
        refuse_unknown("recipe key model", "key", self.model, known)
        refuse_unknown("recipe key flow", "key", self.flow, {each.name for each in fields(FlowSettings)})
        if not self.shards:
            raise UsageFault("--shards: expected at least one folder, found none; give a folder of shards")
        if self.shard_weights and len(self.shard_weights) != len(self.shards):
            raise UsageFault(
                f"--shard-weights: expected a weight for each of {len(self.shards)} folders, found "
                f"{len(self.shard_weights)}; give as many weights as folders"
            )
        if self.pretrained_model_name_or_path is None:
            object.__setattr__(self, "preset", self.preset or "tiny")
            if self.pretrained_weights is not None:
                raise UsageFault(
                    "--pretrained-weights: expected with --pretrained-model-name-or-path, found none; add that "
                    "flag, or remove --pretrained-weights"
                )
        elif self.preset is not None:
            raise UsageFault(
                f"--preset {self.preset}: expected no preset with --pretrained-model-name-or-path, whose weights "
                "determine the sizes, found both; remove one of the two flags"
            )
        if self.num_train_epochs is self.max_train_steps is self.max_minutes is None:
            object.__setattr__(self, "num_train_epochs", 100.0)
        if self.learning_rate is None:
            own = PRETRAINED_LEARNING_RATE if self.preset is None else LEARNING_RATES[self.preset]
            object.__setattr__(self, "learning_rate", own)
        if self.lr_scheduler != "constant" and self.max_train_steps is self.num_train_epochs is None:
            raise UsageFault(
                f"--lr-scheduler {self.lr_scheduler}: expected a number of steps for the schedule, found none; "
                "give --max-train-steps or --num-train-epochs too, or use --lr-scheduler constant"
            )
        if self.gesture_codec is not None and self.gesture_channels == WITH_JAW_EYES:
            raise UsageFault(
                f"--gesture-channels {self.gesture_channels}: expected 415 with --gesture-codec "
                f"{self.gesture_codec}, whose latents have no jaw and eyes; remove one of the two flags"
            )
        if self.gesture_channels is None and self.preset is not None:
            object.__setattr__(self, "gesture_channels", 415 if self.gesture_codec is not None else WITH_JAW_EYES)
        self._refuse_unread_model_keys()
        self._check_sharding()
        check_metric(self.best_metric)
        self._check_validation_codecs()
        if self.preset is not None:
            self.model_config()
        self.flow_settings()

    @property
    def codecs(self) -> dict[str, str]:
        """Names of the chosen codecs by stream."""
        chosen = {"audio": self.audio_codec, "gesture": self.gesture_codec, "text": self.text_codec}
        return {stream: name for stream, name in chosen.items() if name is not None}

    @property
    def validation_codecs(self) -> dict[str, Path]:
        """Folders of the codecs that decode latents during validation, by codec name."""
        return {name: Path(folder) for name, _, folder in (text.partition("=") for text in self.validation_codec)}

    def _refuse_unread_model_keys(self) -> None:
        """Raise UsageFault for model settings that have no effect with the chosen codecs.

        Some settings apply only to a stream that is stored as latents. Others apply only to a stream without a codec.
        """
        unread = sorted({"text_prediction", "normalise_text"} & self.model.keys()) if self.text_codec is None else []
        if unread:
            raise UsageFault(
                f"recipe key model.{unread[0]}: expected text as latents, found text tokens; give --text-codec, or "
                f"remove {unread[0]}"
            )
        token_keys = sorted({"piece_width", "mark_width", "blank_weight"} & self.model.keys())
        if token_keys and self.text_codec is not None:
            raise UsageFault(
                f"recipe key model.{token_keys[0]}: expected text as text tokens, found latents of {self.text_codec}; "
                f"remove {token_keys[0]}, or --text-codec"
            )
        of_frames = {"gesture": ("difference_weight", "tokens", "feet_weight"), "audio": ("difference_weight",)}
        for stream, codec in (("gesture", self.gesture_codec), ("audio", self.audio_codec)):
            keys = [key for end in of_frames[stream] if (key := f"{stream}_{end}") in self.model]
            if codec is not None and keys:
                raise UsageFault(
                    f"recipe key model.{keys[0]}: expected {stream} as frames, found latents of {codec}; remove "
                    f"{keys[0]}, or --{stream}-codec"
                )

    def _check_sharding(self) -> None:
        """Raise UsageFault if sharding is combined with `compile` or fp16, because a sharded model supports neither."""
        if self.sharding == "none":
            return
        if self.compile:
            raise UsageFault(
                f"--sharding {self.sharding}: expected a model that is not compiled, found --compile; remove --compile"
            )
        if self.mixed_precision == "fp16":
            raise UsageFault(f"--sharding {self.sharding}: expected --mixed-precision no or bf16, found fp16; use bf16")

    def _check_validation_codecs(self) -> None:
        """Raise UsageFault for an invalid ``--validation-codec`` or ``--t5-tokenizer``.

        A value of ``--validation-codec`` is CODEC=FOLDER, with a codec of this run. A codec may occur only once.
        ``--t5-tokenizer`` needs a ``--validation-codec`` for the text codec.
        """
        seen: set[str] = set()
        for text in self.validation_codec:
            name, _, folder = text.partition("=")
            if not folder:
                raise UsageFault(
                    f"--validation-codec {shown(text)}: expected NAME=FOLDER, found another form; give NAME=FOLDER"
                )
            if name not in self.codecs.values():
                own = ", ".join(self.codecs.values()) or "none"
                raise UsageFault(
                    f"--validation-codec {shown(name)}: expected a codec of the run ({own}), found another codec; "
                    f"remove {shown(name)}"
                )
            if name in seen:
                raise UsageFault(
                    f"--validation-codec {name}: expected each codec once, found it twice; give one folder"
                )
            seen.add(name)
        if self.t5_tokenizer is not None and self.text_codec not in seen:
            raise UsageFault(
                "--t5-tokenizer: expected a --validation-codec for the text codec of the run, found none; add "
                "--text-codec NAME and --validation-codec NAME=FOLDER, or remove the flag"
            )

    @property
    def model_changes(self) -> dict[str, Any]:
        """New values of `ModelConfig` fields, by field name; they replace the values of the preset."""
        own: dict[str, Any] = {} if self.gesture_channels is None else {"gesture_channels": self.gesture_channels}
        if self.gesture_codec is not None:
            own["gesture_tokens"] = "frames"
        return dict(self.model) | own

    def model_config(self) -> ModelConfig:
        """Return the preset's model configuration with the changes of this run; raise UsageFault for invalid values."""
        from omniges.model.spec import PRESETS, ModelConfig

        preset = PRESETS[self.preset or "tiny"].as_json()
        return Document(preset | self.model_changes, "recipe key model", _CORRECT, kind=UsageFault).read(ModelConfig)

    def flow_settings(self) -> FlowSettings:
        """Return the distributions of tasks and noise levels; raise UsageFault for invalid values."""
        from omniges.model.draws import FlowSettings

        return Document(dict(self.flow), "recipe key flow", _CORRECT, kind=UsageFault).read(FlowSettings)

    def as_json(self) -> dict[str, Any]:
        """Return all settings by name, as JSON values. URLs are without credentials."""
        from omniges.storage.remote import parse_location

        found = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        shown = {"shards": [parse_location(text).shown for text in self.shards]}  # a URL may hold credentials
        paths = {name: str(value) for name, value in found.items() if isinstance(value, Path)}
        return found | shown | paths


def differences(saved: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Describe the settings that differ between a checkpoint and the run that resumes from it.

    Args:
        saved: Settings of the checkpoint.
        own: Settings of this run.

    Returns:
        One text for each setting that differs, such as ``--seed was 0, is 1``.
    """
    saved = present_names(TrainSettings, saved)
    return [
        f"{setting.flag} was {saved[name]}, is {own[name]}"
        for name, setting in settings_of(TrainSettings).items()
        if isinstance(setting, Setting) and name in saved and name in own and saved[name] != own[name]
    ]
