"""Benchmark of training steps against the speed of matrix products on the same machine.

The measured steps are complete training steps, as in `train`: batches from the loader, losses, gradients, clipping,
AdamW and EMA. Each configuration runs in a separate process, so that its memory is measured separately. The number of
floating-point operations includes matrix products, as torch's counter reports them, and attention. For queries
(B, H, N, D) and keys (B, H, M, D), the forward pass of attention counts as 4 · B · H · N · M · D operations. The
backward pass counts as twice this number. The attention scores that the backward pass computes again are not counted.

The benchmark also reports two numbers that do not depend on the speed of the machine. The first is the number of torch
operations in a step, except views. The second, with `--compile`, is the number of kernels of the compiled graph:
generated kernels and library calls. An accelerator needs some microseconds to launch each operation or kernel, so these
numbers limit the speed of the training steps.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final, cast

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from omniges.benchmark.settings import REPORTED, StepSpeedSettings, aligned
from omniges.errors import DataError, EnvironmentFault, OmnigesError, UsageFault
from omniges.model.draws import draw_plan
from omniges.trainer.config import Preset, TrainSettings
from omniges.trainer.distributed import Ranks
from omniges.trainer.run import Run, accelerated, open_run

_WARM_STEPS: Final = 5  # the memory allocator grows during the first steps, which take at least twice as long
_MIN_STEPS: Final = 3
_PEAK_SIDES: Final = (512, 1024, 2048)
_PEAK_S: Final = 0.4
_PRECISIONS: Final = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_FAULTS: Final[dict[str, type[OmnigesError]]] = {
    error.__name__: error for error in (DataError, EnvironmentFault, UsageFault)
}


def measure(settings: StepSpeedSettings) -> list[dict[str, Any]]:
    """Measure training steps for every preset and every batch size.

    Args:
        settings: Settings of the benchmark.

    Returns:
        One dictionary of measurements for each configuration: the rows of `report`.

    Raises:
        OmnigesError: A DataError, UsageFault or EnvironmentFault that a measuring process raised.
    """
    return [
        _in_own_process(settings, preset, batch_size)
        for preset in settings.presets
        for batch_size in settings.batch_sizes
    ]


def _in_own_process(settings: StepSpeedSettings, preset: Preset, batch_size: int) -> dict[str, Any]:
    """Measure one configuration in a separate process."""
    settings.of(preset, batch_size)
    question = asdict(settings) | {"presets": [preset], "batch_sizes": [batch_size]}
    command = [sys.executable, "-P", "-m", "omniges.benchmark.train_step"]
    done = subprocess.run(command, input=json.dumps(question), capture_output=True, text=True, check=False)
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise EnvironmentFault(
            f"{preset}, batch {batch_size}: expected results from the measuring process, found that it exited "
            f"without them ({last}); use a smaller batch if memory ran out"
        ) from error
    if "fault" in found:
        raise _FAULTS[found["fault"]](found["message"])
    return found


@dataclass(frozen=True, slots=True)
class _Step:
    """Measurements of one training step."""

    seconds: float
    waited_s: float  # time until the loader returned the batch
    tokens: int
    operations: float  # floating-point operations
    peak: float  # floating-point operations per second of plain matrix products, measured right after the step


def measure_one(settings: TrainSettings, seconds: float) -> dict[str, Any]:
    """Measure one configuration in this process.

    Args:
        settings: Settings of the training run.
        seconds: Minimum total time of the measured steps, in seconds.

    Returns:
        The measurements by name: one row of `report`.
    """
    with ExitStack() as stack:
        accelerator = stack.enter_context(accelerated(settings))
        run = open_run(settings, accelerator, Ranks(), stack)
        peak = ProductPeak(run.learner.device, _PRECISIONS[settings.mixed_precision])
        before = compiled_kernels()
        _step(run, 0, peak)
        kernels = compiled_kernels() - before if settings.compile else None
        for number in range(1, _WARM_STEPS):
            _step(run, number, peak)
        calls = _calls(run, _WARM_STEPS - 1)
        steps: list[_Step] = []
        while len(steps) < _MIN_STEPS or sum(step.seconds for step in steps) < seconds:
            steps.append(_step(run, _WARM_STEPS + len(steps), peak))
        return _figures(settings, steps, run.learner.device) | {"calls": calls, "kernels": kernels}


def _step(run: Run, number: int, peak: ProductPeak) -> _Step:
    """Measure the time of one training step, then count its operations in a second pass that is not timed."""
    settings, learner, flow = run.settings, run.learner, run.settings.flow_settings()
    began = time.perf_counter()
    windows, positions = run.feed.next()
    waited = time.perf_counter() - began
    streams = None if windows.present is None else windows.present.streams
    plan = draw_plan(flow, settings.seed, positions, streams)
    learner.micro_step(windows, plan, last=True)
    learner.finish_step(number)
    _wait_for(learner.device)
    seconds = time.perf_counter() - began
    with eager(), operation_counter() as counter:
        learner.micro_step(windows, plan, last=True)
    learner.discard()
    tokens = int(plan.present.sum()) * settings.window_ticks
    return _Step(seconds, waited, tokens, float(counter.get_total_flops()), peak.measure())


_VIEWS: Final = frozenset(
    {
        *(
            "view",
            "_unsafe_view",
            "reshape",
            "unsqueeze",
            "squeeze",
            "permute",
            "t",
            "transpose",
            "expand",
            "as_strided",
        ),
        *("select", "slice", "unbind", "split", "split_with_sizes", "chunk", "unfold", "detach", "alias", "lift_fresh"),
        *("empty", "empty_like", "empty_strided", "new_empty"),
    }
)
"""Names of torch operations that launch no kernel, so that they are not counted."""


class CallCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context that counts torch operations, except views.

    It cannot count operations inside compiled functions. Use it inside `eager`, which runs them without compilation.
    """

    calls: int

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count an operation and run it."""
        del types
        self.calls += func.overloadpacket.__name__ not in _VIEWS
        return func(*args, **(kwargs or {}))


def eager() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which compiled functions run as plain Python, so that operations can be counted."""
    return cast("contextlib.AbstractContextManager[Any]", torch.compiler.set_stance("force_eager"))


def _calls(run: Run, number: int) -> int:
    """Count the torch operations of one training step; reading the batch is not counted."""
    settings, flow = run.settings, run.settings.flow_settings()
    windows, positions = run.feed.next()
    with eager(), CallCounter() as counter:
        streams = None if windows.present is None else windows.present.streams
        plan = draw_plan(flow, settings.seed, positions, streams)
        run.learner.micro_step(windows, plan, last=True)
        run.learner.finish_step(number)
    return int(counter.calls)


def compiled_kernels() -> int:
    """Return the number of kernels in all graphs that this process compiled: generated kernels and library calls."""
    counters = importlib.import_module("torch._dynamo.utils").counters  # imported here, because it takes seconds
    metrics = importlib.import_module("torch._inductor.metrics")
    return int(metrics.generated_kernel_count + counters["inductor"]["extern_calls"])


def operation_counter() -> FlopCounterMode:
    """Return torch's counter of floating-point operations, extended to count attention on the CPU too."""
    ops = torch.ops.aten
    return FlopCounterMode(
        display=False,
        custom_mapping={
            ops._scaled_dot_product_flash_attention_for_cpu: _attention,
            ops._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
        },
    )


def _attention(query: Sequence[int], key: Sequence[int], *_: Any, **__: Any) -> int:
    """Return the operation count of the forward pass of attention with queries (B, H, N, D) and keys (B, H, M, D)."""
    return 4 * math.prod(query) * key[2]


def _attention_backward(_grad: Any, query: Sequence[int], key: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * _attention(query, key)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class ProductPeak:
    """Measurement of the speed of plain square matrix products on a device."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self._pairs = [
            (torch.rand(side, side, device=device).to(dtype), torch.rand(side, side, device=device).to(dtype))
            for side in _PEAK_SIDES
        ]

    def measure(self) -> float:
        """Measure several matrix sizes; return the highest speed, in floating-point operations per second."""
        return max(self._speed(left, right) for left, right in self._pairs)

    def _speed(self, left: torch.Tensor, right: torch.Tensor) -> float:
        best = math.inf
        began = time.perf_counter()
        while time.perf_counter() - began < _PEAK_S / len(self._pairs):
            start = time.perf_counter()
            torch.mm(left, right)
            _wait_for(self._device)
            best = min(best, time.perf_counter() - start)
        return 2 * len(left) ** 3 / best


def _figures(settings: TrainSettings, steps: Sequence[_Step], device: torch.device) -> dict[str, Any]:
    """Return the measurements of one configuration by name.

    ``share_of_peak`` is the speed of a step divided by the speed of plain matrix products: the median, minimum and
    maximum over all steps.
    """
    seconds = sum(step.seconds for step in steps)
    shares = sorted(step.operations / step.seconds / step.peak for step in steps)
    memory = (
        torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return {
        "preset": settings.preset,
        "batch_size": settings.batch_size,
        **{name: getattr(settings, name) for name in REPORTED},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads",
        "steps": len(steps),
        "step_s": median(step.seconds for step in steps),
        "samples_per_s": len(steps) * settings.batch_size / seconds,
        "tokens_per_s": sum(step.tokens for step in steps) / seconds,
        "operations_per_s": sum(step.operations for step in steps) / seconds,
        "product_operations_per_s": median(step.peak for step in steps),
        "share_of_peak": {"median": median(shares), "min": shares[0], "max": shares[-1]},
        "memory_bytes": memory,
        "data_wait": sum(step.waited_s for step in steps) / seconds,
    }


def report(rows: Sequence[dict[str, Any]]) -> str:
    """Format the result of `measure` as a text table."""
    first = rows[0]
    head = (
        f"windows of {first['window_ticks']} ticks, on {first['device']}, precision {first['mixed_precision']}; "
        "share of peak: of plain matrix products measured between the steps, median [lowest–highest step]; "
        "calls/step: operations that are no views, without a compiler; kernels: of the compiled graph"
    )
    lines = [
        [
            *("preset", "batch", "steps", "s/step", "samples/s", "tokens/s", "GFLOP/s", "share of peak", "MB"),
            *("data wait", "calls/step", "kernels"),
        ]
    ]
    for row in rows:
        share = row["share_of_peak"]
        lines.append(
            [
                row["preset"],
                str(row["batch_size"]),
                str(row["steps"]),
                f"{row['step_s']:.3f}",
                f"{row['samples_per_s']:.1f}",
                f"{row['tokens_per_s']:,.0f}",
                f"{row['operations_per_s'] / 1e9:,.1f}",
                f"{share['median']:.2f} [{share['min']:.2f}–{share['max']:.2f}]",
                f"{row['memory_bytes'] / 1e6:,.0f}",
                f"{row['data_wait']:.1%}",
                f"{row['calls']:,}",
                "–" if row["kernels"] is None else f"{row['kernels']:,}",
            ]
        )
    return "\n".join([head, *aligned(lines)])


def _main() -> None:
    """Read one configuration as JSON from standard input, measure it, and write the result to standard output."""
    question = json.load(sys.stdin)
    question |= {"presets": tuple(question["presets"]), "batch_sizes": tuple(question["batch_sizes"])}
    settings = StepSpeedSettings(**question)
    try:
        found = measure_one(settings.of(settings.presets[0], settings.batch_sizes[0]), settings.seconds)
    except (DataError, UsageFault, EnvironmentFault) as error:  # raised again in the process that started this one
        found = {"fault": type(error).__name__, "message": str(error)}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    _main()
