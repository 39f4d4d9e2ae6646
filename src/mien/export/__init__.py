"""Networks as files that other engines run."""

from mien.export.ir import export_ir, write_ir
from mien.export.onnx import export_onnx, make_onnx, write_onnx
from mien.export.program import export_program

__all__ = ["export_ir", "export_onnx", "export_program", "make_onnx", "write_ir", "write_onnx"]
