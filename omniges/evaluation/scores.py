"""What scoring a task gives, and which other recording each is held against in the shuffled row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from omniges.evaluation.statistics import Figure
from omniges.metrics.intervals import shuffled_pairing

__all__ = ["UNCONDITIONAL", "Scored", "partners"]

UNCONDITIONAL: Final = "made from no input, so no recording says what it should be"


@dataclass(frozen=True, slots=True)
class Scored:
    """Figures of a task, and how many seconds of each recording they are of."""

    figures: Sequence[Figure]
    seconds: Mapping[str, float]
    remarks: Sequence[str] = ()


def partners(keys: Sequence[str], seed: int) -> dict[str, str]:
    """Another recording for each, in one random cycle; none where there is only one."""
    if len(keys) < 2:
        return {}
    order = shuffled_pairing(len(keys), seed)[0]
    return {key: keys[int(other)] for key, other in zip(keys, order, strict=True)}
