"""Convert log-mels to waveforms with a vocoder: librosa's Griffin-Lim, or a HiFi-GAN from a local folder.

Griffin-Lim needs magnitudes. Their first estimate comes from the pseudo-inverse of the mel filters, with negative
values set to 0. Multiplicative updates (Lee and Seung 2001) refine them and keep them non-negative. Phases come from
librosa's Griffin-Lim with momentum 0.99 (Griffin and Lim 1984; Perraudin et al. 2013), initialized from a seed.
A mel of 64 bands lacks detail, so the waveform is for listening, not for measuring.

A HiFi-GAN folder is written by `SpeechT5HifiGan.save_pretrained` of transformers; AudioLDM2 has one under ``vocoder``.
It contains ``config.json``, and ``model.safetensors`` or ``pytorch_model.bin``. The network must expect a mel with 64
bands, 16 kHz and hop 160. It must also expect the natural logarithm of magnitudes, as in AudioLDM2. This last condition
cannot be checked, because the files do not state it.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from omniges.errors import DataError, UsageFault, needs
from omniges.features.audio import MEL_BANDS, N_FFT, mel_filterbank
from omniges.features.timebase import HOP_SAMPLES, SAMPLE_RATE_HZ
from omniges.storage.atomic import os_errors
from omniges.storage.documents import UNREAD, Document, Is, Range, shown
from omniges.storage.files import file_sha256, read_settings
from omniges.storage.librosa_import import load_librosa
from omniges.storage.tensors import read_tensors

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_UPDATES: Final = 30
_ITERATIONS: Final = 32
_SEGMENT_FRAMES: Final = 2000
_FADE_FRAMES: Final = 50
_TINY: Final = 1e-10
_HIFI_GAN_SEGMENT_FRAMES: Final = 500
_WEIGHTS: Final = ("model.safetensors", "pytorch_model.bin")


_Size = Annotated[int, Range(1, 1 << 13)]
_Sizes = Annotated[tuple[_Size, ...], Is("a list of 1 to 16 whole numbers", lambda found: 1 <= len(found) <= 16)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Config:
    """Settings in config.json on which the network depends, with the defaults of transformers."""

    model_in_dim: _Size
    sampling_rate: Annotated[int, Range(1, 1 << 20)]
    upsample_initial_channel: _Size
    upsample_rates: _Sizes
    upsample_kernel_sizes: _Sizes
    resblock_kernel_sizes: _Sizes = (3, 7, 11)
    resblock_dilation_sizes: tuple[_Sizes, ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    leaky_relu_slope: Annotated[float, Range(0.0, 1.0)] = 0.1
    normalize_before: bool = True
    model_type: Literal["hifigan", "speecht5_hifigan"] = "hifigan"

    def of_transformers(self) -> dict[str, Any]:
        """Return the settings as arguments of `SpeechT5HifiGanConfig`, with lists in place of tuples."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        del found["model_type"]
        return found

    @property
    def layers(self) -> int:
        """Number of convolutions of the network."""
        return len(self.upsample_rates) * (1 + sum(2 * len(each) for each in self.resblock_dilation_sizes))

    @property
    def context_frames(self) -> int:
        """Number of mel frames on each side of an audio sample that can influence the sample."""
        reach = 3.0  # the first convolution has 7 taps
        samples = 1
        residual = max(
            (kernel - 1) / 2 * (sum(dilations) + len(dilations))
            for kernel, dilations in zip(self.resblock_kernel_sizes, self.resblock_dilation_sizes, strict=True)
        )
        for rate, kernel in zip(self.upsample_rates, self.upsample_kernel_sizes, strict=True):
            reach += kernel / rate / samples
            samples *= rate
            reach += residual / samples
        return math.ceil(reach + 3 / samples) + 1


MIN_FRAMES: Final = N_FFT // HOP_SAMPLES // 2 + 1
"""Smallest number of mel frames that Griffin-Lim can convert to a waveform."""


class VocoderStream(Protocol):
    """A converter of one log-mel to audio samples at 16 kHz, which receives the log-mel in blocks of F frames."""

    def push(self, mel: F32, /) -> F32:
        """Append mel frames (F, 64); return the audio samples that are ready, 0 or more."""

    def finish(self) -> F32:
        """Return the audio samples of the last frames, which `push` has not converted yet."""


@dataclass(frozen=True, slots=True)
class Vocoder:
    """A vocoder, which creates a new converter for each log-mel."""

    name: str  # for records: griffin-lim, or hifi-gan with the path and sha256 of its weights
    warning: str | None  # warning about each waveform
    begin: Callable[[int], VocoderStream]  # creates a converter from a seed


@functools.cache
def _inverse_filters() -> F64:
    return np.asarray(np.linalg.pinv(mel_filterbank()))


def _magnitudes(mel: F32) -> F64:
    """Estimate the STFT magnitudes (513, F) of a log-mel (F, 64). Their mel approximates exp(log-mel)."""
    wanted = np.exp(mel.astype(np.float64)).T
    filters = mel_filterbank()
    found = np.maximum(_inverse_filters() @ wanted, _TINY)
    for _ in range(_UPDATES):
        found *= (filters.T @ wanted) / (filters.T @ (filters @ found) + _TINY)
    return np.asarray(found)


class GriffinLim:
    """A converter of one log-mel to audio samples at 16 kHz by Griffin–Lim.

    Segments of 20 s are cross-faded over 0.5 s, so memory does not grow with length. The audio depends only on the mel
    and the seed, not on the sizes of the blocks that are passed to `push`.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._held: F32 = np.zeros((0, MEL_BANDS), np.float32)
        self._tail: F64 | None = None  # faded end of the previous segment

    def push(self, mel: F32) -> F32:
        """Append mel frames (F, 64); return the audio samples that are ready, 0 or more."""
        if mel.ndim != 2 or mel.shape[1] != MEL_BANDS:
            raise ValueError(f"expected log-mel (F, {MEL_BANDS}), found {mel.shape}")
        self._held = np.concatenate([self._held, mel])
        ready = []
        while len(self._held) > _SEGMENT_FRAMES + _FADE_FRAMES:
            piece = self._segment(self._held[: _SEGMENT_FRAMES + _FADE_FRAMES])
            ready.append(piece[: _SEGMENT_FRAMES * HOP_SAMPLES])
            self._tail = piece[_SEGMENT_FRAMES * HOP_SAMPLES :] * _fade()[::-1]
            self._held = self._held[_SEGMENT_FRAMES:]
        return _joined(ready)

    def finish(self) -> F32:
        """Return the last audio samples; raise ValueError if the mel has fewer than 4 frames in total."""
        if len(self._held) < MIN_FRAMES:
            raise ValueError(f"expected log-mel of at least {MIN_FRAMES} frames, found {len(self._held)}")
        return _joined([self._segment(self._held)])

    def _segment(self, mel: F32) -> F64:
        """Compute the audio samples (160 F,) of a segment of F frames, cross-faded with the previous segment."""
        padded = np.concatenate([mel, mel[-1:]])  # frame F is centred on the end of the last sample
        found = load_librosa().griffinlim(
            _magnitudes(padded),
            n_iter=_ITERATIONS,
            hop_length=HOP_SAMPLES,
            win_length=N_FFT,
            n_fft=N_FFT,
            length=len(mel) * HOP_SAMPLES,
            random_state=self._seed % 2**32,
            momentum=0.99,
            dtype=np.float64,
            pad_mode="reflect",
        )
        piece = np.asarray(found, dtype=np.float64)
        self._seed += 1
        if self._tail is not None:
            piece[: len(self._tail)] = piece[: len(self._tail)] * _fade() + self._tail
        return piece


def _fade() -> F64:
    count = _FADE_FRAMES * HOP_SAMPLES
    return (np.arange(count) + 0.5) / count


def _joined(pieces: list[F64]) -> F32:
    return np.concatenate([np.zeros(0), *pieces]).astype(np.float32)


def waveform_from_mel(mel: F32, stream: VocoderStream) -> F32:
    """Convert a complete log-mel to a waveform.

    Args:
        mel: Log-mel (F, 64) with F frames.
        stream: A converter that has not received frames yet.

    Returns:
        Audio samples (160 F,) float32 at 16 kHz in [−1, 1]. If some exceed this range, all are scaled down.

    Raises:
        ValueError: The mel has another shape or, for Griffin–Lim, fewer than 4 frames.
    """
    samples = np.concatenate([stream.push(mel), stream.finish()])
    return np.asarray(samples / max(1.0, float(np.abs(samples).max())), dtype=np.float32)


GRIFFIN_LIM: Final = Vocoder(
    "griffin-lim", "the waveform is computed by Griffin-Lim from 64 mel bands: measure on the mel instead", GriffinLim
)


def chosen_vocoder(folder: Path | None) -> Vocoder:
    """Return the HiFi-GAN of a folder, or Griffin–Lim for None; raise the errors of `load_hifi_gan`."""
    return GRIFFIN_LIM if folder is None else load_hifi_gan(folder)


def load_hifi_gan(folder: Path) -> Vocoder:
    """Load the HiFi-GAN of a folder, on the GPU if there is one.

    Args:
        folder: Folder of the HiFi-GAN.

    Returns:
        The vocoder.

    Raises:
        UsageFault: The folder contains no HiFi-GAN.
        DataError: The folder is damaged, or its HiFi-GAN expects a mel of another format.
        EnvironmentFault: The package transformers is not installed.
    """
    config = _read_config(folder)
    file = next((path for name in _WEIGHTS if os.path.lexists(path := folder / name)), None)
    if file is None:
        raise UsageFault(
            f"--vocoder {folder}: expected {' or '.join(_WEIGHTS)} beside config.json, found neither; download the "
            "vocoder again"
        )
    with needs("vocoder", f"--vocoder {folder}"):
        from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig  # noqa: PLC0415 - optional, slow to import
    weights = {name: tensor.float() for name, tensor in read_tensors(file).items()}
    if config.layers > len(weights):  # checked before a network of so many layers is built
        raise DataError(
            f"{file}: expected the weights that config.json describes, found other weights ({config.layers} layers); "
            "give another folder"
        )
    try:
        settings = SpeechT5HifiGanConfig.from_dict(config.of_transformers())
        with torch.device("meta"):  # allocates no memory for the sizes that a configuration states
            model = SpeechT5HifiGan(settings)
        model.load_state_dict(weights, assign=True)
    except (RuntimeError, ValueError, TypeError) as error:  # configuration and tensors do not fit
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{file}: expected the weights that config.json describes, found other weights ({reason}); give another "
            "folder"
        ) from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network: torch.nn.Module = model
    network.to(device).eval()
    with os_errors(file, "read"):
        digest = file_sha256(file)
    return Vocoder(
        f"hifi-gan {file} sha256 {digest}",
        "the waveform is computed by a HiFi-GAN from 64 mel bands: measure on the mel instead",
        lambda _seed: HifiGan(network, config.context_frames, str(file)),
    )


def _read_config(folder: Path) -> _Config:
    """Read config.json, and check that the HiFi-GAN expects the mel of omniges.

    Raise UsageFault if the file is missing. Raise DataError if it is damaged, or if the HiFi-GAN expects another
    number of mel bands, sample rate or hop.
    """
    path = folder / "config.json"
    if not os.path.lexists(path):
        raise UsageFault(
            f"--vocoder {folder}: expected the folder of a HiFi-GAN with config.json, found none there; check the path"
        )
    document = Document(read_settings(path, "give another folder", folder), str(path), "give another vocoder")
    document.require_known({*(one.name for one in fields(_Config)), *UNREAD})
    config = document.values(_Config)
    found = (config.model_in_dim, config.sampling_rate, math.prod(config.upsample_rates))
    wanted = (MEL_BANDS, SAMPLE_RATE_HZ, HOP_SAMPLES)
    if found != wanted:
        names = ("mel bands (model_in_dim)", "Hz (sampling_rate)", "samples a frame (product of upsample_rates)")
        wrong = [f"expected {w} {n}, found {f}" for w, f, n in zip(wanted, found, names, strict=True) if w != f]
        raise DataError(
            f"{path}: expected a vocoder for the mel of omniges, found another mel ({'; '.join(wrong)}); choose "
            "another vocoder, such as AudioLDM2's"
        )
    for key, other in (
        ("upsample_kernel_sizes", "upsample_rates"),
        ("resblock_dilation_sizes", "resblock_kernel_sizes"),
    ):
        if len(getattr(config, key)) != len(getattr(config, other)):
            raise document.fault(key, shown(getattr(config, key)), f"as many as {other}, {len(getattr(config, other))}")
    return config


class HifiGan:
    """A converter of one log-mel to audio samples at 16 kHz, which runs a HiFi-GAN on segments of 5 s.

    For each segment, the network also receives all frames before and after the segment that can influence it. So
    boundaries of segments are not audible.
    """

    def __init__(self, model: torch.nn.Module, context_frames: int, place: str = "the vocoder") -> None:
        self._model, self._context, self._place = model, context_frames, place
        self._held: F32 = np.zeros((0, MEL_BANDS), np.float32)
        self._before = 0  # number of stored frames that were converted before

    def push(self, mel: F32) -> F32:
        """Append mel frames (F, 64); return the audio samples that are ready, 0 or more."""
        self._held = np.concatenate([self._held, mel])
        ready = [np.zeros(0, np.float32)]
        while len(self._held) >= self._before + _HIFI_GAN_SEGMENT_FRAMES + self._context:
            ready.append(self._sound(_HIFI_GAN_SEGMENT_FRAMES, self._before + _HIFI_GAN_SEGMENT_FRAMES + self._context))
        return np.concatenate(ready)

    def finish(self) -> F32:
        """Return the audio samples of the last frames, which `push` has not converted yet."""
        left = len(self._held) - self._before
        return self._sound(left, len(self._held)) if left else np.zeros(0, np.float32)

    @torch.no_grad()
    def _sound(self, frames: int, stop: int) -> F32:
        """Compute the audio samples (160 · frames,) of the next `frames` frames.

        The network receives the first `stop` stored frames, which include the context on both sides.
        """
        device = next(self._model.parameters()).device
        mel = torch.from_numpy(np.ascontiguousarray(self._held[:stop])).to(device)
        samples: F32 = self._model(mel).float().cpu().numpy()
        if not np.isfinite(samples).all():
            raise DataError(
                f"{self._place}: expected finite samples, found NaN or infinite ones, because the weights are "
                "damaged, or the mel differs too much from speech; give another folder"
            )
        first = self._before
        keep = min(self._context, first + frames)
        self._held = self._held[first + frames - keep :]
        self._before = keep
        return samples[first * HOP_SAMPLES : (first + frames) * HOP_SAMPLES]
