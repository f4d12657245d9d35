"""Python functions that do the same as the commands. Paths are `str` or `Path`; settings are keyword arguments.

The docstring of each function names the class that declares its settings. A function imports other modules when it is
called, so that importing this module is quick.
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
    from omniges.exchange.video import VideoSummary
    from omniges.exchange.view import ViewSummary
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
        output_dir: Folder for the shards, created if absent, or ``s3://BUCKET/FOLDER``. None: the folder ``shards``.
        progress: Show progress on standard error.
        **settings: Options of `PreprocessSettings`, `ConvertSettings` and `Selection`, such as
            ``num_workers=4``, ``keep_audio=True``, ``speakers=("scott",)``.

    Returns:
        A summary of the converted and the rejected recordings; `Summary.exit_code` is 1 if too many were rejected.

    Raises:
        UsageFault: A setting is invalid, or the folder contains shards made with other settings.
        DataError: The split list is invalid.
        EnvironmentFault: The disk is full or not writable, or another run writes to the folder.
    """
    from omniges.pipeline.run import preprocess as run
    from omniges.pipeline.settings import PreprocessSettings
    from omniges.progress import make_reporter

    given = {"root": root} | ({} if output_dir is None else {"output_dir": output_dir}) | settings
    chosen = from_keywords(PreprocessSettings, given, "preprocess")
    with keywords_in_errors(PreprocessSettings):
        return run(chosen, make_reporter("auto" if arguments.flag("progress", progress) else "silent"))


def verify_shards(folder: str | Path = "shards", *, progress: bool = False, **settings: Any) -> VerifyResult:
    """Verify a shard folder, and list every error in it, as ``omniges verify-shards`` does.

    Args:
        folder: Folder of shards, or its URL.
        progress: Show progress on standard error.
        **settings: Options of `VerifySettings`, such as ``level="deep"``.

    Returns:
        The findings; `VerifyResult.valid` is true if no error was found.

    Raises:
        UsageFault: The folder does not exist, or a setting is invalid.
        EnvironmentFault: A server refuses access, or a package for the URL is missing.
    """
    from omniges.verify.run import verify
    from omniges.verify.settings import VerifySettings

    chosen = from_keywords(VerifySettings, {"folder": folder, **settings}, "verify_shards")
    if chosen.output_file is not None:
        raise UsageFault(
            "verify_shards: expected no output_file, because findings are returned, found a file; remove output_file"
        )
    with keywords_in_errors(VerifySettings), _counted("MB checked", shown=progress) as count:
        return verify(chosen, count)


def evaluate(*generated: str | Path, progress: bool = False, **settings: Any) -> Report:
    """Score generated files, or a checkpoint, against the recordings in shards, as ``omniges evaluate`` does.

    Args:
        *generated: Folders of generated results. Pass no folder if ``checkpoint`` is given.
        progress: Show progress on standard error.
        **settings: Options of `EvaluateSettings`, such as ``shards="shards"``, ``checkpoint="run"``, ``split="val"``.

    Returns:
        The metrics of every task, with the files and settings that were used to compute them.

    Raises:
        UsageFault: A setting is invalid, or contradicts another.
        DataError: A file cannot be read.
        EnvironmentFault: A package is missing, or the disk is full or not writable.
    """
    from omniges.evaluation.run import evaluate as run
    from omniges.evaluation.settings import EvaluateSettings

    chosen = from_keywords(EvaluateSettings, {"generated": generated, **settings}, "evaluate")
    with keywords_in_errors(EvaluateSettings):
        return run(chosen, lambda noun: _counted(noun, shown=progress))


def view(*paths: str | Path, output_file: str | Path, progress: bool = False, **settings: Any) -> ViewSummary:
    """Write one HTML page that shows motion with its sound and words, as ``omniges view`` does.

    Args:
        *paths: Folders (of shards, of results or of NPZ files), and single NPZ, WAV and TextGrid files. ``LABEL=PATH``
            shows PATH with the label LABEL.
        output_file: HTML file to write.
        progress: Show progress on standard error.
        **settings: Options of `ViewSettings`, such as ``keys=["2_scott_0_1_1"]``, ``start_s=30``, ``seconds=10``.

    Returns:
        A summary with the clips on the page and the size of the file.

    Raises:
        UsageFault: A path contains nothing to show, or more than a page can show.
        DataError: A file is damaged.
        EnvironmentFault: The page cannot be written.
    """
    from omniges.exchange.settings import ViewSettings
    from omniges.exchange.view import view as run

    given = tuple(str(path) for path in paths)
    chosen = from_keywords(ViewSettings, {"paths": given, "output_file": output_file, **settings}, "view")
    with keywords_in_errors(ViewSettings), _counted("tracks", shown=progress) as count:
        return run(chosen, count)


def render(*paths: str | Path, output_file: str | Path, progress: bool = False, **settings: Any) -> VideoSummary:
    """Write a video of motion with its words and sound, as ``omniges render`` does.

    Args:
        *paths: Folders (of shards, of results or of NPZ files), and single NPZ, WAV and TextGrid files. ``LABEL=PATH``
            shows PATH with the label LABEL.
        output_file: MP4 file to write.
        progress: Show progress on standard error.
        **settings: Options of `RenderSettings`, such as ``camera="three-quarter"``, ``seconds=10``.

    Returns:
        A summary with the tracks in the video, its length and the size of the file.

    Raises:
        UsageFault: The paths contain no motion, several recordings, or more than a video can show.
        DataError: A file is damaged.
        EnvironmentFault: A package is missing, or the video cannot be written.
    """
    from omniges.exchange.settings import RenderSettings
    from omniges.exchange.video import render as run

    given = tuple(str(path) for path in paths)
    chosen = from_keywords(RenderSettings, {"paths": given, "output_file": output_file, **settings}, "render")
    with keywords_in_errors(RenderSettings), _counted("s of video", shown=progress) as count:
        return run(chosen, count)


def load_model(checkpoint: str | Path, weights: Literal["ema", "last"] = "ema") -> Loaded:
    """Load a trained model, on the GPU if there is one.

    To generate, use `OmnigesPipeline.from_pretrained`, which reads the same folder. Use this function to work with the
    network directly.

    Args:
        checkpoint: Folder of a checkpoint or of a run. For a run, the newest valid checkpoint is loaded.
        weights: ``ema``: the EMA weights; ``last``: the weights after the last training step, without averaging.

    Returns:
        An object with ``model``, a torch module in evaluation mode, and ``identity``, a description of the checkpoint.

    Raises:
        UsageFault: The folder contains no checkpoint.
        DataError: The checkpoint is damaged.
    """
    from omniges.generation.sampler import load

    arguments.choice("weights", weights, ("ema", "last"))
    return load(arguments.path("checkpoint", checkpoint), weights)


def sample_corpus(folder: str | Path, *, progress: bool = False, **settings: Any) -> CorpusSummary:
    """Write a small synthetic corpus in BEAT2 layout, as ``omniges sample-corpus`` does.

    Args:
        folder: New or empty folder.
        progress: Show progress on standard error.
        **settings: Options of `CorpusSettings`, such as ``clips=6``, ``seconds=4``.

    Returns:
        A summary with the numbers of clips, speakers and words, and the total length in seconds.

    Raises:
        UsageFault: The folder is not empty, or a setting is invalid.
        EnvironmentFault: The disk is full or not writable.
    """
    from omniges.testing.settings import CorpusSettings
    from omniges.testing.synthetic_corpus import write_sample_corpus

    chosen = from_keywords(CorpusSettings, settings, "sample_corpus")
    with keywords_in_errors(CorpusSettings), _counted("recordings", shown=progress) as count:
        return write_sample_corpus(arguments.path("folder", folder), chosen, count)


@contextmanager
def _counted(noun: str, *, shown: bool) -> Iterator[Callable[[float, float], None]]:
    """Yield a function (done, total) that shows progress on standard error.

    `noun` is the name of the counted things, such as "recordings". If `shown` is False, the function does nothing.
    """
    from omniges.progress import counter

    if not arguments.flag("progress", shown):
        yield lambda _done, _total: None
        return
    with counter(noun) as count:
        yield count
