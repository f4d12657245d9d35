"""`--engine ray` writes the bytes of `--engine local`, whatever number of nodes and whichever of them are lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import remote_helpers as remote
from pipeline_helpers import COMMAND, digests, omniges, run_preprocess, scripted

from omniges.errors import UsageFault
from omniges.pipeline.settings import PreprocessSettings
from omniges.storage.files import sha256_hex
from omniges.testing.settings import CorpusSettings
from omniges.testing.synthetic_corpus import write_sample_corpus

CLUSTER = Path(__file__).resolve().parents[2] / "ray_cluster.py"
SHARD_BYTES = 6_000_000
RAY = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}  # else Ray writes a token to the home folder


class Nodes:
    """A Ray cluster of nodes with one CPU each, in a process of its own."""

    def __init__(self, nodes: int, errors: Path) -> None:
        with errors.open("w") as stream:
            self._process = subprocess.Popen(
                [sys.executable, CLUSTER, *["1"] * nodes],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                env=os.environ | RAY | {"PYTHONPATH": os.pathsep.join(sys.path)},
            )
        self.address = self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("answer "):
                return line.removeprefix("answer ").strip()
        raise AssertionError("the cluster ended")

    def tell(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        self._answer()

    def close(self) -> None:
        self._process.communicate(timeout=120)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Callable[[int], Nodes]]:
    pytest.importorskip("ray", reason="needs omniges[ray]")
    with contextlib.ExitStack() as started:

        def start(count: int) -> Nodes:
            cluster = Nodes(count, tmp_path / "cluster.err")
            started.callback(cluster.close)
            return cluster

        yield start


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of which one recording is rejected and some have notes."""
    folder = tmp_path_factory.mktemp("recordings") / "corpus"
    write_sample_corpus(folder, CorpusSettings(clips=160, seconds=20.0))
    sorted(folder.rglob("*.wav"))[3].write_bytes(b"not a WAV file")
    return folder


@pytest.fixture(scope="module")
def local(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of the set that a local run writes."""
    out = tmp_path_factory.mktemp("local") / "shards"
    run_preprocess(recordings, out, shard_bytes=SHARD_BYTES, num_workers=1)
    return digests(out)


class Run:
    """The command on a cluster, whose progress can be waited for."""

    def __init__(self, root: Path, out: Path | str, address: str, *flags: object) -> None:
        words = ("preprocess", "--root", root, "-o", out, "--shard-size", SHARD_BYTES, "--json", *flags)
        self.log = Path(out).with_name("shards.run.jsonl")
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, words), "--engine", "ray", "--ray-address", address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | RAY,
        )

    def wait_for(self, done: int) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = json.loads(line)
            if event["event"] == "progress" and event["done"] >= done:
                return
        raise AssertionError(self.process.communicate()[1])

    def end(self, code: int = 0) -> dict[str, Any]:
        """Wait for the end; return the summary, the last line of output, all of which is JSON."""
        out, err = self.process.communicate(timeout=600)
        assert self.process.returncode == code, err
        lines = [json.loads(line) for line in out.splitlines()]
        summary: dict[str, Any] = lines[-1]
        return summary

    def events(self, name: str) -> list[dict[str, Any]]:
        rows = map(json.loads, self.log.read_text().splitlines())
        return [row for row in rows if row["event"] == name]


def processes(text: str) -> list[int]:
    """Ids of the processes whose command line has a text."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if text in (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                found.append(int(folder.name))
    return found


@pytest.mark.long
@pytest.mark.timeout(900)
class TestNodes:
    def test_one_two_and_three_nodes_write_the_bytes_of_a_local_run(
        self, nodes: Callable[[int], Nodes], recordings: Path, local: dict[str, str], tmp_path: Path
    ) -> None:
        cluster = nodes(1)
        for count in (1, 2, 3):
            if count > 1:
                cluster.tell("add 1")
            out = tmp_path / f"{count}" / "shards"
            out.parent.mkdir()
            summary = Run(recordings, out, cluster.address).end()
            assert digests(out) == local
            assert (summary["rejected"], summary["interruptions"]) == (1, [])

    def test_a_store_gets_the_same_set_by_a_work_folder_that_nodes_share(
        self, nodes: Callable[[int], Nodes], recordings: Path, local: dict[str, str], tmp_path: Path
    ) -> None:
        cluster = nodes(2)
        with remote.s3_server() as endpoint, pytest.MonkeyPatch.context() as patch:
            remote.use_s3(patch, endpoint)
            files = pytest.importorskip("s3fs").S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
            files.mkdir("made")
            flags = ("--work-dir", tmp_path / "work", "--run-log", tmp_path / "shards.run.jsonl")
            summary = Run(recordings, "s3://made/by/ray", cluster.address, *flags).end()
            made = {name: sha256_hex(files.cat_file(f"made/by/ray/{name}")) for name in local}
        assert (summary["rejected"], summary["interruptions"]) == (1, [])
        assert made == local
        assert not [path for path in (tmp_path / "work").rglob("*") if path.is_file()]

    def test_a_node_that_is_killed_costs_time_only_and_is_named(
        self, nodes: Callable[[int], Nodes], recordings: Path, local: dict[str, str], tmp_path: Path
    ) -> None:
        cluster = nodes(3)
        run = Run(recordings, tmp_path / "shards", cluster.address)
        run.wait_for(5)
        cluster.tell("kill 1")
        summary = run.end()
        assert digests(tmp_path / "shards") == local
        (lost,) = run.events("node-lost")
        assert any(lost["node"] in text for text in summary["interruptions"])

    def test_killed_processes_of_a_node_cost_time_only_and_are_named(
        self, nodes: Callable[[int], Nodes], recordings: Path, local: dict[str, str], tmp_path: Path
    ) -> None:
        """The kernel kills the process that converts, Ray's memory monitor the one that started it."""
        cluster = nodes(2)
        run = Run(recordings, tmp_path / "shards", cluster.address)
        run.wait_for(4)
        started = processes("ray::Node")
        children = [
            child
            for child in processes("omniges.workers omniges.pipeline.worker")
            if int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1]) in started
        ]
        os.kill(children[0], signal.SIGKILL)
        parent = int(Path(f"/proc/{children[-1]}/stat").read_text().rpartition(")")[2].split()[1])
        run.wait_for(10)
        os.kill(parent, signal.SIGKILL)
        summary = run.end()
        assert digests(tmp_path / "shards") == local
        assert run.events("node-process-death")
        assert "killed by SIGKILL" in run.events("worker-death")[0]["reason"]
        assert len(summary["interruptions"]) >= 2

    def test_after_a_kill_the_same_command_goes_on_and_either_engine_updates(
        self, nodes: Callable[[int], Nodes], recordings: Path, local: dict[str, str], tmp_path: Path
    ) -> None:
        cluster, out = nodes(2), tmp_path / "shards"
        run = Run(recordings, out, cluster.address)
        run.wait_for(20)
        run.process.kill()
        run.process.communicate()
        wait_until(lambda: not processes("ray::Node"))
        again = Run(recordings, out, cluster.address)
        assert again.end()["reused"] > 0
        assert digests(out) == local
        assert Run(recordings, out, cluster.address).end()["unchanged"]

    def test_a_node_that_does_not_see_the_files_is_left_out_and_named(
        self, nodes: Callable[[int], Nodes], recordings: Path, tmp_path: Path
    ) -> None:
        cluster = nodes(1)
        script = (
            "from omniges.pipeline.engines import ray\nreal = ray.tool_versions()\n"
            "ray.tool_versions = lambda: real | {'omniges': '0.0.1'}\n"
            "from omniges.cli import main\nmain()"
        )
        words = ("preprocess", "--root", recordings, "-o", tmp_path / "shards", "--engine", "ray")
        run = scripted(script, *words, "--ray-address", cluster.address)
        assert run.returncode == 3
        assert "expected omniges 0.0.1" in run.stderr
        assert "Traceback" not in run.stderr


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


class TestSharedFiles:
    """Checks of a node before it takes part."""

    @pytest.fixture
    def shared(self, tmp_path: Path) -> Any:
        pytest.importorskip("ray", reason="needs omniges[ray]")
        from omniges.pipeline.engines.node import SharedFiles
        from omniges.shards.dataset import tool_versions

        (tmp_path / "token").write_text("abc")
        (tmp_path / "input.wav").write_bytes(bytes(10))
        return SharedFiles(str(tmp_path / "token"), "abc", {str(tmp_path / "input.wav"): 10}, tool_versions())

    def test_the_same_files_and_versions(self, shared: Any) -> None:
        assert shared.problem() == ""

    def test_another_output_folder(self, shared: Any) -> None:
        Path(shared.run_file).write_text("another run")
        assert "share --output-dir" in shared.problem()

    def test_no_output_folder(self, shared: Any) -> None:
        Path(shared.run_file).unlink()
        assert shared.problem().startswith(
            f"{shared.run_file}: expected the driver's file, found an error (No such file"
        )

    def test_another_input(self, shared: Any, tmp_path: Path) -> None:
        (tmp_path / "input.wav").write_bytes(bytes(11))
        assert "expected 10 bytes, found 11" in shared.problem()

    def test_other_versions(self, shared: Any) -> None:
        shared.tool["numpy"] = "1.0"
        assert "expected numpy 1.0, found" in shared.problem()


class TestSettings:
    def test_an_address_without_the_engine_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageFault, match="expected engine ray, found engine local"):
            PreprocessSettings(root=tmp_path, ray_address="local")

    @pytest.mark.parametrize("address", ["ray://host:10001", "host", "host:port", "a b:1"])
    def test_other_addresses_are_refused(self, tmp_path: Path, address: str) -> None:
        with pytest.raises(UsageFault, match="HOST:PORT"):
            PreprocessSettings(root=tmp_path, engine="ray", ray_address=address)

    def test_without_ray_one_line_names_the_extra(self, corpus: Path, tmp_path: Path) -> None:
        script = "import sys; sys.modules['ray'] = None\nfrom omniges.cli import main\nmain()"
        run = scripted(script, "preprocess", "--root", corpus, "-o", tmp_path / "shards", "--engine", "ray")
        assert run.returncode == 3
        assert run.stderr.splitlines()[-1].endswith("pip install 'omniges[ray]'")
        assert "Traceback" not in run.stderr

    @pytest.mark.slow
    def test_nobody_at_the_address_is_one_line(self, corpus: Path, tmp_path: Path) -> None:
        pytest.importorskip("ray", reason="needs omniges[ray]")
        words = ("preprocess", "--root", corpus, "-o", tmp_path / "shards", "--engine", "ray")
        run = omniges(*words, "--ray-address", "127.0.0.1:1")
        assert run.returncode == 3
        assert "cannot reach the Ray cluster at 127.0.0.1:1" in run.stderr.splitlines()[-1]
