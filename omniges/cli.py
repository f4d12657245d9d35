"""The command line: the list of commands, and the conversion of exceptions to exit codes."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated

import typer

from omniges import __version__
from omniges.commands import demo, models, shards
from omniges.commands.common import Signalled, echo, raise_on, safe_output
from omniges.commands.parsing import Group, UsageError, command_class, usage_line
from omniges.errors import EnvironmentFault, ExitCode, OmnigesError, fault_of_machine
from omniges.progress import printable

app = typer.Typer(
    name="omniges",
    cls=Group,
    help="BEAT2 recordings to verified shards, and a model of text, audio and gesture trained on them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
benchmark = typer.Typer(cls=Group, help="Measure omniges on this machine.", no_args_is_help=True)

for _command in (
    *(shards.preprocess, shards.export, shards.inspect, shards.view, shards.render),
    *(demo.demo, shards.sample_corpus, shards.verify_shards, shards.encode),
    *(models.train, models.trace_batches, models.convert_omniflow, models.generate, models.evaluate),
):
    app.command(_command.__name__.replace("_", "-"), cls=command_class(_command))(_command)
app.add_typer(benchmark, name="benchmark")
benchmark.command("loader", cls=command_class(models.benchmark_loader))(models.benchmark_loader)
benchmark.command("train", cls=command_class(models.benchmark_train))(models.benchmark_train)


def _version(wanted: bool) -> None:
    if wanted:
        echo(f"omniges {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """BEAT2 recordings to verified shards, and a model of text, audio and gesture trained on them."""
    try:
        os.getcwd()  # without a working directory, libraries that are loaded later abort the process
    except FileNotFoundError as error:
        raise EnvironmentFault(
            "current folder: expected an existing folder, found that it was removed; change to another folder"
        ) from error


def main() -> None:
    """Run the command line, and convert exceptions to exit codes.

    An unexpected exception is a bug of omniges and is shown with its traceback.
    """
    raise_on(signal.SIGINT, ExitCode.INTERRUPTED)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # closing the terminal must not end the work
    with safe_output() as lost:
        code = _run()
    sys.exit(code or next(iter(lost), ExitCode.OK))


def _run() -> int:
    try:
        return int(app(standalone_mode=False) or ExitCode.OK)
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except UsageError as error:
        if str(error):  # the text is empty if help was shown because no command was passed
            echo(f"omniges: {printable(usage_line(error))}", err=True)
        return ExitCode.USAGE
    except OmnigesError as error:
        echo(f"omniges: {printable(error.on_command_line or str(error))}", err=True)
        return error.exit_code
    except Signalled as signalled:
        how = "interrupted" if signalled.code is ExitCode.INTERRUPTED else "stopped"
        echo(f"omniges: {how}; no partly written file was published", err=True)
        return signalled.code
    except Exception as error:
        fault: object = fault_of_machine(error)
        if fault is None and isinstance(error, OSError):  # an error of a file operation that no module handles
            fault = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
        if fault is None:
            raise  # a bug of omniges: the bug report needs the traceback
        echo(printable(f"omniges: {fault}"), err=True)
        return ExitCode.ENVIRONMENT


if __name__ == "__main__":
    main()
