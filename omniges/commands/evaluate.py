"""``omniges evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from omniges.commands.common import listed, needs
from omniges.errors import UsageFault

__all__ = ["evaluate"]


def evaluate(
    generated: Annotated[
        list[Path] | None, typer.Argument(metavar="DIR...", help="Folders of generated results.", show_default=False)
    ] = None,
    shards: Annotated[Path, typer.Option(help="Folder of shards with the recordings.")] = Path("shards"),
    checkpoint: Annotated[Path | None, typer.Option(help="Generate first, with this run or checkpoint.")] = None,
    codec: Annotated[list[str], typer.Option(help="Its codec and folder: NAME=FOLDER.")] = [],
    tasks: Annotated[list[str], typer.Option(help="Tasks to generate.", show_default="the six")] = [],
    split: Annotated[str, typer.Option(help="Split to generate for.")] = "test",
    work: Annotated[Path | None, typer.Option(help="Folder for what is generated.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of sampling.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of generation and of intervals.")] = 0,
    task: Annotated[str | None, typer.Option(help="Task of files that have no record.")] = None,
    profile: Annotated[
        Literal["corrected", "emage-2024", "emage-eval-2025"], typer.Option(help="How gesture is scored.")
    ] = "corrected",
    encoder: Annotated[Path | None, typer.Option(help="Encoder for the Fréchet distance.")] = None,
    trust_encoder_program: Annotated[
        bool, typer.Option("--trust-encoder-program", help="Run a TorchScript encoder, which is a program.")
    ] = False,
    mean_speeds: Annotated[Path | None, typer.Option(help="Mean joint speeds, .npy of (55,) m/s.")] = None,
    resamples: Annotated[int, typer.Option(help="Draws of clips for the intervals.")] = 2000,
    format: Annotated[  # noqa: A002 - the flag's name
        Literal["table", "json", "csv", "markdown"], typer.Option(help="Form of the report.")
    ] = "table",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File for the report.")] = None,
) -> None:
    """Score generated files against the recordings in shards.

    Exit codes: 0 done, 1 bad files, 2 usage, 3 environment, 130 Ctrl-C.
    """
    from omniges.pipeline.progress import counter
    from omniges.publish import publish_bytes

    with needs("train"):
        from omniges.trainer.evaluate.report import render
        from omniges.trainer.evaluate.run import EvaluateSettings
        from omniges.trainer.evaluate.run import evaluate as run

    folders = tuple(generated or ())
    if checkpoint is not None:
        folders = (*folders, *_generate(checkpoint, codec, listed(tasks), shards, split, work, steps, seed))
    if not folders:
        raise UsageFault("evaluate: a folder of generated results expected, or --checkpoint to make some")
    settings = EvaluateSettings(
        generated=folders,
        shards=shards,
        task=task,
        profile=profile,
        encoder=encoder,
        trust_program=trust_encoder_program,
        mean_speeds=mean_speeds,
        resamples=resamples,
        seed=seed,
    )
    with counter("tasks scored") as count:
        text = render(run(settings, count), format)
    if out is None:
        typer.echo(text, nl=False)
    else:
        publish_bytes(out, text.encode())


def _generate(
    checkpoint: Path,
    codecs: list[str],
    tasks: tuple[str, ...],
    shards: Path,
    split: str,
    work: Path | None,
    steps: int,
    seed: int,
) -> list[Path]:
    """Generate for a split, a folder a task."""
    from omniges.pipeline.progress import counter
    from omniges.trainer.codecs.codec import named_folder
    from omniges.trainer.generate.run import GenerateSettings, generate, task_named
    from omniges.trainer.generate.sources import Sources
    from omniges.trainer.sampling import SamplingSettings

    if work is None:
        raise UsageFault("--work: a folder expected for what --checkpoint generates")
    folders = []
    for name in tasks or ("t2g", "a2g", "t2a", "g2a", "g2t", "a2t"):
        folder = work / task_named(name)
        settings = GenerateSettings(
            checkpoint=checkpoint,
            task=name,
            out=folder,
            sources=Sources(shards=shards, split=split),
            sampling=SamplingSettings(steps=steps),
            seed=seed,
            codecs=tuple(named_folder("--codec", text) for text in codecs),
        )
        with counter(f"s of {name} generated") as count:
            generate(settings, count)
        folders.append(folder)
    return folders
