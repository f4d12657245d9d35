"""Settings: defaults, recipe, flags, in this order; a wrong value is one line with the flag's name."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from omniges.errors import UsageFault
from omniges.model.spec import PRESETS
from omniges.trainer.config import LEARNING_RATES, Preset, TrainSettings, differences
from omniges.trainer.recipe import load_settings


def load(text: str, tmp_path: Path, **flags: object) -> TrainSettings:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return load_settings(path, flags)


class TestOrder:
    def test_flags_override_the_recipe_and_it_the_defaults(self, tmp_path: Path) -> None:
        found = load("preset: small\ntrain-batch-size: 8\nseed: 5\n", tmp_path, seed=7, preset=None, report_to=[])
        assert (found.preset, found.batch_size, found.seed, found.window_ticks) == ("small", 8, 7, 64)

    def test_an_empty_recipe_is_the_defaults(self, tmp_path: Path) -> None:
        assert load("", tmp_path) == load_settings(None, {}) == TrainSettings()

    def test_settings_written_out_are_a_recipe_that_gives_them_back(self, tmp_path: Path) -> None:
        settings = TrainSettings(max_minutes=3, report_to=("wandb",), model={"width": 64}, flow={"shift": 2.0})
        assert load(json.dumps(settings.as_json()), tmp_path) == settings

    @pytest.mark.parametrize("text", ["learning_rate: 1e-3", "learning_rate: 0.001", "learning-rate: '1e-3'"])
    def test_numbers_that_yaml_takes_for_text_are_numbers(self, text: str, tmp_path: Path) -> None:
        assert load(text, tmp_path).learning_rate == 0.001

    def test_no_is_a_precision_though_yaml_takes_it_for_false(self, tmp_path: Path) -> None:
        assert load("mixed_precision: no", tmp_path).mixed_precision == "no"

    @pytest.mark.parametrize("preset", PRESETS)
    def test_each_preset_has_a_learning_rate(self, preset: str) -> None:
        assert preset in get_args(Preset)
        assert TrainSettings(preset=preset).learning_rate == LEARNING_RATES[preset]
        assert TrainSettings(preset=preset, learning_rate=0.5).learning_rate == 0.5

    def test_epochs_are_the_default_only_where_nothing_else_ends_the_run(self) -> None:
        assert TrainSettings().num_train_epochs == 100
        assert TrainSettings(max_minutes=1).num_train_epochs is None
        assert TrainSettings(max_train_steps=1).num_train_epochs is None

    def test_sections_reach_model_and_flow(self, tmp_path: Path) -> None:
        found = load("model: {width: 96, rotary_periods_s: [1, 60]}\nflow:\n  shares: {t2g: 1}\n", tmp_path)
        assert (found.model_config().width, found.model_config().rotary_periods_s) == (96, (1, 60))
        assert found.flow_settings().shares == {"t2g": 1}


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("batch_sise: 3", r"unknown key batch_sise .did you mean batch_size\?."),
            ("zzz: 3", "unknown key zzz; expected some of"),
            ("zzz: 3\nsed: 1", r"unknown keys zzz, sed .did you mean seed\?.; expected some of"),
            ("model: {widht: 3}", "model: unknown key widht .did you mean width"),
            ("flow: {shfit: 3}", "flow: unknown key shfit .did you mean shift"),
            ("flow: {shift: -3}", "shift, level_std: expected positive numbers, found -3"),
            ("flow: {shares: 3}", "flow: shares: expected an object, found 3"),
            ("model: {width: 30}", "found width 30"),
            (
                "model: {pooled_width: x}",
                "recipe.yaml: model: pooled_width: expected a whole number or null, found .x.",
            ),
            ("model: 3", "model: expected lines of the form"),
            ("seed: 1\nseed: 2", "line 2, column 1: expected YAML, found a mistake .seed is given twice"),
            ("seed: [1", "line 1, column 9: expected YAML"),
            ("- seed", "expected lines of the form"),
            ("a: !!python/object/apply:os.system [ls]", "found a mistake .could not determine a constructor"),
            ("shards: []", "shards: expected at least one folder"),
            ("shard_weights: [1, 2]", "shard_weights: expected a weight for each of 1 folders, found 2"),
            ("seed: yes", "seed True: expected a whole number of at least 0"),
            ("seed: 1.5", "seed 1.5: expected a whole number of at least 0"),
            ("seed: null", "seed None: expected a whole number of at least 0"),
            ("compile: 1", "compile 1: expected true or false"),
            ("learning_rate: fast", "learning_rate fast: expected a number above 0"),
            ("learning_rate: .nan", "learning_rate: expected a text, a finite number, .* found nan"),
            ("learning_rate: .inf", "learning_rate: expected a text, a finite number, .* found inf"),
            ("model: {rotary_periods_s: [.nan, 1]}", "model: expected a text, a finite number"),
            ("seed: &a 1\nlogging_steps: *a", "line 2, column 16: expected YAML, found a mistake .an alias"),
            ("1: 2", "found a mistake .a key that is no text"),
            ("? [seed]\n: 2", "found a mistake .a key that is no text"),
            ("<<: {seed: 1}", "found a mistake .a key that is no text"),
            ("max_steps: 2001-02-30", "expected YAML"),
            ("preset: 2001-02-03", "preset: expected a text"),
            ("preset: !!set {a, b}", "preset: expected a text"),
            ("preset: !!binary aGk=", "preset: expected a text"),
            (f"seed: {'9' * 5000}", "expected YAML"),
            (f"model: {'[' * 3000}", "found deeper nesting"),
            ("max-train-steps: 1\nmax_train_steps: 2", "found max_train_steps twice, once with - and once with _"),
            ("max-train_steps: 1\nmax_train-steps: 2", "found max_train_steps twice, once with - and once with _"),
            ('output_dir: "a\\0b"', "output_dir: expected a path without NUL"),
            ("lr_schedule: cosine\nmax_minutes: 3", "expected a number of steps for the schedule"),
        ],
    )
    def test_one_line_says_what_is_wrong(self, text: str, said: str, tmp_path: Path) -> None:
        with pytest.raises(UsageFault, match=said) as caught:
            load(text, tmp_path)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("window_ticks", 0),
            ("batch_size", 0),
            ("gradient_accumulation_steps", -1),
            ("num_train_epochs", 0),
            ("max_train_steps", 0),
            ("max_minutes", -1),
            ("learning_rate", 0),
            ("lr_scheduler", "cosin"),
            ("lr_warmup_steps", -1),
            ("weight_decay", -0.1),
            ("adam_beta1", 1),
            ("adam_beta2", 1),
            ("max_grad_norm", -1),
            ("mixed_precision", "fp8"),
            ("ema_decay", 1),
            ("seed", -1),
            ("checkpointing_steps", 0),
            ("checkpoints_total_limit", -1),
            ("report_to", ["comet"]),
            ("num_workers", -1),
            ("logging_steps", 0),
            ("divergence_factor", 1),
            ("preset", "huge"),
        ],
    )
    def test_a_value_out_of_range_is_named_by_its_key(self, name: str, value: object) -> None:
        with pytest.raises(UsageFault, match=f"^{name} .*expected"):
            load_settings(None, {name: value})

    @pytest.mark.timeout(10)
    def test_what_is_no_file_of_text_is_refused_at_once(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "large").write_bytes(b"#" * (1 << 20))
        levels = "\n".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 40))
        (tmp_path / "bomb").write_text(f"a0: &a0 [x]\n{levels}\n")
        for name in ("pipe", "large", "bomb", "."):
            with pytest.raises(UsageFault, match=r"^--recipe ") as caught:
                load_settings(tmp_path / name, {})
            assert "\n" not in str(caught.value)
        with pytest.raises(UsageFault, match="a device"):
            load_settings(Path("/dev/zero"), {})

    def test_a_file_that_is_not_there_or_not_text(self, tmp_path: Path) -> None:
        with pytest.raises(UsageFault, match=r"--recipe .*: expected a YAML file, found that the file does not exist"):
            load_settings(tmp_path / "none.yaml", {})
        (tmp_path / "x").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(UsageFault, match=r"--recipe .*: expected UTF-8"):
            load_settings(tmp_path / "x", {})

    @example({"0000000000": "\n"})
    @given(st.dictionaries(st.text(max_size=12), st.none() | st.text(max_size=5) | st.integers() | st.floats()))
    def test_whatever_a_recipe_says_is_taken_or_refused_in_one_line(self, found: dict[str, object]) -> None:
        names = [f.name for f in fields(TrainSettings)]
        known = {names[len(key) % len(names)]: value for key, value in found.items()}
        try:
            TrainSettings(**known)
        except UsageFault as fault:
            assert "\n" not in str(fault)

    @pytest.mark.parametrize("name", [f.name for f in fields(TrainSettings)])
    def test_a_value_of_two_lines_is_refused_in_one(self, name: str) -> None:
        try:
            TrainSettings(**{name: "a\nb"})
        except UsageFault as fault:
            assert "\n" not in str(fault)


def test_differences_are_reported_by_flag_name() -> None:
    one, two = TrainSettings().as_json(), TrainSettings(seed=1, report_to=("wandb",)).as_json()
    assert differences(one, two) == ["--seed was 0, is 1", "--report-to was [], is ['wandb']"]
    assert differences(json.loads(json.dumps(two)), two) == []


@pytest.mark.parametrize("key", ["piece_width", "mark_width", "blank_weight"])
def test_text_token_keys_are_refused_where_text_is_latents(key: str) -> None:
    assert getattr(TrainSettings(model={key: 8}).model_config(), key) == 8
    with pytest.raises(
        UsageFault, match=f"model.{key}: expected text as text tokens, found latents of omniflow-text-vae"
    ):
        TrainSettings(model={key: 8}, text_codec="omniflow-text-vae")


class TestDifferenceWeights:
    @pytest.mark.parametrize(("stream", "codec"), [("gesture", "gesture-rvqvae"), ("audio", "audioldm2-vae")])
    def test_are_refused_of_a_stream_that_is_latents(self, stream: str, codec: str) -> None:
        model = {f"{stream}_difference_weight": 1.0}
        assert TrainSettings(model=model).model_config().as_json()[f"{stream}_difference_weight"] == 1.0
        with pytest.raises(
            UsageFault, match=f"model.{stream}_difference_weight: expected {stream} as frames, found latents"
        ):
            TrainSettings(model=model, **{f"{stream}_codec": codec})


def test_a_home_folder_in_a_recipe_is_the_persons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    text = "shards: [~/a, s3://bucket/~/b, c]\noutput-dir: ~/run\ncache_dir: ~/c\n"
    text += "audio_codec: audioldm2-vae\nvalidation_codec: [audioldm2-vae=~/vae]\n"
    found = load(text, tmp_path)
    assert found.shards == ("/home/ada/a", "s3://bucket/~/b", "c")
    assert (found.output_dir, found.cache_dir) == (Path("/home/ada/run"), Path("~/c"))
    assert found.validation_codec == ("audioldm2-vae=/home/ada/vae",)
