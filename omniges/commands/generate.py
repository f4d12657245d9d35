"""``omniges generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from omniges.commands.common import T5Tokenizer, listed, needs, tidy
from omniges.errors import UsageFault

__all__ = ["generate"]

Codecs = Annotated[list[str], typer.Option(help="Codec of a model trained on latents, and its folder: NAME=FOLDER.")]
OverlapTicks = Annotated[int | None, typer.Option(help="Ticks that windows share; a quarter of one if not given.")]
Continuous = Annotated[
    bool, typer.Option("--continuous", help="Do not snap latents to codes before decoding (gesture-rvqvae).")
]


def generate(
    checkpoint: Annotated[Path, typer.Option(help="Folder of a run or of a checkpoint.", show_default=False)],
    task: Annotated[str, typer.Option(help="Such as a2g, t2a, at2g, or unconditional.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.", show_default=False)],
    audio: Annotated[list[Path], typer.Option(help="Audio file given; may be repeated.")] = [],
    text: Annotated[list[str], typer.Option(help="TextGrid or plain text given; -: standard input.")] = [],
    gesture: Annotated[list[Path], typer.Option(help="SMPL-X NPZ given; may be repeated.")] = [],
    shards: Annotated[
        Path | None, typer.Option(help="Folder of shards, for --key, --split and the speaking rate.")
    ] = None,
    key: Annotated[list[str], typer.Option(help="Samples of the shards as inputs.")] = [],
    split: Annotated[str | None, typer.Option(help="All samples of a split as inputs.")] = None,
    codec: Codecs = [],
    t5_tokenizer: T5Tokenizer = None,
    continuous: Continuous = False,
    seconds: Annotated[float | None, typer.Option(help="At most so long; the length without inputs.")] = None,
    speaker: Annotated[str | None, typer.Option(help="Whose manner; unknown if not given.")] = None,
    body: Annotated[Path | None, typer.Option(help="NPZ whose betas and start position are taken.")] = None,
    start: Annotated[str | None, typer.Option(help="Start position x,z in metres.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of sampling.")] = 20,
    guidance: Annotated[float, typer.Option(help="Weight of the inputs; 1: plain.")] = 1.0,
    solver: Annotated[Literal["euler", "heun", "dpm++"], typer.Option(help="How a step is taken.")] = "euler",
    shift: Annotated[float, typer.Option(help="Above 1: more of the steps at high noise.")] = 3.0,
    last_level: Annotated[float, typer.Option(help="Noise level below which no step begins.")] = 0.3,
    overlap_ticks: OverlapTicks = None,
    seed: Annotated[int, typer.Option(help="Seed; the same seed gives the same bytes.")] = 0,
    num_samples: Annotated[int, typer.Option(help="Results for each input.")] = 1,
    weights: Annotated[Literal["ema", "last"], typer.Option(help="Averaged weights, or the last ones.")] = "ema",
    vocoder: Annotated[Path | None, typer.Option(help="Folder of a HiFi-GAN; Griffin-Lim if not given.")] = None,
    png: Annotated[bool, typer.Option("--png", help="A picture beside each result.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results of the same names.")] = False,
) -> None:
    """Make gesture, audio or text from your own files with a trained model.

    Exit codes: 0 done, 1 bad input or checkpoint, 2 usage, 3 environment, 130 Ctrl-C, 143 SIGTERM.
    """
    from omniges.progress import counter

    with needs("train"):
        from omniges.codecs.registry import named_folder
        from omniges.generation.inputs import Sources
        from omniges.generation.run import GenerateSettings
        from omniges.generation.run import generate as run
        from omniges.model.sampling import SamplingSettings

    sources = Sources(
        audio=tuple(audio),
        text=tuple(text),
        gesture=tuple(gesture),
        shards=shards,
        keys=listed(key),
        split=split,
        seconds=seconds,
    )
    settings = GenerateSettings(
        checkpoint=checkpoint,
        task=task,
        out=out,
        sources=sources,
        codecs=tuple(named_folder("--codec", text) for text in codec),
        t5_tokenizer=t5_tokenizer,
        continuous=continuous,
        sampling=SamplingSettings(steps=steps, guidance=guidance, shift=shift, last_level=last_level, solver=solver),
        overlap_ticks=overlap_ticks,
        seed=seed,
        num_samples=num_samples,
        speaker=speaker,
        body=body,
        start_xz=None if start is None else _start(start),
        weights=weights,
        vocoder=vocoder,
        pictures=png,
        overwrite=overwrite,
    )
    with tidy(), counter("s generated") as count:
        summary = run(settings, count)
    typer.echo("\n".join(summary.lines))


def _start(text: str) -> tuple[float, float]:
    try:
        x, z = map(float, text.split(","))
    except ValueError:
        raise UsageFault(f"--start {text}: two numbers in metres such as 0.5,-1 expected") from None
    return x, z
