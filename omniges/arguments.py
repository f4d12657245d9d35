"""Checks of what a program passes to a public function: a value as it is used, or one line that names the argument.

Annotations say the same to a type checker, which most scripts and notebooks do not run.
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

_MOST_NAME_BYTES: Final = 255  # of a file name on Linux


def refuse(name: str, expected: str, found: object) -> UsageFault:
    """Return the error for an argument, in one line.

    Args:
        name: The argument.
        expected: What it may be, such as "a whole number".
        found: The value.

    Returns:
        The error, for the caller to raise.
    """
    return UsageFault(f"{name}: {expected} expected, found {reprlib.repr(found)}")


def whole(name: str, value: Any, least: int | None = None, below: int | None = None) -> int:
    """Return a whole number, which may be numpy's.

    Args:
        name: The argument.
        value: What was passed.
        least: Smallest number that is accepted.
        below: Number that it must be smaller than.

    Returns:
        The number.

    Raises:
        UsageFault: It is no whole number, or out of range. True and False are none.
    """
    if not isinstance(value, bool) and isinstance(value, numbers.Integral):
        number = int(value)
        if (least is None or number >= least) and (below is None or number < below):
            return number
    limits = ("" if least is None else f" of at least {least}") + ("" if below is None else f" below {below}")
    raise refuse(name, f"a whole number{limits}", value)


def number(name: str, value: Any, least: float = -math.inf) -> float:
    """Return a finite number.

    Args:
        name: The argument.
        value: What was passed.
        least: Smallest number that is accepted.

    Returns:
        The number.

    Raises:
        UsageFault: It is no number, NaN, infinite or too small.
    """
    if not isinstance(value, bool) and isinstance(value, numbers.Real):
        found = float(value)
        if math.isfinite(found) and found >= least:
            return found
    raise refuse(name, "a finite number" if least == -math.inf else f"a number of at least {least:g}", value)


def flag(name: str, value: Any) -> bool:
    """Return True or False; raise UsageFault for anything else, such as the text "no"."""
    if isinstance(value, bool):
        return value
    raise refuse(name, "True or False", value)


def text(name: str, value: Any) -> str:
    """Return a text; raise UsageFault for anything else."""
    if isinstance(value, str):
        return value
    raise refuse(name, "a text", value)


def texts(name: str, value: Any) -> tuple[str, ...]:
    """Return several texts; a single one may be given alone.

    Args:
        name: The argument.
        value: A text, or an iterable of texts.

    Returns:
        The texts.

    Raises:
        UsageFault: It is neither, or one of them is no text.
    """
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        found = tuple(value)
        if all(isinstance(one, str) for one in found):
            return found
    raise refuse(name, "a text or a list of texts", value)


def choice(name: str, value: Any, among: Collection[str]) -> str:
    """Return a text that is one of several.

    Args:
        name: The argument.
        value: What was passed.
        among: Accepted texts.

    Returns:
        The text.

    Raises:
        UsageFault: It is another one.
    """
    if isinstance(value, str) and value in among:
        return value
    raise refuse(name, f"one of {', '.join(among)}", value)


def instance(name: str, value: Any, kind: type[T], expected: str) -> T:
    """Return an object of a class.

    Args:
        name: The argument.
        value: What was passed.
        kind: The class.
        expected: What errors call it.

    Returns:
        The object.

    Raises:
        UsageFault: It is of another class.
    """
    if isinstance(value, kind):
        return value
    raise refuse(name, expected, value)


def path(name: str, value: Any) -> Path:
    """Return a local path, with a leading ``~`` expanded as the shell does.

    Args:
        name: The argument.
        value: A `str` or `os.PathLike`.

    Returns:
        The path.

    Raises:
        UsageFault: It is no path, empty, a URL, or has a name that no file can have.
    """
    given: Any = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(given, str) or not given or "\0" in given:
        raise refuse(name, "a path", value)
    if "://" in given:
        raise refuse(name, "a local path, not a URL", value)
    if any(len(os.fsencode(part)) > _MOST_NAME_BYTES for part in given.split("/")):
        raise refuse(name, f"a path of names of at most {_MOST_NAME_BYTES} bytes", value)
    try:
        return Path(given).expanduser()
    except RuntimeError as error:
        raise UsageFault(f"{name}: {error}; give the whole path") from error
