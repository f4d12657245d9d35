"""Measures training steps on a GPU, and compares them with the limits of the card, in under nine minutes.

    python benchmarks/gpu.py --shards shards --json gpu.json

For each preset, batch size and precision, with and without `--compile`, `omniges benchmark train` measures training
steps in a separate process: samples and tokens per second, memory, time spent waiting for data, torch operations per
step, and kernels of the compiled graph. The table also has:

* MFU: floating-point operations per second, divided by the number in the card's data sheet (dense, without sparsity).
  Only cards that are listed here have it.
* Products: the same operations per second, divided by the speed of plain matrix products on this card. Their shapes are
  those of a block's layers over the tokens of one stream, forward and backward.
* x OmniFlow: samples per second with our tokens, divided by samples per second with OmniFlow's tokens, on a trunk of
  the preset's size (`benchmarks/trunk.py`, batches of 8).

Configurations for which no time remains are listed as left out. Without a GPU, the program ends with exit code 3; use
``--device cpu`` to try the program on the CPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, get_args

import torch
import trunk
from corpora import say

from omniges.benchmark.settings import StepSpeedSettings
from omniges.benchmark.train_step import measure
from omniges.errors import ExitCode, OmnigesError
from omniges.model.spec import PRESETS
from omniges.trainer.config import Precision, Preset

_SHEET_FLOPS: Final = {
    "H200": {"no": 67e12, "bf16": 989e12, "fp16": 989e12},
    "H100": {"no": 67e12, "bf16": 989e12, "fp16": 989e12},
    "A100": {"no": 19.5e12, "bf16": 312e12, "fp16": 312e12},
    "L40S": {"no": 91.6e12, "bf16": 362e12, "fp16": 362e12},
}
"""Floating-point operations per second of dense products, from data sheets of SXM cards; float32 without TF32."""
_TYPES: Final = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_PRODUCT_S: Final = 0.2
_REFERENCE_BATCH: Final = 8
_REFERENCE_REPEATS: Final = 5
Row = dict[str, Any]


def product_shapes(width: int, mlp_ratio: int, rows: int) -> list[tuple[int, int, int]]:
    """Return the shapes (M, K, N) of a block's matrix products for `rows` tokens of a stream, forward and backward."""
    layers = [(width, 3 * width), (width, width), (width, mlp_ratio * width), (mlp_ratio * width, width)]
    forward = [(rows, inputs, outputs) for inputs, outputs in layers]
    inputs_gradient = [(rows, outputs, inputs) for inputs, outputs in layers]
    weights_gradient = [(outputs, rows, inputs) for inputs, outputs in layers]
    return [*forward, *inputs_gradient, *weights_gradient]


def product_speed(shapes: Sequence[tuple[int, int, int]], dtype: torch.dtype, device: torch.device) -> float:
    """Measure the floating-point operations per second of plain matrix products, one after the other."""
    pairs = [
        (torch.rand(m, k, device=device).to(dtype), torch.rand(k, n, device=device).to(dtype)) for m, k, n in shapes
    ]
    operations = sum(2.0 * m * k * n for m, k, n in shapes)
    best, began = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - began < _PRODUCT_S:
        _wait_for(device)
        start = time.perf_counter()
        for left, right in pairs:
            torch.mm(left, right)
        _wait_for(device)
        best = min(best, time.perf_counter() - start)
    return operations / best


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def sheet_flops(device_name: str, precision: Precision) -> float | None:
    """Return the operations per second in the data sheet of a card; None for a card that is not listed."""
    return next((flops[precision] for name, flops in _SHEET_FLOPS.items() if name in device_name), None)


def measured(settings: StepSpeedSettings, device: torch.device) -> Row:
    """Measure one configuration, and add its speed as a share of the data sheet and of plain matrix products."""
    (row,) = measure(settings)
    (preset,), (batch,) = settings.presets, settings.batch_sizes
    config = PRESETS[preset]
    shapes = product_shapes(config.width, config.mlp_ratio, batch * settings.window_ticks)
    products = product_speed(shapes, _TYPES[settings.mixed_precision], device)
    sheet = sheet_flops(row["device"], settings.mixed_precision)
    return row | {
        "mfu": None if sheet is None else row["operations_per_s"] / sheet,
        "same_shapes": row["operations_per_s"] / products,
    }


def reference(preset: Preset, device: torch.device) -> float:
    """Return the speed with our tokens divided by the speed with OmniFlow's tokens, on a trunk of the preset's size."""
    config = PRESETS[preset]
    sizes = trunk.Sizes(width=config.width, layers=config.layers, heads=config.heads, batch=_REFERENCE_BATCH)
    found = trunk.measure(sizes, repeats=_REFERENCE_REPEATS, device=device.type)
    return float(found["pairs of 64"]["samples_per_s"] / found["OmniFlow"]["samples_per_s"])


def measure_all(chosen: argparse.Namespace, device: torch.device) -> tuple[list[Row], list[str], dict[str, float]]:
    """Measure all configurations that fit the time.

    Args:
        chosen: The flags.
        device: Device of the steps.

    Returns:
        Rows of the table, names of configurations that were left out, and for each preset the ratio of `reference`.
    """
    rows: list[Row] = []
    left: list[str] = []
    ratios: dict[str, float] = {}
    longest, began = 0.0, time.monotonic()
    compiled = (False, True) if chosen.compile else (False,)
    for preset, batch, precision, compiles in itertools.product(
        chosen.preset, chosen.batch_size, chosen.mixed_precision, compiled
    ):
        name = f"{preset}, batch {batch}, {precision}{', compiled' if compiles else ''}"
        start = time.monotonic()
        if start - began + longest > chosen.minutes * 60:
            left.append(name)
            continue
        say(name)
        try:
            settings = StepSpeedSettings(
                shards=str(chosen.shards),
                presets=(preset,),
                batch_sizes=(batch,),
                window_ticks=chosen.window_ticks,
                mixed_precision=precision,
                compile=compiles,
                seconds=chosen.seconds,
            )
            rows.append(measured(settings, device))
            if preset not in ratios and chosen.reference:
                ratios[preset] = reference(preset, device)
        except OmnigesError as error:  # mostly too little memory; other configurations may need less
            left.append(f"{name}: {error}")
        longest = max(longest, time.monotonic() - start)
    return rows, left, ratios


def table(rows: Sequence[Row], left: Sequence[str], ratios: dict[str, float]) -> str:
    """Return the measurements as a Markdown table, as in docs/explanation/performance.md."""
    names = ("preset", "batch", "precision", "compiled", "s/step", "samples/s", "tokens/s", "MFU", "of products")
    heads = [*names, "memory GB", "data wait", "calls", "kernels", "x OmniFlow"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        ratio = ratios.get(row["preset"])
        cells = [
            row["preset"],
            str(row["batch_size"]),
            "float32" if row["mixed_precision"] == "no" else row["mixed_precision"],
            "yes" if row["compile"] else "no",
            f"{row['step_s']:.4f}",
            f"{row['samples_per_s']:,.1f}",
            f"{row['tokens_per_s']:,.0f}",
            "–" if row["mfu"] is None else f"{row['mfu']:.1%}",
            f"{row['same_shapes']:.2f}",
            f"{row['memory_bytes'] / 1e9:.2f}",
            f"{row['data_wait']:.1%}",
            f"{row['calls']:,}",
            "–" if row["kernels"] is None else f"{row['kernels']:,}",
            "–" if ratio is None else f"{ratio:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    device = rows[0]["device"] if rows else "no device"
    return "\n".join([f"On {device}:", "", *lines, *(f"left out: {one}" for one in left)])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shards", type=Path, default=Path("shards"), help="folder of shards (default: %(default)s)")
    parser.add_argument(
        "--preset",
        nargs="+",
        default=["base", "small", "tiny"],
        choices=list(PRESETS),
        help="model sizes (default: base small tiny)",
    )
    parser.add_argument(
        "--batch-size", nargs="+", type=int, default=[64, 256], help="windows per step (default: 64 256)"
    )
    precisions = list(get_args(Precision))
    parser.add_argument(
        "--mixed-precision", nargs="+", default=["bf16", "no"], choices=precisions, help="precisions (default: bf16 no)"
    )
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure each configuration also with --compile",
    )
    parser.add_argument(
        "--reference", action=argparse.BooleanOptionalAction, default=True, help="also measure OmniFlow's tokens"
    )
    parser.add_argument(
        "--window-ticks", type=int, default=64, help="length of a window in ticks of 0.1 s (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=5.0,
        help="minimum time in seconds for the steps of a configuration (default: %(default)s)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=8.5,
        help="minutes after which no further configuration starts (default: %(default)s)",
    )
    parser.add_argument(
        "--device", default="cuda", choices=["cuda", "cpu"], help="device of the steps (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser


def main() -> None:
    """Measure all configurations, print the table and write the JSON file."""
    chosen = _parser().parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        say("gpu.py: expected a GPU, found none; use a machine with a GPU, or try the program with --device cpu")
        sys.exit(ExitCode.ENVIRONMENT)
    rows, left, ratios = measure_all(chosen, torch.device(chosen.device))
    print(table(rows, left, ratios))
    if chosen.json:
        document = {"rows": rows, "left_out": left, "times_omniflow": ratios}
        chosen.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if not rows:
        sys.exit(ExitCode.FINDINGS)


if __name__ == "__main__":
    main()
