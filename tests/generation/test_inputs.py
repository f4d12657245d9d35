"""No length that a file or a person states decides how much memory is taken."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniges.errors import DataError, UsageFault
from omniges.features.text_tokens import TextTokenCodec
from omniges.features.timebase import LONGEST_S
from omniges.formats.textgrid import WordInterval, encode_words
from omniges.generation.inputs import Input, Reading, cut_input, read_audio, read_gesture, read_text, words_condition
from omniges.generation.settings import GenerateSettings, Sources
from omniges.model.speaking_rate import SpeakingRate
from omniges.shards.dataset import train_tokenizer

WORDS = [{"word": "tiger", "start": 0.5, "end": 1.0}]


@pytest.fixture(scope="module")
def codec() -> TextTokenCodec:
    return TextTokenCodec(train_tokenizer({"tiger": 3}))


def textgrid(folder: Path, xmax: str) -> str:
    path = folder / "a.TextGrid"
    text = encode_words([WordInterval("tiger", 0.5, 1.0)], 86_399.5).decode()
    path.write_text(text.replace("86399.5", xmax))
    return str(path)


@pytest.mark.parametrize("xmax", ["1e12", "86401", "1e300"])
def test_a_textgrid_of_any_length_is_refused_or_cut(xmax: str, tmp_path: Path, codec: TextTokenCodec) -> None:
    path = textgrid(tmp_path, xmax)
    with pytest.raises(DataError, match="expected at most 24 h, found"):
        read_text(path, codec, None)
    cut = read_text(path, codec, None, max_s=5.0)
    assert cut.ticks == 50
    assert any(warning.startswith("cut to 5 s of ") for warning in cut.warnings)
    assert read_text(path, codec, None, 2.0).ticks == 20  # another stream tells the length


def test_a_pipe_or_folder_is_said_to_be_one(tmp_path: Path, codec: TextTokenCodec) -> None:
    """A shell's <(command) is a pipe; its bytes are never waited for."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UsageFault, match="found a pipe, not a regular file; pass words through --text -"):
        read_text(str(pipe), codec, None)
    for read in (read_audio, read_gesture):
        with pytest.raises(UsageFault, match="found a pipe, not a regular file; write its content to a file first"):
            read(pipe)
        with pytest.raises(UsageFault, match="found a folder, not a regular file; give a file"):
            read(tmp_path)


@given(st.floats(LONGEST_S, allow_nan=False, exclude_min=True))
def test_longer_than_a_day_is_refused_before_anything_is_generated(codec: TextTokenCodec, seconds: float) -> None:
    with pytest.raises(UsageFault, match="at most 86400"):
        Sources(seconds=seconds)
    with pytest.raises(DataError, match="expected at most 24 h"):
        words_condition(WORDS, codec, min(seconds, 1e300), "a", ("a", ""))
    with pytest.raises(DataError, match="expected at most 24 h"):
        cut_input(Input("a", int(min(seconds, 1e300)) * 10 + 10, ()), None, Reading(token_codec=None))


@pytest.mark.parametrize("flag", ["audio", "gesture", "text", "shards", "checkpoint", "body"])
def test_a_file_name_that_is_no_text_is_refused_before_anything_is_generated(flag: str) -> None:
    path = Path("n\udcff.wav")
    given = {"checkpoint": Path("run"), "task": "a2g", "output_dir": Path("o")}
    if flag in {"checkpoint", "body"}:
        given |= {flag: path, "sources": Sources()}
    else:
        given["sources"] = Sources(**{flag: path if flag == "shards" else (path,)})
    with pytest.raises(UsageFault, match="expected a name in UTF-8") as caught:
        GenerateSettings(**given)
    assert str(caught.value).removeprefix("--").startswith(f"{flag} ")
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"PK\x03\x04\x14\x00\x06\x00\x08\x00word/document.xml", "Word"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\0\0", "older Word"),
        (b"\x1f\x8b\x08\x00\xff\xff", "gzip"),
        (b"RIFF\x24\x08\x00\x00WAVEfmt ", "audio"),
        (b"fLaC\x00\x00\x00\x22", "audio"),
        (b"ID3\x04\x00\x00\x00\x00\xff\xfb", "audio"),
        (b"\0\0\0\x20ftypisom", "video"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "PDF"),
        (b"%PDF-1.4\n1 0 obj\n", "PDF"),
        (b"\x93NUMPY\x01\x00", "array"),
    ],
)
def test_a_file_of_another_format_is_named_and_never_spoken(data: bytes, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "talk.txt"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"talk\.txt: .*expected plain words, found .*{kind}.*; give a TextGrid, or"):
        read_text(str(path), None, SpeakingRate(0.1, 0.05, 0.05, 0.3, 0.8, 20))


@pytest.mark.parametrize("text", ["RIFF and ID3 are formats", "OggS", "PK goes home", "ftyp is a box"])
def test_words_that_start_like_one_are_spoken(text: str, tmp_path: Path) -> None:
    path = tmp_path / "talk.txt"
    path.write_text(text)
    assert read_text(str(path), None, SpeakingRate(0.1, 0.05, 0.05, 0.3, 0.8, 20)).words
