"""``omniges train``, ``trace-batches`` and ``convert-omniflow``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from omniges.commands.common import needs, resumable
from omniges.commands.flags import with_flags
from omniges.data.settings import TraceSettings
from omniges.trainer.config import TrainSettings


@with_flags("train", resumable)
def train(
    flags: Annotated[Mapping[str, Any], TrainSettings],
    recipe: Annotated[Path | None, typer.Option(help="YAML file of these settings; flags override it.")] = None,
) -> None:
    """Train the joint model on shards; the same command goes on where it was stopped.

    Exit codes: 0 done, 1 bad data or a loss that is no number, 2 usage, 3 environment, 75 stopped by a signal with
    a checkpoint, 130 Ctrl-C.
    """
    # Read when torch is loaded. Threads that spin while they wait starve the processes that read batches, and each
    # other where cores are shared: steps took several times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from omniges.trainer.recipe import load_settings
    from omniges.trainer.train import train as run

    summary = run(load_settings(recipe, flags))
    if summary.speaks:
        typer.echo("\n".join(summary.lines))
    raise typer.Exit(int(summary.outcome.exit_code))


def convert_omniflow(
    folder: Annotated[Path, typer.Argument(help="OmniFlow folder.", metavar="DIR")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New or empty folder for the converted model.")],
    weights: Annotated[Literal["last", "ema"], typer.Option(help="The last weights, or the EMA weights.")] = "last",
) -> None:
    """Write an OmniFlow checkpoint in this project's own form, with the fate of every tensor."""
    with needs("train"):
        from omniges.pretrained.convert import convert
    typer.echo("\n".join(convert(folder, out, weights).lines))


@with_flags()
def trace_batches(settings: TraceSettings) -> None:
    """List which windows a step of a training run sees, one JSON line each."""
    import json

    from omniges.data.trace import trace

    for record in trace(settings):
        typer.echo(json.dumps(record, ensure_ascii=False))
