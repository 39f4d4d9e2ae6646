"""Engines: run a model file. What goes in is one array, the batch first; what comes out are arrays by name."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np

from mien.engines.onnxruntime import OnnxRuntimeEngine
from mien.engines.openvino import OpenVINOEngine, cpu_capabilities
from mien.engines.torch import TorchEngine
from mien.errors import MienError

__all__ = [
    "Engine",
    "OnnxRuntimeEngine",
    "OpenVINOEngine",
    "TorchEngine",
    "computes_bf16",
    "computes_int8",
    "open_model",
]


class Engine(Protocol):
    """A model ready to run; any number of threads may share one.

    outputs: the names of what it gives.
    precision: what it computes in: "fp32", "bf16" or "int8".
    """

    outputs: tuple[str, ...]
    precision: str

    def __call__(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Every output by its name, for one batch x (B, …); row i depends on row i of x alone."""
        ...


def open_model(
    path: str | os.PathLike[str],
    *,
    device: str = "auto",
    precision: str = "auto",
    cache: bool = True,
    shape: Sequence[int] | None = None,
) -> Engine:
    """Make a file ready to run.

    path: .onnx runs in OpenVINO, or in onnxruntime where that is missing or device is "cuda"; .xml and .tflite run in
        OpenVINO, and .pt2 in torch.
    device: "auto" and "cpu" are the same, but for a .pt2, where "auto" takes a GPU.
    precision: "fp32"; "bf16"; "int8" for a file whose convolutions are int8 already, all else of which is then fp32;
        "auto" is fp32.
    cache: keep what OpenVINO compiles in the user's cache folder.
    shape: replaces the input's, -1 where it varies (OpenVINO only).

    Raises CheckpointError, naming the file, where no model can be made of it, MissingExtra without the package that
    runs it, and MienError for what else is not here.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise MienError(f'no such device: {device!r}; there are "auto", "cpu" and "cuda"')
    if precision not in ("auto", "fp32", "bf16", "int8"):
        raise MienError(f'no such precision: {precision!r}; there are "auto", "fp32", "bf16" and "int8"')
    kind = Path(path).suffix
    if kind == ".pt2" and shape is None:
        from mien.engines.pt2 import open_program

        return open_program(path, device=device, precision=precision)
    if device != "cuda" and kind != ".pt2" and find_spec("openvino") is not None:
        return OpenVINOEngine(path, precision=precision, cache=cache, shape=shape)
    if kind in (".xml", ".tflite"):
        raise MienError(f"{path}: only OpenVINO runs it, on the CPU; a .onnx or .pt2 file runs elsewhere, too")
    if precision == "bf16" or shape is not None:
        raise MienError(f"{path}: bf16 and other shapes need OpenVINO, which runs on the CPU")
    return OnnxRuntimeEngine(path, device=device, precision=precision)


def computes_bf16() -> bool:
    """Whether `open_model(precision="bf16")` computes in bf16 here: in OpenVINO, on a CPU with instructions for it."""
    return find_spec("openvino") is not None and "BF16" in cpu_capabilities()


def computes_int8() -> bool:
    """Whether OpenVINO is here, and this CPU has instructions for int8."""
    return find_spec("openvino") is not None and "INT8" in cpu_capabilities()
