"""Every size is read from the tensors, and a file that is not exactly one net is refused by the tensors' names."""

from __future__ import annotations

import json
import math
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rvqvae_builders import TINY, random_tensors, shapes
from safetensors.torch import save_file

from omniges.codecs.rvqvae import Rvqvae, RvqvaeSpec, load_rvqvae, rvqvae_of, spec_of
from omniges.errors import DataError, UsageFault

NET = random_tensors()
PUBLISHED = {"width": 512, "size": 128, "codes": 1024, "quantizers": 6, "stages": 2, "depth": 3, "projected": True}


CONFIG = {
    "nb_code": NET["quantizer.layers.0.codebook"].shape[0],
    "code_dim": NET["quantizer.layers.0.codebook"].shape[1],
    "width": NET["encoder.model.0.weight"].shape[0],
    "stride_t": 2,
    "dilation_growth_rate": 3,
    "vq_act": "relu",
    "vq_norm": None,
    "mu": 0.99,
    "unknown_to_us": None,
}


class TestConfig:
    """Nothing in the tensors tells activation, norm and dilations; a config.json that says others is refused."""

    @pytest.mark.parametrize("config", [CONFIG, {}])
    def test_one_that_fits_changes_nothing(self, tmp_path, config):
        save_file(NET, tmp_path / "net.safetensors")
        alone = load_rvqvae(tmp_path / "net.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(config))
        beside = load_rvqvae(tmp_path / "net.safetensors")
        assert beside.spec == alone.spec

    @pytest.mark.parametrize(
        "change",
        [
            {"dilation_growth_rate": 2},
            {"vq_act": "silu"},
            {"vq_norm": "LN"},
            {"stride_t": 4},
            {"width": 7},
            {"nb_code": 1},
            {"depth": 9},
            {"shared_codebook": True},
            {"latent_scale": 1.0},
            {"input_width": 1},
            {"output_emb_width": 1},
            {"frames_per_latent": True},
            {"code_dim": "16"},
            {"post_filter": "median"},
        ],
    )
    def test_other_values_are_refused_by_the_key(self, tmp_path, change):
        save_file(NET, tmp_path / "net.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(CONFIG | change))
        (key,) = change
        with pytest.raises(DataError, match=rf"config\.json: {key}: expected .*, found") as caught:
            load_rvqvae(tmp_path / "net.safetensors")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("place", ["pipe", "link to nothing", "link out of the folder"])
    def test_what_is_no_file_of_the_folder_is_refused(self, tmp_path, place):
        folder = tmp_path / "codec"
        folder.mkdir()
        save_file(NET, folder / "net.safetensors")
        if place == "pipe":
            os.mkfifo(folder / "config.json")
        else:
            (folder / "config.json").symlink_to("/nowhere" if "nothing" in place else tmp_path / "elsewhere.json")
            (tmp_path / "elsewhere.json").write_text("{}")
        with pytest.raises(DataError, match=r"config\.json: expected"):
            load_rvqvae(folder / "net.safetensors")


def without_data(**sizes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes(**sizes).items()}


class TestSizes:
    @given(
        channels=st.integers(1, 9),
        width=st.integers(1, 9),
        size=st.integers(1, 9),
        codes=st.integers(1, 9),
        quantizers=st.integers(1, 4),
        stages=st.integers(1, 4),
        depth=st.integers(1, 4),
        projected=st.booleans(),
    )
    def test_are_those_of_the_tensors(self, **sizes):
        found = spec_of(without_data(**sizes), "file")
        wanted = {"code_size" if name == "size" else name: value for name, value in sizes.items()}
        assert found == RvqvaeSpec(**wanted)
        with torch.device("meta"):
            own = Rvqvae(found).state_dict()
        assert {name: tuple(tensor.shape) for name, tensor in own.items()} == shapes(**sizes)

    @pytest.mark.parametrize(
        ("channels", "projected", "megabytes"),
        [(78, True, 74.328), (180, True, 75.582), (57, True, 74.070), (100, True, 74.599), (54, True, 74.034)],
    )
    def test_the_published_ones_fill_the_published_files(self, channels, projected, megabytes):
        tensors = without_data(**PUBLISHED | {"channels": channels, "projected": projected})
        assert len(tensors) == 84
        numbers = sum(tensor.numel() for tensor in tensors.values())
        assert 4 * numbers / 1e6 == pytest.approx(megabytes, abs=0.05)  # the archive adds some kilobytes

    def test_the_published_net_has_17_8_million_weights(self):
        with torch.device("meta"):
            net = Rvqvae(spec_of(without_data(**PUBLISHED, channels=78), "file"))
        assert sum(parameter.numel() for parameter in net.parameters()) / 1e6 == pytest.approx(17.8, abs=0.05)
        assert sum(buffer.numel() for buffer in net.buffers()) == 6 * 1024 * 128


class TestFiles:
    def test_a_pickle_and_its_safetensors_twin_are_one_net(self, tmp_path):
        tensors = random_tensors()
        torch.save({"net": tensors}, tmp_path / "net.pth")
        save_file(tensors, tmp_path / "net.safetensors")
        nets = [load_rvqvae(tmp_path / name) for name in ("net.pth", "net.safetensors")]
        for net in nets:
            assert net.state_dict().keys() == tensors.keys()
            assert all(torch.equal(tensor, tensors[name]) for name, tensor in net.state_dict().items())
            assert not net.training
            assert not any(parameter.requires_grad for parameter in net.parameters())

    def test_other_float_types_are_brought_to_float32(self, tmp_path):
        tensors = {name: tensor.half() for name, tensor in random_tensors().items()}
        torch.save({"net": tensors}, tmp_path / "net.pth")
        found = load_rvqvae(tmp_path / "net.pth").state_dict()
        assert all(torch.equal(found[name], tensor.float()) for name, tensor in tensors.items())

    @pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
    def test_that_are_not_there(self, tmp_path, name):
        with pytest.raises(UsageFault, match=rf"{name}: expected .*the file does not exist"):
            load_rvqvae(tmp_path / name)

    @pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
    def test_that_are_something_else(self, tmp_path, name):
        (tmp_path / name).write_bytes(b"no net at all, but long enough to look like something" * 9)
        with pytest.raises(DataError, match=name):
            load_rvqvae(tmp_path / name)

    def test_with_tensors_under_another_entry(self, tmp_path):
        torch.save(random_tensors(), tmp_path / "net.pth")
        with pytest.raises(DataError, match="expected a dictionary with weights under 'net'"):
            load_rvqvae(tmp_path / "net.pth")


class TestDamage:
    @given(name=st.sampled_from(sorted(shapes(**TINY))))
    def test_each_missing_tensor_is_named(self, name):
        tensors = dict(NET)
        del tensors[name]
        with pytest.raises(DataError, match=rf"file: .*{name}") as error:
            rvqvae_of(tensors, "file")
        assert "\n" not in str(error.value)

    @given(name=st.sampled_from(sorted(shapes(**TINY))), at_end=st.booleans())
    def test_each_misshapen_tensor_is_named(self, name, at_end):
        tensors = dict(NET)
        tensors[name] = torch.cat([tensors[name]] * 2, dim=-1 if at_end else 0)
        with pytest.raises(DataError) as error:
            rvqvae_of(tensors, "file")
        if name not in {"encoder.model.0.weight", "quantizer.layers.0.codebook"}:  # by these, others look wrong
            assert name in str(error.value)

    @pytest.mark.parametrize("name", ["encoder.model.2.1.model.0.norm1.weight", "decoder.model.9.weight", "step\n"])
    def test_each_tensor_too_much_is_named(self, name):
        with pytest.raises(DataError) as error:
            rvqvae_of(NET | {name: torch.ones(6)}, "file")
        assert f"found 1 unknown ({name!r})" in str(error.value)
        assert "\n" not in str(error.value)

    def test_tensors_without_axes_are_not_taken_for_sizes(self):
        for name in ("encoder.model.0.weight", "encoder.model.2.0.weight", "quantizer.layers.0.codebook"):
            for bad in (torch.tensor(1.0), torch.ones(3), torch.ones(0, 3, 3), torch.ones(2, 0)):
                with pytest.raises(DataError, match=name):
                    rvqvae_of(NET | {name: bad}, "file")

    def test_a_stride_that_no_decoder_undoes(self):
        tensors = dict(NET)
        tensors["encoder.model.2.0.weight"] = torch.ones(6, 6, 6)
        with pytest.raises(DataError, match=r"kernel of 4 in .*, found 6"):
            rvqvae_of(tensors, "file")

    def test_numbers_that_are_not_finite(self):
        tensors = dict(NET)
        tensors["quantizer.layers.1.codebook"] = torch.full((9, 4), math.nan)
        with pytest.raises(DataError, match=r"found NaN or infinite ones in quantizer.layers.1.codebook"):
            rvqvae_of(tensors, "file")

    def test_whole_numbers(self):
        tensors = dict(NET)
        tensors["decoder.model.0.bias"] = tensors["decoder.model.0.bias"].long()
        with pytest.raises(DataError, match=r"torch.int64 in tensor decoder.model.0.bias"):
            rvqvae_of(tensors, "file")

    def test_one_table_without_its_projection(self):
        tensors = dict(NET)
        del tensors["quantizer.layers.2.embedding_proj.weight"], tensors["quantizer.layers.2.embedding_proj.bias"]
        with pytest.raises(DataError, match=r"found 2 missing .quantizer.layers.2.embedding_proj.weight, \S+bias"):
            rvqvae_of(tensors, "file")

    def test_many_at_once_are_counted(self):
        tensors = dict(NET)
        for name in [name for name in tensors if name.startswith("decoder.model.3")]:
            del tensors[name]
        with pytest.raises(
            DataError, match=r"found 14 missing .(decoder.model.3\S+, ){3}decoder.model.3\S+ and 10 more"
        ):
            rvqvae_of(tensors, "file")

    def test_a_name_with_a_large_number_builds_no_large_net(self):
        with pytest.raises(DataError, match="999999999"):
            rvqvae_of(NET | {"quantizer.layers.999999999.codebook": torch.ones(9, 4)}, "file")
