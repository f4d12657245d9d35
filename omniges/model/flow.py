"""The flow: a batch of windows to its loss, and predictions for sampling.

x_σ = (1 − σ) x + σ ε for each stream at its own level σ (rectified flow: Liu et al. 2023). Nothing in a step asks
the device for a value: what the host must know (tasks, who is present, at which level) was drawn on the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from omniges.model.random import Purpose, normal
from omniges.model.streams import STREAMS, Stream, StreamName, noised
from omniges.model.tasks import FlowSettings, Group, Plan, carried_as_noise, groups_of
from omniges.model.trunk import JointFlowTransformer

AbsentStreams = Literal["left-out", "noise"]
"""What becomes of a stream that a sample has not: it takes no part, or it is there as noise at level 1 (OmniFlow)."""

_NOISE: Final = {"gesture": Purpose.NOISE_GESTURE, "text": Purpose.NOISE_TEXT, "audio": Purpose.NOISE_AUDIO}


@dataclass(frozen=True, slots=True)
class Windows:
    """A batch of windows of n ticks on the model's device."""

    arrays: Mapping[StreamName, Tensor]  # gesture (B, 3 n, 415), audio (B, 10 n, 64), text (B, n): as shards hold them
    positions: Tensor  # (B,) int64, places in the sample sequence
    speakers: Tensor  # (B,) int64, 0: unknown


@dataclass(frozen=True, slots=True)
class FlowLoss:
    """What a batch costs. ``total`` is the mean over samples of the weighted sum over their targets."""

    total: Tensor  # ()
    each: Tensor  # (B, 3), without gradient and weights, 0 where a stream is no target; columns as STREAMS


def draw_noise(seed: int, positions: Tensor, name: StreamName, shape: Sequence[int]) -> Tensor:
    """Standard normal noise (B, *shape) of one stream for positions (B,)."""
    drawn = normal(seed, positions, _NOISE[name], torch.Size(shape).numel())
    return drawn.reshape(-1, *shape)


class FlowModel(nn.Module):
    """Trunk and streams together: the one module that is trained, kept and sampled from."""

    def __init__(
        self, trunk: JointFlowTransformer, streams: Mapping[StreamName, Stream], absent: AbsentStreams = "left-out"
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.absent = absent
        self._width: int = trunk.config["width"]
        self._pooled_width: int | None = trunk.config["pooled_width"]
        self._rotary = trunk.rotary_periods_s is not None
        self.streams = nn.ModuleDict({name: streams[name] for name in STREAMS})

    def stream(self, name: StreamName) -> Stream:
        """One stream's tokens."""
        return cast("Stream", self.streams[name])

    def forward(
        self, windows: Windows, plan: Plan, settings: FlowSettings, seed: int, *, dense: bool = False
    ) -> FlowLoss:
        """The loss of windows under a plan drawn for their positions.

        Every parameter that takes gradients gets one, whatever tasks were drawn, so ranks with different tasks can
        average theirs. ``dense``: see `groups_of`.
        """
        device, batch = windows.positions.device, len(plan.task)
        if self.absent == "noise":
            plan, dense = carried_as_noise(plan), True
        levels = torch.from_numpy(plan.levels).to(device, non_blocking=True)
        present = torch.from_numpy(plan.present).to(device, non_blocking=True)
        speakers = windows.speakers * torch.from_numpy(plan.speaker_known).to(device, non_blocking=True)
        total = self._untouched(plan)
        each = torch.zeros((batch, len(STREAMS)), device=device)
        for group in groups_of(plan, dense=dense):
            rows = torch.from_numpy(group.rows).to(device, non_blocking=True)
            taken = _Taken(
                {name: windows.arrays[name][rows] for name in group.streams},
                windows.positions[rows],
                levels[rows],
                present[rows],
                speakers[rows],
            )
            for name, (chosen, losses) in self._group_losses(group, taken, seed).items():
                total = total + settings.weights[name] * losses.sum() / batch
                each[:, STREAMS.index(name)].index_copy_(0, rows[chosen], losses.detach())
        return FlowLoss(total, each)

    def carried(self, targets: Sequence[StreamName]) -> list[StreamName]:
        """Streams that `predict` must be given beside the targets: as clean conditions, or as noise at level 1."""
        return [name for name in STREAMS if name not in targets] if self.absent == "noise" else []

    def predict(
        self,
        tokens: Mapping[StreamName, Tensor],
        levels: Mapping[StreamName, Tensor],
        targets: Sequence[StreamName],
        speakers: Tensor,
    ) -> dict[StreamName, Tensor]:
        """Clean tokens (B, N, C) that the model expects of the targets, from tokens (B, N, C) at levels (B,)."""
        missing = [name for name in self.carried(targets) if name not in tokens]
        if missing:
            raise ValueError(f"this model carries absent streams as noise: pass tokens of {', '.join(missing)}")
        every = torch.arange(len(speakers), device=speakers.device)
        outputs = self.trunk(
            tokens,
            levels,
            **self._places(tokens),
            pooled=self._pooled(speakers),
            speakers=speakers,
            rows=dict.fromkeys(targets, every),
        )
        return {name: self.stream(name).clean(outputs[name], tokens[name], levels[name]) for name in targets}

    def _places(self, tokens: Mapping[StreamName, Tensor]) -> dict[str, dict[StreamName, Tensor]]:
        """Where tokens are, as the trunk's arguments: times for rotary positions, or embeddings that are added."""
        learned = {name: places for name in tokens if (places := self.stream(name).places) is not None}
        if self._rotary:
            seconds = {name: self.stream(name).seconds(x.shape[1]) for name, x in tokens.items()}
            return {"seconds": seconds, "added": learned}
        found = {name: self.stream(name).positions(x.shape[1], self._width) for name, x in tokens.items()}
        return {"added": {name: embedding for name, embedding in found.items() if embedding is not None} | learned}

    def _pooled(self, speakers: Tensor) -> Tensor | None:
        """For trunks with a vector of the sample as a whole: zeros, which stand there for *none*."""
        width = self._pooled_width
        return None if width is None else torch.zeros(len(speakers), width, device=speakers.device)

    def _group_losses(self, group: Group, taken: _Taken, seed: int) -> dict[StreamName, tuple[Tensor, Tensor]]:
        """For each target stream of a group: the rows of the group that have it, and their losses.

        Where tokens are noised, no gradient goes back into what made them.
        """

        def index(rows: npt.NDArray[np.int64]) -> Tensor:
            return torch.from_numpy(rows).to(taken.positions.device, non_blocking=True)

        clean = {name: self.stream(name).tokens(arrays) for name, arrays in taken.arrays.items()}
        noise, tokens = {}, {}
        for name, x in clean.items():
            rows = index(group.noised[name])
            noise[name] = draw_noise(seed, taken.positions[rows], name, x.shape[1:])
            at_levels = noised(x.detach()[rows], noise[name], taken.levels[rows, STREAMS.index(name)])
            tokens[name] = x.index_copy(0, rows, at_levels.to(x.dtype))
        targets = {name: index(chosen) for name, chosen in group.targets.items()}
        outputs = self.trunk(
            tokens,
            {name: taken.levels[:, STREAMS.index(name)] for name in tokens},
            **self._places(tokens),
            pooled=self._pooled(taken.speakers),
            present={name: taken.present[:, STREAMS.index(name)] for name in tokens if name in group.absent},
            speakers=taken.speakers,
            rows=targets,
        )
        found = {}
        for name, chosen in targets.items():
            own = noise[name][index(np.searchsorted(group.noised[name], group.targets[name]))]
            arrays, x = taken.arrays[name][chosen], clean[name][chosen].detach()
            found[name] = chosen, self.stream(name).losses(outputs[name], arrays, x, own)
        return found

    def _untouched(self, plan: Plan) -> Tensor:
        """Zero, with a gradient of zero for every parameter where the plan leaves some without any."""
        made = plan.target.any(axis=0).all()
        text = STREAMS.index("text")
        read = (plan.present[:, text] & (plan.levels[:, text] == 0)).any()
        zero = next(self.parameters()).new_zeros(())
        if made and read:
            return zero
        return zero + 0.0 * sum(p.flatten()[0] for p in self.parameters() if p.requires_grad)


@dataclass(frozen=True, slots=True)
class _Taken:
    """What the R samples of a group were given."""

    arrays: Mapping[StreamName, Tensor]  # (R, …) of the streams that take part
    positions: Tensor  # (R,)
    levels: Tensor  # (R, 3)
    present: Tensor  # (R, 3)
    speakers: Tensor  # (R,)
