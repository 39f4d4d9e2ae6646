"""precision="auto": of bf16, int8 and fp32 the first that the CPU has and the model was measured to bear."""

import hashlib
import json
import pickle
import warnings

import numpy as np
import onnx
import pytest
from conftest import HEADER, write_stand_in
from PIL import Image

from mien import Reader, classifier, engines
from mien.__main__ import main
from mien.checkpoint import check_header
from mien.classifier import Classifier
from mien.engines import open_model, openvino
from mien.errors import CheckpointError, MienError, MienWarning
from mien.precision import choose

MEASURED = {"accuracy_difference": -0.0011, "interval": [-0.003, 0.001], "faces": 3509, "mean_distance": 0.004}


def with_precision(**changed) -> dict:
    return HEADER | {"precision": {"bf16": MEASURED | changed}}


class Core:
    """OpenVINO's, on a CPU of which these are the capabilities."""

    def __init__(self, *capabilities: str):
        self.real, self.capabilities, self.asked = openvino.shared_core(), list(capabilities), 0

    def get_property(self, device: str, name: str):
        if (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES"):
            self.asked += 1
            return self.capabilities
        return self.real.get_property(device, name)

    def __getattr__(self, name: str):
        return getattr(self.real, name)


@pytest.fixture
def cpu(monkeypatch):
    """Sets the capabilities of the CPU."""

    def become(*capabilities: str) -> Core:
        core = Core(*capabilities)
        monkeypatch.setattr(openvino, "_core", core)
        return core

    return become


@pytest.fixture
def asked(monkeypatch):
    """The precisions that classifiers ask their engines for."""
    words = []

    def watched(*args, **options):
        words.append(options["precision"])
        return open_model(*args, **options)

    monkeypatch.setattr(classifier, "open_model", watched)
    return words


NEW, OLD = ("BF16", "FP32", "FP16", "INT8"), ("FP32", "INT8")


@pytest.mark.parametrize(
    ("header", "capabilities", "chosen"),
    [
        (HEADER, NEW, "fp32"),
        (HEADER | {"precision": {}}, NEW, "fp32"),
        (HEADER | {"precision": {"fp8": MEASURED}}, NEW, "fp32"),
        (with_precision(), NEW, "bf16"),
        (with_precision(), OLD, "fp32"),
        (with_precision(accuracy_difference=0.004), NEW, "bf16"),
        (with_precision(accuracy_difference=-0.0029), NEW, "bf16"),
        (with_precision(accuracy_difference=-0.003), NEW, "fp32"),
    ],
)
def test_auto(tmp_path, cpu, asked, header, capabilities, chosen):
    path, able = write_stand_in(tmp_path / "model.onnx", header), engines.computes_bf16()
    cpu(*capabilities)
    engine = Classifier.from_pretrained(path).engine
    assert asked == [chosen]
    assert engine.precision == (chosen if able else "fp32")  # what it computes in, whatever was asked for
    taken = engine._get().model.get_property("INFERENCE_PRECISION_HINT").to_string()
    assert taken == engine.precision.replace("fp", "f")


def test_what_is_asked_for_is_done(tmp_path, cpu, asked):
    path = write_stand_in(tmp_path / "model.onnx", with_precision())
    cpu(*NEW)
    for precision in ("fp32", "bf16"):
        Classifier.from_pretrained(path, precision=precision)
    assert open_model(path).precision == "fp32"  # the engine knows nothing of a header
    reader = Reader.from_pretrained(path)
    assert reader.detector._engine.precision == "fp32"
    assert Reader.from_pretrained(path, precision="fp32").classifier.engine.precision == "fp32"
    assert asked == ["fp32", "bf16", "bf16", "fp32"]


def test_a_model_without_a_measurement_asks_nothing_of_the_cpu(stand_in, cpu):
    core = cpu(*NEW)
    Classifier.from_pretrained(stand_in)
    assert core.asked == 0


def test_without_openvino_auto_is_fp32(tmp_path, cpu, monkeypatch):
    path = write_stand_in(tmp_path / "model.onnx", with_precision())
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    assert not engines.computes_bf16()
    assert type(Classifier.from_pretrained(path).engine).__name__ == "OnnxRuntimeEngine"


def test_this_cpu():
    """OpenVINO knows the name of the property, and gives a list."""
    assert "FP32" in openvino.cpu_capabilities()
    assert engines.computes_bf16() == ("BF16" in openvino.cpu_capabilities())


def test_torch_stays_in_fp32(tmp_path, cpu):
    """What was measured is OpenVINO's bf16."""
    from mien.networks import mobilefacenet, save_network

    cpu(*NEW)
    model = {"class_path": "mien.networks.mobilefacenet", "init_args": {"num_classes": 8}}
    save_network(tmp_path / "a.safetensors", mobilefacenet(num_classes=8), with_precision() | {"model": model})
    assert Classifier.from_pretrained(tmp_path / "a.safetensors").engine.precision == "fp32"


@pytest.fixture
def both(tmp_path):
    """Writes a model and its int8 file into a folder, of which int8 and bf16 lose so much."""

    def write(folder, int8: float = -0.001, bf16: float | None = None):
        path = write_stand_in(tmp_path / folder / "model.onnx")
        small = path.with_name("model.int8.onnx")
        model = onnx.load(path)
        model.doc_string = "in eight bits"
        onnx.save(model, small)
        named = {"sha256": hashlib.sha256(small.read_bytes()).hexdigest(), "accuracy_difference": int8}
        measured = {"int8": MEASURED | named} | ({"bf16": MEASURED | {"accuracy_difference": bf16}} if bf16 else {})
        return write_stand_in(path, HEADER | {"precision": measured})

    return write


def opened(path, **options):
    """The file that is run, and what it computes in."""
    engine = Classifier.from_pretrained(path, **options).engine
    return engine._path.name, engine.precision


def test_auto_takes_int8_where_there_is_no_bf16(both, cpu):
    cases = [
        ({}, OLD, "int8"),
        ({}, NEW, "int8"),  # since nobody measured bf16
        ({}, ("FP32",), "fp32"),
        ({"int8": -0.0029}, OLD, "int8"),
        ({"int8": -0.003}, OLD, "fp32"),
        ({"bf16": -0.001}, OLD, "int8"),
        ({"bf16": -0.001}, NEW, "bf16"),
        ({"bf16": -0.003}, NEW, "int8"),
        ({"bf16": -0.003, "int8": -0.003}, NEW, "fp32"),
    ]
    for number, (loses, capabilities, chosen) in enumerate(cases):
        path = both(str(number), **loses)
        cpu(*capabilities)
        header = Classifier.from_pretrained(path, precision="fp32").header
        file = path.with_name("model.int8.onnx") if chosen == "int8" else path
        assert choose(path, header) == (file, chosen), (loses, capabilities)
        assert choose(path, header, device="cuda") == (path, "fp32")
    cpu(*OLD)
    path = both("model")
    assert opened(path) == ("model.int8.onnx", "int8") and opened(path, precision="fp32") == ("model.onnx", "fp32")
    read = Classifier.from_pretrained(path.parent)
    again = pickle.loads(pickle.dumps(read.engine))  # as workers get it
    assert (again.precision, again._path.name, read.path) == ("int8", "model.int8.onnx", path)
    read.save_pretrained(path.parent.with_name("copy"))
    assert opened(path.parent.with_name("copy")) == ("model.int8.onnx", "int8")
    assert opened(path, precision="int8") == ("model.int8.onnx", "int8")


@pytest.mark.parametrize("harm", ["missing", "another", "cut", "a folder"])
def test_an_int8_file_that_will_not_do(both, cpu, harm, call, tmp_path):
    path = both("model")
    small = path.with_name("model.int8.onnx")
    data = small.read_bytes()
    small.unlink()
    if harm == "another":
        write_stand_in(small)
    elif harm == "cut":
        small.write_bytes(data[:-1])
    elif harm == "a folder":
        small.mkdir()
    reason = {"missing": "model.int8.onnx, is not beside it", "a folder": "is a directory"}.get(
        harm, "is damaged, or of "
    )
    cpu(*OLD)
    with pytest.warns(MienWarning, match=f"{reason}.*: fp32 is taken"):
        assert opened(path) == ("model.onnx", "fp32")
    with pytest.raises(CheckpointError, match=reason):
        Classifier.from_pretrained(path, precision="int8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert opened(path, precision="fp32") == ("model.onnx", "fp32")
        cpu("FP32")
        assert opened(path) == ("model.onnx", "fp32")  # it would not be taken, and nobody looks
    Image.new("RGB", (30, 30), (255, 0, 0)).save(tmp_path / "a.png")
    common = ["read", tmp_path / "a.png", "--aligned", "--model", path]
    cpu(*OLD)
    code, lines, told = call(*common)
    assert code == 0 and json.loads(lines[0])["expression"] == "anger"
    assert len(told) == 1 and told[0].startswith("mien: ") and reason in told[0]
    code, lines, told = call(*common, "--precision", "int8")
    assert (code, lines, len(told)) == (1, [], 1) and reason in told[0]


def test_int8_of_models_that_have_none(stand_in, tmp_path):
    for path, device, reason in (
        (stand_in / "model.onnx", "auto", "names no int8 file"),
        (tmp_path / "model.safetensors", "auto", "names no int8 file"),
        (stand_in / "model.onnx", "cuda", "int8 is computed on the CPU"),
    ):
        with pytest.raises(MienError, match=reason):
            choose(path, with_precision(), device=device, precision="int8")
    with pytest.raises(MienError, match="no such precision: 'int4'"):
        choose(stand_in / "model.onnx", HEADER, precision="int4")


def test_int8_in_onnxruntime(both, monkeypatch):
    """Where it is asked for: what was measured is OpenVINO's."""
    path = both("model")
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    assert opened(path) == ("model.onnx", "fp32") and opened(path, precision="int8") == ("model.int8.onnx", "int8")


WRONG = {
    "a list": [],
    "a name": {"bf16": "fine"},
    "no difference": {"bf16": {key: value for key, value in MEASURED.items() if key != "accuracy_difference"}},
    "a difference in words": {"bf16": MEASURED | {"accuracy_difference": "none"}},
    "half an interval": {"bf16": MEASURED | {"interval": [0.1]}},
    "an interval of words": {"bf16": MEASURED | {"interval": ["low", "high"]}},
    "no faces": {"bf16": MEASURED | {"faces": 0}},
    "int8 without its file": {"int8": MEASURED},
    "int8 of no digest": {"int8": MEASURED | {"sha256": "model.int8.onnx"}},
    "no distance": {"bf16": MEASURED | {"mean_distance": None}},
}


@pytest.mark.parametrize("what", WRONG)
def test_measurements_that_will_not_do(what):
    check_header(with_precision(), "some.onnx")
    with pytest.raises(CheckpointError, match='^some.onnx: its header has a "precision" that [^\n]+$'):
        check_header(HEADER | {"precision": WRONG[what]}, "some.onnx")


def test_read_takes_it_as_an_option(tmp_path, cpu, asked, capsys):
    write_stand_in(tmp_path / "model" / "model.onnx", with_precision())
    Image.fromarray(np.full((30, 30, 3), (255, 0, 0), np.uint8)).save(tmp_path / "a.png")
    cpu(*NEW)
    common = ["read", str(tmp_path / "a.png"), "--aligned", "--model", str(tmp_path / "model")]
    for words in ([], ["--precision", "auto"], ["--precision", "fp32"], ["--precision", "bf16"]):
        assert main([*common, *words]) == 0
    assert asked == ["bf16", "bf16", "fp32", "bf16"]
    assert capsys.readouterr().out.count('"anger"') >= 4
    with pytest.raises(SystemExit):
        main([*common, "--precision", "int4"])
