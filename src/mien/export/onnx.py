"""A network as an ONNX file, for any engine."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn
from torch.export import ExportedProgram

from mien.checkpoint import KEY, check_header, tensor_names
from mien.export.program import BATCH, to_program
from mien.export.quantize import quantize
from mien.files import whole

OPSET = 18


def export_onnx(
    path: str | os.PathLike[str],
    network: nn.Module,
    header: Mapping[str, Any],
    *,
    half: bool = True,
    calibration: np.ndarray | None = None,
) -> None:
    """Write a network as ONNX: `faces` uint8 (batch, S, S, 3) RGB -> `logits` (batch, C) of the first output, and every
    output by its name, fp32. With a header of version 1 there are `logits` and `probs`.

    S is the `input_size` of the header's `preprocess`, mostly 112. Normalisation and temperature are in the graph.

    path: of the file; its folder is made if it is missing.
    network: images (B, 3, S, S), normalised, -> logits (B, C).
    header: what `mien.checkpoint.check_header` describes.
    half: store weights as fp16 (default) that it holds without loss; they are computed with in fp32. A network that was
        saved as fp16 gives the same answers here, at half the size.
    calibration: faces (N, S, S, 3) uint8, with which convolutions become int8; see `mien.export.quantize`.

    Raises CheckpointError for a header that is not complete.
    """
    path = Path(path)
    check_header(header, path)
    write_onnx(path, make_onnx(network, header, half=half, calibration=calibration), header)


def make_onnx(
    network: nn.Module,
    header: Mapping[str, Any],
    *,
    half: bool | Literal["rounded"] = True,
    calibration: np.ndarray | None = None,
) -> onnx.ModelProto:
    """The model that `export_onnx` writes, without its header.

    half "rounded" stores weights as fp16 that it does not hold, too: those of convolutions that a batch norm became
    part of on the way, though each was saved as fp16.
    """
    model = to_onnx(to_program(network, header), tensor_names(header))
    if calibration is not None:
        model = quantize(model, calibration)
    if half:
        store_as_half(model.graph, rounded=half == "rounded")
    return model


def to_onnx(program: ExportedProgram, names: Sequence[str] = ("logits", "probs")) -> onnx.ModelProto:
    """A program of `to_program` as an ONNX model, its weights in fp32; names: what its outputs are called."""
    with torch.no_grad():
        done = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=["faces"],
            output_names=list(names),
            dynamic_shapes={"faces": {0: BATCH}},
            verbose=False,
        )
    return done.model_proto


def write_onnx(path: str | os.PathLike[str], model: onnx.ModelProto, header: Mapping[str, Any]) -> None:
    """Write the model with this header, whole or not at all."""
    path = Path(path)
    check_header(header, path)
    helper.set_model_props(model, {KEY: json.dumps(header, ensure_ascii=False)})
    model.producer_name, model.doc_string = "mien", ""
    del model.graph.metadata_props[:]  # names parameters that the graph does not read
    for node in model.graph.node:  # names paths and lines of the exporting machine
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as file:
        file.write(model.SerializeToString(deterministic=True))


def store_as_half(graph: onnx.GraphProto, rounded: bool = False) -> None:
    """Replace each fp32 initializer that fp16 holds without loss by an fp16 one and a Cast to fp32.

    rounded: convolutions' weights as well that fp16 does not hold.
    """
    kernels = {node.input[1] for node in graph.node if node.op_type == "Conv"} if rounded else set()
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size < 64:
            continue
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        name = tensor.name
        if not np.isfinite(half).all() or not (name in kernels or np.array_equal(half.astype(np.float32), values)):
            continue
        tensor.CopyFrom(numpy_helper.from_array(half, name + ".half"))
        casts.append(helper.make_node("Cast", [name + ".half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = casts + list(graph.node)
    del graph.node[:]
    graph.node.extend(nodes)
