"""Recipes: YAML files of training settings, which flags override; some come with the package."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, Final

import yaml  # type: ignore[import-untyped]

from omniges.errors import UsageFault
from omniges.options import settings_of
from omniges.trainer.config import TrainSettings, check_keys

_RECIPES: Final = Path(__file__).parents[1] / "recipes"


def load_settings(recipe: Path | None, flags: Mapping[str, Any]) -> TrainSettings:
    """Return the settings of a recipe, overridden by flags.

    Args:
        recipe: The name of a packaged recipe, or a YAML file whose keys are fields of `TrainSettings`, with ``_`` or
            ``-``.
        flags: Values by field; None and an empty list stand for a flag that was not given.

    Returns:
        The checked settings.

    Raises:
        UsageFault: With the recipe's line, or the flag's name.
    """
    given = {name: value for name, value in flags.items() if value is not None and value != []}
    return TrainSettings(**(({} if recipe is None else _read(recipe)) | given))


def packaged_recipes() -> dict[str, Path]:
    """Return the files of the recipes that come with the package, by name."""
    return {path.stem: path for path in sorted(_RECIPES.glob("*.yaml"))}


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """The safe loader, but a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
        found: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return found


def _read(path: Path) -> dict[str, Any]:
    packaged = packaged_recipes()
    path = packaged.get(str(path), path)
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        names = ", ".join(packaged)
        raise UsageFault(f"--recipe {path}: {error.strerror}: name a YAML file, or one of {names}") from error
    except UnicodeDecodeError as error:
        raise UsageFault(f"--recipe {path}: not UTF-8 text: name a YAML file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UsageFault(f"--recipe {path}{place}: not YAML ({problem})") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise UsageFault(f"--recipe {path}: lines of the form 'key: value' expected, found {document!r:.60}")
    found = {str(name).replace("-", "_"): value for name, value in document.items()}
    check_keys(f"--recipe {path}", found, settings_of(TrainSettings))
    return found
