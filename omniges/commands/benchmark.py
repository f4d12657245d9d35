"""``omniges benchmark …``."""

from __future__ import annotations

from typing import Annotated

import typer

from omniges.benchmark.settings import SpeedSettings, StepSpeedSettings
from omniges.commands.flags import with_flags

AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]


@with_flags()
def benchmark_loader(settings: SpeedSettings, as_json: AsJson = False) -> None:
    """Measure how fast batches come, beside how fast memory copies as many bytes."""
    import json

    from omniges.benchmark.loader import measure, report

    document = measure(settings)
    typer.echo(json.dumps(document) if as_json else report(document))


@with_flags("train")
def benchmark_train(settings: StepSpeedSettings, as_json: AsJson = False) -> None:
    """Measure training steps on real batches, beside the machine's plain matrix products."""
    import json

    from omniges.benchmark.train_step import measure, report

    rows = measure(settings)
    typer.echo(json.dumps(rows) if as_json else report(rows))
