"""The emotion label of a recording."""

from __future__ import annotations

from omniges.conditions.labels import LabelStream


class Emotion(LabelStream):
    """Emotion of a recording, such as happiness."""

    name = "emotion"
    labels = ("emotion",)
