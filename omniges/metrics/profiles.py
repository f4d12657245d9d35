"""Profiles (complete settings of the gesture metrics): two as published, including their faults, and one corrected.

docs/reference/metrics.md describes the same settings in words. A JSON report contains every setting of its profile.
Published profiles need files that omniges does not ship; this module lists their names, checksums and origins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from omniges.features.gesture import LAYOUT
from omniges.features.timebase import FRAME_RATE_HZ

_FRAMES_MULTIPLE: Final = 8

ProfileName = Literal["emage-2024", "emage-eval-2025", "corrected"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionSettings:
    """Settings for the joint positions from which beats, diversity and recall are computed.

    Translation and expressions are set to zero.
    """

    root_rotation: Literal["given", "zero"]
    jaw_eyes: Literal["given", "zero"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BeatSettings:
    """Settings of beat consistency."""

    audio: Literal["resampled-twice", "as-is"]
    """``resampled-twice``: the audio is first resampled from 16 kHz to 22.05 kHz and back to 16 kHz."""
    audio_end: Literal["uncut-length", "truncated", "rounded"]
    """End of the cropped audio, as a sample number.

    ``uncut-length``: the length of the audio before it is cut to T frames, minus the crop. ``truncated`` and
    ``rounded``: the time of frame T − crop, rounded down or to the nearest sample.
    """
    motion: Literal["positions", "deviations"]
    """Quantity whose speed is computed: the positions, or the absolute deviation of each coordinate from its mean."""
    threshold: float
    """Speed that a motion beat must exceed, as a multiple of the joint's mean speed."""
    threshold_at: Literal["minimum", "shifted"]
    """Frame whose speed is compared with the threshold.

    ``minimum``: the frame of the minimum. ``shifted``: the frame ``crop_frames`` before it.
    """
    sigma_s: float = 0.3
    order_frames: int = 7
    """A motion beat is a strict minimum of the speed among this many frames on each side."""
    crop_frames: int = 60
    """Number of frames that are left out at each end of a clip."""
    hop_samples: int = 512
    joints: tuple[int, ...] = LAYOUT.upper_joints


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceSettings:
    """Settings of the landmark velocity difference; the face MSE is the same in all profiles."""

    lvd: Literal["position-error", "velocity-by-frames", "velocity-by-steps"]
    """Definition of the landmark velocity difference (LVD).

    ``position-error``: position errors are used in place of velocity differences. ``velocity-by-frames`` and
    ``velocity-by-steps``: the sum of velocity differences is divided by T or by T − 1.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class SemanticSettings:
    """Settings of semantic-relevant gesture recall."""

    error: Literal["sum", "euclidean"]
    weights: Literal["by-scale", "by-sum"]
    """Weight of a frame: its score, divided by ``scale`` or by the mean of the clip's scores."""
    without_scores: Literal["refused", "ones"]
    """Clips without semantic annotation raise an error, or have a score of 1 in every frame."""
    span_ends: Literal["closed", "half-open"]
    threshold_m: float = 0.1
    scale: float = 0.165


@dataclass(frozen=True, slots=True, kw_only=True)
class FrechetSettings:
    """Settings of the Fréchet gesture distance."""

    offset: float
    """Number added to the diagonals of both covariances, but only in the term tr (S1 S2)^½."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipGrid:
    """Possible clip lengths of a model that generates window by window.

    Recordings are cut to such lengths before they are scored.
    """

    window_frames: int
    seed_frames: int
    """Number of frames that a window shares with the previous window."""

    def frames(self, generated: int, recorded: int) -> int:
        """Return the number of frames of a clip that are scored.

        Possible lengths are s + k · (w − s) for any integer k, where w is `window_frames` and s is `seed_frames`.

        First, the length of the recording is rounded down three times: to whole seconds, to a multiple of 8 frames, and
        to a possible length. If the generated clip has at least this length, this length is the result. Otherwise, the
        result is the length of the generated clip, rounded down to a possible length.

        Args:
            generated: Number of frames of the generated clip.
            recorded: Number of frames of the recording.

        Returns:
            The number of frames, from the start of the clip. It is less than `window_frames` if the clip is shorter
            than one window.
        """
        full_seconds = recorded - recorded % FRAME_RATE_HZ
        return self._cut(min(generated, self._cut(full_seconds - full_seconds % _FRAMES_MULTIPLE)))

    def _cut(self, frames: int) -> int:
        return frames - (frames - self.seed_frames) % (self.window_frames - self.seed_frames)


GRIDS: Final[Mapping[str, ClipGrid]] = MappingProxyType(
    {"emage": ClipGrid(window_frames=64, seed_frames=4), "gesturelsm": ClipGrid(window_frames=128, seed_frames=16)}
)
"""Grids by name: of EMAGE, MambaTalk and SemTalk (4 + 60 k frames), and of SynTalker and GestureLSM (16 + 112 k)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Settings of all gesture metrics under one name."""

    name: ProfileName
    published: bool
    """True: papers report values of this profile. To compare with them, use SMPL-X and the published files."""
    positions: PositionSettings
    beats: BeatSettings
    face: FaceSettings
    semantic: SemanticSettings
    frechet: FrechetSettings


_EMAGE_2024: Final = Profile(
    name="emage-2024",
    published=True,
    positions=PositionSettings(root_rotation="given", jaw_eyes="given"),
    beats=BeatSettings(
        audio="resampled-twice", audio_end="uncut-length", motion="deviations", threshold=0.30, threshold_at="shifted"
    ),
    face=FaceSettings(lvd="position-error"),
    semantic=SemanticSettings(error="sum", weights="by-scale", without_scores="refused", span_ends="closed"),
    frechet=FrechetSettings(offset=0.0),
)
_EMAGE_EVAL_2025: Final = Profile(
    name="emage-eval-2025",
    published=True,
    positions=PositionSettings(root_rotation="zero", jaw_eyes="zero"),
    beats=BeatSettings(
        audio="as-is", audio_end="truncated", motion="positions", threshold=0.10, threshold_at="shifted"
    ),
    face=FaceSettings(lvd="velocity-by-frames"),
    semantic=SemanticSettings(error="euclidean", weights="by-scale", without_scores="ones", span_ends="closed"),
    frechet=FrechetSettings(offset=1e-6),
)
_CORRECTED: Final = Profile(
    name="corrected",
    published=False,
    positions=PositionSettings(root_rotation="zero", jaw_eyes="zero"),
    beats=BeatSettings(audio="as-is", audio_end="rounded", motion="positions", threshold=0.10, threshold_at="minimum"),
    face=FaceSettings(lvd="velocity-by-steps"),
    semantic=SemanticSettings(error="euclidean", weights="by-sum", without_scores="refused", span_ends="half-open"),
    frechet=FrechetSettings(offset=0.0),
)

PROFILES: Final[Mapping[str, Profile]] = MappingProxyType(
    {each.name: each for each in (_EMAGE_2024, _EMAGE_EVAL_2025, _CORRECTED)}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFile:
    """A file that a published profile needs and that users download themselves."""

    name: str
    sha256: tuple[str, ...]
    """Checksums of the known versions; empty if no checksum is known."""
    origin: str
    """Place from which users can download the file."""

    def described(self) -> str:
        """Return name, origin and checksums in one line."""
        known = f", sha256 {' or '.join(self.sha256)}" if self.sha256 else ", sha256 not known to omniges"
        return f"{self.name} from {self.origin}{known}"


ENCODER: Final = PublishedFile(
    name="AESKConv_240_100.bin",
    sha256=("5cd9566b24264f34d44003b3de62cdfd50aa85b7cdde2d369214599023c40f55",),
    origin="Hugging Face, camenduru/EMAGE-hf, or H-Liu1997/BEAT2 (beat_english_v2.0.0/weights)",
)
MEAN_SPEEDS: Final = PublishedFile(
    name="mean_vel_smplxflame_30.npy",
    sha256=(
        "53b5e48f2a7bf78c41a6de6395d6bb4f29018465ca5d0ee2820a2be3eebb7137",
        "d338491ce7d0da939cbb0ea326486d0b9c8654b3d33c7f6d32ca01e9a49ebf79",
    ),
    origin="Hugging Face, H-Liu1997/BEAT2 (beat_english_v2.0.0/weights), or GitHub, PantoMatrix/PantoMatrix @ 0bbb03d, "
    "or the repositories of GestureLSM and SynTalker",
)
BODY_MODEL: Final = PublishedFile(
    name="SMPLX_NEUTRAL_2020.npz", sha256=(), origin="smpl-x.is.tue.mpg.de after registration"
)
