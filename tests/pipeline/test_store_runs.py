"""Runs into an object store: killed before any request, by any other run in between, the set is that of a disk."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from pipeline_helpers import digests, run_preprocess
from store_helpers import PREFIX, Crash, World

from omniges.errors import EnvironmentFault, OmnigesError
from omniges.shards.schema import UNFINISHED_FORMAT
from omniges.shards.store import LockLost
from omniges.storage.bucket import Bucket
from omniges.storage.cache import Retries
from omniges.storage.remote import StoreFault
from omniges.testing.settings import CorpusSettings
from omniges.testing.synthetic_corpus import write_sample_corpus


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six short clips: two shards of train, and one of each other split."""
    folder = tmp_path_factory.mktemp("corpora") / "first"
    write_sample_corpus(folder, CorpusSettings(clips=6, seconds=3.0, words=6, speakers=2, seed=5))
    return folder


@pytest.fixture(scope="module")
def changed(root: Path) -> Path:
    """The same without one clip, and with one that cannot be read."""
    folder = Path(shutil.copytree(root, root.with_name("second")))
    first, second, *_ = sorted(folder.rglob("*.wav"))
    for path in folder.rglob(f"{first.stem}.*"):
        path.unlink()
    second.write_bytes(b"junk")
    return folder


@pytest.fixture(scope="module")
def third(root: Path) -> Path:
    """The same without another clip."""
    folder = Path(shutil.copytree(root, root.with_name("third")))
    for path in folder.rglob(f"{max(folder.rglob('*.wav')).stem}.*"):
        path.unlink()
    return folder


@pytest.fixture(scope="module")
def on_disk(
    root: Path, changed: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, str], dict[str, str]]:
    """Digests of both sets on a disk."""
    folder = tmp_path_factory.mktemp("disk")
    for name, source in (("a", root), ("b", changed)):
        run_preprocess(source, folder / name, shard_bytes=1 << 20)
    return digests(folder / "a"), digests(folder / "b")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    return World(monkeypatch, tmp_path)


def crash_before(world: World, request: int) -> None:
    """End the process before this request: no later one is sent either."""
    numbers = itertools.count()

    def gate(_action: str) -> None:
        if next(numbers) >= request:
            raise Crash

    world.gate = gate


def requests_of(world: World, root: Path) -> int:
    """Return the number of requests of a run."""
    numbers = itertools.count()
    world.gate = lambda _action: next(numbers) and None
    world.run(root)
    return next(numbers)


def test_the_set_is_that_of_a_disk_and_updates_too(
    world: World, root: Path, changed: Path, on_disk: tuple[dict[str, str], dict[str, str]]
) -> None:
    assert not world.run(root).unchanged
    assert world.bucket.digests == on_disk[0]
    assert world.run(root).unchanged
    updated = world.run(changed)
    assert updated.reused == 4
    assert world.bucket.digests == on_disk[1]
    assert world.run(root).reused == 4
    assert world.bucket.digests == on_disk[0]
    assert [name.partition("-")[0] for name in world.bucket.journal] == ["record", "record"]


def every(stride: int) -> pytest.MarkDecorator:
    """Every n-th request in the default suite, and each one by hand: pytest -m long, for minutes."""
    return pytest.mark.parametrize(
        "stride",
        [
            pytest.param(stride, id="some"),
            pytest.param(1, id="all", marks=[pytest.mark.long, pytest.mark.timeout(900)]),
        ],
    )


@every(29)
def test_a_run_that_ends_before_any_request_is_completed_by_the_same_command(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    root: Path,
    changed: Path,
    on_disk: tuple[dict[str, str], dict[str, str]],
    stride: int,
) -> None:
    first = requests_of(World(monkeypatch, tmp_path), root)
    assert first > 40
    for last in range(0, first, stride):
        world = World(monkeypatch, tmp_path)
        crash_before(world, last)
        with pytest.raises(Crash):
            world.run(root)
        world.gate = lambda _action: None
        world.run(root)
        assert world.bucket.digests == on_disk[0], f"ended before request {last}"
        assert not world.bucket.half_sets


@every(37)
def test_an_update_that_ends_before_any_request_is_completed_by_the_same_command(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    root: Path,
    changed: Path,
    on_disk: tuple[dict[str, str], dict[str, str]],
    stride: int,
) -> None:
    world = World(monkeypatch, tmp_path)
    world.run(root)
    complete = dict(world.bucket.objects)
    for last in range(0, requests_of(world, changed), stride):
        world = World(monkeypatch, tmp_path)
        world.bucket.objects = dict(complete)
        crash_before(world, last)
        with pytest.raises(Crash):
            world.run(changed)
        world.gate = lambda _action: None
        world.run(changed)
        assert world.bucket.digests == on_disk[1], f"ended before request {last}"
        assert not world.bucket.half_sets


class Pause:
    """A gate that stops the thread of one request until it is let go, and may end its process after that request."""

    def __init__(self, request: int, ends: bool = False) -> None:
        self._numbers = itertools.count()
        self._request, self._ends = request, ends
        self._stopped: int | None = None
        self.action = ""
        self.reached, self.goes_on = threading.Event(), threading.Event()

    def __call__(self, action: str) -> None:
        if self._ends and threading.get_ident() == self._stopped:
            raise Crash
        if next(self._numbers) == self._request:
            self._stopped, self.action = threading.get_ident(), action
            self.reached.set()
            assert self.goes_on.wait(60)


@every(41)
def test_an_owner_that_lost_the_lock_changes_nothing_that_others_published(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, root: Path, changed: Path, third: Path, stride: int
) -> None:
    """The owner stops before any request of an update; others finish it and make another; then it goes on."""
    world = World(monkeypatch, tmp_path)
    world.run(third)
    expected = world.bucket.digests
    world.run(root)
    complete = dict(world.bucket.objects)
    for last in range(5, requests_of(world, changed), stride):
        world = World(monkeypatch, tmp_path)
        world.bucket.objects = dict(complete)
        pause = world.gate = Pause(last)
        error = overtake(world, pause, changed, lambda world=world: world.run(third))
        # The ETag of a shard that the later set has again does not tell the two apart (docs/how-to/remote.md).
        if pause.action != "remove":
            assert not world.bucket.half_sets, f"stopped before request {last}"
            if error is not None:  # else it had published before the others, or took the lock after them
                assert world.bucket.digests == expected, f"stopped before request {last}"
        world.run(third)
        assert world.bucket.digests == expected


@pytest.mark.parametrize("ends_after_mark", [False, True])
def test_a_late_mark_of_an_owner_that_lost_the_lock_is_taken_back(
    world: World, root: Path, changed: Path, on_disk: tuple[dict[str, str], dict[str, str]], ends_after_mark: bool
) -> None:
    """The others have gone back to the earlier set, so its dataset.json has the ETag that the owner replaces."""
    world.run(root)
    marking = request_of_mark(world, changed)
    world.run(root)
    pause = world.gate = Pause(marking, ends_after_mark)
    error = overtake(world, pause, changed, lambda: world.run(root))
    if ends_after_mark:
        assert isinstance(error, Crash)
        assert json.loads(world.bucket.objects[f"{PREFIX}dataset.json"])["format"] == UNFINISHED_FORMAT
        assert world.run(root).unchanged
    else:
        assert isinstance(error, LockLost)
    assert world.bucket.digests == on_disk[0]
    assert not world.bucket.half_sets


def request_of_mark(world: World, root: Path) -> int:
    """Number of the request that replaces dataset.json by a mark in an update."""
    actions: list[str] = []
    world.gate = actions.append
    world.run(root)
    world.gate = lambda _action: None
    return actions.index("copy") - 3  # a look for later records is between, and one before each copy


def overtake(world: World, pause: Pause, root: Path, others: Callable[[], object]) -> BaseException | None:
    """Stop an update before a request, let another run finish it and others follow; return how it ended."""
    ends: list[BaseException | None] = []

    def slow() -> None:
        try:
            world.run(root)
        except (OmnigesError, Crash) as error:
            ends.append(error)
        else:
            ends.append(None)

    first = world.runs + 1
    thread = threading.Thread(target=slow)
    thread.start()
    assert pause.reached.wait(60)
    world.ended.add(first)  # to the others its machine is gone
    world.run(root)
    others()
    pause.goes_on.set()
    thread.join(60)
    world.gate = lambda _action: None
    assert len(ends) == 1
    return ends[0]


def test_a_second_run_is_refused_while_the_first_one_lives(world: World, root: Path) -> None:
    found: list[str] = []

    def gate(action: str) -> None:
        if action == "copy" and not found:
            found.append("")
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()

    def second() -> None:
        with pytest.raises(EnvironmentFault) as caught:
            world.run(root)
        found.append(str(caught.value))

    world.gate = gate
    world.run(root)
    assert found[1].startswith(
        "s3://bucket/sets/speech: expected no other writer, found that another omniges run is writing here "
        "(process 1 on here)"
    )


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Bucket.__init__

    def init(self: Bucket, location: object, timeouts: object = None, _retries: object = None) -> None:
        inner(self, location, timeouts, Retries(attempts=4, first_wait_s=0, longest_wait_s=0))  # type: ignore[arg-type]

    monkeypatch.setattr(Bucket, "__init__", init)


@pytest.mark.parametrize("applied", [False, True])
def test_requests_that_fail_or_lose_their_answer_are_repeated(
    monkeypatch: pytest.MonkeyPatch,
    world: World,
    root: Path,
    on_disk: tuple[dict[str, str], dict[str, str]],
    quick_retries: None,
    applied: bool,
) -> None:
    """Every third request is throttled, before or after the store has carried it out."""
    numbers = itertools.count()
    call = Bucket._call

    def throttled(store: Bucket, action: str, name: str, function: object, size: int = 0) -> object:
        fails = action != "open" and next(numbers) % 3 == 2
        if not fails or applied:
            found = call(store, action, name, function, size)  # type: ignore[arg-type]
        if fails:
            raise StoreFault(f"{name}: 503 Slow Down", transient=True)
        return found

    monkeypatch.setattr(Bucket, "_call", throttled)
    world.run(root)
    assert world.bucket.digests == on_disk[0]


def test_a_store_that_stays_busy_ends_the_run_after_a_bounded_number_of_tries(
    world: World, root: Path, on_disk: tuple[dict[str, str], dict[str, str]], quick_retries: None
) -> None:
    tries = itertools.count()

    def busy(action: str) -> None:
        if action == "copy":
            next(tries)
            raise StoreFault("s3://bucket: 503 Slow Down", transient=True)

    world.gate = busy
    with pytest.raises(StoreFault, match=r"stopped after 4 attempts"):
        world.run(root)
    assert next(tries) == 4
    world.gate = lambda _action: None
    assert world.run(root).unchanged  # the commit was recorded, so the next run finishes it first
    assert world.bucket.digests == on_disk[0]
