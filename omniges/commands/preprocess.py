"""``omniges preprocess``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from omniges.commands.common import listed, make_console, resumable, size_bytes
from omniges.errors import UsageFault

if TYPE_CHECKING:
    from omniges.pipeline.settings import PreprocessSettings

__all__ = ["preprocess"]


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
    from omniges.pipeline.settings import ConvertSettings, PreprocessSettings

    settings = PreprocessSettings(
        root=root,
        out=out,
        selection=Selection(
            wav_dir=wav_dir,
            gesture_dir=gesture_dir,
            text_dir=text_dir,
            speakers=listed(speakers),
            languages=listed(languages),
            include=listed(include),
            splits=splits_of(splits),
        ),
        convert=ConvertSettings(
            loudness=loudness,
            keep_audio=keep_audio,
            max_length_mismatch_s=max_length_mismatch,
            word_tier=word_tier,
        ),
        shard_bytes=size_bytes(shard_size),
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
    from omniges.pipeline.run import preprocess as run
    from omniges.pipeline.summary import plan_json, print_plan, print_summary, summary_json
    from omniges.progress import counter, make_reporter

    if plan:
        from omniges.pipeline.plan import make_plan

        made = make_plan(settings)
        if as_json:
            typer.echo(plan_json(made))
        else:
            print_plan(made, settings.workers, make_console())
        return
    with resumable(), counter("MB compared with what earlier runs read and wrote") as count:
        summary = run(settings, make_reporter("json" if as_json else "auto"), count)
    if as_json:
        typer.echo(summary_json(summary))
    else:
        print_summary(summary, make_console())
    raise typer.Exit(int(summary.exit_code))


def splits_of(values: list[str]) -> Any:
    from omniges.shards.schema import SPLITS

    names = listed(values)
    unknown = [name for name in names if name not in SPLITS]
    if unknown:
        raise UsageFault(f"--splits {unknown[0]}: one of {', '.join(SPLITS)} expected")
    return names
