"""Measures training steps of one trunk on two layouts of tokens: ours (3 × 64, 3 × 43), OmniFlow's (1024 + 32 + 32).

    python benchmarks/trunk.py --width 384 --layers 8 --batch 4

Width, depth, heads, batch and precision are the same; only tokens and their channels differ. A step is a forward pass,
a backward pass and an AdamW update. The layouts take turns, so that a slow period of the machine affects all of them.
The median time of a step and the ratio to OmniFlow's layout are printed. OmniFlow processes all three streams for every
task. Our trainer leaves out the third stream of a task between two streams; `pairs of 64` measures this.

Multiplications are counted from the shapes: for each block, 12 d² per token and 2 d per pair of tokens, and the layers
outside of the blocks. AdaLN is not counted. A step counts as three forward passes.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
from corpora import say
from torch import Tensor

from omniges.model.trunk import JointFlowTransformer


@dataclass(frozen=True, slots=True)
class Layout:
    """Tokens and channels of each stream."""

    tokens: Mapping[str, int]
    channels: Mapping[str, int]
    rotary: bool
    text_head_width: int | None = None


_OURS: Final = {"gesture": 1245, "text": 64, "audio": 640}
_OMNIFLOW: Final = {"gesture": 512, "text": 4096, "audio": 32}
LAYOUTS: Final = {
    "OmniFlow": Layout({"gesture": 32, "text": 32, "audio": 1024}, _OMNIFLOW, rotary=False, text_head_width=4096),
    "3 x 64": Layout(dict.fromkeys(_OURS, 64), _OURS, rotary=True),
    "3 x 43": Layout(dict.fromkeys(_OURS, 43), _OURS, rotary=True),
    "pairs of 64": Layout({"gesture": 64, "audio": 64}, _OURS, rotary=True),
}
_TICK_S: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes that all layouts share."""

    width: int
    layers: int
    heads: int
    batch: int


@dataclass(frozen=True, slots=True)
class _Trained:
    """A trunk with its optimizer. Layouts with the same channels share it, to save memory."""

    model: JointFlowTransformer
    optimizer: torch.optim.AdamW


def _trained(layout: Layout, sizes: Sizes, device: str) -> _Trained:
    streams = {name: {"inputs": c, "outputs": c} for name, c in layout.channels.items()}
    if layout.text_head_width is not None:
        streams["text"] = {"inputs": 4096, "outputs": 64, "head_width": layout.text_head_width}
    torch.manual_seed(0)
    with torch.device(device):
        model: JointFlowTransformer = JointFlowTransformer(
            streams=streams,
            width=sizes.width,
            layers=sizes.layers,
            heads=sizes.heads,
            rotary_periods_s=(0.5, 120.0) if layout.rotary else None,
            context_only=() if layout.rotary else ("text",),
        )
    return _Trained(model, torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True))


def _step(layout: Layout, sizes: Sizes, trained: _Trained, device: str) -> Callable[[], None]:
    """Return a function that runs one training step of a layout on random data."""
    with torch.device(device):
        tokens = {n: torch.randn(sizes.batch, count, layout.channels[n]) for n, count in layout.tokens.items()}
        levels = {n: torch.rand(sizes.batch) for n in tokens}
        seconds = {n: _TICK_S * torch.arange(count) for n, count in layout.tokens.items()}

    def step() -> None:
        outputs: dict[str, Tensor] = trained.model(tokens, levels, seconds=seconds if layout.rotary else None)
        loss = torch.stack([(output - 1).square().mean() for output in outputs.values()]).sum()
        trained.optimizer.zero_grad(set_to_none=False)  # as in training, where every weight has a gradient
        loss.backward()  # type: ignore[no-untyped-call]
        trained.optimizer.step()
        if device != "cpu":
            torch.cuda.synchronize()

    return step


def _operations(layout: Layout, sizes: Sizes) -> float:
    """Return the floating-point operations of a step, two for each multiplication and addition."""
    d, counts = sizes.width, layout.tokens
    total = sum(counts.values())
    blocks = sizes.layers * (12 * d * d * total + 2 * d * total * total)
    outside = sum(2 * count * layout.channels[name] * d for name, count in counts.items())
    return 3 * 2.0 * sizes.batch * (blocks + outside)


def measure(sizes: Sizes, *, repeats: int, device: str) -> dict[str, Any]:
    """Measure the median seconds per step, samples per second and operations per second of each layout."""
    kinds: dict[bool, _Trained] = {}
    steps = {}
    for name, layout in LAYOUTS.items():
        say(f"building {name}")
        if layout.rotary not in kinds:
            kinds[layout.rotary] = _trained(layout, sizes, device)
        steps[name] = _step(layout, sizes, kinds[layout.rotary], device)
        steps[name]()  # the first step allocates memory
    times: dict[str, list[float]] = {name: [] for name in LAYOUTS}
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    return {
        name: {
            "step_s": median(found),
            "samples_per_s": sizes.batch / median(found),
            "gflop_per_s": _operations(LAYOUTS[name], sizes) / median(found) / 1e9,
            "all_step_s": found,
        }
        for name, found in times.items()
    }


def _print(found: Mapping[str, Any]) -> None:
    reference = found["OmniFlow"]["samples_per_s"]
    print(f"{'layout':12} {'s/step':>8} {'samples/s':>10} {'GFLOP/s':>8} {'x OmniFlow':>11}")
    for name, figures in found.items():
        ratio = figures["samples_per_s"] / reference
        print(
            f"{name:12} {figures['step_s']:8.3f} {figures['samples_per_s']:10.2f} {figures['gflop_per_s']:8.1f} "
            f"{ratio:11.1f}"
        )


def main() -> None:
    """Measure all layouts, print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--width", type=int, default=384, help="width of the trunk (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=8, help="blocks of the trunk (default: %(default)s)")
    parser.add_argument("--heads", type=int, default=6, help="attention heads (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="samples per step (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="measured steps of each layout (default: %(default)s)")
    parser.add_argument(
        "--threads",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="threads of torch (default: all cores, here %(default)s)",
    )
    parser.add_argument("--device", default="cpu", help="device of the steps (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    chosen = parser.parse_args()
    if min(chosen.width, chosen.layers, chosen.heads, chosen.batch, chosen.repeats, chosen.threads) < 1:
        parser.error("sizes, --repeats and --threads: expected at least 1")
    torch.set_num_threads(chosen.threads)
    sizes = Sizes(width=chosen.width, layers=chosen.layers, heads=chosen.heads, batch=chosen.batch)
    found = measure(sizes, repeats=chosen.repeats, device=chosen.device)
    _print(found)
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
