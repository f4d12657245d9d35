"""Measures whether a model learns synthetic speech, in half an hour on two cores.

    pip install 'omniges[train,speech]' pocketsphinx
    python benchmarks/speech.py --folder speech --minutes 30

The program writes a corpus (`sample-corpus --voice`: 90 clips of 60 s, 60 words, 4 voices), preprocesses it, and trains
``--preset tiny``. Then `omniges generate` generates every task from the clips of the test split. The recordings, and
those of another clip (chance), get the same scores for comparison:

- words shown: the word with the nearest mean pose of the recordings is compared with the spoken word (`wordscore`);
- word error rates of generated text;
- amplitude: correlation of the sizes of generated and recorded gestures, relative to the mean size of each word. For
  comparison, the value for two recordings whose sizes depend on loudness as in the corpus: the squared correlation of
  size and loudness;
- words heard in the first four clips. Pocketsphinx recognizes each sentence with the words of the corpus as its
  grammar. Sentences are cut at the pauses of the recording. Recordings pass through the same vocoder.

``--evaluate RUN`` scores an existing run, without training. The program does not pass or fail.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from six_tasks import clips_of, command, read_generated
from wordscore import Templates, learn_templates, middle, score_words, word_error_rate

from omniges.formats.audio import decode_wav
from omniges.formats.textgrid import decode_words
from omniges.generation.vocoder import GriffinLim, waveform_from_mel
from omniges.shards.reader import SampleArrays, ShardFolder

F32 = npt.NDArray[np.float32]
Words = Sequence[Mapping[str, Any]]

TASKS: Final = ("t2g", "a2g", "g2t", "a2t", "t2a", "g2a")
_FRAMES_HZ: Final = 30.0
_MEL_HZ: Final = 100.0
_HEARD_CLIPS: Final = 4  # pocketsphinx takes about as long as the sound
_PAUSE_S: Final = 0.19  # the shortest pause between two sentences of the corpus is 0.2 s
_BESIDE_S: Final = 0.1  # length of the pauses that is kept before and after a sentence
_SILENCE_S: Final = 0.2  # without silence, the recognizer returns nothing for a sound that ends in a word
_MIDDLE_S: Final = 0.14  # half the length of a widened word; without ramps of 0.12 s, 0.04 s remain in its middle


def widened(words: Words) -> list[dict[str, Any]]:
    """Change the times of words, so that `wordscore` uses the middle 0.04 s; many words are shorter than its ramps."""
    middles = [(word, (word["start"] + word["end"]) / 2) for word in words]
    return [{"word": word["word"], "start": at - _MIDDLE_S, "end": at + _MIDDLE_S} for word, at in middles]


def sizes(templates: Templates, rest: npt.NDArray[np.float64], frames: F32, words: Words) -> list[tuple[str, float]]:
    """Return (word, size) of each gesture: its pose along the direction from rest (0) to the word's mean pose (1)."""
    found = []
    for word in words:
        pose = middle(frames, word, _FRAMES_HZ)
        if pose is not None and word["word"] in templates.words:
            direction = (templates.means[templates.words.index(str(word["word"]))] - rest) / templates.spread
            size = float(((pose - rest) / templates.spread) @ direction / (direction @ direction))
            found.append((str(word["word"]), size))
    return found


def loudness(templates: Templates, clip: SampleArrays) -> list[tuple[str, float]]:
    """Return (word, level in dB) of each word that `sizes` returns, from the mel of the recording."""
    found = []
    for word, wide in zip(clip.words, widened(clip.words), strict=True):
        if middle(clip.gesture.gesture, wide, _FRAMES_HZ) is not None and word["word"] in templates.words:
            power = np.exp(clip.mel[round(word["start"] * _MEL_HZ) : round(word["end"] * _MEL_HZ)]) ** 2
            found.append((str(word["word"]), float(10 * np.log10(power.sum(axis=1).mean()))))
    return found


def amplitude(found: Sequence[tuple[str, float]], recorded: Sequence[tuple[str, float]]) -> float:
    """Return the correlation of sizes over words that occur at least three times, each relative to its word's mean."""
    groups: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for (word, size), (_, true) in zip(found, recorded, strict=True):
        groups[word].append((size, true))
    centred = [np.array(pairs) - np.mean(pairs, axis=0) for pairs in groups.values() if len(pairs) > 2]
    return float(np.corrcoef(np.concatenate(centred).T)[0, 1]) if centred else float("nan")


class Recognizer:
    """Pocketsphinx with its own English model, for sequences of given words."""

    def __init__(self, words: Sequence[str]) -> None:
        from pocketsphinx import Decoder  # noqa: PLC0415 - only for this score

        self._decoder = Decoder(samprate=16000, lm=None, loglevel="FATAL")
        unknown = [word for word in words if self._decoder.lookup_word(word) is None]
        if unknown:
            raise SystemExit(f"pocketsphinx does not know {', '.join(unknown)}")
        self._words = set(words)
        self._decoder.add_jsgf_string("w", f"#JSGF V1.0; grammar w; public <w> = ({'|'.join(words)})+ ;")
        self._decoder.activate_search("w")

    def words(self, samples: F32) -> list[str]:
        """Return the words of 16 kHz samples (N,)."""
        self._decoder.start_utt()
        loud = samples * (0.7 / max(1e-3, float(np.abs(samples).max())))
        self._decoder.process_raw((loud * 32767).astype(np.int16).tobytes(), no_search=False, full_utt=True)
        self._decoder.end_utt()
        segments = self._decoder.seg() or ()
        return [word for segment in segments if (word := segment.word.partition("(")[0]) in self._words]


def sentences(words: Words) -> list[Words]:
    """Split the words of a clip at pauses."""
    ends = [i for i in range(1, len(words)) if words[i]["start"] - words[i - 1]["end"] >= _PAUSE_S]
    return [words[first:last] for first, last in pairwise([0, *ends, len(words)])]


def cut(samples: F32, sentence: Words) -> F32:
    """Return the 16 kHz samples of a sentence, with silence before and after it."""
    first, last = sentence[0]["start"] - _BESIDE_S, sentence[-1]["end"] + _BESIDE_S
    return np.pad(samples[max(0, round(first * 16000)) : round(last * 16000)], round(_SILENCE_S * 16000))


def texts_of(folder: Path) -> dict[str, list[str]]:
    """Return the words of generated TextGrids by key."""
    return {
        path.stem: [word.word for word in decode_words(path.read_bytes()).words] for path in folder.glob("*.TextGrid")
    }


def scores_of(generated: Path, shards: Path) -> dict[str, dict[str, float]]:
    """Score generated files of complete test clips; return by score the values generated, recorded and chance."""
    source = ShardFolder(shards)
    clips = clips_of(source, "test")
    train = clips_of(source, "train")
    templates = learn_templates([(clip.gesture.gesture, widened(clip.words)) for clip in train], _FRAMES_HZ)
    rest = np.mean([np.median(clip.gesture.gesture, axis=0) for clip in train], axis=0).astype(np.float64)
    found: dict[str, dict[str, float]] = {}

    def shown(arrays: Sequence[F32], words: Sequence[Words]) -> float:
        scores = [score_words(templates, a, widened(w), _FRAMES_HZ) for a, w in zip(arrays, words, strict=True)]
        return sum(score.right for score in scores) / sum(score.seen for score in scores)

    def large(arrays: Sequence[F32]) -> list[tuple[str, float]]:
        pairs = zip(arrays, clips, strict=True)
        return [size for array, clip in pairs for size in sizes(templates, rest, array, widened(clip.words))]

    loud = [pair for clip in clips for pair in loudness(templates, clip)]
    words = [clip.words for clip in clips]
    recorded = [clip.gesture.gesture for clip in clips]
    for task in ("t2g", "a2g"):
        gestures = [read_generated(generated / task, clip.row.key) for clip in clips]
        found[f"words shown, {task}"] = {
            "generated": shown(gestures, words),
            "recorded": shown(recorded, words),
            "chance": shown(recorded, [*words[1:], words[0]]),
        }
        found[f"amplitude, {task}"] = {
            "generated": amplitude(large(gestures), large(recorded)),
            "recorded": amplitude(loud, large(recorded)) ** 2,
        }
    expected = [[word["word"] for word in clip.words] for clip in clips]
    other = word_error_rate(zip([*expected[1:], expected[0]], expected, strict=True))
    for task in ("g2t", "a2t"):
        texts = texts_of(generated / task)
        rate = word_error_rate((texts[clip.row.key], own) for clip, own in zip(clips, expected, strict=True))
        found[f"word errors, {task}"] = {"generated": rate, "recorded": 0.0, "chance": other}
    found |= _recognized(generated, clips[:_HEARD_CLIPS])
    return found


def _recognized(generated: Path, clips: Sequence[SampleArrays]) -> dict[str, dict[str, float]]:
    recognizer = Recognizer(sorted({word["word"] for clip in clips for word in clip.words}))
    spoken = [sentences(clip.words) for clip in clips]

    def errors(sounds: Sequence[F32]) -> float:
        return word_error_rate(
            (recognizer.words(cut(sound, sentence)), [word["word"] for word in sentence])
            for sound, own in zip(sounds, spoken, strict=True)
            for sentence in own
        )

    ceiling = errors([waveform_from_mel(clip.mel, GriffinLim(0)) for clip in clips])
    found = {}
    if all(clip.audio is not None for clip in clips):
        found["word errors heard, recorded WAV"] = {"recorded": errors([np.asarray(clip.audio) for clip in clips])}
    for task in ("t2a", "g2a"):
        wavs = [decode_wav((generated / task / f"{clip.row.key}.wav").read_bytes()).samples for clip in clips]
        found[f"word errors heard, {task}"] = {
            "generated": errors([np.asarray(wav).reshape(-1) for wav in wavs]),
            "recorded": ceiling,
        }
    return found


def prepare(folder: Path, arguments: argparse.Namespace, extra: Sequence[str]) -> Path:
    """Prepare corpus, shards and a trained run in a folder; return the folder of the run."""
    corpus, shards, run = folder / "corpus", folder / "shards", folder / "run"
    if not corpus.exists():
        sizes = ("--clips", arguments.clips, "--seconds", arguments.seconds, "--words", arguments.words)
        command("sample-corpus", corpus, "--voice", *sizes, "--speakers", 4, "--seed", arguments.seed)
    command("preprocess", "--root", corpus, "--output-dir", shards, "--keep-audio")
    command(
        *("train", "--shards", shards, "--output-dir", run, "--preset", "tiny", "--max-minutes", arguments.minutes),
        *("--validation-steps", 0, *extra),
    )
    return run


def main() -> None:
    """Train unless a run is given, generate and score."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("speech"),
        help="folder for corpus, shards, run and results (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the corpus (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=30.0, help="training time in minutes (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=90, help="clips of the corpus (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="length of each clip in seconds (default: %(default)s)"
    )
    parser.add_argument("--words", type=int, default=60, help="size of the vocabulary (default: %(default)s)")
    parser.add_argument("--evaluate", type=Path, help="run to score on the shards of --folder, without training")
    arguments, extra = parser.parse_known_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    run = arguments.evaluate or prepare(folder, arguments, extra)
    generated = folder / "generated"
    shutil.rmtree(generated, ignore_errors=True)
    for task in TASKS:
        words = ("--shards", folder / "shards", "--split", "test", "-o", generated / task)
        command("generate", "--checkpoint", run, "--task", task, *words)
    scores = scores_of(generated, folder / "shards")
    (folder / "scores.json").write_text(json.dumps(scores, indent=1))
    print(f"{'score':34}{'generated':>10}{'recorded':>10}{'chance':>10}")
    for name, row in scores.items():
        cells = [
            f"{row[column]:10.3f}" if column in row else f"{'':10}" for column in ("generated", "recorded", "chance")
        ]
        print(f"{name:34}" + "".join(cells))


if __name__ == "__main__":
    main()
