"""Corpora for measurements: synthetic corpora, and larger corpora of hard links to the files of a smaller corpus."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from omniges.pipeline.corpora.beat2 import discover
from omniges.pipeline.discover import Recording
from omniges.pipeline.labels import parse_stem
from omniges.pipeline.settings import Selection

COMMAND: Final = Path(sys.executable).with_name("omniges")
_VOCABULARY_WORDS: Final = 200
_SPEAKERS: Final = 5
_SPEAKER_STEP: Final = 100  # copy k of a recording gets the speaker id + 100 k, of at most four digits
MAX_COPIES: Final = 99


def say(text: str) -> None:
    """Print a line about the current work to standard error."""
    print(text, file=sys.stderr, flush=True)


def make_corpus(folder: Path, recordings: int, seconds: float) -> Path:
    """Write a synthetic corpus to disk: PCM16 audio, 200 words, up to five speakers."""
    say(f"writing {recordings} synthetic recordings of {seconds:g} s to {folder}")
    # In a separate process, so that this process stays small: its children inherit its ru_maxrss.
    command = [str(COMMAND), "sample-corpus", str(folder), "--clips", str(recordings), "--seconds", str(seconds)]
    command += ["--words", str(_VOCABULARY_WORDS), "--speakers", str(min(_SPEAKERS, recordings)), "--audio", "pcm16"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{done.stderr.strip()}. To measure an existing corpus, use --root")
    os.sync()
    return folder


def find_recordings(root: Path) -> list[Recording]:
    """Return all recordings under a folder, after reading every file once into the page cache."""
    recordings = list(discover(root, Selection()).recordings)
    if not recordings:
        raise SystemExit(f"{root}: expected recordings with audio, motion and words, found none")
    for recording in recordings:
        for source in recording.files.values():
            with open(source.path, "rb", buffering=0) as stream:
                while stream.read(1 << 20):
                    pass
    return recordings


def spread(recordings: list[Recording], count: int) -> list[Recording]:
    """Return at most `count` recordings, evenly spaced."""
    count = min(count, len(recordings))
    return [recordings[k * len(recordings) // count] for k in range(count)]


def fit_for_links(recordings: list[Recording], count: int) -> bool:
    """Return whether `link_corpus` can make `count` recordings: there are enough, and speaker ids are below 100."""
    small_ids = all((parse_stem(recording.stem).speaker_id or 100) < 100 for recording in recordings)
    return small_ids and count <= MAX_COPIES * len(recordings)


def _link(source: str, target: Path) -> None:
    """Make a hard link, or a copy if a hard link is not possible."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def link_corpus(recordings: list[Recording], folder: Path, count: int) -> Path:
    """Make a corpus of `count` recordings from hard links to given recordings; each copy has another speaker id."""
    base = folder / "beat_synthetic_v2.0.0"
    targets = {"wav": "wave16k", "npz": "smplxflame_30", "textgrid": "textgrid", "sem": "sem"}
    for name in targets.values():
        (base / name).mkdir(parents=True)
    rows = ["id,type\n"]
    for place in range(count):
        copy, index = divmod(place, len(recordings))
        recording = recordings[index]
        speaker, rest = recording.stem.split("_", 1)
        stem = f"{int(speaker) + _SPEAKER_STEP * copy}_{rest}"
        for modality, source in recording.files.items():
            _link(source.path, base / targets[modality] / (stem + Path(source.path).suffix))
        rows.append(f"{stem},{recording.split}\n")
    (base / "train_test_split.csv").write_text("".join(rows), encoding="utf-8")
    os.sync()
    return folder
