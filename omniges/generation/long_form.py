"""Sample timelines of any length: overlapping windows are denoised together, so that window boundaries are not visible.

A timeline is cut into chunks of several windows. All windows of a chunk have the same noise level, and share the noised
tokens where they overlap. At each step every window predicts clean tokens, and in an overlap the predictions are
cross-faded (Bar-Tal et al. 2023, MultiDiffusion). Chunks are sampled one after the other, so memory does not grow with
length. Where two chunks overlap, the predictions of the later chunk are cross-faded with the fixed result of the
earlier chunk. So a boundary between chunks looks like a boundary between windows.

Noise is keyed by seed, sample and tick, so it does not depend on where a chunk begins.
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
from omniges.model.flow import Conditioning, FlowModel, draw_noise, guided_clean, integrate, step_levels
from omniges.model.streams import STREAMS, Stream, StreamName, masked
from omniges.model.tasks import SamplingSettings
from omniges.shards.present import ALL_PRESENT

T = TypeVar("T")

SAMPLE_TICKS: Final = 1 << 32
"""Distance between the first noise positions of successive samples; no timeline has so many tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSettings:
    """Settings of the windows of a timeline: length, overlap, and how many are sampled together."""

    window_ticks: int
    overlap_ticks: int
    windows: int = 6
    """Maximum number of windows in a chunk; it limits the memory that a timeline needs."""
    at_once: int = 16
    """Maximum number of windows in one batch of the model, over all timelines. A larger chunk gets its own batch."""
    tick_multiple: int = 1
    """Windows, overlaps and timelines are multiples of this number of ticks, so that they contain complete tokens."""
    disjoint: bool = False
    """True: windows share no ticks. Targets whose tokens encode a complete window need this."""

    def __post_init__(self) -> None:
        """Refuse values out of range, and a window or an overlap that is not a multiple of ``tick_multiple``."""
        if min(self.windows, self.at_once) < 1:
            raise ValueError(f"windows, at_once: expected at least 1, found {self.windows}, {self.at_once}")
        flag = f"--overlap-ticks {self.overlap_ticks}"
        if not 0 <= self.overlap_ticks <= self.window_ticks // 2:
            raise UsageFault(f"{flag}: expected 0 to {self.window_ticks // 2}, half of a window; choose such a number")
        for what, ticks in (("window_ticks", self.window_ticks), ("--overlap-ticks", self.overlap_ticks)):
            if ticks % self.tick_multiple:
                raise UsageFault(f"{what} {ticks}: expected a multiple of {self.tick_multiple}; choose such a number")
        if self.disjoint and self.overlap_ticks:
            raise UsageFault(
                f"{flag}: expected 0, because text latents encode complete windows, whose texts cannot be blended; "
                "remove the flag"
            )


TicksOf = Callable[[int, int], npt.NDArray[Any]]
"""Function of two integers, `first` and `count`. It returns the array of `count` ticks from tick `first`."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """A sample to generate: its length and conditions."""

    ticks: int
    conditions: Mapping[StreamName, TicksOf]
    speaker: int  # 0: unknown
    sample: int  # number that distinguishes samples of one seed
    present: int = ALL_PRESENT  # bit mask of `STREAM_PARTS`, without the parts that the conditions lack
    described: Mapping[str, ValueOf] = field(default_factory=dict)
    """For each condition stream of the model, its value as a function of a window."""


def window_starts(ticks: int, window: int, overlap: int) -> list[int]:
    """Return the first tick of each window of a timeline, for windows of equal length.

    The last window ends at the end of the timeline. A timeline that is not longer than a window has one window, which
    starts at tick 0.

    Args:
        ticks: Length of the timeline.
        window: Length of a window in ticks.
        overlap: Smallest number of ticks that successive windows share.

    Returns:
        First ticks, ascending.
    """
    if ticks <= window:
        return [0]
    starts = list(range(0, ticks - window, window - overlap))
    return [*starts, ticks - window]


def window_spans(ticks: int, settings: WindowSettings) -> list[tuple[int, int]]:
    """Return the first tick and the length of each window of a timeline.

    If ``settings.disjoint`` is False, successive windows overlap by at least ``settings.overlap_ticks``. If it is True,
    windows follow each other without gaps or overlaps. The last two disjoint windows may be shorter than the others.
    They have about the same length, so that neither of them is very short.

    A timeline that is not longer than a window has one window of the timeline's length.

    Args:
        ticks: Length of the timeline.
        settings: Lengths of the windows.

    Returns:
        First tick and length in ticks of each window.
    """
    window = min(settings.window_ticks, ticks)
    if not settings.disjoint:
        return [(start, window) for start in window_starts(ticks, window, settings.overlap_ticks)]
    full, rest = divmod(ticks, window)
    lengths = [window] * full
    if rest:
        two = lengths.pop() + rest
        half = two // 2
        lengths += [two - (half - half % settings.tick_multiple), half - half % settings.tick_multiple]
    return list(zip(itertools.accumulate(lengths, initial=0), lengths, strict=False))


def window_borders(spans: Sequence[tuple[int, int]]) -> list[int]:
    """Return the ticks at which a window begins or ends, ascending, without the start and end of the timeline."""
    last = max(start + ticks for start, ticks in spans)
    return sorted({tick for start, ticks in spans for tick in (start, start + ticks)} - {0, last})


def fade_in(ticks: int) -> npt.NDArray[np.float64]:
    """Return T rising weights of a cross-fade: sin²(π t / 2) at t = k / (T + 1), k = 1 … T.

    The fade has the slope 0 at both ends, because predictions are worst at the edges of a window, where context is
    missing. With a linear fade, window boundaries stay visible.

    Args:
        ticks: Number of weights T.

    Returns:
        Weights (T,).
    """
    return np.asarray(np.sin(np.pi / 2 * (np.arange(ticks) + 1) / (ticks + 1)) ** 2)


def blend_weights(starts: Sequence[int], window: int) -> npt.NDArray[np.float64]:
    """Return the weights with which the predictions of W overlapping windows are averaged.

    Args:
        starts: First tick of each window, ascending.
        window: Length of a window in ticks.

    Returns:
        Weights (W, window), which fade in and out where windows overlap. At each tick, the weights of all windows sum
        to 1.
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
class _Chunk:
    """Windows of one timeline that are denoised together."""

    timeline: Timeline
    starts: tuple[int, ...]  # first ticks of the windows in the timeline
    window: int
    shared: int  # number of ticks at the start of the chunk that the previous chunk generates too
    number: int  # index of its first window in the timeline

    @property
    def first(self) -> int:
        """First tick of the chunk."""
        return self.starts[0]

    @property
    def ticks(self) -> int:
        """Length of the chunk in ticks."""
        return self.starts[-1] + self.window - self.starts[0]


def _chunks(timeline: Timeline, settings: WindowSettings) -> list[_Chunk]:
    found: list[_Chunk] = []
    covered = number = 0
    for window, spans in itertools.groupby(window_spans(timeline.ticks, settings), key=lambda span: span[1]):
        starts = [start for start, _ in spans]
        for place in range(0, len(starts), settings.windows):
            own = tuple(starts[place : place + settings.windows])
            found.append(_Chunk(timeline, own, window, max(0, covered - own[0]), number))
            covered = own[-1] + window
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
    """Sample the targets of several timelines of any lengths, chunk by chunk, in order of time.

    Args:
        model: Model in evaluation mode.
        timelines: Lengths and conditions. Windows of equal length share a batch of the model.
        targets: Streams to generate.
        seed: Seed of the noise.
        windows: Lengths of the windows.
        settings: Steps and solver.
        worked: Function called after each step with a number of ticks. The sum of these numbers is the number of
            all generated ticks.

    Yields:
        For each chunk: the index of its timeline, the arrays by stream, and the length of the arrays in ticks. The
        arrays end where the next chunk of the timeline begins; the arrays of the next chunk contain the overlap.

    Raises:
        ValueError: `windows.disjoint` is False, but the tokens of a target encode complete windows, so windows must
            not overlap.
        DataError: Generated text is NaN or infinite.
    """
    if not windows.disjoint and any(model.stream(name).complete_windows for name in targets):
        raise ValueError("targets that encode complete windows need windows that do not overlap")
    plans = [_chunks(timeline, windows) for timeline in timelines]
    kept: dict[int, Mapping[StreamName, Tensor]] = {}  # by timeline: clean tokens that overlap with its next chunk
    for turn in range(max(map(len, plans), default=0)):
        by_window: dict[int, list[int]] = {}  # chunks with windows of equal length share a batch
        for number, plan in enumerate(plans):
            if turn < len(plan):
                by_window.setdefault(plan[turn].window, []).append(number)
        sizes = [len(plan[turn].starts) if turn < len(plan) else 0 for plan in plans]
        groups = (packed(numbers, sizes.__getitem__, windows.at_once) for numbers in by_window.values())
        for group in itertools.chain.from_iterable(groups):
            chunks = [plans[number][turn] for number in group]
            waits = [plans[number][turn + 1].shared if turn + 1 < len(plans[number]) else 0 for number in group]
            share = (sum(x.ticks for x in chunks) - sum(waits)) / settings.steps
            before = [kept.get(number, {}) for number in group]
            after_step = functools.partial(worked, share)
            sampled = _denoise(model, chunks, before, targets, seed, settings, after_step)
            for number, chunk, wait, tokens in zip(group, chunks, waits, sampled, strict=True):
                # NaN would be decoded as words; motion and audio are checked later.
                if "text" in tokens and not tokens["text"].isfinite().all():
                    raise DataError(
                        "generated text: expected finite tokens, found NaN or infinite ones; the model is not "
                        "trained enough; choose another checkpoint"
                    )
                ready = chunk.ticks - wait
                counts = {name: _count(model.stream(name), ready, chunk) for name in tokens}
                kept[number] = {name: x[counts[name] :].clone() for name, x in tokens.items()}
                arrays = {name: model.stream(name).arrays(x[None, : counts[name]])[0] for name, x in tokens.items()}
                yield number, arrays, ready


def _count(stream: Stream, ticks: int, chunk: _Chunk) -> int:
    """Return the number of tokens in the first `ticks` ticks of a chunk.

    If tokens encode complete windows, return the number of tokens in the whole chunk.
    """
    return stream.count(chunk.window) * len(chunk.starts) if stream.complete_windows else stream.count(ticks)


def packed(items: Iterable[T], size_of: Callable[[T], int], maximum: int) -> Iterator[list[T]]:
    """Group successive items so that the sizes of a group sum to at most `maximum`.

    An item that is larger than `maximum` is alone in its group.

    Args:
        items: Items, which are consumed lazily.
        size_of: Function that returns the size of an item.
        maximum: Largest sum of sizes.

    Yields:
        Groups, in order.
    """
    group: list[T] = []
    total = 0
    for item in items:
        size = size_of(item)
        if group and total + size > maximum:
            yield group
            group, total = [], 0
        group.append(item)
        total += size
    if group:
        yield group


@torch.no_grad()
def _denoise(
    model: FlowModel,
    chunks: Sequence[_Chunk],
    before: Sequence[Mapping[StreamName, Tensor]],
    targets: Sequence[StreamName],
    seed: int,
    settings: SamplingSettings,
    after_step: Callable[[], None],
) -> list[dict[StreamName, Tensor]]:
    """Sample several chunks together, and return the clean tokens (N, C) of each chunk by stream.

    `before` contains, for each chunk, the clean tokens of the previous chunk where the two chunks overlap. The new
    tokens are cross-faded with them.
    """
    device = next(model.parameters()).device
    plans = {name: _Plan.of(model.stream(name), chunks, device) for name in (*targets, *model.carried(targets))}
    drawn = {
        name: draw_noise(seed, plan.positions, name, (model.stream(name).channels,)) for name, plan in plans.items()
    }
    known = model.known_parts(np.array([ALL_PRESENT], np.uint8))
    if known is not None and "gesture" in drawn and known.streams[0, STREAMS.index("gesture")]:
        drawn["gesture"] = masked(drawn["gesture"][None], known.masks["gesture"])[0]  # 0 if absent, as in training
    noise = {name: drawn[name] for name in targets}
    carried = {name: drawn[name][plans[name].rows] for name in model.carried(targets)}
    held = {name: _held(plans[name], chunks, name, before, model) for name in targets}
    speakers = torch.tensor([x.timeline.speaker for x in chunks for _ in x.starts], device=device)
    conditions = _conditions(model, chunks, device)
    present = model.known_parts(np.array([x.timeline.present for x in chunks for _ in x.starts], np.uint8))
    if present is not None:
        conditions = {name: masked(x, present.masks[name]) for name, x in conditions.items()}
    described = _condition_vectors(model, chunks, device)
    conditioning = Conditioning(conditions, speakers, present, described)
    clean_of = guided_clean(model, conditioning, targets, settings.guidance, carried)

    def blended(x: Mapping[StreamName, Tensor], at: Tensor) -> dict[StreamName, Tensor]:
        windows = sum(len(chunk.starts) for chunk in chunks)
        answers = clean_of({name: tokens[plans[name].rows] for name, tokens in x.items()}, at[:1].expand(windows))
        found = {}
        for name, answer in answers.items():
            total = torch.zeros_like(x[name])
            total.index_add_(0, plans[name].rows.flatten(), (answer * plans[name].weights[..., None]).flatten(0, 1))
            where, tokens, fade = held[name]
            found[name] = total.index_copy_(0, where, torch.lerp(total[where], tokens, fade))
        return found

    sampled = integrate(noise, step_levels(settings), blended, settings.solver, after_step)
    return [
        {name: tokens[plans[name].offsets[k] : plans[name].offsets[k + 1]] for name, tokens in sampled.items()}
        for k in range(len(chunks))
    ]


@dataclass(frozen=True, slots=True)
class _Plan:
    """Positions of one stream's tokens in several chunks.

    The chunks contain W windows in total. Each window contains M tokens of the stream.
    """

    offsets: list[int]  # index of the first token of each chunk, and the number of all tokens
    rows: Tensor  # (W, M) indices of the tokens of each window
    weights: Tensor  # (W, M) weights of the windows' predictions, from `blend_weights`
    positions: Tensor  # noise position of each token: sample and index of the token in its timeline

    @classmethod
    def of(cls, stream: Stream, chunks: Sequence[_Chunk], device: torch.device) -> _Plan:
        """Create the plan of a stream for several chunks.

        If tokens of the stream encode complete windows, the tokens are ordered window by window.

        Args:
            stream: The stream.
            chunks: Chunks with windows of equal length.
            device: Device of the plan's tensors.

        Returns:
            The plan.
        """
        count, together = stream.count, stream.tokens_at_once
        offsets = [0]
        rows, weights, positions = list[Tensor](), list[Tensor](), list[Tensor]()
        for x in chunks:
            window = count(x.window)
            if stream.complete_windows:
                starts, first = [k * window for k in range(len(x.starts))], x.number * window
            else:
                starts, first = [count(start - x.first) for start in x.starts], count(x.first)
            rows.append(offsets[-1] + torch.tensor(starts)[:, None] + torch.arange(window)[None])
            # Tokens with the same time have the same weight.
            of_times = blend_weights([start // together for start in starts], window // together)
            weights.append(torch.from_numpy(of_times).repeat_interleave(together, dim=1))
            size = starts[-1] + window
            positions.append(x.timeline.sample * SAMPLE_TICKS + first + torch.arange(size))
            offsets.append(offsets[-1] + size)
        of_windows = torch.cat(weights).to(device, torch.float32)
        return cls(offsets, torch.cat(rows).to(device), of_windows, torch.cat(positions).to(device))


def _held(
    plan: _Plan,
    chunks: Sequence[_Chunk],
    name: StreamName,
    before: Sequence[Mapping[StreamName, Tensor]],
    model: FlowModel,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tokens that chunks share with their previous chunks, and the weights of the cross-fade.

    For n shared tokens, the function returns three tensors: the indices (n,) of these tokens among the tokens of the
    given chunks, their clean values (n, C) in the previous chunks, and the weights (n, 1) of these values. In each
    overlap, the weights decrease from the first token to the last.
    """
    stream = model.stream(name)
    counts = [0 if stream.complete_windows else stream.count(x.shared) for x in chunks]
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
    """Convert the condition values of B windows to tensors for `FlowModel.describe`.

    Args:
        values: Values of the windows by condition stream; None: the window has no value.
        device: Device of the model.

    Returns:
        By stream, values (B, …) and a mask (B,) of the windows that have a value. Streams without any value are left
        out.
    """
    found = {name: stacked(own) for name, own in values.items()}
    return {
        name: (torch.from_numpy(pair[0]).to(device), torch.from_numpy(pair[1]).to(device))
        for name, pair in found.items()
        if pair is not None
    }


def _condition_vectors(model: FlowModel, chunks: Sequence[_Chunk], device: torch.device) -> Tensor | None:
    """Encode the condition streams' values of all W windows as vectors (W, width); width is that of the trunk.

    If no window has a value, return None.
    """
    values = {
        name: [x.timeline.described[name](start, x.window) for x in chunks for start in x.starts]
        for name in chunks[0].timeline.described
    }
    found = condition_tensors(values, device)
    return model.describe(found) if found else None


def _conditions(model: FlowModel, chunks: Sequence[_Chunk], device: torch.device) -> dict[StreamName, Tensor]:
    """Return the clean tokens (W, M, C) of each condition, for all W windows of the chunks with M tokens each."""
    found = {}
    for name in chunks[0].timeline.conditions:
        of_windows = [x.timeline.conditions[name](start, x.window) for x in chunks for start in x.starts]
        cut = [torch.from_numpy(np.array(array)) for array in of_windows]
        found[name] = model.stream(name).tokens(torch.stack(cut).to(device))
    return found
