"""A run describes the code of this project's own repository, and runs nothing that another one configures."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from omniges.trainer.provenance import git_state

GIT = shutil.which("git") or ""
pytestmark = pytest.mark.skipif(not GIT, reason="git is not installed")


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run([GIT, "-C", folder, *identity, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package in a repository with one commit."""
    folder = tmp_path / "repository" / "src" / "package"
    (folder / "inner").mkdir(parents=True)
    for name in ("__init__.py", "a.py", "inner/b.py"):
        (folder / name).write_text(f"# {name}\n")
    (tmp_path / "repository" / "thesis.tex").write_text("private")
    git(tmp_path / "repository", "init", "-q")
    git(tmp_path / "repository", "add", ".")
    git(tmp_path / "repository", "commit", "-q", "-m", "first")
    return folder


def test_commit_and_files_of_the_package_that_differ_from_it(package: Path) -> None:
    commit = git(package, "rev-parse", "HEAD")
    assert git_state(package) == {"commit": commit, "changed": []}
    (package / "inner" / "b.py").write_text("changed")
    (package / "a.py").unlink()
    (package / "new.py").write_text("in no commit")
    (package.parents[1] / "thesis.tex").write_text("changed too")
    assert git_state(package) == {"commit": commit, "changed": ["a.py", "inner/b.py"]}


def test_links_pipes_and_odd_names(package: Path) -> None:
    (package / "link").symlink_to("a.py")
    odd = package / os.fsdecode(b"\xff.py")
    odd.write_text("odd")
    git(package, "add", ".")
    git(package, "commit", "-q", "-m", "second")
    assert git_state(package)["changed"] == []  # type: ignore[index]
    odd.unlink()
    (package / "a.py").unlink()
    os.mkfifo(package / "a.py")
    assert git_state(package)["changed"] == ["\\udcff.py", "a.py"]  # type: ignore[index]


def test_a_package_installed_inside_somebody_elses_repository_says_nothing_of_it(package: Path) -> None:
    installed = package.parents[1] / ".venv" / "package"
    shutil.copytree(package, installed)
    assert git_state(installed) is None
    git(package, "add", "--force", str(installed))
    assert git_state(installed) is None  # in the index, in no commit


def test_no_repository_at_all(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None


def test_programs_that_a_repository_configures_do_not_run(package: Path, tmp_path: Path) -> None:
    """core.fsmonitor, filters, hooks, external differences and transports, each of which leaves a mark if it runs."""
    root, mark, program = package.parents[1], tmp_path / "ran", tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {mark}\n")
    program.chmod(0o755)
    (root / ".gitattributes").write_text("* filter=mine diff=mine\n")
    for name in ("core.fsmonitor", "core.sshCommand", "core.pager", "diff.external", "core.askPass", "core.editor"):
        git(root, "config", name, str(program))
    for name in ("filter.mine.clean", "filter.mine.smudge", "filter.mine.process", "diff.mine.textconv"):
        git(root, "config", name, str(program))
    git(root, "config", "protocol.ext.allow", "always")
    git(root, "config", "remote.origin.url", f"ext::{program}")
    git(root, "config", "remote.origin.promisor", "true")
    git(root, "config", "extensions.partialClone", "origin")
    hooks = root / ".git" / "hooks"
    for name in ("post-index-change", "post-checkout", "pre-commit", "fsmonitor-watchman"):
        shutil.copy(program, hooks / name)
    (package / "a.py").write_text("changed")
    mark.unlink(missing_ok=True)
    assert git_state(package) is not None
    for path in (root / ".git" / "objects").rglob("*"):  # what is missing would be fetched from the promisor
        if path.is_file():
            path.unlink()
    assert git_state(package) is None
    assert not mark.exists()
    subprocess.run([GIT, "-C", root, "status"], capture_output=True, check=False)
    assert mark.exists()  # the programs are real


def test_variables_do_not_lead_to_another_repository(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(package.parents[1] / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    assert git_state(tmp_path / "elsewhere") is None
