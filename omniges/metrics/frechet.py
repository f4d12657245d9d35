"""Fréchet distance between two sets of features, and the encoders that compute the features.

The distance is computed without a matrix square root, because that can fail for singular matrices. The user can supply
a file with computed features, or a file with an encoder: EMAGE's motion encoder, a TorchScript program or convolutions.
Without such a file, the built-in descriptor computes the features. Its distances are not comparable with published FGD
values (Fréchet gesture distance). A TorchScript file is a program that runs with the user's rights, so it is loaded
only if the user trusts it.

Letters: N rows or windows, D features, T frames. Distances are in float64.
"""

from __future__ import annotations

import os
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Protocol

import numpy as np

from omniges.errors import DataError, UsageFault, needs
from omniges.features.body import Numbers
from omniges.features.gesture import JOINT_NAMES
from omniges.features.timebase import FRAME_RATE_HZ
from omniges.formats.arrays import F64, checked, read_array
from omniges.metrics.motion_encoder import INPUT_CHANNELS, encoder_input, load_motion_encoder
from omniges.metrics.profiles import FrechetSettings
from omniges.storage.atomic import os_errors
from omniges.storage.documents import Document, Is, Range
from omniges.storage.files import file_sha256, open_file, read_settings, require_file
from omniges.storage.redact import one_line

DESCRIPTOR_NAME: Final = "omniges-kinematics-1"
_JOINTS: Final = tuple(
    JOINT_NAMES.index(name)
    for name in (*("head", "left_elbow", "right_elbow", "left_wrist", "right_wrist"), *("left_index3", "right_index3"))
)
_WINDOW_FRAMES: Final = 32
_STRIDE_FRAMES: Final = 16
_SPEED_S: Final = 0.1  # this factor and the next scale speeds and accelerations to the magnitude of positions
_ACCELERATION_S2: Final = 0.01
_LEAKY_SLOPE: Final = 0.01
_ACTIVATIONS: Final[Mapping[str, Callable[[F64], F64]]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0.0),
    "leaky_relu": lambda x: np.where(x < 0, _LEAKY_SLOPE * x, x),
    "none": lambda x: x,
}


@dataclass(frozen=True, slots=True)
class FrechetScore:
    """A Fréchet distance between two sets of features, with the sizes and ranks of the sets and the encoder's name.

    If a covariance has a rank below ``dimensions``, the estimated distance is biased upwards.
    """

    value: float
    mean_term: float
    """|m1 − m2|², the part of the value that depends on the means. The rest depends on the covariances."""
    rows_generated: int
    rows_recorded: int
    rank_generated: int
    rank_recorded: int
    dimensions: int
    offset: float
    encoder: str
    """Name of the encoder of the features; distances of different encoders are not comparable."""

    @property
    def full_rank(self) -> bool:
        """True if both covariances have full rank."""
        return min(self.rank_generated, self.rank_recorded) == self.dimensions


@dataclass(frozen=True, slots=True)
class _Gaussian:
    """Mean (D,) and covariance of a set of features.

    The covariance is V diag(scales²) Vᵀ, with ``scales`` (D,). ``axes`` is Vᵀ (D, D).
    """

    mean: F64
    scales: F64
    axes: F64
    rank: int

    def root(self, offset: float) -> F64:
        """Return a matrix A (D, D) with AᵀA = covariance + offset · I, where I is the identity matrix."""
        return np.asarray(np.sqrt(self.scales**2 + offset)[:, None] * self.axes)


def _gaussian(features: Numbers, what: str) -> _Gaussian:
    rows = checked(features, f"{what} features", (None, None), at_least=2)
    count, dimensions = rows.shape
    if dimensions == 0:
        raise UsageFault(f"{what} features: expected at least one column, found none")
    mean = rows.mean(axis=0)
    # The factor R of a QR decomposition has the same singular values and axes as the rows, but at most D rows.
    triangle = np.linalg.qr(rows - mean, mode="r")
    _, scales, axes = np.linalg.svd(triangle, full_matrices=True)
    scales = np.concatenate([scales, np.zeros(dimensions - len(scales))]) / np.sqrt(count - 1)
    kind = np.asarray(features).dtype
    precision = np.finfo(kind if kind.kind == "f" else np.float64).eps
    # A large mean causes rounding errors, which can raise the rank. So the tolerance depends on the mean too.
    largest = max(float(scales[0]), float(np.abs(mean).max()) * 2)
    rank = int((scales > max(count, dimensions) * precision * largest).sum()) if scales[0] > 0 else 0
    return _Gaussian(mean, scales, axes, rank)


def frechet_distance(generated: Numbers, recorded: Numbers, settings: FrechetSettings, *, encoder: str) -> FrechetScore:
    """Return the Fréchet distance |m1 − m2|² + tr(S1 + S2 − 2 (S1 S2)^½) of two sets of features.

    m is the mean of a set, and S is its covariance with divisor N − 1 (Dowson and Landau 1982). The term tr (S1 S2)^½
    is the sum of the singular values of A1 A2ᵀ, where A1ᵀA1 = S1 and A2ᵀA2 = S2. This sum is exact and real, and also
    defined for singular covariances.

    ``settings.offset`` changes only this term: it uses S1 + offset · I and S2 + offset · I, where I is the identity
    matrix. With an offset above 0, the distance may be negative. With an offset of 0, a value that is negative because
    of rounding is set to 0.

    Args:
        generated: Features (N1, D).
        recorded: Features (N2, D).
        settings: Offset of the covariances.
        encoder: Name of the encoder, to store in the score.

    Returns:
        The distance, its term |m1 − m2|², and the size and the rank of each set.

    Raises:
        UsageFault: The numbers of columns D differ, or are 0.
        DataError: There are fewer than 2 rows, or values that are NaN or infinite.
    """
    first, second = _gaussian(generated, "generated"), _gaussian(recorded, "recorded")
    if len(first.mean) != len(second.mean):
        raise UsageFault(
            f"features: expected both from one encoder, found {len(first.mean)} columns generated and "
            f"{len(second.mean)} recorded"
        )
    product = first.root(settings.offset) @ second.root(settings.offset).T
    cross = float(np.linalg.svd(product, compute_uv=False).sum())
    difference = first.mean - second.mean
    mean_term = float(difference @ difference)
    value = mean_term + float((first.scales**2).sum() + (second.scales**2).sum()) - 2 * cross
    return FrechetScore(
        value=value if settings.offset else max(value, 0.0),
        mean_term=mean_term,
        rows_generated=len(generated),
        rows_recorded=len(recorded),
        rank_generated=first.rank,
        rank_recorded=second.rank,
        dimensions=len(first.mean),
        offset=settings.offset,
        encoder=encoder,
    )


def describe(joints: Numbers) -> F64:
    """Compute the features of the built-in descriptor: statistics of 7 joints in windows of 32 frames.

    A window starts every 16 frames. docs/reference/metrics.md lists the features.

    Args:
        joints: Positions (T, 55, 3) in metres with at least 32 frames.

    Returns:
        Features (N, 56), N = 1 + (T − 32) // 16.

    Raises:
        UsageFault: The shape is wrong.
        DataError: There are fewer than 32 frames, or values that are NaN or infinite.
    """
    positions = checked(joints, "joints", (None, len(JOINT_NAMES), 3), at_least=_WINDOW_FRAMES)
    relative = positions[:, _JOINTS] - positions[:, :1]
    windows = np.lib.stride_tricks.sliding_window_view(relative, _WINDOW_FRAMES, axis=0)[
        ::_STRIDE_FRAMES
    ]  # (N, 7, 3, W)
    velocity = np.diff(windows, axis=-1) * FRAME_RATE_HZ
    acceleration = np.diff(velocity, axis=-1) * FRAME_RATE_HZ
    speed = np.linalg.norm(velocity, axis=2).mean(axis=-1, keepdims=True)
    effort = np.sqrt((acceleration**2).sum(axis=2).mean(axis=-1, keepdims=True))
    parts = [windows.mean(axis=-1), windows.std(axis=-1), _SPEED_S * speed, _ACCELERATION_S2 * effort]
    return np.concatenate(parts, axis=-1).reshape(len(windows), -1)


# --- encoders from files


class Encoder(Protocol):
    """Interface of encoders, which compute features from poses."""

    @property
    def name(self) -> str:
        """Name of the encoder, shown with every distance."""

    def encode(self, poses: Numbers) -> F64:
        """Return features (N, D) of poses (T, 165) in radians."""


@dataclass(frozen=True, slots=True)
class Features:
    """Features (N, D) from a file, with the name of the file."""

    name: str
    rows: Numbers


def load_features(path: Path) -> Features:
    """Read features (N, D) from an ``.npy`` file without unpickling.

    Args:
        path: The file.

    Returns:
        The features, named by file name and checksum.

    Raises:
        UsageFault: The file does not exist.
        DataError: The file is damaged or is not a two-dimensional array.
    """
    name = _name("features", path)
    rows = read_array(path, "expected an .npy file of features (rows, columns)")
    checked(rows, str(path), (None, None), at_least=2)
    return Features(name, np.array(rows))


def load_encoder(path: Path, *, trust_program: bool = False) -> Encoder:
    """Load an encoder from a file.

    A ``.safetensors`` file contains the weights of convolutions, and a JSON file in the same folder contains their
    settings. Any other file must be EMAGE's motion encoder (see `load_motion_encoder`) or a TorchScript program.

    Args:
        path: The file.
        trust_program: True: the file is a TorchScript program, which is loaded and runs with the user's rights. False:
            a program is refused, and the file's content determines its type.

    Returns:
        The encoder, named by file name and checksum.

    Raises:
        UsageFault: The file does not exist, or is a TorchScript program that is not trusted.
        DataError: The file does not have the form that docs/reference/metrics.md describes.
        EnvironmentFault: A required package is not installed.
    """
    if trust_program:
        return _torchscript(path)
    require_file(path, "an encoder")
    if not zipfile.is_zipfile(path):
        return _convolutions(path) if path.suffix == ".safetensors" else load_motion_encoder(path)
    if _is_program(path):
        raise UsageFault(
            f"{path}: expected weights, found a TorchScript program, which runs with your rights; add "
            "--trust-encoder-program if you trust its origin"
        )
    if path.suffix == ".safetensors":
        raise DataError(f"{path}: expected safetensors, found a file of torch.save; rename it to {path.stem}.bin")
    return load_motion_encoder(path)


def _is_program(path: Path) -> bool:
    """Return whether a zip archive contains a TorchScript program; return False if the archive is damaged."""
    try:
        with open(open_file(path), "rb") as file, zipfile.ZipFile(file) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, LookupError, struct.error):
        return False


def _name(kind: str, path: Path) -> str:
    require_file(path, f"a file of {kind}")
    with os_errors(path, "read"):
        return f"{kind}:{path.name}:{file_sha256(path)[:12]}"


def _line(error: Exception) -> str:
    """Return the first line of an exception's text, or the name of its class if the text is empty."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


# --- TorchScript


@dataclass(frozen=True, slots=True)
class _TorchScript:
    name: str
    program: Any

    def encode(self, poses: Numbers) -> F64:
        import torch  # noqa: PLC0415 - takes seconds, needed by this encoder only

        given = torch.from_numpy(encoder_input(poses).astype(np.float32))[None]
        with torch.inference_mode():
            try:
                answer = self.program(given)
            except RuntimeError as error:
                # The last line of a TorchScript error is the reason; the lines before it are the stack.
                lines = [line[:200] for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
                raise DataError(
                    f"{self.name}: expected features of input {tuple(given.shape)}, found an error ({lines[-1]}); "
                    "check the encoder"
                ) from error
        if not isinstance(answer, torch.Tensor) or answer.ndim not in {2, 3} or (answer.ndim == 3 and len(answer) != 1):
            found = tuple(answer.shape) if isinstance(answer, torch.Tensor) else type(answer).__name__
            raise DataError(f"{self.name}: expected features (1, rows, columns) or (rows, columns), found {found}")
        rows = answer.reshape(-1, answer.shape[-1]).double().numpy()
        return checked(rows, f"features of {self.name}", (None, None))


def _torchscript(path: Path) -> Encoder:
    name = _name("torchscript", path)
    with needs("train", str(path)):
        import torch  # noqa: PLC0415 - takes seconds, needed by this encoder only
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the format is deprecated, but published encoders have it
        try:
            program = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            raise DataError(
                f"{path}: expected TorchScript or .safetensors, found another file ({_line(error)}); give an encoder"
            ) from error
    return _TorchScript(name, program.eval())


# --- convolutions


@dataclass(frozen=True, slots=True, kw_only=True)
class _LayerSettings:
    """Settings of one convolution layer, from the JSON file."""

    stride: Annotated[int, Range(1, 1 << 16)]
    padding: Annotated[int, Range(0, 1 << 16)]
    activation: Annotated[str, Is(f"an activation of {', '.join(_ACTIVATIONS)}", _ACTIVATIONS.__contains__)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    """Content of the JSON file with the settings of all layers."""

    format: Literal["omniges-encoder"]
    version: Literal[1]
    multiple_of_frames: Annotated[int, Range(1, 1 << 16)]
    layers: Annotated[tuple[_LayerSettings, ...], Is("a list of at least one object", bool)]


@dataclass(frozen=True, slots=True)
class _Layer:
    weight: F64  # (out, in, kernel)
    bias: F64  # (out,)
    settings: _LayerSettings

    def __call__(self, frames: F64) -> F64:
        """Convolve T frames of ``in`` channels, with zero padding at both ends.

        ``frames`` is (T, in). The result is (T', out): stride, padding and kernel determine its number of frames T'.
        """
        of = self.settings
        padded = np.pad(frames, ((of.padding, of.padding), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, self.weight.shape[2], axis=0)[:: of.stride]
        result = np.einsum("tik,oik->to", windows, self.weight, optimize=True) + self.bias
        return np.asarray(_ACTIVATIONS[of.activation](result))


@dataclass(frozen=True, slots=True)
class _Convolutions:
    name: str
    layers: tuple[_Layer, ...]
    multiple_of_frames: int

    def encode(self, poses: Numbers) -> F64:
        frames = encoder_input(poses, self.multiple_of_frames)
        for layer in self.layers:
            frames = layer(frames)
        return checked(frames, f"features of {self.name}", (None, None))


def _convolutions(path: Path) -> Encoder:
    name = _name("convolutions", path)
    beside = path.with_suffix(".json")
    settings = _settings(beside)
    multiple, rows = settings.multiple_of_frames, settings.layers
    tensors = _tensors(path)
    wanted = {f"layers.{k}.{part}" for k in range(len(rows)) for part in ("weight", "bias")}
    if tensors.keys() != wanted:
        odd = ", ".join(sorted(tensors.keys() ^ wanted)[:4])
        raise DataError(
            f"{path}: expected tensors of the {len(rows)} layers in {beside.name}, found a difference in {odd}; give "
            "the settings that belong to the tensors"
        )
    layers: list[_Layer] = []
    width, frames = INPUT_CHANNELS, multiple
    for k, row in enumerate(rows):
        layer = _Layer(tensors[f"layers.{k}.weight"], tensors[f"layers.{k}.bias"], row)
        shape = layer.weight.shape
        if len(shape) != 3 or 0 in shape or shape[1] != width or layer.bias.shape != shape[:1]:
            raise DataError(
                f"{path}: layer {k}: expected a weight (out, {width}, kernel) and a bias (out,), found "
                f"{tuple(shape)} and {tuple(layer.bias.shape)}; give the JSON file of settings that belongs to these "
                "tensors"
            )
        if row.padding >= shape[2]:
            raise DataError(
                f"{path}: layer {k}: expected a padding below the kernel size {shape[2]}, found {row.padding}; "
                "correct the settings"
            )
        width, frames = shape[0], (frames + 2 * row.padding - shape[2]) // row.stride + 1
        if frames < 1:
            raise DataError(
                f"{path}: layer {k}: expected an output for {multiple} frames, found none; raise multiple_of_frames"
            )
        layers.append(layer)
    return _Convolutions(name, tuple(layers), multiple)


def _settings(path: Path) -> _Settings:
    require_file(path, "the encoder's settings beside its tensors")
    found = read_settings(path, "give the encoder's own settings", path.parent)
    return Document(found, str(path), "give the encoder's own settings").read(_Settings)


def _tensors(path: Path) -> dict[str, F64]:
    with needs("train", str(path)):
        import safetensors  # noqa: PLC0415 - optional
    with os_errors(path, "read"):
        os.close(open_file(path))
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            for key in file.keys():  # noqa: SIM118 - the file is not a mapping
                kind = file.get_slice(key).get_dtype()
                if kind not in {"F16", "F32", "F64"}:
                    raise DataError(
                        f"{path}: expected F16, F32 or F64, found tensor {one_line(key, 80)} of type {kind}; give "
                        "another encoder"
                    )
            found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise DataError(
            f"{path}: expected a .safetensors file, found damage ({_line(error)}); download it again"
        ) from error
    for key, tensor in found.items():
        if not np.isfinite(tensor).all():
            raise DataError(
                f"{path}: expected finite numbers, found NaN or infinite ones in tensor {one_line(key, 80)}; give "
                "another encoder"
            )
    return {key: tensor.astype(np.float64) for key, tensor in found.items()}
