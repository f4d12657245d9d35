"""Settings of sampling; light enough for `omniges --help`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from omniges.options import check, option

Solver = Literal["euler", "heun", "dpm++"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """How samples are drawn."""

    steps: int = option(20, "Sampling steps.", least=1)
    """Each is one evaluation of the model, two with guidance, twice that with Heun but for the last."""
    guidance: float = option(1.0, "Weight of the conditions; 1: no classifier-free guidance.", least=0)
    """1 is the plain conditional model, 0 the unconditional one, above 1 exaggerates."""
    solver: Solver = option("euler", "How a step is taken.")
    shift: float = option(3.0, "Above 1: more of the steps at high noise.", above=0)
    """Levels become shift · σ / (1 + (shift − 1) · σ): above 1, more steps where it is decided what is said."""
    last_level: float = option(0.3, "Noise level below which no step begins.", least=0, below=1)
    """1 % of the levels that models are trained at are below 0.3, so what they would do there has hardly been learned
    (docs/generate.md). The σ_min of Karras et al. (2022)."""

    def __post_init__(self) -> None:
        """Refuse what cannot be sampled."""
        check(self)
