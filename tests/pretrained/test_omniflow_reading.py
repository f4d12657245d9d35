"""OmniFlow folders that are not whole or not what they say: refused, by name, and nothing is taken from them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omniflow_checkpoints import Tiny, tensors_of, write_folder

from omniges.errors import DataError, OmnigesError, UsageFault
from omniges.pretrained.architecture import read_architecture
from omniges.pretrained.tensors import find_omniflow, open_parts
from omniges.pretrained.trunk import read_omniflow

TINY = Tiny(qk_norm="rms", dual=(0,), nested=True)
SHAPES = {name: tuple(x.shape) for name, x in tensors_of(TINY).items()}


def refused(folder: Path) -> str:
    """The error for a person; one line."""
    with pytest.raises(OmnigesError) as caught:
        read_omniflow(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class TestTensors:
    @pytest.mark.parametrize("name", [name for name in SHAPES if not name.startswith("text_decoder.")])
    def test_any_one_that_is_missing_or_of_another_shape_is_named(self, name: str) -> None:
        without = {own: shape for own, shape in SHAPES.items() if own != name}
        with pytest.raises(DataError) as caught:
            read_architecture(without, TINY.config, "file")
        if not name.startswith("transformer_blocks.0.attn.norm_q"):
            assert name in str(caught.value)
        for other in ((*SHAPES[name], 1), (SHAPES[name][0] + 1, *SHAPES[name][1:])):
            with pytest.raises(DataError):
                read_architecture(SHAPES | {name: other}, TINY.config, "file")

    @given(st.sampled_from([name for name in SHAPES if not name.startswith("text_decoder.")]), st.data())
    def test_no_set_of_changed_shapes_is_taken_for_a_checkpoint(self, name: str, data: st.DataObject) -> None:
        shape = data.draw(st.lists(st.integers(0, 40), max_size=4).map(tuple))
        if shape != SHAPES[name]:
            with pytest.raises(DataError):
                read_architecture(SHAPES | {name: shape}, TINY.config, "file")

    @pytest.mark.parametrize(
        "extra", ["extra", "transformer_blocks.0.attn2.to_q.weight", "transformer_blocks.7.x", "pos_embed"]
    )
    def test_one_too_many_is_refused(self, extra: str, tmp_path: Path) -> None:
        folder = write_folder(tmp_path, TINY, tensors=tensors_of(TINY) | {extra: torch.zeros(2)})
        assert ("unknown" in refused(folder)) or ("missing" in refused(folder))

    def test_a_block_number_out_of_all_measure_costs_nothing(self) -> None:
        with pytest.raises(DataError, match="blocks in"):
            read_architecture(SHAPES | {"transformer_blocks.99999999999.x": (1,)}, TINY.config, "file")

    def test_a_text_modulation_of_nine_parts_is_no_dual_layer(self) -> None:
        name = "transformer_blocks.0.norm1_context.linear.bias"
        with pytest.raises(DataError, match=name):
            read_architecture(SHAPES | {name: (9 * TINY.width,)}, TINY.config, "file")

    @pytest.mark.parametrize("table", ["pos_embed.pos_embed", "audio_embedder.pos_embed"])
    def test_a_table_of_something_else_is_refused_and_any_base_is_found(self, table: str, tmp_path: Path) -> None:
        tensors = tensors_of(TINY)
        changed = tensors[table].clone()
        changed[0, 17, 3] += 1e-3
        folder = write_folder(tmp_path / "changed", TINY, tensors=tensors | {table: changed})
        assert f"{table}: expected the table of sines" in refused(folder)
        changed[0, 17, 3] = float("nan")
        assert table in refused(write_folder(tmp_path / "nan", TINY, tensors=tensors | {table: changed}))
        found = read_omniflow(write_folder(tmp_path / "sound", TINY)).grids
        assert (found["image"]["table_base"], found["audio"]["table_base"]) == (3, 8)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_tables_in_half_precision_are_known_too(self, dtype: torch.dtype, tmp_path: Path) -> None:
        tensors = {name: x.to(dtype) for name, x in tensors_of(TINY).items()}
        found = read_omniflow(write_folder(tmp_path, TINY, tensors=tensors)).grids
        assert (found["image"]["table_base"], found["audio"]["table_base"]) == (3, 8)


class TestConfig:
    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("num_layers", 3),
            ("num_attention_heads", 4),
            ("attention_head_dim", 4),
            ("joint_attention_dim", 4096),
            ("caption_projection_dim", 8),
            ("pooled_projection_dim", 2048),
            ("in_channels", 16),
            ("audio_input_dim", 8),
            ("add_clip", True),
            ("use_audio_mae", True),
            ("drop_text", True),
            ("num_layers", "2"),
            ("num_layers", None),
            ("attention_head_dim", [8]),
        ],
    )
    def test_sizes_that_the_tensors_have_not_are_refused_by_key(self, key: str, value: Any, tmp_path: Path) -> None:
        folder = write_folder(tmp_path, TINY, config=TINY.config | {key: value})
        assert f"{key} {value!r}" in refused(folder)

    @pytest.mark.parametrize(
        ("key", "value"),
        [("qk_norm", "layer_norm"), ("qk_norm", ["x"]), ("dual_attention_layers", []), ("patch_size", 32)],
    )
    def test_of_kinds_the_tensors_decide_and_it_is_reported(self, key: str, value: Any, tmp_path: Path) -> None:
        found = read_omniflow(write_folder(tmp_path, TINY, config=TINY.config | {key: value}))
        assert found.config["qk_norm"] == "rms"
        (warning,) = found.warnings
        assert warning.startswith(f"config.json says {key} {value!r}, the tensors say")

    def test_without_norms_the_features_of_a_head_must_be_given_and_fit(self, tmp_path: Path) -> None:
        tiny = Tiny(qk_norm=None)
        assert read_omniflow(write_folder(tmp_path / "a", tiny)).config["heads"] == 2
        config = {key: value for key, value in tiny.config.items() if key != "attention_head_dim"}
        assert "attention_head_dim" in refused(write_folder(tmp_path / "b", tiny, config=config))
        assert "attention_head_dim" in refused(
            write_folder(tmp_path / "c", tiny, config=tiny.config | {"attention_head_dim": 5})
        )

    @pytest.mark.parametrize("content", ["", "{", "[]", "null", '"x"', "\x00"])
    def test_what_is_no_json_object_is_refused(self, content: str, tmp_path: Path) -> None:
        folder = write_folder(tmp_path, TINY)
        (folder / "transformer" / "config.json").write_text(content)
        assert "config.json" in refused(folder)

    def test_without_one_the_folder_is_not_whole(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path, TINY)
        (folder / "transformer" / "config.json").unlink()
        assert "config.json: expected this file, found that the file does not exist" in refused(folder)


class Opened:
    """An object that a pickle must not be able to create: its constructor would run."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (os.environ["OMNIGES_TEST_TRAP"],)


class TestFiles:
    @pytest.mark.parametrize("kind", ["bin", "safetensors"])
    @pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.9999])
    def test_a_file_that_is_cut_is_refused(self, kind: Any, share: float, tmp_path: Path) -> None:
        folder = write_folder(tmp_path, TINY, kind=kind)
        path = folder / "transformer" / f"diffusion_pytorch_model.{kind}"
        os.truncate(path, int(path.stat().st_size * share))
        assert str(path) in refused(folder)

    def test_a_pickled_object_is_refused_and_does_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trap = tmp_path / "trap"
        monkeypatch.setenv("OMNIGES_TEST_TRAP", str(trap))
        folder = write_folder(tmp_path, TINY)
        path = folder / "transformer" / "diffusion_pytorch_model.bin"
        torch.save(tensors_of(TINY) | {"extra": Opened()}, path)
        assert "found a pickled Python object" in refused(folder)
        write_folder(tmp_path, TINY)
        torch.save({"shadow_params": [Opened()]}, folder / "transformer" / "ema_transformer.pt")
        with pytest.raises(DataError, match=r"ema_transformer\.pt: .* found a pickled Python object"):
            read_omniflow(folder, "ema")
        assert not trap.exists()

    @pytest.mark.parametrize(
        "content",
        [
            [1, 2],
            {},
            {"state_dict": {"a": torch.zeros(1)}},
            {3: torch.zeros(1)},
            {"a": torch.zeros(1, dtype=torch.int64)},
            {"a": torch.zeros(2, 2).to_sparse()},
            {"a": "text"},
        ],
    )
    def test_anything_but_tensors_by_name_is_refused(self, content: Any, tmp_path: Path) -> None:
        folder = write_folder(tmp_path, TINY)
        torch.save(content, folder / "transformer" / "diffusion_pytorch_model.bin")
        assert "expected" in refused(folder)

    def test_a_tensor_larger_than_its_data_is_refused_before_it_is_copied(self, tmp_path: Path) -> None:
        huge = torch.zeros(1).expand(1 << 20, 1 << 10)
        folder = write_folder(tmp_path, TINY, tensors={"a": huge})
        assert "expected at most" in refused(folder)

    def test_the_old_format_that_cannot_be_mapped_gives_the_same(self, tmp_path: Path) -> None:
        new = read_omniflow(write_folder(tmp_path / "new", TINY))
        folder = write_folder(tmp_path / "old", TINY)
        path = folder / "transformer" / "diffusion_pytorch_model.bin"
        torch.save(tensors_of(TINY), path, _use_new_zipfile_serialization=False)
        old = read_omniflow(folder)
        assert old.shapes == new.shapes
        assert all(torch.equal(old.read(name), new.read(name)) for name in new.shapes)

    def test_parts_must_lie_beside_their_index_and_share_no_name(self, tmp_path: Path) -> None:
        place = tmp_path / "transformer"
        write_folder(tmp_path, TINY)
        (place / "diffusion_pytorch_model.bin").unlink()
        index = place / "diffusion_pytorch_model.bin.index.json"
        for name, said in (("../x.bin", "names of files beside it"), ("gone.bin", "which the index names, found none")):
            index.write_text(json.dumps({"weight_map": {"a": name}}))
            assert said in refused(tmp_path)
        index.write_text(json.dumps({"weight_map": []}))
        assert "expected a weight_map of tensors and files" in refused(tmp_path)
        for name in ("a.bin", "b.bin"):
            torch.save({"same": torch.zeros(1)}, place / name)
        with pytest.raises(DataError, match="found same in"):
            open_parts((place / "a.bin", place / "b.bin"))

    def test_a_folder_of_something_else_says_what_was_expected(self, tmp_path: Path) -> None:
        with pytest.raises(UsageFault, match=r"transformer/config\.json"):
            find_omniflow(tmp_path)

    def test_the_transformers_own_folder_will_do(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path, TINY)
        assert read_omniflow(folder / "transformer").shapes == read_omniflow(folder).shapes

    @pytest.mark.slow
    def test_data_is_mapped_and_read_one_tensor_at_a_time(self, tmp_path: Path) -> None:
        """Opening 256 MB and reading the small one of its two tensors takes next to no memory."""
        path = tmp_path / "large.bin"
        torch.save({"a": torch.zeros(1 << 26), "b": torch.ones(3)}, path)
        before = resident_bytes()
        found = open_parts((path,))
        assert found.shapes == {"a": (1 << 26,), "b": (3,)}
        assert torch.equal(found.read("b"), torch.ones(3))
        assert resident_bytes() - before < 50e6
        assert found.read("a").sum() == 0
