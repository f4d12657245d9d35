"""`import omniges` costs nothing, every public name resolves, and plain functions do what commands do."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pipeline_helpers import digests, run_preprocess

import omniges
from omniges.errors import EnvironmentFault, UsageFault

PACKAGE = Path(omniges.__file__).parent
NAMES = [(name, module) for module, names in omniges._MODULES.items() for name in names]
# Names that are not implemented yet. Once a name resolves, take it out here, and into imports and `__all__`.
LATER: set[str] = set()
HERE = {name for name, _ in NAMES} - LATER


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=100)


class TestNames:
    @pytest.mark.parametrize(("name", "module"), NAMES)
    def test_every_public_name_resolves(self, name: str, module: str) -> None:
        if name in LATER:
            with pytest.raises((ModuleNotFoundError, AttributeError)):
                getattr(omniges, name)
            pytest.skip(f"{module} does not have it yet")
        assert getattr(omniges, name).__name__ == name
        assert getattr(omniges, name).__doc__

    def test_type_checkers_and_stars_see_the_names_of_the_table(self) -> None:
        tree = ast.parse((PACKAGE / "__init__.py").read_text())
        (block,) = [node for node in tree.body if isinstance(node, ast.If)]
        imported = {
            (alias.name, node.module) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
        }
        assert imported == {(name, module) for name, module in NAMES if name in HERE}
        assert set(omniges.__all__) == {*HERE, "__version__"}
        assert set(omniges.__all__) <= set(dir(omniges))

    def test_the_page_has_each_once(self) -> None:
        page = (PACKAGE.parent / "docs/reference/api.md").read_text()
        named = re.findall(r"^::: omniges\.(\w+)$", page, re.MULTILINE)
        assert sorted(named) == sorted(HERE)

    def test_an_unknown_name_is_an_attribute_error(self) -> None:
        with pytest.raises(AttributeError, match="no attribute 'open_shard'"):
            omniges.open_shard  # noqa: B018

    def test_a_name_whose_package_is_missing_says_what_to_install(self) -> None:
        script = "import sys; sys.modules['torch'] = None; import omniges; omniges.OmnigesPipeline"
        run = python("-c", script)
        assert run.returncode == 1
        line = (
            "ImportError: omniges.OmnigesPipeline: expected the package torch, found that it is not installed; "
            "run pip install 'omniges[train]'"
        )
        assert run.stderr.splitlines()[-1] == line


class TestCost:
    def test_importing_loads_nothing_heavy_and_no_room(self) -> None:
        run = python("-c", "import sys, omniges; dir(omniges); print(*sys.modules)")
        loaded = set(run.stdout.split())
        assert not {"torch", "numpy", "pyarrow", "librosa", "typer", "rich"} & loaded
        assert {name for name in loaded if name.startswith("omniges.")} == set()

    def test_importing_takes_less_than_a_tenth_of_a_second(self) -> None:
        """Measured in one interpreter, the package's own share: a busy machine takes long to start one."""
        script = "import time; t = time.process_time(); import omniges; print(time.process_time() - t)"
        assert min(float(python("-c", script).stdout) for _ in range(3)) < 0.1

    def test_what_needs_no_torch_loads_none(self) -> None:
        names = "preprocess, verify_shards, write_shards, Recording, sample_corpus, read_motion, write_motion"
        run = python("-c", f"import sys; from omniges import {names}; print(*sys.modules)")
        assert "torch" not in run.stdout.split()
        assert "omniges.pipeline.write" in run.stdout.split()


def test_python_m_omniges_is_the_command() -> None:
    run = python("-m", "omniges", "--version")
    assert (run.returncode, run.stdout) == (0, f"omniges {omniges.__version__}\n")
    assert python("-m", "omniges", "verify-shards", "/nowhere").returncode == 2


class TestFunctions:
    def test_corpus_to_shards_to_verdict(self, tmp_path: Path) -> None:
        summary = omniges.sample_corpus(str(tmp_path / "c"), clips=2, seconds=2.0, words=4, speakers=1)
        assert summary.clips == 2
        summary = omniges.preprocess(
            str(tmp_path / "c"), str(tmp_path / "s"), num_workers=1, keep_audio=True, speakers=["synthetica"]
        )
        assert (summary.converted, int(summary.exit_code)) == (2, 0)
        run_preprocess(
            tmp_path / "c", tmp_path / "t", keep_audio=True, selection=omniges.Selection(speakers=("synthetica",))
        )
        assert digests(tmp_path / "s") == digests(tmp_path / "t")
        assert omniges.verify_shards(str(tmp_path / "s"), level="deep", num_workers=1).valid

    def test_parts_of_settings_may_be_given_whole(self, tmp_path: Path) -> None:
        omniges.sample_corpus(tmp_path / "c", clips=1, seconds=2.0, words=4, speakers=1)
        convert = omniges.ConvertSettings(keep_audio=True)
        omniges.preprocess(tmp_path / "c", tmp_path / "s", num_workers=1, convert=convert, max_rejected=1)
        assert (tmp_path / "s/dataset.json").exists()

    @pytest.mark.parametrize(
        ("call", "expected"),
        [
            (
                lambda: omniges.preprocess("c", keep_audo=True, out_dir="s"),
                "preprocess: unknown settings keep_audo (did you mean keep_audio?), out_dir (did you mean output_dir?)",
            ),
            (lambda: omniges.verify_shards("s", depth=3), "unknown setting depth; expected some of fail_fast,"),
            (
                lambda: omniges.verify_shards("s", output_file="x"),
                "expected no output_file, because findings are returned",
            ),
            (lambda: omniges.verify_shards("s", level="best"), "expected one of quick, full, deep"),
            (lambda: omniges.sample_corpus("c", clips=0), "clips 0: expected a number from 2 to"),
            (omniges.evaluate, "evaluate: expected folders of generated results, or checkpoint to generate some"),
            (lambda: omniges.evaluate("a", spilt="val"), "did you mean split"),
            (lambda: omniges.load_model("nowhere"), "nowhere: expected a checkpoint or the folder of a run"),
            (lambda: omniges.load_model("nowhere", "best"), "expected one of ema, last"),
        ],
    )
    def test_wrong_names_and_values_are_one_line(self, call: object, expected: str) -> None:
        with pytest.raises((UsageFault, EnvironmentFault)) as raised:
            call()  # type: ignore[operator]
        assert expected in str(raised.value)
        assert "\n" not in str(raised.value)
