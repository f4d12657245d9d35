"""A trunk to start from: OmniFlow's, whatever form it was saved in, as tensors of ours that are made when asked for.

Averaged weights are a list without names, told apart by the order of the parameters. Saved position tables need not be
kept: they are held against the sines that they are tables of.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from omniges.errors import DataError, UsageFault
from omniges.model.latents import line_embedding
from omniges.model.trunk import JointFlowTransformer
from omniges.pretrained.omniflow.anatomy import nested_names, read_anatomy
from omniges.pretrained.omniflow.parameter_names import Anatomy, Grid, SourceStream, parameters, tables
from omniges.pretrained.omniflow.tensors import Tensors, find_omniflow, open_parts
from omniges.pretrained.omniflow.weight_map import Fate, conversion_fates, made, rules, trunk_config
from omniges.storage.tensors import read_weight_list

WhichWeights = Literal["last", "ema"]
_LIST: Final = "shadow_params"
_TIED: Final = "text_decoder.encoder.encoder.embed_tokens.weight"
_TABLE: Final = "text_decoder.encoder.shared.weight"
"""The other name of the same tensor, which counts once among parameters."""
_LEAST_TOLERANCE: Final = 2e-5  # of a table that was computed in float32


@dataclass(frozen=True, slots=True)
class SourceTrunk:
    """A trunk over streams ``image``, ``text``, ``audio``: its configuration, and its tensors one by one."""

    where: str
    files: tuple[Path, ...]
    config: Mapping[str, Any]  # arguments of JointFlowTransformer
    grids: Mapping[str, Mapping[str, int]]  # of image and audio: channels, patch, table_side, table_base
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    read: Callable[[str], Tensor]
    fates: tuple[Fate, ...]
    remarks: tuple[str, ...]


def config_of(folder: Path) -> dict[str, Any]:
    """The trunk's configuration of an OmniFlow folder, from names and shapes alone."""
    found = find_omniflow(folder)
    source = open_parts(found.weights)
    return trunk_config(read_anatomy(source.shapes, found.config, source.where)[0])


def audio_grid_of(folder: Path) -> dict[str, int]:
    """The audio stream's grid, as `SourceTrunk.grids` has it, of an OmniFlow folder; its table is not compared."""
    found = find_omniflow(folder)
    source = open_parts(found.weights)
    anatomy, _ = read_anatomy(source.shapes, found.config, source.where)
    return _as_entry(anatomy.audio, _base_of(anatomy, source, "audio"))


def _as_entry(grid: Grid, base: int) -> dict[str, int]:
    return {"channels": grid.channels, "patch": grid.patch, "table_side": grid.table_side, "table_base": base}


def read_omniflow(folder: Path, weights: WhichWeights = "last") -> SourceTrunk:
    """Check an OmniFlow folder whole and stand ready to make our trunk of it.

    ``weights``: the last ones, or the average that some checkpoints have beside them. Raises `UsageFault` where there
    is no such thing, `DataError` where anything is missing, damaged, unexpected or of another shape.
    """
    found = find_omniflow(folder)
    source = open_parts(found.weights)
    anatomy, remarks = read_anatomy(source.shapes, found.config, source.where)
    bases, reasons = _tables(anatomy, source)
    if weights == "ema":
        if found.average is None:
            raise UsageFault(f"{folder}: no ema_transformer.pt with averaged weights there; take the last weights")
        source = _average(found.average, anatomy, source)
    grids = {"image": _as_entry(anatomy.image, bases["image"]), "audio": _as_entry(anatomy.audio, bases["audio"])}
    by_target = {rule.target: rule for rule in rules(anatomy)}
    config = trunk_config(anatomy)
    return SourceTrunk(
        where=source.where,
        files=(found.config_file, *source.files),
        config=config,
        grids=grids,
        shapes=parameter_shapes(config),
        dtypes={name: source.dtypes[rule.sources[0]] for name, rule in by_target.items()},
        read=lambda name: made(by_target[name], source),
        fates=tuple(conversion_fates(anatomy, source.shapes, reasons)),
        remarks=tuple(remarks),
    )


def parameter_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a trunk's parameters; allocates nothing."""
    with torch.device("meta"):
        model = JointFlowTransformer(**config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _average(path: Path, anatomy: Anatomy, weights: Tensors) -> Tensors:
    """The transformer's averaged weights by name, beside the weights that they are the average of.

    The list must have as many tensors as the weights have parameters: first the transformer's in the reference's
    order, each of its shape, then those of the models inside it. Read one by one, a matrix must be nearer to its
    weight than zero is, which catches an order that shapes do not tell. Tables are those of the weights.

    Raises `DataError` where any of it is not so.
    """
    found = read_weight_list(path, _LIST, mapped=True)
    own = parameters(anatomy)
    nested = [name for name in nested_names(weights.shapes) if name != _TIED or _TABLE not in weights.shapes]
    if len(found) != len(own) + len(nested):
        raise DataError(
            f"{path}: {_LIST} has {len(found)} tensors; {len(own)} of the transformer and {len(nested)} of models "
            "inside it expected; take the last weights instead"
        )
    for number, (name, shape) in enumerate(own.items()):
        if tuple(found[number].shape) != shape:
            raise DataError(
                f"{path}: {_LIST}[{number}] has shape {tuple(found[number].shape)}, {shape} of {name} expected, so the "
                "order is another one; take the last weights instead"
            )
    if Counter(tuple(x.shape) for x in found[len(own) :]) != Counter(weights.shapes[name] for name in nested):
        raise DataError(
            f"{path}: {_LIST} from [{len(own)}] on is not of the shapes of the models inside; take the last weights"
        )
    numbers = {name: number for number, name in enumerate(own)}

    def read(name: str) -> Tensor:
        if name not in numbers:
            return weights.read(name)
        average, weight = found[numbers[name]], weights.read(name)
        # Two independent matrices are further apart than either is from zero; an average is near its weight.
        if weight.ndim > 1 and not (average.float() - weight.float()).norm() <= weight.float().norm():
            raise DataError(
                f"{path}: {_LIST}: what stands in the place of {name} is not an average of it, so the order is another "
                "one; take the last weights instead"
            )
        return average

    kept = {**own, **{name: weights.shapes[name] for name in (*tables(anatomy), *nested_names(weights.shapes))}}
    dtypes = {name: found[numbers[name]].dtype if name in numbers else weights.dtypes[name] for name in kept}
    return Tensors(str(path), (*weights.files, path), kept, dtypes, read)


def _tables(anatomy: Anatomy, source: Tensors) -> tuple[dict[str, int], dict[str, str]]:
    """The base of each saved table, and why it can be left out.

    A table of side S and base B has the coordinate i · B / S at index i of both axes; S is its shape's, B is read from
    its values, all of which are then compared. Raises `DataError` for a table of anything else.
    """
    bases: dict[str, int] = {}
    reasons: dict[str, str] = {}
    for name in tables(anatomy):
        stream: SourceStream = "image" if name.startswith("pos_embed") else "audio"
        saved = _saved(name, anatomy, source)
        side = len(saved)
        bases[stream] = _base(saved, f"{source.where}: {name}")
        off = max(_difference(saved, row, bases[stream]) for row in range(side))
        if not off <= max(_LEAST_TOLERANCE, torch.finfo(saved.dtype).eps):
            raise DataError(
                f"{source.where}: {name} is not the table of sines of side {side} and base {bases[stream]}, from which "
                f"it differs by up to {off:.2g}; download it again"
            )
        reasons[name] = f"computed from side {side} and base {bases[stream]}; differs by at most {off:.1g}"
    return bases, reasons


def _base_of(anatomy: Anatomy, source: Tensors, stream: SourceStream) -> int:
    """The base of one stream's saved table, of which no more is looked at than that takes."""
    name = f"{'pos_embed' if stream == 'image' else 'audio_embedder'}.pos_embed"
    return _base(_saved(name, anatomy, source), f"{source.where}: {name}")


def _saved(name: str, anatomy: Anatomy, source: Tensors) -> Tensor:
    """A saved table (side, side, W)."""
    side = (anatomy.image if name.startswith("pos_embed") else anatomy.audio).table_side
    return source.read(name).reshape(side, side, anatomy.width)


def _base(saved: Tensor, where: str) -> int:
    """From the angle of the second column's slowest-turning pair, and the neighbours of what it says."""
    side, _, width = saved.shape
    if side < 2 or width % 4:
        raise DataError(f"{where}: a table of at least 2 × 2 and a width of whole quarters expected")
    sine, cosine = float(saved[0, 1, 0]), float(saved[0, 1, width // 4])
    near = round(math.atan2(sine, cosine) * side) if math.isfinite(sine + cosine) else 0
    return min(range(max(1, near - 2), max(1, near) + 3), key=lambda base: _difference(saved, 0, base))


def _difference(saved: Tensor, row: int, base: int) -> float:
    """The largest difference of a row (side, W) of a table from what it should be; infinite where it is no number."""
    side, _, width = saved.shape
    coordinates = torch.arange(side, dtype=torch.float64) * (base / side)
    axis = line_embedding(coordinates, width // 2)
    expected = torch.cat([axis, axis[row].expand(side, -1)], dim=-1)
    found = float((saved[row].double() - expected).abs().max())
    return found if math.isfinite(found) else math.inf
