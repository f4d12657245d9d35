"""A trunk to start from: OmniFlow's, whatever form it was saved in, as tensors of ours that are made when asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from omniges.errors import UsageFault
from omniges.model.trunk import JointFlowTransformer
from omniges.pretrained.omniflow.anatomy import read_anatomy
from omniges.pretrained.omniflow.ema_list import open_average
from omniges.pretrained.omniflow.parameter_names import Grid
from omniges.pretrained.omniflow.position_tables import read_base, read_tables
from omniges.pretrained.omniflow.tensors import find_omniflow, open_parts
from omniges.pretrained.omniflow.weight_map import Fate, conversion_fates, made, rules, trunk_config

__all__ = ["SourceTrunk", "WhichWeights", "audio_grid_of", "config_of", "parameter_shapes", "read_omniflow"]

WhichWeights = Literal["last", "ema"]


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
    return _as_entry(anatomy.audio, read_base(anatomy, source, "audio"))


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
    bases, reasons = read_tables(anatomy, source)
    if weights == "ema":
        if found.average is None:
            raise UsageFault(f"{folder}: no ema_transformer.pt with averaged weights there; take the last weights")
        source = open_average(found.average, anatomy, source)
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
