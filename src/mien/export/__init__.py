"""Networks as files that other engines run."""

from mien.export.onnx import export_onnx

__all__ = ["export_onnx"]
