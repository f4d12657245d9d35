"""Sampling any length: overlapping windows of one timeline, denoised together, so that there are no seams to hide.

All windows of a stretch are at the same noise level, and where they overlap they share the same noised tokens. At each
step every window says which clean tokens it expects, and in an overlap the two answers are blended, the one fading out
while the other fades in (Bar-Tal et al. 2023, MultiDiffusion). A long timeline is cut into stretches of some windows,
one after the other, so memory does not grow with length. In the overlap of two stretches the later one blends its
answers with what the earlier one has made in the same way: that is held as known, and its weight falls from tick to
tick, so the border of a stretch is no other than that of a window.

Noise is keyed by seed, sample and tick: a stretch has the same noise wherever it begins.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from omniges.conditions.base import Array, ValueOf, stacked
from omniges.errors import DataError, UsageFault
from omniges.model.flow import Conditioning, FlowModel, draw_noise, follow, guided_clean, step_levels
from omniges.model.present import masked
from omniges.model.streams import STREAMS, Stream, StreamName
from omniges.model.tasks import SamplingSettings
from omniges.shards.present import ALL_PRESENT

T = TypeVar("T")

SAMPLE_TICKS: Final = 1 << 32
"""Ticks that a sample's noise has before the next sample's begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSettings:
    """Lengths of the windows of a timeline."""

    window_ticks: int
    overlap_ticks: int
    windows: int = 6
    """Windows of a stretch: what one timeline holds in memory, so few that a minute holds no less than an hour."""
    at_once: int = 16
    """Windows of several timelines' stretches that go through the model together, where one stretch has no more."""
    tick_multiple: int = 1
    """Ticks that windows, overlaps and timelines are multiples of, so that all streams have whole tokens in them."""
    apart: bool = False
    """Whether windows share no ticks at all: for targets whose tokens stand for a window as a whole."""

    def __post_init__(self) -> None:
        """Refuse windows that do not go forward, or do not hold whole tokens."""
        if not 0 <= self.overlap_ticks <= self.window_ticks // 2 or min(self.windows, self.at_once) < 1:
            raise UsageFault(
                f"overlap: found {self.overlap_ticks} ticks of a window of {self.window_ticks}; expected from 0 to half"
            )
        for what, ticks in (("window", self.window_ticks), ("overlap", self.overlap_ticks)):
            if ticks % self.tick_multiple:
                raise UsageFault(f"{what}: {ticks} ticks found; expected a multiple of {self.tick_multiple}")
        if self.apart and self.overlap_ticks:
            raise UsageFault(
                f"overlap: {self.overlap_ticks} ticks found; expected 0, for text that is latents is made window by "
                "window, and two windows' texts cannot be blended"
            )


TicksOf = Callable[[int, int], npt.NDArray[Any]]
"""The array of so many ticks from a first one on: (first, count)."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """One sample to be made."""

    ticks: int
    conditions: Mapping[StreamName, TicksOf]
    speaker: int  # 0: unknown
    sample: int  # tells samples of one seed apart
    present: int = ALL_PRESENT  # bits of `STREAM_PARTS`, without those that the conditions lack
    described: Mapping[str, ValueOf] = field(default_factory=dict)
    """Of each condition stream of the model the value of a window."""


def window_starts(ticks: int, window: int, overlap: int) -> list[int]:
    """First ticks of windows that cover a timeline; the last is pushed back so that it ends where the timeline does."""
    if ticks <= window:
        return [0]
    starts = list(range(0, ticks - window, window - overlap))
    return [*starts, ticks - window]


def window_spans(ticks: int, settings: WindowSettings) -> list[tuple[int, int]]:
    """First tick and ticks of the windows that cover a timeline.

    They overlap as `overlap_ticks` says. Without overlap they touch. Ticks after the last whole window are shared
    between the last two, so that in a timeline longer than a window none is shorter than half a window.
    """
    window = min(settings.window_ticks, ticks)
    if not settings.apart:
        return [(start, window) for start in window_starts(ticks, window, settings.overlap_ticks)]
    whole, rest = divmod(ticks, window)
    lengths = [window] * whole
    if rest:
        two = lengths.pop() + rest
        half = two // 2
        lengths += [two - (half - half % settings.tick_multiple), half - half % settings.tick_multiple]
    return list(zip(itertools.accumulate(lengths, initial=0), lengths, strict=False))


def window_borders(spans: Sequence[tuple[int, int]]) -> list[int]:
    """Ticks within a timeline at which one of its windows, (first tick, ticks), begins or ends."""
    last = max(start + ticks for start, ticks in spans)
    return sorted({tick for start, ticks in spans for tick in (start, start + ticks)} - {0, last})


def fade_in(ticks: int) -> npt.NDArray[np.float64]:
    """Weights (T,), above 0 and below 1, with which what begins replaces what ends: a raised cosine, sin²(π t/2).

    It begins and ends level, for a window's answers are worst at its edges, where half of what is around a tick is
    missing. With the seventeenths of a straight fade a window still shows where it begins and ends.
    """
    return np.asarray(np.sin(np.pi / 2 * (np.arange(ticks) + 1) / (ticks + 1)) ** 2)


def blend_weights(starts: Sequence[int], window: int) -> npt.NDArray[np.float64]:
    """Weights (W, window) of windows' answers, which sum to 1 over the windows of each tick.

    A window fades in and out over what it shares with its neighbours.
    """
    weights = np.ones((len(starts), window))
    for number, (before, after) in enumerate(itertools.pairwise(starts)):
        shared = before + window - after
        ramp = fade_in(shared)
        weights[number, window - shared :] *= 1 - ramp
        weights[number + 1, :shared] *= ramp
    total = np.zeros(starts[-1] + window)
    for start, row in zip(starts, weights, strict=True):
        total[start : start + window] += row
    return np.stack([row / total[start : start + window] for start, row in zip(starts, weights, strict=True)])


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Windows of one timeline that are denoised together."""

    timeline: Timeline
    starts: tuple[int, ...]  # in the timeline
    window: int
    shared: int  # ticks at its beginning that the stretch before has made too
    number: int  # of its first window in the timeline

    @property
    def first(self) -> int:
        """Its first tick."""
        return self.starts[0]

    @property
    def ticks(self) -> int:
        """Its length."""
        return self.starts[-1] + self.window - self.starts[0]


def _stretches(timeline: Timeline, settings: WindowSettings) -> list[_Stretch]:
    found: list[_Stretch] = []
    made = number = 0
    for window, spans in itertools.groupby(window_spans(timeline.ticks, settings), key=lambda span: span[1]):
        starts = [start for start, _ in spans]
        for place in range(0, len(starts), settings.windows):
            own = tuple(starts[place : place + settings.windows])
            found.append(_Stretch(timeline, own, window, max(0, made - own[0]), number))
            made = own[-1] + window
            number += len(own)
    return found


def sample_timelines(
    model: FlowModel,
    timelines: Sequence[Timeline],
    targets: Sequence[StreamName],
    seed: int,
    windows: WindowSettings,
    settings: SamplingSettings,
    worked: Callable[[float], None] = lambda _ticks: None,
) -> Iterator[tuple[int, dict[StreamName, Tensor], int]]:
    """Arrays of the targets of several timelines of any lengths, stretch by stretch, in the order of time.

    Yields (number of the timeline, arrays of the stretch but for what the next one shares, ticks of them). The model
    is in evaluation mode; samples whose windows have equal lengths share calls of it. After each step `worked` is told
    the step's share of the ticks that come out at the end.

    Raises ValueError for a target whose tokens stand for whole windows where windows are not apart, DataError for text
    that is NaN or infinite.
    """
    if not windows.apart and any(model.stream(name).whole_windows for name in targets):
        raise ValueError("targets of whole windows need windows that are apart")
    plans = [_stretches(timeline, windows) for timeline in timelines]
    kept: dict[int, Mapping[StreamName, Tensor]] = {}  # clean tokens that each timeline's next stretch shares
    for turn in range(max(map(len, plans), default=0)):
        by_window: dict[int, list[int]] = {}  # stretches of equal windows share calls of the model
        for number, plan in enumerate(plans):
            if turn < len(plan):
                by_window.setdefault(plan[turn].window, []).append(number)
        sizes = [len(plan[turn].starts) if turn < len(plan) else 0 for plan in plans]
        groups = (packed(numbers, sizes.__getitem__, windows.at_once) for numbers in by_window.values())
        for group in itertools.chain.from_iterable(groups):
            stretches = [plans[number][turn] for number in group]
            waits = [plans[number][turn + 1].shared if turn + 1 < len(plans[number]) else 0 for number in group]
            share = (sum(x.ticks for x in stretches) - sum(waits)) / settings.steps
            before = [kept.get(number, {}) for number in group]
            after_step = functools.partial(worked, share)
            made = _denoise(model, stretches, before, targets, seed, settings, after_step)
            for number, stretch, wait, tokens in zip(group, stretches, waits, made, strict=True):
                # The slots nearest to NaN or infinite values would be words; motion and sound are looked at later.
                if "text" in tokens and not tokens["text"].isfinite().all():
                    raise DataError(
                        "generated text: found tokens that are no numbers: the model is not trained enough; take "
                        "another checkpoint"
                    )
                ready = stretch.ticks - wait
                counts = {name: _count(model.stream(name), ready, stretch) for name in tokens}
                kept[number] = {name: x[counts[name] :].clone() for name, x in tokens.items()}
                arrays = {name: model.stream(name).arrays(x[None, : counts[name]])[0] for name, x in tokens.items()}
                yield number, arrays, ready


def _count(stream: Stream, ticks: int, stretch: _Stretch) -> int:
    """Tokens of the first ticks of a stretch; where they stand for whole windows, which share none, all of them."""
    return stream.count(stretch.window) * len(stretch.starts) if stream.whole_windows else stream.count(ticks)


def packed(items: Iterable[T], size_of: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """Items in groups of at most so much in all, or of one that is larger; each is taken when its turn comes."""
    group: list[T] = []
    total = 0
    for item in items:
        size = size_of(item)
        if group and total + size > most:
            yield group
            group, total = [], 0
        group.append(item)
        total += size
    if group:
        yield group


@torch.no_grad()
def _denoise(
    model: FlowModel,
    stretches: Sequence[_Stretch],
    before: Sequence[Mapping[StreamName, Tensor]],
    targets: Sequence[StreamName],
    seed: int,
    settings: SamplingSettings,
    after_step: Callable[[], None],
) -> list[dict[StreamName, Tensor]]:
    """Clean tokens (N, C) of each stretch by stream, blended with what the stretch before it has made."""
    device = next(model.parameters()).device
    plans = {name: _Plan.of(model.stream(name), stretches, device) for name in (*targets, *model.carried(targets))}
    drawn = {
        name: draw_noise(seed, plan.positions, name, (model.stream(name).channels,)) for name, plan in plans.items()
    }
    known = model.known_parts(np.array([ALL_PRESENT], np.uint8))
    if known is not None and "gesture" in drawn and known.streams[0, STREAMS.index("gesture")]:
        drawn["gesture"] = masked(drawn["gesture"][None], known.masks["gesture"])[0]  # zeros as in training
    noise = {name: drawn[name] for name in targets}
    carried = {name: drawn[name][plans[name].rows] for name in model.carried(targets)}
    held = {name: _held(plans[name], stretches, name, before, model) for name in targets}
    speakers = torch.tensor([x.timeline.speaker for x in stretches for _ in x.starts], device=device)
    conditions = _conditions(model, stretches, device)
    present = model.known_parts(np.array([x.timeline.present for x in stretches for _ in x.starts], np.uint8))
    if present is not None:
        conditions = {name: masked(x, present.masks[name]) for name, x in conditions.items()}
    described = _described(model, stretches, device)
    conditioning = Conditioning(conditions, speakers, present, described)
    clean_of = guided_clean(model, conditioning, targets, settings.guidance, carried)

    def blended(x: Mapping[StreamName, Tensor], at: Tensor) -> dict[StreamName, Tensor]:
        windows = sum(len(stretch.starts) for stretch in stretches)
        answers = clean_of({name: tokens[plans[name].rows] for name, tokens in x.items()}, at[:1].expand(windows))
        found = {}
        for name, answer in answers.items():
            total = torch.zeros_like(x[name])
            total.index_add_(0, plans[name].rows.flatten(), (answer * plans[name].weights[..., None]).flatten(0, 1))
            where, tokens, fade = held[name]
            found[name] = total.index_copy_(0, where, torch.lerp(total[where], tokens, fade))
        return found

    made = follow(noise, step_levels(settings), blended, settings.solver, after_step)
    return [
        {name: tokens[plans[name].offsets[k] : plans[name].offsets[k + 1]] for name, tokens in made.items()}
        for k in range(len(stretches))
    ]


@dataclass(frozen=True, slots=True)
class _Plan:
    """Positions of one stream's tokens in several stretches, W windows of M tokens, stretch by stretch."""

    offsets: list[int]  # first token of each stretch, and the end of the last
    rows: Tensor  # (W, M) the tokens of each window
    weights: Tensor  # (W, M) of a window's answers
    positions: Tensor  # of the noise of each token: sample and number of the token in its timeline

    @classmethod
    def of(cls, stream: Stream, stretches: Sequence[_Stretch], device: torch.device) -> _Plan:
        """The plan of a stream; tokens that stand for whole windows follow each other window by window."""
        count, together = stream.count, stream.tokens_at_once
        offsets = [0]
        rows, weights, positions = list[Tensor](), list[Tensor](), list[Tensor]()
        for x in stretches:
            window = count(x.window)
            if stream.whole_windows:
                starts, first = [k * window for k in range(len(x.starts))], x.number * window
            else:
                starts, first = [count(start - x.first) for start in x.starts], count(x.first)
            rows.append(offsets[-1] + torch.tensor(starts)[:, None] + torch.arange(window)[None])
            # Tokens of one time weigh the same.
            of_times = blend_weights([start // together for start in starts], window // together)
            weights.append(torch.from_numpy(of_times).repeat_interleave(together, dim=1))
            size = starts[-1] + window
            positions.append(x.timeline.sample * SAMPLE_TICKS + first + torch.arange(size))
            offsets.append(offsets[-1] + size)
        of_windows = torch.cat(weights).to(device, torch.float32)
        return cls(offsets, torch.cat(rows).to(device), of_windows, torch.cat(positions).to(device))


def _held(
    plan: _Plan,
    stretches: Sequence[_Stretch],
    name: StreamName,
    before: Sequence[Mapping[StreamName, Tensor]],
    model: FlowModel,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, clean tokens and weights (rows, 1) of what earlier stretches have made of a stream."""
    stream = model.stream(name)
    counts = [0 if stream.whole_windows else stream.count(x.shared) for x in stretches]
    device = plan.rows.device
    places = [torch.arange(offset, offset + n) for offset, n in zip(plan.offsets, counts, strict=False)]
    together = stream.tokens_at_once
    times = [n // together for n in counts]
    fades = [torch.from_numpy(1 - fade_in(n)).float().repeat_interleave(together) for n in times]
    tokens = [ends[name] for n, ends in zip(counts, before, strict=True) if n]
    nothing = torch.zeros(0, stream.channels, device=device)
    return torch.cat(places).to(device), torch.cat([*tokens, nothing]), torch.cat(fades)[:, None].to(device)


def condition_tensors(
    values: Mapping[str, Sequence[Array | None]], device: torch.device
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return values of B windows as `FlowModel.describe` takes them, but for streams of which no window has one."""
    found = {name: stacked(own) for name, own in values.items()}
    return {
        name: (torch.from_numpy(pair[0]).to(device), torch.from_numpy(pair[1]).to(device))
        for name, pair in found.items()
        if pair is not None
    }


def _described(model: FlowModel, stretches: Sequence[_Stretch], device: torch.device) -> Tensor | None:
    """Return the embeddings (W, width) of condition streams for all windows."""
    values = {
        name: [x.timeline.described[name](start, x.window) for x in stretches for start in x.starts]
        for name in stretches[0].timeline.described
    }
    found = condition_tensors(values, device)
    return model.describe(found) if found else None


def _conditions(model: FlowModel, stretches: Sequence[_Stretch], device: torch.device) -> dict[StreamName, Tensor]:
    """Clean tokens (W, window, C) of the conditions of all windows."""
    found = {}
    for name in stretches[0].timeline.conditions:
        of_windows = [x.timeline.conditions[name](start, x.window) for x in stretches for start in x.starts]
        cut = [torch.from_numpy(np.array(array)) for array in of_windows]
        found[name] = model.stream(name).tokens(torch.stack(cut).to(device))
    return found
