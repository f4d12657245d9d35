"""``omniges encode``."""

from __future__ import annotations

import typer

from omniges.codecs.settings import EncodeSettings
from omniges.commands.common import resumable
from omniges.commands.flags import with_flags


@with_flags("train", resumable)
def encode(settings: EncodeSettings) -> None:
    """Add a pretrained codec's latents to shards, so that training never runs the codec.

    Exit codes: 0 done, 1 bad shards or codec, 2 usage, 3 environment, 75 stopped by a signal (the same command goes
    on), 130 Ctrl-C.
    """
    from omniges.codecs.encode import encode as run
    from omniges.progress import counter

    with counter("s encoded") as count:
        summary = run(settings, count)
    typer.echo("\n".join(summary.lines))
