"""Text from data is shown, never obeyed: no escape sequence, line break, markup or name of an emoji has an effect."""

from __future__ import annotations

import ast
import io
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline_helpers import omniges as command
from rich.console import Console
from write_builders import recording

import omniges
from omniges.formats.textgrid import WordInterval, encode_words, is_word
from omniges.pipeline.summary import print_line, print_table
from omniges.progress import LineReporter, LiveReporter, printable

PACKAGE = Path(omniges.__file__).parent
HOSTILE = (
    *("\x1b[2J\x1b[31mgone", "\x9b2Kgone", "\x1b]0;title\x07", "a\rb", "a\nvalid at level deep", "\u202egnp.exe"),
    *("[/phones]", "[red]clip[a]", "[bold", ":smile:", "\udcff", "\x00", "tab\there"),
)
PRINTERS = {"commands/parsing.py": 2, "pipeline/summary.py": 5, "progress.py": 1}
"""Numbers of calls that print, by file: help, output of `printable`, and empty lines."""


class TestPrintable:
    @given(st.text() | st.sampled_from(HOSTILE))
    def test_is_one_printable_line_and_unique(self, text: str) -> None:
        shown = printable(text)
        assert shown.isprintable()
        assert printable(shown) == shown
        if "\\" not in text and '"' not in text:
            assert json.loads(f'"{shown}"') == text

    @given(st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
    def test_keeps_the_meaning_of_json(self, value: object) -> None:
        assert json.loads(printable(json.dumps(value, ensure_ascii=False))) == value

    @pytest.mark.parametrize("text", HOSTILE)
    def test_every_way_to_the_terminal_passes_it(self, text: str) -> None:
        lines, live, table = io.StringIO(), io.StringIO(), io.StringIO()
        LineReporter(lines).say(text)
        LiveReporter(live).say(text)
        console = Console(file=table, width=200)
        print_table(console, ("title",), [(text,)])
        print_line(console, text)
        wanted = printable(text)
        assert lines.getvalue() == wanted + "\n"
        assert live.getvalue().rstrip() == wanted
        assert [line.rstrip() for line in table.getvalue().splitlines()] == ["title", wanted, wanted]


def test_nothing_else_prints() -> None:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] == "benchmark":  # numbers of this machine alone
            continue
        calls = [node.func for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
        prints = [call for call in calls if ast.unparse(call) in {"print", "typer.echo", "console.print"}]
        if prints:
            found[str(path.relative_to(PACKAGE))] = len(prints)
    assert found == PRINTERS


def require_plain(text: str) -> None:
    assert all(line.isprintable() for line in text.removesuffix("\n").split("\n")), ascii(text)


class TestCommands:
    @pytest.mark.slow
    def test_a_corpus_of_hostile_names_is_converted_and_shown_as_it_is(self, corpus: Path, tmp_path: Path) -> None:
        root = tmp_path / "root"
        shutil.copytree(corpus, root)
        named = "clip[a]:smile:\x1b[2J"
        for path in sorted(root.rglob("*.wav"))[:1]:
            path.with_name(f"{named}.wav").write_bytes(path.read_bytes())
        tier = b'"[/phones]\x1b[2J"'
        first = min(root.rglob("*.TextGrid"))
        first.write_bytes(encode_words([WordInterval("word", 0.1, 0.4)], 5.0).replace(b'"words"', tier))
        run = command("preprocess", "--root", root, "--out", tmp_path / "shards", "--workers", "1")
        assert run.returncode == 1, run.stderr  # two of a few recordings are rejected
        require_plain(run.stdout)
        require_plain(run.stderr)
        assert r"clip[a]:smile:\u001b[2J" in run.stdout
        assert r"[/phones]\x1b[2J" in run.stdout
        plan = command("preprocess", "--root", root, "--out", tmp_path / "shards", "--plan")
        require_plain(plan.stdout)

    def test_words_of_samples(self, tmp_path: Path) -> None:
        words = [(text.encode(errors="replace").decode(), 0.1 * k, 0.1 * k + 0.1) for k, text in enumerate(HOSTILE)]
        words = [word for word in words if word[0].strip("\0") and is_word(word[0])][:10]
        omniges.write_shards([recording(words=words)], tmp_path / "shards")
        for more in ((), ("take_0",), ("take_0", "--json"), ("--json",)):
            shown = command("inspect", tmp_path / "shards", *more)
            assert shown.returncode == 0, shown.stderr
            require_plain(shown.stdout)
            if "--json" in more and "take_0" in more:
                assert [word["word"] for word in json.loads(shown.stdout)["words"]] == [
                    " ".join(w[0].split()) for w in words
                ]

    def test_errors_name_what_a_person_gave(self, tmp_path: Path) -> None:
        for name in ("gone\x1b[2J", "two\nlines", "[red]"):
            for words in (("inspect",), ("export", "-o", tmp_path / "out", "--shards")):
                run = command(*words, tmp_path / name)
                assert run.returncode in {1, 2}
                assert run.stderr.startswith("omniges: ")
                assert run.stderr.count("\n") == 1
                require_plain(run.stderr)
                assert printable(name) in run.stderr
