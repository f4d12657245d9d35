"""`omniges demo`: a complete example, from a synthetic corpus to generated clips in a browser."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import typer

from omniges.commands.common import echo, exit_on_sigterm, with_flags
from omniges.errors import UsageFault
from omniges.options import check, declared, option
from omniges.progress import printable
from omniges.storage.files import visible_entries

_CLIPS, _CLIP_S, _SHOWN_S = 40, 24, 12
_TASKS: Final = ("a2g", "t2g", "t2a")  # they generate motion or sound, which a page plays


@declared
@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """Settings of `omniges demo`."""

    folder: Path = option(Path("demo"), "New or empty folder for all files.", argument=True, metavar="DIR")
    minutes: float = option(2.0, "Minutes of training.", above=0)

    def __post_init__(self) -> None:
        """Check the settings; raise UsageFault if the folder has files."""
        check(self)
        if self.folder.exists() and (not self.folder.is_dir() or visible_entries(self.folder)):
            raise UsageFault(f"{self.folder}: expected a new or empty folder, found files in it; choose another folder")


@with_flags("train", exit_on_sigterm)
def demo(settings: DemoSettings) -> None:
    """Train on a synthetic corpus for some minutes, generate clips, and write a page that plays them with sound.

    Exit codes: 0 done, 2 usage, 3 environment, 75 or 143 stopped by a signal, 130 Ctrl-C.
    """
    from omniges.exchange.settings import ViewSettings
    from omniges.exchange.view import view
    from omniges.generation.run import generate
    from omniges.generation.settings import GenerateSettings, Sources
    from omniges.pipeline.run import preprocess
    from omniges.pipeline.settings import ConvertSettings, PreprocessSettings
    from omniges.progress import counter, make_reporter
    from omniges.testing.settings import CorpusSettings
    from omniges.testing.synthetic_corpus import write_sample_corpus
    from omniges.trainer.config import TrainSettings
    from omniges.trainer.train import train

    folder = settings.folder
    corpus, shards, run, results = (folder / name for name in ("corpus", "shards", "run", "generated"))
    _tell(f"sample-corpus {corpus} --clips {_CLIPS} --seconds {_CLIP_S}")
    write_sample_corpus(corpus, CorpusSettings(clips=_CLIPS, seconds=_CLIP_S))
    _tell(f"preprocess --root {corpus} --output-dir {shards} --keep-audio")
    convert = ConvertSettings(keep_audio=True)
    converted = preprocess(PreprocessSettings(root=corpus, output_dir=shards, convert=convert), make_reporter("auto"))
    _require_done(converted.exit_code)
    _tell(f"train --shards {shards} --output-dir {run} --max-minutes {settings.minutes:g} --validation-steps 0")
    steps = TrainSettings(shards=(str(shards),), output_dir=run, max_minutes=settings.minutes, validation_steps=0)
    trained = train(steps)
    _require_done(trained.outcome.exit_code)
    if not trained.step:
        raise UsageFault(
            f"--minutes {settings.minutes:g}: expected enough time for one training step, found less; raise --minutes"
        )
    for task in _TASKS:
        inputs = f"--shards {shards} --split test --seconds {_SHOWN_S}"
        _tell(f"generate --checkpoint {run} --task {task} {inputs} -o {results / task}")
        sources = Sources(shards=shards, split="test", seconds=_SHOWN_S)
        with counter("s generated") as count:
            generate(GenerateSettings(checkpoint=run, task=task, output_dir=results / task, sources=sources), count)
    page = folder / "page.html"
    _tell(f"view {shards} {results} --seconds {_SHOWN_S} -o {page}")
    shown = view(ViewSettings(paths=(str(shards), str(results)), seconds=_SHOWN_S, output_file=page))
    echo("\n".join(map(printable, shown.lines)))
    echo(printable(f"open {page} in a browser: recorded and generated clips side by side, with sound"))


def _tell(command: str) -> None:
    """Print the command line that does the same as a step of the demo."""
    echo(printable(f"+ omniges {command}"))


def _require_done(code: int) -> None:
    """Exit with the exit code of a step if the step did not succeed."""
    if code:
        raise typer.Exit(int(code))
