"""Convert OmniFlow checkpoints to the format of omniges, a folder of three files.

``config.json`` describes the trunk, the transformer `JointFlowTransformer`. ``model.safetensors`` contains the trunk's
tensors under their names in omniges, in their original precision. ``conversion.json`` lists how every source tensor is
used, with sizes and digests of all files. This file is written last. The folder gets its final name only after that.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from omniges.errors import DataError, UsageFault
from omniges.model.patches import PatchGrid
from omniges.pretrained.tensors import file_entry, open_parts, read_json
from omniges.pretrained.trunk import SourceTrunk, TensorStatus, WhichWeights, parameter_shapes, read_omniflow, table_of
from omniges.shards.dataset import seal, sealed_correctly
from omniges.shards.schema import is_count
from omniges.storage.atomic import make_folder, pending_folder, publish_bytes
from omniges.storage.files import json_document, sha256_hex
from omniges.storage.redact import one_line
from omniges.storage.tensors import require_same, write_each

CONVERSION_FILE: Final = "conversion.json"
_CONFIG_FILE: Final = "config.json"
_MODEL_FILE: Final = "model.safetensors"
_FORMAT: Final = "omniges-omniflow"
_VERSION: Final = 1
_AGAIN: Final = "run omniges convert-omniflow again"


@dataclass(frozen=True, slots=True)
class Conversion:
    """Result of `convert`: the output folder, the size of the weights, the use of each tensor, and warnings."""

    folder: Path
    size: int  # size of the weights in bytes
    statuses: tuple[TensorStatus, ...]
    warnings: tuple[str, ...]

    @property
    def lines(self) -> list[str]:
        """Table of how tensors are used, then warnings and the total, as lines of text."""
        kinds = Counter(status.kind for status in self.statuses)
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        found = [*table_of(self.statuses), *self.warnings]
        return [*found, f"{len(self.statuses)} tensors: {counts}; {self.size / 1e9:.2f} GB in {self.folder}"]


def convert(folder: Path, out: Path, weights: WhichWeights = "last") -> Conversion:
    """Convert a checkpoint of OmniFlow to the format of omniges.

    Args:
        folder: OmniFlow's folder.
        out: New or empty folder; an error leaves it unchanged.
        weights: Weights to convert: ``last`` for those of the last training step, ``ema`` for the EMA weights.

    Returns:
        The result, which lists how each tensor is used.

    Raises:
        UsageFault: A folder or the EMA weights do not exist, or `out` is not empty.
        DataError: The checkpoint is damaged or belongs to another model.
        EnvironmentFault: A file cannot be read or written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageFault(f"-o {out}: expected a new or empty folder, found files in it; choose another folder")
    source = read_omniflow(folder, weights)
    make_folder(out.parent)
    with pending_folder(out) as unfinished:
        config = json_document(
            {
                "format": _FORMAT,
                "version": _VERSION,
                "trunk": dict(source.config),
                "grids": {name: dict(grid) for name, grid in source.grids.items()},
                "absent": "noise",
                "predictions": {"image": "velocity", "text": "clean", "audio": "velocity"},
                "weights": weights,
            }
        )
        publish_bytes(unfinished / _CONFIG_FILE, config)
        kinds = {name: (source.dtypes[name], source.shapes[name]) for name in source.shapes}
        size, digest = write_each(unfinished / _MODEL_FILE, kinds, source.read)
        document = {
            "format": _FORMAT,
            "version": _VERSION,
            "source": {str(path.relative_to(folder)): file_entry(path) for path in source.files},
            "weights": weights,
            "remarks": list(source.warnings),
            "tensors": [status.as_json() for status in source.statuses],
            "files": {
                _CONFIG_FILE: {"bytes": len(config), "sha256": sha256_hex(config)},
                _MODEL_FILE: {"bytes": size, "sha256": digest},
            },
        }
        publish_bytes(unfinished / CONVERSION_FILE, seal(document))
    return Conversion(out, size, source.statuses, source.warnings)


def is_converted(folder: Path) -> bool:
    """Return whether a folder contains conversion.json, which `convert` writes."""
    return (folder / CONVERSION_FILE).is_file()


def converted_config(folder: Path) -> dict[str, Any]:
    """Read the configuration of a converted folder, and compare it with the names and shapes of its weights.

    Args:
        folder: Folder that `convert` wrote.

    Returns:
        The content of its config.json.

    Raises:
        DataError: A file is missing or has changed since it was written, or config.json describes another trunk.
    """
    document = _document(folder)
    path = folder / _CONFIG_FILE
    found = read_json(path)
    if file_entry(path) != document["files"][_CONFIG_FILE]:
        raise DataError(f"{path}: expected the content that was written, found other content; {_AGAIN}")
    shapes = open_parts((folder / _MODEL_FILE,)).shapes
    trunk: Any = found.get("trunk")
    grids: Any = found.get("grids")
    try:
        expected = _expected_shapes(trunk, len(shapes))
        tokens = {name: trunk["streams"][name]["inputs"] for name in ("image", "audio")}
        fits = all(_is_grid(grids[name], tokens[name]) for name in tokens)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        reason = one_line(str(error), 160)
        raise DataError(f"{path}: expected the trunk of an OmniFlow transformer ({reason}); {_AGAIN}") from error
    if not fits:
        raise DataError(f"{path}: expected grids of the trunk's image and audio tokens, found other grids; {_AGAIN}")
    require_same(expected, shapes, str(folder / _MODEL_FILE), f"{_AGAIN}")
    return found


def _expected_shapes(trunk: Any, max_layers: int) -> dict[str, tuple[int, ...]]:
    if not 1 <= trunk["layers"] <= max_layers:  # a wrong number must not build a huge model
        raise ValueError(f"{trunk['layers']} layers in {max_layers} tensors")
    sizes = [trunk["width"], trunk["heads"], trunk["mlp_ratio"], trunk["pooled_width"]]
    sizes += [size for stream in trunk["streams"].values() for size in stream.values() if size is not None]
    if not all(is_count(size, 1) for size in sizes):
        raise ValueError("sizes that are no whole numbers from 1 on")
    return parameter_shapes(trunk)


def _is_grid(found: Mapping[str, Any], inputs: int) -> bool:
    """Return whether a JSON object describes a `PatchGrid` of tokens.

    Args:
        found: JSON object of unknown origin.
        inputs: Required number of values in a token.

    Returns:
        True if the object has exactly the fields of `PatchGrid`, each a whole number of at least 1, and channels ·
        patch² equals `inputs`.
    """
    valid = found.keys() == {one.name for one in fields(PatchGrid)} and all(is_count(n, 1) for n in found.values())
    return valid and found["channels"] * found["patch"] ** 2 == inputs


def read_converted(folder: Path) -> SourceTrunk:
    """Open a folder that `convert` wrote, after checking every byte.

    Args:
        folder: Folder that `convert` wrote.

    Returns:
        The trunk's tensors and configuration.

    Raises:
        DataError: A file is missing or has changed since it was written.
    """
    document = _document(folder)
    config = converted_config(folder)
    path = folder / _MODEL_FILE
    if not path.is_file() or file_entry(path) != document["files"][_MODEL_FILE]:
        raise DataError(f"{path}: expected the content that was written, found none or other content; {_AGAIN}")
    tensors = open_parts((path,))
    expected = parameter_shapes(config["trunk"])
    return SourceTrunk(
        where=str(path),
        files=(folder / _CONFIG_FILE, path),
        config=config["trunk"],
        grids=config["grids"],
        shapes=expected,
        dtypes=tensors.dtypes,
        read=tensors.read,
        statuses=tuple(
            TensorStatus("loaded", name, name, math.prod(shape), "the same layer") for name, shape in expected.items()
        ),
        warnings=(),
    )


def _document(folder: Path) -> dict[str, Any]:
    path = folder / CONVERSION_FILE
    document = read_json(path)
    files = document.get("files")
    valid = isinstance(files, dict) and {_CONFIG_FILE, _MODEL_FILE} <= files.keys() and sealed_correctly(document)
    if document.get("format") != _FORMAT or document.get("version") != _VERSION or not valid:
        raise DataError(
            f"{path}: expected an unchanged file of convert-omniflow (format {_FORMAT}, version {_VERSION}), found "
            f"another file or version; {_AGAIN}"
        )
    return document
