"""Hostile models: headers with any value in any place, files cut and changed, graphs that do something else."""

import copy
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from conftest import HEADER, write_stand_in
from onnx import TensorProto, helper

from mien import Classifier
from mien.errors import MienError

VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1.5, 7, 2**63, 10**400, float("nan"), float("inf"), "", "x", "\x1b[2J", "\x9b2J", "\ud800"),
    *([], [[]], {}, {"0": 0}, [1e308] * 3, "a" * 100_000, [{"size": 10**9}], [{"size": 112}] * 10_000),
)
"""What may stand anywhere in a header."""

FACES = np.zeros((2, 112, 112, 3), np.uint8)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


def header(draw: np.random.Generator) -> Any:
    """A header with another value somewhere."""
    found: Any = copy.deepcopy(HEADER)
    there = places(found)
    *path, last = there[int(draw.integers(1, len(there)))]
    part = found
    for key in path:
        part = part[key]
    part[last] = VALUES[int(draw.integers(len(VALUES)))]
    return found


def write(folder: Path, seed: int) -> tuple[str, Path]:
    """What is wrong with it, and the file."""
    draw = np.random.default_rng((2, seed))
    what = ("header", "safetensors header", "bytes", "cut", "graph", "metadata")[seed % 6]
    path = folder / f"model_{seed}.{'safetensors' if what == 'safetensors header' else 'onnx'}"
    if what == "safetensors header":
        metadata = {"mien": json.dumps(header(draw)), "format": "pt"}
        table = {"__metadata__": metadata, "weight": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}
        if draw.integers(3) == 0:
            table["weight"] = VALUES[int(draw.integers(len(VALUES)))]
        text = json.dumps(table).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(12))
        return what, path
    write_stand_in(path, header(draw) if what == "header" else HEADER)
    if what == "graph":
        _change(path, draw)
    elif what == "metadata":
        model = onnx.load(path)
        model.metadata_props[0].value = ["7", "[" * 100_000, '{"mien": 1e999}', "\x00", "NaN"][int(draw.integers(5))]
        onnx.save(model, path)
    elif what in ("bytes", "cut"):
        data = bytearray(path.read_bytes())
        if what == "cut":
            del data[int(draw.integers(len(data))) :]
        else:
            for place in draw.integers(0, len(data), int(draw.integers(1, 30))):
                data[place] = int(draw.integers(256))
        path.write_bytes(data)
    return what, path


def _change(path: Path, draw: np.random.Generator) -> None:
    """Another graph under the same header."""
    model = onnx.load(path)
    graph = model.graph
    match int(draw.integers(7)):
        case 0:  # another size of input
            graph.input[0].type.tensor_type.shape.dim[1].dim_value = 64
        case 1:  # an output missing
            del graph.output[1]
        case 2:  # of another type
            graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
        case 3:  # not in its folder
            _lead_out(graph.initializer[0], ["../weights", "/etc/passwd", "missing", ""][int(draw.integers(4))])
        case 4:  # without end
            graph.node.append(endless())
        case 5:  # for fewer labels
            graph.node.append(helper.make_node("Identity", ["logits"], ["more"]))
            graph.output[1].name = "more"
        case 6:
            graph.node.append(helper.make_node("Nonsense", ["logits"], ["else"]))
    onnx.save(model, path)


def _lead_out(tensor: TensorProto, where: str) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=where)


def endless() -> onnx.NodeProto:
    """A node that never ends."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["still_on"]), helper.make_node("Identity", ["x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("still_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ],
    )
    return helper.make_node("Loop", ["", "", "logits"], ["looped"], body=body)


def outgrown(kind: str, path: Path) -> Path:
    """The stand-in with a few nodes behind it that ask for work, or room, without end."""
    write_stand_in(path)
    model = onnx.load(path)
    graph, node = model.graph, helper.make_node

    def numbers(name: str, *values: int) -> str:
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    ones = numbers("ones", 1, 1)
    match kind:
        case "tiles":  # each a hundred times the one before
            made = [node("Tile", ["logits", numbers("r0", 1, 100)], ["t0"])]
            made += [node("Tile", [f"t{i}", numbers(f"r{i + 1}", 1, 100)], [f"t{i + 1}"]) for i in range(8)]
            made.append(node("ReduceMax", ["t8", numbers("last", 1)], ["much"]))
        case "product":  # 4·10¹² multiplications of 2·10⁸ numbers
            side = numbers("side", 20_000, 10_000)
            made = [node("ConstantOfShape", [side], ["a"]), node("Transpose", ["a"], ["b"])]
            made.append(node("MatMul", ["b", "a"], ["c"]))
            made += [node("ReduceMax", ["c"], ["m"], keepdims=0), node("Expand", ["m", ones], ["much"])]
        case "filter":  # one of 1000 × 1000 pixels at every pixel
            made = [node("ConstantOfShape", [numbers("w", 1, 1, 1001, 1001)], ["filter"])]
            made += [node("ConstantOfShape", [numbers("p", 1, 1, 3000, 3000)], ["picture"])]
            made += [node("Conv", ["picture", "filter"], ["c"]), node("ReduceMax", ["c"], ["m"], keepdims=0)]
            made.append(node("Expand", ["m", ones], ["much"]))
        case "sum":  # of letters that are in no other term
            made = [node("ConstantOfShape", [numbers("s", 10_000, 1000)], ["a"])]
            made += [node("Einsum", ["a", "a"], ["e"], equation="ij,kl->"), node("Expand", ["e", ones], ["much"])]
        case "colours":  # as many as the picture says
            made = [node("Cast", ["logits"], ["whole"], to=TensorProto.INT64)]
            made += [node("ReduceMax", ["whole"], ["most"]), node("Reshape", ["most", numbers("one", 1)], ["side"])]
            made += [node("ConstantOfShape", ["side"], ["a"]), node("ReduceMax", ["a"], ["m"], keepdims=0)]
            made.append(node("Expand", ["m", ones], ["much"]))
        case "pools":  # of every pixel around
            made = [node("ConstantOfShape", [numbers("p", 1, 1, 3000, 3000)], ["picture"])]
            made.append(node("MaxPool", ["picture"], ["c"], kernel_shape=[1001, 1001]))
            made += [node("ReduceMax", ["c"], ["m"], keepdims=0), node("Expand", ["m", ones], ["much"])]
        case "branch":  # a product, where a condition holds
            side = numbers("side", 10_000, 10_000)
            no = helper.make_graph([node("Identity", ["a"], ["no"])], "no", [], [_any("no")])
            yes = helper.make_graph([node("MatMul", ["a", "a"], ["yes"])], "yes", [], [_any("yes")])
            made = [node("ConstantOfShape", [side], ["a"]), node("ReduceMax", ["logits"], ["most"], keepdims=0)]
            made += [node("Cast", ["most"], ["so"], to=TensorProto.BOOL)]
            made += [node("If", ["so"], ["c"], then_branch=yes, else_branch=no)]
            made += [node("ReduceMax", ["c"], ["m"], keepdims=0), node("Expand", ["m", ones], ["much"])]
        case _:
            raise ValueError(kind)
    graph.node.extend([*made, node("Add", ["logits", "much"], ["grown"])])
    graph.output[0].name = "grown"
    onnx.save(model, path)
    return path


OUTGROWN = "tiles", "product", "filter", "sum", "colours", "pools", "branch"


def _any(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def fault(seed: int, folder: Path) -> str | None:
    """What is wrong with how the model is opened and run: neither answers nor one line that names the file."""
    what, path = write(folder, seed)
    try:
        Classifier.from_pretrained(os.fspath(path)).answers(FACES)
    except MienError as error:
        fine = "\n" not in str(error) and str(error).startswith(str(path))
        return None if fine else f"{seed}, {what}: {str(error)[:300]}"
    except BaseException as error:
        return f"{seed}, {what}: {type(error).__name__}: {str(error)[:300]}"
    finally:
        path.unlink()
    return None
