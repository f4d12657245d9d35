"""Settings of `omniges evaluate`. The module imports little, so that `omniges --help` is fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from omniges.codecs.settings import codec_option, t5_tokenizer_option
from omniges.errors import UsageFault
from omniges.generation.settings import TASK_NAMES
from omniges.options import Setting, check, declared, motion_rate_option, option, settings_of
from omniges.shards.schema import Split

_OF_GENERATION = ("codecs", "t5_tokenizer", "tasks", "split", "work_dir", "num_inference_steps", "num_samples")


@declared
@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateSettings:
    """Settings of `omniges evaluate`."""

    generated: tuple[Path, ...] = option((), "Folders of generated results.", argument=True, metavar="DIR...")
    shards: Path = option(Path("shards"), "Folder of shards with the recordings.", panel="Ground truth")
    checkpoint: Path | None = option(
        None, "Run or checkpoint that generates the results to score.", panel="Generation with a checkpoint"
    )
    split: Split = option("test", "Split whose samples are the conditions.")
    tasks: tuple[str, ...] = option(
        (), "Tasks to generate.", commas=True, shown="trained tasks with one condition", values=lambda: TASK_NAMES
    )
    num_inference_steps: int | None = option(
        None, "Sampling steps.", minimum=1, was=("steps",), shown="20; 10 if the model's guidance scale is above 1"
    )
    num_samples: int = option(1, "Results to generate for each recording.", minimum=1)
    seed: int = option(
        0, "Random seed of generation, confidence intervals and shuffling.", minimum=0, maximum=2**32 - 1
    )
    codecs: tuple[tuple[str, Path], ...] = codec_option("Codec of the checkpoint, and its folder; may be repeated.")
    t5_tokenizer: Path | None = t5_tokenizer_option()
    work_dir: Path | None = option(
        None,
        "Folder that keeps the generated results, one subfolder for each task.",
        shown="a temporary folder",
        was=("work",),
    )
    motion_rate_hz: float | None = motion_rate_option(panel="Scoring")
    task: str | None = option(
        None, "Task of result files without a record (the .json beside each result).", values=lambda: TASK_NAMES
    )
    protocol: Literal["beat2-speaker2"] | None = option(
        None,
        "Score the clips of a published table with the profile emage-2024, and print the scores as a row of that "
        "table; metrics whose files are missing are left out.",
    )
    grid: Literal["generated", "emage", "gesturelsm"] = option(
        "generated", "With --protocol: score each clip at its generated length, or cut as EMAGE or GestureLSM cut it."
    )
    profile: Literal["corrected", "emage-2024", "emage-eval-2025"] = option(
        "corrected",
        "Definitions of the gesture metrics: corrected, or those of EMAGE's code. The latter need --body-model, "
        "--mean-speeds, and one of --gesture-encoder and --features.",
    )
    body_model: Path | None = option(None, "SMPL-X model file, .npz, for joints and face.", shown="generic skeleton")
    gesture_encoder: Path | None = option(
        None,
        "Encoder file of the Fréchet distance: AESKConv_240_100.bin, .safetensors or TorchScript.",
        shown="built-in",
        was=("encoder",),
    )
    features: tuple[Path, Path] | None = option(
        None,
        "Encoder features of the results and of the recordings, one .npy each, in place of an encoder.",
        shown="computed here",
    )
    trust_encoder_program: bool = option(
        False, "Run a TorchScript encoder, which is a program and can do anything.", was=("trust_program",)
    )
    mean_speeds: Path | None = option(
        None, "Mean joint speeds in m/s, .npy of shape (55,).", shown="those of the train split"
    )
    resamples: int = option(2000, "Bootstrap resamples of recordings for the confidence intervals.", minimum=1)

    def __post_init__(self) -> None:
        """Refuse values out of range, and settings that contradict each other."""
        check(self)
        if self.checkpoint is None:
            for name in _OF_GENERATION:
                setting = settings_of(EvaluateSettings)[name]
                if isinstance(setting, Setting) and getattr(self, name) != setting.default:
                    raise UsageFault(
                        f"{setting.flag}: expected only with --checkpoint, which generates results; "
                        f"remove {setting.flag}"
                    )
        if bool(self.generated) == (self.checkpoint is not None):
            found = "both" if self.generated else "neither"
            raise UsageFault(
                "evaluate: expected folders of generated results, or --checkpoint to generate some, found "
                f"{found}; give one of the two"
            )
        self._check_protocol()
        if self.motion_rate_hz is not None and self.checkpoint is not None:
            raise UsageFault(
                "--motion-rate: expected only without --checkpoint, because generated motion states its rate, found "
                "both; remove --motion-rate"
            )
        if self.trust_encoder_program and self.gesture_encoder is None:
            raise UsageFault(
                "--trust-encoder-program: expected a --gesture-encoder to trust, found none; remove "
                "--trust-encoder-program"
            )
        if self.features is not None and (self.gesture_encoder is not None or self.checkpoint is not None):
            other = "--checkpoint" if self.gesture_encoder is None else "--gesture-encoder"
            raise UsageFault(
                f"--features: expected only without {other}, because the features of results in folders are already "
                "computed, found both; remove one of the two"
            )

    def _check_protocol(self) -> None:
        if self.protocol is None:
            if self.grid != "generated":
                raise UsageFault(
                    f"--grid {self.grid}: expected with --protocol, found no --protocol; add --protocol, or remove "
                    "--grid"
                )
            return
        if self.checkpoint is not None or self.features is not None:
            found, remedy = ("--features", "remove --features and give the folders")
            if self.features is None:
                found, remedy = "--checkpoint", "run omniges generate first and give its folder"
            raise UsageFault(
                f"--protocol {self.protocol}: expected folders of generated results, found {found}; {remedy}"
            )
        if self.profile == "emage-eval-2025":
            raise UsageFault(
                f"--protocol {self.protocol}: expected the profile emage-2024, found --profile {self.profile}; remove "
                "--profile"
            )
