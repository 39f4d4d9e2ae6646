"""The header of a checkpoint: read from either kind of file, and refused in one line where it will not do."""

import copy
import json
import struct

import numpy as np
import onnx
import pytest
from conftest import HEADER, write_stand_in
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from mien.checkpoint import check_header, labels_of, read_header
from mien.errors import CheckpointError
from mien.labels import EXPRESSIONS, ORDERS


def write_safetensors(path, header=HEADER):
    save_file({"weight": np.zeros((3, 4), np.float32)}, path, {"mien": json.dumps(header), "format": "pt"})
    return path


WRITERS = {"model.onnx": write_stand_in, "model.safetensors": write_safetensors}


@pytest.mark.parametrize("name", WRITERS)
def test_both_kinds_of_file_hold_the_same_header(tmp_path, name):
    assert read_header(WRITERS[name](tmp_path / name)) == HEADER
    assert read_header(str(tmp_path / name)) == HEADER


def test_large_weights_are_skipped(tmp_path):
    """Onto a sparse file: reading a gigabyte of it would take the memory, and the time."""
    path = write_stand_in(tmp_path / "model.onnx")
    rest = path.read_bytes()
    length = 1 << 30
    with open(path, "wb") as file:
        file.write(bytes([7 << 3 | 2]) + varint(length))  # a second graph of zeros
        file.seek(length, 1)
        file.write(rest)
    assert read_header(path) == HEADER


def varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("keep", [0, 1, 7, 9, 40, 0.5, -1])
def test_cut_short(tmp_path, name, keep):
    path = WRITERS[name](tmp_path / name)
    data = path.read_bytes()
    whole = (
        name.endswith("safetensors") and keep == -1
    )  # it has its header first, and the weights are another's concern
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    if whole:
        assert read_header(path) == HEADER
    else:
        with pytest.raises(CheckpointError, match=f"^{path}: [^\n]+$"):
            read_header(path)


@pytest.mark.parametrize("name", WRITERS)
@given(data=st.binary(max_size=200))
def test_noise(tmp_path_factory, name, data):
    path = tmp_path_factory.mktemp("noise") / name
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=str(path)):
        read_header(path)


@pytest.mark.parametrize(
    "name, reason",
    [("none.onnx", "no such file"), ("model.pth", "safetensors, .onnx, .xml or .pt2"), ("a.onnx", "directory")],
)
def test_no_checkpoint(tmp_path, name, reason):
    (tmp_path / "a.onnx").mkdir()
    with pytest.raises(CheckpointError, match=f"{name}: .*{reason}"):
        read_header(tmp_path / name)


def test_somebody_elses_files(tmp_path):
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    onnx.save(onnx.ModelProto(ir_version=8), tmp_path / "model.onnx")
    for name in WRITERS:
        with pytest.raises(CheckpointError, match="not one of mien's"):
            read_header(tmp_path / name)


def test_a_header_longer_than_its_file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(CheckpointError, match="ends behind the file"):
        read_header(path)


WRONG = {
    "version": lambda h: h.update(mien=2),
    "model": lambda h: h.pop("model"),
    "class_path": lambda h: h["model"].update(class_path=3),
    "no id2label": lambda h: h.pop("id2label"),
    "empty id2label": lambda h: h.update(id2label={}),
    "numbers": lambda h: h["id2label"].update({"9": h["id2label"].pop("7")}),
    "one label twice": lambda h: h["id2label"].update({"7": "neutral"}),
    "a label without a name": lambda h: h["id2label"].update({"7": ""}),
    "temperature": lambda h: h.update(temperature=0),
    "preprocess": lambda h: h.update(preprocess=None),
    "align": lambda h: h["preprocess"].update(align="eyes"),
    "color": lambda h: h["preprocess"].update(color="bgr"),
    "mean": lambda h: h["preprocess"].update(mean=[0.5]),
    "std": lambda h: h["preprocess"].update(std=[1, 1, 0]),
    "resize": lambda h: h["preprocess"].update(resize=[]),
    "step": lambda h: h["preprocess"].update(resize=[{"size": 112, "interpolation": "cubic"}]),
    "input_size": lambda h: h["preprocess"].update(input_size=224),
}


@pytest.mark.parametrize("what", WRONG)
def test_headers_that_will_not_do(what):
    header = copy.deepcopy(HEADER)
    check_header(header, "some.onnx")
    WRONG[what](header)
    with pytest.raises(CheckpointError, match="^some.onnx: its header [^\n]+$"):
        check_header(header, "some.onnx")


@pytest.mark.parametrize("header", [None, [], "text", {}, {"mien": 1}])
def test_what_is_no_header(header):
    with pytest.raises(CheckpointError, match="its header"):
        check_header(header, "some.onnx")


def test_what_may_be_left_out():
    header = copy.deepcopy(HEADER)
    del header["temperature"], header["training"], header["model"]["init_args"], header["preprocess"]["trained_on"]
    del header["preprocess"]["resize"][0]["interpolation"]
    check_header(header, "some.onnx")


def test_labels_come_in_the_order_of_their_numbers():
    labels = [f"label {i}" for i in range(12)]
    header = {"mien": 1, "id2label": {str(i): labels[i] for i in (10, 2, 11, 0, 1, 3, 4, 5, 6, 7, 8, 9)}}
    assert labels_of(header) == tuple(labels)


def test_every_order_has_every_label_once():
    for name, order in ORDERS.items():
        assert len(set(order)) == len(order), name
        assert name == "cifar10" or set(EXPRESSIONS[:7]) <= set(order) <= set(EXPRESSIONS), name
    assert (
        ORDERS["rafdb"][3] == "happiness" and ORDERS["ferplus"][2] == "surprise" and ORDERS["fer2013"][6] == "neutral"
    )


@pytest.mark.parametrize("value", [7, 1.5, None, [], {}, True])
def test_metadata_that_is_not_text(tmp_path, value):
    path = write_safetensors(tmp_path / "model.safetensors")
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + length])
    table["__metadata__"]["mien"] = value
    text = json.dumps(table).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    with pytest.raises(CheckpointError, match="damaged or cut short|not one of mien's checkpoints") as error:
        read_header(path)
    assert "\n" not in str(error.value)
