"""Settings of a verification; light enough for `omniges --help`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from omniges.errors import UsageFault
from omniges.options import about, check, option
from omniges.shards.schema import Split

if TYPE_CHECKING:
    from omniges.storage.remote import Location


Level = Literal["quick", "full", "deep"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifySettings:
    """Settings of `omniges verify-shards`."""

    folder: str | Path = field(
        default="shards",
        repr=False,  # a URL may hold credentials
        metadata=about("Folder of shards, or a URL of one.", argument=True, metavar="DIR"),
    )
    level: Level = option("full", "Sizes, ends and counts; every checksum and header; all content.")
    report: Path | None = option(
        None, "File for the findings, outside of the folder.", "--out", "-o", shown="standard output"
    )
    splits: tuple[Split, ...] = option((), "Only the shards of these splits.", "--split", commas=True, shown="all")
    shards: tuple[str, ...] = option((), "Only these shards.", "--shard", commas=True, shown="all")
    workers: int = option(0, "Shards checked at once; 0 takes all cores.", least=0)
    fail_fast: bool = option(False, "Stop at the first shard with an error.")
    max_findings: int = option(1000, "Findings shown; the rest are counted.", least=1)
    isolate: bool = False  # decode in separate processes even with one worker

    def __post_init__(self) -> None:
        """Refuse invalid values; errors name the flag."""
        check(self)
        if self.workers == 0:
            object.__setattr__(self, "workers", len(os.sched_getaffinity(0)))
        path = self.location.path
        if self.report and path and self.report.absolute().parent.resolve() == path.resolve():
            raise UsageFault(f"-o {self.report}: nothing is written into the folder that is checked")

    @property
    def location(self) -> Location:
        """The folder as a location."""
        from omniges.storage.remote import parse_location

        return parse_location(str(self.folder))
