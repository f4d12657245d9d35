"""A place in an object store: who has it, what is refused, and what a store must honour."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_helpers import PREFIX, URL, MemoryBucket

from omniges.errors import DataError, EnvironmentFault, UsageFault
from omniges.shards import store as store_module
from omniges.shards.store import JOURNAL_FOLDER, Lease, LockLost, StorePlace
from omniges.shards.transaction import UnfinishedRun
from omniges.shards.writer import StoredShard
from omniges.storage.bucket import Bucket, ConditionFailed
from omniges.storage.cache import Retries
from omniges.storage.files import canonical_json, sha256_hex
from omniges.storage.remote import parse_location

AT_ONCE = Retries(attempts=2, first_wait_s=0, longest_wait_s=0)
SHORT = Lease(beat_s=0.05, expires_s=0.6, poll_s=0.02)
ELSEWHERE = {"host": "other", "boot": "another", "space": "pid:[1]", "pid": 1, "started": "1"}
BEGUN = UnfinishedRun({"shard_bytes": 1}, {"omniges": "0"}, anew=False)


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> MemoryBucket:
    bucket = MemoryBucket()
    monkeypatch.setattr(Bucket, "_connect", lambda _store: bucket)
    return bucket


@pytest.fixture
def works(tmp_path: Path) -> Iterator[Path]:
    """New work folders."""
    return (tmp_path / f"work-{number}" for number in range(1000))


def place(work: Path, lease: Lease = SHORT, say: Callable[[str], object] = lambda _line: None) -> StorePlace:
    return StorePlace(parse_location(URL), work, 1 << 20, lease, retries=AT_ONCE, say=say)


class TestLock:
    def test_an_owner_on_another_machine_that_beats_is_waited_for_and_keeps_the_place(
        self, objects: MemoryBucket, works: Iterator[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store_module, "_process_facts", lambda: ELSEWHERE)
        with place(next(works)).locked():
            monkeypatch.undo()
            monkeypatch.setattr(Bucket, "_connect", lambda _store: objects)
            with pytest.raises(EnvironmentFault, match=r"another omniges run is writing here \(process 1 on other\)"):
                place(next(works)).locked().__enter__()

    def test_an_owner_on_another_machine_without_a_heartbeat_loses_the_place(
        self, objects: MemoryBucket, works: Iterator[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store_module, "_process_facts", lambda: ELSEWHERE)
        slow = place(next(works), Lease(beat_s=60, expires_s=0.3, poll_s=0.02))
        with slow.locked():
            monkeypatch.undo()
            monkeypatch.setattr(Bucket, "_connect", lambda _store: objects)
            said: list[str] = []
            other = place(next(works), Lease(beat_s=60, expires_s=0.3, poll_s=0.02), said.append)
            with other.locked(), pytest.raises(LockLost, match="took over"):
                slow.begin(BEGUN)
            waiting = "waiting 0.3 s for its heartbeat before this run takes over its work"
            assert said == [f"{URL}: locked by process 1 on other; {waiting}"]
            with pytest.raises(LockLost):
                slow.journal.append({"staged": "staged-000000-000000.tar"}, durable=True)

    def test_a_number_that_a_clean_up_has_freed_does_not_bring_an_owner_back(
        self, objects: MemoryBucket, works: Iterator[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        slow = place(next(works))
        with slow.locked():
            monkeypatch.setattr(store_module, "_has_ended", lambda _holder: True)
            for _ in range(2):
                other = place(next(works))
                with other.locked():
                    other.wipe()
            assert "record-000000000001.json" not in objects.journal
            with pytest.raises(LockLost):
                slow.begin(BEGUN)
            assert "record-000000000001.json" not in objects.journal
        with place(next(works)).locked():
            pass

    def test_a_work_folder_has_one_run(self, objects: MemoryBucket, works: Iterator[Path]) -> None:
        work = next(works)
        with place(work).locked(), pytest.raises(EnvironmentFault, match="another omniges run is writing here"):
            place(work).locked().__enter__()

    def test_an_ended_process_of_this_machine_is_recognized_at_once(self) -> None:
        facts = store_module._process_facts()
        assert store_module._has_ended(facts) is False
        assert store_module._has_ended(facts | {"started": "1"}) is True  # another process with its number
        assert store_module._has_ended(facts | {"pid": 1 << 30}) is True
        assert store_module._has_ended(ELSEWHERE) is None
        assert store_module._has_ended({}) is None


class TestStores:
    @pytest.mark.parametrize("condition", ["IfMatch", "IfNoneMatch"])
    def test_a_store_that_ignores_conditions_is_refused(
        self, objects: MemoryBucket, works: Iterator[Path], condition: str
    ) -> None:
        objects.ignored = frozenset({condition})
        with pytest.raises(UsageFault, match=rf"^{URL}/.*found a store that ignores {condition}"):
            place(next(works)).locked().__enter__()

    @pytest.mark.parametrize("keeps", [True, False])
    def test_other_bytes_than_were_sent_are_found(
        self, objects: MemoryBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keeps: bool
    ) -> None:
        objects.keeps_checksums = keeps
        bucket = Bucket(parse_location(URL), retries=AT_ONCE)
        path = tmp_path / "a.tar"
        path.write_bytes(b"content")
        digest = sha256_hex(b"content")
        bucket.upload("a.tar", path, 7, digest)
        bucket.upload("a.tar", path, 7, digest)  # its answer may have been lost
        path.write_bytes(b"another")
        with pytest.raises(ConditionFailed):
            bucket.upload("a.tar", path, 7, sha256_hex(b"another"))
        change = MemoryBucket._change
        monkeypatch.setattr(MemoryBucket, "_change", lambda self, key, data: change(self, key, data[:-1] + b"!"))
        with pytest.raises(DataError, match=r"b\.tar: expected 7 bytes with sha256"):
            bucket.upload("b.tar", path, 7, sha256_hex(b"another"))
        with pytest.raises(DataError, match=r"c\.tar: expected 7 bytes with sha256"):
            bucket.copy("a.tar", bucket, "c.tar", 7, digest)

    def test_objects_of_unknown_origin_are_refused_and_left(self, objects: MemoryBucket, works: Iterator[Path]) -> None:
        objects.objects[f"{PREFIX}train-000000.tar"] = b"of somebody"
        made = place(next(works))
        with (
            made.locked(),
            pytest.raises(UsageFault, match=r"train-000000\.tar, found a file that is not from an omniges run"),
        ):
            made.recover()
        assert objects.objects[f"{PREFIX}train-000000.tar"] == b"of somebody"


class TestRecords:
    @pytest.mark.parametrize(
        "document",
        [
            b"",
            b"[]",
            b"{}",
            b'{"record": "lock"}',
            b'{"record": "nothing", "lock": 0, "owner": "a"}',
            b'{"record": "lock", "lock": -1, "owner": "a"}',
            b'{"record": "commit", "lock": 0, "owner": "a", "steps": {}}',
        ],
    )
    def test_records_that_no_run_writes_are_refused(
        self, objects: MemoryBucket, works: Iterator[Path], document: bytes
    ) -> None:
        objects.objects[f"{PREFIX}{JOURNAL_FOLDER}/record-000000000000.json"] = document
        with pytest.raises(UsageFault, match=r"record-000000000000\.json: expected a file of an omniges run"):
            place(next(works)).locked().__enter__()

    @settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_steps_with_other_names_are_refused(self, data: st.DataObject) -> None:
        """No name in a commit leaves the two folders, whatever a stranger has written there."""
        entry: dict[str, Any] = {"staged": "staged-000000-000000.tar", "bytes": 1, "sha256": "0" * 64}
        side = ("manifest.parquet", "stats.json", "tokenizer.json", "report.jsonl", "dataset.json")
        place = {name: entry | {"staged": f"staged-000000-{name}"} for name in side} | {"train-000000.tar": entry}
        steps: dict[str, Any] = {"place": place, "removed": {"val-000000.tar": '"0"'}, "replaces": None, "mark": "a"}
        document = {"record": "commit", "lock": 0, "owner": "a", "steps": steps}
        assert store_module._is_record(json.loads(canonical_json(document)))
        odd = data.draw(
            st.one_of(
                st.sampled_from(["../x", "a/b", "", ".", "x.tar", "staged-000000-../x", None, 1, [], {}]), st.text()
            )
        )
        where = data.draw(
            st.sampled_from(["name", "staged", "bytes", "sha256", "removed", "replaces", "mark", "absent"])
        )
        if where == "name":
            steps["place"] = place | {str(odd): entry}
        elif where == "removed":
            steps["removed"] = {str(odd): '"0"'}
        elif where == "absent":
            del steps["place"]["dataset.json"]
        elif where in {"replaces", "mark"}:
            steps[where] = [odd]
        else:
            place["train-000000.tar"] = entry | {where: odd if where != "bytes" else str(odd)}
        assert not store_module._is_record(json.loads(canonical_json(document)))


def test_two_downloaded_shards_are_kept_at_most_and_open_ones_stay_readable(
    objects: MemoryBucket, works: Iterator[Path]
) -> None:
    made = place(next(works))
    with made.locked():
        shards = []
        for number in range(5):
            data = bytes([number]) * 10
            objects.objects[f"{PREFIX}train-{number:06d}.tar"] = data
            shards.append(StoredShard(made.out / f"train-{number:06d}.tar", 10, sha256_hex(data)))
        with made.opened(shards[0]) as first:
            for shard in shards[1:]:
                with made.opened(shard) as descriptor, open(descriptor, "rb", closefd=False) as stream:
                    assert sha256_hex(stream.read()) == shard.sha256
                assert len(list(made._kept.iterdir())) <= 2
            with open(first, "rb", closefd=False) as stream:
                assert stream.read() == bytes(10)
        objects.objects[f"{PREFIX}train-000000.tar"] = b"changed"
        with pytest.raises(DataError), made.opened(shards[0]):
            pass
    assert not any(path.is_file() for path in made._work.rglob("*"))


def test_a_record_takes_two_requests_however_many_shards_are_staged(
    objects: MemoryBucket, works: Iterator[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Create it, and look for a later one."""
    made = place(next(works), Lease())
    with made.locked():
        for number in range(50):
            objects.objects[f"{PREFIX}{JOURNAL_FOLDER}/staged-000000-{number:06d}.tar"] = b""
        called: list[str] = []
        call = MemoryBucket.call_s3

        def counted(self: MemoryBucket, method: str, **arguments: Any) -> dict[str, Any]:
            called.append(method)
            return call(self, method, **arguments)

        monkeypatch.setattr(MemoryBucket, "call_s3", counted)
        made.journal.append({"staged": "staged-000000-000000.tar"}, durable=True)
        assert called == ["put_object", "list_objects_v2"]


def test_threads_append_records_one_after_another(objects: MemoryBucket, works: Iterator[Path]) -> None:
    made = place(next(works))
    with made.locked():
        made.journal.open()
        threads = [
            threading.Thread(target=made.journal.append, args=({"staged": str(n)},), kwargs={"durable": n % 2 == 0})
            for n in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        made.journal.append({"staged": "last"}, durable=True)
        assert sorted(made._state.lines, key=str) == sorted(({"staged": str(n)} for n in [*range(20), "last"]), key=str)
