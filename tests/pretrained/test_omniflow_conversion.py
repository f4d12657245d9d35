"""Converted OmniFlow checkpoints: golden outputs, a restatement of the reference, status of tensors, the same bits."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flow_builders import statistics
from omniflow_checkpoints import Given, Reference, Tiny, averages_of, parameter_shapes, tensors_of, write_folder
from omniflow_grids import grid_embedding, table, unpatched
from pipeline_helpers import scripted
from safetensors.torch import load_file
from torch import Tensor

from omniges.errors import DataError, UsageFault
from omniges.model.patches import patches
from omniges.model.spec import build_model
from omniges.model.trunk import JointFlowTransformer
from omniges.pretrained.architecture import parameters, read_architecture, tables
from omniges.pretrained.convert import convert, read_converted
from omniges.pretrained.initialize import config_over_tokens
from omniges.pretrained.tensors import Tensors
from omniges.pretrained.trunk import conversion_statuses, convert_tensor, read_omniflow, rules, trunk_config
from omniges.pretrained.trunk import parameter_shapes as shapes_of_trunk

SHARED = Path(os.environ.get("OMNIGES_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "omniflow_parity"
PARITY = SHARED / "qknorm_layer"
needs_parity = pytest.mark.skipif(
    not PARITY.is_dir(), reason=f"no golden data at {PARITY} (set OMNIGES_SHARED to where they are)"
)
CASES = sorted(path.stem for path in PARITY.glob("case_*.npz"))
TOLERANCE = 5e-5

KINDS = {
    "layer": Tiny(),
    "rms": Tiny(qk_norm="rms"),
    "none": Tiny(qk_norm=None),
    "dual": Tiny(qk_norm="rms", dual=(0,)),
    "dual to the end": Tiny(qk_norm="rms", dual=(0, 1), layers=2),
    "wide text latents": Tiny(text_outputs=24),
    "one block": Tiny(qk_norm="rms", layers=1),
    "with the text VAE": Tiny(qk_norm="rms", dual=(0,), layers=3, nested=True),
}


def complete_trunk(source: Any) -> JointFlowTransformer:
    """Return the trunk with all three streams of OmniFlow, in evaluation mode, float32 on the CPU."""
    model: JointFlowTransformer = JointFlowTransformer(**source.config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(source.read(name))
    model.eval()
    return model


def golden_of(case: str) -> dict[str, Tensor]:
    return {k: torch.from_numpy(v) for k, v in np.load(PARITY / f"{case}.npz", allow_pickle=False).items()}


def golden_inputs(
    golden: Mapping[str, Tensor], flags: Mapping[str, bool]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    tokens, levels = {}, {}
    if not flags.get("drop_image"):
        tokens["image"] = patches(golden["in_hidden_states"], 2)
        levels["image"] = golden["in_timestep"] / 1000
    if not flags.get("drop_text"):
        tokens["text"] = golden["in_encoder_hidden_states"]
    if flags["use_text_output"]:
        levels["text"] = golden["in_timestep_text"] / 1000
    if not flags.get("drop_audio"):
        given = not flags.get("_no_audio")  # the reference then takes zeros at level 0
        tokens["audio"] = patches(golden["in_audio_hidden_states"] if given else torch.zeros(2, 8, 256, 16), 2)
        levels["audio"] = golden["in_timestep_audio"] / 1000 * given
    return tokens, levels


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint, converted."""
    out = tmp_path_factory.mktemp("golden") / "converted"
    convert(PARITY, out)
    return out


@pytest.fixture(scope="module")
def real() -> dict[str, Any]:
    """Names and shapes of the published size, with its config."""
    found: dict[str, Any] = json.loads((SHARED / "real_size_params.json").read_text())
    return found


@needs_parity
class TestGoldenOutputs:
    @pytest.mark.parametrize("case", CASES)
    def test_every_case_from_the_converted_folder_to_5e_5(self, case: str, converted: Path) -> None:
        source = read_converted(converted)
        golden, flags = golden_of(case), json.loads((PARITY / f"{case}.json").read_text())
        model = complete_trunk(source)
        model.summed = not flags["split_cond"]
        tokens, levels = golden_inputs(golden, flags)
        added = {"image": table(source, "image", 4, 6), "audio": table(source, "audio", 128, 8)}
        with torch.no_grad():
            found = model(
                tokens,
                levels,
                added={name: x for name, x in added.items() if name in tokens},
                pooled=golden["in_pooled_projections"],
            )
        got = {f"out_{name}": output for name, output in found.items()}
        for name, rows in (("image", 4), ("audio", 128)):
            if name in found:
                got[f"out_{name}"] = unpatched(found[name], rows, 2)
        expected = {name for name in golden if name.startswith("out_")}
        assert got.keys() == expected
        for name in expected:
            torch.testing.assert_close(got[name], golden[name], rtol=0, atol=TOLERANCE)

    def test_three_streams_from_tokens_to_the_last_norm(self, converted: Path) -> None:
        """The reference's tokens of text and audio give its normed states, without image patches and tables."""
        source, golden = read_converted(converted), golden_of("case_all_summed")
        config: dict[str, Any] = json.loads(json.dumps(dict(source.config)))
        config["streams"]["image"] = {"inputs": 32, "outputs": 32}
        model = JointFlowTransformer(**config).eval()
        state = {name: source.read(name) for name in source.shapes}
        identity = {"weight": torch.eye(32), "bias": torch.zeros(32)}
        state |= {f"{part}.{key}": x for part in ("embed.image", "head.image.out") for key, x in identity.items()}
        model.load_state_dict(state)
        tokens, levels = golden_inputs(golden, {"use_text_output": True})
        tokens["image"] = golden["mid_image_tokens"]
        with torch.no_grad():
            found = model(
                tokens, levels, added={"audio": table(source, "audio", 128, 8)}, pooled=golden["in_pooled_projections"]
            )
        for name, expected in (("image", "mid_image_normed"), ("text", "out_text")):
            torch.testing.assert_close(found[name], golden[expected], rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(unpatched(found["audio"], 128, 2), golden["out_audio"], rtol=0, atol=TOLERANCE)

    def test_tables_are_the_crops_of_the_saved_ones(self) -> None:
        saved = load_file(PARITY / "diffusion_pytorch_model.safetensors")
        image = saved["pos_embed.pos_embed"].reshape(12, 12, 32)[4:8, 3:9].reshape(-1, 32)
        audio = saved["audio_embedder.pos_embed"].reshape(192, 192, 32)[32:160, 92:100].reshape(-1, 32)
        torch.testing.assert_close(grid_embedding(4, 6, side=12, base=8, width=32), image, rtol=0, atol=5e-6)
        torch.testing.assert_close(grid_embedding(128, 8, side=192, base=128, width=32), audio, rtol=0, atol=5e-6)

    def test_the_restatement_computes_what_the_original_did(self) -> None:
        """Other kinds of checkpoints are tested by this restatement, so it is compared with the original."""
        golden = golden_of("case_all_summed")
        given = Given(
            image=golden["in_hidden_states"],
            audio=golden["in_audio_hidden_states"],
            text=golden["in_encoder_hidden_states"],
            pooled=golden["in_pooled_projections"],
            times={
                "image": golden["in_timestep"],
                "text": golden["in_timestep_text"],
                "audio": golden["in_timestep_audio"],
            },
        )
        found = Reference(load_file(PARITY / "diffusion_pytorch_model.safetensors"), heads=2)(given)
        for name, x in found.items():
            torch.testing.assert_close(x.float(), golden[f"out_{name}"], rtol=0, atol=TOLERANCE)


def inputs_of(tiny: Tiny) -> Given:
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    times = {"image": torch.tensor([0.0, 612.5]), "text": torch.tensor([1000.0, 3.0]), "audio": torch.tensor([77.0, 0])}
    return Given(
        image=draw(2, tiny.image_channels, 4, 8),
        audio=draw(2, tiny.audio_channels, 12, 4),
        text=draw(2, 5, tiny.joint),
        pooled=draw(2, tiny.pooled),
        times=times,
    )


@pytest.mark.parametrize("name", KINDS)
class TestEveryKindOfCheckpoint:
    def test_its_converted_trunk_computes_what_the_reference_does(self, name: str, tmp_path: Path) -> None:
        tiny = KINDS[name]
        convert(write_folder(tmp_path / "omniflow", tiny), tmp_path / "out")
        source = read_converted(tmp_path / "out")
        given = inputs_of(tiny)
        with torch.no_grad():
            found = complete_trunk(source)(
                {"image": patches(given.image, 2), "text": given.text, "audio": patches(given.audio, 2)},
                {stream: times / 1000 for stream, times in given.times.items()},
                added={"image": table(source, "image", 2, 4), "audio": table(source, "audio", 6, 2)},
                pooled=given.pooled,
            )
        expected = Reference(tensors_of(tiny), tiny.heads)(given)
        torch.testing.assert_close(found["text"].double(), expected["text"], rtol=0, atol=TOLERANCE)
        for stream, rows in (("image", 2), ("audio", 6)):
            got = unpatched(found[stream], rows, 2).double()
            torch.testing.assert_close(got, expected[stream], rtol=0, atol=TOLERANCE)

    def test_every_tensor_has_one_fate_and_a_reason(self, name: str, tmp_path: Path) -> None:
        tiny = KINDS[name]
        conversion = convert(write_folder(tmp_path / "omniflow", tiny), tmp_path / "out")
        tensors = tensors_of(tiny)
        assert sorted(str(status.source) for status in conversion.statuses) == sorted(tensors)
        assert all(
            status.reason and status.numbers == tensors[str(status.source)].numel() for status in conversion.statuses
        )
        left = {str(status.source) for status in conversion.statuses if status.kind == "left out"}
        dead = f"transformer_blocks.{tiny.layers - 1}.ff_context."
        assert left == {
            n for n in tensors if n.startswith((dead, "text_decoder.")) or n.endswith("pos_embed.pos_embed")
        } | {"audio_embedder.pos_embed"}
        written = load_file(tmp_path / "out" / "model.safetensors")
        assert {status.target for status in conversion.statuses} - {None} == set(written)
        document = json.loads((tmp_path / "out" / "conversion.json").read_bytes())
        assert [row["source"] for row in document["tensors"]] == [status.source for status in conversion.statuses]

    def test_no_number_is_changed_on_the_way(self, name: str, tmp_path: Path) -> None:
        """All that is kept is in the source, bit by bit, and dead rows of dual layers are all that is cut."""
        tiny = KINDS[name]
        conversion = convert(write_folder(tmp_path / "omniflow", tiny), tmp_path / "out")
        tensors = tensors_of(tiny)
        written = load_file(tmp_path / "out" / "model.safetensors")
        sources: dict[str, list[str]] = {}
        for status in conversion.statuses:
            if status.target is not None:
                sources.setdefault(status.target, []).append(str(status.source))
        for target, names in sources.items():
            kept = torch.cat([tensors[source].flatten() for source in names])
            if "norm1.linear" in names[0] and len(kept) != written[target].numel():
                kept = kept[: len(kept) // 3 * 2]
            assert torch.equal(kept, written[target].flatten()), target


class TestRoundTrips:
    def test_the_same_bits_from_pickle_and_safetensors_whole_or_in_parts_and_again(self, tmp_path: Path) -> None:
        tiny = Tiny(qk_norm="rms", dual=(0,))
        tensors = tensors_of(tiny)
        folders = [write_folder(tmp_path / kind, tiny, kind=kind) for kind in ("bin", "safetensors")]
        folders.append(write_folder(tmp_path / "parts", tiny, kind="bin"))
        split_into_parts(folders[-1] / "transformer", tensors)
        written = []
        for number, folder in enumerate([*folders, folders[0]]):
            convert(folder, tmp_path / f"out{number}")
            written.append((tmp_path / f"out{number}" / "model.safetensors").read_bytes())
        assert len(set(written)) == 1

    def test_loaded_and_saved_as_a_trunk_it_is_the_same(self, tmp_path: Path) -> None:
        convert(write_folder(tmp_path / "omniflow", Tiny()), tmp_path / "out")
        model = complete_trunk(read_converted(tmp_path / "out"))
        model.save_pretrained(tmp_path / "trunk")
        again = JointFlowTransformer.from_pretrained(tmp_path / "trunk").state_dict()
        written = load_file(tmp_path / "out" / "model.safetensors")
        assert again.keys() == written.keys()
        assert all(torch.equal(again[name], x) for name, x in written.items())

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_the_precision_of_the_source_is_kept(self, dtype: torch.dtype, tmp_path: Path) -> None:
        tensors = {name: x.to(dtype) for name, x in tensors_of(Tiny()).items()}
        convert(write_folder(tmp_path / "omniflow", Tiny(), tensors=tensors), tmp_path / "out")
        written = load_file(tmp_path / "out" / "model.safetensors")
        assert {x.dtype for x in written.values()} == {dtype}
        assert torch.equal(written["head.text.out.weight"], tensors["text_output.weight"])
        assert {x.dtype for x in complete_trunk(read_converted(tmp_path / "out")).parameters()} == {torch.float32}

    def test_averaged_weights_are_distinguished_by_order(self, tmp_path: Path) -> None:
        for kind in ("layer", "rms", "none", "with the text VAE"):
            tiny = KINDS[kind]
            folder = write_folder(tmp_path / kind, tiny, average=True)
            convert(folder, tmp_path / f"{kind}-out", "ema")
            names = [name for name in tensors_of(tiny) if "pos_embed.pos_embed" not in name]
            names = [name for name in names if name != "audio_embedder.pos_embed" and "embed_tokens" not in name]
            averages = averages_of(tiny, tensors_of(tiny))["shadow_params"]
            by_name = dict(zip([n for n in names if not n.startswith("text_decoder.")], averages, strict=False))
            written = load_file(tmp_path / f"{kind}-out" / "model.safetensors")
            assert torch.equal(written["head.image.out.weight"], by_name["proj_out.weight"])
            out = "transformer_blocks.0.attn.to_out.0.weight"
            assert torch.equal(written["blocks.0.branches.image.out.weight"], by_name[out])
            k = "transformer_blocks.0.attn.add_k_proj.bias"
            assert torch.equal(written["blocks.0.branches.text.qkv.bias"][16:32], by_name[k])


def split_into_parts(place: Path, tensors: Mapping[str, Tensor]) -> None:
    """Save weights as diffusers saves large ones: two files and an index."""
    (place / "diffusion_pytorch_model.bin").unlink()
    names = list(tensors)
    where = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"diffusion_pytorch_model-{number:05d}-of-00002.bin"
        torch.save({name: tensors[name] for name in part}, place / file)
        where |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (place / "diffusion_pytorch_model.bin.index.json").write_text(json.dumps(index))


class TestPublishing:
    def test_nothing_is_left_of_a_conversion_that_failed_half_way(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from omniges.pretrained import trunk as reading

        folder = write_folder(tmp_path / "omniflow", Tiny())
        real, calls = reading.convert_tensor, []

        def failing(rule: Any, source: Any) -> Tensor:
            calls.append(rule)
            if len(calls) == 20:
                raise DataError("half-way")
            return real(rule, source)

        monkeypatch.setattr(reading, "convert_tensor", failing)
        with pytest.raises(DataError, match="half-way"):
            convert(folder, tmp_path / "place" / "out")
        assert list((tmp_path / "place").iterdir()) == []

    def test_what_a_killed_conversion_left_goes_with_the_next(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "omniflow", Tiny())
        code = (
            "import os, signal, sys\nfrom pathlib import Path\n"
            "from omniges.pretrained import convert, trunk as reading\n"
            "real, calls = reading.convert_tensor, []\n"
            "def convert_tensor(rule, source):\n"
            "    calls.append(rule)\n"
            "    if len(calls) == 20:\n"
            "        os.kill(os.getpid(), signal.SIGKILL)\n"
            "    return real(rule, source)\n"
            "reading.convert_tensor = convert_tensor\n"
            "convert.convert(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        )
        killed = scripted(code, folder, tmp_path / "place" / "out")
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        (left,) = (tmp_path / "place").iterdir()
        assert left.name.startswith(".out.tmp-")
        assert any(left.iterdir())
        convert(folder, tmp_path / "place" / "out")
        assert [path.name for path in (tmp_path / "place").iterdir()] == ["out"]

    def test_an_empty_folder_is_taken(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        convert(write_folder(tmp_path / "omniflow", Tiny()), tmp_path / "out")
        assert len(read_converted(tmp_path / "out").shapes) > 80

    def test_a_folder_with_something_in_it_is_not_touched(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "omniflow", Tiny())
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("kept")
        with pytest.raises(UsageFault, match="expected a new or empty folder"):
            convert(folder, tmp_path / "out")
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]

    @pytest.mark.parametrize("file", ["config.json", "model.safetensors", "conversion.json"])
    @pytest.mark.parametrize("how", ["flip", "cut", "missing"])
    def test_a_damaged_folder_is_refused_with_the_file(self, file: str, how: str, tmp_path: Path) -> None:
        convert(write_folder(tmp_path / "omniflow", Tiny()), tmp_path / "out")
        path = tmp_path / "out" / file
        if how == "missing":
            path.unlink()
        elif how == "cut":
            os.truncate(path, path.stat().st_size // 2)
        else:
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        with pytest.raises(DataError, match=file):
            read_converted(tmp_path / "out")


@needs_parity
class TestRealSize:
    """The 24 layers by names and shapes, on the meta device."""

    def test_names_and_order_are_those_of_the_original(self, real: dict[str, Any]) -> None:
        shapes = {name: tuple(shape) for name, shape in real["state_dict"].items()}
        architecture, warnings = read_architecture(shapes, real["config"], "real size")
        assert warnings == []
        assert (architecture.layers, architecture.heads, architecture.width) == (24, 24, 1536)
        assert {**parameters(architecture), **tables(architecture)} == shapes
        assert list(parameters(architecture)) == [name for name in shapes if name not in tables(architecture)]
        assert sum(math.prod(shape) for shape in parameters(architecture).values()) == real["total_params"]

    def test_every_parameter_of_the_trunk_is_made_and_only_dead_weight_left_behind(self, real: dict[str, Any]) -> None:
        shapes = {name: tuple(shape) for name, shape in real["state_dict"].items()}
        architecture, _ = read_architecture(shapes, real["config"], "real size")
        with torch.device("meta"):
            model = JointFlowTransformer(**trunk_config(architecture))
            tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
        source = Tensors("real size", (), shapes, dtypes, tensors.__getitem__)
        found = {rule.target: tuple(convert_tensor(rule, source).shape) for rule in rules(architecture)}
        assert found == {name: tuple(x.shape) for name, x in model.named_parameters()}
        dead = sum(math.prod(s) for n, s in shapes.items() if n.startswith("transformer_blocks.23.ff_context."))
        assert sum(p.numel() for p in model.parameters()) == real["total_params"] - dead
        statuses = conversion_statuses(architecture, shapes, dict.fromkeys(tables(architecture), "computed"))
        assert sorted(str(status.source) for status in statuses) == sorted(shapes)

    def test_a_model_over_this_projects_tokens_takes_all_but_projections(self, real: dict[str, Any]) -> None:
        shapes = {name: tuple(shape) for name, shape in real["state_dict"].items()}
        trunk = trunk_config(read_architecture(shapes, real["config"], "real size")[0])
        with torch.device("meta"):
            model = build_model(config_over_tokens(trunk), statistics=statistics(), vocab_size=20_000, speakers=25)
        own = {name: tuple(x.shape) for name, x in model.named_parameters()}
        source = {f"trunk.{n.replace('.image.', '.gesture.')}": s for n, s in shapes_of_trunk(trunk).items()}
        assert own.keys() - source.keys() == {"trunk.speaker.weight", "streams.text.piece", "streams.text.mark"}
        assert {name for name, shape in source.items() if own[name] != shape} == {
            *(f"trunk.embed.{stream}.weight" for stream in ("gesture", "text", "audio")),
            *(f"trunk.head.{s}.out.{part}" for s in ("gesture", "text", "audio") for part in ("weight", "bias")),
        }


class TestAverages:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return write_folder(tmp_path / "omniflow", Tiny(qk_norm="rms", nested=True), average=True)

    def damaged(self, folder: Path, change: Any) -> str:
        path = folder / "transformer" / "ema_transformer.pt"
        document = torch.load(path, weights_only=True)
        torch.save(change(document), path)
        with pytest.raises(DataError) as caught:
            source = read_omniflow(folder, "ema")
            for name in source.shapes:
                source.read(name)
        return str(caught.value)

    def test_too_few_or_too_many_are_refused(self, folder: Path) -> None:
        expected = "expected 138 tensors of the transformer and 4 of models inside it in shadow_params"
        few = self.damaged(folder, lambda d: d | {"shadow_params": d["shadow_params"][:-1]})
        assert f"{expected}, found 141;" in few
        write_folder(folder, Tiny(qk_norm="rms", nested=True), average=True)
        many = self.damaged(folder, lambda d: d | {"shadow_params": [*d["shadow_params"], torch.ones(1)]})
        assert f"{expected}, found 143;" in many

    def test_another_order_is_refused_where_shapes_tell(self, folder: Path) -> None:
        assert "the order differs" in self.damaged(
            folder,
            lambda d: d | {"shadow_params": [d["shadow_params"][1], d["shadow_params"][0], *d["shadow_params"][2:]]},
        )

    def test_and_where_they_do_not(self, folder: Path) -> None:
        def swapped(document: dict[str, Any]) -> dict[str, Any]:
            order = list(parameter_shapes(Tiny(qk_norm="rms", nested=True)))
            a = order.index("transformer_blocks.0.attn.to_q.weight")
            b = order.index("transformer_blocks.0.attn.to_k.weight")
            params = document["shadow_params"]
            params[a], params[b] = params[b], params[a]
            return document

        assert "expected an average of transformer_blocks.0.attn.to_q.weight at its place" in self.damaged(
            folder, swapped
        )

    def test_without_a_list_or_a_file_the_last_weights_are_named_as_the_way_out(self, folder: Path) -> None:
        assert "expected a dictionary with weights under 'shadow_params'" in self.damaged(
            folder, lambda d: {"decay": 0.9}
        )
        (folder / "transformer" / "ema_transformer.pt").unlink()
        with pytest.raises(UsageFault, match=r"expected ema_transformer\.pt"):
            read_omniflow(folder, "ema")
