"""Data without a sync may be lost in any order, and the same command still finishes, as recorded calls prove."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from crash_calls import Call, Recorder, kind_of, tapped
from crash_model import Disk, RandomPowerLoss, Tree, order_faults, read_tree, replay
from crash_power import laid_out, power_loss_case, recorded, survive
from crash_scenarios import NAMES, Scenario, end_faults, make_scenarios, preprocess_here

from omniges.shards import transaction as commit_module
from omniges.shards import transaction as workspace_module
from omniges.storage import atomic
from omniges.storage.atomic import make_folder, publish_bytes

Recording = tuple[Scenario, Tree, list[Call]]


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scenario]:
    return make_scenarios(tmp_path_factory.mktemp("scenarios"))


@pytest.fixture(scope="module")
def recordings(scenarios: dict[str, Scenario], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recording]:
    """Return the start of each scenario and the calls of its run."""
    recordings = {}
    for name, scenario in scenarios.items():
        out = scenario.begin(tmp_path_factory.mktemp("recorded") / "x")
        before = read_tree(out.parent)
        recordings[name] = (scenario, before, recorded(scenario, out, first=False))
        assert not end_faults(scenario, out)
        assert replay(before, recordings[name][2]).tree() == read_tree(out.parent)  # nothing went past the tap
    return recordings


class Fixed:
    """A power loss of which the test decides what survives."""

    def __init__(self, *names: bool, content: Callable[[bytes], bytes | None] = lambda data: data) -> None:
        self._names = names
        self.bytes_of = content

    def name_survives(self, place: int, total: int) -> bool:
        assert total == len(self._names)
        return self._names[place]

    def length_survives(self) -> bool:
        return self.bytes_of(b"x") is not None


class Nothing:
    """A power loss that keeps only synced data."""

    def name_survives(self, place: int, total: int) -> bool:
        return False

    def bytes_of(self, data: bytes) -> bytes | None:
        return None

    def length_survives(self) -> bool:
        return False


NOTHING = Nothing()

PUBLISH = [
    Call("create", "f/.x.tmp-1", file=0),
    Call("write", "f/.x.tmp-1", file=0, data=b"abc"),
    Call("sync", "f/.x.tmp-1", file=0),
    Call("rename", "f/.x.tmp-1", "f/x", file=0),
    Call("sync-folder", "f"),
]


class TestOrder:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", NAMES)
    def test_every_file_is_written_synced_renamed_and_its_folder_synced(
        self, recordings: dict[str, Recording], name: str
    ) -> None:
        _, _, calls = recordings[name]
        assert order_faults(calls) == []
        renamed = [kind_of(call) for call in calls if call.kind == "rename"]
        assert {"rename work/commit.json", "rename work/place.json", "rename out/dataset.json"} <= set(renamed)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", NAMES)
    def test_without_any_one_of_its_syncs_the_order_is_broken(
        self, recordings: dict[str, Recording], name: str
    ) -> None:
        _, _, calls = recordings[name]
        # The journal's own sync is not about a rename: the power losses below are about that one.
        syncs = [
            n
            for n, call in enumerate(calls)
            if call.kind.startswith("sync") and kind_of(call) != "sync work/journal.jsonl"
        ]
        # Of two syncs of a folder without a change of it in between one would do; a fresh run has nothing to remove.
        spare = [n for n in syncs if not order_faults(calls[:n] + calls[n + 1 :])]
        assert len(syncs) > 20
        assert all(calls[n].kind == "sync-folder" for n in spare)
        assert len(spare) <= 8, [(n, calls[n]) for n in spare]

    @pytest.mark.parametrize(
        ("calls", "fault"),
        [
            pytest.param([*PUBLISH[:2], *PUBLISH[3:]], "bytes are not synced", id="never synced"),
            pytest.param([PUBLISH[0], PUBLISH[2], PUBLISH[1], *PUBLISH[3:]], "bytes are not synced", id="write late"),
            pytest.param([*PUBLISH[:2], PUBLISH[3], PUBLISH[2], PUBLISH[4]], "bytes are not synced", id="sync late"),
            pytest.param([PUBLISH[0], *PUBLISH[3:]], "bytes are not synced", id="empty and never synced"),
            pytest.param(
                [*PUBLISH, Call("write", "f/x", file=0, offset=3, data=b"d")], "its final name already", id="write on"
            ),
            pytest.param([*PUBLISH, Call("truncate", "f/x", file=0)], "its final name already", id="cut"),
            pytest.param(PUBLISH[:4], "f was never synced", id="folder never synced"),
            pytest.param([*PUBLISH[:3], PUBLISH[4], PUBLISH[3]], "f was never synced", id="folder too early"),
            pytest.param([*PUBLISH[:4], Call("sync-folder", "g")], "f was never synced", id="another folder"),
            pytest.param(
                [*PUBLISH[:4], Call("rename", "f/.y.tmp-1", "f/y", file=1), PUBLISH[4]],
                "f is not synced",
                id="next file",
            ),
            pytest.param(
                [*PUBLISH[:4], Call("write", "w/journal.jsonl", file=9, data=b"x"), PUBLISH[4]],
                "f is not synced",
                id="journal too early",
            ),
            pytest.param(
                [Call("rename", "w/x", "o/x", file=0), Call("sync-folder", "o")], "w was never", id="one of two folders"
            ),
            pytest.param(
                [
                    Call("rename", "w/x", "o/x", file=0),
                    Call("rename", "w/dataset.json", "o/dataset.json", file=1),
                    Call("sync-folder", "o"),
                    Call("sync-folder", "w"),
                ],
                "o is not synced",
                id="dataset.json too early",
            ),
            pytest.param(
                [Call("unlink", "o/dataset.json"), Call("unlink", "o/train-000000.tar"), Call("sync-folder", "o")],
                "o is not synced",
                id="shards go before dataset.json is gone",
            ),
            pytest.param(
                [
                    Call("unlink", "o/train-000000.tar"),
                    Call("rename", "w/commit.json", "w/place.json", file=0),
                    *(Call("sync-folder", folder) for folder in "ow"),
                ],
                "o is not synced",
                id="next step too early",
            ),
            pytest.param(
                [
                    Call("rename", "w/dataset.json", "o/dataset.json", file=0),
                    Call("unlink", "w/place.json"),
                    *(Call("sync-folder", folder) for folder in "ow"),
                ],
                "o is not synced",
                id="cleared away too early",
            ),
            pytest.param([Call("mkdir", "f"), *PUBLISH], "mkdir f: . was never synced", id="new folder"),
        ],
    )
    def test_each_wrong_order_is_seen(self, calls: list[Call], fault: str) -> None:
        assert any(fault in found for found in order_faults(calls)), order_faults(calls)

    def test_the_right_order_is_right(self) -> None:
        assert order_faults(PUBLISH) == []
        assert order_faults([Call("mkdir", "f"), Call("sync-folder", "."), *PUBLISH]) == []
        gone = [Call("unlink", "f/x"), Call("rmdir", "f"), Call("sync-folder", ".")]
        assert order_faults([Call("mkdir", "f"), *PUBLISH, *gone]) == []


class TestModel:
    def test_synced_bytes_stay_and_others_may_be_gone_torn_or_zeros(self) -> None:
        disk = Disk.holding({"f": b"old"})
        disk.apply(Call("write", "f", file=0, offset=3, data=b"NEW"))
        for content, expected in (
            (lambda data: data, b"oldNEW"),
            (lambda _: None, b"old"),
            (lambda data: data[:1], b"oldN"),
            (lambda data: bytes(len(data)), b"old\0\0\0"),
        ):
            assert disk.survivors(Fixed(content=content)) == {"f": expected}
        disk.apply(Call("sync", "f", file=0))
        assert disk.survivors(NOTHING) == {"f": b"oldNEW"}
        disk.apply(Call("truncate", "f", file=0, offset=0))
        disk.apply(Call("write", "f", file=0, offset=0, data=b"x"))
        assert disk.survivors(NOTHING) == {"f": b"oldNEW"}
        assert disk.tree() == {"f": b"x"}

    def test_a_lost_write_before_one_that_survived_is_a_hole(self) -> None:
        disk = Disk.holding({"f": b""})
        disk.apply(Call("write", "f", file=0, offset=0, data=b"ab"))
        disk.apply(Call("write", "f", file=0, offset=2, data=b"cd"))
        assert disk.survivors(Fixed(content=lambda data: data if data == b"cd" else None)) == {"f": b"\0\0cd"}

    def test_names_survive_on_their_own_and_in_no_order(self) -> None:
        disk = Disk.holding({"a": b"1", "b": b"2"})
        disk.apply(Call("unlink", "a"))
        disk.apply(Call("create", "c", file=7))
        disk.apply(Call("rename", "b", "a", file=1))
        found = {
            tuple(sorted((name, data) for name, data in disk.survivors(Fixed(*names)).items()))
            for names in itertools.product((False, True), repeat=3)
        }
        assert found == {
            (("a", b"1"), ("b", b"2")),
            (("b", b"2"),),
            (("a", b"1"), ("b", b"2"), ("c", b"")),
            (("b", b"2"), ("c", b"")),
            (("a", b"2"),),
            (("a", b"2"), ("c", b"")),
        }
        disk.apply(Call("sync-folder", "."))
        assert disk.survivors(NOTHING) == {"a": b"2", "c": b""}

    def test_a_rename_between_folders_is_atomic_and_waits_for_both(self) -> None:
        disk = Disk.holding({"f": None, "g": None, "f/x": b"1"})
        disk.apply(Call("rename", "f/x", "g/y", file=0))
        disk.apply(Call("sync-folder", "g"))
        assert disk.survivors(Fixed(False)) == {"f": None, "g": None, "f/x": b"1"}
        assert disk.survivors(Fixed(True)) == {"f": None, "g": None, "g/y": b"1"}
        disk.apply(Call("sync-folder", "f"))
        assert disk.survivors(NOTHING) == {"f": None, "g": None, "g/y": b"1"}

    def test_a_folder_that_is_lost_takes_along_what_was_synced_in_it(self) -> None:
        disk = Disk.holding({})
        for call in (Call("mkdir", "f"), *PUBLISH):
            disk.apply(call)
        assert disk.survivors(Fixed(False)) == {}
        disk.apply(Call("sync-folder", "."))
        assert disk.survivors(NOTHING) == {"f": None, "f/x": b"abc"}


class TestTap:
    def test_a_recording_replayed_gives_the_folder(self, tmp_path: Path) -> None:
        (tmp_path / "w").mkdir()
        (tmp_path / "w/old").write_bytes(b"old")
        before = read_tree(tmp_path / "w")
        recorder = Recorder()
        with tapped(tmp_path / "w", recorder):
            make_folder(tmp_path / "w/a/b")
            publish_bytes(tmp_path / "w/a/b/x", [b"12", b"3"])
            (tmp_path / "w/a/b/x").rename(tmp_path / "w/old")
            with (tmp_path / "w/j").open("ab", buffering=0) as stream:
                stream.write(b"12345")
                stream.truncate(2)
                stream.write(b"!")
            (tmp_path / "w/a/b").rmdir()
            publish_bytes(tmp_path / "beside", b"not watched")
        assert replay(before, recorder.calls).tree() == read_tree(tmp_path / "w")
        assert read_tree(tmp_path / "w") == {"a": None, "j": b"12!", "old": b"123"}

    def test_what_it_has_no_model_of_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_bytes(b"x")
        with tapped(tmp_path, Recorder()):
            for way in (
                lambda: (tmp_path / "x").write_bytes(b"y"),
                lambda: (tmp_path / "y").symlink_to("x"),
                lambda: (tmp_path / "x").rename(tmp_path.parent / "z"),
            ):
                with pytest.raises(AssertionError, match="no model"):
                    way()


class TestFolders:
    def test_a_new_folder_and_its_new_parents_survive(self, tmp_path: Path) -> None:
        recorder = Recorder()
        with tapped(tmp_path, recorder):
            make_folder(tmp_path / "a/b/c")
        assert replay({}, recorder.calls).survivors(NOTHING) == {"a": None, "a/b": None, "a/b/c": None}


def careless(scenario: Scenario, folder: Path, owner: object, name: str) -> tuple[Tree, list[Call]]:
    """The recording of a run in which a function that syncs does nothing."""
    out = scenario.begin(folder)
    before = read_tree(out.parent)
    recorder = Recorder()
    with tapped(out.parent, recorder), mock.patch.object(owner, name, return_value=None):
        preprocess_here(scenario, out)
    return before, recorder.calls


def losses(recording: Recording, folder: Path, seed: int, share: float, last: int | None = None) -> Iterator[str]:
    """Faults after power losses before a share of the (last) calls, drawn."""
    scenario, before, calls = recording
    rng = random.Random(seed)
    moments = [moment for moment in range(len(calls) - (last or len(calls)), len(calls) + 1) if rng.random() < share]
    for moment in [*moments, len(calls)]:
        result = survive(
            scenario, before, calls, moment, RandomPowerLoss(rng), folder / f"{seed}-{moment}-{rng.random()}"
        )
        yield from (f"{result.moments[0]}: {fault}" for fault in result.faults)


class TestLosses:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", NAMES)
    def test_whatever_survives_the_same_command_finishes_the_set(
        self, recordings: dict[str, Recording], tmp_path: Path, name: str
    ) -> None:
        assert list(losses(recordings[name], tmp_path, seed=1, share=0.08)) == []

    @pytest.mark.parametrize("name", NAMES)
    def test_losses_in_a_row_are_survived_too(self, scenarios: dict[str, Scenario], tmp_path: Path, name: str) -> None:
        for index in range(2):
            result = power_loss_case(scenarios[name], tmp_path, seed=2, index=index)
            assert result.faults == [], result.moments

    @pytest.mark.parametrize("name", NAMES)
    def test_a_finished_run_cannot_be_lost(self, recordings: dict[str, Recording], tmp_path: Path, name: str) -> None:
        scenario, before, calls = recordings[name]
        out = laid_out(replay(before, calls).survivors(NOTHING), tmp_path)
        assert end_faults(scenario, out) == []

    @pytest.mark.parametrize(
        ("owner", "name"),
        [
            pytest.param(atomic.os, "fsync", id="all"),
            pytest.param(commit_module, "sync_folder", id="of the commit"),
            pytest.param(workspace_module, "sync_folder", id="of the workspace"),
        ],
    )
    def test_a_finished_run_is_lost_where_syncs_are_missing(
        self, scenarios: dict[str, Scenario], tmp_path: Path, owner: object, name: str
    ) -> None:
        before, calls = careless(scenarios["update"], tmp_path / "begun", owner, name)
        out = laid_out(replay(before, calls).survivors(NOTHING), tmp_path / "left")
        assert end_faults(scenarios["update"], out)

    def test_a_mixture_is_found_where_the_steps_of_the_commit_are_not_synced(
        self, scenarios: dict[str, Scenario], tmp_path: Path
    ) -> None:
        before, calls = careless(scenarios["update"], tmp_path / "begun", commit_module, "sync_folder")
        recording = (scenarios["update"], before, calls)
        assert next(losses(recording, tmp_path, seed=3, share=1.0, last=20), None) is not None

    def test_the_order_is_broken_where_the_folder_of_a_published_file_is_not_synced(
        self, scenarios: dict[str, Scenario], tmp_path: Path
    ) -> None:
        assert order_faults(careless(scenarios["update"], tmp_path / "begun", atomic, "sync_folder")[1])

    @pytest.mark.long
    @pytest.mark.timeout(1800)
    @pytest.mark.parametrize("name", NAMES)
    def test_at_every_call(self, recordings: dict[str, Recording], tmp_path: Path, name: str) -> None:
        faults = [fault for seed in range(5) for fault in losses(recordings[name], tmp_path, seed=seed, share=1.0)]
        assert faults == []
