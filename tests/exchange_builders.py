"""Motion for tests of exports."""

from __future__ import annotations

import numpy as np

from omniges.formats.motion import SmplxMotion


def random_motion(frames: int = 40, seed: int = 0, spread: float = 0.8) -> SmplxMotion:
    """Return smooth random motion of all joints that walks, turns about itself and moves its face."""
    draw = np.random.default_rng(seed)
    steps = draw.normal(0, spread / np.sqrt(frames), (frames, 165)).cumsum(0) + draw.normal(0, 0.3, 165)
    steps[:, 1] += np.linspace(0, 7, frames)  # over half a turn and more, where Euler angles wrap
    trans = draw.normal(0, 0.01, (frames, 3)).cumsum(0) + (0.3, 1.3, -0.2)
    return SmplxMotion(steps, trans, draw.normal(0, 0.5, (frames, 100)), np.zeros(300), gender="neutral")


def plain_positions(motion: SmplxMotion, offsets: np.ndarray, parents: tuple[int, ...], root: np.ndarray) -> np.ndarray:
    """Return joints (T, 55, 3) by Rodrigues' formula, a joint and a frame at a time."""
    turns = np.empty((len(motion.poses), len(parents), 3, 3))
    places = np.empty((len(motion.poses), len(parents), 3))
    for t, pose in enumerate(motion.poses.reshape(len(motion.poses), -1, 3)):
        for j, vector in enumerate(pose):
            angle = np.linalg.norm(vector)
            x, y, z = vector / max(angle, 1e-12)
            k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
            own = np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k
            if parents[j] < 0:
                turns[t, j], places[t, j] = own, root[t]
            else:
                above = turns[t, parents[j]]
                turns[t, j], places[t, j] = above @ own, places[t, parents[j]] + above @ offsets[j]
    return places
