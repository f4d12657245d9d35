"""Runs a command and measures wall time, CPU time of its process tree, peak memory, and other load of the machine.

CPU time is the time of the process and of all children that it waited for (`os.wait4`). Peak memory is VmHWM of
``/proc/<pid>/status``, the maximum since the start of the program. It is read every 50 ms, so only a peak in the last
50 ms of a process can be missed. `ru_maxrss` misses no peak. But it does not distinguish processes, and it is never
below the memory of the process that started the command. So it is reported as an upper bound. Memory is in MB of 10^6
bytes. Shared libraries count in every process that has loaded them.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SAMPLE_EVERY_S: Final = 0.05
_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """Time and memory of a command, and its output."""

    output: str
    wall_s: float
    cpu_s: float  # user and system time, including children
    other_cpu_share: float  # share of the machine's CPU time that other processes used, including stolen time
    main_mb: float  # peak memory of the process itself
    child_mb: float  # peak memory of its largest descendant; 0 if there is none
    maxrss_mb: float  # ru_maxrss: upper bound for the largest process


class _Watch:
    """Context in which a thread records the peak memory of a process and of its descendants."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-watch", daemon=True)
        self.peaks_kib: dict[int, int] = {}

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            pending = [self._pid]
            while pending:
                pid = pending.pop()
                self.peaks_kib[pid] = max(self.peaks_kib.get(pid, 0), _high_water_kib(pid))
                pending += _children(pid)
            if self._over.wait(_SAMPLE_EVERY_S):
                return

    def peaks_mb(self) -> tuple[float, float]:
        """Return the peak memory in MB of the process itself and of its largest descendant."""
        children = [peak for pid, peak in self.peaks_kib.items() if pid != self._pid]
        return self.peaks_kib.get(self._pid, 0) * 1024 / 1e6, max(children, default=0) * 1024 / 1e6


def _high_water_kib(pid: int) -> int:
    """Return the peak memory (VmHWM) of a process in KiB; 0 if it has ended or is just starting a program."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM:")), 0)


def _children(pid: int) -> list[int]:
    """Return the process ids of the children of all threads of a process."""
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            text = (task / "children").read_text(encoding="utf-8")
            found += map(int, text.split())
    except OSError:
        pass  # the process or thread has ended
    return found


def _machine_cpu_s() -> float:
    """Return the CPU seconds of all processes since the machine started, plus those stolen by the hypervisor."""
    first = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()
    user, nice, system, _idle, _wait, irq, soft_irq, stolen = map(int, first[1:9])
    return (user + nice + system + irq + soft_irq + stolen) / _TICKS_PER_SECOND


def run_measured(command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> Usage:
    """Run a command and measure it; if it fails, exit with its last output.

    Standard output and standard error are written to `log` with the suffixes .out and .err.
    """
    output, errors = log.with_suffix(".out"), log.with_suffix(".err")
    machine_before_s = _machine_cpu_s()
    with output.open("wb") as out, errors.open("wb") as err:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment)
        try:
            with _Watch(process.pid) as watch:
                _, status, usage = os.wait4(process.pid, 0)
                wall_s = time.perf_counter() - start
                machine_s = _machine_cpu_s() - machine_before_s
                process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if process.returncode is None:  # after Ctrl-C or an error here, the command must not continue
                process.kill()
                process.wait()
    if process.returncode != 0:
        last = errors.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}\n{last}")
    cpu_s = usage.ru_utime + usage.ru_stime
    main_mb, child_mb = watch.peaks_mb()
    return Usage(
        output=output.read_text(encoding="utf-8"),
        wall_s=wall_s,
        cpu_s=cpu_s,
        other_cpu_share=max(0.0, machine_s - cpu_s) / (wall_s * (os.cpu_count() or 1)),
        main_mb=main_mb,
        child_mb=child_mb,
        maxrss_mb=usage.ru_maxrss * 1024 / 1e6,
    )
