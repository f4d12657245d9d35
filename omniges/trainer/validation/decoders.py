"""The codecs that a validation decodes with: what a model makes as latents is scored as what they stand for.

Losses need none of them. Where a stream's codec is not given, the tasks that make the stream are not sampled, and all
who would be told their metrics are told why.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from omniges.generation.sampler import Codecs
from omniges.model.streams import StreamName
from omniges.model.tasks import SIX, TASKS
from omniges.shards.latents import CodecEntry


def open_decoders(
    entries: Mapping[StreamName, CodecEntry],
    folders: Mapping[str, Path],
    device: torch.device,
    t5_tokenizer: Path | None = None,
) -> Codecs:
    """Load the codecs of a run's latents whose folders are given by codec name.

    Nothing else changes: a codec's first weights are drawn from torch's generators, which are put back.

    Args:
        entries: the codecs of the run's streams that are latents.
        folders: by name of the codec.
        device: where codecs compute.
        t5_tokenizer: the folder of a text codec's T5 tokenizer where that is not in its own.

    Raises:
        UsageFault: a folder holds another codec than the one that made the shards' latents.
        DataError: a folder holds no codec.
    """
    given = {stream: (entry.name, folders[entry.name]) for stream, entry in entries.items() if entry.name in folders}
    tokenizer = t5_tokenizer if "text" in entries else None
    origin = ("--validation-codec", "the shards")
    codecs = Codecs(entries, list(given.values()), tokenizer, origin=origin, device=device)
    with torch.random.fork_rng(devices=[]):
        for stream in given:
            codecs.load(stream, "decode")
    return codecs


def why_not(codecs: Codecs, task: str) -> str | None:
    """Say why a task's results cannot be made, with the way out; None where they can."""
    stream = codecs.missing(TASKS[task])
    if stream is None:
        return None
    codec = codecs.entries[stream].name
    return f"{stream} is latents of {codec}: give --validation-codec {codec}=FOLDER"


def decoder_remarks(codecs: Codecs) -> list[str]:
    """What a person should know before the first step."""
    decoded = {stream: entry for stream, entry in codecs.entries.items() if codecs.given(stream)}
    told = [f"validation decodes {stream} with {entry.name}" for stream, entry in decoded.items()]
    reasons: dict[str, list[str]] = {}
    for task in SIX:
        if (why := why_not(codecs, task)) is not None:
            reasons.setdefault(why, []).append(task)
    told += [f"metrics and samples of {' and '.join(own)} not computed: {why}" for why, own in reasons.items()]
    return told
