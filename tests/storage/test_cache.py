"""The cache folder: bounded, filled once, never without what is in use, sound after any death; downloads in bounds."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from omniges.errors import DataError, EnvironmentFault, UsageFault
from omniges.storage.atomic import PendingFile
from omniges.storage.cache import (
    CachedFile,
    CacheFolder,
    CacheFull,
    FetchAhead,
    Pin,
    Retries,
    WrongContent,
    backoff_s,
    with_retries,
)
from omniges.storage.remote import StoreFault

GROUP = "0" * 32


def content(number: int, size: int = 1000) -> bytes:
    return hashlib.sha256(str(number).encode()).digest() * (size // 32) + b"x" * (size % 32)


def cached(number: int, size: int = 1000, group: str = GROUP) -> CachedFile:
    data = content(number, size)
    return CachedFile(group, f"train-{number:06d}.tar", size, hashlib.sha256(data).hexdigest())


class Source:
    """Fills files and counts how often."""

    def __init__(self) -> None:
        self.filled: list[int] = []

    def fill(self, number: int, size: int = 1000) -> Callable[[Path], PendingFile]:
        def write(path: Path) -> PendingFile:
            self.filled.append(number)
            pending = PendingFile(path)
            try:
                pending.write(content(number, size))
            except EnvironmentFault:
                pending.abort()
                raise
            return pending

        return write


def use(cache: CacheFolder, source: Source, number: int, size: int = 1000) -> None:
    """Have a file and let it go."""
    pin = cache.acquire(cached(number, size), source.fill(number, size))
    assert pin.path.read_bytes() == content(number, size)
    pin.close()


def there(cache: CacheFolder) -> set[int]:
    return {int(path.name[6:12]) for path in cache.folder(GROUP).glob("train-*.tar")}


def total(root: Path) -> int:
    """Bytes of the cached files; one that another process evicts between its listing and its stat takes none."""
    found = 0
    for path in root.rglob("train-*.tar"):
        with contextlib.suppress(FileNotFoundError):
            found += path.stat().st_size
    return found


def child(script: str, *arguments: object) -> subprocess.Popen[str]:
    """A process that has the helpers of this file."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_cache import *\n{script}"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def until(process: subprocess.Popen[str], line: str) -> None:
    """Wait for a line of a process."""
    assert process.stdout
    assert process.stdout.readline().strip() == line


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout
    process.stdout.close()


class TestSize:
    @settings(max_examples=20, deadline=None)
    @given(
        uses=st.lists(st.tuples(st.integers(0, 5), st.sampled_from([False] * 5 + [True])), min_size=8, max_size=20),
        room=st.integers(1, 4),
    )
    @example(uses=[(0, False), (1, False), (0, False), (2, False)], room=2)  # the one used last stays
    def test_is_bounded_evicts_by_use_and_keeps_what_is_in_use(
        self, tmp_path_factory: pytest.TempPathFactory, uses: list[tuple[int, bool]], room: int
    ) -> None:
        """The cache equals a model, which is a list in the order of use."""
        cache = CacheFolder(tmp_path_factory.mktemp("cache"), room * 1000 + 500)
        source = Source()
        order: list[int] = []
        pins: dict[int, Pin] = {}
        for number, keep in uses:
            full = number not in order and len(order) == room
            victims = [n for n in order if n not in pins]
            if full and not victims:
                with pytest.raises(CacheFull):
                    cache.acquire(cached(number), source.fill(number))
                assert there(cache) == set(order)
                continue
            pin = cache.acquire(cached(number), source.fill(number))
            if full:
                order.remove(victims[0])
            order = [n for n in order if n != number] + [number]
            if keep and number not in pins:
                pins[number] = pin
            else:
                pin.close()
            assert there(cache) == set(order)
            assert total(cache.root) <= cache.capacity_bytes
        for pin in pins.values():
            assert hashlib.sha256(pin.path.read_bytes()).hexdigest() == cached(int(pin.path.name[6:12])).sha256
            pin.close()

    def test_a_full_cache_says_so_in_one_line(self, tmp_path: Path) -> None:
        cache, source = CacheFolder(tmp_path, 1500), Source()
        pin = cache.acquire(cached(1), source.fill(1))
        with pytest.raises(
            CacheFull, match=r"expected 1000 free bytes in the cache for train-000002\.tar, found 500, .* to 1500 bytes"
        ):
            cache.acquire(cached(2), source.fill(2))
        pin.close()
        use(cache, source, 2)
        assert there(cache) == {2}

    def test_it_waits_for_space_as_long_as_requested(self, tmp_path: Path) -> None:
        cache, source = CacheFolder(tmp_path, 1000), Source()
        pin = cache.acquire(cached(1), source.fill(1))
        threading.Timer(0.1, pin.close).start()
        cache.acquire(cached(2), source.fill(2), wait_s=20).close()
        assert there(cache) == {2}

    def test_a_file_mapped_into_memory_is_in_use_though_its_descriptor_is_closed(self, tmp_path: Path) -> None:
        import mmap

        cache, source = CacheFolder(tmp_path, 1000), Source()
        pin = cache.acquire(cached(1), source.fill(1))
        mapped = mmap.mmap(pin.descriptor, 0, prot=mmap.PROT_READ)
        pin.close()
        with pytest.raises(CacheFull):
            cache.acquire(cached(2), source.fill(2))
        mapped.close()
        use(cache, source, 2)

    def test_what_a_live_process_uses_stays_and_what_a_dead_one_used_does_not(self, tmp_path: Path) -> None:
        cache, source = CacheFolder(tmp_path, 1000), Source()
        user = child(
            "cache = CacheFolder(Path(sys.argv[1]), 1000)\n"
            "pin = cache.acquire(cached(1), Source().fill(1)); print('has it', flush=True); time.sleep(60)",
            tmp_path,
        )
        until(user, "has it")
        with pytest.raises(CacheFull):
            cache.acquire(cached(2), source.fill(2))
        kill(user)
        use(cache, source, 2)
        assert there(cache) == {2}

    def test_files_that_are_not_the_caches_are_left_alone_and_not_counted(self, tmp_path: Path) -> None:
        foreign = [tmp_path / "train-000009.tar", tmp_path / GROUP / "mine.tar", tmp_path / GROUP / ".x.tmp-1"]
        (tmp_path / GROUP).mkdir()
        (tmp_path / "elsewhere").mkdir()
        for path in foreign:
            path.write_bytes(b"m" * 5000)
        cache, source = CacheFolder(tmp_path, 1000), Source()
        for number in range(3):
            use(cache, source, number)
        assert all(path.read_bytes() == b"m" * 5000 for path in foreign)

    def test_space_that_another_process_is_about_to_take_is_taken(self, tmp_path: Path) -> None:
        cache, source = CacheFolder(tmp_path, 1900), Source()
        inside, leave = threading.Event(), threading.Event()

        def slow(path: Path) -> PendingFile:
            inside.set()
            leave.wait(20)
            return source.fill(1)(path)

        thread = threading.Thread(target=lambda: cache.acquire(cached(1), slow).close())
        thread.start()
        inside.wait(20)
        with pytest.raises(CacheFull):
            cache.acquire(cached(2), source.fill(2))
        leave.set()
        thread.join()
        use(cache, source, 2)
        assert there(cache) == {2}

    def test_a_file_that_was_just_published_counts_once(self, tmp_path: Path) -> None:
        """Its space is not counted twice between publishing it and releasing its reservation."""
        cache, source = CacheFolder(tmp_path, 2000), Source()
        use(cache, source, 1)
        lock = os.open(cache.folder(GROUP) / ".train-000001.tar.lock", os.O_RDWR)
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.write(lock, b"1000")
        use(cache, source, 2)
        assert there(cache) == {1, 2}
        os.close(lock)


class TestFilling:
    def test_once_however_many_threads_ask(self, tmp_path: Path) -> None:
        cache, source = CacheFolder(tmp_path, 100_000), Source()
        threads = [threading.Thread(target=use, args=(cache, source, number % 3)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(source.filled) == [0, 1, 2]
        assert (cache.counts.fills, cache.counts.hits, cache.counts.fetched_bytes) == (3, 9, 3000)

    def test_two_processes_share_one_and_fill_each_file_once(self, tmp_path: Path) -> None:
        script = (
            "cache, source = CacheFolder(Path(sys.argv[1]), 3500), Source()\n"
            "for number in map(int, sys.argv[2].split()): use(cache, source, number % 3)\n"
            "print(len(source.filled))"
        )
        orders = ["0 1 2 0 1 2 " * 5, "2 1 0 2 1 0 " * 5]
        processes = [child(script, tmp_path, order) for order in orders]
        assert sum(int(process.communicate(timeout=60)[0]) for process in processes) == 3
        assert [process.returncode for process in processes] == [0, 0]

    def test_two_processes_that_evict_each_others_files_always_read_whole_ones(self, tmp_path: Path) -> None:
        script = (
            "cache, source = CacheFolder(Path(sys.argv[1]), 2500), Source()\n"
            "for step in range(40):\n"
            "    number = (step * int(sys.argv[2])) % 7\n"
            "    pin = cache.acquire(cached(number), source.fill(number), wait_s=20)\n"
            "    assert pin.path.read_bytes() == content(number)\n"
            "    assert total(cache.root) <= 2500\n"
            "    pin.close()\n"
        )
        processes = [child(script, tmp_path, stride) for stride in (1, 2, 3)]
        assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
        for process in processes:
            process.communicate()

    def test_killed_while_filling_it_leaves_no_lock_no_space_taken_and_its_file_is_cleared(
        self, tmp_path: Path
    ) -> None:
        filler = child(
            "def half(path):\n"
            "    pending = PendingFile(path); pending.write(content(1)[:500])\n"
            "    print('half', flush=True); time.sleep(60)\n"
            "CacheFolder(Path(sys.argv[1]), 1000).acquire(cached(1), half)",
            tmp_path,
        )
        until(filler, "half")
        kill(filler)
        assert len(list(tmp_path.rglob("*.tmp-*"))) == 1
        cache, source = CacheFolder(tmp_path, 1000), Source()
        use(cache, source, 2)  # another file: the space is free, and the leftover is cleared
        assert not list(tmp_path.rglob("*.tmp-*"))
        use(cache, source, 1)
        assert there(cache) == {1}

    def test_killed_and_asked_for_again(self, tmp_path: Path) -> None:
        (tmp_path / GROUP).mkdir()
        (tmp_path / GROUP / ".train-000001.tar.tmp-123").write_bytes(b"half")
        (tmp_path / GROUP / "..train-000001.tar.checked.tmp-123").write_bytes(b"{")
        use(CacheFolder(tmp_path, 1000), Source(), 1)
        assert not list(tmp_path.rglob("*.tmp-*"))

    def test_a_fill_that_fails_leaves_nothing_and_the_next_one_works(self, tmp_path: Path) -> None:
        cache, source = CacheFolder(tmp_path, 1000), Source()

        def broken(path: Path) -> PendingFile:
            raise StoreFault("no network")

        with pytest.raises(StoreFault, match="no network"):
            cache.acquire(cached(1), broken)
        assert not list(tmp_path.rglob("*.tmp-*"))
        assert not there(cache)
        use(cache, source, 1)

    @pytest.mark.parametrize("step", ["write", "fsync", "rename"])
    def test_a_full_disk_is_one_clear_line(self, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
        cache, source = CacheFolder(tmp_path, 1000), Source()

        cache.folder(GROUP).mkdir()

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(*{"write": (os, "write"), "fsync": (os, "fsync"), "rename": (Path, "rename")}[step], full)
        with pytest.raises(EnvironmentFault, match=r"train-000001\.tar: the disk is full; free some space"):
            cache.acquire(cached(1), source.fill(1))
        monkeypatch.undo()
        assert not there(cache)
        assert not list(tmp_path.rglob("*.tmp-*"))
        use(cache, source, 1)


class TestDamage:
    def damaged(self, tmp_path: Path, change: Callable[[Path], object], *, recheck: bool = False) -> tuple[int, int]:
        """Fill, damage, use again; returns how often it was filled and found damaged."""
        cache, source = CacheFolder(tmp_path, 1000), Source()
        use(cache, source, 1)
        time.sleep(0.02)  # the kernel's time stamps are some milliseconds coarse
        change(cache.folder(GROUP) / "train-000001.tar")
        pin = cache.acquire(cached(1), source.fill(1), recheck=recheck)
        assert pin.path.read_bytes() == content(1)
        pin.close()
        return len(source.filled), cache.counts.damaged

    def test_a_sound_file_is_not_fetched_again(self, tmp_path: Path) -> None:
        assert self.damaged(tmp_path, lambda path: path.read_bytes(), recheck=True) == (1, 0)

    def test_a_file_of_another_size(self, tmp_path: Path) -> None:
        assert self.damaged(tmp_path, lambda path: os.truncate(path, 999)) == (2, 1)

    def test_changed_content_of_the_same_size_and_modification_time(self, tmp_path: Path) -> None:
        def flip(path: Path) -> None:
            before = path.stat()
            with path.open("r+b") as stream:
                stream.write(b"?")
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

        assert self.damaged(tmp_path, flip) == (2, 1)

    def test_a_file_put_in_its_place(self, tmp_path: Path) -> None:
        def swap(path: Path) -> None:
            other = path.with_name("other")
            other.write_bytes(bytes(1000))
            other.rename(path)

        assert self.damaged(tmp_path, swap) == (2, 1)

    def test_a_link_put_in_its_place_is_not_followed(self, tmp_path: Path) -> None:
        def link(path: Path) -> None:
            path.unlink()
            path.symlink_to("/etc/hostname")

        with pytest.raises(EnvironmentFault, match="cannot read"):
            self.damaged(tmp_path, link)

    @pytest.mark.timeout(20)
    @pytest.mark.parametrize("name", ["train-000001.tar", ".train-000001.tar.lock", ".train-000001.tar.checked"])
    def test_a_pipe_in_the_cache_is_never_waited_for(self, name: str, tmp_path: Path) -> None:
        cache = CacheFolder(tmp_path, 1000)
        use(cache, Source(), 1)
        (cache.folder(GROUP) / name).unlink()
        os.mkfifo(cache.folder(GROUP) / name)
        if name.endswith(".checked"):  # the content is checked, and recorded again
            use(cache, Source(), 1)
            return
        if name.endswith(".lock"):
            (cache.folder(GROUP) / "train-000001.tar").unlink()
        with pytest.raises(UsageFault, match=r"expected .*found .*remove this path"):
            use(cache, Source(), 1)

    @pytest.mark.parametrize("change", [lambda record: record.unlink(), lambda record: record.write_bytes(b"{")])
    def test_without_a_record_the_content_is_checked_and_kept(
        self, tmp_path: Path, change: Callable[[Path], object]
    ) -> None:
        assert self.damaged(tmp_path, lambda path: change(path.with_name(f".{path.name}.checked"))) == (1, 0)

    def test_a_touched_file_is_checked_and_kept(self, tmp_path: Path) -> None:
        assert self.damaged(tmp_path, os.utime) == (1, 0)

    def test_rot_below_the_file_system_is_seen_by_a_recheck_alone(self, tmp_path: Path) -> None:
        def rot(path: Path) -> None:
            path.write_bytes(bytes(1000))
            found = path.stat()
            record = path.with_name(f".{path.name}.checked")
            document = json.loads(record.read_bytes())
            document |= {"inode": found.st_ino, "mtime_ns": found.st_mtime_ns, "ctime_ns": found.st_ctime_ns}
            record.write_text(json.dumps(document))

        assert self.damaged(tmp_path, rot, recheck=True) == (2, 1)
        with pytest.raises(AssertionError):
            self.damaged(tmp_path, rot, recheck=False)

    def test_a_record_that_another_process_takes_away_in_between_is_no_fault(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever finds rot removes the record, also just before a reader or a writer notes when it used the file."""
        cache, source = CacheFolder(tmp_path, 1000), Source()
        utime = os.utime

        def taken(path: Path, *, ns: tuple[int, int]) -> None:
            path.unlink()
            utime(path, ns=ns)

        monkeypatch.setattr(os, "utime", taken)
        use(cache, source, 1)  # filled
        use(cache, source, 1)  # without a record: checked and recorded again
        monkeypatch.undo()
        use(cache, source, 1)
        monkeypatch.setattr(os, "utime", taken)
        use(cache, source, 1)  # found with its record
        assert source.filled == [1]

    def test_a_reader_of_the_damaged_file_keeps_what_it_has(self, tmp_path: Path) -> None:
        cache, source = CacheFolder(tmp_path, 2000), Source()
        pin = cache.acquire(cached(1), source.fill(1))
        os.utime(pin.path)
        os.truncate(pin.path, 10)
        use(cache, source, 1)
        assert os.pread(pin.descriptor, 100, 0) == content(1)[:10]
        pin.close()


class TestBackoff:
    @settings(deadline=None)
    @given(st.integers(1, 40), st.text(max_size=5), st.floats(0, 5), st.floats(0, 60))
    def test_doubles_up_to_a_limit_and_is_spread_over_its_second_half(
        self, attempt: int, salt: str, first: float, longest: float
    ) -> None:
        retries = Retries(5, first, longest)
        whole = min(longest, first * 2 ** (attempt - 1))
        assert whole / 2 <= backoff_s(retries, attempt, salt) <= whole
        assert backoff_s(retries, attempt, salt) == backoff_s(retries, attempt, salt)

    def test_salts_spread(self) -> None:
        waits = sorted(backoff_s(Retries(), 1, str(salt)) for salt in range(1000))
        assert waits[100] < 0.29
        assert waits[900] > 0.46

    @settings(deadline=None)
    @given(st.integers(1, 8), st.integers(0, 10))
    def test_tries_are_counted(self, attempts: int, failures: int) -> None:
        tried, waits = [], []

        def action() -> str:
            tried.append(1)
            if len(tried) <= failures:
                raise StoreFault("busy", transient=True)
            return "done"

        retries = Retries(attempts, 1, 60)
        if failures < attempts:
            assert with_retries(action, retries, "s", waits.append) == "done"
            assert len(tried) == failures + 1
        else:
            with pytest.raises(StoreFault, match=f"busy \\(stopped after {attempts} attempts\\)"):
                with_retries(action, retries, "s", waits.append)
            assert len(tried) == attempts
        assert waits == [backoff_s(retries, k, "s") for k in range(1, len(tried))]

    @pytest.mark.parametrize("error", [StoreFault("refused"), DataError("no such file"), EnvironmentFault("disk full")])
    def test_what_will_not_get_better_is_not_tried_again(self, error: Exception) -> None:
        tried = []

        def action() -> None:
            tried.append(1)
            raise error

        with pytest.raises(type(error), match=str(error)):
            with_retries(action, Retries(), "s", lambda _: None)
        assert len(tried) == 1

    def test_a_server_that_times_out_is_asked_twice(self) -> None:
        tried = []

        def action() -> None:
            tried.append(1)
            raise StoreFault("slow", timed_out=True)

        with pytest.raises(StoreFault, match=r"slow \(stopped after 2 attempts\)"):
            with_retries(action, Retries(), "s", lambda _: None)
        assert len(tried) == 2

    def test_wrong_content_is_tried_again_and_stays_a_data_error(self) -> None:
        def action() -> None:
            raise WrongContent("digest")

        with pytest.raises(DataError, match=r"digest .stopped after 3 attempts"):
            with_retries(action, Retries(3, 0, 0), "s")

    @pytest.mark.parametrize("values", [(0, 1, 1), (1, -1, 1), (1, 1, -1)])
    def test_settings_that_cannot_be_meant(self, values: tuple[int, float, float]) -> None:
        with pytest.raises(UsageFault):
            Retries(*values)


class TestAhead:
    def ahead(self, cache: CacheFolder, source: Source, maximum: int = 2) -> FetchAhead:
        return FetchAhead(lambda name, _: cache.acquire(cached(int(name)), source.fill(int(name))), maximum, threads=2)

    def fetched(self, cache: CacheFolder, numbers: set[int]) -> None:
        limit = time.monotonic() + 20
        while there(cache) != numbers:
            assert time.monotonic() < limit, there(cache)
            time.sleep(0.005)

    def test_holds_so_many_of_the_first_and_goes_on_as_they_are_taken(self, tmp_path: Path) -> None:
        cache, source = CacheFolder(tmp_path, 100_000), Source()
        ahead = self.ahead(cache, source)
        ahead.hint(map(str, range(9)))
        self.fetched(cache, {0, 1})
        assert ahead.take("7") is None
        pin = ahead.take("0")
        assert pin
        self.fetched(cache, {0, 1, 2})
        pin.close()
        time.sleep(0.05)
        ahead.close()
        assert sorted(source.filled) == [0, 1, 2]

    def test_what_is_fetched_ahead_is_held_until_the_hint_changes(self, tmp_path: Path) -> None:
        cache, source = CacheFolder(tmp_path, 2000), Source()
        ahead = self.ahead(cache, source)
        ahead.hint(["0", "1"])
        self.fetched(cache, {0, 1})
        with pytest.raises(CacheFull):
            cache.acquire(cached(2), source.fill(2))
        ahead.hint([])
        cache.acquire(cached(2), source.fill(2), wait_s=20).close()
        ahead.close()

    def test_one_that_is_on_its_way_is_waited_for(self, tmp_path: Path) -> None:
        cache, source = CacheFolder(tmp_path, 100_000), Source()
        started, go_on = threading.Event(), threading.Event()

        def slow(name: str, _: object) -> Pin:
            started.set()
            go_on.wait(20)
            return cache.acquire(cached(int(name)), source.fill(int(name)))

        ahead = FetchAhead(slow, 1, 1)
        ahead.hint(["3"])
        started.wait(20)
        threading.Timer(0.1, go_on.set).start()
        pin = ahead.take("3")
        assert pin
        pin.close()
        assert source.filled == [3]
        ahead.close()

    def test_an_error_is_raised_where_the_shard_is_wanted_and_once(self) -> None:
        failed = threading.Event()

        def broken(name: str, _: object) -> Pin:
            failed.set()
            raise StoreFault(f"{name}: no network")

        ahead = FetchAhead(broken, 1, 1)
        ahead.hint(["a"])
        failed.wait(20)
        with pytest.raises(StoreFault, match="a: no network"):
            ahead.take("a")
        assert ahead.take("a") is None
        ahead.close()

    def test_a_full_cache_stops_it_and_is_no_error(self, tmp_path: Path) -> None:
        cache, source = CacheFolder(tmp_path, 1000), Source()
        pin = cache.acquire(cached(7), source.fill(7))
        ahead = self.ahead(cache, source)
        ahead.hint(["0", "1"])
        time.sleep(0.1)
        assert ahead.take("0") is None
        assert there(cache) == {7}
        pin.close()
        ahead.close()

    def test_closing_ends_the_threads_even_between_tries(self) -> None:
        waiting = threading.Event()

        def patient(name: str, wait: Callable[[float], object]) -> Pin:
            waiting.set()
            wait(1000.0)
            raise AssertionError("it went on")

        before = set(threading.enumerate())  # other tests' threads may still be on their way out
        ahead = FetchAhead(patient, 1, 1)
        ahead.hint(["a"])
        waiting.wait(20)
        assert {thread.name for thread in set(threading.enumerate()) - before} == {"fetch-ahead"}
        ahead.close()
        assert not set(threading.enumerate()) - before
