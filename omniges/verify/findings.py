"""Findings of `verify-shards`: the table of stable codes, and the classes of findings."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Final, Literal

_SHOWN_CHARACTERS: Final = 300
_PER_CODE: Final = 20  # largest number of listed findings of one code for a file; further findings are only counted

_AGAIN: Final = "make the shards again"
_COPY: Final = "copy the file again from the original shards, or make the shards again"
_ERROR: Final = "also report this line as an error of omniges"
_LATENTS: Final = f"run omniges encode again with --overwrite; if nobody edited the shards, {_ERROR}"
_REPORT: Final = f"make the shards again; if nobody edited them, {_ERROR}"


@dataclass(frozen=True, slots=True)
class VerifyCode:
    """Severity, meaning and remedy of a finding code."""

    severity: Literal["error", "note"]
    meaning: str
    remedy: str


_error, _note = partial(VerifyCode, "error"), partial(VerifyCode, "note")

VERIFY_CODES: Final[dict[str, VerifyCode]] = {
    # --- dataset.json
    "dataset-missing": _error("there is no dataset.json, so the shards are not complete", "run omniges preprocess"),
    "dataset-unreadable": _error("dataset.json is not a JSON object in UTF-8", _COPY),
    "dataset-foreign": _error("dataset.json was not written by omniges", "name a folder of omniges shards"),
    "dataset-newer": _error("the shards have a newer version of the contract", "use a newer omniges"),
    "dataset-version": _error(
        "omniges does not know this version of the contract", "use the omniges version that wrote the shards"
    ),
    "dataset-malformed": _error("a field of dataset.json is absent or has an invalid value", _COPY),
    "dataset-not-canonical": _error(
        "dataset.json is not in canonical form, so it was rewritten after omniges wrote it", _COPY
    ),
    "dataset-checksum": _error("the checksum in dataset.json does not fit its content, so the file was edited", _COPY),
    "dataset-features": _error("the feature settings in dataset.json are not those of this contract version", _AGAIN),
    "dataset-plan": _error("settings, plan and counts in dataset.json contradict each other", _REPORT),
    "dataset-totals": _error("the totals in dataset.json contradict each other", _REPORT),
    # --- files
    "file-missing": _error("a file that dataset.json lists is missing", _COPY),
    "file-not-regular": _error("a link, folder or device is in the place of a file; it was not read", _COPY),
    "file-unreadable": _error("the operating system refused to read the file", "check permissions and the disk"),
    "file-size": _error("the file's size is not the one in dataset.json", _COPY),
    "file-checksum": _error("the file's sha256 is not the one in dataset.json", _COPY),
    "file-unlisted": _note(
        "the folder holds a file that is not part of the shards", "nothing, or move the file elsewhere"
    ),
    "temporary-file": _error(
        "the folder holds a temporary file of an unfinished run", "make the shards again, or delete the file"
    ),
    "unfinished-run": _note(
        "the folder holds the marker of a run that started and did not finish",
        "if no run is active, make the shards again",
    ),
    "unfinished-foreign": _error(
        "the folder of an unfinished run holds names or steps that no omniges run writes, such as paths that lead out "
        "of the shard folder",
        "remove that folder, and run preprocess or encode here only if you trust where the shards came from",
    ),
    "shard-unlisted": _error(
        "the folder holds a tar file that dataset.json does not list; readers would treat it as a shard",
        "move the tar file elsewhere",
    ),
    "shard-name": _error("the shards of a split are not numbered from 0 without a gap", _COPY),
    # --- tar
    "shard-checksum": _error("the shard's sha256 is not the one in dataset.json", _COPY),
    "shard-cut": _error("the shard ends before its last member does", _COPY),
    "shard-end": _error("the shard does not end in two zero blocks", _COPY),
    "shard-early-end": _error("a zero block is in the place of a member; readers stop there without an error", _COPY),
    "shard-trailing": _error("bytes follow the end of the archive", _COPY),
    "header-checksum": _error("a tar header is damaged; readers stop there, often without an error", _COPY),
    "header-not-canonical": _error("fields of a tar header (mode, owner, time, …) differ from the contract", _COPY),
    "member-name": _error(
        "the contract does not allow a member's name; unpacking such a name can write outside the folder", _COPY
    ),
    "member-link": _error("a member is a link", _COPY),
    "member-device": _error("a member is a device, a folder or a pipe", _COPY),
    "member-extension": _error("a member is a pax or GNU extension, or of an unknown type", _COPY),
    "member-size": _error("a member's size is not a plain number, or not the one in the manifest", _COPY),
    "member-foreign": _error("the shard has a member that the manifest does not list for this shard", _COPY),
    "member-twice": _error("two members have the same name, and readers differ in which one they use", _COPY),
    "member-order": _error("members are not in the order of the contract, so readers split or mix samples", _COPY),
    "member-missing": _error("a member that the manifest lists for this shard is missing", _COPY),
    "member-digest": _error("the sha256 of a member's content is not the one in the manifest", _COPY),
    "member-padding": _error("the bytes that fill a member's last block are not zero", _COPY),
    # --- manifest
    "manifest-unreadable": _error("manifest.parquet is not a parquet file with the contract's columns", _COPY),
    "manifest-malformed": _error("a row of the manifest has an invalid value", _REPORT),
    "manifest-key-twice": _error("two rows of the manifest have the same key or stem", _REPORT),
    "manifest-order": _error("the rows of the manifest are not in the order in which samples are packed", _REPORT),
    "manifest-shards": _error("manifest and dataset.json disagree on the contents of a shard", _REPORT),
    "manifest-layout": _error(
        "the offsets in the manifest leave gaps, overlap or do not end where the shard does", _REPORT
    ),
    "manifest-latents": _error(
        "a sample lacks latents of a codec that dataset.json names, or has latents of another codec", _REPORT
    ),
    "manifest-totals": _error("the totals in dataset.json are not those of the manifest's rows", _REPORT),
    "manifest-hash": _error("the manifest hash in dataset.json is not that of the manifest's rows", _REPORT),
    "key-not-of-stem": _error("a key is not the one that its stem gives", _REPORT),
    "row-arithmetic": _error("mel frames, ticks or seconds of a row do not fit its number of frames", _REPORT),
    # --- content
    "recording-in-two-splits": _error(
        "one recording is in two splits, so test data would be seen in training", "keep one copy and preprocess again"
    ),
    "recording-twice": _note(
        "one recording is twice in a split, under two names", "remove one copy if this is not intended"
    ),
    "metadata-invalid": _error("KEY.json does not follow the contract", _REPORT),
    "metadata-differs": _error("KEY.json and the manifest's row differ", _REPORT),
    "array-invalid": _error("the npy header of an array does not follow the contract", _REPORT),
    "array-dtype": _error("the dtype of an array is not the one in the contract", _REPORT),
    "array-shape": _error("the shape of an array does not fit the number of frames of its sample", _REPORT),
    "array-not-finite": _error("an array holds NaN or infinite values", _REPORT),
    "absent-not-nan": _error("a part that is absent according to `present` holds numbers, words or spans", _REPORT),
    "mel-below-floor": _error("the mel has values below its minimum, ln(1e-5)", _REPORT),
    "rotation-broken": _error("the two rows of a 6D rotation are not orthonormal within 1e-5", _REPORT),
    "root-first-step": _error("the first root step does not equal the second", _REPORT),
    "transcript-invalid": _error("the words are not a list of words in the contract's form", _REPORT),
    "transcript-order": _error("words overlap or are out of order", _REPORT),
    "transcript-outside": _error("a word lies outside the clip, or ends before it starts", _REPORT),
    "annotation-invalid": _error("the semantic spans are not a list of spans in the contract's form", _REPORT),
    "waveform-invalid": _error("the kept audio cannot be decoded, is missing, or should not exist", _REPORT),
    "waveform-length": _error("the length of the kept audio is not the one in KEY.json", _REPORT),
    "cut-totals": _error("totals.cut in dataset.json is not the sum over the samples", _REPORT),
    "statistics-differ": _error("stats.json differs from statistics computed again from the train samples", _REPORT),
    "latents-differ": _error("latents.json differs from statistics computed again from the train samples", _LATENTS),
    "tokenizer-invalid": _error(
        "tokenizer.json is not in the form that preprocess writes: it could change words or make them random", _COPY
    ),
    "tokenizer-differs": _error("tokenizer.json differs from one trained on the words of the train samples", _REPORT),
    "tokenizer-other-version": _note(
        "the installed tokenizers package has another version than the one that wrote tokenizer.json, and gives other "
        "bytes, so the file could not be checked",
        "verify with the version that dataset.json names, if it matters",
    ),
    "report-invalid": _error("a line of report.jsonl is not a finding in the contract's form", _REPORT),
    "report-unknown-code": _error("report.jsonl has a code or severity that omniges does not know", _REPORT),
    "report-contradiction": _error("report.jsonl and the manifest contradict each other", _REPORT),
    "worker-died": _error(
        "the process that checked the shard was killed, by the system or by a decoder that crashed",
        "free some memory and verify again; if it repeats, treat the shard as damaged",
    ),
}


def _printable(text: str) -> str:
    """Return a text that is safe for a terminal or a log: short, without control characters or lone surrogates."""
    cut = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode("ascii") for c in cut)


@dataclass(frozen=True, slots=True)
class VerifyFinding:
    """A fault or a note, and its position: the file and, if known, sample key, member and byte offset."""

    code: str
    file: str
    found: str
    expected: str = ""
    key: str | None = None
    member: str | None = None
    offset: int | None = None

    def __post_init__(self) -> None:
        """Raise KeyError for an unknown code; make texts from untrusted files printable."""
        if self.code not in VERIFY_CODES:
            raise KeyError(self.code)
        for name in ("file", "found", "expected", "key", "member"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _printable(value))

    @property
    def severity(self) -> Literal["error", "note"]:
        """Severity of the code: ``error`` or ``note``."""
        return VERIFY_CODES[self.code].severity

    @property
    def sort_key(self) -> tuple[Any, ...]:
        """Sort key for reports: file, position in the file, code, text."""
        place = (-1 if self.offset is None else self.offset, self.code, self.key or "", self.member or "")
        return (self.file, *place, self.found, self.expected)

    def as_json(self) -> dict[str, Any]:
        """Return the finding as a JSON object."""
        return asdict(self) | {"severity": self.severity}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> VerifyFinding:
        """Decode a finding that `as_json` encoded.

        Its texts are already printable. They are not converted again, because that would shorten them further.
        """
        finding = cls.__new__(cls)
        for name in row.keys() - {"severity"}:
            object.__setattr__(finding, name, row[name])
        return finding


@dataclass(slots=True)
class Collector:
    """Collector of the findings of one file. For each code, it stores the first 20 findings and counts the others."""

    file: str
    findings: list[VerifyFinding] = field(default_factory=list)
    _seen: Counter[str] = field(default_factory=Counter)

    def add(
        self,
        code: str,
        found: str,
        expected: str = "",
        key: str | None = None,
        member: str | None = None,
        offset: int | None = None,
    ) -> None:
        """Add a finding, or only count it if 20 findings of its code are stored.

        Args:
            code: Key of `VERIFY_CODES`.
            found: Text that shows what the file contains.
            expected: Text that shows what the contract or the manifest requires.
            key: Sample key, if the finding is about one sample.
            member: Member of the sample.
            offset: Byte offset in the file.
        """
        self._seen[code] += 1
        if self._seen[code] <= _PER_CODE:
            self.findings.append(VerifyFinding(code, self.file, found, expected, key, member, offset))

    @property
    def failed(self) -> bool:
        """True if at least one finding is an error."""
        return any(finding.severity == "error" for finding in self.findings)

    def finish(self) -> list[VerifyFinding]:
        """Return all findings, sorted.

        If more than 20 findings of a code were added, an extra finding states how many of them are not listed.
        """
        more = [
            VerifyFinding(code, self.file, f"{count - _PER_CODE} more findings of this code in this file")
            for code, count in self._seen.items()
            if count > _PER_CODE
        ]
        return sorted([*self.findings, *more], key=lambda finding: finding.sort_key)
