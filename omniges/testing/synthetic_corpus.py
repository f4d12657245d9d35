"""A small synthetic corpus in BEAT2's file layout, to try the tools and to test that a model learns.

**It contains no recording of any person.** A clip is a random sequence of words from a small vocabulary. Each word has
a signature: three tones, an offset that is added to the pose (arms, hands, trunk and head), and an offset that is added
to the facial expression. Therefore text, sound and motion each determine the word, and have the same timing. Everything
else (idle motion, sway, breathing, noise, speaker) is drawn independently of the words, so it contains no information
about the words. In a corpus with several emotions, a number in the file name gives the emotion of a clip. The
emotion changes only the idle pose. In a corpus with a voice, speech in sentences replaces the tones
(`omniges.testing.speech`).

The bytes depend only on the settings, and are equal on any CPU. With a voice, they also depend on the version of eSpeak
NG.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from omniges.errors import UsageFault
from omniges.features.timebase import FRAME_RATE_HZ, SAMPLE_RATE_HZ
from omniges.formats.audio import encode_wav
from omniges.formats.npz import encode_motion
from omniges.formats.textgrid import WordInterval, encode_words
from omniges.storage.atomic import make_folder, publish_bytes
from omniges.storage.files import visible_entries
from omniges.testing.chords import add_chords, chord_words
from omniges.testing.moving import Mood, Speaker, SpokenWord, expression_noise, moods_of, motion_of, speaker_traits
from omniges.testing.settings import SPOKEN_WORDS, CorpusSettings, Layout
from omniges.testing.signatures import CLIP, WordSignature, generator, vocabulary
from omniges.testing.speech import speak

F32 = npt.NDArray[np.float32]

_README: Final = """\
SYNTHETIC sample corpus, written by `omniges sample-corpus`. Nobody was recorded.

It has the file layout of BEAT2 (WAV, SMPL-X NPZ, TextGrid, split list), so that tools for BEAT2 can be tried
on it. Each word of a small vocabulary has its own tones, its own pose and its own face; idle motion and noise
are random. With `voice`, eSpeak NG spoke the words instead. Do not publish figures computed on it as if they
were about people.

"""


@dataclass(frozen=True, slots=True)
class CorpusSummary:
    """Folder of a written corpus, and its numbers of clips, seconds, speakers and spoken words."""

    clips: int
    seconds: float  # total length of motion
    speakers: int
    words: int  # total number of spoken words
    root: Path


_NOISE_PEAK: Final = 0.0031  # uniform noise of −55 dB below full scale: the floor of an ordinary microphone


def _floor(rng: np.random.Generator, frames: int) -> F32:
    """Return simulated microphone noise at 16 kHz, (N,): N audio samples, not shorter than `frames` motion frames.

    In a random third of the clips, the noise is up to 0.5 s longer than the motion. Audio in BEAT2 can be longer too.
    """
    surplus_cs = int(rng.integers(1, 51)) if rng.random() < 1 / 3 else 0
    length = SAMPLE_RATE_HZ // 100 * (-(-100 * frames // FRAME_RATE_HZ) + surplus_cs)
    samples = rng.random(length, dtype=np.float32)
    samples -= np.float32(0.5)
    samples *= np.float32(2 * _NOISE_PEAK)
    return samples


def _text(words: Sequence[SpokenWord], xmax_s: float, vocabulary: Sequence[WordSignature]) -> bytes:
    """Return the bytes of a TextGrid with words and phones."""
    phones = [WordInterval(phone.label, phone.start_s, phone.end_s) for word in words for phone in word.phones]
    return encode_words(
        [WordInterval(vocabulary[word.index].word, word.start_s, word.end_s) for word in words], xmax_s, phones
    )


def _semantic(words: Sequence[SpokenWord], vocabulary: Sequence[WordSignature]) -> bytes:
    """Return a semantic annotation in BEAT2's format.

    The index of a word determines its gesture class: beat, deictic, iconic, metaphoric, beat, …
    """
    classes = (("01_beat_align", 0.1), ("02_deictic_l", 0.4), ("05_iconic_l", 0.6), ("08_metaphoric_l", 0.8))
    rows = []
    for word in words:
        name, score = classes[word.index % len(classes)]
        times = f"{word.start_s:.2f}\t{word.end_s:.2f}\t{word.end_s - word.start_s:.2f}"
        rows.append(f"{name}\t{times}\t{score}\t{vocabulary[word.index].word}\n")
    return "".join(rows).encode()


def _folders(root: Path, layout: Layout) -> dict[str, Path]:
    """Return the folder of each type of file, by file suffix. The layout ``seed`` has no semantic annotation (.txt)."""
    if layout == "seed":
        names = {".npz": "speakers_1234_smplx_neutral_npz", ".wav": "wave16k", ".TextGrid": "word"}
    else:
        root /= "beat_synthetic_v2.0.0"
        names = {".npz": "smplxflame_30", ".wav": "wave16k", ".TextGrid": "textgrid", ".txt": "sem"}
    return {suffix: root / name for suffix, name in names.items()}


def _splits(settings: CorpusSettings) -> list[str]:
    """Return the split of each clip: a tenth for test, a tenth for val, and the rest for train.

    If there are three or more clips, test and val get at least one clip each. If there are at least six clips per
    speaker, test and val each get at least one clip of every speaker, because the speakers alternate from clip to
    clip.
    """
    clips, speakers = settings.clips, settings.speakers
    held_out = 0 if clips < 3 else max(1, round(clips / 10))
    if held_out and 6 * speakers <= clips:
        held_out = max(held_out, speakers)
    return ["test"] * held_out + ["val"] * held_out + ["train"] * (clips - 2 * held_out)


def _clip_files(
    settings: CorpusSettings, rng: np.random.Generator, speaker: Speaker, mood: Mood
) -> tuple[int, dict[str, bytes]]:
    """Return the number of words of a clip, and the bytes of its files by file suffix."""
    signatures = vocabulary(settings.seed, settings.words)
    if settings.voice:
        signatures = tuple(replace(each, word=word) for each, word in zip(signatures, SPOKEN_WORDS, strict=False))
        words, speech = speak(rng, settings, speaker.identity, settings.frames / FRAME_RATE_HZ)
    else:
        words, speech = chord_words(rng, settings, signatures), np.empty(0, np.float32)
    poses, expressions, trans = motion_of(rng, settings.frames, words, speaker, signatures, mood)
    if settings.voice:
        expressions += expression_noise(rng, settings.frames)
    samples = _floor(rng, settings.frames)
    samples[: len(speech)] += speech
    if not settings.voice:
        add_chords(rng, samples, words, speaker.pitch, signatures)
    return len(words), {
        # SMPL-X tools read these two strings; the name of every file says that it is synthetic.
        ".npz": encode_motion(poses, expressions, trans, speaker.betas, gender="neutral", model="smplx2020"),
        ".wav": encode_wav(samples, SAMPLE_RATE_HZ, encoding=settings.audio),
        ".TextGrid": _text(words, len(samples) / SAMPLE_RATE_HZ, signatures),
        ".txt": _semantic(words, signatures),
    }


def write_sample_corpus(
    folder: Path, settings: CorpusSettings, progress: Callable[[int, int], None] | None = None
) -> CorpusSummary:
    """Write a corpus into a new or empty folder. Equal settings give equal bytes.

    Args:
        folder: New or empty folder.
        settings: Settings of the corpus.
        progress: Function that is called after each clip with the number of written clips and the total.

    Returns:
        The numbers of clips, speakers and words, and the total length in seconds.

    Raises:
        UsageFault: The folder is not empty.
        EnvironmentFault: A file cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or visible_entries(folder)):
        raise UsageFault(
            f"{folder}: expected a new or empty folder, found one with files; choose another folder, or empty it"
        )
    speakers = [speaker_traits(settings.seed, number) for number in range(settings.speakers)]
    folders = _folders(folder, settings.layout)
    by_speaker = settings.layout == "seed"
    for place in folders.values():
        for speaker in speakers:
            make_folder(place / speaker.folder if by_speaker else place)
    names = ["clips", "seconds", "words", "speakers", "seed", "layout", "audio"]
    names += ["emotions"] if settings.emotions > 1 else []
    names += ["voice"] if settings.voice else []
    facts = {name: getattr(settings, name) for name in names} | {"seconds": f"{settings.frames / FRAME_RATE_HZ:.3f}"}
    readme = _README + "".join(f"{name}: {value}\n" for name, value in facts.items())
    publish_bytes(folder / "README.txt", readme.encode())
    moods = moods_of(settings.emotions)
    spoken = 0
    rows = ["id,type\n"]
    for clip, split in enumerate(_splits(settings)):
        speaker = speakers[clip % settings.speakers]
        number = clip // settings.speakers + 1
        mood = moods[(number - 1) % len(moods)]
        stem = f"{speaker.folder}_0_{number if len(moods) == 1 else mood.start}_{number}"
        words, files = _clip_files(settings, generator(settings.seed, CLIP, clip), speaker, mood)
        for suffix, data in files.items():
            if suffix in folders:
                place = folders[suffix] / speaker.folder if by_speaker else folders[suffix]
                publish_bytes(place / f"{stem}{suffix}", data)
        spoken += words
        rows.append(f"{stem},{split}\n")
        if progress is not None:
            progress(clip + 1, settings.clips)
    publish_bytes(folders[".wav"].parent / "train_test_split.csv", "".join(rows).encode())
    seconds = settings.clips * settings.frames / FRAME_RATE_HZ
    return CorpusSummary(settings.clips, seconds, settings.speakers, spoken, folder)
