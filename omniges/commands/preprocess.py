"""``omniges preprocess``."""

from __future__ import annotations

from typing import Annotated

import typer

from omniges.commands.common import make_console, resumable
from omniges.commands.flags import with_flags
from omniges.pipeline.settings import PreprocessSettings


@with_flags()
def preprocess(
    settings: PreprocessSettings,
    plan: Annotated[
        bool, typer.Option("--plan", help="Do nothing but show what would be done, the size and the time.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines on standard output.")] = False,
) -> None:
    """Convert BEAT2 recordings to tar shards.

    Exit codes: 0 done, 1 too many rejected or a recording lost, 2 usage, 3 environment, 75 stopped by a signal,
    130 Ctrl-C.
    """
    from omniges.pipeline.run import preprocess as run
    from omniges.pipeline.summary import print_summary, summary_json
    from omniges.progress import counter, make_reporter

    if plan:
        from omniges.pipeline.plan import make_plan, plan_json, print_plan

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
