"""Networks as files that other engines run."""

from mien.export.model import AccuracyLost, Exported, export_model
from mien.export.onnx import export_onnx
from mien.export.program import export_program

__all__ = ["AccuracyLost", "Exported", "export_model", "export_onnx", "export_program"]
