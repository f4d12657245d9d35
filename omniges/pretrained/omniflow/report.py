"""Fates of tensors as a table for people: one line for all that share fate, part and reason."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from omniges.pretrained.omniflow.weight_map import Fate, FateKind

__all__ = ["table_of"]

_KINDS: Final[tuple[FateKind, ...]] = ("loaded", "converted", "new", "left out")
_NUMBER: Final = re.compile(r"\.\d+\.")


def table_of(fates: Iterable[Fate]) -> list[str]:
    """Lines of fate, tensors, learned numbers, part and reason; blocks are counted together."""
    groups: dict[tuple[int, str, str], list[Fate]] = {}
    for fate in fates:
        groups.setdefault((_KINDS.index(fate.kind), _part(fate), fate.reason), []).append(fate)
    rows = [("fate", "tensors", "numbers", "part", "reason")]
    for (kind, part, reason), group in groups.items():
        numbers = sum(fate.numbers for fate in group)
        rows.append((_KINDS[kind], str(len(group)), f"{numbers:,}", part, reason))
    rows[1:] = sorted(rows[1:], key=lambda row: _KINDS.index(row[0]))
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    return [_line(row, widths) for row in rows]


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    fate, tensors, numbers, part, reason = row
    cells = (fate.ljust(widths[0]), tensors.rjust(widths[1]), numbers.rjust(widths[2]), part.ljust(widths[3]), reason)
    return "  ".join(cells)


def _part(fate: Fate) -> str:
    """Where it belongs: of our names the stream and what it is of, of theirs the beginning."""
    name = _NUMBER.sub(".*.", fate.target or fate.source or "")
    words = name.removeprefix("trunk.").split(".")
    if fate.target is None:
        return words[0] if words[0] != "transformer_blocks" else ".".join(words[:3])
    if words[0] == "blocks":
        return f"blocks, {words[3]}" if words[2] == "branches" else "blocks, all streams"
    return words[0] if words[0] == "speaker" else ", ".join(words[:2])
