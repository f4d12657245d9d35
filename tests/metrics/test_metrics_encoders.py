"""Encoders from files compute what the same layers of torch compute, and refuse what they are not."""

import hashlib
import json

import numpy as np
import pytest
from metrics_builders import untouched

from omniges.errors import DataError, UsageFault
from omniges.features.gesture import six_d_from_rotvec
from omniges.metrics.frechet import load_encoder, load_features
from omniges.metrics.motion_encoder import encoder_input

torch = pytest.importorskip("torch")
safetensors_numpy = pytest.importorskip("safetensors.numpy")

POSES = np.random.default_rng(0).normal(0, 0.4, (107, 165))
LAYERS = [("tanh", 24, 4, 2, 1), ("leaky_relu", 16, 4, 2, 1), ("relu", 12, 3, 1, 0), ("none", 8, 5, 3, 2)]


def folder_of_convolutions(folder, **changes):
    rng = np.random.default_rng(1)
    tensors, rows, width = {}, [], 330
    for k, (activation, out, kernel, stride, padding) in enumerate(LAYERS):
        tensors[f"layers.{k}.weight"] = rng.normal(0, 0.2, (out, width, kernel)).astype(np.float32)
        tensors[f"layers.{k}.bias"] = rng.normal(0, 0.2, out).astype(np.float32)
        rows.append({"stride": stride, "padding": padding, "activation": activation})
        width = out
    path = folder / "encoder.safetensors"
    safetensors_numpy.save_file(tensors, path)
    settings = {"format": "omniges-encoder", "version": 1, "multiple_of_frames": 32, "layers": rows} | changes
    path.with_suffix(".json").write_text(json.dumps(settings))
    return path, tensors


def by_torch(tensors, layers, poses):
    x = torch.from_numpy(encoder_input(poses).T.copy())[None]
    for k, (activation, _, _, stride, padding) in enumerate(layers):
        weight, bias = (torch.from_numpy(tensors[f"layers.{k}.{part}"]).double() for part in ("weight", "bias"))
        x = torch.nn.functional.conv1d(x, weight, bias, stride=stride, padding=padding)
        if activation != "none":
            x = getattr(torch.nn.functional, activation)(x)
    return x[0].T.numpy()


class TestInput:
    def test_six_d_of_all_joints_cut_to_the_multiple(self):
        found = encoder_input(POSES)
        assert found.shape == (96, 330)
        np.testing.assert_array_equal(found[5, 6 * 22 : 6 * 23], six_d_from_rotvec(POSES[5, 66:69]))

    def test_a_pose_at_rest_is_the_identity(self):
        np.testing.assert_array_equal(encoder_input(np.zeros((32, 165))), np.tile([1, 0, 0, 0, 1, 0], (32, 55)))

    def test_too_short(self):
        with pytest.raises(DataError, match="poses: expected 32 or more rows, found 31"):
            encoder_input(POSES[:31])


class TestConvolutions:
    def test_the_same_as_torch(self, tmp_path):
        path, tensors = folder_of_convolutions(tmp_path)
        encoder = load_encoder(path)
        poses = POSES.copy()
        with untouched(poses):
            found = encoder.encode(poses)
        np.testing.assert_allclose(found, by_torch(tensors, LAYERS, POSES), atol=1e-10)
        sha = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        assert encoder.name == f"convolutions:encoder.safetensors:{sha}"

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"version": 2}, "version"),
            ({"more": 1}, "more: expected no key of this name"),
            ({"multiple_of_frames": 0}, "multiple_of_frames"),
            ({"multiple_of_frames": True}, "multiple_of_frames"),
            ({"multiple_of_frames": 1}, "expected an output for 1 frames"),
            ({"layers": []}, "at least one object"),
            (
                {"layers": [{"stride": 1, "padding": 0, "activation": "tanh"}]},
                "expected tensors of the . layers? in .*, found a difference in",
            ),
            ({"layers": [{"stride": 1, "padding": 0, "activation": "gelu"}] * 4}, "an activation of"),
            ({"layers": [{"stride": 0, "padding": 0, "activation": "tanh"}] * 4}, "stride: expected .*found 0"),
        ],
    )
    def test_settings_that_do_not_fit(self, tmp_path, changes, message):
        path, _ = folder_of_convolutions(tmp_path, **changes)
        with pytest.raises(DataError, match=message) as caught:
            load_encoder(path)
        assert "\n" not in str(caught.value)

    def test_tensors_of_another_width(self, tmp_path):
        path, tensors = folder_of_convolutions(tmp_path)
        tensors["layers.1.weight"] = tensors["layers.1.weight"][:, :5].copy()
        safetensors_numpy.save_file(tensors, path)
        with pytest.raises(DataError, match=r"layer 1.*\(out, 24, kernel\)"):
            load_encoder(path)

    def test_tensors_of_whole_numbers(self, tmp_path):
        path, tensors = folder_of_convolutions(tmp_path)
        safetensors_numpy.save_file(tensors | {"layers.0.bias": np.zeros(24, dtype=np.int32)}, path)
        with pytest.raises(DataError, match=r"expected F16.*I32"):
            load_encoder(path)

    def test_damaged_and_missing_files(self, tmp_path):
        path, _ = folder_of_convolutions(tmp_path)
        path.with_suffix(".json").write_text("{")
        with pytest.raises(DataError, match="expected a JSON document"):
            load_encoder(path)
        path, _ = folder_of_convolutions(tmp_path)
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(DataError, match=r"expected a \.safetensors file"):
            load_encoder(path)
        path.with_suffix(".json").unlink()
        with pytest.raises(UsageFault, match="the file does not exist"):
            load_encoder(path)
        with pytest.raises(UsageFault, match="the file does not exist"):
            load_encoder(tmp_path / "nowhere.safetensors")


class _Net(torch.nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.mode: int = mode
        self.conv = torch.nn.Conv1d(330, 8, 4, stride=4)

    def forward(self, x):
        if self.mode == 1:
            return x.mean(dim=1)
        if self.mode == 2:
            return x.sum()
        if self.mode == 3:
            return x[:, :, :7].reshape(5, 1)
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


def script(path, mode=0):
    import warnings

    torch.manual_seed(0)
    net = _Net(mode)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(net), path)
    return net


class TestTorchScript:
    def test_the_same_as_the_module(self, tmp_path):
        net = script(tmp_path / "net.pt")
        encoder = load_encoder(tmp_path / "net.pt", trust_program=True)
        expected = net(torch.from_numpy(encoder_input(POSES)).float()[None])[0].detach().double().numpy()
        np.testing.assert_array_equal(encoder.encode(POSES), expected)
        assert encoder.name.startswith("torchscript:net.pt:")

    def test_one_row_a_clip(self, tmp_path):
        script(tmp_path / "net.pt", mode=1)
        assert load_encoder(tmp_path / "net.pt", trust_program=True).encode(POSES).shape == (1, 330)

    @pytest.mark.parametrize(("mode", "message"), [(2, "expected features"), (3, "expected features of input")])
    def test_programs_that_do_not_fit(self, tmp_path, mode, message):
        script(tmp_path / "net.pt", mode)
        with pytest.raises(DataError, match=message) as caught:
            load_encoder(tmp_path / "net.pt", trust_program=True).encode(POSES)
        assert "\n" not in str(caught.value)

    def test_files_that_are_none(self, tmp_path):
        (tmp_path / "net.pt").write_bytes(b"not a program")
        with pytest.raises(DataError, match="expected TorchScript"):
            load_encoder(tmp_path / "net.pt", trust_program=True)


class TestFeatureFiles:
    def test_rows_and_name(self, tmp_path):
        rows = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
        np.save(tmp_path / "a.npy", rows)
        found = load_features(tmp_path / "a.npy")
        np.testing.assert_array_equal(found.rows, rows)
        assert found.rows.dtype == np.float32
        assert found.name.startswith("features:a.npy:")

    def test_pickles_archives_and_rubbish_are_refused(self, tmp_path):
        path = tmp_path / "a.npy"
        np.save(path, np.array([{}, {}], dtype=object), allow_pickle=True)
        whole = tmp_path / "whole.npy"
        np.save(whole, np.ones((20, 4)))
        np.savez(tmp_path / "archive.npz", a=np.ones((2, 2)))
        contents = [
            path.read_bytes(),
            b"",
            b"rubbish",
            b"PK\3\4rubbish",
            whole.read_bytes()[:300],
            (tmp_path / "archive.npz").read_bytes(),
        ]
        for content in contents:
            path.write_bytes(content)
            with pytest.raises(DataError, match=r"a\.npy"):
                load_features(path)

    def test_other_arrays(self, tmp_path):
        for rows, fault in (
            (np.ones(5), UsageFault),
            (np.ones((1, 5)), DataError),
            (np.full((4, 2), np.nan), DataError),
        ):
            np.save(tmp_path / "a.npy", rows)
            with pytest.raises(fault, match=r"a\.npy"):
                load_features(tmp_path / "a.npy")
        with pytest.raises(UsageFault, match="the file does not exist"):
            load_features(tmp_path / "b.npy")
