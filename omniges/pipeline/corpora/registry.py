"""Registry of corpora (kinds of data sets) for `preprocess --corpus`; docs/how-to/extend.md explains how to add one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from omniges.pipeline.settings import DEFAULT_CORPUS
from omniges.registry import Registry

if TYPE_CHECKING:  # only the workers import the decoders, the main process does not
    from omniges.pipeline.convert import Inputs, Take
    from omniges.pipeline.discover import Discovery
    from omniges.pipeline.settings import ConvertSettings, PreprocessSettings, Selection


@runtime_checkable
class Corpus(Protocol):
    """Interface of a data set: it finds the recordings and decodes the files of a recording."""

    def recognizes(self, root: Path) -> bool:
        """Return whether a folder looks like this corpus; used if ``--corpus`` is not given."""

    def discover(
        self, root: Path, selection: Selection, *, split_csv: Path | None = None, allow_roots: tuple[Path, ...] = ()
    ) -> Discovery:
        """Return the recordings under `root` and the rejected stems.

        The field `corpus` of each recording must be the registered name of the corpus.

        Args:
            root: The data set, or a folder that contains it.
            selection: Filters and folder names.
            split_csv: Path of a split list that replaces the lists of the data set; None: use the data set's own lists.
            allow_roots: Folders outside of `root` that links may lead to.

        Returns:
            Recordings to convert and rejected stems.

        Raises:
            UsageFault: The root does not contain the data set, or the filters exclude all recordings.
            DataError: A split list is invalid.
        """

    def take(self, inputs: Inputs, settings: ConvertSettings) -> Take | None:
        """Decode the files of one recording. This method runs in a worker process.

        A part that the corpus lacks has the value None in the take, or NaN in the take's motion.

        Args:
            inputs: Reader of the recording's files; faults are recorded with `inputs.add`.
            settings: Settings of the conversion.

        Returns:
            The decoded recording, or None after a fault was recorded.

        Raises:
            RecordingFault: The recording cannot be used.
        """


CORPORA: Final[Registry[Corpus]] = Registry(
    "corpus", "omniges.corpora", Corpus, {DEFAULT_CORPUS: "omniges.pipeline.corpora.beat2:BEAT2"}
)


def register_corpus(name: str, corpus: Corpus) -> None:
    """Register a corpus under a name for the rest of this process.

    The workers of `preprocess` are separate processes and find corpora only by entry points. So without an entry point
    `discover` works, but `preprocess` does not.

    Args:
        name: Value of ``--corpus``.
        corpus: An object with the methods of `Corpus`.

    Raises:
        UsageFault: The name is taken, or the object lacks a method of `Corpus`.
    """
    CORPORA.register(name, corpus)


def guess_corpus(root: Path) -> str:
    """Return the name of the first corpus that recognizes a folder; BEAT2 if none does.

    If no corpus recognizes the folder, the errors of BEAT2 list the expected folders. BEAT2 is tried first, so that its
    folders are recognized without importing other packages.
    """
    for name in CORPORA.names():
        if CORPORA.get(name).recognizes(root):
            return name
    return DEFAULT_CORPUS


def find_recordings(settings: PreprocessSettings) -> tuple[PreprocessSettings, Discovery]:
    """Find the recordings of a run; guess the corpus if ``--corpus`` is not given.

    Return the settings with the name of the corpus in the field `corpus`, and the result of the search.
    """
    if settings.corpus is not None:
        CORPORA.require(settings.corpus, f"--corpus {settings.corpus}")
    name = settings.corpus or guess_corpus(settings.root)
    found = CORPORA.get(name).discover(
        settings.root, settings.selection, split_csv=settings.split_csv, allow_roots=settings.allow_roots
    )
    return replace(settings, corpus=name), found
