"""DirectMHP's checkpoints, and the ONNX file that engines run."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from mien.errors import CheckpointError, require
from mien.files import whole
from mien.heads.header import KEY, OUTPUTS, read_heads_header
from mien.networks import build
from mien.networks.checkpoint import fill, load_tensors
from mien.networks.deploy import to_float
from mien.networks.directmhp import DirectMHP, read_grid

NETWORK = "mien.networks.directmhp.DirectMHP"

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet, as the trunk's weights know pictures


class DeployedHeads(nn.Module):
    """Pictures uint8 (B, S, S, 3) RGB -> scores (B, N), boxes (B, N, 4) in pixels, encoded angles (B, N, 3)."""

    def __init__(self, network: nn.Module, mean: list[float], std: list[float]):
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return read_grid(self.network((to_float(pictures) - self.mean) / self.std))


def load_heads(path: str | os.PathLike[str]) -> tuple[DirectMHP, dict[str, Any]]:
    """The network of a .safetensors file, in eval mode, and its header. Raises CheckpointError for what is none."""
    header = read_heads_header(path)
    if header["model"]["class_path"] != NETWORK:
        raise CheckpointError(f"{path}: {header['model']['class_path']} finds no heads")
    try:
        network = cast(DirectMHP, build(header["model"]))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    fill(network, load_tensors(Path(path)), path)
    return network.eval(), header


def save_heads(path: str | os.PathLike[str], network: DirectMHP, header: Mapping[str, Any]) -> None:
    """Write the network and its header to a .safetensors file, whole or not at all."""
    path = Path(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as file:
        file.write(save(tensors, metadata={KEY: json.dumps(header, ensure_ascii=False)}))


def open_checkpoint(path: str | os.PathLike[str]) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """The network of a .safetensors file as `HeadDetector` runs it."""
    network, header = load_heads(path)
    return runner(network, header)


def runner(network: DirectMHP, header: Mapping[str, Any]) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A network as `HeadDetector` runs it."""
    module = DeployedHeads(network, header["mean"], header["std"]).eval()

    def run(pictures: np.ndarray) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            return {name: out.numpy() for name, out in zip(OUTPUTS, module(torch.from_numpy(pictures)), strict=True)}

    return run


def export_heads(source: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Write a checkpoint as ONNX: `faces` uint8 (batch, S, S, 3) -> scores, boxes, angles, those of `DeployedHeads`.

    Raises CheckpointError for a file that is no head detector, MissingExtra without the extra [export].
    """
    require("onnxscript", "export")
    import onnx
    from onnx import helper

    from mien.export.onnx import to_onnx
    from mien.export.program import BATCH

    out = Path(out)
    if out.suffix != ".onnx":
        raise CheckpointError(f"{out}: a head detector is exported to a .onnx file")
    network, header = load_heads(source)
    size = header["input_size"]
    module = DeployedHeads(network, header["mean"], header["std"]).eval()
    pictures = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    with torch.no_grad():
        program = torch.export.export(module, (pictures,), dynamic_shapes=({0: BATCH},), strict=False)
    model = to_onnx(program, OUTPUTS)
    helper.set_model_props(model, {KEY: json.dumps(header, ensure_ascii=False)})
    onnx.checker.check_model(model)
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole(out) as file:
        file.write(model.SerializeToString(deterministic=True))
    return out
