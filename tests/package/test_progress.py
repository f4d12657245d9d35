"""Progress says the same on a terminal of any width, in a log and to a machine, and never floods either."""

from __future__ import annotations

import io
import itertools
import json
import re
from dataclasses import replace

import pytest

from omniges.pipeline.summary import ConvertProgress
from omniges.progress import JsonReporter, LineReporter, LiveReporter, counter, duration, make_reporter

HALF = ConvertProgress(
    done=150, total=300, converted=120, rejected=20, noted=7, lost=10, reused=0, computed_s=7200.0, elapsed_s=4.0,
    eta_s=3725.0, slowest="2_scott_1_1_1", slowest_s=12.34,
)  # fmt: skip
SAID = "150/300 recordings: 120 converted, 20 rejected, 7 with notes, 10 lost; 1,800 × real time, 1:02:05 left"


class TestReporters:
    @pytest.mark.parametrize("columns", ["40", "60", "200"])
    def test_a_terminal_of_any_width_shows_every_word(self, columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", columns)
        stream = io.StringIO()
        with LiveReporter(stream) as reporter:
            reporter.update(HALF)
        shown = " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).split())
        assert SAID + ", slowest now 2_scott_1_1_1 (12.3 s)" in shown

    def test_a_log_gets_plain_lines(self) -> None:
        stream = io.StringIO()
        with LineReporter(stream) as reporter:
            reporter.update(HALF)
        assert stream.getvalue() == SAID + ", slowest now 2_scott_1_1_1 (12.3 s)\n"

    def test_a_machine_gets_the_numbers(self) -> None:
        stream = io.StringIO()
        with JsonReporter(stream) as reporter:
            reporter.update(HALF)
        event = json.loads(stream.getvalue())
        assert event["event"] == "progress"
        assert event["real_time_factor"] == 1800.0
        assert event["lost"] == 10

    @pytest.mark.parametrize("kind", [LineReporter, JsonReporter])
    def test_updates_in_quick_succession_are_one_line_and_the_last_is_always_shown(
        self, kind: type[LineReporter]
    ) -> None:
        stream = io.StringIO()
        with kind(stream) as reporter:
            for done in range(150, 301):
                reporter.update(replace(HALF, done=done))
        lines = stream.getvalue().splitlines()
        assert len(lines) == 2
        assert "300" in lines[-1]

    def test_what_is_said_stays_whatever_shows_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "200")
        plain, machine, terminal = io.StringIO(), io.StringIO(), io.StringIO()
        for reporter in (LineReporter(plain), JsonReporter(machine), LiveReporter(terminal)):
            with reporter:
                reporter.say("saved [one]")
                reporter.update(HALF)
                reporter.say("saved [two]")
        assert plain.getvalue().splitlines()[::2] == ["saved [one]", "saved [two]"]
        assert json.loads(machine.getvalue().splitlines()[2]) == {"event": "message", "message": "saved [two]"}
        assert "saved [one]" in terminal.getvalue()
        assert "saved [two]" in terminal.getvalue()

    def test_a_silent_one_says_nothing(self, capsys: pytest.CaptureFixture[str]) -> None:
        with make_reporter("silent") as reporter:
            reporter.update(replace(HALF, done=300))
            reporter.say("saved")
        assert capsys.readouterr() == ("", "")

    def test_a_log_waits_between_lines_as_long_as_requested(self) -> None:
        stream = io.StringIO()
        reporter = LineReporter(stream, every_s=1000.0)
        for _ in range(5):
            reporter.update(HALF)
        assert stream.getvalue().count("\n") == 1

    @pytest.mark.parametrize("kind", [LineReporter, JsonReporter, LiveReporter])
    @pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "No space left on device"), ValueError("closed")])
    def test_a_stream_that_fails_is_silence_and_no_error(self, kind: type[LineReporter], error: Exception) -> None:
        class Failing(io.StringIO):
            def write(self, _text: str) -> int:
                raise error

            flush = write  # type: ignore[assignment]

        with kind(Failing()) as reporter:
            for done in (300, 300):
                reporter.say("saved")
                reporter.update(replace(HALF, done=done))

    def test_a_program_without_standard_streams_gets_silence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.stdout", None)
        monkeypatch.setattr("sys.stderr", None)
        for mode in ("auto", "json", "live", "lines", "silent"):
            with make_reporter(mode) as reporter:  # type: ignore[arg-type]
                reporter.update(replace(HALF, done=300))
                reporter.say("saved")
        with counter("s generated") as count:
            count(40, 40)

    def test_seconds_are_rounded_before_they_are_split(self) -> None:
        assert duration(59.6) == "1:00"
        assert duration(3700.0) == "1:01:40"


class TestCounter:
    def test_a_log_gets_a_plain_line_now_and_then_with_the_time_left(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = itertools.count(0.0, 2.0)  # two looks a call
        monkeypatch.setattr("omniges.progress.time.monotonic", lambda: next(clock))
        with counter("s generated") as count:
            for done in range(1, 5):
                count(10 * done, 40)
        assert capsys.readouterr().err.splitlines() == ["20/40 s generated, 0:08 left", "40/40 s generated, 0:00 left"]

    def test_a_terminal_gets_a_bar_that_goes_away(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stream = io.StringIO()
        monkeypatch.setattr(stream, "isatty", lambda: True)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr("sys.stderr", stream)
        with counter("s generated") as count:
            count(10, 40)
            count(40, 40)
        assert "40/40 s generated" in stream.getvalue()
