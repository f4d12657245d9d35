"""Workers may die, hang or talk nonsense: their task is named, tried once more alone, and the others go on."""

from __future__ import annotations

import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from omniges import workers as workers_module
from omniges.errors import DataError, EnvironmentFault, fault_of_machine, is_memory_error, settled
from omniges.workers import Lost, Pool, Worker, worker_command

FAKE = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))
SETUP = {"colour": "blue"}
ROOT = Path(__file__).parents[2]


def pool(
    events: list[tuple[str, str, int]], workers: int = 2, deadline_s: float = 30.0, command: tuple[str, ...] = FAKE
) -> Pool[str, int]:
    """A pool whose results are process ids."""

    def decode(answer: dict[str, int], buffers: list[memoryview]) -> int:
        assert answer["setup"] == SETUP
        task, empty, large = buffers
        assert (bytes(task)[-1:], bytes(empty), bytes(large)) == (b"!", b"", bytes(1 << 20))
        return answer["pid"]

    return Pool(
        partial(Worker, command, SETUP, pipe_bytes=1 << 20),
        lambda task: task,
        decode,
        workers=workers,
        deadline_s=deadline_s,
        on_death=lambda *event: events.append(event),
    )


def run(
    *tasks: str, workers: int = 2, deadline_s: float = 30.0, command: tuple[str, ...] = FAKE
) -> tuple[dict[str, int | Lost], list[tuple[str, str, int]]]:
    events: list[tuple[str, str, int]] = []
    order = list(pool(events, workers, deadline_s, command).run(tasks))
    assert [task for task, _ in order] == list(tasks)  # in the order given, whatever finished first
    return dict(order), events


class TestDeaths:
    def test_a_killed_worker_names_its_task_and_the_others_go_on(self) -> None:
        outcomes, events = run("a", "b", "die", "c", "d", "e")
        assert outcomes.pop("die") == Lost("killed by SIGKILL")
        assert all(isinstance(outcome, int) for outcome in outcomes.values())
        assert events == [("die", "killed by SIGKILL", 1), ("die", "killed by SIGKILL", 2)]

    def test_a_task_that_killed_its_worker_once_is_done_the_second_time(self, tmp_path: Path) -> None:
        outcomes, events = run("a", f"die-once:{tmp_path / 'mark'}", "b")
        assert not any(isinstance(outcome, Lost) for outcome in outcomes.values())
        assert [attempt for _, _, attempt in events] == [1]

    def test_the_second_try_runs_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        busy: list[int] = []
        attempt = Pool._attempt

        def watched(self: Pool[str, int], *args: object) -> object:
            others = [task for task, _ in self._running.values() if not task.startswith("die")]
            if args[3] == 2:
                busy.append(len(others))
            return attempt(self, *args)  # type: ignore[arg-type]

        monkeypatch.setattr(Pool, "_attempt", watched)
        run("slow1", f"die-once:{tmp_path / 'mark'}", "slow2", "slow3", "slow4", workers=4)
        assert busy == [0]

    def test_last_words_are_kept(self) -> None:
        outcomes, _ = run("exit")
        assert outcomes["exit"] == Lost("exit code 3: the last words")

    def test_a_hanging_worker_meets_its_deadline(self) -> None:
        start = time.monotonic()
        outcomes, _ = run("hang", deadline_s=0.5)
        assert isinstance(outcomes["hang"], Lost)
        assert "deadline of 0.5 s" in outcomes["hang"].reason
        assert time.monotonic() - start < 60

    @pytest.mark.slow  # a deadline that healthy workers meet on a busy machine too
    def test_others_go_on_beside_a_hanging_worker(self) -> None:
        outcomes, _ = run("a", "hang", "b", deadline_s=10.0)
        assert isinstance(outcomes.pop("hang"), Lost)
        assert all(isinstance(outcome, int) for outcome in outcomes.values())

    def test_nonsense_from_a_worker_is_a_death(self) -> None:
        outcomes, _ = run("babble", "a")
        assert isinstance(outcomes["babble"], Lost)
        assert isinstance(outcomes["a"], int)

    def test_an_error_that_a_worker_meets_is_raised_as_it_is(self) -> None:
        with pytest.raises(DataError, match=r"^the data is not what the contract says$"):
            run("a", "refuse", "b")

    def test_a_worker_that_cannot_start_ends_the_run(self) -> None:
        with pytest.raises(EnvironmentFault, match="worker process"):
            run("a", command=("/no/such/python",))


class TestFaultsOfTheMachine:
    @pytest.mark.parametrize("place", ["import", "prepare", "answer"])
    @pytest.mark.parametrize(
        ("raised", "words"),
        [
            ("ModuleNotFoundError('No module named soxr')", "No module named soxr"),
            ("ImportError('libgomp.so.1: cannot open shared object file')", "libgomp"),
            ("OSError(28, 'No space left on device')", "the disk is full"),
            ("OSError(24, 'Too many open files')", "ulimit -n"),
            ("FileNotFoundError(2, 'No usable temporary directory found in []')", "set TMPDIR"),
        ],
    )
    def test_they_are_raised_as_one_line_wherever_a_worker_meets_them(
        self, place: str, raised: str, words: str, tmp_path: Path
    ) -> None:
        at = {name: f"raise {raised}" if name == place else "pass" for name in ("import", "prepare", "answer")}
        text = f"{at['import']}\ndef prepare(setup):\n {at['prepare']}\n def answer(task):\n  {at['answer']}\n"
        (tmp_path / "own_worker.py").write_text(text + " return answer\n")
        command, environment = worker_command("own_worker"), {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
        crew = Pool(partial(Worker, command, None, environment=environment), str, lambda *_: None, workers=1)
        with pytest.raises(EnvironmentFault, match=words):
            list(crew.run(["a"]))

    def test_a_worker_starts_without_a_folder_for_temporary_files(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tempfile.tempdir", "/nowhere")
        outcomes, _ = run("exit", "a")
        assert outcomes["exit"] == Lost("exit code 3: the last words")
        assert isinstance(outcomes["a"], int)

    @pytest.mark.parametrize(
        "error",
        [
            MemoryError(),
            OSError(12, "Cannot allocate memory"),
            type("OutOfMemoryError", (RuntimeError,), {})(),
            RuntimeError("can't start new thread"),
        ],
    )
    def test_memory_is_a_fault_of_the_machine(self, error: Exception) -> None:
        assert is_memory_error(error)
        assert "used up" in str(fault_of_machine(error))

    @pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("x"), OSError(2, "x"), ImportError("x")])
    def test_a_bug_is_none(self, error: Exception) -> None:
        assert fault_of_machine(error) is None


class TestFlow:
    def test_a_slow_task_holds_the_others_back_after_a_while(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(workers_module, "_WINDOW_TASKS", 2)
        crew = pool([])
        furthest = 0
        for done, _ in enumerate(crew.run(["slow", *(f"r{k}" for k in range(30))])):
            furthest = max(furthest, crew._next - done)
        assert furthest <= 2 * 2 + 2

    def test_each_worker_serves_many_tasks(self) -> None:
        outcomes, _ = run(*(f"r{k}" for k in range(20)), workers=2)
        assert len(set(outcomes.values())) <= 2

    def test_closing_the_iterator_ends_the_workers_at_once(self) -> None:
        crew = pool([], deadline_s=1000.0)
        outcomes = crew.run(["a", "hang", "hang2", "b"])
        next(outcomes)
        start = time.monotonic()
        outcomes.close()
        assert time.monotonic() - start < 10
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("worker-")]

    def test_what_a_library_prints_does_not_mix_with_answers(self) -> None:
        outcomes, events = run("print", "a", workers=1)
        assert outcomes["print"] == outcomes["a"]
        assert events == []

    def test_no_tasks_need_no_workers(self) -> None:
        assert run() == ({}, [])

    def test_an_error_in_the_thread_of_a_worker_is_raised_where_outcomes_are_awaited(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise KeyboardInterrupt("in a thread")

        monkeypatch.setattr(Pool, "_attempt", fail)
        with pytest.raises(KeyboardInterrupt, match="in a thread"):
            list(pool([]).run(["a", "b"]))


class TestSettled:
    def test_a_result_is_returned(self) -> None:
        assert settled(lambda: 7).result() == 7

    @pytest.mark.parametrize("error", [ValueError("x"), DataError("x"), KeyboardInterrupt(), SystemExit(3)])
    def test_an_exception_of_any_class_is_raised_by_the_one_who_asks(self, error: BaseException) -> None:
        def fail() -> None:
            raise error

        future = settled(fail)
        assert future.exception() is error
        with pytest.raises(type(error)):
            future.result()
