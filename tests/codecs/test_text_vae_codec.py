"""A text VAE is loaded whole, from either layout, or refused with the tensor, key or file that is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from textvae_builders import (
    PARITY,
    checkpoint_folder,
    configuration,
    needs_parity,
    own_folder,
    random_tensors,
    safe,
    shapes,
    write_tokenizers,
)
from torch import nn

from omniges.codecs.text_vae.codec import TextCodec, find_text_vae, load_text_vae
from omniges.codecs.text_vae.config import text_vae_config
from omniges.codecs.text_vae.network import token_losses
from omniges.errors import DataError

transformers = pytest.importorskip(
    "transformers", reason="the text VAE needs transformers: pip install 'omniges[text-vae]'"
)

CONFIG = configuration()
TEXTS = ["hello the world", "", "the end"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return own_folder(tmp_path_factory.mktemp("vae") / "own", CONFIG, random_tensors(CONFIG))


@pytest.fixture(scope="module")
def codec(folder) -> TextCodec:
    return TextCodec.load(folder)


def refusal(folder: Path) -> str:
    """The one line with which a folder is refused."""
    with pytest.raises(DataError) as caught:
        TextCodec.load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestLayouts:
    @pytest.mark.parametrize("pickled", [True, False])
    def test_a_checkpoint_and_an_own_folder_are_the_same_codec(self, tmp_path, codec, pickled):
        nested = TextCodec.load(checkpoint_folder(tmp_path / "c", CONFIG, random_tensors(CONFIG), pickled=pickled))
        assert nested.fingerprint == codec.fingerprint
        assert torch.equal(nested.encode(TEXTS).latents, codec.encode(TEXTS).latents)

    def test_one_name_of_the_tied_table_is_enough_and_either_will_do(self, tmp_path, codec):
        for name in ("encoder.shared.weight", "encoder.encoder.embed_tokens.weight"):
            tensors = random_tensors(CONFIG)
            del tensors[name]
            assert TextCodec.load(own_folder(tmp_path / name, CONFIG, tensors)).fingerprint == codec.fingerprint

    def test_t5s_tokenizer_may_be_elsewhere(self, tmp_path, codec):
        checkpoint = checkpoint_folder(tmp_path / "c", CONFIG, random_tensors(CONFIG))
        (checkpoint / "t5_tokenizer").rename(tmp_path / "flan")
        assert (
            "t5_tokenizer/tokenizer.json: expected the tokenizer of the text VAE, found that the file does not exist"
            in refusal(checkpoint)
        )
        assert TextCodec.load(checkpoint, t5_tokenizer=tmp_path / "flan").fingerprint == codec.fingerprint

    def test_other_tensors_of_the_transformer_are_left_alone(self, tmp_path):
        files = find_text_vae(checkpoint_folder(tmp_path / "c", CONFIG, random_tensors(CONFIG)))
        assert load_text_vae(files).state_dict().keys() == shapes(CONFIG).keys()

    @needs_parity
    @pytest.mark.parametrize("kind", ["postnorm_layer", "prenorm_rms"])
    def test_golden_weights_through_a_pickled_checkpoint(self, tmp_path, kind):
        config = json.loads((PARITY / kind / "config.json").read_text())
        tensors = load_file(PARITY / kind / "model.safetensors")
        loaded = load_text_vae(find_text_vae(checkpoint_folder(tmp_path / "c", config, tensors)))
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in loaded.state_dict().items())


class TestCodec:
    def test_latents_are_a_texts_own_and_do_not_hang_on_the_batch(self, codec):
        together = codec.encode(TEXTS)
        assert together.latents.shape == (3, *codec.latent_shape)
        assert together.cut == together.unknown == (False, False, False)
        for text, latents in zip(TEXTS, together.latents, strict=True):
            torch.testing.assert_close(codec.encode([text]).latents[0], latents, atol=1e-5, rtol=0)

    def test_texts_that_do_not_go_in_whole_are_said(self, codec):
        found = codec.encode(["the " * 80, "the 你好", "the"])
        assert found.cut == (True, False, False)
        assert found.unknown == (False, True, False)

    def test_a_read_text_is_judged_by_its_own_tokens(self, codec):
        latents = codec.encode(TEXTS).latents
        logits, labels = codec.logits(latents, TEXTS)
        losses = token_losses(logits, labels)
        alone = [token_losses(*codec.logits(latents[k : k + 1], TEXTS[k : k + 1])).sum() for k in range(3)]
        torch.testing.assert_close(losses.sum(dim=1), torch.stack(alone), atol=1e-4, rtol=0)

    def test_a_text_that_cannot_be_read_whole_is_refused(self, codec):
        with pytest.raises(DataError, match=r"text 'hello hello .*expected at most 77 tokens, found more"):
            codec.logits(torch.zeros(1, *codec.latent_shape), ["hello " * 40])

    def test_it_speaks_what_it_was_taught(self, tmp_path):
        """LLaMA's head is set so that each token is followed by the next one of a text, whatever the latents are."""
        config = configuration(hidden_size=288, num_attention_heads=6, vocab_size=280)
        tensors = {
            n: torch.zeros_like(t) if n.startswith("model.layers") else t for n, t in random_tensors(config).items()
        }
        tensors["model.embed_tokens.weight"] = torch.eye(280, 288)
        tensors["model.norm.weight"] = torch.ones(288)
        head = torch.zeros(280, 288)
        spoken = [1, 259, 260, 266, 262]  # "<s>", "▁", "h", …: the first letters of a text, each number once
        for token, following in zip(spoken, [*spoken[1:], 2], strict=True):
            head[following, token] = 1.0
        tensors["lm_head.weight"] = head
        codec = TextCodec.load(own_folder(tmp_path / "v", config, tensors))
        (found,) = codec.decode(torch.zeros(1, *codec.latent_shape))
        letters = [*"▁helowrd", "he", "ll", "▁w"]
        assert found.text == "".join(letters[k - 259] for k in spoken[1:]).replace("▁", " ").removeprefix(" ")
        assert found.ended
        (short,) = codec.decode(torch.zeros(1, *codec.latent_shape), max_length=6)
        assert not short.ended
        assert found.text.startswith(short.text)

    def test_whatever_holds_it_neither_saves_nor_trains_it(self, codec):
        class Holder(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.codec = codec
                self.own = nn.Linear(2, 2)

        assert set(Holder().state_dict()) == {"own.weight", "own.bias"}
        assert len(list(Holder().parameters())) == 2

    @pytest.mark.parametrize("part", ["t5_tokenizer", "vae_tokenizer"])
    def test_another_tokenizer_is_another_codec(self, tmp_path, codec, part):
        folder = own_folder(tmp_path / "v", CONFIG, random_tensors(CONFIG))
        path = folder / part / "tokenizer.json"
        path.write_text(path.read_text() + "\n")
        assert TextCodec.load(folder).fingerprint != codec.fingerprint


class TestDamagedTensors:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", [n for n in shapes(CONFIG) if "embed_tokens" not in n and "shared" not in n][::9])
    @pytest.mark.parametrize("damage", ["missing", "misshapen", "extra", "whole numbers"])
    def test_a_single_wrong_tensor_is_named(self, tmp_path, name, damage):
        tensors = random_tensors(CONFIG)
        tensor = tensors.pop(name)
        if damage == "misshapen":
            tensors[name] = tensor[..., :-1].clone()
        elif damage == "whole numbers":
            tensors[name] = tensor.long()
        elif damage == "extra":
            tensors |= {name: tensor, f"{name}.again": tensor.clone()}
        text = refusal(own_folder(tmp_path / "v", CONFIG, tensors))
        assert name in text
        assert "model.safetensors" in text

    def test_a_weight_that_is_no_number(self, tmp_path):
        tensors = random_tensors(CONFIG)
        tensors["vae_proj.bias"][3] = float("nan")
        assert "found NaN or infinite ones in vae_proj.bias" in refusal(own_folder(tmp_path / "v", CONFIG, tensors))

    def test_a_lost_layer_is_no_smaller_model(self, tmp_path):
        for lost in (
            "model.layers.1.",
            "qformer.encoder.layer.5.",
            "qformer.encoder.layer.4.cross",
            "encoder.encoder.block.1.",
        ):
            tensors = {n: t for n, t in random_tensors(CONFIG).items() if not n.startswith(lost)}
            text = refusal(own_folder(tmp_path / lost, CONFIG, tensors))
            assert " missing (" in text
            assert lost in text

    @pytest.mark.parametrize("change", [lambda table: table + 1, lambda table: table.bfloat16()])
    def test_two_different_tables_under_the_names_of_one(self, tmp_path, change):
        tensors = random_tensors(CONFIG)
        tensors["encoder.shared.weight"] = change(tensors["encoder.shared.weight"])
        assert "to be equal, found a difference" in refusal(own_folder(tmp_path / "v", CONFIG, tensors))

    def test_a_checkpoint_without_its_text_vae(self, tmp_path):
        folder = checkpoint_folder(tmp_path / "c", CONFIG, {})
        assert "saved without its text VAE" in refusal(folder)

    @pytest.mark.parametrize("pickled", [True, False])
    def test_a_file_cut_short(self, tmp_path, pickled):
        folder = checkpoint_folder(tmp_path / "c", CONFIG, random_tensors(CONFIG), pickled=pickled)
        (path,) = (folder / "transformer").iterdir()
        path.write_bytes(path.read_bytes()[:-1000])
        assert str(path) in refusal(folder)

    def test_a_pickled_object(self, tmp_path):
        folder = checkpoint_folder(tmp_path / "c", CONFIG, random_tensors(CONFIG))
        torch.save({"text_decoder.query": Path("x")}, folder / "transformer" / "diffusion_pytorch_model.bin")
        assert "Python object" in refusal(folder)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": 48}, "as in model.embed_tokens.weight of "),
    ({"vocab_size": 299}, "as in model.embed_tokens.weight of "),
    ({"intermediate_size": 21}, "as in model.layers.0.mlp.gate_proj.weight of "),
    ({"num_hidden_layers": 3}, "missing (model.layers.2."),
    ({"num_hidden_layers": 1}, "unknown (model.layers.1."),
    ({"num_key_value_heads": 3}, "found torch.float32 of shape [8, 24]"),
    ({"num_attention_heads": 5}, "num_attention_heads: expected heads"),
    ({"head_dim": 8}, "head_dim: expected hidden_size / num_attention_heads"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "expected rotary positions without scaling"),
    ({"rope_parameters": {"rope_type": "yarn"}}, "expected rotary positions without scaling"),
    ({"attention_bias": True}, "attention_bias: expected false"),
    ({"tie_word_embeddings": True}, "tie_word_embeddings: expected false"),
    ({"hidden_act": "gelu"}, 'hidden_act: expected "silu"'),
    ({"eos_token_id": [2, 3]}, "eos_token_id: expected a whole number"),
    ({"eos_token_id": 300}, "vocab_size: expected room"),
    ({"rms_norm_eps": float("nan")}, "NaN is no JSON number"),
    ({"rms_norm_eps": None}, "rms_norm_eps: expected a number above 0"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected 1.0"),
    ({"vae_config": 5}, "vae_config: expected an object"),
]
WRONG_VAE: list[tuple[dict[str, Any], str]] = [
    ({"vae_dim": 11}, "as in vae_proj.bias of "),
    ({"n_tokens": 4}, "as in query of "),
    ({"vae_hidden_size": 36}, "as in query of "),
    ({"vae_hidden_size": 25}, "vae_config.vae_hidden_size: expected a multiple of 12"),
    ({"prompt_size": 24}, "as in encoder.encoder.final_layer_norm.weight of "),
    ({"pre_norm": False}, "as in q_norm.weight of "),
    ({"pre_norm": 1}, "vae_config.pre_norm: expected true or false"),
    ({"norm_type": "layer_norm"}, "unknown (q_norm.weight"),
    ({"norm_type": "group_norm"}, "vae_config.norm_type: expected one of layer_norm, rms_norm"),
    ({"vae_scale": 0}, "vae_config.vae_scale: expected a number above 0"),
    ({"vae_scale": True}, "vae_config.vae_scale: expected"),
    ({"n_tokens": "3"}, "vae_config.n_tokens: expected a whole number"),
    ({"sampling": 0.1}, "vae_config.sampling: expected"),
]


class TestWrongConfigurations:
    def text(self, tmp_path: Path, config: dict[str, Any]) -> str:
        found = refusal(own_folder(tmp_path / "v", config, random_tensors(CONFIG)))
        assert found.startswith(str(tmp_path))
        return found

    @pytest.mark.parametrize(("change", "expected"), WRONG, ids=lambda value: str(value)[:50])
    def test_of_llama(self, tmp_path, change, expected):
        assert expected in self.text(tmp_path, CONFIG | change)

    @pytest.mark.parametrize(("change", "expected"), WRONG_VAE, ids=lambda value: str(value)[:50])
    def test_of_the_vae(self, tmp_path, change, expected):
        assert expected in self.text(tmp_path, CONFIG | {"vae_config": CONFIG["vae_config"] | change})

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({"relative_attention_max_distance": 64}, "expected 128, the only value that is implemented"),
            ({"layer_norm_epsilon": 1e-5}, "expected 1e-06"),
            ({"feed_forward_proj": "relu"}, 'expected "gated-gelu"'),
            ({"dense_act_fn": "silu"}, 'expected "gelu_new"'),
            ({"is_gated_act": 1}, "expected true"),
            ({"model_type": "mt5"}, 'expected "t5"'),
        ],
    )
    def test_of_t5_whatever_no_tensor_tells(self, tmp_path, change, expected):
        found = self.text(tmp_path, CONFIG | {"t5": CONFIG["t5"] | change})
        (key,) = change
        assert f"t5.{key}: expected" in found
        assert expected in found

    @pytest.mark.parametrize("part", ["", "t5", "qformer"])
    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("sliding_window", 4),
            ("quantization_config", {"bits": 4}),
            ("pruned_heads", {"0": [1]}),
            ("logit_scale", 2.0),
        ],
    )
    def test_a_key_that_is_not_read_is_refused(self, tmp_path, part, key, value):
        entry = CONFIG.get(part, {}) if part else CONFIG
        changed = entry | {key: value}
        found = self.text(tmp_path, CONFIG | {part: changed} if part else changed)
        assert f"{part}{'.' if part else ''}{key}: expected no key of this name" in found
        assert "because omniges does not use its value" in found

    def test_keys_that_transformers_writes_are_known(self):
        llama = transformers.LlamaConfig(rope_theta=CONFIG["rope_theta"]).to_dict()
        t5 = transformers.T5Config(feed_forward_proj="gated-gelu").to_dict()
        sizes = {"head_dim", "model_type"}  # own ones
        document = {key: value for key, value in llama.items() if key not in sizes} | CONFIG
        document["t5"] = {key: value for key, value in t5.items() if key not in sizes} | CONFIG["t5"]
        assert text_vae_config(document, "config.json") == text_vae_config(CONFIG, "config.json")

    @pytest.mark.parametrize("change", [{"hidden_act": "relu"}, {"num_hidden_layers": 12}, {"layer_norm_eps": 1e-5}])
    def test_of_the_q_former(self, tmp_path, change):
        (key,) = change
        assert f"qformer.{key}: expected" in self.text(tmp_path, CONFIG | {"qformer": change})

    @pytest.mark.parametrize("key", list(CONFIG["vae_config"]))
    def test_every_key_of_the_vae_is_needed_where_there_is_one(self, tmp_path, key):
        entry = {name: value for name, value in CONFIG["vae_config"].items() if name != key}
        assert f"vae_config.{key}: expected this key, found that it is missing" in self.text(
            tmp_path, CONFIG | {"vae_config": entry}
        )

    @pytest.mark.parametrize(
        "key", ["hidden_size", "num_key_value_heads", "rms_norm_eps", "rope_theta", "bos_token_id"]
    )
    def test_keys_of_llama_are_needed(self, tmp_path, key):
        text = self.text(tmp_path, {name: value for name, value in CONFIG.items() if name != key})
        assert f"{key}: expected this key, found that it is missing" in text

    def test_without_an_entry_the_originals_defaults_hold(self, tmp_path):
        text = self.text(tmp_path, {name: value for name, value in CONFIG.items() if name != "vae_config"})
        assert "expected vae_config.n_tokens 3 as in query of " in text

    def test_without_sizes_of_t5_it_is_flan_t5_large(self, tmp_path):
        text = self.text(tmp_path, {name: value for name, value in CONFIG.items() if name != "t5"})
        assert "as in the T5 encoder (its entry t5, or flan-T5-large) of " in text

    def test_rotary_positions_as_newer_files_write_them(self, tmp_path, codec):
        config = {n: v for n, v in CONFIG.items() if not n.startswith("rope")}
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": CONFIG["rope_theta"]}
        assert (
            TextCodec.load(own_folder(tmp_path / "v", config, random_tensors(CONFIG))).fingerprint == codec.fingerprint
        )

    @pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
    def test_what_is_no_configuration(self, tmp_path, content):
        folder = own_folder(tmp_path / "v", CONFIG, random_tensors(CONFIG))
        (folder / "config.json").write_bytes(content)
        assert str(folder / "config.json") in refusal(folder)


class TestMissingFiles:
    def test_an_empty_folder(self, tmp_path):
        assert "found neither text_vae/config.json nor config.json" in refusal(tmp_path)

    def test_a_checkpoint_without_weights(self, tmp_path):
        folder = checkpoint_folder(tmp_path / "c", CONFIG, random_tensors(CONFIG))
        (folder / "transformer" / "diffusion_pytorch_model.bin").unlink()
        assert (
            "expected transformer/diffusion_pytorch_model.safetensors or .bin with the text VAE's weights"
            in refusal(folder)
        )

    def test_an_own_folder_without_weights(self, tmp_path):
        write_tokenizers(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps(CONFIG))
        assert "model.safetensors" in refusal(tmp_path)

    def test_weights_under_the_prefix_in_an_own_folder(self, tmp_path):
        folder = own_folder(tmp_path / "v", CONFIG, random_tensors(CONFIG))
        safe({f"text_decoder.{n}": t for n, t in random_tensors(CONFIG).items()}, folder / "model.safetensors")
        assert " missing (" in refusal(folder)


@pytest.mark.slow
def test_without_transformers_there_is_one_line_with_the_way_out(folder):
    script = (
        "import sys; sys.modules['transformers'] = None\n"
        "from pathlib import Path\n"
        "from omniges.errors import EnvironmentFault\n"
        "from omniges.codecs.text_vae.codec import TextCodec\n"
        "try:\n"
        "    TextCodec.load(Path(sys.argv[1]))\n"
        "except EnvironmentFault as fault:\n"
        "    print(fault); sys.exit(fault.exit_code)\n"
    )
    run = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (3, "")
    assert run.stdout == (
        "the text VAE: expected the package transformers, found that it is not installed; run pip install "
        "'omniges[text-vae]'\n"
    )
