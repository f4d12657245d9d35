"""Options of the part of a clip that is shown; quick to import, so that `omniges --help` is fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omniges.options import check, declared, option


@declared
@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Part of a clip to show."""

    start_s: float = option(0.0, "Start of the part to show, in seconds.", "--start", minimum=0)
    seconds: float | None = option(None, "Seconds to show.", above=0, shown="all")

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check(self)


@declared
@dataclass(frozen=True, slots=True, kw_only=True)
class ShownPart:
    """Part of each clip to show, for commands whose length of a clip is another setting."""

    show_start_s: float = option(
        0.0, "Start of the part that picture, page and video show, in seconds.", "--show-start", minimum=0
    )
    show_seconds: float | None = option(None, "Seconds that picture, page and video show.", above=0, shown="all")

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check(self)

    @property
    def chosen(self) -> bool:
        """True if the part is not the whole clip."""
        return self.show_start_s > 0 or self.show_seconds is not None

    @property
    def of_part(self) -> dict[str, Any]:
        """The same part as the fields of `Part`."""
        return {"start_s": self.show_start_s, "seconds": self.show_seconds}
