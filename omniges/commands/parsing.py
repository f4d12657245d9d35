"""Parsing of command lines: aliases of options, errors of one line, and help texts that show option names in full."""

from __future__ import annotations

import inspect
import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

import typer
from typer.core import TyperCommand, TyperGroup

from omniges.options import refuse_unknown

if TYPE_CHECKING:
    from rich.console import RenderableType

UsageError: Final = cast("type[Exception]", typer.BadParameter.__mro__[1])
"""Typer's exception for an invalid command line; Typer does not export the class."""


def present_words(
    words: Iterable[str], values: Mapping[str, int], present: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """Replace the names of options in a command line by their current names; values do not change.

    Args:
        words: Arguments of a command. Names of options may contain underscores, as in ``--max_train_steps=8``.
        values: Number of values that follow each option of the command.
        present: Mapping from other accepted names of options to their current names. The current name is "" if the
            value is now an argument without a name.

    Returns:
        The arguments with current names, and the names of unknown options as the user wrote them.
    """
    found: list[str] = []
    unknown: list[str] = []
    left = iter(words)
    for word in left:
        if word == "--":
            return [*found, word, *left], unknown
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            written, name = name, name.replace("_", "-")
            name = present.get(name, name)
            if not name and (argument := [value] if equals else [*islice(left, 1)]):
                found += argument
                continue
            if name not in values:
                unknown.append(written)
        found.append(name + equals + value)
        if not equals:
            found += islice(left, values.get(name, 0))
    return found, unknown


class Command(TyperCommand):
    """A command whose options may be written with underscores or by their other names."""

    present: ClassVar[Mapping[str, str]] = {}
    """Mapping from other accepted names of options to their current names; "" for the name of an argument."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse a command line.

        Args:
            ctx: Typer's context, which stores the parsed values.
            args: The command line after the command's name.

        Returns:
            The arguments that belong to no option or parameter of the command.

        Raises:
            UsageFault: Options are unknown; the error names all of them.
        """
        values = {
            name: 0 if getattr(each, "is_flag", False) else each.nargs
            for each in self.get_params(ctx)
            if each.param_type_name == "option"
            for name in (*each.opts, *each.secondary_opts)
        }
        words, unknown = present_words(args, values, self.present)
        if not ctx.resilient_parsing:
            known = [name for name in values if name.startswith("--")]
            refuse_unknown(ctx.command_path, "option", unknown, known, f"{ctx.command_path} --help")
        return super().parse_args(ctx, words)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print usage, purpose, and the options by panel."""
        _print_help(self, ctx)


class Group(TyperGroup):
    """Several commands under one name. Its help has the same form as the help of a command."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print usage, purpose, the options and the commands."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        _print_help(self, ctx, [([name], _paragraphs(each)[0]) for name, each in commands if each and not each.hidden])


def command_class(function: Callable[..., None]) -> type[Command]:
    """Return a subclass of `Command` for a function that `with_flags` decorated.

    The subclass also accepts the alternative option names that `with_flags` stored in the function.
    """
    return type("Command", (Command,), {"present": getattr(function, "present", {})})


def usage_line(error: Any) -> str:
    """Format an error of Typer as one line that ends with the command to run for help."""
    help_at = f"; see {error.ctx.command_path} --help" if getattr(error, "ctx", None) else ""
    if hasattr(error, "param_type") and error.param is not None:
        names: Sequence[str] = error.param.opts if error.param.param_type_name == "option" else [error.param.metavar]
        return f"{max(names, key=len)}: expected a value, because it is required, found none{help_at}"
    text = " ".join(error.format_message().split()).rstrip(".")
    return f"{text[:1].lower()}{text[1:]}{help_at}"


def _paragraphs(command: Any) -> list[str]:
    """Return the help text of a command, one line for each paragraph."""
    return [" ".join(each.split()) for each in re.split(r"\n\s*\n", inspect.cleandoc(command.help or ""))]


def _print_help(command: Any, ctx: Any, commands: Sequence[tuple[list[str], str]] = ()) -> None:
    """Print help at the width of the terminal.

    Args:
        command: Command or group to describe.
        ctx: Typer's context of the command.
        commands: Name and purpose of each command in a group.
    """
    from rich.console import Console
    from rich.panel import Panel

    panels: defaultdict[str, list[tuple[list[str], str]]] = defaultdict(list)
    for each in command.get_params(ctx):
        if not getattr(each, "hidden", False):
            argument = each.param_type_name == "argument"
            panels[each.rich_help_panel or ("Arguments" if argument else "Other")].append(
                (_names(each), _meaning(each))
            )
    last = panels.pop("Other", [])
    if last:
        panels["Other" if panels else "Options"] = last
    if commands:
        panels["Commands"] = list(commands)
    width = max(len(line) for rows in panels.values() for names, _ in rows for line in names)
    console = Console(highlight=False)
    console.print(f"[bold]{ctx.get_usage()}[/]", "", "\n\n".join(_paragraphs(command)), "", sep="\n", soft_wrap=False)
    for name, rows in panels.items():
        console.print(Panel(_table(rows, width), title=name, title_align="left", border_style="dim"))


_NAME_WIDTH: Final = 36  # largest width of the first column in characters; longer text continues on the next line


def _table(rows: Sequence[tuple[list[str], str]], width: int) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    table.add_column(no_wrap=True, overflow="fold", min_width=width, style="bold cyan")
    table.add_column(ratio=1)
    for names, meaning in rows:
        table.add_row(Text("\n".join(names)), Text(meaning))
    return table


def _names(option: Any) -> list[str]:
    """Return the names and the value placeholder of an option, in lines of at most `_NAME_WIDTH` characters."""
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
    """Return the help text of an option, with its default."""
    default = option.show_default if isinstance(option.show_default, str) else ""
    said = "  [required]" if option.required else f"  [default: {default}]" if default else ""
    return f"{option.help or ''}{said}"
