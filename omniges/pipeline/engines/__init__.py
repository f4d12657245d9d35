"""Engines of `preprocess`: an engine provides the machines that convert recordings and write shards.

The rest of a run does not depend on the engine: reuse of earlier results, order of samples, shard boundaries, journal
and publication of the set. So every engine writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

OnEvent = Callable[[str, dict[str, Any]], None]
"""Function that records an event of the run log: its name and its fields."""

INTERRUPTIONS: Final = frozenset({"worker-death", "node-process-death", "node-lost", "node-left-out"})
"""Names of the events that the summary of a run lists too."""
