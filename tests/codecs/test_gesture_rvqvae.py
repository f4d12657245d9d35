"""Four nets as one codec: order, scale, lengths, what no net has, and a fingerprint of all files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from rvqvae_builders import WIDTHS, gesture, random_tensors, write_codec
from safetensors.torch import save_file

from omniges.codecs.gesture_rvqvae import load_gesture_rvqvae, read_scales
from omniges.codecs.registry import load_codec
from omniges.codecs.rvqvae import load_rvqvae
from omniges.errors import DataError, UsageFault
from omniges.features.gesture import GestureClip, gesture_from_motion, motion_from_gesture

WITHOUT_FACE = {part: width for part, width in WIDTHS.items() if part != "face"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("codec")
    write_codec(path)
    return path


class TestLatents:
    def test_parts_side_by_side_a_fifth_as_large(self, folder):
        codec, channels = load_gesture_rvqvae(folder), gesture(22)
        found = codec.encode(channels)
        assert found.dtype == np.float32
        assert found.shape == (5, 4 + 5 + 6 + 7) == (5, codec.latent_channels)
        scales = read_scales(folder, codec.columns)
        start = 0
        columns = {"upper": (0, 78), "hands": (78, 258), "lower": (258, 315), "face": (315, 415)}
        for part, (first, last) in columns.items():
            net = load_rvqvae(folder / f"net_300000_{part}.pth")
            motion = (channels[:20, first:last].astype(np.float64) - scales[part].mean) / scales[part].std
            expected = net.encoder(torch.from_numpy(motion).float().T[None])[0].T.numpy() / 5
            np.testing.assert_allclose(found[:, start : start + expected.shape[1]], expected, rtol=0, atol=1e-6)
            start += expected.shape[1]

    @pytest.mark.parametrize("quantised", [True, False])
    def test_decoding_takes_each_part_back_to_its_channels(self, folder, quantised):
        codec = load_gesture_rvqvae(folder, quantised=quantised)
        latents = np.random.default_rng(3).normal(0, 0.2, (6, 22)).astype(np.float32)
        before = latents.copy()
        found = codec.decode(latents)
        assert found.shape == (24, 415)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(latents, before)
        start = 0
        for part, net in codec.nets.items():
            own = torch.from_numpy(latents[None, :, start : start + net.spec.code_size]) * 5
            start += net.spec.code_size
            vectors = net.quantise(own).vectors if quantised else own
            motion = net.decoder(vectors.mT).mT[0].double().numpy()
            expected = motion * codec.scales[part].std + codec.scales[part].mean
            np.testing.assert_allclose(found[:, codec.columns[part]], expected, rtol=0, atol=1e-5)

    def test_quantised_or_not_are_different_motions_of_one_fingerprint(self, folder):
        through_codes, direct = (load_gesture_rvqvae(folder, quantised=choice) for choice in (True, False))
        latents = direct.encode(gesture(40))
        np.testing.assert_array_equal(latents, through_codes.encode(gesture(40)))
        assert np.abs(through_codes.decode(latents) - direct.decode(latents)).max() > 0.01
        assert through_codes.fingerprint == direct.fingerprint
        assert (through_codes.quantised, direct.quantised) == (True, False)

    def test_the_gesture_is_not_changed(self, folder):
        channels = gesture(9)
        load_gesture_rvqvae(folder).encode(channels)
        np.testing.assert_array_equal(channels, gesture(9))

    def test_what_comes_back_is_motion(self, folder):
        decoded = load_gesture_rvqvae(folder).decode(np.random.default_rng(0).normal(0, 0.2, (5, 22)))
        motion = motion_from_gesture(GestureClip(decoded, np.zeros((20, 9), np.float32), np.zeros(2)))
        again = gesture_from_motion(motion.poses, motion.expressions, motion.trans).gesture
        assert np.isfinite(again).all()
        np.testing.assert_allclose(again[:, 313], decoded[:, 313], atol=1e-6)

    @pytest.mark.parametrize(
        ("array", "error", "message"),
        [
            (np.zeros((8, 414)), UsageFault, r"found an array \(8, 414\)"),
            (np.full((8, 415), np.nan), DataError, "expected finite numbers"),
        ],
    )
    def test_gesture_that_cannot_be_encoded(self, folder, array, error, message):
        with pytest.raises(error, match=message):
            load_gesture_rvqvae(folder).encode(array)

    @pytest.mark.parametrize(
        ("array", "error", "message"),
        [
            (np.zeros((3, 21)), UsageFault, r"found an array \(3, 21\)"),
            (np.full((3, 22), np.inf), DataError, "expected finite numbers"),
        ],
    )
    def test_latents_that_cannot_be_decoded(self, folder, array, error, message):
        with pytest.raises(error, match=message):
            load_gesture_rvqvae(folder).decode(array)

    def test_a_clip_shorter_than_a_latent_has_none(self, folder):
        codec = load_gesture_rvqvae(folder)
        for frames in range(4):
            found = codec.encode(gesture(frames))
            assert (found.shape, found.dtype) == ((0, 22), np.float32)
        assert codec.decode(found).shape == (0, 415)


class TestChannelsThatNoNetHas:
    def test_are_asked_for(self, tmp_path):
        write_codec(tmp_path, **WITHOUT_FACE | {"lower": 54})
        codec = load_gesture_rvqvae(tmp_path, face=False)
        assert codec.lacking == (slice(312, 315), slice(315, 415))
        latents = codec.encode(gesture(16))
        with pytest.raises(
            UsageFault, match="rest: expected values of channels 312 to 314, 315 to 414, which no network"
        ):
            codec.decode(latents)

    @pytest.mark.parametrize("rows", [1, 16])
    def test_come_from_the_caller(self, tmp_path, rows):
        write_codec(tmp_path, **WITHOUT_FACE | {"lower": 54})
        codec = load_gesture_rvqvae(tmp_path, face=False)
        rest = gesture(rows, seed=7)
        found = codec.decode(codec.encode(gesture(16)), rest[0] if rows == 1 else rest)
        np.testing.assert_array_equal(found[:, 312:], np.broadcast_to(rest, (16, 415))[:, 312:])
        assert np.abs(found[:, :312] - rest[:, :312]).min() > 0

    def test_of_another_length(self, tmp_path):
        write_codec(tmp_path, **WITHOUT_FACE)
        codec = load_gesture_rvqvae(tmp_path, face=False)
        with pytest.raises(UsageFault, match=r"rest: expected .*found an array \(15, 415\)"):
            codec.decode(codec.encode(gesture(16)), gesture(15))

    def test_are_none_where_every_part_has_a_net(self, folder):
        codec = load_gesture_rvqvae(folder)
        assert codec.lacking == ()
        with pytest.raises(UsageFault, match="remove this argument"):
            codec.decode(codec.encode(gesture(16)), gesture(16))


class TestFolder:
    def test_says_what_it_is_in_json(self, folder):
        entry = load_gesture_rvqvae(folder).entry
        record = entry.as_json()
        assert json.loads(json.dumps(record)) == record
        assert record["settings"]["latent_scale"] == 5
        assert (entry.frames_per_row, entry.channels) == (4, 22)
        assert {part: spec["channels"] for part, spec in record["settings"]["parts"].items()} == WIDTHS

    def test_a_net_of_lower_body_and_root_by_its_longer_name(self, tmp_path):
        write_codec(tmp_path)
        expected = load_gesture_rvqvae(tmp_path)
        (tmp_path / "net_300000_lower.pth").rename(tmp_path / "net_300000_lower_trans.pth")
        assert load_gesture_rvqvae(tmp_path).fingerprint == expected.fingerprint

    def test_safetensors_instead_of_a_pickle(self, tmp_path):
        tensors = write_codec(tmp_path)
        pickled = load_gesture_rvqvae(tmp_path)
        (tmp_path / "net_300000_hands.pth").unlink()
        save_file(tensors["hands"], tmp_path / "net_300000_hands.safetensors")
        safe = load_gesture_rvqvae(tmp_path)
        np.testing.assert_array_equal(safe.encode(gesture(20)), pickled.encode(gesture(20)))
        assert safe.fingerprint == pickled.fingerprint

    def test_two_files_of_one_part(self, tmp_path):
        tensors = write_codec(tmp_path)
        save_file(tensors["hands"], tmp_path / "net_300000_hands.safetensors")
        with pytest.raises(UsageFault, match=r"found net_300000_hands.pth and net_300000_hands.safetensors; keep one"):
            load_gesture_rvqvae(tmp_path)

    @pytest.mark.parametrize("part", WIDTHS)
    def test_a_part_that_is_not_there(self, tmp_path, part):
        write_codec(tmp_path)
        (tmp_path / f"net_300000_{part}.pth").unlink()
        with pytest.raises(
            UsageFault, match=f"expected a file such as net_300000_{part}.pth, found no network of {part}"
        ):
            load_gesture_rvqvae(tmp_path)

    def test_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(UsageFault, match="the folder does not exist"):
            load_gesture_rvqvae(tmp_path / "none")

    def test_nets_under_each_others_names(self, tmp_path):
        write_codec(tmp_path, upper=180, hands=78, lower=57, face=100)
        with pytest.raises(
            DataError, match=r"net_300000_upper.pth: expected a network of upper with 78 channels, found 180"
        ):
            load_gesture_rvqvae(tmp_path)

    def test_nets_of_other_frames_a_latent(self, tmp_path):
        write_codec(tmp_path)
        torch.save({"net": random_tensors(channels=180, stages=3)}, tmp_path / "net_300000_hands.pth")
        with pytest.raises(
            DataError, match=r"frames per latent .*, found 4 of upper, 8 of hands, 4 of lower, 4 of face;"
        ):
            load_gesture_rvqvae(tmp_path)

    def test_without_the_face_its_file_is_not_looked_at(self, tmp_path):
        write_codec(tmp_path)
        with_face = load_gesture_rvqvae(tmp_path)
        (tmp_path / "net_300000_face.pth").write_bytes(b"nothing")
        codec = load_gesture_rvqvae(tmp_path, face=False)
        assert codec.latent_channels == 4 + 5 + 6
        assert codec.fingerprint != with_face.fingerprint
        np.testing.assert_array_equal(codec.encode(gesture(12)), with_face.encode(gesture(12))[:, :15])


class TestFingerprint:
    @pytest.mark.slow
    def test_changes_with_every_file_and_nothing_else(self, tmp_path):
        write_codec(tmp_path)
        first = load_gesture_rvqvae(tmp_path).fingerprint
        assert len(first) == 64
        (tmp_path / "README.md").write_text("more")
        assert load_gesture_rvqvae(tmp_path).fingerprint == first
        seen = {first}
        for path in sorted(tmp_path.rglob("*.npy")):
            content = path.read_bytes()
            np.save(path, np.load(path, allow_pickle=False) * 1.5)
            seen.add(load_gesture_rvqvae(tmp_path).fingerprint)
            path.write_bytes(content)
        for number, (part, width) in enumerate(WIDTHS.items()):
            path = tmp_path / f"net_300000_{part}.pth"
            content = path.read_bytes()
            torch.save({"net": random_tensors(99, channels=width, size=4 + number)}, path)
            seen.add(load_gesture_rvqvae(tmp_path).fingerprint)
            path.write_bytes(content)
        assert len(seen) == 9
        assert load_gesture_rvqvae(tmp_path).fingerprint == first

    def test_is_of_the_statistics_that_nets_use(self, tmp_path):
        write_codec(tmp_path)
        first = load_gesture_rvqvae(tmp_path).fingerprint
        jaw = slice(6 * 22, 6 * 23)  # of SMPL-X' 55 joints; no part has it
        path = tmp_path / "mean_std" / "beatx_2_330_std.npy"
        std = np.load(path, allow_pickle=False)
        std[jaw] = 1e-9
        np.save(path, std)
        assert load_gesture_rvqvae(tmp_path).fingerprint == first


class TestAsACodecOfShards:
    def test_its_entry_says_rows_channels_and_options(self, folder):
        codec = load_codec("gesture-rvqvae", folder, torch.device("cpu"))
        entry = codec.entry
        assert (entry.name, entry.source) == ("gesture-rvqvae", "gesture.npy")
        assert (entry.frames_per_row, entry.channels, entry.tick_multiple) == (4, 22, 4)
        assert entry.fingerprint == load_gesture_rvqvae(folder).fingerprint
        assert "quantised" not in entry.settings  # it decides no latent
        assert entry.settings["parts"]["hands"]["channels"] == 180
        assert json.loads(json.dumps(entry.as_json())) == entry.as_json()
        np.testing.assert_array_equal(codec.encode(gesture(22)), load_gesture_rvqvae(folder).encode(gesture(22)))

    def test_a_lower_net_without_the_root_is_refused(self, tmp_path):
        write_codec(tmp_path, **WIDTHS | {"lower": 54})
        with pytest.raises(
            UsageFault, match="expected a lower-body network with 57 channels, including the root, found 54,"
        ):
            load_codec("gesture-rvqvae", tmp_path)

    def test_so_is_a_folder_without_the_face(self, tmp_path):
        write_codec(tmp_path, **WITHOUT_FACE)
        with pytest.raises(
            UsageFault, match=r"expected a file such as net_300000_face.pth, found no network of face; "
        ):
            load_codec("gesture-rvqvae", tmp_path)

    def test_and_one_that_is_not_there(self, tmp_path):
        with pytest.raises(UsageFault, match=r"gesture-rvqvae=.*none: expected a folder with the codec's files"):
            load_codec("gesture-rvqvae", tmp_path / "none")


class TestRealRecording:
    def test_loses_its_last_two_frames_and_no_other(self, folder, beat2_sample):
        from omniges.formats.npz import decode_motion

        path = beat2_sample / "beat_english_v2.0.0" / "smplxflame_30" / "2_scott_0_1_1.npz"
        motion = decode_motion(path.read_bytes())
        clip = gesture_from_motion(motion.poses, motion.expressions, motion.trans)
        codec = load_gesture_rvqvae(folder)
        latents = codec.encode(clip.gesture)
        assert latents.shape == (1906 // 4, 22)
        assert codec.decode(latents).shape == (1904, 415)
