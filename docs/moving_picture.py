"""Makes the moving picture of the README: ``python docs/moving_picture.py``, with omniges[video] installed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Final

import av
from PIL import Image

import omniges

PICTURE: Final = Path(__file__).parent / "images" / "moving.webp"
_START_S, _SECONDS, _FPS = 1.0, 6.0, 15


def main() -> None:
    """Render a recording of each speaker of the synthetic corpus, and write the frames as an animated picture."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        omniges.sample_corpus(folder / "corpus", clips=4, seconds=12)
        paths = [
            f"{label}={next((folder / 'corpus').rglob(f'{stem}.npz'))}"
            for label, stem in (("speaker 1", "1_synthetica_0_1_1"), ("speaker 2", "2_syntheticb_0_1_1"))
        ]
        video = folder / "clip.mp4"
        look: dict[str, Any] = {"size": "840x384", "framing": "upper", "together": True, "fps": _FPS}
        omniges.render(*paths, output_file=video, start_s=_START_S, seconds=_SECONDS, **look)
        with av.open(str(video)) as container:
            frames = [Image.fromarray(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    webp: dict[str, Any] = {"duration": round(1000 / _FPS), "loop": 0, "quality": 60, "method": 6}
    frames[0].save(PICTURE, save_all=True, append_images=frames[1:], **webp)
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1e6:.2f} MB, {len(frames)} frames")  # noqa: T201


if __name__ == "__main__":
    main()
