"""Options of commands, declared as fields of settings dataclasses with type, default, range and help text.

Each declaration defines the flag of a command, the key of a recipe and the row in docs/reference/commands.md. Options
that several commands share are at the end of this module.
"""

from __future__ import annotations

import difflib
import functools
import math
import operator
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from omniges.arguments import require_file_names
from omniges.errors import OmnigesError, UsageFault

T = TypeVar("T")
_NAME_IN_ERRORS: Final = re.compile(r"(?<![\w/-])(?:--[a-z0-9]+(?:-[a-z0-9]+)*|recipe key \w+)(?![\w/-])")
_ARGUMENT_IN_ERRORS: Final = re.compile(r"[A-Z]+(?=[: ])")
_PART_IN_ERRORS: Final = re.compile(r"(?<![\w-])--(?=(?:start|seconds)(?![\w-]))")
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
"""For each type: the description of its values in error messages, and the types that can be converted to it."""
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_PLACEHOLDERS: Final[Mapping[Any, str]] = MappingProxyType({int: "N", float: "X", str: "TEXT", Path: "PATH"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """Declaration of an option: its help text, names and range. The dataclass field has its type and default."""

    help: str
    flags: tuple[str, ...] = ()
    """Names on the command line; if empty, the name of the field."""
    was: tuple[str, ...] = ()
    """Former names, with ``_``, which all interfaces still accept; help does not show them."""
    panel: str | None = None
    """Heading in help above this option and the options after it."""
    values: Callable[[], Iterable[str]] | None = None
    """Function that returns values for shell completion; a type with choices does not need it."""
    only_recipe: bool = False
    """The option is a key of recipes only and has no flag."""
    argument: bool = False
    """The option is a positional argument of the command, not a flag."""
    metavar: str | None = None
    shown: str | None = None
    """Text that help shows as the default; None: help shows the default value, if there is one."""
    parse: Callable[[str, str], Any] | None = None
    """Function that converts (flag, text) to a value, or to one of the values of a tuple."""
    commas: bool = False
    """Values of a tuple may be separated by commas."""
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    below: float | None = None


def option(default: T, help: str, *flags: str, **more: Any) -> T:  # noqa: A002 - the usual name of this text
    """Declare a field of a settings dataclass.

    Args:
        default: Default value; a mapping is copied.
        help: Help text of the option, with its unit.
        *flags: Names on the command line, if they differ from the name of the field.
        **more: Further fields of `Option`.

    Returns:
        A dataclass field; a type checker sees the type of the default.
    """
    metadata = about(help, *flags, **more)
    if isinstance(default, dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def about(help: str, *flags: str, **more: Any) -> dict[str, Option]:  # noqa: A002 - the usual name of this text
    """Return the metadata of a field that has no default: ``out: Path = field(metadata=about("Folder for …"))``.

    Args:
        help: Help text of the option, with its unit.
        *flags: Names on the command line, if they differ from the name of the field.
        **more: Further fields of `Option`.

    Returns:
        Metadata for `dataclasses.field`.
    """
    return {"option": Option(help=help, flags=flags, **more)}


@dataclass(frozen=True, slots=True)
class Setting:
    """One option of a settings dataclass: its name, type, choices and default, and its declaration."""

    name: str
    kind: Any
    """Type of the value, or of each value if there are many. Types in `_KINDS`, and tuples of them, are checked."""
    choices: tuple[Any, ...]
    """All valid values: texts or whole numbers; empty if every value of the type is valid."""
    optional: bool
    """None is a valid value."""
    many: bool
    """The value is a tuple of any length."""
    default: Any
    """MISSING if the option has no default."""
    option: Option

    @property
    def flag(self) -> str:
        """Name of the setting, shown in error messages: the longest of its flags, such as ``--output-dir``.

        The name of a positional argument is its placeholder, such as PATH. The name of a setting that only recipes have
        is "recipe key NAME".
        """
        if self.option.argument:
            return (self.option.metavar or self.name.upper()).removesuffix("...")
        if self.option.only_recipe:
            return f"recipe key {self.name}"
        names = [name.split("/")[0] for name in self.option.flags]
        return max(names, key=len, default=as_flag(self.name))

    @property
    def other_names(self) -> tuple[str, ...]:
        """Names that are accepted in place of the field's name: former names, and the flag if it differs.

        The flag is written without ``--`` and with ``_``: ``output_dir`` for ``--output-dir``.
        """
        word = self.flag.removeprefix("--").replace("-", "_")
        no_flag = self.option.only_recipe or self.option.argument
        return self.option.was if word == self.name or no_flag else (word, *self.option.was)

    def checked(self, value: Any) -> Any:
        """Convert a value to the field's type, and check its choices and range.

        Args:
            value: A value from the command line, a recipe or Python code.

        Returns:
            The value; a tuple if the field has many values.

        Raises:
            UsageFault: The value is invalid; the message begins with the flag.
        """
        if value is None and self.optional:
            return None
        if self.many:
            pairs = isinstance(value, Mapping) and get_origin(self.kind) is tuple
            several = list(value.items()) if pairs else value if isinstance(value, (list, tuple)) else [value]
            return tuple(self._one(each) for each in several)
        return self._one(value)

    def _one(self, value: Any) -> Any:
        if get_origin(self.kind) is tuple:
            return self._parts(value)
        if self.kind not in _KINDS:
            return value
        if self.choices:
            texts = {str(choice): choice for choice in self.choices}
            text = "no" if value is False else str(value)  # YAML reads ``no`` as false
            if text not in texts:
                hint = did_you_mean(text, texts)
                raise UsageFault(f"{self.flag} {shown(value)}: expected one of {', '.join(texts)}{hint}")
            return texts[text]
        converted = self._converted(value)
        if self.kind in {int, float}:
            limits = (
                (self.option.minimum, operator.ge),
                (self.option.above, operator.gt),
                (self.option.maximum, operator.le),
                (self.option.below, operator.lt),
            )
            finite = self.kind is int or math.isfinite(converted)
            if not finite or not all(limit is None or fits(converted, limit) for limit, fits in limits):
                raise UsageFault(f"{self.flag} {converted}: expected {self.expected}")
        return converted

    def _parts(self, value: Any) -> tuple[Any, ...]:
        """Convert a value of several components, such as a name and a folder, to a tuple.

        The value is a list of the components, or one text such as NAME=FOLDER, which `Option.parse` splits.
        """
        if self.option.parse is not None and isinstance(value, str):
            parsed: tuple[Any, ...] = self.option.parse(self.flag, value)
            return parsed
        kinds = get_args(self.kind)
        if not isinstance(value, (list, tuple)) or len(value) != len(kinds):
            expected = " and ".join(_KINDS[kind][0] for kind in kinds)
            raise UsageFault(f"{self.flag} {shown(value)}: expected {expected}")
        return tuple(replace(self, kind=kind)._one(part) for kind, part in zip(kinds, value, strict=True))

    @property
    def expected(self) -> str:
        """Description of valid values (type and range), for errors."""
        kind, _ = _KINDS[self.kind]
        ranges = (
            ("of at least", self.option.minimum),
            ("above", self.option.above),
            ("of at most", self.option.maximum),
            ("below", self.option.below),
        )
        limits = [f"{words} {limit}" for words, limit in ranges if limit is not None]
        if self.kind is float and not limits:
            return "a finite number"
        return " ".join([kind, " and ".join(limits).replace("and of ", "and ")]).strip()

    def _converted(self, value: Any) -> Any:
        """Convert a value to the field's type, because YAML reads ``no`` as false and ``1e-3`` as text."""
        if self.kind is str and value is False:
            return "no"
        words, accepted = _KINDS[self.kind]
        if isinstance(value, accepted) and isinstance(value, bool) == (self.kind is bool) and value != "":
            if self.kind is Path:
                refuse_url(self.flag, str(value))
                require_file_names(self.flag, str(value))
            with suppress(ValueError, OverflowError):
                return self.kind(value)
        if self.kind is dict:
            raise UsageFault(f"{self.flag}: expected {words}, found {value!r}")
        raise UsageFault(f"{self.flag} {shown(value)}: expected {self.expected}")


def refuse_url(flag: str, given: str) -> None:
    """Refuse a URL where a local path is expected, because later errors would show the URL as a path, ``http:/…``.

    Args:
        flag: Option that gave the text, shown in error messages.
        given: The text.

    Raises:
        UsageFault: The text is a URL. The error shows only its scheme, because the rest may contain credentials.
    """
    if scheme := _SCHEME.match(given):
        raise UsageFault(f"{flag}: expected a local path, found a URL of {scheme[0]}; copy its files here")


def placeholder(setting: Setting) -> str | None:
    """Return the placeholder of an option's value in help, such as N, PATH or its choices; None for a switch."""
    if setting.option.metavar or setting.option.commas:
        return setting.option.metavar or "LIST"
    if setting.choices:
        return "|".join(map(str, setting.choices))
    names = [_PLACEHOLDERS[kind] for kind in get_args(setting.kind) or (setting.kind,) if kind in _PLACEHOLDERS]
    return " ".join(names) or None


def default_words(setting: Setting) -> str | Literal[False]:
    """Return the default of an option as help shows it; False if help shows none."""
    if setting.option.shown is not None:
        return setting.option.shown
    if setting.default is MISSING or setting.default is None or setting.default is False or setting.default == ():
        return False
    return ",".join(map(str, setting.default if isinstance(setting.default, tuple) else (setting.default,)))


def as_flag(name: str) -> str:
    """Return the flag of a field: ``--max-train-steps`` for ``max_train_steps``."""
    return f"--{name.replace('_', '-')}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint that suggests the most similar known name, for the end of an error; "" if no name is similar.

    Args:
        name: The unknown name.
        known: The known names.

    Returns:
        The hint.
    """
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


def refuse_unknown(
    where: str, noun: str, found: Iterable[str], known: Collection[str], listed_at: str | None = None
) -> None:
    """Raise one error for all unknown names; suggest the most similar known name for each.

    Args:
        where: Beginning of the error, such as a file or a command.
        noun: Word for one name in the error, such as "key".
        found: The names that were given.
        known: The known names.
        listed_at: Page or command that lists all known names; None: the error lists them.

    Raises:
        UsageFault: A name is unknown.
    """
    unknown = [name for name in dict.fromkeys(map(str, found)) if name not in known]
    if not unknown:
        return
    near = [difflib.get_close_matches(name, known, 1) for name in unknown]
    listed = [
        f"{shown(name)} (did you mean {of[0]}?)" if of else shown(name) for name, of in zip(unknown, near, strict=True)
    ]
    expected = f"; see {listed_at}" if listed_at else f"; expected some of {', '.join(sorted(known))}"
    expected = "" if all(near) else expected
    raise UsageFault(f"{where}: unknown {noun}{'s' * (len(unknown) > 1)} {', '.join(listed)}{expected}")


def shown(value: Any) -> str:
    """Return a value as one line of text; quote and escape the text if it is empty or has unprintable characters."""
    text = str(value)
    return text if text and text.isprintable() else repr(value)


@functools.cache
def settings_of(settings: Any) -> Mapping[str, Setting | type]:
    """Return, by field name, the `Setting` of each option of a settings dataclass, or the class of nested settings."""
    hints = get_type_hints(settings)
    found: dict[str, Setting | type] = {}
    for each in fields(settings):
        if is_dataclass(hints[each.name]):
            found[each.name] = hints[each.name]
        elif "option" in each.metadata:
            default = each.default if each.default_factory is MISSING else each.default_factory()
            found[each.name] = _setting(each.name, hints[each.name], default, each.metadata["option"])
    return MappingProxyType(found)


def _setting(name: str, hint: Any, default: Any, option: Option) -> Setting:
    of = set(get_args(hint)) if get_origin(hint) in {Union, UnionType} else {hint}
    optional = NoneType in of
    of -= {NoneType}
    inner = str if of == {str, Path} else of.pop()
    many = get_origin(inner) is tuple and get_args(inner)[1:] == (...,)
    if many:
        inner = get_args(inner)[0]
    choices = get_args(inner) if get_origin(inner) is Literal else ()
    kind = type(choices[0]) if choices else dict if get_origin(inner) is Mapping else inner
    return Setting(name, kind, choices, optional, many, default, option)


def every_setting(settings: Any) -> Iterator[Setting]:
    """Yield the options of a settings dataclass in order, including the options of nested settings."""
    for each in settings_of(settings).values():
        if isinstance(each, Setting):
            yield each
        else:
            yield from every_setting(each)


def declared(settings: type[T]) -> type[T]:
    """Decorate a settings dataclass, so that its errors name keywords instead of flags.

    Args:
        settings: The dataclass. Its ``__post_init__`` raises errors that name flags.

    Returns:
        The same class.
    """
    make: Any = settings.__init__

    @functools.wraps(make)
    def init(self: Any, *values: Any, **named: Any) -> None:
        with keywords_in_errors(settings):
            make(self, *values, **named)

    setattr(settings, "__init__", init)  # noqa: B010 - mypy refuses the assignment
    return settings


@contextmanager
def keywords_in_errors(settings: Any) -> Iterator[None]:
    """Replace flags and arguments by keywords in error messages: `num_inference_steps` for ``--num-inference-steps``.

    Other modules always write flags in their errors, because a flag is easy to find in a sentence. Only this function
    replaces them by keywords, for users of Python. The command line still shows the original text, which
    `OmnigesError.reword` keeps.

    Args:
        settings: The settings dataclass whose flags are replaced.

    Yields:
        Nothing; it changes errors that are raised inside the ``with`` block.

    Raises:
        OmnigesError: The error that was raised in the block, with keywords in its message.
    """
    try:
        yield
    except OmnigesError as error:
        known = {each.flag: each for each in every_setting(settings)}

        def keyword(match: re.Match[str]) -> str:
            setting = known.get(match[0])
            if setting is None:
                return match[0]
            return f"{setting.name}=True" if setting.kind is bool and match.start() else setting.name

        def in_python(text: str) -> str:
            start = _ARGUMENT_IN_ERRORS.match(text)
            setting = None if start is None else known.get(start[0])
            if start is not None and setting is not None and setting.option.argument:
                text = setting.name + text[start.end() :]
            return _NAME_IN_ERRORS.sub(keyword, text)

        error.reword(in_python)
        raise


def present_names(settings: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace former names of settings by their current names.

    Args:
        settings: The settings dataclass.
        values: Values by current or former name.

    Returns:
        The same values by current name; unknown names are unchanged.

    Raises:
        UsageFault: Two names of one setting are given.
    """
    present = {other: each.name for each in every_setting(settings) for other in each.other_names}
    found: dict[str, Any] = {}
    given: dict[str, str] = {}
    for name, value in values.items():
        now = present.get(name, name)
        if now in found:
            raise UsageFault(f"{given[now]} and {name}: expected one name of the setting, found two; give {now} alone")
        found[now], given[now] = value, name
    return found


def check(settings: Any) -> None:
    """Convert each option of a settings object to its type; call it in ``__post_init__``.

    Args:
        settings: An instance of a settings dataclass; changed in place.

    Raises:
        UsageFault: A value has the wrong type or is out of range; the message begins with the flag.
    """
    of: Any = type(settings)
    for name, setting in settings_of(of).items():
        if isinstance(setting, Setting):
            object.__setattr__(settings, name, setting.checked(getattr(settings, name)))


def from_keywords(settings: type[T], values: Mapping[str, Any], function: str) -> T:
    """Create a settings object from the keyword arguments of a function.

    Args:
        settings: A settings dataclass. Nested settings may be passed as one object, or by the names of their fields.
        values: Values by field name.
        function: Name of the function, shown in error messages.

    Returns:
        The settings, after their checks.

    Raises:
        UsageFault: A name is unknown, or a value is invalid.
    """
    values = present_names(settings, values)
    refuse_unknown(function, "setting", values, list(_names_of(settings)))
    built: T = _from_values(settings, values)
    return built


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


@declared
@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The time range of a clip that a command shows: start and length in seconds."""

    start_s: float = option(0.0, "Start of the part to show, in seconds.", "--start", minimum=0)
    seconds: float | None = option(None, "Seconds to show.", above=0, shown="all")

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check(self)


def show_start_option(views: str) -> float:
    """Declare the option ``--show-start``.

    Args:
        views: Outputs of the command that show the time range, such as "page", for the help text.

    Returns:
        A dataclass field.
    """
    return option(0.0, f"Start of the part that {views} show, in seconds.", "--show-start", minimum=0)


def show_seconds_option(views: str) -> float | None:
    """Declare the option ``--show-seconds``.

    Args:
        views: Outputs of the command that show the time range, such as "page", for the help text.

    Returns:
        A dataclass field, whose default None means the whole clip.
    """
    return option(None, f"Seconds that {views} show.", above=0, shown="all")


@declared
@dataclass(frozen=True, slots=True, kw_only=True)
class ShownPart:
    """The time range of each clip that a command shows, set by the flags ``--show-start`` and ``--show-seconds``.

    It replaces `Part` in commands whose flag ``--seconds`` means the length of a clip.
    """

    show_start_s: float = show_start_option("picture, page and video")
    show_seconds: float | None = show_seconds_option("picture, page and video")

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check(self)

    @property
    def chosen(self) -> bool:
        """True if the user has chosen a time range; False: the whole clip is shown."""
        return self.show_start_s > 0 or self.show_seconds is not None

    @property
    def of_part(self) -> dict[str, Any]:
        """Keyword arguments for a `Part` that selects the same time range."""
        return {"start_s": self.show_start_s, "seconds": self.show_seconds}

    @contextmanager
    def flags_in_errors(self) -> Iterator[None]:
        """Replace ``--start`` and ``--seconds`` by ``--show-start`` and ``--show-seconds`` in error messages.

        Yields:
            Nothing; it changes errors that are raised inside the ``with`` block.

        Raises:
            UsageFault: The error that was raised in the block, with the replaced flags.
        """
        try:
            yield
        except UsageFault as error:
            raise UsageFault(_PART_IN_ERRORS.sub("--show-", str(error))) from error


def motion_rate_option(**more: Any) -> float | None:
    """Declare the option ``--motion-rate``: the frame rate, in Hz, of motion files that do not state it.

    Args:
        **more: Further fields of `Option`.

    Returns:
        A dataclass field, whose default None means that files without a frame rate are refused.
    """
    return option(
        None,
        "Frames per second of NPZ files that state no frame rate.",
        "--motion-rate",
        shown="none; files without a rate are refused",
        above=0,
        **more,
    )
