"""Level deep finds faults that every checksum agrees with; the command, its four forms and its exit codes."""

from __future__ import annotations

import io
import json
import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline_helpers import omniges
from shard_sets import Sample, ShardSet
from verify_builders import Fault, codes, content, edited_dataset, rebuilt, run

from omniges.errors import CODES, DataError
from omniges.shards.dataset import read_statistics
from omniges.shards.schema import DATASET_FILE, REPORT_FILE, STATS_FILE, TOKENIZER_FILE, key_from_stem
from omniges.shards.tar import npy_parts
from omniges.storage.files import canonical_json, json_document
from omniges.verify import run as verify_run
from omniges.verify import shards as verify_shards
from omniges.verify.findings import VERIFY_CODES, VerifyFinding
from omniges.verify.report import render
from omniges.verify.run import verify
from omniges.verify.settings import VerifySettings


def first(change: Callable[[Sample], object]) -> Fault:
    """A fault in the first train sample; statistics and tokenizer are updated where they can be."""

    def fault(shards: ShardSet) -> None:
        change(next(sample for sample in shards.samples if sample.row.split == "train"))

    return fault


def row(**fields: Any) -> Fault:
    return first(lambda s: setattr(s, "row", replace(s.row, **fields)))


def value(member: str, index: tuple[int, ...], number: float) -> Fault:
    return first(lambda s: s.arrays[member].__setitem__(index, number))


def array(member: str, change: Callable[[Any], Any]) -> Fault:
    return first(lambda s: s.arrays.__setitem__(member, change(s.arrays[member])))


def meta(*path: str, to: Any) -> Fault:
    def change(sample: Sample) -> None:
        place = sample.metadata
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = to

    return first(change)


def words(change: Callable[[list[dict[str, Any]]], Any]) -> Fault:
    return first(lambda s: setattr(s, "words", change(s.words)))


def word(place: int, **fields: Any) -> Fault:
    return words(lambda ws: [w | fields if k == place % len(ws) else w for k, w in enumerate(ws)])


def raw(member: str, data: bytes) -> Fault:
    return first(lambda s: s.raw.__setitem__(member, data))


def other(name: str, data: bytes | None) -> Fault:
    return first(lambda s: s.others.__setitem__(name, data) if data is not None else s.others.pop(name))


def waveform(change: Callable[[Any], Any]) -> Fault:
    """The kept audio of the first train sample, changed."""

    def edit(sample: Sample) -> None:
        samples = np.load(io.BytesIO(sample.others["audio.npy"]))
        sample.others["audio.npy"] = b"".join(map(bytes, npy_parts(np.ascontiguousarray(change(samples)))))

    return first(edit)


def annotate(sample: Sample, **fields: Any) -> None:
    """Give a sample a semantic span."""
    span = {"name": "beat", "start": 0.0, "end": 1.0, "score": 0.5, "keywords": ""}
    sample.others["sem.txt"] = canonical_json([span | fields])


def without_the_last_merge(data: bytes) -> bytes:
    """Another tokenizer of the same kind: its last subword is spelled by two."""
    document = json.loads(data)
    pair = document["model"]["merges"].pop()
    del document["model"]["vocab"]["".join(pair)]
    return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"


def file(name: str, change: Callable[[bytes], bytes]) -> Fault:
    return lambda shards: shards.files.__setitem__(name, change(shards.files[name]))


def leak(split: str) -> Fault:
    """The first train sample once more under another name."""

    def fault(shards: ShardSet) -> None:
        source = shards.samples[-1] if split == "val" else shards.samples[0]
        copy = next(sample for sample in shards.samples if sample.row.split == "train")
        stem = source.row.stem + "z" if split == "val" else copy.row.stem + "z"
        twin = replace(copy.row, key=stem, stem=stem, split=split, shard=f"{split}-000000.tar")
        metadata = copy.metadata | {"key": stem, "stem": stem, "split": split}
        sample = Sample(twin, metadata, dict(copy.arrays), copy.words, dict(copy.others))
        shards.samples = sorted([*shards.samples, sample], key=lambda s: (s.row.shard, s.row.key))
        shards.keep_files = False

    return fault


def stats(change: Callable[[dict[str, Any]], object]) -> Fault:
    def rewrite(data: bytes) -> bytes:
        document = json.loads(data)
        change(document)
        return json_document(document)

    return file(STATS_FILE, rewrite)


def report_line(**fields: Any) -> Fault:
    base = {"code": "length-cut", "severity": "note", "stem": None, "file": None, "found": "", "expected": ""}
    line = canonical_json(base | {"meaning": "m", "remedy": "r"} | fields) + b"\n"
    return file(REPORT_FILE, lambda data: line + data)


def npy_header(shape: str) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def long_header(sample: Sample) -> bytes:
    """The same array to numpy, 64 bytes later."""
    head, data = (bytes(part) for part in npy_parts(sample.arrays["mel.npy"]))
    length = int.from_bytes(head[8:10], "little") + 64
    return head[:8] + length.to_bytes(2, "little") + head[10:-1] + b" " * 64 + b"\n" + data


def mel_header(sample: Sample) -> bytes:
    return npy_header(f"({len(sample.arrays['mel.npy'])}, 64)")


FAULTS: dict[str, tuple[str, Fault]] = {
    "gesture NaN": ("array-not-finite", value("gesture.npy", (3, 400), np.nan)),
    "gesture infinite": ("array-not-finite", value("gesture.npy", (-1, 314), np.inf)),
    "mel NaN": ("array-not-finite", value("mel.npy", (-1, -1), np.nan)),
    "jaw NaN": ("array-not-finite", value("jaw_eyes.npy", (0, 0), np.nan)),
    "betas NaN": ("array-not-finite", value("betas.npy", (299,), np.nan)),
    "start infinite": ("array-not-finite", value("start_xz.npy", (1,), -np.inf)),
    "gesture too short": ("array-shape", array("gesture.npy", lambda a: a[:-1])),
    "gesture too narrow": ("array-shape", array("gesture.npy", lambda a: a[:, :-1])),
    "gesture flat": ("array-shape", array("gesture.npy", lambda a: a.reshape(-1))),
    "gesture double": ("array-dtype", array("gesture.npy", lambda a: a.astype("<f8"))),
    "gesture half": ("array-dtype", array("gesture.npy", lambda a: a.astype("<f2"))),
    "mel too long": ("array-shape", array("mel.npy", lambda a: np.concatenate([a, a[:1]]))),
    "mel integers": ("array-dtype", array("mel.npy", lambda a: a.astype("<i4"))),
    "mel below the floor": ("mel-below-floor", value("mel.npy", (5, 5), -12.0)),
    "betas short": ("array-shape", array("betas.npy", lambda a: a[:10])),
    "start single": ("array-dtype", array("start_xz.npy", lambda a: a.astype("<f4"))),
    "jaw wide": ("array-shape", array("jaw_eyes.npy", lambda a: np.concatenate([a, a], axis=1))),
    "rotation scaled": ("rotation-broken", array("gesture.npy", lambda a: a * np.float32(1.0001))),
    "rotation entry": ("rotation-broken", value("gesture.npy", (11, 130), 2.0)),
    "rotation zero": ("rotation-broken", array("gesture.npy", lambda a: a * np.float32(0))),
    "rotation huge": ("rotation-broken", value("gesture.npy", (7, 0), 3e38)),
    "last rotation of the last frame": ("rotation-broken", value("gesture.npy", (-1, 311), 0.5)),
    "first root step": ("root-first-step", value("gesture.npy", (0, 312), 7.0)),
    "npy of objects": (
        "array-invalid",
        raw("mel.npy", b"\x93NUMPY\x01\x00\x76\x00{'descr': '|O', 'fortran_order'" * 9),
    ),
    "npy of nothing": ("array-invalid", raw("gesture.npy", b"")),
    "npy without data": ("array-invalid", first(lambda s: s.raw.__setitem__("mel.npy", mel_header(s)))),
    "npy of 10^17 values": ("array-shape", raw("jaw_eyes.npy", npy_header("(100000000000000000, 9)"))),
    "npy with a longer header": ("array-invalid", first(lambda s: s.raw.__setitem__("mel.npy", long_header(s)))),
    "words out of order": ("transcript-order", words(lambda ws: [ws[0], *ws])),
    "word outside": ("transcript-outside", word(-1, end=99.0)),
    "word before zero": ("transcript-outside", word(0, start=-0.1)),
    "word without length": ("transcript-outside", words(lambda ws: [ws[0] | {"end": ws[0]["start"]}, *ws[1:]])),
    "word empty": ("transcript-invalid", word(0, word=" ")),
    "word of number": ("transcript-invalid", word(0, word=5)),
    "word start of text": ("transcript-invalid", word(0, start="0.1")),
    "word start true": ("transcript-invalid", word(0, start=True)),
    "word with more": ("transcript-invalid", word(0, more=1)),
    "word huge": ("transcript-invalid", word(0, start=10**400)),
    "no words": ("transcript-invalid", words(lambda _: [])),
    "words null": ("transcript-invalid", words(lambda _: None)),
    "words no list": ("transcript-invalid", words(lambda _: {"word": 1})),
    "words no JSON": ("transcript-invalid", raw("words.txt", b"[NaN]")),
    "words with spaces": (
        "transcript-invalid",
        first(lambda s: s.raw.__setitem__("words.txt", json_document(s.words))),
    ),
    "fewer words": ("metadata-differs", row(words=77)),
    "annotation no list": ("annotation-invalid", other("sem.txt", b"{}")),
    "annotation null": ("annotation-invalid", other("sem.txt", b"null")),
    "annotation score": ("annotation-invalid", first(lambda s: annotate(s, score=1.5))),
    "annotation backwards": ("annotation-invalid", first(lambda s: annotate(s, start=2.0))),
    "audio gone": ("waveform-invalid", other("audio.npy", None)),
    "audio no array": ("array-invalid", other("audio.npy", b"fLaC" + bytes(100))),
    "audio cut": ("array-invalid", first(lambda s: s.others.__setitem__("audio.npy", s.others["audio.npy"][:-3000]))),
    "audio not finite": ("array-not-finite", waveform(lambda a: np.where(np.arange(len(a)) == 9, np.nan, a))),
    "audio shorter": ("waveform-length", waveform(lambda a: a[:-1])),
    "audio double": ("array-dtype", waveform(lambda a: a.astype("<f8"))),
    "audio of another length": ("waveform-length", meta("audio", "samples_16k", to=31_000)),
    "metadata key": ("metadata-differs", meta("key", to="x")),
    "metadata stem": ("metadata-differs", meta("stem", to="x")),
    "metadata split": ("metadata-differs", meta("split", to="val")),
    "metadata speaker": ("metadata-differs", meta("speaker", to="wayne")),
    "metadata speaker id": ("metadata-differs", meta("speaker_id", to=True)),
    "metadata language": ("metadata-differs", meta("language", to=None)),
    "metadata label": ("metadata-differs", meta("labels", "emotion", to="anger")),
    "metadata another label": ("metadata-differs", meta("labels", "mood", to="")),
    "metadata present": ("metadata-differs", meta("present", "text", to=False)),
    "metadata of a part that is none": ("metadata-differs", meta("present", "tail", to=True)),
    "metadata of an absent source": ("metadata-differs", meta("sources", "sem", to=None)),
    "metadata frames": ("metadata-differs", meta("frames", to=59)),
    "metadata seconds": ("metadata-differs", meta("seconds", to=2)),
    "metadata source": ("metadata-differs", meta("sources", "npz", "sha256", to="0" * 64)),
    "metadata notes": ("metadata-differs", meta("notes", to="betas-extended: x")),
    "metadata notes of version 1": ("metadata-invalid", meta("notes", to=[])),
    "metadata without speaker": ("metadata-invalid", first(lambda s: s.metadata.pop("speaker"))),
    "metadata with more": ("metadata-invalid", meta("more", to=1)),
    "metadata of audio": ("metadata-invalid", meta("audio", to=None)),
    "metadata rate": ("metadata-invalid", meta("audio", "rate_hz", to=0)),
    "metadata gain": ("metadata-invalid", meta("audio", "gain", to=3.0)),
    "metadata lengths": ("metadata-invalid", meta("motion", "frames", to=7)),
    "metadata cut": ("metadata-invalid", meta("cut", "audio_s", to=0.123)),
    "metadata no object": ("metadata-invalid", raw("json", b"[]")),
    "metadata null": ("metadata-invalid", raw("json", b"null")),
    "metadata deep": ("metadata-invalid", raw("json", b"[" * 100_000)),
    "column speaker": ("metadata-differs", row(speaker="wayne")),
    "column emotion": ("metadata-differs", row(labels={"emotion": "anger", "scenario": "speech"})),
    "column scenario": ("metadata-differs", row(labels={"emotion": "neutral", "scenario": "conversation"})),
    "column speaker id": ("metadata-differs", row(speaker_id=7)),
    "column notes": ("metadata-differs", row(notes=("betas-extended",))),
    "column stem": ("key-not-of-stem", row(stem="x")),
    "leaked to val": ("recording-in-two-splits", leak("val")),
    "statistics mean": ("statistics-differ", stats(lambda d: d["gesture"]["mean"].__setitem__(17, 0.123))),
    "statistics last bit": (
        "statistics-differ",
        stats(lambda d: d["mel"]["std"].__setitem__(3, float(np.nextafter(d["mel"]["std"][3], 9)))),
    ),
    "statistics samples": ("statistics-differ", stats(lambda d: d.update(samples=99))),
    "statistics of nothing": ("statistics-differ", file(STATS_FILE, lambda _: b"{}")),
    "statistics no JSON": ("statistics-differ", file(STATS_FILE, lambda data: data[:-9])),
    "tokenizer model": ("tokenizer-invalid", file(TOKENIZER_FILE, lambda d: d.replace(b'"BPE"', b'"WordPiece"'))),
    "tokenizer merge": ("tokenizer-differs", file(TOKENIZER_FILE, without_the_last_merge)),
    "tokenizer of nothing": ("tokenizer-invalid", file(TOKENIZER_FILE, lambda _: b"")),
    "tokenizer spaces": ("tokenizer-differs", file(TOKENIZER_FILE, lambda d: d + b"\n")),
    "report code": ("report-unknown-code", report_line(code="no-such-code")),
    "report severity": ("report-unknown-code", report_line(severity="rejected")),
    "report order": ("report-invalid", report_line(stem="zzz")),
    "report line": ("report-invalid", file(REPORT_FILE, lambda data: b"{}\n" + data)),
    "report no JSON": ("report-invalid", file(REPORT_FILE, lambda data: data + b"x")),
    "report type": ("report-invalid", report_line(found=5)),
    "report gone": ("report-contradiction", file(REPORT_FILE, lambda _: b"")),
}


class TestContent:
    @pytest.mark.slow
    @pytest.mark.parametrize("case", FAULTS)
    def test_found_by_deep_though_every_checksum_agrees(self, shards: Path, tmp_path: Path, case: str) -> None:
        code, fault = FAULTS[case]
        result = run(rebuilt(shards, tmp_path / "s", fault), "deep")
        assert any(found.startswith(code) for found in codes(result)), [f"{f.code}: {f.found}" for f in result.findings]
        assert not result.valid
        assert not any(" at 0x" in finding.found for finding in result.findings), "an address is another in each run"

    def test_the_builder_builds_sound_shards(self, shards: Path, tmp_path: Path) -> None:
        assert run(rebuilt(shards, tmp_path / "s", lambda _: None), "deep").findings == ()

    def test_a_twin_in_the_same_split_is_a_note(self, shards: Path, tmp_path: Path) -> None:
        result = run(rebuilt(shards, tmp_path / "s", leak("train")), "deep")
        assert codes(result, "note") == {"recording-twice"}
        assert "recording-in-two-splits" not in codes(result)

    def test_a_rejected_stem_is_no_sample(self, shards: Path, tmp_path: Path) -> None:
        stem = json.loads((shards / DATASET_FILE).read_bytes())
        assert stem
        sample = ShardSet.read(shards).samples[0].row
        fault = report_line(stem=sample.stem, code="wav-empty", severity="rejected")
        assert CODES["wav-empty"].severity == "rejected"
        assert "report-contradiction" in codes(run(rebuilt(shards, tmp_path / "s", fault), "deep"))
        assert key_from_stem(sample.stem) == sample.key

    def test_another_version_of_tokenizers_is_distinguished(self, shards: Path, tmp_path: Path) -> None:
        folder = rebuilt(shards, tmp_path / "s", FAULTS["tokenizer merge"][1])
        edit = edited_dataset(folder, lambda document: document["tool"].update(tokenizers="0.0.1"))
        with content(folder / DATASET_FILE, edit):
            result = run(folder, "deep")
        assert codes(result, "note") == {"tokenizer-other-version"}
        assert result.valid


class TestProcesses:
    """FLAC, which version 1 kept, is decoded in processes."""

    def test_processes_find_what_one_finds(self, version_1: Path, tmp_path: Path) -> None:
        folder = rebuilt(version_1, tmp_path / "s", FAULTS["rotation entry"][1])
        assert run(folder, "deep").findings == run(folder, "deep", num_workers=2).findings

    def test_a_dead_worker_is_a_finding_that_names_the_shard(
        self, version_1: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        killed = (sys.executable, "-c", "import os; input(); input(); os.kill(os.getpid(), 9)")
        monkeypatch.setattr(verify_shards, "WORKER_COMMAND", killed)
        result = run(version_1, "deep", num_workers=2)
        assert {finding.code for finding in result.findings} == {"worker-died"}
        assert [finding.file for finding in result.findings] == sorted(path.name for path in version_1.glob("*.tar"))


@pytest.fixture(scope="module")
def broken(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A broken rotation, an unlisted tar, and a file whose name means something to GitHub."""
    folder = rebuilt(shards, tmp_path_factory.mktemp("forms") / "s", FAULTS["rotation entry"][1])
    (folder / "train-000001.tar").write_bytes(b"")
    (folder / "no%te,\n.md").write_bytes(b"")
    return folder


class TestForms:
    def test_text_has_each_remedy_once_and_ends_with_the_verdict(self, broken: Path) -> None:
        text = render(run(broken, "deep"), "text").splitlines()
        assert sum(VERIFY_CODES["rotation-broken"].remedy in line for line in text) >= 1
        assert sum(line.startswith("shard-unlisted: ") for line in text) == 1
        assert text[-1].startswith("NOT VALID at level deep: ")
        assert "MB/s" in text[-1]

    def test_json_is_the_same_twice(self, broken: Path) -> None:
        texts = {render(run(broken, "deep", num_workers=n), "json") for n in (1, 2)}
        (text,) = texts
        document = json.loads(text)
        assert document["exit_code"] == 1
        assert {finding["code"] for finding in document["findings"]} == document["codes"].keys()

    def test_junit_has_a_case_for_every_file(self, broken: Path) -> None:
        suite = ET.fromstring(render(run(broken, "deep"), "junit").encode())[0]  # noqa: S314 - our own text
        listed = json.loads((broken / DATASET_FILE).read_bytes())
        names = {case.get("name") for case in suite}
        assert names >= {DATASET_FILE, *listed["shards"], *listed["files"]}
        assert int(suite.get("failures", "0")) == len(suite.findall("testcase/failure")) > 0

    def test_github_annotations_are_escaped(self, broken: Path) -> None:
        lines = render(run(broken, "deep"), "github").splitlines()
        assert all(re.match(r"::(error|notice) file=[^,:]+,title=[a-z0-9-]+::", line) for line in lines[:-1])
        assert any("no%25te%2C\\n.md" in line for line in lines)

    def test_hostile_text_reaches_no_terminal(self) -> None:
        finding = VerifyFinding("file-unlisted", "a\x1b[31m\n\udcff", "\u202e" * 500)
        assert (finding.file + finding.found).isprintable()
        assert len(finding.found) < 2000


class TestCommand:
    @pytest.mark.slow
    def test_exit_codes_and_output(self, shards: Path, tmp_path: Path) -> None:
        sound = omniges("verify-shards", shards, "--level", "deep", "--workers", "2")
        assert sound.returncode == 0, sound.stderr
        assert sound.stdout.startswith("valid at level deep: 0 errors, 0 notes in 8 files, 6 samples")
        assert omniges("verify-shards", tmp_path / "nowhere").returncode == 2
        assert omniges("verify-shards", tmp_path).returncode == 1
        assert omniges("verify-shards", shards, "-o", shards / "x").returncode == 2
        wrong = [("--level", "x"), ("--split", "dev"), ("--workers", "-1")]
        for words in wrong:
            run = omniges("verify-shards", shards, *words)
            assert run.returncode == 2, words
            assert "Traceback" not in run.stderr

    def test_a_file_for_the_findings(self, shards: Path, tmp_path: Path) -> None:
        folder = rebuilt(shards, tmp_path / "s", FAULTS["gesture NaN"][1])
        run = omniges("verify-shards", folder, "--level", "deep", "--format", "junit", "-o", tmp_path / "out.xml")
        assert (run.returncode, run.stdout) == (1, "")
        assert "array-not-finite" in (tmp_path / "out.xml").read_text()


class TestCodes:
    def test_codes_are_all_used(self) -> None:
        package = Path(verify_run.__file__).parent
        source = "".join(path.read_text() for path in package.glob("*.py") if path.name != "findings.py")
        assert [code for code in VERIFY_CODES if f'"{code}"' not in source] == []

    def test_the_settings_of_the_library_are_those_of_the_command(self, shards: Path) -> None:
        assert verify(VerifySettings(folder=shards)).level == "full"


def test_the_level_that_unusable_statistics_send_the_user_to_finds_them(shards: Path, tmp_path: Path) -> None:
    fault = FAULTS["statistics of nothing"][1]
    folder = rebuilt(shards, tmp_path / "set", fault)
    with pytest.raises(DataError) as refused:
        read_statistics((folder / STATS_FILE).read_bytes(), STATS_FILE)
    level = re.search(r"verify-shards --level (\w+)", str(refused.value))
    assert level
    assert codes(run(folder, level[1])) == {"statistics-differ"}
