"""What a run validates on and with, from its settings; what cannot be is refused before the first step."""

from __future__ import annotations

import importlib.util

from omniges.data.sequence import DataSource
from omniges.errors import EnvironmentFault, UsageFault
from omniges.evaluation.text import UNTIMED
from omniges.features.timebase import FRAME_RATE_HZ, FRAMES_PER_TICK
from omniges.generation.sampler import Codecs, Sampler
from omniges.metrics.beats import least_frames
from omniges.model.settings import SamplingSettings
from omniges.model.spec import ModelIdentity
from omniges.trainer.config import TrainSettings
from omniges.trainer.distributed import Ranks
from omniges.trainer.train_step import Learner
from omniges.trainer.validation.decoders import decoder_remarks, open_decoders, why_not
from omniges.trainer.validation.held_out import HeldOut, open_held_out
from omniges.trainer.validation.run import Validation, ValidationSettings
from omniges.trainer.validation.samples import INSTRUMENTS


def open_validation(
    settings: TrainSettings, data: tuple[DataSource, ...], identity: ModelIdentity, learner: Learner, ranks: Ranks
) -> tuple[Validation | None, list[str]]:
    """The validation that was asked for, or by default one where there is something to validate on; remarks.

    Raises UsageFault for what cannot be, DataError for a damaged codec, EnvironmentFault where nothing can be drawn.
    """
    if settings.validation_steps == 0:
        return None, []
    try:
        held_out = open_held_out(data, settings.window_ticks, settings.validation_windows, identity.tick_multiple)
    except UsageFault as fault:
        if settings.validation_steps is not None:
            raise
        return None, [f"no validation: {fault}"]
    if settings.validation_samples and importlib.util.find_spec("matplotlib") is None:
        raise EnvironmentFault(
            "validation draws pictures with matplotlib, which is not installed: pip install 'omniges[train]', or train "
            "with --validation-samples 0"
        )
    model = learner.averaged()
    device = next(model.parameters()).device
    codecs = open_decoders(identity.codecs, settings.validation_codecs, device, settings.t5_tokenizer)
    require_computable(settings.best_metric, held_out, codecs)
    own = ValidationSettings(
        samples=settings.validation_samples,
        sampling=SamplingSettings(steps=settings.validation_sampling_steps),
        best_metric=settings.best_metric,
    )
    validation = Validation(held_out, Sampler(model, identity, codecs, learner.autocast), own, ranks)
    return validation, [*_remarks(held_out, identity), *decoder_remarks(codecs)]


def _remarks(held_out: HeldOut, identity: ModelIdentity) -> list[str]:
    speakers = {window.row.speaker for window in held_out.windows}
    unknown = sorted(str(name) for name in speakers if name not in identity.speakers)
    recordings = {(window.source, window.row.key) for window in held_out.windows}
    chosen = f"{len(held_out.windows)} of {held_out.available} windows of the val split"
    remarks = [f"validates on {chosen}, from {len(recordings)} recordings of {len(speakers)} speakers"]
    if unknown:
        remarks.append(f"speakers that are not in the train split count as unknown: {', '.join(unknown[:5])}")
    return remarks


def require_computable(metric: str, held_out: HeldOut, codecs: Codecs) -> None:
    """Raise UsageFault for a name of ``--best-metric`` that no validation of a run can have a value of."""
    task, _, name = metric.partition("/")
    if name in {"", "loss"}:
        return
    why = why_not(codecs, task) or _lacking(name, held_out, codecs)
    if why is not None:
        raise UsageFault(f"--best-metric {metric}: not computed in this run, for {why}; or choose loss or {task}/loss")


def _lacking(metric: str, held_out: HeldOut, codecs: Codecs) -> str | None:
    """What a metric needs that no window has, with the way to it."""
    if metric.startswith(("word_start", "word_end")) and codecs.untimed_text:
        return UNTIMED
    members = {name for window in held_out.windows for name in window.row.members}
    if metric == "semantic_recall" and "sem.json" not in members:
        return "no recording that it validates on has a semantic annotation"
    if metric != "beat_consistency":
        return None
    if not members & {"flac", "audio.npy"}:
        return "there is no audio in the shards: preprocess with --keep-audio"
    least = -(-least_frames(INSTRUMENTS.profile.beats) // FRAMES_PER_TICK)
    if held_out.windows[0].ticks < least:
        seconds = least * FRAMES_PER_TICK / FRAME_RATE_HZ
        return f"windows are shorter than {seconds:.1f} s: train with --window-ticks {least} or more"
    return None
