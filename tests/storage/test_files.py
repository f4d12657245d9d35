"""Nothing but a regular file inside its folder is ever opened, and nothing but plain JSON is parsed."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniges.errors import DataError, UsageFault
from omniges.storage.files import (
    canonical_json,
    lies_inside,
    parse_json,
    read_file,
    read_json,
    read_range,
    require_file,
    text_codec,
)

_LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**64) | st.floats(allow_nan=False, allow_infinity=False)
_JSON = st.recursive(
    _LEAVES | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(_JSON, st.booleans())
def test_plain_json_is_parsed_as_it_is(value: object, ascii_only: bool) -> None:
    try:
        data = json.dumps(value, ensure_ascii=ascii_only).encode()
    except UnicodeEncodeError:  # a name with half of a surrogate pair
        return
    if ascii_only and b"\\ud" in data and not _is_text(value):
        return
    assert parse_json(data) == value


def _is_text(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"a": NaN}', "NaN"),
        (b"[-Infinity]", "Infinity"),
        (b"[1e999]", "too large"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' occurs twice"),
        (b'["\\ud800"]', "surrogate"),
        (b"[" * 100_000 + b"]" * 100_000, "nested"),
        (b'{"a":' * 100_000, "nested"),
        (b"\xff", "utf-8"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"", "Expecting value"),
        (b"[" + b"9" * 5000 + b"]", "digits"),
    ],
)
def test_what_is_no_plain_json_is_a_value_error(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_json(data)


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def _zero(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("pair", ["[]", '{"a":}'])
@pytest.mark.parametrize("depth", [99, 101, 500, 900, 960, 985, 993, 5000])
def test_json_that_is_read_can_be_written_in_an_error(pair: str, depth: int) -> None:
    head, tail = pair[:-1], pair[-1]
    text = f"{head * depth}1{tail * depth}".encode()
    if depth < 100:
        assert canonical_json(parse_json(text)) == text
    else:
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_json(text)


@pytest.mark.parametrize(
    ("make", "kind"), [(_pipe, "a pipe"), (Path.mkdir, "a folder"), (_zero, "a device"), (_socket, "a socket")]
)
def test_only_regular_files_are_opened(tmp_path: Path, make: object, kind: str) -> None:
    path = tmp_path / "dataset.json"
    make(path)  # type: ignore[operator]
    with pytest.raises(DataError, match=f"expected a regular file, found {kind}"):
        read_json(path, "choose another")


def test_links_stay_inside(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "outside.json").write_text("1")
    (root / "inside.json").write_text("2")
    (root / "link.json").symlink_to("inside.json")
    (root / "out.json").symlink_to("../outside.json")
    (root / "loop.json").symlink_to("loop.json")
    assert read_json(root / "link.json", "", root) == 2
    assert read_json(root / "out.json", "") == 1
    with pytest.raises(DataError, match="found a link to a file elsewhere"):
        read_json(root / "out.json", "", root)
    with pytest.raises(DataError, match="found links in a circle; put the file itself there"):
        read_json(root / "loop.json", "", root)
    with pytest.raises(FileNotFoundError):
        read_json(root / "none.json", "", root)


def test_a_folder_beside_the_root_with_the_same_beginning_is_outside(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root-2").mkdir()
    (tmp_path / "root-2/file").touch()
    (tmp_path / "root/link").symlink_to("../root-2/file")
    assert not lies_inside(tmp_path / "root/link", tmp_path / "root")


def test_links_of_one_entry_of_the_hugging_face_cache_count_as_files(tmp_path: Path) -> None:
    entry, other = tmp_path / "datasets--a--b", tmp_path / "datasets--c--d"
    snapshot = entry / "snapshots/0123/shards"
    snapshot.mkdir(parents=True)
    for each in (entry, other):
        (each / "blobs").mkdir(parents=True)
        (each / "blobs/abcd").write_text("3")
    (snapshot / "own.json").symlink_to("../../../blobs/abcd")
    (snapshot / "foreign.json").symlink_to(other / "blobs/abcd")
    assert read_json(snapshot / "own.json", "", snapshot) == 3
    with pytest.raises(DataError, match="a link to a file elsewhere"):
        read_json(snapshot / "foreign.json", "", snapshot)


def test_a_larger_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match=f"expected at most 1000 bytes, found {1 << 40}"):
        read_file(path, 1000)


@given(st.characters(max_codepoint=0xFF, exclude_characters="\0"), st.text(st.characters(exclude_categories=["Cs"])))
@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_text_is_decoded_with_and_without_a_mark(codec: str, first: str, rest: str) -> None:
    text = first + rest.replace("\0", "")
    data = text.encode(codec)
    assert data.decode(text_codec(data)) == text


def test_a_range_takes_no_memory_for_bytes_that_the_file_does_not_have(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    with path.open("rb") as stream:
        assert read_range(stream.fileno(), 10, 20) == bytes(range(10, 30))
        assert read_range(stream.fileno(), 90, 1 << 50) == bytes(range(90, 100))  # an allocation of 2**50 would fail
        assert read_range(stream.fileno(), 100, 1 << 50) == b""
        assert read_range(stream.fileno(), 1 << 50, 1 << 50) == b""
        assert read_range(stream.fileno(), 0, 0) == b""


def test_a_path_that_the_user_named_is_said_to_be_what_it_is(tmp_path: Path) -> None:
    folder, pipe, link, device = tmp_path / "folder", tmp_path / "pipe", tmp_path / "link", Path("/dev/null")
    folder.mkdir()
    os.mkfifo(pipe)
    link.symlink_to("gone")
    for path, found in (
        (folder, "a folder, not a regular file; give a file"),
        (pipe, "a pipe, not a regular file; pass it by -"),
        (device, "a device, not a regular file; pass it by -"),
        (link, "a link to nothing; check the path"),
        (tmp_path / "none", "that the file does not exist; check the path"),
        (tmp_path / "none" / "x", "that the file does not exist; check the path"),
    ):
        with pytest.raises(UsageFault) as caught:
            require_file(path, "words", "--text", "pass it by -")
        assert str(caught.value) == f"--text {path}: expected words, found {found}"
    file = tmp_path / "file"
    file.write_bytes(b"")
    link.unlink()
    link.symlink_to(file)
    require_file(link, "words")
    with pytest.raises(UsageFault, match=r"the file does not exist; check"):
        require_file(file / "x", "words")  # below a file
