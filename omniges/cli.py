"""The command line: parse, build a typed config, make one call, exit with the right code. No logic lives here."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from omniges import __version__
from omniges.errors import ExitCode, OmnigesError, UsageFault

if TYPE_CHECKING:
    from rich.console import Console

    from omniges.pipeline.settings import PreprocessSettings

__all__ = ["app", "main"]

app = typer.Typer(
    name="omniges",
    help="BEAT2 recordings to verified WebDataset shards, and back.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class _Signalled(BaseException):
    """A signal arrived that ends the command; no library on the way catches this."""

    def __init__(self, code: ExitCode) -> None:
        super().__init__(code)
        self.code = code


def _raise_on(number: signal.Signals, code: ExitCode) -> None:
    def leave(_number: int, _frame: object) -> None:
        raise _Signalled(code)

    signal.signal(number, leave)


@contextmanager
def _resumable() -> Iterator[None]:
    """Let SIGTERM and SIGUSR1 end a command that the same words take up again (exit 75)."""
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    for number in previous:
        _raise_on(number, ExitCode.STOPPED)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _bytes(text: str) -> int:
    """A size such as ``256MB``, ``1.5GiB`` or ``1000000``."""
    units = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?)?b?", text.strip().lower())
    if match is None:
        raise typer.BadParameter(f"a size such as 256MB or 1GiB expected, found {text!r}")
    return int(float(match[1]) * units[match[2] or ""])


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _listed(values: list[str]) -> tuple[str, ...]:
    """Values given as repeated flags, as comma-separated lists, or both."""
    return tuple(name for value in values for name in _names(value))


def _console() -> Console:
    from rich.console import Console

    # A file or pipe gets whole lines: cut or folded rows are of no use to grep.
    return Console() if sys.stdout.isatty() else Console(width=240)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"omniges {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """BEAT2 recordings to verified WebDataset shards, and back."""


@app.command()
def preprocess(
    root: Annotated[Path, typer.Option(help="Folder of the data set.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the shards.")] = Path("shards"),
    workers: Annotated[int, typer.Option(help="Worker processes; 0 takes all cores.")] = 0,
    shard_size: Annotated[str, typer.Option(help="Target size of a shard, such as 256MB or 1GiB.")] = "256MiB",
    keep_audio: Annotated[bool, typer.Option(help="Keep the 16 kHz waveform in the shards, bit-exactly.")] = False,
    loudness: Annotated[
        Literal["none", "peak"], typer.Option(help="Level before the mel; peak: largest sample 0.5.")
    ] = "none",
    split_csv: Annotated[Path | None, typer.Option(help="Split list (id,type) that overrides the data set's.")] = None,
    speakers: Annotated[list[str], typer.Option(help="Only these speakers (ids or names).")] = [],
    languages: Annotated[list[str], typer.Option(help="Only these languages.")] = [],
    include: Annotated[list[str], typer.Option(help="Only stems that match these shell patterns.")] = [],
    splits: Annotated[list[str], typer.Option(help="Only these splits.")] = [],
    wav_dir: Annotated[str | None, typer.Option(help="Name of the WAV folder.")] = None,
    gesture_dir: Annotated[str | None, typer.Option(help="Name of the NPZ folder.")] = None,
    text_dir: Annotated[str | None, typer.Option(help="Name of the TextGrid folder.")] = None,
    word_tier: Annotated[str | None, typer.Option(help="Name of the word tier in the TextGrids.")] = None,
    max_length_mismatch: Annotated[
        float, typer.Option(help="Seconds audio and motion may differ before a recording is rejected.")
    ] = 5.0,
    max_rejected: Annotated[
        float, typer.Option(help="Share of rejected recordings above which the exit code is 1.")
    ] = 0.05,
    allow_root: Annotated[list[Path], typer.Option(help="Another folder that links under the root may lead to.")] = [],
    deadline: Annotated[float, typer.Option(help="Seconds a worker may spend on one recording.")] = 120.0,
    force: Annotated[bool, typer.Option(help="Start anew in a folder made with other settings.")] = False,
    allow_removal: Annotated[
        bool, typer.Option("--allow-removal", help="Let an update drop more than 10 % of the samples there are.")
    ] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Show what would be done and how long it takes.")] = False,
    run_log: Annotated[Path | None, typer.Option(help="Log of times and retries; OUT.run.jsonl if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines on standard output, for machines.")] = False,
) -> None:
    """Convert BEAT2 recordings to tar shards.

    Exit codes: 0 done, 1 too many rejected or a recording lost, 2 usage, 3 environment, 75 stopped by a signal,
    130 Ctrl-C.
    """
    from omniges.pipeline.discover import Selection
    from omniges.pipeline.outcome import ConvertSettings
    from omniges.pipeline.settings import PreprocessSettings

    settings = PreprocessSettings(
        root=root,
        out=out,
        selection=Selection(
            wav_dir=wav_dir,
            gesture_dir=gesture_dir,
            text_dir=text_dir,
            speakers=_listed(speakers),
            languages=_listed(languages),
            include=_listed(include),
            splits=_splits(splits),
        ),
        convert=ConvertSettings(
            loudness=loudness,
            keep_audio=keep_audio,
            max_length_mismatch_s=max_length_mismatch,
            word_tier=word_tier,
        ),
        shard_bytes=_bytes(shard_size),
        split_csv=split_csv,
        allow_roots=tuple(allow_root),
        workers=workers or len(os.sched_getaffinity(0)),
        deadline_s=deadline,
        max_rejected=max_rejected,
        force=force,
        allow_removal=allow_removal,
        run_log=run_log,
    )
    _carry_out(settings, plan=plan, as_json=as_json)


def _carry_out(settings: PreprocessSettings, *, plan: bool, as_json: bool) -> None:
    """Plan or run a preprocessing and say what came of it; leaves with its exit code."""
    from omniges.pipeline.progress import counter, make_reporter
    from omniges.pipeline.run import preprocess as run
    from omniges.pipeline.summary import plan_json, print_plan, print_summary, summary_json

    if plan:
        from omniges.pipeline.plan import make_plan

        made = make_plan(settings)
        if as_json:
            typer.echo(plan_json(made))
        else:
            print_plan(made, settings.workers, _console())
        return
    with _resumable(), counter("MB compared with what earlier runs read and wrote") as count:
        summary = run(settings, make_reporter("json" if as_json else "auto"), count)
    if as_json:
        typer.echo(summary_json(summary))
    else:
        print_summary(summary, _console())
    raise typer.Exit(int(summary.exit_code))


def _splits(values: list[str]) -> Any:
    from omniges.shards.schema import SPLITS

    names = _listed(values)
    unknown = [name for name in names if name not in SPLITS]
    if unknown:
        raise UsageFault(f"--splits {unknown[0]}: one of {', '.join(SPLITS)} expected")
    return names


@app.command()
def export(
    out: Annotated[Path, typer.Option("--out", "-o", help="New or empty folder for the files.", show_default=False)],
    shards: Annotated[Path, typer.Option(help="Folder of shards.")] = Path("shards"),
    keys: Annotated[list[str], typer.Option("--key", help="Only these samples.")] = [],
) -> None:
    """Write shards back as BEAT2 files: NPZ, TextGrid, and WAV where the audio was kept."""
    from omniges.pipeline.export import export as run
    from omniges.pipeline.progress import counter

    with counter("samples") as count:
        summary = run(shards, out, _listed(keys), count)
    audio = f"{summary.with_audio} with audio" if summary.with_audio else "no audio in these shards"
    typer.echo(f"{summary.samples} samples written to {summary.folder} ({audio}); splits in {summary.split_list}")


@app.command()
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
            print_folder(source, _console())
        return
    sample = source.sample(source.row(key))
    if as_json:
        typer.echo(json.dumps(sample_facts(sample), ensure_ascii=False))
    else:
        print_sample(sample, _console())
    if png:
        draw(sample, png, start_s)
        typer.echo(f"picture: {png}", err=as_json)


@app.command("sample-corpus")
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
    from omniges.pipeline.progress import counter
    from omniges.pipeline.sample_corpus import CorpusSettings, write_sample_corpus

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


@app.command("verify-shards")
def verify_shards(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of shards.")] = Path("shards"),
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
    from omniges.pipeline.progress import counter
    from omniges.shards.verify import VerifySettings, render, verify, write_report

    settings = VerifySettings(
        folder=folder,
        level=level,
        splits=_listed(split),
        shards=_listed(shard),
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
    if quarantine:
        _move_aside(folder, result.damaged)
    raise typer.Exit(int(result.exit_code))


def _move_aside(folder: Path, damaged: tuple[str, ...]) -> None:
    """Move damaged files aside and say what to do next."""
    from omniges.shards.quarantine import quarantine

    moved = quarantine(folder, damaged)
    for name, target in moved.items():
        typer.echo(f"moved aside: {name} to {target}", err=True)
    left = sorted(set(damaged) - moved.keys())
    if left:
        typer.echo(f"left where they are: {', '.join(left)}", err=True)
    if moved:
        typer.echo("run omniges preprocess again: it makes what was moved anew and takes the rest over", err=True)


def main() -> None:
    """Entry point: the only place where exceptions become exit codes."""
    _raise_on(signal.SIGINT, ExitCode.INTERRUPTED)
    try:
        app()
    except OmnigesError as error:
        typer.echo(f"omniges: {error}", err=True)
        code = error.exit_code
    except OSError as error:  # standard output, or a path no module of ours stands for
        typer.echo(f"omniges: {error.strerror or error}{f': {error.filename}' if error.filename else ''}", err=True)
        code = ExitCode.ENVIRONMENT
    except _Signalled as signalled:
        how = "interrupted" if signalled.code is ExitCode.INTERRUPTED else "stopped"
        typer.echo(f"omniges: {how}; nothing half-written was published", err=True)
        code = signalled.code
    sys.exit(int(code))


if __name__ == "__main__":
    main()
