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
from omniges.errors import EnvironmentFault, ExitCode, OmnigesError, UsageFault

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
benchmark = typer.Typer(help="Measure omniges on this machine.", no_args_is_help=True)
app.add_typer(benchmark, name="benchmark")


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
    from omniges.pipeline.progress import counter
    from omniges.shards.locations import parse_location
    from omniges.shards.verify import VerifySettings, render, verify, write_report

    location = parse_location(folder)
    if quarantine and location.path is None:
        raise UsageFault(f"--quarantine: files are moved in a local folder only, not at {location}")
    settings = VerifySettings(
        folder=location,
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
    if quarantine and location.path is not None:
        _move_aside(location.path, result.damaged)
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


@app.command()
def train(
    recipe: Annotated[Path | None, typer.Option(help="YAML file of settings; flags override it.")] = None,
    shards: Annotated[list[str], typer.Option(help="Folders of shards, or URLs of some.", show_default="shards")] = [],
    shard_weights: Annotated[list[str], typer.Option(help="Share of each folder.")] = [],
    cache_dir: Annotated[
        Path | None, typer.Option(help="Folder that keeps shards of URLs.", show_default="~/.cache/omniges")
    ] = None,
    cache_gb: Annotated[float | None, typer.Option(help="Its largest size in GB.", show_default="100")] = None,
    output_dir: Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="run")] = None,
    preset: Annotated[str | None, typer.Option(help="tiny, small, base or omniflow.", show_default="tiny")] = None,
    window_ticks: Annotated[int | None, typer.Option(help="Ticks of 0.1 s in a window.", show_default="64")] = None,
    train_batch_size: Annotated[
        int | None, typer.Option(help="Windows per process and micro-step.", show_default="32")
    ] = None,
    gradient_accumulation_steps: Annotated[
        int | None, typer.Option(help="Micro-steps per step.", show_default="1")
    ] = None,
    num_train_epochs: Annotated[
        float | None, typer.Option(help="Passes over the windows; 100 if no length is given.")
    ] = None,
    max_train_steps: Annotated[int | None, typer.Option(help="Steps.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Minutes, those before a restart included.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak; the preset's if not given.")] = None,
    lr_schedule: Annotated[
        str | None, typer.Option(help="constant, cosine or linear.", show_default="constant")
    ] = None,
    lr_warmup_steps: Annotated[int | None, typer.Option(help="Steps of warm-up.", show_default="100")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of matrices.", show_default="0.01")] = None,
    max_grad_norm: Annotated[
        float | None, typer.Option(help="Norm to clip gradients to; 0: not.", show_default="1.0")
    ] = None,
    mixed_precision: Annotated[str | None, typer.Option(help="no, bf16 or fp16.", show_default="no")] = None,
    ema_decay: Annotated[float | None, typer.Option(help="Of the average.", show_default="0.999")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides all that is random.", show_default="0")] = None,
    checkpointing_steps: Annotated[
        int | None, typer.Option(help="Steps between checkpoints.", show_default="500")
    ] = None,
    checkpoints_total_limit: Annotated[
        int | None, typer.Option(help="Checkpoints kept; 0: all.", show_default="3")
    ] = None,
    resume: Annotated[
        str | None, typer.Option(help="latest, never or a checkpoint's folder.", show_default="latest")
    ] = None,
    report_to: Annotated[list[str], typer.Option(help="Also: tensorboard, wandb.")] = [],
    num_workers: Annotated[int | None, typer.Option(help="Processes that read.", show_default="2")] = None,
    compile: Annotated[  # noqa: A002 - the flag's name
        bool | None, typer.Option("--compile/--no-compile", help="Compile the model.")
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None,
        typer.Option("--gradient-checkpointing/--no-gradient-checkpointing", help="Less memory, more time."),
    ] = None,
    logging_steps: Annotated[int | None, typer.Option(help="Steps per line of the log.", show_default="10")] = None,
    divergence_factor: Annotated[
        float | None, typer.Option(help="Times its lowest at which the loss is refused.", show_default="100")
    ] = None,
) -> None:
    """Train the joint model on shards; the same command goes on where it was stopped.

    Exit codes: 0 done, 1 bad data or a loss that is no number, 2 usage, 3 environment, 75 stopped by a signal with
    a checkpoint, 130 Ctrl-C.
    """
    flags = {name: value for name, value in locals().items() if name != "recipe"}
    flags |= {name: list(_listed(flags[name])) for name in ("shard_weights", "report_to")}
    # Read when torch is loaded. Threads that spin while they wait starve the processes that read batches, and each
    # other where cores are shared: steps took several times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with _resumable():
        with _needs("train"):
            from omniges.trainer.recipe import load_settings
            from omniges.trainer.train import train as run
        summary = run(load_settings(recipe, flags))
    if summary.speaks:
        typer.echo("\n".join(summary.lines))
    raise typer.Exit(int(summary.outcome.exit_code))


@contextmanager
def _needs(extra: str) -> Iterator[None]:
    """Imports that need packages which a plain installation has not."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "omniges").split(".")[0] == "omniges":
            raise
        raise EnvironmentFault(
            f"the package {error.name} is not installed, which this command needs: pip install 'omniges[{extra}]'"
        ) from error


@app.command("trace-batches")
def trace_batches(
    shards: Annotated[Path, typer.Option(help="Folder of shards.")] = Path("shards"),
    world_size: Annotated[int, typer.Option(help="Ranks of the run.")] = 1,
    rank: Annotated[int, typer.Option(help="The rank whose windows are listed.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Windows per rank and step.")] = 64,
    window_ticks: Annotated[int, typer.Option(help="Length of a window in ticks of 0.1 s.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of the run.")] = 0,
    from_step: Annotated[int, typer.Option(help="First step, from 0.")] = 0,
    steps: Annotated[int, typer.Option(help="Steps to list.")] = 1,
    split: Annotated[Literal["train", "val", "test", "additional"], typer.Option(help="Split.")] = "train",
    decode: Annotated[bool, typer.Option("--decode", help="Read the windows, add their sha256.")] = False,
) -> None:
    """List which windows a step of a training run sees, one JSON line each."""
    import json

    from omniges.trainer.catalog import Filters
    from omniges.trainer.order import RankShare
    from omniges.trainer.setup import Sequencing
    from omniges.trainer.trace import TraceSettings, trace

    settings = TraceSettings(
        shards=shards,
        filters=Filters(split=split),
        sequencing=Sequencing(window_ticks=window_ticks, seed=seed),
        share=RankShare(rank=rank, world_size=world_size, batch_size=batch_size),
        from_step=from_step,
        steps=steps,
        decode=decode,
    )
    for record in trace(settings):
        typer.echo(json.dumps(record, ensure_ascii=False))


@benchmark.command("loader")
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

    from omniges.trainer.catalog import Filters
    from omniges.trainer.speed import SpeedSettings, measure, report

    counts = _names(workers)
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
