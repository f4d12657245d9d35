"""Streaming gives every sample of a shard as it was written, or an error that says where it is not."""

from __future__ import annotations

import io
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import remote_helpers as remote
from hypothesis import given, settings
from hypothesis import strategies as st

from omniges.data.streaming import StreamedSample, stream_samples
from omniges.errors import DataError, EnvironmentFault, OmnigesError
from omniges.shards.manifest import ManifestRow
from omniges.shards.reader import ShardFolder
from omniges.shards.tar import END_OF_ARCHIVE, build_segment, npy_parts


def pipe(path: Path) -> str:
    return f"pipe:cat {shlex.quote(str(path))}"


@pytest.fixture(scope="module")
def folder(shards: Path) -> ShardFolder:
    return ShardFolder(shards)


@pytest.fixture(scope="module")
def train(folder: ShardFolder) -> bytes:
    return (folder.folder / "train-000000.tar").read_bytes()


@pytest.fixture(scope="module")
def rows(folder: ShardFolder) -> Sequence[ManifestRow]:
    return folder.rows


def streamed(
    data: bytes, tmp_path_factory: pytest.TempPathFactory, rows: Sequence[ManifestRow] | None = None
) -> list[StreamedSample]:
    path = tmp_path_factory.getbasetemp() / "streamed.tar"
    path.write_bytes(data)
    return list(stream_samples([str(path)], rows))


class TestSound:
    @pytest.mark.parametrize("how", ["pipe", "path", "file", "http"])
    def test_every_way_gives_what_random_access_gives(self, folder: ShardFolder, how: str) -> None:
        names = sorted(folder.dataset["shards"])
        with remote.web_server(folder.folder) as web:
            address: dict[str, Callable[[str], str]] = {
                "pipe": lambda name: pipe(folder.folder / name),
                "path": lambda name: str(folder.folder / name),
                "file": lambda name: f"file://{folder.folder / name}",
                "http": lambda name: f"{web.url}/{name}?sig=abcdef",
            }
            samples = list(stream_samples(map(address[how], names), folder.rows))
        expected = sorted(folder.rows, key=lambda row: (names.index(row.shard), row.members["json"].offset))
        assert [sample.key for sample in samples] == [row.key for row in expected]
        for sample, row in zip(samples, expected, strict=True):
            ours = folder.sample(row)
            assert (sample.metadata, sample.words) == (ours.metadata, ours.words)
            for name, array in sample.arrays.items():
                assert np.array_equal(array, folder.array(row, name))
                assert array.dtype == folder.array(row, name).dtype
            assert sample.others == {n: folder.member(row, n) for n in ("flac", "sem.json") if n in row.members}

    def test_the_manifest_is_not_needed(self, folder: ShardFolder) -> None:
        path = pipe(folder.folder / "train-000000.tar")
        with_rows = [sample.key for sample in stream_samples([path], folder.rows)]
        assert [sample.key for sample in stream_samples([path])] == with_rows

    def test_standard_input(self, train: bytes, rows: Sequence[ManifestRow], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(train)))
        expected = [row.key for row in rows if row.shard == "train-000000.tar"]
        assert sorted(sample.key for sample in stream_samples(["-"], rows)) == sorted(expected)

    def test_pieces_as_small_as_a_pipe_gives_them(
        self, train: bytes, rows: Sequence[ManifestRow], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Dribble(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                return super().read(min(size or 0, 777))

        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Dribble(train)))
        assert len(list(stream_samples(["-"], rows))) == sum(row.shard == "train-000000.tar" for row in rows)

    def test_it_is_lazy_and_can_be_left(self, folder: ShardFolder, tmp_path: Path) -> None:
        path = folder.folder / "train-000000.tar"
        samples = stream_samples([f"pipe:cat {shlex.quote(str(path))}; sleep 60"])
        assert next(samples).key
        samples.close()  # type: ignore[attr-defined]

    def test_files_and_urls_import_no_torch(self, folder: ShardFolder) -> None:
        script = (
            "import sys\n"
            "from omniges.data.streaming import stream_samples\n"
            f"print(len(list(stream_samples([{str(folder.folder / 'train-000000.tar')!r}]))))\n"
            "assert not {'torch', 'webdataset'} & set(sys.modules)\n"
        )
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


class TestDamage:
    @settings(max_examples=40, deadline=None)
    @given(st.data())
    def test_a_shard_cut_anywhere_is_an_error(
        self, train: bytes, rows: Sequence[ManifestRow], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        blocks = st.integers(0, len(train) // 512 - 1).map(lambda block: block * 512)
        at = data.draw(blocks | st.integers(0, len(train) - 1))
        for plan in (None, rows):
            with pytest.raises(DataError, match=r"streamed\.tar: byte \d+: "):
                streamed(train[:at], tmp_path_factory, plan)

    @settings(max_examples=40, deadline=None)
    @given(st.data())
    def test_a_flipped_bit_anywhere_is_an_error_with_the_manifest(
        self, train: bytes, rows: Sequence[ManifestRow], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        at, bit = data.draw(st.integers(0, len(train) - 1)), data.draw(st.integers(0, 7))
        damaged = bytearray(train)
        damaged[at] ^= 1 << bit
        with pytest.raises(DataError, match=r"streamed\.tar: byte \d+: "):
            streamed(bytes(damaged), tmp_path_factory, rows)

    def test_every_bit_of_a_header_is_watched_without_the_manifest(
        self, train: bytes, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        for at in range(0, 512, 7):
            damaged = bytearray(train)
            damaged[at] ^= 1
            with pytest.raises(DataError, match=r"streamed\.tar: byte 0: "):
                streamed(bytes(damaged), tmp_path_factory)

    def test_rearranged_samples(
        self, folder: ShardFolder, train: bytes, rows: Sequence[ManifestRow], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        own = sorted((r for r in rows if r.shard == "train-000000.tar"), key=lambda r: r.members["json"].offset)
        first, second = own[:2]

        def member(row: ManifestRow, name: str) -> bytes:
            place = row.members[name]
            return train[place.offset - 512 : place.offset + place.size + -place.size % 512]

        def whole(row: ManifestRow, *, without: str = "") -> bytes:
            return b"".join(member(row, name) for name in row.members if name != without)

        a, b = whole(first), whole(second)
        names = list(first.members)
        interleaved = b"".join(member(row, name) for name in names for row in (first, second))
        swapped = b"".join(member(first, name) for name in [names[0], names[2], names[1], *names[3:]])
        cases = {
            "interleaved": (interleaved, f"{first.key}.gesture.npy expected in one piece"),
            "a sample twice": (a + a, "stands after .* or twice"),
            "a sample twice, apart": (a + b + a, f"the key {first.key} was in .* already"),
            "a member twice": (member(first, "json") + a, "stands after .* or twice"),
            "members swapped": (swapped, "stands after .* or twice"),
            "a member missing": (whole(first, without="mel.npy"), f"{first.key}.mel.npy expected in one piece"),
        }
        for data, text in cases.values():
            with pytest.raises(DataError, match=text):
                streamed(data + END_OF_ARCHIVE, tmp_path_factory)
            with pytest.raises(DataError, match=r"byte \d+|already"):
                streamed(data + END_OF_ARCHIVE, tmp_path_factory, rows)
        for data in (a, b + a, a + whole(second, without="flac"), b"", train[: -len(END_OF_ARCHIVE)] + a):
            with pytest.raises(DataError, match=r"as in the manifest|of the manifest|in one of manifest and shard"):
                streamed(data + END_OF_ARCHIVE, tmp_path_factory, rows)

    def test_two_shards_with_the_same_sample(self, folder: ShardFolder) -> None:
        path = str(folder.folder / "train-000000.tar")
        with pytest.raises(DataError, match=r"was in .*train-000000\.tar already"):
            list(stream_samples([path, path]))

    @pytest.mark.parametrize("tail", [b"x", bytes(512), b"x" * 512])
    def test_something_after_the_end(self, train: bytes, tail: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
        with pytest.raises(DataError, match="two zero blocks and the end expected, found more"):
            streamed(train + tail, tmp_path_factory)

    def test_content_that_is_not_the_contracts(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        gesture, mel = np.zeros((30, 415), np.float32), np.zeros((100, 64), np.float32)
        members = {
            "json": (b"{}",),
            "gesture.npy": npy_parts(gesture),
            "mel.npy": npy_parts(mel),
            "words.json": (b"[]",),
            "jaw_eyes.npy": npy_parts(np.zeros((30, 9), np.float32)),
            "betas.npy": npy_parts(np.zeros(300)),
            "start_xz.npy": npy_parts(np.zeros(2)),
        }

        def stream(change: dict[str, tuple[bytes | memoryview, ...]]) -> list[StreamedSample]:
            buffers = build_segment("k", members | change).buffers
            return streamed(b"".join(bytes(b) for b in buffers) + END_OF_ARCHIVE, tmp_path_factory)

        (sample,) = stream({})
        assert sample.arrays["gesture.npy"].shape == (30, 415)
        assert not sample.arrays["gesture.npy"].flags.writeable
        huge = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
        huge += b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 415), }".ljust(117) + b"\n"
        objects = io.BytesIO()
        np.save(objects, np.array([{}], dtype=object), allow_pickle=True)
        cases: list[tuple[str, tuple[bytes | memoryview, ...], str]] = [
            ("json", (b"{",), "a JSON document expected"),
            ("json", (b"[]",), "a JSON dict expected, found list"),
            ("words.json", (b"{}",), "a JSON list expected, found dict"),
            ("gesture.npy", (b"",), "k.gesture.npy: "),
            ("gesture.npy", (huge,), "no array"),
            ("gesture.npy", (objects.getvalue(),), "no array"),
            ("gesture.npy", (b"".join(map(bytes, npy_parts(gesture)))[:-4],), "no array"),
            ("gesture.npy", npy_parts(gesture.astype(np.float64)), "<f4 expected, found .* <f8"),
            ("gesture.npy", npy_parts(np.zeros((30, 414), np.float32)), r"\(30, 415\) <f4 expected"),
            ("gesture.npy", npy_parts(np.zeros((), np.float32)), r"\(0, 415\) <f4 expected"),
            ("mel.npy", npy_parts(mel[:99]), r"\(100, 64\) <f4 expected, found \(99, 64\)"),
            ("betas.npy", npy_parts(np.zeros(10)), r"\(300,\) floats expected"),
        ]
        for name, parts, text in cases:
            with pytest.raises(DataError, match=text):
                stream({name: parts})


class TestOpening:
    def one_line(self, address: str) -> OmnigesError:
        with pytest.raises(OmnigesError) as caught:
            list(stream_samples([address]))
        assert "\n" not in str(caught.value)
        return caught.value

    def test_a_command_that_fails_is_the_error_not_the_cut_shard(self, folder: ShardFolder) -> None:
        path = shlex.quote(str(folder.folder / "train-000000.tar"))
        for command in ("false", f"head -c 5000 {path}; exit 9", f"cat {path}; exit 9", "exit 9"):
            error = self.one_line(f"pipe:{command}")
            assert isinstance(error, EnvironmentFault)
            assert f"exit status {1 if command == 'false' else 9}" in str(error)

    def test_a_command_that_ends_early_without_failing(self, folder: ShardFolder) -> None:
        path = shlex.quote(str(folder.folder / "train-000000.tar"))
        assert isinstance(self.one_line(f"pipe:head -c 5000 {path}"), DataError)

    def test_credentials_of_a_command_are_not_shown(self) -> None:
        error: BaseException | None = self.one_line(
            "pipe:false https://user:hunter2hunter2@host/x?sig=abcdef012345 --token=abcdef012345"
        )
        while error is not None:  # whether the end of the pipe or of the command is seen first is not ours to say
            assert not any(secret in str(error) for secret in ("hunter2hunter2", "abcdef012345"))
            error = error.__cause__ or error.__context__

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        assert "no such file" in str(self.one_line(str(tmp_path / "a.tar")))

    def test_without_webdataset(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "webdataset", None)
        assert "pip install 'omniges[train]'" in str(self.one_line("pipe:true"))
