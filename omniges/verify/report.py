"""Output of a verification: text, JSON, JUnit XML for CI servers, and GitHub annotations.

Findings have the same order in all output forms. Damaged files of a local folder can be moved to a quarantine folder.
The next preprocess run then writes only these files again.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal
from xml.sax.saxutils import escape, quoteattr

from omniges import __version__
from omniges.errors import EnvironmentFault
from omniges.progress import counted, printable
from omniges.shards.schema import LATENTS_FILE, SHARD_NAME, SIDE_FILES
from omniges.storage.atomic import locked, make_folder, os_errors, refuse_links, sync_folder
from omniges.verify.findings import VERIFY_CODES, VerifyFinding
from omniges.verify.run import VerifyResult

Format = Literal["text", "json", "junit", "github"]


def render(result: VerifyResult, form: Format) -> str:
    """Format a result in one of the four output forms, with a final line break.

    Args:
        result: The verification's result.
        form: Name of the output form.

    Returns:
        The complete text.
    """
    return _FORMS[form](result)


def _place(finding: VerifyFinding) -> str:
    sample = ".".join(part for part in (finding.key, finding.member) if part)
    offset = f"at byte {finding.offset}" if finding.offset is not None else ""
    return " ".join(part for part in (finding.file, sample, offset) if part)


def _sentence(finding: VerifyFinding) -> str:
    expected = f"expected {finding.expected}, " if finding.expected else ""
    return f"{expected}found {finding.found}"


def _verdict(result: VerifyResult) -> str:
    speed = f" ({result.read_bytes / 1e6 / max(result.elapsed_s, 1e-9):,.0f} MB/s)" if result.level != "quick" else ""
    checked = f"{counted(len(result.files), 'file')}, {counted(result.samples, 'sample')}"
    counts = f"{counted(result.errors, 'error')}, {counted(result.notes, 'note')}"
    verdict = "valid" if result.valid else "NOT VALID"
    return printable(
        f"{verdict} at level {result.level}: {counts} in {checked}, {result.read_bytes / 1e6:,.1f} MB in "
        f"{result.elapsed_s:.2f} s{speed}: {result.folder}"
    )


def _text(result: VerifyResult) -> str:
    lines = [f"{f.severity}: {_place(f)}: {f.code}: {_sentence(f)}" for f in result.findings]
    if result.left_out:
        lines.append(f"… and {counted(result.left_out, 'finding')} more (--max-findings)")
    codes = sorted({finding.code for finding in result.findings})
    if codes:
        lines.append("")
    lines += [f"{code}: {VERIFY_CODES[code].meaning}: {VERIFY_CODES[code].remedy}" for code in codes]
    lines += [printable(f"not checked: {what}") for what in result.not_checked]
    return "\n".join([*lines, _verdict(result)]) + "\n"


def _json(result: VerifyResult) -> str:
    """Return the result as one JSON document. It contains no times, so equal input gives equal output."""
    codes = sorted({finding.code for finding in result.findings})
    document = {
        "tool": {"omniges": __version__},
        "folder": str(result.folder),
        "level": result.level,
        "sound": result.valid,
        "exit_code": int(result.exit_code),
        "counts": {
            "errors": result.errors,
            "notes": result.notes,
            "left_out": result.left_out,
            "files": len(result.files),
            "samples": result.samples,
            "bytes": result.read_bytes,
        },
        "not_checked": list(result.not_checked),
        "findings": [finding.as_json() for finding in result.findings],
        "codes": {code: {"meaning": VERIFY_CODES[code].meaning, "remedy": VERIFY_CODES[code].remedy} for code in codes},
    }
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _junit(result: VerifyResult) -> str:
    """Return JUnit XML with one test case for each file. Errors become failures; notes become output of the case."""
    by_file: dict[str, list[VerifyFinding]] = {name: [] for name in result.files}
    for finding in result.findings:
        by_file.setdefault(finding.file, []).append(finding)
    failed = sum(any(f.severity == "error" for f in findings) for findings in by_file.values())
    suite = f'name="omniges verify-shards" tests="{len(by_file)}" failures="{failed}" errors="0" skipped="0"'
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', "<testsuites>", f"  <testsuite {suite}>"]
    for name, findings in by_file.items():
        lines.append(f"    <testcase classname={quoteattr(f'omniges.{result.level}')} name={quoteattr(name)}>")
        errors = [finding for finding in findings if finding.severity == "error"]
        if errors:
            text = "\n".join(f"{_place(f)}: {f.code}: {_sentence(f)}: {VERIFY_CODES[f.code].remedy}" for f in errors)
            message = quoteattr(f"{errors[0].code}: {_sentence(errors[0])}")
            lines.append(f"      <failure type={quoteattr(errors[0].code)} message={message}>{escape(text)}</failure>")
        notes = [f"{_place(f)}: {f.code}: {_sentence(f)}" for f in findings if f.severity == "note"]
        if notes:
            lines.append(f"      <system-out>{escape(chr(10).join(notes))}</system-out>")
        lines.append("    </testcase>")
    return "\n".join([*lines, "  </testsuite>", "</testsuites>"]) + "\n"


def _github(result: VerifyResult) -> str:
    """Return workflow commands that GitHub shows as annotations, then a line with the overall result."""
    lines = []
    for finding in result.findings:
        command = "error" if finding.severity == "error" else "notice"
        file = _property(os.path.join(str(result.folder), finding.file))
        place = _place(finding).removeprefix(finding.file).strip()
        text = f"{place}: " if place else ""
        text += f"{_sentence(finding)}. {VERIFY_CODES[finding.code].meaning}: {VERIFY_CODES[finding.code].remedy}"
        lines.append(f"::{command} file={file},title={_property(finding.code)}::{_data(text)}")
    return "\n".join([*lines, _verdict(result)]) + "\n"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


_FORMS: Final = {"text": _text, "json": _json, "junit": _junit, "github": _github}


def quarantine(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """Move damaged files to ``FOLDER.quarantine`` beside the shard folder.

    Only shards and files beside the shards are moved. dataset.json is not moved, because the next run needs it to reuse
    the valid files. Absent files are skipped. No file in the quarantine folder is replaced: if a name exists there, a
    number is added to the name of the moved file.

    Args:
        folder: The shard folder.
        names: Names of damaged files.

    Returns:
        New path of each moved file, by its name in the shard folder.

    Raises:
        EnvironmentFault: Another process writes to the folder, or the quarantine is on another disk.
    """
    absolute = folder.absolute()
    aside = absolute.with_name(f"{absolute.name}.quarantine")
    refuse_links(aside.parent, (aside.name,))
    moved: dict[str, Path] = {}
    with locked(folder):
        for name in sorted(set(names)):
            source = folder / name
            ours = SHARD_NAME.fullmatch(name) or name in {*SIDE_FILES, LATENTS_FILE}
            if not ours or not (source.is_symlink() or source.is_file()):
                continue
            make_folder(aside)
            candidates = (aside / (f"{name}.{number}" if number else name) for number in range(1 << 20))
            target = next(path for path in candidates if not path.exists() and not path.is_symlink())
            with os_errors(target):
                try:
                    source.rename(target)
                except OSError as error:
                    if error.errno != errno.EXDEV:
                        raise
                    raise EnvironmentFault(
                        f"{source}: expected {aside} on the same disk, found it on another disk; move the file "
                        "elsewhere by hand"
                    ) from error
            moved[name] = target
        if moved:
            with os_errors(folder):
                sync_folder(aside)
                sync_folder(folder)
    return moved
