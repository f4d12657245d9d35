"""`OmnigesPipeline`: a call gives what the command writes, from paths as from arrays; a saved model is the same."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from omniges.commands.models import generate as generate_command
from omniges.data.samples import open_shards
from omniges.errors import DataError, UsageFault
from omniges.features.gesture import gesture_from_motion, stream_channels
from omniges.formats.audio import decode_wav
from omniges.formats.npz import decode_motion
from omniges.formats.textgrid import decode_words
from omniges.generation.pipeline import OmnigesPipeline
from omniges.generation.run import generate
from omniges.generation.settings import GenerateSettings, Sources
from omniges.model.tasks import SamplingSettings

STEM = "1_synthetica_0_1_1"
PAGE = Path(__file__).resolve().parents[2] / "docs/how-to/generate.md"


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> OmnigesPipeline:
    return OmnigesPipeline.from_pretrained(checkpoint)


@pytest.mark.slow
def test_its_import_loads_nothing_beside_torch_that_takes_long() -> None:
    """Neither the model base of diffusers, with accelerate and clients of the hub behind it, nor the trainer."""
    script = (
        "import sys, torch\n"
        "known = set(sys.modules)\n"
        "from omniges.generation.pipeline import OmnigesPipeline\n"
        "print(*(set(sys.modules) - known))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    slow = {"diffusers", "accelerate", "transformers", "huggingface_hub", "requests", "librosa", "scipy", "matplotlib"}
    assert not {module.partition(".")[0] for module in loaded} & slow
    assert not {module for module in loaded if module.startswith(("omniges.trainer", "omniges.evaluation"))}


def test_a_call_gives_what_the_command_writes(
    pipeline: OmnigesPipeline, checkpoint: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    sources = Sources(text=(str(files["TextGrid"]),))
    generate(
        GenerateSettings(
            checkpoint=checkpoint,
            task="t2a",
            output_dir=tmp_path,
            sources=sources,
            sampling=SamplingSettings(num_inference_steps=2),
            seed=3,
        )
    )
    sample = pipeline("t2a", text=files["TextGrid"], num_inference_steps=2, seed=3)[0]
    written = np.load(tmp_path / f"{STEM}.mel.npy", allow_pickle=False)
    assert sample.mel is not None
    np.testing.assert_array_equal(sample.mel, written)
    steps = decode_wav((tmp_path / f"{STEM}.wav").read_bytes()).samples
    np.testing.assert_allclose(sample.waveform(), steps, atol=1 / 32768)


def test_calls_and_the_command_sample_as_the_settings_do_by_default() -> None:
    call, command = (
        inspect.signature(generated).parameters for generated in (OmnigesPipeline.__call__, generate_command)
    )
    for name, value in asdict(SamplingSettings()).items():
        assert call[name].default == value
        assert command[name].default is None  # not given, so that it is the default of the settings


def test_arrays_are_taken_as_files_are(pipeline: OmnigesPipeline, files: dict[str, Path]) -> None:
    wav = decode_wav(files["wav"].read_bytes())
    words = [
        {"word": w.word, "start": w.start, "end": w.end} for w in decode_words(files["TextGrid"].read_bytes()).words
    ]
    motion = decode_motion(files["npz"].read_bytes())
    channels = stream_channels(gesture_from_motion(motion.poses, motion.expressions, motion.trans), 424)
    pairs: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("a2g", {"audio": files["wav"]}, {"audio": wav.samples, "audio_rate_hz": wav.rate_hz}),
        (
            "at2g",
            {"audio": files["wav"], "text": files["TextGrid"]},
            {"audio": wav.samples, "audio_rate_hz": wav.rate_hz, "text": words},
        ),
        ("g2a", {"gesture": str(files["npz"])}, {"gesture": channels}),
    ]
    for task, by_path, by_array in pairs:
        first = pipeline(task, **by_path, num_inference_steps=2)[0]
        second = pipeline(task, **by_array, num_inference_steps=2)[0]
        for name in ("gesture", "mel"):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_samples_differ_and_repeat_by_seed_and_place(pipeline: OmnigesPipeline) -> None:
    calls: list[tuple[float, float]] = []
    generated = pipeline(
        "unconditional", seconds=2, num_samples=2, num_inference_steps=2, callback=lambda d, t: calls.append((d, t))
    )
    again = pipeline("unconditional", seconds=2, num_samples=2, num_inference_steps=2)
    assert len(generated) == 2
    for first, second in zip(generated.samples, again.samples, strict=True):
        np.testing.assert_array_equal(first.gesture, second.gesture)
    assert not np.array_equal(generated[0].gesture, generated[1].gesture)
    assert generated[0].motion().poses.shape == (60, 165)
    assert calls[-1] == pytest.approx((4, 4))


@pytest.mark.parametrize("weights", ["ema", "last"])
def test_a_saved_model_is_the_same_model(checkpoint: Path, tmp_path: Path, weights: str) -> None:
    one = OmnigesPipeline.from_pretrained(checkpoint, weights=weights)
    one.save_pretrained(tmp_path / "saved")
    other = OmnigesPipeline.from_pretrained(tmp_path / "saved", weights=weights)
    assert other.speakers == one.speakers
    assert not (tmp_path / "saved" / "optimizer.safetensors").exists()
    first, second = (p("unconditional", seconds=1, num_inference_steps=2)[0] for p in (one, other))
    np.testing.assert_array_equal(first.gesture, second.gesture)
    with pytest.raises(UsageFault, match="expected a new folder"):
        one.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize(
    ("call", "line"),
    [
        ({"task": "a2g"}, "a2g: expected audio, found none"),
        ({"task": "a2g", "audio": "x.wav", "gesture": "x.npz"}, "a2g: expected audio, found audio and gesture"),
        ({"task": "a2g", "audio": np.zeros(9, np.float32)}, "audio: expected the sample rate of the array"),
        ({"task": "a2g", "audio": np.zeros(9, np.uint8), "audio_rate_hz": 16000}, "audio: expected floats, int16"),
        (
            {"task": "a2g", "audio": np.zeros((9, 9), np.float32), "audio_rate_hz": 16000},
            "audio: expected floats, int16",
        ),
        (
            {"task": "a2g", "audio": np.zeros((4, 2), np.float32), "audio_rate_hz": 16000},
            "audio: expected floats, int16",
        ),
        ({"task": "a2g", "audio": np.full(9, 3e4, np.float32), "audio_rate_hz": 16000}, "divide them by full scale"),
        ({"task": "a2g", "audio": [0.0, 0.1], "audio_rate_hz": 16000}, "audio: expected a path, an array or a tensor"),
        ({"task": "a2g", "audio": "x.wav", "audio_rate_hz": 16000}, "audio_rate_hz: expected only with an array"),
        ({"task": "g2a", "gesture": np.zeros((9, 10), np.float32)}, "gesture: expected channels"),
        ({"task": "t2g", "text": [("there", 1.0, 2.0), ("hello", 0.0, 1.0)]}, "intervals in order of time"),
        ({"task": "t2g", "text": [("hello", 0.0, 1.0), ("there", 0.5, 2.0)]}, "text: word"),
        ({"task": "t2g", "text": [("hello", float("nan"), 1.0)]}, "a text and 0 <= start <= end in seconds"),
        ({"task": "t2g", "text": [("hello", 0.0, 1e9)]}, "a text and 0 <= start <= end in seconds"),
        ({"task": "t2g", "text": [("", 0.0, 1.0)]}, "expected at least one word"),
        ({"task": "t2g", "text": [{"word": 5, "start": 0, "end": 1}]}, "a text and 0 <= start <= end in seconds"),
        (
            {"task": "t2g", "text": {"word": "hello", "start": 0, "end": 1}},
            "expected a text, a file or words, found dict",
        ),
        ({"task": "t2g", "text": 5}, "expected a text, a file or words, found int"),
        (
            {"task": "t2g", "text": "hello", "speaking_rate": 1.0},
            "speaking_rate 1.0: expected the result of pipeline.speaking_rate",
        ),
        ({"task": "t2g", "text": "talk.TextGrid"}, "text 'talk.TextGrid': expected a file"),
        ({"task": "t2g", "text": "recordings/my talk.txt"}, "text 'recordings/my talk.txt': expected a file"),
        ({"task": "t2g", "text": "/data/talk"}, "text '/data/talk': expected a file"),
        ({"task": "t2g", "text": Path("words here")}, "text 'words here': expected a file"),
        ({"task": "unconditional"}, "seconds: expected a number of at least 0.1"),
        ({"task": "unconditional", "seconds": float("nan")}, "seconds: expected a number of at least 0.1"),
        ({"task": "unconditional", "seconds": 1, "solver": "rk4"}, "solver: expected one of euler, heun, dpm++"),
        (
            {"task": "unconditional", "seconds": 1, "guidance_scale": 2.0},
            "guidance_scale 2: expected 1, because this task has no inputs",
        ),
        (
            {"task": "unconditional", "seconds": 1, "num_samples": 0},
            "num_samples: expected a whole number of at least 1",
        ),
        ({"task": "unconditional", "seconds": 1, "seed": -1}, "seed: expected a whole number of at least 0"),
        (
            {"task": "unconditional", "seconds": 1, "speaker": "nobody"},
            "speaker nobody: expected a speaker of the model",
        ),
    ],
)
def test_what_cannot_be_asked_is_one_line(pipeline: OmnigesPipeline, call: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageFault, match=re.escape(line)) as caught:
        pipeline(**call)
    assert "\n" not in str(caught.value)


def test_the_rate_of_motion_is_a_keyword(pipeline: OmnigesPipeline, files: dict[str, Path], tmp_path: Path) -> None:
    with np.load(files["npz"]) as source:
        np.savez(tmp_path / "talk.npz", **{name: source[name] for name in ("poses", "trans", "betas", "expressions")})
    with pytest.raises(DataError, match="give the rate with motion_rate_hz, or save it"):
        pipeline("g2t", gesture=tmp_path / "talk.npz", num_inference_steps=1)
    with pytest.raises(UsageFault, match="motion_rate_hz: expected only with a motion file, found it with an array"):
        pipeline("g2t", gesture=np.zeros((30, 415)), motion_rate_hz=60, num_inference_steps=1)
    whole = pipeline("g2t", gesture=files["npz"], num_inference_steps=1)[0]
    found = pipeline("g2t", gesture=tmp_path / "talk.npz", motion_rate_hz=30, num_inference_steps=1)[0]
    assert found.words == whole.words


def test_words_may_be_tuples_mappings_or_those_of_a_sample(pipeline: OmnigesPipeline, shards: Path) -> None:
    words = open_shards(shards)[0].words
    forms: list[Any] = [words, [(one.word, one.start_s, one.end_s) for one in words]]
    forms.append([{"word": one.word, "start": one.start_s, "end": one.end_s} for one in words])
    generated = [pipeline("t2g", text=form, num_inference_steps=1)[0].gesture for form in forms]
    np.testing.assert_array_equal(generated[0], generated[1])
    np.testing.assert_array_equal(generated[0], generated[2])


def test_samples_and_channels_in_any_order_or_type_are_the_same_sound(
    pipeline: OmnigesPipeline, files: dict[str, Path]
) -> None:
    """(N, 2), (2, N), float64, int16 and a tensor of a 16-bit recording give the same motion, to the bit."""
    mono = decode_wav(files["wav"].read_bytes()).samples[:32000]
    mono = np.round(mono * 32768) / np.float32(32768)
    stereo = np.stack([mono, mono], axis=1)
    whole = np.round(stereo * 32768).astype(np.int16)
    forms: list[Any] = [stereo, stereo.T, stereo.astype(np.float64), whole, whole.T, torch.from_numpy(stereo.copy())]
    generated = [pipeline("a2g", audio=form, audio_rate_hz=16000, num_inference_steps=1)[0].gesture for form in forms]
    for other in generated[1:]:
        np.testing.assert_array_equal(generated[0], other)


def test_a_text_is_spoken_at_the_rate_of_the_training_words(
    pipeline: OmnigesPipeline, shards: Path, tmp_path: Path
) -> None:
    """A checkpoint knows the rate, so no shards are needed; a file's name is read, and gives what its text gives."""
    text = "Good morning to you all, and/or good night. See file.txt for more."
    output = pipeline("t2g", text=text, num_inference_steps=1)
    given = pipeline("t2g", text=text, speaking_rate=pipeline.speaking_rate(shards), num_inference_steps=1)
    np.testing.assert_array_equal(output[0].gesture, given[0].gesture)
    assert any("speaking rate" in warning for warning in output.warnings)
    assert output.remarks == output.warnings  # the former name
    longer = pipeline("t2g", text=" ".join(["good morning to you"] * 100), num_inference_steps=1)  # no file name
    assert longer[0].seconds > 60
    file = tmp_path / "my text"
    file.write_text(text)
    for path in (file, str(file)):
        read = pipeline("t2g", text=path, num_inference_steps=1)
        np.testing.assert_array_equal(output[0].gesture, read[0].gesture)


def test_a_model_without_a_speaking_rate_asks_for_one(pipeline: OmnigesPipeline) -> None:
    loaded = pipeline._loaded
    older = OmnigesPipeline(replace(loaded, identity=replace(loaded.identity, speaking_rate=b"")))
    with pytest.raises(UsageFault, match="the checkpoint has no speaking rate"):
        older("t2g", text="hello there")


def test_results_are_saved_as_files_that_read_back(pipeline: OmnigesPipeline, tmp_path: Path) -> None:
    sample = pipeline("unconditional", seconds=2, num_inference_steps=1)[0]
    npz, wav, grid = sample.save(tmp_path / "new" / "all")
    motion = decode_motion(npz.read_bytes())
    np.testing.assert_allclose(motion.poses, sample.motion().poses, atol=1e-6)
    assert len(decode_wav(wav.read_bytes()).samples) == 32000
    assert grid.read_bytes().startswith(b"File type")
    assert sample.save(str(tmp_path / "one.NPZ")) == [tmp_path / "one.NPZ"]
    silent = pipeline("t2g", text="hello there", num_inference_steps=1)[0]
    with pytest.raises(
        UsageFault, match=re.escape("expected the ending .npz, because this sample has nothing to write as .wav")
    ):
        silent.save(tmp_path / "one.wav")


def test_the_example_of_the_page_runs(
    checkpoint: Path, shards: Path, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its names are those of a run, shards and a recording in the working folder."""
    (example,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").symlink_to(checkpoint)
    (tmp_path / "shards").symlink_to(shards)
    (tmp_path / "talk.wav").symlink_to(files["wav"])
    found: dict[str, Any] = {}
    exec(compile(example, str(PAGE), "exec"), found)  # noqa: S102 - the page's own program
    assert found["motion"].poses.shape[1] == 165
    assert found["samples"].ndim == 1
    assert (tmp_path / "model" / "ema.safetensors").exists()
