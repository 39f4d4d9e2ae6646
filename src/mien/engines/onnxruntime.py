"""onnxruntime, where it is installed."""

import os

import numpy as np

from mien.errors import CheckpointError, MienError, require


class OnnxRuntimeEngine:
    """An ONNX file in onnxruntime. device: "auto" and "cpu", or "cuda" with onnxruntime-gpu.

    Raises MissingExtra without onnxruntime, MienError where it knows no such device, CheckpointError for the file.
    """

    precision = "fp32"

    def __init__(self, path: str | os.PathLike[str], *, device: str = "auto"):
        ort = require("onnxruntime", "export")
        providers = ["CPUExecutionProvider"]
        if device == "cuda":
            if "CUDAExecutionProvider" not in ort.get_available_providers():
                raise MienError("cuda: no GPU that onnxruntime can use; it needs the package onnxruntime-gpu")
            providers.insert(0, "CUDAExecutionProvider")
        options = ort.SessionOptions()
        options.log_severity_level = 4  # its warnings go to stderr as they please; errors are raised anyway
        try:
            self._session = ort.InferenceSession(os.fspath(path), options, providers=providers)
        except Exception as error:  # a class of its own for every kind of failure, with no base of their own
            reason = str(error).strip().splitlines()[-1]
            raise CheckpointError(f"{path}: no model that onnxruntime can run ({reason})") from error
        self._input = self._session.get_inputs()[0].name
        self.outputs = tuple(output.name for output in self._session.get_outputs())

    def __call__(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """x (B, …) -> every output by its name."""
        return dict(zip(self.outputs, self._session.run(None, {self._input: x}), strict=True))
