"""Descriptions of checkpoints and training runs for `omniges inspect`. Only the headers of weight files are read."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from omniges.errors import DataError, UsageFault, first_of
from omniges.exchange.facts import Inspected, print_fields
from omniges.pipeline.summary import duration_text, print_table, size_text
from omniges.progress import counted
from omniges.storage.atomic import os_errors
from omniges.storage.documents import Count, Document, Range
from omniges.storage.files import MAX_JSON_BYTES, MAX_SETTINGS_BYTES, open_file, parse_json
from omniges.visualize.curves import Curves, draw_curves

if TYPE_CHECKING:
    from rich.console import Console

    from omniges.model.checkpoint import SavedCheckpoint

_STREAMS: Final = ("gesture", "text", "audio")
_REASONS: Final = {
    "done": "all steps done",
    "time_up": "time limit",
    "stopped": "stopped by a signal",
    "interrupted": "Ctrl-C",
    "failed": "failed",
}
_OTHER: Final = "check where the file is from"
_MOST_ROWS: Final = 1 << 19  # a log line has over 512 bytes, so a log of allowed size has fewer lines
_MOST_TASKS: Final = 64
_Step = Annotated[int, Range(0, 1 << 53)]


# --- a checkpoint


def inspect_checkpoint(folder: Path) -> Inspected:
    """Describe a checkpoint.

    Args:
        folder: Folder of the checkpoint.

    Returns:
        Step, training data, tasks, settings, sizes of the model's parts, and files.

    Raises:
        DataError: checkpoint.json or another JSON file of the checkpoint is damaged.
    """
    from omniges.model.checkpoint import open_checkpoint  # noqa: PLC0415 - loads torch

    facts = checkpoint_facts(open_checkpoint(folder, bytewise=False))
    return Inspected(facts, partial(_print_checkpoint, facts))


def checkpoint_facts(saved: SavedCheckpoint) -> dict[str, Any]:
    """Return a JSON object that describes a checkpoint. The caller has already read and checked its checkpoint.json."""
    from omniges.generation.sampler import PROVENANCE_FILE, SETTINGS_FILE, STATE_FILE, trained_tasks  # noqa: PLC0415
    from omniges.model.checkpoint import EMA_FILE, MODEL_FILE, OPTIMIZER_FILE  # noqa: PLC0415 - loads torch
    from omniges.model.spec import load_identity  # noqa: PLC0415 - loads torch
    from omniges.trainer.state import read_provenance, read_state, read_training_settings  # noqa: PLC0415 - loads torch

    identity = load_identity(saved)
    state = read_state(saved) if STATE_FILE in saved.files else None
    provenance = read_provenance(saved) if PROVENANCE_FILE in saved.files else {}
    if SETTINGS_FILE in saved.files:
        read_training_settings(saved)
    weights = [name for name in (EMA_FILE, MODEL_FILE) if name in saved.files]
    if not weights:
        raise DataError(f"{saved.path}: expected {EMA_FILE} or {MODEL_FILE}, found neither; choose another checkpoint")
    sizes = {name: math.prod(shape) for name, shape in saved.shapes(weights[0]).items()}
    tasks = trained_tasks(saved)
    settings = saved.fields(SETTINGS_FILE).found if SETTINGS_FILE in saved.files else {}
    return {
        "kind": "checkpoint",
        "folder": str(saved.path),
        "step": saved.step,
        "preset": identity.preset,
        "model": identity.config.as_json(),
        "parameters": sum(sizes.values()),
        "parameters_by_part": _by_part(sizes),
        "parameters_by_stream": _by_stream(sizes),
        "window_ticks": identity.window_ticks,
        "tasks": None if tasks is None else list(tasks),
        "speakers": list(identity.speakers),
        "codecs": identity.codec_names,
        "conditions": list(identity.conditions),
        "absent": list(identity.absent),
        "loudness": identity.loudness,
        "data": provenance.get("data"),
        "packages": provenance.get("packages"),
        "git": provenance.get("git"),
        "machine": provenance.get("machine"),
        "settings": settings,
        "elapsed_s": None if state is None else state.elapsed_s,
        "best": None if state is None or state.best is None else asdict(state.best),
        "ema": EMA_FILE in saved.files,
        "resumable": OPTIMIZER_FILE in saved.files,
        "files": {name: entry["bytes"] for name, entry in saved.files.items()},
    }


def _by_part(sizes: Mapping[str, int]) -> dict[str, int]:
    """Sum parameter counts by the first two components of the parameter's name, such as ``trunk.blocks``."""
    found: Counter[str] = Counter()
    for name, size in sizes.items():
        found[".".join(name.split(".")[:2])] += size
    return dict(found)


def _by_stream(sizes: Mapping[str, int]) -> dict[str, int]:
    """Sum parameter counts by the stream in the parameter's name. Names without a stream count as ``shared``."""
    found: Counter[str] = Counter()
    for name, size in sizes.items():
        words = set(name.split("."))
        found[next((stream for stream in _STREAMS if stream in words), "shared")] += size
    return dict(found)


def _print_checkpoint(facts: dict[str, Any], console: Console) -> None:
    model, settings, best = facts["model"], facts["settings"], facts["best"]
    elapsed_s, packages = facts["elapsed_s"], facts["packages"] or {}
    fields: list[tuple[str, Any]] = [
        ("step", facts["step"]),
        ("preset", f"{facts['preset']}: width {model['width']}, {model['layers']} layers, {model['heads']} heads"),
        ("parameters", f"{facts['parameters'] / 1e6:.2f} million"),
        ("gesture channels", model["gesture_channels"]),
        ("window", f"{facts['window_ticks'] / 10:g} s"),
        ("tasks", ", ".join(facts["tasks"] or ())),
        ("speakers", _listed(facts["speakers"])),
        *((f"{stream} codec", name) for stream, name in facts["codecs"].items()),
        ("condition streams", ", ".join(facts["conditions"])),
        ("never trained on", ", ".join(facts["absent"])),
        ("loudness", facts["loudness"]),
        *_data_fields(facts["data"]),
        ("training time", None if elapsed_s is None else duration_text(elapsed_s)),
        ("best", best and f"{best.get('metric')} {_number(best.get('value'))} at step {best.get('step')}"),
        ("EMA weights", "yes" if facts["ema"] else "no"),
        ("can be resumed", "yes" if facts["resumable"] else "no: it has no optimizer state"),
        *((name.replace("_", " "), settings.get(name)) for name in ("batch_size", "learning_rate", "seed")),
        ("omniges", packages.get("omniges")),
        ("torch", packages.get("torch")),
    ]
    print_fields(console, fields)
    for title, sizes in (("part", facts["parameters_by_part"]), ("stream", facts["parameters_by_stream"])):
        rows = [(name, f"{size:,}") for name, size in sizes.items()]
        print_table(console, (title, "parameters"), rows, (1,))
    print_table(console, ("file", "size"), [(name, size_text(size)) for name, size in facts["files"].items()], (1,))


def _listed(names: list[str], maximum: int = 8) -> str:
    return f"{len(names)}: {first_of(names, maximum)}" if names else ""


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


def _data_fields(data: Any) -> Iterator[tuple[str, str]]:
    """Yield (name, text) table rows about the shard sets that a model was trained on.

    `data` is the list of these shard sets from the provenance file of the checkpoint.
    """
    for one in data if isinstance(data, list) else ():
        if isinstance(one, dict):
            tool = one.get("tool")
            converted = f", converted by omniges {tool.get('omniges')}" if isinstance(tool, dict) else ""
            held = f"{one.get('clips')} clips, {one.get('hours')} h, {one.get('speakers')} speakers{converted}"
            yield "trained on", f"{one.get('shards')}: {held}"
            yield "manifest hash", str(one.get("manifest_hash"))


# --- a run


@dataclass(frozen=True, slots=True, kw_only=True)
class _StartEvent:
    """Log event ``start`` (a run starts or resumes): the fields that `inspect` reads."""

    step: _Step
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _TaskLoss:
    """Mean loss and number of samples of one task."""

    loss: float
    samples: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class _StepsEvent:
    """Log event ``steps``: the fields that `inspect` reads."""

    step: _Step
    loss: float
    smoothed_loss: float
    learning_rate: float
    samples_per_s: float
    elapsed_s: float
    epoch: float
    gradient_norm: float | None
    tasks: Mapping[str, _TaskLoss]


@dataclass(frozen=True, slots=True, kw_only=True)
class _BestEvent:
    """The best step so far, a part of the log event ``validation``."""

    step: _Step
    metric: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _ValidationEvent:
    """Log event ``validation``: the fields that `inspect` reads."""

    step: _Step
    loss: float
    best: _BestEvent | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _EndEvent:
    """Log event ``end`` (a run stops): the fields that `inspect` reads."""

    ending: str
    step: _Step
    error: str | None = None


def inspect_run(folder: Path) -> Inspected:
    """Describe a training run.

    Args:
        folder: Folder of the run.

    Returns:
        Last step, stop reason, best step and curves (such as the loss) of the run, and the description of the newest
        checkpoint.

    Raises:
        DataError: The log or the newest checkpoint of the run is damaged.
    """
    facts, curves = run_facts(folder)
    return Inspected(facts, partial(_print_run, facts), partial(_draw_run, folder, curves) if curves.steps else None)


def _draw_run(folder: Path, curves: Curves, start_s: float, seconds: float | None) -> bytes:
    if start_s or seconds is not None:
        raise UsageFault("--start, --seconds: expected for pictures of a clip, found a run; remove these flags")
    return draw_curves(str(folder), curves)


def run_facts(folder: Path) -> tuple[dict[str, Any], Curves]:
    """Describe a run as a JSON object; return also the curves of the run, such as the loss."""
    from omniges.model.checkpoint import CHECKPOINTS, checkpoints, open_checkpoint  # noqa: PLC0415 - loads torch
    from omniges.trainer.logging import LOG_FILE  # noqa: PLC0415 - loads torch

    path = folder / LOG_FILE
    log = summary_of(read_log(path), str(path))
    curves, start = log.curves, log.start
    found = [path for path in checkpoints(folder / CHECKPOINTS) if path.is_dir() and not path.is_symlink()]
    ended = log.last if log.last.get("event") == "end" else {}
    ending = ended.get("ending")
    facts = {
        "kind": "run",
        "folder": str(folder),
        "step": curves.steps[-1] if curves.steps else start.get("step"),
        "starts": log.starts,
        "stop_reason": _REASONS.get(str(ending), ending),
        "error": ended.get("error"),
        "hours": curves.elapsed_s[-1] / 3600 if curves.steps else None,
        "epoch": curves.epochs[-1] if curves.steps else None,
        "loss": curves.smoothed[-1] if curves.steps else None,
        "samples_per_s": curves.samples_per_s[-1] if curves.steps else None,
        "best": log.best,
        "checkpoints": [path.name for path in found],
        "settings": start.get("settings"),
        "curves": curves.as_json(),
        "checkpoint": checkpoint_facts(open_checkpoint(found[0], bytewise=False)) if found else None,
    }
    return facts, curves


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a training log line by line. Skip an incomplete last line, which a crash can cause.

    Args:
        path: The log, a file with one JSON object in each line.

    Yields:
        The events in file order; nothing if the file does not exist.

    Raises:
        DataError: The file is too large, or a line is not a JSON object with an ``event``.
    """
    try:
        descriptor = open_file(path, path.parent)
    except FileNotFoundError:
        return
    with open(descriptor, "rb") as stream, os_errors(path, "read"):
        size = os.fstat(descriptor).st_size
        if size > MAX_JSON_BYTES:
            raise DataError(f"{path}: expected at most {MAX_JSON_BYTES} bytes, found {size}; {_OTHER}")
        for number in count(1):
            line = stream.readline(MAX_SETTINGS_BYTES)
            if not line.endswith(b"\n"):
                if len(line) < MAX_SETTINGS_BYTES:
                    return
                raise DataError(f"{path}: line {number}: expected at most {MAX_SETTINGS_BYTES} bytes; {_OTHER}")
            yield _event(line, f"{path}: line {number}")


def _event(line: bytes, where: str) -> dict[str, Any]:
    try:
        event = parse_json(line)
    except ValueError as error:
        raise DataError(f"{where}: expected JSON, found damage ({error}); {_OTHER}") from error
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        raise DataError(f"{where}: expected an object with an event, found none; {_OTHER}")
    return event


@dataclass(slots=True)
class LogSummary:
    """Summary of a training log, as `inspect` shows it."""

    curves: Curves = field(default_factory=Curves)
    starts: int = 0
    start: dict[str, Any] = field(default_factory=dict)
    """The last event ``start``."""
    last: dict[str, Any] = field(default_factory=dict)
    """The last event."""
    best: dict[str, Any] | None = None
    """The best step so far, from the last event ``validation`` that states it."""


def summary_of(events: Iterable[dict[str, Any]], where: str) -> LogSummary:
    """Summarize a training log.

    If the run resumed from a checkpoint, values that were logged between this checkpoint and the resume are dropped.

    Args:
        events: Events of the log, in file order.
        where: Path of the log, for errors.

    Returns:
        Curves, number of starts, best step, last event ``start`` and last event of the log.

    Raises:
        DataError: A number is missing or has the wrong type, or there are more steps or tasks than a run can log.
    """
    log = LogSummary()
    for event in events:
        name, log.last = event["event"], event
        document = Document(event, f"{where}: {name}", "check where the file is from")
        if name == "start":
            log.curves.cut_after(document.values(_StartEvent).step)
            log.starts, log.start = log.starts + 1, event
        elif name == "steps":
            _add_steps(log.curves, document)
        elif name == "validation":
            document.values(_ValidationEvent)
            log.curves.add_validation(event)
            log.best = event.get("best") or log.best
        elif name == "end":
            document.values(_EndEvent)
        curves = log.curves
        if max(len(curves.steps), len(curves.validation_steps)) > _MOST_ROWS or len(curves.tasks) > _MOST_TASKS:
            raise DataError(
                f"{document.where}: expected at most {_MOST_ROWS} events of {_MOST_TASKS} tasks, found more; {_OTHER}"
            )
    return log


def _add_steps(curves: Curves, document: Document) -> None:
    """Append the values of an event ``steps`` to the curves; raise DataError if the event is not valid."""
    try:
        curves.add_steps(document.found)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        document.values(_StepsEvent)  # names the wrong field; too slow to check every line of a long run
        raise DataError(
            f"{document.where}: expected the numbers that train writes to its log, found others; {_OTHER}"
        ) from error


def _print_run(facts: dict[str, Any], console: Console) -> None:
    best, hours, settings = facts["best"], facts["hours"], facts["settings"] or {}
    running = "none: it runs, or was killed" if facts["starts"] else None
    fields: list[tuple[str, Any]] = [
        ("last step", facts["step"]),
        ("epoch", facts["epoch"] and f"{facts['epoch']:.1f}"),
        ("stop reason", facts["stop_reason"] or running),
        ("error", facts["error"]),
        ("training time", None if hours is None else f"{hours:.2f} h in {counted(facts['starts'], 'start')}"),
        ("smoothed loss", _number(facts["loss"]) if facts["loss"] is not None else None),
        ("samples/s", facts["samples_per_s"]),
        ("best", best and f"step {best.get('step')}, {best.get('metric')} {_number(best.get('value'))}"),
        ("checkpoints", ", ".join(facts["checkpoints"])),
        ("preset", settings.get("preset")),
    ]
    newest = facts["checkpoint"]
    more = () if newest is None else (*_data_fields(newest["data"]), ("tasks", ", ".join(newest["tasks"] or ())))
    print_fields(console, chain(fields, more))
    _print_curves(facts["curves"], console)


def _print_curves(curves: dict[str, Any], console: Console, shown: int = 12) -> None:
    """Print at most `shown` rows of the curves, evenly spaced over the run, and the losses of each task."""
    steps = curves["steps"]
    places = sorted({round((len(steps) - 1) * k / (shown - 1)) for k in range(shown)}) if steps else []
    validation = dict(zip(curves["validation"]["steps"], curves["validation"]["loss"], strict=True))
    rows = [
        (
            *(steps[k], f"{curves['loss'][k]:.4g}", f"{curves['smoothed_loss'][k]:.4g}"),
            *(_number(validation[steps[k]]) if steps[k] in validation else "–", f"{curves['learning_rate'][k]:.3g}"),
            f"{curves['samples_per_s'][k]:.4g}",
        )
        for k in places
    ]
    columns = ("step", "loss", "smoothed", "validation", "learning rate", "samples/s")
    if rows:
        print_table(console, columns, rows, tuple(range(len(columns))))
    tasks = {
        name: [(s, v) for s, v in zip(steps, of, strict=True) if v is not None] for name, of in curves["tasks"].items()
    }
    of_tasks = [(name, f"{of[0][1]:.4g}", f"{of[-1][1]:.4g}") for name, of in tasks.items() if of]
    if of_tasks:
        print_table(console, ("task", "first loss", "last loss"), of_tasks, (1, 2))
