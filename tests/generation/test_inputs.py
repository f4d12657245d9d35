"""No length that a file or a person states decides how much memory is taken."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniges.errors import DataError, UsageFault
from omniges.features.text_tokens import TextTokenCodec
from omniges.features.timebase import LONGEST_S
from omniges.formats.textgrid import WordInterval, encode_words
from omniges.generation.inputs import Input, Reading, cut_input, read_text, words_condition
from omniges.generation.settings import GenerateSettings, Sources
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
    with pytest.raises(DataError, match="expected at most 24 h, found a length of"):
        read_text(path, codec, None)
    cut = read_text(path, codec, None, max_s=5.0)
    assert cut.ticks == 50
    assert any(warning.startswith("cut to 5 s of ") for warning in cut.warnings)
    assert read_text(path, codec, None, 2.0).ticks == 20  # another stream tells the length


@given(st.floats(LONGEST_S, allow_nan=False, exclude_min=True))
def test_longer_than_a_day_is_refused_before_anything_is_made(codec: TextTokenCodec, seconds: float) -> None:
    with pytest.raises(UsageFault, match="at most 86400"):
        Sources(seconds=seconds)
    with pytest.raises(DataError, match="expected at most 24 h"):
        words_condition(WORDS, codec, min(seconds, 1e300), "a", ("a", ""))
    with pytest.raises(DataError, match="expected at most 24 h"):
        cut_input(Input("a", int(min(seconds, 1e300)) * 10 + 10, ()), None, Reading(token_codec=None))


@pytest.mark.parametrize("flag", ["audio", "gesture", "text", "shards", "checkpoint", "body"])
def test_a_file_name_that_is_no_text_is_refused_before_anything_is_made(flag: str) -> None:
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
