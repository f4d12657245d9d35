"""Registry of condition streams: built in, registered in Python, or provided by installed packages.

Another package provides a stream as an entry point of the group ``omniges.streams``. The stream is imported only when
a command uses its name.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from omniges.conditions.base import ConditionStream
from omniges.errors import DataError, UsageFault
from omniges.registry import Registry, foreign
from omniges.storage.documents import Document

CONDITIONS: Final[Registry[Any]] = Registry(
    "condition stream", "omniges.streams", type, {"emotion": "omniges.conditions.emotion:Emotion"}
)
_GENERATED: Final = ("gesture", "text", "audio")
_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")


def register_stream(name: str, stream: type[ConditionStream]) -> None:
    """Register a condition stream in this process. Processes that load batches import the class by module and name.

    Args:
        name: Name of lower-case letters, digits and ``_``; it must equal the class's ``name``.
        stream: A class that can be imported by its module and name.

    Raises:
        UsageFault: The name is taken, or the class is not a condition stream of that name.
    """
    CONDITIONS.register(name, _checked(name, stream, "register_stream"))


def find_stream(name: str, origin: str) -> type[ConditionStream]:
    """Return the class of a condition stream.

    Args:
        name: Name of the stream.
        origin: Flag or file that contains the name; errors begin with it.

    Returns:
        The class, not an instance.

    Raises:
        UsageFault: No stream of this name is registered or installed.
        EnvironmentFault: The package that provides the stream cannot be used.
    """
    CONDITIONS.require(name, f"{origin} {name}")
    return _checked(name, CONDITIONS.get(name), f"{origin} {name}")


def load_class(path: str) -> Any:
    """Import a class and return it; `path` is ``module:Class``, or ``module:Outer.Class`` for a nested class."""
    module, _, name = path.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _checked(name: str, stream: Any, who: str) -> type[ConditionStream]:
    if not (isinstance(stream, type) and issubclass(stream, ConditionStream) and stream.name == name):
        raise UsageFault(f"{who}: expected a subclass of ConditionStream with the name {name!r}, found {stream!r:.100}")
    if name in _GENERATED or not _NAME.fullmatch(name):
        raise UsageFault(
            f"{who}: expected a name of lower-case letters, digits and _ (but none of {', '.join(_GENERATED)}), "
            f"found {name!r}; rename the condition stream"
        )
    return stream


# --- storage of streams in checkpoints, and transfer to processes that load batches


def specification(stream: ConditionStream) -> dict[str, Any]:
    """Return a stream's class and learned values as a JSON object, from which `load_streams` restores the stream."""
    kind = type(stream)
    return {"class": f"{kind.__module__}:{kind.__qualname__}", "settings": stream.settings()}


def load_streams(found: Mapping[str, Mapping[str, Any]]) -> dict[str, ConditionStream]:
    """Restore streams from their specifications. The streams need not be registered in this process.

    Args:
        found: Specifications by name, as `specification` returns them.

    Returns:
        The streams by name.

    Raises:
        EnvironmentFault: A class cannot be imported in this process.
    """
    streams = {}
    for name, one in found.items():
        with foreign(f"condition stream {name}", f"importing {one['class']}"):
            streams[name] = load_class(one["class"]).from_settings(one["settings"])
    return streams


def saved_streams(document: Document) -> dict[str, ConditionStream]:
    """Restore streams from the specifications in a checkpoint.

    Args:
        document: Configuration of the checkpoint; its optional key ``conditions`` contains specifications by name.

    Returns:
        The streams by name.

    Raises:
        DataError: A specification is malformed.
        UsageFault: No stream of this name is registered or installed.
        EnvironmentFault: The package that provides a stream cannot be used.
    """
    streams = {}
    for name in document.part("conditions").found if "conditions" in document.found else ():
        one = document.part("conditions").part(name)
        made_by = one.typed("class", str)
        one.require_only_keys({"class", "settings"})
        kind = find_stream(name, f"{document.where}: the model was trained with {made_by}, condition stream")
        try:
            with foreign(f"condition stream {name}", "reading its learned values"):
                streams[name] = kind.from_settings(one.part("settings").found)
        except DataError as error:
            raise DataError(f"{document.where}: {error}") from error
    return streams


def find_streams(names: Iterable[str], origin: str) -> dict[str, type[ConditionStream]]:
    """Return classes of condition streams by name.

    Args:
        names: Names of the streams.
        origin: Flag or file that contains the names; errors begin with it.

    Returns:
        The classes by name.

    Raises:
        UsageFault: A name is unknown or given twice.
        EnvironmentFault: A package that provides a stream cannot be used.
    """
    wanted = list(names)
    twice = sorted({name for name in wanted if wanted.count(name) > 1})
    if twice:
        raise UsageFault(f"{origin} {twice[0]}: expected each name once, found it twice; remove one of the two")
    return {name: find_stream(name, origin) for name in wanted}


def labels_read(streams: Iterable[ConditionStream | type[ConditionStream]]) -> tuple[str, ...]:
    """Return the sorted names of all labels that the streams read."""
    return tuple(sorted({label for stream in streams for label in stream.labels}))


def layout(streams: Mapping[str, ConditionStream]) -> Sequence[tuple[str, str, tuple[int, ...]]]:
    """Return the name, dtype and shape of each stream's array for one window, for the allocation of batches."""
    found: list[tuple[str, str, tuple[int, ...]]] = []
    for name, stream in streams.items():
        found += [(f"condition.{name}", stream.dtype, stream.shape), (f"known.{name}", "|b1", ())]
    return found
