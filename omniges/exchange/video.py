"""Implementation of `omniges render`: write tracks to one video file.

The file is MP4 with H.264 and AAC. Frames are drawn and encoded one after the other, so that memory does not grow with
the length of the video. The index of the frames is at the beginning of the file, so that players start before the
download ends.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import numpy.typing as npt

from omniges.errors import EnvironmentFault, UsageFault, needs
from omniges.exchange.pages import Clip
from omniges.exchange.settings import RenderSettings
from omniges.exchange.tracks import Sound, Track
from omniges.exchange.view import clips_of, notes_on, parts_of
from omniges.features.body import BodyModel
from omniges.features.gesture import BETAS, EXPRESSIONS, POSE_COLUMNS
from omniges.features.timebase import FRAME_RATE_HZ
from omniges.formats.body_model import read_body_model
from omniges.formats.motion import SmplxMotion
from omniges.options import ShownPart, did_you_mean, shown
from omniges.progress import counted
from omniges.storage.atomic import PendingFile, os_errors
from omniges.storage.librosa_import import compiling

if TYPE_CHECKING:
    from omniges.exchange.drawing import Canvas

U8 = npt.NDArray[np.uint8]

VIDEO_ENDING: Final = ".mp4"
MAX_TRACKS: Final = 8
_SOUND_HZ: Final = 48_000
_SOUND_BLOCK: Final = 4096  # audio samples in one encoded block
_IN_ONE_ROW: Final = 4  # largest number of panels that are shown in one row; more panels are shown in two rows
_THREADS: Final = 2
_AHEAD: Final = 4  # number of frames that are drawn before the encoder needs them
_VIDEO_OPTIONS: Final = {"preset": "veryfast", "crf": "20"}


@dataclass(frozen=True, slots=True)
class VideoSummary:
    """Summary of a written video."""

    output_file: Path
    tracks: tuple[str, ...]
    seconds: float
    frames: int
    width: int
    height: int
    sound: str | None
    """Name of the track whose sound the video plays; None: the video is silent."""
    boxes: int
    """Number of words with letters that the font lacks. The video shows these letters as boxes."""
    bytes: int
    warnings: tuple[str, ...] = ()

    @property
    def lines(self) -> tuple[str, ...]:
        """Lines that the command prints: one with the properties of the video, and one for each warning."""
        heard = "no sound" if self.sound is None else f"sound of track {self.sound}"
        shape = f"{counted(len(self.tracks), 'track')}, {self.width}x{self.height}, {self.seconds:.1f} s, {heard}"
        lines = [f"{shape}, {self.bytes / 1e6:.1f} MB: {self.output_file}"]
        if self.boxes:
            lines.append(
                f"{counted(self.boxes, 'word')} with letters that the font lacks, shown as boxes; give --font FILE"
            )
        return (*lines, *self.warnings)


def render(settings: RenderSettings, count: Callable[[float, float], None] | None = None) -> VideoSummary:
    """Write a video of tracks side by side, with words and sound.

    Args:
        settings: Tracks to show, and the file to write.
        count: Function that is called with (done, total) seconds.

    Returns:
        A summary of the video.

    Raises:
        UsageFault: The paths contain no motion, several recordings, or more tracks than a video can show.
        DataError: A file is damaged.
        EnvironmentFault: A package is missing, or the video cannot be written.
    """
    _require_packages()
    model = None if settings.body_model is None else _with_faces(settings.body_model)
    clips = clips_of(parts_of(settings, "in a video"), together=settings.together)
    if len(clips) > 1:
        names = ", ".join(shown(clip.name) for clip in clips[:3]) + (", …" if len(clips) > 3 else "")
        raise UsageFault(
            f"{settings.paths[0]}: expected one recording, found {len(clips)} ({names}); choose one with --key, "
            "or name its files"
        )
    return render_clip(clips[0], settings, model, count)


def require_video(*, moves: bool) -> None:
    """Check, before results are generated, that videos of them can be written.

    Args:
        moves: Whether a result or its recording may have motion.

    Raises:
        UsageFault: Neither a result nor its recording can have motion.
        EnvironmentFault: A package is missing.
    """
    if not moves:
        raise UsageFault("--video: expected a task with gesture as target or condition, found none; remove --video")
    _require_packages()


def render_results(
    records: Sequence[Path], shards: Path | None, motion_rate_hz: float | None, part: ShownPart
) -> Iterator[VideoSummary]:
    """Write a video NAME.mp4 next to each record NAME.json.

    The video shows the result and, if the shards contain it, the recording.

    Args:
        records: Paths of the records, NAME.json.
        shards: Folder of shards with the recordings; None: videos show results only.
        motion_rate_hz: Frames per second of motion files that are conditions, used only for files that do not state
            their frame rate.
        part: Which part of each result to show: start and length.

    Yields:
        A summary of each video.
    """
    beside = [] if shards is None else [str(shards)]
    shown: dict[str, Any] = {"motion_rate_hz": motion_rate_hz} | part.of_part
    for record in records:
        out = record.with_suffix(VIDEO_ENDING)
        with part.flags_in_errors():
            summary = render(RenderSettings(paths=(str(record), *beside), output_file=out, **shown))
        yield summary


def render_clip(
    clip: Clip,
    settings: RenderSettings,
    model: BodyModel | None = None,
    count: Callable[[float, float], None] | None = None,
) -> VideoSummary:
    """Write a video of one clip with loaded tracks.

    Args:
        clip: Clip with loaded tracks.
        settings: Look of the video, and the file to write. The paths in the settings are not used.
        model: Body model with triangles, to draw its mesh; None: draw the generic figure of `omniges.exchange.solid`.
        count: Function that is called with (done, total) seconds.

    Returns:
        A summary of the video.

    Raises:
        UsageFault: The clip has no track with motion, too many such tracks, or no track with the chosen sound.
        EnvironmentFault: The video cannot be written.
    """
    moving = [track for track in clip.tracks if track.motion is not None]
    if not 1 <= len(moving) <= MAX_TRACKS:
        raise UsageFault(
            f"{shown(clip.name)}: expected 1 to {MAX_TRACKS} tracks with motion, found {len(moving)} of "
            f"{len(clip.tracks)}; name fewer files, or some with motion"
        )
    sound = _chosen_sound(clip, settings.sound)
    columns = len(moving) if len(moving) <= _IN_ONE_ROW else -(-len(moving) // 2)
    rows = -(-len(moving) // columns)
    size = settings.pixels or (min(1920, 640 * columns), 720 * rows)
    canvas, boxes = _canvas(clip, moving, settings, model, size, columns)
    frames = max(1, math.ceil(clip.seconds * settings.fps - 1e-6))
    with PendingFile(settings.output_file) as pending:
        with _images(canvas, frames, settings.fps) as images, os_errors(settings.output_file):
            _encode(
                pending.temporary, images, size, settings.fps, None if sound is None else sound.audio, frames, count
            )
        size_bytes = pending.temporary.stat().st_size
    name = None if sound is None else sound.name
    names = tuple(track.name for track in moving)
    seconds, warnings = frames / settings.fps, tuple(notes_on(clip.tracks))
    return VideoSummary(settings.output_file, names, seconds, frames, *size, name, boxes, size_bytes, warnings)


def _require_packages() -> None:
    with needs("video", "videos"):
        import av  # noqa: PLC0415 - optional
        import matplotlib  # noqa: PLC0415
        import PIL  # noqa: PLC0415
    for name in ("libx264", "aac"):
        if name not in av.codecs_available:
            raise EnvironmentFault(
                f"PyAV {av.__version__}: expected the encoder {name}, which videos need, found none; install "
                "PyAV's wheel from PyPI"
            )
    del matplotlib, PIL


def _with_faces(path: Path) -> BodyModel:
    model, _ = read_body_model(path)
    if model.triangles is None:
        raise UsageFault(
            f"--body-model {path}: expected an SMPL-X model with faces f, found none; give SMPL-X's own .npz"
        )
    return model


def _chosen_sound(clip: Clip, name: str | None) -> Track | None:
    """Return the track that provides the sound of the video; None for a silent video.

    `name` is the name of a track, or "off" for a silent video. None selects the first track with sound. Raise
    UsageFault if the named track does not exist or has no sound.
    """
    heard = [track for track in clip.tracks if track.audio is not None]
    if name is None:
        return heard[0] if heard else None
    if name == "off":
        return None
    for track in heard:
        if track.name == name:
            return track
    names = [track.name for track in heard]
    raise UsageFault(
        f"--sound {shown(name)}: expected off or a track with sound "
        f"({', '.join(map(shown, names)) or 'no track has sound'})" + did_you_mean(name, names)
    )


def _canvas(
    clip: Clip,
    moving: Sequence[Track],
    settings: RenderSettings,
    model: BodyModel | None,
    size: tuple[int, int],
    columns: int,
) -> tuple[Canvas, int]:
    """Return the canvas that draws the frames, and the number of words with letters that the font lacks."""
    _compile()
    from omniges.exchange.drawing import Canvas, Captions, Lettering, Panel  # noqa: PLC0415 - optional packages
    from omniges.exchange.poses import Figure, MeshFigure, SolidFigure  # noqa: PLC0415

    rows = -(-len(moving) // columns)
    lettering = Lettering(settings.font, size[0] // columns, size[1] // rows)
    spoken = next((track.words for track in clip.tracks if track.motion is None and track.words), ())
    panels, boxes = [], 0
    for number, track in enumerate(moving):
        motion = cast("SmplxMotion", track.motion)
        figure: Figure = SolidFigure(motion, number) if model is None else MeshFigure(motion, model, number)
        at_rest = ", ".join(track.absent).replace("_", " and ")
        words = track.words or spoken
        boxes += lettering.lacking(word.word for word in words)
        label = lettering.label(track.name, f"at rest: {at_rest}" if at_rest else "", number)
        panels.append(Panel(figure, label, Captions(words, lettering)))
    return Canvas(panels, size, columns, (settings.camera, settings.framing)), boxes


@functools.cache
def _compile() -> None:
    """Compile the drawing functions, or load them from numba's cache. Call this before several threads draw."""
    with compiling("omniges"):
        from omniges.exchange import raster  # noqa: PLC0415
        from omniges.exchange.drawing import Canvas, Captions, Lettering, Panel  # noqa: PLC0415
        from omniges.exchange.poses import SolidFigure  # noqa: PLC0415

        poses, trans, expressions = (np.zeros((1, columns)) for columns in (POSE_COLUMNS, 3, EXPRESSIONS))
        still = SmplxMotion(poses, trans, expressions, np.zeros(BETAS))
        figure, lettering = SolidFigure(still, 0), Lettering(None, 16, 16)
        panel = Panel(figure, lettering.label("", "", 0), Captions((), lettering))
        canvas = Canvas([panel], (16, 16), 1, ("front", "body"))
        canvas.draw(next(canvas.poses(np.zeros(1, np.int64))), 0, 0.0)
        raster.vertex_normals(figure.base, figure.triangles, np.empty_like(figure.base))


@contextmanager
def _images(canvas: Canvas, frames: int, fps: int) -> Iterator[Iterator[U8]]:
    """Context manager that gives an iterator over the frames of a video. Threads draw a few frames in advance."""
    times = np.arange(frames) / fps
    of_motion = np.floor(times * FRAME_RATE_HZ + 1e-6).astype(np.int64)

    def drawn(pool: ThreadPoolExecutor) -> Iterator[U8]:
        waiting: deque[Future[U8]] = deque()
        for poses, frame, time_s in zip(canvas.poses(of_motion), of_motion.tolist(), times.tolist(), strict=True):
            waiting.append(pool.submit(canvas.draw, poses, frame, time_s))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            yield drawn(pool)
        finally:
            pool.shutdown(cancel_futures=True)


def _encode(
    path: Path,
    images: Iterator[U8],
    size: tuple[int, int],
    fps: int,
    sound: Sound | None,
    frames: int,
    count: Callable[[float, float], None] | None,
) -> None:
    """Encode frames and sound, and write both to one file, interleaved by time."""
    import av  # noqa: PLC0415 - optional
    from av.video.reformatter import ColorRange, Colorspace  # noqa: PLC0415

    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream: Any = container.add_stream("libx264", rate=fps, options=_VIDEO_OPTIONS)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        colour = {"dst_colorspace": Colorspace.ITU709, "dst_color_range": ColorRange.MPEG}
        stream.codec_context.colorspace = Colorspace.ITU709
        stream.codec_context.color_range = ColorRange.MPEG
        audio = None if sound is None else container.add_stream("aac", rate=_SOUND_HZ, layout="mono")
        blocks = iter(()) if sound is None else _sound_blocks(sound, frames / fps)
        heard_s = 0.0
        for number, image in enumerate(images):
            while audio is not None and heard_s <= number / fps:
                block, heard_s = next(blocks, (None, math.inf))
                container.mux(audio.encode(block))  # None flushes the encoder
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p", **colour)
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
            if count is not None:
                count((number + 1) / fps, frames / fps)
        container.mux(stream.encode(None))
        while audio is not None and heard_s < math.inf:
            block, heard_s = next(blocks, (None, math.inf))
            container.mux(audio.encode(block))


def _sound_blocks(sound: Sound, seconds: float) -> Iterator[tuple[Any, float]]:
    """Yield (audio frame at 48 kHz, its end time in seconds) up to the end of the video."""
    import av  # noqa: PLC0415 - optional
    import soxr  # noqa: PLC0415 - takes 0.1 s, needed by videos only

    resample = soxr.ResampleStream(sound.rate_hz, _SOUND_HZ, 1, dtype="float32")
    total, done = round(seconds * _SOUND_HZ), 0
    step = _SOUND_BLOCK
    starts = range(0, max(1, len(sound.samples)), step)
    pending = np.zeros(0, np.float32)
    for start in starts:
        last = start + step >= len(sound.samples)
        part = np.clip(sound.samples[start : start + step], -1, 1).astype(np.float32)
        pending = resample.resample_chunk(part, last=last)
        if last and done + len(pending) < total:
            pending = np.pad(pending, (0, total - done - len(pending)))
        pending = pending[: total - done]
        for first in range(0, len(pending), step):
            samples = pending[first : first + step]
            frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = _SOUND_HZ, done, Fraction(1, _SOUND_HZ)
            done += len(samples)
            yield frame, done / _SOUND_HZ
