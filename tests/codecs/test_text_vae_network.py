"""The text VAE computes what the original does and what its description says, and is never trained."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from textvae_builders import PARITY, configuration, needs_parity, random_tensors, shapes
from textvae_reference import Reference
from textvae_reference import token_losses as reference_losses
from torch import nn

from omniges.codecs.text_vae.config import TextVaeConfig, text_vae_config
from omniges.codecs.text_vae.network import TextVae, standardised, token_losses
from omniges.codecs.text_vae.tokenizers import IGNORED
from omniges.errors import DataError

pytest.importorskip("transformers", reason="the text VAE needs transformers: pip install 'omniges[text-vae]'")

GOLDEN = ("postnorm_layer", "prenorm_rms")
TOLERANCE = 2e-5  # absolute, float32: that of the golden data

KINDS: dict[str, dict[str, Any]] = {
    "published arrangement": configuration(),
    "rms behind": configuration(vae={"pre_norm": False}),
    "layer norm behind": configuration(vae={"pre_norm": False, "norm_type": "layer_norm"}),
    "layer norm before": configuration(vae={"norm_type": "layer_norm"}),
    "scaled": configuration(vae={"vae_scale": 2.5}),
    "as wide as LLaMA": configuration(vae={"vae_dim": 24}),
    "legacy width": configuration(vae={"vae_dim": 1536, "n_tokens": 2}),
    "a key head each": configuration(num_key_value_heads=6, num_hidden_layers=1),
    "one key head, other base": configuration(num_key_value_heads=1, rope_theta=3.0),
}


def arrays(folder: str, name: str) -> dict[str, torch.Tensor]:
    with np.load(PARITY / folder / f"{name}.npz", allow_pickle=False) as file:
        return {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() <= TOLERANCE)


def model(config: dict[str, Any], seed: int = 0) -> TextVae:
    return TextVae.of_tensors(text_vae_config(config, "config.json"), random_tensors(config, seed), "weights")


def tokens(config: dict[str, Any], seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """T5 tokens (3, 40), longer than all exact distances, of which the second row is an empty text."""
    ids = np.random.default_rng(seed).integers(2, config["t5"]["vocab_size"], (3, 40))
    ids[1] = [1] + [0] * 39
    return torch.from_numpy(ids), torch.tensor([False, True, False])


def latents(config: dict[str, Any], seed: int = 2) -> torch.Tensor:
    vae = config["vae_config"]
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 1, (3, vae["n_tokens"], vae["vae_dim"]))).float()


@needs_parity
@pytest.mark.parametrize("kind", GOLDEN)
class TestGoldenOutputs:
    @pytest.fixture
    def document(self, kind) -> dict[str, Any]:
        return json.loads((PARITY / kind / "config.json").read_text())

    @pytest.fixture
    def vae(self, kind, document) -> TextVae:
        return TextVae.of_tensors(text_vae_config(document, kind), load_file(PARITY / kind / "model.safetensors"), kind)

    def test_names_and_their_order_are_the_originals(self, kind, document, vae):
        names = list(document["parameters"])
        assert list(vae.state_dict()) == names
        assert {name: list(tensor.shape) for name, tensor in vae.state_dict().items()} == document["parameters"]
        again = "encoder.encoder.embed_tokens.weight"  # the second name of one parameter
        assert [name for name, _ in vae.named_parameters()] == [name for name in names if name != again]

    def test_encoding(self, kind, vae):
        golden = arrays(kind, "encode")
        ids, empty = golden["in_t5_ids"], golden["in_empty_prompt"]
        assert close(vae.features(ids), golden["out_t5_features"])
        assert close(standardised(vae.features(ids)), golden["out_t5_standardised"])
        assert close(vae.gathered(ids, empty), golden["out_qformer"])
        assert close(vae.latents(ids, empty), golden["out_latent"])
        assert close(vae.latents(ids, empty, golden["in_uniform"]), golden["out_latent_sampled"])

    def test_encoding_of_another_length(self, kind, vae):
        golden = arrays(kind, "encode")
        ids = golden["in_t5_ids_short"]
        assert close(vae.latents(ids, torch.zeros(len(ids), dtype=torch.bool)), golden["out_latent_short"])

    def test_reading_a_text_after_its_latents(self, kind, vae):
        golden = arrays(kind, "decode")
        logits = vae.logits(golden["in_latent"], golden["in_ids"])
        losses = token_losses(logits, golden["in_labels"])
        assert close(logits, golden["out_logits"])
        assert close(losses.flatten(), golden["out_loss_each"])
        assert close(losses.sum() / (golden["in_labels"][:, 1:] != IGNORED).sum(), golden["out_loss"])

    def test_reading_a_text_without_latents(self, kind, vae):
        golden = arrays(kind, "decode")
        logits = vae.logits(golden["in_latent"][:, :0], golden["in_ids"])
        losses = token_losses(logits, golden["in_labels"])
        assert close(logits, golden["out_logits_no_prefix"])
        assert close(losses.sum() / (golden["in_labels"][:, 1:] != IGNORED).sum(), golden["out_loss_no_prefix"])

    def test_generation_token_by_token(self, kind, vae):
        golden = arrays(kind, "generate")
        assert torch.equal(vae.generated(golden["in_latent"], int(golden["in_max_length"])), golden["out_ids"])


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
class TestAgainstAnIndependentRestatement:
    @pytest.fixture
    def reference(self, config) -> Reference:
        return Reference(config, random_tensors(config))

    def test_latents(self, config, reference):
        ids, empty = tokens(config)
        uniform = torch.from_numpy(np.random.default_rng(5).random(latents(config).shape)).float()
        vae = model(config)
        expected = reference.latents(ids.numpy(), empty.numpy())
        assert np.abs(expected[1] - expected[0]).max() > 0.05
        np.testing.assert_allclose(vae.latents(ids, empty), expected, atol=TOLERANCE, rtol=TOLERANCE)
        expected = reference.latents(ids.numpy(), empty.numpy(), uniform.numpy())
        np.testing.assert_allclose(vae.latents(ids, empty, uniform), expected, atol=TOLERANCE, rtol=TOLERANCE)

    def test_logits_and_losses(self, config, reference):
        given = latents(config)
        ids = torch.from_numpy(np.random.default_rng(3).integers(3, config["vocab_size"], (3, 9)))
        labels = ids.clone()
        labels[1, 4:] = IGNORED
        logits = model(config).logits(given, ids)
        expected = reference.logits(given.numpy(), ids.numpy())
        np.testing.assert_allclose(logits, expected, atol=TOLERANCE, rtol=TOLERANCE)
        losses = reference_losses(expected, labels.numpy())
        np.testing.assert_allclose(token_losses(logits, labels), losses, atol=TOLERANCE, rtol=TOLERANCE)

    def test_generated_tokens(self, config, reference):
        given = latents(config)
        expected, gap = reference.generated(given.numpy(), 20)
        assert gap > 1e-4, "two tokens are too close to tell implementations apart: choose other weights"
        np.testing.assert_array_equal(model(config).generated(given, 20), expected)


class TestGeneration:
    def ending(self) -> tuple[TextVae, torch.Tensor]:
        """A model that ends some texts early, by a large bias towards the end token in what it has read."""
        config = configuration()
        tensors = random_tensors(config)
        tensors["lm_head.weight"][2] *= 2.0
        return TextVae.of_tensors(text_vae_config(config, "c"), tensors, "w"), latents(config).repeat(4, 1, 1) + (
            torch.randn(12, 3, 10, generator=torch.Generator().manual_seed(0))
        )

    def test_texts_end_on_their_own_and_are_filled_with_end_tokens(self):
        vae, given = self.ending()
        together = vae.generated(given, 24)
        lengths = set()
        for row, alone in zip(together, given, strict=True):
            single = vae.generated(alone[None], 24)[0]
            lengths.add(len(single))
            assert torch.equal(row[: len(single)], single)
            assert (row[len(single) :] == 2).all()
            assert (row[:4] == 1).all()
        assert len(lengths) > 2, "the texts were to end at different times"
        assert together.shape[1] == max(lengths)

    @pytest.mark.parametrize("max_length", [4, 5, 9])
    def test_the_limit_counts_latents_and_begin_token(self, max_length):
        vae = model(configuration())
        assert vae.generated(latents(configuration()), max_length).shape == (3, max_length)


class TestFrozen:
    def test_training_mode_cannot_be_switched_on(self):
        whole = nn.Sequential(model(configuration()), nn.Dropout())
        whole.train()
        assert whole[1].training
        assert not any(module.training for module in whole[0].modules())

    def test_no_parameter_has_a_gradient_but_latents_have(self):
        config = configuration()
        vae = model(config)
        given = latents(config).requires_grad_()
        ids = torch.arange(3, 12).reshape(3, 3)
        token_losses(vae.logits(given, ids), ids).sum().backward()
        assert given.grad is not None
        assert given.grad.abs().max() > 0
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in vae.parameters())

    def test_latents_carry_no_graph(self):
        config = configuration()
        assert not model(config).latents(*tokens(config)).requires_grad

    def test_making_one_draws_nothing_from_torchs_generator(self):
        config = configuration()
        tensors, parsed = random_tensors(config), text_vae_config(config, "c")
        before = torch.get_rng_state()
        TextVae.of_tensors(parsed, tensors, "w")
        assert torch.equal(torch.get_rng_state(), before)

    def test_half_precision_files_are_computed_in_float32(self):
        config = configuration()
        halves = {name: tensor.bfloat16() for name, tensor in random_tensors(config).items()}
        vae = TextVae.of_tensors(text_vae_config(config, "c"), halves, "w")
        assert {parameter.dtype for parameter in vae.parameters()} == {torch.float32}
        reference = Reference(config, {name: tensor.float() for name, tensor in halves.items()})
        ids, empty = tokens(config)
        expected = reference.latents(ids.numpy(), empty.numpy())
        np.testing.assert_allclose(vae.latents(ids, empty), expected, atol=TOLERANCE, rtol=TOLERANCE)


class Rationed(Mapping[str, torch.Tensor]):
    """Tensors that are created when they are accessed; knows how many of them were alive at once."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self._tensors, self._given = tensors, list[weakref.ref[torch.Tensor]]()
        self.maximum = 0

    def __getitem__(self, name: str) -> torch.Tensor:
        found = self._tensors[name].clone()
        self._given.append(weakref.ref(found))
        self.maximum = max(self.maximum, sum(given() is not None for given in self._given))
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class TestEnds:
    """Encoding needs no LLaMA and decoding no T5: each direction is loaded alone, and all of it is checked."""

    ONE: tuple[Any, ...] = (frozenset({"encode"}), frozenset({"decode"}))

    @pytest.mark.parametrize("config", KINDS.values(), ids=list(KINDS))
    def test_each_computes_what_the_whole_does(self, config):
        parsed, tensors = text_vae_config(config, "c"), random_tensors(config)
        whole = TextVae.of_tensors(parsed, tensors, "w")
        encoder, decoder = (TextVae.of_tensors(parsed, tensors, "w", ends) for ends in self.ONE)
        assert encoder.fingerprint == decoder.fingerprint == whole.fingerprint
        output = whole.latents(*tokens(config))
        assert torch.equal(encoder.latents(*tokens(config)), output)
        assert torch.equal(decoder.generated(output, 12), whole.generated(output, 12))
        names = [{name for name, _ in vae.named_parameters()} for vae in (encoder, decoder)]
        assert not names[0] & names[1]
        assert names[0] | names[1] == {name for name, _ in whole.named_parameters()}
        assert all(any(name.startswith(net) for net in ("model.", "lm_head.", "input_proj.")) for name in names[1])

    @pytest.mark.parametrize("ends", ONE)
    def test_a_tensor_of_either_end_that_is_wrong_is_refused(self, ends):
        config = configuration()
        for name in ("lm_head.weight", "vae_proj.bias"):
            for damage in (lambda t: t[..., :-1], lambda t: t.long(), lambda t: t * float("inf"), lambda _: None):
                tensors = random_tensors(config)
                damaged = damage(tensors.pop(name))
                tensors |= {} if damaged is None else {name: damaged}
                with pytest.raises(DataError, match=name):
                    TextVae.of_tensors(text_vae_config(config, "c"), tensors, "w", ends)

    @pytest.mark.parametrize("ends", [*ONE, frozenset({"encode", "decode"})])
    def test_files_tensors_are_in_memory_one_after_the_other(self, ends):
        config = configuration()
        tensors = Rationed(random_tensors(config))
        TextVae.of_tensors(text_vae_config(config, "c"), tensors, "w", ends)
        assert tensors.maximum == 2  # the next one comes before the one behind it goes

    def test_what_was_not_loaded_is_not_computed(self):
        config = configuration()
        parsed, tensors = text_vae_config(config, "c"), random_tensors(config)
        encoder, decoder = (TextVae.of_tensors(parsed, tensors, "w", ends) for ends in self.ONE)
        with pytest.raises(RuntimeError, match="expected the networks that encode"):
            decoder.latents(*tokens(config))
        with pytest.raises(RuntimeError, match="expected the networks that decode"):
            encoder.generated(latents(config))


class TestFingerprint:
    @pytest.mark.parametrize("config", KINDS.values(), ids=list(KINDS))
    def test_it_is_that_of_configuration_and_tensors_by_name(self, config):
        parsed, tensors = text_vae_config(config, "c"), random_tensors(config)
        wanted = hashlib.sha256(json.dumps(asdict(parsed), sort_keys=True, separators=(",", ":")).encode())
        for name in sorted(tensors.keys() - {"encoder.encoder.embed_tokens.weight"}):
            head = json.dumps([name, "float32", list(tensors[name].shape)], separators=(",", ":"))
            wanted.update(head.encode() + tensors[name].numpy().tobytes())
        assert TextVae.of_tensors(parsed, tensors, "w").fingerprint == wanted.hexdigest()

    def test_it_is_of_the_model_and_not_of_the_file(self):
        config = configuration()
        tensors = {name: tensor.bfloat16() for name, tensor in random_tensors(config).items()}
        parsed = text_vae_config(config, "c")
        one_table = {n: t.float() for n, t in reversed(tensors.items()) if n != "encoder.shared.weight"}
        found = {TextVae.of_tensors(parsed, given, "w").fingerprint for given in (tensors, one_table)}
        assert len(found) == 1

    @pytest.mark.parametrize("name", ["query", "vae_proj.bias", "lm_head.weight", "encoder.shared.weight"])
    def test_a_single_bit_of_any_weight_changes_it(self, name):
        config = configuration()
        tensors = random_tensors(config)
        before = TextVae.of_tensors(text_vae_config(config, "c"), tensors, "w").fingerprint
        tensors[name].view(torch.int32).flatten()[-1] ^= 1
        assert TextVae.of_tensors(text_vae_config(config, "c"), tensors, "w").fingerprint != before

    def test_a_setting_that_no_tensor_shows_changes_it(self):
        kinds = [configuration(rope_theta=base, vae={"vae_scale": scale}) for base, scale in ((9, 1), (8, 1), (9, 2))]
        assert len({model(config).fingerprint for config in kinds}) == 3


def test_the_published_sizes_give_the_published_counts():
    """v0.5: 555 names, of which two are one tensor, and 1,578,635,392 learned numbers."""
    published = {
        **configuration(),
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32001,
    }
    published["vae_config"] |= {"prompt_size": 1024, "vae_dim": 64, "vae_hidden_size": 1536, "n_tokens": 32}
    del published["t5"]  # flan-T5-large
    config: TextVaeConfig = text_vae_config(published, "c")
    with torch.device("meta"):
        vae = TextVae(config)
    assert len(vae.state_dict()) == 555
    assert sum(parameter.numel() for parameter in vae.parameters()) == 1_578_635_392
    assert shapes(configuration()).keys() == model(configuration()).state_dict().keys()
