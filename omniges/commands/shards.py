"""Commands for recordings and shards: convert, verify, encode, show, export, and write a sample corpus."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import typer

from omniges import arguments
from omniges.codecs.settings import EncodeSettings
from omniges.commands.common import echo, exit_on_sigterm, make_console, resumable, with_flags
from omniges.errors import UsageFault
from omniges.exchange.settings import ExportSettings, InspectSettings, RenderSettings, ViewSettings
from omniges.options import check, declared, option
from omniges.pipeline.settings import PreprocessSettings
from omniges.progress import counted, printable
from omniges.testing.settings import CorpusSettings
from omniges.verify.settings import VerifySettings


@with_flags()
def preprocess(
    settings: PreprocessSettings,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Write nothing: show what would be done, with estimates of size and time.",
            rich_help_panel="Execution",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.", rich_help_panel="Execution")] = False,
) -> None:
    """Convert BEAT2 recordings to tar shards.

    Exit codes: 0 done, 1 too many rejected or a recording lost, 2 usage, 3 environment, 75 stopped by a signal,
    130 Ctrl-C.
    """
    from omniges.pipeline.plan import plan_json, print_plan
    from omniges.pipeline.run import preprocess as run
    from omniges.pipeline.summary import print_summary, summary_json
    from omniges.progress import counter, make_reporter

    if plan:
        from omniges.pipeline.plan import make_plan

        planned = make_plan(settings)
        if as_json:
            echo(plan_json(planned))
        else:
            print_plan(planned, settings.local_workers, make_console())
        return
    with resumable(), counter("MB compared with what earlier runs read and wrote") as count:
        summary = run(settings, make_reporter("json" if as_json else "auto"), count)
    if as_json:
        echo(summary_json(summary))
    else:
        print_summary(summary, make_console())
    raise typer.Exit(int(summary.exit_code))


@declared
@dataclass(frozen=True, slots=True, kw_only=True)
class FindingsSettings:
    """Settings of `omniges verify-shards` for its output: format of the findings, and whether to move damaged files."""

    format: Literal["text", "json", "junit", "github"] = option("text", "Format of the findings.")
    quarantine: bool = option(False, "Move damaged files to DIR.quarantine; the next preprocess writes them again.")

    def __post_init__(self) -> None:
        """Convert the values to their types; raise UsageFault for a value that is invalid."""
        check(self)


@with_flags()
def verify_shards(settings: VerifySettings, findings: FindingsSettings) -> None:
    """Verify shards, and show every error with its byte position.

    Exit codes: 0 valid, 1 an error was found, 2 usage or missing folder, 3 environment, 130 Ctrl-C.
    """
    from omniges.progress import counter
    from omniges.storage.atomic import publish_bytes
    from omniges.verify.report import quarantine as move_aside
    from omniges.verify.report import render
    from omniges.verify.run import verify

    folder = settings.location.path
    if findings.quarantine and folder is None:
        raise UsageFault(
            f"--quarantine: expected a local folder, in which files can be moved, found {settings.location}; copy "
            "the shards to a local folder first"
        )
    with counter("MB checked") as count:
        result = verify(replace(settings, isolate=True), count)
    text = render(result, findings.format)
    if settings.output_file:
        publish_bytes(settings.output_file, text.encode())
    else:
        echo(text)
    if findings.quarantine and folder is not None:
        moved = move_aside(folder, result.damaged)
        for name, target in moved.items():
            echo(f"moved aside: {name} to {target}", err=True)
        left = sorted(set(result.damaged) - moved.keys())
        if left:
            echo(f"left where they are: {', '.join(left)}", err=True)
        if moved:
            echo("run omniges preprocess again: it makes the moved files again and keeps the others", err=True)
    raise typer.Exit(int(result.exit_code))


@with_flags("train", resumable)
def encode(settings: EncodeSettings) -> None:
    """Add a pretrained codec's latents to shards, so that training never runs the codec.

    Exit codes: 0 done, 1 bad shards or codec, 2 usage, 3 environment, 75 stopped by a signal (the same command
    continues), 130 Ctrl-C.
    """
    from omniges.codecs.encode import encode as run
    from omniges.progress import counter

    with counter("s encoded") as count:
        summary = run(settings, count)
    echo("\n".join(map(printable, summary.lines)))


@with_flags()
def export(settings: ExportSettings) -> None:
    """Write shards, results or motion files in formats of other tools.

    Without PATH and with the format npz, shards are written back as BEAT2 files.
    """
    from omniges.progress import counter

    with counter("samples") as count:
        if settings.format == "npz" and not settings.paths:
            from omniges.pipeline.export import export as run

            summary = run(settings.shards, settings.output_dir, settings.keys, count)
        else:
            from omniges.exchange.export import export_motion

            exported = export_motion(settings, count)
            echo("\n".join(map(printable, exported.lines)))
            return
    audio = f"{summary.with_audio} with audio" if summary.with_audio else "no audio in these shards"
    lacking = {"motion": summary.samples - summary.with_motion, "text": summary.samples - summary.with_text}
    without = "".join(f", {count} without {name}" for name, count in lacking.items() if count)
    echo(
        f"{counted(summary.samples, 'sample')} written to {summary.folder} ({audio}{without}); "
        f"splits in {summary.split_list}"
    )


@with_flags()
def inspect(
    settings: InspectSettings,
    as_json: Annotated[bool, typer.Option("--json", hidden=True, help="The same as --format json.")] = False,
) -> None:
    """Show what is in shards, a run, a checkpoint, results, or a motion, audio or text file.

    Exit codes: 0 done, 1 a damaged file or one that preprocess would reject, 2 usage, 3 environment, 130 Ctrl-C.
    """
    import json

    from omniges.exchange.inspect import inspect as run
    from omniges.storage.atomic import publish_bytes

    as_json = as_json or settings.format == "json"
    found = run(settings.path, settings.key, settings.motion_rate_hz)
    wanted = found.fault is None
    picture = found.picture_of(settings.start_s, settings.seconds) if settings.png is not None and wanted else None
    page = found.page(settings) if settings.html is not None and wanted else None
    if as_json:
        echo(json.dumps(found.facts, ensure_ascii=False))
    else:
        found.show(make_console())
    if found.fault is not None:
        raise found.fault
    if settings.png is not None and picture is not None:
        publish_bytes(settings.png, picture)
        echo(printable(f"picture: {settings.png}"), err=as_json)
    if page is not None:
        from omniges.exchange.view import view

        echo("\n".join(map(printable, view(page).lines)), err=as_json)


@with_flags(signals=exit_on_sigterm)
def view(settings: ViewSettings) -> None:
    """Write one HTML page that shows motion with its sound and words, in any browser and without a network.

    Tracks of the same recording are side by side, whatever path they come from.

    Exit codes: 0 done, 1 a damaged file, 2 usage, 3 environment, 130 Ctrl-C, 143 SIGTERM.
    """
    from omniges.exchange.view import view as run
    from omniges.progress import counter

    with counter("tracks") as count:
        summary = run(settings, count)
    echo("\n".join(map(printable, summary.lines)))


@with_flags("video", exit_on_sigterm)
def render(settings: RenderSettings) -> None:
    """Write a video (MP4: H.264 and AAC) of motion with its words and sound, without a display or a GPU.

    Tracks of the same recording are side by side. A file that exists is replaced when the video is complete.

    Exit codes: 0 done, 1 a damaged file, 2 usage, 3 environment, 130 Ctrl-C, 143 SIGTERM.
    """
    from omniges.exchange.video import render as run
    from omniges.progress import counter

    with counter("s of video") as count:
        summary = run(settings, count)
    echo("\n".join(map(printable, summary.lines)))


@with_flags()
def sample_corpus(
    settings: CorpusSettings,
    folder: Annotated[str, typer.Argument(metavar="DIR", help="New or empty folder.", show_default=False)],
) -> None:
    """Write a small synthetic corpus in BEAT2 layout, for demonstrations and tests."""
    from omniges.progress import counter
    from omniges.testing.synthetic_corpus import write_sample_corpus

    with counter("recordings") as count:
        summary = write_sample_corpus(arguments.path("DIR", folder), settings, count)
    echo(
        f"{summary.clips} synthetic recordings ({summary.seconds:.0f} s, {summary.speakers} speakers, "
        f"{summary.words} words) in {summary.root}"
    )
