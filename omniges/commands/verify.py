"""``omniges verify-shards``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from omniges.commands.common import listed
from omniges.errors import UsageFault

__all__ = ["verify_shards"]


def verify_shards(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder of shards, or a URL of one.")] = "shards",
    level: Annotated[
        Literal["quick", "full", "deep"], typer.Option(help="Sizes and counts; every checksum; all content.")
    ] = "full",
    format: Annotated[  # noqa: A002 - the flag's name
        Literal["text", "json", "junit", "github"], typer.Option(help="Form of the findings.")
    ] = "text",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File for the findings.")] = None,
    split: Annotated[list[str], typer.Option(help="Only the shards of these splits.")] = [],
    shard: Annotated[list[str], typer.Option(help="Only these shards.")] = [],
    workers: Annotated[int, typer.Option(help="Shards checked at once; 0 takes all cores.")] = 0,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first shard with an error.")] = False,
    max_findings: Annotated[int, typer.Option(help="Findings shown; the rest are counted.")] = 1000,
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="Move damaged files to DIR.quarantine, to be made again.")
    ] = False,
) -> None:
    """Prove shards sound, or say to the byte what is wrong with them.

    Exit codes: 0 sound, 1 an error was found, 2 usage or no such folder, 3 environment, 130 Ctrl-C.
    """
    from omniges.progress import counter
    from omniges.storage.remote import parse_location
    from omniges.verify import VerifySettings, render, verify, write_report

    location = parse_location(folder)
    if quarantine and location.path is None:
        raise UsageFault(f"--quarantine: files are moved in a local folder only, not at {location}")
    settings = VerifySettings(
        folder=location,
        level=level,
        splits=listed(split),
        shards=listed(shard),
        workers=workers or len(os.sched_getaffinity(0)),
        fail_fast=fail_fast,
        max_findings=max_findings,
        isolate=True,
        report=out,
    )
    with counter("MB checked") as count:
        result = verify(settings, count)
    text = render(result, format)
    if out:
        write_report(out, text)
    else:
        typer.echo(text, nl=False)
    if quarantine and location.path is not None:
        _move_aside(location.path, result.damaged)
    raise typer.Exit(int(result.exit_code))


def _move_aside(folder: Path, damaged: tuple[str, ...]) -> None:
    """Move damaged files aside and say what to do next."""
    from omniges.verify.quarantine import quarantine

    moved = quarantine(folder, damaged)
    for name, target in moved.items():
        typer.echo(f"moved aside: {name} to {target}", err=True)
    left = sorted(set(damaged) - moved.keys())
    if left:
        typer.echo(f"left where they are: {', '.join(left)}", err=True)
    if moved:
        typer.echo("run omniges preprocess again: it makes what was moved anew and takes the rest over", err=True)
