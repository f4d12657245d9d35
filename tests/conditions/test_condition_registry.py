"""Streams by name: ours, registered ones, and those of installed packages, each imported when it is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from stream_builders import install, install_toy

from omniges.conditions import registry
from omniges.conditions.emotion import Emotion
from omniges.conditions.registry import find_stream, find_streams, load_streams, register_stream, saved_streams
from omniges.errors import EnvironmentFault, UsageFault
from omniges.registry import Registry
from omniges.storage.documents import Document

OTHER = "from omniges.conditions.emotion import LabelStream\nclass Other(LabelStream):\n    name = {name!r}\n"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_ours_is_one_file_and_one_line() -> None:
    """The name of the stream stands in its file and in the registry, and in no other file of the package."""
    package = Path(registry.__file__).parents[1]
    files = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "conditions.emotion" in path.read_text() or "Emotion(" in path.read_text()
    }
    assert files == {"conditions/emotion.py", "conditions/registry.py"}
    assert find_stream("emotion", "--x") is Emotion


def test_a_package_offers_a_stream_by_an_entry_point(path: Path) -> None:
    install_toy(path)
    assert "loudness" in registry.CONDITIONS.names()
    assert find_stream("loudness", "--x").__module__ == "toy_stream"


def test_nothing_is_imported_before_it_is_named(tmp_path: Path) -> None:
    """Nor is torch, by what processes that load batches import."""
    install(tmp_path, "loud", {"loud": "loud_module:Loud"}, {"loud_module": "raise SystemExit(9)"})
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from omniges.conditions.registry import CONDITIONS, find_stream\nfind_stream('emotion', '')\n"
        "print(CONDITIONS.names(), 'torch' in sys.modules, 'loud_module' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "('emotion', 'loud') False False", done.stderr


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import nothing_of_this_name", "of bad-package 0.1: bad_module:Bad: loading failed .ModuleNotFoundError"),
        ("x = 1 / 0", "ZeroDivisionError: division by zero"),
        ("Better = 1", "AttributeError"),
        ("def f(:", "SyntaxError"),
    ],
)
def test_a_package_that_fails_is_one_line(path: Path, source: str, said: str) -> None:
    install(path, "bad-package", {"bad": "bad_module:Bad"}, {"bad_module": source})
    sys.modules.pop("bad_module", None)
    with pytest.raises(EnvironmentFault, match=said) as caught:
        find_stream("bad", "--condition-streams")
    assert "\n" not in str(caught.value)
    assert "bad-package" in str(caught.value)


def test_what_is_no_stream_is_refused(path: Path) -> None:
    install(path, "odd", {"odd": "odd_module:Odd"}, {"odd_module": "Odd = 3"})
    with pytest.raises(EnvironmentFault, match=r"of odd .*: expected an object of builtins.type, found 3"):
        find_stream("odd", "--x")


def test_two_packages_with_one_name_are_refused(path: Path) -> None:
    for name in ("first", "second"):
        install(path, name, {"other": f"{name}_module:Other"}, {f"{name}_module": OTHER.format(name="other")})
    with pytest.raises(EnvironmentFault, match=r"expected one package that provides it, found first .* and second"):
        find_stream("other", "--x")


def test_an_unknown_name_says_which_there_are() -> None:
    with pytest.raises(UsageFault, match="--condition-streams emotoin: expected one of emotion; did you mean emotion"):
        find_stream("emotoin", "--condition-streams")
    with pytest.raises(UsageFault, match="emotion: expected each name once"):
        find_streams(["emotion", "emotion"], "--condition-streams")


def test_a_registered_class_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        registry, "CONDITIONS", Registry("condition stream", "omniges.streams", type, registry.CONDITIONS.builtin)
    )
    mine = type("Mine", (Emotion,), {"name": "mine"})
    register_stream("mine", mine)
    register_stream("mine", mine)
    assert find_stream("mine", "--x") is mine
    for name, kind in (("emotion", Emotion), ("mine", type("Mine", (Emotion,), {"name": "mine"}))):
        with pytest.raises(UsageFault, match="choose another name"):
            register_stream(name, kind)
    for name in ("audio", "Mine", "a.b", ""):
        with pytest.raises(UsageFault, match="expected a name of lower-case letters"):
            register_stream(name, type("Mine", (Emotion,), {"name": name}))


def test_streams_come_back_from_their_specification() -> None:
    found = load_streams({"emotion": registry.specification(Emotion(("anger",)))})
    assert found["emotion"].settings() == {"values": ["anger"]}
    assert type(found["emotion"]) is Emotion


def test_a_checkpoint_names_no_module_that_is_imported(path: Path) -> None:
    """A checkpoint's class only appears in messages; what is imported is what the registry has under the name."""
    (path / "hostile.py").write_text("raise SystemExit(9)")

    def saved(name: str, kind: str, settings: dict[str, Any]) -> Document:
        return Document({"conditions": {name: {"class": kind, "settings": settings}}}, "config.json", "")

    found = saved_streams(saved("emotion", "hostile:Emotion", {"values": ["anger"]}))
    assert type(found["emotion"]) is Emotion
    with pytest.raises(UsageFault, match="json: the model was trained with hostile:Lost, condition stream lost"):
        saved_streams(saved("lost", "hostile:Lost", {}))
    assert "hostile" not in sys.modules
