"""omniges converts recordings to verified shards, and trains one joint flow model of text, audio and gesture.

The public names are in `__all__`; docs/reference/api.md describes them. Each name is imported at its first use, so that
``import omniges`` loads neither torch nor numpy.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from omniges.api import evaluate, load_model, preprocess, render, sample_corpus, verify_shards, view
    from omniges.codecs.registry import load_codec, register_codec
    from omniges.codecs.settings import EncodeSettings
    from omniges.conditions.base import ConditionStream
    from omniges.conditions.registry import register_stream
    from omniges.data.samples import Sample, open_shards
    from omniges.data.web import webdataset
    from omniges.data.windows import WindowDataset
    from omniges.errors import DataError, EnvironmentFault, OmnigesError, UsageFault
    from omniges.evaluation.settings import EvaluateSettings
    from omniges.exchange.settings import RenderSettings, ViewSettings
    from omniges.formats.motion import SmplxMotion, read_motion, write_motion
    from omniges.generation.pipeline import OmnigesPipeline
    from omniges.generation.settings import GenerateSettings, Sources
    from omniges.metrics.registry import register_metric
    from omniges.model.tasks import SamplingSettings
    from omniges.pipeline.corpora.registry import register_corpus
    from omniges.pipeline.recording import Recording
    from omniges.pipeline.settings import ConvertSettings, PreprocessSettings, Selection
    from omniges.pipeline.write import write_shards
    from omniges.testing.settings import CorpusSettings
    from omniges.trainer.config import TrainSettings
    from omniges.verify.settings import VerifySettings

# The public names of each module. Type checkers read the same names in the imports above.
_MODULES = {
    "omniges.api": ("evaluate", "load_model", "preprocess", "render", "sample_corpus", "verify_shards", "view"),
    "omniges.codecs.registry": ("load_codec", "register_codec"),
    "omniges.codecs.settings": ("EncodeSettings",),
    "omniges.conditions.base": ("ConditionStream",),
    "omniges.conditions.registry": ("register_stream",),
    "omniges.data.samples": ("Sample", "open_shards"),
    "omniges.data.web": ("webdataset",),
    "omniges.data.windows": ("WindowDataset",),
    "omniges.errors": ("DataError", "EnvironmentFault", "OmnigesError", "UsageFault"),
    "omniges.evaluation.settings": ("EvaluateSettings",),
    "omniges.exchange.settings": ("RenderSettings", "ViewSettings"),
    "omniges.formats.motion": ("SmplxMotion", "read_motion", "write_motion"),
    "omniges.generation.pipeline": ("OmnigesPipeline",),
    "omniges.generation.settings": ("GenerateSettings", "Sources"),
    "omniges.metrics.registry": ("register_metric",),
    "omniges.model.tasks": ("SamplingSettings",),
    "omniges.pipeline.corpora.registry": ("register_corpus",),
    "omniges.pipeline.recording": ("Recording",),
    "omniges.pipeline.settings": ("ConvertSettings", "PreprocessSettings", "Selection"),
    "omniges.pipeline.write": ("write_shards",),
    "omniges.testing.settings": ("CorpusSettings",),
    "omniges.trainer.config": ("TrainSettings",),
    "omniges.verify.settings": ("VerifySettings",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "ConditionStream",
    "ConvertSettings",
    "CorpusSettings",
    "DataError",
    "EncodeSettings",
    "EnvironmentFault",
    "EvaluateSettings",
    "GenerateSettings",
    "OmnigesError",
    "OmnigesPipeline",
    "PreprocessSettings",
    "Recording",
    "RenderSettings",
    "Sample",
    "SamplingSettings",
    "Selection",
    "SmplxMotion",
    "Sources",
    "TrainSettings",
    "UsageFault",
    "VerifySettings",
    "ViewSettings",
    "WindowDataset",
    "__version__",
    "evaluate",
    "load_codec",
    "load_model",
    "open_shards",
    "preprocess",
    "read_motion",
    "register_codec",
    "register_corpus",
    "register_metric",
    "register_stream",
    "render",
    "sample_corpus",
    "verify_shards",
    "view",
    "webdataset",
    "write_motion",
    "write_shards",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use.

    Args:
        name: A name of `__all__`.

    Returns:
        The object.

    Raises:
        AttributeError: The name is unknown.
        ImportError: A package is missing; the message says how to install it.
    """
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'omniges' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - only when a name is used

    try:
        found = getattr(import_module(_MODULE_OF[name]), name)
    except ModuleNotFoundError as error:
        package = (error.name or "omniges").partition(".")[0]
        if package == "omniges":
            raise
        raise ImportError(
            f"omniges.{name}: expected the package {package}, found that it is not installed; run pip install "
            "'omniges[train]'"
        ) from error
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
