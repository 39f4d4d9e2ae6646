"""mien export: files for other engines, how their weights are stored, and what is checked before they are written."""

import hashlib
import logging
import pickle
import re

import numpy as np
import onnx
import pytest
import torch
from conftest import HEADER
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn
from torch.nn.functional import relu6

import mien.export.model
import mien.export.onnx
import mien.networks
import mien.precision
from mien.__main__ import main
from mien.checkpoint import read_header
from mien.classifier import Classifier
from mien.commands.export import root_silenced
from mien.data import Folder
from mien.engines import OnnxRuntimeEngine, OpenVINOEngine, computes_bf16
from mien.errors import Misuse
from mien.export import AccuracyLost, export_model
from mien.export.quantize import first_convolutions, quantize
from mien.networks import load_network, save_network


class Tiny(nn.Module):
    """Five convolutions, a sum, and a head: images (B, 3, 32, 32) -> logits (B, 8)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.expand = nn.Conv2d(8, 16, 1)
        self.middle = nn.Conv2d(16, 16, 3, 2, 1, groups=16)
        self.project = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 8)

    def forward(self, images):
        x = relu6(self.expand(self.depthwise(relu6(self.stem(images))).relu()))
        x = x[..., ::2, ::2] + self.project(relu6(self.middle(x)))
        return self.head(x.mean((2, 3)))


STEPS = [{"size": 32, "interpolation": "auto"}]
BLOCK = {
    "model": {"class_path": f"{__name__}.Tiny", "init_args": {}},
    "preprocess": HEADER["preprocess"] | {"resize": STEPS, "input_size": 32},
    "precision": {
        "bf16": {"accuracy_difference": -0.5, "interval": [-0.6, -0.4], "faces": 10, "mean_distance": 0.1},
    },
}


pytestmark = pytest.mark.usefixtures("exported_once")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    torch.manual_seed(0)
    network = Tiny()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.mul_(3)
    save_network(path, network, HEADER | BLOCK)
    return path


@pytest.fixture(scope="module")
def pictures():
    noise = np.random.default_rng(0)
    return [(noise.random((32, 32, 3)) * colour).astype(np.uint8) for colour in noise.integers(1, 256, (40, 3))]


@pytest.fixture(scope="module")
def data(checkpoint, pictures, tmp_path_factory):
    """Pictures that are what torch says they are; a training split of others, all red."""
    root = tmp_path_factory.mktemp("data")
    labels = Classifier.from_pretrained(checkpoint, trust=True).predict(pictures)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        for split, shown in (("validation", picture), ("train", picture * np.array([1, 0, 0], np.uint8))):
            folder = root / split / label
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(shown).save(folder / f"{i}.png")
    return root


def export(checkpoint: object, out: object, *words: object) -> int:
    return main(["export", str(out), "--model", str(checkpoint), "--trust", *map(str, words)])


def types_of(path) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in onnx.load(path).graph.initializer}


def test_a_folder_holds_two_files_that_answer_alike(checkpoint, pictures, tmp_path, capsys):
    assert export(checkpoint, tmp_path / "out") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out/model.onnx'}\n"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.onnx", "model.safetensors"}
    assert read_header(tmp_path / "out/model.onnx") == read_header(tmp_path / "out/model.safetensors") == HEADER | BLOCK
    assert TensorProto.FLOAT16 in types_of(tmp_path / "out/model.onnx").values()
    a, b = (Classifier.from_pretrained(tmp_path / f"out/model.{kind}", trust=True) for kind in ("onnx", "safetensors"))
    np.testing.assert_allclose(a.predict_proba(pictures), b.predict_proba(pictures), atol=1e-5)


def test_how_weights_are_stored(checkpoint, tmp_path):
    weights = {tensor.numpy().tobytes() for tensor in load_network(checkpoint, trust=True).state_dict().values()}
    for words, half in (((), False), (("--precision", "fp32"), False), (("--precision", "fp16"), True)):
        path = tmp_path / "model.onnx"
        assert export(checkpoint, path, *words) == 0
        assert (TensorProto.FLOAT16 in types_of(path).values()) == half
        stored = {numpy_helper.to_array(tensor).tobytes() for tensor in onnx.load(path).graph.initializer}
        assert bool(stored & weights) and (len(stored & weights) >= 10) != half
    assert export(checkpoint, tmp_path / "full", "--precision", "fp32") == 0
    assert (tmp_path / "full/model.safetensors").stat().st_size == checkpoint.stat().st_size
    # what was loaded from fp16 is stored in it, but for fp32 on request
    assert export(checkpoint, tmp_path / "half") == 0
    for words, half in (((), True), (("--precision", "fp32"), False)):
        assert export(tmp_path / "half/model.safetensors", tmp_path / "b.onnx", *words) == 0
        assert (TensorProto.FLOAT16 in types_of(tmp_path / "b.onnx").values()) == half


def test_int8(checkpoint, pictures, data, tmp_path, capsys):
    path = tmp_path / "small.onnx"
    assert export(checkpoint, path, "--precision", "int8", "--calibrate", data, "--check", data) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(f"{checkpoint}, torch") and lines[1].split()[-3::2] == ["1.0000", "1.0×"]
    assert lines[2].startswith(f"{path}, OpenVINO") and re.search(r" [\d.]+ +[\d.]+ +[\d.]+×$", lines[2])
    assert "on 40 faces, 0 won and 0 lost (McNemar p = 1), same label" in lines[3]
    assert "largest difference 0.0" in lines[3]
    assert lines[4:] == [str(path)]
    header = read_header(path)
    assert header == {key: value for key, value in (HEADER | BLOCK).items() if key != "precision"}

    model = onnx.load(path)
    assert {node.domain for node in model.graph.node} == {""}
    int8 = [t for t in model.graph.initializer if t.data_type == TensorProto.INT8 and t.dims]
    kernels = sorted(tuple(t.dims) for t in int8 if len(t.dims) == 4)
    assert kernels == [(16, 1, 3, 3), (16, 8, 1, 1), (16, 16, 1, 1)]  # expand, middle, project; neither stem nor head
    [faces], outputs = model.graph.input, model.graph.output
    assert (faces.name, faces.type.tensor_type.elem_type) == ("faces", TensorProto.UINT8)
    assert faces.type.tensor_type.shape.dim[0].dim_param and [output.name for output in outputs] == ["logits", "probs"]

    exact = Classifier.from_pretrained(checkpoint, trust=True).predict_proba(pictures)
    for engine in (OpenVINOEngine(path), OnnxRuntimeEngine(path)):
        for count in (1, 3, 40):
            probs = engine(np.stack(pictures[:count]))["probs"]
            assert probs.shape == (count, 8)
            assert 0 < np.abs(probs - exact[:count]).max() < 0.05


def test_a_folder_gets_int8_beside_fp32(checkpoint, pictures, data, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert export(checkpoint, out, "--calibrate", data, "--check", data, "--limit", 30) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["fp32", "int8"] and lines[-1] == str(out / "model.onnx")
    assert {path.name for path in out.iterdir()} == {"model.onnx", "model.int8.onnx", "model.safetensors"}
    header = read_header(out / "model.onnx")
    assert header == read_header(out / "model.safetensors")
    small = (out / "model.int8.onnx").read_bytes()
    int8 = header["precision"].pop("int8")
    assert header == HEADER | BLOCK and "precision" not in read_header(out / "model.int8.onnx")
    assert int8.pop("sha256") == hashlib.sha256(small).hexdigest() and int8["faces"] == 30
    assert int8["accuracy_difference"] == 0 and 0 < int8["mean_distance"] < 0.05

    exact, other = (Classifier.from_pretrained(out, precision=precision) for precision in ("fp32", "int8"))
    assert other.engine.precision == "int8"
    assert 0 < np.abs(exact.predict_proba(pictures) - other.predict_proba(pictures)).max() < 0.05
    before = {file: file.read_bytes() for file in out.iterdir()}
    plain, spoilt = onnx.load(out / "model.onnx"), spoil(onnx.load(out / "model.int8.onnx"), None)
    made = lambda *_, calibration=None, **__: plain if calibration is None else spoilt  # noqa: E731
    monkeypatch.setattr(mien.export.model, "make_onnx", made)
    assert export(checkpoint, out, "--calibrate", data, "--measure", data) == 1
    assert f"mien: {out / 'model.int8.onnx'}: not written, it loses " in capsys.readouterr().err
    assert {file: file.read_bytes() for file in out.iterdir()} == before

    assert export(out, tmp_path / "alone.onnx") == 0  # beside which there is no int8 file
    assert read_header(tmp_path / "alone.onnx") == HEADER | BLOCK


def test_int8_for_openvino_with_the_training_faces_of_check(checkpoint, pictures, data, tmp_path, monkeypatch, capsys):
    path = tmp_path / "small.xml"
    assert export(checkpoint, path, "--precision", "int8", "--check", data) == 0
    assert capsys.readouterr().out.splitlines()[2].startswith(f"{path}, OpenVINO")
    assert {file.name for file in tmp_path.iterdir()} == {"small.xml", "small.bin"}
    assert "precision" not in read_header(path) and 'element_type="i8"' in path.read_text()
    exact = Classifier.from_pretrained(checkpoint, trust=True).predict_proba(pictures)
    for count in (1, 3, 40):
        assert 0 < np.abs(OpenVINOEngine(path)(np.stack(pictures[:count]))["probs"] - exact[:count]).max() < 0.05
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr(mien.export.onnx, "quantize", spoil)
    assert export(checkpoint, path, "--precision", "int8", "--check", data) == 1
    assert f"mien: {path}: not written, it loses " in capsys.readouterr().err
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_int8_needs_other_faces_than_those_that_check_it(checkpoint, data, tmp_path, capsys):
    for words in (("a.onnx", "--precision", "int8"), ("folder", "--calibrate", data)):
        with pytest.raises(SystemExit) as end:
            export(checkpoint, tmp_path / words[0], *words[1:], "--check", data, "--split", "train")
        assert end.value.code == 2 and "no training faces beside those to check with" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_program_is_checked_too(checkpoint, pictures, data, tmp_path, capsys):
    path = tmp_path / "a.pt2"
    assert export(checkpoint, path, "--precision", "fp16", "--check", data, "--limit", 20) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith(f"{path}, torch") and "on 20 faces, 0 won and 0 lost" in lines[3]
    assert read_header(path) == HEADER | BLOCK
    exact = Classifier.from_pretrained(checkpoint, trust=True).predict_proba(pictures)
    assert 0 < np.abs(Classifier.from_pretrained(path).predict_proba(pictures) - exact).max() < 0.01  # of fp16


def test_only_training_faces_calibrate(checkpoint, data, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(mien.export.onnx, "quantize", lambda model, faces: seen.append(faces) or model)
    words = ("--precision", "int8", "--calibrate", data, "--check", data, "--split", "validation", "--limit", 4)
    assert export(checkpoint, tmp_path / "a.onnx", *words) == 0
    assert seen[0].shape == (40, 32, 32, 3) and seen[0][..., 0].any() and not seen[0][..., 1:].any()


def spoil(model, faces):
    """In the place of quantizing: a model that always says the same."""
    head = next(t for t in model.graph.initializer if t.name.endswith("head.bias"))
    head.CopyFrom(numpy_helper.from_array(np.float32([0, 0, 0, 0, 0, 0, 0, 1e4]), head.name))
    return model


def test_a_file_that_loses_accuracy_is_not_written(checkpoint, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mien.export.onnx, "quantize", spoil)
    words = ("--precision", "int8", "--calibrate", data, "--check", data)
    path = tmp_path / "new/a.onnx"
    assert export(checkpoint, path, *words) == 1
    assert f"mien: {path}: not written, it loses " in capsys.readouterr().err
    assert not path.parent.exists()
    old = tmp_path / "old.onnx"
    old.write_bytes(b"as it was")
    assert export(checkpoint, old, *words) == 1
    assert old.read_bytes() == b"as it was" and len(list(tmp_path.iterdir())) == 1


def test_what_bf16_does_is_written_into_both_files(checkpoint, data, tmp_path, monkeypatch, capsys):
    able = computes_bf16()
    for module in (mien.export.model, mien.precision):
        monkeypatch.setattr(module, "computes_bf16", lambda: True)
    assert export(checkpoint, tmp_path / "plain") == 0
    assert export(checkpoint, tmp_path / "out", "--measure", data, "--limit", 30) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-4:-1]] == ["fp32", "bf16", "accuracy"]
    headers = [read_header(tmp_path / f"out/model.{kind}") for kind in ("onnx", "safetensors")]
    assert headers[0] == headers[1]
    measured = headers[0].pop("precision")["bf16"]
    assert headers[0] == {key: value for key, value in (HEADER | BLOCK).items() if key != "precision"}
    assert measured["faces"] == 30 and measured != BLOCK["precision"]["bf16"]
    low, high = measured["interval"]
    assert low <= measured["accuracy_difference"] <= high and 0 <= measured["mean_distance"] < 0.05
    for kind in ("onnx", "safetensors"):  # else the files are what they would have been
        plain, out = ((tmp_path / name / f"model.{kind}").read_bytes() for name in ("plain", "out"))
        assert plain[-1000:] == out[-1000:] if kind == "safetensors" else abs(len(plain) - len(out)) < 100
    bears = measured["accuracy_difference"] > -0.003
    assert Classifier.from_pretrained(tmp_path / "out").engine.precision == ("bf16" if bears and able else "fp32")


def test_without_bf16_there_is_nothing_to_measure(checkpoint, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mien.export.model, "computes_bf16", lambda: False)
    assert export(checkpoint, tmp_path / "out", "--measure", data) == 0
    assert "what bf16 does to the answers was not measured: this CPU does not compute in it" in capsys.readouterr().err
    assert read_header(tmp_path / "out/model.onnx") == HEADER | BLOCK


@pytest.mark.parametrize(
    "words",
    [
        ("a.onnx", "--precision", "int8"),
        ("folder", "--precision", "int8", "--calibrate", "data"),
        ("folder", "--calibrate", "data"),
        ("a.onnx", "--calibrate", "data"),
        ("a.onnx", "--precision", "fp16", "--calibrate", "data"),
        ("a.onnx", "--precision", "int8", "--calibrate", "data", "--measure", "data"),
        ("a.onnx", "--precision", "int4"),
        ("a.pt2", "--precision", "int8", "--calibrate", "data"),
        ("a.pt2", "--measure", "data"),
        ("a.onnx", "--limit", "0"),
    ],
)
def test_options_that_do_not_go_together(checkpoint, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        export(checkpoint, *words)
    assert end.value.code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--calibrate", "--check", "--measure"])
def test_data_that_is_not_there_is_told_before_the_work(checkpoint, tmp_path, capsys, monkeypatch, option):
    monkeypatch.setattr(mien.export.model, "make_onnx", None)
    int8 = ("--precision", "int8") if option == "--calibrate" else ()
    assert export(checkpoint, tmp_path / "a.onnx", *int8, option, tmp_path / "nowhere") == 1
    assert str(tmp_path / "nowhere") in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_python_gets_what_the_command_prints(checkpoint, data, tmp_path, capsys):
    found = export_model(checkpoint, tmp_path / "a.xml", precision="fp16", check=data, limit=20, trust=True)
    assert found.path == tmp_path / "a.xml" and set(found.files) == {tmp_path / "a.xml", tmp_path / "a.bin"}
    assert all(file.exists() for file in found.files)
    assert found.header == read_header(tmp_path / "a.xml") and found.measured is None
    assert found.checked.names == (f"{checkpoint}, torch", f"{tmp_path / 'a.xml'}, OpenVINO")
    assert found.checked.difference.faces == 20 and found.checked.accuracy == (1.0, 1.0)
    assert capsys.readouterr().out == ""
    words = ("--precision", "fp16", "--check", data, "--limit", 20)
    assert export(checkpoint, tmp_path / "a.xml", *words) == 0
    still = re.compile(r"[\d.]+ +[\d.]+×$", re.MULTILINE)  # but for times
    printed = capsys.readouterr().out
    assert still.sub("", printed) == still.sub("", f"{found.checked}\n{found.path}\n")
    folder = export_model(checkpoint, tmp_path / "new", trust=True)
    assert folder.path == tmp_path / "new/model.onnx" and {file.name for file in folder.files} == {
        "model.onnx", "model.safetensors"
    }  # fmt: skip


def test_python_is_told_what_a_refused_file_loses(checkpoint, data, tmp_path, monkeypatch):
    monkeypatch.setattr(mien.export.onnx, "quantize", spoil)
    opened = Folder(str(data))
    with pytest.raises(AccuracyLost, match="not written, it loses") as refused:
        export_model(checkpoint, tmp_path / "a.onnx", precision="int8", check=opened, trust=True)
    assert refused.value.checked.difference.accuracy_difference < -0.5
    again = pickle.loads(pickle.dumps(refused.value))  # as it comes from another process
    assert (str(again), again.checked) == (str(refused.value), refused.value.checked)
    with pytest.raises(Misuse, match="int8 writes a file, .onnx or .xml; a folder"):
        export_model(checkpoint, tmp_path / "new", precision="int8", check=opened)
    assert not list(tmp_path.iterdir())


def test_another_kind_of_file(checkpoint, tmp_path, capsys):
    for name in ("a.pt", checkpoint):
        assert export(checkpoint, tmp_path / name) == 1
        assert (
            "writes a .onnx, .xml or .pt2 file or a folder; the checkpoint that it reads is --model"
            in capsys.readouterr().err
        )
    assert not list(tmp_path.iterdir())


def convolution(name: str, source: str, target: str) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, "w"], [target], name=name)


def test_the_first_convolutions_of_every_branch():
    nodes = [
        helper.make_node("Cast", ["faces"], ["x"], to=TensorProto.FLOAT),
        convolution("a1", "x", "a"),
        convolution("b1", "x", "b"),
        helper.make_node("Relu", ["a"], ["c"]),
        convolution("a2", "c", "d"),
        helper.make_node("Add", ["d", "b"], ["e"]),
        convolution("both", "e", "f"),
        convolution("b2", "b", "g"),
        convolution("late", "g", "h"),
    ]
    graph = helper.make_graph(nodes, "g", [], [])
    assert first_convolutions(graph, 1) == ["a1", "b1"]
    assert first_convolutions(graph, 2) == ["a1", "b1", "a2", "b2"]
    assert first_convolutions(graph, 0) == []


def test_quantizing_says_nothing_in_the_command_and_keeps_the_input(checkpoint, pictures, tmp_path, capfd, monkeypatch):
    path = tmp_path / "a.onnx"
    assert export(checkpoint, path) == 0
    capfd.readouterr()
    monkeypatch.setattr(logging.root, "handlers", [])
    model = onnx.load(path)
    before = model.SerializeToString()
    with root_silenced():  # as the command does
        assert quantize(model, np.stack(pictures)).ByteSize() != model.ByteSize()
        logging.getLogger("mien.data").warning("still shown")
    assert model.SerializeToString() == before
    assert capfd.readouterr() == ("", "still shown\n")
    assert (logging.root.handlers, logging.root.level, logging.root.manager.disable) == ([], logging.WARNING, 0)
