"""A network as a program of torch, which runs without the network's Python code."""

import copy
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.func import functional_call

from mien.checkpoint import KEY, check_header
from mien.files import whole
from mien.networks import deploy

BATCH = torch.export.Dim("batch", min=1)


def export_program(
    path: str | os.PathLike[str], network: nn.Module, header: Mapping[str, Any], *, half: bool = True
) -> None:
    """Write a network as a .pt2 file of torch.export, whole or not at all. Inputs and outputs are as of `export_onnx`.

    path, network, header, half: as for `export_onnx`.

    Raises CheckpointError for a header that is not complete.
    """
    path = Path(path)
    check_header(header, path)
    write_program(path, to_program(network, header, half=half), header)


def to_program(network: nn.Module, header: Mapping[str, Any], *, half: bool = False) -> ExportedProgram:
    """The program of `mien.networks.Deployed`, for batches of any size, that names no paths of this machine."""
    size = header["preprocess"]["input_size"]
    module = deploy(network, header)
    faces = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    with torch.no_grad(), _not_in_place(module):
        program = torch.export.export(
            Halved(module) if half else module, (faces,), dynamic_shapes=({0: BATCH},), strict=False
        )
    for part in program.graph_module.modules():
        if isinstance(part, torch.fx.GraphModule):
            _clean(part)
    program.example_inputs = None  # they would be pickled
    return program


@contextmanager
def _not_in_place(module: nn.Module) -> Iterator[None]:
    """ReLU6 makes new tensors: in place, it alone costs half of the time that the way to ONNX takes."""
    parts = [part for part in module.modules() if isinstance(part, nn.Hardtanh) and part.inplace]
    for part in parts:
        part.inplace = False
    try:
        yield
    finally:
        for part in parts:
            part.inplace = True


def write_program(path: str | os.PathLike[str], program: ExportedProgram, header: Mapping[str, Any]) -> None:
    """Write the program with this header, whole or not at all."""
    path = Path(path)
    check_header(header, path)
    data = io.BytesIO()
    torch.export.save(program, data, extra_files={KEY: json.dumps(header, ensure_ascii=False)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as file:
        file.write(data.getvalue())


class Halved(nn.Module):
    """A copy of a module that stores parameters as fp16 if that loses nothing, and computes with them in fp32."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module, self.names = copy.deepcopy(module), []
        for name, tensor in self.module.named_parameters():
            half = tensor.detach().half()
            if tensor.numel() >= 64 and torch.equal(half.float(), tensor):
                tensor.data = half
                self.names.append(name)

    def forward(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        stored = dict(self.module.named_parameters())
        return functional_call(self.module, {name: stored[name].float() for name in self.names}, (faces,))


def _clean(module: torch.fx.GraphModule) -> None:
    """Remove the lines of code that nodes came from, and checks that would forbid autocast."""
    for node in list(module.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node"):
            node.meta.pop(key, None)
    module.recompile()
