"""Shared parts of commands: flags from settings dataclasses, signals, lists as people write them, tables."""

from __future__ import annotations

import functools
import inspect
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import MISSING, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, get_type_hints

import typer

from omniges.errors import EnvironmentFault, ExitCode
from omniges.options import Setting, settings_of
from omniges.progress import printable

if TYPE_CHECKING:
    from rich.console import Console

Command = Callable[..., None]


class Signalled(BaseException):
    """A signal arrived that ends the command; no library on the way catches this."""

    def __init__(self, code: ExitCode) -> None:
        super().__init__(code)
        self.code = code


def raise_on(number: signal.Signals, code: ExitCode) -> None:
    """Let a signal end the command with a code."""

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
"""Lets SIGTERM and SIGUSR1 end a command that the same words take up again (exit 75)."""
tidy: Final = functools.partial(_raising, {signal.SIGTERM: ExitCode.TERMINATED})
"""Lets SIGTERM end a command as Ctrl-C does, so that no temporary folder stays (exit 143, what shells call it)."""


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Imports that need packages which a plain installation has not."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "omniges").split(".")[0] == "omniges":
            raise
        raise EnvironmentFault(
            f"the package {error.name} is not installed, which this command needs: pip install 'omniges[{extra}]'"
        ) from error


def listed(values: Iterable[str]) -> tuple[str, ...]:
    """Values given as repeated flags, as comma-separated lists, or both."""
    return tuple(name.strip() for value in values for name in value.split(",") if name.strip())


def echo(text: str, *, err: bool = False) -> None:
    """Print text, each line of it so that a terminal shows it and does not obey it.

    Args:
        text: One or several lines. Lines that hold data are to be made with `printable`, which escapes line breaks.
        err: Print to standard error.
    """
    stream = sys.stderr if err else sys.stdout
    stream.write("\n".join(map(printable, text.removesuffix("\n").split("\n"))) + "\n")
    stream.flush()


def make_console() -> Console:
    """Standard output for tables."""
    from rich.console import Console

    # A file or pipe gets whole lines: cut or folded rows are of no use to grep.
    return Console() if sys.stdout.isatty() else Console(width=240)


def with_flags(
    extra: str | None = None, signals: Callable[[], AbstractContextManager[None]] = nullcontext
) -> Callable[[Command], Command]:
    """Give a command a flag for each option of its settings.

    A parameter whose type is a settings dataclass is replaced by the flags of its options, and the command gets the
    settings that they make. Of a parameter of type ``Annotated[Mapping[str, Any], Settings]`` the command gets the
    values that were given, by the names of the fields.

    Args:
        extra: The optional dependencies that the command needs, for the error where one is missing.
        signals: How signals end the command.
    """

    def decorate(command: Command) -> Command:
        hints: dict[str, Any] = get_type_hints(command, include_extras=True)
        parameters: list[inspect.Parameter] = []
        built: dict[str, Callable[[Any, Mapping[str, Any]], Any]] = {}
        for parameter in inspect.signature(command).parameters.values():
            hint = hints[parameter.name]
            chosen = getattr(hint, "__metadata__", (None,))[0]
            if is_dataclass(hint) or is_dataclass(chosen):
                hints[parameter.name], build = (hint, _made) if is_dataclass(hint) else (chosen, _given)
                built[parameter.name] = build
                parameters += _flags(hints[parameter.name], overrides=build is _given)
            else:
                parameters.append(parameter.replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY))

        def run(**values: Any) -> None:
            with signals(), needs(extra) if extra else nullcontext():
                settings = {name: build(hints[name], values) for name, build in built.items()}
                own = hints.keys() & values.keys() - built.keys()
                command(**settings, **{name: values[name] for name in own})

        functools.update_wrapper(run, command)
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return run

    return decorate


def _flags(settings: Any, *, overrides: bool) -> Iterator[inspect.Parameter]:
    """Parameters of the options, those of settings inside settings too."""
    for each in settings_of(settings).values():
        if not isinstance(each, Setting):
            yield from _flags(each, overrides=overrides)
        elif not each.option.only_recipe:
            yield _flag(each, overrides=overrides)


def _flag(setting: Setting, *, overrides: bool) -> inspect.Parameter:
    """The parameter that Typer reads; `overrides`: None where the flag is not given, whatever the default."""
    said = setting.option
    kind = Literal[setting.choices] if setting.choices and not said.commas else setting.kind
    kind = str if said.parse or said.commas else kind
    told = said.parse is not None and setting.default not in {None, MISSING}
    default = said.shown if told else setting.default
    words: str | bool = said.shown or default is not MISSING
    if setting.many and default is not MISSING:
        words = words if said.shown or not default else ",".join(map(str, default))
        default = []
    elif overrides:
        words = said.shown or (False if default in {None, False} else str(default))
        default = None
    annotation: Any = list[kind] if setting.many else kind | None if default is None else kind  # type: ignore[valid-type]
    metavar = said.metavar or ("LIST" if said.commas else None)
    names = said.flags or ((setting.flag,) if kind is bool else ())
    if said.argument:
        info = typer.Argument(metavar=metavar, help=said.help, show_default=words)
    else:
        info = typer.Option(*names, metavar=metavar, help=said.help, show_default=words)
    return inspect.Parameter(
        setting.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is MISSING else default,
        annotation=Annotated[annotation, info],
    )


def _given(settings: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by field where a flag was given."""
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


def _made(settings: Any, values: Mapping[str, Any]) -> Any:
    inner = {name: _made(each, values) for name, each in settings_of(settings).items() if not isinstance(each, Setting)}
    return settings(**inner, **_given(settings, values))
