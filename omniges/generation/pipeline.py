"""`OmnigesPipeline` runs a trained model in Python. Inputs are arrays or files; results are arrays.

The interface is similar to pipelines of diffusers. The class does not derive from `diffusers.DiffusionPipeline`. That
class may download and unpickle files, and it draws noise from a random generator. `OmnigesPipeline` loads a checkpoint,
verifies its checksums and downloads nothing. Noise is keyed by seed, sample and tick, so a call of the pipeline and the
command `generate` give the same results.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, cast, get_args

import numpy as np
import numpy.typing as npt
import torch

from omniges import arguments
from omniges.errors import RecordingFault, UsageFault
from omniges.features.audio import Loudness
from omniges.features.channels import GestureChannels
from omniges.features.gesture import LAYOUT, MotionArrays
from omniges.features.timebase import FRAMES_PER_TICK, SAMPLE_RATE_HZ, TICKS_PER_SECOND
from omniges.formats.audio import LOUDEST, encode_wav
from omniges.formats.npz import encode_motion
from omniges.formats.textgrid import WordInterval, encode_tiers, encode_words, words_in_order
from omniges.generation.audio import Held, log_mel_of_samples
from omniges.generation.inputs import (
    NEUTRAL,
    Condition,
    Input,
    Reading,
    audio_condition,
    cut_input,
    read_audio,
    read_gesture,
    read_text,
    words_condition,
)
from omniges.generation.long_form import Timeline
from omniges.generation.records import WINDOWS_TIER
from omniges.generation.sampler import Codecs, Loaded, Sampler, asked_values, joined, load, trained_tasks, values_of
from omniges.generation.settings import GenerateSettings, Sources, require_guidable, task_named
from omniges.generation.vocoder import chosen_vocoder, waveform_from_mel
from omniges.generation.word_timing import MIN_WORDS, estimate_warnings, learn_rate, timed_words
from omniges.generation.writers import Labels, valid_motion
from omniges.model.checkpoint import Contents, write_checkpoint
from omniges.model.speaking_rate import SpeakingRate
from omniges.model.spec import weights_file
from omniges.model.streams import StreamName
from omniges.model.tasks import TASKS, SamplingSettings, Solver
from omniges.options import keywords_in_errors
from omniges.shards.reader import ShardFolder
from omniges.storage.atomic import make_folder, publish_bytes
from omniges.storage.files import sha256_hex

F32 = npt.NDArray[np.float32]
Words = Sequence[Mapping[str, Any]]
Array = npt.NDArray[Any] | torch.Tensor

_MAX_CHANNELS: Final = 8
_MAX_SAMPLES: Final = 10_000
_LONGEST_PATH: Final = 4096
_OTHER_ENDINGS: Final = frozenset(
    {".mp4", ".mov", ".avi", ".webm", ".gif", ".png", ".html", ".bvh", ".fbx", ".glb", ".gltf", ".npy", ".pt"}
    | {".json", ".txt", ".srt", ".csv", ".mp3", ".flac", ".ogg"}
)
"""File endings that `OmnigesSample.save` refuses, so that NAME.mp4 does not become NAME.mp4.npz."""
_TEXT_ENDINGS: Final = frozenset({".textgrid", ".txt", ".json", ".srt", ".vtt", ".csv", ".tsv", ".lab", ".wav", ".npz"})
_PATH: Final = re.compile(r"(?:~|\.{1,2}|[A-Za-z]:)?(?:[/\\][^\s/\\]+)+|[\w.-]+(?:[/\\][\w.-]+)+\.\w{1,9}")


@dataclass(frozen=True, slots=True)
class OmnigesSample:
    """One generated sample; fields that the task does not produce are None."""

    seconds: float
    gesture: F32 | None = None
    """Gesture channels (30 · seconds, 415) in the format of shards."""
    mel: F32 | None = None
    """Log-mel (100 · seconds, 64)."""
    words: list[dict[str, Any]] | None = None
    """One entry for each word: ``word``, and ``start`` and ``end`` in seconds.

    None if text is stored as latents, which have no word timings.
    """
    windows: list[dict[str, Any]] | None = None
    """One entry for each window, if text is stored as latents: ``text``, ``start`` and ``end`` in seconds, and
    ``ended``, which is False if the text was cut.
    """
    seed: int = 0
    jaw_eyes: F32 | None = None
    """Axis-angles (30 · seconds, 9) of jaw, left and right eye in radians.

    None if the model has no channels for jaw and eyes, which then do not move.
    """

    def motion(self, start_xz: Sequence[float] = (0.0, 0.0)) -> MotionArrays:
        """Return SMPL-X motion at 30 Hz, with valid rotations.

        Args:
            start_xz: Start position (x, z) in metres.

        Returns:
            For T = 30 · seconds frames: poses (T, 165) in radians, expressions (T, 100) and trans (T, 3) in metres.

        Raises:
            UsageFault: The task does not produce gesture.
            DataError: A value is NaN or infinite, or a 6D rotation has a row of length zero or parallel rows.
        """
        if self.gesture is None:
            raise UsageFault(
                "motion: expected a task that produces gesture, found another task; choose a task such as a2g"
            )
        channels = self.gesture if self.jaw_eyes is None else np.concatenate([self.gesture, self.jaw_eyes], axis=1)
        return valid_motion(channels, np.asarray(start_xz, np.float64))

    def waveform(self, vocoder: Path | str | None = None) -> F32:
        """Compute the waveform of the log-mel by Griffin–Lim or a HiFi-GAN.

        Args:
            vocoder: Local folder of a HiFi-GAN; None: Griffin–Lim.

        Returns:
            Audio samples (16000 · seconds,) at 16 kHz in [−1, 1].

        Raises:
            UsageFault: The task does not produce audio, or the folder contains no HiFi-GAN.
            DataError: The folder is damaged, or its HiFi-GAN expects a mel of another format.
            EnvironmentFault: The package transformers is not installed.
        """
        if self.mel is None:
            raise UsageFault(
                "waveform: expected a task that produces audio, found another task; choose a task such as t2a"
            )
        chosen = chosen_vocoder(None if vocoder is None else arguments.path("vocoder", vocoder))
        return waveform_from_mel(self.mel, chosen.begin(self.seed))

    def save(self, path: Path | str) -> list[Path]:
        """Write the sample as one file, whose format the ending of `path` selects, or as files of all formats.

        Args:
            path: ``NAME.npz`` is motion in the format of BEAT2. ``NAME.wav`` is the waveform by Griffin–Lim, scaled
                down if it is louder than full scale. ``NAME.TextGrid`` contains the words. If the path has no
                ending, all of these files that the task produces are written.

        Returns:
            Paths of the files, in the order in which they were written.

        Raises:
            UsageFault: The task does not produce this format.
            DataError: A value is NaN or infinite, or a 6D rotation has a row of length zero or parallel rows.
            EnvironmentFault: The disk is full or not writable.
        """
        path = arguments.path("path", path)
        if path.suffix.lower() in _OTHER_ENDINGS or not path.name:
            raise arguments.refuse("path", "a name that ends in .npz, .wav or .TextGrid, or has no ending", str(path))
        kinds: dict[str, tuple[bool, Callable[[], bytes]]] = {
            ".npz": (self.gesture is not None, self._npz),
            ".wav": (self.mel is not None, self._wav),
            ".TextGrid": (self.words is not None or self.windows is not None, self._textgrid),
        }
        asked = next((ending for ending in kinds if path.suffix.lower() == ending.lower()), None)
        if asked is not None and not kinds[asked][0]:
            existing = " or ".join(ending for ending, (there, _) in kinds.items() if there)
            raise UsageFault(
                f"{path}: expected the ending {existing}, because this sample has nothing to write as {asked}, found "
                f"{asked}; choose another ending"
            )
        files = {
            path if asked else path.with_name(path.name + ending): content
            for ending, (there, content) in kinds.items()
            if there and asked in {None, ending}
        }
        make_folder(path.parent)
        for file, content in files.items():
            publish_bytes(file, content())
        return list(files)

    def _npz(self) -> bytes:
        motion = self.motion()
        body = NEUTRAL
        return encode_motion(
            motion.poses, motion.expressions, motion.trans, body.betas, gender=body.gender, model=body.model
        )

    def _wav(self) -> bytes:
        samples = self.waveform()
        return encode_wav(samples / max(1.0, float(np.abs(samples).max(initial=0.0))), SAMPLE_RATE_HZ)

    def _textgrid(self) -> bytes:
        labels = Labels("words")
        said = [(one["text"], one["start"], one["end"]) for one in self.windows or ()]
        said += [(one["word"], one["start"], one["end"]) for one in self.words or ()]
        intervals = [WordInterval(labels.label(text), start, end) for text, start, end in said]
        if self.words is None:
            return encode_tiers([(WINDOWS_TIER, intervals)], self.seconds)
        return encode_words([interval for interval in intervals if interval.word], self.seconds)


@dataclass(frozen=True, slots=True)
class OmnigesOutput:
    """Result of a call of `OmnigesPipeline`: the samples and warnings."""

    samples: list[OmnigesSample]
    task: str
    warnings: tuple[str, ...]
    """Warnings, such as changes of the inputs (resampled, cut, words left out) and estimated times."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """Former name of `warnings`."""
        return self.warnings

    def __getitem__(self, number: int) -> OmnigesSample:
        """Return the sample with the index `number`, counted from 0."""
        return self.samples[number]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.samples)


class OmnigesPipeline:
    """A model with its codecs, tokenizer and statistics; create it with `from_pretrained`."""

    def __init__(
        self,
        loaded: Loaded,
        codecs: Mapping[str, Path | str] | None = None,
        t5_tokenizer: Path | str | None = None,
        *,
        quantised: bool = True,
    ) -> None:
        self._loaded = loaded
        if codecs is not None and not isinstance(codecs, Mapping):
            raise arguments.refuse("codecs", "folders by name of the codec", codecs)
        folders = [(name, arguments.path("codecs", folder)) for name, folder in (codecs or {}).items()]
        tokenizer = None if t5_tokenizer is None else arguments.path("t5_tokenizer", t5_tokenizer)
        quantised = arguments.flag("quantised", quantised)
        own = Codecs(loaded.identity.codecs, folders, tokenizer, quantised=quantised)
        self._sampler = Sampler(loaded.model, loaded.identity, own)

    @classmethod
    @keywords_in_errors(GenerateSettings)
    def from_pretrained(
        cls,
        folder: Path | str,
        *,
        weights: str = "ema",
        codecs: Mapping[str, Path | str] | None = None,
        t5_tokenizer: Path | str | None = None,
        quantised: bool = True,
    ) -> Self:
        """Load the model of a run, a checkpoint or a folder of `save_pretrained`, on the GPU if there is one.

        Args:
            folder: Local folder; nothing is downloaded.
            weights: ``ema`` for the EMA weights, ``last`` for the weights of the last training step.
            codecs: Folders by codec name, for a model that generates latents.
            t5_tokenizer: Folder of T5's tokenizer, if the text codec's folder does not contain it.
            quantised: True: quantize latents with the codec's codebooks before decoding. Codecs without codebooks
                ignore this.

        Returns:
            The pipeline.

        Raises:
            UsageFault: The folder does not exist, or an argument is invalid.
            DataError: The folder is damaged.
        """
        arguments.choice("weights", weights, ("ema", "last"))
        chosen = load(arguments.path("folder", folder), "last" if weights == "last" else "ema")
        return cls(chosen, codecs, t5_tokenizer, quantised=quantised)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write the loaded weights without the optimizer state, for `from_pretrained` and `generate --checkpoint`.

        Args:
            folder: New folder.

        Raises:
            UsageFault: The folder exists.
            EnvironmentFault: The disk is full or not writable.
        """
        path = arguments.path("folder", folder)
        if path.exists():
            raise UsageFault(f"{path}: expected a new folder, found an existing folder; choose another folder")
        loaded = self._loaded
        tensors = {name: p.detach() for name, p in loaded.model.named_parameters()}
        documents = dict(loaded.identity.documents()) | loaded.history()
        write_checkpoint(path, Contents(loaded.saved.step, {weights_file(loaded.weights): tensors}, documents))

    def __repr__(self) -> str:
        identity = self._loaded.identity
        millions = sum(p.numel() for p in self._loaded.model.parameters()) / 1e6
        device = next(self._loaded.model.parameters()).device
        tasks = trained_tasks(self._loaded.saved)
        return (
            f"OmnigesPipeline({str(self._loaded.saved.path)!r}: {identity.preset}, {millions:.1f} million parameters, "
            f"step {self._loaded.saved.step}, {self._loaded.weights} weights, on {device}; "
            f"tasks {', '.join(tasks or TASKS)}; {len(identity.speakers)} speakers)"
        )

    def to(self, device: str) -> Self:
        """Move the model to a device such as ``cpu`` or ``cuda``; return the pipeline itself."""
        self._loaded.model.to(device)
        return self

    @property
    def speakers(self) -> tuple[str, ...]:
        """Valid values of `speaker` in a call."""
        return self._loaded.identity.speakers

    @property
    def condition_streams(self) -> tuple[str, ...]:
        """Valid names in `conditions` of a call."""
        return tuple(self._loaded.identity.conditions)

    def speaking_rate(self, shards: Path | str) -> SpeakingRate:
        """Learn a speaking rate from the words of a shard folder's train split.

        Pass the result as `speaking_rate` to a call of the pipeline. The call then estimates word timings for plain
        text from this rate.

        Args:
            shards: The shard folder.

        Returns:
            The speaking rate.

        Raises:
            UsageFault: The folder does not exist, or has too few words.
            DataError: The folder is incomplete or damaged, or has another version of the shard contract.
        """
        folder = ShardFolder(arguments.path("shards", shards))
        return learn_rate(folder.words(row) for row in folder.rows if row.split == "train")

    @keywords_in_errors(GenerateSettings)
    def __call__(  # noqa: PLR0913 - only the task is positional
        self,
        task: str,
        *,
        audio: Path | str | Array | None = None,
        audio_rate_hz: int | None = None,
        text: Path | str | Words | None = None,
        speaking_rate: SpeakingRate | None = None,
        gesture: Path | str | Array | None = None,
        motion_rate_hz: float | None = None,
        seconds: float | None = None,
        speaker: str | None = None,
        conditions: Mapping[str, Any] | None = None,
        num_samples: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        solver: str = "euler",
        shift: float = 3.0,
        sigma_min: float = 0.3,
        overlap_ticks: int | None = None,
        seed: int = 0,
        callback: Callable[[float, float], None] | None = None,
    ) -> OmnigesOutput:
        """Generate samples of a task.

        Args:
            task: Task such as ``a2g``, ``at2g`` or ``unconditional``; see docs/how-to/generate.md.
            audio: A file, or an array or tensor (N,), (N, channels) or (channels, N) with at most 8 channels: floats in
                [−1, 1], or int16 or int32 at full scale.
            audio_rate_hz: Sample rate of an array in Hz; files contain their sample rate.
            text: Path of a TextGrid or plain text file, the text itself, or words with times in seconds: (word, start,
                end), or mappings or objects with such fields. A string that looks like a path must be a file's path.
            speaking_rate: Speaking rate for plain text; None: the rate in the checkpoint, learned from training words.
            gesture: Path of an SMPL-X NPZ, or channels (30 · seconds, 415 or 424) as an array or tensor.
            motion_rate_hz: Frames per second of an NPZ that does not state its frame rate.
            seconds: Largest length of the samples in seconds; for the task ``unconditional``, the exact length.
            speaker: Speaker style to generate in; None: unknown.
            conditions: Values of condition streams, such as ``{"emotion": "happiness"}``; None turns a stream off.
            num_samples: Number of samples, which differ in their noise.
            num_inference_steps: Sampling steps; None: 20, or 10 with a default guidance scale other than 1.
            guidance_scale: Scale of classifier-free guidance; 1: no guidance; None: the default of the model.
            solver: ``euler``, ``heun`` or ``dpm++``.
            shift: Shift of the noise levels; above 1: more steps at high noise.
            sigma_min: Lowest noise level σ at which a step starts, 0 to 1; the last step ends at 0.
            overlap_ticks: Overlap of successive windows in ticks; None: a quarter of a window, 0 for latents of text.
            seed: Seed of the noise; the same seed gives the same arrays on CPU.
            callback: Function that is called with two lengths in seconds: generated so far, and in total.

        Returns:
            The generated samples, and warnings.

        Raises:
            OmnigesError: An argument is invalid (UsageFault), or an input cannot be used (DataError).
        """
        name = task_named(arguments.text("task", task))
        num_samples = arguments.integer("num_samples", num_samples, 1, _MAX_SAMPLES + 1)
        seed = arguments.integer("seed", seed, 0, 1 << 32)
        overlap_ticks = None if overlap_ticks is None else arguments.integer("overlap_ticks", overlap_ticks, 0)
        speaker = None if speaker is None else arguments.text("speaker", speaker)
        self._loaded.require_trained(name)
        number = self._sampler.speaker_number(speaker, named=True)
        sampling = _sampling(num_inference_steps, guidance_scale, shift, sigma_min, solver)
        _require_kinds(conditions, callback)
        streams = self._loaded.identity.conditions
        asked = asked_values(streams, list((conditions or {}).items()), "conditions")
        require_guidable(TASKS[name], sampling, asked)
        sampling = sampling.for_task(TASKS[name], self._loaded.identity.guidance)
        windows = self._sampler.windows(overlap_ticks, name)
        self._sampler.codecs.require([TASKS[name]], Sources())
        inputs = {"audio": (audio, audio_rate_hz), "text": (text, speaking_rate), "gesture": (gesture, motion_rate_hz)}
        item = self._item(name, inputs, seconds)
        tokens, lost = self._sampler.codecs.conditions(item, windows)
        described = values_of(streams, asked, item.recording)
        timelines = [Timeline(item.ticks, tokens, number, k, item.present, described) for k in range(num_samples)]
        worked = _reporting(callback, num_samples * item.ticks)
        generated = joined(self._sampler.sample(timelines, TASKS[name].targets, seed, windows, sampling, worked))
        spans = self._sampler.codecs.windows_of_text(item.ticks, windows)
        samples = [self._sample(arrays, item, seed + k, spans) for k, arrays in enumerate(generated)]
        warnings = (*item.warnings, *lost, *(warning for one in item.conditions for warning in one.warnings))
        return OmnigesOutput(samples, name, (*warnings, *self._sampler.absence_warnings(TASKS[name].targets)))

    def _item(self, task: str, inputs: Mapping[str, tuple[Any, Any]], seconds: float | None) -> Input:
        """Read the inputs of a task and cut them to the same length; `seconds` is the largest length.

        `inputs` contains a pair for each stream: its value, and the sample rate of audio, the speaking rate of text or
        the frame rate of gesture. A value or rate that the user does not pass is given as None.
        """
        _require_inputs(task, {name: content for name, (content, _) in inputs.items()})
        conditions: list[Condition] = []
        if inputs["audio"][0] is not None:
            conditions.append(_audio(*inputs["audio"], self._loaded.identity.loudness))
        if inputs["gesture"][0] is not None:
            conditions.append(_gesture(*inputs["gesture"], self._loaded.identity.config.gesture_channels))
        if inputs["text"][0] is not None:
            length_s = min((one.ticks for one in conditions), default=0) / TICKS_PER_SECOND or None
            conditions.append(self._text(*inputs["text"], length_s))
        return _item(conditions, seconds, self._sampler.reading())

    def _sample(
        self, generated: Mapping[StreamName, Any], item: Input, seed: int, spans: Sequence[tuple[int, int]] | None
    ) -> OmnigesSample:
        words = windows = None
        if "text" in generated and spans is not None:
            windows = [
                {
                    "text": spoken.text,
                    "start": first / TICKS_PER_SECOND,
                    "end": (first + count) / TICKS_PER_SECOND,
                    "ended": spoken.ended,
                }
                for spoken, (first, count) in zip(generated["text"], spans, strict=True)
            ]
        elif "text" in generated:
            found = self._sampler.token_codec.decode(generated["text"].astype(np.int32))
            words = [word.as_json() for word in found if word.word.strip()]
        seconds = item.ticks / TICKS_PER_SECOND
        gesture, jaw_eyes = generated.get("gesture"), None
        if gesture is not None and self._sampler.identity.config.with_jaw_eyes:
            gesture, jaw_eyes = np.split(gesture, [LAYOUT.channels], axis=1)
        return OmnigesSample(seconds, gesture, generated.get("audio"), words, windows, seed, jaw_eyes)

    def _text(self, text: Path | str | Words, rate: SpeakingRate | None, length_s: float | None) -> Condition:
        reading = self._sampler.reading()
        if rate is not None and not isinstance(rate, SpeakingRate):
            raise UsageFault(
                f"speaking_rate {rate!r:.80}: expected the result of pipeline.speaking_rate(SHARDS), or None"
            )
        codec, rate = reading.token_codec, rate or reading.rate
        if isinstance(text, Path) or (isinstance(text, str) and _names_file(text)):
            if not os.path.isfile(text):
                raise UsageFault(f"text {str(text)!r:.200}: expected a file, found none; give words to be spoken")
            return read_text(str(text), codec, rate, length_s)
        warnings: list[str] = []
        words = text
        if isinstance(words, str):
            if rate is None:
                raise UsageFault(
                    "text: expected words with times, found text without times; they cannot be estimated, because the "
                    f"checkpoint has no speaking rate: its training set has fewer than {MIN_WORDS} words; give "
                    "speaking_rate=pipeline.speaking_rate(SHARDS), words with times, or a TextGrid"
                )
            warnings = estimate_warnings(words, rate)
            words = timed_words(words, rate)
        else:
            words, warnings = _checked_words(words)
        if not words:
            raise UsageFault("text: expected at least one word, found none; give words")
        digest = sha256_hex(json.dumps(list(words), ensure_ascii=False).encode())
        return words_condition(words, codec, length_s, "text", ("text", digest), warnings)


def _require_kinds(conditions: Any, callback: Any) -> None:
    """Raise UsageFault for condition values that are not a mapping, or a callback that is not a function."""
    if conditions is not None and not isinstance(conditions, Mapping):
        raise arguments.refuse("conditions", "values by name of the condition stream", conditions)
    if callback is not None and not callable(callback):
        raise arguments.refuse("callback", "a function of the seconds generated and the total, or None", callback)


def _sampling(
    num_inference_steps: int | None, guidance_scale: float | None, shift: float, sigma_min: float, solver: str
) -> SamplingSettings:
    """Check the arguments of a call and return them as settings of the sampler."""
    return SamplingSettings(
        num_inference_steps=(
            None if num_inference_steps is None else arguments.integer("num_inference_steps", num_inference_steps, 1)
        ),
        guidance_scale=None if guidance_scale is None else arguments.number("guidance_scale", guidance_scale, 0),
        shift=arguments.number("shift", shift),
        sigma_min=arguments.number("sigma_min", sigma_min, 0),
        solver=cast("Solver", arguments.choice("solver", solver, get_args(Solver))),
    )


def _reporting(callback: Callable[[float, float], None] | None, total_ticks: int) -> Callable[[float], None]:
    """Return a function that adds up generated ticks, and calls `callback` with the sum and the total in seconds."""
    done = 0.0

    def worked(ticks: float) -> None:
        nonlocal done
        done += ticks
        if callback is not None:
            callback(done / TICKS_PER_SECOND, total_ticks / TICKS_PER_SECOND)

    return worked


def _require_inputs(task: str, inputs: Mapping[str, object]) -> None:
    """Raise UsageFault if an input of the task is missing, or if the user gives an input that the task does not use."""
    passed = {name for name, value in inputs.items() if value is not None}
    wanted = set(TASKS[task].conditions)
    if passed != wanted:
        raise UsageFault(
            f"{task}: expected {' and '.join(sorted(wanted)) or 'no input'}, found "
            f"{' and '.join(sorted(passed)) or 'none'}; pass exactly the inputs of the task"
        )


def _item(conditions: Sequence[Condition], seconds: float | None, reading: Reading) -> Input:
    seconds = None if seconds is None else arguments.number("seconds", seconds, 1 / TICKS_PER_SECOND)
    if conditions:
        return cut_input(Input("input", 0, tuple(conditions)), seconds, reading)
    if seconds is None:
        raise UsageFault(
            "seconds: expected a number of at least 0.1 for samples without an input, found none; give a length, "
            "such as seconds=20"
        )
    return cut_input(Input("unconditional", int(seconds * TICKS_PER_SECOND + 1e-6), ()), None, reading)


def _names_file(text: str) -> bool:
    """Return True if a text is the path of an existing file or looks like a path; False for words to speak."""
    if "\n" in text or "\0" in text or len(text) > _LONGEST_PATH:
        return False
    return Path(text).suffix.lower() in _TEXT_ENDINGS or _PATH.fullmatch(text) is not None or os.path.isfile(text)


def _checked_words(value: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """Check words with times and sort them by time. Return them, and warnings; raise UsageFault for invalid words."""
    if isinstance(value, Mapping | bytes) or not isinstance(value, Iterable):
        raise UsageFault(f"text: expected a text, a file or words, found {type(value).__name__}")
    try:
        words, notes = words_in_order([WordInterval.of(item) for item in value])
    except (ValueError, RecordingFault) as error:
        raise UsageFault(f"text: word {error}; correct the words or their times") from error
    found = [{"word": one.word, "start": one.start, "end": one.end} for one in words]
    return found, [f"{note.code}: {note.found}" for note in notes]


def _array(name: str, value: Array) -> npt.NDArray[Any]:
    """Convert a tensor on any device to a NumPy array, return an array unchanged; raise UsageFault for other types."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray):
        raise UsageFault(f"{name}: expected a path, an array or a tensor, found {type(value).__name__}")
    return value


def _audio(audio: Path | str | Array, rate_hz: float | None, loudness: Loudness) -> Condition:
    if isinstance(audio, Path | str):
        if rate_hz is not None:
            raise UsageFault(
                "audio_rate_hz: expected only with an array, found it with a file, which states its rate; remove "
                "audio_rate_hz"
            )
        return read_audio(Path(audio), None, loudness)
    samples = _array("audio", audio)
    if rate_hz is None:
        raise UsageFault(
            "audio: expected the sample rate of the array, found none; give the rate, such as audio_rate_hz=16000"
        )
    rate_hz = arguments.integer("audio_rate_hz", rate_hz, 1)
    if samples.dtype in {np.dtype(np.int16), np.dtype(np.int32)}:
        samples = samples / np.float32(-np.iinfo(samples.dtype).min)
    if samples.ndim == 2 and samples.shape[0] <= _MAX_CHANNELS < samples.shape[1]:
        samples = samples.T
    channels = samples.shape[1] if samples.ndim == 2 else 1
    if samples.ndim not in {1, 2} or samples.dtype.kind != "f" or not 1 <= channels <= _MAX_CHANNELS < len(samples):
        raise UsageFault(
            "audio: expected floats, int16 or int32 of shape (N,), (N, channels) or (channels, N), with at most "
            f"{_MAX_CHANNELS} channels and more samples than that, found {samples.dtype} of "
            f"{tuple(samples.shape)}; convert it"
        )
    loudest = float(np.abs(samples).max())  # NaN is refused when samples are read
    if loudest > LOUDEST:
        raise UsageFault(
            f"audio: expected floats in [−1, 1], found some up to {loudest:g}; divide them by full scale, such as 32768"
        )
    digest = sha256_hex(np.ascontiguousarray(samples).tobytes())
    return audio_condition(log_mel_of_samples(samples, rate_hz, None, loudness), "audio", "audio", digest)


def _gesture(gesture: Path | str | Array, rate_hz: float | None, wanted: int) -> Condition:
    """Create the gesture stream of an input, for a model with `wanted` channels.

    Jaw and eyes are absent if an array has no channels for them.
    """
    rate_hz = None if rate_hz is None else arguments.number("motion_rate_hz", rate_hz, 1)
    if isinstance(gesture, Path | str):
        return read_gesture(Path(gesture), None, rate_hz, wanted)
    if rate_hz is not None:
        raise UsageFault(
            "motion_rate_hz: expected only with a motion file, found it with an array, whose channels are at 30 Hz; "
            "remove motion_rate_hz"
        )
    channels = _array("gesture", gesture)
    sizes = get_args(GestureChannels)
    if channels.ndim != 2 or channels.shape[1] not in sizes or len(channels) < FRAMES_PER_TICK:
        raise UsageFault(
            f"gesture: expected channels (3 frames or more, {' or '.join(map(str, sizes))}), found an array "
            f"{channels.shape}; give such channels, or a motion file"
        )
    if channels.dtype.kind != "f" or not np.isfinite(channels).all():
        raise UsageFault(
            f"gesture: expected finite floats, found other values in an array of {channels.dtype}; correct the values"
        )
    array = np.ascontiguousarray(channels, np.float32)
    ticks = len(array) // FRAMES_PER_TICK
    digest = sha256_hex(array.tobytes())
    lacking = frozenset({"jaw_eyes"} if array.shape[1] < wanted else ())
    array = np.pad(array[:, :wanted], ((0, 0), (0, max(0, wanted - array.shape[1]))))
    return Condition("gesture", "gesture", ticks, Held(array), "gesture", digest, absent=lacking)
