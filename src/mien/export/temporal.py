"""A temporal model as an ONNX file beside the model whose features it joins."""

import os
from collections.abc import Mapping
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from mien.checkpoint import FEATURES, outputs_of, read_header
from mien.errors import CheckpointError, MienError
from mien.export.onnx import OPSET
from mien.networks import Temporal, activate, load_network

WINDOW = 64
"""How many frames of a track are joined."""


class _Answers(nn.Module):
    """Tracks (1, T, 1 + D) -> probs (1, T, C), and the answer of every other output (1, T, …)."""

    def __init__(self, network: Temporal, header: Mapping[str, Any]):
        super().__init__()
        self.network, self.others = network, outputs_of(header)[1:]

    def forward(self, track: Tensor) -> tuple[Tensor, ...]:
        values = self.network.answers(track)
        return values["logits"].softmax(-1), *(activate(output, values[output.name]) for output in self.others)


def open_temporal(
    path: str | os.PathLike[str], network: Any, labels: tuple[str, ...], trust: bool = False
) -> tuple[Temporal, dict]:
    """The temporal model of a .safetensors file, and its header; trust: as for `mien.load_network`.

    Raises CheckpointError where it is none, and MienError where it learnt of another network's features or labels.
    """
    header, temporal = read_header(path), load_network(path, trust=trust)
    if not isinstance(temporal, Temporal):
        raise CheckpointError(f"{path}: no temporal model, but {header['model']['class_path']}")
    head = next(part for part in network.headed.head.modules() if isinstance(part, nn.Linear))
    same = head.weight.shape == temporal.head.weight.shape and torch.allclose(
        head.weight, temporal.head.weight, rtol=1e-2, atol=1e-3
    )
    if not same or outputs_of(header)[0].labels != labels:
        raise MienError(f"{path}: learnt of the features of another model")
    return temporal, header


def temporal_onnx(network: Temporal, header: Mapping[str, Any]) -> onnx.ModelProto:
    """The model: `track` (1, WINDOW, 1 + D) float32 -> `probs` (1, WINDOW, C), and every other output by its name.

    Of fewer frames the last is repeated, which none before it sees.

    Raises MienError where a mixer cannot be exported.
    """
    track = torch.zeros(1, WINDOW, 1 + network.head.in_features)
    track[0, :, 0] = torch.arange(WINDOW) / 25
    names = ["probs", *(output.name for output in outputs_of(header)[1:])]
    try:
        done = torch.onnx.export(
            _Answers(network, header).eval(),
            (track,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["track"],
            output_names=names,
            verbose=False,
        )
    except Exception as error:  # of whatever kind: torch's exporter has many
        kind = type(network.blocks[0].attn).__name__ if len(network.blocks) else "none"
        raise MienError(f"the temporal model cannot be exported with the mixer {kind}: {_line(error)}") from error
    return done.model_proto


def _line(error: Exception) -> str:
    return next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)


def with_temporal(header: Mapping[str, Any], network: Any, file: str = "") -> dict[str, Any]:
    """The header, which says that features are given, and which file joins them, if one does."""
    found = {**header, FEATURES: network.width}
    return {**found, "temporal": {"file": file, "window": WINDOW}} if file else found
