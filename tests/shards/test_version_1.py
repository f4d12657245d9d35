"""Sets of contract version 1 are read, verified and exported as what they say, and never updated in place."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pipeline_helpers import digests, omniges, run_preprocess
from rich.console import Console
from shard_sets import Sample, ShardSet
from verify_builders import codes, rebuilt, run

from omniges.data.catalog import Filters, read_catalog
from omniges.data.loader import BatchLoader, LoaderSettings
from omniges.data.order import RankShare
from omniges.data.sequence import DataSource, Sequencing
from omniges.exchange.inspect import folder_facts, print_folder, print_sample, sample_facts
from omniges.pipeline.export import export
from omniges.shards.reader import ShardFolder
from omniges.shards.schema import CONTRACTS, STATS_FILE


class TestForm:
    def test_the_builder_writes_the_members_fields_and_statistics_of_version_1(self, version_1: Path) -> None:
        folder = ShardFolder(version_1)
        assert folder.dataset["version"] == 1
        for row in folder.rows:
            assert set(CONTRACTS[1].members) <= row.members.keys()
            assert "flac" in row.members
            assert ("sem.json" in row.members) == ("sem" in row.present)
            metadata = json.loads(folder.member(row, "json"))
            assert {"scenario", "emotion"} <= metadata.keys()
            assert not {"labels", "present"} & metadata.keys()
            assert isinstance(metadata["notes"], list)
        stats = json.loads((version_1 / STATS_FILE).read_bytes())
        assert "jaw_eyes" not in stats
        assert set(stats["mel"]) == {"frames", "mean", "std", "min", "max"}

    def test_some_samples_have_spans_and_some_have_none(self, version_1: Path) -> None:
        assert {"sem.json" in row.members for row in ShardFolder(version_1).rows} == {True, False}


class TestReading:
    def test_every_level_finds_it_sound(self, version_1: Path) -> None:
        for level in ("quick", "full", "deep"):
            assert run(version_1, level).findings == (), level

    def test_samples_are_those_of_version_2(self, version_1: Path, shards: Path) -> None:
        first, second = ShardFolder(version_1), ShardFolder(shards)
        for row in first.rows:
            one, other = first.sample(row), second.sample(second.row(row.key))
            assert one.words == other.words
            assert one.row.labels == other.row.labels
            assert one.audio is not None
            for name in ("audio", "mel", "betas"):
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
            for name in ("gesture", "jaw_eyes", "start_xz"):
                np.testing.assert_array_equal(getattr(one.gesture, name), getattr(other.gesture, name), err_msg=name)

    def test_inspect_shows_the_folder_and_a_sample(self, version_1: Path) -> None:
        source = ShardFolder(version_1)
        row = source.rows[0]
        shown = io.StringIO()
        print_folder(source, Console(file=shown, width=200))
        print_sample(source.sample(row), Console(file=shown, width=200))
        assert shown.getvalue().count(row.key) >= 2
        json.dumps([folder_facts(source), sample_facts(source.sample(row))])

    def test_export_gives_the_recordings_back_from_flac_bit_by_bit(
        self, version_1: Path, corpus: Path, tmp_path: Path
    ) -> None:
        export(version_1, tmp_path / "back")
        waves = {path.name: path.read_bytes() for path in corpus.rglob("*.wav")}
        assert {path.name: path.read_bytes() for path in (tmp_path / "back").rglob("*.wav")} == waves

    def test_the_loader_gives_the_windows_of_version_2(self, version_1: Path, shards: Path) -> None:
        sequencing = Sequencing(window_ticks=16, seed=1, shuffle=False)
        found = []
        for folder in (version_1, shards):
            data = [DataSource(read_catalog(folder, Filters(emotions=("neutral",))))]
            with BatchLoader(data, sequencing, RankShare(batch_size=1), LoaderSettings(workers=0)) as loader:
                arrays = [(b.gesture, b.audio, b.text) for b in loader]
                found.append([[part.numpy().tobytes() for part in parts] for parts in arrays])
        assert len(found[0]) > 1
        assert found[0] == found[1]


class TestUpdating:
    def test_preprocess_into_it_is_refused_in_one_line_and_changes_nothing(
        self, version_1: Path, corpus: Path, tmp_path: Path
    ) -> None:
        out = shutil.copytree(version_1, tmp_path / "old")
        before = digests(out)
        done = omniges("preprocess", "--root", corpus, "--out", out, "--keep-audio")
        assert done.returncode == 2
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("omniges:")]
        assert "expected shard contract version 2, found version 1" in line
        assert "--force" in line
        assert digests(out) == before

    def test_force_makes_it_again_as_version_2(
        self, version_1: Path, shards: Path, corpus: Path, tmp_path: Path
    ) -> None:
        out = shutil.copytree(version_1, tmp_path / "old")
        assert run_preprocess(corpus, out, keep_audio=True, force=True).exit_code == 0
        assert digests(out) == digests(shards)


def _first(change: Callable[[Sample], object]) -> Callable[[ShardSet], None]:
    return lambda taken: change(taken.samples[0])  # type: ignore[return-value, func-returns-value]


DAMAGE: dict[str, tuple[str, Callable[[Sample], object]]] = {
    "FLAC cut": ("waveform-", lambda s: s.others.__setitem__("flac", s.others["flac"][:-3000])),
    "FLAC of nothing": ("waveform-invalid", lambda s: s.others.__setitem__("flac", b"fLaC" + bytes(100))),
    "FLAC gone": ("waveform-invalid", lambda s: s.others.pop("flac")),
    "words no JSON": ("transcript-invalid", lambda s: s.raw.__setitem__("words.json", b"[NaN]")),
    "no words": ("transcript-invalid", lambda s: setattr(s, "words", [])),
    "a source gone": ("metadata-differs", lambda s: s.metadata["sources"].pop("npz")),
    "NaN": ("array-not-finite", lambda s: s.arrays["gesture.npy"].__setitem__((0, 400), np.nan)),
    "labels of version 2": ("metadata-invalid", lambda s: s.metadata.update(labels={})),
    "another emotion": ("metadata-differs", lambda s: s.metadata.update(emotion="anger")),
    "notes as a text": ("metadata-invalid", lambda s: s.metadata.update(notes="")),
}


class TestDamage:
    @pytest.mark.parametrize("case", DAMAGE)
    def test_faults_of_members_are_found(self, version_1: Path, tmp_path: Path, case: str) -> None:
        code, change = DAMAGE[case]
        found = codes(run(rebuilt(version_1, tmp_path / "s", _first(change)), "deep"))
        assert any(name.startswith(code) for name in found), found

    def test_a_version_that_the_manifest_does_not_have_is_found(self, version_1: Path, tmp_path: Path) -> None:
        folder = rebuilt(version_1, tmp_path / "s", lambda taken: taken.document.update(version=2))
        assert "manifest-malformed" in codes(run(folder))
