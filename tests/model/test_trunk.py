"""The trunk: an independent restatement, left-out streams, gradients, saving, positions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from omniflow_grids import unpatched
from torch import Tensor

from omniges.model.packing import Rounded
from omniges.model.patches import patches
from omniges.model.trunk import JointFlowTransformer, level_features, rotary_angles, rotary_tables, rotate

STREAMS = {
    "gesture": {"inputs": 5, "outputs": 6},
    "text": {"inputs": 3, "outputs": 4, "head_width": 24},
    "audio": {"inputs": 7, "outputs": 2},
}
SIZES = {"gesture": 4, "text": 3, "audio": 6}
BATCH = 3


def randomised(model: JointFlowTransformer, seed: int = 0) -> JointFlowTransformer:
    """The model with random values in every parameter, because zeros would hide errors."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model.eval()


def trunk(**changes: Any) -> JointFlowTransformer:
    return randomised(JointFlowTransformer(**{"streams": STREAMS, "width": 16, "layers": 2, "heads": 2, **changes}))


def inputs(seed: int = 1) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "tokens": {n: torch.randn(BATCH, SIZES[n], s["inputs"], generator=generator) for n, s in STREAMS.items()},
        "levels": {n: torch.rand(BATCH, generator=generator) for n in STREAMS},
        "seconds": {n: torch.rand(SIZES[n], generator=generator) * 3 for n in STREAMS},
    }


def only(given: Mapping[str, Mapping[str, Any]], names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    return {key: {n: value[n] for n in names} for key, value in given.items()}


class Restated:
    """The trunk in plain float64 loops over samples and heads, without fused projections: summed, RMS, rotary."""

    def __init__(self, model: JointFlowTransformer) -> None:
        self.config = model.config
        self.p = {name: value.double() for name, value in model.state_dict().items()}

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.p[f"{name}.weight"].T + self.p[f"{name}.bias"]

    def two_layers(self, x: Tensor, name: str) -> Tensor:
        return self.linear(silu(self.linear(x, f"{name}.linear_1")), f"{name}.linear_2")

    def turn(self, x: Tensor, seconds: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        shortest, longest = self.config["rotary_periods_s"]
        periods = shortest * (longest / shortest) ** (torch.arange(half).double() / max(1, half - 1))
        as_complex = torch.complex(x[:, :half], x[:, half:]) * torch.exp(2j * math.pi * seconds[:, None] / periods)
        return torch.cat([as_complex.real, as_complex.imag], -1)

    def attention(self, projected: list[tuple[Tensor, Tensor, Tensor]], times: Tensor) -> Tensor:
        q, k, v = (torch.cat(parts) for parts in zip(*projected, strict=True))
        heads = []
        for head in range(self.config["heads"]):
            scores = self.turn(q[:, head], times) @ self.turn(k[:, head], times).T / math.sqrt(q.shape[-1])
            heads.append(torch.softmax(scores, -1) @ v[:, head])
        return torch.cat(heads, -1)

    def block(self, h: dict[str, Tensor], c: Tensor, times: Tensor, index: int) -> dict[str, Tensor]:
        parts, projected = {}, []
        for n, x in h.items():
            branch = f"blocks.{index}.branches.{n}"
            parts[n] = self.linear(c, f"{branch}.modulation").chunk(6)
            qkv = self.linear(norm(x) * (1 + parts[n][1]) + parts[n][0], f"{branch}.qkv").chunk(3, -1)
            q, k, v = (part.reshape(len(x), self.config["heads"], -1) for part in qkv)
            weight = self.p[f"{branch}.qk_norm.weight"]
            projected.append((rms_norm(q) * weight[0], rms_norm(k) * weight[1], v))
        joined = self.attention(projected, times).split([len(x) for x in h.values()])
        out = {}
        for (n, x), attended in zip(h.items(), joined, strict=True):
            branch = f"blocks.{index}.branches.{n}"
            _, _, gate, shift, scale, mlp_gate = parts[n]
            y = x + gate * self.linear(attended, f"{branch}.out")
            inner = gelu(self.linear(norm(y) * (1 + scale) + shift, f"{branch}.mlp_in"))
            out[n] = y + mlp_gate * self.linear(inner, f"{branch}.mlp_out")
        return out

    def one(
        self, tokens: dict[str, Tensor], levels: dict[str, Tensor], seconds: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Outputs of one sample: tokens (N, C), levels ()."""
        condition = torch.zeros(self.config["width"]).double()
        frequencies = 10_000.0 ** (-torch.arange(128).double() / 128)
        for n, level in levels.items():
            angles = 1000 * level.double() * frequencies
            condition = condition + self.two_layers(torch.cat([torch.cos(angles), torch.sin(angles)]), f"level.{n}")
        c, times = silu(condition), torch.cat([seconds[n] for n in tokens]).double()
        h = {n: self.linear(x.double(), f"embed.{n}") for n, x in tokens.items()}
        for index in range(self.config["layers"]):
            h = self.block(h, c, times, index)
        out = {}
        for n, x in h.items():
            scale, shift = self.linear(c, f"head.{n}.modulation").chunk(2)
            wide = self.linear(x, f"head.{n}.widen") if f"head.{n}.widen.weight" in self.p else x
            out[n] = self.linear(norm(wide) * (1 + scale) + shift, f"head.{n}.out")
        return out


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def norm(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()


def rms_norm(x: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


class TestRestatement:
    def test_the_default_trunk_is_what_its_equations_say(self):
        model = trunk()
        given = inputs()
        with torch.no_grad():
            found = model(**given)
        reference = Restated(model)
        for b in range(BATCH):
            tokens, levels = ({n: x[b] for n, x in given[key].items()} for key in ("tokens", "levels"))
            for name, expected in reference.one(tokens, levels, given["seconds"]).items():
                torch.testing.assert_close(found[name][b].double(), expected, rtol=1e-4, atol=1e-4)

    def test_level_features_are_cosines_first(self):
        found = level_features(torch.tensor([0.0, 0.25]))
        assert found[0].tolist() == [1.0] * 128 + [0.0] * 128
        assert found[1, 0].item() == pytest.approx(math.cos(250), abs=1e-4)
        assert found[1, 128].item() == pytest.approx(math.sin(250), abs=1e-4)


class TestRotary:
    def test_products_depend_on_time_differences_alone(self):
        q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))

        def product(at: float, other: float) -> float:
            turned = []
            for x, second in ((q, at), (k, other)):
                angles = rotary_angles(torch.tensor([second]), 8, (0.5, 120.0))[None, :, None]
                turned.append(rotate(x, *rotary_tables(angles)))
            return float((turned[0] * turned[1]).sum())

        assert product(1.0, 1.7) == pytest.approx(product(5.0, 5.7), abs=1e-5)
        assert product(1.0, 1.7) != pytest.approx(product(1.7, 1.0), abs=1e-3)

    def test_the_pairs_turn_once_in_the_periods_that_were_given(self):
        angles = rotary_angles(torch.tensor([0.5, 120.0]), 16, (0.5, 120.0))
        assert angles[0, 0].item() == pytest.approx(2 * math.pi)
        assert angles[1, -1].item() == pytest.approx(2 * math.pi, rel=1e-5)

    def test_moving_all_times_changes_nothing_and_moving_one_stream_does(self):
        model, given = trunk(), inputs()
        with torch.no_grad():
            before = model(**given)
            later = model(**given | {"seconds": {n: s + 20 for n, s in given["seconds"].items()}})
            shifted = model(**given | {"seconds": given["seconds"] | {"text": given["seconds"]["text"] + 0.3}})
        torch.testing.assert_close(later["gesture"], before["gesture"], rtol=0, atol=1e-4)
        assert (shifted["gesture"] - before["gesture"]).abs().max() > 1e-3

    def test_times_may_differ_between_samples(self):
        model, given = trunk(), inputs()
        own = {n: s[None].repeat(BATCH, 1) for n, s in given["seconds"].items()}
        with torch.no_grad():
            torch.testing.assert_close(model(**given | {"seconds": own})["text"], model(**given)["text"])

    def test_they_are_needed(self):
        given = inputs()
        with pytest.raises(ValueError, match="pass seconds"):
            trunk()(given["tokens"], given["levels"])


class TestLeftOutStreams:
    @pytest.mark.parametrize("conditioning", ["summed", "split"])
    @pytest.mark.parametrize("qk_norm", ["layer", "rms", None])
    @pytest.mark.parametrize("names", [("gesture", "text"), ("text", "audio"), ("audio",)])
    def test_leaving_out_equals_the_masked_dense_computation(self, names, qk_norm, conditioning):
        model, given = trunk(qk_norm=qk_norm, conditioning=conditioning), inputs()
        present = {n: torch.full((BATCH,), n in names) for n in STREAMS}
        with torch.no_grad():
            sparse = model(**only(given, names))
            dense = model(**given, packed=Rounded(present))
        assert sparse.keys() == set(names)
        for name in names:
            torch.testing.assert_close(sparse[name], dense[name], rtol=0, atol=2e-5)

    def test_samples_of_a_batch_may_lack_different_streams(self):
        model, given = trunk(), inputs()
        present = {"text": torch.tensor([True, False, True]), "audio": torch.tensor([False, True, True])}
        with torch.no_grad():
            dense = model(**given, packed=Rounded(present))
            for b, names in enumerate([("gesture", "text"), ("gesture", "audio"), ("gesture", "text", "audio")]):
                one = only(given, names)
                one["tokens"] = {n: x[b : b + 1] for n, x in one["tokens"].items()}
                one["levels"] = {n: x[b : b + 1] for n, x in one["levels"].items()}
                torch.testing.assert_close(model(**one)["gesture"][0], dense["gesture"][b], rtol=0, atol=2e-5)

    def test_what_an_absent_stream_holds_has_no_influence(self):
        model, given = trunk(), inputs()
        other = inputs(seed=9)
        present = {"text": torch.zeros(BATCH, dtype=torch.bool)}
        changed = {k: {**given[k], "text": other[k]["text"]} for k in ("tokens", "levels")}
        with torch.no_grad():
            before, after = model(**given, packed=Rounded(present)), model(**given | changed, packed=Rounded(present))
        assert torch.equal(before["gesture"], after["gesture"])

    def test_rows_pick_outputs(self):
        model, given = trunk(), inputs()
        with torch.no_grad():
            every, some = model(**given), model(**given, rows={"audio": torch.tensor([2, 0])})
        assert some.keys() == {"audio"}
        torch.testing.assert_close(some["audio"], every["audio"][[2, 0]])


class TestLevelsOfTokens:
    @pytest.mark.parametrize("conditioning", ["summed", "split"])
    def test_equal_levels_of_all_tokens_are_the_level_of_the_sample(self, conditioning):
        model, given = trunk(conditioning=conditioning), inputs()
        each = {n: level[:, None].expand(-1, SIZES[n]) for n, level in given["levels"].items()}
        with torch.no_grad():
            of_samples, of_tokens = model(**given), model(**given | {"levels": each})
        for name, expected in of_samples.items():
            torch.testing.assert_close(of_tokens[name], expected, rtol=0, atol=2e-5)

    def test_a_tokens_level_modulates_that_token(self):
        """Without blocks, the output of a token depends only on its own level and on the mean of the other streams."""
        model, given = trunk(layers=0), inputs()
        levels = {n: level[:, None].repeat(1, SIZES[n]) for n, level in given["levels"].items()}
        levels["audio"][:, 2] = 0.9
        with torch.no_grad():
            before, after = model(**given), model(**given | {"levels": levels})
        changed = (after["audio"] - before["audio"]).abs().amax(dim=(0, 2)) > 1e-3
        assert changed.tolist() == [n == 2 for n in range(SIZES["audio"])]
        with torch.no_grad():
            alone = model(**only(given, ("audio",)) | {"levels": {"audio": torch.full((BATCH,), 0.9)}})
            mixed = model(**only(given, ("audio",)) | {"levels": {"audio": levels["audio"]}})
        torch.testing.assert_close(mixed["audio"][:, 2], alone["audio"][:, 2])


class TestConditions:
    def test_the_speaker_matters_and_none_given_is_unknown(self):
        model, given = trunk(speakers=2), inputs()
        with torch.no_grad():
            none = model(**given)["gesture"]
            zero = model(**given, speakers=torch.zeros(BATCH, dtype=torch.int64))["gesture"]
            two = model(**given, speakers=torch.full((BATCH,), 2))["gesture"]
        assert torch.equal(none, zero)
        assert (two - zero).abs().max() > 1e-2

    @pytest.mark.parametrize(("conditioning", "reaches"), [("summed", True), ("split", False)])
    def test_split_vectors_stay_with_their_stream(self, conditioning, reaches):
        """The first block's modulation keeps them apart; attention carries levels between streams in both modes."""
        model = trunk(conditioning=conditioning)
        given = inputs()
        args = (list(STREAMS), given["levels"], {}, None, None, None)
        changed = (list(STREAMS), given["levels"] | {"text": torch.rand(BATCH)}, {}, None, None, None)
        before, after = model._conditions(*args), model._conditions(*changed)
        assert (not torch.equal(before["gesture"], after["gesture"])) == reaches
        assert not torch.equal(before["text"], after["text"])


class TestLearning:
    @pytest.mark.parametrize("qk_norm", ["layer", "rms", None])
    @pytest.mark.parametrize("positions", [{}, {"rotary_periods_s": None, "pooled_width": 4, "context_only": ["text"]}])
    def test_gradients_reach_every_parameter(self, qk_norm, positions):
        model, given = trunk(qk_norm=qk_norm, speakers=2, **positions), inputs()
        pooled = torch.randn(BATCH, 4) if positions else None
        outputs = model(**given, pooled=pooled, speakers=torch.arange(BATCH))
        sum(output.square().mean() for output in outputs.values()).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name

    def test_a_new_trunk_gives_zeros_and_learns_from_the_first_step(self):
        model, given = JointFlowTransformer(streams=STREAMS, width=16, layers=2, heads=2), inputs()
        outputs = model(**given)
        assert all(not output.any() for output in outputs.values())
        sum((output - 1).square().mean() for output in outputs.values()).backward()
        assert all(model.head[name].out.weight.grad.abs().max() > 0 for name in STREAMS)

    def test_checkpointing_changes_no_gradient(self):
        given = inputs()
        gradients = []
        for checkpointing in (False, True):
            model = trunk().train()
            if checkpointing:
                model.gradient_checkpointing = True
            sum(output.square().mean() for output in model(**given).values()).backward()
            gradients.append([parameter.grad for parameter in model.parameters()])
        for plain, recomputed in zip(*gradients, strict=True):
            assert torch.equal(plain, recomputed)

    @pytest.mark.parametrize("changes", [{}, {"rotary_periods_s": None, "qk_norm": "layer", "context_only": ["text"]}])
    def test_it_is_kept_and_found_again_as_safetensors_and_json(self, tmp_path, changes):
        model = trunk(speakers=3, **changes)
        model.save_pretrained(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
        again = JointFlowTransformer.from_pretrained(tmp_path)
        given = inputs()
        for name, value in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], value), name
        with torch.no_grad():
            torch.testing.assert_close(again(**given)["audio"], model(**given)["audio"])

    def test_bfloat16_stays_near(self):
        model, given = trunk(), inputs()
        with torch.no_grad():
            exact = model(**given)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                rough = model(**given)
        for name, expected in exact.items():
            assert (rough[name].float() - expected).abs().max() < 0.1 * expected.abs().max()

    @pytest.mark.slow
    def test_it_is_one_graph_without_breaks(self):
        """Traced by torch.compile's front end; nothing in it depends on data or asks for a value."""
        model, given = trunk(), inputs()
        explained = torch.compile(model, backend="eager", fullgraph=True)
        with torch.no_grad():
            torch.testing.assert_close(explained(**given)["text"], model(**given)["text"])


class TestPatches:
    def test_a_linear_layer_on_patches_is_the_strided_convolution(self):
        latents, weight = torch.randn(2, 3, 4, 6), torch.randn(8, 3, 2, 2)
        expected = torch.nn.functional.conv2d(latents, weight, stride=2).flatten(2).mT
        torch.testing.assert_close(patches(latents, 2) @ weight.flatten(1).T, expected)

    def test_unpatched_has_the_channel_fastest(self):
        tokens = torch.arange(2 * 3 * 8.0).reshape(1, 6, 8)
        found = unpatched(tokens, 2, 2)
        assert found.shape == (1, 2, 4, 6)
        for h, w, p, q, c in np.ndindex(2, 3, 2, 2, 2):
            assert found[0, c, 2 * h + p, 2 * w + q] == tokens[0, 3 * h + w, 4 * p + 2 * q + c]
