"""Settings of `omniges verify-shards`. The module imports little, so that `omniges --help` is fast."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from omniges.errors import UsageFault
from omniges.options import about, check, declared, option
from omniges.shards.schema import Split
from omniges.storage.atomic import require_output_file

if TYPE_CHECKING:
    from omniges.storage.remote import Location


Level = Literal["quick", "full", "deep"]


@declared
@dataclass(frozen=True, slots=True, kw_only=True)
class VerifySettings:
    """Settings of `omniges verify-shards`."""

    folder: str | Path = field(
        default="shards",
        repr=False,  # a URL may contain credentials
        metadata=about("Folder of shards, or its URL.", argument=True, metavar="DIR", was=("shards",)),
    )
    level: Level = option(
        "full", "quick: sizes, counts, shard starts and ends; full: also checksums and headers; deep: also all content."
    )
    splits: tuple[Split, ...] = option(
        (), "Check only the shards of these splits.", "--split", commas=True, shown="all"
    )
    shard_names: tuple[str, ...] = option(
        (), "Check only these shards, such as train-000000.tar.", "--shard", commas=True, shown="all"
    )
    num_workers: int = option(0, "Shards checked at once; 0: one for each core.", minimum=0, was=("workers",))
    fail_fast: bool = option(False, "Stop at the first shard with an error.")
    max_findings: int = option(1000, "Number of findings to show; others are only counted.", minimum=1)
    output_file: Path | None = option(
        None,
        "File for the findings, outside of the folder.",
        "--output-file",
        "-o",
        was=("out", "report"),
        shown="standard output",
    )
    isolate: bool = False  # decode FLAC in a separate process even with one worker

    def __post_init__(self) -> None:
        """Refuse invalid values; the error names the flag."""
        check(self)
        if self.num_workers == 0:
            object.__setattr__(self, "num_workers", len(os.sched_getaffinity(0)))
        require_output_file("--output-file", self.output_file)
        path = self.location.path
        if self.output_file and path and self.output_file.absolute().parent.resolve() == path.resolve():
            raise UsageFault(
                f"--output-file {self.output_file}: expected a file outside of the folder that is checked; choose "
                "another file"
            )

    @property
    def location(self) -> Location:
        """Location of the shard folder."""
        from omniges.storage.remote import parse_location

        return parse_location(str(self.folder))
