"""Commands for models: train, convert, generate, evaluate, and benchmarks of loading and training."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from omniges.benchmark.settings import SpeedSettings, StepSpeedSettings
from omniges.commands.common import echo, exit_on_sigterm, resumable, with_flags
from omniges.data.settings import TraceSettings
from omniges.errors import UsageFault
from omniges.evaluation.settings import EvaluateSettings
from omniges.generation.settings import GenerateSettings
from omniges.options import ShownPart, about, check, declared, option, show_seconds_option, show_start_option
from omniges.progress import printable
from omniges.storage.atomic import require_output_file
from omniges.trainer.config import TrainSettings


def _recipe_names(incomplete: str) -> list[str]:
    """Return the names of packaged recipes that begin with `incomplete`, for shell completion."""
    from omniges.trainer.recipe import packaged_recipes

    return [name for name in packaged_recipes() if name.startswith(incomplete)]


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@with_flags("train", resumable)
def train(
    flags: Annotated[Mapping[str, Any], TrainSettings],
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Name of a recipe of the package, or a YAML file of these settings; flags override it.",
            metavar="NAME-OR-PATH",
            autocompletion=_recipe_names,
            rich_help_panel="Data",
        ),
    ] = None,
) -> None:
    """Train the joint model on shards; after a stop, the same command continues the run.

    Exit codes: 0 done, 1 bad data or a NaN or infinite loss, 2 usage, 3 environment, 75 stopped by a signal with
    a checkpoint, 130 Ctrl-C.
    """
    # OpenMP reads this variable when torch is loaded. By default, waiting threads spin. On shared cores they take CPU
    # time from each other and from the processes that read batches, so that steps take several times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from omniges.trainer.recipe import load_settings
    from omniges.trainer.train import train as run

    summary = run(load_settings(None if recipe is None else Path(recipe), flags))
    if summary.speaks:
        echo("\n".join(map(printable, summary.lines)))
    raise typer.Exit(int(summary.outcome.exit_code))


@declared
@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOmniflowSettings:
    """Settings of `omniges convert-omniflow`."""

    folder: Path = field(metadata=about("Folder of OmniFlow.", argument=True, metavar="DIR"))
    output_dir: Path = field(
        metadata=about("New or empty folder for the converted model.", "--output-dir", "-o", was=("out",))
    )
    weights: Literal["last", "ema"] = option("last", "Weights to convert: those of the last step or EMA.")

    def __post_init__(self) -> None:
        """Check the settings; raise UsageFault for a value that is invalid."""
        check(self)


@with_flags("train")
def convert_omniflow(settings: ConvertOmniflowSettings) -> None:
    """Convert an OmniFlow checkpoint to this project's format and list the use of every tensor.

    Exit codes: 0 done, 1 bad checkpoint, 2 usage, 3 environment, 130 Ctrl-C.
    """
    from omniges.pretrained.convert import convert

    echo("\n".join(map(printable, convert(settings.folder, settings.output_dir, settings.weights).lines)))


@with_flags()
def trace_batches(settings: TraceSettings) -> None:
    """List the windows that training steps read, one JSON line each."""
    import json

    from omniges.data.trace import trace

    for record in trace(settings):
        echo(json.dumps(record, ensure_ascii=False))


@with_flags("train", exit_on_sigterm)
def generate(
    settings: GenerateSettings,
    html: Annotated[
        bool, typer.Option("--html", help="Write page.html beside the results, which shows and plays them.")
    ] = False,
    video: Annotated[
        bool, typer.Option("--video", help="Write a video, NAME.mp4, beside each result; needs omniges[video].")
    ] = False,
) -> None:
    """Generate gesture, audio or text from your own files with a trained model.

    Exit codes: 0 done, 1 bad input or checkpoint, 2 usage, 3 environment, 130 Ctrl-C, 143 SIGTERM.
    """
    from omniges.exchange.settings import ViewSettings
    from omniges.exchange.video import VIDEO_ENDING, render_results, require_video
    from omniges.exchange.view import view
    from omniges.generation.run import generate as run
    from omniges.generation.settings import task_named
    from omniges.model.tasks import TASKS
    from omniges.progress import counter

    shards = settings.sources.shards if settings.sources.from_shards else None
    page_file = settings.output_dir / "page.html"
    if settings.part.chosen and not (settings.png or html or video):
        raise UsageFault(
            "--show-start, --show-seconds: expected with --png, --html or --video, found none of these; add one of them"
        )
    if html and page_file.exists() and not settings.overwrite:
        raise UsageFault(
            f"--html: expected no {page_file}, found one that would be replaced; choose another --output-dir, or add "
            "--overwrite"
        )
    if video:
        task = TASKS[task_named(settings.task)]
        require_video(moves=shards is not None or "gesture" in {*task.conditions, *task.targets})
    with counter("s generated") as count:
        stale = [*([] if video else [VIDEO_ENDING]), *([] if html else [page_file.name])]
        summary = run(settings, count, beside=[VIDEO_ENDING] if video else [], stale=stale)
    echo("\n".join(map(printable, summary.lines)))
    rate_hz = settings.sources.motion_rate_hz
    if video:
        with counter("videos") as count:
            videos = render_results(summary.records, shards, rate_hz, settings.part)
            for done, made in enumerate(videos, 1):
                echo("\n".join(map(printable, made.lines)))
                count(done, len(summary.records))
    if html:
        paths = tuple(map(str, [*summary.records, *([] if shards is None else [shards])]))
        of_page = ViewSettings(paths=paths, output_file=page_file, motion_rate_hz=rate_hz, **settings.part.of_part)
        with settings.part.flags_in_errors():
            page = view(of_page)
        echo("\n".join(map(printable, page.lines)))


@declared
@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSettings(ShownPart):
    """Settings of `omniges evaluate` for its report: format, files and the time range of each clip to show."""

    show_start_s: float = show_start_option("the clips of the page")
    show_seconds: float | None = show_seconds_option("the clips of the page")
    format: Literal["table", "json", "csv", "markdown"] = option("table", "Format of the report.", panel="Report")
    output_file: Path | None = option(
        None, "File for the report.", "--output-file", "-o", was=("out",), shown="standard output"
    )
    html: Path | None = option(None, "HTML file with the scores, and each score's best, median and worst clip.")

    def __post_init__(self) -> None:
        """Check the settings before the evaluation starts; raise UsageFault if the report's folder does not exist."""
        check(self)
        require_output_file("--output-file", self.output_file)
        require_output_file("--html", self.html)
        if self.chosen and self.html is None:
            raise UsageFault(
                "--show-start, --show-seconds: expected with --html, found no --html; add --html, or remove these flags"
            )


@with_flags("train", exit_on_sigterm)
def evaluate(settings: EvaluateSettings, report: ReportSettings) -> None:
    """Score generated files, or a checkpoint, against recordings in shards.

    Exit codes: 0 done, 1 bad files, 2 usage, 3 environment, 130 Ctrl-C, 143 SIGTERM.
    """
    from omniges.evaluation.report import render
    from omniges.evaluation.run import evaluate as run
    from omniges.progress import counter
    from omniges.storage.atomic import publish_bytes

    results = settings.generated or ((settings.work_dir,) if settings.work_dir else ())
    if report.html is not None and not results:
        raise UsageFault("--html: expected a folder that keeps the results, found none; add --work-dir")
    scores = run(settings, counter)
    text = render(scores, report.format)
    if report.output_file is None:
        echo(text)
    else:
        publish_bytes(report.output_file, text.encode())
    if report.html is not None:
        from omniges.exchange.view import view_scores

        page = view_scores(scores, results, settings.shards, report.html, report, settings.motion_rate_hz)
        echo("\n".join(map(printable, page.lines)), err=True)


@with_flags()
def benchmark_loader(settings: SpeedSettings, as_json: AsJson = False) -> None:
    """Compare the speed of reading batches with the speed of copying the same bytes in memory."""
    import json

    from omniges.benchmark.loader import measure, report

    document = measure(settings)
    echo(json.dumps(document) if as_json else report(document))


@with_flags("train")
def benchmark_train(settings: StepSpeedSettings, as_json: AsJson = False) -> None:
    """Compare the speed of training steps with the speed of plain matrix products."""
    import json

    from omniges.benchmark.train_step import measure, report

    rows = measure(settings)
    echo(json.dumps(rows) if as_json else report(rows))
