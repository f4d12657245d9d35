"""Commands on models: train, convert, generate, evaluate, and how fast loading and training are here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from omniges.benchmark.settings import SpeedSettings, StepSpeedSettings
from omniges.commands.common import echo, needs, resumable, tidy, with_flags
from omniges.data.settings import TraceSettings
from omniges.errors import UsageFault
from omniges.evaluation.settings import EvaluateSettings
from omniges.generation.settings import GenerateSettings
from omniges.progress import printable
from omniges.trainer.config import TrainSettings

AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]


@with_flags("train", resumable)
def train(
    flags: Annotated[Mapping[str, Any], TrainSettings],
    recipe: Annotated[
        Path | None, typer.Option(help="Packaged recipe or YAML file of these settings; flags override it.")
    ] = None,
) -> None:
    """Train the joint model on shards; the same command goes on where it was stopped.

    Exit codes: 0 done, 1 bad data or a NaN or infinite loss, 2 usage, 3 environment, 75 stopped by a signal with
    a checkpoint, 130 Ctrl-C.
    """
    # Read when torch is loaded. Threads that spin while they wait starve the processes that read batches, and each
    # other where cores are shared: steps took several times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from omniges.trainer.recipe import load_settings
    from omniges.trainer.train import train as run

    summary = run(load_settings(recipe, flags))
    if summary.speaks:
        echo("\n".join(map(printable, summary.lines)))
    raise typer.Exit(int(summary.outcome.exit_code))


def convert_omniflow(
    folder: Annotated[Path, typer.Argument(help="OmniFlow folder.", metavar="DIR")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New or empty folder for the converted model.")],
    weights: Annotated[Literal["last", "ema"], typer.Option(help="The last weights, or the EMA weights.")] = "last",
) -> None:
    """Write an OmniFlow checkpoint in this project's own form, with the fate of every tensor."""
    with needs("train"):
        from omniges.pretrained.convert import convert
    echo("\n".join(map(printable, convert(folder, out, weights).lines)))


@with_flags()
def trace_batches(settings: TraceSettings) -> None:
    """List which windows a step of a training run sees, one JSON line each."""
    import json

    from omniges.data.trace import trace

    for record in trace(settings):
        echo(json.dumps(record, ensure_ascii=False))


@with_flags("train", tidy)
def generate(settings: GenerateSettings) -> None:
    """Make gesture, audio or text from your own files with a trained model.

    Exit codes: 0 done, 1 bad input or checkpoint, 2 usage, 3 environment, 130 Ctrl-C, 143 SIGTERM.
    """
    from omniges.generation.run import generate as run
    from omniges.progress import counter

    with counter("s generated") as count:
        summary = run(settings, count)
    echo("\n".join(map(printable, summary.lines)))


@with_flags("train", tidy)
def evaluate(
    settings: EvaluateSettings,
    format: Annotated[  # noqa: A002 - the flag's name
        Literal["table", "json", "csv", "markdown"], typer.Option(help="Form of the report.")
    ] = "table",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File for the report.", show_default="standard output")
    ] = None,
) -> None:
    """Score generated files, or a checkpoint, against the recordings in shards.

    Exit codes: 0 done, 1 bad files, 2 usage, 3 environment, 130 Ctrl-C, 143 SIGTERM.
    """
    from omniges.evaluation.report import render
    from omniges.evaluation.run import evaluate as run
    from omniges.progress import counter
    from omniges.storage.atomic import publish_bytes

    if out is not None and not out.parent.is_dir():
        raise UsageFault(f"-o {out}: the folder {out.parent} expected, found none: create it first")
    text = render(run(settings, counter), format)
    if out is None:
        echo(text)
    else:
        publish_bytes(out, text.encode())


@with_flags()
def benchmark_loader(settings: SpeedSettings, as_json: AsJson = False) -> None:
    """Measure how fast batches come, beside how fast memory copies as many bytes."""
    import json

    from omniges.benchmark.loader import measure, report

    document = measure(settings)
    echo(json.dumps(document) if as_json else report(document))


@with_flags("train")
def benchmark_train(settings: StepSpeedSettings, as_json: AsJson = False) -> None:
    """Measure training steps on real batches, beside the machine's plain matrix products."""
    import json

    from omniges.benchmark.train_step import measure, report

    rows = measure(settings)
    echo(json.dumps(rows) if as_json else report(rows))
