"""Commands whose flags follow from settings dataclasses."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import MISSING, is_dataclass
from typing import Annotated, Any, Literal, get_type_hints

import typer

from omniges.commands.common import listed, needs
from omniges.options import Setting, settings_of

Command = Callable[..., None]


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
