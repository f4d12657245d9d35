"""A checkpoint is whole or is not there, and every changed byte of it is found."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_helpers import scripted
from safetensors.torch import load_file

from omniges.errors import DataError, EnvironmentFault, UsageFault
from omniges.model.checkpoint import (
    CHECKPOINT_FILE,
    CHECKPOINTS,
    Contents,
    checkpoints,
    choose,
    find_checkpoint,
    open_checkpoint,
    prune,
    remove_unfinished,
    save_checkpoint,
    set_aside,
)
from omniges.storage.atomic import is_temporary_name
from omniges.storage.tensors import read_tensors, write_tensors

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool]


def contents(step: int) -> Contents:
    tensors = {"a": torch.arange(6.0).reshape(2, 3) + step, "b": torch.tensor(float(step))}
    return Contents(step, {"model.safetensors": tensors}, {"state.json": json.dumps({"step": step}).encode()})


class TestTensorFile:
    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.tuples(st.sampled_from(TYPES), st.lists(st.integers(0, 4), max_size=3)), max_size=5))
    def test_safetensors_itself_reads_the_same_bits(self, tmp_path_factory, kinds):
        path = tmp_path_factory.mktemp("tensors") / "x.safetensors"
        generator = torch.Generator().manual_seed(0)
        tensors = {
            f"t{k}": (torch.randn(shape, generator=generator) * 3).to(kind) for k, (kind, shape) in enumerate(kinds)
        }
        size, _ = write_tensors(path, tensors)
        assert size == path.stat().st_size
        for read in (load_file(path), read_tensors(path)):
            assert read.keys() == tensors.keys()
            for name, tensor in tensors.items():
                assert read[name].dtype == tensor.dtype
                assert torch.equal(read[name], tensor)

    def test_views_are_written_as_what_they_show(self, tmp_path: Path) -> None:
        whole = torch.arange(12.0).reshape(3, 4)
        write_tensors(tmp_path / "x", {"t": whole.T, "part": whole[:, 1]})
        read = load_file(tmp_path / "x")
        assert torch.equal(read["t"], whole.T)
        assert torch.equal(read["part"], whole[:, 1])

    def test_another_file_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "x.safetensors"
        path.write_bytes(b"\xff" * 100)
        with pytest.raises(DataError, match="expected a safetensors file"):
            read_tensors(path)


class TestSaving:
    def test_what_is_saved_comes_back(self, tmp_path: Path) -> None:
        path = save_checkpoint(tmp_path, contents(3))
        saved = open_checkpoint(path)
        assert (path.name, saved.step, saved.document("state.json")) == ("step-000003", 3, {"step": 3})
        assert torch.equal(saved.tensors("model.safetensors")["a"], contents(3).tensors["model.safetensors"]["a"])
        with pytest.raises(DataError, match=r"expected other\.json in this folder, found that the file does not exist"):
            saved.content("other.json")

    def test_an_error_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(KeyError):
            save_checkpoint(tmp_path, Contents(1, {"x": {"a": torch.zeros(1, dtype=torch.complex64)}}, {}))
        assert list(tmp_path.iterdir()) == []

    def test_a_disk_that_gives_back_other_bytes_is_noticed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from omniges.model import checkpoint as module

        inner = module.write_tensors

        def flipped(path: Path, tensors: dict[str, torch.Tensor]) -> tuple[int, str]:
            found = inner(path, tensors)
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)
            return found

        monkeypatch.setattr(module, "write_tensors", flipped)
        with pytest.raises(DataError, match=r"model\.safetensors: expected sha256 .* damaged"):
            save_checkpoint(tmp_path, contents(1))
        assert list(tmp_path.iterdir()) == []

    def test_the_newest_are_kept(self, tmp_path: Path) -> None:
        for step in (5, 30, 100, 1_000_000, 20_000_000):
            save_checkpoint(tmp_path, contents(step))
        assert prune(tmp_path, 0) == []
        prune(tmp_path, 2)
        assert [path.name for path in checkpoints(tmp_path)] == ["step-20000000", "step-1000000"]

    def test_a_link_is_read_never_pruned_and_set_aside_by_its_name_alone(self, tmp_path: Path) -> None:
        run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
        folder = run / CHECKPOINTS
        for step in (1, 2, 3):
            save_checkpoint(folder, contents(step))
        for step in (1, 3):
            (folder / f"step-{step:06d}").rename(elsewhere.with_name(f"moved-{step}"))
            (folder / f"step-{step:06d}").symlink_to(tmp_path / f"moved-{step}")
        (folder / "step-000004").symlink_to("nowhere")
        (folder / "step-000005").write_text("a file")
        chosen = choose(run, "latest", lambda _: None)
        assert chosen.checkpoint is not None
        assert chosen.checkpoint.step == 3
        assert [path.name for path, _ in chosen.passed] == ["step-000005", "step-000004"]
        for path, _ in chosen.passed:
            set_aside(path)
        for step in (4, 5):
            save_checkpoint(folder, contents(step))
        assert [path.name for path in prune(folder, 1)] == ["step-000004", "step-000002"]
        assert [step for step in (1, 3) if open_checkpoint(tmp_path / f"moved-{step}").step == step] == [1, 3]

    def test_only_our_own_unfinished_work_is_removed(self, tmp_path: Path) -> None:
        for name in (".step-000003.tmp-12", "notes", ".hidden"):
            (tmp_path / name).mkdir()
        remove_unfinished(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "notes"]
        remove_unfinished(tmp_path / "nowhere")

    def test_a_folder_that_cannot_be_written_is_one_clear_line(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(EnvironmentFault, match="cannot create the folder"):
            save_checkpoint(tmp_path / "file", contents(1))

    def test_what_is_set_aside_is_kept_whole_under_a_free_name(self, tmp_path: Path) -> None:
        names = [set_aside(save_checkpoint(tmp_path, contents(3))).name for _ in range(2)]
        assert names == ["passed-step-000003-1", "passed-step-000003-2"]
        assert open_checkpoint(tmp_path / names[1]).step == 3
        assert checkpoints(tmp_path) == []


class TestDamage:
    def test_every_flipped_bit_is_found(self, tmp_path: Path) -> None:
        path = save_checkpoint(tmp_path, contents(3))
        for file in sorted(path.iterdir()):
            data = file.read_bytes()
            for position in range(len(data)):
                changed = bytearray(data)
                changed[position] ^= 1 << (position % 8)
                file.write_bytes(changed)
                if file.name == CHECKPOINT_FILE and _same_document(bytes(changed), data):
                    continue  # another space or an escaped letter says the same
                with pytest.raises(DataError):
                    open_checkpoint(path)
            file.write_bytes(data)
        open_checkpoint(path)

    def test_every_shortened_or_missing_file_is_named(self, tmp_path: Path) -> None:
        path = save_checkpoint(tmp_path, contents(3))
        for file in sorted(path.iterdir()):
            data = file.read_bytes()
            for change in (lambda f: os.truncate(f, f.stat().st_size - 2), lambda f: os.truncate(f, 0), Path.unlink):
                change(file)
                with pytest.raises(DataError, match=file.name):
                    open_checkpoint(path)
                file.write_bytes(data)

    def test_a_folder_of_another_kind(self, tmp_path: Path) -> None:
        (tmp_path / CHECKPOINT_FILE).write_text('{"format": "other"}')
        with pytest.raises(DataError, match="expected format 'omniges-checkpoint'"):
            open_checkpoint(tmp_path)


def _same_document(changed: bytes, data: bytes) -> bool:
    try:
        return bool(json.loads(changed) == json.loads(data))
    except ValueError:
        return False


class TestFinding:
    def test_the_newest_sound_one_of_a_run_or_the_one_named(self, tmp_path: Path) -> None:
        older, newer = (save_checkpoint(tmp_path / "checkpoints", contents(step)) for step in (1, 2))
        assert find_checkpoint(tmp_path).step == 2
        assert find_checkpoint(older).step == 1
        (newer / "state.json").unlink()
        assert find_checkpoint(tmp_path).step == 1
        shutil.rmtree(older)
        with pytest.raises(DataError, match="found none among 1"):
            find_checkpoint(tmp_path)
        with pytest.raises(UsageFault, match="found none"):
            find_checkpoint(tmp_path / "nowhere")

    def test_one_that_does_not_fit_is_passed_for_an_older_one_that_does(self, tmp_path: Path) -> None:
        for step in (1, 2):
            save_checkpoint(tmp_path / "checkpoints", contents(step))

        def fits(saved):
            if saved.step == 2:
                raise UsageFault("it is of another manifest")

        choice = choose(tmp_path, "latest", fits)
        assert choice.checkpoint is not None
        assert choice.checkpoint.step == 1
        assert [reason for _, reason in choice.passed] == ["it is of another manifest"]


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path[:0] = [sys.argv[2], os.path.dirname(sys.argv[2])]
from test_checkpoint import contents
from omniges.model.checkpoint import checkpoints, open_checkpoint, prune, remove_unfinished, save_checkpoint
from omniges.model.checkpoint import choose

folder = Path(sys.argv[1])
names = ("mkdir", "open", "write", "fsync", "rename", "unlink", "rmdir")
inner = {name: getattr(os, name) for name in names}

def save_and_die(turn):
    left = turn
    def deadly(name):
        def call(*args, **kwargs):
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return inner[name](*args, **kwargs)
        return call
    for name in names:
        setattr(os, name, deadly(name))
    save_checkpoint(folder / "checkpoints", contents(2))
    prune(folder / "checkpoints", 1)
    os._exit(0)

save_checkpoint(folder / "checkpoints", contents(1))
turn, found = 0, []
while True:
    turn += 1
    child = os.fork()
    if child == 0:
        save_and_die(turn)
    _, status = os.waitpid(child, 0)
    chosen = choose(folder, "latest", lambda saved: None)
    assert not chosen.passed, (turn, chosen.passed)
    found.append(chosen.checkpoint.step)
    remove_unfinished(folder / "checkpoints")
    assert all(path.name.startswith("step-") for path in (folder / "checkpoints").iterdir())
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0
        break
    if found[-1] == 2:  # begin again with the older one alone
        prune(folder / "checkpoints", 1)
        os.rename(folder / "checkpoints/step-000002", folder / "done")
        save_checkpoint(folder / "checkpoints", contents(1))
        for path in (folder / "done").iterdir():
            path.unlink()
        (folder / "done").rmdir()
print(*found)
"""


@pytest.mark.slow
def test_killed_before_any_call_of_saving_and_pruning_one_loadable_checkpoint_is_left(tmp_path: Path) -> None:
    """One checkpoint is kept: the older one until the newer is published, then the newer."""
    done = scripted(KILLED, tmp_path, Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    found = [int(step) for step in done.stdout.split()]
    assert len(found) > 25
    assert found == sorted(found)
    assert set(found) == {1, 2}


def test_names_are_those_that_publishing_knows(tmp_path: Path) -> None:
    seen = []
    inner = Path.mkdir
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "mkdir", lambda self, *a, **k: (seen.append(self.name), inner(self, *a, **k))[1])
        save_checkpoint(tmp_path, contents(3))
    assert any(name.startswith(".step-000003.tmp-") and is_temporary_name(name) for name in seen)
