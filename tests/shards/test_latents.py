"""Entries of codecs: what they may say, and the arithmetic of rows that follows from one whole number."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniges.features.timebase import mel_frames_for, ticks_of_frames
from omniges.shards.dataset import PartialSpool, partial_of
from omniges.shards.latents import FrameEntry, WindowEntry, latents_document, read_entries
from omniges.shards.manifest import ManifestRow, MemberPlace, parse_manifest, serialize_manifest
from omniges.shards.schema import CONTRACT, KNOWN_MEMBERS, PARTS, member_order
from omniges.storage.files import json_document

PRINT = "0123456789abcdef" * 4


def entry_of(**changes: Any) -> FrameEntry:
    plain: dict[str, Any] = {
        "name": "audioldm2-vae",
        "fingerprint": PRINT,
        "source": "mel.npy",
        "frames_per_row": 4,
        "channels": 128,
    }
    return FrameEntry(**(plain | changes))


def row_of(frames: int, latents: tuple[str, ...] = ()) -> ManifestRow:
    members = {name: MemberPlace(512 * k, k, f"{k:064x}") for k, name in enumerate((*CONTRACT.members, *latents), 1)}
    return ManifestRow(
        key="a",
        stem="a",
        split="train",
        shard="train-000000.tar",
        frames=frames,
        mel_frames=mel_frames_for(frames),
        ticks=ticks_of_frames(frames),
        words=1,
        seconds=frames / 30,
        speaker_id=None,
        speaker=None,
        language=None,
        labels={},
        present=PARTS,
        sources={"wav": ("a.wav", PRINT)},
        notes=(),
        members=members,
    )


@pytest.mark.parametrize(
    ("entry", "rate_hz", "multiple"),
    [
        (entry_of(), 25.0, 2),
        (entry_of(source="gesture.npy"), 7.5, 4),
        (entry_of(frames_per_row=10), 10.0, 1),
        (entry_of(frames_per_row=1), 100.0, 1),
        (entry_of(frames_per_row=3), 100 / 3, 3),
    ],
)
def test_rates_and_the_ticks_that_hold_whole_rows(entry: FrameEntry, rate_hz: float, multiple: int) -> None:
    assert float(entry.rows_per_tick * 10) == pytest.approx(rate_hz)
    assert entry.tick_multiple == multiple
    assert (multiple * entry.rows_per_tick).denominator == 1
    assert all((k * entry.rows_per_tick).denominator > 1 for k in range(1, multiple))


@given(frames=st.integers(3, 30_000), per_row=st.integers(1, 40), source=st.sampled_from(["mel.npy", "gesture.npy"]))
def test_a_clip_has_the_rows_that_windows_of_its_whole_units_need(frames: int, per_row: int, source: str) -> None:
    entry = entry_of(frames_per_row=per_row, source=source)
    row = row_of(frames)
    whole = row.ticks - row.ticks % entry.tick_multiple
    needed = whole * entry.rows_per_tick
    assert needed.denominator == 1
    assert needed <= entry.shape_of(row)[0]
    assert entry.shape_of(row)[0] * Fraction(per_row) <= (row.mel_frames if source == "mel.npy" else row.frames)


@given(st.integers(1, 1 << 20), st.integers(1, 1 << 20))
def test_entries_come_back_from_json(per_row: int, channels: int) -> None:
    entry = entry_of(frames_per_row=per_row, channels=channels, settings={"loudness": "peak"})
    document = json.loads(json.dumps({"codecs": {entry.name: entry.as_json()}}))
    assert read_entries(document) == {entry.name: entry}
    assert read_entries({}) == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "vae"},
        {"name": "mel"},
        {"name": "Audio-VAE"},
        {"name": "a-b/../c-d"},
        {"name": "a_b-c"},
        {"fingerprint": PRINT.upper()},
        {"fingerprint": None},
        {"source": "words.json"},
        {"frames_per_row": 0},
        {"frames_per_row": 1.0},
        {"frames_per_row": True},
        {"channels": -1},
        {"channels": 1 << 30},
        {"settings": None},
    ],
)
def test_what_no_codec_is(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        entry_of(**changes)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"codecs": {}}, r"\{\}"),
        ({"codecs": []}, r"\[\]"),
        ({"codecs": {"a-b": {}}}, "expected"),
        ({"codecs": {"a-b": 1}}, "expected"),
    ],
)
def test_documents_in_another_form(found: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_entries(found)


def test_latents_stand_behind_all_other_members_by_name() -> None:
    latents = ("audioldm2-vae.npy", "gesture-rvqvae.npy")
    names = (*KNOWN_MEMBERS, *latents)
    shuffled = [*latents[::-1], *KNOWN_MEMBERS[::-1]]
    assert sorted(shuffled, key=member_order) == list(names)
    with pytest.raises(ValueError, match="no member"):
        member_order("vae.npy")


@pytest.mark.parametrize("latents", [(), ("audioldm2-vae.npy",), ("audioldm2-vae.npy", "gesture-rvqvae.npy")])
def test_manifests_with_latents_come_back(latents: tuple[str, ...]) -> None:
    rows = [row_of(30, latents)]
    assert parse_manifest(serialize_manifest(rows)) == rows


def test_statistics_are_over_rows_of_the_train_samples() -> None:
    random = np.random.default_rng(0)
    clips = [random.standard_normal((n, 3)).astype(np.float32) for n in (5, 9)]
    entry = entry_of(channels=3)
    document = latents_document([entry], {entry.name: PartialSpool((partial_of(clip),) for clip in clips)})[entry.name]
    rows = np.concatenate(clips).astype(np.float64)
    assert (document["samples"], document["rows"], document["smallest_std"]) == (2, 14, 1e-6)
    np.testing.assert_allclose(document["mean"], rows.mean(0), atol=1e-12)
    np.testing.assert_allclose(document["std"], rows.std(0), rtol=1e-12)
    assert latents_document([entry], {}) == {entry.name: {"samples": 0}}
    assert json.loads(json_document(document)) == document


def windows_of(**changes: Any) -> WindowEntry:
    plain: dict[str, Any] = {
        "name": "omniflow-text-vae",
        "fingerprint": PRINT,
        "source": "words.json",
        "window_ticks": 64,
        "stride_ticks": 16,
        "latents": 32,
        "channels": 64,
    }
    return WindowEntry(**(plain | changes))


class TestWindows:
    @given(ticks=st.integers(1, 3000), stride=st.integers(1, 20), times=st.integers(1, 8), latents=st.integers(1, 40))
    def test_a_clip_has_a_row_for_each_window_that_fits(
        self, ticks: int, stride: int, times: int, latents: int
    ) -> None:
        window = stride * times
        entry = windows_of(window_ticks=window, stride_ticks=stride, latents=latents, channels=3)
        fitting = [start for start in range(0, ticks, stride) if start + window <= ticks]
        row = row_of(3 * ticks)
        assert row.ticks == ticks
        assert entry.shape_of(row) == (len(fitting), 3 * latents)

    def test_vectors_are_all_latents_of_all_windows(self) -> None:
        entry = windows_of(latents=2, channels=3)
        rows = np.arange(24, dtype=np.float32).reshape(4, 6)
        np.testing.assert_array_equal(entry.vectors(rows), np.arange(24).reshape(8, 3))

    def test_comes_back_from_json_beside_one_of_frames(self) -> None:
        both = {e.name: e for e in (entry_of(), windows_of(lost={"windows": 9, "cut": 1, "unknown": 0}))}
        document = json.loads(json.dumps({"codecs": {name: entry.as_json() for name, entry in both.items()}}))
        assert read_entries(document) == both

    def test_what_tells_codecs_apart(self) -> None:
        lost = {"windows": 9, "cut": 1, "unknown": 0}
        assert windows_of().same_codec(windows_of(lost=lost, settings={"tool": {}}))
        assert entry_of().same_codec(entry_of(settings={"loudness": "peak"}))
        for changes in ({"stride_ticks": 32}, {"latents": 16}, {"channels": 32}, {"fingerprint": PRINT[::-1]}):
            assert not windows_of().same_codec(windows_of(**changes))
        assert not entry_of().same_codec(windows_of())

    @pytest.mark.parametrize(
        "changes",
        [
            {"source": "mel.npy"},
            {"window_ticks": 0},
            {"stride_ticks": 24},
            {"stride_ticks": True},
            {"latents": -1},
            {"words": "start"},
            {"lost": {}},
            {"lost": {"windows": 1, "cut": 2, "unknown": 0}},
            {"lost": {"windows": 1, "cut": 1.0, "unknown": 0}},
        ],
    )
    def test_what_none_is(self, changes: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(changes))):
            windows_of(**changes)
