"""Plain functions over what commands do: paths as `str` or `Path`, settings as keywords.

Each setting is declared once, in its settings class, which the docstring names. Rooms are imported when a function is
called, so that this costs nothing to import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omniges import arguments
from omniges.errors import UsageFault
from omniges.options import from_keywords, keywords_in_errors

if TYPE_CHECKING:
    from omniges.evaluation.report import Report
    from omniges.generation.sampler import Loaded
    from omniges.pipeline.settings import Summary
    from omniges.testing.synthetic_corpus import CorpusSummary
    from omniges.verify.run import VerifyResult


def preprocess(
    root: str | Path, output_dir: str | Path | None = None, *, progress: bool = False, **settings: Any
) -> Summary:
    """Convert the BEAT2 recordings under a folder to shards, as ``omniges preprocess`` does.

    Args:
        root: Folder of the data set.
        output_dir: Folder for the shards, created if absent; None: ``shards``.
        progress: Show progress on standard error.
        **settings: Of `PreprocessSettings`, and of its parts `ConvertSettings` and `Selection`: ``num_workers=4``,
            ``keep_audio=True``, ``speakers=("scott",)``.

    Returns:
        What was converted and what was not; `Summary.exit_code` is 1 where too many recordings were rejected.

    Raises:
        UsageFault: A setting cannot be, or the folder holds a set made with other settings.
        DataError: The split list is broken.
        EnvironmentFault: The disk is in the way, or another run is writing there.
    """
    from omniges.pipeline.run import preprocess as run
    from omniges.pipeline.settings import PreprocessSettings
    from omniges.progress import make_reporter

    given = {"root": root} | ({} if output_dir is None else {"output_dir": output_dir}) | settings
    chosen = from_keywords(PreprocessSettings, given, "preprocess")
    with keywords_in_errors(PreprocessSettings):
        return run(chosen, make_reporter("auto" if arguments.flag("progress", progress) else "silent"))


def verify_shards(folder: str | Path = "shards", *, progress: bool = False, **settings: Any) -> VerifyResult:
    """Verify a shard folder, or list what is wrong with it, as ``omniges verify-shards`` does.

    Args:
        folder: Folder of shards, or a URL of one.
        progress: Show progress on standard error.
        **settings: Of `VerifySettings`, such as ``level="deep"``.

    Returns:
        The findings; `VerifyResult.sound` says whether there is no error.

    Raises:
        UsageFault: There is no such folder, or a setting cannot be.
        EnvironmentFault: A server refuses, or a package for the URL is missing.
    """
    from omniges.verify.run import verify
    from omniges.verify.settings import VerifySettings

    chosen = from_keywords(VerifySettings, {"folder": folder, **settings}, "verify_shards")
    if chosen.output_file is not None:
        raise UsageFault("verify_shards: findings are returned, not written: remove output_file")
    with keywords_in_errors(VerifySettings), _counted("MB checked", shown=progress) as count:
        return verify(chosen, count)


def evaluate(*generated: str | Path, progress: bool = False, **settings: Any) -> Report:
    """Score generated files, or a checkpoint, against the recordings in shards, as ``omniges evaluate`` does.

    Args:
        *generated: Folders of generated results; none where ``checkpoint`` is given.
        progress: Show progress on standard error.
        **settings: Of `EvaluateSettings`, such as ``shards="shards"``, ``checkpoint="run"``, ``split="val"``.

    Returns:
        Figures of every task, and what they rest on.

    Raises:
        UsageFault: A setting cannot be, or contradicts another.
        DataError: A file cannot be read.
        EnvironmentFault: A package is missing, or the disk is in the way.
    """
    from omniges.evaluation.run import evaluate as run
    from omniges.evaluation.settings import EvaluateSettings

    chosen = from_keywords(EvaluateSettings, {"generated": generated, **settings}, "evaluate")
    with keywords_in_errors(EvaluateSettings):
        return run(chosen, lambda noun: _counted(noun, shown=progress))


def load_model(checkpoint: str | Path, weights: Literal["ema", "last"] = "ema") -> Loaded:
    """Load a trained model, on the GPU if there is one.

    To generate, `OmnigesPipeline.from_pretrained` takes the same folder; this is for work on the network itself.

    Args:
        checkpoint: Folder of a run, whose newest valid checkpoint is taken, or of a checkpoint.
        weights: EMA weights, or the last ones.

    Returns:
        ``model``, a torch module in evaluation mode, and ``identity``, what the checkpoint says of it.

    Raises:
        UsageFault: There is none.
        DataError: It is damaged.
    """
    from omniges.generation.sampler import load

    arguments.choice("weights", weights, ("ema", "last"))
    return load(arguments.path("checkpoint", checkpoint), weights)


def sample_corpus(folder: str | Path, *, progress: bool = False, **settings: Any) -> CorpusSummary:
    """Write a small synthetic corpus in BEAT2 layout, as ``omniges sample-corpus`` does.

    Args:
        folder: New or empty folder.
        progress: Show progress on standard error.
        **settings: Of `CorpusSettings`, such as ``clips=6``, ``seconds=4``.

    Returns:
        Counts and lengths of what was written.

    Raises:
        UsageFault: The folder holds something, or a setting cannot be.
        EnvironmentFault: The disk is in the way.
    """
    from omniges.testing.settings import CorpusSettings
    from omniges.testing.synthetic_corpus import write_sample_corpus

    chosen = from_keywords(CorpusSettings, settings, "sample_corpus")
    with keywords_in_errors(CorpusSettings), _counted("recordings", shown=progress) as count:
        return write_sample_corpus(arguments.path("folder", folder), chosen, count)


@contextmanager
def _counted(noun: str, *, shown: bool) -> Iterator[Callable[[float, float], None]]:
    """Yield a function (done, total) that shows a count on standard error, or does nothing."""
    from omniges.progress import counter

    if not arguments.flag("progress", shown):
        yield lambda _done, _total: None
        return
    with counter(noun) as count:
        yield count
