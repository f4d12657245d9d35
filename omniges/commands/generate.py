"""``omniges generate``."""

from __future__ import annotations

import typer

from omniges.commands.common import tidy
from omniges.commands.flags import with_flags
from omniges.generation.settings import GenerateSettings


@with_flags("train", tidy)
def generate(settings: GenerateSettings) -> None:
    """Make gesture, audio or text from your own files with a trained model.

    Exit codes: 0 done, 1 bad input or checkpoint, 2 usage, 3 environment, 130 Ctrl-C, 143 SIGTERM.
    """
    from omniges.generation.run import generate as run
    from omniges.progress import counter

    with counter("s generated") as count:
        summary = run(settings, count)
    typer.echo("\n".join(summary.lines))
