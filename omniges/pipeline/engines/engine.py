"""Start of the engine that the settings select, for one run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from omniges.errors import needs
from omniges.pipeline.discover import Recording
from omniges.pipeline.engines import OnEvent
from omniges.pipeline.settings import PreprocessSettings, Rejected, Sample
from omniges.pipeline.worker import ConvertPool
from omniges.shards.transaction import OutputPlace
from omniges.shards.writer import OpenShard, PendingShard
from omniges.workers import Pool

# Ray reads these variables when it is imported. By default it prints events of its nodes to standard output, which is
# only for this program's results (events are in the run log), and it sends usage reports to its developers.
_RAY_ENVIRONMENT: Final = {"RAY_DEDUP_LOGS_SKIP_REGEX": ".", "RAY_USAGE_STATS_ENABLED": "0"}


@dataclass(frozen=True, slots=True)
class Engine:
    """A pool of workers that convert recordings to samples, and a function that creates a shard for the samples."""

    pool: Pool[Recording, Sample[Any] | Rejected]
    open_shard: Callable[[Path], OpenShard]


@contextmanager
def open_engine(
    settings: PreprocessSettings, todo: Sequence[Recording], place: OutputPlace, on_event: OnEvent
) -> Iterator[Engine]:
    """Start the engine that the settings select.

    Args:
        settings: Settings of the run.
        todo: Recordings to convert.
        place: Output folder. All machines of the engine must share `place.folder`, which contains new files
            until they are published.
        on_event: Function that is called for each worker or machine that is lost.

    Yields:
        The engine.

    Raises:
        EnvironmentFault: The engine's package is not installed, or its machines cannot be used.
    """

    def on_death(recording: Recording, reason: str, attempt: int) -> None:
        on_event("worker-death", {"stem": recording.stem, "reason": reason, "attempt": attempt})

    if settings.engine == "local":
        pool = ConvertPool(settings.convert, settings.local_workers, settings.deadline_s, on_death)
        yield Engine(pool, lambda path: PendingShard(path, place.opened))
        return
    for name, value in _RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with needs("ray", "--engine ray"):
        from omniges.pipeline.engines.ray import RayCluster  # noqa: PLC0415 - optional
    with RayCluster(settings, todo, place, on_event) as cluster:
        yield Engine(cluster.pool(on_death), cluster.open_shard)
