"""EMAGE's motion encoder computes what torch's layers compute, and takes no other file than its own."""

import hashlib
import io
import json
import pickle

import numpy as np
import published_reference as plain
import pytest
from encoder_builders import by_torch, random_tensors, saved, tree_constants
from metrics_builders import untouched

from omniges.errors import DataError, UsageFault
from omniges.formats.npz import decode_motion
from omniges.metrics.frechet import frechet_distance, load_encoder
from omniges.metrics.motion_encoder import (
    PUBLISHED_LAYOUT,
    MotionEncoderLayout,
    edge_distances,
    encoder_input,
    encoder_shapes,
    halved_chains,
    load_motion_encoder,
    tree_edges,
)
from omniges.metrics.profiles import PROFILES

torch = pytest.importorskip("torch")
SMALL = MotionEncoderLayout(joints=15, edge_channels=(6, 12), multiple_of_frames=64)


class TestTree:
    def test_each_edge_is_in_one_pooled_edge_and_chains_are_halved(self):
        edges = tree_edges(55)
        groups = halved_chains(edges)
        assert sorted(edge for group in groups for edge in group) == list(range(55))
        assert (len(edges), len(groups)) == (55, 35)
        assert all(edges[a][1] == edges[b][0] for a, b in (group for group in groups if len(group) == 2))

    def test_distances_are_symmetric_and_finite(self):
        distances = edge_distances(tree_edges(55))
        np.testing.assert_array_equal(distances, distances.T)
        assert (np.diag(distances) == 0).all()
        assert np.isfinite(distances).all()
        assert distances[0, 1] == 1  # both at the pelvis


class TestNetwork:
    @pytest.mark.parametrize(("layout", "prefix"), [(PUBLISHED_LAYOUT, "module."), (SMALL, "module."), (SMALL, "")])
    def test_latents_are_those_of_torch(self, tmp_path, layout, prefix):
        tensors = random_tensors(layout)
        encoder = load_motion_encoder(saved(tmp_path / "e.bin", tensors, prefix), layout)
        frames = np.random.default_rng(1).normal(size=(3 * layout.multiple_of_frames + 5, layout.input_channels))
        with untouched(frames):
            found = encoder.latents(frames)
        kept = frames[: 3 * layout.multiple_of_frames]
        np.testing.assert_allclose(found, by_torch(tensors, layout, kept), atol=1e-12)
        assert len(found) == len(kept) >> len(layout.edge_channels)

    def test_a_clip_is_one_pass(self, tmp_path):
        encoder = load_motion_encoder(saved(tmp_path / "e.bin", random_tensors(SMALL)), SMALL)
        frames = np.random.default_rng(1).normal(size=(128, 90))
        halves = np.concatenate([encoder.latents(frames[:64]), encoder.latents(frames[64:])])
        assert np.abs(encoder.latents(frames) - halves).max() > 0.1

    def test_the_file_is_named_by_its_checksum(self, tmp_path):
        path = saved(tmp_path / "AESKConv_240_100.bin", random_tensors(PUBLISHED_LAYOUT))
        encoder = load_encoder(path)
        assert encoder.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert encoder.name == f"motion-encoder:{path.name}:{encoder.sha256[:12]}"
        assert not encoder.published  # the name of a file says nothing

    def test_a_link_is_followed(self, tmp_path):
        (tmp_path / "here").mkdir()
        link = tmp_path / "here" / "AESKConv_240_100.bin"
        link.symlink_to(saved(tmp_path / "elsewhere.bin", random_tensors(SMALL)))
        assert load_motion_encoder(link, SMALL).name.startswith("motion-encoder:AESKConv_240_100.bin:")

    def test_short_clips_are_refused(self, tmp_path):
        encoder = load_motion_encoder(saved(tmp_path / "e.bin", random_tensors(SMALL)), SMALL)
        with pytest.raises(DataError, match="6D rotations: expected 64 or more rows, found 63"):
            encoder.latents(np.zeros((63, 90)))


def one_line(caught, path):
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


class TestFilesThatAreNone:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda t: t.pop("encoder.layers.1.0.shortcut.bias"), "found 1 missing .encoder.layers.1.0.shortcut.bias"),
            (lambda t: t.pop("decoder.main.3.bias"), r"found 1 missing .decoder.main.3.bias"),
            (lambda t: t.update({"encoder.more": torch.ones(2)}), r"found 1 unknown .'encoder.more'"),
            (
                lambda t: t.update({"encoder.layers.0.0.residual.1.bias": torch.ones(91)}),
                r"of another shape .encoder.layers.0.0.residual.1.bias \(91,\) in place of \(90,\)",
            ),
            (
                lambda t: t.update({"encoder.layers.9.0.x": t.pop("encoder.layers.1.0.residual.0.bias")}),
                r"missing .encoder.layers.1.0.residual.0.bias., 1 unknown .'encoder.layers.9.0.x'",
            ),
            (
                lambda t: t["encoder.layers.0.0.residual.0.mask"].add_(1),
                r"0.residual.0.mask: expected the entries of SMPL-X's tree, found 32400",
            ),
            (lambda t: t["encoder.layers.1.0.shortcut.mask"][0].sub_(1), "layers.1.0.shortcut.mask: .*differ"),
            (lambda t: t["encoder.layers.0.0.common.0.weight"].mul_(2), "common.0.weight: .*SMPL-X's tree"),
            (
                lambda t: t["encoder.layers.0.0.shortcut.bias"].fill_(torch.nan),
                "NaN or infinite ones in encoder.layers.0.0.shortcut.bias",
            ),
            (
                lambda t: t.update({"encoder.layers.0.0.shortcut.bias": torch.ones(90, dtype=torch.int64)}),
                "torch.int64 in tensor encoder.layers.0.0.shortcut.bias",
            ),
            (lambda t: t.update({"module.fc_mu.bias": torch.ones(84)}), "found fc_mu.bias and module"),
        ],
    )
    def test_tensors_that_differ_are_named(self, tmp_path, change, words):
        tensors = random_tensors(SMALL)
        change(tensors)
        path = saved(tmp_path / "e.bin", tensors, prefix="")
        with pytest.raises(DataError, match=words) as caught:
            load_motion_encoder(path, SMALL)
        one_line(caught, path)

    def test_an_encoder_of_another_size(self, tmp_path):
        path = saved(tmp_path / "AESKConv_240_100.bin", random_tensors(SMALL))
        with pytest.raises(DataError, match=r"missing .encoder\.layers\.2.*of another shape .*\(90, 90, 4\)") as caught:
            load_encoder(path)
        one_line(caught, path)

    @pytest.mark.parametrize("name", ["e.bin", "e.pth", "e.safetensors"])
    def test_damage_and_other_contents(self, tmp_path, name):
        whole = saved(tmp_path / "whole", random_tensors(SMALL)).read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        bare = io.BytesIO()
        torch.save(random_tensors(SMALL), bare)
        objects = io.BytesIO()
        torch.save({"model_state": {"module.fc_mu.bias": torch.nn.Linear(2, 2)}}, objects)
        contents = [whole[:-1000], whole[: len(whole) // 2], whole[100:], bytes(flipped), b"", b"text", b"PK\3\4 text"]
        contents += [bare.getvalue(), objects.getvalue(), pickle.dumps({"model_state": {}}), bytes(100_000)]
        path = tmp_path / name
        path.with_suffix(".json").write_text(
            '{"format": "omniges-encoder", "version": 1, "multiple_of_frames": 32, "layers": '
            '[{"stride": 1, "padding": 0, "activation": "tanh"}]}'
        )
        for content in contents:
            path.write_bytes(content)
            with pytest.raises(DataError) as caught:
                load_encoder(path)
            one_line(caught, path)

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:5c\n", "found a Git LFS pointer, not the file"),
            (b"<!doctype html>", "expected a file of torch.save, found a web page or XML; download it again"),
            (pickle.dumps({"model_state": object}), r"or another file \(Unsupported operand 149\); download it again"),
        ],
    )
    def test_what_was_downloaded_instead_is_named(self, tmp_path, content, words):
        """Never with torch's advice to unpickle the file nevertheless."""
        path = tmp_path / "AESKConv_240_100.bin"
        path.write_bytes(content)
        with pytest.raises(DataError, match=words) as caught:
            load_encoder(path)
        one_line(caught, path)
        assert "weights_only" not in str(caught.value)

    def test_a_pickled_object_is_not_loaded(self, tmp_path):
        path = tmp_path / "e.bin"
        torch.save({"model_state": torch.nn.Linear(2, 2)}, path)
        with pytest.raises(DataError, match="found a pickled Python object"):
            load_encoder(path)

    def test_a_renamed_file_gets_an_error_with_its_name(self, tmp_path):
        path = saved(tmp_path / "e.safetensors", random_tensors(SMALL))
        with pytest.raises(DataError, match=r"expected safetensors, found a file of torch\.save; rename it to e\.bin"):
            load_encoder(path)

    def test_no_file(self, tmp_path):
        with pytest.raises(UsageFault, match="the file does not exist"):
            load_encoder(tmp_path / "e.bin")


@pytest.fixture(scope="module")
def encoder(fgd_parity):
    """An encoder of the published size with random weights."""
    return load_motion_encoder(fgd_parity / "published" / "AESKConv_240_100.bin")


class TestGolden:
    def test_names_shapes_and_constants_of_the_published_file(self, fgd_parity):
        about = json.loads((fgd_parity / "published_names.json").read_text())
        wanted = {each["name"]: tuple(each["shape"]) for each in about["tensors"]}
        assert encoder_shapes(PUBLISHED_LAYOUT) == wanted
        constants = tree_constants(PUBLISHED_LAYOUT)
        hashed = {each["name"]: each["sha256"] for each in about["tensors"] if "sha256" in each}
        assert {name: hashlib.sha256(np.ascontiguousarray(a)).hexdigest() for name, a in constants.items()} == hashed

    @pytest.mark.parametrize("variant", ["published", "small"])
    def test_latents_of_all_cases(self, fgd_parity, encoder, variant):
        if variant == "small":
            encoder = load_motion_encoder(fgd_parity / "small" / "encoder.bin", SMALL)
        with np.load(fgd_parity / variant / "cases.npz") as cases:
            tags = [key[2:] for key in cases if key.startswith("x_")]
            assert len(tags) >= 3
            for tag in tags:
                found = np.stack([encoder.latents(clip) for clip in cases[f"x_{tag}"]])
                np.testing.assert_allclose(found, cases[f"z_{tag}"], atol=1e-5)
                np.testing.assert_allclose(found, cases[f"z64_{tag}"], atol=1e-9)

    def test_latents_and_distances_of_the_real_clip(self, fgd_parity, encoder, real_clip):
        values = json.loads((fgd_parity / "values.json").read_text())
        poses = np.asarray(real_clip.poses, np.float64)
        with np.load(fgd_parity / "published" / "clip.npz") as clip:
            for tag, frames in (("whole", 1906), ("emage_cut", 1864), ("gesturelsm_cut", 1808)):
                np.testing.assert_allclose(encoder.encode(poses[:frames]), clip[f"z_{tag}"], atol=1e-5)
            first, second = (encoder.encode(half) for half in (poses[:953], poses[953:]))
            np.testing.assert_allclose(first, clip["z_half0"], atol=1e-5)
        expected = values["published_halves_of_clip"]
        for profile, year in (("emage-2024", 2024), ("emage-eval-2025", 2025)):
            found = frechet_distance(first, second, PROFILES[profile].frechet, encoder="")
            assert [found.rows_generated, found.rows_recorded] == expected["rows"]
            # the original starts from latents in float32
            assert found.value == pytest.approx(expected[f"original_{year}"], abs=2e-5)
            latents = (first.astype(np.float32), second.astype(np.float32))
            assert plain.frechet(*latents, year) == pytest.approx(expected[f"original_{year}"], abs=2e-5)
        exact = frechet_distance(first, second, PROFILES["emage-2024"].frechet, encoder="").value
        assert exact == pytest.approx(expected["exact_from_float64_latents"], abs=1e-6)

    def test_eight_shifts_have_full_rank(self, fgd_parity, encoder, real_clip):
        expected = json.loads((fgd_parity / "values.json").read_text())["published_halves_8_shifts"]
        poses = np.asarray(real_clip.poses, np.float64)
        sides = [
            np.concatenate([encoder.encode(half[shift : shift + 928]) for shift in range(0, 16, 2)])
            for half in (poses[:953], poses[953:])
        ]
        with np.load(fgd_parity / "published" / "clip.npz") as clip:
            for k, side in enumerate(sides):
                np.testing.assert_allclose(side, clip[f"z_half{k}_8_shifts"], atol=1e-5)
        for profile, year in (("emage-2024", 2024), ("emage-eval-2025", 2025)):
            found = frechet_distance(*sides, PROFILES[profile].frechet, encoder="")
            assert [found.rank_generated, found.rank_recorded] == expected["rank"]
            assert found.value == pytest.approx(expected[f"original_{year}"], rel=1e-6)

    def test_a_whole_clip_with_itself(self, encoder, real_clip):
        latents = encoder.encode(np.asarray(real_clip.poses, np.float64))
        exact, later = (
            frechet_distance(latents, latents, PROFILES[name].frechet, encoder="").value
            for name in ("emage-2024", "emage-eval-2025")
        )
        assert exact == pytest.approx(0, abs=1e-9)
        assert later == pytest.approx(-2e-6 * 240, abs=1e-9)

    def test_traps_of_the_fact_sheet(self, fgd_parity, encoder, real_clip):
        """Common mistakes would change the result, so each of them would be noticed."""
        traps = json.loads((fgd_parity / "values.json").read_text())["traps_published_random_weights"]
        poses = np.asarray(real_clip.poses, np.float64)[:1888]
        whole = encoder.encode(poses)
        windows = np.concatenate([encoder.encode(poses[k : k + 32]) for k in range(0, 1888, 32)])
        still = poses.copy()
        still[:, 69:75] = 0
        interleaved = encoder_input(poses).reshape(1888, 55, 2, 3).swapaxes(2, 3).reshape(1888, 330)
        exact = PROFILES["emage-2024"].frechet
        for name, other in (
            ("windows_of_32_frames", windows),
            ("six_d_interleaved", encoder.latents(interleaved)),
            ("eyes_zero", encoder.encode(still)),
        ):
            assert np.abs(other - whole).max() == pytest.approx(traps[f"{name}_max"], abs=1e-4)
            found = frechet_distance(other, whole, exact, encoder="").value
            assert found == pytest.approx(traps[f"{name}_fgd"], rel=1e-3)

    def test_mambatalk_against_its_recording(self, fgd_parity, encoder, beat2_more):
        files = [
            beat2_more / path
            for path in (
                "generated_by_mambatalk/res_2_scott_0_2_2.npz",
                "beat_english_v2.0.0/smplxflame_30/2_scott_0_2_2.npz",
            )
        ]
        sides = [encoder.encode(np.asarray(decode_motion(path.read_bytes()).poses, np.float64)) for path in files]
        values = json.loads((fgd_parity / "values.json").read_text())
        wanted = values["published_mambatalk_result_against_its_ground_truth_2_scott_0_2_2"]
        found = frechet_distance(*sides, PROFILES["emage-2024"].frechet, encoder="")
        assert found.value == pytest.approx(wanted["exact_float64"], rel=1e-6)
        assert [found.rows_generated, found.rows_recorded] == [112, 112]
