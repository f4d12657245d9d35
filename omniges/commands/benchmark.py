"""``omniges benchmark …``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from omniges.commands.common import names_of
from omniges.errors import UsageFault

__all__ = ["benchmark_loader"]


def benchmark_loader(
    shards: Annotated[Path, typer.Option(help="Folder of shards.")] = Path("shards"),
    split: Annotated[Literal["train", "val", "test", "additional"], typer.Option(help="Split.")] = "train",
    window_ticks: Annotated[int, typer.Option(help="Length of a window in ticks of 0.1 s.")] = 64,
    batch_size: Annotated[int, typer.Option(help="Windows per batch.")] = 64,
    workers: Annotated[str, typer.Option(help="Numbers of worker processes to try.")] = "0,1,2",
    seconds: Annotated[float, typer.Option(help="Length of each reading.")] = 5.0,
    repeats: Annotated[int, typer.Option(help="Readings of each.")] = 3,
    warm: Annotated[bool, typer.Option("--warm", help="Leave the page cache as it is: no cold readings.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Measure how fast batches come, beside how fast memory copies as many bytes."""
    import json

    from omniges.trainer.catalog import Filters
    from omniges.trainer.speed import SpeedSettings, measure, report

    counts = names_of(workers)
    if not counts or not all(count.isdecimal() for count in counts):
        raise UsageFault(f"--workers {workers}: numbers separated by commas expected")
    settings = SpeedSettings(
        shards=shards,
        filters=Filters(split=split),
        window_ticks=window_ticks,
        batch_size=batch_size,
        workers=tuple(map(int, counts)),
        seconds=seconds,
        repeats=repeats,
        cold=not warm,
    )
    document = measure(settings)
    typer.echo(json.dumps(document) if as_json else report(document))
