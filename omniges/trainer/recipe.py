"""Recipes: YAML files of training settings. Flags override recipes. The package contains some recipes."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Final

import yaml  # type: ignore[import-untyped]

from omniges.errors import DataError, UsageFault
from omniges.options import present_names, refuse_unknown, settings_of
from omniges.storage.files import read_file
from omniges.storage.redact import one_line
from omniges.trainer.config import TrainSettings

_TEXT: Final = "tag:yaml.org,2002:str"
_MAX_BYTES: Final = 1 << 16
_RECIPES: Final = Path(__file__).parents[1] / "recipes"


def load_settings(recipe: Path | None, flags: Mapping[str, Any]) -> TrainSettings:
    """Return the settings of a recipe, overridden by flags.

    Args:
        recipe: Name of a packaged recipe, or a YAML file; None: only flags. The keys in the recipe are fields of
            `TrainSettings`, written with ``_`` or ``-``.
        flags: Value of each flag, by field of `TrainSettings`; None or an empty list: the user did not pass the flag.

    Returns:
        The checked settings.

    Raises:
        UsageFault: A key or value is invalid; the error names the flag, or the line in the recipe.
    """
    given = {name: value for name, value in flags.items() if value is not None and value != []}
    read = {} if recipe is None else _read(recipe)
    try:
        return TrainSettings(**(read | given))
    except UsageFault as error:
        if any(re.match(rf"{name}\b", str(error)) for name in read.keys() - given.keys()):
            raise UsageFault(f"--recipe {recipe}: {error}") from error
        raise


def packaged_recipes() -> dict[str, Path]:
    """Return the recipe files of the package, by name."""
    return {path.stem: path for path in sorted(_RECIPES.glob("*.yaml"))}


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Safe YAML loader that also refuses repeated keys, keys that are not text, and aliases.

    Aliases are refused because nested aliases can expand a small file without limit.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="an alias; write the value out", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.tag != _TEXT:
                raise yaml.MarkedYAMLError(problem="a key that is no text", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        found: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return found


def _require_plain(where: str, value: Any) -> None:
    """Raise UsageFault for values that no setting can have: dates, bytes, sets, NaN and infinite numbers."""
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    for one in inner:
        _require_plain(where, one)
    number = type(value) is float and not math.isfinite(value)
    if number or not isinstance(value, (str, int, float, list, dict, NoneType)):
        raise UsageFault(f"{where}: expected a text, a finite number, true, false or a list, found {value!r:.60}")


def _expanded(where: str, value: Any) -> Any:
    """Return a setting's value in which ``~`` at the start of a path is replaced by the home folder.

    Examples of such values are ``~/shards`` and ``name=~/folder``. Lists are processed item by item. The setting
    ``cache_dir`` and all other values are returned unchanged. `where` names the setting.

    Raise UsageFault if the home folder cannot be found.
    """
    if isinstance(value, list):
        return [_expanded(where, one) for one in value]
    name, equals, path = value.rpartition("=") if isinstance(value, str) else ("", "", "")
    # Checkpoints store `cache_dir`. It keeps its ~, because another machine may read the checkpoint.
    if (path != "~" and not path.startswith("~/")) or where.endswith(": cache_dir"):
        return value
    try:
        return f"{name}{equals}{Path(path).expanduser()}"
    except RuntimeError as error:
        raise UsageFault(
            f"{where}: expected a path whose ~ can be expanded, found an error ({error}); write the absolute path"
        ) from error


def _read(path: Path) -> dict[str, Any]:
    packaged = packaged_recipes()
    path = packaged.get(str(path), path)
    try:
        document = yaml.load(read_file(path, _MAX_BYTES).decode("utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except FileNotFoundError as error:
        names = ", ".join(packaged)
        raise UsageFault(
            f"--recipe {path}: expected a YAML file, found that the file does not exist; check the path, or name a "
            f"recipe of omniges ({names})"
        ) from error
    except DataError as error:  # not a regular file, or too large
        raise UsageFault(f"--recipe {error}") from error
    except UnicodeDecodeError as error:
        raise UsageFault(f"--recipe {path}: expected UTF-8 text, found other bytes; name a YAML file") from error
    except RecursionError as error:
        raise UsageFault(
            f"--recipe {path}: expected lines of the form 'key: value', found deeper nesting; write one setting a line"
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UsageFault(
            f"--recipe {path}{place}: expected YAML, found a mistake ({problem}); correct the file"
        ) from error
    except ValueError as error:  # an impossible date or number
        raise UsageFault(
            f"--recipe {path}: expected YAML, found a mistake ({one_line(str(error), 80)}); correct the file"
        ) from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise UsageFault(
            f"--recipe {path}: expected lines of the form 'key: value', found {document!r:.60}; write one setting a "
            "line"
        )
    found = {name.replace("-", "_"): value for name, value in document.items()}
    if len(found) != len(document):
        written = [name.replace("-", "_") for name in document]
        twice = next(name for name in written if written.count(name) > 1)
        raise UsageFault(
            f"--recipe {path}: expected each key once, found {twice} twice, once with - and once with _; remove one "
            "of the two"
        )
    for name, value in found.items():
        where = f"--recipe {path}: {name}"
        _require_plain(where, value)
        found[name] = _expanded(where, value)
    try:
        found = present_names(TrainSettings, found)
    except UsageFault as error:
        raise UsageFault(f"--recipe {path}: {error}") from error
    refuse_unknown(f"--recipe {path}", "key", found, settings_of(TrainSettings))
    return found
