"""Help of a command: its options in panels by theme, with no name cut at 80 columns."""

from __future__ import annotations

import inspect
import itertools
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.console import RenderableType

_NAME_WIDTH: Final = 36  # of the first column at most: what is longer goes on below


def print_help(command: Any, ctx: Any) -> None:
    """Print usage, purpose, and the options by panel.

    Args:
        command: The Typer command.
        ctx: Its context.
    """
    from rich.console import Console
    from rich.panel import Panel

    panels: defaultdict[str, list[Any]] = defaultdict(list)
    for each in command.get_params(ctx):
        if not getattr(each, "hidden", False):
            argument = each.param_type_name == "argument"
            panels[each.rich_help_panel or ("Arguments" if argument else "Other")].append(each)
    last = [panels.pop("Other")] if "Other" in panels else []
    rows = {name: [(_names(each), _meaning(each)) for each in of] for name, of in panels.items()}
    if last:
        rows["Other" if rows else "Options"] = [(_names(each), _meaning(each)) for each in last[0]]
    width = max(len(line) for of in rows.values() for names, _ in of for line in names)
    console = Console(highlight=False)
    console.print(
        f"[bold]{command.get_usage(ctx)}[/]", "", inspect.cleandoc(command.help or ""), "", sep="\n", soft_wrap=False
    )
    for name, of in rows.items():
        console.print(Panel(_table(of, width), title=name, title_align="left", border_style="dim"))


def _table(rows: list[tuple[list[str], str]], width: int) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    table.add_column(no_wrap=True, overflow="fold", min_width=width, style="bold cyan")
    table.add_column(ratio=1)
    for names, meaning in rows:
        table.add_row(Text("\n".join(names)), Text(meaning))
    return table


def _names(option: Any) -> list[str]:
    """Names and value of an option, in lines of at most `_NAME_WIDTH`."""
    if option.param_type_name == "argument":
        return [option.metavar]
    named = sorted(option.opts, key=len)
    if option.secondary_opts:
        named[-1] = f"--[no-]{named[-1].removeprefix('--')}"
    names, value = ", ".join(named), option.metavar or ""
    if len(names) + len(value) < _NAME_WIDTH:
        return [f"{names} {value}".rstrip()]
    parts = re.findall(r"[^|]+\|?", value)
    lines, line = [names], "  "
    for part, following in itertools.zip_longest(parts, parts[1:], fillvalue=""):
        line += part
        if len(line) + len(following) > _NAME_WIDTH or not following:
            lines.append(line)
            line = "  "
    return lines


def _meaning(option: Any) -> str:
    """Help text of an option, with its default."""
    default = option.show_default if isinstance(option.show_default, str) else ""
    said = "  [required]" if option.required else f"  [default: {default}]" if default else ""
    return f"{option.help or ''}{said}"
