"""Help fits 80 columns: no name is cut or doubled, and many options stand in panels; values complete in the shell."""

from __future__ import annotations

import functools
import re
from collections import Counter
from typing import Any

import pytest
import typer
from pipeline_helpers import omniges

from omniges.cli import app

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
ALL = [(name,) for name in COMMANDS if name != "benchmark"] + [("benchmark", "loader"), ("benchmark", "train")]


def command_of(words: tuple[str, ...]) -> Any:
    found = COMMANDS[words[0]]
    return found.commands[words[1]] if len(words) > 1 else found


@functools.cache
def help_of(words: tuple[str, ...]) -> str:
    """Help of a command at 80 columns."""
    run = omniges(*words, "--help", COLUMNS="80")
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout


class TestHelp:
    @pytest.mark.parametrize("words", ALL, ids=" ".join)
    def test_names_are_whole_and_stand_once(self, words: tuple[str, ...]) -> None:
        lines = help_of(words).splitlines()
        assert max(map(len, lines)) <= 80
        assert "…" not in help_of(words)
        rows = [line for line in lines if re.match(r"│ -", line)]
        named = Counter(name for line in rows for name in re.findall(r"(?<![\w-])-[\w\[\]-]+", line.split("  ")[0]))
        options = [
            each
            for each in command_of(words).params
            if each.param_type_name == "option" and not getattr(each, "hidden", False)
        ]
        expected = {name for each in options if not each.secondary_opts for name in each.opts}
        expected |= {f"--[no-]{each.opts[0][2:]}" for each in options if each.secondary_opts}
        assert named == Counter(expected | {"--help"})

    @pytest.mark.parametrize("words", ALL, ids=" ".join)
    def test_more_than_ten_options_are_in_panels(self, words: tuple[str, ...]) -> None:
        panels = re.findall(r"^╭─ ([\w ]+) ─", help_of(words), re.MULTILINE)
        assert len(panels) == len(set(panels))
        if len(command_of(words).params) > 10:
            assert len(panels) > 2

    @pytest.mark.parametrize(("words", "commands"), [((), list(COMMANDS)), (("benchmark",), ["loader", "train"])])
    def test_a_group_lists_its_commands_and_shows_no_value_of_a_switch(
        self, words: tuple[str, ...], commands: list[str]
    ) -> None:
        text = help_of(words)
        assert re.findall(r"^│ ([a-z][a-z-]+) ", text.split("Commands ─")[1], re.MULTILINE) == commands
        assert max(map(len, text.splitlines())) <= 80
        assert not re.search("<|…", text)

    def test_former_names_are_not_shown(self) -> None:
        for words in ALL:
            present = getattr(command_of(words), "present", {})
            shown = set(re.findall(r"--[a-z0-9-]+", help_of(words)))
            assert not shown & (present.keys() - set(present.values()))


def completed(words: str, *, cursor: int) -> set[str]:
    run = omniges(_OMNIGES_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(cursor))
    assert run.stderr == ""
    return set(run.stdout.split())


class TestCompletion:
    @pytest.mark.parametrize(
        ("words", "cursor", "expected"),
        [
            ("omniges tr", 1, {"train", "trace-batches"}),
            ("omniges train --lr-s", 2, {"--lr-scheduler"}),
            ("omniges train --preset ", 3, {"tiny", "small", "base", "omniflow"}),
            ("omniges train --recipe beat2-s", 3, {"beat2-speaker2"}),
            ("omniges train --condition-streams ", 3, {"emotion"}),
            ("omniges generate --task a", 3, {"a2g", "a2t", "at2g"}),
            ("omniges evaluate --tasks a2g,t2", 3, {"a2g,t2g", "a2g,t2a"}),
            ("omniges evaluate --split t", 3, {"train", "test"}),
            ("omniges preprocess --split train,v", 3, {"train,val"}),
        ],
    )
    def test_names_and_values_complete(self, words: str, cursor: int, expected: set[str]) -> None:
        assert completed(words, cursor=cursor) == expected

    def test_the_script_of_a_shell_is_printed(self) -> None:
        run = omniges("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
        assert run.returncode == 0
        assert "complete -o default -F _omniges_completion omniges" in run.stdout
