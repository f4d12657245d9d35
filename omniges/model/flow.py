"""Rectified flow (Liu et al. 2023): the training loss of a batch of windows, and sampling of streams.

Each stream has its own noise level σ. Its noised tokens are x_σ = (1 − σ) x + σ ε, with clean tokens x and noise ε. A
training step never waits for a value from the device: tasks, presence and levels are drawn on the CPU.

Sampling integrates from noise to clean tokens. A model predicts the expected clean tokens x. The velocity at level σ
is v = (x_σ − x) / σ, and an Euler step to σ' is x_σ' = x_σ + (σ' − σ) v. Heun's method (Karras et al. 2022) first takes
an Euler step and computes the velocity at its end. Then it repeats the step with the mean of the velocities at both
ends. The last step is always an Euler step, because at σ' = 0 the velocity is not defined.

Classifier-free guidance (Ho and Salimans 2022) uses x = x_u + w (x_c − x_u) with the guidance scale w. The model
predicts x_c with the conditions and x_u without them.

Letters: B samples, N tokens, C channels of a token, W width of the trunk.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from omniges.features.gesture import LAYOUT
from omniges.model.draws import Draws, FlowSettings, Plan, Purpose, carried_as_noise, normal, normals
from omniges.model.packing import BatchRows, batch_rows, on_device
from omniges.model.stacked import StackedTrunk
from omniges.model.streams import STREAMS, Present, Stream, StreamName, masked, noised, present_of, velocity_from_clean
from omniges.model.tasks import SamplingSettings, Solver
from omniges.model.trunk import JointFlowTransformer
from omniges.shards.present import ALL_PRESENT, STREAM_PARTS, unused_bits

AbsentStreams = Literal["left-out", "noise"]
"""How the model handles a stream that a sample lacks: it gets no tokens, or tokens of pure noise as in OmniFlow."""

_NOISE: Final = {"gesture": Purpose.NOISE_GESTURE, "text": Purpose.NOISE_TEXT, "audio": Purpose.NOISE_AUDIO}
CleanOf = Callable[[Mapping[StreamName, Tensor], Tensor], Mapping[StreamName, Tensor]]
"""Function from noised tokens (B, …) by stream, and their noise levels (B,), to the expected clean tokens."""


@dataclass(frozen=True, slots=True)
class Windows:
    """A batch of B windows of n ticks, on the model's device."""

    arrays: Mapping[StreamName, Tensor]
    """Gesture (B, 3 n, 415 or 424), audio (B, 10 n, 64) and text (B, n) in the format of shards, or latents."""
    positions: Tensor  # (B,) int64, positions in the sample sequence
    speakers: Tensor  # (B,) int64, 0: unknown
    present: Present | None = None  # None: nothing is absent
    conditions: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """For each condition stream of the model: values (B, …), and a mask (B,) of the samples that have a value."""

    def tensors(self) -> list[Tensor]:
        """Return all tensors of the batch."""
        masks = [] if self.present is None else [self.present.lacking, *self.present.masks.values()]
        pairs = [tensor for pair in self.conditions.values() for tensor in pair]
        return [*self.arrays.values(), self.positions, self.speakers, *masks, *pairs]


@dataclass(frozen=True, slots=True)
class FlowLoss:
    """Losses of a batch: the total for training, and the loss of each sample and stream."""

    total: Tensor
    """Scalar: the mean over samples of the weighted sum of the losses of their targets."""
    each: Tensor
    """Loss of each sample and stream (B, 3), unweighted and without gradient; 0 if the stream is not a target. The
    columns are in the order of `STREAMS`."""


def draw_noise(seed: int, positions: Tensor, name: StreamName, shape: Sequence[int]) -> Tensor:
    """Draw standard normal noise of one stream.

    Args:
        seed: Seed in [0, 2⁶⁴).
        positions: Positions in the sample sequence (B,) int64.
        name: The stream.
        shape: Shape of the noise of one sample.

    Returns:
        Noise (B, *shape) float32.
    """
    drawn = normal(seed, positions, _NOISE[name], torch.Size(shape).numel())
    return drawn.reshape(-1, *shape)


class FlowModel(nn.Module):
    """The complete model: trunk, streams and encoders of condition streams."""

    def __init__(  # noqa: PLR0913 - only three are positional
        self,
        trunk: JointFlowTransformer,
        streams: Mapping[StreamName, Stream],
        absent: AbsentStreams = "left-out",
        *,
        latents: Collection[StreamName] = (),
        tell_absent: bool = False,
        trained: int = ALL_PRESENT,
        encoders: Mapping[str, nn.Module] = MappingProxyType({}),
        gesture_channels: int = LAYOUT.channels,
    ) -> None:
        """Join the modules of the model.

        Args:
            trunk: The transformer.
            streams: The `Stream` module of each stream.
            absent: What represents a stream that a sample lacks: no tokens (``left-out``) or pure noise (``noise``).
            latents: Streams stored as latents of a codec.
            tell_absent: True: add a learned embedding to the conditioning for each part that a sample lacks.
            trained: Bit mask of the `STREAM_PARTS` that at least one training sample has.
            encoders: For each condition stream, the module that maps its values (B, …) to vectors (B, W).
            gesture_channels: Channels of gesture arrays: 415, or 424 with jaw and eyes. Latents have other channels.
        """
        super().__init__()
        self.gesture_channels = gesture_channels
        self._unused = unused_bits(gesture_channels)
        self.latents, self.trained = frozenset(latents), trained | self._unused
        parts = len(STREAM_PARTS) - self._unused.bit_count()
        self.lacking = nn.Parameter(torch.zeros(parts, trunk.config["width"])) if tell_absent else None
        self.trunk = trunk
        self.absent = absent
        self._width: int = trunk.config["width"]
        self._pooled_width: int | None = trunk.config["pooled_width"]
        self._rotary = trunk.rotary_periods_s is not None
        self.streams = nn.ModuleDict({name: streams[name] for name in STREAMS})
        self.conditions = nn.ModuleDict(dict(encoders))
        self.losses_of = self._losses
        """Function that computes the losses of batches with rounded shapes. A trainer may replace it by a compiled
        function."""
        self._stacked: StackedTrunk | None = None
        self.connects_all = True
        """True: every batch gives every trainable parameter a gradient. False: parameters that the tasks of a batch do
        not use get no gradient."""

    def stack_streams(self) -> None:
        """Let `forward` with ``rounded=True`` use a `StackedTrunk`, if `StackedTrunk.fits` allows it.

        This moves the trunk's parameters to new memory. They must not be moved again later, see `StackedTrunk`.
        """
        self._stacked = StackedTrunk(self.trunk) if StackedTrunk.fits(self.trunk) else None

    def stream(self, name: StreamName) -> Stream:
        """Return the module that converts the arrays of a stream to tokens and back."""
        return cast("Stream", self.streams[name])

    def describe(
        self, conditions: Mapping[str, tuple[Tensor, Tensor]], kept: Mapping[str, Tensor] = MappingProxyType({})
    ) -> Tensor | None:
        """Encode the values of each condition stream as vectors, and sum them over streams. Absent values add zero.

        Args:
            conditions: For each condition stream: values (B, …), and a mask (B,) of the samples that have a value.
                Streams may be left out.
            kept: For each condition stream that training drops for some samples: a mask (B,) of the samples for which
                it is kept. A stream without a mask is kept for all samples.

        Returns:
            Vectors (B, W); None if `conditions` is empty.
        """
        total: Tensor | None = None
        for name, (values, known) in conditions.items():
            here = known & kept[name] if name in kept else known
            vectors = self.conditions[name](values)
            own = torch.where(here[:, None], vectors, torch.zeros_like(vectors))
            total = own if total is None else total + own
        return total

    def forward(
        self, windows: Windows, plan: Plan, settings: FlowSettings, seed: int, *, rounded: bool = False
    ) -> FlowLoss:
        """Compute the loss of a batch in one forward pass. The samples of the batch may have different tasks.

        Every trainable parameter gets a gradient (see `connects_all`), so that ranks with different tasks can average
        their gradients.

        Args:
            windows: The batch. Values that ``windows.present`` marks as absent do not change the loss.
            plan: Tasks, noise levels and drop-outs of the samples, drawn for their positions.
            settings: Settings of training, of which only the loss weights are used.
            seed: Seed of the noise.
            rounded: True: round up the number of rows of each stream (see `batch_rows`), so that `torch.compile` has to
                compile only a few shapes. The loss does not change.

        Returns:
            The mean loss, and the losses of each sample and stream.
        """
        device = windows.positions.device
        plan = carried_as_noise(plan) if self.absent == "noise" else plan
        moved = on_device({"levels": plan.levels, "known": plan.speaker_known} | dict(plan.kept), device)
        described = self.describe(windows.conditions, {name: moved[name] for name in plan.kept})
        described = self._described(windows.present, described, len(plan.task))
        inputs = _Inputs(
            dict(windows.arrays),
            windows.positions,
            moved["levels"],
            windows.speakers * moved["known"],
            {} if windows.present is None else dict(windows.present.masks),
            described,
        )
        losses_of = self.losses_of if rounded else self._losses
        total, each = losses_of(inputs, batch_rows(plan, device, rounded=rounded), dict(settings.weights), seed)
        untouched = self._untouched(plan) if self.connects_all else None
        return FlowLoss(total if untouched is None else total + untouched, each)

    def carried(self, targets: Sequence[StreamName]) -> list[StreamName]:
        """Return the streams that must be in the `tokens` of `predict` in addition to the targets.

        If the model represents absent streams by noise, these are all streams that are not targets. Otherwise the list
        is empty.
        """
        return [name for name in STREAMS if name not in targets] if self.absent == "noise" else []

    def predict(
        self,
        tokens: Mapping[StreamName, Tensor],
        levels: Mapping[StreamName, Tensor],
        targets: Sequence[StreamName],
        speakers: Tensor,
        present: Present | None = None,
        described: Tensor | None = None,
    ) -> dict[StreamName, Tensor]:
        """Predict the clean tokens of the targets.

        Args:
            tokens: Tokens (B, N, C) by stream: of the targets, and of all other streams that the model receives.
            levels: Noise levels by stream, for the same streams: (B,), or (B, N) with one level for each token.
            targets: Streams to predict.
            speakers: Index of each sample's speaker (B,) int64; 0: unknown.
            present: Parts that the samples have, for a model with ``tell_absent``; None: all.
            described: Result of `describe` for the samples (B, W).

        Returns:
            Expected clean tokens (B, N, C) of each target.

        Raises:
            ValueError: The model needs tokens of every stream, but `tokens` lacks a stream.
        """
        missing = [name for name in self.carried(targets) if name not in tokens]
        if missing:
            raise ValueError(f"this model represents absent streams by noise; pass tokens of {', '.join(missing)}")
        every = torch.arange(len(speakers), device=speakers.device)
        outputs = self.trunk(
            tokens,
            levels,
            **self._places(tokens),
            pooled=self._pooled(speakers),
            speakers=speakers,
            described=self._described(present, described, len(speakers)),
            rows=dict.fromkeys(targets, every),
        )
        return {name: self.stream(name).clean(outputs[name], tokens[name], levels[name]) for name in targets}

    def _places(self, tokens: Mapping[StreamName, Tensor]) -> dict[str, dict[StreamName, Tensor]]:
        """Return the token positions as keyword arguments of the trunk.

        ``added`` contains, by stream, the position embeddings to add to the tokens. If the trunk uses rotary positions,
        ``seconds`` contains the times of the tokens by stream.
        """
        places = {name: self.stream(name).places for name in tokens}
        learned = {name: embedding for name, embedding in places.items() if embedding is not None}
        if self._rotary:
            seconds = {name: self.stream(name).seconds(x.shape[1]) for name, x in tokens.items()}
            return {"seconds": seconds, "added": learned}
        found = {name: self.stream(name).positions(x.shape[1], self._width) for name, x in tokens.items()}
        return {"added": {name: embedding for name, embedding in found.items() if embedding is not None} | learned}

    def _pooled(self, speakers: Tensor) -> Tensor | None:
        """Return zeros (B, pooled_width) for the trunk's argument `pooled`; None if the trunk has no `pooled_width`."""
        width = self._pooled_width
        return None if width is None else torch.zeros(len(speakers), width, device=speakers.device)

    def _described(self, present: Present | None, described: Tensor | None, batch: int) -> Tensor | None:
        """Return the vectors (B, W) to add to the conditioning: the sum of `described` and embeddings of absent parts.

        Args:
            present: Parts that the samples have; None: all. Used only by a model with ``tell_absent``.
            described: Result of `describe`.
            batch: Batch size B.

        Returns:
            The vectors; None for a model without ``tell_absent`` if `described` is also None.
        """
        if self.lacking is None:
            return described
        parts = len(self.lacking)
        lacking = self.lacking.new_zeros(batch, parts) if present is None else present.lacking[:, :parts]
        absent = lacking @ self.lacking
        return absent if described is None else absent + described

    def known_parts(self, bits: npt.NDArray[np.uint8]) -> Present | None:
        """Convert bit masks (B,) of `STREAM_PARTS` to the presence of parts; return None if nothing is absent.

        A part that no training sample had is treated as absent, even if its bit is set.
        """
        known = bits & np.uint8(self.trained) | np.uint8(self._unused)
        return present_of(known, next(self.parameters()).device, self.latents, self.gesture_channels)

    def _losses(
        self, inputs: _Inputs, batch: BatchRows, weights: Mapping[StreamName, float], seed: int
    ) -> tuple[Tensor, Tensor]:
        """Compute the mean loss (a scalar) and the losses (B, 3), without copying a value from the device.

        No gradient flows through noised tokens into the text embeddings.
        """
        packed = batch.packed
        names = [name for name in STREAMS if name in batch.streams]
        columns = {name: STREAMS.index(name) for name in names}
        arrays = {name: packed.of_rows(name, inputs.arrays[name]) for name in names}
        masks = {name: packed.of_rows(name, inputs.masks[name]) for name in names if name in inputs.masks}
        levels = {name: inputs.levels[:, k] for name, k in columns.items()}
        clean = {name: self.stream(name).tokens(arrays[name]) for name in names}
        clean = {name: masked(x, masks[name]) if name in masks else x for name, x in clean.items()}
        noise = self._noise(inputs.positions, batch, clean, masks, seed)
        tokens = {}
        for name, x in clean.items():
            rows, own = batch.noised.get(name), packed.of_rows(name, levels[name])
            if rows is None:
                at_levels = noised(x.detach(), noise[name], own).to(x.dtype)
                tokens[name] = torch.where(own[:, None, None] > 0, at_levels, x)
            else:
                at_levels = noised(x.detach()[rows], noise[name], own[rows])
                tokens[name] = x.index_copy(0, rows, at_levels.to(x.dtype))
        outputs = self._outputs(tokens, levels, inputs, batch)
        each = {name: torch.zeros_like(levels[names[0]]) for name in STREAMS}
        weighted = torch.zeros_like(each["text"])
        for name in (name for name in names if name in batch.targets):
            chosen = batch.targets[name]
            x, own = clean[name].detach()[chosen], noise[name][batch.target_noise[name]]
            there = masks[name][chosen] if name in masks else None
            losses = self.stream(name).losses(outputs[name], arrays[name][chosen], x, own, there)
            each[name] = batch.losses_of_samples(name, losses)
            weighted = weighted + weights[name] * each[name]
        return weighted.sum() / len(inputs.levels), torch.stack(list(each.values()), dim=1).detach()

    def _outputs(
        self,
        tokens: Mapping[StreamName, Tensor],
        levels: Mapping[StreamName, Tensor],
        inputs: _Inputs,
        batch: BatchRows,
    ) -> dict[str, Tensor]:
        """Compute the outputs of the targets, with the stacked trunk if it exists and can compute this batch."""
        equal = len({x.shape[1] for x in tokens.values()}) == 1
        if self._stacked is not None and batch.stacked is not None and equal:
            places = self._places(tokens)
            return self._stacked(
                tokens,
                inputs.levels.mT,
                batch.stacked,
                seconds=places.get("seconds"),
                added=places["added"],
                speakers=inputs.speakers,
                described=inputs.described,
            )
        found: dict[str, Tensor] = self.trunk(
            tokens,
            levels,
            **self._places(tokens),
            packed=batch.packed,
            pooled=self._pooled(inputs.speakers),
            speakers=inputs.speakers,
            described=inputs.described,
            rows=batch.targets,
        )
        return found

    def _noise(
        self,
        positions: Tensor,
        batch: BatchRows,
        clean: Mapping[StreamName, Tensor],
        masks: Mapping[StreamName, Tensor],
        seed: int,
    ) -> dict[StreamName, Tensor]:
        """Draw noise for the noised rows of each stream, in one computation for all streams."""
        places = {name: batch.packed.of_rows(name, positions) for name in clean}
        places = {name: x if name not in batch.noised else x[batch.noised[name]] for name, x in places.items()}
        wanted = [Draws(places[name], _NOISE[name], x.shape[1:].numel()) for name, x in clean.items()]
        drawn = zip(clean.items(), normals(seed, wanted), strict=True)
        found = {name: noise.reshape(-1, *x.shape[1:]) for (name, x), noise in drawn}
        for name in masks:  # a completely absent stream keeps its noise, because some models need every stream
            own = masks[name] if name not in batch.noised else masks[name][batch.noised[name]]
            found[name] = masked(found[name], own | ~own.any(dim=1, keepdim=True))
        return found

    def _untouched(self, plan: Plan) -> Tensor | None:
        """Return a zero with a gradient to every trainable parameter; None if the plan uses all parameters anyway."""
        all_targets = plan.target.any(axis=0).all()
        text = STREAMS.index("text")
        text_read = (plan.present[:, text] & (plan.levels[:, text] == 0)).any()
        trained = [] if all_targets and text_read else [p.flatten()[0] for p in self.parameters() if p.requires_grad]
        return 0.0 * torch.stack(trained).sum() if trained else None


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Inputs of a training step for the B samples of a batch, from which `FlowModel._losses` computes the losses."""

    arrays: Mapping[StreamName, Tensor]  # (B, …)
    positions: Tensor  # (B,)
    levels: Tensor  # (B, 3)
    speakers: Tensor  # (B,)
    masks: Mapping[StreamName, Tensor]  # as `Present.masks`
    described: Tensor | None  # (B, W)


def step_levels(settings: SamplingSettings) -> list[float]:
    """Return the steps + 1 noise levels of sampling, from 1 down to 0.

    For n steps, let u be n evenly spaced numbers from 1 down to 1 / n. The first n levels are
    σ = shift · u / (1 + (shift − 1) · u). If the smallest σ would be below ``sigma_min``, the numbers u end at a higher
    value, for which σ is ``sigma_min``. The last level is 0.

    Args:
        settings: Number of steps, shift and ``sigma_min``.

    Returns:
        Decreasing noise levels. The first is exactly 1, the last exactly 0.
    """
    shift, last = settings.shift, settings.sigma_min
    lowest = max(1 / settings.steps, last / (shift - (shift - 1) * last))
    even = np.linspace(1, lowest, settings.steps).tolist()
    return [*(shift * u / (shift * u + (1 - u)) for u in even), 0.0]  # exactly 1 at 1


def integrate(
    start: Mapping[StreamName, Tensor],
    levels: Sequence[float],
    clean_of: CleanOf,
    solver: Solver = "euler",
    after_step: Callable[[], None] = lambda: None,
) -> dict[StreamName, Tensor]:
    """Integrate the flow from the first noise level to the last, with one step between successive levels.

    Args:
        start: Tokens (B, …) of each target at levels[0].
        levels: Decreasing noise levels.
        clean_of: Function that predicts the clean tokens from noised tokens and their noise levels.
        solver: Method of each step: ``euler``, ``heun`` or ``dpm++``.
        after_step: Function that is called after each step.

    Returns:
        Tokens (B, …) of each target at levels[-1].
    """
    x = dict(start)
    memory: list[tuple[float, Mapping[StreamName, Tensor]]] = []  # for dpm++: level and prediction of the previous step
    for level, following in itertools.pairwise(levels):
        if solver == "dpm++":
            first = next(iter(x.values()))
            clean = clean_of(x, torch.full((len(first),), level, device=first.device))
            x = _multistep(x, clean, level, following, memory)
            memory = [(level, clean)]
        else:
            velocity = _velocity(x, level, clean_of)
            if solver == "heun" and following > 0:
                second = _velocity(_moved(x, velocity, following - level), following, clean_of)
                velocity = {name: torch.lerp(v, second[name], 0.5) for name, v in velocity.items()}
            x = _moved(x, velocity, following - level)
        after_step()
    return x


def _multistep(
    x: Mapping[StreamName, Tensor],
    clean: Mapping[StreamName, Tensor],
    level: float,
    following: float,
    memory: Sequence[tuple[float, Mapping[StreamName, Tensor]]],
) -> dict[StreamName, Tensor]:
    """Take a step of DPM-Solver++(2M) (Lu et al. 2022): x' = σ'/σ x + (α' − α σ'/σ) D with α = 1 − σ.

    D is the prediction at the middle of the step. It is extrapolated in λ = log(α / σ) from the predictions at the
    starts of the previous step and of this step. In the first two steps and the last step, D is the prediction at the
    start of the step, because λ is infinite at σ = 1 and σ = 0.

    Args:
        x: Tokens (B, …) of each target at level σ.
        clean: Clean tokens that the model predicts from x.
        level: Noise level σ at the start of the step.
        following: Noise level σ' at the end of the step.
        memory: One pair: the noise level and the prediction at the start of the previous step. Empty in the first step.

    Returns:
        Tokens x' (B, …) of each target at level σ'.
    """
    ratio = following / level
    share = 0.0
    if memory and following > 0 and memory[0][0] < 1:
        share = (_log_ratio(following) - _log_ratio(level)) / (_log_ratio(level) - _log_ratio(memory[0][0])) / 2
    found = {}
    for name, tokens in x.items():
        expected = clean[name]
        if share:
            expected = expected + share * (expected - memory[0][1][name])
        found[name] = ratio * tokens + ((1 - following) - (1 - level) * ratio) * expected
    return found


def _log_ratio(level: float) -> float:
    return math.log((1 - level) / level)


def _velocity(x: Mapping[StreamName, Tensor], level: float, clean_of: CleanOf) -> dict[StreamName, Tensor]:
    # Long timelines have no batch axis: the first axis counts tokens, whose number differs between streams.
    at = {name: torch.full((len(tokens),), level, device=tokens.device) for name, tokens in x.items()}
    clean = clean_of(x, next(iter(at.values())))
    return {name: velocity_from_clean(clean[name], tokens, at[name]) for name, tokens in x.items()}


def _moved(
    x: Mapping[StreamName, Tensor], velocity: Mapping[StreamName, Tensor], step: float
) -> dict[StreamName, Tensor]:
    return {name: tokens + step * velocity[name] for name, tokens in x.items()}


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Conditions that samples are generated from."""

    given: Mapping[StreamName, Tensor]  # clean tokens (B, N, C)
    speakers: Tensor  # (B,) int64, 0: unknown
    present: Present | None = None  # used with and without the conditions
    described: Tensor | None = None  # (B, W) of `FlowModel.describe`; left out together with the conditions


def guided_clean(
    model: FlowModel,
    conditioning: Conditioning,
    targets: Sequence[StreamName],
    guidance: float,
    carried: Mapping[StreamName, Tensor] = MappingProxyType({}),
) -> CleanOf:
    """Return a function that predicts the clean tokens of the targets with classifier-free guidance.

    Args:
        model: The model.
        conditioning: Conditions of the samples.
        targets: Streams to predict.
        guidance: Guidance scale w in x_u + w (x_c − x_u), where x_c is predicted with the conditions and x_u without
            them. With w = 1, only x_c is computed; with w = 0, only x_u.
        carried: Noise (B, N, C) with the level 1 for each stream that `FlowModel.carried` returns, the same in all
            steps. To predict x_c, the model receives this noise in place of streams that are neither targets nor
            conditions. To predict x_u, the model also receives it in place of the conditions.

    Returns:
        Function that maps noised tokens and their levels to clean tokens.
    """
    given, described = conditioning.given, conditioning.described
    speakers, present = conditioning.speakers, conditioning.present

    def expected(tokens: Mapping[StreamName, Tensor], at: Tensor, *, with_conditions: bool) -> dict[StreamName, Tensor]:
        seen = given if with_conditions else {}
        levels = dict.fromkeys(carried, torch.ones_like(at)) | dict.fromkeys(seen, torch.zeros_like(at))
        levels |= dict.fromkeys(tokens, at)
        vectors = described if with_conditions else None
        return model.predict({**carried, **seen, **tokens}, levels, targets, speakers, present, vectors)

    def guided(tokens: Mapping[StreamName, Tensor], at: Tensor) -> dict[StreamName, Tensor]:
        if (not given and described is None) or guidance == 1:
            return expected(tokens, at, with_conditions=True)
        without = expected(tokens, at, with_conditions=False)
        if guidance == 0:
            return without
        with_them = expected(tokens, at, with_conditions=True)
        return {name: torch.lerp(without[name], with_them[name], guidance) for name in without}

    return guided
