"""Sample a model and decode its latents. Conditions may have any length; results are arrays in the format of shards.

`generate`, `OmnigesPipeline` and validation use this module. Arrays are returned as `Part` objects in order of time, so
memory does not grow with length. Latents are the exception, because a codec needs all latents at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import torch

from omniges.codecs.base import BOTH_ENDS, Codec, End, FrameCodec, QuantisingCodec, WindowCodec, decode_latents
from omniges.codecs.registry import load_same_codec
from omniges.conditions.base import (
    Array,
    ConditionStream,
    Recording,
    ValueOf,
    constant,
    full_name,
    parsed_value,
    window_value,
)
from omniges.data.sequence import LoaderState, trained_on
from omniges.errors import UsageFault, first_of
from omniges.features.text_tokens import TextTokenCodec
from omniges.generation.inputs import Condition, Input, Reading, latents_of
from omniges.generation.long_form import TicksOf, Timeline, WindowSettings, sample_timelines, window_spans
from omniges.generation.settings import Sources, Weights
from omniges.model.checkpoint import SavedCheckpoint, find_checkpoint
from omniges.model.draws import FlowSettings
from omniges.model.flow import FlowModel
from omniges.model.speaking_rate import SpeakingRate
from omniges.model.spec import ModelIdentity, load_model
from omniges.model.streams import StreamName
from omniges.model.tasks import TASKS, SamplingSettings, Task
from omniges.registry import foreign
from omniges.shards import schema
from omniges.shards.latents import CodecEntry, FrameEntry, WindowEntry
from omniges.shards.present import STREAM_CHANNELS_OF, absent_parts, rest_channels
from omniges.shards.reader import ShardFolder

SETTINGS_FILE: Final = "settings.json"
STATE_FILE: Final = "state.json"
PROVENANCE_FILE: Final = "provenance.json"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model loaded from a checkpoint, with the identity of the model and the checkpoint on disk."""

    model: FlowModel
    identity: ModelIdentity
    saved: SavedCheckpoint
    weights: Weights

    def require_trained(self, task: str) -> None:
        """Raise UsageFault if the model was not trained on a task.

        Also raise it if the task needs a stream that every training sample lacks.
        """
        trained = trained_tasks(self.saved)
        if trained is not None and task not in trained:
            raise UsageFault(
                f"{self.saved.path}: expected a task on which it was trained ({', '.join(trained)}), found {task}; "
                "choose another task"
            )
        lost = self.identity.never_had(TASKS[task])
        if lost:
            raise UsageFault(
                f"{self.saved.path}: expected a task on which it was trained, found {task}, for which no sample "
                f"had {' or '.join(lost)}; choose another task"
            )

    def knows(self, shards: Path) -> bool | None:
        """Return whether the model was trained on a shard folder; None if the checkpoint does not record it."""
        state = loader_state(self.saved)
        return None if state is None else bool(trained_on(state, shards, *self.identity.read_by_training))

    def facts(self) -> dict[str, Any]:
        """Return the description of the model that is stored in records."""
        return {
            "checkpoint": str(self.saved.path),
            "step": self.saved.step,
            "preset": self.identity.preset,
            "gesture_channels": self.identity.config.gesture_channels,
            "weights": self.weights,
            "codecs": {
                stream: {"name": entry.name, "fingerprint": entry.fingerprint}
                for stream, entry in self.identity.codecs.items()
            },
            "sha256": {file: entry["sha256"] for file, entry in self.saved.files.items()},
        }

    def history(self) -> dict[str, bytes]:
        """Return the files of the checkpoint that contain training settings and training state: bytes by file name."""
        return {name: self.saved.content(name) for name in (SETTINGS_FILE, STATE_FILE) if name in self.saved.files}


def loader_state(saved: SavedCheckpoint) -> LoaderState | None:
    """Return the state of the data loader that a checkpoint stores; None if it stores none."""
    return LoaderState.read(saved.fields(STATE_FILE).part("loader")) if STATE_FILE in saved.files else None


def trained_tasks(saved: SavedCheckpoint) -> tuple[str, ...] | None:
    """Return the names of the tasks that the model was trained on; None if the checkpoint does not record them."""
    if SETTINGS_FILE not in saved.files:
        return None
    flow = saved.fields(SETTINGS_FILE).part("flow").read(FlowSettings)
    return tuple(name for name, share in flow.shares.items() if share)


def load(checkpoint: Path, weights: Weights = "ema") -> Loaded:
    """Load the model of a checkpoint or run, on the GPU if there is one.

    Args:
        checkpoint: Folder of the checkpoint or run.
        weights: ``ema`` for the EMA weights, ``last`` for the weights of the last training step.

    Returns:
        The model.

    Raises:
        UsageFault: The folder does not exist, or is the folder of a run without checkpoints.
        DataError: The checkpoint is damaged.
    """
    saved = find_checkpoint(checkpoint)
    model, identity = load_model(saved, weights)
    return Loaded(model.to("cuda" if torch.cuda.is_available() else "cpu"), identity, saved, weights)


class Codecs:
    """The codecs of a model that generates latents; each codec is loaded when it is needed."""

    def __init__(
        self,
        entries: Mapping[StreamName, CodecEntry],
        folders: Sequence[tuple[str, Path]],
        t5_tokenizer: Path | None = None,
        *,
        quantised: bool = True,
        origin: tuple[str, str] = ("--codec", "the checkpoint"),
        device: torch.device | None = None,
    ) -> None:
        """Check the given folders against the codecs of the model, without loading a codec.

        Args:
            entries: Codecs by stream, for the streams stored as latents.
            folders: Name and folder of each codec that the user gives.
            t5_tokenizer: Folder of T5's tokenizer, if the text codec's folder does not contain it.
            quantised: True: quantize latents with the codec's codebooks before decoding. Codecs without codebooks
                ignore this.
            origin: Two names for errors: the option that gives the folders, and the file that contains the entries.
            device: Device of the codecs; None: the GPU if there is one.

        Raises:
            UsageFault: A folder is given for a codec that the model does not have, two folders are given for one codec,
                or a tokenizer is given for a model without a text codec.
        """
        self.entries, self._folders, self._t5_tokenizer = dict(entries), dict(folders), t5_tokenizer
        self._quantised, self._origin, self._device = quantised, origin, device
        self._loaded: dict[StreamName, Codec] = {}
        self._ends: dict[StreamName, frozenset[End]] = {}  # directions (encode, decode) for which a codec is loaded
        names = [entry.name for entry in self.entries.values()]
        for name, _ in folders:
            if name not in names:
                raise UsageFault(
                    f"{origin[0]} {name}: expected codecs of the model ({', '.join(names) or 'none'}), found another "
                    "codec; remove this codec"
                )
        given = [name for name, _ in folders]
        if twice := [name for name in given if given.count(name) > 1]:
            raise UsageFault(
                f"{origin[0]} {twice[0]}: expected each codec once, found it twice; give one folder for each codec"
            )
        if t5_tokenizer is not None and "text" not in self.entries:
            raise UsageFault("--t5-tokenizer: expected a model with a text codec, found none; remove --t5-tokenizer")

    def require(self, tasks: Iterable[Task], sources: Sources) -> None:
        """Load the codecs that tasks need, so that errors are raised before sampling starts.

        Args:
            tasks: The tasks.
            sources: Inputs of the tasks. If shards contain latents of a condition, no codec is needed to encode it.

        Raises:
            UsageFault: The folder of a needed codec is not given, or contains another codec.
            DataError: The folder of a needed codec contains no codec.
        """
        wanted = list(tasks)
        conditions = {stream for task in wanted for stream in task.conditions}
        targets = {stream for task in wanted for stream in task.targets}
        for stream, entry in self.entries.items():
            of_files = stream in conditions
            if of_files and sources.from_shards and sources.shards is not None:
                of_files = latents_of(ShardFolder(sources.shards), entry) is None
            ends: tuple[tuple[End, bool], ...] = ("encode", of_files), ("decode", stream in targets)
            if wanted_ends := [end for end, needed in ends if needed]:
                self.load(stream, *wanted_ends)

    def conditions(self, item: Input, windows: WindowSettings) -> tuple[dict[StreamName, TicksOf], tuple[str, ...]]:
        """Return the conditions of an input. Conditions of streams stored as latents are encoded.

        Args:
            item: The input.
            windows: Lengths of the windows. Text stored as latents is encoded window by window.

        Returns:
            By stream, a function that gives the arrays or latents of a range of ticks; and warnings.
        """
        found: dict[StreamName, TicksOf] = {}
        warnings: list[str] = []
        for condition in item.conditions:
            entry = self.entries.get(condition.stream)
            if isinstance(entry, WindowEntry):
                found[condition.stream], lost = self._texts_of(condition, item.ticks, window_spans(item.ticks, windows))
                warnings += lost
            elif isinstance(entry, FrameEntry):
                found[condition.stream] = self._frames_of(condition, entry, item.ticks)
            else:
                found[condition.stream] = condition.array
        return found, tuple(warnings)

    def through_codes(self, targets: Sequence[StreamName]) -> bool | None:
        """Return whether latents are quantized with codebooks before decoding.

        If the codecs of all targets lack codebooks, return None.
        """
        codecs = [self.load(stream, "decode") for stream in targets if stream in self.entries]
        return self._quantised if any(isinstance(codec, QuantisingCodec) for codec in codecs) else None

    def _frames_of(self, condition: Condition, entry: FrameEntry, ticks: int) -> TicksOf:
        """Return a function that gives the latents of a condition in a range of ticks.

        The latents come from the shards. If the condition has no latents from shards, its array is encoded.
        """
        rows = entry.rows
        latents = condition.latents
        if latents is None:
            codec = cast("FrameCodec", self.load(condition.stream, "encode"))
            latents = codec.encode(np.asarray(condition.array(0, ticks), np.float32))
        return lambda first, count: latents[rows(first) : rows(first) + rows(count)]

    def _texts_of(
        self, condition: Condition, ticks: int, spans: Sequence[tuple[int, int]]
    ) -> tuple[TicksOf, list[str]]:
        """Return a function that gives the latents of a window's text, and warnings about lost text.

        The latents of a window are N vectors of V channels, an array (N, V). The codec fixes N and V.

        Text is lost if it is too long for the codec, or if the codec cannot encode some letters.
        """
        codec = cast("WindowCodec", self.load(condition.stream, "encode"))
        texts = codec.texts(condition.words, ticks, spans)
        shape = codec.entry.latents, codec.entry.channels
        latents = dict(zip(spans, codec.encode_texts(texts).reshape(-1, *shape), strict=True))
        lost = codec.lost(texts)
        cut, unknown = sum(one.cut for one in lost), sum(one.unknown for one in lost)
        of = f"of {len(texts)} windows of text"
        warnings = [f"{cut} {of} were cut: they are longer than {codec.entry.name} can read"] if cut else []
        warnings += (
            [f"{unknown} {of} contain letters that {codec.entry.name} cannot encode, which are lost"] if unknown else []
        )
        return lambda first, count: latents[first, count], warnings

    @property
    def untimed_text(self) -> bool:
        """True if text is stored as latents of complete windows, which have no word timings."""
        return isinstance(self.entries.get("text"), WindowEntry)

    def windows_of_text(self, ticks: int, windows: WindowSettings) -> list[tuple[int, int]] | None:
        """Return the windows for which texts are generated; None if text is stored as tokens.

        Args:
            ticks: Length of the timeline.
            windows: Lengths of the windows.

        Returns:
            First tick and length of each window, or None.
        """
        return window_spans(ticks, windows) if self.untimed_text else None

    def has_folder(self, stream: StreamName) -> bool:
        """Return whether the folder of a stream's codec was given."""
        return stream in self.entries and self.entries[stream].name in self._folders

    def missing(self, task: Task) -> StreamName | None:
        """Return the first target that needs a codec whose folder was not given, or None."""
        return next((name for name in task.targets if name in self.entries and not self.has_folder(name)), None)

    def decoded(self, stream: StreamName, array: npt.NDArray[Any]) -> Any:
        """Decode generated latents; return other arrays unchanged.

        Args:
            stream: The stream.
            array: Generated rows.

        Returns:
            Arrays in the format of shards, or the `SpokenText` of each window.
        """
        return decode_latents(self.load(stream, "decode"), array) if stream in self.entries else array

    def load(self, stream: StreamName, *ends: End) -> Codec:
        """Load the codec of a stream for at least the given directions, if it is not loaded yet.

        Args:
            stream: The stream.
            *ends: Directions: ``encode``, ``decode`` or both.

        Returns:
            The codec.

        Raises:
            UsageFault: The folder of the codec is not given, or contains another codec.
            DataError: The folder contains no codec.
        """
        there = self._ends.get(stream, frozenset())
        if not there.issuperset(ends):
            entry = self.entries[stream]
            if entry.name not in self._folders:
                raise UsageFault(
                    f"--codec: expected a folder for {entry.name}, because the model's {stream} is latents of this "
                    f"codec, found none; give --codec {entry.name}=FOLDER"
                )
            self._loaded.pop(stream, None)  # frees memory before the codec is loaded again
            self._ends.pop(stream, None)
            of_text = isinstance(entry, WindowEntry)  # only text codecs are large enough to load by direction
            wanted = there | frozenset(ends) if of_text else BOTH_ENDS
            codec = load_same_codec(
                entry,
                self._folders[entry.name],
                *self._origin,
                self._device,
                t5_tokenizer=self._t5_tokenizer,
                ends=wanted,
            )
            if isinstance(codec, QuantisingCodec):
                codec = codec.decoding(quantised=self._quantised)
            self._loaded[stream], self._ends[stream] = codec, wanted
        return self._loaded[stream]


@dataclass(frozen=True, slots=True)
class Part:
    """Generated rows of one timeline, which follow the rows of the previous `Part` of this timeline."""

    number: int  # index of the timeline
    rows: Mapping[StreamName, npt.NDArray[Any]]  # not decoded yet; the last part contains all latents
    last: bool
    codecs: Codecs

    def arrays(self) -> dict[StreamName, Any]:
        """Decode the rows.

        Returns:
            By stream, arrays in the format of shards; for text stored as latents, the `SpokenText` of each window.

        Raises:
            DataError: The codec cannot decode the latents.
        """
        return {name: self.codecs.decoded(name, rows) for name, rows in self.rows.items()}


class Sampler:
    """A model with its tokenizer and codecs, which samples timelines."""

    def __init__(
        self,
        model: FlowModel,
        identity: ModelIdentity,
        codecs: Codecs,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """Create a sampler from a model and its codecs.

        Args:
            model: Model in evaluation mode.
            identity: Identity of the model.
            codecs: Codecs of the model's streams that are stored as latents.
            autocast: Function that returns a context with the precision of the model; codecs set their own precision.
        """
        self.model, self.identity, self.codecs, self.autocast = model, identity, codecs, autocast
        self.token_codec = TextTokenCodec(identity.tokenizer)

    def speaker_number(self, name: str | None, *, named: bool) -> int:
        """Return the index of a speaker in the model's speaker embeddings; 0 means unknown.

        Args:
            name: Name of the speaker, or None.
            named: True: the user gave the name, so an unknown name is refused. False: an unknown name gets 0.

        Returns:
            The index: 0, or 1 + the position of the name in the model's list of speakers.

        Raises:
            UsageFault: The model does not know a speaker that the user named.
        """
        speakers = self.identity.speakers
        if name is None:
            return 0
        if name in speakers:
            return 1 + speakers.index(name)
        if named:
            raise UsageFault(
                f"--speaker {name}: expected a speaker of the model ({first_of(speakers, 5)}), found another "
                "speaker; choose one of these speakers"
            )
        return 0

    def absent_from(self, targets: Sequence[StreamName]) -> tuple[schema.Part, ...]:
        """Return the parts of the body that do not move in generated motion, because all training samples lacked them.

        The result is empty if gesture is not a target or is stored as latents.
        """
        if "gesture" not in targets or "gesture" in self.codecs.entries:
            return ()
        return tuple(part for part in absent_parts(self.model.trained) if part in STREAM_CHANNELS_OF)

    def at_rest(self, targets: Sequence[StreamName]) -> tuple[schema.Part, ...]:
        """Return the parts that do not move in generated motion.

        If the model has no channels for jaw and eyes, they are among these parts.
        """
        jaw_eyes: tuple[schema.Part, ...] = () if self.identity.config.with_jaw_eyes else ("jaw_eyes",)
        return (*self.absent_from(targets), *jaw_eyes)

    def absence_warnings(self, targets: Sequence[StreamName]) -> tuple[str, ...]:
        """Return warnings about the parts that `absent_from` returns."""
        absent = self.absent_from(targets)
        return (f"at rest, because no training sample had it: {', '.join(absent)}",) if absent else ()

    def windows(self, overlap_ticks: int | None, task: str) -> WindowSettings:
        """Return the length and overlap of windows for a task. A window is as long as in training.

        Args:
            overlap_ticks: Overlap of successive windows. None: a quarter of a window, or 0 for text stored as latents.
            task: Name of the task.

        Returns:
            The settings of windows.
        """
        window, multiple = self.identity.window_ticks, self.identity.tick_multiple
        disjoint = any(self.model.stream(name).complete_windows for name in TASKS[task].targets)
        usual = 0 if disjoint else window // 4 - window // 4 % multiple
        overlap = usual if overlap_ticks is None else overlap_ticks
        return WindowSettings(window_ticks=window, overlap_ticks=overlap, tick_multiple=multiple, disjoint=disjoint)

    def reading(self, folder: Path | None = None, recorded: tuple[StreamName, ...] = ()) -> Reading:
        """Return the settings for reading inputs for the model.

        Args:
            folder: Folder of temporary files, see `Spool`.
            recorded: Streams of which the ground truth is also read from shards, to draw it beside the results.

        Returns:
            The settings.

        Raises:
            DataError: The checkpoint's speaking rate is damaged.
        """
        identity = self.identity
        token_codec = None if "text" in identity.codecs else self.token_codec
        rate = SpeakingRate.from_json(identity.speaking_rate) if identity.speaking_rate else None
        return Reading(
            token_codec,
            identity.tick_multiple,
            identity.loudness,
            identity.codecs,
            folder,
            recorded,
            rate,
            identity.config.gesture_channels,
        )

    def sample(
        self,
        timelines: Sequence[Timeline],
        targets: Sequence[StreamName],
        seed: int,
        windows: WindowSettings,
        settings: SamplingSettings,
        worked: Callable[[float], None] = lambda _ticks: None,
    ) -> Iterator[Part]:
        """Sample the targets of several timelines of any lengths, and yield the generated rows in order of time.

        Args:
            timelines: Lengths and conditions.
            targets: Streams to generate.
            seed: Seed of the noise, which is keyed by seed, sample and tick.
            windows: Lengths of the windows.
            settings: Steps and solver.
            worked: Function called after each step with a number of ticks. The sum of these numbers is the number of
                all generated ticks.

        Yields:
            `Part` objects with the generated rows. Latents of a timeline are all in its last `Part`.

        Raises:
            DataError: Generated text is NaN or infinite.
        """
        left = [timeline.ticks for timeline in timelines]
        latents: dict[tuple[int, StreamName], list[npt.NDArray[Any]]] = {}
        generated = sample_timelines(self.model, timelines, targets, seed, windows, settings, worked)
        at_rest = [STREAM_CHANNELS_OF[part] for part in self.absent_from(targets)]
        rest = rest_channels(self.model.gesture_channels)
        while True:
            with self.autocast():  # not around the yield, which would change the caller's precision
                found = next(generated, None)
            if found is None:
                return
            number, tensors, ticks = found
            left[number] -= ticks
            rows = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
            for columns in at_rest:
                rows["gesture"][:, columns] = rest[columns]
            for name in [name for name in rows if name in self.codecs.entries]:
                latents.setdefault((number, name), []).append(rows.pop(name))
                if not left[number]:
                    rows[name] = np.concatenate(latents.pop((number, name)))
            yield Part(number, rows, not left[number], self.codecs)


def joined(parts: Iterable[Part]) -> list[dict[StreamName, Any]]:
    """Decode and concatenate the `Part` objects of each timeline; return each timeline's complete arrays by stream.

    All arrays are kept in memory. Raise DataError if a codec cannot decode the latents.
    """
    found: dict[int, dict[StreamName, list[Any]]] = {}
    for part in parts:
        own = found.setdefault(part.number, {})
        for name, rows in part.arrays().items():
            own.setdefault(name, []).append(rows)
    return [
        {name: rows[0] if len(rows) == 1 else np.concatenate(rows) for name, rows in own.items()}
        for _, own in sorted(found.items())
    ]


# --- values of condition streams: values that the user gives, otherwise values of the recording

Asked = Mapping[str, Array | None]
"""Values that the user gives, by name of the condition stream; None: generate without this condition."""


def asked_values(streams: Mapping[str, ConditionStream], given: Sequence[tuple[str, Any]], origin: str) -> Asked:
    """Convert the values that the user gives for condition streams to arrays.

    Args:
        streams: Condition streams of the model.
        given: Names and values, as text or as Python values.
        origin: Flag or argument that gives the values, shown in error messages.

    Returns:
        For each given name, the value as an array of the stream's shape. None: the user gave None or ``none``, so the
        model generates without this condition.

    Raises:
        UsageFault: A stream is unknown to the model or given twice, or a value is unknown.
    """
    found: dict[str, Array | None] = {}
    for name, value in given:
        if name not in streams:
            held = (
                f"choose among {', '.join(streams)}"
                if streams
                else "remove the flag, because the model has no condition streams"
            )
            raise UsageFault(f"{origin} {name}: expected a condition stream of the model, found another name; {held}")
        if name in found:
            raise UsageFault(f"{origin} {name}: expected each condition once, found it twice; give one value")
        try:
            found[name] = parsed_value(streams[name], value)
        except UsageFault as fault:
            raise UsageFault(f"{origin} {fault}") from fault
    return found


def values_of(streams: Mapping[str, ConditionStream], asked: Asked, recording: Recording) -> dict[str, ValueOf]:
    """Return functions that give the value of each condition stream in a window.

    Args:
        streams: Condition streams of the model.
        asked: Values that the user gives, which take precedence.
        recording: Recording whose values are used for the other streams.

    Returns:
        For each stream, a function of a window's first tick and its length in ticks.
    """

    def own(stream: ConditionStream) -> ValueOf:
        return lambda first, ticks: window_value(stream, recording, first, ticks)

    return {name: constant(asked[name]) if name in asked else own(stream) for name, stream in streams.items()}


def shown_values(
    streams: Mapping[str, ConditionStream], values: Mapping[str, ValueOf], spans: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """Return the values of all windows in the format of a record's settings.

    Args:
        streams: Condition streams of the model.
        values: Value of each stream as a function of a window.
        spans: First tick and length of each window, in ticks.

    Returns:
        An empty dictionary if the model has no condition streams. Otherwise a dictionary with the key ``conditions``,
        which contains the values by name of the stream: one value if it is equal in all windows, otherwise a list with
        the value of each window. A window without a value has None.
    """
    found: dict[str, Any] = {}
    for name, stream in streams.items():
        arrays = [values[name](first, ticks) for first, ticks in spans]
        with foreign(full_name(stream), "showing a value"):
            every = [None if array is None else stream.shown(array) for array in arrays]
        found[name] = every[0] if all(one == every[0] for one in every) else every
    return {"conditions": found} if streams else {}
