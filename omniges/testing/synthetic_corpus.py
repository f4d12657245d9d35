"""A small synthetic corpus in BEAT2's file layout, for trying, testing and showing that a model learns.

**It contains no recording of any person.** A clip is a random sequence of words from a small vocabulary. Each word has
a signature: three tones, an offset of arms, hands, trunk and head, and an offset of the face. So text, sound and motion
each determine the word, and they have the same timing. Everything else (idle motion, sway, breathing, noise, the
speaker) is drawn independently of the words, so it carries no information about them. In a corpus with several
emotions, the file name gives the emotion of a clip, and only the idle pose shows it.

The bytes depend only on the settings, on any CPU. Random numbers are uniform draws, curves are polynomials of IEEE
additions and multiplications, and the one sine table is rounded before use.

Letters: T frames of 1/30 s, V words of the vocabulary. Angles are radians, lengths metres, times whole centiseconds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from omniges.errors import UsageFault
from omniges.features.gesture import BETAS, EXPRESSIONS, JOINT_NAMES, POSE_COLUMNS
from omniges.features.timebase import FRAME_RATE_HZ, SAMPLE_RATE_HZ
from omniges.formats.audio import encode_wav
from omniges.formats.npz import encode_motion
from omniges.formats.textgrid import WordInterval, encode_words
from omniges.storage.atomic import make_folder, publish_bytes
from omniges.storage.files import visible_entries
from omniges.testing.settings import MAX_WORDS, CorpusSettings, Layout

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_README: Final = """\
SYNTHETIC sample corpus, written by `omniges sample-corpus`. Nobody was recorded.

It has the file layout of BEAT2 (WAV, SMPL-X NPZ, TextGrid, split list), so that tools for BEAT2 can be tried
on it. Each word of a small vocabulary has its own tones, its own pose and its own face; idle motion and noise
are random. Do not publish figures computed on it as if they were about people.

"""

# --- vocabulary -----------------------------------------------------------------------------------

_REAL_WORDS: Final = (
    *("river", "stone", "light", "garden", "winter", "music", "open", "seven", "bread", "cloud", "tiger", "paper"),
    *("green", "ocean", "north", "silver", "window", "honey", "bridge", "field", "copper", "early", "thunder", "quiet"),
)
_SYLLABLES: Final = tuple(consonant + vowel for consonant in "bdlmnrsvz" for vowel in "aeio")

# Three registers of seven tones in hertz, 1.6 Slaney mels apart, which is over two of the 64 mel bands.
_TONES_HZ: Final = (
    (167, 273, 380, 487, 593, 700, 807),
    (913, 1021, 1139, 1272, 1419, 1584, 1768),
    (1973, 2202, 2458, 2743, 3061, 3416, 3813),
)
_LEVELS: Final = 7

# Uses of a random stream: the first part of its key, so that no two uses share random numbers.
_CLIP, _SPEAKER, _TONE_ORDER, _CODE = range(4)


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _columns(*names: str) -> list[int]:
    return [3 * JOINT_NAMES.index(name) for name in names]


def _freedoms() -> tuple[F64, int]:
    """Return the directions in which a word moves the body, (28, 165) rad, and how many of them are not fingers.

    A right joint is the mirror image of the left one: its rotations about y and z have the opposite sign.
    """
    rows: list[dict[int, float]] = [
        {c + 1: 0.11 for c in _columns("spine1", "spine2", "spine3")},  # turn
        {c + 2: 0.11 for c in _columns("spine1", "spine2", "spine3")},  # lean
        {c + 1: 0.35 for c in _columns("neck")},
        dict.fromkeys(_columns("head"), 0.30),
    ]
    sides = (("left", 1.0), ("right", -1.0))
    for side, sign in sides:
        (shoulder,), (elbow,), (wrist,) = (_columns(f"{side}_{j}") for j in ("shoulder", "elbow", "wrist"))
        rows += [{shoulder: 0.35}, {shoulder + 1: 0.45 * sign}, {shoulder + 2: 0.50 * sign}]
        rows += [{elbow: 0.35}, {elbow + 1: 0.65 * sign}]
        rows += [{wrist + 1: 0.35 * sign}, {wrist + 2: 0.45 * sign}]
    body = len(rows)
    for side, sign in sides:
        for finger in ("index", "middle", "pinky", "ring", "thumb"):
            axis = 1 if finger == "thumb" else 2
            rows.append({c + axis: 0.30 * sign for c in _columns(*(f"{side}_{finger}{k}" for k in (1, 2, 3)))})
    table = np.zeros((len(rows), POSE_COLUMNS))
    for row, entries in zip(table, rows, strict=True):
        row[list(entries)] = list(entries.values())
    return table, body


_FREEDOMS, _BODY_FREEDOMS = _freedoms()
_EXPRESSIONS_PER_WORD: Final = 24


@dataclass(frozen=True, slots=True)
class WordSignature:
    """Sound and pose of a word. The arrays are read-only."""

    word: str
    tones_hz: I64  # (3,), sounding together, before the speaker's pitch
    rotations: F64  # (165,) rad, added to the pose; zero for pelvis, legs, collars, jaw and eyes
    expression: F64  # (100,), added to the expression coefficients; 24 of them are not zero


def word_signature(index: int, seed: int) -> WordSignature:
    """Return the signature of a word, which is the same in every corpus of this seed.

    Args:
        index: Number of the word, 0 to `MAX_WORDS` − 1. The spelling depends only on this number.
        seed: Seed of the corpus.

    Returns:
        The tones, rotations and expression of the word.

    Raises:
        ValueError: The number is out of range.
    """
    if not 0 <= index < MAX_WORDS:
        raise ValueError(f"word index 0 to {MAX_WORDS - 1} expected, found {index}")
    # Sizes are powers of two, so that calls for one word after another compute few vocabularies.
    return _vocabulary(seed, min(MAX_WORDS, 1 << max(4, index.bit_length())))[index]


@functools.lru_cache(maxsize=16)
def _vocabulary(seed: int, size: int) -> tuple[WordSignature, ...]:
    codes = _motion_codes(seed, size)
    order = [_generator(seed, _TONE_ORDER, register).permutation(_LEVELS) for register in range(3)]
    return tuple(_signature(index, seed, codes[index], order) for index in range(size))


def _signature(index: int, seed: int, code: I64, order: list[I64]) -> WordSignature:
    rng = _generator(seed, _CODE, index, 1)
    rotations = np.zeros(POSE_COLUMNS)
    for sign, freedom in zip(code, _FREEDOMS, strict=True):
        rotations += sign * rng.uniform(0.85, 1.15) * freedom
    expression = np.zeros(EXPRESSIONS)
    chosen = rng.permutation(EXPRESSIONS)[:_EXPRESSIONS_PER_WORD]
    expression[chosen] = rng.uniform(1.0, 2.0, len(chosen)) * rng.choice((-1.0, 1.0), len(chosen))
    # Two words of the first 49 share at most one tone and words 7k to 7k + 6 share none, as 1, 2 and 2 − 1
    # are invertible modulo 7 (an orthogonal array of strength two). Any two words differ in some tone.
    a, b, c = index % _LEVELS, index // _LEVELS % _LEVELS, index // _LEVELS**2
    levels = (a, (a + b) % _LEVELS, (a + 2 * b + c) % _LEVELS)
    tones = np.array([_TONES_HZ[r][order[r][level]] for r, level in enumerate(levels)])
    for array in (tones, rotations, expression):
        array.setflags(write=False)
    # Real words first, then two made-up syllables. 5 and 7 are coprime to their number, 36, so words that agree in one
    # syllable differ in the other, and all are distinct.
    count = len(_SYLLABLES)
    invented = _SYLLABLES[5 * index % count] + _SYLLABLES[(7 * index + index // count) % count]
    word = _REAL_WORDS[index] if index < len(_REAL_WORDS) else invented
    return WordSignature(word, tones, rotations, expression)


def _motion_codes(seed: int, size: int) -> I64:
    """Return the signs (V, 28) of the directions: each word gets the one of 64 random codes farthest from all before.

    So a vocabulary is the beginning of every larger vocabulary of the same seed.
    """
    codes = np.zeros((size, len(_FREEDOMS)), dtype=np.int64)
    for index in range(size):
        candidates = 2 * _generator(seed, _CODE, index, 0).integers(0, 2, (64, len(_FREEDOMS))) - 1
        differs = candidates[:, None] != codes[None, :index]
        body = differs[..., :_BODY_FREEDOMS].sum(axis=2).min(axis=1, initial=_BODY_FREEDOMS)
        every = differs.sum(axis=2).min(axis=1, initial=len(_FREEDOMS))
        codes[index] = candidates[np.argmax(100 * body + every)]  # large body movements count before fingers
    return codes


@dataclass(frozen=True, slots=True)
class CorpusSummary:
    """Counts and lengths of a corpus after it was written."""

    clips: int
    seconds: float  # of motion, all clips together
    speakers: int
    words: int  # spoken word intervals, all clips together
    root: Path


# --- one clip -------------------------------------------------------------------------------------

_SAMPLES_PER_CENTISECOND: Final = SAMPLE_RATE_HZ // 100
_TONE_AMPLITUDE: Final = 0.2
_NOISE_PEAK: Final = 0.0031  # uniform noise of −55 dB below full scale: the floor of an ordinary microphone
_AUDIO_RAMP: Final = 320  # samples, 20 ms
_MOTION_RAMP_S: Final = 0.12  # under half of the shortest word: at mid-word its pose is complete
_WORD_CS: Final = (25, 70)
_PAUSE_CS: Final = (5, 50)


@dataclass(frozen=True, slots=True)
class _Speaker:
    """Traits of a speaker. They do not change the meaning of a word."""

    identity: int  # 1, 2, …
    pitch: float  # factor on every tone
    idle_scale: float  # factor on idle motion
    posture: F64  # (165,) rad
    face: F64  # (100,)
    height: float  # of trans, metres
    betas: F32  # (300,)

    @property
    def folder(self) -> str:
        return f"{self.identity}_synthetic{chr(ord('a') + self.identity - 1)}"


@dataclass(frozen=True, slots=True)
class _Mood:
    """One emotion of BEAT2: the first recording index in its file names, and its change of the idle pose."""

    start: int
    pose: F64  # (165,) rad, added to the speaker's posture


_Script = list[tuple[int, int, int]]
"""The spoken words of a clip in order of time: a word's index, its start and its end in centiseconds."""

# One period in as many steps as a second has samples: tones of whole hertz are look-ups in it. Rounded, because the C
# library's sine differs in its last bit between CPUs.
_SINE: Final = np.round(np.sin(2 * np.pi * np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ), 9)
_RAMP: Final = (0.5 - 0.5 * _SINE[(np.arange(_AUDIO_RAMP) * 25 + SAMPLE_RATE_HZ // 4) % SAMPLE_RATE_HZ]).astype(
    np.float32
)


_IDLE_BY_PART: Final = {
    "pelvis": 0.04,
    "hip": 0.05,
    "knee": 0.05,
    "ankle": 0.05,
    "foot": 0.03,
    "spine": 0.06,
    "neck": 0.12,
    "head": 0.12,
    "collar": 0.05,
    "shoulder": 0.16,
    "elbow": 0.16,
    "wrist": 0.14,
    "jaw": 0.03,
    "eye": 0.08,
}
_PARTS: Final = [name.removeprefix("left_").removeprefix("right_").rstrip("123") for name in JOINT_NAMES]
_IDLE_AMPLITUDES: Final = np.repeat([_IDLE_BY_PART.get(part, 0.07) for part in _PARTS], 3)  # 0.07: fingers
"""Amplitude of the idle motion of each of the 165 pose columns, rad."""


def _speaker(seed: int, number: int) -> _Speaker:
    rng = _generator(seed, _SPEAKER, number)
    posture = _resting_pose()
    moved = np.flatnonzero(posture)
    posture[moved] += rng.uniform(-0.05, 0.05, len(moved))
    return _Speaker(
        identity=number + 1,
        pitch=rng.uniform(0.97, 1.03),
        idle_scale=rng.uniform(0.75, 1.25),
        posture=posture,
        face=rng.uniform(-0.3, 0.3, EXPRESSIONS),
        height=rng.uniform(1.28, 1.33),
        betas=(rng.choice((-1.0, 1.0), BETAS) * rng.uniform(0.01, 1.6, BETAS)).astype(np.float32),
    )


_STARTS: Final = (1, 65, 73, 81, 87, 95, 103, 111)
"""First index of BEAT2's neutral, happiness, anger, sadness, contempt, surprise, fear and disgust."""
_MOOD_RAD: Final = 0.6


def _moods(emotions: int) -> list[_Mood]:
    """Return the first emotions of BEAT2.

    Each bit of an emotion's number bends one part of the body: the left arm, the right arm or the trunk.
    """
    moods = []
    for number, start in enumerate(_STARTS[:emotions]):
        pose = np.zeros(POSE_COLUMNS)
        left, right, head = (_columns(name)[0] for name in ("left_shoulder", "right_shoulder", "head"))
        trunk = _columns("spine1", "spine2", "spine3")
        for bit, columns, radians in ((1, [left + 2], _MOOD_RAD), (2, [right + 2], -_MOOD_RAD), (4, trunk, 0.2)):
            pose[columns] = radians * bool(number & bit)
        pose[head] = -_MOOD_RAD / 2 * bool(number & 4)
        moods.append(_Mood(start, pose))
    return moods


def _resting_pose() -> F64:
    """Return the pose of standing with lowered arms and bent elbows, (165,) rad."""
    pose = np.zeros(POSE_COLUMNS)
    for side, sign in (("left", 1.0), ("right", -1.0)):
        for name, vector in (
            ("hip", (-0.05, 0.0, 0.05 * sign)),
            ("knee", (0.10, 0.0, 0.0)),
            ("ankle", (-0.05, 0.0, 0.0)),
            ("shoulder", (0.15, -0.30 * sign, -1.0 * sign)),
            ("elbow", (0.0, -0.95 * sign, 0.0)),
            ("thumb1", (0.0, 0.15 * sign, 0.0)),
        ):
            (column,) = _columns(f"{side}_{name}")
            pose[column : column + 3] = vector
        for finger in ("index", "middle", "pinky", "ring"):
            for column in _columns(*(f"{side}_{finger}{k}" for k in (1, 2, 3))):
                pose[column + 2] = -0.36 * sign
    return pose


def _drift(rng: np.random.Generator, frames: int, channels: int, spacing: int) -> F64:
    """Return smooth noise in (−1, 1), (frames, channels): a cubic B-spline with a knot every `spacing` frames."""
    segments = -(-frames // spacing)
    knots = rng.uniform(-1.0, 1.0, (segments + 3, 1, channels))
    t = (np.arange(spacing) / spacing)[:, None]
    weights = (
        (1 - t) * (1 - t) * (1 - t) / 6,
        (t * t * (3 * t - 6) + 4) / 6,
        (((3 - 3 * t) * t + 3) * t + 1) / 6,
        t * t * t / 6,
    )
    curve = weights[0] * knots[:segments]
    for k, weight in enumerate(weights[1:], 1):
        curve += weight * knots[k : k + segments]
    return curve.reshape(-1, channels)[:frames]


def _script(rng: np.random.Generator, settings: CorpusSettings) -> _Script:
    """Draw words at random, never the same word twice in a row, each of 0.25–0.7 s after a pause of 0.05–0.5 s."""
    last_end = 100 * settings.frames // FRAME_RATE_HZ - _PAUSE_CS[0]
    maximum = last_end // (_WORD_CS[0] + _PAUSE_CS[0]) + 1
    durations = rng.integers(_WORD_CS[0], _WORD_CS[1] + 1, maximum)
    pauses = rng.integers(_PAUSE_CS[0], _PAUSE_CS[1] + 1, maximum)
    steps = rng.integers(1, settings.words, maximum)
    steps[0] = rng.integers(settings.words)
    ends = np.cumsum(pauses + durations)
    spoken = ends <= last_end
    words = np.cumsum(steps) % settings.words
    return [*zip(*(array[spoken].tolist() for array in (words, ends - durations, ends)), strict=True)]


def _smooth_step(x: F64) -> F64:
    """Return 0 below 0, 1 above 1, and between them a quintic with two continuous derivatives."""
    x = np.clip(x, 0.0, 1.0)
    return np.asarray(x * x * x * (x * (6 * x - 15) + 10))


def _motion(
    rng: np.random.Generator,
    frames: int,
    script: _Script,
    speaker: _Speaker,
    vocabulary: tuple[WordSignature, ...],
    mood: _Mood,
) -> tuple[F64, F64, F64]:
    """Return poses (T, 165) rad, expressions (T, 100) and trans (T, 3) m: idle motion plus the words."""
    poses = 1.2 * _drift(rng, frames, POSE_COLUMNS, 27) + 0.8 * _drift(rng, frames, POSE_COLUMNS, 10)
    poses *= speaker.idle_scale * _IDLE_AMPLITUDES
    poses += speaker.posture + mood.pose
    expressions = 0.5 * _drift(rng, frames, EXPRESSIONS, 18) + speaker.face
    slow = _drift(rng, frames, 3, 75)
    poses[:, 1] += 0.4 * slow[:, 1]  # turning on the spot
    trans = np.stack([0.2 * slow[:, 0], np.full(frames, speaker.height), 0.2 * slow[:, 2]], axis=1)
    trans[:, [0, 2]] += rng.uniform(-0.3, 0.3, 2)
    breath = _SINE[(rng.integers(SAMPLE_RATE_HZ) + 133 * np.arange(frames)) % SAMPLE_RATE_HZ]  # every four seconds
    trans[:, 1] += 0.004 * breath
    poses[:, _columns("spine3")[0]] += 0.02 * breath
    jaw = _columns("jaw")[0]
    for word, start, end in ((word, start / 100, end / 100) for word, start, end in script):
        span = slice(math.ceil(start * FRAME_RATE_HZ), math.floor(end * FRAME_RATE_HZ) + 1)
        times = np.arange(span.start, span.stop) / FRAME_RATE_HZ
        onset, offset = (times - start) / _MOTION_RAMP_S, (end - times) / _MOTION_RAMP_S
        envelope = (_smooth_step(onset) * _smooth_step(offset))[:, None]
        poses[span] += envelope * vocabulary[word].rotations
        poses[span, jaw] += 0.05 * envelope[:, 0]
        expressions[span] += envelope * vocabulary[word].expression
    return poses, expressions, trans


@functools.lru_cache(maxsize=256)
def _chord(tones_hz: tuple[int, ...]) -> F32:
    """Return the sum of tones over 1.7 s, so that a word of 0.7 s can start at any phase."""
    steps = np.arange(SAMPLE_RATE_HZ + _WORD_CS[1] * _SAMPLES_PER_CENTISECOND)
    total = np.zeros(len(steps))
    for tone in tones_hz:
        total += _SINE[tone * steps % SAMPLE_RATE_HZ]
    return (_TONE_AMPLITUDE * total).astype(np.float32)


def _waveform(
    rng: np.random.Generator, frames: int, script: _Script, speaker: _Speaker, vocabulary: tuple[WordSignature, ...]
) -> F32:
    """Return mono audio at 16 kHz with a peak below 0.7.

    In some clips the audio is up to 0.5 s longer than the motion, as in BEAT2.
    """
    surplus_cs = int(rng.integers(1, 51)) if rng.random() < 1 / 3 else 0
    length = _SAMPLES_PER_CENTISECOND * (-(-100 * frames // FRAME_RATE_HZ) + surplus_cs)
    samples = rng.random(length, dtype=np.float32)
    samples -= np.float32(0.5)
    samples *= np.float32(2 * _NOISE_PEAK)
    phases = rng.integers(SAMPLE_RATE_HZ, size=len(script))
    chords = [_chord(tuple(int(np.rint(t * speaker.pitch)) for t in word.tones_hz)) for word in vocabulary]
    for (word, start, end), phase in zip(script, phases, strict=True):
        first, stop = start * _SAMPLES_PER_CENTISECOND, end * _SAMPLES_PER_CENTISECOND
        tones = chords[word][phase : phase + stop - first].copy()
        tones[:_AUDIO_RAMP] *= _RAMP
        tones[-_AUDIO_RAMP:] *= _RAMP[::-1]
        samples[first:stop] += tones
    return samples


def _text(script: _Script, xmax_s: float, vocabulary: tuple[WordSignature, ...]) -> bytes:
    """Return a TextGrid with words and phones; the phones are a word's spelling, cut into two to four pieces."""
    words, phones = [], []
    for index, start, end in script:
        word = vocabulary[index].word
        words.append(WordInterval(word, start / 100, end / 100))
        pieces = 2 + index % 3
        times = [start + (end - start) * k // pieces for k in range(pieces + 1)]
        letters = [len(word) * k // pieces for k in range(pieces + 1)]
        for k in range(pieces):
            spelling = word[letters[k] : letters[k + 1]].upper()
            phones.append(WordInterval(spelling, times[k] / 100, times[k + 1] / 100))
    return encode_words(words, xmax_s, phones)


def _semantic(script: _Script, vocabulary: tuple[WordSignature, ...]) -> bytes:
    """Return BEAT2's semantic annotation, with equal shares of beat, deictic, iconic and metaphoric gestures."""
    classes = (("01_beat_align", 0.1), ("02_deictic_l", 0.4), ("05_iconic_l", 0.6), ("08_metaphoric_l", 0.8))
    rows = []
    for index, start, end in script:
        name, score = classes[index % len(classes)]
        times = f"{start / 100:.2f}\t{end / 100:.2f}\t{(end - start) / 100:.2f}"
        rows.append(f"{name}\t{times}\t{score}\t{vocabulary[index].word}\n")
    return "".join(rows).encode()


# --- the corpus -----------------------------------------------------------------------------------


def _folders(root: Path, layout: Layout) -> dict[str, Path]:
    """Return name endings and folders by kind of file; the older layout has no semantic annotation."""
    if layout == "seed":
        names = {".npz": "speakers_1234_smplx_neutral_npz", ".wav": "wave16k", ".TextGrid": "word"}
    else:
        root /= "beat_synthetic_v2.0.0"
        names = {".npz": "smplxflame_30", ".wav": "wave16k", ".TextGrid": "textgrid", ".txt": "sem"}
    return {suffix: root / name for suffix, name in names.items()}


def _splits(settings: CorpusSettings) -> list[str]:
    """Return the split of each clip: test and val get a tenth each (at least one of three clips), train the rest.

    Clips belong to the speakers in turn. So that test and val include every speaker, each gets at least as many clips
    as there are speakers, if two thirds of the clips remain for train.
    """
    clips, speakers = settings.clips, settings.speakers
    held_out = 0 if clips < 3 else max(1, round(clips / 10))
    if held_out and 6 * speakers <= clips:
        held_out = max(held_out, speakers)
    return ["test"] * held_out + ["val"] * held_out + ["train"] * (clips - 2 * held_out)


def _clip_files(
    settings: CorpusSettings, rng: np.random.Generator, script: _Script, speaker: _Speaker, mood: _Mood
) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a clip, each as the ending of its name and its bytes."""
    vocabulary = _vocabulary(settings.seed, settings.words)
    poses, expressions, trans = _motion(rng, settings.frames, script, speaker, vocabulary, mood)
    # SMPL-X tools read these two strings; the name of every file says that it is synthetic.
    yield ".npz", encode_motion(poses, expressions, trans, speaker.betas, gender="neutral", model="smplx2020")
    samples = _waveform(rng, settings.frames, script, speaker, vocabulary)
    yield ".wav", encode_wav(samples, SAMPLE_RATE_HZ, encoding=settings.audio)
    yield ".TextGrid", _text(script, len(samples) / SAMPLE_RATE_HZ, vocabulary)
    yield ".txt", _semantic(script, vocabulary)


def write_sample_corpus(
    folder: Path, settings: CorpusSettings, progress: Callable[[int, int], None] | None = None
) -> CorpusSummary:
    """Write a corpus into a new or empty folder. Equal settings give equal bytes.

    Args:
        folder: New or empty folder.
        settings: Settings of the corpus.
        progress: Is called after each clip with the number of clips written and the number of all clips.

    Returns:
        Counts and lengths of the corpus.

    Raises:
        UsageFault: The folder is not empty.
        EnvironmentFault: A file cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or visible_entries(folder)):
        raise UsageFault(
            f"{folder}: a new or empty folder expected, found one with files. Choose another folder, or empty it"
        )
    speakers = [_speaker(settings.seed, number) for number in range(settings.speakers)]
    folders = _folders(folder, settings.layout)
    by_speaker = settings.layout == "seed"
    for place in folders.values():
        for speaker in speakers:
            make_folder(place / speaker.folder if by_speaker else place)
    names = ["clips", "seconds", "words", "speakers", "seed", "layout", "audio"]
    names += ["emotions"] if settings.emotions > 1 else []
    facts = {name: getattr(settings, name) for name in names} | {"seconds": f"{settings.frames / FRAME_RATE_HZ:.3f}"}
    readme = _README + "".join(f"{name}: {value}\n" for name, value in facts.items())
    publish_bytes(folder / "README.txt", readme.encode())
    moods = _moods(settings.emotions)
    spoken = 0
    rows = ["id,type\n"]
    for clip, split in enumerate(_splits(settings)):
        speaker = speakers[clip % settings.speakers]
        number = clip // settings.speakers + 1
        mood = moods[(number - 1) % len(moods)]
        stem = f"{speaker.folder}_0_{number if len(moods) == 1 else mood.start}_{number}"
        rng = _generator(settings.seed, _CLIP, clip)
        script = _script(rng, settings)
        for suffix, data in _clip_files(settings, rng, script, speaker, mood):
            if suffix in folders:
                place = folders[suffix] / speaker.folder if by_speaker else folders[suffix]
                publish_bytes(place / f"{stem}{suffix}", data)
        spoken += len(script)
        rows.append(f"{stem},{split}\n")
        if progress is not None:
            progress(clip + 1, settings.clips)
    publish_bytes(folders[".wav"].parent / "train_test_split.csv", "".join(rows).encode())
    seconds = settings.clips * settings.frames / FRAME_RATE_HZ
    return CorpusSummary(settings.clips, seconds, settings.speakers, spoken, folder)
