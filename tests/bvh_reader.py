"""A plain BVH reader for tests, by the format's description alone: words, channels in order, matrices."""

from __future__ import annotations

from typing import Any

import numpy as np


def read_bvh(text: str) -> tuple[dict[str, np.ndarray], float]:
    """Return world positions (T, 3) by joint in the file's unit, and the frame time in seconds."""
    head, _, tail = text.partition("MOTION")
    joints = _hierarchy(head.split())
    lines = tail.strip().splitlines()
    frames, frame_time_s = int(lines[0].split()[1]), float(lines[1].split()[2])
    values = np.array([line.split() for line in lines[2:]], dtype=np.float64)
    assert len(values) == frames
    column, world = 0, {}
    for joint in joints:
        move, turn = np.tile(joint["offset"], (frames, 1)), np.tile(np.eye(3), (frames, 1, 1))
        for channel in joint["channels"]:
            axis = "XYZ".index(channel[0])
            if channel.endswith("position"):
                move[:, axis] += values[:, column]
            else:
                turn = turn @ _about(axis, np.deg2rad(values[:, column]))
            column += 1
        if joint["parent"] is None:
            world[joint["name"]] = turn, move
        else:
            above, place = world[joint["parent"]["name"]]
            world[joint["name"]] = above @ turn, place + np.einsum("tij,tj->ti", above, move)
    assert column == values.shape[1]
    return {name: place for name, (_, place) in world.items()}, frame_time_s


def _about(axis: int, angle: np.ndarray) -> np.ndarray:
    a, b = (axis + 1) % 3, (axis + 2) % 3
    found = np.zeros((len(angle), 3, 3))
    found[:, axis, axis] = 1
    found[:, a, a] = found[:, b, b] = np.cos(angle)
    found[:, b, a] = np.sin(angle)
    found[:, a, b] = -np.sin(angle)
    return found


def _hierarchy(words: list[str]) -> list[dict[str, Any]]:
    """Return the joints in the order of their channels, each with name, parent, offset and channels."""
    joints: list[dict[str, Any]] = []
    opened: list[dict[str, Any]] = []  # those whose braces are open; end sites too
    at = 1
    while at < len(words):
        word = words[at]
        if word in {"ROOT", "JOINT", "End"}:
            opened.append({"name": words[at + 1], "parent": opened[-1] if opened else None})
            joints += [opened[-1]] if word != "End" else []
            at += 3  # with the brace
        elif word == "OFFSET":
            opened[-1]["offset"] = np.array(words[at + 1 : at + 4], dtype=np.float64)
            at += 4
        elif word == "CHANNELS":
            count = int(words[at + 1])
            opened[-1]["channels"] = words[at + 2 : at + 2 + count]
            at += 2 + count
        else:
            assert word == "}"
            opened.pop()
            at += 1
    return joints
