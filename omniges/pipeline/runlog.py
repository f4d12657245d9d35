"""The run log: times, retries and worker deaths, which must not be part of the output."""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omniges.pipeline.supervisor import WorkerEvent
from omniges.storage.atomic import open_for_appending, os_errors

__all__ = ["RunLog"]


class RunLog:
    """JSON lines about a run that must not be part of its output: times, retries, worker deaths."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def __enter__(self) -> RunLog:
        self._stream = os.fdopen(open_for_appending(self._path), "a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        with os_errors(self._path):
            self._stream.close()

    def write(self, event: str, **facts: Any) -> None:
        """Append one event with its time, process and host."""
        stamp = {"event": event, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "pid": os.getpid()}
        with self._lock, os_errors(self._path):
            self._stream.write(json.dumps(stamp | {"host": platform.node()} | facts) + "\n")
            self._stream.flush()

    def death(self, event: WorkerEvent) -> None:
        """Append a worker's death."""
        self.write("worker-death", **asdict(event))
