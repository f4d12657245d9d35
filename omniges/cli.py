"""The command line: which commands there are, and the one place where exceptions become exit codes."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

from omniges import __version__
from omniges.commands import models, shards
from omniges.commands.common import Signalled, echo, raise_on
from omniges.errors import ExitCode, OmnigesError
from omniges.progress import printable

app = typer.Typer(
    name="omniges",
    help="BEAT2 recordings to verified shards, and a model of text, audio and gesture trained on them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
benchmark = typer.Typer(help="Measure omniges on this machine.", no_args_is_help=True)

for _command in (
    *(shards.preprocess, shards.export, shards.inspect, shards.sample_corpus, shards.verify_shards, shards.encode),
    *(models.train, models.trace_batches, models.convert_omniflow, models.generate, models.evaluate),
):
    app.command(_command.__name__.replace("_", "-"))(_command)
app.add_typer(benchmark, name="benchmark")
benchmark.command("loader")(models.benchmark_loader)
benchmark.command("train")(models.benchmark_train)


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
        echo(f"omniges: {printable(str(error))}", err=True)
        code = error.exit_code
    except OSError as error:  # standard output, or a path no module of ours stands for
        where = f": {error.filename}" if error.filename else ""
        echo(printable(f"omniges: {error.strerror or error}{where}"), err=True)
        code = ExitCode.ENVIRONMENT
    except Signalled as signalled:
        how = "interrupted" if signalled.code is ExitCode.INTERRUPTED else "stopped"
        echo(f"omniges: {how}; nothing half-written was published", err=True)
        code = signalled.code
    sys.exit(int(code))


if __name__ == "__main__":
    main()
