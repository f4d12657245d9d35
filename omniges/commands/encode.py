"""``omniges encode``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from omniges.commands.common import T5Tokenizer, needs, resumable

__all__ = ["encode"]


def encode(
    codecs: Annotated[
        list[str],
        typer.Option("--with", help="Codec and its folder: NAME=FOLDER; may be repeated.", show_default=False),
    ],
    shards: Annotated[Path, typer.Option(help="Folder of shards.")] = Path("shards"),
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for shards with latents; the shards themselves if not given."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace latents of the same codecs.")] = False,
    window_ticks: Annotated[
        int | None, typer.Option(help="Ticks of 0.1 s in a window of text.", show_default="64")
    ] = None,
    stride_ticks: Annotated[
        int | None, typer.Option(help="Ticks between beginnings of windows.", show_default="a quarter of a window")
    ] = None,
    t5_tokenizer: T5Tokenizer = None,
    max_lost: Annotated[
        float | None, typer.Option(help="Share of windows that may lose words.", show_default="0.01")
    ] = None,
) -> None:
    """Add a pretrained codec's latents to shards, so that training never runs the codec.

    Exit codes: 0 done, 1 bad shards or codec, 2 usage, 3 environment, 75 stopped by a signal (the same command goes
    on), 130 Ctrl-C.
    """
    from omniges.progress import counter

    with resumable():
        with needs("train"):
            from omniges.codecs.encode import EncodeSettings
            from omniges.codecs.encode import encode as run
            from omniges.codecs.registry import named_folder
        settings = EncodeSettings(
            shards=shards,
            codecs=tuple(named_folder("--with", text) for text in codecs),
            out=out,
            overwrite=overwrite,
            window_ticks=window_ticks,
            stride_ticks=stride_ticks,
            t5_tokenizer=t5_tokenizer,
            max_lost=max_lost,
        )
        with counter("s encoded") as count:
            summary = run(settings, count)
    typer.echo("\n".join(summary.lines))
