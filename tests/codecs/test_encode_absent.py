"""`encode` of sets in which samples lack what a codec reads: refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
from latent_builders import AUDIO, GESTURE
from pipeline_helpers import digests, omniges
from sample_set_builders import take, write_takes

KEYS = ("1_a_0_1_1", "1_a_0_2_2", "2_b_0_3_3")
TEXT = "omniflow-text-vae"


@pytest.fixture(scope="module")
def codecs(folders: dict[str, Path], text_vae: Path) -> dict[str, Path]:
    return folders | {TEXT: text_vae}


def set_without(folder: Path, *lacking: str) -> Path:
    """Three samples, the second of which lacks some parts."""
    return write_takes(folder, [take(key, 4.0, lacking=lacking if key == KEYS[1] else ()) for key in KEYS])


@pytest.mark.parametrize(
    ("lacking", "name", "message"),
    [
        (
            "audio",
            AUDIO,
            f"{AUDIO} reads (audio), found 1 of 3 samples that lack some (for example {KEYS[1]} without audio);",
        ),
        ("motion", GESTURE, f"{KEYS[1]} without upper, hands, lower, root, face);"),
        ("face", GESTURE, f"the parts that {GESTURE} reads (upper, hands, lower, root, face), found 1 of 3 samples"),
        (
            "text",
            TEXT,
            f"{TEXT} reads (text), found 1 of 3 samples that lack some (for example {KEYS[1]} without text);",
        ),
    ],
)
def test_the_command_says_in_one_line_how_many_lack_which_part(
    tmp_path: Path, codecs: dict[str, Path], lacking: str, name: str, message: str
) -> None:
    shards = set_without(tmp_path / "s", lacking)
    before = digests(shards)
    for more in ((), ("--out", tmp_path / "out")):
        refused = omniges("encode", "--shards", shards, "--with", f"{name}={codecs[name]}", *more)
        assert refused.returncode == 2, refused.stderr
        assert message in refused.stderr
        assert "write the complete samples to new shards with omniges.open_shards and" in refused.stderr
        assert refused.stderr.count("\n") == 1
    assert digests(shards) == before
    assert not (tmp_path / "out").exists()


def test_parts_that_a_codec_does_not_read_may_be_absent(tmp_path: Path, codecs: dict[str, Path]) -> None:
    shards = set_without(tmp_path / "s", "face", "text", "jaw_eyes")
    done = omniges("encode", "--shards", shards, "--with", f"{AUDIO}={codecs[AUDIO]}")
    assert done.returncode == 0, done.stderr
