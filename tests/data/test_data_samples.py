"""`open_shards` gives what lies in the shards, read with tarfile and numpy alone, for both versions of the contract."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from omniges.data.samples import Span, Word, open_shards
from omniges.errors import DataError, OmnigesError, UsageFault


def members_of(folder: Path) -> dict[str, dict[str, bytes]]:
    """The bytes of every member, by key and member."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                key, _, member = info.name.partition(".")
                stream = tar.extractfile(info)
                assert stream
                found.setdefault(key, {})[member] = stream.read()
    return found


def array(data: bytes) -> np.ndarray[Any, Any]:
    loaded: np.ndarray[Any, Any] = np.load(io.BytesIO(data), allow_pickle=False)
    return loaded


@pytest.mark.parametrize("name", ["whole_set", "version_1", "partial_set"])
def test_every_field_is_that_of_the_shard(name: str, request: pytest.FixtureRequest) -> None:
    """All samples, all fields; absent parts are NaN, None or empty."""
    folder: Path = request.getfixturevalue(name)
    members = members_of(folder)
    shards = open_shards(folder)
    assert list(shards.keys) == [sample.key for sample in shards] == list(members)
    for sample in shards:
        raw = members[sample.key]
        for field, member in (
            ("gesture", "gesture.npy"),
            ("jaw_eyes", "jaw_eyes.npy"),
            ("mel", "mel.npy"),
            ("betas", "betas.npy"),
            ("start_xz", "start_xz.npy"),
        ):
            assert np.array_equal(getattr(sample, field), array(raw[member]), equal_nan=True)
        text, spans = ("words.json", "sem.json") if name == "version_1" else ("words.txt", "sem.txt")
        assert sample.words == tuple(Word(w["word"], w["start"], w["end"]) for w in json.loads(raw[text]))
        if "sem" in sample.present:
            names = ("name", "start", "end", "score", "keywords")
            assert sample.semantic == tuple(Span(*(one[n] for n in names)) for one in json.loads(raw[spans]))
        else:
            assert sample.semantic is None
        if "audio" not in sample.present:
            assert sample.waveform is None
        elif name == "version_1":
            assert np.array_equal(sample.waveform, soundfile.read(io.BytesIO(raw["flac"]), dtype="float32")[0])
        else:
            assert np.array_equal(sample.waveform, array(raw["audio.npy"]))
        assert sample.metadata == json.loads(raw["json"])
        assert (sample.frames, sample.seconds) == (len(sample.gesture), len(sample.gesture) / 30)


def test_the_two_versions_give_the_same_samples(whole_set: Path, version_1: Path) -> None:
    for one, other in zip(open_shards(whole_set), open_shards(version_1), strict=True):
        same = ("key", "stem", "split", "speaker_id", "speaker", "language", "labels", "present", "words", "semantic")
        assert all(getattr(one, name) == getattr(other, name) for name in same)
        assert np.array_equal(one.waveform, other.waveform)
        assert other.betas.dtype == np.float64


def test_notes_and_present_tell_what_a_sample_has(partial_set: Path) -> None:
    shards = open_shards(partial_set)
    assert shards[0].notes == ()
    assert shards[-1].notes == ("length-cut: 0.300 s of audio cut",)
    by_hand = {"1_speaker_0_1_1": "audio", "1_speaker_0_4_4": "jaw_eyes"}
    assert all(part not in shards[key].present for key, part in by_hand.items())
    assert not {"upper", "hands", "lower", "root", "face", "jaw_eyes"} & shards["1_speaker_0_2_2"].present
    assert not {"hands", "face"} & shards["1_speaker_0_3_3"].present


def test_samples_by_number_key_and_stem(whole_set: Path) -> None:
    shards = open_shards(str(whole_set))
    assert len(shards) == 8
    assert shards[-1].key == shards[7].key == shards[np.int64(7)].key == shards.keys[-1]
    assert shards[shards.keys[3]].stem == shards.rows[3].stem
    assert shards.keys[0] in shards
    assert "nobody" not in shards
    for number in (8, -9):
        with pytest.raises(IndexError):
            shards[number]
    with pytest.raises(UsageFault, match="did you mean 1_speaker0_0_0_0"):
        shards["1_speaker0_0_0_1"]
    with pytest.raises(UsageFault, match="expected a number, key or stem, found float"):
        shards[1.5]  # type: ignore[index]


def test_arrays_belong_to_the_caller(whole_set: Path) -> None:
    shards = open_shards(whole_set)
    first = shards[0]
    assert first.waveform is not None
    for values in (first.gesture, first.mel, first.jaw_eyes, first.betas, first.start_xz, first.waveform):
        values[:] = 0
    assert shards[0].gesture.any()


def test_filters(whole_set: Path) -> None:
    assert [s.split for s in open_shards(whole_set, split="val")] == ["val"] * 2
    assert {s.speaker for s in open_shards(whole_set, speakers="speaker1")} == {"speaker1"}
    assert {s.speaker_id for s in open_shards(whole_set, speakers=1)} == {1}
    assert {s.labels["emotion"] for s in open_shards(whole_set, labels={"emotion": ["anger", "fear"]})} == {"anger"}
    assert len(open_shards(whole_set, labels={"emotion": ()}, speakers=())) == len(open_shards(whole_set))
    assert len(open_shards(whole_set, min_seconds=2.15, max_seconds=2.45)) == 3
    assert len(open_shards(whole_set, languages=["english"]).select(split="train", speakers=["2"])) == 3


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"split": "dev"}, "expected one of train, val, test, additional, found 'dev'"),
        ({"split": "test"}, "expected samples with split test, found none; choose from train, val"),
        ({"speakers": ("None",)}, "expected samples with speaker None, found none; choose from speaker0, speaker1"),
        ({"speakers": ("scott",)}, "expected samples with speaker scott, found none; choose from speaker0, speaker1"),
        ({"languages": "dutch"}, "choose from english"),
        ({"labels": {"mood": "happy"}}, "found 'mood'; choose from emotion, scenario"),
        ({"labels": {"emotion": "joy"}}, "expected samples with emotion joy, found none; choose from anger"),
        ({"min_seconds": 60}, "expected selected samples that last 60 to inf s, found only 2 to 2.7 s"),
        ({"min_seconds": 3, "max_seconds": 2}, "expected 0 ≤ min_seconds ≤ max_seconds"),
        ({"speakers": 1.5}, "speakers: expected a text or several, found 1.5"),
        ({"verify": "always"}, "expected one of first, never"),
    ],
)
def test_a_filter_that_is_invalid_is_one_clear_line(whole_set: Path, filters: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageFault) as caught:
        open_shards(whole_set, **filters)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("folder", ["nowhere", "https://host/shards", 7])
def test_a_folder_that_is_invalid_is_one_clear_line(folder: Any) -> None:
    with pytest.raises(OmnigesError) as caught:
        open_shards(folder)
    assert "\n" not in str(caught.value)


def test_damage_is_found_at_the_first_read_unless_it_is_not_looked_for(whole_set: Path, tmp_path: Path) -> None:
    """A flipped bit of an array is a DataError with shard, key and member; `verify="never"` passes it through."""
    folder = Path(shutil.copytree(whole_set, tmp_path / "shards"))
    row = open_shards(folder).rows[0]
    place = row.members["mel.npy"]
    data = bytearray((folder / row.shard).read_bytes())
    data[place.offset + 4000] ^= 1
    (folder / row.shard).write_bytes(data)
    with pytest.raises(DataError, match=rf"{row.shard}: {row.key}.mel.npy at byte \d+: expected sha256"):
        open_shards(folder)[0]
    assert open_shards(folder, verify="never")[0].key == row.key


def test_the_text_of_a_set_tells_what_is_in_it(partial_set: Path) -> None:
    assert repr(open_shards(partial_set)) == (
        f"ShardSet({str(partial_set)!r}: 8 samples, 0:00:16 h, train 8; text in 2, audio in 7, upper in 7, hands in 6, "
        "lower in 7, root in 7, face in 6, jaw_eyes in 6, sem in 2, labels)"
    )


def test_nothing_of_torch_is_imported(whole_set: Path) -> None:
    script = (
        "import sys\nfrom omniges.data.samples import open_shards\n"
        f"assert [sample.key for sample in open_shards({str(whole_set)!r})]\n"
        "assert not {'torch', 'webdataset'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
