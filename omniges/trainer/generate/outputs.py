"""What a model made as files: SMPL-X NPZ, WAV with its mel, TextGrid with its text, and pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError
from omniges.features.gesture import LAYOUT, GestureClip, motion_from_gesture
from omniges.features.timebase import SAMPLE_RATE_HZ, TICKS_PER_SECOND
from omniges.recordings.npz import encode_motion
from omniges.recordings.textgrid import WordInterval, encode_words
from omniges.recordings.wav import encode_wav
from omniges.trainer.generate.inputs import Body
from omniges.trainer.generate.speech import waveform_from_mel
from omniges.trainer.metrics.motion import invalid_rotations
from omniges.trainer.slots import SlotCodec
from omniges.trainer.streams import StreamName

__all__ = ["NEUTRAL", "Files", "add_waveform", "picture", "render"]

NEUTRAL: Final = Body(np.zeros(300), "neutral", "smplx2020", np.zeros(2))
"""The average body at the origin, where the inputs have none."""


class Files:
    """Files of one result by the end of their name, with what there is to say of them."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.kinds: dict[str, str] = {}  # kind of file by the end of its name
        self.measures: dict[str, float] = {}
        self.remarks: list[str] = []

    def add(self, kind: str, ending: str, content: bytes) -> None:
        """One more file."""
        self.contents[ending], self.kinds[ending] = content, kind


def render(
    made: Mapping[StreamName, npt.NDArray[Any]],
    ticks: int,
    body: Body,
    codec: SlotCodec,
    seed: int | None,
) -> Files:
    """The files of generated arrays; without a seed of phases there is no waveform, which is what takes long.

    Raises DataError for motion that has no rotation at all.
    """
    files = Files()
    if "gesture" in made:
        _gesture(files, np.asarray(made["gesture"], np.float32), body)
    if "audio" in made:
        mel = np.asarray(made["audio"], np.float32)
        files.add("mel", ".mel.npy", _npy(mel))
        if seed is not None:
            add_waveform(files, mel, seed)
    if "text" in made:
        _text(files, np.asarray(made["text"]), ticks, codec)
    return files


def add_waveform(files: Files, mel: npt.NDArray[np.float32], seed: int) -> None:
    """The waveform of a log-mel (F, 64) as one more file."""
    files.add("audio", ".wav", encode_wav(waveform_from_mel(mel, seed), SAMPLE_RATE_HZ, "pcm16"))
    files.remarks.append("the waveform is Griffin-Lim's of 64 mel bands: measure on the mel, not on it")


def _gesture(files: Files, gesture: npt.NDArray[np.float32], body: Body) -> None:
    six_d = gesture[:, LAYOUT.rotations].reshape(len(gesture), -1, 6)
    files.measures["invalid_rotations"] = invalid_rotations(six_d).value
    jaw_eyes = np.zeros((len(gesture), 9), np.float32)
    files.remarks.append("jaw and eyes do not move: gesture channels do not have them")
    try:
        motion = motion_from_gesture(GestureClip(gesture, jaw_eyes, body.start_xz))
    except ValueError as error:
        raise DataError(
            f"generated motion: {error}: the model is not trained enough; take another checkpoint"
        ) from error
    files.add(
        "gesture",
        ".npz",
        encode_motion(motion.poses, motion.expressions, motion.trans, body.betas, gender=body.gender, model=body.model),
    )


def _text(files: Files, slots: npt.NDArray[Any], ticks: int, codec: SlotCodec) -> None:
    words = codec.decode(slots.astype(np.int32))
    spoken = [word for word in words if word.word.strip()]
    if len(spoken) < len(words):
        files.remarks.append(f"{len(words) - len(spoken)} words without a letter left out")
    intervals = [WordInterval(word.word.strip(), word.start, word.end) for word in spoken]
    files.add("text", ".TextGrid", encode_words(intervals, ticks / TICKS_PER_SECOND))
    files.add("transcript", ".txt", (" ".join(word.word for word in intervals) + "\n").encode())


def _npy(array: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def picture(
    title: str, shown: Mapping[StreamName, npt.NDArray[Any]], words: Sequence[Mapping[str, Any]], body: Body
) -> bytes:
    """What was given and made on one time line, the first 12 s, as PNG."""
    from omniges.pictures import draw_sample  # noqa: PLC0415 - matplotlib, where a picture is asked for

    gesture, mel = shown.get("gesture"), shown.get("audio")
    return draw_sample(
        title=title,
        gesture=None if gesture is None else np.asarray(gesture, np.float32),
        jaw_eyes=None if gesture is None else np.zeros((len(gesture), 9), np.float32),
        start_xz=body.start_xz,
        mel=None if mel is None else np.asarray(mel, np.float32),
        words=words,
    )
