"""Checks of the arguments of public functions.

Each function returns the value converted to its final type, or raises UsageFault with one line that names the argument.
A type checker finds the same errors, but most scripts and notebooks run without a type checker.
"""

from __future__ import annotations

import math
import numbers
import os
import reprlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Final, TypeVar

from omniges.errors import UsageFault

T = TypeVar("T")

_MAX_NAME_BYTES: Final = 255  # longest file name on Linux


def refuse(name: str, expected: str, found: object) -> UsageFault:
    """Return a UsageFault of one line: name of the argument, description of valid values, and the invalid value.

    Args:
        name: Name of the argument, for the error.
        expected: Description of valid values, such as "a whole number".
        found: The value that was passed.

    Returns:
        The error, for the caller to raise.
    """
    return UsageFault(f"{name}: expected {expected}, found {reprlib.repr(found)}")


def integer(name: str, value: Any, minimum: int | None = None, below: int | None = None) -> int:
    """Check that a value is a whole number, and return it as `int`; numpy's integers are valid too.

    Args:
        name: Name of the argument, for the error.
        value: The value that was passed.
        minimum: Smallest valid number.
        below: Upper limit, exclusive: the value must be smaller than this number.

    Returns:
        The number.

    Raises:
        UsageFault: The value is not a whole number or is out of range. True and False also raise this error.
    """
    if not isinstance(value, bool) and isinstance(value, numbers.Integral):
        number = int(value)
        if (minimum is None or number >= minimum) and (below is None or number < below):
            return number
    limits = ("" if minimum is None else f" of at least {minimum}") + ("" if below is None else f" below {below}")
    raise refuse(name, f"a whole number{limits}", value)


def number(name: str, value: Any, minimum: float = -math.inf) -> float:
    """Check that a value is a finite number, and return it as `float`.

    Args:
        name: Name of the argument, for the error.
        value: The value that was passed.
        minimum: Smallest valid number.

    Returns:
        The number.

    Raises:
        UsageFault: The value is not a number, or it is NaN, infinite or too small. True and False also raise this
            error.
    """
    if not isinstance(value, bool) and isinstance(value, numbers.Real):
        found = float(value)
        if math.isfinite(found) and found >= minimum:
            return found
    raise refuse(name, "a finite number" if minimum == -math.inf else f"a number of at least {minimum:g}", value)


def flag(name: str, value: Any) -> bool:
    """Check that a value is True or False, and return it.

    Args:
        name: Name of the argument, for the error.
        value: The value that was passed.

    Returns:
        The value.

    Raises:
        UsageFault: The value is neither True nor False; the text "no", for example, is not accepted.
    """
    return instance(name, value, bool, "True or False")


def text(name: str, value: Any) -> str:
    """Check that a value is a text (`str`), and return it.

    Args:
        name: Name of the argument, for the error.
        value: The value that was passed.

    Returns:
        The text.

    Raises:
        UsageFault: The value is not a `str`.
    """
    return instance(name, value, str, "a text")


def texts(name: str, value: Any) -> tuple[str, ...]:
    """Check that a value is one text or several texts, and return a tuple of texts.

    Args:
        name: Name of the argument, for the error.
        value: One text, or an iterable of texts.

    Returns:
        The texts.

    Raises:
        UsageFault: The value is not a text or an iterable, or one of its items is not a text.
    """
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        found = tuple(value)
        if all(isinstance(one, str) for one in found):
            return found
    raise refuse(name, "a text or a list of texts", value)


def choice(name: str, value: Any, among: Collection[str]) -> str:
    """Check that a value is one of the valid texts, and return it.

    Args:
        name: Name of the argument, for the error.
        value: The value that was passed.
        among: The valid texts.

    Returns:
        The text.

    Raises:
        UsageFault: The value is not one of the valid texts.
    """
    if isinstance(value, str) and value in among:
        return value
    raise refuse(name, f"one of {', '.join(among)}", value)


def instance(name: str, value: Any, kind: type[T], expected: str) -> T:
    """Check that an object is an instance of a class, and return it.

    Args:
        name: Name of the argument, for the error.
        value: The value that was passed.
        kind: Class of valid objects.
        expected: Description of a valid object, for the error.

    Returns:
        The object.

    Raises:
        UsageFault: The value is of another class.
    """
    if isinstance(value, kind):
        return value
    raise refuse(name, expected, value)


def path(name: str, value: Any) -> Path:
    """Check that a value is a local path, and return it; expand a leading ``~`` as the shell does.

    Args:
        name: Name of the argument, for the error.
        value: A `str` or `os.PathLike`.

    Returns:
        The path.

    Raises:
        UsageFault: The value is not a path, is empty or a URL, or contains a name that the operating system does not
            allow.
    """
    given: Any = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(given, str) or not given:
        raise refuse(name, "a path", value)
    if "://" in given:
        raise refuse(name, "a local path, not a URL", value)
    require_file_names(name, given)
    try:
        return Path(given).expanduser()
    except RuntimeError as error:
        raise UsageFault(
            f"{name}: expected a path whose ~ can be expanded, found an error ({error}); give the absolute path"
        ) from error


def require_file_names(name: str, given: str) -> None:
    """Refuse a path with names that the operating system does not allow.

    Args:
        name: Name of the argument, for the error.
        given: Path to check.

    Raises:
        UsageFault: The path contains NUL or a character that file names cannot have, or a name that is too long.
    """
    try:
        parts = os.fsencode(given).split(b"/")
    except UnicodeEncodeError as error:
        raise refuse(name, "a path of Unicode characters", given) from error
    if any(b"\0" in part for part in parts):
        raise refuse(name, "a path without NUL characters", given)
    if any(len(part) > _MAX_NAME_BYTES for part in parts):
        raise refuse(name, f"a path whose names have at most {_MAX_NAME_BYTES} bytes each", given)
