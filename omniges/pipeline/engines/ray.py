"""`preprocess --engine ray`: the nodes of a Ray cluster convert recordings and write shards.

One actor on each node runs the same worker processes as a local run. The driver (the main process) gets the answers of
the workers without the tar members, which stay in the node's object store. `ShardWriter` determines shard boundaries
from the sizes. The node that holds the most bytes of a shard fetches the rest from the other nodes and writes the file.
So the driver's memory does not depend on the amount of audio and motion.

If a worker process exits, its recording is converted once more, with no other conversion at the same time, as in a
local run. If a node is lost, other nodes convert its recordings. If tar members that a shard still needs are lost,
other nodes convert the recordings of these members again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from omniges.errors import DataError, EnvironmentFault, OmnigesError
from omniges.pipeline.discover import Recording
from omniges.pipeline.engines import OnEvent
from omniges.pipeline.engines.node import Node, SharedFiles
from omniges.pipeline.settings import PreprocessSettings, Rejected, Sample
from omniges.pipeline.worker import decode_outcome, encode_recording
from omniges.shards.dataset import tool_versions
from omniges.shards.transaction import BEGUN_FILE, OutputPlace
from omniges.shards.writer import StoredSegment, StoredShard, read_stored
from omniges.storage.atomic import PendingFile
from omniges.storage.files import canonical_json, sha256_hex
from omniges.storage.redact import one_line
from omniges.workers import Pool, WorkerDied, as_error

_START_S: Final = 120.0  # longest wait for a usable node, and for the restart of a node's process
_LOOK_S: Final = 2.0  # wait between two checks for new nodes, while nodes are missing
_POLL_S: Final = 0.5
_WRITES: Final = 2  # maximum number of shards that a node writes or has queued
_ATTEMPTS: Final = 5  # attempts to write one shard
_CONNECT_S: Final = 10.0
_REASON: Final = 240  # longest reason in the run log, in characters


@dataclass(frozen=True, slots=True)
class RemoteSegment:
    """A sample's tar members in the object store of the node that converted it."""

    reference: Reference
    size: int
    node_id: str
    task: dict[str, Any]  # the recording, to convert it again
    row_sha256: str  # sha256 of the row; a second conversion must give an equal row

    def __len__(self) -> int:
        """Return the size of the tar members in bytes."""
        return self.size


Reference = ray.ObjectRef[Any]
Piece = bytes | RemoteSegment | Reference


@dataclass(eq=False, slots=True)
class _Member:
    """A node that takes part in the run."""

    node_id: str
    name: str
    actor: Any
    workers: int
    free: int = 0
    writes: list[Reference] = field(default_factory=list)
    lost: bool = False
    restarts: int = 0
    examining: threading.Lock = field(default_factory=threading.Lock)


class _RemoteWorker:
    """A worker of the pool. It sends each recording to a worker process on any free node and waits for the answer."""

    def __init__(self, cluster: RayCluster) -> None:
        self._cluster = cluster
        self._stopped = threading.Event()
        self._task: dict[str, Any] = {}

    def submit(self, task: dict[str, Any]) -> None:
        self._task = task

    def receive(self, limit_s: float | None = None) -> tuple[Any, list[Any]]:
        del limit_s  # the node keeps to the deadline of the settings
        return self._cluster.convert(self._task, self._stopped)

    def kill(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        self._stopped.set()


class RayCluster:
    """Context manager: a connection to a Ray cluster, whose nodes convert recordings and write shards."""

    def __init__(
        self, settings: PreprocessSettings, todo: Sequence[Recording], place: OutputPlace, on_event: OnEvent
    ) -> None:
        """Store the settings of the run; entering the context connects to the cluster.

        Args:
            settings: Settings of the run.
            todo: Recordings to convert.
            place: Output folder. All nodes must share `place.folder`, which contains new files until they are
                published.
            on_event: Function that is called for each node that is lost or left out, and for each shard that is
                written again.
        """
        inputs = {os.path.abspath(file.path): file.size for recording in todo[:1] for file in recording.files.values()}
        self._settings = settings
        self._place = place
        self._token = PendingFile(place.folder.absolute() / BEGUN_FILE)
        self._shared = SharedFiles(str(self._token.temporary), secrets.token_hex(), inputs, tool_versions())
        self._on_event = on_event
        self._condition = threading.Condition()
        self._known: set[str] = set()  # ids of all nodes that have been in the cluster
        self._members: list[_Member] = []
        self._starting: list[tuple[_Member, Reference]] = []
        self._left_out = ""  # the last reason why a node cannot take part
        self._looked_s = 0.0
        self._connected = contextlib.ExitStack()

    def __enter__(self) -> RayCluster:
        with self._connected:
            self._connect()
            self._connected = self._connected.pop_all()
        return self

    def _connect(self) -> None:
        self._connected.callback(self._token.abort)
        self._token.write(self._shared.token.encode())
        self._connected.enter_context(_connection(self._settings.ray_address))
        self._connected.callback(self._stop_actors)
        with self._condition:
            self._look()
        if not self._starting:
            raise EnvironmentFault(
                "--engine ray: expected a node with a CPU in the Ray cluster, found none; add a node with a CPU"
            )

    def __exit__(self, *_: object) -> None:
        self._connected.close()

    def _stop_actors(self) -> None:
        for member in (*self._members, *(member for member, _ in self._starting)):
            ray.kill(member.actor)

    def pool(self, on_death: Callable[[Recording, str, int], None]) -> Pool[Recording, Sample[Any] | Rejected]:
        """Return a pool whose number of workers is the sum of the workers of all nodes.

        Args:
            on_death: Function that is called after a crash with the recording, the reason and the number of the
                attempt.

        Returns:
            The pool.
        """
        workers = sum(member.workers for member, _ in self._starting)
        start = partial(_RemoteWorker, self)
        return Pool(start, _encode, decode_outcome, workers=workers, on_death=on_death)

    def convert(self, task: dict[str, Any], stopped: threading.Event) -> tuple[dict[str, Any], list[Any]]:
        """Convert a recording on a free node; if the node is lost, convert the recording on another node.

        Args:
            task: The recording, as `encode_recording` returns it.
            stopped: Event that is set when the answer is no longer needed.

        Returns:
            The JSON of the worker's answer, and a list: the statistics as bytes, then the tar members as a
            `RemoteSegment`. The list is empty if the recording is rejected.

        Raises:
            WorkerDied: The worker process exited or reached the deadline, or `stopped` is set.
            OmnigesError: The error that the worker raised.
        """
        while True:
            with self._slot(stopped) as member:
                restarts = member.restarts
                call = member.actor.convert.options(num_returns=2, concurrency_group="convert")
                answer, segment = call.remote(task)
                try:
                    head, statistics, size = _result(answer, stopped)
                except RayError as error:
                    if self._is_lost(member, restarts, error, stopped):
                        continue
                    raise WorkerDied(f"on node {member.name}: {_reason(error)}", task) from error
            if "died" in head:
                raise WorkerDied(f"on node {member.name}: {head['died']}", task)
            if "error" in head:
                raise _on_node(member, *head["error"])
            if "findings" in head:
                return head, statistics
            return head, [*statistics, RemoteSegment(segment, size, member.node_id, task, _row_sha256(head))]

    @contextlib.contextmanager
    def _slot(self, stopped: threading.Event) -> Iterator[_Member]:
        """Wait until a node has a free worker, and reserve the worker during the `with` block.

        Raise WorkerDied if `stopped` is set while waiting, or EnvironmentFault if no node becomes usable.
        """
        waited_from_s = time.monotonic()
        with self._condition:
            while not (free := [member for member in self._members if member.free and not member.lost]):
                if stopped.is_set():
                    raise WorkerDied("the run is being stopped", None)
                self._look()
                self._require_nodes(time.monotonic() - waited_from_s)
                self._condition.wait(_POLL_S)
            member = max(free, key=lambda member: member.free / member.workers)
            member.free -= 1
        try:
            yield member
        finally:
            with self._condition:
                member.free += 1
                self._condition.notify()

    def _require_nodes(self, waited_s: float) -> None:
        """Raise EnvironmentFault if no node is usable and the run has waited long enough.

        The run waits at most two minutes. It does not wait if a node has been refused and no node is starting.
        """
        refused = self._left_out and not self._starting
        if any(not member.lost for member in self._members) or (waited_s < _START_S and not refused):
            return
        why = self._left_out or f"none became ready in {_START_S:g} s; their CPUs may be taken by other jobs"
        raise EnvironmentFault(
            f"--engine ray: expected a node of the Ray cluster that can work, found none ({why}); run the same "
            "command again to continue"
        )

    def _look(self) -> None:
        """Ask new nodes to take part, and add nodes that are ready. The caller holds the lock `_condition`."""
        if time.monotonic() - self._looked_s < (_POLL_S if self._starting else _LOOK_S):
            return
        self._looked_s = time.monotonic()
        for node in cast("Any", ray.nodes)():
            cpus = int(node["Resources"].get("CPU", 0))
            if node["Alive"] and cpus and node["NodeID"] not in self._known:
                self._known.add(node["NodeID"])
                workers = min(self._settings.num_workers or cpus, cpus)
                name = f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"
                member = _Member(node["NodeID"], name, self._start_actor(node["NodeID"], workers), workers)
                self._starting.append((member, member.actor.check.remote(self._shared)))
        for member, check in list(self._starting):
            if not ray.wait([check], timeout=0)[0]:
                continue
            self._starting.remove((member, check))
            try:
                problem = ray.get(check)
            except RayError as error:
                problem = _reason(error)
            if problem:
                self._left_out = f"node {member.name}: {one_line(problem, _REASON)}"
                self._on_event("node-left-out", {"node": member.name, "reason": one_line(problem, _REASON)})
                ray.kill(member.actor)
                continue
            member.free = member.workers
            self._members.append(member)
            self._condition.notify_all()

    def _start_actor(self, node_id: str, workers: int) -> Any:
        """Start the actor of a node. Ray starts it again when its process exits, but never on another node."""
        kind = cast("Any", ray.remote)(
            num_cpus=workers, max_restarts=-1, concurrency_groups={"convert": workers, "write": 1}
        )(Node)
        place = NodeAffinitySchedulingStrategy(node_id, soft=False)
        setup = asdict(self._settings.convert)
        return kind.options(scheduling_strategy=place).remote(setup, self._settings.deadline_s)

    def _is_lost(self, member: _Member, restarts: int, error: RayError, stopped: threading.Event) -> bool:
        """Return whether a node is lost after a failed call; False if only the node's process exited and restarted.

        Args:
            member: The node.
            restarts: Number of restarts of the node's process before the call that failed.
            error: Error of the call.
            stopped: Event that is set when the answer is no longer needed.

        Returns:
            True if the node is lost.

        Raises:
            EnvironmentFault: The node works, but the function that was called on it raised an error.
        """
        if isinstance(error, RayTaskError):  # the node works; the error comes from our code or from too little memory
            raise EnvironmentFault(f"node {member.name}: {_reason(error)}") from error
        with member.examining:
            if member.lost or member.restarts != restarts:
                return member.lost
            if not self._is_gone(member, stopped):
                member.restarts += 1
                self._on_event("node-process-death", {"node": member.name, "reason": _reason(error)})
            return member.lost

    def _is_gone(self, member: _Member, stopped: threading.Event) -> bool:
        """Return whether a node is lost, and report a lost node. The caller holds the lock of the node."""
        gone = _why_gone(member, self._shared, stopped)
        if gone:
            member.lost = True
            self._on_event("node-lost", {"node": member.name, "reason": gone})
        return member.lost

    def open_shard(self, path: Path) -> RemoteShard:
        """Return a shard that a node will write.

        Args:
            path: File of the shard, in a folder that all nodes share.

        Returns:
            The shard.
        """
        return RemoteShard(self, path, self._place.opened)

    def begin_write(self, path: Path, pieces: Sequence[Piece]) -> tuple[_Member, int, Reference]:
        """Let the node that holds the most bytes of a shard write this shard; wait while the node's queue is full.

        Args:
            path: File of the shard.
            pieces: Content of the shard in order.

        Returns:
            The node that writes, the number of the node's restarts so far, and the reference to the node's answer.
        """
        waited_from_s = time.monotonic()
        with self._condition:
            while True:
                member = self._holder_of_most(pieces)
                if member is not None and member.writes:
                    member.writes = ray.wait(member.writes, num_returns=len(member.writes), timeout=0)[1]
                if member is not None and len(member.writes) < _WRITES:
                    break
                self._look()
                self._require_nodes(time.monotonic() - waited_from_s)
                self._condition.wait(_POLL_S)
            content = [piece if isinstance(piece, bytes) else [_reference(piece)] for piece in pieces]
            call = member.actor.write.options(concurrency_group="write")
            member.writes.append(call.remote(str(path.absolute()), content))
            return member, member.restarts, member.writes[-1]

    def _holder_of_most(self, pieces: Sequence[Piece]) -> _Member | None:
        """Return the node that holds the most bytes of a shard; None if no node is left."""
        held = {member.node_id: 0 for member in self._members if not member.lost}
        for piece in pieces:
            if isinstance(piece, RemoteSegment) and piece.node_id in held:
                held[piece.node_id] += piece.size
        there = [member for member in self._members if not member.lost]
        return max(there, key=lambda member: held[member.node_id], default=None)

    def finish_write(self, path: Path, pieces: list[Piece], begun: tuple[_Member, int, Reference], size: int) -> str:
        """Wait until a shard is written; if a node is lost, convert the lost recordings of the shard again.

        Args:
            path: File of the shard.
            pieces: Content of the shard in order; pieces that are converted again are replaced.
            begun: Result of `begin_write`.
            size: Size of the shard in bytes.

        Returns:
            The shard's digest in hexadecimal.

        Raises:
            EnvironmentFault: The shard could not be written.
            DataError: A recording has changed since it was converted.
        """
        never = threading.Event()
        for attempt in range(1, _ATTEMPTS + 1):
            if attempt > 1:
                begun = self.begin_write(path, pieces)
            member, restarts, reference = begun
            try:
                answer = _result(reference, never)
            except RayError as error:
                self._is_lost(member, restarts, error, never)
                answer = {"died": _reason(error)}
            if "error" in answer:
                raise _on_node(member, *answer["error"])
            if "sha256" in answer:
                if answer["size"] != size:
                    raise EnvironmentFault(
                        f"{path}: expected {size} bytes, found {answer['size']} from node {member.name}; run the same "
                        "command again to continue"
                    )
                return str(answer["sha256"])
            self._on_event("shard-again", {"shard": path.name, "node": member.name, "attempt": attempt} | answer)
            for index in answer.get("missing", ()):
                pieces[index] = self._convert_again(pieces[index], never)
        raise EnvironmentFault(
            f"{path}: expected to write it in {_ATTEMPTS} attempts, found that all failed; run the same command again "
            "to continue"
        )

    def _convert_again(self, piece: Piece, stopped: threading.Event) -> RemoteSegment:
        """Convert the recording of a lost segment again."""
        if not isinstance(piece, RemoteSegment):
            raise TypeError(f"expected a segment on a node, found {type(piece).__name__}")
        stem = piece.task["stem"]
        for member in self._members:
            with member.examining:  # without a running call, the loss of the node is not known yet
                if member.node_id == piece.node_id and not member.lost:
                    self._is_gone(member, stopped)
        try:
            head, buffers = self.convert(piece.task, stopped)
        except WorkerDied as death:
            raise EnvironmentFault(
                f"{stem}: expected its sample, found that it was lost with a node and that converting it again "
                f"failed ({death}); run the same command again to continue"
            ) from death
        if "findings" in head or _row_sha256(head) != piece.row_sha256:
            raise DataError(
                f"{stem}: expected files that do not change during the run, found changes; run the same command again"
            )
        segment: RemoteSegment = buffers[-1]
        return segment


class RemoteShard:
    """A shard that a node writes; this process only lists the pieces of the shard."""

    def __init__(
        self, cluster: RayCluster, path: Path, open_stored: Callable[[StoredShard], AbstractContextManager[int]]
    ) -> None:
        self._cluster, self._open_stored = cluster, open_stored
        self._pieces: list[Piece] = []
        self._begun: tuple[_Member, int, Reference] | None = None
        self.path, self.size, self.sha256 = path, 0, ""

    def write(self, data: Any) -> None:
        """Append data to the shard: bytes, or a reference to a segment that a node holds."""
        self._pieces.append(data)
        self.size += len(data)

    def copy(self, segment: StoredSegment) -> None:
        """Append a sample of a stored shard; the sample's bytes are put into the object store of the driver's node."""
        data = b"".join(read_stored(segment, self._open_stored))
        self._pieces.append(ray.put(np.frombuffer(data, np.uint8)))
        self.size += segment.size

    def flush_to_disk(self) -> None:
        """Do nothing, because the node that writes the shard flushes it."""

    def complete(self) -> None:
        """Let a node begin to write the shard."""
        self._begun = self._cluster.begin_write(self.path, self._pieces)

    def publish(self) -> None:
        """Wait until the shard has its final name, and free its segments."""
        if self._begun is None:
            raise RuntimeError("the shard is not complete")
        self.sha256 = self._cluster.finish_write(self.path, self._pieces, self._begun, self.size)
        self.abort()

    def abort(self) -> None:
        """Free the segments. The next run removes an unpublished shard that a node has written in part."""
        self._pieces, self._begun = [], None


@contextlib.contextmanager
def _connection(address: str | None) -> Iterator[None]:
    """Connect to the Ray cluster at `address`; close the connection after the `with` block.

    Without an `address`, RAY_ADDRESS is used. Without both, Ray finds a running cluster or starts one. If the program
    has a connection already, that connection is used instead, and stays open.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address not in {None, "auto", "local"}:  # checked first, because Ray itself tries for minutes
            host, _, port = str(address).rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (RayError, RuntimeError, ValueError, OSError) as error:
        named = "a new Ray cluster" if address in {None, "local"} else f"the Ray cluster at {address}"
        raise EnvironmentFault(
            f"--ray-address: cannot reach {named}: {one_line(str(error), 300)}; check that it runs with the same "
            "versions of Ray and Python, and give its token if it has one (RAY_AUTH_MODE=token)"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray has replaced the handler
    try:
        yield
    finally:
        ray.shutdown()


def _reference(piece: RemoteSegment | Reference) -> Reference:
    return piece.reference if isinstance(piece, RemoteSegment) else piece


def _encode(recording: Recording) -> dict[str, Any]:
    """Encode a recording as a task for a node, with absolute paths, because a node may have another working folder."""
    task = encode_recording(recording)
    for file in task["files"].values():
        file["path"] = os.path.abspath(file["path"])
    return task


def _result(reference: Reference, stopped: threading.Event, limit_s: float | None = None) -> Any:
    """Return the result of a call; raise WorkerDied when `stopped` is set, TimeoutError after `limit_s`."""
    start_s = time.monotonic()
    while not ray.wait([reference], timeout=_POLL_S)[0]:
        if stopped.is_set():
            raise WorkerDied("the run is being stopped", None)
        if limit_s is not None and time.monotonic() - start_s > limit_s:
            raise TimeoutError(f"no answer in {limit_s:g} s")
    return ray.get(reference)


def _why_gone(member: _Member, shared: SharedFiles, stopped: threading.Event) -> str:
    """Return "" when a node's process answers again; if it does not, return the reason why the node is lost."""
    end_s = time.monotonic() + _START_S
    while time.monotonic() < end_s:
        try:
            return str(_result(member.actor.check.remote(shared), stopped, end_s - time.monotonic()))
        except ActorUnavailableError:  # Ray restarts the process, or has not detected yet that the node is lost
            stopped.wait(_POLL_S)
        except RayError as error:
            return _reason(error)
        except TimeoutError:
            break
    return f"no answer in {_START_S:g} s"


def _reason(error: RayError) -> str:
    """Return Ray's text about a failed call as one line."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return one_line(f"{type(cause).__name__}: {cause}", _REASON)


def _on_node(member: _Member, code: int, text: str) -> OmnigesError:
    """Return an error that a node reported, with the node's name."""
    return as_error(code, f"node {member.name}: {text}")


def _row_sha256(head: dict[str, Any]) -> str:
    return sha256_hex(canonical_json(head["row"]))
