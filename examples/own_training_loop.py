"""Train your own model on windows of shards; here, a small convolutional network predicts gesture from audio.

python examples/own_training_loop.py SHARDS [STEPS]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from omniges.data.windows import WindowDataset

WINDOW_TICKS = 16  # 1.6 s: 48 gesture frames, 160 mel frames


def make_model() -> nn.Module:
    """Return a model from mel (B, 64, 160) to gesture (B, 415, 48)."""
    return nn.Sequential(
        nn.Conv1d(64, 128, 5, padding=2),
        nn.GELU(),
        nn.AdaptiveAvgPool1d(3 * WINDOW_TICKS),
        nn.Conv1d(128, 415, 5, padding=2),
    )


def batches(data: WindowDataset, batch_size: int) -> Iterator[dict[str, Any]]:
    """Yield batches, epoch after epoch."""
    loader = DataLoader(data, batch_size, shuffle=True, collate_fn=WindowDataset.collate)
    while True:
        yield from loader


def train(shards: str | Path, steps: int) -> list[float]:
    """Train for a number of steps, and return the loss of each step."""
    torch.manual_seed(0)
    data = WindowDataset(shards, window_ticks=WINDOW_TICKS, stride_ticks=4, arrays=("gesture", "mel"), require="audio")
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _, batch in zip(range(steps), batches(data, 8), strict=False):
        predicted = model(batch["mel"].transpose(1, 2)).transpose(1, 2)
        recorded = batch["present"]["gesture"][:, None, :].expand_as(predicted)  # only recorded channels have a loss
        loss = nn.functional.mse_loss(predicted[recorded], batch["gesture"][recorded])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    found = train(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 100)
    print(f"loss {found[0]:.3f} at first, {found[-1]:.3f} after {len(found)} steps")
