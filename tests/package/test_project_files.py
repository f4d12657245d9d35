"""Files beside the package agree with it: citation, workflow, make targets, security page, templates, pins."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import omniges

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def test_the_citation_names_this_version_and_licence_and_has_what_its_format_needs() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"] == omniges.__version__
    assert citation["license"] == PROJECT["license"]
    assert citation["keywords"] == PROJECT["keywords"]
    assert citation["cff-version"] == "1.2.0"
    assert citation["message"]
    assert citation["title"] == PROJECT["name"]
    assert all(author["name"] for author in citation["authors"])


class TestWorkflow:
    def test_its_token_may_only_read(self) -> None:
        assert WORKFLOW["permissions"] == {"contents": "read"}
        assert all("permissions" not in job for job in WORKFLOW["jobs"].values())

    def test_each_action_has_a_major_version(self) -> None:
        used = [step["uses"] for job in WORKFLOW["jobs"].values() for step in job["steps"] if "uses" in step]
        assert used
        assert all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in used)

    def test_it_runs_make_targets_that_are_listed_and_tests_each_python_of_the_classifiers(self) -> None:
        (job,) = WORKFLOW["jobs"].values()
        matrix = job["strategy"]["matrix"]
        tested = {each["python"] for each in matrix["include"] if each["target"] == "test"}
        minors = {each.rsplit(" ", 1)[1] for each in PROJECT["classifiers"] if "Python :: 3." in each}
        assert tested == minors
        assert {*matrix["target"], "test"} <= TARGETS

    def test_the_script_of_ci_runs_the_same_checks(self) -> None:
        script = (ROOT / ".ci/run").read_text(encoding="utf-8")
        assert {"lint", "docs", "wheel", "gate", "test"} <= set(re.findall(r"^make ([a-z-]+)", script, re.MULTILINE))


def test_make_help_lists_each_phony_target() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert phony
    assert set(phony[1].split()) == TARGETS


def test_links_of_the_security_page_resolve() -> None:
    targets = re.findall(r"\]\(([^)#]+)", (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    assert targets
    assert [target for target in targets if not (ROOT / target).is_file()] == []


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem)
def test_an_issue_template_is_a_form_as_github_reads_it(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert form.keys() <= {"name", "description", "title", "labels", "body"}
    assert form["name"]
    assert form["description"]
    kinds = {"markdown", "textarea", "input", "dropdown", "checkboxes"}
    assert all(
        each["type"] in kinds and ("label" in each["attributes"] or each["type"] == "markdown") for each in form["body"]
    )
    names = [each["id"] for each in form["body"] if "id" in each]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("extra", ["lint", "docs"])
def test_each_tool_of_an_extra_for_developers_has_an_exact_pin(extra: str) -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower()
    tools = [re.split(r"[<>=\[]", each)[0] for each in PROJECT["optional-dependencies"][extra]]
    assert all(re.search(rf"^{tool}==", pins, re.MULTILINE) for tool in tools)
