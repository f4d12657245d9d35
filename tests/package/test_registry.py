"""Names find what is built in, registered or installed; whatever is wrong with a name is one line with a way out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plugin_builders import install

from omniges.errors import EnvironmentFault, UsageFault
from omniges.registry import Registry

GROUP = "omniges.tests"
BUILTIN = {"join": "posixpath:join", "wide": "colorsys:rgb_to_hsv"}


@pytest.fixture
def registry() -> Registry[Callable[..., Any]]:
    return Registry("thing", GROUP, Callable, BUILTIN)


def own(*_: object) -> None:
    """Something to register."""


class TestNames:
    def test_built_in_registered_and_installed_ones_are_known_and_found(
        self, registry: Registry[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.syspath_prepend(install(tmp_path, {GROUP: {"other": "os.path:basename"}}))
        registry.register("own", own)
        registry.register("own", own)  # an import that runs twice is no fault
        assert registry.names() == ("join", "wide", "own", "other")
        assert registry.get("join")("a", "b") == "a/b"
        assert registry.get("own") is own
        assert registry.get("other")("a/b") == "b"

    def test_nothing_is_imported_but_what_is_named(self, registry: Registry[Any]) -> None:
        sys.modules.pop("colorsys", None)
        registry.names()
        registry.get("join")
        assert "colorsys" not in sys.modules
        registry.get("wide")
        assert "colorsys" in sys.modules

    def test_two_registries_share_nothing(self, registry: Registry[Any]) -> None:
        registry.register("own", own)
        assert "own" not in Registry("thing", GROUP, Callable, BUILTIN).names()


class TestRefusals:
    def test_an_unknown_name_is_reported_with_near_ones(self, registry: Registry[Any]) -> None:
        with pytest.raises(UsageFault, match=r"thing 'jion': expected one of join, wide; did you mean join\?"):
            registry.get("jion")
        with pytest.raises(UsageFault, match=r"^--with x=y: expected one of join, wide \("):
            registry.require("x", "--with x=y")

    @pytest.mark.parametrize("name", ["join", "", "a=b", "../x", "a b"])
    def test_a_name_that_is_taken_or_none(self, registry: Registry[Any], name: str) -> None:
        with pytest.raises(UsageFault, match=f"thing {name!r}: .*name"):
            registry.register(name, own)

    def test_another_object_of_a_registered_name_and_one_of_another_kind(self, registry: Registry[Any]) -> None:
        registry.register("own", own)
        with pytest.raises(UsageFault, match="'own': expected a name that is not registered"):
            registry.register("own", print)
        with pytest.raises(UsageFault, match=r"Callable, found 3"):
            registry.register("three", 3)

    def test_two_packages_of_one_name_are_both_named(
        self, registry: Registry[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("first", "second"):
            monkeypatch.syspath_prepend(install(tmp_path / name, {GROUP: {"other": "os.path:join"}}, name))
        with pytest.raises(
            EnvironmentFault,
            match=r"'other': expected one package that provides it, found (first 1.0 and second|second 1.0 and)",
        ):
            registry.get("other")

    def test_a_package_that_takes_a_built_in_name(
        self, registry: Registry[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.syspath_prepend(install(tmp_path, {GROUP: {"join": "os.path:basename"}}))
        with pytest.raises(
            EnvironmentFault, match=r"'join': expected one package that provides it, found omniges and omniges-toy 1.0"
        ):
            registry.get("join")

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("raise RuntimeError('a\\nb')", r"RuntimeError: a b"),
            ("import omniges_absent", "No module named 'omniges_absent'"),
            ("other = 1", "has no attribute 'made'"),
            ("made = 5", "Callable, found 5"),
        ],
    )
    def test_a_package_that_cannot_be_loaded(
        self, registry: Registry[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, reason: str
    ) -> None:
        (tmp_path / "broken_toy.py").write_text(text)
        monkeypatch.syspath_prepend(install(tmp_path, {GROUP: {"other": "broken_toy:made"}}))
        sys.modules.pop("broken_toy", None)
        with pytest.raises(EnvironmentFault, match=reason) as caught:
            registry.get("other")
        line = str(caught.value)
        assert line.startswith("thing 'other' of omniges-toy 1.0: broken_toy:made")
        assert line.endswith("update or uninstall that package")
        assert "\n" not in line
