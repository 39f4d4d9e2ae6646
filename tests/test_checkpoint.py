"""Networks in and out of files: what they must hold, and what is told where they do not."""

import copy
import json
import struct
import sys

import pytest
import torch
from conftest import header
from published import fill_by_rule
from safetensors.torch import load_file, save_file
from torch import nn

import mien
from mien.checkpoint import KEY, read_header
from mien.errors import CheckpointError
from mien.networks import (
    BTN,
    MobileFaceNet,
    ViT,
    btn,
    btn_mobile,
    build,
    load_network,
    mobilefacenet,
    poster,
    save_network,
)
from mien.networks.checkpoint import _is_network, fill, load_tensors

HEADER = header("mien.networks.ViT", num_classes=8, num_tokens=4, embed_dim=16)
HEADER["training"] = {"licence": "CC0", "data": "café"}


class Doubled(nn.Linear):
    """A network that is not mien's."""


def header(class_path: str, **arguments) -> dict:
    return HEADER | {"model": {"class_path": class_path, "init_args": arguments}}


def tiny() -> ViT:
    network = build(HEADER["model"])
    network.load_state_dict(fill_by_rule({name: t.shape for name, t in network.state_dict().items()}))
    return network


@pytest.fixture
def file(tmp_path):
    save_network(tmp_path / "tiny.safetensors", tiny(), HEADER)
    return tmp_path / "tiny.safetensors"


def changed(file, **tensors):
    """The same file with other tensors; None takes one away."""
    all_ = load_file(file) | tensors
    with open(file, "rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        metadata = json.loads(opened.read(length))["__metadata__"]
    save_file({name: t for name, t in all_.items() if t is not None}, file, metadata=metadata)
    return file


def test_round_trip(file):
    network = load_network(file)
    tokens = torch.randn(3, 4, 16)
    assert torch.equal(network(tokens), tiny().eval()(tokens))
    assert not network.training
    assert read_header(file) == HEADER
    assert {path.name for path in file.parent.iterdir()} == {"tiny.safetensors"}


def test_it_is_public():
    assert mien.load_network is load_network


def test_half_the_bits(tmp_path):
    """Matrices in fp16, statistics in fp32; loaded, all are fp32."""
    network = mobilefacenet()
    network.load_state_dict(fill_by_rule({name: t.shape for name, t in network.state_dict().items()}))
    with torch.no_grad():
        network.image.stem.bn.running_var[0] = 1e-9  # nothing, in fp16
    block = header("mien.networks.mobilefacenet", num_classes=8)
    save_network(tmp_path / "m.safetensors", network, block, dtype=torch.float16)
    for name, tensor in load_file(tmp_path / "m.safetensors").items():
        matrix = tensor.ndim > 1
        assert tensor.dtype == (torch.int64 if name.endswith("tracked") else torch.float16 if matrix else torch.float32)
    again = load_network(tmp_path / "m.safetensors")
    assert {t.dtype for t in again.state_dict().values()} == {torch.float32, torch.int64}
    assert again.image.stem.bn.running_var[0] == torch.tensor(1e-9)
    images = torch.randn(2, 3, 112, 112)
    a, b = network.eval()(images), again(images)
    assert not torch.equal(a, b)
    torch.testing.assert_close(a, b, atol=0.01 * a.std().item(), rtol=0.01)


def test_channels_last_and_bf16_networks_can_be_saved(tmp_path):
    network = mobilefacenet().to(memory_format=torch.channels_last)
    save_network(tmp_path / "m.safetensors", network, header("mien.networks.mobilefacenet", num_classes=8))
    again = load_network(tmp_path / "m.safetensors").state_dict()
    assert all(torch.equal(t, again[name]) for name, t in network.state_dict().items())


def test_shared_parameters_can_be_saved(tmp_path):
    network = btn_mobile(bt_shared=True)
    save_network(tmp_path / "b.safetensors", network, header("mien.networks.btn_mobile", bt_shared=True))
    branch = load_network(tmp_path / "b.safetensors").batch_transformer
    assert branch.embed_k is branch.embed_q


def test_overrides_replace_arguments_that_leave_the_weights_alone(tmp_path):
    network = btn_mobile()
    file = tmp_path / "b.safetensors"
    save_network(file, network, header("mien.networks.btn_mobile", num_classes=8, vit_loss_weight=1.5))
    assert load_network(file).loss_weights["vit"] == 1.5
    changed = load_network(file, vit_loss_weight=3.0, bt_detach_value=True, bt_value_softmax=True, mla_residual="query")
    assert changed.loss_weights == {"vit": 3.0, "bt": 1.0, "cba": 1.0}
    assert changed.batch_transformer.detach_value and changed.batch_transformer.value_softmax
    assert changed.mla_mid.residual == changed.mla_high.residual == "query"
    for options, reason in [
        ({"num_classes": 7}, "of another shape: batch_transformer.embed_k.bias is \\(8,\\), not \\(7,\\)"),
        ({"bt": False}, "without a place: batch_transformer.embed_k.bias, "),
        ({"mla_gate_lower": True}, "2 missing: mla_high.gate, mla_mid.gate"),
        ({"vit_tokens": "all"}, "cannot be built: vit_tokens must be"),
        ({"freeze_landmarks": True}, "cannot be built: .*'freeze_landmarks'"),
    ]:
        with pytest.raises(CheckpointError, match=f"b.safetensors: .*{reason}") as error:
            load_network(file, **options)
        assert "\n" not in str(error.value)


class Frozen(BTN):
    """BTN with trunks that a test can afford."""

    def __init__(self, **options):
        trunks = {"image": MobileFaceNet("relu6"), "landmarks": MobileFaceNet("prelu")}
        sizes = {"dims": (32, 64, 96), "adapt_kernel": 1, "key_strides": (4, 2, 1), "embed_dim": 32, "depth": 1}
        super().__init__(num_classes=8, num_heads=4, **trunks, **sizes, **options)


def test_landmarks_are_frozen_or_not_by_an_override(tmp_path):
    file = tmp_path / "f.safetensors"
    save_network(file, Frozen(), header(f"{__name__}.Frozen"))
    frozen, free = load_network(file, trust=True), load_network(file, trust=True, freeze_landmarks=False)
    assert not any(p.requires_grad for p in frozen.landmarks.parameters())
    assert all(p.requires_grad for p in free.landmarks.parameters())
    assert not frozen.train().landmarks.training and free.train().landmarks.training
    assert load_network(file, trust=True, landmark_bn_train=True).train().landmarks.training


# what a file may not be


def test_a_tensor_missing_left_over_or_of_another_shape(file):
    original = file.read_bytes()
    for tensors, reason in [
        ({"norm.bias": None}, "1 missing: norm.bias"),
        ({"norm.bias": None, "head.weight": None}, "2 missing: head.weight, norm.bias"),
        ({"more": torch.zeros(2)}, "1 without a place: more"),
        ({"norm.bias": torch.zeros(3)}, "1 of another shape: norm.bias is (3,), not (16,)"),
        (
            {"norm.bias": None, "more": torch.zeros(2), "head.bias": torch.zeros(())},
            "1 missing: norm.bias; 1 without a place: more; 1 of another shape: head.bias is (), not (8,)",
        ),
    ]:
        file.write_bytes(original)
        with pytest.raises(CheckpointError) as error:
            load_network(changed(file, **tensors))
        assert str(error.value) == f"{file}: tensors do not fit: {reason}"


def test_of_many_tensors_the_first_are_named():
    with pytest.raises(CheckpointError, match=r"here: tensors do not fit: 20 missing: (\S+, ){8}…; 1 without"):
        fill(nn.ModuleList(nn.Linear(2, 2) for _ in range(10)), {"x": torch.zeros(1)}, "here")


def test_a_file_cut_short(file):
    content = file.read_bytes()
    for keep in (0, 4, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:keep])
        with pytest.raises(CheckpointError, match=f"{file}: damaged or cut short") as error:
            load_network(file)
        assert "\n" not in str(error.value)


def test_files_that_are_no_checkpoints(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "plain.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "text.pt").write_text("hello")
    for name, reason in [
        ("gone.safetensors", "no such file"),
        ("plain.safetensors", "not one of mien's checkpoints"),
        ("folder.safetensors", "is a directory"),
        ("text.pt", "a checkpoint is a .safetensors, .onnx, .xml or .pt2 file"),
    ]:
        with pytest.raises(CheckpointError, match=f"{tmp_path / name}: {reason}"):
            load_network(tmp_path / name)


def test_the_weights_of_an_onnx_file_are_not_for_torch(stand_in):
    with pytest.raises(CheckpointError, match=r"model\.onnx: its weights are for engines"):
        load_network(stand_in / "model.onnx")


@pytest.mark.parametrize(
    "class_path, reason",
    [
        ("mien.networks.gone", "there is no network mien.networks.gone"),
        ("mien.gone.btn", "there is no network mien.gone.btn"),
        ("mien.networks", "mien.networks is not a network"),
        ("mien.networks.btn.Sequence", "mien.networks.btn.Sequence is not a network"),
        ("mien.labels.EXPRESSIONS", "mien.labels.EXPRESSIONS is not a network"),
        ("os.system", r"os.system is not one of mien's networks: trust=True \(--trust\) imports it all the same"),
        ("mienfield.networks.btn", "mienfield.networks.btn is not one of mien's networks"),
    ],
)
def test_networks_that_are_none(class_path, reason, tmp_path):
    save_network(tmp_path / "x.safetensors", nn.Linear(1, 1), header(class_path))
    with pytest.raises(CheckpointError, match=f"x.safetensors: {reason}") as error:
        load_network(tmp_path / "x.safetensors")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("class_path", ["", "mien.", "mien..btn", "mien networks"])
def test_a_path_that_names_no_class_is_not_written(class_path, tmp_path):
    with pytest.raises(CheckpointError, match='x.safetensors: its header has a "class_path" that names no class'):
        save_network(tmp_path / "x.safetensors", nn.Linear(1, 1), header(class_path))
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(
    "class_path, arguments",
    [
        ("mien.networks.save_network", {"path": "FILE", "network": None, "header": HEADER}),
        ("mien.networks.load_network", {"path": "FILE", "trust": True}),
        (
            "mien.networks.build",
            {"model": {"class_path": "builtins.open", "init_args": {"file": "FILE"}}, "trust": True},
        ),
        ("mien.networks.checkpoint.save_network", {"path": "FILE", "network": None, "header": HEADER}),
        ("mien.networks.checkpoint.Path", {"path": "FILE"}),
        ("mien.errors.require", {"module": "this", "extra": ""}),
        ("mien.__main__.main", {"argv": ["list"]}),
        ("mien.files.os.system", {"command": "touch FILE"}),
        ("mien.networks.btn.nn.Linear", {"in_features": 2, "out_features": 2}),
        ("mien.networks.poster.nn", {}),
        ("mien.networks.vit.Block.forward", {"self": None, "tokens": None}),
    ],
)
def test_what_is_no_network_is_not_called(class_path, arguments, tmp_path, capsys):
    """A header is a stranger's word: a name of mien's may write files, or import what it is told."""
    arguments = json.loads(json.dumps(arguments).replace("FILE", str(tmp_path / "marker")))
    with pytest.raises(CheckpointError, match=rf"^({class_path} is not a network|there is no network {class_path})$"):
        build({"class_path": class_path, "init_args": arguments})
    assert not list(tmp_path.iterdir()) and "this" not in sys.modules and not capsys.readouterr().out


@pytest.mark.parametrize(
    "class_path, arguments",
    [
        ("mien.networks.btn_mobile", {"num_classes": "eight"}),
        ("mien.networks.btn_mobile", {"num_classes": -1}),
        ("mien.networks.Poster", {"image": "ir50", "landmarks": None, "num_classes": 7}),
        ("mien.networks.ViT", {"depth": 0.5}),
        ("mien.networks.ViT", {"num_heads": 0}),
    ],
)
def test_arguments_that_cannot_be(class_path, arguments):
    with pytest.raises(CheckpointError, match=f"^{class_path} cannot be built: .+$") as error:
        build({"class_path": class_path, "init_args": arguments})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["BTN", "CaiT", "IR50", "MobileFaceNet", "PlainClassifier", "Poster", "ViT"])
def test_every_network_and_size_may_be_called(name):
    import mien.networks

    assert _is_network(getattr(mien.networks, name))
    assert all(_is_network(make) for make in (btn, btn_mobile, poster, mobilefacenet))


def test_a_network_of_others_needs_trust(tmp_path):
    file = tmp_path / "x.safetensors"
    network = Doubled(3, 2)
    save_network(file, network, header(f"{__name__}.Doubled", in_features=3, out_features=2))
    with pytest.raises(CheckpointError, match=f"{__name__}.Doubled is not one of mien's networks: trust=True"):
        load_network(file)
    again = load_network(file, trust=True)
    assert type(again) is Doubled and torch.equal(again.weight, network.weight)


# writing


def test_nothing_is_written_but_a_whole_file(tmp_path, monkeypatch):
    file = tmp_path / "new" / "tiny.safetensors"
    broken = copy.deepcopy(HEADER)
    del broken["id2label"]["3"]
    with pytest.raises(CheckpointError, match="does not number"):
        save_network(file, tiny(), broken)
    assert not file.parent.exists()

    save_network(file, tiny(), HEADER)
    before = file.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mien.networks.checkpoint.save", full)
    with pytest.raises(OSError):
        save_network(file, tiny(), HEADER)
    assert file.read_bytes() == before and len(list(file.parent.iterdir())) == 1


def test_part_of_a_file(file):
    tensors = load_tensors(file, "vit")
    assert tensors == {}
    norm = load_tensors(file, "norm")
    assert norm.keys() == {"weight", "bias"} == load_tensors(file, "norm.").keys()
    assert torch.equal(norm["bias"], tiny().norm.bias)
    assert load_tensors(file).keys() == tiny().state_dict().keys()
    assert KEY == "mien"
