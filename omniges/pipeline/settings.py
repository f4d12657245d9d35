"""Settings and results of a preprocess run and of the conversion of one recording.

`omniges --help` imports this module, so slow packages are imported only for type checking.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar

from omniges.arguments import require_file_names
from omniges.errors import ExitCode, Finding, UsageFault
from omniges.features import timebase
from omniges.options import about, check, declared, motion_rate_option, option
from omniges.shards.schema import Split

if TYPE_CHECKING:
    from omniges.shards.dataset import Partial
    from omniges.shards.manifest import ManifestRow
    from omniges.storage.remote import Location

DEFAULT_CORPUS: Final = "beat2"
MAX_FILE_BYTES: Final = 1 << 30  # largest size of one input file
_RAY_ADDRESS: Final = re.compile(r"auto|local|[^\s:/]+:[0-9]{1,5}|\[[0-9a-fA-F:]+\]:[0-9]{1,5}", re.ASCII)
Stored = TypeVar("Stored")


def size_bytes(flag: str, text: str) -> int:
    """Return the number of bytes in a size such as ``256MB``, ``1.5GiB`` or ``1000000``.

    Args:
        flag: Name of the flag, shown in error messages.
        text: Size with an optional unit.

    Returns:
        Size in bytes.

    Raises:
        UsageFault: The text is not a size.
    """
    units = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?)?b?", text.strip().lower())
    if match is None:
        raise UsageFault(f"{flag} {text}: expected a size such as 256MB or 1GiB")
    return int(float(match[1]) * units[match[2] or ""])


@declared
@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Filters that select recordings, and names of the input folders.

    dataset.json contains all fields of this class, and one hash of all settings that affect the output bytes.
    """

    speakers: tuple[str, ...] = option(
        (), "Convert only these speakers, by id (2) or name (scott).", commas=True, shown="all", panel="Selection"
    )
    languages: tuple[str, ...] = option(
        (), "Convert only these languages: english, chinese, spanish, japanese.", commas=True, shown="all"
    )
    include: tuple[str, ...] = option(
        (),
        "Convert only recordings whose stem matches one of these shell patterns, such as 2_*; case-sensitive.",
        commas=True,
        shown="all",
    )
    splits: tuple[Split, ...] = option(
        (), "Convert only these splits: train, val, test, additional.", "--split", commas=True, shown="all"
    )
    wav_dir: str | None = option(
        None,
        "Folder of WAV files: its name beside the other folders of the data set, or its path from --root.",
        shown="wave16k",
        panel="Input folders",
    )
    gesture_dir: str | None = option(
        None,
        "Folder of NPZ files: its name beside the other folders of the data set, or its path from --root.",
        shown="speakers_1234_smplx_neutral_npz, else smplxflame_30",
    )
    text_dir: str | None = option(
        None,
        "Folder of TextGrid files: its name beside the other folders of the data set, or its path from --root.",
        shown="word, else textgrid",
    )

    def __post_init__(self) -> None:
        """Refuse unknown splits; normalise the paths of folders, and convert patterns to composed Unicode (NFC)."""
        check(self)
        for name in ("wav_dir", "gesture_dir", "text_dir"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, os.path.normpath(getattr(self, name)))
        object.__setattr__(self, "include", tuple(unicodedata.normalize("NFC", each) for each in self.include))


@declared
@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertSettings:
    """Settings that affect the content of a sample.

    dataset.json contains all fields of this class, and one hash of all settings that affect the output bytes.
    """

    loudness: Literal["none", "peak"] = option(
        "none",
        "Loudness normalization before the mel; peak scales the waveform so that its largest absolute value is 0.5.",
        panel="Conversion",
    )
    keep_audio: bool = option(
        False, "Store the complete 16 kHz waveform in the shards too, bit-exactly.", "--keep-audio/--no-keep-audio"
    )
    max_length_mismatch_s: float | None = option(
        None,
        "Reject a recording whose audio and motion differ in length by more than this many seconds.",
        "--max-length-mismatch",
        shown=f"{timebase.MAX_AUDIO_LONGER_S:g} if the audio is longer, {timebase.MAX_MOTION_LONGER_S:g} if the motion "
        "is longer",
        minimum=0,
    )
    motion_rate_hz: float | None = motion_rate_option()
    word_tier: str | None = option(None, "Name of the word tier in the TextGrids.", shown="words or word")

    def __post_init__(self) -> None:
        """Refuse values out of range; the error names the flag."""
        check(self)


@dataclass(frozen=True, slots=True)
class Cut:
    """Seconds cut from audio and motion to make them equally long, and numbers of words dropped and shortened."""

    audio_s: float
    motion_s: float
    words_dropped: int
    words_clipped: int


@dataclass(frozen=True, slots=True)
class Sample(Generic[Stored]):
    """A converted recording that is not yet in a shard of the new set.

    The member offsets in `row` count from the start of `segment`.
    """

    row: ManifestRow
    segment: Stored  # tar members: buffers, bytes from a worker, or a position in an earlier shard
    notes: tuple[Finding, ...]
    partials: tuple[Partial, ...] | None  # only for train samples, in the order of `STATISTICS`
    words: Counter[str]  # only for train samples
    cut: Cut


@dataclass(frozen=True, slots=True)
class Rejected:
    """An unusable recording, with all reasons and the digests of the files that were read."""

    findings: tuple[Finding, ...]
    sources: dict[str, tuple[str, str]]  # modality -> (path relative to the root, sha256)


@declared
@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessSettings:
    """Settings of `omniges preprocess`.

    dataset.json contains the settings that affect the output bytes, and a hash of these settings.
    """

    root: Path = field(metadata=about("Folder of the data set.", panel="Input and output"))
    output_dir: str | Path = field(
        default=Path("shards"),
        repr=False,  # a URL may contain credentials
        metadata=about(
            "Folder for the shards, or s3://BUCKET/FOLDER; created if absent. A shard set in it is replaced; files of "
            "other names are kept.",
            "--output-dir",
            "-o",
            was=("out",),
            metavar="DIR",
        ),
    )
    corpus: str | None = option(None, "Kind of data set, such as beat2.", shown="guessed from the folder")
    split_csv: Path | None = option(
        None,
        "Split list with the columns id and type, in place of the data set's train_test_split.csv.",
        shown="the data set's own",
    )
    allow_roots: tuple[Path, ...] = option(
        (), "Folder outside of the root that links may lead to; may be repeated.", "--allow-root"
    )
    shard_bytes: int = option(
        256 << 20,
        "Target size of a shard, such as 256MiB; units kB, MB, GB (powers of 1000) and KiB, MiB, GiB (powers of 1024).",
        "--shard-size",
        metavar="SIZE",
        shown="256MiB",
        parse=size_bytes,
        minimum=1,
    )
    convert: ConvertSettings = field(default_factory=ConvertSettings)
    selection: Selection = field(default_factory=Selection)
    engine: Literal["local", "ray"] = option(
        "local", "Where recordings are converted: on this machine, or on the nodes of a Ray cluster.", panel="Execution"
    )
    ray_address: str | None = option(
        None,
        "Address of the Ray cluster, HOST:PORT; auto: one that runs on this machine; local: a new one.",
        metavar="ADDRESS",
        shown="RAY_ADDRESS, else a cluster on this machine, else local",
    )
    num_workers: int = option(
        0,
        "Number of worker processes, per node with --engine ray; 0: one for each available core.",
        minimum=0,
        was=("workers",),
    )
    deadline_s: float = option(
        120.0, "Longest time a worker may spend on one recording, in seconds.", "--deadline", above=0
    )
    max_rejected: float = option(
        0.05,
        "Share of rejected recordings, 0 to 1, above which the exit code is 1; the shards are completed either way.",
        minimum=0,
        maximum=1,
    )
    force: bool = option(False, "Start over, even in a folder that was made with other settings.", "--force/--no-force")
    allow_removal: bool = option(False, "Let an update remove more than 10 % of the existing samples.")
    run_log: Path | None = option(
        None,
        "Log file to which times, retries and exits of workers are appended.",
        shown="OUTPUT_DIR.run.jsonl beside OUTPUT_DIR; in the current folder for a URL",
    )
    work_dir: Path = option(
        Path("~/.cache/omniges"), "Folder for up to five shards before their upload, if --output-dir is a URL."
    )

    def __post_init__(self) -> None:
        """Refuse invalid values; the error names the flag."""
        check(self)
        if self.ray_address is not None and self.engine != "ray":
            raise UsageFault(
                f"--ray-address {self.ray_address}: expected --engine ray, found --engine {self.engine}; add "
                "--engine ray, or remove --ray-address"
            )
        if self.ray_address is not None and not _RAY_ADDRESS.fullmatch(self.ray_address):
            raise UsageFault(
                f"--ray-address {self.ray_address}: expected HOST:PORT, auto or local; for the cluster of this "
                "machine, give auto"
            )
        location = self.location
        if location.path is not None:
            require_file_names("--output-dir", str(location.path))
            object.__setattr__(self, "output_dir", location.path)
            if not location.path.absolute().name:
                raise UsageFault(f"--output-dir {location}: expected a folder with a name; choose another folder")
            return
        from omniges.storage.bucket import MAX_OBJECT_BYTES, require_writable

        require_writable(location, "--output-dir")
        if self.shard_bytes + MAX_FILE_BYTES > MAX_OBJECT_BYTES:  # the last sample may exceed the target size
            largest = MAX_OBJECT_BYTES - MAX_FILE_BYTES
            raise UsageFault(
                f"--shard-size {self.shard_bytes}: expected at most {largest} bytes if --output-dir is a URL, because "
                "a store copies each shard in one request; choose a smaller size"
            )

    @property
    def location(self) -> Location:
        """Location of the output folder."""
        from omniges.storage.remote import parse_location

        return parse_location(str(self.output_dir))

    @property
    def local_workers(self) -> int:
        """Number of processes or threads on this machine: `num_workers`, or one for each available core."""
        return self.num_workers or len(os.sched_getaffinity(0))

    @property
    def log_path(self) -> Path:
        """Path of the run log; by default beside the output folder, or in the current folder if the output is a URL."""
        out = self.location.path or Path(self.location.address.rstrip("/").rpartition("/")[2])
        out = out if out.name else out.absolute()
        return self.run_log or out.with_name(out.name + ".run.jsonl")

    def document(self) -> dict[str, Any]:
        """Return the settings that affect the output bytes. The corpus is included only if it is not BEAT2."""
        other = {} if self.corpus in {None, DEFAULT_CORPUS} else {"corpus": self.corpus}
        return other | {
            "selection": asdict(self.selection),
            "convert": asdict(self.convert),
            "shard_bytes": self.shard_bytes,
            "split_source": "--split-csv" if self.split_csv else "data set",
            "allow_roots": [str(folder) for folder in self.allow_roots],
        }


@dataclass(frozen=True, slots=True)
class Summary:
    """Result of a preprocess run: numbers of recordings by outcome, lengths in seconds, and paths of the outputs."""

    out: str | Path
    stems: int
    converted: int
    rejected: int
    noted: int  # number of converted recordings with at least one note
    lost: dict[str, str]  # stem -> reason
    finding_counts: dict[str, int]  # code -> number of recordings, or of findings about the data set
    examples: dict[str, str]  # code -> text of one finding
    splits: dict[str, tuple[int, float]]  # split -> number of samples, seconds
    cut_audio_s: float
    cut_motion_s: float
    words_dropped: int
    shards: int
    shard_bytes: int
    elapsed_s: float
    converted_s: float  # length of all samples
    computed_s: float  # length of the samples that this run converted
    max_rejected: float
    report: str | Path | None
    run_log: Path
    manifest_hash: str | None
    reused: int = 0  # number of results reused from earlier runs, because the inputs were unchanged
    unchanged: bool = False  # the set was complete and the inputs unchanged, so nothing was done
    interruptions: tuple[str, ...] = ()  # a text for each lost worker or machine; its work was repeated

    @property
    def rejected_share(self) -> float:
        """Number of rejected stems divided by the number of all stems; 0 without stems."""
        return self.rejected / self.stems if self.stems else 0.0

    @property
    def exit_code(self) -> ExitCode:
        """Exit code: 1 if a recording was lost, or if `rejected_share` exceeds `max_rejected`; otherwise 0."""
        failed = bool(self.lost) or self.rejected_share > self.max_rejected
        return ExitCode.FINDINGS if failed else ExitCode.OK
