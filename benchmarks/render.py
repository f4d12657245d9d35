"""Measures speed and peak memory of `omniges render`, for videos of several lengths.

    python benchmarks/render.py --minutes 1 10

The videos show synthetic motion with sound. A first short video compiles functions and is not measured. Then a separate
process renders each video. The CPU time per second of video depends little on other work of the machine. Divided by the
number of cores, it gives the time that an idle machine would need.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import soundfile

from omniges.features.gesture import BETAS, EXPRESSIONS, POSE_COLUMNS
from omniges.formats.motion import SmplxMotion, encode_smplx

_FRAMES_HZ, _SOUND_HZ = 30, 16_000
_ONE: Final = """
import json, resource, sys, time
from pathlib import Path
from omniges.exchange.settings import RenderSettings
from omniges.exchange.video import render
began = time.monotonic()
summary = render(RenderSettings(paths=(sys.argv[1],), output_file=Path(sys.argv[2])))
own = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"seconds": summary.seconds, "frames": summary.frames, "megabytes": summary.bytes / 1e6,
    "wall_s": time.monotonic() - began, "cpu_s": own.ru_utime + own.ru_stime, "peak_mb": own.ru_maxrss / 1024}))
"""


def make_clip(folder: Path, seconds: float) -> Path:
    """Write an NPZ in which all joints swing slowly, and a WAV with noise; return the path of the NPZ."""
    draw = np.random.default_rng(0)
    times = np.arange(round(seconds * _FRAMES_HZ))[:, None] / _FRAMES_HZ
    swing = np.sin(2 * np.pi * draw.uniform(0.2, 1.0, POSE_COLUMNS) * times + draw.uniform(0, 6, POSE_COLUMNS))
    trans = np.tile([0.0, 1.3, 0.0], (len(times), 1))
    face = np.sin(2 * np.pi * draw.uniform(0.2, 3.0, EXPRESSIONS) * times)
    path = folder / f"{seconds:g}.npz"
    path.write_bytes(encode_smplx(SmplxMotion(0.25 * swing, trans, face, np.zeros(BETAS))))
    sound = draw.normal(0, 0.1, round(seconds * _SOUND_HZ))
    soundfile.write(path.with_suffix(".wav"), sound.clip(-1, 1), _SOUND_HZ)
    return path


def render_alone(clip: Path) -> dict[str, Any]:
    """Render a clip in a separate process, and return its times and peak memory."""
    command = [sys.executable, "-c", _ONE, str(clip), str(clip.with_suffix(".mp4"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Print a line of JSON for each length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--minutes", type=float, nargs="+", default=[1.0, 10.0], help="lengths of the videos in minutes (default: 1 10)"
    )
    given = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="omniges-render-") as name:
        folder = Path(name)
        render_alone(make_clip(folder, 1.0))
        for minutes in given.minutes:
            row = render_alone(make_clip(folder, 60 * minutes))
            row |= {
                "times_real_time": row["seconds"] / row["wall_s"],
                "times_real_time_on_idle_cores": row["seconds"] / row["cpu_s"] * cores,
                "cores": cores,
                "load_average": os.getloadavg()[0],
            }
            print(json.dumps({key: round(value, 2) for key, value in row.items()}))


if __name__ == "__main__":
    main()
