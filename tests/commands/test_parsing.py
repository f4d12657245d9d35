"""Names of options are forgiving, values are left alone, and an error is one line."""

from __future__ import annotations

import inspect
import re
import subprocess
from typing import Any, get_type_hints

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from pipeline_helpers import omniges

from omniges.cli import app
from omniges.commands.parsing import present_words
from omniges.errors import UsageFault
from omniges.options import Setting, as_flag, every_setting

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
NEEDED = {
    "preprocess": ["--root", "."],
    "export": ["-o", "x"],
    "render": ["-o", "x"],
    "view": ["-o", "x"],
    "encode": ["--codec", "a=b"],
    "convert-omniflow": ["-o", "x", "y"],
    "generate": ["--checkpoint", "x", "--task", "a2g", "-o", "x"],
}
FORMER = [
    ("preprocess", "--out", "output_dir"),
    ("preprocess", "--workers", "num_workers"),
    ("preprocess", "--splits", "splits"),
    ("verify-shards", "--out", "output_file"),
    ("verify-shards", "--report", "output_file"),
    ("verify-shards", "--workers", "num_workers"),
    ("verify-shards", "--splits", "splits"),
    ("encode", "--out", "output_dir"),
    ("encode", "--with", "codecs"),
    ("export", "--out", "output_dir"),
    ("convert-omniflow", "--out", "output_dir"),
    ("train", "--out", "output_dir"),
    ("train", "--workers", "num_workers"),
    ("train", "--dataloader-num-workers", "num_workers"),
    ("train", "--train-batch-size", "batch_size"),
    ("train", "--lr-schedule", "lr_scheduler"),
    ("train", "--steps", "max_train_steps"),
    ("train", "--resume", "resume_from_checkpoint"),
    ("generate", "--out", "output_dir"),
    ("generate", "--steps", "num_inference_steps"),
    ("generate", "--guidance", "guidance_scale"),
    ("generate", "--last-level", "sigma_min"),
    ("generate", "--start", "start_xz"),
    ("generate", "--pictures", "png"),
    ("evaluate", "--trust-program", "trust_encoder_program"),
    ("evaluate", "--out", "output_file"),
    ("evaluate", "--work", "work_dir"),
    ("evaluate", "--steps", "num_inference_steps"),
    ("evaluate", "--encoder", "gesture_encoder"),
    ("verify-shards", "--shards", "folder"),
]
"""Names of earlier versions and of other projects' habits: command, name, setting."""


def parsed(command: str, *words: str) -> dict[str, Any]:
    """Values by parameter, of a command that also gets what it cannot do without."""
    found: dict[str, Any] = COMMANDS[command].make_context(command, [*NEEDED.get(command, []), *words]).params
    return found


def settings_of(command: str) -> list[Setting]:
    hints = get_type_hints(inspect.unwrap(COMMANDS[command].callback), include_extras=True).values()
    found = [getattr(hint, "__metadata__", (hint,))[0] for hint in hints]
    return [each for of in found if hasattr(of, "__dataclass_fields__") for each in every_setting(of)]


def only_line(run: subprocess.CompletedProcess[str]) -> str:
    (line,) = run.stderr.strip().splitlines()
    return line


class TestNames:
    @pytest.mark.parametrize(("command", "name", "setting"), FORMER)
    def test_a_former_name_is_the_present_one(self, command: str, name: str, setting: str) -> None:
        (option,) = [each for each in COMMANDS[command].params if each.name == setting]
        if getattr(option, "is_flag", False):
            assert parsed(command, name)[setting] is True
            return
        for words in ([name, "x"], [f"{name}=x"], [name.replace("-", "_").replace("__", "--"), "x"]):
            value = parsed(command, *words)[setting]
            assert (value[-1] if isinstance(value, list) else value) == "x"

    def test_the_table_of_former_names_lacks_none(self) -> None:
        for command in COMMANDS.keys() - {"benchmark"}:
            fields = {as_flag(each.name) for each in settings_of(command)}
            assert COMMANDS[command].present.keys() - fields <= {name for of, name, _ in FORMER if of == command}

    @pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"benchmark"}))
    def test_every_option_may_be_written_with_underscores(self, command: str) -> None:
        for option in COMMANDS[command].params:
            for flag in option.opts if option.param_type_name == "option" else []:
                if flag.startswith("--") and "-" in flag[2:] and flag not in NEEDED.get(command, ()):
                    written = "--" + flag[2:].replace("-", "_")
                    words = [written] if option.is_flag else [written, *["a_b"] * option.nargs]
                    value = parsed(command, *words)[option.name]
                    assert value in (True, "a_b", ["a_b"], ("a_b", "a_b"))

    @given(value=st.text(min_size=1))
    def test_values_are_left_as_they_are(self, value: str) -> None:
        values = {"--max-steps": 1, "--pair": 2, "--switch": 0, "-o": 1}
        for words, expected in (
            ([f"--max_steps={value}"], [f"--max-steps={value}"]),
            (["--max_steps", value], ["--max-steps", value]),
            (["--old_steps", value, "--switch"], ["--max-steps", value, "--switch"]),
            (["--pair", value, value], ["--pair", value, value]),
            (["-o", value], ["-o", value]),
            (["--", "--max_steps", value], ["--", "--max_steps", value]),
        ):
            assert present_words(words, values, {"--old-steps": "--max-steps"}) == (expected, [])

    def test_the_folder_of_verify_shards_may_have_the_name_it_has_in_other_commands(self) -> None:
        for words in (["--shards", "x"], ["--shards=x"], ["x"]):
            assert parsed("verify-shards", *words, "--level", "deep")["folder"] == "x"
        run = omniges("verify-shards", "--shards")
        assert run.returncode == 2
        assert "unknown option --shards" in only_line(run)

    def test_every_unknown_option_is_named_with_the_nearest(self) -> None:
        run = omniges("train", "--max-step", "3", "--sead=1", "--zzz")
        assert run.returncode == 2
        line = only_line(run)
        assert line.startswith("omniges: omniges train: unknown options --max-step (did you mean --max-")
        assert "--sead (did you mean --seed?), --zzz; see omniges train --help" in line


class TestValues:
    @pytest.mark.parametrize(
        "words",
        [
            ["preprocess"],
            ["nonsense"],
            ["--nonsense"],
            ["train", "--seed"],
            ["train", "-x"],
            ["train", "--preset", "huge"],
            ["inspect", "a", "b", "c"],
            ["evaluate", "--features", "one"],
            ["benchmark", "nonsense"],
        ],
    )
    def test_what_cannot_be_read_is_one_line(self, words: list[str]) -> None:
        run = omniges(*words)
        assert (run.returncode, run.stdout) == (2, "")
        assert only_line(run).startswith("omniges: ")

    def test_a_missing_option_is_named(self) -> None:
        line = only_line(omniges("preprocess"))
        assert (
            line
            == "omniges: --root: expected a value, because it is required, found none; see omniges preprocess --help"
        )

    @pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"benchmark"}))
    def test_a_refusal_says_the_choices_or_the_range(self, command: str) -> None:
        assert settings_of(command)
        for setting in settings_of(command):
            if setting.choices:
                with pytest.raises(UsageFault) as refused:
                    setting.checked(f"{setting.choices[0]}x")
                assert all(str(choice) in str(refused.value) for choice in setting.choices)
                assert f"did you mean {setting.choices[0]}?" in str(refused.value)
            for limit, change in (
                (setting.option.minimum, -1),
                (setting.option.maximum, 1),
                (setting.option.above, -1),
            ):
                if limit is not None and setting.kind in (int, float) and setting.option.parse is None:
                    with pytest.raises(UsageFault, match=re.escape(str(limit))):
                        setting.checked(setting.kind(limit + change) if limit < 2**60 else 2**70)

    def test_the_command_line_says_the_flag(self) -> None:
        words = ("--checkpoint", "x", "--task", "a2g", "-o", "y")
        line = only_line(omniges("generate", *words, "--num-inference-steps", "0"))
        assert line == "omniges: --num-inference-steps 0: expected a whole number of at least 1 and at most 10000"
