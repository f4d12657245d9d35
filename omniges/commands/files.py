"""``omniges export``, ``inspect`` and ``sample-corpus``: what is in shards, and files on either side of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from omniges.commands.common import listed, make_console
from omniges.errors import UsageFault

__all__ = ["export", "inspect", "sample_corpus"]


def export(
    out: Annotated[Path, typer.Option("--out", "-o", help="New or empty folder for the files.", show_default=False)],
    shards: Annotated[Path, typer.Option(help="Folder of shards.")] = Path("shards"),
    keys: Annotated[list[str], typer.Option("--key", help="Only these samples.")] = [],
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
    png: Annotated[Path | None, typer.Option(help="Draw the sample to this PNG file.")] = None,
    start_s: Annotated[float, typer.Option("--start", help="Second at which the picture begins.")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Show what a shard folder, or one of its samples, holds."""
    import json

    from omniges.pipeline.inspect import (
        draw,
        folder_facts,
        print_folder,
        print_sample,
        sample_facts,
    )
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


def sample_corpus(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New or empty folder.", show_default=False)],
    clips: Annotated[int, typer.Option(help="Recordings.")] = 12,
    seconds: Annotated[float, typer.Option(help="Length of each.")] = 12.0,
    words: Annotated[int, typer.Option(help="Size of the vocabulary.")] = 12,
    speakers: Annotated[int, typer.Option(help="Speakers.")] = 2,
    seed: Annotated[int, typer.Option(help="Seed; the same seed gives the same bytes.")] = 0,
    layout: Annotated[Literal["official", "seed"], typer.Option(help="official or seed.")] = "official",
    audio: Annotated[Literal["pcm16", "float32"], typer.Option(help="WAV encoding: pcm16 or float32.")] = "pcm16",
) -> None:
    """Write a small synthetic corpus in BEAT2 layout, for trying and testing."""
    from omniges.progress import counter
    from omniges.testing.synthetic_corpus import CorpusSettings, write_sample_corpus

    settings = CorpusSettings(
        clips=clips,
        seconds=seconds,
        words=words,
        speakers=speakers,
        seed=seed,
        layout=layout,
        audio=audio,
    )
    with counter("recordings") as count:
        summary = write_sample_corpus(folder, settings, count)
    typer.echo(
        f"{summary.clips} synthetic recordings ({summary.seconds:.0f} s, {summary.speakers} speakers, "
        f"{summary.words} words) in {summary.root}"
    )
