"""Parsing of command lines: accepted forms of option names, and errors of one line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar, Final, cast

import typer
from typer.core import TyperCommand

from omniges.options import refuse_unknown

UsageError: Final = cast("type[Exception]", typer.BadParameter.__mro__[1])
"""Typer's exception for an invalid command line; Typer does not export the class."""


def present_words(
    words: Iterable[str], values: Mapping[str, int], present: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """Return a command line with the present names of its options and unchanged values.

    Args:
        words: Arguments of a command; ``--max_train_steps=8`` has an option's name with underscores.
        values: Number of values that follow each option of the command.
        present: Present names of options by their other names.

    Returns:
        The arguments, and the unknown options as they were written.
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
            if name not in values:
                unknown.append(written)
        found.append(name + equals + value)
        if not equals:
            found += islice(left, values.get(name, 0))
    return found, unknown


class Command(TyperCommand):
    """A command whose options may be written with underscores or by their other names."""

    present: ClassVar[Mapping[str, str]] = {}
    """Present names of options by their other names."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse a command line.

        Args:
            ctx: Typer's context.
            args: The arguments.

        Returns:
            The remaining arguments.

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
        """Print the help of the command."""
        from omniges.commands.help import print_help

        print_help(self, ctx)


def command_class(function: Callable[..., None]) -> type[Command]:
    """Return the command class of a function, with the other names of its options."""
    return type("Command", (Command,), {"present": getattr(function, "present", {})})


def usage_line(error: Any) -> str:
    """Return an error of Typer as one line that names the command for help."""
    help_at = f"; see {error.ctx.command_path} --help" if getattr(error, "ctx", None) else ""
    if hasattr(error, "param_type") and error.param is not None:
        names: Sequence[str] = error.param.opts if error.param.param_type_name == "option" else [error.param.metavar]
        return f"{max(names, key=len)}: it is required, but was not given{help_at}"
    text = " ".join(error.format_message().split()).rstrip(".")
    return f"{text[:1].lower()}{text[1:]}{help_at}"
