"""``omniges export``, ``inspect`` and ``sample-corpus``: what is in shards, and files on either side of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from omniges.commands.common import listed, make_console
from omniges.commands.flags import with_flags
from omniges.errors import UsageFault
from omniges.testing.settings import CorpusSettings


def export(
    out: Annotated[Path, typer.Option("--out", "-o", help="New or empty folder for the files.", show_default=False)],
    shards: Annotated[Path, typer.Option(help="Folder of shards.")] = Path("shards"),
    keys: Annotated[
        list[str], typer.Option("--key", metavar="LIST", help="Only these samples, by key or stem.", show_default="all")
    ] = [],
) -> None:
    """Write shards back as BEAT2 files: NPZ, TextGrid, and WAV where the audio was kept."""
    from omniges.pipeline.export import export as run
    from omniges.progress import counter

    with counter("samples") as count:
        summary = run(shards, out, listed(keys), count)
    audio = f"{summary.with_audio} with audio" if summary.with_audio else "no audio in these shards"
    typer.echo(f"{summary.samples} samples written to {summary.folder} ({audio}); splits in {summary.split_list}")


def inspect(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of shards.")] = Path("shards"),
    key: Annotated[str | None, typer.Argument(metavar="KEY", help="One sample.", show_default=False)] = None,
    png: Annotated[
        Path | None, typer.Option(help="Draw the sample to this PNG file; needs a KEY and the extra pictures.")
    ] = None,
    start_s: Annotated[
        float, typer.Option("--start", help="Second of the sample at which the picture begins; it shows 12 seconds.")
    ] = 0.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="The same facts as one JSON object on standard output.")
    ] = False,
) -> None:
    """Show what a shard folder, or one of its samples, holds."""
    import json

    from omniges.pipeline.inspect import draw, folder_facts, print_folder, print_sample, sample_facts
    from omniges.shards.reader import ShardFolder

    source = ShardFolder(folder)
    if key is None:
        if png:
            raise UsageFault("--png draws one sample: name its KEY after the folder")
        if as_json:
            typer.echo(json.dumps(folder_facts(source), ensure_ascii=False))
        else:
            print_folder(source, make_console())
        return
    sample = source.sample(source.row(key))
    if as_json:
        typer.echo(json.dumps(sample_facts(sample), ensure_ascii=False))
    else:
        print_sample(sample, make_console())
    if png:
        draw(sample, png, start_s)
        typer.echo(f"picture: {png}", err=as_json)


@with_flags()
def sample_corpus(
    settings: CorpusSettings,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New or empty folder.", show_default=False)],
) -> None:
    """Write a small synthetic corpus in BEAT2 layout, for trying and testing."""
    from omniges.progress import counter
    from omniges.testing.synthetic_corpus import write_sample_corpus

    with counter("recordings") as count:
        summary = write_sample_corpus(folder, settings, count)
    typer.echo(
        f"{summary.clips} synthetic recordings ({summary.seconds:.0f} s, {summary.speakers} speakers, "
        f"{summary.words} words) in {summary.root}"
    )
