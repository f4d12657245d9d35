"""Functions that all commands use: flags from settings dataclasses, signals, lists, output and tables."""

from __future__ import annotations

import codecs
import errno
import functools
import inspect
import io
import os
import select
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import MISSING, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, TextIO, get_origin, get_type_hints

import typer

from omniges.errors import ExitCode, needs
from omniges.options import Setting, as_flag, default_words, every_setting, placeholder, settings_of
from omniges.progress import printable

if TYPE_CHECKING:
    from rich.console import Console


Command = Callable[..., None]


class Signalled(BaseException):
    """Exception that a signal raises to end the command.

    It is not a subclass of `Exception`, so that libraries do not catch it.
    """

    def __init__(self, code: ExitCode) -> None:
        super().__init__(code)
        self.code = code


def raise_on(number: signal.Signals, code: ExitCode) -> None:
    """Install a handler that raises `Signalled` for a signal, so that the command ends with an exit code.

    Args:
        number: Signal to handle.
        code: Exit code of the command after the signal.
    """

    def leave(_number: int, _frame: object) -> None:
        raise Signalled(code)

    signal.signal(number, leave)


@contextmanager
def _raising(codes: Mapping[signal.Signals, ExitCode]) -> Iterator[None]:
    previous = {number: signal.getsignal(number) for number in codes}
    for number, code in codes.items():
        raise_on(number, code)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


resumable: Final = functools.partial(_raising, {signal.SIGTERM: ExitCode.STOPPED, signal.SIGUSR1: ExitCode.STOPPED})
"""Context in which SIGTERM and SIGUSR1 stop a command with exit code 75; the same command continues the work later."""
exit_on_sigterm: Final = functools.partial(_raising, {signal.SIGTERM: ExitCode.TERMINATED})
"""Context in which SIGTERM stops a command as Ctrl-C does (temporary folders are removed), with exit code 143."""


def listed(values: Iterable[str]) -> tuple[str, ...]:
    """Split the values of a repeatable flag at commas; return all texts as one tuple, without spaces around them."""
    return tuple(name.strip() for value in values for name in value.split(",") if name.strip())


def echo(text: str, *, err: bool = False) -> None:
    """Print text; escape control characters, so that a terminal executes no escape sequence in the text.

    Args:
        text: One or several lines. Pass data through `printable` first, which also escapes line breaks.
        err: Print to standard error.
    """
    stream = sys.stderr if err else sys.stdout
    stream.write("\n".join(map(printable, text.removesuffix("\n").split("\n"))) + "\n")
    stream.flush()


def make_console() -> Console:
    """Return a rich console on standard output, for tables."""
    from rich.console import Console

    # In a file or pipe, rows are not folded or cut, so that grep finds complete rows.
    return Console() if sys.stdout.isatty() else Console(width=240)


def with_flags(
    extra: str | None = None, signals: Callable[[], AbstractContextManager[None]] = nullcontext
) -> Callable[[Command], Command]:
    """Decorate a command, so that it has a flag for each option of its settings.

    A parameter whose type is a settings dataclass becomes one flag per option; the command receives the settings
    object. If the type of a parameter is ``Annotated[Mapping[str, Any], Settings]``, the command receives a mapping
    from field names to values. The mapping contains only the values that the user passed.

    Args:
        extra: Name of the optional dependencies that the command needs, for the error if one is missing.
        signals: Function that returns a context. The command runs inside this context, which handles signals.

    Returns:
        A decorator of the command.
    """

    def decorate(command: Command) -> Command:
        hints: dict[str, Any] = get_type_hints(command, include_extras=True)
        parameters: list[inspect.Parameter] = []
        present: dict[str, str] = {}
        built: dict[str, Callable[[Any, Mapping[str, Any]], Any]] = {}
        for parameter in inspect.signature(command).parameters.values():
            hint = hints[parameter.name]
            chosen = getattr(hint, "__metadata__", (None,))[0]
            if is_dataclass(hint) or is_dataclass(chosen):
                hints[parameter.name], build = (hint, _build_settings) if is_dataclass(hint) else (chosen, _passed)
                built[parameter.name] = build
                parameters += _flags(hints[parameter.name])
                present |= _other_flags(hints[parameter.name])
            else:
                parameters.append(parameter.replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY))

        def run(**values: Any) -> None:
            with signals(), needs(extra, "this command") if extra else nullcontext():
                settings = {name: build(hints[name], values) for name, build in built.items()}
                own = hints.keys() & values.keys() - built.keys()
                command(**settings, **{name: values[name] for name in own})

        functools.update_wrapper(run, command)
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.present = present  # type: ignore[attr-defined]
        return run

    return decorate


def _other_flags(settings: Any) -> dict[str, str]:
    """Return a mapping from each alternative flag to the current flag of the same option.

    The alternative flags of an option are its former names, and the name of its field if this name differs from the
    current flag. If a setting is now an argument without a flag, its former flags are mapped to "".
    """
    shown = [each for each in every_setting(settings) if not each.option.only_recipe]
    flags = [each for each in shown if not each.option.argument]
    found = {as_flag(name): each.flag for each in flags for name in (each.name, *each.option.was)}
    arguments = {as_flag(name): "" for each in shown if each.option.argument for name in each.option.was}
    return {name: flag for name, flag in found.items() if name != flag} | arguments


def _flags(settings: Any) -> Iterator[inspect.Parameter]:
    """Yield a function parameter for each option of a settings dataclass, including the options of nested settings."""
    panel = None
    for each in every_setting(settings):
        panel = each.option.panel or panel
        if not each.option.only_recipe:
            yield _flag(each, panel)


def _flag(setting: Setting, panel: str | None) -> inspect.Parameter:
    """Return a function parameter that Typer converts to a flag.

    Typer converts the values of only two kinds of flags: switches, and flags with several values after one name
    (``--features A B``). Other values stay text, because the settings convert and check them. If the user does
    not pass an optional flag, its default is used: None, or an empty list for a repeatable flag.
    """
    option = setting.option
    kind: Any = (
        setting.kind if setting.kind is bool or (get_origin(setting.kind) is tuple and not option.parse) else str
    )
    shared: dict[str, Any] = {
        "metavar": placeholder(setting),
        "help": option.help,
        "show_default": default_words(setting),
        "rich_help_panel": panel,
        "autocompletion": _completion(setting),
    }
    names = option.flags or (setting.flag,)
    required = setting.default is MISSING
    return inspect.Parameter(
        setting.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if required else [] if setting.many else None,
        annotation=Annotated[
            list[kind] if setting.many else kind if required else kind | None,
            typer.Argument(**shared) if option.argument else typer.Option(*names, **shared),
        ],
    )


def _completion(setting: Setting) -> Callable[[str], list[str]] | None:
    """Return a function for shell completion of a value; None if the valid values are not known.

    In a list of values, the function completes the text after the last comma.
    """
    known = setting.option.values or (lambda: map(str, setting.choices))

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",") if setting.option.commas else ("", "", incomplete)
        return [f"{before}{comma}{value}" for value in known() if value.startswith(last)]

    return complete if setting.option.values or setting.choices else None


def _passed(settings: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the flags that the user passed, by field name."""
    found = {}
    for name, setting in settings_of(settings).items():
        if not isinstance(setting, Setting) or values.get(name) in (None, []):
            continue
        value, parse = values[name], setting.option.parse
        if setting.option.commas:
            value = listed(value)
        if parse and setting.many:
            value = [parse(setting.flag, text) for text in value]
        elif parse:
            value = parse(setting.flag, value)
        found[name] = tuple(value) if setting.many else value
    return found


def _build_settings(settings: Any, values: Mapping[str, Any]) -> Any:
    inner = {
        name: _build_settings(each, values)
        for name, each in settings_of(settings).items()
        if not isinstance(each, Setting)
    }
    return settings(**inner, **_passed(settings, values))


# --- standard streams whose errors do not end a command: the output only reports the work

_ESCAPES: Final = "omniges-escapes"


class SafeOutput(io.RawIOBase):
    """Output stream that never raises: after the first error, it drops all further output to its file descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._terminal = os.isatty(descriptor)
        self.error: OSError | None = None

    def writable(self) -> bool:
        """Return True, because the stream is for output."""
        return True

    def fileno(self) -> int:
        """Return the file descriptor to which this stream writes."""
        return self._descriptor

    def isatty(self) -> bool:
        """Return True if the descriptor was a terminal when this object was created."""
        return self._terminal

    def write(self, data: Any, /) -> int:
        """Write all bytes, or drop them after an error; return the number of bytes."""
        view = memoryview(data).cast("B")
        count = len(view)
        while len(view) and self.error is None:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:  # another program made the pipe non-blocking: wait until it has space
                select.select([], [self._descriptor], [])
            except OSError as error:
                self.error = error
        return count

    @property
    def lost(self) -> OSError | None:
        """The first write error, because of which output is missing; None if all output was written.

        It is also None if the reader is gone: for any error of a terminal, and for a closed pipe.
        """
        gone = self.error is not None and (self._terminal or self.error.errno == errno.EPIPE)
        return None if gone else self.error


@contextmanager
def safe_output() -> Iterator[list[ExitCode]]:
    r"""Replace standard output and standard error by streams that never raise.

    Characters outside a stream's encoding are written as ``\uXXXX``. A standard stream that is already closed, also
    standard input, is replaced by /dev/null. Otherwise, a file that is opened later could get the descriptor number of
    the closed stream. A stream that a program has replaced, as tests do, is not changed.

    Yields:
        An empty list. When the context ends, `ExitCode.ENVIRONMENT` is added if standard output is incomplete
            because of an error that `SafeOutput.lost` reports, such as a full disk.
    """
    codecs.register_error(_ESCAPES, _escaped)
    codes: list[ExitCode] = []
    outputs: dict[str, SafeOutput] = {}
    with ExitStack() as restore:
        for name in ("stdin", "stdout", "stderr"):
            stream: TextIO | None = getattr(sys, name)
            if stream is None:
                descriptor = os.open(os.devnull, os.O_RDWR)
                os.set_inheritable(descriptor, True)
                stream = open(descriptor, "r" if name == "stdin" else "w", encoding="utf-8")  # noqa: SIM115
                setattr(sys, name, stream)
            if name != "stdin" and type(stream) is io.TextIOWrapper:
                restore.callback(setattr, sys, name, stream)
                outputs[name] = SafeOutput(stream.fileno())
                setattr(sys, name, _over(outputs[name], stream))
        try:
            yield codes
        finally:
            sys.stdout.flush()
            lost = outputs["stdout"].lost if "stdout" in outputs else None
            if lost is not None:
                sys.stderr.write(f"omniges: cannot write to standard output: {lost.strerror}\n")
                codes.append(ExitCode.ENVIRONMENT)
            sys.stderr.flush()


def _over(output: SafeOutput, stream: io.TextIOWrapper) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(output),
        encoding=stream.encoding,
        errors=_ESCAPES,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Return JSON escapes for characters outside the stream's encoding, and the index after these characters.

    `safe_output` registers this function as an error handler of `codecs`.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[k : k + 2].hex()}" for k in range(0, len(units), 2)), error.end
