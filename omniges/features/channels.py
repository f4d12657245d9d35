"""Allowed channel counts of a model's gesture stream, in a module of its own: ``omniges --help`` needs no numpy."""

from __future__ import annotations

from typing import Final, Literal

GestureChannels = Literal[415, 424]
"""Either the channels of `GestureLayout`, or these channels followed by the 9 channels of jaw and eyes."""
WITH_JAW_EYES: Final[GestureChannels] = 424
