"""OmniFlow's transformer as a configuration and weights of our trunk: which of its tensors make which of ours, and how.

Every tensor of ours has one rule, every tensor of theirs one fate. Rules are made from sizes alone and carried out
one at a time, so that nothing larger than one tensor is held.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor

from omniges.errors import DataError
from omniges.pretrained.omniflow.anatomy import nested_names
from omniges.pretrained.omniflow.parameter_names import NESTED, STREAM_NAMES, Anatomy, Grid, StreamNames
from omniges.pretrained.omniflow.tensors import Tensors

FateKind = Literal["loaded", "converted", "new", "left out"]
How = Literal["as it is", "joined", "stacked", "flattened", "first six parts"]

_REASONS: Final[dict[How, str]] = {
    "as it is": "the same layer",
    "joined": "three projections in one",
    "stacked": "norms of queries and keys in one",
    "flattened": "a convolution whose stride is its size is a linear layer on patches",
    "first six parts": "the other three are for a second attention that does not exist beside audio",
}


_KINDS: Final[tuple[FateKind, ...]] = ("loaded", "converted", "new", "left out")
_NUMBER: Final = re.compile(r"\.\d+\.")


@dataclass(frozen=True, slots=True)
class Rule:
    """How one of our tensors is made."""

    target: str
    sources: tuple[str, ...]
    how: How = "as it is"


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of a tensor of theirs (``source``) or where one of ours (``target``) comes from."""

    kind: FateKind
    source: str | None
    target: str | None
    numbers: int
    reason: str

    def as_json(self) -> dict[str, Any]:
        """One row of conversion.json."""
        return asdict(self)


def trunk_config(anatomy: Anatomy) -> dict[str, Any]:
    """Arguments for `JointFlowTransformer` with streams ``image``, ``text``, ``audio``."""
    if anatomy.mlp_width % anatomy.width:
        raise DataError(
            f"an OmniFlow transformer of width {anatomy.width} with MLPs of {anatomy.mlp_width}; a multiple expected"
        )
    return {
        "streams": {
            "image": _grid_config(anatomy.image),
            "text": {"inputs": anatomy.joint_width, "outputs": anatomy.text_outputs, "head_width": anatomy.joint_width},
            "audio": _grid_config(anatomy.audio),
        },
        "width": anatomy.width,
        "layers": anatomy.layers,
        "heads": anatomy.heads,
        "mlp_ratio": anatomy.mlp_width // anatomy.width,
        "qk_norm": anatomy.qk_norm,
        "conditioning": "summed",
        "pooled_width": anatomy.pooled_width,
        "rotary_periods_s": None,
        "context_only": ["text"],
    }


def _grid_config(grid: Grid) -> dict[str, int | None]:
    square = grid.patch**2
    return {"inputs": square * grid.channels, "outputs": square * grid.outputs, "head_width": None}


def rules(anatomy: Anatomy) -> list[Rule]:
    """One rule for each tensor of the trunk that `trunk_config` describes."""
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
    for k in range(anatomy.layers):
        found += _block(anatomy, k)
    return found


def _linear(target: str, source: str, how: How = "as it is") -> list[Rule]:
    """Rules of a layer; its bias needs no change."""
    return [
        Rule(f"{target}.weight", (f"{source}.weight",), how),
        Rule(f"{target}.bias", (f"{source}.bias",), how if how == "first six parts" else "as it is"),
    ]


def _block(anatomy: Anatomy, k: int) -> Iterator[Rule]:
    theirs, ours = f"transformer_blocks.{k}", f"blocks.{k}"
    if anatomy.qk_norm == "layer":
        for part in ("weight", "bias"):
            sources = tuple(f"{theirs}.attn.{name}.{part}" for name in ("norm_q", "norm_k"))
            yield Rule(f"{ours}.qk_norm.{part}", sources, "stacked")
    for stream, names in STREAM_NAMES.items():
        context_only = k == anatomy.layers - 1 and stream == "text"
        dual = stream == "image" and k in anatomy.dual_layers
        yield from _branch(f"{ours}.branches.{stream}", theirs, names, context_only=context_only, dual=dual)
        if anatomy.qk_norm == "rms":
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


def made(rule: Rule, source: Tensors) -> Tensor:
    """Carry out a rule, in the precision of the source."""
    parts = [source.read(name) for name in rule.sources]
    if len({part.dtype for part in parts}) > 1:
        raise DataError(f"{source.where}: {', '.join(rule.sources)} are of several precisions; one expected")
    if rule.how == "joined":
        return torch.cat(parts)
    if rule.how == "stacked":
        return torch.stack(parts)[:, None]
    (part,) = parts
    if rule.how == "flattened":
        return part.flatten(1)
    return part[: len(part) // 9 * 6] if rule.how == "first six parts" else part


def conversion_fates(
    anatomy: Anatomy, shapes: Mapping[str, tuple[int, ...]], table_reasons: Mapping[str, str]
) -> list[Fate]:
    """What becomes of every tensor of the source; raises `DataError` for one that nothing explains."""
    found: list[Fate] = []
    for rule in rules(anatomy):
        kind: FateKind = "loaded" if rule.how == "as it is" else "converted"
        reason = _REASONS[rule.how]
        found += [Fate(kind, name, rule.target, _count(shapes[name]), reason) for name in rule.sources]
    reasons = dict(table_reasons)
    dead = f"transformer_blocks.{anatomy.layers - 1}.{STREAM_NAMES['text'].mlp}."
    reasons |= {name: "the last block's text gives keys and values only" for name in shapes if name.startswith(dead)}
    for name in nested_names(shapes):
        reasons[name] = next(words for prefix, words in NESTED.items() if name.startswith(prefix))
    found += [Fate("left out", name, None, _count(shapes[name]), reason) for name, reason in reasons.items()]
    unexplained = sorted(shapes.keys() - {fate.source for fate in found})
    if unexplained:
        raise DataError(f"OmniFlow transformer: {len(unexplained)} tensors that nothing explains: {unexplained[0]}")
    return found


def _count(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def table_of(fates: Iterable[Fate]) -> list[str]:
    """A table for people: fate, tensors, learned numbers, part and reason a line; blocks are counted together."""
    groups: dict[tuple[int, str, str], list[Fate]] = {}
    for fate in fates:
        groups.setdefault((_KINDS.index(fate.kind), _part(fate), fate.reason), []).append(fate)
    rows = [("fate", "tensors", "numbers", "part", "reason")]
    for (kind, part, reason), group in groups.items():
        count = sum(fate.numbers for fate in group)
        rows.append((_KINDS[kind], str(len(group)), f"{count:,}", part, reason))
    rows[1:] = sorted(rows[1:], key=lambda row: _KINDS.index(row[0]))
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    return [
        "  ".join(
            (fate.ljust(widths[0]), tensors.rjust(widths[1]), numbers.rjust(widths[2]), part.ljust(widths[3]), why)
        )
        for fate, tensors, numbers, part, why in rows
    ]


def _part(fate: Fate) -> str:
    """Where it belongs: of our names the stream and what it is of, of theirs the beginning."""
    name = _NUMBER.sub(".*.", fate.target or fate.source or "")
    words = name.removeprefix("trunk.").split(".")
    if fate.target is None:
        return words[0] if words[0] != "transformer_blocks" else ".".join(words[:3])
    if words[0] == "blocks":
        return f"blocks, {words[3]}" if words[2] == "branches" else "blocks, all streams"
    return words[0] if words[0] == "speaker" else ", ".join(words[:2])
