"""Result of `omniges inspect`: a description of the content of a path, as JSON, as tables and as a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from omniges.errors import OmnigesError, UsageFault
from omniges.exchange.settings import InspectSettings, ViewSettings
from omniges.pipeline.summary import print_table
from omniges.storage.redact import one_line

if TYPE_CHECKING:
    from rich.console import Console

_SHORTEST_S = 0.1


@dataclass(frozen=True, slots=True)
class Inspected:
    """Description of the content of a path, and functions that print and draw the content."""

    facts: dict[str, Any]
    """The description as a JSON object; its first key, ``kind``, is the type of the content."""
    show: Callable[[Console], None]
    """Function that prints the description as tables."""
    draw: Callable[[float, float | None], bytes] | None = None
    """Function that takes start and length in seconds (length None: to the end) and returns a PNG.

    None: there is nothing to draw.
    """
    playable: bool = False
    """True if `omniges view` can show the content."""
    fault: OmnigesError | None = None
    """Error that other commands raise for this file, although some of its content could be described."""

    def picture_of(self, start_s: float, seconds: float | None) -> bytes:
        """Draw a time range of the content.

        Args:
            start_s: Start of the range in seconds.
            seconds: Length of the range in seconds; None: to the end.

        Returns:
            The picture as PNG.

        Raises:
            UsageFault: The content cannot be drawn, or the range contains nothing.
        """
        if self.draw is None:
            raise UsageFault(
                "--png: expected a sample (KEY), a result, a motion, audio or text file, or a run with a log, found "
                f"{self.facts['kind']}; name such an input"
            )
        return self.draw(start_s, seconds)

    def page(self, settings: InspectSettings) -> ViewSettings:
        """Return the settings of the page that ``--html`` writes; raise UsageFault if the content cannot be played."""
        if not self.playable or settings.html is None:
            raise UsageFault(f"--html: expected motion, audio or text, found a {self.facts['kind']}; remove --html")
        return ViewSettings(
            paths=(str(settings.path),),
            keys=() if settings.key is None else (settings.key,),
            output_file=settings.html,
            motion_rate_hz=settings.motion_rate_hz,
            start_s=settings.start_s,
            seconds=settings.seconds,
        )


def print_fields(console: Console, fields: Iterable[tuple[str, Any]]) -> None:
    """Print a table of names and values; leave out values that are None or empty.

    Args:
        console: Output.
        fields: Pairs of a name and a value.
    """
    rows = [(name, one_line(str(value))) for name, value in fields if value not in (None, "", (), [], {})]
    print_table(console, ("field", "value"), rows)


def range_of(array: npt.NDArray[Any]) -> dict[str, float | None]:
    """Return ``min``, ``mean`` and ``max`` of the values that are not NaN; all three are None if every value is NaN."""
    there = array[~np.isnan(array)]
    if not there.size:
        return {"min": None, "mean": None, "max": None}
    return {"min": float(there.min()), "mean": float(there.mean(dtype=np.float64)), "max": float(there.max())}


def range_cells(found: dict[str, Any]) -> list[str]:
    """Format ``min``, ``mean`` and ``max`` of a result of `range_of` as cells of a table."""
    return ["–" if found[name] is None else f"{found[name]:.4g}" for name in ("min", "mean", "max")]


def require_start(start_s: float, length_s: float, what: str) -> None:
    """Refuse a picture that starts in the last 0.1 s of a clip, or after its end.

    Args:
        start_s: Start of the picture in seconds.
        length_s: Length of the clip in seconds.
        what: Name of the clip, for the error.

    Raises:
        UsageFault: The start is too late.
    """
    last = max(0.0, length_s - _SHORTEST_S)
    if not start_s <= last:
        raise UsageFault(
            f"--start {start_s:g}: expected at most {last:.1f} s, because {what} is {length_s:.1f} s long; choose an "
            "earlier time"
        )
