"""A dataclass is read from JSON with every field of its type and range, or one line names the field that is not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniges.errors import DataError, UsageFault
from omniges.storage.documents import Count, Document, Is, Range, Sha256

Positive = Annotated[float, Range(above=0.0)]


@dataclass(frozen=True, kw_only=True)
class Inner:
    """An object in an object."""

    digest: Sha256
    share: Annotated[float, Range(0.0, 1.0)]


@dataclass(frozen=True, kw_only=True)
class Outer:
    """One field of every kind."""

    count: Count
    rate: Positive
    name: str
    kind: Literal["a", "b"]
    flag: bool
    pair: tuple[float, float] | None
    names: Annotated[tuple[str, ...], Is("different names", lambda found: len(set(found)) == len(found))]
    inner: Inner
    by_name: Mapping[Literal["x", "y"], Inner]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.count == 13:
            raise UsageFault("count: expected another number, found 13")


NUMBERS = st.floats(-1e30, 1e30, allow_nan=False)
INNER = st.builds(Inner, digest=st.just("0" * 64), share=st.floats(0, 1))
OUTER = st.builds(
    Outer,
    count=st.integers(14, 1 << 60),
    rate=st.floats(1e-300, 1e300),
    name=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    kind=st.sampled_from(["a", "b"]),
    flag=st.booleans(),
    pair=st.none() | st.tuples(NUMBERS, NUMBERS),
    names=st.lists(st.text("abc", max_size=3), unique=True).map(tuple),
    inner=INNER,
    by_name=st.dictionaries(st.sampled_from(["x", "y"]), INNER),
    facts=st.dictionaries(st.text("abc", max_size=3), st.integers() | st.none()),
)
VALID: dict[str, Any] = {
    "count": 1,
    "rate": 2.5,
    "name": "n",
    "kind": "a",
    "flag": True,
    "pair": [1, 2],
    "names": ["x", "y"],
    "inner": {"digest": "0" * 64, "share": 0.5},
    "by_name": {"x": {"digest": "0" * 64, "share": 1}},
}


def read(found: Any) -> Outer:
    return Document(found, "file.json", "write it again").read(Outer)


@given(OUTER)
def test_what_is_written_is_read(value: Outer) -> None:
    assert read(json.loads(json.dumps(asdict(value)))) == value


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"count": True}, "count: expected a whole number from 0, found true"),
        ({"count": 1.0}, "count: expected a whole number from 0, found 1.0"),
        ({"count": -1}, "count: expected a whole number from 0, found -1"),
        ({"count": 13}, "count: expected another number, found 13"),
        ({"rate": 0}, "rate: expected a number above 0, found 0"),
        ({"rate": "1"}, 'rate: expected a number above 0, found "1"'),
        ({"rate": 10**400}, "rate: expected a number above 0, found 1000"),
        ({"rate": None}, "rate: expected a number above 0, found null"),
        ({"name": 3}, "name: expected a text of at most 4096 characters, found 3"),
        ({"name": "x" * 5000}, 'name: expected a text of at most 4096 characters, found "xxx'),
        ({"kind": "c"}, 'kind: expected one of a, b, found "c"'),
        ({"kind": ["a"]}, 'kind: expected one of a, b, found ["a"]'),
        ({"flag": 1}, "flag: expected true or false, found 1"),
        ({"pair": [1]}, "pair: expected a list of 2 values, found [1]"),
        ({"pair": [1, "x"]}, 'pair[1]: expected a number, found "x"'),
        ({"pair": "ab"}, 'pair: expected a list of 2 values or null, found "ab"'),
        ({"names": ["x", "x"]}, 'names: expected different names, found ["x", "x"]'),
        ({"names": {"x": 1}}, 'names: expected a list, found {"x": 1}'),
        ({"inner": []}, "inner: expected an object, found []"),
        ({"inner": {"digest": "0" * 64}}, "inner.share: expected this key, found that it is missing"),
        ({"inner": {"digest": "0" * 63, "share": 0}}, "inner.digest: expected a sha256"),
        (
            {"inner": {"digest": "0" * 64, "share": 0, "x\x1b[2J": 1}},
            "inner.x [2J: expected no key of this name, found it with the value 1",
        ),
        ({"by_name": {"z": {}}}, "by_name.z: expected one of x, y, found this key"),
        ({"by_name": {"x": {"digest": "0" * 64, "share": 2}}}, "by_name.x.share: expected a number from 0 to 1"),
        ({"facts": 3}, "facts: expected an object, found 3"),
        ({"more": None}, "more: expected no key of this name, found it with the value null"),
    ],
)
def test_the_field_that_is_not_valid_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError) as caught:
        read(VALID | change)
    line = str(caught.value)
    assert line.startswith(f"file.json: {said}")
    assert line.endswith("; write it again")
    assert line.isprintable()


@pytest.mark.parametrize("name", sorted(VALID))
def test_a_field_without_default_must_be_there(name: str) -> None:
    with pytest.raises(DataError, match=f"{name}: expected this key, found that it is missing"):
        read({key: value for key, value in VALID.items() if key != name})


@pytest.mark.parametrize("found", [None, 3, [], "x"])
def test_only_an_object_is_read(found: Any) -> None:
    with pytest.raises(UsageFault, match=r"^here: expected an object, found"):
        Document(found, "here", "do so", kind=UsageFault)
