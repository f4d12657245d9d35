"""The documentation is true where a test can tell: codes, flags, defaults, exit codes, links, commands that exist."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import tables
import typer

from omniges.cli import app
from omniges.errors import CODES, ExitCode
from omniges.verify.findings import VERIFY_CODES

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]

FENCE = re.compile(r"^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def prose_of(path: Path) -> str:
    return FENCE.sub("", path.read_text())


def section(page: str, heading: str) -> str:
    """The text below a heading of level two, up to the next one."""
    match = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert match, f"no section {heading!r}"
    return match[1]


def escaped(text: str) -> str:
    """Plain text as Markdown that shows it letter by letter."""
    return re.sub(r"([<>_*|\\])", r"\\\1", text)


@cache
def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site give them."""
    headings = re.findall(r"^#+ (.+)$", prose_of(path), re.MULTILINE)
    names = re.findall(r"^::: (\S+)$", prose_of(path), re.MULTILINE)  # of the Python API, on the site
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings} | set(names)


class TestFindings:
    PAGE = (DOCS / "reference/findings.md").read_text()

    def test_the_page_has_every_code_as_the_tables_in_the_code_have_it(self) -> None:
        expected = [
            f"| `{code}` | {info.severity} | {escaped(info.meaning)} | {escaped(info.remedy)} |"
            for code, info in (*CODES.items(), *VERIFY_CODES.items())
        ]
        found = [line for line in self.PAGE.splitlines() if line.startswith("| `")]
        assert found == expected, "docs/reference/findings.md differs from the code: make docs-tables"

    def test_the_tables_are_those_that_the_code_makes(self) -> None:
        assert tables.filled(self.PAGE) == self.PAGE

    def test_codes_named_elsewhere_exist(self) -> None:
        prefixes = {"wav", "npz", "textgrid", "split", "stem", "words", "sem", "missing", "audio", "motion", "length"}
        for path in PAGES:
            named = set(re.findall(r"`([a-z0-9]+(?:-[a-z0-9]+)+)`", prose_of(path)))
            assert {name for name in named if name.split("-")[0] in prefixes} <= CODES.keys(), name_of(path)


class TestCommands:
    PAGE = (DOCS / "reference/commands.md").read_text()

    def test_every_command_has_a_section_and_no_other_does(self) -> None:
        assert re.findall(r"^## omniges (\S+)$", self.PAGE, re.MULTILINE) == list(COMMANDS)

    @pytest.mark.parametrize("command", COMMANDS)
    def test_flags_and_defaults_are_those_of_the_program(self, command: str) -> None:
        rows = re.findall(r"^\| (`-.*?) \| (.*?) \| .+ \|$", section(self.PAGE, f"omniges {command}"), re.MULTILINE)
        documented = {flag: default for cell, default in rows for flag in re.findall(r"(?<![\w-])--[a-z0-9-]+", cell)}
        inner = getattr(COMMANDS[command], "commands", {"": COMMANDS[command]}).values()
        shown = [p for one in inner for p in one.params if p.param_type_name == "option" and not p.hidden]
        options = [p for p in shown if p.name != "help"]
        assert documented.keys() == {flag for o in options for flag in (*o.opts, *o.secondary_opts) if len(flag) > 2}
        for option in options if len(inner) == 1 else []:  # the commands of a group share names, not defaults
            default = documented[max(option.opts, key=len)]
            if option.required:
                assert default == "required", option.name
            elif isinstance(option.default, bool):
                assert (default, option.default) == ("off", False), option.name
            elif option.default:
                assert default == f"`{option.default}`", option.name

    def test_the_tables_of_flags_are_those_that_the_declarations_make(self) -> None:
        """Names, values, choices, defaults and meanings: make docs-tables."""
        named = re.findall(r"^<!-- flags of (.*) -->$", self.PAGE, re.MULTILINE)
        assert named == list(tables.commands(app))
        assert tables.filled(self.PAGE) == self.PAGE

    def test_flags_of_the_program_itself(self) -> None:
        flags = {flag for p in typer.main.get_command(app).params for flag in p.opts if p.name != "help"}
        head = self.PAGE.split("\n## ")[0]
        assert set(re.findall(r"^\| `(--[a-z0-9-]+)` \|", head, re.MULTILINE)) == flags

    def test_exit_codes(self) -> None:
        rows = re.findall(r"^\| (\d+) \| (\w+) \|", section(self.PAGE, "Exit codes"), re.MULTILINE)
        assert [(int(code), name) for code, name in rows] == [(int(code), code.name) for code in ExitCode]


@cache
def shell_lines() -> list[tuple[str, list[str]]]:
    """Every `omniges …` command in a fenced block, with the page it stands on."""
    found = []
    for path in PAGES:
        for fence in FENCE.finditer(path.read_text()):
            prompt = "" if fence["kind"] == "sh" else "$ "
            lines = [line.removeprefix(prompt) for line in fence["text"].splitlines() if line.startswith(prompt)]
            if fence["kind"] in {"sh", ""}:
                found += [
                    (name_of(path), shlex.split(line, comments=True)) for line in lines if line.startswith("omniges ")
                ]
    return found


class TestExamples:
    def test_there_are_some(self) -> None:
        assert len(shell_lines()) > 5

    @pytest.mark.parametrize("page", [*map(name_of, PAGES)])
    def test_they_are_commands_that_parse(self, page: str) -> None:
        for words in (words for where, words in shell_lines() if where == page):
            assert words[1] in COMMANDS, words
            COMMANDS[words[1]].make_context(words[1], words[2:])  # raises on a flag or value that does not exist

    def test_they_have_the_names_that_help_shows(self) -> None:
        """Former names parse, but nobody should learn them."""
        for page, words in shell_lines():
            command = COMMANDS[words[1]]
            command = getattr(command, "commands", {}).get(words[2], command) if len(words) > 2 else command
            shown = {flag for each in command.params for flag in (*each.opts, *each.secondary_opts)}
            used = {word.partition("=")[0] for word in words[2:] if word.startswith("-") and word != "-"}
            assert used <= shown, f"{page}: {words}"

    def test_make_targets_exist(self) -> None:
        targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
        for path in PAGES:
            named = re.findall(r"(?:`|^)make ([a-z-]+)", path.read_text(), re.MULTILINE)
            assert set(named) <= targets, name_of(path)

    def test_python_examples_compile(self) -> None:
        for path in PAGES:
            for fence in FENCE.finditer(path.read_text()):
                if fence["kind"] == "python":
                    compile(fence["text"], name_of(path), "exec")


class TestPages:
    def test_relative_links_and_anchors_resolve(self) -> None:
        for path in PAGES:
            for match in LINK.finditer(prose_of(path)):
                target = match["target"]
                if re.match(r"[a-z]+:", target):
                    continue
                file, _, anchor = target.partition("#")
                linked = (path.parent / unquote(file)).resolve() if file else path
                assert linked.exists(), f"{name_of(path)}: {target}"
                assert not anchor or anchor in anchors(linked), f"{name_of(path)}: {target}"

    def test_tests_and_files_that_are_named_exist(self) -> None:
        for path in PAGES:
            for named in re.findall(r"`((?:tests|benchmarks)/[\w/.]+)`", prose_of(path)):
                assert (ROOT / named).exists(), f"{name_of(path)}: {named}"
