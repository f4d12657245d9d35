"""Options of commands that read motion files; quick to import, so that `omniges --help` is fast."""

from __future__ import annotations

from typing import Any

from omniges.options import option


def motion_rate_option(**more: Any) -> float | None:
    """Declare the frame rate of motion files that do not state one.

    Args:
        **more: Further fields of `Option`.

    Returns:
        A dataclass field, whose default None means that files without a frame rate are refused.
    """
    return option(
        None,
        "Frames per second of NPZ files that state no frame rate.",
        "--motion-rate",
        shown="such files are refused",
        above=0,
        **more,
    )
