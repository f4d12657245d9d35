"""Structure of the package: order of imports, no circles, what loads where, nothing unpickled, cost of --help."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "omniges"

# A subpackage imports only those above it; those in one line do not import each other.
ORDER = """
errors | version
arguments | progress | workers | registry
options
storage
features
formats
shards | visualize
conditions
metrics | pipeline | verify | data | codecs
model
generation | pretrained
evaluation
trainer
exchange
testing | benchmark
api | commands
cli
__main__
"""
HEIGHT = {
    subpackage: height
    for height, line in enumerate(ORDER.split("\n"))
    for subpackage in line.split(" | ")
    if subpackage
}

TRAINING = {"torch", "webdataset", "accelerate", "diffusers", "transformers"}
# What loads none of these when it is imported, in whole.
OFFLINE = {
    *(
        "errors",
        "version",
        "options",
        "arguments",
        "progress",
        "workers",
        "registry",
        "storage",
        "features",
        "formats",
        "shards",
        "visualize",
    ),
    *("conditions", "metrics", "pipeline", "verify", "exchange", "testing", "api", "commands", "cli"),
}
ACCELERATED = {"trainer", "benchmark"}  # that import accelerate (diffusers, which a codec imports, loads it too)
FOR_GENERATION = {"data", "codecs", "model", "generation", "pretrained", "evaluation"}  # none of it loads the trainer
TOUCH_FILES = {
    PACKAGE / "formats" / name for name in ("arrays.py", "body_model.py", "motion.py")
}  # the files of formats that do
# Where any exception is caught: one recording in a worker, threads that hand an exception to the one who waits,
# libraries and other people's packages that raise what they like, the end of a command, and a run of training, which
# saves what it learned before it raises the exception again.
BOUNDARIES = {
    *("cli.py", "errors.py", "registry.py"),
    *("codecs/text_vae/tokenizers.py", "pipeline/worker.py", "trainer/loop.py"),
}
UNSAFE = {"pickle", "dill", "joblib", "shelve", "marshal"}
HARMLESS = {"pickle.UnpicklingError"}  # the name of an error
WEIGHTS_READER = PACKAGE / "storage" / "tensors.py"


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def subpackage_of(module: str) -> str:
    """Return the subpackage of a module of omniges; "" for the package itself."""
    return (*module.split("."), "")[1]


FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {module_of(path): path for path in FILES}
SUBPACKAGES = sorted({subpackage_of(module) for module in MODULES} - {""})


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """All nodes of a file's syntax tree."""
    return tuple(ast.walk(ast.parse(path.read_text())))


def arrows(path: Path) -> Iterator[tuple[int, str]]:
    """Line and module of every import of a file, those inside functions and for types too."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                inside = whole in MODULES or not (node.module or "").startswith("omniges")
                yield node.lineno, whole if inside else node.module or ""


@cache
def imports(path: Path) -> set[str]:
    return {name for _, name in arrows(path)}


def loaded_by(*modules: str, then: str = "") -> set[str]:
    """All that a fresh interpreter has loaded after these."""
    script = "import sys\n" + "".join(f"import {module}\n" for module in modules) + f"{then}\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def tops(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


class TestStructure:
    def test_every_subpackage_is_in_the_order(self) -> None:
        assert set(SUBPACKAGES) <= set(HEIGHT), "a new subpackage: give it a place in ORDER"

    def test_a_subpackage_imports_only_those_before_it(self) -> None:
        wrong = [
            f"{path.relative_to(PACKAGE.parent)}:{line} imports {name}"
            for module, path in MODULES.items()
            if (subpackage := subpackage_of(module))
            for line, name in arrows(path)
            if name in MODULES
            and subpackage_of(name) not in {subpackage, ""}
            and HEIGHT[subpackage_of(name)] >= HEIGHT[subpackage]
        ]
        assert wrong == []

    def test_the_package_itself_imports_no_subpackage_before_it_is_asked(self) -> None:
        assert {module for module in loaded_by("omniges") if module.startswith("omniges.")} == set()

    def test_no_file_imports_itself_in_a_circle(self) -> None:
        graph = {module: {name for name in imports(path) if name in MODULES} for module, path in MODULES.items()}
        graph["omniges"] = set()  # names that are imported when they are asked for
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            pytest.fail(" imports ".join(reversed(error.args[1])))

    def test_no_subpackage_is_too_large(self) -> None:
        lines = dict.fromkeys(SUBPACKAGES, 0)
        for module, path in MODULES.items():
            if subpackage_of(module):
                lines[subpackage_of(module)] += len(path.read_text().splitlines())
        assert {subpackage: n for subpackage, n in lines.items() if n > 0.15 * sum(lines.values())} == {}


class TestLoading:
    def test_the_offline_subpackages_load_nothing_of_training(self) -> None:
        modules = [module for module in MODULES if subpackage_of(module) in OFFLINE]
        assert not tops(loaded_by(*modules)) & TRAINING

    @pytest.mark.slow
    def test_generation_never_loads_the_trainer(self) -> None:
        modules = [module for module in MODULES if subpackage_of(module) in FOR_GENERATION]
        assert not {module for module in loaded_by(*modules) if subpackage_of(module) == "trainer"}

    def test_accelerate_is_imported_where_models_are_trained_alone(self) -> None:
        wrong = [path for path in FILES if "accelerate" in tops(imports(path))]
        assert {subpackage_of(module_of(path)) for path in wrong} <= ACCELERATED

    def test_help_loads_neither_numpy_nor_anything_heavy(self) -> None:
        heavy = {"numpy", "scipy", "pyarrow", "librosa", "numba", "tokenizers", "soundfile", "matplotlib"}
        assert not tops(loaded_by("omniges.cli")) & (heavy | TRAINING)

    def test_a_worker_loads_no_librosa_and_nothing_of_training(self) -> None:
        then = "omniges.features.audio._analysis('float32')"
        loaded = tops(
            loaded_by("omniges.pipeline.worker", "omniges.pipeline.convert", "omniges.features.audio", then=then)
        )
        assert "scipy" in loaded
        assert not loaded & ({"librosa", "numba", "pyarrow", "tokenizers", "rich", "typer"} | TRAINING)


def unpickling(path: Path) -> Iterator[str]:
    """What in a file may unpickle: lines that import or call what does, without refusing objects."""
    for line, name in arrows(path):
        if name.split(".")[0] in UNSAFE and name not in HARMLESS:
            yield f"{path}:{line} imports {name}"
    for node in nodes(path):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            yield f"{path}:{node.value.lineno} allows pickles"
        if isinstance(node, ast.Call):
            called, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            if called in {"np.load", "numpy.load"} and "allow_pickle" not in given:
                yield f"{path}:{node.lineno} leaves it to numpy"
            if called.endswith("torch.load") and (path != WEIGHTS_READER or given.get("weights_only") != "True"):
                yield f"{path}:{node.lineno} leaves it to torch"


def broad_handlers(path: Path) -> list[int]:
    """Lines of a file that catch any exception."""
    handlers = [node for node in nodes(path) if isinstance(node, ast.ExceptHandler)]
    kinds = [
        {ast.unparse(kind) for kind in getattr(node.type, "elts", [node.type])} if node.type else {"Exception"}
        for node in handlers
    ]
    return [node.lineno for node, own in zip(handlers, kinds, strict=True) if {"Exception", "BaseException"} & own]


class TestEachFile:
    def test_features_and_formats_touch_no_files(self) -> None:
        pure = [path for path in FILES if subpackage_of(module_of(path)) in {"features", "formats"}]
        touching = {path for path in pure if {"pathlib", "os", "shutil", "tempfile"} & tops(imports(path))}
        assert touching <= TOUCH_FILES

    def test_nothing_is_unpickled(self) -> None:
        assert [found for path in FILES for found in unpickling(path)] == []

    @pytest.mark.parametrize(
        "line",
        [
            "import pickle",
            "from pickle import loads",
            "from joblib import load",
            "np.load(file)",
            "numpy.load(file, allow_pickle=True)",
            "other(file, allow_pickle=chosen)",
            "torch.load(file, weights_only=True)",
        ],
    )
    def test_what_unpickles_would_be_found(self, line: str, tmp_path: Path) -> None:
        (tmp_path / "a.py").write_text(line)
        assert len(list(unpickling(tmp_path / "a.py"))) == 1

    def test_any_exception_is_caught_at_a_named_boundary_alone(self) -> None:
        found = {str(path.relative_to(PACKAGE)): broad_handlers(path) for path in FILES}
        assert {name: len(lines) for name, lines in found.items() if lines} == dict.fromkeys(BOUNDARIES, 1), found

    def test_functions_are_short(self) -> None:
        lengths = {
            f"{path}:{node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
            for path in FILES
            for node in nodes(path)
            if isinstance(node, ast.FunctionDef)
        }
        assert {name: length for name, length in lengths.items() if length > 80} == {}
