"""Convert OmniFlow's transformer to the configuration and weights of the trunk, `JointFlowTransformer`.

Each tensor of the trunk has one conversion rule. Each tensor of the source has one use: loaded, converted or left out.
The rules depend only on the sizes. A rule is applied when its tensor is read, so at most one tensor is in memory.

EMA weights are a list without names, so the order of the parameters identifies them. Saved position tables are compared
with the sines that they should contain, and are then left out.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor

from omniges.errors import DataError, UsageFault
from omniges.model.streams import line_embedding
from omniges.model.trunk import JointFlowTransformer
from omniges.pretrained.architecture import (
    NESTED,
    STREAM_NAMES,
    Architecture,
    Grid,
    StreamNames,
    nested_names,
    parameters,
    read_architecture,
    tables,
)
from omniges.pretrained.tensors import OmniFlowFolder, Tensors, find_omniflow, open_parts
from omniges.storage.tensors import read_weight_list

WhichWeights = Literal["last", "ema"]
_LIST: Final = "shadow_params"
_TIED: Final = "text_decoder.encoder.encoder.embed_tokens.weight"
_TABLE: Final = "text_decoder.encoder.shared.weight"
"""The second name of the tensor `_TIED`. A file may store the tensor under both names; it counts as one parameter."""
_USE_LAST: Final = "use the weights of the last step (--weights last; in train, --pretrained-weights last)"
_MIN_TOLERANCE: Final = 2e-5  # for a table that was computed in float32

StatusKind = Literal["loaded", "converted", "new", "left out"]
How = Literal["as it is", "joined", "stacked", "flattened", "first six parts"]

_REASONS: Final[dict[How, str]] = {
    "as it is": "the same layer",
    "joined": "three projections in one",
    "stacked": "norms of queries and keys in one",
    "flattened": "a convolution whose stride is its size is a linear layer on patches",
    "first six parts": "the other three are for a second attention that models with audio do not have",
}
_KINDS: Final[tuple[StatusKind, ...]] = get_args(StatusKind)
_NUMBER: Final = re.compile(r"\.\d+\.")


@dataclass(frozen=True, slots=True)
class Rule:
    """Conversion rule of one tensor of the trunk: names of its source tensors, and the operation."""

    target: str
    sources: tuple[str, ...]
    how: How = "as it is"


@dataclass(frozen=True, slots=True)
class TensorStatus:
    """Use of one pretrained tensor, or origin of one weight of the omniges model.

    ``source`` is the name of the pretrained tensor, None for a new weight. ``target`` is the name of the weight, None
    for a tensor that is left out. ``numbers`` is how many values the tensor has.
    """

    kind: StatusKind
    source: str | None
    target: str | None
    numbers: int
    reason: str

    def as_json(self) -> dict[str, Any]:
        """Return the status as an item of ``tensors`` in conversion.json."""
        return asdict(self)


def trunk_config(architecture: Architecture) -> dict[str, Any]:
    """Return arguments for `JointFlowTransformer` with the streams ``image``, ``text`` and ``audio``.

    Raises DataError if the MLP width is not a multiple of the width.
    """
    if architecture.mlp_width % architecture.width:
        raise DataError(
            f"an OmniFlow transformer of width {architecture.width}: expected an MLP width that is a multiple of "
            f"this width, found {architecture.mlp_width}; use another checkpoint"
        )
    return {
        "streams": {
            "image": _grid_config(architecture.image),
            "text": {
                "inputs": architecture.joint_width,
                "outputs": architecture.text_outputs,
                "head_width": architecture.joint_width,
            },
            "audio": _grid_config(architecture.audio),
        },
        "width": architecture.width,
        "layers": architecture.layers,
        "heads": architecture.heads,
        "mlp_ratio": architecture.mlp_width // architecture.width,
        "qk_norm": architecture.qk_norm,
        "conditioning": "summed",
        "pooled_width": architecture.pooled_width,
        "rotary_periods_s": None,
        "context_only": ["text"],
    }


def _grid_config(grid: Grid) -> dict[str, int | None]:
    square = grid.patch**2
    return {"inputs": square * grid.channels, "outputs": square * grid.outputs, "head_width": None}


def rules(architecture: Architecture) -> list[Rule]:
    """Return one conversion rule for each tensor of the trunk: the OmniFlow tensors to read, and the operation."""
    found: list[Rule] = []
    for stream, names in STREAM_NAMES.items():
        found += _linear(f"embed.{stream}", names.embed, "as it is" if stream == "text" else "flattened")
        for ours, theirs in (("level", "timestep_embedder"), ("pooled", "text_embedder")):
            for layer in ("linear_1", "linear_2"):
                found += _linear(f"{ours}.{stream}.{layer}", f"{names.level}.{theirs}.{layer}")
        if names.head_widen is not None:
            found += _linear(f"head.{stream}.widen", names.head_widen)
        found += _linear(f"head.{stream}.modulation", f"{names.head_modulation}.linear")
        found += _linear(f"head.{stream}.out", names.head_out)
    for k in range(architecture.layers):
        found += _block(architecture, k)
    return found


def _linear(target: str, source: str, how: How = "as it is") -> list[Rule]:
    """Return the rules for weight and bias of a linear layer.

    Args:
        target: Name of the layer in the trunk.
        source: Name of the layer in OmniFlow.
        how: Operation on the weight. ``first six parts`` is applied to the bias too. With any other operation, the bias
            is copied unchanged.

    Returns:
        Two rules: for the weight and for the bias.
    """
    return [
        Rule(f"{target}.weight", (f"{source}.weight",), how),
        Rule(f"{target}.bias", (f"{source}.bias",), how if how == "first six parts" else "as it is"),
    ]


def _block(architecture: Architecture, k: int) -> Iterator[Rule]:
    theirs, ours = f"transformer_blocks.{k}", f"blocks.{k}"
    if architecture.qk_norm == "layer":
        for part in ("weight", "bias"):
            sources = tuple(f"{theirs}.attn.{name}.{part}" for name in ("norm_q", "norm_k"))
            yield Rule(f"{ours}.qk_norm.{part}", sources, "stacked")
    for stream, names in STREAM_NAMES.items():
        context_only = k == architecture.layers - 1 and stream == "text"
        dual = stream == "image" and k in architecture.dual_layers
        yield from _branch(f"{ours}.branches.{stream}", theirs, names, context_only=context_only, dual=dual)
        if architecture.qk_norm == "rms":
            sources = tuple(f"{theirs}.attn.{name}.weight" for name in names.qk_norms)
            yield Rule(f"{ours}.branches.{stream}.qk_norm.weight", sources, "stacked")


def _branch(ours: str, theirs: str, names: StreamNames, *, context_only: bool, dual: bool) -> Iterator[Rule]:
    how: How = "first six parts" if dual else "as it is"
    yield from _linear(f"{ours}.modulation", f"{theirs}.{names.modulation}.linear", how)
    for part in ("weight", "bias"):
        yield Rule(f"{ours}.qkv.{part}", tuple(f"{theirs}.attn.{name}.{part}" for name in names.projections), "joined")
    if not context_only:
        yield from _linear(f"{ours}.out", f"{theirs}.attn.{names.out}")
        yield from _linear(f"{ours}.mlp_in", f"{theirs}.{names.mlp}.net.0.proj")
        yield from _linear(f"{ours}.mlp_out", f"{theirs}.{names.mlp}.net.2")


def convert_tensor(rule: Rule, source: Tensors) -> Tensor:
    """Convert one tensor by its rule, in the precision of the source.

    Args:
        rule: The rule of one tensor of the trunk.
        source: Tensors of OmniFlow.

    Returns:
        The tensor of the trunk, on the CPU.

    Raises:
        DataError: The source tensors differ in precision.
    """
    parts = [source.read(name) for name in rule.sources]
    if len({part.dtype for part in parts}) > 1:
        raise DataError(
            f"{source.where}: expected {', '.join(rule.sources)} in the same precision, found several precisions; "
            "save these tensors in one precision"
        )
    if rule.how == "joined":
        return torch.cat(parts)
    if rule.how == "stacked":
        return torch.stack(parts)[:, None]
    (part,) = parts
    if rule.how == "flattened":
        return part.flatten(1)
    return part[: len(part) // 9 * 6] if rule.how == "first six parts" else part


def conversion_statuses(
    architecture: Architecture, shapes: Mapping[str, tuple[int, ...]], table_reasons: Mapping[str, str]
) -> list[TensorStatus]:
    """Return the use of every tensor of the source.

    Args:
        architecture: Sizes of the transformer.
        shapes: Shape of each source tensor by name.
        table_reasons: Reason why each position table is left out, by name.

    Returns:
        The use of each source tensor.

    Raises:
        DataError: A tensor has no known use.
    """
    found: list[TensorStatus] = []
    for rule in rules(architecture):
        kind: StatusKind = "loaded" if rule.how == "as it is" else "converted"
        reason = _REASONS[rule.how]
        found += [TensorStatus(kind, name, rule.target, math.prod(shapes[name]), reason) for name in rule.sources]
    reasons = dict(table_reasons)
    dead = f"transformer_blocks.{architecture.layers - 1}.{STREAM_NAMES['text'].mlp}."
    reasons |= {name: "the last block's text gives keys and values only" for name in shapes if name.startswith(dead)}
    for name in nested_names(shapes):
        reasons[name] = next(words for prefix, words in NESTED.items() if name.startswith(prefix))
    found += [TensorStatus("left out", name, None, math.prod(shapes[name]), reason) for name, reason in reasons.items()]
    unexplained = sorted(shapes.keys() - {status.source for status in found})
    if unexplained:
        raise DataError(
            f"OmniFlow transformer: expected known tensors only, found {len(unexplained)} others, such as "
            f"{unexplained[0]}; use another checkpoint"
        )
    return found


def table_of(statuses: Iterable[TensorStatus]) -> list[str]:
    """Return a table of how tensors are used, as lines of text.

    One line counts all tensors that have the same use, module and reason. The same module in all blocks counts as one.
    """
    groups: dict[tuple[StatusKind, str, str], list[int]] = {}
    for status in statuses:
        groups.setdefault((status.kind, _part(status), status.reason), []).append(status.numbers)
    rows = [("status", "tensors", "numbers", "part", "reason")]
    for (kind, part, reason), numbers in sorted(groups.items(), key=lambda group: _KINDS.index(group[0][0])):
        rows.append((kind, str(len(numbers)), f"{sum(numbers):,}", part, reason))
    wide = [max(len(row[k]) for row in rows) for k in range(4)]
    return [
        f"{kind:<{wide[0]}}  {tensors:>{wide[1]}}  {numbers:>{wide[2]}}  {part:<{wide[3]}}  {why}"
        for kind, tensors, numbers, part, why in rows
    ]


def _part(status: TensorStatus) -> str:
    """Return the module that contains a tensor, for the column ``part`` of `table_of`; the block number is left out.

    The module is read from the target name or, for a tensor that is left out, from the source name.
    """
    name = _NUMBER.sub(".*.", status.target or status.source or "")
    words = name.removeprefix("trunk.").split(".")
    if status.target is None:
        return words[0] if words[0] != "transformer_blocks" else ".".join(words[:3])
    if words[0] == "blocks":
        return f"blocks, {words[3]}" if words[2] == "branches" else "blocks, all streams"
    return words[0] if words[0] == "speaker" else ", ".join(words[:2])


@dataclass(frozen=True, slots=True)
class SourceTrunk(Tensors):
    """OmniFlow's trunk, with the streams ``image``, ``text`` and ``audio``. Its tensors are read one at a time."""

    config: Mapping[str, Any]  # arguments of JointFlowTransformer
    grids: Mapping[str, Mapping[str, int]]  # for image and audio: channels, patch, table_side, table_base
    statuses: tuple[TensorStatus, ...]
    warnings: tuple[str, ...]


def _opened(folder: Path) -> tuple[OmniFlowFolder, Tensors, Architecture, list[str]]:
    """Return the files of an OmniFlow folder, its last weights, its sizes, and warnings about its config."""
    found = find_omniflow(folder)
    source = open_parts(found.weights)
    return found, source, *read_architecture(source.shapes, found.config, source.where)


def config_of(folder: Path) -> dict[str, Any]:
    """Return the trunk configuration of an OmniFlow folder. Only names and shapes of its tensors are read."""
    return trunk_config(_opened(folder)[2])


def audio_grid_of(folder: Path) -> dict[str, int]:
    """Return the sizes of the audio patches and of their position table in an OmniFlow folder.

    Args:
        folder: OmniFlow's folder.

    Returns:
        ``channels``, ``patch``, ``table_side`` and ``table_base``, as in `PatchGrid`. The base is computed from the
        first row of the position table; the other rows are not checked.
    """
    _, source, architecture, _ = _opened(folder)
    return _as_entry(architecture.audio, _base(*_saved("audio_embedder.pos_embed", architecture, source)))


def _as_entry(grid: Grid, base: int) -> dict[str, int]:
    return {"channels": grid.channels, "patch": grid.patch, "table_side": grid.table_side, "table_base": base}


def read_omniflow(folder: Path, weights: WhichWeights = "last") -> SourceTrunk:
    """Check a complete OmniFlow folder and open it as a trunk.

    Args:
        folder: OmniFlow's folder, or the folder of its transformer.
        weights: The last weights, or the EMA weights that some checkpoints also have.

    Returns:
        The trunk, whose tensors are converted when they are read.

    Raises:
        UsageFault: The folder or the EMA weights do not exist.
        DataError: A tensor is missing, damaged, unexpected or of another shape.
    """
    found, source, architecture, warnings = _opened(folder)
    bases, reasons = _tables(architecture, source)
    if weights == "ema":
        if found.average is None:
            raise UsageFault(f"{folder}: expected ema_transformer.pt with EMA weights, found none; {_USE_LAST}")
        source = _average(found.average, architecture, source)
    grids = {
        "image": _as_entry(architecture.image, bases["image"]),
        "audio": _as_entry(architecture.audio, bases["audio"]),
    }
    by_target = {rule.target: rule for rule in rules(architecture)}
    config = trunk_config(architecture)
    return SourceTrunk(
        where=source.where,
        files=(found.config_file, *source.files),
        config=config,
        grids=grids,
        shapes=parameter_shapes(config),
        dtypes={name: source.dtypes[rule.sources[0]] for name, rule in by_target.items()},
        read=lambda name: convert_tensor(by_target[name], source),
        statuses=tuple(conversion_statuses(architecture, source.shapes, reasons)),
        warnings=tuple(warnings),
    )


def parameter_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a trunk's parameters without allocating them."""
    with torch.device("meta"):
        model = JointFlowTransformer(**config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _average(path: Path, architecture: Architecture, weights: Tensors) -> Tensors:
    """Return the transformer's EMA weights by name, and check them against the last weights.

    EMA weights are stored as a list without names, which must have one tensor for each parameter. Tensors of the
    transformer are first, with the order and shapes of the reference implementation. Tensors of other models, such as
    the text VAE, follow. Position tables are not in the list and are read from the last weights.

    Args:
        path: File of the EMA weights.
        architecture: Sizes of the transformer.
        weights: The last weights.

    Returns:
        The EMA weights and the position tables. When an EMA matrix is read, it is compared with the matrix of the same
        name in `weights`. If their distance exceeds the norm of the matrix in `weights`, `DataError` is raised, because
        the list must have another order.

    Raises:
        DataError: The number, order or shapes of the tensors in the list are wrong.
    """
    found = read_weight_list(path, _LIST, mapped=True)
    own = parameters(architecture)
    nested = [name for name in nested_names(weights.shapes) if name != _TIED or _TABLE not in weights.shapes]
    if len(found) != len(own) + len(nested):
        raise DataError(
            f"{path}: expected {len(own)} tensors of the transformer and {len(nested)} of models inside it in {_LIST}, "
            f"found {len(found)}; {_USE_LAST}"
        )
    for number, (name, shape) in enumerate(own.items()):
        if tuple(found[number].shape) != shape:
            raise DataError(
                f"{path}: expected {shape} (the shape of {name}), found {tuple(found[number].shape)} at "
                f"{_LIST}[{number}], so the order differs; {_USE_LAST}"
            )
    if Counter(tuple(x.shape) for x in found[len(own) :]) != Counter(weights.shapes[name] for name in nested):
        raise DataError(
            f"{path}: expected tensors of the nested models from {_LIST}[{len(own)}] on, found other shapes; "
            f"{_USE_LAST}"
        )
    numbers = {name: number for number, name in enumerate(own)}

    def read(name: str) -> Tensor:
        if name not in numbers:
            return weights.read(name)
        average, weight = found[numbers[name]], weights.read(name)
        # An EMA matrix is near its weight. The distance of two independent matrices is larger than their norms.
        if weight.ndim > 1 and not (average.float() - weight.float()).norm() <= weight.float().norm():
            raise DataError(
                f"{path}: expected an average of {name} at its place in {_LIST}, found another tensor, so the "
                f"order differs; {_USE_LAST}"
            )
        return average

    kept = {**own, **{name: weights.shapes[name] for name in (*tables(architecture), *nested_names(weights.shapes))}}
    dtypes = {name: found[numbers[name]].dtype if name in numbers else weights.dtypes[name] for name in kept}
    return Tensors(str(path), (*weights.files, path), kept, dtypes, read)


def _tables(architecture: Architecture, source: Tensors) -> tuple[dict[str, int], dict[str, str]]:
    """Check that each saved position table of OmniFlow can be computed from two numbers, its side and its base.

    A table is a square of embeddings. Along both axes, index i has the coordinate i · base / side. The side is read
    from the shape of the table, and the base is estimated from its values. Then all values are compared with the
    computed table.

    Args:
        architecture: Sizes of the transformer.
        source: Tensors of OmniFlow.

    Returns:
        The base of each table by stream (``image``, ``audio``), and the reason why the conversion leaves each table
        out, by tensor name.

    Raises:
        DataError: The values of a table differ from the computed table.
    """
    bases: dict[str, int] = {}
    reasons: dict[str, str] = {}
    for name in tables(architecture):
        saved, where = _saved(name, architecture, source)
        side, base = len(saved), _base(saved, where)
        off = max(_difference(saved, row, base) for row in range(side))
        if not off <= max(_MIN_TOLERANCE, torch.finfo(saved.dtype).eps):
            raise DataError(
                f"{where}: expected the table of sines of side {side} and base {base}, found differences up to "
                f"{off:.2g}; download it again"
            )
        bases["image" if name.startswith("pos_embed") else "audio"] = base
        reasons[name] = f"computed from side {side} and base {base}; differs by at most {off:.1g}"
    return bases, reasons


def _saved(name: str, architecture: Architecture, source: Tensors) -> tuple[Tensor, str]:
    """Read one of OmniFlow's position tables, a square grid of embeddings.

    Args:
        name: Name of the tensor.
        architecture: Sizes of the transformer.
        source: Tensors of OmniFlow.

    Returns:
        The table (side, side, W) with embeddings of W features, and the name of the table, shown in error messages.
    """
    side = (architecture.image if name.startswith("pos_embed") else architecture.audio).table_side
    return source.read(name).reshape(side, side, architecture.width), f"{source.where}: {name}"


def _base(saved: Tensor, where: str) -> int:
    """Return the base of a position table, an integer that defines the coordinates (see `_tables`).

    The base is first estimated from two values of the table, a sine and a cosine. Then all integers that differ from
    the estimate by at most 2 are tried. The result is the integer with the smallest error in the table's first row.

    Args:
        saved: Position table (side, side, W).
        where: Name of the table, shown in error messages.

    Returns:
        The base, at least 1.

    Raises:
        DataError: The side is below 2, or W is not a multiple of 4.
    """
    side, _, width = saved.shape
    if side < 2 or width % 4:
        raise DataError(
            f"{where}: expected a table of at least 2 × 2 and a width that is a multiple of 4, found "
            f"{tuple(saved.shape)}; download it again"
        )
    sine, cosine = float(saved[0, 1, 0]), float(saved[0, 1, width // 4])
    near = round(math.atan2(sine, cosine) * side) if math.isfinite(sine + cosine) else 0
    return min(range(max(1, near - 2), max(1, near) + 3), key=lambda base: _difference(saved, 0, base))


def _difference(saved: Tensor, row: int, base: int) -> float:
    """Compare one row of a position table with the values that are computed from a base.

    Args:
        saved: Position table (side, side, W).
        row: Index of the row.
        base: Integer that defines the coordinates (see `_tables`).

    Returns:
        The largest absolute difference in the row; infinite if any value of the row is not finite.
    """
    side, _, width = saved.shape
    coordinates = torch.arange(side, dtype=torch.float64) * (base / side)
    axis = line_embedding(coordinates, width // 2)
    expected = torch.cat([axis, axis[row].expand(side, -1)], dim=-1)
    found = float((saved[row].double() - expected).abs().max())
    return found if math.isfinite(found) else math.inf
