"""A setting is declared once: its flag, keyword, key and other names follow, and errors use the right one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from omniges import EvaluateSettings, GenerateSettings, PreprocessSettings, SamplingSettings, TrainSettings, errors
from omniges.data.settings import TraceSettings
from omniges.errors import DataError, OmnigesError, UsageFault
from omniges.exchange.settings import ExportSettings, InspectSettings, ViewSettings
from omniges.options import every_setting, from_keywords, keywords_in_errors, present_names
from omniges.trainer.config import differences
from omniges.trainer.recipe import load_settings
from omniges.verify.settings import VerifySettings

CHOSEN: dict[str, Any] = {
    "max_train_steps": 5,
    "batch_size": 3,
    "lr_scheduler": "cosine",
    "resume_from_checkpoint": "never",
    "num_workers": 1,
    "output_dir": "elsewhere",
}
OTHER = [(each.name, other) for each in every_setting(TrainSettings) for other in each.other_names]


class TestOtherNames:
    @pytest.mark.parametrize(("name", "other"), OTHER)
    def test_recipes_and_checkpoints_with_former_keys_still_load(self, name: str, other: str, tmp_path: Any) -> None:
        document = {other if key == name else key: value for key, value in CHOSEN.items()}
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text("".join(f"{key}: {value}\n" for key, value in document.items()))
        assert load_settings(recipe, {}) == TrainSettings(**CHOSEN)
        saved = TrainSettings(**CHOSEN).as_json()
        saved[other] = saved.pop(name)
        assert differences(saved, TrainSettings(**CHOSEN).as_json()) == []
        assert differences(
            saved,
            TrainSettings(
                **CHOSEN | {name: 2 if name != "output_dir" else "x"}
                if name not in ("lr_scheduler", "resume_from_checkpoint")
                else CHOSEN | {name: "constant"}
            ).as_json(),
        )

    def test_they_are_some_and_belong_to_one_setting_each(self) -> None:
        assert {name for name, _ in OTHER} <= CHOSEN.keys()
        for settings in (PreprocessSettings, TrainSettings, GenerateSettings, EvaluateSettings):
            names = [name for each in every_setting(settings) for name in (each.name, *each.other_names)]
            assert len(names) == len(set(names))

    def test_two_names_of_one_setting_are_refused(self) -> None:
        with pytest.raises(UsageFault, match="lr_scheduler and lr_schedule: expected one name of the setting"):
            present_names(TrainSettings, {"lr_scheduler": "cosine", "lr_schedule": "linear"})

    def test_keywords_of_python_too(self) -> None:
        settings = from_keywords(
            PreprocessSettings, {"root": ".", "out": "x", "split": "val", "workers": 1}, "preprocess"
        )
        assert (str(settings.output_dir), settings.selection.splits, settings.num_workers) == ("x", ("val",), 1)


class TestErrors:
    @pytest.mark.parametrize(
        ("make", "keyword", "flag"),
        [
            (lambda: SamplingSettings(num_inference_steps=0), "num_inference_steps 0: ", "--num-inference-steps 0: "),
            (lambda: PreprocessSettings(root=".", max_rejected=2), "max_rejected 2.0: ", "--max-rejected 2.0: "),
            (lambda: TrainSettings(adam_beta1=2), "adam_beta1 2.0: ", "recipe key adam_beta1 2.0: "),
            (
                lambda: TrainSettings(lr_scheduler="cosine", max_minutes=1),
                "give max_train_steps or num_train_epochs too, or use lr_scheduler constant",
                "give --max-train-steps or --num-train-epochs too, or use --lr-scheduler constant",
            ),
            (
                lambda: EvaluateSettings(generated=("x",), trust_encoder_program=True),
                "trust_encoder_program: expected a gesture_encoder to trust",
                "--trust-encoder-program: expected a --gesture-encoder to trust",
            ),
        ],
    )
    def test_python_sees_the_keyword_and_the_command_line_the_flag(self, make: Any, keyword: str, flag: str) -> None:
        with pytest.raises(UsageFault) as refused:
            make()
        assert keyword in str(refused.value)
        assert "--" not in str(refused.value)
        assert refused.value.on_command_line is not None
        assert flag in refused.value.on_command_line

    def test_what_is_no_flag_of_the_settings_stays(self) -> None:
        message = "/data/--seed/x--seed: expected --seeds, --no-seed and --seed; add --overwrite"
        with pytest.raises(DataError) as refused, keywords_in_errors(GenerateSettings):
            raise DataError(message)
        assert str(refused.value) == "/data/--seed/x--seed: expected --seeds, --no-seed and seed; add overwrite=True"
        assert refused.value.on_command_line == message

    def test_an_error_that_names_no_setting_is_the_same(self) -> None:
        error = errors.EnvironmentFault("disk full")
        with pytest.raises(errors.EnvironmentFault, match=r"^disk full$"), keywords_in_errors(GenerateSettings):
            raise error
        assert error.on_command_line is None


_JUNK: list[Any] = [
    *(None, True, -1, 2.5, float("nan"), "", "a\0b", "x" * 300, "\ud800", "9" * 5000, b"x", 1 << 70, object()),
    *([], [None], ["x"], {}, {"a": "b"}, {1: 2}, Path("a\0b"), [("a",)], [("a", "b", "c")]),
]
_SETTINGS: dict[type[Any], dict[str, Any]] = {
    PreprocessSettings: {"root": "root"},
    EvaluateSettings: {"generated": ("results",), "shards": "shards"},
    GenerateSettings: {"checkpoint": "run", "task": "a2g", "output_dir": "out", "audio": ("a.wav",)},
    TrainSettings: {},
    VerifySettings: {},
}


class TestValues:
    @pytest.mark.parametrize("settings", _SETTINGS)
    def test_anything_is_a_value_or_one_line(self, settings: type[Any]) -> None:
        for name in (each.name for each in every_setting(settings)):
            for junk in _JUNK:
                try:
                    from_keywords(settings, _SETTINGS[settings] | {name: junk}, "function")
                except OmnigesError as error:
                    assert "\n" not in str(error), (name, junk)
                except Exception as error:
                    raise AssertionError(f"{name}={junk!r}: {error!r}") from error

    @pytest.mark.parametrize("given", [{"gesture-rvqvae": "x"}, ["gesture-rvqvae=x"], [("gesture-rvqvae", Path("x"))]])
    def test_a_name_and_a_folder_are_given_as_pairs_texts_or_a_mapping(self, given: Any) -> None:
        assert EvaluateSettings(checkpoint="run", codecs=given).codecs == (("gesture-rvqvae", Path("x")),)

    @pytest.mark.parametrize("given", [[("gesture-rvqvae",)], [3], ["gesture-rvqvae"], [("gesture-rvqvae", 3)]])
    def test_other_parts_are_refused(self, given: Any) -> None:
        with pytest.raises(UsageFault, match=r"^codecs .* expected "):
            EvaluateSettings(checkpoint="run", codecs=given)

    @pytest.mark.parametrize("name", ["a\0b", "x" * 300, "\ud800"])
    def test_a_path_that_no_file_can_have_is_refused(self, name: str) -> None:
        with pytest.raises(UsageFault, match=r"^root: expected a path "):
            PreprocessSettings(root=name)

    @pytest.mark.parametrize("url", ["https://me:secret@host/set?token=secret", "s3://bucket/set", "file:///set"])
    def test_a_url_is_no_local_path_and_is_not_shown_as_one(self, url: str) -> None:
        with pytest.raises(UsageFault) as caught:
            TraceSettings(shards=url)  # type: ignore[arg-type]
        line = str(caught.value)
        assert line.startswith("shards: expected a local path, found a URL of " + url.partition("/")[0] + "//;")
        assert "secret" not in line


@pytest.mark.parametrize(
    ("settings", "name", "value", "argument"),
    [
        (InspectSettings, "path", "s3://b/x", "PATH"),
        (InspectSettings, "path", "", "PATH"),
        (InspectSettings, "key", b"", "KEY"),
        (ExportSettings, "paths", ("s3://b/x",), "PATH"),
        (ViewSettings, "paths", (), "PATH"),
        (EvaluateSettings, "generated", ("x" * 300,), "DIR"),
    ],
)
def test_an_argument_without_a_flag_has_its_name_of_help(settings: Any, name: str, value: Any, argument: str) -> None:
    output = {
        ExportSettings: {"output_dir": "o"},
        ViewSettings: {"output_file": "p.html"},
        EvaluateSettings: {"shards": "s"},
    }
    with pytest.raises(UsageFault) as caught:
        settings(**output.get(settings, {}) | {name: value})
    words = str(caught.value.on_command_line)
    assert words.startswith((f"{argument}: expected ", f"{argument} {value!r}: expected "))
    assert str(caught.value) == words.replace(argument, name, 1)
