"""The speaking corpus: words are where the TextGrid says, and louder words have larger gestures.

What is heard and seen is measured in the files with numpy and soundfile, from what the corpus promises.
"""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from omniges.errors import EnvironmentFault, UsageFault
from omniges.formats.textgrid import decode_words
from omniges.testing import espeak, speech
from omniges.testing.settings import SPOKEN_WORDS, CorpusSettings
from omniges.testing.signatures import word_signature
from omniges.testing.synthetic_corpus import write_sample_corpus

SETTINGS = CorpusSettings(clips=4, seconds=20.0, words=30, speakers=2, seed=3, voice=True)

needs_espeak = pytest.mark.skipif(espeak.find_library() is None, reason="eSpeak NG is not installed")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speaking") / "corpus"
    write_sample_corpus(folder, SETTINGS)
    return folder / "beat_synthetic_v2.0.0"


def clips(corpus: Path) -> list[tuple[Any, Any, Any]]:
    """Poses, samples and words of each clip."""
    found = []
    for path in sorted((corpus / "smplxflame_30").iterdir()):
        with np.load(path, allow_pickle=False) as npz:
            poses = npz["poses"]
        samples, _ = soundfile.read(corpus / "wave16k" / f"{path.stem}.wav")
        words = decode_words((corpus / "textgrid" / f"{path.stem}.TextGrid").read_bytes()).words
        found.append((poses, samples, words))
    return found


@needs_espeak
def test_sound_is_where_the_words_are(corpus: Path) -> None:
    for _, samples, words in clips(corpus):
        spoken = np.zeros(len(samples), bool)
        for word in words:
            spoken[round(word.start * 16000) : round(word.end * 16000)] = True
        assert 0.3 < spoken.mean() < 0.95
        assert np.abs(samples).max() < 0.7
        energy = samples**2
        assert energy[spoken].sum() > 0.97 * energy.sum()
        assert all(first.end <= second.start + 1e-6 for first, second in itertools.pairwise(words))


@needs_espeak
def test_louder_words_have_larger_gestures(corpus: Path) -> None:
    """Loudness from the WAV, size from the NPZ along the pose of the word; both relative to the word's own means."""
    numbers = {word: number for number, word in enumerate(SPOKEN_WORDS)}
    loud: dict[str, list[float]] = {}
    large: dict[str, list[float]] = {}
    for poses, samples, words in clips(corpus):
        rest = np.median(poses, axis=0)
        for word in words:
            direction = word_signature(numbers[word.word], SETTINGS.seed).rotations
            middle = round(15 * (word.start + word.end))
            large.setdefault(word.word, []).append(float((poses[middle] - rest) @ direction / (direction @ direction)))
            own = samples[round(word.start * 16000) : round(word.end * 16000)]
            loud.setdefault(word.word, []).append(float(np.sqrt((own**2).mean())))
    often = [word for word in loud if len(loud[word]) >= 5]
    assert len(often) >= 5
    centred = [np.concatenate([np.array(of[word]) / np.mean(of[word]) for word in often]) for of in (loud, large)]
    assert np.corrcoef(*centred)[0, 1] > 0.6


@needs_espeak
def test_words_follow_zipf(corpus: Path) -> None:
    count = Counter(word.word for _, _, words in clips(corpus) for word in words)
    assert set(count) <= set(SPOKEN_WORDS[:30])
    assert sum(count[word] for word in SPOKEN_WORDS[:10]) > sum(count[word] for word in SPOKEN_WORDS[10:30])


@needs_espeak
def test_equal_settings_give_equal_files(corpus: Path, tmp_path: Path) -> None:
    def digests(folder: Path) -> list[str]:
        return [hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()]

    write_sample_corpus(tmp_path / "again", SETTINGS)
    assert digests(tmp_path / "again" / "beat_synthetic_v2.0.0") == digests(corpus)


@needs_espeak
@pytest.mark.slow
@pytest.mark.parametrize("voice", [speech._VOICES[0], speech._VOICES[7]])
def test_every_pair_of_words_has_times(voice: str) -> None:
    """eSpeak NG joins some pairs, such as "of the", to one word; the vocabulary has none of them."""
    pairs = [(first, second) for first in range(len(SPOKEN_WORDS)) for second in range(len(SPOKEN_WORDS))]
    sentences = [[(first, 1.0, 0.5), (second, 1.0, -0.5)] for first, second in pairs if first != second]
    request = {"voice": voice, "words_per_minute": 170, "pitch": 50, "sentences": [*map(speech._ssml, sentences)]}
    answer, samples = speech._synthesize(request)
    assert len(samples) == sum(spoken["samples"] for spoken in answer["sentences"])
    for sentence, spoken in zip(sentences, answer["sentences"], strict=True):
        first, second = speech._timed(sentence, spoken["events"], answer["rate_hz"])
        assert 0 <= first.start_s < first.end_s <= second.start_s < second.end_s


def test_words_of_the_vocabulary_are_distinct() -> None:
    assert len(set(SPOKEN_WORDS)) == len(SPOKEN_WORDS)


def test_more_words_than_are_spoken_are_refused() -> None:
    with pytest.raises(UsageFault, match=r"words 200: expected at most \d+ with"):
        CorpusSettings(words=200, voice=True)


def test_without_espeak_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(command: list[str], **_more: Any) -> Any:
        assert command == [sys.executable, "-m", "omniges.testing.espeak"]
        return subprocess.CompletedProcess(command, 3, b"", b"eSpeak NG is not installed")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(
        EnvironmentFault, match=r"found an error \(eSpeak NG is not installed\); run pip install 'omniges\[speech\]'"
    ):
        write_sample_corpus(tmp_path / "corpus", SETTINGS)


def test_events_that_do_not_fit_the_words_are_refused() -> None:
    events = [["word", 0, ""], ["phone", 10, "'a"], ["phone", 400, "_"]]
    (word,) = speech._timed([(0, 1.0, 0.0)], events, 1000)
    assert (word.start_s, word.end_s, word.stresses_s) == (0.01, 0.4, (0.01,))
    with pytest.raises(EnvironmentFault, match="expected 2 words from eSpeak NG, found 1"):
        speech._timed([(0, 1.0, 0.0), (1, 1.0, 0.0)], events, 1000)
