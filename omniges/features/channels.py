"""Allowed channel counts of a model's gesture stream. This module does not import numpy, for a quick ``--help``."""

from __future__ import annotations

from typing import Final, Literal

GestureChannels = Literal[415, 424]
"""415: the channels of `GestureLayout`. 424: the same channels, then the 9 channels of jaw and eyes."""
WITH_JAW_EYES: Final[GestureChannels] = 424
