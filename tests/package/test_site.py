"""The documentation site has every page once, its pages end with their tests, and they stay short."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tables
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
NAV = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
FIRST_PAGES_WORDS, LATER_PAGES_WORDS = 25_000, 6_000
LATER_PAGES = {
    *("blender", "export", "inspect", "other-motion", "praat", "published-rows", "unreal-unity", "video", "view"),
    *("cluster", "fgd", "performance", "scale", "several-machines"),
}
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def targets(nav: Any) -> Iterator[str]:
    """Yield the pages below an entry of the navigation, in its order."""
    if isinstance(nav, str):
        yield nav
    else:
        for each in nav.values() if isinstance(nav, dict) else nav:
            yield from targets(each)


def name_of(path: Path) -> str:
    return str(path.relative_to(DOCS))


def test_the_navigation_has_each_page_once() -> None:
    assert sorted(targets(NAV)) == sorted(map(name_of, PAGES))


def test_a_part_of_the_navigation_is_a_folder() -> None:
    for entry in NAV:
        ((title, below),) = entry.items()
        if not isinstance(below, str):
            assert {target.partition("/")[0] for target in targets(below)} == {title.lower()}


def test_the_readme_leads_to_each_part() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    linked = {os.path.normpath(link) for link in re.findall(r"\]\(docs/([^)#]+)", readme)}
    for entry in NAV:
        assert linked & set(targets(entry)), entry


@pytest.mark.parametrize(
    "path", [p for p in PAGES if p.parent.name in {"how-to", "reference", "explanation"}], ids=name_of
)
def test_a_promise_ends_with_how_it_is_tested(path: Path) -> None:
    heading, tests = re.split(r"^## (.+)\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[-2:]
    assert heading == "How it is tested"
    assert re.search(r"`(tests|benchmarks)/[\w/]+", tests) or "#how-it-is-tested" in tests


def test_pages_written_by_hand_stay_short() -> None:
    """Not counted: commands and programs in fences, tables that follow from the code, and borders of tables."""
    words = {path: len(re.findall(r"\S*\w\S*", written(path))) for path in [ROOT / "README.md", *PAGES]}
    assert {path.stem for path in words} >= LATER_PAGES
    for later, limit in ((False, FIRST_PAGES_WORDS), (True, LATER_PAGES_WORDS)):
        own = {path.name: count for path, count in words.items() if (path.stem in LATER_PAGES) == later}
        assert sum(own.values()) <= limit, sorted(own.items(), key=lambda item: item[1])[-5:]


def written(path: Path) -> str:
    return FENCE.sub("", tables.TABLE.sub("", path.read_text(encoding="utf-8")))


def test_source_code_names_pages_that_exist() -> None:
    named = {
        page
        for folder in ("omniges", "benchmarks", "examples", "tests")
        for path in (ROOT / folder).rglob("*.py")
        for page in re.findall(r"\bdocs/[\w/-]+\.md", path.read_text(encoding="utf-8"))
    }
    assert named
    assert [page for page in sorted(named) if not (ROOT / page).is_file()] == []


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_programs_of_the_tutorial_run(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (DOCS / "tutorials/own-model.md").read_text(encoding="utf-8")
    (tmp_path / "shards").symlink_to(shards)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for program in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        exec(compile(program, "own-model.md", "exec"), names)  # noqa: S102 - our own page
    assert names["batch"]["gesture"].shape == (8, 48, 415)
    assert [path.stem for path in Path("mine").iterdir()] == [names["sample"].key]
    gc.collect()
