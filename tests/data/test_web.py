"""The webdataset pipeline gives every sample as it was written, or an error that says where it is not."""

from __future__ import annotations

import io
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import remote_helpers as remote
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from verify_builders import edited_dataset, edited_manifest

from omniges.data.samples import open_shards
from omniges.data.web import webdataset
from omniges.errors import DataError, EnvironmentFault, OmnigesError, UsageFault
from omniges.shards.manifest import ManifestRow
from omniges.shards.reader import ShardFolder
from omniges.shards.schema import DATASET_FILE, MANIFEST_FILE
from omniges.shards.tar import END_OF_ARCHIVE, build_segment, npy_parts

# webdataset leaves what it has opened to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def pipe(path: Path) -> str:
    return f"pipe:cat {shlex.quote(str(path))}"


@pytest.fixture(scope="module")
def folder(whole_set: Path) -> ShardFolder:
    return ShardFolder(whole_set)


@pytest.fixture(scope="module")
def train(whole_set: Path) -> bytes:
    return (whole_set / "train-000000.tar").read_bytes()


def keys_of(samples: Any) -> list[str]:
    return [sample["__key__"] for sample in samples]


def read(
    data: bytes, tmp_path_factory: pytest.TempPathFactory, manifest: Path | None = None, *, decode: bool = True
) -> list[dict[str, Any]]:
    path = tmp_path_factory.getbasetemp() / "read.tar"
    path.write_bytes(data)
    return list(webdataset(path, manifest=manifest, decode=decode))


class TestSound:
    @pytest.mark.parametrize("how", ["folder", "pipe", "path", "file", "http", "remote folder"])
    def test_every_way_gives_what_random_access_gives(self, folder: ShardFolder, how: str) -> None:
        """All members, decoded, and their bytes where nothing is decoded."""
        names = sorted(folder.dataset["shards"])
        with remote.web_server(folder.folder) as web:
            address: dict[str, Callable[[str], str]] = {
                "pipe": lambda name: pipe(folder.folder / name),
                "path": lambda name: str(folder.folder / name),
                "file": lambda name: f"file://{folder.folder / name}",
                "http": lambda name: f"{web.url}/{name}?sig=abcdef",
            }
            source: Any = {"folder": folder.folder, "remote folder": web.url}.get(how) or [*map(address[how], names)]
            manifest = None if "folder" in how else folder.folder
            samples = list(webdataset(source, manifest=manifest))
            raw = list(webdataset(source, manifest=manifest, decode=False))
        expected = sorted(folder.rows, key=lambda row: (names.index(row.shard), row.members["json"].offset))
        assert keys_of(samples) == keys_of(raw) == [row.key for row in expected]
        for sample, data, row in zip(samples, raw, expected, strict=True):
            ours = folder.sample(row)
            assert {*sample} == {*data} == {"__key__", "__url__", *row.members}
            assert (sample["json"], sample["words.txt"]) == (ours.metadata, ours.words)
            assert sample["sem.txt"] == (ours.semantic or [])
            for name in row.members:
                assert data[name] == folder.member(row, name)
                if name.endswith(".npy"):
                    assert np.array_equal(sample[name], folder.array(row, name))
                    assert sample[name].dtype == folder.array(row, name).dtype
                    assert sample[name].flags.writeable

    def test_version_1(self, version_1: Path) -> None:
        """Its members keep their names; flac comes as the waveform."""
        shards = open_shards(version_1)
        for sample in webdataset(version_1):
            own = shards[sample["__key__"]]
            assert np.array_equal(sample["flac"], own.waveform)
            assert [word["word"] for word in sample["words.json"]] == [word.word for word in own.words]
            assert ("sem.json" in sample) == (own.semantic is not None)

    def test_samples_that_lack_parts(self, partial_set: Path) -> None:
        for sample in webdataset(partial_set):
            own = open_shards(partial_set)[sample["__key__"]]
            assert np.array_equal(sample["gesture.npy"], own.gesture, equal_nan=True)
            assert len(sample["audio.npy"]) == (0 if own.waveform is None else len(own.waveform))

    def test_a_split(self, folder: ShardFolder) -> None:
        """A split is selected from a folder and from addresses; braces are expanded."""
        wanted = [row.key for row in folder.rows if row.split == "val"]
        assert keys_of(webdataset(folder.folder, split="val")) == wanted
        assert keys_of(webdataset([str(p) for p in folder.folder.glob("*.tar")], split="val")) == wanted
        assert keys_of(webdataset(f"{folder.folder}/{{val,train}}-000000.tar"))[:2] == wanted
        assert keys_of(webdataset(pipe(folder.folder / "val-000000.tar"), split="val")) == wanted

    def test_shuffling_takes_every_sample_once_in_another_order_each_epoch(self, partial_set: Path) -> None:
        """The same for the same seed."""
        plain = keys_of(webdataset(partial_set))
        data = webdataset(partial_set, shuffle=8, seed=1)
        first, second = keys_of(data), keys_of(data)
        assert sorted(first) == sorted(second) == sorted(plain)
        assert len({tuple(plain), tuple(first), tuple(second)}) == 3
        assert keys_of(webdataset(partial_set, shuffle=8, seed=1)) == first

    @pytest.mark.slow
    @pytest.mark.parametrize("start", ["fork", "spawn"])
    def test_workers_share_the_shards(self, partial_set: Path, start: str) -> None:
        """Each sample once, by two workers of which one may have no shard."""
        assert len(ShardFolder(partial_set).dataset["shards"]) == 3
        for source in (partial_set, partial_set / "train-000000.tar"):
            data = webdataset(source)
            loader = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context=start)
            assert sorted(keys_of(loader)) == sorted(keys_of(data))

    def test_nodes_share_the_shards(self, partial_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nodes divide the shards as webdataset does, by the variables that torchrun sets."""
        found = []
        for rank in ("0", "1"):
            monkeypatch.setenv("RANK", rank)
            monkeypatch.setenv("WORLD_SIZE", "2")
            found.append(keys_of(webdataset(partial_set)))
        monkeypatch.undo()
        assert all(found)
        assert sorted(found[0] + found[1]) == sorted(keys_of(webdataset(partial_set)))

    def test_it_is_a_stock_pipeline(self, whole_set: Path) -> None:
        data = webdataset(whole_set, split="train")
        assert isinstance(data, wds.WebDataset)
        pairs = list(data.to_tuple("__key__", "mel.npy").map_tuple(str, len))
        assert [frames for _, frames in pairs] == [row.mel_frames for row in ShardFolder(whole_set).rows[:6]]

    def test_standard_input(self, train: bytes, whole_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Standard input is read in pieces as small as a pipe gives them."""

        class Dribble(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                return super().read(min(size or 0, 7777))

        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Dribble(train)))
        manifest = open_shards(whole_set, speakers="speaker0")  # whose filters say nothing of the shard
        assert len(list(webdataset("-", manifest=manifest))) == 6

    def test_it_is_lazy_and_can_be_left(self, whole_set: Path) -> None:
        path = shlex.quote(str(whole_set / "train-000000.tar"))
        samples = iter(webdataset(f"pipe:cat {path}; sleep 60"))
        assert next(samples)["__key__"]
        samples.close()


class TestDamage:
    @settings(max_examples=30, deadline=None)
    @given(st.data())
    def test_a_shard_cut_anywhere_is_an_error(
        self, train: bytes, whole_set: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        blocks = st.integers(0, len(train) // 512 - 1).map(lambda block: block * 512)
        at = data.draw(blocks | st.integers(0, len(train) - 1))
        for manifest in (None, whole_set):
            with pytest.raises(DataError, match=r"read\.tar: byte \d+: "):
                read(train[:at], tmp_path_factory, manifest)

    @settings(max_examples=30, deadline=None)
    @given(st.data())
    def test_a_flipped_bit_anywhere_is_an_error_with_the_manifest(
        self, train: bytes, whole_set: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        at, bit = data.draw(st.integers(0, len(train) - 1)), data.draw(st.integers(0, 7))
        damaged = bytearray(train)
        damaged[at] ^= 1 << bit
        with pytest.raises(DataError, match=r"read\.tar: byte \d+: "):
            read(bytes(damaged), tmp_path_factory, whole_set)

    def test_every_bit_of_a_header_is_watched_without_the_manifest(
        self, train: bytes, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        for at in range(0, 512, 7):
            damaged = bytearray(train)
            damaged[at] ^= 1
            with pytest.raises(DataError, match=r"read\.tar: byte 0: "):
                read(bytes(damaged), tmp_path_factory)

    def test_a_damaged_shard_of_a_folder(self, whole_set: Path, tmp_path: Path) -> None:
        """Through workers too, whose error names shard, key and member."""
        import shutil

        folder = Path(shutil.copytree(whole_set, tmp_path / "shards"))
        row = ShardFolder(folder).rows[1]
        data = bytearray((folder / row.shard).read_bytes())
        data[row.members["mel.npy"].offset + 1000] ^= 1
        (folder / row.shard).write_bytes(data)
        for workers in (0, 2):
            with pytest.raises(DataError, match=rf"{row.shard}: byte \d+: {row.key}.mel.npy: expected sha256"):
                list(DataLoader(webdataset(folder), batch_size=None, num_workers=workers))

    @pytest.mark.slow
    def test_rearranged_samples(
        self, folder: ShardFolder, train: bytes, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        own = [row for row in folder.rows if row.shard == "train-000000.tar"]
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
            "interleaved": (interleaved, f"expected {first.key}.gesture.npy together with the other members"),
            "a sample twice": (a + a, "once and in order, found .* after"),
            "a sample twice, apart": (a + b + a, f"expected each key once, found {first.key} also in"),
            "a member twice": (member(first, "json") + a, "once and in order, found .* after"),
            "members swapped": (swapped, "once and in order, found .* after"),
            "a member missing": (
                whole(first, without="mel.npy"),
                f"expected {first.key}.mel.npy together with the other members",
            ),
            "audio missing": (
                a + whole(second, without="audio.npy"),
                f"{second.key}: .* only one of the two has audio.npy",
            ),
        }
        for data, text in cases.values():
            with pytest.raises(DataError, match=text):
                read(data + END_OF_ARCHIVE, tmp_path_factory)
            with pytest.raises(DataError, match=r"byte \d+|already"):
                read(data + END_OF_ARCHIVE, tmp_path_factory, folder.folder)
        for data in (a, b + a, b"", train[: -len(END_OF_ARCHIVE)] + a):
            with pytest.raises(DataError, match=r"as in the manifest|of the manifest"):
                read(data + END_OF_ARCHIVE, tmp_path_factory, folder.folder)

    @pytest.mark.slow
    def test_two_shards_with_the_same_sample(self, whole_set: Path) -> None:
        path = whole_set / "train-000000.tar"
        with pytest.raises(DataError, match=r"also in .*train-000000\.tar"):
            list(webdataset([path, path]))

    @pytest.mark.parametrize("tail", [b"x", bytes(512), b"x" * 512])
    def test_something_after_the_end(self, train: bytes, tail: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
        with pytest.raises(DataError, match="expected two zero blocks and then the end of the shard, found more bytes"):
            read(train + tail, tmp_path_factory)

    def test_members_that_cannot_be_decoded(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        """Nothing is unpickled, and no array is created that its bytes do not contain; without decoding, bytes pass."""
        array = npy_parts(np.zeros((30, 415), np.float32))
        members: dict[str, tuple[bytes | memoryview, ...]] = {"json": (b"{}",)}
        members |= dict.fromkeys(("gesture.npy", "mel.npy"), array) | {"words.txt": (b"[]",)}
        members |= dict.fromkeys(("jaw_eyes.npy", "betas.npy", "start_xz.npy"), array) | {"sem.txt": (b"[]",)}

        def samples(change: dict[str, tuple[bytes | memoryview, ...]], *, decode: bool = True) -> list[dict[str, Any]]:
            buffers = build_segment("k", members | change).buffers
            return read(b"".join(map(bytes, buffers)) + END_OF_ARCHIVE, tmp_path_factory, decode=decode)

        assert samples({})[0]["gesture.npy"].shape == (30, 415)
        huge = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
        huge += b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 415), }".ljust(117) + b"\n"
        objects = io.BytesIO()
        np.save(objects, np.array([{}], dtype=object), allow_pickle=True)
        for name, data in (
            ("json", b"{"),
            ("words.txt", b"\xff"),
            ("gesture.npy", b""),
            ("gesture.npy", huge),
            ("gesture.npy", objects.getvalue()),
            ("gesture.npy", b"".join(map(bytes, array))[:-4]),
        ):
            with pytest.raises(DataError, match=rf"read\.tar: k\.{name}: ") as caught:
                samples({name: (data,)})
            assert "\n" not in str(caught.value)
            assert samples({name: (data,)}, decode=False)[0][name] == data


class TestOpening:
    def one_line(self, source: Any, **options: Any) -> OmnigesError:
        with pytest.raises(OmnigesError) as caught:
            list(webdataset(source, **options))
        assert "\n" not in str(caught.value)
        return caught.value

    def test_a_command_that_fails_is_the_error_not_the_cut_shard(self, whole_set: Path) -> None:
        path = shlex.quote(str(whole_set / "train-000000.tar"))
        for command in ("false", f"head -c 5000 {path}; exit 9", f"cat {path}; exit 9", "exit 9"):
            error = self.one_line(f"pipe:{command}")
            assert isinstance(error, EnvironmentFault)
            assert f"exit status {1 if command == 'false' else 9}" in str(error)

    def test_a_command_that_ends_early_without_failing(self, whole_set: Path) -> None:
        path = shlex.quote(str(whole_set / "train-000000.tar"))
        assert isinstance(self.one_line(f"pipe:head -c 5000 {path}"), DataError)

    def test_credentials_of_a_command_are_not_shown(self) -> None:
        error: BaseException | None = self.one_line(
            "pipe:false https://user:hunter2hunter2@host/x?sig=abcdef012345 --token=abcdef012345"
        )
        while error is not None:  # whether the end of the pipe or of the command is seen first is not ours to say
            assert not any(secret in str(error) for secret in ("hunter2hunter2", "abcdef012345"))
            error = error.__cause__ or error.__context__

    def test_what_is_not_there(self, tmp_path: Path, whole_set: Path) -> None:
        for source in (tmp_path / "a.tar", str(tmp_path / "a-{000000..000001}.tar"), "nope"):
            assert "a URL, found that the path does not exist" in str(self.one_line(source))
        assert "expected shards of split 'test', found none" in str(self.one_line(whole_set, split="test"))
        assert "expected a path, a URL or several" in str(self.one_line([]))
        assert "give the folder alone" in str(self.one_line([whole_set, whole_set]))
        for options in ({"split": "dev"}, {"shuffle": -1}):
            assert isinstance(self.one_line(whole_set, **options), UsageFault)

    def test_without_webdataset(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "webdataset", None)
        assert "pip install 'omniges[train]'" in str(self.one_line("pipe:true"))


class TestRemoteFolder:
    """The small files of a folder at a URL are held against each other as those of a local one."""

    @pytest.fixture
    def copy(self, whole_set: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(whole_set, tmp_path / "set"))

    def error(self, folder: Path) -> str:
        with remote.web_server(folder) as web, pytest.raises(OmnigesError) as caught:
            webdataset(web.url)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_a_manifest_that_does_not_end(self, copy: Path) -> None:
        path = copy / MANIFEST_FILE
        size = path.stat().st_size
        path.write_bytes(path.read_bytes() + bytes(4 << 20))
        assert f"{MANIFEST_FILE}: expected {size} bytes as in dataset.json, found more" in self.error(copy)

    def test_rows_that_dataset_json_does_not_list(self, copy: Path) -> None:
        for name, data in edited_manifest(copy, lambda rows: [replace(rows[0], ticks=0), *rows[1:]]).items():
            (copy / name).write_bytes(data)
        assert "expected consistent lengths" in self.error(copy)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"shards": []}, "shards: expected an object"),
            ({"shards": {"../x.tar": {}}}, "a name that is not in the contract"),
            ({"files": {MANIFEST_FILE: {"bytes": -1, "sha256": ""}}}, "bytes -1"),
            ({"files": {}}, f"expected an entry for {MANIFEST_FILE}, found none"),
            ({"version": 3}, "shard contract version"),
        ],
    )
    def test_dataset_json_of_anything(self, copy: Path, change: dict[str, Any], message: str) -> None:
        path = copy / DATASET_FILE
        path.write_bytes(edited_dataset(copy, lambda document: document.update(change)))
        assert message in self.error(copy)

    def test_dataset_json_that_is_nested_too_deeply(self, copy: Path) -> None:
        (copy / DATASET_FILE).write_bytes(b"[" * 200_000)
        assert "JSON document" in self.error(copy)
        with pytest.raises(DataError, match="found damage"):
            ShardFolder(copy)
