"""BEAT2: the folders and stems of its recordings, and the split of each recording.

Two layouts are supported. The official layout is ``beat_<language>_v2.0.0/{wave16k,smplxflame_30,textgrid,sem}``. The
root contains one or several such folders, or is such a folder. An older layout is
``{wave16k,speakers_1234_smplx_neutral_npz,word}/<speaker>/``. Files may be in subfolders, and extensions may be in
upper or lower case. Files outside the root are read only if the user allows their folder.
"""

from __future__ import annotations

import fnmatch
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from omniges.errors import Finding, Problem, UsageFault, first_of
from omniges.pipeline import labels
from omniges.pipeline.convert import Inputs, Take, decode_files
from omniges.pipeline.discover import Bounds, Discovery, Modality, Recording, SourceFile, inside, inspect, join, walk
from omniges.pipeline.settings import ConvertSettings, Selection
from omniges.shards.schema import MAX_KEY_BYTES, Split, key_from_stem
from omniges.storage.files import read_file

NEEDED: Final[tuple[Modality, ...]] = ("wav", "npz", "textgrid")
SPLIT_LIST: Final = "train_test_split.csv"
_MAX_LIST_BYTES: Final = 64 << 20

_FOLDERS: Final[dict[Modality, tuple[str, ...]]] = {
    "wav": ("wave16k",),
    "npz": ("speakers_1234_smplx_neutral_npz", "smplxflame_30"),
    "textgrid": ("word", "textgrid"),
    "sem": ("sem",),
}
_EXTENSIONS: Final[dict[Modality, str]] = {"wav": ".wav", "npz": ".npz", "textgrid": ".TextGrid", "sem": ".txt"}
_MISSING: Final = {"wav": "missing-audio", "npz": "missing-gesture", "textgrid": "missing-text"}
_FLAGS: Final = {"wav": "--wav-dir", "npz": "--gesture-dir", "textgrid": "--text-dir"}


@dataclass(frozen=True, slots=True)
class _DataFolder:
    """One data-set folder: the root, or a ``beat_*`` folder in the root."""

    relative: str
    folders: Mapping[Modality, str]  # existing folder of each modality, relative to the root
    split_list: labels.SplitList | None


@dataclass(slots=True)
class _Stem:
    """All files with one stem, and the findings about the stem so far."""

    files: dict[Modality, list[SourceFile]] = field(default_factory=lambda: defaultdict(list))
    data_folders: dict[Modality, _DataFolder] = field(default_factory=dict)  # folder of each modality's file
    faults: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)

    @property
    def found_in(self) -> list[_DataFolder]:
        """Data-set folder of each existing file, in the order motion, audio, TextGrid."""
        return [self.data_folders[modality] for modality in ("npz", "wav", "textgrid") if modality in self.data_folders]


def discover(
    root: Path, selection: Selection, *, split_csv: Path | None = None, allow_roots: tuple[Path, ...] = ()
) -> Discovery:
    """Find all recordings under a root folder, and group the files with the same stem.

    Args:
        root: Folder of the data set, or the folder that holds its ``beat_*`` folders.
        selection: Filters and folder names.
        split_csv: Path of a split list that replaces the lists of the data set; None: use the data set's own lists.
        allow_roots: Folders outside of `root` that links may lead to.

    Returns:
        Recordings to convert and rejected stems.

    Raises:
        UsageFault: The root contains no data set, a folder of the selection is outside the root, the filters exclude
            all recordings, or `split_csv` does not exist or lists none of the recordings.
        DataError: A split list is invalid.
    """
    if not root.is_dir():
        raise UsageFault(
            f"--root {root}: expected a folder, found {('a file' if root.exists() else 'nothing')} there; check the "
            "path"
        )
    bounds = tuple(os.path.realpath(base) for base in (root, *allow_roots))
    override = _read_split_list(split_csv, split_csv.name) if split_csv else None
    stems: dict[str, _Stem] = {}
    findings: list[Finding] = []
    data_folders = _find_data_folders(root, selection, bounds, override, findings)
    for modality in _FOLDERS:  # annotations come last, because they are added only to existing stems
        for data_folder in data_folders:
            if modality in data_folder.folders:
                _collect(data_folder, modality, root, bounds, stems, findings)
    # The list of the root is used if a data-set folder has no list, or if its list does not contain a recording.
    of_root = (
        override or _split_list(root, "", bounds, findings)
        if all(data_folder.relative for data_folder in data_folders)
        else None
    )
    listed = [*(data_folder.split_list for data_folder in data_folders), of_root]
    split_lists = {found.name: found for found in listed if found}
    on_disk = {labels.plain_stem(stem) for stem in stems}
    if override and stems and not override.ids & on_disk:
        raise UsageFault(
            f"--split-csv {split_csv}: expected ids of recordings such as {min(on_disk)!a:.80}, found no id of a "
            f"recording on disk ({len(override.ids)} other ids); give the list of this data set, or remove the flag"
        )
    for name, split_list in split_lists.items():
        findings += split_list.findings
        if absent := sorted(split_list.ids - on_disk):
            found = f"{len(absent)} ids: {', '.join(absent[:5])}{', …' if len(absent) > 5 else ''}"
            findings.append(Finding(Problem("split-id-not-on-disk", found), None, None if override else name))
    recordings, rejected = _sort_stems(stems, selection, of_root)
    if not recordings and not rejected:
        raise UsageFault(f"--root {root}: {_why_nothing(len(stems), data_folders, findings)}")
    recordings.sort(key=lambda recording: recording.key)
    return Discovery(
        recordings=tuple(recordings),
        rejected=rejected,
        findings=tuple(findings),
        split_source="split list" if split_lists else "rule",
        split_lists={name: split_list.sha256 for name, split_list in split_lists.items()},
        data_folders=tuple(data_folder.relative for data_folder in data_folders),
    )


def _read_split_list(path: Path, name: str) -> labels.SplitList:
    try:
        return labels.parse_split_list(read_file(path, _MAX_LIST_BYTES), name)
    except FileNotFoundError as error:
        raise UsageFault(
            f"--split-csv {path}: expected a split list, found that the file does not exist; check the path"
        ) from error


def _why_nothing(stems: int, data_folders: Sequence[_DataFolder], findings: Sequence[Finding]) -> str:
    """Return a text that says why a data set has no recordings, and what to do."""
    if stems:
        return f"expected recordings, found {stems} stems, all of them excluded by the filters; change the filters"
    if outside := sorted({str(f.file) for f in findings if f.problem.code == "folder-outside-root"}):
        return (
            f"expected recordings, found links that lead out of the root ({first_of(outside, 4)}); name their "
            "targets with --allow-root"
        )
    folders = ", ".join(sorted({name for data_folder in data_folders for name in data_folder.folders.values()}))
    return (
        f"expected recordings, found no .wav, .npz and .TextGrid files in {folders}; name the folders that contain them"
    )


def _candidates(root: Path) -> list[Path]:
    """Return the root and its ``beat_*`` folders; if several are links to one folder, return only the first."""
    children = [
        child
        for child in (root.iterdir() if root.is_dir() else ())
        if child.name.startswith("beat_") and child.is_dir()
    ]
    found = {os.path.realpath(root): root}
    for child in sorted(children, key=lambda child: (child.is_symlink(), child.name)):
        found.setdefault(os.path.realpath(child), child)
    return sorted(found.values(), key=lambda folder: "" if folder == root else folder.name)


def _find_data_folders(
    root: Path, selection: Selection, bounds: Bounds, override: labels.SplitList | None, findings: list[Finding]
) -> list[_DataFolder]:
    names = ["" if folder == root else folder.name for folder in _candidates(root)]
    folders: dict[str, dict[Modality, str]] = {name: {} for name in names}
    for modality in _FOLDERS:
        for name, place in _existing_folders(root, names, selection, modality):
            folders[name].setdefault(modality, place)
    data_folders = []
    for name, own in folders.items():
        if own.keys() & set(NEEDED):
            data_folders.append(_DataFolder(name, own, override or _split_list(root, name, bounds, findings)))
    # If a modality has no folder at all, the path is wrong. One error is enough, not one for every recording.
    for modality in NEEDED:
        if not any(modality in data_folder.folders for data_folder in data_folders):
            tried = " or ".join(_folder_names(selection, modality))
            seen = ", ".join(sorted(child.name for child in root.iterdir() if child.is_dir())[:8]) or "no folders"
            raise UsageFault(
                f"--root {root}: expected a folder of {modality} ({tried}, there or in beat_* folders), found "
                f"{seen}; name the folder with {_FLAGS[modality]}"
            )
    return data_folders


def _existing_folders(
    root: Path, data_folders: Sequence[str], selection: Selection, modality: Modality
) -> Iterator[tuple[str, str]]:
    """Yield (data-set folder, path relative to the root) for each existing folder of a modality.

    Raise UsageFault if a folder from a flag exists outside the root.
    """
    for name in _folder_names(selection, modality):
        if os.path.isabs(name):
            tried = [os.path.relpath(os.path.realpath(name), os.path.realpath(root))]
        else:
            tried = [os.path.normpath(os.path.join(data_folder, name)) for data_folder in data_folders]
        for place in tried:
            if place.split("/")[0] == ".." and os.path.isdir(os.path.join(root, place)):
                raise UsageFault(
                    f"{_FLAGS[modality]} {name}: expected a folder under --root {root}; link the folder there, and "
                    "name the link's target with --allow-root"
                )
            if os.path.isdir(os.path.join(root, place)):
                # A path from the root may lead into a beat_* folder.
                data_folder = place.split("/")[0]
                yield (data_folder if data_folder in data_folders else ""), ("" if place == "." else place)


def _split_list(root: Path, data_folder: str, bounds: Bounds, findings: list[Finding]) -> labels.SplitList | None:
    """Return the split list of a data-set folder; None if the folder has no list, or the list may not be read.

    A list may be read if it is a regular file inside `bounds`, with links resolved. Otherwise a finding is added to
    `findings`. A missing list adds no finding.
    """
    path, name = root / data_folder / SPLIT_LIST, join(data_folder, SPLIT_LIST)
    if not os.path.lexists(path):
        return None
    if path.is_file() and inside(os.path.realpath(path), bounds):
        return _read_split_list(path, name)
    found = "a link out of the root" if path.is_symlink() else "no regular file"
    findings.append(Finding(Problem("split-list-unreadable", found, "a file under the root"), None, name))
    return None


def _collect(
    data_folder: _DataFolder,
    modality: Modality,
    root: Path,
    bounds: Bounds,
    stems: dict[str, _Stem],
    findings: list[Finding],
) -> None:
    """Add the files of one modality in one data-set folder to the stems."""
    base = data_folder.folders[modality]
    for relative, entry_path in walk(root, base, bounds, findings):
        stem, extension = os.path.splitext(os.path.basename(relative))
        if extension.lower() != _EXTENSIONS[modality].lower() or stem.startswith("."):
            continue
        # Files from macOS have decomposed names. The composed and decomposed forms of a name are the same stem.
        readable = unicodedata.normalize("NFC", stem.encode("utf-8", "backslashreplace").decode())
        if modality == "sem" and readable not in stems:
            continue  # an annotation alone is not a recording
        entry = stems.setdefault(readable, _Stem())
        entry.data_folders.setdefault(modality, data_folder)
        shown = relative.encode("utf-8", "backslashreplace").decode()
        source, problem = inspect(entry_path, shown, bounds)
        if problem and modality == "sem":
            problem = Problem("sem-invalid", f"{problem.code}: {problem.found}", problem.expected)
        if problem:
            (entry.notes if modality == "sem" else entry.faults).append(Finding(problem, readable, shown))
        if source and all(source.path != other.path for other in entry.files[modality]):
            entry.files[modality].append(source)
        if any(0xDC80 <= ord(character) <= 0xDCFF for character in stem):
            entry.faults.append(Finding(Problem("stem-not-utf8", repr(stem), "UTF-8"), readable, shown))
        folder, fields = os.path.dirname(shown), labels.parse_stem(readable)
        if fields.known and folder != base and _names_another(os.path.basename(folder), fields):
            found = f"folder {os.path.basename(folder)}"
            problem = Problem("speaker-folder-mismatch", found, readable.rsplit("_", 3)[0])
            entry.notes.append(Finding(problem, readable, shown))


def _names_another(folder: str, fields: labels.StemFields) -> bool:
    """Return whether a file's speaker folder contradicts the speaker in its stem."""
    speaker_id, name = labels.speaker_of_folder(folder)
    if speaker_id is None:
        return name is not None and name != fields.speaker
    return speaker_id != fields.speaker_id


def _folder_names(selection: Selection, modality: Modality) -> tuple[str, ...]:
    """Return the folder names to try for a modality; the name in a flag replaces the defaults."""
    given = {"wav": selection.wav_dir, "npz": selection.gesture_dir, "textgrid": selection.text_dir}.get(modality)
    return (given,) if given else _FOLDERS[modality]


def _sort_stems(
    stems: dict[str, _Stem], selection: Selection, of_root: labels.SplitList | None
) -> tuple[list[Recording], dict[str, tuple[Finding, ...]]]:
    """Return the recordings of the selected stems, and the findings of each rejected stem.

    `of_root` is the split list of the root, or None. It is used for a stem whose data-set folders have no split list,
    or have only lists without this stem.
    """
    recordings = []
    rejected = {}
    by_case: dict[str, list[str]] = defaultdict(list)
    for stem in stems:
        by_case[stem.casefold()].append(stem)
    for stem, entry in stems.items():
        fields = labels.parse_stem(stem)
        speaker = {str(fields.speaker_id), fields.speaker} if fields.known else set()
        split, split_findings = _split_of(
            stem, fields, [*(data_folder.split_list for data_folder in entry.found_in), of_root]
        )
        if (
            (selection.speakers and not speaker & set(selection.speakers))
            or (selection.languages and fields.language not in selection.languages)
            or (selection.include and not any(fnmatch.fnmatchcase(stem, pattern) for pattern in selection.include))
            or (split and selection.splits and split not in selection.splits)
        ):
            continue
        case_variants = [other for other in by_case[stem.casefold()] if other != stem]
        faults = [*entry.faults, *_pairing_faults(stem, entry, case_variants)]
        faults += [finding for finding in split_findings if finding.problem.severity == "rejected"]
        key = key_from_stem(stem)
        if len(key.encode("utf-8")) > MAX_KEY_BYTES:
            problem = Problem("stem-too-long", f"{len(key)} bytes once escaped", f"at most {MAX_KEY_BYTES}")
            faults.append(Finding(problem, stem))
        if faults or split is None:
            rejected[stem] = tuple(faults)
            continue
        notes = [*entry.notes, *split_findings]
        if len(entry.files["sem"]) > 1:  # an optional file, so the recording is not rejected
            problem = Problem("sem-invalid", f"duplicate-stem: {_places(entry.files['sem'])}", "one sem file")
            notes.append(Finding(problem, stem))
            entry.files["sem"].clear()
        if not fields.known:
            notes.append(Finding(Problem("stem-outside-grammar", stem, "such as 2_scott_0_1_1"), stem))
        files = {modality: sources[0] for modality, sources in entry.files.items() if sources}
        recordings.append(Recording(stem, key, split, fields, files, tuple(notes)))
    return recordings, rejected


def _split_of(
    stem: str, fields: labels.StemFields, lists: Sequence[labels.SplitList | None]
) -> tuple[Split | None, list[Finding]]:
    """Return a stem's split, and findings about the split.

    The split comes from the first list that contains the stem. If no list contains it, `split_by_rule` determines the
    split. If the list has a faulty entry for the stem, return None as the split, and the problem as a finding.
    """
    for split_list in filter(None, lists):
        named = split_list.find(stem)
        if isinstance(named, Problem):
            return None, [Finding(named, stem)]
        if named is not None:
            return named, []
    split, inferred = labels.split_by_rule(stem, fields)
    if not inferred:
        return split, []
    listed = "not in the split list" if any(lists) else "no split list"
    return split, [Finding(Problem("split-inferred", f"{listed}: put into {split}"), stem)]


def _pairing_faults(stem: str, entry: _Stem, case_variants: list[str]) -> Iterator[Finding]:
    """Yield a finding for each required modality that has no file or several files.

    If the stem already has a finding about a file that cannot be read or is outside the root, missing files yield no
    finding. `case_variants` are other stems that differ from `stem` only in upper and lower case; a finding about a
    missing file names the first of these stems.
    """
    blocked = any(finding.problem.code in {"path-outside-root", "file-unreadable"} for finding in entry.faults)
    for modality in NEEDED:
        sources = entry.files[modality]
        if not sources and not blocked:
            data_folder = entry.found_in[0]
            folder = data_folder.folders.get(modality, join(data_folder.relative, _FOLDERS[modality][-1]))
            expected = join(folder, stem + _EXTENSIONS[modality])
            found = "no file" + (f"; only the case differs from {case_variants[0]}" if case_variants else "")
            yield Finding(Problem(_MISSING[modality], found, expected), stem)
        if len(sources) > 1:
            yield Finding(Problem("duplicate-stem", _places(sources), f"one {modality} file"), stem)


def _places(sources: list[SourceFile]) -> str:
    return ", ".join(sorted(source.relative for source in sources))


@dataclass(frozen=True, slots=True)
class Beat2:
    """The corpus BEAT2, in both supported layouts."""

    def recognizes(self, root: Path) -> bool:
        """Return whether the root, or a ``beat_*`` folder in it, contains a folder of BEAT2 such as ``wave16k``."""
        names = [name for modality in NEEDED for name in _FOLDERS[modality]]
        return any((folder / name).is_dir() for folder in _candidates(root) for name in names)

    def discover(
        self, root: Path, selection: Selection, *, split_csv: Path | None = None, allow_roots: tuple[Path, ...] = ()
    ) -> Discovery:
        """Find all recordings under a root folder, and group the files with the same stem.

        Args:
            root: Folder of the data set, or the folder that holds its ``beat_*`` folders.
            selection: Filters and folder names.
            split_csv: Path of a split list that replaces the lists of the data set; None: use the data set's own lists.
            allow_roots: Folders outside of `root` that links may lead to.

        Returns:
            Recordings to convert and rejected stems.

        Raises:
            UsageFault: The root contains no data set, a folder of the selection is outside the root, the filters
                exclude all recordings, or `split_csv` does not exist or lists none of the recordings.
            DataError: A split list is invalid.
        """
        return discover(root, selection, split_csv=split_csv, allow_roots=allow_roots)

    def take(self, inputs: Inputs, settings: ConvertSettings) -> Take | None:
        """Decode the WAV, the NPZ, the TextGrid and the annotation of a recording.

        Args:
            inputs: The recording's files.
            settings: Settings of the conversion.

        Returns:
            The take, or None after a fault.
        """
        return decode_files(inputs, settings)


BEAT2: Final = Beat2()
