"""Networks as files that other engines run."""

from mien.export.onnx import export_onnx, write_onnx

__all__ = ["export_onnx", "write_onnx"]
