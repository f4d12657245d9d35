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
from dataclasses import MISSING, is_dataclass
from pathlib import Path
from typing import Any, Final, get_args, get_type_hints

import typer

from omniges.cli import app
from omniges.errors import CODES
from omniges.options import Setting, as_flag, default_words, every_setting
from omniges.verify.findings import VERIFY_CODES

PAGES: Final = tuple(Path(__file__).parent / "reference" / name for name in ("commands.md", "findings.md"))
TABLE: Final = re.compile(r"^<!-- (?P<what>flags|findings) (?P<of>[\w -]+) -->\n\n(?P<rows>(?:\|.*\n)*)", re.MULTILINE)


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
        of = getattr(hint, "__metadata__", (hint,))[0]
        settings |= {each.name: each for each in (every_setting(of) if is_dataclass(of) else ())}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        _, said = get_args(parameter.annotation)
        if isinstance(said, typer.models.OptionInfo) and not said.hidden:
            names = [*([said.default] if isinstance(said.default, str) else []), *(said.param_decls or ())]
            names = [part for name in names for part in name.split("/")] or [as_flag(parameter.name)]
            value = _choices(said.metavar or "")
            cells = ", ".join(f"`{name} {value}`" if value else f"`{name}`" for name in names)
            setting = settings.get(parameter.name)
            default = "none" if setting is None and value else "off" if setting is None else _default(setting)
            yield f"| {cells} | {default} | {_plain(said.help or '')} |"


def _default(setting: Setting) -> str:
    """Return the default of an option; a description unchanged, a value as code."""
    if setting.default is MISSING:
        return "required"
    words = default_words(setting)
    if words is False:
        return "off" if setting.kind is bool else "none"
    in_words = setting.option.shown is not None and (setting.option.parse is None or not setting.default)
    return _plain(words) if in_words else f"`{words}`"


def _choices(metavar: str) -> str:
    """Return a placeholder whose choices a table shows alike on every site: ``{a,b}`` in place of ``a|b``."""
    return f"{{{metavar.replace('|', ',')}}}" if "|" in metavar else metavar


def _plain(text: str) -> str:
    """Return plain text with the special characters of Markdown escaped."""
    return re.sub(r"([<>_*|\\])", r"\\\1", text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
