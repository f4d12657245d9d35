"""Conversion of one recording to one sample: read, decode, compute features, build the tar members.

The result depends only on the bytes of the files and on the settings. All faults of a recording's files are collected
before the recording is rejected, so that one run shows all of them. Files are decoded to a `Take`, which contains the
recording as arrays. A user's program can provide the arrays of a `Take` instead. Every sample is computed from a
`Take`.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from omniges.errors import Finding, Problem, RecordingFault, raise_fault_of_machine
from omniges.features import timebase
from omniges.features.audio import MEL_BANDS, N_FFT, log_mel, loudness_gain, mix_down_in_phase, resample
from omniges.features.gesture import BETAS, JAW_EYES, LAYOUT, GestureClip, gesture_from_motion
from omniges.formats.audio import Wav, decode_wav
from omniges.formats.npz import Motion, decode_motion
from omniges.formats.semantic import SemanticSpan, decode_semantic
from omniges.formats.textgrid import WordTier, decode_words
from omniges.pipeline.discover import Modality, Recording
from omniges.pipeline.settings import MAX_FILE_BYTES, ConvertSettings, Cut, Rejected, Sample
from omniges.shards.dataset import partial_of
from omniges.shards.manifest import SOURCES, ManifestRow, MemberPlace
from omniges.shards.present import CHANNELS_OF
from omniges.shards.schema import CONTRACT, MOTION_PARTS, PARTS, Part, Split, is_label, key_from_stem
from omniges.shards.tar import Segment, build_segment, npy_parts
from omniges.storage.files import canonical_json, open_regular, sha256_hex

_CUT_NOTE_S: Final = 0.1
_TEXTGRID_NOTE_S: Final = 1.0

T = TypeVar("T")
Pieces = tuple[bytes | memoryview, ...]


class Inputs:
    """Reader and decoder of a recording's files. It collects digests, notes, and faults that cause a rejection."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.sources: dict[str, tuple[str, str]] = {}
        self.faults: list[Finding] = []
        self.notes: list[Finding] = list(recording.notes)
        self._tried: set[Modality] = set()

    def load(self, modality: Modality, decode: Callable[[bytes], T]) -> T | None:
        """Read and decode one file; record a fault if that fails.

        Args:
            modality: Modality of the file; the recording must have this file.
            decode: Function that decodes the file's bytes; it may raise RecordingFault.

        Returns:
            The decoded file, or None after a fault, which is recorded.
        """
        source = self.recording.files[modality]
        self._tried.add(modality)
        try:
            data = _read(Path(source.path))
            self.sources[modality] = (source.relative, sha256_hex(data))
            return decode(data)
        except RecordingFault as fault:
            self.add(fault.problem, modality)
            return None

    def add(self, problem: Problem, modality: Modality | None = None) -> None:
        """Record a note or a fault.

        Args:
            problem: Note or fault.
            modality: Modality of the file that has the problem; None: the whole recording.
        """
        file = self.recording.files[modality].relative if modality else None
        finding = Finding(problem, self.recording.stem, file)
        (self.notes if problem.severity == "note" else self.faults).append(finding)

    def rejected(self) -> Rejected:
        """Return the recording as `Rejected`, with its faults and the digests of all its readable files."""
        for modality in self.recording.files.keys() - self._tried:
            source = self.recording.files[modality]
            with contextlib.suppress(RecordingFault):
                self.sources[modality] = (source.relative, sha256_hex(_read(Path(source.path))))
        return Rejected(tuple(self.faults), self.sources)


def _read(path: Path) -> bytes:
    """Return the content of a file; raise RecordingFault if it is too large, unreadable or not a regular file.

    Discovery found a regular file, but the file may have been replaced since then, for example by a link.
    """
    try:
        with open_regular(path, follow=False) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > MAX_FILE_BYTES:
                raise RecordingFault("file-too-large", f"{size} bytes", f"at most {MAX_FILE_BYTES}")
            return stream.read()
    except OSError as error:
        raise_fault_of_machine(error)
        name = errno.errorcode.get(error.errno or 0, "error")
        raise RecordingFault("file-unreadable", f"{error.strerror} ({name})", "a readable file") from error


def convert(recording: Recording, settings: ConvertSettings, decode: Decode | None = None) -> Outcome:
    """Convert one recording to a sample, or return it as `Rejected` if it is unusable.

    Values that the recording lacks are marked as absent; they are never guessed.

    Args:
        recording: The files that a corpus found.
        settings: Settings of the conversion.
        decode: Function that decodes the files to a take, or records faults and returns None. Without `decode`,
            `decode_files` is used.

    Returns:
        The sample with its notes, or `Rejected` with the findings.
    """
    inputs = Inputs(recording)
    try:
        take = (decode or decode_files)(inputs, settings)
        if take is not None:
            return assemble(take, settings, inputs.add, inputs.notes)
    except RecordingFault as fault:
        inputs.add(fault.problem)
    return inputs.rejected()


def decode_files(inputs: Inputs, settings: ConvertSettings) -> Take | None:
    """Decode the WAV, NPZ, TextGrid and annotation files of a recording, as far as they exist.

    If a file does not exist, its modality is absent from the take. If a corpus requires a file, its `discover` rejects
    recordings without that file.

    Args:
        inputs: The recording's files.
        settings: Settings of the conversion, among them the name of the word tier.

    Returns:
        The take, or None after a fault.
    """
    files = inputs.recording.files
    motion = inputs.load("npz", partial(decode_motion, rate_hz=settings.motion_rate_hz)) if "npz" in files else None
    wav = inputs.load("wav", decode_wav) if "wav" in files else None
    tier = inputs.load("textgrid", partial(_words, inputs.recording, settings)) if "textgrid" in files else None
    if inputs.faults:
        return None
    decoded: tuple[tuple[Modality, Motion | Wav | WordTier | None], ...]
    decoded = (("npz", motion), ("wav", wav), ("textgrid", tier))
    for modality, found in decoded:
        for note in found.notes if found else ():
            inputs.add(note, modality)
    recording, fields = inputs.recording, inputs.recording.fields
    return Take(
        key=recording.key,
        stem=recording.stem,
        split=recording.split,
        speaker_id=fields.speaker_id,
        speaker=fields.speaker,
        language=fields.language,
        labels={"emotion": fields.emotion or "", "scenario": fields.scenario or ""},
        motion=motion,
        wav=wav,
        tier=tier,
        semantic=_semantic(inputs),
        sources=inputs.sources,
    )


def _words(recording: Recording, settings: ConvertSettings, data: bytes) -> WordTier:
    """Decode the words of a TextGrid; if several speakers have tiers, use the tier of the recording's speaker."""
    fields = recording.fields
    speaker = [fields.speaker, f"{fields.speaker_id}", f"{fields.speaker_id}_{fields.speaker}"] if fields.known else []
    return decode_words(data, settings.word_tier, [recording.stem, *filter(None, speaker)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Take:
    """A recording as arrays, from which a sample is computed. Absent parts are None, or NaN in the motion."""

    key: str
    stem: str
    split: Split
    speaker_id: int | None
    speaker: str | None
    language: str | None
    labels: Mapping[str, str]
    motion: Motion | None
    wav: Wav | None
    tier: WordTier | None
    semantic: Sequence[SemanticSpan] | None
    sources: Mapping[str, tuple[str, str]]  # modality -> (path of the file relative to the root, sha256)

    def present(self, clip: GestureClip) -> tuple[Part, ...]:
        """Return the parts that the sample has; `clip` contains the gesture channels of the sample."""
        there = {
            "text": self.tier is not None,
            "audio": self.wav is not None,
            "sem": self.semantic is not None,
            "labels": any(self.labels.values()),
            "jaw_eyes": not np.isnan(clip.jaw_eyes[0]).any(),
        }
        there |= {part: not np.isnan(clip.gesture[0, columns]).any() for part, columns in CHANNELS_OF.items()}
        return tuple(part for part in PARTS if there[part])


AddNote = Callable[[Problem, "Modality | None"], None]
Decode = Callable[[Inputs, ConvertSettings], "Take | None"]
Outcome = Sample[Segment] | Rejected


def assemble(take: Take, settings: ConvertSettings, note: AddNote, notes: Sequence[Finding]) -> Sample[Segment]:
    """Compute the features of a take and build its sample.

    Args:
        take: Decoded recording.
        settings: Settings of the conversion.
        note: Function that records a note about one of the take's files.
        notes: List of all notes; `note` appends to it during this call.

    Returns:
        The sample with its members, not yet written.

    Raises:
        RecordingFault: The parts of the take do not fit together, are too short, or are NaN in only some frames.
        ValueError: The key is not the escaped stem, or a label name is invalid. The Python class of the corpus must be
            corrected.
    """
    _check_names(take)
    frames = _common_length(take, settings)
    words, cut = _cut(take, frames, note)
    clip = _motion_clip(take.motion, frames)
    if take.motion is not None:
        _check_complete(clip)
    samples = _audio_16k(take.wav, note)
    mel_frames = timebase.mel_frames_for(frames)
    gain = 1.0
    if samples is None:
        mel = np.full((mel_frames, MEL_BANDS), np.nan, np.float32)
    else:
        gain = float(loudness_gain(samples, settings.loudness))
        mel = log_mel(samples if gain == 1.0 else samples * np.float32(gain), mel_frames)
        if not np.isfinite(mel).all():
            raise RecordingFault("wav-not-finite", _first_not_finite("audio", mel), "finite samples")
    betas = np.zeros(BETAS) if take.motion is None else take.motion.betas.astype(np.float64)
    names = ("name", "start", "end", "score", "keywords")
    spans = [{name: getattr(span, name) for name in names} for span in take.semantic or ()]
    members: dict[str, Pieces] = {
        "json": (),  # the first member of the tar; filled last, because it describes the others
        "gesture.npy": npy_parts(clip.gesture),
        "mel.npy": npy_parts(mel),
        CONTRACT.words: (canonical_json(words),),
        "jaw_eyes.npy": npy_parts(clip.jaw_eyes),
        "betas.npy": npy_parts(np.ascontiguousarray(betas)),
        "start_xz.npy": npy_parts(clip.start_xz),
        CONTRACT.semantic: (canonical_json(spans),),
    }
    if settings.keep_audio:
        # float32 holds every 16-bit and 24-bit value, so audio from such sources is restored exactly.
        members["audio.npy"] = npy_parts(np.empty(0, np.float32) if samples is None else np.ascontiguousarray(samples))
    noted = tuple(sorted(notes, key=lambda finding: finding.sort_key))
    facts: dict[str, Any] = {name: getattr(take, name) for name in ("key", "stem", "split", *_NULLABLE)}
    facts |= {"frames": frames, "mel_frames": len(mel), "ticks": timebase.ticks_of_frames(frames)}
    facts |= {"seconds": timebase.seconds_of_frames(frames), "labels": dict(take.labels)}
    present = take.present(clip)
    members["json"] = (canonical_json(_metadata(take, facts, present, noted, cut, gain, samples)),)
    segment = build_segment(take.key, members)
    row = ManifestRow(
        **facts,
        shard="",
        words=len(words),
        present=present,
        sources=dict(take.sources),
        notes=tuple(sorted({finding.problem.code for finding in noted})),
        members={
            member: MemberPlace(segment.data_offsets[member], segment.data_sizes[member], sha256_hex(*pieces))
            for member, pieces in members.items()
        },
    )
    train = row.split == "train"
    partials = tuple(map(partial_of, (clip.gesture, mel, clip.jaw_eyes))) if train else None
    return Sample(row, segment, noted, partials, Counter(word["word"] for word in words if train), cut)


_NULLABLE: Final = ("speaker_id", "speaker", "language")


def _metadata(
    take: Take,
    facts: Mapping[str, Any],
    present: Sequence[Part],
    notes: Sequence[Finding],
    cut: Cut,
    gain: float,
    samples: npt.NDArray[np.float32] | None,
) -> dict[str, Any]:
    """Return the content of KEY.json. All samples have the same keys and types; an absent value is "", 0 or -1."""
    wav, motion = take.wav, take.motion
    return {
        **facts,
        "speaker_id": -1 if take.speaker_id is None else take.speaker_id,
        "speaker": take.speaker or "",
        "language": take.language or "",
        "present": {part: part in present for part in PARTS},
        "audio": {
            "encoding": wav.encoding if wav else "",
            "rate_hz": wav.rate_hz if wav else 0,
            "channels": wav.channels if wav else 0,
            "samples": len(wav.samples) if wav else 0,
            "samples_16k": 0 if samples is None else len(samples),
            "gain": gain,
        },
        "motion": {
            "frame_rate_hz": motion.frame_rate_hz if motion else 0,
            "frame_stride": motion.frame_stride if motion else 0,
            "frames": motion.source_frames if motion else 0,
            "key_style": motion.key_style if motion else "",
            "betas": motion.betas_columns if motion else 0,
            "gender": motion.gender if motion else "",
            "model": motion.model if motion else "",
        },
        "cut": asdict(cut),
        "sources": {
            name: dict(zip(("path", "sha256"), take.sources.get(name, ("", "")), strict=True)) for name in SOURCES
        },
        # One text, because readers cannot infer the type of a list that is empty in the first samples.
        "notes": "\n".join(f"{note.problem.code}: {' '.join(note.problem.found.split())}" for note in notes),
    }


def _check_names(take: Take) -> None:
    """Raise ValueError if the key or a label name is not allowed by the contract."""
    if take.key != key_from_stem(take.stem):
        raise ValueError(f"key {take.key!r} of stem {take.stem!r}: expected {key_from_stem(take.stem)!r}")
    wrong = [name for name in take.labels if not is_label(name)]
    if wrong:
        raise ValueError(f"label {wrong[0]!r}: expected a lower-case letter, then up to 31 of a-z, 0-9 and _")


def _check_complete(clip: GestureClip) -> None:
    """Raise RecordingFault unless each part of the motion is finite in all frames, or NaN in all frames."""
    if np.isfinite(clip.gesture).all() and np.isfinite(clip.jaw_eyes).all():
        return
    for part in MOTION_PARTS:
        values = clip.jaw_eyes if part == "jaw_eyes" else clip.gesture[:, CHANNELS_OF[part]]
        if not np.isfinite(values).all() and not np.isnan(values).all():
            expected = "finite numbers, or NaN in all frames of an absent part"
            raise RecordingFault("npz-not-finite", _first_not_finite(part, values), expected)


def _first_not_finite(part: str, values: npt.NDArray[np.float32]) -> str:
    """Describe the first NaN or infinite value of an array (frames, channels) as an error text."""
    bad = ~np.isfinite(values)
    frame, column = np.argwhere(bad)[0]
    frames = int(bad.any(axis=1).sum())
    return f"{part}: {values[frame, column]:g} at frame {frame}, in {frames} of {len(values)} frames"


def _motion_clip(motion: Motion | None, frames: int) -> GestureClip:
    """Return the gesture arrays of the first `frames` frames; absent channels are NaN."""
    if motion is None:
        return GestureClip(
            np.full((frames, LAYOUT.channels), np.nan, np.float32),
            np.full((frames, JAW_EYES), np.nan, np.float32),
            np.full(2, np.nan),
        )
    return gesture_from_motion(motion.poses[:frames], motion.expressions[:frames], motion.trans[:frames])


def _common_length(take: Take, settings: ConvertSettings) -> int:
    """Return the common length of motion and audio in gesture frames.

    Raise RecordingFault if both are absent, if their lengths differ too much, or if the common length is too short.
    """
    motion, wav = take.motion, take.wav
    if motion is None and wav is None:
        raise RecordingFault("nothing-recorded", "neither motion nor audio", "at least one")
    if motion is not None and wav is not None:
        motion_s = len(motion.poses) / timebase.FRAME_RATE_HZ
        audio_s = len(wav.samples) / wav.rate_hz
        if not timebase.lengths_fit(audio_s, motion_s, settings.max_length_mismatch_s):
            found = f"audio {audio_s:.3f} s, motion {motion_s:.3f} s"
            expected = (
                f"audio at most {timebase.MAX_AUDIO_LONGER_S:g} s longer, motion {timebase.MAX_MOTION_LONGER_S:g} s"
                if settings.max_length_mismatch_s is None
                else f"at most {settings.max_length_mismatch_s:g} s apart"
            )
            raise RecordingFault("length-mismatch", found, expected)
        frames = timebase.common_frames(len(motion.poses), len(wav.samples), wav.rate_hz)
    elif motion is not None:
        frames = len(motion.poses)
    else:
        frames = len(wav.samples) * timebase.FRAME_RATE_HZ // wav.rate_hz if wav else 0
    if frames < timebase.FRAMES_PER_TICK:
        raise RecordingFault("clip-too-short", f"{frames} frames in common", "at least 3")
    return frames


def _cut(take: Take, frames: int, note: AddNote) -> tuple[list[dict[str, Any]], Cut]:
    """Return the words inside the clip, and how much of each modality is cut off; add notes about the cuts."""
    clip_s = timebase.seconds_of_frames(frames)
    if take.tier:
        take.tier.require_fit(len(take.wav.samples) / take.wav.rate_hz if take.wav else clip_s)
    words = take.tier.words if take.tier else ()
    inside = [word for word in words if word.start < clip_s]
    if take.tier and not inside:
        raise RecordingFault("textgrid-no-words", f"{len(words)} words, all after {clip_s:.3f} s", "words")
    audio_s = len(take.wav.samples) / take.wav.rate_hz - frames / timebase.FRAME_RATE_HZ if take.wav else 0.0
    motion_frames = len(take.motion.poses) - frames if take.motion else 0
    cut = Cut(
        audio_s=round(max(0.0, audio_s), 6),
        motion_s=round(motion_frames / timebase.FRAME_RATE_HZ, 6),
        words_dropped=len(words) - len(inside),
        words_clipped=sum(word.end > clip_s for word in inside),
    )
    if max(cut.audio_s, cut.motion_s) > _CUT_NOTE_S:
        longer: tuple[float, str, Modality] = (
            (cut.audio_s, "audio", "wav") if cut.audio_s >= cut.motion_s else (cut.motion_s, "motion", "npz")
        )
        note(Problem("length-cut", f"{longer[0]:.3f} s of {longer[1]} cut"), longer[2])
    if cut.words_dropped or cut.words_clipped:
        note(Problem("words-clipped", f"{cut.words_dropped} dropped, {cut.words_clipped} shortened"), "textgrid")
    if take.tier and abs(take.tier.xmax_s - clip_s - cut.audio_s) > _TEXTGRID_NOTE_S:
        found = f"TextGrid {take.tier.xmax_s:.3f} s, audio {clip_s + cut.audio_s:.3f} s"
        note(Problem("textgrid-length-mismatch", found), "textgrid")
    rows = [{"word": word.word, "start": word.start, "end": min(word.end, clip_s)} for word in inside]
    return rows, cut


def _audio_16k(wav: Wav | None, note: AddNote) -> npt.NDArray[np.float32] | None:
    """Convert audio to mono at 16 kHz; add notes about the changes."""
    if wav is None:
        return None
    if wav.channels > 1:
        note(Problem("audio-mixed-down", f"{wav.channels} channels", "1"), "wav")
    if wav.rate_hz != timebase.SAMPLE_RATE_HZ:
        note(Problem("audio-resampled", f"{wav.rate_hz} Hz", "16000 Hz"), "wav")
    samples = resample(mix_down_in_phase(wav.samples), wav.rate_hz)
    if len(samples) <= N_FFT // 2:
        raise RecordingFault("clip-too-short", f"{len(samples)} samples at 16 kHz", f"over {N_FFT // 2}")
    return samples


def _semantic(inputs: Inputs) -> tuple[SemanticSpan, ...] | None:
    """Return the semantic annotation; None if the file is absent or invalid. Add a note about an invalid file."""
    if "sem" not in inputs.recording.files:
        return None
    spans = inputs.load("sem", decode_semantic)
    # A fault in an optional file is only a note.
    for problem in (fault.problem for fault in inputs.faults):
        inputs.add(Problem("sem-invalid", f"{problem.code}: {problem.found}", problem.expected), "sem")
    inputs.faults.clear()
    return spans
