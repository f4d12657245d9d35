"""Registries of extensions: built in, registered by a program, or provided by an installed package.

A registry maps names to extensions of one type (codecs, metrics, corpora). Its built-in table maps a name to
"module:attribute", so that a module is imported at its first use. Other packages declare extensions as entry points in
the registry's group. Scripts and notebooks have no package metadata, so they register extensions at run time. Entry
points are read at each look-up, without a cache.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Any, Final, Generic, TypeVar, cast

from omniges.errors import EnvironmentFault, OmnigesError, UsageFault

T = TypeVar("T")

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_LONGEST_REASON: Final = 200


@contextmanager
def foreign(who: str, doing: str, remedy: str = "report the error to its authors") -> Iterator[None]:
    """Run code of another package, and convert its exceptions to an EnvironmentFault with a message of one line.

    Args:
        who: Name of the code that runs; the error message begins with it.
        doing: What the code does, such as "loading"; shown in the error message.
        remedy: What the user can do; the end of the error message.

    Yields:
        Nothing; the code runs inside the context.

    Raises:
        EnvironmentFault: The code raised an exception that is not an OmnigesError.
    """
    try:
        yield
    except OmnigesError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_REASON]
        raise EnvironmentFault(f"{who}: {doing} failed ({reason}); {remedy}") from error


@dataclass(frozen=True, slots=True)
class Registry(Generic[T]):
    """Extensions of one type, by name.

    Args:
        noun: Word for an extension, shown in error messages, such as "codec".
        group: Entry-point group of other packages, such as "omniges.codecs".
        kind: Type of every extension: a class, a runtime-checkable protocol, or `Callable`.
        builtin: Names of the built-in extensions, each with its import path "module:attribute".
    """

    noun: str
    group: str
    kind: Any
    builtin: Mapping[str, str] = field(default_factory=dict)
    _registered: dict[str, T] = field(default_factory=dict, init=False, repr=False)

    def register(self, name: str, found: T) -> None:
        """Register an extension under a name for the rest of this process.

        Args:
            name: A new name of letters, digits, '-', '_' and '.'.
            found: The extension; an instance of the registry's `kind`.

        Raises:
            UsageFault: The name is invalid, is built in or is registered for another object, or `found` is not an
                instance of the registry's `kind`.
        """
        if not (isinstance(name, str) and _NAME.fullmatch(name)):
            raise UsageFault(f"{self.noun} {name!r}: expected a name of letters, digits, '-', '_' and '.'")
        if name in self.builtin:
            raise UsageFault(
                f"{self.noun} {name!r}: expected another name than those of omniges, found one of them; choose "
                "another name"
            )
        if (known := self._registered.get(name)) is not None and known is not found:
            raise UsageFault(
                f"{self.noun} {name!r}: expected a name that is not registered, found it registered as {known!r}; "
                "choose another name"
            )
        if not self._fits(found):
            raise UsageFault(f"{self.noun} {name!r}: expected {self._expected}, found {found!r:.{_LONGEST_REASON}}")
        self._registered[name] = found

    def names(self) -> tuple[str, ...]:
        """Return every known name, built-in names first, without importing an extension."""
        return self._names(entry_points(group=self.group))

    def _names(self, points: EntryPoints) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*self.builtin, *self._registered, *sorted(point.name for point in points)]))

    def require(self, name: str, where: str = "") -> None:
        """Check that a name is known.

        Args:
            name: Name of an extension.
            where: Beginning of the error message; if empty, the registry's `noun` and the name, such as "codec 'x'".

        Raises:
            UsageFault: The name is unknown.
        """
        self._require(name, where, self.names())

    def _require(self, name: str, where: str, known: tuple[str, ...]) -> None:
        if name in known:
            return
        near = difflib.get_close_matches(name, known, n=2)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UsageFault(
            f"{where or f'{self.noun} {name!r}'}: expected one of {', '.join(known) or 'none'}{hint} "
            f"(packages with the entry point group {self.group} add others)"
        )

    def get(self, name: str) -> T:
        """Import and return one extension.

        Args:
            name: A name that is built in, registered in this process, or declared as an entry point.

        Returns:
            The extension, an instance of the registry's `kind`.

        Raises:
            UsageFault: The name is unknown; the message lists similar names.
            EnvironmentFault: Two packages use this name, or the extension cannot be loaded.
        """
        points = entry_points(group=self.group)
        self._require(name, "", self._names(points))
        offered = [point for point in points if point.name == name]
        own = ["omniges"] * (name in self.builtin) + ["this program"] * (name in self._registered)
        if len(own) + len(offered) > 1:
            makers = [*own, *map(_distribution, offered)]
            raise EnvironmentFault(
                f"{self.noun} {name!r}: expected one package that provides it, found {' and '.join(makers)}; "
                "uninstall or rename the others"
            )
        if name in self._registered:
            return self._registered[name]
        if offered:
            return self._loaded(offered[0])
        return cast("T", EntryPoint(name, self.builtin[name], self.group).load())

    def require_installed(self, name: str, why: str) -> None:
        """Check that all processes can find an extension, not only the process that registered it.

        Args:
            name: A known name.
            why: Reason why other processes need the extension; shown in the error message.

        Raises:
            UsageFault: Only this process knows the extension, because a program registered it.
        """
        if name in self._registered and all(point.name != name for point in entry_points(group=self.group)):
            raise UsageFault(
                f"{self.noun} {name!r}: expected an entry point, because {why}, found that only this process "
                f"registered it; install it as a package with an entry point {self.group}"
            )

    def _loaded(self, point: EntryPoint) -> T:
        what = f"{self.noun} {point.name!r} of {_distribution(point)}: {point.value}"
        with foreign(what, "loading", "update or uninstall that package"):
            found = point.load()
        if not self._fits(found):
            raise EnvironmentFault(
                f"{what}: expected {self._expected}, found {found!r:.{_LONGEST_REASON}}; update or uninstall "
                "that package"
            )
        return cast("T", found)

    def _fits(self, found: object) -> bool:
        return isinstance(found, self.kind)

    @property
    def _expected(self) -> str:
        return f"an object of {self.kind.__module__}.{self.kind.__qualname__}"


def _distribution(point: EntryPoint) -> str:
    return "an unnamed package" if point.dist is None else f"{point.dist.name} {point.dist.version}"
