"""Codec ``gesture-rvqvae``: the four RVQ-VAEs (residual-quantised VAEs) of GestureLSM for the 415 gesture channels.

docs/explanation/codecs-gesture.md explains the codec.

The gesture channels of omniges already have the joints, order and units of the networks
(`omniges.features.gesture.LAYOUT`). The codec normalises them with the statistics of the networks' training data.

Letters: T frames, N = ⌊T / frames_per_latent⌋ latents, L features of a latent (512, or 384 without the face), C
channels of a part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from omniges.codecs.base import Loading, fingerprint_of
from omniges.codecs.rvqvae import LATENT_SCALE, Rvqvae, load_rvqvae
from omniges.errors import DataError, UsageFault
from omniges.features.gesture import JOINT_NAMES, LAYOUT
from omniges.formats.arrays import checked, read_array
from omniges.shards.latents import FrameEntry
from omniges.storage.atomic import os_errors

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

NAME: Final = "gesture-rvqvae"

_FILE: Final = re.compile(r"net_\d+_(upper|hands|lower|lower_trans|face)\.(?:pth|safetensors)")

Part = Literal["upper", "hands", "lower", "face"]
PARTS: Final[tuple[Part, ...]] = get_args(Part)
"""Parts in the order of their concatenated latents."""

_LOWER_AND_ROOT: Final = slice(LAYOUT.lower.start, LAYOUT.root.stop)
_COLUMNS: Final[Mapping[Part, tuple[slice, ...]]] = {
    "upper": (LAYOUT.upper,),
    "hands": (LAYOUT.hands,),
    "lower": (LAYOUT.lower, _LOWER_AND_ROOT),  # networks exist with and without the root channels
    "face": (LAYOUT.face,),
}
_JOINTS: Final[Mapping[Part, tuple[int, ...]]] = {
    "upper": LAYOUT.upper_joints,
    "hands": LAYOUT.hand_joints,
    "lower": LAYOUT.lower_joints,
    "face": (),
}


@dataclass(frozen=True, slots=True, eq=False)
class PartScale:
    """Mean and standard deviation of a part's channels, used without an epsilon and without clipping."""

    mean: F64
    """Means (C,)."""
    std: F64
    """Standard deviations (C,), positive."""

    def normalised(self, channels: npt.NDArray[np.floating]) -> F32:
        """Return (x − mean) / std of channels (T, C), computed in float64 and rounded once to float32."""
        return ((channels - self.mean) / self.std).astype(np.float32)

    def restored(self, values: npt.NDArray[np.floating]) -> F32:
        """Return channels (T, C) from normalised values (T, C), the inverse of `normalised`."""
        return (values * self.std + self.mean).astype(np.float32)


def part_columns(part: Part, channels: int, where: str) -> slice:
    """Return the range of gesture channels that a network encodes.

    Args:
        part: Part of the body.
        channels: Number of channels of the network's input.
        where: Name of the file, for errors.

    Returns:
        The slice of the 415 channels.

    Raises:
        DataError: No network of this part has this number of channels.
    """
    widths = {columns.stop - columns.start: columns for columns in _COLUMNS[part]}
    if channels not in widths:
        wanted = " or ".join(str(width) for width in widths)
        raise DataError(
            f"{where}: expected a network of {part} with {wanted} channels, found {channels} channels; check that "
            "the file's name is right"
        )
    return widths[channels]


def statistics_files(columns: Mapping[Part, slice]) -> dict[str, str]:
    """Return the paths of the statistics files that the parts need, by names such as ``pose mean``.

    The paths are relative to the codec's folder. The files of the root are included only if a network encodes the root.
    """
    stems = {"pose": "beatx_2_330"} | ({"root": "beatx_2_trans"} if _LOWER_AND_ROOT in columns.values() else {})
    return {f"{what} {kind}": f"mean_std/{stem}_{kind}.npy" for what, stem in stems.items() for kind in ("mean", "std")}


def read_scales(folder: Path, columns: Mapping[Part, slice]) -> dict[Part, PartScale]:
    """Read the scale of each part from the statistics in a codec's folder; the face is not scaled.

    Only standard deviations that are used must be positive: those of the parts' joints, and those of the root if a
    network encodes the root. The files also contain standard deviations of jaw and eyes, which are almost zero; they
    are not used.

    Args:
        folder: The codec's folder.
        columns: Gesture channels of each part.

    Returns:
        The scale of each part.

    Raises:
        UsageFault: A file does not exist.
        DataError: A file is damaged, has another shape or type, or contains NaN or infinity. Or a standard deviation
            is not positive.
    """
    files = {what: folder / name for what, name in statistics_files(columns).items()}
    found = {what: _statistics(path, 6 * len(JOINT_NAMES) if "pose" in what else 3) for what, path in files.items()}
    scales: dict[Part, PartScale] = {}
    for part, taken in columns.items():
        if part == "face":
            width = taken.stop - taken.start
            scales[part] = PartScale(np.zeros(width), np.ones(width))
            continue
        pose = (6 * np.array(_JOINTS[part])[:, None] + np.arange(6)).reshape(-1)
        mean, std = found["pose mean"][pose], found["pose std"][pose]
        _require_positive(std, files["pose std"], part)
        if taken == _LOWER_AND_ROOT:
            _require_positive(found["root std"], files["root std"], "the root")
            mean, std = np.concatenate([mean, found["root mean"]]), np.concatenate([std, found["root std"]])
        scales[part] = PartScale(mean, std)
    return scales


def _statistics(path: Path, length: int) -> F64:
    wanted = f"expected {length} numbers of float32 or float64"
    array = read_array(path, wanted)
    if array.shape != (length,) or array.dtype not in {np.dtype(np.float32), np.dtype(np.float64)}:
        raise DataError(
            f"{path}: {wanted}, found an array {array.shape} of {array.dtype}; give the statistics that belong to "
            "the networks"
        )
    if not np.isfinite(array).all():  # before the cast, which warns about some NaN values
        raise DataError(
            f"{path}: {wanted}, found NaN or infinity at index {int(np.argmin(np.isfinite(array)))}; copy the file "
            "again"
        )
    return array.astype(np.float64)


def _require_positive(std: F64, path: Path, of: str) -> None:
    if not (std > 0).all():
        raise DataError(
            f"{path}: expected positive standard deviations of {of}, found {std.min():g}; check that it is "
            "not the file of means"
        )


@dataclass(frozen=True, slots=True, eq=False)
class GestureRvqvae:
    """Codec of frozen networks for upper body, hands, lower body and optionally face, with their input scales."""

    nets: Mapping[Part, Rvqvae]
    columns: Mapping[Part, slice]
    """Gesture channels of each network."""
    scales: Mapping[Part, PartScale]
    quantised: bool
    """True: `decode` first replaces latents by codes."""
    fingerprint: str
    """sha256 of everything that affects latents and motion except `quantised`, see `fingerprint_of`."""

    @property
    def frames_per_latent(self) -> int:
        """Number of frames that a latent covers."""
        return self.nets["upper"].spec.frames_per_latent

    @property
    def latent_channels(self) -> int:
        """Number of features L of a latent."""
        return sum(net.spec.code_size for net in self.nets.values())

    @property
    def lacking(self) -> tuple[slice, ...]:
        """Ranges of gesture channels that no network encodes.

        These are the root channels if the lower network has only 54 channels, and the face channels if the face
        network was not loaded.
        """
        return tuple(
            block
            for block in (LAYOUT.upper, LAYOUT.hands, LAYOUT.lower, LAYOUT.root, LAYOUT.face)
            if not any(taken.start <= block.start and block.stop <= taken.stop for taken in self.columns.values())
        )

    @property
    def entry(self) -> FrameEntry:
        """Codec description that shards and checkpoints store: name, fingerprint, source, rows and channels."""
        parts = {part: asdict(net.spec) for part, net in self.nets.items()}
        return FrameEntry(
            name=NAME,
            fingerprint=self.fingerprint,
            source="gesture.npy",
            frames_per_row=self.frames_per_latent,
            channels=self.latent_channels,
            settings={"latent_scale": LATENT_SCALE, "parts": parts},
        )

    def decoding(self, *, quantised: bool) -> GestureRvqvae:
        """Return a codec with the same networks; `decode` first replaces latents by codes if `quantised` is True."""
        return replace(self, quantised=quantised)

    def encode(self, gesture: npt.NDArray[np.floating]) -> F32:
        """Encode a complete clip as latents that are not quantised and are divided by 5.

        The parts' latents are concatenated: upper, hands, lower, face. The last T mod frames_per_latent frames are
        dropped. Therefore, a clip of fewer than frames_per_latent frames has no latents. A latent depends on about
        three seconds on each side, so always encode complete clips (docs/explanation/codecs-gesture.md).

        Args:
            gesture: Gesture channels (T, 415).

        Returns:
            Latents (N, L).

        Raises:
            UsageFault: The shape is wrong.
            DataError: Frames are NaN or infinite.
        """
        channels = checked(gesture, "gesture", (None, LAYOUT.channels), at_least=0)
        if len(channels) < self.frames_per_latent:
            return np.empty((0, self.latent_channels), np.float32)
        found = []
        for part, net in self.nets.items():
            motion = torch.from_numpy(self.scales[part].normalised(channels[:, self.columns[part]]))
            found.append(net.encode(motion[None].to(_device(net)))[0].cpu().numpy())
        latents: F32 = np.concatenate(found, axis=1)
        latents /= np.float32(LATENT_SCALE)
        return latents

    def decode(self, latents: npt.NDArray[np.floating], rest: npt.NDArray[np.floating] | None = None) -> F32:
        """Decode latents as gesture channels; if `quantised` is set, first replace latents by codes.

        The 6D rotations in the result are raw outputs of the networks.
        `omniges.features.gesture.motion_from_gesture` converts them to valid rotations.

        Args:
            latents: Latents (N, L) of `encode`.
            rest: Gesture channels (415,) or (N · frames_per_latent, 415), from which the channels in `lacking` are
                taken. Required if `lacking` is not empty; must be None otherwise.

        Returns:
            Gesture channels (N · frames_per_latent, 415).

        Raises:
            UsageFault: A shape is wrong, or `rest` is missing or not needed.
            DataError: Latents are NaN or infinite.
        """
        vectors = LATENT_SCALE * checked(latents, "latents", (None, self.latent_channels), at_least=0)
        vectors = vectors.astype(np.float32)
        gesture = np.empty((len(vectors) * self.frames_per_latent, LAYOUT.channels), dtype=np.float32)
        if rest is None and self.lacking:
            columns = ", ".join(f"{block.start} to {block.stop - 1}" for block in self.lacking)
            raise UsageFault(
                f"rest: expected values of channels {columns}, which no network has, found none; pass the values of "
                "these channels as rest"
            )
        if rest is not None and not self.lacking:
            raise UsageFault(
                "rest: expected none, because the networks have every channel, found values; remove this argument"
            )
        if rest is not None:
            gesture[:] = checked(rest, "rest", (LAYOUT.channels,) if rest.ndim == 1 else gesture.shape)
        if not len(vectors):
            return gesture
        start = 0
        for part, net in self.nets.items():
            own = torch.from_numpy(vectors[:, start : start + net.spec.code_size])
            start += net.spec.code_size
            values = net.decode(own[None].to(_device(net)), quantised=self.quantised)[0].cpu().numpy()
            gesture[:, self.columns[part]] = self.scales[part].restored(values)
        return gesture


def _device(net: Rvqvae) -> torch.device:
    return next(net.parameters()).device


def load_gesture_rvqvae(
    folder: Path, *, face: bool = True, quantised: bool = True, device: str | torch.device = "cpu"
) -> GestureRvqvae:
    """Load the codec from a folder with the networks' files and their statistics in ``mean_std/``.

    Args:
        folder: Folder with one file ``net_<step>_<part>.pth`` or ``.safetensors`` for each part. For the lower body,
            ``<part>`` is ``lower`` or ``lower_trans``.
        face: Load the network of the face too; False ignores its file.
        quantised: Whether `GestureRvqvae.decode` replaces latents by codes, as GestureLSM's trainers do.
        device: Device of the networks.

    Returns:
        The loaded codec.

    Raises:
        UsageFault: A file does not exist, or a part has two files.
        DataError: A file is damaged, or the files do not fit together.
    """
    files = _net_files(folder, PARTS if face else tuple(part for part in PARTS if part != "face"))
    nets = {part: load_rvqvae(path).to(device) for part, path in files.items()}
    columns = {part: part_columns(part, net.spec.channels, str(files[part])) for part, net in nets.items()}
    rates = {part: net.spec.frames_per_latent for part, net in nets.items()}
    if len(set(rates.values())) > 1:
        found = ", ".join(f"{count} of {part}" for part, count in rates.items())
        raise DataError(
            f"{folder}: expected the same number of frames per latent in all parts, found {found}; use networks that "
            "belong together"
        )
    scales = read_scales(folder, columns)
    tensors = {f"{part}.{name}": tensor for part, net in nets.items() for name, tensor in net.state_dict().items()}
    for part, scale in scales.items():
        tensors |= {f"{part}.mean": torch.from_numpy(scale.mean), f"{part}.std": torch.from_numpy(scale.std)}
    fingerprint = fingerprint_of({"latent_scale": LATENT_SCALE, "parts": list(nets)}, tensors)
    return GestureRvqvae(nets=nets, columns=columns, scales=scales, quantised=quantised, fingerprint=fingerprint)


def load(folder: Path, loading: Loading) -> GestureRvqvae:
    """Load the codec with all four parts, so that latents decode to all 415 channels.

    Args:
        folder: Folder of the networks and statistics.
        loading: Options; only the device is used.

    Returns:
        The loaded codec.

    Raises:
        UsageFault: The lower network has no root, a file does not exist, or a part has two files.
        DataError: A file is damaged, or the files do not fit together.
    """
    codec = load_gesture_rvqvae(folder, device=loading.device)
    if codec.lacking:
        raise UsageFault(
            f"{folder}: expected a lower-body network with {LAYOUT.root.stop - LAYOUT.lower.start} channels, "
            f"including the root, found {codec.nets['lower'].spec.channels}, so latents cannot be decoded to all "
            f"{LAYOUT.channels} gesture channels; give a network that includes the root"
        )
    return codec


def _net_files(folder: Path, parts: tuple[Part, ...]) -> dict[Part, Path]:
    """Return the file of each part; raise UsageFault if a part has no file or two files."""
    if not folder.is_dir():
        raise UsageFault(
            f"{folder}: expected a folder with the networks of {', '.join(parts)}, found that the folder does not "
            "exist; check the path"
        )
    with os_errors(folder, "list"):
        named = [(found[1], path) for path in sorted(folder.iterdir()) if (found := _FILE.fullmatch(path.name))]
    files: dict[Part, Path] = {}
    for part in parts:
        own = [path for name, path in named if name.removesuffix("_trans") == part]
        if not own:
            raise UsageFault(
                f"{folder}: expected a file such as net_300000_{part}.pth, found no network of {part}; add this file"
            )
        if len(own) > 1:
            raise UsageFault(
                f"{folder}: expected one network of {part}, found {' and '.join(path.name for path in own)}; keep "
                "one of these files"
            )
        files[part] = own[0]
    return files
