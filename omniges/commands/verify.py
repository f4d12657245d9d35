"""``omniges verify-shards``."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import typer

from omniges.commands.flags import with_flags
from omniges.errors import UsageFault
from omniges.verify.settings import VerifySettings


@with_flags()
def verify_shards(
    settings: VerifySettings,
    format: Annotated[  # noqa: A002 - the flag's name
        Literal["text", "json", "junit", "github"], typer.Option(help="Form of the findings.")
    ] = "text",
    quarantine: Annotated[
        bool,
        typer.Option(
            "--quarantine", help="Move damaged files to DIR.quarantine; the next preprocess makes them again."
        ),
    ] = False,
) -> None:
    """Prove shards sound, or say to the byte what is wrong with them.

    Exit codes: 0 sound, 1 an error was found, 2 usage or no such folder, 3 environment, 130 Ctrl-C.
    """
    from omniges.progress import counter
    from omniges.storage.atomic import publish_bytes
    from omniges.verify.report import quarantine as move_aside
    from omniges.verify.report import render
    from omniges.verify.run import verify

    folder = settings.location.path
    if quarantine and folder is None:
        raise UsageFault(f"--quarantine: files are moved in a local folder only, not at {settings.location}")
    with counter("MB checked") as count:
        result = verify(replace(settings, isolate=True), count)
    text = render(result, format)
    if settings.report:
        publish_bytes(settings.report, text.encode())
    else:
        typer.echo(text, nl=False)
    if quarantine and folder is not None:
        moved = move_aside(folder, result.damaged)
        for name, target in moved.items():
            typer.echo(f"moved aside: {name} to {target}", err=True)
        left = sorted(set(result.damaged) - moved.keys())
        if left:
            typer.echo(f"left where they are: {', '.join(left)}", err=True)
        if moved:
            typer.echo("run omniges preprocess again: it makes what was moved anew and takes the rest over", err=True)
    raise typer.Exit(int(result.exit_code))
