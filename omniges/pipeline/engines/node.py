"""The part of `--engine ray` that runs on each node: it converts recordings in worker processes and writes shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import ray
from ray.exceptions import ObjectLostError

from omniges.errors import OmnigesError
from omniges.pipeline.worker import start_worker
from omniges.shards.dataset import tool_versions
from omniges.shards.writer import PendingShard
from omniges.workers import Worker, WorkerDied

_FLUSH_BYTES: Final = 32 << 20
_NOTHING: Final = np.empty(0, np.uint8)

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class SharedFiles:
    """Files and package versions of the driver (the main process), for comparison with those on each node."""

    run_file: str  # a file that the driver writes, in the folder of unfinished work
    token: str  # content of `run_file`
    inputs: Mapping[str, int]  # some input files by path, with their sizes in bytes
    tool: Mapping[str, str]  # package versions that affect the output bytes

    def problem(self) -> str:
        """Describe the first difference between this machine and the driver; "" without a difference."""
        try:
            token = Path(self.run_file).read_text()
            sizes = {path: Path(path).stat().st_size for path in self.inputs}
        except OSError as error:
            return (
                f"{error.filename}: expected the driver's file, found an error ({error.strerror}); give every node "
                "the driver's files at the same paths"
            )
        if token != self.token:
            return (
                f"{self.run_file}: expected the driver's file, found another file; share --output-dir with every "
                "node (or --work-dir, if --output-dir is a URL)"
            )
        for path, size in self.inputs.items():
            if sizes[path] != size:
                return f"{path}: expected {size} bytes, found {sizes[path]}; share the data set with every node"
        here = tool_versions()
        for name in sorted(self.tool.keys() | here.keys()):
            wanted, found = self.tool.get(name), here.get(name)
            if wanted != found:
                return f"expected {name} {wanted}, found {found}; install the driver's versions on every node"
        return ""


class Node:
    """Ray actor of one node: it runs the worker processes and writes shards; the driver calls its methods."""

    def __init__(self, setup: dict[str, Any], deadline_s: float) -> None:
        self._setup, self._deadline_s = setup, deadline_s
        self._idle: list[Worker] = []

    def check(self, shared: SharedFiles) -> str:
        """Return why this node cannot take part in the run; "" if it can."""
        return shared.problem()

    def convert(self, task: dict[str, Any]) -> tuple[tuple[dict[str, Any], list[bytes], int], Bytes]:
        """Convert one recording in a worker process.

        Args:
            task: The recording, as `encode_recording` returns it.

        Returns:
            A pair: the answer, and the tar members, which stay on this node. The answer contains the worker's JSON, the
            statistics as bytes, and the size of the tar members in bytes. After a failure the JSON has one key:
            ``died`` with the reason if the worker exited or reached the deadline, ``error`` with an exit code and a
            text if the worker raised an error.
        """
        worker = None
        try:
            worker = self._idle.pop() if self._idle else start_worker(self._setup)
            worker.submit(task)
            head, buffers = worker.receive(self._deadline_s)
        except (WorkerDied, TimeoutError) as death:
            if worker is not None:
                worker.close()
            return ({"died": str(death)}, [], 0), _NOTHING
        except OmnigesError as error:
            return ({"error": [int(error.exit_code), str(error)]}, [], 0), _NOTHING
        self._idle.append(worker)
        *statistics, segment = buffers or [memoryview(b"")]
        return (head, list(map(bytes, statistics)), len(segment)), np.frombuffer(segment, np.uint8)

    def write(self, path: str, pieces: Sequence[bytes | list[ray.ObjectRef[Bytes]]]) -> dict[str, Any]:
        """Write a shard and publish it under its name in the workspace.

        Args:
            path: File of the shard.
            pieces: Content of the shard in order: bytes, or a list with one reference to tar members.

        Returns:
            A dictionary with ``size`` and ``sha256`` of the shard. After a failure it has only one key: ``missing``
            with the indices of the pieces whose node is lost, or ``error`` with an exit code and a text.
        """
        try:
            shard = PendingShard(Path(path))
            try:
                missing = _append(shard, pieces)
                if missing:
                    return {"missing": missing}
                shard.publish()
                return {"size": shard.size, "sha256": shard.sha256}
            finally:
                shard.abort()  # has no effect on a published file
        except OmnigesError as error:
            return {"error": [int(error.exit_code), str(error)]}


def _append(shard: PendingShard, pieces: Sequence[bytes | list[ray.ObjectRef[Bytes]]]) -> list[int]:
    """Append the pieces that precede the first missing piece; return the indices of all missing pieces."""
    missing: list[int] = []
    unflushed = 0
    for index, piece in enumerate(pieces):
        if isinstance(piece, list):
            try:
                data = ray.get(piece[0])
            except ObjectLostError:
                missing.append(index)
                continue
            if not missing:
                shard.write(data.data)
        elif not missing:
            shard.write(piece)
        if shard.size - unflushed >= _FLUSH_BYTES:
            shard.flush_to_disk()
            unflushed = shard.size
    return missing
