"""Workers may die, hang or talk nonsense: their recording is named, tried once more alone, and the others go on."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import pytest
from pipeline_helpers import run_preprocess

from omniges.errors import EnvironmentFault
from omniges.pipeline import supervisor as supervisor_module
from omniges.pipeline.discover import Recording
from omniges.pipeline.settings import ConvertSettings, Rejected
from omniges.pipeline.stems import StemFields
from omniges.pipeline.supervisor import Lost, Outcome, Supervisor, WorkerEvent

FAKE = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))


def recordings(*stems: str) -> list[Recording]:
    return [Recording(stem, stem, "train", StemFields(), {}) for stem in stems]


def run(
    *stems: str, workers: int = 2, deadline_s: float = 30.0, command: tuple[str, ...] = FAKE
) -> tuple[dict[str, Outcome], list[WorkerEvent]]:
    events: list[WorkerEvent] = []
    crew = Supervisor(ConvertSettings(), workers, deadline_s, events.append, command)
    order = [(recording.stem, outcome) for recording, outcome in crew.run(recordings(*stems))]
    assert [stem for stem, _ in order] == list(stems)  # in the order given, whatever finished first
    return dict(order), events


class TestDeaths:
    def test_a_killed_worker_names_its_recording_and_the_others_go_on(self) -> None:
        outcomes, events = run("a", "b", "die", "c", "d", "e")
        assert outcomes.pop("die") == Lost("killed by SIGKILL")
        assert all(isinstance(outcome, Rejected) for outcome in outcomes.values())
        assert events == [WorkerEvent("die", "killed by SIGKILL", 1), WorkerEvent("die", "killed by SIGKILL", 2)]

    def test_a_recording_that_killed_its_worker_once_is_converted_the_second_time(self, tmp_path: Path) -> None:
        outcomes, events = run("a", f"die-once:{tmp_path / 'mark'}", "b")
        assert not any(isinstance(outcome, Lost) for outcome in outcomes.values())
        assert [event.attempt for event in events] == [1]

    def test_the_second_try_runs_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        busy: list[int] = []
        attempt = Supervisor._attempt

        def watched(self: Supervisor, *args: object) -> object:
            others = [recording.stem for recording, _ in self._running.values() if not recording.stem.startswith("die")]
            if args[3] == 2:
                busy.append(len(others))
            return attempt(self, *args)  # type: ignore[arg-type]

        monkeypatch.setattr(Supervisor, "_attempt", watched)
        run("slow1", f"die-once:{tmp_path / 'mark'}", "slow2", "slow3", "slow4", workers=4)
        assert busy == [0]

    def test_last_words_are_kept(self) -> None:
        outcomes, _ = run("exit")
        assert outcomes["exit"] == Lost("exit code 3: the last words")

    def test_a_hanging_worker_meets_its_deadline(self) -> None:
        start = time.monotonic()
        outcomes, _ = run("hang", "a", deadline_s=0.5)
        assert isinstance(outcomes["hang"], Lost)
        assert "deadline of 0.5 s" in outcomes["hang"].reason
        assert isinstance(outcomes["a"], Rejected)
        assert time.monotonic() - start < 20

    def test_nonsense_from_a_worker_is_a_death(self) -> None:
        outcomes, _ = run("babble", "a")
        assert isinstance(outcomes["babble"], Lost)
        assert isinstance(outcomes["a"], Rejected)

    def test_a_worker_that_cannot_start_ends_the_run(self) -> None:
        with pytest.raises(EnvironmentFault, match="worker process"):
            run("a", command=("/no/such/python",))


class TestFlow:
    def test_a_slow_recording_holds_the_others_back_after_a_while(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(supervisor_module, "_WINDOW_RECORDINGS", 2)
        crew = Supervisor(ConvertSettings(), 2, 30.0, lambda _: None, FAKE)
        furthest = 0
        for done, _ in enumerate(crew.run(recordings("slow", *(f"r{k}" for k in range(30))))):
            furthest = max(furthest, crew._next - done)
        assert furthest <= 2 * 2 + 2

    def test_each_worker_serves_many_recordings(self) -> None:
        outcomes, _ = run(*(f"r{k}" for k in range(20)), workers=2)
        pids = {outcome.findings[0].problem.found for outcome in outcomes.values() if isinstance(outcome, Rejected)}
        assert len(pids) <= 2

    def test_closing_the_iterator_ends_the_workers_at_once(self) -> None:
        crew = Supervisor(ConvertSettings(), 2, 1000.0, lambda _: None, FAKE)
        outcomes = crew.run(recordings("a", "hang", "hang2", "b"))
        next(outcomes)
        start = time.monotonic()
        outcomes.close()
        assert time.monotonic() - start < 10
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("worker-")]

    def test_no_recordings_need_no_workers(self) -> None:
        assert run() == ({}, [])


class TestLostInARun:
    def test_a_lost_recording_leaves_the_set_incomplete_and_the_next_run_completes_it(
        self, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = run_preprocess(corpus, tmp_path / "whole")
        # A worker that dies of one recording: the real one, told by the environment which.
        killer = tmp_path / "killer.py"
        killer.write_text(
            "import os, signal\nfrom omniges.pipeline import worker\nreal = worker.convert\n"
            "def convert(recording, settings):\n"
            "    if recording.stem == '1_synthetica_0_2_2': os.kill(os.getpid(), signal.SIGKILL)\n"
            "    return real(recording, settings)\n"
            "worker.convert = convert\nworker.main()\n"
        )
        with monkeypatch.context() as patch:
            patch.setattr(Supervisor.__init__, "__defaults__", ((sys.executable, str(killer)),))
            summary = run_preprocess(corpus, tmp_path / "o")
        assert summary.lost == {"1_synthetica_0_2_2": "killed by SIGKILL"}
        assert summary.exit_code == 1
        assert summary.converted == whole.converted - 1
        assert "dataset.json" not in os.listdir(tmp_path / "o")
        log = (tmp_path / "o.run.jsonl").read_text()
        assert log.count("worker-death") == 2
        assert "1_synthetica_0_2_2" in log
        assert run_preprocess(corpus, tmp_path / "o").manifest_hash == whole.manifest_hash
