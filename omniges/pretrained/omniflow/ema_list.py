"""The averaged weights of an OmniFlow checkpoint: a list without names, told apart by the order of the parameters."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Final

from torch import Tensor

from omniges.errors import DataError
from omniges.pretrained.omniflow.anatomy import nested_names
from omniges.pretrained.omniflow.parameter_names import Anatomy, parameters, tables
from omniges.pretrained.omniflow.tensors import Tensors
from omniges.storage.tensors import read_weight_list

__all__ = ["open_average"]

_LIST: Final = "shadow_params"
_TIED: Final = "text_decoder.encoder.encoder.embed_tokens.weight"
"""A second name of text_decoder.encoder.shared.weight, which counts once among parameters."""


def open_average(path: Path, anatomy: Anatomy, weights: Tensors) -> Tensors:
    """The transformer's averaged weights by name, beside the weights that they are the average of.

    The list must have as many tensors as the weights have parameters: first the transformer's in the reference's
    order, each of its shape, then those of the models inside it. Read one by one, a matrix must be nearer to its
    weight than zero is, which catches an order that shapes do not tell. Tables are those of the weights.

    Raises `DataError` where any of it is not so.
    """
    found = read_weight_list(path, _LIST, mapped=True)
    own = parameters(anatomy)
    nested = [name for name in nested_names(weights.shapes) if name != _TIED or not _shared(weights)]
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
        average = found[numbers[name]]
        _require_near(path, name, average, weights.read(name))
        return average

    kept = {**own, **{name: weights.shapes[name] for name in (*tables(anatomy), *nested_names(weights.shapes))}}
    dtypes = {name: found[numbers[name]].dtype if name in numbers else weights.dtypes[name] for name in kept}
    return Tensors(str(path), (*weights.files, path), kept, dtypes, read)


def _shared(weights: Tensors) -> bool:
    return "text_decoder.encoder.shared.weight" in weights.shapes


def _require_near(path: Path, name: str, average: Tensor, weight: Tensor) -> None:
    """Two independent matrices are further apart than either is from zero; an average is near its weight."""
    if weight.ndim < 2:
        return
    apart = float((average.float() - weight.float()).norm())
    if not apart <= float(weight.float().norm()):
        raise DataError(
            f"{path}: {_LIST}: what stands in the place of {name} is not an average of it, so the order is another "
            "one; take the last weights instead"
        )
