"""JSON of shards from elsewhere is what the contract says, or an error that says where and what."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from verify_builders import rebuilt, shard_sets

from omniges.data.samples import open_shards
from omniges.data.web import webdataset
from omniges.errors import DataError
from omniges.pipeline.export import export
from omniges.shards.reader import ShardFolder
from omniges.shards.schema import metadata_of, parse_document, samples_of, spans_of, words_of

AUDIO = {"encoding": "pcm16", "rate_hz": 16000, "channels": 1, "samples": 1, "samples_16k": 1}
DEEP = b"[" * 200_000
WORD = {"word": "a", "start": 0.0, "end": 0.1}
SPAN = {"name": "beat", "start": 0.0, "end": 0.1, "score": 1.0, "keywords": ""}
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*SPAN, "word"]), inner),
)


def dumped(value: object) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.slow
@given(values | st.lists(st.fixed_dictionaries(dict.fromkeys(WORD, values)), max_size=2))
def test_words_have_a_text_and_finite_times(value: Any) -> None:
    try:
        words = words_of(dumped(value))
    except ValueError:
        return
    for word in words:
        assert isinstance(word["word"], str)
        assert all(type(word[name]) in {int, float} and abs(word[name]) < 1e400 for name in ("start", "end"))


@pytest.mark.parametrize("parse", [words_of, spans_of, metadata_of])
@pytest.mark.parametrize("data", [DEEP, b"", b"\xff", b"{", b"null", b"3", b'"a"', b"[3]", b"[[]]", b"9" * 5000])
def test_no_bytes_give_another_error(parse: Callable[[bytes], Any], data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(data)
    with pytest.raises(DataError, match=r"^stats\.json: expected a JSON object"):
        parse_document(data, "stats.json")


@pytest.mark.parametrize("time", [True, None, "0", 1 << 60, []])
@pytest.mark.parametrize("name", ["start", "end"])
def test_times_that_are_none(name: str, time: object) -> None:
    with pytest.raises(ValueError, match=f"found {name} .* as number 1"):
        words_of(dumped([WORD, WORD | {name: time}]))
    with pytest.raises(ValueError, match=f"found {name} .* as number 1"):
        spans_of(dumped([SPAN, SPAN | {name: time}]))


def test_what_is_sound_passes() -> None:
    assert words_of(dumped([WORD])) == [WORD]
    assert spans_of(dumped([SPAN])) == [SPAN]
    assert samples_of({"audio": {"samples_16k": 3}}) == 3
    for wrong in (None, [], {}, {"audio": 3}, {"audio": {"samples_16k": -1}}, {"audio": {"samples_16k": True}}):
        with pytest.raises(ValueError, match="samples_16k"):
            samples_of(wrong)


@pytest.mark.parametrize(
    ("member", "data"),
    [
        ("json", b"[]"),
        ("json", DEEP),
        ("json", dumped({"notes": [3]})),
        ("json", dumped({"notes": "", "audio": {}, "motion": {}})),
        ("json", dumped({"notes": "", "audio": AUDIO, "motion": {"betas": 301, "gender": "", "model": ""}})),
        ("words.txt", dumped({"word": "a"})),
        ("words.txt", dumped([WORD | {"end": float("inf")}])),
        ("sem.txt", dumped([SPAN | {"score": True}])),
        ("sem.txt", DEEP),
    ],
    ids=range(9),
)
def test_members_of_a_set_whose_digests_fit(shards: Path, tmp_path: Path, member: str, data: bytes) -> None:
    def fault(found: shard_sets.ShardSet) -> None:
        found.samples[0].raw[member] = data

    folder = rebuilt(shards, tmp_path / "set", fault)
    place = rf"\.{member}(?: at byte \d+)?: "
    readers: tuple[Callable[[], object], ...] = (
        lambda: list(map(ShardFolder(folder).sample, ShardFolder(folder).rows)),
        lambda: list(open_shards(folder)),
        lambda: export(folder, tmp_path / "out"),
    )
    for read in readers:
        with pytest.raises(DataError, match=place) as caught:
            read()
        assert "\n" not in str(caught.value)
    if data == DEEP or member != "json":
        with pytest.raises(DataError, match=place):
            list(webdataset(folder))
