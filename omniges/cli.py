"""The command line: which commands there are, and the one place where exceptions become exit codes."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

from omniges import __version__
from omniges.commands.benchmark import benchmark_loader, benchmark_train
from omniges.commands.common import Signalled, raise_on
from omniges.commands.encode import encode
from omniges.commands.evaluate import evaluate
from omniges.commands.files import export, inspect, sample_corpus
from omniges.commands.generate import generate
from omniges.commands.preprocess import preprocess
from omniges.commands.train import convert_omniflow, trace_batches, train
from omniges.commands.verify import verify_shards
from omniges.errors import ExitCode, OmnigesError

app = typer.Typer(
    name="omniges",
    help="BEAT2 recordings to verified shards, and a model of text, audio and gesture trained on them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
benchmark = typer.Typer(help="Measure omniges on this machine.", no_args_is_help=True)

app.command()(preprocess)
app.command()(export)
app.command()(inspect)
app.command("sample-corpus")(sample_corpus)
app.command("verify-shards")(verify_shards)
app.command()(encode)
app.command()(train)
app.command("trace-batches")(trace_batches)
app.command("convert-omniflow")(convert_omniflow)
app.command()(generate)
app.command()(evaluate)
app.add_typer(benchmark, name="benchmark")
benchmark.command("loader")(benchmark_loader)
benchmark.command("train")(benchmark_train)


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
    """BEAT2 recordings to verified shards, and a model of text, audio and gesture trained on them."""


def main() -> None:
    """Entry point: the only place where exceptions become exit codes."""
    raise_on(signal.SIGINT, ExitCode.INTERRUPTED)
    try:
        app()
    except OmnigesError as error:
        typer.echo(f"omniges: {error}", err=True)
        code = error.exit_code
    except OSError as error:  # standard output, or a path no module of ours stands for
        typer.echo(f"omniges: {error.strerror or error}{f': {error.filename}' if error.filename else ''}", err=True)
        code = ExitCode.ENVIRONMENT
    except Signalled as signalled:
        how = "interrupted" if signalled.code is ExitCode.INTERRUPTED else "stopped"
        typer.echo(f"omniges: {how}; nothing half-written was published", err=True)
        code = signalled.code
    sys.exit(int(code))


if __name__ == "__main__":
    main()
