"""Facts about files and outputs that two trees must agree in, and the comparison of them."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

Facts = dict[str, str]
"""What was found, by a name that says where."""
Found = dict[str, Facts]
"""Facts by the row of the table they belong to."""

VOLATILE: Final = frozenset({"elapsed_s", "samples_per_s", "waiting_for_data", "seconds", "share_of_time", "git"})
"""Keys of logs that two runs of one program differ in: times, and the commit itself."""
_SHOWN: Final = 110  # characters of a fact in the line of a difference


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `difference` names the first fact that is not equal."""

    check: str
    what: str
    before: str
    now: str
    equal: bool
    difference: str = ""


def compare(check: str, what: str, before: Facts, now: Facts) -> Row:
    """Compare the facts of both trees; no facts at all are a failure, for they prove nothing."""
    names = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    difference = ""
    if names:
        first = names[0]
        sides = [_shown(facts[first]) if first in facts else "absent" for facts in (before, now)]
        difference = f"{first}: before {sides[0]} · now {sides[1]}" + f" (first of {len(names)})" * (len(names) > 1)
    elif not before:
        difference = "nothing was found to compare"
    return Row(check, what, _summary(before), _summary(now), not difference, difference)


def _shown(fact: str) -> str:
    return fact if len(fact) <= _SHOWN else f"{fact[:_SHOWN]}…"


def _summary(facts: Facts) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return f"{len(facts)}: {digest[:10]}" if facts else "none"


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_facts(folder: Path, without: Collection[str] = ()) -> Facts:
    """The sha256 of every file below a folder, by relative path, but for some endings."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix not in without)
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in found}


def member_facts(folder: Path) -> Facts:
    """The sha256 of every member of every tar file in a folder, with its place."""
    facts = {}
    for path in sorted(folder.glob("*.tar")):
        try:
            with tarfile.open(path) as archive:
                for member in archive:
                    stream = archive.extractfile(member)
                    content = stream.read() if stream else b""
                    facts[f"{path.name}/{member.name}"] = f"{hashlib.sha256(content).hexdigest()} at {member.offset}"
        except tarfile.TarError as error:
            facts[path.name] = f"cannot be read: {error}"
    return facts


def json_facts(document: object, name: str = "", without: Collection[str] = ()) -> Facts:
    """Every value of a JSON document by its path; floats as the shortest text that gives the same bits."""
    return dict(_flat(document, name, without))


def _flat(value: Any, name: str, without: Collection[str]) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            if key not in without:
                yield from _flat(inner, f"{name}.{key}" if name else key, without)
    elif isinstance(value, list) and value:
        for place, inner in enumerate(value):
            yield from _flat(inner, f"{name}[{place}]", without)
    else:
        yield name, json.dumps(value)


def json_file_facts(folder: Path, without: Collection[str] = ()) -> Facts:
    """Every value of every JSON file below a folder, but for some keys."""
    facts: Facts = {}
    for path in folder.rglob("*.json"):
        document = json.loads(path.read_text(encoding="utf-8"))
        facts |= json_facts(document, path.relative_to(folder).as_posix() + ":", without)
    return facts
