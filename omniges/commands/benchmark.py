"""``omniges benchmark …``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from omniges.commands.common import listed, names_of, needs
from omniges.errors import UsageFault

__all__ = ["benchmark_loader", "benchmark_train"]


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

    from omniges.benchmark.loader import SpeedSettings, measure, report
    from omniges.data.catalog import Filters

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


def benchmark_train(
    shards: Annotated[str, typer.Option(help="Folder of shards.")] = "shards",
    preset: Annotated[list[str], typer.Option(help="Sizes of the model.", show_default="tiny")] = [],
    train_batch_size: Annotated[str, typer.Option(help="Windows a step; several to try each.")] = "32",
    window_ticks: Annotated[int, typer.Option(help="Ticks of 0.1 s in a window.")] = 64,
    mixed_precision: Annotated[Literal["no", "bf16", "fp16"], typer.Option(help="no, bf16 or fp16.")] = "no",
    compile: Annotated[bool, typer.Option("--compile", help="Compile the model.")] = False,  # noqa: A002
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time.")
    ] = False,
    num_workers: Annotated[int, typer.Option(help="Processes that read.")] = 2,
    seconds: Annotated[float, typer.Option(help="Length of each measurement.")] = 20.0,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Measure training steps on real batches, beside the machine's plain matrix products."""
    import json

    sizes = names_of(train_batch_size)
    if not sizes or not all(size.isdecimal() for size in sizes):
        raise UsageFault(f"--train-batch-size {train_batch_size}: numbers separated by commas expected")
    with needs("train"):
        from omniges.benchmark.train_step import StepSpeedSettings, measure, report
    settings = StepSpeedSettings(
        shards=shards,
        presets=listed(preset) or ("tiny",),
        batch_sizes=tuple(map(int, sizes)),
        window_ticks=window_ticks,
        mixed_precision=mixed_precision,
        compile=compile,
        gradient_checkpointing=gradient_checkpointing,
        num_workers=num_workers,
        seconds=seconds,
    )
    rows = measure(settings)
    typer.echo(json.dumps(rows) if as_json else report(rows))
