"""onnxruntime, where it is installed."""

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from mien.engines.graph import external_files
from mien.engines.process import FileEngine
from mien.errors import CheckpointError, MienError, require


class OnnxRuntimeEngine(FileEngine):
    """An ONNX file in onnxruntime.

    path: the file.
    device: "cpu" or "auto", which are the same, or "cuda" with onnxruntime-gpu; auto.
    precision: "fp32" or "auto", which are the same, or "int8" for a file whose convolutions are int8 already; auto.

    It may be pickled, and on the CPU carried over a fork: see `FileEngine`.

    Raises MissingExtra without onnxruntime, MienError where it knows no such device, CheckpointError for the file.
    """

    def __init__(self, path: str | os.PathLike[str], *, device: str = "auto", precision: str = "auto"):
        super().__init__(path, device=device, precision=precision)
        self.precision = "int8" if precision == "int8" else "fp32"
        session = self._get()
        self._input = session.get_inputs()[0].name
        self.outputs = tuple(output.name for output in session.get_outputs())

    def _open(self, path: Path, options: dict[str, Any]) -> tuple[Any, int]:
        ort = require("onnxruntime", "export")
        providers = ["CPUExecutionProvider"]
        if options["device"] == "cuda":
            if "CUDAExecutionProvider" not in ort.get_available_providers():
                raise MienError("cuda: no GPU that onnxruntime can use; it needs the package onnxruntime-gpu")
            providers.insert(0, "CUDAExecutionProvider")
        how = ort.SessionOptions()
        how.log_severity_level = 4  # its warnings go to stderr as they please; errors are raised anyway
        if not path.is_file():
            raise CheckpointError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
        checksum = zlib.crc32(data := path.read_bytes())
        for file in external_files(path, data):
            checksum = zlib.crc32(file.read_bytes(), checksum)
        try:
            session = ort.InferenceSession(os.fspath(path), how, providers=providers)
            return session, checksum
        except Exception as error:  # a class of its own for every kind of failure, with no base of their own
            reason = str(error).strip().splitlines()[-1]
            raise CheckpointError(f"{path}: no model that onnxruntime can run ({reason})") from error

    def __call__(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """x (B, …) -> every output by its name."""
        session = self._get()
        try:
            return dict(zip(self.outputs, session.run(None, {self._input: x}), strict=True))
        except Exception as error:  # as above: of a graph that may hold whatever a stranger put there
            raise CheckpointError(
                f"{self._path}: cannot be run on these faces ({str(error).splitlines()[-1]})"
            ) from error
