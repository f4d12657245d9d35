"""`preprocess` is killed, stopped, refused the disk or met by another run at any instant, and always comes through."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from crash_calls import Call, Perform, Recorder, kind_of, tapped
from crash_kills import left_behind, run_child
from crash_scenarios import NAMES, Scenario, end_faults, everything_in, make_scenarios, preprocess_here, state_faults
from pipeline_helpers import digests, run_preprocess

from omniges.errors import EnvironmentFault, UsageFault
from omniges.pipeline.discover import Recording
from omniges.pipeline.worker import ConvertPool
from omniges.verify.run import verify
from omniges.verify.settings import VerifySettings


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scenario]:
    return make_scenarios(tmp_path_factory.mktemp("scenarios"))


@pytest.fixture(scope="module")
def calls(scenarios: dict[str, Scenario], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Call]]:
    """The calls of an undisturbed run of each scenario."""
    recordings = {}
    for name, scenario in scenarios.items():
        out = scenario.begin(tmp_path_factory.mktemp("counted") / "x")
        recorder = Recorder()
        with tapped(out.parent, recorder):
            preprocess_here(scenario, out)
        recordings[name] = recorder.calls
    return recordings


class Stop(BaseException):
    """Exception that a signal raises."""


class At:
    """An `around` that fails with an error at a call, and, if requested, at every later call of this kind."""

    def __init__(self, number: int, error: BaseException, *, lasting: bool = False) -> None:
        self.number = number
        self.error = error
        self.lasting = lasting
        self.count = 0
        self.struck = False

    def __call__(self, call: Call, perform: Perform) -> Any:
        self.count += 1
        again = self.lasting and self.struck and call.kind not in ("unlink", "rmdir")
        if self.count - 1 == self.number or again:
            self.struck = True
            raise self.error
        return perform(None)


def of_each_kind(calls: list[Call]) -> list[int]:
    """The number of the last call of each kind."""
    return sorted({kind_of(call): number for number, call in enumerate(calls)}.values())


class TestKilled:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("scenario", "kind", "when", "victims"),
        [
            ("fresh", "write work/staged (temporary)", "half", "alone"),
            ("fresh", "sync work/staged (temporary)", "after", "group"),  # between fsync and rename
            ("fresh", "write work/manifest.parquet (temporary)", "half", "group"),
            ("update", "write work/journal.jsonl", "half", "alone"),
            ("update", "unlink out/dataset.json", "after", "group"),
            ("shifted", "rename work/moved", "after", "group"),  # aside, to get another name
            ("shifted", "rename out/dataset.json", "before", "group"),
            ("force", "unlink work/begun.json", "after", "alone"),  # while the workspace goes
        ],
    )
    def test_the_same_command_finishes_the_set(
        self, scenarios: dict[str, Scenario], tmp_path: Path, scenario: str, kind: str, when: str, victims: str
    ) -> None:
        plan, out = scenarios[scenario], scenarios[scenario].begin(tmp_path / "x")
        spec: dict[str, object] = {"kind": kind, "nth": 0, "when": when, "victims": victims}
        groups: list[int] = []
        assert run_child(plan, out, first=True, spec=spec, groups=groups) < 0, "no such call"
        assert state_faults(plan, out) == []
        preprocess_here(plan, out)
        assert left_behind(groups) == []
        assert end_faults(plan, out) == []

    @pytest.mark.long
    @pytest.mark.timeout(3600)
    def test_three_hundred_times(self) -> None:
        """The benchmark's own figure: `python tests/robustness/crashes.py --kills 300`."""
        command = [sys.executable, str(Path(__file__).resolve().parents[2] / "tests/robustness/crashes.py")]
        assert subprocess.run([*command, "--kills", "300", "--workers", "2"]).returncode == 0


class TestStopped:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("victims", "code", "kind"),
        [("SIGTERM", 75, "unlink out/dataset.json"), ("SIGINT", 130, "rename out/dataset.json")],
    )
    def test_a_signal_ends_with_its_code_and_the_same_command_finishes(
        self, scenarios: dict[str, Scenario], tmp_path: Path, victims: str, code: int, kind: str
    ) -> None:
        plan, out = scenarios["update"], scenarios["update"].begin(tmp_path / "x")
        spec: dict[str, object] = {"kind": kind, "nth": 0, "when": "before", "victims": victims}
        assert run_child(plan, out, first=True, spec=spec) == code
        assert state_faults(plan, out) == []
        preprocess_here(plan, out)
        assert end_faults(plan, out) == []

    @pytest.mark.slow
    def test_at_calls_of_many_kinds(
        self, scenarios: dict[str, Scenario], calls: dict[str, list[Call]], tmp_path: Path
    ) -> None:
        for place, name in enumerate(NAMES):
            for number in of_each_kind(calls[name])[place::20]:
                self.stop_at(scenarios[name], calls[name], tmp_path / f"{name}-{number}", number)

    @pytest.mark.long
    @pytest.mark.timeout(3600)
    @pytest.mark.parametrize("name", NAMES)
    def test_at_every_single_call(
        self, scenarios: dict[str, Scenario], calls: dict[str, list[Call]], tmp_path: Path, name: str
    ) -> None:
        for number in range(len(calls[name])):
            self.stop_at(scenarios[name], calls[name], tmp_path / str(number), number)

    @staticmethod
    def stop_at(scenario: Scenario, calls: list[Call], folder: Path, number: int) -> None:
        out = scenario.begin(folder)
        with pytest.raises(Stop), tapped(out.parent, At(number, Stop())):
            preprocess_here(scenario, out)
        if out.is_dir():
            assert state_faults(scenario, out) == [], kind_of(calls[number])
        preprocess_here(scenario, out)
        assert end_faults(scenario, out) == [], kind_of(calls[number])


FAULTS = {
    errno.ENOSPC: "disk is full",
    errno.EROFS: "read-only",
    errno.EACCES: "permission denied",
    errno.EIO: "check the disk",
}


class TestRefused:
    @pytest.mark.slow
    @pytest.mark.parametrize("code", FAULTS, ids=lambda code: errno.errorcode[code])
    @pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
    def test_calls_of_many_kinds_may_fail_with_one_clear_line_and_the_same_command_finishes(
        self, scenarios: dict[str, Scenario], calls: dict[str, list[Call]], tmp_path: Path, code: int, lasting: bool
    ) -> None:
        name = "fresh" if code == errno.EACCES else "shifted"
        for number in of_each_kind(calls[name])[2 * list(FAULTS).index(code) + lasting :: 13]:
            self.fail_at(scenarios[name], calls[name], tmp_path / str(number), number, code, lasting=lasting)

    @pytest.mark.long
    @pytest.mark.timeout(3600)
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("code", FAULTS, ids=lambda code: errno.errorcode[code])
    def test_so_may_every_single_call(
        self, scenarios: dict[str, Scenario], calls: dict[str, list[Call]], tmp_path: Path, code: int, name: str
    ) -> None:
        for number in range(len(calls[name])):
            for lasting in (False, True):
                folder = tmp_path / f"{number}-{lasting}"
                self.fail_at(scenarios[name], calls[name], folder, number, code, lasting=lasting)

    @staticmethod
    def fail_at(scenario: Scenario, calls: list[Call], folder: Path, number: int, code: int, *, lasting: bool) -> None:
        out = scenario.begin(folder)
        around = At(number, OSError(code, os.strerror(code)), lasting=lasting)
        where = f"{errno.errorcode[code]} at {kind_of(calls[number])}"
        with tapped(out.parent, around), pytest.raises(EnvironmentFault, match=FAULTS[code]) as caught:
            preprocess_here(scenario, out)
        assert "\n" not in str(caught.value), where
        assert str(out.parent) in str(caught.value), where
        if out.is_dir():
            assert state_faults(scenario, out) == [], where
        preprocess_here(scenario, out)
        assert end_faults(scenario, out) == [], where


class TestOthersAtOnce:
    @pytest.mark.slow
    def test_a_second_run_at_any_moment_must_wait_and_changes_nothing(
        self, scenarios: dict[str, Scenario], tmp_path: Path
    ) -> None:
        plan, out = scenarios["shifted"], scenarios["shifted"].begin(tmp_path / "x")
        recorder, refused = Recorder(), []

        def around(call: Call, perform: Perform) -> Any:
            if threading.current_thread() is threading.main_thread():
                with pytest.raises(EnvironmentFault, match="another omniges run is writing here"):
                    preprocess_here(plan, out)
                refused.append(call)
            return recorder(call, perform)

        with tapped(out.parent, around):
            preprocess_here(plan, out)
        assert len(refused) > 50
        assert end_faults(plan, out) == []

    def test_files_that_another_run_is_moving_are_not_taken_for_foreign_ones(
        self, scenarios: dict[str, Scenario], tmp_path: Path
    ) -> None:
        # What a look at dataset.json before, and at the workspace after another run's last step, would see.
        plan, out = scenarios["update"], scenarios["update"].begin(tmp_path / "x")
        (out / "dataset.json").unlink()
        descriptor = os.open(out, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with pytest.raises(EnvironmentFault, match="another omniges run"):
                preprocess_here(plan, out)
        finally:
            os.close(descriptor)
        with pytest.raises(UsageFault, match="not from an omniges run"):
            preprocess_here(plan, out)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["update", "force"])
    def test_who_verifies_meanwhile_sees_a_whole_set_or_an_error(
        self, scenarios: dict[str, Scenario], tmp_path: Path, name: str
    ) -> None:
        plan, out = scenarios[name], scenarios[name].begin(tmp_path / "x")
        assert plan.old is not None
        whole = [everything_in(plan.old), plan.expected]
        seen: list[str] = []

        def around(call: Call, perform: Perform) -> Any:
            result = perform(None)
            if threading.current_thread() is threading.main_thread():
                sound = verify(VerifySettings(folder=out, level="full", num_workers=1)).valid
                visible = {name: digest for name, digest in everything_in(out).items() if name[0] != "."}
                assert sound == (visible in whole), kind_of(call)
                seen.append("old" if visible == whole[0] else "new" if visible == whole[1] else "none")
            return result

        with tapped(out.parent, around):
            preprocess_here(plan, out)
        assert sorted(set(seen)) == ["new", "none", "old"]
        assert seen == sorted(seen, key=["old", "none", "new"].index)  # each state once

    def test_a_process_that_verifies_over_and_over_never_breaks(
        self, scenarios: dict[str, Scenario], tmp_path: Path
    ) -> None:
        plan, out = scenarios["shifted"], scenarios["shifted"].begin(tmp_path / "x")
        results: list[bool] = []
        over = threading.Event()

        def look() -> None:
            while not over.is_set():
                results.append(verify(VerifySettings(folder=out, level="full", num_workers=1)).valid)

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            preprocess_here(plan, out)
        finally:
            over.set()
            watcher.join()
        assert results[0]
        assert verify(VerifySettings(folder=out, level="deep", num_workers=1)).valid


class TestMemoryLimit:
    @pytest.fixture
    def limited(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
        """Puts the real worker that is given a listed stem under a memory limit; a stem listed twice, twice."""
        stems: list[str] = []
        convert = ConvertPool._attempt

        def attempt(self: ConvertPool, worker: Any, recording: Recording, index: int, number: int) -> Any:
            worker = worker or self._begin()
            if recording.stem in stems:
                stems.remove(recording.stem)
                pages = int(Path(f"/proc/{worker.pid}/statm").read_text().split()[0])
                limit = pages * resource.getpagesize() // 2  # nothing more can be had
                resource.prlimit(worker.pid, resource.RLIMIT_AS, (limit, limit))
            return convert(self, worker, recording, index, number)

        monkeypatch.setattr(ConvertPool, "_attempt", attempt)
        return stems

    def test_a_worker_that_meets_it_is_named_and_its_recording_converted_alone(
        self, corpus: Path, shards: Path, tmp_path: Path, limited: list[str]
    ) -> None:
        limited.append("1_synthetica_0_2_2")
        out = tmp_path / "o"
        assert run_preprocess(corpus, out, keep_audio=True, num_workers=1).exit_code == 0
        assert digests(out) == digests(shards)
        events = [json.loads(line) for line in (tmp_path / "o.run.jsonl").read_text().splitlines()]
        deaths = [event for event in events if event["event"] == "worker-death"]
        assert [(death["stem"], death["attempt"]) for death in deaths] == [("1_synthetica_0_2_2", 1)]

    @pytest.mark.slow
    def test_one_that_meets_it_twice_is_lost_and_the_next_run_completes_the_set(
        self, corpus: Path, shards: Path, tmp_path: Path, limited: list[str]
    ) -> None:
        limited += ["1_synthetica_0_2_2"] * 2
        out = tmp_path / "o"
        summary = run_preprocess(corpus, out, keep_audio=True, num_workers=1)
        assert list(summary.lost) == ["1_synthetica_0_2_2"]
        assert summary.exit_code == 1
        assert summary.converted == len(list(corpus.rglob("*.wav"))) - 1
        assert not (out / "dataset.json").exists()
        assert run_preprocess(corpus, out, keep_audio=True, num_workers=1).exit_code == 0
        assert digests(out) == digests(shards)
