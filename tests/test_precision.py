"""precision="auto": bf16 where the CPU has it and the model was measured to bear it, else fp32."""

import numpy as np
import pytest
from conftest import HEADER, write_stand_in
from PIL import Image

from mien import Reader, classifier, engines
from mien.__main__ import main
from mien.checkpoint import check_header
from mien.classifier import Classifier
from mien.engines import open_model, openvino
from mien.errors import CheckpointError

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
    assert asked == ["bf16" if chosen == "bf16" else "auto"]
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


WRONG = {
    "a list": [],
    "a name": {"bf16": "fine"},
    "no difference": {"bf16": {key: value for key, value in MEASURED.items() if key != "accuracy_difference"}},
    "a difference in words": {"bf16": MEASURED | {"accuracy_difference": "none"}},
    "half an interval": {"bf16": MEASURED | {"interval": [0.1]}},
    "an interval of words": {"bf16": MEASURED | {"interval": ["low", "high"]}},
    "no faces": {"bf16": MEASURED | {"faces": 0}},
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
        main([*common, "--precision", "int8"])
