"""Write shards of your own arrays; here, the arrays are random motion and sound.

python examples/own_corpus_to_shards.py SHARDS
"""

import sys
from collections.abc import Iterator

import numpy as np

import omniges

SECONDS, RATE_HZ, FRAME_RATE_HZ = 4, 16_000, 30


def recordings(seed: int = 0) -> Iterator[omniges.Recording]:
    """Yield one recording after the other; a generator keeps one in memory at a time."""
    rng = np.random.default_rng(seed)
    frames = SECONDS * FRAME_RATE_HZ
    for number in range(6):
        yield omniges.Recording(
            key=f"take_{number}",
            poses=rng.normal(0, 0.1, (frames, 165)),  # SMPL-X axis-angle in radians
            trans=np.cumsum(rng.normal(0, 0.01, (frames, 3)), axis=0),  # metres, y up
            frame_rate_hz=FRAME_RATE_HZ,
            absent=("hands", "jaw_eyes"),  # these columns are not read; without expressions there is no face
            samples=rng.normal(0, 0.1, SECONDS * RATE_HZ),
            sample_rate_hz=RATE_HZ,
            words=[("hello", 0.5, 0.9), ("again", 1.5, 2.1)] if number else None,  # take_0 has no transcript
            speaker="anna",
            labels={"mood": "calm" if number % 2 else "lively"},
            split="train" if number < 4 else "test",
        )


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    print(omniges.write_shards(recordings(), sys.argv[1], keep_audio=True))
    print(omniges.verify_shards(sys.argv[1], level="deep"))
