"""The project's exceptions, finding codes and exit codes.

A *problem* is an error or a notable property that a decoder finds in bytes. It names no file and no recording. A
*finding* is a problem with the names of its file and recording. `CODES` lists every code with its severity, meaning and
remedy. A test compares ``docs/reference/findings.md`` with `CODES`.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future

T = TypeVar("T")


class ExitCode(enum.IntEnum):
    """Exit code of a command. The codes do not change between versions (docs/reference/commands.md)."""

    OK = 0
    FINDINGS = 1
    USAGE = 2
    ENVIRONMENT = 3
    STOPPED = 75
    INTERRUPTED = 130
    TERMINATED = 143


class OmnigesError(Exception):
    """Base class of all errors that are reported to the user without a traceback.

    The text is one line: where the error is, what was expected, what was found, and what to do.
    """

    exit_code = ExitCode.FINDINGS
    on_command_line: str | None = None
    """Text of the error on the command line, if `reword` has changed the text; otherwise None."""

    def reword(self, change: Callable[[str], str]) -> None:
        """Change the text for Python callers. The command line shows the original text, kept in `on_command_line`.

        Args:
            change: Function that takes the current text and returns the new text.
        """
        text = str(self)
        if (changed := change(text)) != text:
            self.on_command_line = self.on_command_line or text
            self.args = (changed, *self.args[1:])


class DataError(OmnigesError):
    """Input or shard data is invalid (exit 1)."""

    exit_code = ExitCode.FINDINGS


class UsageFault(OmnigesError):
    """An argument of a command or function is invalid (exit 2)."""

    exit_code = ExitCode.USAGE


class EnvironmentFault(OmnigesError):
    """The machine prevents the work, for example because the disk is full or a package is missing (exit 3)."""

    exit_code = ExitCode.ENVIRONMENT


@contextmanager
def needs(extra: str, user: str) -> Iterator[None]:
    """Convert a failed import to an EnvironmentFault that names the optional dependencies to install.

    Args:
        extra: Name of the optional dependencies, as in ``pip install 'omniges[EXTRA]'``.
        user: Name of the feature that needs the packages, for the error.

    Yields:
        Nothing; the imports run inside the context.

    Raises:
        EnvironmentFault: A package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "omniges").partition(".")[0] == "omniges":
            raise
        raise EnvironmentFault(
            f"{user}: expected the package {error.name}, found that it is not installed; run pip install "
            f"'omniges[{extra}]'"
        ) from error


def settled(function: Callable[[], T]) -> Future[T]:
    """Call a function, and store its result or exception in a finished future, which another thread can read.

    Args:
        function: Function to call.

    Returns:
        A finished future: `result` returns the result or raises the exception, of any class.
    """
    from concurrent.futures import Future  # noqa: PLC0415 - only programs with threads need it

    future: Future[T] = Future()
    try:
        future.set_result(function())
    except BaseException as error:  # noqa: BLE001 - raised again by the thread that asks for the result
        future.set_exception(error)
    return future


def first_of(texts: Sequence[str], most: int) -> str:
    """Join the first texts of a list for an error, and add the number of other texts: "a, b and 3 more".

    Args:
        texts: The texts.
        most: Largest number of texts to show.

    Returns:
        The texts in one line.
    """
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return f"{', '.join(texts[:most])}{more}"


def grouped_notes(notes: Iterable[tuple[str, str]]) -> list[str]:
    """Return each note once, with the names of its files or clips: "NOTE (a, b and 3 more)".

    Args:
        notes: Pairs of the name of a file or clip, and a note about it.

    Returns:
        One line for each different note.
    """
    names: dict[str, list[str]] = {}
    for name, note in notes:
        names.setdefault(note, []).append(name)
    return [f"{note} ({first_of(list(dict.fromkeys(own)), 3)})" for note, own in names.items()]


_USED_UP: Final = {
    errno.ENOMEM: "memory is used up; close other programs, or use fewer workers or smaller batches",
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine; close other programs",
}


def is_memory_error(error: BaseException) -> bool:
    """Return True if an exception of any library means that memory is exhausted, on the host or on a GPU."""
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator: can't allocate memory" in str(error)
        or "can't start new thread" in str(error)
    )


def fault_of_machine(error: BaseException) -> EnvironmentFault | None:
    """Return the EnvironmentFault for an exception of any library, if the cause is the machine and not the data.

    Args:
        error: An exception.

    Returns:
        The error in one line with its remedy, or None for any other cause. The machine is the cause if memory or disk
        space is used up, a library or package is missing, too many files are open, or no temporary folder is writable.
    """
    text = " ".join(str(error).split())[:_LONGEST_REASON]
    number = errno.ENOMEM if is_memory_error(error) else error.errno if isinstance(error, OSError) else None
    if number in _USED_UP:
        return EnvironmentFault(f"{_USED_UP[number]}{f' ({text})' if text else ''}")
    if "No usable temporary directory" in text:
        return EnvironmentFault(
            f"temporary files: expected a folder for them, found none ({text}); set TMPDIR to a folder that can be "
            "written"
        )
    no_library = isinstance(error, (ImportError, OSError)) and any(words in text for words in _NO_LIBRARY)
    if no_library or isinstance(error, ModuleNotFoundError):
        return EnvironmentFault(
            f"expected a package or library, found that it is missing ({text}); install it, or omniges again"
        )
    return None


def raise_fault_of_machine(error: Exception) -> None:
    """Raise EnvironmentFault if the machine caused an exception.

    Call this before you report the exception as a fault of the data.
    """
    if (fault := fault_of_machine(error)) is not None:
        raise fault from error


_LONGEST_REASON: Final = 200
_NO_LIBRARY: Final = ("cannot open shared object file", "cannot load library", "library not found")
Severity = Literal["rejected", "note"]


@dataclass(frozen=True, slots=True)
class CodeInfo:
    """Severity, meaning and remedy of a finding code."""

    severity: Severity
    meaning: str
    remedy: str


_rejected, _note = partial(CodeInfo, "rejected"), partial(CodeInfo, "note")

CODES: dict[str, CodeInfo] = {
    # --- pairing and paths
    "missing-audio": _rejected(
        "no WAV file has this stem", "add the WAV, or move the recording's other files out of the root folder"
    ),
    "missing-gesture": _rejected(
        "no NPZ file has this stem", "add the NPZ, or move the recording's other files out of the root folder"
    ),
    "missing-text": _rejected(
        "no TextGrid has this stem", "add the TextGrid, or move the recording's other files out of the root folder"
    ),
    "duplicate-stem": _rejected(
        "several files of one modality have this stem, so the right one is unknown", "keep one of them under --root"
    ),
    "path-outside-root": _rejected(
        "the file is a link out of the root folder, and files outside the root are not read",
        "copy the file into the root, or allow its folder with --allow-root",
    ),
    "file-too-large": _rejected("the file is larger than a recording can be", "check where the file comes from"),
    "folder-outside-root": _note(
        "a link to a folder outside the root was not followed, so the files in that folder count as missing",
        "copy the folder into the root, or allow it with --allow-root",
    ),
    "folder-unreadable": _note("the operating system refused to list a folder", "check permissions and the disk"),
    "file-unreadable": _rejected("the operating system refused to read the file", "check permissions and the disk"),
    "stem-too-long": _rejected(
        "the key made from the stem is too long for a tar member name", "shorten the file names of the recording"
    ),
    "stem-not-utf8": _rejected("the file name is not valid UTF-8", "rename the file"),
    "stem-outside-grammar": _note(
        "the stem is not <speaker>_<name>_<rec>_<start>_<end>, so speaker, language, scenario and emotion are unknown",
        "rename the files if those fields matter",
    ),
    "speaker-folder-mismatch": _note(
        "folder and stem name different speakers; the speaker of the stem is used", "move or rename the file"
    ),
    # --- splits
    "split-conflict": _rejected("the split list gives this id two different splits", "keep one row for this id"),
    "split-unknown": _rejected(
        "the split list gives this id a split that is not train, val, test or additional", "correct the row"
    ),
    "split-inferred": _note(
        "no split list names this recording, so a hash of its stem chose between train and val",
        "name the recording in a split list",
    ),
    "split-id-invalid": _note(
        "the split list has an id that cannot be a file stem; the row was ignored", "correct the row"
    ),
    "split-list-unreadable": _note(
        "a split list is not a file under the root (for example, a link out of the root) and was not read",
        "copy the list into the root, allow its folder with --allow-root, or pass the list with --split-csv",
    ),
    "split-id-not-on-disk": _note("the split list names recordings that are not on disk", "add them, or ignore this"),
    "no-train-samples": _note(
        "no recording of the train split was converted: statistics and tokenizer are empty",
        "put recordings into the train split with --split-csv before training",
    ),
    # --- audio
    "wav-empty": _rejected("the file holds no audio samples", "export the recording again"),
    "wav-not-riff": _rejected("the file is not a RIFF WAVE file", "convert it to 16 kHz mono PCM WAV"),
    "wav-damaged-header": _rejected(
        "the WAV header is damaged: chunks are missing, repeated or in the wrong order, or fields are invalid",
        "export the recording again",
    ),
    "wav-truncated": _rejected("the header states more audio than the file contains", "copy the file again"),
    "wav-unsupported-encoding": _rejected(
        "the encoding is not supported; only PCM of 8 to 32 bits, float of 32 or 64 bits, A-law and mu-law are read",
        "convert it to 16 kHz mono PCM WAV",
    ),
    "wav-not-finite": _rejected("the audio holds NaN or infinite samples", "export the recording again"),
    "wav-silent": _rejected("every audio sample has the same value", "export the recording again"),
    "wav-channels-cancel": _rejected(
        "the channels have opposite signs, so their mean is almost silent",
        "invert one channel, or export one channel alone",
    ),
    "wav-out-of-range": _rejected(
        "float samples are far beyond full scale, which is 1",
        "divide the samples by their full scale, such as 32768 for 16 bits",
    ),
    "wav-rare-encoding": _note(
        "the audio is RF64, RIFX, 8-bit, A-law or mu-law, which other tools may not read; omniges reads it", "nothing"
    ),
    "wav-length-mended": _note(
        "the header's length is a few bytes beyond the last complete sample; all samples were read", "nothing"
    ),
    "wav-streamed-header": _note(
        "the header gives no length, as from a pipe or a stopped recorder; all bytes up to the end were read as audio",
        "nothing, if the audio length is right",
    ),
    "audio-resampled": _note("the audio was resampled to 16 kHz", "nothing"),
    "audio-mixed-down": _note("the audio channels were averaged to mono", "nothing"),
    # --- motion
    "npz-not-zip": _rejected("the file is not a complete NPZ archive", "copy or export the file again"),
    "npz-damaged": _rejected(
        "a member of the NPZ is damaged (such as a wrong checksum or size), encrypted or present twice",
        "copy or export the file again",
    ),
    "npz-too-large": _rejected(
        "the headers of the NPZ claim more data than a recording can have", "check where the file comes from"
    ),
    "npz-missing-key": _rejected("a needed array is not in the NPZ", "export the recording in BEAT2 form"),
    "npz-object-array": _rejected(
        "a needed array holds pickled Python objects, which are never loaded", "save plain numeric arrays"
    ),
    "npz-wrong-dtype": _rejected("a needed array does not hold real numbers", "save float32 or float64 arrays"),
    "npz-wrong-shape": _rejected("a needed array does not have the shape that BEAT2 uses", "export full SMPL-X motion"),
    "npz-unequal-lengths": _rejected(
        "the motion arrays differ in their number of frames", "export the recording again"
    ),
    "npz-no-frames": _rejected("the motion has no frames", "export the recording again"),
    "npz-not-finite": _rejected("the motion holds NaN or infinite values", "repair the recording, or leave it out"),
    "npz-out-of-range": _rejected(
        "the motion has values that are too large for human motion", "check the units: radians and metres"
    ),
    "npz-contradiction": _rejected(
        "the NPZ has the same quantity under two names, with different values",
        "remove the wrong one and save the file again",
    ),
    "npz-no-rate": _rejected(
        "the NPZ has no frame rate", "give the rate with --motion-rate, or save it in the NPZ as mocap_frame_rate"
    ),
    "npz-frame-rate": _rejected(
        "the frame rate is not a whole multiple of 30 per second", "resample the motion to 30 fps"
    ),
    "npz-not-y-up": _rejected(
        "the body does not stand along +y", "rotate the world so that y points up: by -90 degrees about x if z is up"
    ),
    "motion-parts-absent": _note(
        "hands, face, or jaw and eyes are not in the file, or hands are PCA coefficients; the sample has no such parts",
        "nothing",
    ),
    "npz-smplx-keys": _note(
        "the arrays have the names that the package smplx uses; they were read like those of BEAT2", "nothing"
    ),
    "npz-float16": _note("arrays of float16 were read; their positions are rounded to steps of up to 1 mm", "nothing"),
    "npz-keys-unread": _note(
        "the NPZ has a part of the motion twice; the second array was not read, and cannot be compared with the first",
        "remove the array that is not needed",
    ),
    "npz-text-unread": _note(
        "gender or model is not plain text, but for example a pickled object, which is never loaded; it is left empty",
        "save the value as plain text if it matters",
    ),
    "motion-far": _note(
        "the body moves farther than a speaking person usually does",
        "check that trans is in metres, not in centimetres",
    ),
    "motion-decimated": _note("frames were dropped so that 30 per second remain", "nothing"),
    "expressions-extended": _note("fewer than 100 expressions were given; zeros were appended", "nothing"),
    "betas-extended": _note("fewer than 300 shape coefficients were given; zeros were appended", "nothing"),
    # --- text
    "textgrid-empty": _rejected("the TextGrid file is empty", "run the aligner again"),
    "textgrid-too-large": _rejected(
        "the TextGrid is larger than an alignment can be", "check where the file comes from"
    ),
    "textgrid-encoding": _rejected("the TextGrid is neither UTF-8 nor UTF-16", "save it as UTF-8 in Praat"),
    "textgrid-syntax": _rejected(
        "the text is not a TextGrid that praatio can parse, or the file is cut off",
        "open the file in Praat and save it again, or run the aligner again",
    ),
    "textgrid-no-word-tier": _rejected("there is no word tier", "name the tier with --word-tier"),
    "textgrid-several-speakers": _rejected(
        "there are word tiers of several speakers, and none has the name of the recording's speaker",
        "give the full name of the tier with --word-tier, such as --word-tier 'NAME - words'",
    ),
    "textgrid-no-words": _rejected("the word tier holds no words inside the recording", "run the aligner again"),
    "textgrid-bad-interval": _rejected(
        "an interval starts before zero, or ends before it starts", "correct it in Praat"
    ),
    "textgrid-overlap": _rejected("two intervals of the word tier overlap by more than 10 ms", "correct it in Praat"),
    "textgrid-several-tiers": _note(
        "several tiers have the name of a word tier, but different words; the first of these tiers was read",
        "rename the other tiers, or name the right one with --word-tier",
    ),
    "textgrid-shifted": _rejected(
        "the TextGrid's times begin late and do not end with the recording, so they belong to a longer recording",
        "shift the times to 0 in Praat",
    ),
    "textgrid-start": _note(
        "the times of the TextGrid or of its word tier do not begin at 0; they were not changed",
        "check that the word times fit the audio",
    ),
    "textgrid-length-mismatch": _note(
        "the TextGrid is much longer or shorter than the clip", "check that the TextGrid belongs to this recording"
    ),
    "words-clipped": _note("words that ran past the end of the clip were shortened or dropped", "nothing"),
    "words-silence": _note("labels that mean silence or a noise were dropped", "nothing"),
    "words-unknown": _note(
        "words that the aligner did not know were dropped", "add them to the aligner's dictionary if they matter"
    ),
    "words-overlap": _note(
        "words that began up to 10 ms before the end of the previous word were shortened", "nothing"
    ),
    "words-zero-length": _note("words without duration were dropped", "nothing"),
    "sem-invalid": _note(
        "the semantic annotation is invalid or could not be read, and was left out", "correct the file"
    ),
    # --- the recording as a whole
    "nothing-recorded": _rejected("the recording has neither motion nor audio", "add one of them"),
    "length-mismatch": _rejected(
        "audio is over 30 s longer than motion, or motion is over 5 s longer than audio, or the difference is over "
        "--max-length-mismatch",
        "check that the files belong together, or raise the limit",
    ),
    "clip-too-short": _rejected("the common length is below one tick of 0.1 s", "leave the recording out"),
    "length-cut": _note("audio or motion was cut by over 0.1 s to the common length", "nothing"),
    "internal-error": _rejected(
        "the converter failed on this recording with an unexpected error, which is a fault of omniges",
        "report the error with the file",
    ),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """An error or a notable property of some bytes: a code of `CODES`, the value found and the value expected."""

    code: str
    found: str
    expected: str = ""

    def __post_init__(self) -> None:
        """Raise KeyError for a code that is not in `CODES`."""
        if self.code not in CODES:
            raise KeyError(self.code)

    @property
    def severity(self) -> Severity:
        """Severity of the finding code: ``rejected`` or ``note``."""
        return CODES[self.code].severity


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem, with the names of the recording and the file in which it was found."""

    problem: Problem
    stem: str | None = None
    """Stem of the recording; None if the problem concerns the whole data set."""
    file: str | None = None
    """Path relative to the root folder."""

    @property
    def sort_key(self) -> tuple[str, ...]:
        """Sort key for a report, which lists findings by recording, severity, finding code, file and text."""
        p = self.problem
        return (self.stem or "", p.severity, p.code, self.file or "", p.found, p.expected)

    def as_json(self) -> dict[str, Any]:
        """Return the finding as a JSON object, which is one line of report.jsonl."""
        info = CODES[self.problem.code]
        return {
            "code": self.problem.code,
            "severity": info.severity,
            "stem": self.stem,
            "file": self.file,
            "found": self.problem.found,
            "expected": self.problem.expected,
            "meaning": info.meaning,
            "remedy": info.remedy,
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Finding:
        """Build a finding from the JSON object of a line of report.jsonl; the inverse of `as_json`."""
        return cls(Problem(row["code"], row["found"], row["expected"]), row["stem"], row["file"])


class RecordingFault(Exception):
    """A recording cannot be used. Decoders and features raise this error; the pipeline converts it to a finding."""

    def __init__(self, code: str, found: str, expected: str = "") -> None:
        super().__init__(f"{code}: expected {expected}, found {found}" if expected else f"{code}: {found}")
        self.problem = Problem(code, found, expected)

    def refusal(self, path: object) -> DataError:
        """Return this fault as a DataError, for a command that reads the file directly, without preprocess.

        The remedy in the error does not name options of preprocess, because other commands do not have these options.

        Args:
            path: Path of the file that cannot be used.

        Returns:
            The error, for the caller to raise.
        """
        code = self.problem.code
        return DataError(f"{path}: {self}; {_REMEDIES_WITHOUT_FLAGS.get(code, CODES[code].remedy)}")


_REMEDIES_WITHOUT_FLAGS = {
    "textgrid-no-word-tier": "name the word tier 'words' in Praat",
    "textgrid-several-speakers": "name the speaker's word tier 'words' in Praat",
}
