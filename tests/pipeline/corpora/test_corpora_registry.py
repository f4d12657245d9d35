"""Corpora are guessed or named, and those of other packages are converted by the same run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from pipeline_helpers import digests, omniges, run_preprocess
from plugin_builders import install

from omniges.errors import EnvironmentFault, UsageFault
from omniges.pipeline.corpora.registry import CORPORA, guess_corpus
from omniges.shards.reader import ShardFolder
from omniges.verify.run import verify
from omniges.verify.settings import VerifySettings

SOUNDS = '''
"""Sounds without motion and words: every .wav below the root, the split by the name of its folder."""

from omniges.pipeline.convert import decode_files
from omniges.pipeline.discover import Discovery, Recording, SourceFile, inspect, walk
from omniges.pipeline.labels import StemFields
from omniges.shards.schema import key_from_stem


class Sounds:
    def recognizes(self, root):
        return (root / "sounds.txt").is_file()

    def discover(self, root, selection, *, split_csv=None, allow_roots=()):
        bounds, findings, recordings = (str(root.resolve()),), [], []
        for relative, path in walk(root, "", bounds, findings):
            source, problem = inspect(path, relative, bounds)
            if relative.endswith(".wav"):
                split, _, name = relative.partition("/")
                stem = name.removesuffix(".wav")
                recordings.append(
                    Recording(stem, key_from_stem(stem), split, StemFields(), {"wav": source}, corpus="sounds")
                )
        return Discovery(tuple(recordings), {}, tuple(findings), "folders", {}, ("",))

    def take(self, inputs, settings):
        return decode_files(inputs, settings)


SOUNDS = Sounds()
'''
POINT = {"omniges.corpora": {"sounds": "sounds_corpus:SOUNDS"}}


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """A data set of four sounds."""
    root = tmp_path / "data"
    for split, name in (("train", "a"), ("train", "b"), ("val", "c"), ("test", "d")):
        (root / split).mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(ord(name)).normal(0, 0.1, 32000)
        soundfile.write(root / split / f"{name}.wav", noise, 16000, subtype="PCM_16")
    (root / "sounds.txt").touch()
    return root


@pytest.mark.slow
def test_a_corpus_of_another_package_is_converted_by_workers(sounds: Path, tmp_path: Path) -> None:
    """Guessed from the folder; what its recordings lack is absent; the set is valid to the last byte."""
    site = install(tmp_path / "site", POINT)
    (site / "sounds_corpus.py").write_text(SOUNDS)
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    out = tmp_path / "shards"
    done = omniges("preprocess", "--root", sounds, "--workers", 2, "--out", out, fresh=True, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    folder = ShardFolder(out)
    assert {(row.stem, row.split, row.present) for row in folder.rows} == {
        (stem, split, ("audio",)) for stem, split in (("a", "train"), ("b", "train"), ("c", "val"), ("d", "test"))
    }
    assert folder.dataset["settings"]["corpus"] == "sounds"
    assert verify(VerifySettings(folder=out, level="deep", num_workers=1)).findings == ()


def test_a_corpus_that_workers_cannot_find_is_refused_before_any_work(
    sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope: dict[str, Any] = {}
    exec(SOUNDS, scope)  # noqa: S102 - the package above, registered by this program instead
    monkeypatch.setitem(CORPORA._registered, "sounds", scope["SOUNDS"])  # as register_corpus does, undone afterwards
    with pytest.raises(UsageFault, match=r"'sounds': expected an entry point, .*only this process registered it"):
        run_preprocess(sounds, tmp_path / "out", corpus="sounds")
    assert not (tmp_path / "out").exists()


class TestBeat2:
    def test_named_or_guessed_gives_the_same_bytes_and_settings_do_not_name_it(
        self, corpus: Path, shards: Path, tmp_path: Path
    ) -> None:
        run_preprocess(corpus, tmp_path / "named", keep_audio=True, corpus="beat2")
        assert digests(tmp_path / "named") == digests(shards)
        assert "corpus" not in ShardFolder(shards).dataset["settings"]

    def test_a_broken_package_does_not_stop_it(
        self, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.syspath_prepend(install(tmp_path / "site", {"omniges.corpora": {"sounds": "omniges_absent:X"}}))
        assert CORPORA.names() == ("beat2", "sounds")
        assert guess_corpus(corpus) == "beat2"
        (tmp_path / "empty").mkdir()
        with pytest.raises(EnvironmentFault, match=r"corpus 'sounds' of omniges-toy 1\.0: .*No module named"):
            guess_corpus(tmp_path / "empty")

    def test_a_folder_that_nobody_recognizes_is_reported_as_before(self, tmp_path: Path) -> None:
        with pytest.raises(UsageFault, match="expected a folder of wav"):
            run_preprocess(tmp_path, tmp_path / "out")

    def test_an_unknown_name(self, corpus: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageFault, match=r"--corpus beat3: expected one of beat2; did you mean beat2\?"):
            run_preprocess(corpus, tmp_path / "out", corpus="beat3")
