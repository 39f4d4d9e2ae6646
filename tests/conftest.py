"""A model small enough to write on the spot, that tells colours apart."""

import json
import signal
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mien.__main__ import main
from mien.labels import EXPRESSIONS

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell's background job, where Ctrl-C could not be tested
    signal.signal(signal.SIGINT, signal.default_int_handler)

try:  # of an export half of the time goes into reading the exporter's own sources, which once a process will do
    from torch.onnx._internal._lazy_import import onnxscript_apis

    onnxscript_apis.get_torchlib_ops = cache(lambda: import_module(onnxscript_apis._name).get_torchlib_ops())
except (ImportError, AttributeError):
    pass  # another torch: slower, and as good

try:  # what torch gathers anew for every export is the same throughout a process
    from torch._export import utils as export_utils
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    export_utils._materialize_cpp_cia_ops = cache(export_utils._materialize_cpp_cia_ops)
    ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))
except (ImportError, AttributeError):
    pass

COLOURS = {"anger": (255, 0, 0), "disgust": (0, 255, 0), "sadness": (0, 0, 255), "neutral": (0, 0, 0)}
"""What the stand-in answers to a crop all of one colour."""

HEADER = {
    "mien": 1,
    "model": {"class_path": "mien.networks.btn_mobile", "init_args": {"num_classes": 8}},
    "id2label": {str(i): label for i, label in enumerate(EXPRESSIONS)},
    "preprocess": {
        "align": "arcface112",
        "resize": [{"size": 112, "interpolation": "auto"}],
        "input_size": 112,
        "color": "rgb",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "trained_on": ["as is", "arcface112"],
    },
    "training": {"data": "none", "licence": "CC0"},
    "temperature": 1.0,
}


def header(class_path: str, **arguments) -> dict:
    """What a checkpoint of a network says of itself, whose faces are read as they are."""
    return {
        "mien": 1,
        "model": {"class_path": class_path, "init_args": arguments},
        "id2label": dict(zip(map(str, range(8)), EXPRESSIONS, strict=True)),
        "preprocess": {
            "align": "none",
            "resize": [{"size": 112, "interpolation": "auto"}],
            "input_size": 112,
            "color": "rgb",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
        },
    }


def write_stand_in(path: Path, header: dict = HEADER) -> Path:
    """logits = mean colour (B, 3) @ weight (3, 8) + bias, probs their softmax, of faces uint8 (B, 112, 112, 3)."""
    weight, bias = np.zeros((3, 8), np.float32), np.zeros(8, np.float32)
    for label, colour in COLOURS.items():
        weight[:, EXPRESSIONS.index(label)] = np.array(colour) / 25.5
    bias[EXPRESSIONS.index("neutral")] = 4
    tensors = {"weight": weight, "bias": bias, "full": np.array(255, np.float32), "sides": np.array([1, 2], np.int64)}
    nodes = [
        helper.make_node("Cast", ["faces"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["numbers", "full"], ["shares"]),
        helper.make_node("ReduceMean", ["shares", "sides"], ["colour"], keepdims=0),
        helper.make_node("MatMul", ["colour", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probs"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "stand_in",
        [helper.make_tensor_value_info("faces", TensorProto.UINT8, ["batch", 112, 112, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 8]) for name in ("logits", "probs")],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(model, {"mien": json.dumps(header)})
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory) -> Path:
    """The folder of the stand-in model."""
    return write_stand_in(tmp_path_factory.mktemp("stand_in") / "model.onnx").parent


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Compiled models are kept apart from the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def exported_once():
    """The same weights with the same header go through torch's exporter to ONNX once, and each file has a copy."""
    from mien.export import onnx as module

    to_program, to_onnx, graphs = module.to_program, module.to_onnx, {}

    def graph_of(source, names):
        network, header = source
        weights = b"".join(tensor.numpy().tobytes() for tensor in network.state_dict().values())
        key = (weights, json.dumps(header), *names)
        if key not in graphs:
            graphs[key] = to_onnx(to_program(network, header), names)
        model = onnx.ModelProto()
        model.CopyFrom(graphs[key])
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "to_program", lambda *source: source)
        patch.setattr(module, "to_onnx", graph_of)
        yield


@pytest.fixture
def call(capfd):
    """Run a command of mien's: exit code, lines of stdout, lines of stderr."""

    def run(*words):
        capfd.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:
            code = end.code
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return code, out.splitlines(), err.splitlines()

    return run
