"""Small codecs and shards with their latents, which tests of codecs, training, validation and generation share."""

from __future__ import annotations

from pathlib import Path

import pytest

Folders = dict[str, Path]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A folder of each codec, by name."""
    from latent_builders import write_codecs  # diffusers: 2 s that most tests do not need

    return write_codecs(tmp_path_factory.mktemp("codecs"))


@pytest.fixture(scope="session")
def vae(folders: Folders) -> Path:
    """The folder of the codec of audio."""
    from latent_builders import AUDIO

    return folders[AUDIO]


@pytest.fixture(scope="session")
def encoded(shards: Path, vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with latents of audio. Whoever changes them takes a copy."""
    from latent_builders import AUDIO, encoded_shards

    return encoded_shards(shards, tmp_path_factory.mktemp("encoded") / "shards", {AUDIO: vae})


@pytest.fixture(scope="session")
def encoded_both(shards: Path, folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with latents of audio and gesture. Whoever changes them takes a copy."""
    from latent_builders import encoded_shards

    return encoded_shards(shards, tmp_path_factory.mktemp("encoded-both") / "shards", folders)


@pytest.fixture(scope="session")
def text_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a codec of text."""
    from text_latents_builders import write_text_vae

    return write_text_vae(tmp_path_factory.mktemp("text-vae"))


@pytest.fixture(scope="session")
def encoded_text(shards: Path, text_vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with latents of text. Whoever changes them takes a copy."""
    from text_latents_builders import encoded_shards

    out = tmp_path_factory.mktemp("encoded-text") / "shards"
    encoded_shards(shards, text_vae, out)
    return out


@pytest.fixture(scope="session")
def recording(corpus: Path) -> dict[str, tuple[Path, ...]]:
    """The files of one recording, by what they are given as."""
    from latent_builders import recording_files

    return recording_files(corpus)
