"""``omniges evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from omniges.commands.common import tidy
from omniges.commands.flags import with_flags
from omniges.errors import UsageFault
from omniges.evaluation.settings import EvaluateSettings


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
        typer.echo(text, nl=False)
    else:
        publish_bytes(out, text.encode())
