"""The damage harness and the fuzzer: a small draw of each is found whole, and what they would miss they say."""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent

damage: Any = importlib.import_module("damage")
faults: Any = importlib.import_module("shard_faults")
fuzz: Any = importlib.import_module("fuzz")

SEED = 11


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = damage.make_bases(tmp_path_factory.mktemp("damage"))
    (folder / "target").write_bytes(b"what a link leads to")
    return folder


@pytest.fixture(scope="module")
def bases(corpora: Path) -> Any:
    return damage.read_bases(corpora)


@pytest.fixture(scope="module")
def sites(bases: Any, corpora: Path) -> list[Any]:
    return [damage.Site(corpora / f"site-{k}", files) for k, files in enumerate(bases.folders)]


class TestDraws:
    @pytest.mark.slow
    def test_bytes_and_folders(self, bases: Any, sites: list[Any]) -> None:
        """Some cuts between blocks, then three faults of every kind."""
        cuts = len(faults.block_cuts(bases.folders[0]))
        kinds = len(damage._KINDS)
        indices = [*range(0, cuts, 12), *range(cuts, cuts + 3 * kinds)]
        outcomes = [damage.shard_fault(bases, sites, SEED, index) for index in indices]
        assert [miss for outcome in outcomes for miss in outcome.misses] == []
        assert len({outcome.kind for outcome in outcomes}) == kinds + 1
        assert len(outcomes) > 230

    @pytest.mark.slow
    def test_content(self, bases: Any, tmp_path: Path) -> None:
        kinds = len(damage.CONTENT_KINDS)
        outcomes = [damage.content_fault(bases, tmp_path / "s", SEED, index) for index in range(kinds)]
        assert [f"{outcome.kind}: {miss}" for outcome in outcomes for miss in outcome.misses] == []
        assert len({outcome.kind for outcome in outcomes}) == kinds

    @pytest.mark.slow
    def test_sound_sets(self, bases: Any, corpora: Path, tmp_path: Path) -> None:
        outcomes = [damage.sound_set(bases, corpora, tmp_path / "s", SEED, index) for index in range(24)]
        assert {outcome.kind for outcome in outcomes} == {"from preprocess", "packed again"}
        assert [miss for outcome in outcomes for miss in outcome.misses] == []

    @pytest.mark.slow
    def test_fuzzed_parsers(self, corpora: Path, tmp_path: Path) -> None:
        few = fuzz._few_samples(corpora)
        sites = [damage.Site(tmp_path / str(k), files) for k, files in enumerate(few.folders)]
        targets = set()
        for index in range(70):
            place, case = fuzz.draw(few.folders, few.sets, SEED, index)
            targets.add(case.target)
            assert fuzz.judge(sites[place], case) == "", f"--seed {SEED} --only {index}"
        assert len(targets) == 6

    @pytest.mark.slow
    def test_a_draw_follows_from_seed_and_index(self, bases: Any) -> None:
        for index in (3, 600, 601, 777):
            assert damage.draw_fault(bases, 1, index) == damage.draw_fault(bases, 1, index)
        assert damage.draw_fault(bases, 1, 777) != damage.draw_fault(bases, 2, 777)
        cases = [fuzz.draw(bases.folders, bases.sets, 5, 30)[1].changes for _ in range(2)]
        assert cases[0] == cases[1]


class TestHarness:
    """Damage that is not found is a miss, whatever the reason."""

    def test_a_blind_verifier_misses_everything(
        self, bases: Any, sites: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        sound = damage._check(sites[0].folder, "full")
        assert sound.findings == ()
        monkeypatch.setattr(damage, "_check", lambda _folder, _level: sound)
        for index in range(500, 510):
            outcome = damage.shard_fault(bases, sites, SEED, index)
            assert outcome.misses
            assert len(outcome.misses) == 1 + outcome.quick_promised
        assert damage.content_fault(bases, tmp_path / "s", SEED, 0).misses == ("deep finds nothing",)

    def test_a_wrong_name_for_a_fault_is_a_miss(
        self, bases: Any, sites: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        site = sites[0]
        (site.folder / "x.tar").write_bytes(b"")
        other = damage._check(site.folder, "full")
        (site.folder / "x.tar").unlink()
        monkeypatch.setattr(damage, "_check", lambda _folder, _level: other)
        assert "names shard-unlisted, not" in damage.shard_fault(bases, sites, SEED, 5).misses[0]

    def test_crashes_are_misses(self, bases: Any, sites: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
        def crash(_settings: object) -> None:
            raise RecursionError("deep")

        monkeypatch.setattr(damage, "verify", crash)
        monkeypatch.setattr(fuzz, "verify", crash)
        assert "crashed with RecursionError" in damage.shard_fault(bases, sites, SEED, 5).misses[0]
        _, case = fuzz.draw(bases.folders, bases.sets, 5, 30)
        assert "crashed with RecursionError" in fuzz.judge(sites[0], replace(case, changes={}))

    def test_a_wrong_sound_is_a_failure(self, bases: Any, sites: list[Any]) -> None:
        _, case = fuzz.draw(bases.folders, bases.sets, 5, 30)
        assert fuzz.judge(sites[0], replace(case, changes={}, same=lambda: True)) == ""
        assert "called sound" in fuzz.judge(sites[0], replace(case, changes={}, same=lambda: False))
        assert "cannot be read" in fuzz.judge(sites[0], replace(case, changes={}, same=lambda: bool(int("x"))))

    def test_what_quick_promises_is_what_the_page_says(self, bases: Any) -> None:
        folder = bases.folders[0]
        name = faults.shard_names(folder)[0]
        data = folder[name]
        promised = {
            True: (
                *({name: data[:-1]}, {name: None}, {name: "link"}, {"x.tar": b""}, {name: b"x" + data[1:]}),
                *({name: data[:-1] + b"x"}, {"dataset.json": folder["dataset.json"] + b" "}),
            ),
            False: ({name: data[:600] + b"\1" + data[601:]}, {"notes.txt": b""}, {"stats.json": b"x" * 9}),
        }
        promised[False] = (*promised[False][:2], {"stats.json": bytes(len(folder["stats.json"]))})
        for wanted, cases in promised.items():
            for changes in cases:
                assert faults.quick_finds(folder, faults.Damage(changes, "")) is wanted, changes


@pytest.mark.long
@pytest.mark.timeout(3600)
class TestLong:
    @pytest.mark.parametrize("command", [["damage.py"], ["fuzz.py", "--minutes", "10"]], ids=" ".join)
    def test_the_numbers_that_are_promised(self, command: list[str]) -> None:
        """10,000 faults, 2,000 content faults, 1,000 sound sets, 10^6 tiny members; ten minutes of fuzzing."""
        done = subprocess.run([sys.executable, *command], cwd=HERE, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
