"""`generate` from files to files: every task, the same bytes again, whole results, and a line for what cannot be."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from pipeline_helpers import omniges, run_preprocess, scripted
from training_helpers import run

from omniges.commands.common import Signalled
from omniges.errors import DataError, ExitCode, OmnigesError, UsageFault
from omniges.features.gesture import LAYOUT
from omniges.features.text_tokens import TextTokenCodec
from omniges.formats.arrays import decode_npy
from omniges.formats.audio import decode_wav
from omniges.formats.npz import decode_motion, encode_motion
from omniges.formats.textgrid import WordInterval, decode_words, encode_words
from omniges.generation.inputs import NEUTRAL, planned_inputs, read_gesture
from omniges.generation.records import read_record
from omniges.generation.run import _Job, generate
from omniges.generation.sampler import Codecs, Sampler, load
from omniges.generation.settings import GenerateSettings, GenerateSummary, Sources, task_named
from omniges.generation.vocoder import chosen_vocoder
from omniges.generation.writers import Results
from omniges.model.tasks import SamplingSettings
from omniges.options import ShownPart
from omniges.pipeline.settings import Selection
from omniges.shards.dataset import seal
from omniges.shards.reader import ShardFolder
from omniges.storage.atomic import PendingFile

STEPS = SamplingSettings(num_inference_steps=2)
STEM = "1_synthetica_0_1_1"


def make(checkpoint: Path, out: Path, task: str, stale: tuple[str, ...] = (), **changes: Any) -> GenerateSummary:
    sources = {name: changes.pop(name) for name in tuple(changes) if name in Sources.__dataclass_fields__}
    return generate(
        GenerateSettings(
            checkpoint=checkpoint, task=task, output_dir=out, sources=Sources(**sources), sampling=STEPS, **changes
        ),
        stale=stale,
    )


@pytest.mark.slow
def test_a_page_shows_results_beside_their_recordings(checkpoint: Path, shards: Path, tmp_path: Path) -> None:
    words = ["generate", "--checkpoint", checkpoint, "--task", "a2g", "--shards", shards, "--key", STEM, "--steps", 1]
    done = omniges(*words, "-o", tmp_path / "out", "--html")
    assert done.returncode == 0, done.stderr
    assert "1 clip with 2 tracks" in done.stdout
    page = (tmp_path / "out" / "page.html").read_text()
    assert '"name":"generated a2g"' in page
    assert '"name":"recorded"' in page
    for path in (tmp_path / "out").iterdir():
        if path.name != "page.html":
            path.unlink()
    again = omniges(*words, "-o", tmp_path / "out", "--html")
    assert (again.returncode, "page.html, found one that would be replaced" in again.stderr) == (2, True)
    assert len([*(tmp_path / "out").iterdir()]) == 1


def test_a_part_needs_something_that_shows_it(checkpoint: Path, shards: Path, tmp_path: Path) -> None:
    words = ["generate", "--checkpoint", checkpoint, "--task", "a2g", "--shards", shards, "--key", STEM]
    for more, expected in (
        (["--show-seconds", 2], "expected with --png, --html or --video"),
        (["--show-start", 99, "--png"], f"--show-start 99: expected a time before the end of the result {STEM}, 4.0 s"),
    ):
        done = omniges(*words, *more, "-o", tmp_path / "out")
        assert (done.returncode, expected in done.stderr) == (2, True), done.stderr
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_picture_of_a_part_shows_the_rows_of_the_whole(
    checkpoint: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[dict[str, Any]] = []
    monkeypatch.setattr("omniges.visualize.pictures.draw_result", lambda **how: drawn.append(how) or b"PNG")
    for number, part in enumerate((ShownPart(), ShownPart(show_start_s=1.25, show_seconds=1.0))):
        out = tmp_path / str(number)
        make(checkpoint, out, "g2a", shards=shards, keys=(STEM,), png=True, part=part)
        make(checkpoint, out / "a2g", "a2g", shards=shards, keys=(STEM,), png=True, part=part)
    for whole, part in ((drawn[0], drawn[2]), (drawn[1], drawn[3])):
        assert (part["start_s"], part["seconds"], part["length_s"]) == (1.25, 1.0, whole["length_s"])
        for a, b in zip(whole["rows"], part["rows"], strict=True):
            assert (a.role, a.stream, b.begins_s) == (b.role, b.stream, 1.2)
            rows = 10 if a.stream == "audio" else 3
            np.testing.assert_array_equal(b.data, a.data[12 * rows : 23 * rows])
            if a.stream == "gesture":
                steps = a.data[1:37, [LAYOUT.root.start, LAYOUT.root.start + 2]]
                np.testing.assert_allclose(b.start_xz, a.start_xz + steps.sum(axis=0, dtype=np.float64), atol=1e-7)


@pytest.mark.slow
def test_a_video_of_each_result_is_beside_it(checkpoint: Path, shards: Path, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV is not installed: omniges[video]")
    words = ["generate", "--checkpoint", checkpoint, "--task", "a2g", "--shards", shards, "--key", STEM, "--steps", 1]
    words += ["--video", "--show-start", 1, "--show-seconds", 1.5, "-o", tmp_path / "out"]
    done = omniges(*words)
    assert done.returncode == 0, done.stderr
    assert "2 tracks, 1280x720, 1.5 s" in done.stdout
    videos = {path.with_suffix(".json").name for path in (tmp_path / "out").glob("*.mp4")}
    assert videos == {path.name for path in (tmp_path / "out").glob("*.json")}
    for path in (tmp_path / "out").iterdir():
        if path.suffix != ".mp4":
            path.unlink()
    again = omniges(*words)  # the results could be written, but a video is in the way
    assert (again.returncode, f"{STEM}.mp4, which would be replaced" in again.stderr) == (2, True)
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".mp4"}


@pytest.mark.slow
def test_a_video_without_motion_is_refused_before_anything_is_generated(
    checkpoint: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    words = ["generate", "--checkpoint", checkpoint, "--task", "t2a", "--text", "some words", "--video"]
    done = omniges(*words, "-o", tmp_path / "out")
    assert (done.returncode, "a task with gesture as target or condition" in done.stderr) == (2, True)
    assert not (tmp_path / "out").exists()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "given", "endings"),
    [
        ("a2g", ("audio",), {".npz"}),
        ("t2g", ("text",), {".npz"}),
        ("t2a", ("text",), {".wav", ".mel.npy"}),
        ("g2a", ("gesture",), {".wav", ".mel.npy"}),
        ("a2t", ("audio",), {".TextGrid", ".txt"}),
        ("g2t", ("gesture",), {".TextGrid", ".txt"}),
        ("at2g", ("audio", "text"), {".npz"}),
        ("gt2a", ("gesture", "text"), {".wav", ".mel.npy"}),
        ("ga2t", ("gesture", "audio"), {".TextGrid", ".txt"}),
    ],
)
def test_every_task_gives_files_of_the_inputs_length(
    checkpoint: Path, files: dict[str, Path], tmp_path: Path, task: str, given: tuple[str, ...], endings: set[str]
) -> None:
    ways = {"audio": (files["wav"],), "text": (str(files["TextGrid"]),), "gesture": (files["npz"],)}
    summary = make(checkpoint, tmp_path / "out", task, **{name: ways[name] for name in given})
    found = contents(tmp_path / "out")
    assert set(found) == {STEM + ending for ending in endings} | {f"{STEM}.json"}
    record = read_record(summary.records[0])
    assert {file["sha256"] for file in record.files.values()} == {
        hashlib.sha256(found[STEM + ending]).hexdigest() for ending in endings
    }
    assert {entry["stream"] for entry in record.inputs} == set(given)
    assert record.task == task_named(task)
    seconds = record.ticks / 10
    if ".npz" in endings:
        motion = decode_motion(found[f"{STEM}.npz"])
        assert len(motion.poses) == record.ticks * 3
        assert motion.frame_rate_hz == 30
    if ".wav" in endings:
        assert len(decode_wav(found[f"{STEM}.wav"]).samples) == record.ticks * 1600
        assert np.load(io.BytesIO(found[f"{STEM}.mel.npy"]), allow_pickle=False).shape == (record.ticks * 10, 64)
    if ".TextGrid" in endings and b"xmin" in found[f"{STEM}.TextGrid"]:
        tier = decode_words(found[f"{STEM}.TextGrid"])
        assert tier.xmax_s == pytest.approx(seconds)
        assert found[f"{STEM}.txt"].decode().split() == [part for word in tier.words for part in word.word.split()]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_and_another_does_not(
    checkpoint: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        make(checkpoint, tmp_path / name, "t2a", text=(str(files["TextGrid"]),), seed=seed)
    assert contents(tmp_path / "first") == contents(tmp_path / "again")
    first, other = (contents(tmp_path / name) for name in ("first", "other"))
    assert first[f"{STEM}.mel.npy"] != other[f"{STEM}.mel.npy"]


def test_samples_of_shards_have_their_speaker_and_body_and_say_where_they_are_from(
    checkpoint: Path, shards: Path, tmp_path: Path
) -> None:
    folder = ShardFolder(shards)
    row = next(row for row in folder.rows if row.split == "test")
    summary = make(checkpoint, tmp_path / "out", "a2g", shards=shards, keys=(row.key,), num_samples=2)
    assert [path.name for path in summary.records] == [f"{row.key}-1.json", f"{row.key}-2.json"]
    first, second = (read_record(path) for path in summary.records)
    assert first.source == {
        "shards": str(shards),
        "manifest_sha256": folder.dataset["files"]["manifest.parquet"]["sha256"],
        "manifest_hash": folder.dataset["manifest_hash"],
        "key": row.key,
    }
    assert first.settings["speaker"] == row.speaker
    motions = [decode_motion((tmp_path / "out" / f"{row.key}-{k}.npz").read_bytes()) for k in (1, 2)]
    sample = folder.sample(row)
    np.testing.assert_array_equal(motions[0].betas, sample.betas)
    np.testing.assert_allclose(motions[0].trans[0, [0, 2]], sample.gesture.start_xz, atol=1e-9)
    assert (first.sample, second.sample) == (0, 1)
    assert not np.array_equal(motions[0].poses, motions[1].poses)


def test_a_body_that_is_named_goes_before_that_of_the_sample_and_a_start_before_both(
    checkpoint: Path, shards: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    motion = decode_motion(files["npz"].read_bytes())
    betas = np.linspace(-1, 1, 300)
    other = encode_motion(
        motion.poses, motion.expressions, motion.trans + 3, betas, gender="female", model=motion.model
    )
    (tmp_path / "body.npz").write_bytes(other)
    row = next(row for row in ShardFolder(shards).rows if row.split == "test")
    common: dict[str, Any] = {"shards": shards, "keys": (row.key,), "body": tmp_path / "body.npz"}
    make(checkpoint, tmp_path / "body", "a2g", **common)
    make(checkpoint, tmp_path / "start", "a2g", start_xz=(0.5, -1.0), **common)
    for name, start_xz in (("body", motion.trans[0, [0, 2]] + 3), ("start", (0.5, -1.0))):
        generated = decode_motion((tmp_path / name / f"{row.key}.npz").read_bytes())
        assert generated.gender == "female"
        np.testing.assert_allclose(generated.betas, betas)
        np.testing.assert_allclose(generated.trans[0, [0, 2]], start_xz, atol=1e-9)


def test_guidance_where_there_is_nothing_to_weigh_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    guided = SamplingSettings(num_inference_steps=2, guidance_scale=2.0)
    with pytest.raises(UsageFault, match="guidance_scale 2: expected 1, because this task has no inputs"):
        GenerateSettings(
            checkpoint=checkpoint,
            task="unconditional",
            output_dir=tmp_path / "out",
            sources=Sources(seconds=1),
            sampling=guided,
        )


def test_any_number_of_samples_needs_few_open_files(
    checkpoint: Path, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An input of several stretches has results that are begun and not whole; each waits in files of its own."""
    samples = np.tile(np.asarray(decode_wav(files["wav"].read_bytes()).samples), 4)[: 16000 * 12]
    soundfile.write(tmp_path / "long.wav", samples, 16000)
    waiting: list[int] = []
    write = _Job._write

    def counted(job: _Job, *result: Any) -> Any:
        waiting.append(sum("(deleted)" in os.readlink(f"/proc/self/fd/{fd}") for fd in _open_files()))
        return write(job, *result)

    monkeypatch.setattr(_Job, "_write", counted)
    summary = make(checkpoint, tmp_path / "out", "a2g", audio=(tmp_path / "long.wav",), num_samples=12)
    assert len(summary.records) == 12
    assert max(waiting) <= 1 + 4 * 4  # the mel that is given; 32 windows are 3 results of 10, of 4 files each


def _open_files() -> list[str]:
    """Descriptors that are open, but for that of the listing itself."""
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.islink(f"/proc/self/fd/{fd}")]


def test_a_mel_that_is_no_number_is_refused_in_a_line(checkpoint: Path, files: dict[str, Path], tmp_path: Path) -> None:
    """Such a mel is refused as motion is, because a vocoder would stop in the middle of a file."""
    codec = TextTokenCodec(load(checkpoint).identity.tokenizer)
    results = Results(("audio",), NEUTRAL, codec, chosen_vocoder(None), 0, tmp_path)
    with pytest.raises(
        DataError, match=r"^generated audio: expected finite mel values, found NaN or infinite ones; the model is not"
    ):
        results.append({"audio": np.full((40, 64), np.nan, np.float32)})


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("everywhere", [True, False])
def test_motion_that_is_no_number_is_refused_in_a_line(
    checkpoint: Path, shards: Path, tmp_path: Path, value: float, everywhere: bool
) -> None:
    """A joint that is NaN in all frames means an absent joint in recordings; a model generates none."""
    codec = TextTokenCodec(load(checkpoint).identity.tokenizer)
    folder = ShardFolder(shards)
    gesture = folder.sample(folder.rows[0]).gesture.gesture[:24].copy()
    gesture[:: 1 if everywhere else 5, 6:12] = value
    results = Results(("gesture",), NEUTRAL, codec, None, 0, tmp_path)
    with pytest.raises(DataError, match=r"^generated motion: expected finite values, found NaN or infinite ones; the"):
        results.append({"gesture": gesture})


def test_the_arrays_of_a_result_are_those_of_its_files(checkpoint: Path, shards: Path, tmp_path: Path) -> None:
    """Whoever scores or shows them need not encode and decode them."""
    codec = TextTokenCodec(load(checkpoint).identity.tokenizer)
    folder = ShardFolder(shards)
    sample = folder.sample(folder.rows[0])
    results = Results(("gesture", "audio"), NEUTRAL, codec, None, 0, tmp_path)
    for first in (0, 24):  # in two parts
        rows = slice(first, first + 24)
        results.append({"gesture": sample.gesture.gesture[rows], "audio": sample.mel[rows]})
    written = {file.ending: b"".join(file.parts) for file in results.files()}
    ours, theirs = results.motion(), decode_motion(written[".npz"], standing=False)
    for name in ("poses", "expressions", "trans"):
        one, other = getattr(ours, name), getattr(theirs, name)
        assert (one.dtype, one.tobytes()) == (other.dtype, other.tobytes()), name
    np.testing.assert_array_equal(results.mel(), decode_npy(written[".mel.npy"]))


def test_an_inputs_result_does_not_depend_on_its_neighbours_but_for_rounding(
    checkpoint: Path, shards: Path, tmp_path: Path
) -> None:
    make(checkpoint, tmp_path / "all", "a2g", shards=shards, split="train")
    rows = [row for row in ShardFolder(shards).rows if row.split == "train"]
    make(checkpoint, tmp_path / "one", "a2g", shards=shards, keys=(rows[-1].key,))
    both = [decode_motion((tmp_path / name / f"{rows[-1].key}.npz").read_bytes()) for name in ("all", "one")]
    np.testing.assert_allclose(both[0].expressions, both[1].expressions, atol=1e-4)


def test_audio_of_other_rates_channels_and_formats_is_taken_with_a_warning(
    checkpoint: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    samples = np.asarray(decode_wav(files["wav"].read_bytes()).samples)[:16000]
    stereo = tmp_path / "stereo.flac"
    soundfile.write(stereo, np.stack([samples, samples], axis=1), 22050)
    eight_bit = tmp_path / "eight.wav"
    soundfile.write(eight_bit, samples, 16000, subtype="PCM_U8")
    summary = make(checkpoint, tmp_path / "out", "a2t", audio=(stereo, eight_bit))
    first, second = (read_record(path) for path in summary.records)
    assert first.remarks[:2] == ("2 channels averaged", "22050 Hz resampled to 16000 Hz")
    assert (first.ticks, second.ticks) == (int(10 * 16000 / 22050), 10)


def test_plain_text_gets_times_from_training_words_or_the_shards_and_says_so(
    checkpoint: Path, shards: Path, tmp_path: Path
) -> None:
    """The same words give the same rate, so shards change nothing; a checkpoint that knows no rate needs them."""
    text = tmp_path / "hello.txt"
    text.write_text("Hello there. How are you?", encoding="utf-8")
    warnings = []
    for name, given in (("alone", None), ("beside", shards)):
        summary = make(checkpoint, tmp_path / name, "t2g", text=(str(text),), shards=given)
        warnings.append(read_record(summary.records[0]).remarks)
        assert any("times estimated by a speaking rate" in warning for warning in warnings[-1])
    assert warnings[0] == warnings[1]
    older = load(checkpoint)
    knowing = Sampler(older.model, replace(older.identity, speaking_rate=b""), Codecs({}, []))
    with pytest.raises(UsageFault, match="found plain text, for which this checkpoint has no speaking rate"):
        planned_inputs(("text",), Sources(text=(str(text),)), knowing.reading())[0].load()


def test_a_long_input_is_as_long_as_it_is_and_names_its_seams(
    checkpoint: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    samples = np.tile(np.asarray(decode_wav(files["wav"].read_bytes()).samples), 12)[: 16000 * 40]
    long = tmp_path / "long.wav"
    soundfile.write(long, samples, 16000)
    record = read_record(make(checkpoint, tmp_path / "out", "a2g", audio=(long,), overlap_ticks=4).records[0])
    assert record.ticks == 400
    assert record.seams_s[:4] == (1.2, 1.6, 2.4, 2.8)  # windows of 1.6 s that share 0.4 s
    assert max(record.seams_s) < 40


def test_results_are_not_replaced_unless_asked(checkpoint: Path, files: dict[str, Path], tmp_path: Path) -> None:
    make(checkpoint, tmp_path, "a2t", audio=(files["wav"],))
    with pytest.raises(UsageFault, match=f"{STEM}.json and 2 more files, which would be replaced"):
        make(checkpoint, tmp_path, "a2t", audio=(files["wav"],))
    make(checkpoint, tmp_path, "a2t", audio=(files["wav"],), overwrite=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "changes", "kind", "line"),
    [
        ("a2g", {"audio": ("silent.wav",)}, DataError, "silent.wav: wav-silent"),
        ("a2g", {"audio": ("short.wav",)}, DataError, "expected at least 0.1 s of audio, found 0.050 s"),
        ("a2g", {"audio": ("cut.wav",)}, DataError, "cut.wav: wav-truncated: expected .*, found 1600 of 4800"),
        ("a2g", {"audio": ("words.txt",)}, DataError, "libsndfile can read"),
        ("a2g", {"audio": ("none.wav",)}, UsageFault, "none.wav: expected a file"),
        ("g2a", {"gesture": ("words.txt",)}, DataError, "words.txt"),
        ("t2a", {"text": ("words.TextGrid",)}, DataError, "words.TextGrid"),
        ("a2g", {}, UsageFault, "--audio: expected an input of this task"),
        (
            "a2g",
            {"text": ("words.txt",), "audio": ("sound.wav",)},
            UsageFault,
            r"--text: expected only inputs of this task \(audio\), found another input; remove --text",
        ),
        ("at2g", {"text": ("a.txt",), "audio": ("b.wav", "c.wav")}, UsageFault, "expected a --audio file called a"),
        ("x2g", {"audio": ("sound.wav",)}, UsageFault, "task x2g: expected one of"),
        ("unconditional", {}, UsageFault, "--seconds: expected a length"),
        (
            "a2g",
            {"audio": ("sound.wav",), "speaker": "nobody"},
            UsageFault,
            "--speaker nobody: expected a speaker of the model",
        ),
        ("a2g", {"keys": ("x",)}, UsageFault, "add shards DIR"),
        (
            "a2g",
            {"audio": ("sound.wav",), "start_xz": (float("nan"), 1.0)},
            UsageFault,
            "start_xz nan: expected a finite number",
        ),
        (
            "a2t",
            {"audio": ("sound.wav",), "body": Path("body.npz")},
            UsageFault,
            "body: expected a task that produces gesture, found a2t",
        ),
        (
            "t2a",
            {"text": ("words.TextGrid",), "start_xz": (0.0, 1.0)},
            UsageFault,
            "start_xz: expected a task that produces gesture, found t2a",
        ),
        (
            "a2g",
            {"audio": ("sound.wav",), "shards": Path("shards")},
            UsageFault,
            "--shards shards: expected with --key, --split or plain text,",
        ),
        (
            "unconditional",
            {"seconds": 1, "shards": Path("shards")},
            UsageFault,
            "add one of these inputs, or remove --shards",
        ),
        ("unconditional", {"seconds": float("inf")}, UsageFault, "seconds inf: expected a number of at least 0.1"),
        ("t2g", {"text": ("good morning",)}, UsageFault, "pass words through --text -"),
        ("a2g", {"audio": ("cut.wav",)}, DataError, "copy the file again$"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(
    checkpoint: Path, tmp_path: Path, task: str, changes: dict[str, Any], kind: type[OmnigesError], line: str
) -> None:
    sound = np.sin(np.arange(1600 * 3) / 9).astype(np.float32) / 2
    soundfile.write(tmp_path / "sound.wav", sound, 16000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(16000, np.float32), 16000)
    soundfile.write(tmp_path / "short.wav", sound[:800], 16000)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "sound.wav").read_bytes()[: 44 + 3200])
    (tmp_path / "words.txt").write_text("some words", encoding="utf-8")
    (tmp_path / "words.TextGrid").write_text("no TextGrid", encoding="utf-8")
    streams = ("audio", "text", "gesture")
    changes = {
        name: tuple(str(tmp_path / file) if name == "text" else tmp_path / file for file in value)
        if name in streams
        else value
        for name, value in changes.items()
    }
    with pytest.raises(kind, match=line) as caught:
        make(checkpoint, tmp_path / "out", task, **changes)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_checkpoint_that_is_invalid_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageFault, match="a checkpoint or the folder of a run"):
        make(tmp_path / "nowhere", tmp_path / "out", "a2g", audio=(tmp_path / "x.wav",))


@pytest.mark.parametrize("name", ["ta2g", "at2g"])
def test_letters_of_a_task_may_stand_in_any_order(name: str) -> None:
    assert task_named(name) == "ta2g"


def test_a_record_that_was_edited_is_refused_by_the_field(
    checkpoint: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    path = make(checkpoint, tmp_path, "a2t", audio=(files["wav"],)).records[0]
    found = json.loads(path.read_text("utf-8"))
    for change, line in (
        ({"ticks": "ten"}, "ticks: expected a whole number from 1 to 864000, found .ten.; generate it again"),
        ({"format": "other"}, 'format: expected "omniges-generated", found "other"'),
        ({"version": 2}, "version: expected 1, found 2"),
        ({"task": "x2y"}, "task: expected one of t2g, .*, joint, found .x2y."),
        ({"task": ["a2t"]}, "task: expected"),
        ({"more": 1}, "more: expected no key of this name"),
        ({"files": {"text": "x"}}, "files.text: expected an object"),
        ({"files": {"text": {"path": "x"}}}, "files.text: expected a path .the name of a file beside the record"),
        ({"inputs": ["x"]}, r"inputs\[0\]: expected an object"),
        ({"model": None}, "model: expected an object"),
        ({"source": []}, "source: expected an object or null"),
        ({"source": {"key": "../x"}}, "source: expected texts under the keys shards, manifest_sha256"),
        ({"seconds": True}, "seconds: expected a number above 0"),
        ({"seams_s": [float("nan")]}, "NaN is no JSON number"),
        ({"seams_s": ["1"]}, r"seams_s\[0\]: expected a number"),
        ({"seams_s": [1e9]}, "seams_s: expected ascending times within 4 s, found .*; generate it again"),
        ({"seconds": -8}, "seconds: expected a number above 0"),
        ({"seconds": 1e308}, "seconds: expected a number above 0 to 86400, found 1e.308"),
        ({"seconds": 1e11}, "seconds: expected a number above 0 to 86400, found 100000000000.0"),
        ({"name": "../x"}, "name: expected a file name"),
        ({"sample": -1}, "sample: expected a whole number from 0"),
        ({"measures": {"invalid_rotations": "0"}}, "measures.invalid_rotations: expected a number"),
        ({"remarks": [1]}, r"remarks\[0\]: expected a text"),
        ({"settings": "s" * 9999}, "settings: expected an object"),
    ):
        path.write_text(json.dumps(found | change), encoding="utf-8")
        with pytest.raises(DataError, match=line) as caught:
            read_record(path)
        assert len(str(caught.value)) < 300 + len(str(path))
    path.write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(DataError, match="expected a JSON document"):
        read_record(path)


def test_the_command_makes_a_picture_and_ends_with_a_summary(
    checkpoint: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    words = ["generate", "--checkpoint", str(checkpoint), "--task", "a2g", "--audio", str(files["wav"])]
    words += ["-o", str(tmp_path / "out"), "--png", "--steps", "2", "--start", "1,2"]
    done = omniges(*words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 result, ")
    assert (tmp_path / "out" / f"{STEM}.png").read_bytes()[:4] == b"\x89PNG"
    trans = decode_motion((tmp_path / "out" / f"{STEM}.npz").read_bytes()).trans
    np.testing.assert_allclose(trans[0, [0, 2]], (1, 2), atol=1e-6)


def test_a_persons_own_files_are_never_replaced(checkpoint: Path, files: dict[str, Path], tmp_path: Path) -> None:
    """Results would have the names of what lies beside an input, and of the input itself."""
    for ending in ("wav", "npz"):
        (tmp_path / f"{STEM}.{ending}").write_bytes(files[ending].read_bytes())
    (tmp_path / f"{STEM}.txt").write_text("mine", encoding="utf-8")
    before = contents(tmp_path)
    with pytest.raises(UsageFault, match=f"{STEM}.txt, which would be replaced"):
        make(checkpoint, tmp_path, "a2t", audio=(tmp_path / f"{STEM}.wav",))
    sound = tmp_path / f"{STEM}.txt"
    sound.write_bytes(files["wav"].read_bytes())  # a name that a result would have, whatever is in it
    before = contents(tmp_path)
    with pytest.raises(UsageFault, match=f"{STEM}.txt, which its result would replace"):
        make(checkpoint, tmp_path, "a2t", audio=(sound,), overwrite=True)
    assert contents(tmp_path) == before


def test_an_earlier_result_goes_whole_when_it_is_replaced(
    checkpoint: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    """A picture of the earlier result would be taken for one of the new."""
    make(checkpoint, tmp_path, "a2t", audio=(files["wav"],), png=True)
    (tmp_path / f"{STEM}.txt").write_text("edited since", encoding="utf-8")
    make(checkpoint, tmp_path, "a2g", audio=(files["wav"],), overwrite=True)
    assert set(contents(tmp_path)) == {f"{STEM}{ending}" for ending in (".json", ".npz", ".txt")}


@pytest.mark.parametrize("name", [f"{STEM}.mp4", "page.html"])
def test_overwrite_leaves_no_file_that_shows_another_result(
    checkpoint: Path, files: dict[str, Path], tmp_path: Path, name: str
) -> None:
    given: dict[str, Any] = {"audio": (files["wav"],), "overwrite": True}
    (tmp_path / name).write_bytes(b"the user's own, as long as no result is there")
    make(checkpoint, tmp_path, "a2t", stale=(".mp4", "page.html"), **given)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UsageFault, match=rf"{name}, which shows the old result of {STEM}\.json; move that file away"):
        make(checkpoint, tmp_path, "a2t", stale=(".mp4", "page.html"), **given)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("content", ['{"mine": 1}', "torn"])
def test_overwrite_stops_at_a_file_that_is_no_record_before_it_makes_anything(
    checkpoint: Path, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    """It may be a person's own, and what it was the record of cannot be known."""
    (tmp_path / f"{STEM}.json").write_text(content, encoding="utf-8")
    monkeypatch.setattr("omniges.generation.sampler.sample_timelines", None)  # which is not come to
    with pytest.raises(UsageFault, match=rf"--overwrite: .*{STEM}\.json: .*; move it away"):
        make(checkpoint, tmp_path, "a2t", audio=(files["wav"],), overwrite=True)
    assert contents(tmp_path) == {f"{STEM}.json": content.encode()}


@pytest.mark.parametrize("when", [1, 2, 3])
def test_ctrl_c_between_the_files_of_a_result_leaves_none_of_them(
    checkpoint: Path, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    left = when
    publish = PendingFile.publish

    def interrupted(file: PendingFile) -> None:
        nonlocal left
        publish(file)
        left -= 1
        if not left:
            raise Signalled(ExitCode.INTERRUPTED)

    monkeypatch.setattr(PendingFile, "publish", interrupted)
    with pytest.raises(Signalled):
        make(checkpoint, tmp_path, "a2t", audio=(files["wav"],))
    assert not list(tmp_path.iterdir())


SIGNALLED = """
import os, sys
from omniges.model.flow import FlowModel
number, turn, inner = int(sys.argv.pop(1)), 0, FlowModel.predict

def predict(*given, **named):
    global turn
    turn += 1
    if turn == 5:
        os.kill(os.getpid(), number)
    return inner(*given, **named)

FlowModel.predict = predict
from omniges.cli import main
main()
"""


@pytest.mark.parametrize(
    ("number", "code", "how"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "stopped")]
)
def test_a_signal_while_sampling_has_its_exit_code_and_leaves_nothing(
    checkpoint: Path, files: dict[str, Path], tmp_path: Path, number: signal.Signals, code: int, how: str
) -> None:
    words = ["generate", "--checkpoint", checkpoint, "--task", "a2g", "--audio", files["wav"]]
    done = scripted(SIGNALLED, int(number), *words, "-o", tmp_path / "out", "--steps", "10000")
    assert done.returncode == code
    assert done.stderr.splitlines()[-1] == f"omniges: {how}; no partly written file was published"
    assert not (tmp_path / "out").exists()


def test_a_textgrid_that_belongs_to_another_recording_is_refused(
    checkpoint: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    late = tmp_path / "late.TextGrid"
    for start, line in (
        (20.0, "expected words in the first 4.0 s"),
        (40.0, "expected words up to 4.0 s, .* to 41.0 s"),
    ):
        late.write_bytes(encode_words([WordInterval("late", start, start + 1)], start + 10))
        with pytest.raises(DataError, match=line):
            make(checkpoint, tmp_path / "out", "at2g", audio=(files["wav"],), text=(str(late),))
    late.write_bytes(encode_words([WordInterval("late", 1.0, 2.0)], 4.0).replace(b"xmin = 0 ", b"xmin = 300 ", 1))
    late.write_bytes(late.read_bytes().replace(b"xmax = 4.0", b"xmax = 304.0", 1))
    with pytest.raises(DataError, match="textgrid-shifted"):
        make(checkpoint, tmp_path / "out", "at2g", audio=(files["wav"],), text=(str(late),))


def test_a_textgrid_is_read_as_one_whatever_it_is_called(
    checkpoint: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    renamed = tmp_path / f"{STEM}.txt"
    renamed.write_bytes(files["TextGrid"].read_bytes().decode().encode("utf-16"))
    generated = []
    for number, file in enumerate((files["TextGrid"], renamed)):
        make(checkpoint, tmp_path / str(number), "t2g", text=(str(file),))
        generated.append((tmp_path / str(number) / f"{STEM}.npz").read_bytes())
    assert generated[0] == generated[1]


@pytest.mark.parametrize(
    ("words", "xmax", "seconds", "line"),
    [
        ([("Xylophonqwertzuiop" * 4, 0.0, 0.1)], 0.4, None, "expected words with at most one subword a tick, found 1"),
        ([("late", 2.0, 3.0)], 4.0, 1.0, r"expected words in the first 1\.0 s, found none"),
    ],
)
def test_a_text_of_which_nothing_is_left_is_refused(
    checkpoint: Path, tmp_path: Path, words: list[tuple[str, float, float]], xmax: float, seconds: float, line: str
) -> None:
    file = tmp_path / "x.TextGrid"
    file.write_bytes(encode_words([WordInterval(*word) for word in words], xmax))
    with pytest.raises(DataError, match=line):
        make(checkpoint, tmp_path / "out", "t2g", text=(str(file),), seconds=seconds)


@pytest.mark.parametrize(("audio_s", "fits"), [(10, True), (32, True), (36, False)])
def test_audio_and_motion_of_other_lengths_are_those_that_preprocess_takes(
    checkpoint: Path, files: dict[str, Path], tmp_path: Path, audio_s: int, fits: bool
) -> None:
    sound = np.tile(np.asarray(decode_wav(files["wav"].read_bytes()).samples), 10)[: 16000 * audio_s]
    soundfile.write(tmp_path / "a.wav", sound, 16000)
    given = {"audio": (tmp_path / "a.wav",), "gesture": (files["npz"],)}  # of 4 s
    if fits:
        record = read_record(make(checkpoint, tmp_path / "out", "ga2t", **given).records[0])
        assert record.ticks == 40
        assert "cut to 4.0 s" in record.remarks
        return
    with pytest.raises(DataError, match="audio at most 30 s longer than motion"):
        make(checkpoint, tmp_path / "out", "ga2t", **given)


def test_names_in_two_forms_of_their_letters_belong_together(
    checkpoint: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    names = {"wav": "jo\u0308rg", "TextGrid": "j\u00f6rg"}
    given = {ending: [tmp_path / f"{stem}.{ending}", tmp_path / f"other.{ending}"] for ending, stem in names.items()}
    for ending, places in given.items():
        for place in places:
            place.write_bytes(files[ending].read_bytes())
    audio, text = tuple(given["wav"]), tuple(map(str, given["TextGrid"]))
    summary = make(checkpoint, tmp_path / "out", "at2g", audio=audio, text=text)
    assert {path.stem for path in summary.records} == {"j\u00f6rg", "other"}


def test_motion_without_hands_and_face_is_given_as_that(
    checkpoint: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    """It is handled like a sample of shards without them: the model gets the rest and the flags of absent parts."""
    with np.load(files["npz"]) as source:
        arrays = dict(source)
    poses, trans = arrays.pop("poses"), arrays.pop("trans")
    arrays.pop("expressions")
    arrays |= {"global_orient": poses[:, :3], "body_pose": poses[:, 3:66], "transl": trans}
    np.savez(tmp_path / "body.npz", **arrays)
    record = read_record(make(checkpoint, tmp_path / "out", "g2t", gesture=(tmp_path / "body.npz",)).records[0])
    assert any("lacks hands, face" in warning for warning in record.remarks)
    assert any("npz-smplx-keys" in warning for warning in record.remarks)
    given = read_gesture(tmp_path / "body.npz")
    whole = read_gesture(files["npz"])
    assert np.isfinite(given.array(0, 10)).all()
    np.testing.assert_array_equal(given.array(0, 10)[:, :78], whole.array(0, 10)[:, :78])


@pytest.mark.parametrize("task", ["g2t", "t2g"])
def test_motion_without_a_rate_is_read_with_the_rate_that_is_given(
    checkpoint: Path, files: dict[str, Path], tmp_path: Path, task: str
) -> None:
    with np.load(files["npz"]) as source:
        arrays = {name: array for name, array in source.items() if name != "mocap_frame_rate"}
    np.savez(tmp_path / "talk.npz", **arrays)
    given: dict[str, Any] = {"gesture": (tmp_path / "talk.npz",)}
    if task == "t2g":
        given = {"body": tmp_path / "talk.npz", "text": (str(files["TextGrid"]),)}
    with pytest.raises(DataError, match=r"npz-no-rate: .* give the rate with --motion-rate"):
        make(checkpoint, tmp_path / "out", task, **given)
    with pytest.raises(DataError, match=r"npz-frame-rate: expected 30, 60, 90, 120, .*found --motion-rate 25"):
        make(checkpoint, tmp_path / "out", task, **given, motion_rate_hz=25)
    seconds = [
        read_record(make(checkpoint, tmp_path / str(rate), task, **given, motion_rate_hz=rate).records[0]).seconds
        for rate in (30, 60)
    ]
    assert seconds[1] == pytest.approx(seconds[0] / (2 if task == "g2t" else 1), abs=0.4)  # complete tokens
    with pytest.raises(
        UsageFault, match="motion_rate_hz: expected a motion file without a frame rate, found no motion file"
    ):
        make(checkpoint, tmp_path / "out", "a2g", audio=(files["wav"],), motion_rate_hz=30)


def test_motion_that_goes_on_after_the_audio_is_refused(
    checkpoint: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    with np.load(files["npz"]) as source:
        arrays = dict(source)
    arrays |= {name: np.tile(arrays[name], (2, 1)) for name in ("poses", "trans", "expressions")}
    np.savez(tmp_path / "long.npz", **arrays)  # of 8 s
    soundfile.write(tmp_path / "short.wav", np.sin(np.arange(16000 * 2) / 9), 16000)
    with pytest.raises(DataError, match="motion at most 5 s longer than audio"):
        make(checkpoint, tmp_path / "out", "ga2t", audio=(tmp_path / "short.wav",), gesture=(tmp_path / "long.npz",))


def test_a_checkpoint_that_never_saw_a_task_says_so(shards: Path, files: dict[str, Path], tmp_path: Path) -> None:
    run(shards, tmp_path / "run", max_train_steps=1, flow={"shares": {"a2t": 1.0}})
    with pytest.raises(UsageFault, match=r"on which it was trained \(a2t\), found a2g"):
        make(tmp_path / "run", tmp_path / "out", "a2g", audio=(files["wav"],))


def test_samples_of_the_shards_it_learned_from_are_known_after_latents_were_added(
    checkpoint: Path, shards: Path, vae: Path, tmp_path: Path
) -> None:
    from latent_builders import AUDIO, encoded_shards

    warning = "the model was not trained on the shards of this sample"
    encoded = encoded_shards(shards, tmp_path / "encoded", {AUDIO: vae})
    key = ShardFolder(shards).rows[0].key
    for number, folder in enumerate((shards, encoded)):
        summary = make(checkpoint, tmp_path / str(number), "a2t", shards=folder, keys=(key,))
        assert warning not in read_record(summary.records[0]).remarks


@pytest.mark.slow
def test_samples_of_other_shards_have_a_warning_and_other_features_refused(
    checkpoint: Path, shards: Path, corpus: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    assert run_preprocess(corpus, other, selection=Selection(include=("1_*",))).exit_code == 0
    key = ShardFolder(other).rows[0].key
    record = read_record(make(checkpoint, tmp_path / "out", "a2t", shards=other, keys=(key,)).records[0])
    assert "the model was not trained on the shards of this sample" in record.remarks
    dataset = json.loads((other / "dataset.json").read_text("utf-8"))
    dataset["features"]["mel"]["bands"] = 80
    (other / "dataset.json").write_bytes(seal({name: value for name, value in dataset.items() if name != "checksum"}))
    with pytest.raises(DataError, match="features: expected those of this version of omniges, found other mel"):
        make(checkpoint, tmp_path / "none", "a2t", shards=other, keys=(key,))
