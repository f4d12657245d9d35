"""Writes the tables of reference pages that follow from the code: ``python docs/tables.py`` or ``make docs-tables``.

A table follows each of these lines, after an empty line:

* ``<!-- flags of COMMAND -->``: the command's options, as they are declared;
* ``<!-- findings FIRST to LAST -->``: these finding codes of `omniges.errors`, in its order;
* ``<!-- findings of verify-shards -->``: the codes of `omniges.verify`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

import typer

from omniges.cli import app
from omniges.errors import CODES
from omniges.options import Setting, settings_of
from omniges.verify.findings import VERIFY_CODES

PAGES: Final = tuple(Path(__file__).parent / "reference" / name for name in ("commands.md", "findings.md"))
TABLE: Final = re.compile(r"^<!-- (?P<what>flags|findings) (?P<of>[\w -]+) -->\n\n(?P<rows>(?:\|.*\n)*)", re.MULTILINE)
_PLACEHOLDERS: Final = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def commands(program: Any, prefix: str = "") -> dict[str, Callable[..., None]]:
    """Return the functions of all commands by name, such as ``train`` and ``benchmark train``."""
    found = {f"{prefix}{info.name or info.callback.__name__}": info.callback for info in program.registered_commands}
    for group in program.registered_groups:
        found |= commands(group.typer_instance, f"{group.name} ")
    return found


def filled(page: str) -> str:
    """Return the page with the rows that the code makes."""
    known = commands(app)

    def table(match: re.Match[str]) -> str:
        if match["what"] == "flags":
            rows = [
                "| flag | default | meaning |",
                "| --- | --- | --- |",
                *_rows(known[match["of"].removeprefix("of ")]),
            ]
        else:
            rows = [
                "| code | severity | what it means | what to do |",
                "| --- | --- | --- | --- |",
                *_codes(match["of"]),
            ]
        return match[0].removesuffix(match["rows"]) + "\n".join(rows) + "\n"

    return TABLE.sub(table, page)


def _codes(span: str) -> Iterator[str]:
    """Yield rows of finding codes: those ``of verify-shards``, or of a recording, ``FIRST to LAST``."""
    if span == "of verify-shards":
        chosen: dict[str, Any] = dict(VERIFY_CODES)
    else:
        first, last = map(list(CODES).index, span.split(" to "))
        chosen = dict(list(CODES.items())[first : last + 1])
    for code, info in chosen.items():
        yield f"| `{code}` | {info.severity} | {_plain(info.meaning)} | {_plain(info.remedy)} |"


def _rows(command: Callable[..., None]) -> Iterator[str]:
    settings: dict[str, Setting] = {}
    for hint in get_type_hints(inspect.unwrap(command), include_extras=True).values():
        settings |= _settings(getattr(hint, "__metadata__", (hint,))[0])
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        kind, said = get_args(parameter.annotation)
        if isinstance(said, typer.models.OptionInfo):
            names = [*([said.default] if isinstance(said.default, str) else []), *(said.param_decls or ())]
            names = [part for name in names for part in name.split("/")] or [f"--{parameter.name.replace('_', '-')}"]
            value = said.metavar or _placeholder(kind)
            cells = ", ".join(f"`{name} {value}`" if value else f"`{name}`" for name in names)
            default = _default(settings.get(parameter.name), parameter.default, said.show_default)
            yield f"| {cells} | {default} | {_plain(said.help or '')} |"


def _settings(of: Any) -> dict[str, Setting]:
    """The options of a settings dataclass and of settings inside it."""
    found: dict[str, Setting] = {}
    for name, each in (settings_of(of) if hasattr(of, "__dataclass_fields__") else {}).items():
        found |= {name: each} if isinstance(each, Setting) else _settings(each)
    return found


def _placeholder(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return r"\|".join(get_args(kind))
    if get_origin(kind) is tuple:
        return " ".join(map(_placeholder, get_args(kind)))
    if get_origin(kind):  # a list, or a type or None
        return _placeholder(get_args(kind)[0])
    return _PLACEHOLDERS.get(kind, "")


def _default(setting: Setting | None, default: Any, shown: object) -> str:
    """A default in words as it stands there, a value as code."""
    if setting is None and isinstance(shown, str):
        return _plain(shown)
    if setting is not None:
        if setting.option.shown is not None and (setting.option.parse is None or setting.default is None):
            return _plain(setting.option.shown)
        default = setting.option.shown or setting.default
    if default in {MISSING, inspect.Parameter.empty}:
        return "needed"
    if default is None or default == ():
        return "none"
    many = isinstance(default, tuple)
    return "off" if default is False else f"`{','.join(map(str, default)) if many else default}`"


def _plain(text: str) -> str:
    """Plain text as Markdown that shows it letter by letter."""
    return re.sub(r"([<>_*|\\])", r"\\\1", text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
