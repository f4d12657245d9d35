"""The GPU's benchmark, tried out on a CPU: figures hang together, and without a GPU it refuses in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gpu
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

SIZES = st.integers(1, 50)


@given(width=SIZES, ratio=st.integers(1, 4), rows=SIZES)
def test_products_are_those_of_a_block_in_three_directions(width: int, ratio: int, rows: int) -> None:
    operations = sum(2 * m * k * n for m, k, n in gpu.product_shapes(width, ratio, rows))
    assert operations == 3 * 2 * rows * (4 + 2 * ratio) * width**2


def test_cards_are_found_by_their_name_and_others_have_no_share() -> None:
    assert gpu.sheet_flops("NVIDIA H200", "bf16") == 989e12
    assert gpu.sheet_flops("NVIDIA A100-SXM4-80GB", "no") == 19.5e12
    assert gpu.sheet_flops("2 threads", "bf16") is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_refuses_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 3
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "expected a GPU, found none" in err


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_it_writes_a_row_for_each_configuration_and_names_what_it_left_out(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--device cpu --preset tiny --batch-size 2 --mixed-precision no --window-ticks 8 --seconds 0.1 --no-compile"
    monkeypatch.setattr(
        sys,
        "argv",
        ["gpu.py", *flags.split(), "--no-reference", "--shards", str(shards), "--json", str(tmp_path / "f")],
    )
    gpu.main()
    found = json.loads((tmp_path / "f").read_bytes())
    (row,) = found["rows"]
    assert (row["preset"], row["batch_size"], row["compile"], found["left_out"]) == ("tiny", 2, False, [])
    assert row["mfu"] is None
    assert 0 < row["same_shapes"] < 2
    assert row["calls"] > 500
    assert "| tiny | 2 | float32 | no |" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--minutes", "0"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 1
    assert "left out: tiny, batch 2, no" in capsys.readouterr().out
