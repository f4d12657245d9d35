"""Facts about the content of a path for `omniges inspect`, as JSON, as tables and as a picture."""

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
    """Facts about the content of a path, and functions that show them."""

    facts: dict[str, Any]
    """Facts for JSON; ``kind`` is first."""
    show: Callable[[Console], None]
    """Prints the facts as tables."""
    draw: Callable[[float, float | None], bytes] | None = None
    """Function (start, length or None for all, in seconds) that draws a PNG; None: there is nothing to draw."""
    playable: bool = False
    """True if `omniges view` can show the content."""
    fault: OmnigesError | None = None
    """Error with which other commands refuse the file, although some facts could be read."""

    def picture_of(self, start_s: float, seconds: float | None) -> bytes:
        """Draw a part of the content.

        Args:
            start_s: Start of the part in seconds.
            seconds: Length of the part in seconds; None: to the end.

        Returns:
            The picture as PNG.

        Raises:
            UsageFault: There is nothing to draw, or nothing in this part.
        """
        if self.draw is None:
            raise UsageFault(
                "--png: expected a sample (KEY), a result, a motion, audio or text file, or a run with a log, "
                f"found {self.facts['kind']}; name one of them"
            )
        return self.draw(start_s, seconds)

    def page(self, settings: InspectSettings) -> ViewSettings:
        """Return the settings of the page that ``--html`` writes; raise UsageFault if there is nothing to play."""
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
    """Print a table of names and values; values that are None or empty are left out.

    Args:
        console: Output.
        fields: Names and values.
    """
    rows = [(name, one_line(str(value))) for name, value in fields if value not in (None, "", (), [], {})]
    print_table(console, ("field", "value"), rows)


def range_of(array: npt.NDArray[Any]) -> dict[str, float | None]:
    """Return minimum, mean and maximum of the values that are present (not NaN); None for each if all are absent."""
    there = array[~np.isnan(array)]
    if not there.size:
        return {"min": None, "mean": None, "max": None}
    return {"min": float(there.min()), "mean": float(there.mean(dtype=np.float64)), "max": float(there.max())}


def range_cells(found: dict[str, Any]) -> list[str]:
    """Format minimum, mean and maximum as cells of a table."""
    return ["–" if found[name] is None else f"{found[name]:.4g}" for name in ("min", "mean", "max")]


def require_start(start_s: float, length_s: float, what: str) -> None:
    """Refuse a start time of a picture that lies outside the clip.

    Args:
        start_s: Start in seconds.
        length_s: Length of the clip in seconds.
        what: The clip, for the error.

    Raises:
        UsageFault: The start lies in the last 0.1 s of the clip or after its end.
    """
    last = max(0.0, length_s - _SHORTEST_S)
    if not start_s <= last:
        raise UsageFault(
            f"--start {start_s:g}: expected at most {last:.1f} s, because {what} is {length_s:.1f} s long; choose an "
            "earlier time"
        )
