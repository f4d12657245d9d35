"""Options of settings dataclasses: each is declared once, with its type, default, range and help text.

The flag of a command, the key of a recipe and the row in docs/reference/commands.md follow from the declaration.
"""

from __future__ import annotations

import difflib
import functools
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from numbers import Integral, Real
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from omniges.errors import UsageFault

T = TypeVar("T")
_KINDS: Final[Mapping[Any, tuple[str, Any]]] = MappingProxyType(
    {
        int: ("a whole number", (Integral, str)),
        float: ("a number", (Real, str)),
        bool: ("true or false", bool),
        str: ("a name", (str, Path)),
        Path: ("a path", (str, Path)),
        dict: ("lines of the form 'key: value'", Mapping),
    }
)
"""What values of a type are called, and what they may be given as."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """Declaration of an option besides its type and default."""

    help: str
    flags: tuple[str, ...] = ()
    """Names on the command line; the field's own if empty."""
    only_recipe: bool = False
    """A key of recipes that has no flag."""
    argument: bool = False
    """A positional argument of the command, not a flag."""
    metavar: str | None = None
    shown: str | None = None
    """The default in words, or as `parse` reads it."""
    parse: Callable[[str, str], Any] | None = None
    """Turns a flag and its text into a value, or into one of the values of a tuple."""
    commas: bool = False
    """Values of a tuple may be separated by commas."""
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None


def option(default: T, help: str, *flags: str, **more: Any) -> T:  # noqa: A002 - the word of every command line
    """Declare a field of a settings dataclass.

    Args:
        default: Value where none is given; a mapping is copied.
        help: What the option does, with its unit.
        *flags: Names on the command line, if they are not the field's.
        **more: Further fields of `Option`.

    Returns:
        A dataclass field; the type checker takes it for the default.
    """
    metadata = about(help, *flags, **more)
    if isinstance(default, dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def about(help: str, *flags: str, **more: Any) -> dict[str, Option]:  # noqa: A002 - the word of every command line
    """Return the metadata of a field that has no default: ``out: Path = field(metadata=about("Folder for …"))``."""
    return {"option": Option(help=help, flags=flags, **more)}


@dataclass(frozen=True, slots=True)
class Setting:
    """A declared field as commands, recipes and checks see it."""

    name: str
    kind: Any
    """Type of the value, or of each of many; a type that is not in `_KINDS` is not checked."""
    choices: tuple[str, ...]
    optional: bool
    many: bool
    default: Any
    """MISSING where a value is needed."""
    option: Option

    @property
    def flag(self) -> str:
        """Name in errors: its longest flag, or its key in a recipe."""
        if self.option.only_recipe:
            return f"recipe key {self.name}"
        names = [name.split("/")[0] for name in self.option.flags]
        return max(names, key=len, default=f"--{self.name.replace('_', '-')}")

    def checked(self, value: Any) -> Any:
        """Return a value in the field's type; raises UsageFault by flag name."""
        if value is None and self.optional:
            return None
        if self.many:
            return tuple(self._one(each) for each in (value if isinstance(value, (list, tuple)) else [value]))
        return self._one(value)

    def _one(self, value: Any) -> Any:
        if self.kind not in _KINDS:
            return value
        converted = self._converted(value)
        if self.choices and converted not in self.choices:
            raise UsageFault(f"{self.flag} {shown(value)}: one of {', '.join(self.choices)} expected")
        if self.kind in {int, float}:
            limits = (
                (self.option.least, "at least", operator.ge),
                (self.option.above, "above", operator.gt),
                (self.option.most, "at most", operator.le),
                (self.option.below, "below", operator.lt),
            )
            given = [(limit, words, fits) for limit, words, fits in limits if limit is not None]
            finite = self.kind is int or math.isfinite(converted)
            if not finite or not all(fits(converted, limit) for limit, _, fits in given):
                wanted = " and ".join(f"{words} {limit}" for limit, words, _ in given)
                raise UsageFault(f"{self.flag} {converted}: a {'' if wanted else 'finite '}number {wanted} expected")
        return converted

    def _converted(self, value: Any) -> Any:
        """Convert what YAML and Python users write; YAML reads ``no`` as false and ``1e-3`` as text."""
        if self.kind is str and value is False:
            return "no"
        words, given_as = _KINDS[self.kind]
        if isinstance(value, given_as) and isinstance(value, bool) == (self.kind is bool) and value != "":
            with suppress(ValueError, OverflowError):
                return self.kind(value)
        if self.kind is dict:
            raise UsageFault(f"{self.flag}: {words} expected, found {value!r}")
        raise UsageFault(f"{self.flag} {shown(value)}: {words} expected")


def shown(value: Any) -> str:
    """Return a value in one line, as it was written where it can be."""
    text = str(value)
    return text if text.isprintable() else repr(value)


@functools.cache
def settings_of(settings: Any) -> Mapping[str, Setting | type]:
    """Return the options of a settings dataclass by field, in order; of settings inside settings, their class."""
    hints = get_type_hints(settings)
    found: dict[str, Setting | type] = {}
    for each in fields(settings):
        if is_dataclass(hints[each.name]):
            found[each.name] = hints[each.name]
        elif "option" in each.metadata:
            default = each.default if each.default_factory is MISSING else each.default_factory()
            found[each.name] = _setting(each.name, hints[each.name], default, each.metadata["option"])
    return MappingProxyType(found)


def _setting(name: str, hint: Any, default: Any, declared: Option) -> Setting:
    of = set(get_args(hint)) if get_origin(hint) in {Union, UnionType} else {hint}
    optional = NoneType in of
    of -= {NoneType}
    inner = str if of == {str, Path} else of.pop()
    many = get_origin(inner) is tuple and get_args(inner)[1:] == (...,)
    if many:
        inner = get_args(inner)[0]
    choices = get_args(inner) if get_origin(inner) is Literal else ()
    kind = str if choices else dict if get_origin(inner) is Mapping else inner
    return Setting(name, kind, choices, optional, many, default, declared)


def check(settings: Any) -> None:
    """Bring each option of a settings object into its type; for ``__post_init__``.

    Args:
        settings: an instance of a settings dataclass; changed in place.

    Raises:
        UsageFault: A value is of another type or out of range; the message begins with the flag.
    """
    declared: Any = type(settings)
    for name, setting in settings_of(declared).items():
        if isinstance(setting, Setting):
            object.__setattr__(settings, name, setting.checked(getattr(settings, name)))


def from_keywords(settings: type[T], values: Mapping[str, Any], function: str) -> T:
    """Make settings of the keywords of a function.

    Args:
        settings: A settings dataclass; settings inside it may be given whole, or by the names of their own fields.
        values: By field.
        function: What errors call the function.

    Returns:
        The settings, checked.

    Raises:
        UsageFault: A name is no setting, or a value cannot be.
    """
    known = list(_names_of(settings))
    for name in sorted(values.keys() - {*known}):
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(known)} expected"
        raise UsageFault(f"{function}: unknown setting {name!r}: {hint}")
    made: T = _from_values(settings, values)
    return made


def _names_of(settings: Any) -> Iterator[str]:
    for name, each in settings_of(settings).items():
        yield name
        if not isinstance(each, Setting):
            yield from _names_of(each)


def _from_values(settings: Any, values: Mapping[str, Any]) -> Any:
    inner = {
        name: values[name] if name in values else _from_values(each, values)
        for name, each in settings_of(settings).items()
        if name in values or not isinstance(each, Setting)
    }
    return settings(**inner)
