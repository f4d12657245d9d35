"""One recording to one sample: read, decode, compute features, lay out the tar members.

A pure function of the files' bytes and the settings. Faults of all three files are gathered before the recording is
rejected, so that a person sees them at once.
"""

from __future__ import annotations

import contextlib
import errno
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from omniges.errors import Finding, Problem, RecordingFault
from omniges.features import timebase
from omniges.features.audio import N_FFT, log_mel, loudness_gain, mix_down, resample
from omniges.features.gesture import gesture_from_motion
from omniges.formats.audio import Wav, decode_wav, encode_flac
from omniges.formats.npz import Motion, decode_motion
from omniges.formats.semantic import decode_semantic
from omniges.formats.textgrid import WordTier, decode_words
from omniges.pipeline.discover import Modality, Recording
from omniges.pipeline.settings import MAX_FILE_BYTES, ConvertSettings, Cut, Rejected, Sample
from omniges.shards.dataset import partial_of
from omniges.shards.manifest import ManifestRow, MemberPlace
from omniges.shards.tar import Segment, build_segment, npy_parts
from omniges.storage.canonical_json import canonical_json, sha256_hex

_CUT_NOTE_S: Final = 0.1
_TEXTGRID_NOTE_S: Final = 1.0

T = TypeVar("T")
Pieces = tuple[bytes | memoryview, ...]


class _Inputs:
    """Reads and decodes the files of a recording, keeping digests, notes and faults."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.sources: dict[str, tuple[str, str]] = {}
        self.faults: list[Finding] = []
        self.notes: list[Finding] = list(recording.notes)
        self._tried: set[Modality] = set()

    def load(self, modality: Modality, decode: Callable[[bytes], T]) -> T | None:
        """Decode one file, or remember why not."""
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
        """File a note or a fault, with its place."""
        file = self.recording.files[modality].relative if modality else None
        finding = Finding(problem, self.recording.stem, file)
        (self.notes if problem.severity == "note" else self.faults).append(finding)

    def rejected(self) -> Rejected:
        """The recording as rejected; files that were not needed to see it are read for their digests all the same."""
        for modality in self.recording.files.keys() - self._tried:
            source = self.recording.files[modality]
            with contextlib.suppress(RecordingFault):
                self.sources[modality] = (source.relative, sha256_hex(_read(Path(source.path))))
        return Rejected(tuple(self.faults), self.sources)


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise RecordingFault("file-too-large", f"{size} bytes", f"at most {MAX_FILE_BYTES}")
        return path.read_bytes()
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "error")
        raise RecordingFault("file-unreadable", f"{error.strerror} ({name})", "a readable file") from error


def convert(recording: Recording, settings: ConvertSettings) -> Sample[Segment] | Rejected:
    """Convert one recording; what cannot be used comes back as `Rejected`, never as a guess."""
    inputs = _Inputs(recording)
    try:
        return _convert(inputs, settings)
    except RecordingFault as fault:
        inputs.add(fault.problem)
    return inputs.rejected()


def _convert(inputs: _Inputs, settings: ConvertSettings) -> Sample[Segment] | Rejected:
    motion = inputs.load("npz", decode_motion)
    wav = inputs.load("wav", decode_wav)
    tier = inputs.load("textgrid", lambda data: decode_words(data, settings.word_tier))
    if motion is None or wav is None or tier is None:
        return inputs.rejected()
    for modality, decoded in (("npz", motion), ("wav", wav), ("textgrid", tier)):
        for note in decoded.notes:
            inputs.add(note, modality)  # type: ignore[arg-type]
    frames = _common_length(motion, wav, settings)
    words, cut = _cut(inputs, motion, wav, tier, frames)
    clip = gesture_from_motion(motion.poses[:frames], motion.expressions[:frames], motion.trans[:frames])
    samples = _audio_16k(wav, inputs)
    gain = loudness_gain(samples, settings.loudness)
    mel = log_mel(samples if gain == 1.0 else samples * np.float32(gain), timebase.mel_frames_for(frames))
    members: dict[str, Pieces] = {
        "json": (),  # written last, as it tells of everything; its place is the first
        "gesture.npy": npy_parts(clip.gesture),
        "mel.npy": npy_parts(mel),
        "words.json": (canonical_json(words),),
        "jaw_eyes.npy": npy_parts(clip.jaw_eyes),
        "betas.npy": npy_parts(np.ascontiguousarray(motion.betas)),
        "start_xz.npy": npy_parts(clip.start_xz),
    }
    _add_semantic(inputs, members)
    if settings.keep_audio:
        member, data = _audio_member(wav, samples)
        members[member] = data
    notes = tuple(sorted(inputs.notes, key=lambda finding: finding.sort_key))
    facts = _facts(inputs.recording, frames, len(mel))
    audio = {"encoding": wav.encoding, "rate_hz": wav.rate_hz, "channels": wav.channels, "gain": gain}
    audio |= {"samples": len(wav.samples), "samples_16k": len(samples)}
    metadata = facts | {
        "audio": audio,
        "motion": _motion_facts(motion),
        "cut": asdict(cut),
        "sources": {name: {"path": path, "sha256": digest} for name, (path, digest) in inputs.sources.items()},
        "notes": [{"code": note.problem.code, "found": note.problem.found} for note in notes],
    }
    members["json"] = (canonical_json(metadata),)
    segment = build_segment(inputs.recording.key, members)
    row = ManifestRow(
        **facts,
        shard="",
        words=len(words),
        sources=inputs.sources,
        notes=tuple(sorted({note.problem.code for note in notes})),
        members={
            member: MemberPlace(segment.data_offsets[member], segment.data_sizes[member], sha256_hex(*pieces))
            for member, pieces in members.items()
        },
    )
    train = row.split == "train"
    partials = (partial_of(clip.gesture), partial_of(mel)) if train else None
    return Sample(row, segment, notes, partials, Counter(word["word"] for word in words if train), cut)


def _facts(recording: Recording, frames: int, mel_frames: int) -> dict[str, Any]:
    """What both KEY.json and the manifest say: identity and lengths."""
    labels = asdict(recording.fields)
    del labels["start"]
    return labels | {
        "key": recording.key,
        "stem": recording.stem,
        "split": recording.split,
        "frames": frames,
        "mel_frames": mel_frames,
        "ticks": timebase.ticks_of_frames(frames),
        "seconds": timebase.seconds_of_frames(frames),
    }


def _motion_facts(motion: Motion) -> dict[str, Any]:
    """What KEY.json says about the motion file."""
    return {
        "frame_rate_hz": motion.frame_rate_hz,
        "frame_stride": motion.frame_stride,
        "frames": motion.source_frames,
        "key_style": motion.key_style,
        "betas": motion.betas_columns,
        "gender": motion.gender,
        "model": motion.model,
    }


def _common_length(motion: Motion, wav: Wav, settings: ConvertSettings) -> int:
    """The common number of gesture frames; raises RecordingFault where the lengths do not belong together."""
    motion_s = len(motion.poses) / timebase.FRAME_RATE_HZ
    audio_s = len(wav.samples) / wav.rate_hz
    if abs(motion_s - audio_s) > settings.max_length_mismatch_s:
        found = f"audio {audio_s:.3f} s, motion {motion_s:.3f} s"
        raise RecordingFault("length-mismatch", found, f"at most {settings.max_length_mismatch_s:g} s apart")
    frames = timebase.common_frames(len(motion.poses), len(wav.samples), wav.rate_hz)
    if frames < timebase.FRAMES_PER_TICK:
        raise RecordingFault("clip-too-short", f"{frames} frames in common", "at least 3")
    return frames


def _cut(inputs: _Inputs, motion: Motion, wav: Wav, tier: WordTier, frames: int) -> tuple[list[dict[str, Any]], Cut]:
    """The words inside the clip as words.json holds them, and what its length cut off, with notes of it."""
    clip_s = timebase.seconds_of_frames(frames)
    inside = [word for word in tier.words if word.start < clip_s]
    if not inside:
        raise RecordingFault("textgrid-no-words", f"{len(tier.words)} words, all beyond {clip_s:.3f} s", "words")
    cut = Cut(
        audio_s=round(max(0.0, len(wav.samples) / wav.rate_hz - frames / timebase.FRAME_RATE_HZ), 6),
        motion_s=round((len(motion.poses) - frames) / timebase.FRAME_RATE_HZ, 6),
        words_dropped=len(tier.words) - len(inside),
        words_clipped=sum(word.end > clip_s for word in inside),
    )
    if max(cut.audio_s, cut.motion_s) > _CUT_NOTE_S:
        longer: tuple[float, str, Modality] = (
            (cut.audio_s, "audio", "wav") if cut.audio_s >= cut.motion_s else (cut.motion_s, "motion", "npz")
        )
        inputs.add(Problem("length-cut", f"{longer[0]:.3f} s of {longer[1]} cut"), longer[2])
    if cut.words_dropped or cut.words_clipped:
        found = f"{cut.words_dropped} dropped, {cut.words_clipped} shortened"
        inputs.add(Problem("words-clipped", found), "textgrid")
    if abs(tier.xmax_s - clip_s - cut.audio_s) > _TEXTGRID_NOTE_S:
        found = f"TextGrid {tier.xmax_s:.3f} s, audio {clip_s + cut.audio_s:.3f} s"
        inputs.add(Problem("textgrid-length-mismatch", found), "textgrid")
    rows = [{"word": word.word, "start": word.start, "end": min(word.end, clip_s)} for word in inside]
    return rows, cut


def _audio_16k(wav: Wav, inputs: _Inputs) -> npt.NDArray[np.float32]:
    """Mono audio at 16 kHz; notes say what was done to it."""
    if wav.channels > 1:
        inputs.add(Problem("audio-mixed-down", f"{wav.channels} channels", "1"), "wav")
    if wav.rate_hz != timebase.SAMPLE_RATE_HZ:
        inputs.add(Problem("audio-resampled", f"{wav.rate_hz} Hz", "16000 Hz"), "wav")
    samples = resample(mix_down(wav.samples), wav.rate_hz)
    if len(samples) <= N_FFT // 2:
        raise RecordingFault("clip-too-short", f"{len(samples)} samples at 16 kHz", f"over {N_FFT // 2}")
    return samples


def _add_semantic(inputs: _Inputs, members: dict[str, Pieces]) -> None:
    """Add the semantic annotation where there is one; one that cannot be read is left out with a note."""
    if "sem" not in inputs.recording.files:
        return
    spans = inputs.load("sem", decode_semantic)
    # What would reject a recording elsewhere is a note on a file it can do without.
    for problem in (fault.problem for fault in inputs.faults):
        inputs.add(Problem("sem-invalid", f"{problem.code}: {problem.found}", problem.expected), "sem")
    inputs.faults.clear()
    if spans is not None:
        names = ("name", "start", "end", "score", "keywords")
        members["sem.json"] = (canonical_json([{name: getattr(span, name) for name in names} for span in spans]),)


def _audio_member(wav: Wav, samples: npt.NDArray[np.float32]) -> tuple[str, Pieces]:
    """The waveform bit-exactly: FLAC for 16 and 24 bit mono sources at 16 kHz, float32 samples for all others."""
    if wav.pcm is None or wav.rate_hz != timebase.SAMPLE_RATE_HZ:
        return "audio.npy", npy_parts(np.ascontiguousarray(samples))
    return "flac", (encode_flac(wav.pcm, bits=16 if wav.encoding == "pcm16" else 24),)
