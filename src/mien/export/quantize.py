"""Convolutions computed in 8 bits."""

import copy
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx

from mien.errors import require

BATCH = 16


def quantize(model: onnx.ModelProto, faces: np.ndarray) -> onnx.ModelProto:
    """A model whose convolutions take weights and maps of 8 bits. Inputs and outputs stay as they are.

    Weights are int8 with a scale for each channel; maps are uint8 with a scale and a zero point for each map, from the
    range that it has for `faces`. A map is rounded where a convolution takes it, behind the activation, never where a
    convolution gives it. All else stays fp32: preprocessing, sums, attention, norms, softmax, and the first two
    convolutions behind the input (see `first_convolutions`). The operators are ONNX's own: QuantizeLinear and
    DequantizeLinear.

    model: as `mien.export.onnx.make_onnx` makes it; it stays as it is. faces: (N, S, S, 3) uint8.

    Needs the extra [export].
    """
    tools = require("onnxruntime.quantization", "export")

    class Reader(tools.CalibrationDataReader):
        batches = iter([{"faces": faces[start : start + BATCH]} for start in range(0, len(faces), BATCH)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        tools.quantize_static(
            copy.deepcopy(model),  # it would empty the weights of this one
            path,
            Reader(),
            quant_format=tools.QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=first_convolutions(model.graph, 2),
            per_channel=True,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": ["Conv"], "QuantizeBias": False},
        )
        return onnx.load(path)


def first_convolutions(graph: onnx.GraphProto, depth: int) -> list[str]:
    """The names of the convolutions with fewer than `depth` others between the input and them.

    They see the most pixels and do the least work. Besides, OpenVINO (2026.4) loses the bias of a trunk's first
    convolution if a second one of 8 bits follows it in a graph for any batch size.
    """
    passed: dict[str, int] = defaultdict(int)  # by the name of a map, convolutions on the longest way to it
    names = []
    for node in graph.node:  # in the order of computing
        before = max((passed[name] for name in node.input), default=0)
        if node.op_type == "Conv" and before < depth:
            names.append(node.name)
        for name in node.output:
            passed[name] = before + (node.op_type == "Conv")
    return names
