"""MobileNet: its graph model of TensorFlow.js, opened and computed; batch norms that were part of convolutions."""

import json

import numpy as np
import pytest
import torch
from published import GOLDEN, rng
from torch import nn

from mien.errors import CheckpointError
from mien.networks import MobileNet, load_network, mobilenet
from mien.networks.convert import convert
from mien.networks.published import from_mobilenet
from mien.training.start import settle_norms

WIDTHS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)


def published_tensors() -> dict[str, np.ndarray]:
    """By their published names: kernels of unit gain, factors near 1, offsets near 0."""
    shapes: dict[str, tuple[int, ...]] = {
        "conv1/convolution/merged_input": (3, 3, 3, 32),
        "conv1_bn/batchnorm_1/sub": (32,),
        "feats/kernel": (1024, 256),
    }
    c_in = 32
    for i, c_out in enumerate(WIDTHS, start=1):
        shapes[f"conv_dw_{i}/depthwise_kernel"] = (3, 3, c_in, 1)
        shapes[f"conv_dw_{i}_bn/batchnorm_1/mul"] = shapes[f"conv_dw_{i}_bn/batchnorm_1/sub"] = (c_in,)
        shapes[f"conv_pw_{i}/convolution/merged_input"] = (1, 1, c_in, c_out)
        shapes[f"conv_pw_{i}_bn/batchnorm_1/sub"] = (c_out,)
        c_in = c_out
    tensors = {}
    for name, shape in shapes.items():
        z = rng(name).standard_normal(shape)
        if len(shape) == 4:
            z *= np.sqrt(2 / (9 if "depthwise" in name else np.prod(shape[:3])))
        else:
            z = 1 + 0.1 * z if name.endswith("mul") else 0.1 * z
        tensors[name] = z.astype(np.float32)
    return tensors


def write_graph(folder, tensors, stored="float32"):
    kind = {"float32": "<f4", "float16": "<f2"}[stored]
    halves = {} if stored == "float32" else {"quantization": {"dtype": stored}}
    entries = [{"name": n, "shape": list(t.shape), "dtype": "float32"} | halves for n, t in tensors.items()]
    weights = b"".join(t.astype(kind).tobytes() for t in tensors.values())
    (folder / "a.bin").write_bytes(weights[:1000])  # two files, cut within a tensor
    (folder / "b.bin").write_bytes(weights[1000:])
    manifest = [{"paths": ["a.bin", "b.bin"], "weights": entries}]
    (folder / "model.json").write_text(json.dumps({"format": "graph-model", "weightsManifest": manifest}))
    return folder / "model.json"


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graph")
    return convert("mobilenet", write_graph(folder, published_tensors()), folder / "trunk.safetensors")


def test_computes_what_tensorflow_js_does(converted):
    """The whole network, of images with an even and an odd side; faces are RGB here and BGR there."""
    golden = np.load(GOLDEN / "mobilenet.npz")
    network = load_network(converted)
    assert isinstance(network, MobileNet)
    faces = torch.from_numpy(rng("faces").uniform(0, 255, (2, 96, 83, 3)).astype(np.float32))
    faces = (faces - torch.tensor([103.939, 116.779, 123.68])).permute(0, 3, 1, 2).flip(1)
    with torch.no_grad():
        low, _, high = network(faces)
    assert np.abs(high.mean((2, 3)).numpy() - golden["pooled"]).max() < 1e-5
    assert np.abs(low.permute(0, 2, 3, 1).numpy()[:, ::3, ::3] - golden["map"]).max() < 5e-5


def test_weights_stored_as_halves(converted, tmp_path):
    path = convert("mobilenet", write_graph(tmp_path, published_tensors(), "float16"), tmp_path / "t.safetensors")
    whole, halves = load_network(converted).state_dict(), load_network(path).state_dict()
    assert all(torch.allclose(whole[name], halves[name], atol=2e-3) for name in whole)


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda folder: (folder / "b.bin").unlink(), "b.bin: no such file"),
        (lambda folder: (folder / "b.bin").write_bytes(b"cut"), "model.json: no graph model of TensorFlow.js, or"),
        (lambda folder: (folder / "model.json").write_text("[]"), "model.json: no graph model of TensorFlow.js, or"),
        (
            lambda folder: (folder / "model.json").write_text("[" * 99999),
            "model.json: no graph model of TensorFlow.js, or",
        ),
        (
            lambda folder: (folder / "model.json").write_text('{"weightsManifest": [{"paths": [], "weights": ["a"]}]}'),
            "model.json: no graph model of TensorFlow.js, or",
        ),
        (
            lambda folder: (folder / "model.json").write_text(
                (folder / "model.json").read_text().replace('"dtype": "float32"', '"dtype": "uint8"')
            ),
            "model.json: no graph model of TensorFlow.js, or",
        ),
    ],
    ids=["a file is missing", "cut off", "another file", "nested", "no entry", "whole numbers"],
)
def test_a_damaged_graph_model_is_one_line(damage, reason, tmp_path):
    source = write_graph(tmp_path, published_tensors())
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=reason):
        convert("mobilenet", source, tmp_path / "t.safetensors")


def test_of_another_network(tmp_path):
    tensors = published_tensors()
    tensors["dense/kernel"] = tensors.pop("conv_dw_3/depthwise_kernel")
    with pytest.raises(CheckpointError, match="dense/kernel"):
        convert("mobilenet", write_graph(tmp_path, tensors), tmp_path / "t.safetensors")


@pytest.mark.parametrize("side", [96, 83])
def test_learns_from_what_it_computes(side):
    """In training on a CPU a strided depthwise convolution is computed in another way."""
    network = mobilenet(dropout=0.0)
    images = torch.randn(2, 3, side, side)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert torch.allclose(network(images), network.eval()(images), atol=1e-6)


def test_norms_are_settled_and_answers_stay():
    state, _ = from_mobilenet({name: torch.from_numpy(t) for name, t in published_tensors().items()})
    network = MobileNet().eval()
    network.load_state_dict(state, strict=False)
    images = torch.from_numpy(rng("faces").uniform(-120, 130, (8, 3, 96, 96)).astype(np.float32))
    with torch.no_grad():
        before = network(images)[-1]
        moved = network.train()(images)[-1]
        network.load_state_dict(state, strict=False)
        settle_norms(network, images)
        learning = network.train()(images)[-1]  # by the statistics of these images: the same
        network.load_state_dict(state, strict=False)
        settle_norms(network, images)
        after = network.eval()(images)[-1]
    assert (moved - before).abs().max() > 1
    assert torch.allclose(after, before, atol=1e-3) and (learning - before).abs().mean() < 0.01
    assert all(not m._forward_pre_hooks for m in network.modules())
