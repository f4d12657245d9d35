"""A folder from elsewhere writes, replaces and removes nothing outside of the output that the user named.

Every command meets hostile journals, keys, stems, shard names, links and tokenizers, written by mutation generators.
Beside each output lies a tree of canaries under names that the mutations aim at; it must stay as it is to the byte.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pipeline_helpers import run_preprocess
from remote_helpers import web_server
from training_helpers import run as train_run
from typer.testing import CliRunner, Result
from verify_builders import codes, edited_dataset, edited_manifest, shard_sets
from verify_builders import run as verify_run

from omniges import cli
from omniges.errors import DataError, OmnigesError, UsageFault
from omniges.features.text_tokens import TextTokenCodec
from omniges.shards.manifest import ManifestRow
from omniges.shards.schema import (
    DATASET_FILE,
    SIDE_FILES,
    TOKENIZER_FILE,
    UNFINISHED_FILE,
    is_contract_name,
    is_key,
    is_relative_path,
    is_stem,
    key_from_stem,
)
from omniges.shards.transaction import Workspace
from omniges.storage.atomic import is_file_name
from omniges.storage.files import canonical_json, sha256_hex

KEPT_FILES = ("train-000000.tar", "staged-000000.tar", "dataset.json", "log.jsonl", "x.npz", "x.json", "step-000001")


class World:
    """A folder with a hostile one in it, and canaries beside that."""

    def __init__(self, root: Path, shards: Path) -> None:
        self.root, self.hostile, self.canary = root, root / "hostile", root / "canary"
        self._shards = shards
        self.canary.mkdir(parents=True)
        for name in KEPT_FILES:
            (self.canary / name).write_bytes(b"kept " + name.encode())
        (self.canary / "folder").mkdir()
        (self.canary / "folder" / "kept.txt").write_bytes(b"kept")
        self.before = self._seen()

    def fresh(self) -> Path:
        """The shards as written, and no outputs."""
        for path in self.root.iterdir():
            if path != self.canary:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        shutil.copytree(self._shards, self.hostile)
        return self.hostile

    def _seen(self) -> dict[str, tuple[Any, ...]]:
        found: dict[str, tuple[Any, ...]] = {}
        for path in sorted([self.canary, *self.canary.rglob("*")]):
            status = path.lstat()
            content = path.read_bytes() if path.is_file() else None
            found[str(path)] = (status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, content)
        return found

    def require_untouched(self) -> None:
        """The canaries are as they were, and nothing new lies beside the outputs."""
        assert self._seen() == self.before
        beside = {path.name for path in self.root.iterdir()}
        assert beside <= {"canary", "hostile", "hostile.quarantine", "hostile.run.jsonl", "out"}


@pytest.fixture
def world(tmp_path: Path, shards: Path) -> World:
    return World(tmp_path / "world", shards)


@pytest.fixture(scope="module")
def checkpoint(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile-run") / "run"
    train_run(shards, folder, max_train_steps=1)
    return folder


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from latent_builders import AUDIO, write_codecs

    return write_codecs(tmp_path_factory.mktemp("hostile-codecs"))[AUDIO]


def omniges(*words: object) -> Result:
    """A command in this process; only our own errors and exits may come of it, and no traceback."""
    result = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, OmnigesError | SystemExit), result.exception
    return result


Commands = Mapping[str, Callable[[Path, Path], tuple[object, ...]]]


@pytest.fixture(scope="module")
def commands(corpus: Path, checkpoint: Path, vae: Path) -> Commands:
    """Every command that opens a shard folder: from the folder and the place of an output to its words."""
    sampling = ("--steps", "1", "--seconds", "1")
    small = ("--max-train-steps", "1", "--window-ticks", "16", "--train-batch-size", "2", "--num-workers", "0")
    return {
        "preprocess": lambda folder, _out: (
            *("preprocess", "--root", corpus, "--out", folder, "--keep-audio", "--workers", "1"),
        ),
        "verify-shards": lambda folder, _out: ("verify-shards", folder, "--level", "deep", "--workers", "1"),
        "export": lambda folder, out: ("export", "--shards", folder, "-o", out),
        "inspect": lambda folder, _out: ("inspect", folder),
        "train": lambda folder, out: ("train", "--shards", folder, "--output-dir", out, *small),
        "trace-batches": lambda folder, _out: (
            *("trace-batches", "--shards", folder, "--world-size", "1", "--rank", "0", "--batch-size", "2"),
            *("--window-ticks", "16", "--seed", "0", "--from-step", "0", "--steps", "1", "--decode"),
        ),
        "generate": lambda folder, out: (
            *("generate", "--checkpoint", checkpoint, "--task", "a2g", "--shards", folder),
            *("--split", "test", "-o", out, *sampling),
        ),
        "evaluate": lambda folder, out: (
            *("evaluate", "--checkpoint", checkpoint, "--shards", folder, "--tasks", "a2t"),
            *("--work", out, "--steps", "1", "--resamples", "20"),
        ),
        "encode": lambda folder, _out: ("encode", "--shards", folder, "--with", f"audioldm2-vae={vae}"),
        "quarantine": lambda folder, _out: ("verify-shards", folder, "--quarantine"),
    }


@pytest.mark.slow
def test_a_healthy_folder_is_read_by_every_command(world: World, commands: Commands) -> None:
    for name, words in commands.items():
        world.fresh()
        result = omniges(*words(world.hostile, world.root / "out"))
        assert result.exit_code == 0, f"{name}: {result.exception}"
        world.require_untouched()


# --- names


HOSTILE = st.sampled_from(
    [
        *("../canary/x", "../../canary/x", "canary/../../canary/x", "..", ".", "", "/", "a/b", "x\0y", "x\ny"),
        *("../canary/train-000000.tar", "../canary/dataset.json", "../canary/folder", "../canary"),
        *("train-000000.tar/../../canary/x", "train-0000000.tar", "train-00000١.tar", "train-000000.tar\n"),
        *("\x1b[2Jx", "é", "x" * 300, "x.y", "-rf", "~/x", "$(touch x)", "C:\\x"),
    ]
) | st.text(st.characters(exclude_categories=["Cs"]), max_size=12).map(lambda text: f"../canary/{text}")


def placed(name: str, world: World) -> str:
    """A name, or where it begins with a slash the path of a canary."""
    return f"{world.canary}{name}x" if name.startswith("/") else name


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=HOSTILE)
def test_no_name_of_the_grammar_leads_anywhere(name: str, tmp_path: Path) -> None:
    """Whatever a grammar lets through names something inside the folder it is joined to."""
    for fits in (is_key, is_stem, is_contract_name, is_file_name, is_relative_path):
        if fits(name):
            joined = os.path.normpath(os.path.join(tmp_path, name))
            assert joined.startswith(f"{tmp_path}{os.sep}")


@pytest.mark.parametrize("command", ["export", "inspect", "train", "trace-batches", "generate", "evaluate", "encode"])
class TestManifest:
    """Keys, stems and shard names of a manifest whose checksums all fit."""

    @pytest.mark.slow
    @settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(name=HOSTILE, field=st.sampled_from(["key", "stem", "shard"]), split=st.sampled_from(["train", "test"]))
    @example(name="../canary/x", field="key", split="test")
    @example(name="/", field="key", split="test")
    def test_names_out_of_the_grammar_are_refused(
        self, command: str, name: str, field: str, split: str, world: World, commands: Commands
    ) -> None:
        world.fresh()
        hostile = placed(name, world)
        self._write(world.hostile, field, hostile, split)
        fits = {"key": is_key, "stem": is_stem, "shard": is_contract_name}[field]
        result = omniges(*commands[command](world.hostile, world.root / "out"))
        # Training reads neither stems nor rows of other splits; whatever it is, nothing is touched.
        reads_it = command != "train" and (command != "trace-batches" or (field != "stem" and split == "train"))
        assert result.exit_code != 0 or fits(hostile) or not reads_it
        world.require_untouched()

    @staticmethod
    def _write(folder: Path, field: str, name: str, split: str) -> None:
        def edit(rows: list[ManifestRow]) -> list[ManifestRow]:
            number = next(number for number, row in enumerate(rows) if row.split == split)
            rows[number] = replace(rows[number], **{field: name})
            return rows

        for file, data in edited_manifest(folder, edit).items():
            (folder / file).write_bytes(data)


@pytest.mark.slow
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=HOSTILE, kind=st.sampled_from(["shards", "files"]))
def test_names_in_dataset_json_are_refused_by_every_command(
    name: str, kind: str, world: World, commands: Commands
) -> None:
    folder = world.fresh()
    hostile = placed(name, world)

    def rename(document: dict[str, Any]) -> None:
        first = next(iter(document[kind]))
        document[kind][hostile] = document[kind].pop(first)

    (folder / DATASET_FILE).write_bytes(edited_dataset(folder, rename))
    for command, words in commands.items():
        result = omniges(*words(folder, world.root / "out"))
        assert result.exit_code != 0, command
    world.require_untouched()


# --- the workspace of an unfinished run


def texts_in(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Return the places of texts in a JSON value; a last None marks keys of objects."""
    if isinstance(value, str):
        yield place
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield (*place, name, None)
            yield from texts_in(inner, (*place, name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from texts_in(inner, (*place, number))


def with_text(value: Any, place: tuple[Any, ...], text: str) -> Any:
    """The value with another text at a place."""
    changed = copy.deepcopy(value)
    inner = changed
    *way, last = place[:-1] if place[-1] is None else place
    for step in way:
        inner = inner[step]
    if place[-1] is None:
        inner[text] = inner.pop(last)
    else:
        inner[last] = text
    return changed


STEPS = {
    "moved": {"train-000000.tar": "moved-train-000000.tar"},
    "removed": ["test-000000.tar", "stats.json"],
    "place": {"moved-train-000000.tar": "train-000001.tar"} | {name: name for name in (*SIDE_FILES, DATASET_FILE)},
}


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=HOSTILE, file=st.sampled_from(["commit.json", "place.json"]))
def test_steps_of_a_commit_touch_nothing_outside(data: st.DataObject, name: str, file: str, world: World) -> None:
    """preprocess finishes the commit of a run that was interrupted; these steps no run has written."""
    folder = world.fresh()
    place = data.draw(st.sampled_from(list(texts_in(STEPS))))
    work = folder / UNFINISHED_FILE
    work.mkdir()
    steps = with_text(STEPS, place, placed(name, world))
    (work / file).write_bytes(json.dumps(steps).encode())
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    result = omniges("preprocess", "--root", world.root, "--out", folder)
    assert result.exit_code != 0
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == files
    assert "unfinished-foreign" in codes(verify_run(folder, "quick"))
    world.require_untouched()


@pytest.mark.parametrize("command", ["preprocess", "encode"])
@pytest.mark.parametrize(
    "steps",
    [
        {"moved": {"../canary/x.npz": "moved-train-000000.tar"}, "removed": [], "place": {}},
        {"moved": {}, "removed": ["../canary/x.npz"], "place": {}},
        {"moved": {}, "removed": [], "place": {"dataset.json": "../canary/x.npz"}},
        {"moved": {}, "removed": [], "place": {"../../canary/x.npz": "train-000000.tar"}},
        *([], {}, {"moved": 1}, {"moved": {}, "removed": {}, "place": []}, {"moved": [], "removed": [[]], "place": 1}),
    ],
)
def test_both_commands_that_finish_commits_refuse_foreign_ones(
    command: str, steps: Any, world: World, commands: Commands
) -> None:
    folder = world.fresh()
    (folder / UNFINISHED_FILE).mkdir()
    (folder / UNFINISHED_FILE / "commit.json").write_text(json.dumps(steps))
    result = omniges(*commands[command](folder, world.root / "out"))
    assert isinstance(result.exception, UsageFault)
    assert "expected a file of an omniges run" in str(result.exception)
    world.require_untouched()


@pytest.fixture(scope="module")
def journal(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows that a real run journals, taken as it would commit."""
    out = tmp_path_factory.mktemp("journal") / "shards"
    found: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "omniges.shards.transaction.Workspace.commit",
            lambda workspace, _shards: found.extend(workspace.journal.load()),
        )
        run_preprocess(corpus, out)
    assert found
    return found


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=HOSTILE)
def test_lines_of_a_journal_are_checked(
    data: st.DataObject, name: str, journal: list[dict[str, Any]], world: World
) -> None:
    folder = world.fresh()
    row = data.draw(st.sampled_from(journal))
    paths = [place for place in texts_in(row) if place[0] in {"staged", "sha256"} or "members" in place]
    paths += [place for place in texts_in(row) if place[0] == "rows" and place[-1] in {"key", "shard", "split", "stem"}]
    changed = with_text(row, data.draw(st.sampled_from(paths)), placed(name, world))
    workspace = Workspace(folder)
    workspace.folder.mkdir()
    workspace.journal.open()
    workspace.journal.append(changed, durable=True)
    workspace.journal.close()
    with pytest.raises(UsageFault, match=r"expected a file of an omniges run.*\(line 1: "):
        workspace.refuse_foreign()
    world.require_untouched()


@pytest.mark.parametrize(
    "text",
    ['{"a":1,"a":1}', '{"a":NaN}', '{"a":1e999}', '{"a":"\\ud800"}', "[" * 100_000, '"\xff"'],
    ids=["twice", "NaN", "infinite", "surrogate", "deep", "no UTF-8"],
)
@pytest.mark.parametrize("file", ["journal.jsonl", "begun.json", "commit.json", "place.json"])
def test_an_unfinished_run_is_read_as_strictly_as_the_set(file: str, text: str, world: World) -> None:
    folder = world.fresh()
    work = folder / UNFINISHED_FILE
    work.mkdir()
    data = text.encode("latin-1")
    (work / file).write_bytes(f"{sha256_hex(data)[:16]} ".encode() + data + b"\n" if file == "journal.jsonl" else data)
    with pytest.raises(UsageFault, match="expected a file of an omniges run"):
        Workspace(folder).refuse_foreign()


@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
@pytest.mark.parametrize("file", ["journal.jsonl", "begun.json", "commit.json", "place.json"])
def test_a_pipe_in_an_unfinished_run_is_not_waited_for(file: str, kind: str, world: World) -> None:
    folder = world.fresh()
    work = folder / UNFINISHED_FILE
    work.mkdir()
    path = work / file
    {"pipe": os.mkfifo, "link": lambda place: place.symlink_to("/dev/zero"), "folder": Path.mkdir}[kind](path)
    workspace = Workspace(folder)
    readers = {
        "journal.jsonl": workspace.journal.load,
        "begun.json": workspace.begun,
        "commit.json": lambda: workspace.steps("commit.json"),
        "place.json": lambda: workspace.steps("place.json"),
    }
    with pytest.raises(UsageFault, match="expected a file of an omniges run"):
        readers[file]()
    with pytest.raises(UsageFault, match="expected a file of an omniges run"):
        workspace.refuse_foreign()


@pytest.mark.parametrize("split", ["train", "val"])
def test_keys_from_a_web_server_are_checked_too(split: str, world: World) -> None:
    """Validation while training names files by keys, and checks for no earlier ones."""
    served = world.fresh()

    def edit(rows: list[ManifestRow]) -> list[ManifestRow]:
        return [replace(row, key="../canary/x") if row.split == split else row for row in rows]

    for file, data in edited_manifest(served, edit).items():
        (served / file).write_bytes(data)
    out = world.root / "out"
    options = {"validation_steps": 1, "validation_windows": 1, "cache_dir": out / "cache"}
    with web_server(served) as web, pytest.raises(DataError, match=r"manifest\.parquet: .*canary/x"):
        train_run(web.url, out / "run", max_train_steps=1, **options)
    world.require_untouched()


@pytest.mark.parametrize("name", ["", ".train-000000.tar.lock", ".stats.json.lock"])
@pytest.mark.parametrize("kind", [os.symlink, os.link])
def test_links_in_a_cache_lead_to_nothing_that_changes(
    name: str, kind: Callable[[Path, Path], None], world: World
) -> None:
    """Whoever serves a set knows the name of its folder in every cache."""
    served, out = world.fresh(), world.root / "out"
    group = out / "cache" / sha256_hex((served / DATASET_FILE).read_bytes())[:32]
    group.parent.mkdir(parents=True)
    if name:
        group.mkdir()
        kind(world.canary / "x.npz", group / name)
    else:
        group.symlink_to(world.canary / "folder")
    before = {path: seen[4] for path, seen in world._seen().items()}
    with web_server(served) as web, pytest.raises(OmnigesError):
        train_run(web.url, out / "run", max_train_steps=1, cache_dir=out / "cache")
    assert {path: seen[4] for path, seen in world._seen().items()} == before


# --- links


@pytest.mark.slow
@pytest.mark.parametrize("kind", [os.symlink, os.link])
@pytest.mark.parametrize("command", ["preprocess", "encode", "quarantine"])
def test_links_in_a_shard_folder_lead_to_nothing_that_changes(
    kind: Callable[[Path, Path], None], command: str, world: World, commands: Commands, shards: Path
) -> None:
    """Shards, side files, and files that a run would make, each a link to a canary."""
    folder = world.fresh()
    names = [path.name for path in sorted(shards.iterdir())]
    work = [f"{UNFINISHED_FILE}/{name}" for name in ("journal.jsonl", "begun.json", "staged-000000.tar")]
    temporary = [f".{name}.tmp-{os.getpid()}" for name in ("dataset.json", "train-000000.tar")]
    for name in [*names, *work, *temporary, UNFINISHED_FILE]:
        world.fresh()
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        if name == UNFINISHED_FILE:
            path.symlink_to(world.canary / "folder")
        else:
            kind(world.canary / "x.npz", path)
        before = world._seen()
        omniges(*commands[command](folder, world.root / "out"))
        after = world._seen()
        assert {name: seen[4] for name, seen in after.items()} == {name: seen[4] for name, seen in before.items()}
        assert after.keys() == before.keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["checkpoints", "validation", "log.jsonl", "tensorboard", "checkpoints/step-000001", "best"]
)
def test_links_in_the_folder_of_a_run_lead_to_nothing_that_changes(name: str, world: World, shards: Path) -> None:
    world.fresh()
    run = world.root / "out"
    target = world.canary / ("log.jsonl" if name == "log.jsonl" else "folder")
    (run / name).parent.mkdir(parents=True)
    (run / name).symlink_to(target)
    options = {"validation_steps": 1, "validation_windows": 1, "checkpointing_steps": 1, "checkpoints_total_limit": 1}
    try:
        train_run(shards, run, max_train_steps=2, **options)
    except OmnigesError as error:
        assert "\n" not in str(error)
    world.require_untouched()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [os.symlink, os.link])
@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("out/log.jsonl", "train"),
        ("hostile.run.jsonl", "preprocess"),
        (f"hostile/{UNFINISHED_FILE}/journal.jsonl", "preprocess"),
        (f"hostile/{UNFINISHED_FILE}/journal.jsonl", "encode"),
    ],
)
def test_files_that_are_written_in_place_are_nobody_elses(
    kind: Callable[[Path, Path], None], name: str, command: str, world: World, commands: Commands
) -> None:
    folder = world.fresh()
    (folder / "val-000000.tar").unlink()  # so that there is work to do
    path = world.root / name
    path.parent.mkdir(exist_ok=True)
    kind(world.canary / "log.jsonl", path)
    before = {name: seen[4] for name, seen in world._seen().items()}
    assert isinstance(omniges(*commands[command](folder, world.root / "out")).exception, UsageFault)
    assert {name: seen[4] for name, seen in world._seen().items()} == before


@pytest.mark.parametrize(("name", "command"), [("hostile.quarantine", "quarantine"), ("out/a2t", "evaluate")])
def test_linked_folders_for_outputs_are_refused(name: str, command: str, world: World, commands: Commands) -> None:
    folder = world.fresh()
    with (folder / "val-000000.tar").open("ab") as stream:
        stream.write(b"x")
    empty = world.canary / "empty"
    empty.mkdir()
    (world.root / name).parent.mkdir(exist_ok=True)
    (world.root / name).symlink_to(empty)
    assert isinstance(omniges(*commands[command](folder, world.root / "out")).exception, UsageFault)
    assert not list(empty.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".npz", ".json", ".png"])
def test_results_replace_links_and_not_what_they_lead_to(ending: str, world: World, commands: Commands) -> None:
    world.fresh()
    out = world.root / "out"
    assert omniges(*commands["generate"](world.hostile, out)).exit_code == 0
    path = next(out.glob("*.json")).with_suffix(ending)
    path.unlink(missing_ok=True)
    path.symlink_to(world.canary / f"x{'.json' if ending == '.json' else '.npz'}")
    omniges(*commands["generate"](world.hostile, out), "--overwrite", "--png")
    world.require_untouched()


@pytest.mark.slow
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=HOSTILE)
def test_records_remove_nothing_elsewhere(name: str, world: World, commands: Commands) -> None:
    """``--overwrite`` takes the files of an earlier result away, by the names in its record."""
    world.fresh()
    out = world.root / "out"
    assert omniges(*commands["generate"](world.hostile, out)).exit_code == 0
    path = next(out.glob("*.json"))
    record = json.loads(path.read_text("utf-8"))
    record["files"]["gesture"] |= {"path": placed(name, world)}
    path.write_text(json.dumps(record), "utf-8")
    omniges(*commands["generate"](world.hostile, out), "--overwrite")
    omniges("evaluate", out, "--shards", world.hostile, "--resamples", "20")
    world.require_untouched()


# --- tokenizers


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Return the places where a tokenizer can be changed: every value except vocabulary and merges."""
    if isinstance(value, dict) and value and place != ("model", "vocab"):
        for name, inner in value.items():
            yield from leaves(inner, (*place, name))
    elif place not in {("model", "vocab"), ("model", "merges")}:
        yield place


REPLACE_ALL = {"type": "Replace", "pattern": {"Regex": ".+"}, "content": "garden"}


class TestTokenizer:
    @pytest.mark.slow
    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data(), other_version=st.booleans())
    def test_only_the_pipeline_of_preprocess_is_taken(
        self, data: st.DataObject, other_version: bool, world: World
    ) -> None:
        document = json.loads((world.fresh() / TOKENIZER_FILE).read_bytes())
        place = data.draw(st.sampled_from(list(leaves(document))))
        old = document
        for step in place:
            old = old[step]
        values = [None, True, False, 0.5, 1, "x", [], {}, REPLACE_ALL, {"type": "Lowercase"}, {"type": "ByteLevel"}]
        new = data.draw(st.sampled_from([one for one in values if json.dumps(one) != json.dumps(old)]))
        self._refused(world.hostile, with_text(document, place, new), other_version)

    @pytest.mark.parametrize(
        "change",
        [
            lambda document: document | {"normalizer": REPLACE_ALL},
            lambda document: document | {"model": document["model"] | {"dropout": 0.5}},
            lambda document: document | {"added_tokens": [{"id": 0, "content": "a", "special": True}]},
            lambda document: document | {"more": 1},
            lambda document: document | {"more": "nothing"},
            lambda document: document | {"model": document["model"] | {"more": "nothing"}},
            lambda document: document | {"model": document["model"] | {"vocab": {"a": 1 << 62}}},
            lambda document: document | {"model": document["model"] | {"vocab": document["model"]["vocab"] | {"a": 0}}},
            lambda document: document | {"model": document["model"] | {"merges": [["a", "zz"]]}},
            lambda document: document | {"model": document["model"] | {"merges": [1]}},
            lambda document: {"model": document["model"]},
            lambda document: [document],
        ],
    )
    @pytest.mark.parametrize("other_version", [False, True])
    def test_known_ways_to_lie(self, change: Callable[[Any], Any], other_version: bool, world: World) -> None:
        folder = world.fresh()
        document = json.loads((folder / TOKENIZER_FILE).read_bytes())
        self._refused(folder, change(document), other_version)

    @staticmethod
    def _refused(folder: Path, document: Any, other_version: bool) -> None:
        data = json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"
        (folder / TOKENIZER_FILE).write_bytes(data)
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        dataset = shard_sets.relisted(files, {TOKENIZER_FILE: data})
        if other_version:
            dataset = shard_sets.edited_dataset(dataset, lambda found: found["tool"].update(tokenizers="0.0.1"))
        (folder / DATASET_FILE).write_bytes(dataset)
        for level in ("full", "deep"):
            assert "tokenizer-invalid" in codes(verify_run(folder, level, num_workers=1))
        with pytest.raises(DataError, match=r"tokenizer\.json: .*run omniges verify-shards"):
            TextTokenCodec(data)

    def test_names_that_stand_twice_are_refused(self, shards: Path) -> None:
        data = (shards / TOKENIZER_FILE).read_bytes()
        twice = data.replace(b'"version": "1.0",', b'"version": "1.0", "normalizer": {"type": "Lowercase"},')
        assert twice != data
        with pytest.raises(DataError, match="occurs twice"):
            TextTokenCodec(twice)


def test_keys_are_those_of_stems() -> None:
    """The grammar of keys has every key that a stem gets."""
    for stem in ("2_scott_0_1_1", "a.b", "über", "x y", "..x"):
        assert is_key(key_from_stem(stem))
    assert canonical_json({"a": 1}) == b'{"a":1}'
