"""``omniges train`` and ``trace-batches``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from omniges.commands.common import T5Tokenizer, listed, needs, resumable

__all__ = ["convert_omniflow", "trace_batches", "train"]

TrainEpochs = Annotated[float | None, typer.Option(help="Passes over the windows; 100 if no length is given.")]
Accumulation = Annotated[int | None, typer.Option(help="Micro-steps per step.", show_default="1")]
GradNorm = Annotated[float | None, typer.Option(help="Norm to clip gradients to; 0: not.", show_default="1.0")]
Schedule = Annotated[str | None, typer.Option(help="constant, cosine or linear.", show_default="constant")]
ValidationSteps = Annotated[
    int | None, typer.Option(help="Steps between validations; 0: none.", show_default="500 where there is a val split")
]
ValidationWindows = Annotated[int | None, typer.Option(help="Held-out windows to validate on.", show_default="16")]
ValidationSamples = Annotated[int | None, typer.Option(help="Of these, kept as files and pictures.", show_default="2")]
ValidationSampling = Annotated[int | None, typer.Option(help="Steps of sampling when validating.", show_default="10")]
ValidationCodec = Annotated[list[str], typer.Option(help="Codec that decodes what is sampled: NAME=FOLDER.")]
AudioCodec = Annotated[str | None, typer.Option(help="Whose latents stand for the mel.", show_default="mel")]
GestureCodec = Annotated[
    str | None, typer.Option(help="Whose latents stand for the gesture channels.", show_default="channels")
]
TextCodec = Annotated[str | None, typer.Option(help="Whose latents stand for the text slots.", show_default="slots")]


def train(
    recipe: Annotated[Path | None, typer.Option(help="YAML file of settings; flags override it.")] = None,
    shards: Annotated[list[str], typer.Option(help="Folders of shards, or URLs of some.", show_default="shards")] = [],
    shard_weights: Annotated[list[str], typer.Option(help="Share of each folder.")] = [],
    cache_dir: Annotated[
        Path | None, typer.Option(help="Folder that keeps shards of URLs.", show_default="~/.cache/omniges")
    ] = None,
    cache_gb: Annotated[float | None, typer.Option(help="Its largest size in GB.", show_default="100")] = None,
    output_dir: Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="run")] = None,
    preset: Annotated[str | None, typer.Option(help="tiny, small, base or omniflow.", show_default="tiny")] = None,
    pretrained_model_name_or_path: Annotated[Path | None, typer.Option(help="Folder of weights to begin with.")] = None,
    pretrained_weights: Annotated[str | None, typer.Option(help="Which of its weights: last or ema.")] = None,
    audio_codec: AudioCodec = None,
    gesture_codec: GestureCodec = None,
    text_codec: TextCodec = None,
    window_ticks: Annotated[int | None, typer.Option(help="Ticks of 0.1 s in a window.", show_default="64")] = None,
    train_batch_size: Annotated[
        int | None, typer.Option(help="Windows per process and micro-step.", show_default="32")
    ] = None,
    gradient_accumulation_steps: Accumulation = None,
    num_train_epochs: TrainEpochs = None,
    max_train_steps: Annotated[int | None, typer.Option(help="Steps.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Minutes, those before a restart included.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak; the preset's if not given.")] = None,
    lr_schedule: Schedule = None,
    lr_warmup_steps: Annotated[int | None, typer.Option(help="Steps of warm-up.", show_default="100")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of matrices.", show_default="0.01")] = None,
    max_grad_norm: GradNorm = None,
    mixed_precision: Annotated[str | None, typer.Option(help="no, bf16 or fp16.", show_default="no")] = None,
    ema_decay: Annotated[float | None, typer.Option(help="Of the average.", show_default="0.999")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides all that is random.", show_default="0")] = None,
    checkpointing_steps: Annotated[
        int | None, typer.Option(help="Steps between checkpoints.", show_default="500")
    ] = None,
    checkpoints_total_limit: Annotated[
        int | None, typer.Option(help="Checkpoints kept; 0: all.", show_default="3")
    ] = None,
    resume: Annotated[
        str | None, typer.Option(help="latest, never or a checkpoint's folder.", show_default="latest")
    ] = None,
    validation_steps: ValidationSteps = None,
    validation_windows: ValidationWindows = None,
    validation_samples: ValidationSamples = None,
    validation_sampling_steps: ValidationSampling = None,
    validation_codec: ValidationCodec = [],
    t5_tokenizer: T5Tokenizer = None,
    best_metric: Annotated[str | None, typer.Option(help="What RUN/best is chosen by.", show_default="loss")] = None,
    report_to: Annotated[list[str], typer.Option(help="Also: tensorboard, wandb.")] = [],
    num_workers: Annotated[int | None, typer.Option(help="Processes that read.", show_default="2")] = None,
    compile: Annotated[  # noqa: A002 - the flag's name
        bool | None, typer.Option("--compile/--no-compile", help="Compile the model.")
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None,
        typer.Option("--gradient-checkpointing/--no-gradient-checkpointing", help="Less memory, more time."),
    ] = None,
    logging_steps: Annotated[int | None, typer.Option(help="Steps per line of the log.", show_default="10")] = None,
    divergence_factor: Annotated[
        float | None, typer.Option(help="Times its lowest at which the loss is refused.", show_default="100")
    ] = None,
) -> None:
    """Train the joint model on shards; the same command goes on where it was stopped.

    Exit codes: 0 done, 1 bad data or a loss that is no number, 2 usage, 3 environment, 75 stopped by a signal with
    a checkpoint, 130 Ctrl-C.
    """
    flags = {name: value for name, value in locals().items() if name != "recipe"}
    flags |= {name: list(listed(flags[name])) for name in ("shard_weights", "report_to")}
    # Read when torch is loaded. Threads that spin while they wait starve the processes that read batches, and each
    # other where cores are shared: steps took several times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with resumable():
        with needs("train"):
            from omniges.trainer.config import load_settings
            from omniges.trainer.train import train as run
        summary = run(load_settings(recipe, flags))
    if summary.speaks:
        typer.echo("\n".join(summary.lines))
    raise typer.Exit(int(summary.outcome.exit_code))


def convert_omniflow(
    folder: Annotated[Path, typer.Argument(help="OmniFlow folder.", metavar="DIR")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the converted model.")],
    weights: Annotated[Literal["last", "ema"], typer.Option(help="The last weights, or their average.")] = "last",
) -> None:
    """Write an OmniFlow checkpoint in this project's own form, with the fate of every tensor."""
    with needs("train"):
        from omniges.pretrained.omniflow.convert import convert
    typer.echo("\n".join(convert(folder, out, weights).lines))


def trace_batches(
    shards: Annotated[Path, typer.Option(help="Folder of shards.")] = Path("shards"),
    world_size: Annotated[int, typer.Option(help="Ranks of the run.")] = 1,
    rank: Annotated[int, typer.Option(help="The rank whose windows are listed.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Windows per rank and step.")] = 64,
    window_ticks: Annotated[int, typer.Option(help="Length of a window in ticks of 0.1 s.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of the run.")] = 0,
    from_step: Annotated[int, typer.Option(help="First step, from 0.")] = 0,
    steps: Annotated[int, typer.Option(help="Steps to list.")] = 1,
    split: Annotated[Literal["train", "val", "test", "additional"], typer.Option(help="Split.")] = "train",
    audio_codec: AudioCodec = None,
    gesture_codec: GestureCodec = None,
    text_codec: TextCodec = None,
    tick_multiple: Annotated[
        int, typer.Option(help="Ticks that windows begin at multiples of, beside what the codecs ask.")
    ] = 1,
    decode: Annotated[bool, typer.Option("--decode", help="Read the windows, add their sha256.")] = False,
) -> None:
    """List which windows a step of a training run sees, one JSON line each."""
    import json

    from omniges.data.catalog import Filters
    from omniges.data.order import RankShare
    from omniges.data.trace import TraceSettings, trace
    from omniges.data.worker_setup import Sequencing

    chosen = {"audio": audio_codec, "gesture": gesture_codec, "text": text_codec}
    settings = TraceSettings(
        shards=shards,
        filters=Filters(split=split),
        sequencing=Sequencing(window_ticks=window_ticks, seed=seed, tick_multiple=tick_multiple),
        share=RankShare(rank=rank, world_size=world_size, batch_size=batch_size),
        from_step=from_step,
        steps=steps,
        decode=decode,
        codecs={name: codec for name, codec in chosen.items() if codec is not None},
    )
    for record in trace(settings):
        typer.echo(json.dumps(record, ensure_ascii=False))
