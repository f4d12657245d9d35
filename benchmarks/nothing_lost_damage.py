"""Functions that damage shard folders and recordings, in the same way for each tree and without using omniges."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import wave
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

_TRAIN: Final = "train-000000.tar"
_BLOCK: Final = 512
_WORDS: Final = (".words.json", ".words.txt")  # endings of members in versions 1 and 2 of the shard contract
_WAVEFORM: Final = (".flac", ".audio.npy")
_CHECKSUM: Final = slice(148, 156)  # bytes of the checksum in a tar header


# --- shard folders


def _flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def _cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def _members(path: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(path) as archive:
        return archive.getmembers()


def _member(folder: Path, ending: str | tuple[str, ...]) -> tarfile.TarInfo:
    return next(member for member in _members(folder / _TRAIN) if member.name.endswith(ending))


def _flip_data(folder: Path, ending: str | tuple[str, ...]) -> None:
    member = _member(folder, ending)
    _flip(folder / _TRAIN, member.offset_data + member.size // 2)


def _change_header(folder: Path, ending: str, place: slice, field: bytes) -> None:
    """Change a field in the header of a member, and correct the header's checksum."""
    offset, path = _member(folder, ending).offset, folder / _TRAIN
    content = bytearray(path.read_bytes())
    header = content[offset : offset + _BLOCK]
    header[place] = field
    header[_CHECKSUM] = b" " * 8
    header[_CHECKSUM] = b"%06o\0 " % sum(header)
    content[offset : offset + _BLOCK] = header
    path.write_bytes(content)


def _write_padding(folder: Path) -> None:
    member = _member(folder, _WORDS)
    _flip(folder / _TRAIN, member.offset_data + member.size)


def _exchange_members(folder: Path) -> None:
    """Exchange the first two members of a shard."""
    path = folder / _TRAIN
    content, members = path.read_bytes(), _members(path)
    first, second, third = (member.offset for member in members[:3])
    path.write_bytes(content[second:third] + content[first:second] + content[third:])


def _double_member(folder: Path) -> None:
    path = folder / _TRAIN
    content, second = path.read_bytes(), _members(path)[1].offset
    path.write_bytes(content[:second] + content)


def _drop_member(folder: Path) -> None:
    path = folder / _TRAIN
    content = path.read_bytes()
    second, third = (member.offset for member in _members(path)[1:3])
    path.write_bytes(content[:second] + content[third:])


def _zero_header(folder: Path) -> None:
    path = folder / _TRAIN
    content, offset = path.read_bytes(), _members(path)[2].offset
    path.write_bytes(content[:offset] + bytes(_BLOCK) + content[offset + _BLOCK :])


def _exchange_shards(folder: Path) -> None:
    (folder / _TRAIN).rename(folder / "aside")
    (folder / "train-000001.tar").rename(folder / _TRAIN)
    (folder / "aside").rename(folder / "train-000001.tar")


def _append(path: Path, content: bytes) -> None:
    path.write_bytes(path.read_bytes() + content)


def _replace(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    if old not in content:
        raise SystemExit(f"{path}: expected {old!r} in it, found none; this kind of damage does not fit these shards")
    path.write_bytes(content.replace(old, new, 1))


def _link(path: Path) -> None:
    target = path.with_name(f"{path.name}-target")
    path.rename(target)
    path.symlink_to(target.name)


def _to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _sealed(document: dict[str, Any]) -> bytes:
    """Return the bytes of a dataset.json with a valid checksum, as docs/reference/shards.md defines it."""
    rest = {name: value for name, value in document.items() if name != "checksum"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    whole = rest | {"checksum": hashlib.sha256(canonical.encode()).hexdigest()}
    return (json.dumps(whole, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()


def _reseal(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change dataset.json and correct its checksum, so that only the content shows the damage."""
    path = folder / "dataset.json"
    document = json.loads(path.read_bytes())
    if _sealed(document) != path.read_bytes():
        raise SystemExit(f"{path}: expected the form of docs/reference/shards.md, found another form")
    change(document)
    path.write_bytes(_sealed(document))


def _agree(folder: Path) -> None:
    """Write the checksum and size of the damaged shard to dataset.json, so that only the manifest shows the damage."""

    def believe(document: dict[str, Any]) -> None:
        content = (folder / _TRAIN).read_bytes()
        document["shards"][_TRAIN]["sha256"] = hashlib.sha256(content).hexdigest()
        document["shards"][_TRAIN]["bytes"] = len(content)

    _reseal(folder, believe)


def _flip_and_agree(folder: Path, ending: str) -> None:
    _flip_data(folder, ending)
    _agree(folder)


def _drop_and_agree(folder: Path) -> None:
    _drop_member(folder)
    _agree(folder)


def _change_shard_facts(folder: Path, name: str, value: object) -> None:
    _reseal(folder, lambda document: document["shards"][_TRAIN].__setitem__(name, value))


SHARD_FAULTS: Final[dict[str, Callable[[Path], object]]] = {
    "sound": lambda folder: None,
    "bit in gesture": lambda folder: _flip_data(folder, ".gesture.npy"),
    "bit in mel": lambda folder: _flip_data(folder, ".mel.npy"),
    "bit in words": lambda folder: _flip_data(folder, _WORDS),
    "bit in kept audio": lambda folder: _flip_data(folder, _WAVEFORM),
    "bit in a header": lambda folder: _flip(folder / _TRAIN, _member(folder, ".mel.npy").offset + 3),
    "other mode in a header": lambda folder: _change_header(folder, ".mel.npy", slice(100, 108), b"0000777\0"),
    "name that leads out": lambda folder: _change_header(folder, ".mel.npy", slice(0, 10), b"../../x\0\0\0"),
    "member that is a link": lambda folder: _change_header(folder, ".mel.npy", slice(156, 157), b"2"),
    "member of an unknown type": lambda folder: _change_header(folder, ".mel.npy", slice(156, 157), b"x"),
    "padding not zero": _write_padding,
    "cut within a member": lambda folder: _cut(folder / _TRAIN, _member(folder, ".mel.npy").offset_data + 100),
    "cut between members": lambda folder: _cut(folder / _TRAIN, _member(folder, ".mel.npy").offset),
    "end missing": lambda folder: _cut(folder / _TRAIN, (folder / _TRAIN).stat().st_size - _BLOCK),
    "bytes after the end": lambda folder: _append(folder / _TRAIN, b"x" * _BLOCK),
    "early end": _zero_header,
    "members exchanged": _exchange_members,
    "member doubled": _double_member,
    "member dropped": _drop_member,
    "empty shard": lambda folder: (folder / _TRAIN).write_bytes(b""),
    "shards exchanged": _exchange_shards,
    "shard missing": lambda folder: (folder / _TRAIN).unlink(),
    "shard is a link": lambda folder: _link(folder / _TRAIN),
    "extra shard": lambda folder: shutil.copy(folder / _TRAIN, folder / "train-000009.tar"),
    "extra tar": lambda folder: shutil.copy(folder / _TRAIN, folder / "other.tar"),
    "temporary file": lambda folder: (folder / ".train-000000.tar.tmp-123").write_bytes(b"half"),
    "foreign file": lambda folder: (folder / "notes.txt").write_bytes(b"mine"),
    "no dataset.json": lambda folder: (folder / "dataset.json").unlink(),
    "empty dataset.json": lambda folder: (folder / "dataset.json").write_bytes(b""),
    "foreign dataset.json": lambda folder: (folder / "dataset.json").write_bytes(b'{"format": "other"}\n'),
    "edited dataset.json": lambda folder: _replace(folder / "dataset.json", b'"natural"', b'"decimal"'),
    "rewritten dataset.json": lambda folder: _append(folder / "dataset.json", b"\n"),
    "newer dataset.json": lambda folder: _reseal(folder, lambda it: it.update(version=99)),
    "field of dataset.json gone": lambda folder: _reseal(folder, lambda it: it.pop("manifest_hash") and None),
    "other features": lambda folder: _reseal(folder, lambda it: it["features"].update(tick_s=0.2)),
    "other plan": lambda folder: _reseal(folder, lambda it: it["plan"].update(stems=99)),
    "other manifest hash": lambda folder: _reseal(folder, lambda it: it.update(manifest_hash="0" * 64)),
    "other count of samples": lambda folder: _change_shard_facts(folder, "samples", 2),
    "other split of a shard": lambda folder: _change_shard_facts(folder, "split", "val"),
    "data changed in agreement": lambda folder: _flip_and_agree(folder, ".gesture.npy"),
    "member dropped in agreement": _drop_and_agree,
    "no manifest": lambda folder: (folder / "manifest.parquet").unlink(),
    "manifest cut": lambda folder: _cut(folder / "manifest.parquet", 1000),
    "bit in the manifest": lambda folder: _flip(folder / "manifest.parquet", 500),
    "statistics edited": lambda folder: _replace(folder / "stats.json", b"0.", b"1."),
    "statistics are a folder": lambda folder: _to_folder(folder / "stats.json"),
    "no tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    "report has grown": lambda folder: _append(folder / "report.jsonl", b"{}\n"),
}


# --- recordings


def _write_wav(path: Path, samples: np.ndarray[Any, Any], rate_hz: int = 16_000) -> None:
    """Write samples (T,) or (T, channels) to a WAV file as int16."""
    with wave.open(str(path), "wb") as stream:
        stream.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        stream.setsampwidth(2)
        stream.setframerate(rate_hz)
        stream.writeframes(samples.astype("<i2").tobytes())


def _rewrite_wav(path: Path, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]], rate_hz: int) -> None:
    with wave.open(str(path), "rb") as stream:
        samples = np.frombuffer(stream.readframes(stream.getnframes()), "<i2")
    _write_wav(path, change(samples), rate_hz)


Arrays = dict[str, np.ndarray[Any, Any]]


def _rewrite_npz(path: Path, change: Callable[[Arrays], Mapping[str, Any]]) -> None:
    """Replace arrays of an NPZ file; an array whose new value is None is removed."""
    with np.load(path) as found:
        arrays: Arrays = {name: found[name] for name in found.files}
    changed = arrays | dict(change(arrays))
    stream = io.BytesIO()
    # One kind of damage is an array of objects. Both trees have to refuse it without loading it.
    np.savez(stream, allow_pickle=True, **{name: value for name, value in changed.items() if value is not None})
    path.write_bytes(stream.getvalue())


def _with(array: np.ndarray[Any, Any], value: float) -> np.ndarray[Any, Any]:
    changed = array.copy()
    changed[3, 3] = value
    return changed


def _half(path: Path) -> None:
    _cut(path, path.stat().st_size // 2)


def _recode(path: Path, encoding: str) -> None:
    path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))


def _silence_words(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join('text = ""\n' if "text =" in line else line for line in lines), encoding="utf-8")


def _overlap_words(path: Path) -> None:
    """Set the start of the second interval to the start of the first interval."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    second = next(k for k, line in enumerate(lines) if "intervals [2]" in line)
    lines[second + 1] = "xmin = 0.0\n"
    path.write_text("".join(lines), encoding="utf-8")


def _leave(path: Path) -> None:
    """Move a file out of the data set, and put a link in its place."""
    target = path.parents[3] / f"outside-{path.name}"
    path.rename(target)
    path.symlink_to(target)


_AUDIO_FAULTS: Final[dict[str, Callable[[Path], object]]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_bytes(b"no sound " * 100),
    "cut in the header": lambda path: _cut(path, 20),
    "cut in the samples": _half,
    "silent": lambda path: _rewrite_wav(path, np.zeros_like, 16_000),
    "other rate": lambda path: _rewrite_wav(path, lambda samples: np.repeat(samples, 3), 48_000),
    "two channels": lambda path: _rewrite_wav(path, lambda samples: np.stack([samples, samples // 2], 1), 16_000),
    "short": lambda path: _rewrite_wav(path, lambda samples: samples[:20_000], 16_000),
    "no tick long": lambda path: _rewrite_wav(path, lambda samples: samples[:1000], 16_000),
    "long": lambda path: _rewrite_wav(path, lambda samples: np.tile(samples, 5), 16_000),
    "link out": _leave,
}
_MOTION_FAULTS: Final[dict[str, Callable[[Path], object]]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "no archive": lambda path: path.write_bytes(b"no archive " * 100),
    "cut": _half,
    "bit": lambda path: _flip(path, path.stat().st_size // 2),
    "no poses": lambda path: _rewrite_npz(path, lambda arrays: {"poses": None}),
    "object array": lambda path: _rewrite_npz(path, lambda arrays: {"poses": arrays["poses"].astype(object)}),
    "text array": lambda path: _rewrite_npz(path, lambda arrays: {"poses": arrays["poses"].astype(str)}),
    "not finite": lambda path: _rewrite_npz(path, lambda arrays: {"poses": _with(arrays["poses"], np.nan)}),
    "out of range": lambda path: _rewrite_npz(path, lambda arrays: {"poses": _with(arrays["poses"], 1e6)}),
    "wrong shape": lambda path: _rewrite_npz(path, lambda arrays: {"poses": arrays["poses"][:, :99]}),
    "unequal lengths": lambda path: _rewrite_npz(path, lambda arrays: {"trans": arrays["trans"][:-1]}),
    "no frames": lambda path: _rewrite_npz(
        path, lambda arrays: {name: arrays[name][:0] for name in ("poses", "trans", "expressions")}
    ),
    "25 frames a second": lambda path: _rewrite_npz(path, lambda _: {"mocap_frame_rate": np.array(25)}),
    "60 frames a second": lambda path: _rewrite_npz(path, lambda _: {"mocap_frame_rate": np.array(60)}),
    "few betas": lambda path: _rewrite_npz(path, lambda arrays: {"betas": arrays["betas"][:16]}),
}
_TEXT_FAULTS: Final[dict[str, Callable[[Path], object]]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut": _half,
    "other tier": lambda path: _replace(path, b'"words"', b'"phones"'),
    "not in UTF-8": lambda path: _replace(path, b'text = "', b'text = "\xff\xfe'),
    "in UTF-16": lambda path: _recode(path, "utf-16"),
    "no words": _silence_words,
    "overlap": _overlap_words,
    "end before start": lambda path: _replace(path, b"xmax = 0.", b"xmax = -0."),
}
_PLACES: Final = (
    ("wave16k", ".wav", _AUDIO_FAULTS),
    ("smplxflame_30", ".npz", _MOTION_FAULTS),
    ("textgrid", ".TextGrid", _TEXT_FAULTS),
    ("sem", ".txt", {"broken": lambda path: path.write_bytes(b"one word\n")}),
)
_SOUND: Final = 4  # number of recordings that are not damaged
RECORDINGS: Final = _SOUND + sum(len(faults) for _, _, faults in _PLACES)
"""Number of recordings of the corpus that `damage_recordings` needs."""


def damage_recordings(root: Path) -> None:
    """Damage each recording of a corpus in another way, except the first four."""
    base = next(root.iterdir())
    stems = iter(sorted(path.stem for path in (base / "wave16k").iterdir())[_SOUND:])
    for folder, ending, faults in _PLACES:
        for fault in faults.values():
            fault(base / folder / f"{next(stems)}{ending}")
