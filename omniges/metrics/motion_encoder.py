"""EMAGE's motion encoder. Published Fréchet gesture distances on BEAT2 compare its latents.

The encoder consists of convolutions over the tree of SMPL-X's joints (Aberman et al. 2020). Each feature belongs to an
edge of the tree. A mask keeps only the weights between edges whose distance is at most 2 (see `edge_distances`).
Pooling averages pairs of successive edges. GroupNorm normalises over all frames of a clip, so a clip is encoded in one
pass.

The weights are read from the published file, which ``torch.save`` wrote. No objects are unpickled. The file also
contains masks and pooling matrices. This module computes the same matrices from the tree, and refuses a file with other
matrices.

Letters: T frames, E edges, C channels. Latents are in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from omniges.errors import DataError, EnvironmentFault
from omniges.features.body import PARENTS, Numbers
from omniges.features.gesture import POSE_COLUMNS, six_d_from_rotvec
from omniges.formats.arrays import F64, checked
from omniges.metrics.profiles import ENCODER
from omniges.storage.atomic import os_errors
from omniges.storage.files import file_sha256
from omniges.storage.tensors import read_weights, require_finite, require_same, shapes_of

Edges = tuple[tuple[int, int], ...]
"""Edges of a tree. Each edge is a pair of joints; the first joint is nearer to the root."""

INPUT_CHANNELS: Final = 2 * POSE_COLUMNS
_SIX_D: Final = 6
_MULTIPLE_FRAMES: Final = 32
_KERNEL: Final = 4
_STRIDE: Final = 2
_PADDING: Final = 1
_GROUPS: Final = 10
_EPSILON: Final = 1e-5
_REACH: Final = 2  # a mask keeps the weights between edges up to this distance, in edges
_ENTRY: Final = "model_state"
_PREFIX: Final = "module."  # torch's DataParallel adds it to every name
_REMEDY: Final = f"give {ENCODER.name} as EMAGE published it"


@dataclass(frozen=True, slots=True, kw_only=True)
class MotionEncoderLayout:
    """Layer sizes of an encoder. The weights in its file must have these sizes."""

    joints: int = 55
    """Number of joints; the encoder uses the first joints of SMPL-X."""
    edge_channels: tuple[int, ...] = (6, 6, 12, 12)
    """Number of channels of each edge in the output of each block."""
    multiple_of_frames: int = _MULTIPLE_FRAMES
    """Clips are cut to a multiple of this number of frames, because each block halves the number of frames."""

    @property
    def input_channels(self) -> int:
        """Number of input channels: 6D rotations of all joints."""
        return _SIX_D * self.joints


PUBLISHED_LAYOUT: Final = MotionEncoderLayout()


@dataclass(frozen=True, slots=True)
class _BlockPlan:
    """Mask and pooling matrix of one block, computed from the tree of joints."""

    mask: F64  # (C out, C in), 1 for weights that are kept, 0 for all others
    pooling: F64 | None  # (C pooled, C out); None if no edges can be paired

    @property
    def channels(self) -> int:
        """Number of channels after pooling."""
        return len(self.mask if self.pooling is None else self.pooling)


def encoder_input(poses: Numbers, multiple_of_frames: int = _MULTIPLE_FRAMES) -> F64:
    """Convert poses to the input of encoders: 6D rotations, which are rows 0 and 1 of each joint's rotation matrix.

    A frame contains all joints in order, including jaw and eyes. Values are not normalised.

    Args:
        poses: Axis-angle poses (T, 165) in radians.
        multiple_of_frames: The clip is cut at its end to a multiple of this number of frames.

    Returns:
        Rotations (T', 330). T' is the largest multiple of `multiple_of_frames` up to T.

    Raises:
        UsageFault: The shape is wrong.
        DataError: There are fewer than `multiple_of_frames` frames, or values that are NaN or infinite.
    """
    checked(poses, "poses", (None, POSE_COLUMNS), at_least=multiple_of_frames)
    kept = len(poses) // multiple_of_frames * multiple_of_frames
    return six_d_from_rotvec(poses[:kept].reshape(kept, -1, 3)).reshape(kept, INPUT_CHANNELS)


def tree_edges(joints: int) -> Edges:
    """Return one edge (parent, joint) for each of the first `joints` joints of SMPL-X.

    The root, joint 0, has no parent. Its edge is (0, `joints`): index `joints` is an additional node, not a joint.

    Args:
        joints: Number of joints.

    Returns:
        The edges, in the order of the joints.
    """
    return ((0, joints), *((PARENTS[joint], joint) for joint in range(1, joints)))


def edge_distances(edges: Edges) -> F64:
    """Compute the distances between all pairs of edges, as the number of steps from edge to edge.

    A step leads from an edge to an edge that shares a joint with it. So two edges that share a joint have the distance
    1, and the distance from an edge to itself is 0.

    Args:
        edges: Edges of a tree.

    Returns:
        Distances (E, E).
    """
    touching = np.array([[bool({*one} & {*other}) for other in edges] for one in edges], dtype=np.int64)
    distances = np.full(touching.shape, np.inf)
    reached = np.eye(len(edges), dtype=np.int64)
    for distance in range(len(edges)):
        distances[(reached > 0) & np.isinf(distances)] = distance
        reached = (reached @ touching > 0).astype(np.int64)
    return distances


def halved_chains(edges: Edges) -> tuple[tuple[int, ...], ...]:
    """Return the groups of edges that pooling averages.

    A chain is a path of edges without a branch. It begins at the root or at a branching joint, and it ends at the next
    branching joint or at a leaf. Successive edges of a chain are paired. In a chain with an odd number of edges, the
    first edge stays alone. The groups are in depth-first order.

    Args:
        edges: Edges of a tree, with the root first.

    Returns:
        Groups, each with the indices of one or two edges.
    """
    pooled: list[tuple[int, ...]] = []

    def walk(joint: int, chain: tuple[int, ...]) -> None:
        onward = [(number, end) for number, (start, end) in enumerate(edges) if start == joint]
        if chain and len(onward) != 1:
            odd = len(chain) % 2
            pooled.extend([chain[:1]] * odd)
            pooled.extend(zip(chain[odd::2], chain[odd + 1 :: 2], strict=True))
            chain = ()
        for number, end in onward:
            walk(end, (*chain, number))

    walk(0, ())
    return tuple(pooled)


def _plans(layout: MotionEncoderLayout) -> Iterator[_BlockPlan]:
    edges, width = tree_edges(layout.joints), _SIX_D
    for channels in layout.edge_channels:
        near = (edge_distances(edges) <= _REACH).astype(np.float64)
        pooled = halved_chains(edges)
        pooling = None
        if len(pooled) < len(edges):
            means = np.zeros((len(pooled), len(edges)))
            for row, group in enumerate(pooled):
                means[row, list(group)] = 1 / len(group)
            pooling = np.asarray(np.kron(means, np.eye(channels)), np.float64)
        yield _BlockPlan(np.asarray(np.kron(near, np.ones((channels, width))), np.float64), pooling)
        edges = tuple((edges[group[0]][0], edges[group[-1]][1]) for group in pooled)
        width = channels


def encoder_shapes(layout: MotionEncoderLayout) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of all tensors in an encoder's file, including the decoder's tensors.

    Args:
        layout: Sizes of the encoder.

    Returns:
        Shapes by name, without the prefix ``module.``.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    width = layout.input_channels
    for k, plan in enumerate(_plans(layout)):
        block, (out, own) = f"encoder.layers.{k}.0", plan.mask.shape
        for part, kernel in (("residual.0", _KERNEL), ("shortcut", 1)):
            shapes |= {f"{block}.{part}.{name}": (out, own, kernel) for name in ("mask", "weight")}
            shapes[f"{block}.{part}.bias"] = (out,)
        shapes |= {f"{block}.residual.1.{name}": (out,) for name in ("weight", "bias")}
        if plan.pooling is not None:
            shapes[f"{block}.common.0.weight"] = plan.pooling.shape
        width = plan.channels
    blocks = len(layout.edge_channels)
    convolutions = {f"{k}.model.{part}": (width, width) for k in (0, 1) for part in (0, 2)}
    convolutions |= {f"{3 * k}": (width, width) for k in range(1, blocks)}
    convolutions |= {f"{3 * blocks}": (layout.input_channels, width)}
    convolutions |= {f"{3 * blocks + 2}": (layout.input_channels,) * 2}
    for name, (out, own) in convolutions.items():
        shapes |= {f"decoder.main.{name}.weight": (out, own, 3), f"decoder.main.{name}.bias": (out,)}
    for name in ("fc_mu", "fc_logvar"):
        shapes |= {f"{name}.weight": (width, width), f"{name}.bias": (width,)}
    return shapes


@dataclass(frozen=True, slots=True)
class _Block:
    """One block of the encoder: convolution, norm, shortcut, and pooling of the edges."""

    weight: F64  # (C out, C in, 4), masked
    bias: F64
    scale: F64  # scale of GroupNorm, (C out,)
    shift: F64
    shortcut: F64  # (C out, C in), masked
    shortcut_bias: F64
    pooling: F64 | None  # (C pooled, C out)

    def __call__(self, frames: F64) -> F64:
        """Encode T frames of the block's input channels to T // 2 frames; T must be even.

        ``frames`` is (T, C in). The result is (T // 2, C pooled) or, for a block without pooling, (T // 2, C out).
        """
        padded = np.pad(frames, ((_PADDING, _PADDING), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, _KERNEL, axis=0)[::_STRIDE]
        residual = np.einsum("tik,oik->to", windows, self.weight, optimize=True) + self.bias
        groups = residual.reshape(len(residual), _GROUPS, -1)
        centred = groups - groups.mean(axis=(0, 2), keepdims=True)
        normed = centred / np.sqrt(np.square(centred).mean(axis=(0, 2), keepdims=True) + _EPSILON)
        summed = normed.reshape(residual.shape) * self.scale + self.shift
        summed += frames[::_STRIDE] @ self.shortcut.T + self.shortcut_bias
        return np.asarray(np.tanh(summed if self.pooling is None else summed @ self.pooling.T))


@dataclass(frozen=True, slots=True)
class MotionEncoder:
    """EMAGE's motion encoder; a clip of T frames has T / 16 latents."""

    name: str
    """Name in reports: the file's name and the first digits of its checksum."""
    sha256: str
    layout: MotionEncoderLayout
    blocks: tuple[_Block, ...]

    @property
    def published(self) -> bool:
        """True if the checksum is that of the published file."""
        return self.sha256 in ENCODER.sha256

    def latents(self, six_d: Numbers) -> F64:
        """Encode the 6D rotations of one clip.

        Args:
            six_d: 6D rotations (T, 330): rows 0 and 1 of the rotation matrix of each joint, in the order of the joints.
                T is cut to a multiple of 32.

        Returns:
            Latents (T / 16, 240) in −1 … 1.

        Raises:
            UsageFault: The shape is wrong.
            DataError: There are fewer than 32 frames, or values that are NaN or infinite.
        """
        multiple = self.layout.multiple_of_frames
        frames = checked(six_d, "6D rotations", (None, self.layout.input_channels), at_least=multiple)
        frames = frames[: len(frames) // multiple * multiple]
        for block in self.blocks:
            frames = block(frames)
        return frames

    def encode(self, poses: Numbers) -> F64:
        """Encode the axis-angle poses of one clip.

        Args:
            poses: Poses (T, 165) in radians.

        Returns:
            Latents (T / 16, 240) in −1 … 1.

        Raises:
            UsageFault: The shape is wrong.
            DataError: There are fewer than 32 frames, or values that are NaN or infinite.
        """
        return self.latents(encoder_input(poses, self.layout.multiple_of_frames))


def load_motion_encoder(path: Path, layout: MotionEncoderLayout = PUBLISHED_LAYOUT) -> MotionEncoder:
    """Load EMAGE's motion encoder from the published file ``AESKConv_240_100.bin``, which ``torch.save`` wrote.

    Args:
        path: The file. Its entry ``model_state`` contains tensors by name, with or without the prefix ``module.``.
        layout: Sizes that the file must have.

    Returns:
        The encoder, named by file name and checksum.

    Raises:
        UsageFault: The file does not exist.
        DataError: The file is damaged or contains pickled objects. Tensors are missing, have unknown names or other
            shapes, or are stored twice, with and without the prefix. Tensors of the encoder contain NaN or infinity.
            Masks or pooling matrices differ from those that are computed from the tree.
        EnvironmentFault: torch is not installed or too old.
    """
    try:
        stored = read_weights(path.resolve(), _ENTRY)  # the user named this file, so a symbolic link may point anywhere
    except ImportError as error:
        raise EnvironmentFault(
            f"{path}: expected the package torch, which reads this file, found that it is not installed; run pip "
            "install 'omniges[train]'"
        ) from error
    tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in stored.items()}
    if len(tensors) < len(stored):
        twice = next(name for name in tensors if name in stored and _PREFIX + name in stored)
        raise DataError(f"{path}: expected one tensor of that name, found {twice} and {_PREFIX}{twice}; {_REMEDY}")
    require_same(encoder_shapes(layout), shapes_of(tensors), str(path), _REMEDY)
    arrays: dict[str, F64] = {}
    for name, tensor in tensors.items():
        if name.startswith("encoder."):
            require_finite(name, tensor, str(path))
            arrays[name] = tensor.double().numpy()
    blocks = tuple(_block(path, arrays, k, plan) for k, plan in enumerate(_plans(layout)))
    with os_errors(path, "read"):
        sha256 = file_sha256(path)
    return MotionEncoder(f"motion-encoder:{path.name}:{sha256[:12]}", sha256, layout, blocks)


def _block(path: Path, arrays: Mapping[str, F64], number: int, plan: _BlockPlan) -> _Block:
    """Build a block from the file's arrays. Raise DataError if masks or pooling matrix differ from those of `plan`."""
    own = f"encoder.layers.{number}.0."
    constants: Sequence[tuple[str, F64 | None]] = (
        ("residual.0.mask", np.repeat(plan.mask[..., None], _KERNEL, axis=2)),
        ("shortcut.mask", plan.mask[..., None]),
        ("common.0.weight", plan.pooling),
    )
    for name, expected in constants:
        if expected is not None and not np.array_equal(arrays[own + name], expected):
            differing = int((arrays[own + name] != expected).sum())
            raise DataError(
                f"{path}: {own}{name}: expected the entries of SMPL-X's tree, found {differing} that differ; {_REMEDY}"
            )
    return _Block(
        weight=arrays[own + "residual.0.weight"] * plan.mask[..., None],
        bias=arrays[own + "residual.0.bias"],
        scale=arrays[own + "residual.1.weight"],
        shift=arrays[own + "residual.1.bias"],
        shortcut=(arrays[own + "shortcut.weight"] * plan.mask[..., None])[..., 0],
        shortcut_bias=arrays[own + "shortcut.bias"],
        pooling=plan.pooling,
    )
