"""What a recording causes is a finding about it; what the machine causes ends the worker, and is no finding."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from omniges.formats.flac import encode_flac
from omniges.pipeline import worker
from omniges.pipeline.discover import Recording
from omniges.pipeline.settings import ConvertSettings, Rejected
from omniges.pipeline.stems import parse_stem

RECORDING = Recording("a", "a", "train", parse_stem("a"), {})


def converting(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> object:
    """What the worker makes of a conversion that raises."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(worker, "convert", fail)
    return worker._convert_guarded(RECORDING, ConvertSettings())


class TestBoundary:
    def test_a_bug_that_one_recording_meets_is_a_finding(self, monkeypatch: pytest.MonkeyPatch) -> None:
        outcome = converting(ValueError("two\nlines"), monkeypatch)
        assert isinstance(outcome, Rejected)
        assert [f.problem.code for f in outcome.findings] == ["internal-error"]
        assert outcome.findings[0].problem.found == "ValueError: two lines"

    @pytest.mark.parametrize(
        "error",
        [
            MemoryError(),
            ImportError("cannot map a shared object"),  # what a late import gives where memory has run out
            SystemError("error return without exception set"),
            OSError(errno.ENOMEM, "Cannot allocate memory"),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_memory_that_has_run_out_is_not(self, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(type(error)):
            converting(error, monkeypatch)

    def test_an_encoder_that_hides_it_is_seen_through(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import soundfile

        def short(*_: object, **__: object) -> None:
            raise AssertionError

        monkeypatch.setattr(soundfile, "write", short)
        with pytest.raises(MemoryError, match="FLAC"):
            encode_flac(np.zeros(1600, np.int16), bits=16)
