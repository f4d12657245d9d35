"""Which windows of a split are validated on: evenly over speakers, recordings and time, and the same in every run.

As the loader's unshuffled order has them, a clip of n ticks holds floor(n/w) windows that begin at 0, w, 2w, …
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeVar

__all__ = ["Clip", "Place", "choose_places", "spread"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, order=True)
class Clip:
    """A recording that windows can be taken from."""

    source: int  # number of the folder
    key: str
    speaker: str  # "" where it is not known
    ticks: int


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a window lies."""

    source: int
    key: str
    start_tick: int


def spread(count: int) -> list[int]:
    """0 … count − 1 in an order whose every beginning is about evenly spread, the middle first.

    By the binary digits of the numbers read backwards (van der Corput 1935).
    """
    bits = max(1, (count - 1).bit_length())
    mirrored = sorted(range(count), key=lambda number: int(f"{number:0{bits}b}"[::-1], 2))
    return [(number + count // 2) % count for number in mirrored]


def choose_places(clips: Iterable[Clip], window_ticks: int, limit: int) -> list[Place]:
    """At most `limit` windows, in the order of folders, keys and time.

    Speakers take turns, and in each turn of a speaker so do that speaker's recordings; of a recording the window
    farthest from those taken comes next. Recordings shorter than a window have no part.
    """
    speakers: dict[str, list[list[Place]]] = {}
    for clip in sorted(clips):
        count = clip.ticks // window_ticks
        if count:
            own = [Place(clip.source, clip.key, window_ticks * k) for k in spread(count)]
            speakers.setdefault(clip.speaker, []).append(own)
    by_speaker = [_in_turns([own[k] for k in spread(len(own))]) for _, own in sorted(speakers.items())]
    return sorted(_in_turns([by_speaker[k] for k in spread(len(by_speaker))])[:limit])


def _in_turns(lists: Sequence[Sequence[T]]) -> list[T]:
    """First elements of all lists, then the second ones, and so on."""
    missing = object()
    turns = zip_longest(*lists, fillvalue=missing)
    return [item for turn in turns for item in turn if item is not missing]  # type: ignore[misc]
