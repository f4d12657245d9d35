"""``omniges evaluate``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from omniges.commands.common import T5Tokenizer, listed, needs, tidy
from omniges.errors import UsageFault

__all__ = ["evaluate"]

_SPLIT, _STEPS = "test", 20

Work = Annotated[
    Path | None, typer.Option(help="Folder that keeps what is generated.", show_default="removed afterwards")
]

Profile = Annotated[Literal["corrected", "emage-2024", "emage-eval-2025"], typer.Option(help="How gesture is scored.")]
FeatureFiles = Annotated[
    tuple[Path, Path] | None,
    typer.Option(help="Features of the results and of their recordings, .npy each, in place of an encoder."),
]
TrustProgram = Annotated[
    bool, typer.Option("--trust-encoder-program", help="Run a TorchScript encoder, which is a program.")
]


def evaluate(
    generated: Annotated[
        list[Path] | None, typer.Argument(metavar="DIR...", help="Folders of generated results.", show_default=False)
    ] = None,
    shards: Annotated[Path, typer.Option(help="Folder of shards with the recordings.")] = Path("shards"),
    checkpoint: Annotated[Path | None, typer.Option(help="Generate first, with this run or checkpoint.")] = None,
    codec: Annotated[list[str], typer.Option(help="Its codec and folder: NAME=FOLDER.")] = [],
    t5_tokenizer: T5Tokenizer = None,
    tasks: Annotated[list[str], typer.Option(help="Tasks to generate.", show_default="the six")] = [],
    split: Annotated[str, typer.Option(help="Split to generate for.")] = _SPLIT,
    work: Work = None,
    steps: Annotated[int, typer.Option(help="Steps of sampling.")] = _STEPS,
    num_samples: Annotated[int, typer.Option(help="Results to generate for each recording.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of generation, intervals and shuffling.")] = 0,
    task: Annotated[str | None, typer.Option(help="Task of files that have no record.")] = None,
    profile: Profile = "corrected",
    body_model: Annotated[Path | None, typer.Option(help="SMPL-X model, .npz, for joints and face.")] = None,
    encoder: Annotated[Path | None, typer.Option(help="Encoder for the Fréchet distance.")] = None,
    features: FeatureFiles = None,
    trust_encoder_program: TrustProgram = False,
    mean_speeds: Annotated[Path | None, typer.Option(help="Mean joint speeds, .npy of (55,) m/s.")] = None,
    resamples: Annotated[int, typer.Option(help="Draws of recordings for the intervals.")] = 2000,
    format: Annotated[  # noqa: A002 - the flag's name
        Literal["table", "json", "csv", "markdown"], typer.Option(help="Form of the report.")
    ] = "table",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File for the report.")] = None,
) -> None:
    """Score generated files, or a checkpoint, against the recordings in shards.

    Exit codes: 0 done, 1 bad files, 2 usage, 3 environment, 130 Ctrl-C, 143 SIGTERM.
    """
    from omniges.progress import counter
    from omniges.storage.atomic import publish_bytes

    with needs("train"):
        from omniges.codecs.registry import named_folder
        from omniges.evaluation.report import render
        from omniges.evaluation.run import EvaluateSettings, FromCheckpoint
        from omniges.evaluation.run import evaluate as run

    if out is not None and not out.parent.is_dir():
        raise UsageFault(f"-o {out}: the folder {out.parent} expected, found none: create it first")
    source = None
    if checkpoint is None:
        of_codecs = {"--codec": codec != [], "--t5-tokenizer": t5_tokenizer is not None}
        of_results = {"--tasks": tasks != [], "--split": split != _SPLIT, "--work": work is not None}
        _refuse_unread(of_codecs | of_results | {"--steps": steps != _STEPS, "--num-samples": num_samples != 1})
    else:
        source = FromCheckpoint(
            checkpoint=checkpoint,
            codecs=tuple(named_folder("--codec", text) for text in codec),
            t5_tokenizer=t5_tokenizer,
            tasks=listed(tasks),
            split=split,
            work=work,
            steps=steps,
            num_samples=num_samples,
        )
    settings = EvaluateSettings(
        generated=tuple(generated or ()),
        source=source,
        shards=shards,
        task=task,
        profile=profile,
        body_model=body_model,
        encoder=encoder,
        features=features,
        trust_program=trust_encoder_program,
        mean_speeds=mean_speeds,
        resamples=resamples,
        seed=seed,
    )
    with tidy():
        text = render(run(settings, counter), format)
    if out is None:
        typer.echo(text, nl=False)
    else:
        publish_bytes(out, text.encode())


def _refuse_unread(given: Mapping[str, bool]) -> None:
    """Refuse flags of generation where nothing is generated."""
    unread = [flag for flag, is_given in given.items() if is_given]
    if unread:
        raise UsageFault(f"{unread[0]}: it says how to generate, which only --checkpoint does: leave it away")
