"""Encoders of motion for the Fréchet distance, from files: features, a TorchScript program, or convolutions.

Nothing is unpickled from a features file or a convolution encoder. A TorchScript file is a program that runs with
the user's rights. Letters: T frames, N rows, D features.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError, EnvironmentFault, UsageFault
from omniges.features.gesture import POSE_COLUMNS, six_d_from_rotvec
from omniges.formats.arrays import checked, read_array
from omniges.storage.atomic import os_errors

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

INPUT_CHANNELS: Final = 2 * POSE_COLUMNS
_FORMAT: Final = "omniges-encoder"
_MULTIPLE_FRAMES: Final = 32
_ACTIVATIONS: Final = ("tanh", "relu", "leaky_relu", "none")
_LEAKY_SLOPE: Final = 0.01


class Encoder(Protocol):
    """Something that turns poses into features."""

    @property
    def name(self) -> str:
        """What stands beside every distance made with it."""

    def encode(self, poses: npt.NDArray[np.floating]) -> F64:
        """Features (N, D) of poses (T, 165) rad."""


@dataclass(frozen=True, slots=True)
class Features:
    """Features (N, D) from a file."""

    name: str
    rows: npt.NDArray[np.floating]


def encoder_input(poses: npt.NDArray[np.floating], multiple_of_frames: int = _MULTIPLE_FRAMES) -> F64:
    """What encoders get: poses (T, 165) rad to 6D rotations (T', 330), T' the largest multiple that fits into T.

    Rows 0 and 1 of each joint's matrix, joint after joint, jaw and eyes included, not normalised. Raises DataError
    where nothing is left.
    """
    checked(poses, "poses", (None, POSE_COLUMNS), at_least=multiple_of_frames)
    kept = len(poses) // multiple_of_frames * multiple_of_frames
    return six_d_from_rotvec(poses[:kept].reshape(kept, -1, 3)).reshape(kept, INPUT_CHANNELS)


def load_features(path: Path) -> Features:
    """Features (N, D) from an ``.npy`` file, never unpickled.

    Raises UsageFault where there is no such file, DataError for a file that is none of that kind or damaged.
    """
    name = _name("features", path)
    rows = read_array(path, "expected an .npy file of features (rows, columns)")
    checked(rows, str(path), (None, None), at_least=2)
    return Features(name, np.array(rows))


def load_encoder(path: Path) -> Encoder:
    """An encoder from a ``.safetensors`` file with its JSON beside it, or from any other file as TorchScript.

    Raises UsageFault where there is no such file, DataError where it is not what docs/metrics.md describes,
    EnvironmentFault where a package it needs is not installed.
    """
    return _convolutions(path) if path.suffix == ".safetensors" else _torchscript(path)


def _name(kind: str, path: Path) -> str:
    if not path.is_file():
        raise UsageFault(f"{path}: no such file; expected a file of {kind}")
    with os_errors(path, "read"), path.open("rb") as file:
        return f"{kind}:{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"


def _line(error: Exception) -> str:
    """An exception's first line, for errors of one line."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


# --- TorchScript


@dataclass(frozen=True, slots=True)
class _TorchScript:
    name: str
    program: Any

    def encode(self, poses: npt.NDArray[np.floating]) -> F64:
        import torch  # noqa: PLC0415 - seconds that only this encoder pays

        given = torch.from_numpy(encoder_input(poses).astype(np.float32))[None]
        with torch.inference_mode():
            try:
                answer = self.program(given)
            except RuntimeError as error:
                raise DataError(f"{self.name} fails on input {tuple(given.shape)}: {_last_line(error)}") from error
        if not isinstance(answer, torch.Tensor) or answer.ndim not in {2, 3} or (answer.ndim == 3 and len(answer) != 1):
            found = tuple(answer.shape) if isinstance(answer, torch.Tensor) else type(answer).__name__
            raise DataError(f"{self.name} answers {found}; expected features (1, rows, columns) or (rows, columns)")
        rows = answer.reshape(-1, answer.shape[-1]).double().numpy()
        return checked(rows, f"features of {self.name}", (None, None))


def _last_line(error: RuntimeError) -> str:
    """TorchScript puts what went wrong last, below its own stack."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__


def _torchscript(path: Path) -> Encoder:
    name = _name("torchscript", path)
    try:
        import torch  # noqa: PLC0415 - seconds that only this encoder pays
    except ImportError as error:
        raise EnvironmentFault(f"{path}: a TorchScript encoder needs torch: pip install 'omniges[train]'") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the format is what published encoders come in
        try:
            program = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            raise DataError(f"{path}: {_line(error)}; expected TorchScript or .safetensors") from error
    return _TorchScript(name, program.eval())


# --- convolutions


@dataclass(frozen=True, slots=True)
class _Layer:
    weight: F64  # (out, in, kernel)
    bias: F64  # (out,)
    stride: int
    padding: int
    activation: str

    def __call__(self, frames: F64) -> F64:
        """Frames (T, in) to (T', out), zeros beyond the ends."""
        padded = np.pad(frames, ((self.padding, self.padding), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, self.weight.shape[2], axis=0)[:: self.stride]
        result = np.einsum("tik,oik->to", windows, self.weight, optimize=True) + self.bias
        if self.activation == "tanh":
            return np.asarray(np.tanh(result))
        if self.activation == "relu":
            return np.asarray(np.maximum(result, 0.0))
        if self.activation == "leaky_relu":
            return np.asarray(np.where(result < 0, _LEAKY_SLOPE * result, result))
        return np.asarray(result)


@dataclass(frozen=True, slots=True)
class _Convolutions:
    name: str
    layers: tuple[_Layer, ...]
    multiple_of_frames: int

    def encode(self, poses: npt.NDArray[np.floating]) -> F64:
        frames = encoder_input(poses, self.multiple_of_frames)
        for layer in self.layers:
            frames = layer(frames)
        return checked(frames, f"features of {self.name}", (None, None))


def _convolutions(path: Path) -> Encoder:
    name = _name("convolutions", path)
    beside = path.with_suffix(".json")
    settings, rows = _settings(beside)
    tensors = _tensors(path)
    wanted = {f"layers.{k}.{part}" for k in range(len(rows)) for part in ("weight", "bias")}
    if tensors.keys() != wanted:
        odd = ", ".join(sorted(tensors.keys() ^ wanted)[:4])
        raise DataError(
            f"{path}: tensors do not fit {beside.name}: {odd} on one side only; expected {len(rows)} layers"
        )
    layers: list[_Layer] = []
    width, frames = INPUT_CHANNELS, settings
    for k, row in enumerate(rows):
        layer = _Layer(tensors[f"layers.{k}.weight"], tensors[f"layers.{k}.bias"], *row)
        shape = layer.weight.shape
        if len(shape) != 3 or 0 in shape or shape[1] != width or layer.bias.shape != shape[:1]:
            raise DataError(
                f"{path}: layer {k}: found {shape} and {layer.bias.shape}; expected (out, {width}, kernel), (out,)"
            )
        width, frames = shape[0], (frames + 2 * layer.padding - shape[2]) // layer.stride + 1
        if frames < 1:
            raise DataError(f"{path}: layer {k} leaves no frame of {settings}; expected a larger multiple_of_frames")
        layers.append(layer)
    return _Convolutions(name, tuple(layers), settings)


def _settings(path: Path) -> tuple[int, list[tuple[int, int, str]]]:
    """Multiple of frames, and (stride, padding, activation) of each layer."""
    if not path.is_file():
        raise UsageFault(f"{path}: no such file; expected the encoder's settings beside its tensors")
    with os_errors(path, "read"):
        text = path.read_bytes()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: {_line(error)}; expected JSON") from error
    if not isinstance(found, dict) or (found.get("format"), found.get("version")) != (_FORMAT, 1):
        raise DataError(f'{path}: expected {{"format": "{_FORMAT}", "version": 1, …}}')
    if found.keys() != {"format", "version", "multiple_of_frames", "layers"}:
        raise DataError(
            f"{path}: found keys {', '.join(sorted(found))}; expected format, version, multiple_of_frames, layers"
        )
    layers = found["layers"]
    if not isinstance(layers, list) or not layers or not all(isinstance(layer, dict) for layer in layers):
        raise DataError(f"{path}: layers: expected a list of at least one object")
    multiple = _whole(found, "multiple_of_frames", 1, path)
    return multiple, [_layer_settings(layer, k, path) for k, layer in enumerate(layers)]


def _layer_settings(layer: Mapping[str, Any], k: int, path: Path) -> tuple[int, int, str]:
    if layer.keys() != {"stride", "padding", "activation"} or layer["activation"] not in _ACTIVATIONS:
        raise DataError(
            f"{path}: layer {k}: found {dict(layer)}; "
            f"expected stride, padding and an activation of {', '.join(_ACTIVATIONS)}"
        )
    return _whole(layer, "stride", 1, path), _whole(layer, "padding", 0, path), layer["activation"]


def _whole(found: Mapping[str, Any], key: str, least: int, path: Path) -> int:
    value = found[key]
    if type(value) is not int or not least <= value <= 1 << 16:
        raise DataError(f"{path}: {key}: found {value!r}; expected a whole number from {least} to 65536")
    return value


def _tensors(path: Path) -> dict[str, F64]:
    try:
        import safetensors  # noqa: PLC0415 - optional
    except ImportError as error:
        raise EnvironmentFault(f"{path}: this encoder needs safetensors: pip install 'omniges[train]'") from error
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            for key in file.keys():  # noqa: SIM118 - no mapping
                kind = file.get_slice(key).get_dtype()
                if kind not in {"F16", "F32", "F64"}:
                    raise DataError(f"{path}: tensor {key} is {kind}; expected F16, F32 or F64")
            return {key: file.get_tensor(key).astype(np.float64) for key in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise DataError(f"{path}: {_line(error)}; expected a .safetensors file") from error
