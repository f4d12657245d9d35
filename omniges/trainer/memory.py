"""What training a model holds in memory beside activations, computed from its configuration; nothing is allocated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from omniges.model.presets import ModelConfig, model_for_weights

_FLOAT32: Final = 4


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Bytes on each GPU."""

    weights: int
    gradients: int
    moments: int  # AdamW's mean and mean square of each gradient
    average: int
    gathered: int  # of FSDP: two whole blocks' weights, one computed with and one on its way, and a block's gradients

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.moments + self.average + self.gathered


def training_memory(
    config: ModelConfig, *, pieces: int, speakers: int, average: bool = True, shards: int = 1
) -> TrainingMemory:
    """Memory for float32 weights, their gradients, AdamW and the average, as `omniges train` has them.

    Args:
        config: the model.
        pieces: pieces of the tokenizer.
        speakers: number of speakers.
        average: whether the averaged weights are there, which `omniges train` always keeps.
        shards: GPUs over which everything is spread (fully sharded data parallel); 1: each holds it all, as with
            `omniges train`.
    """
    with torch.device("meta"):
        model = model_for_weights(config, pieces=pieces, speakers=speakers)
    count = sum(p.numel() for p in model.parameters())
    block = max(sum(p.numel() for p in block.parameters()) for block in model.trunk.blocks)
    own = _FLOAT32 * -(-count // shards)
    gathered = 3 * _FLOAT32 * block if shards > 1 else 0
    return TrainingMemory(own, own, 2 * own, own if average else 0, gathered)
