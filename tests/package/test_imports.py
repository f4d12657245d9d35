"""The halves stay apart: who may import whom, what never loads in the offline half, and what --help costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "omniges"

# part -> parts of the package it may import (itself always)
ALLOWED = {
    "errors": set(),
    "publish": {"errors"},
    "features": {"errors"},
    "recordings": {"errors"},
    "pictures": {"errors", "features"},
    "shards": {"errors", "publish", "features", "recordings"},
    "pipeline": {"errors", "publish", "features", "recordings", "shards", "pictures"},
    "trainer": {"errors", "publish", "features", "recordings", "shards", "pictures"},
    "commands": {"errors", "publish", "features", "recordings", "shards", "pictures", "pipeline", "trainer"},
    "cli": {"errors", "commands"},
}
TRAINING = {"torch", "webdataset", "accelerate", "diffusers", "transformers"}
UNSAFE = {"pickle", "dill", "joblib", "shelve", "marshal"}
HARMLESS = {"pickle.UnpicklingError"}  # the name of an error
WEIGHTS_READER = PACKAGE / "trainer" / "picklefile.py"
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Every module a file imports anywhere, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
class TestEachFile:
    def test_imports_only_the_parts_below_it(self, path: Path) -> None:
        part = part_of(path)
        used = {name.split(".")[1] for name in imports(path) if name.startswith("omniges.")} - {"__version__"}
        if part == "__init__":
            assert not used
        else:
            assert used - {part} <= ALLOWED[part]

    def test_never_loads_training_packages_in_the_offline_half(self, path: Path) -> None:
        if part_of(path) != "trainer":
            assert not {name.split(".")[0] for name in imports(path)} & TRAINING

    def test_features_touch_no_files(self, path: Path) -> None:
        if part_of(path) in {"features", "recordings"}:
            assert not {"pathlib", "os", "shutil", "tempfile"} & imports(path)

    def test_nothing_is_unpickled(self, path: Path) -> None:
        unsafe = {name for name in imports(path) if name.split(".")[0] in UNSAFE}
        assert unsafe <= HARMLESS | {name.split(".")[0] for name in unsafe & HARMLESS}
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant)
                assert node.value.value is False
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"np.load", "numpy.load"}:
                assert "allow_pickle" in {keyword.arg for keyword in node.keywords}
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("torch.load"):
                assert path == WEIGHTS_READER
                assert {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}["weights_only"] == "True"

    def test_functions_are_short(self, path: Path) -> None:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                assert length <= 80, f"{node.name}: {length} lines"


def loaded_by(statement: str) -> set[str]:
    script = f"import sys\n{statement}\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in run.stdout.split()}


class TestStartUp:
    def test_help_loads_neither_numpy_nor_anything_heavy(self) -> None:
        heavy = {"numpy", "scipy", "pyarrow", "librosa", "numba", "tokenizers", "soundfile", "matplotlib"}
        assert not loaded_by("import omniges.cli") & (heavy | TRAINING)

    def test_a_worker_loads_no_librosa_and_nothing_of_training(self) -> None:
        loaded = loaded_by("import omniges.pipeline.worker, omniges.features.audio as a\na._analysis('float32')")
        assert "scipy" in loaded
        assert not loaded & ({"librosa", "numba", "pyarrow", "tokenizers", "rich", "typer"} | TRAINING)
