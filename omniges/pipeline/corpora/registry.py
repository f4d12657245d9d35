"""Corpora by name: what `preprocess --corpus` takes. docs/extend.md says how to add one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from omniges.pipeline.settings import DEFAULT_CORPUS
from omniges.registry import Registry

if TYPE_CHECKING:  # the pool does without the decoders, which its workers load
    from omniges.pipeline.convert import Inputs, Take
    from omniges.pipeline.discover import Discovery
    from omniges.pipeline.settings import ConvertSettings, PreprocessSettings, Selection


@runtime_checkable
class Corpus(Protocol):
    """A data set on disk: which recordings it has, and how the files of one are read."""

    def recognizes(self, root: Path) -> bool:
        """Say whether a folder looks like this corpus; used where ``--corpus`` is not given."""

    def discover(
        self, root: Path, selection: Selection, *, split_csv: Path | None = None, allow_roots: tuple[Path, ...] = ()
    ) -> Discovery:
        """Return the recordings under `root`, each with the corpus's registered name, and what was rejected.

        Args:
            root: the data set, or a folder that has it.
            selection: what is wanted of it.
            split_csv: a split list in the place of the data set's own.
            allow_roots: folders outside of `root` that links may lead to.

        Returns:
            Recordings and rejections.

        Raises:
            UsageFault: The root holds no such data set, or the selection selects nothing.
            DataError: The data set's own lists are broken.
        """

    def take(self, inputs: Inputs, settings: ConvertSettings) -> Take | None:
        """Decode the files of one recording; runs in a worker process.

        What the corpus does not have is None, or NaN in the motion. Returns None once a fault was filed with
        `inputs.add`, or raises RecordingFault.
        """


CORPORA: Final[Registry[Corpus]] = Registry(
    "corpus", "omniges.corpora", Corpus, {DEFAULT_CORPUS: "omniges.pipeline.corpora.beat2:BEAT2"}
)


def register_corpus(name: str, corpus: Corpus) -> None:
    """Make a corpus known by a name for the rest of this process.

    The workers of `preprocess` are processes of their own, which find corpora by entry points: without one,
    `discover` works, and `preprocess` does not.

    Args:
        name: for ``--corpus``.
        corpus: an object with the methods of `Corpus`.

    Raises:
        UsageFault: The name is taken, or the object is no corpus.
    """
    CORPORA.register(name, corpus)


def guess_corpus(root: Path) -> str:
    """Return the name of the corpus that a folder looks like; BEAT2, whose errors say what was looked for, if none.

    BEAT2 is asked first, so that no other package is imported for it.
    """
    for name in CORPORA.names():
        if CORPORA.get(name).recognizes(root):
            return name
    return DEFAULT_CORPUS


def find_recordings(settings: PreprocessSettings) -> tuple[PreprocessSettings, Discovery]:
    """Discover as settings say; returns them with the corpus that was given or guessed, and what was found."""
    if settings.corpus is not None:
        CORPORA.require(settings.corpus, f"--corpus {settings.corpus}")
    name = settings.corpus or guess_corpus(settings.root)
    found = CORPORA.get(name).discover(
        settings.root, settings.selection, split_csv=settings.split_csv, allow_roots=settings.allow_roots
    )
    return replace(settings, corpus=name), found
