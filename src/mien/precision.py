"""What a model is computed in: what was asked for, or the fastest that it was measured to bear."""

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mien.engines import computes_bf16, computes_int8
from mien.errors import CheckpointError, MienError, MienWarning

PRECISIONS = ("auto", "fp32", "bf16", "int8")

LOSS = 0.003
"""The loss of accuracy that "auto" stays below, of what the header says was measured on validation faces."""


def choose(path: Path, header: Mapping[str, Any], *, device: str = "auto", precision: str = "auto") -> tuple[Path, str]:
    """The file to run in the place of a model's own, and what it computes in: "fp32", "bf16" or "int8".

    path, header: of the model. device: "auto", "cpu" or "cuda". precision: one of PRECISIONS. "auto" is, in OpenVINO
    and on a CPU that has instructions for it, bf16 where the header says that it loses less than LOSS, otherwise int8
    where it says so of that, and otherwise fp32. A header speaks of OpenVINO's bf16, and of the int8 file beside the
    model.

    Warns (MienWarning) where "auto" would take an int8 file that is not there, or is not the one that was measured, and
    takes fp32. Raises CheckpointError for such a file where "int8" was asked for, MienError for what there is not.
    """
    if precision not in PRECISIONS:
        raise MienError(f"no such precision: {precision!r}; there are {', '.join(PRECISIONS)}")
    if precision == "int8":
        if device == "cuda":
            raise MienError(f"{path}: int8 is computed on the CPU")
        return int8_file(path, header), "int8"
    if precision != "auto":
        return path, precision
    if device == "cuda" or path.suffix not in (".onnx", ".xml"):
        return path, "fp32"
    if _bears(header, "bf16") and computes_bf16():
        return path, "bf16"
    if path.suffix == ".onnx" and _bears(header, "int8") and computes_int8():
        try:
            return int8_file(path, header), "int8"
        except CheckpointError as error:
            warnings.warn(f"{error}: fp32 is taken, which is slower", MienWarning, stacklevel=3)
    return path, "fp32"


def int8_beside(path: Path) -> Path:
    """Where the int8 file of a .onnx model lies, whether it is there or not: model.int8.onnx beside model.onnx."""
    return path.with_name(f"{path.stem}.int8.onnx")


def int8_file(path: Path, header: Mapping[str, Any]) -> Path:
    """The int8 file of a model, whose header names it by its SHA-256.

    Raises CheckpointError where the header names none, and where it is missing or another.
    """
    named = header.get("precision", {}).get("int8")
    if path.suffix != ".onnx" or named is None:
        raise CheckpointError(f"{path}: names no int8 file (mien export FOLDER --calibrate DATA --check DATA)")
    file = int8_beside(path)
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: its int8 file, {file.name}, is not beside it") from error
    except OSError as error:
        raise CheckpointError(f"{file}: {(error.strerror or str(error)).lower()}") from error
    if hashlib.sha256(data).hexdigest() != named["sha256"]:
        raise CheckpointError(f"{path}: {file.name} beside it is damaged, or of another model")
    return file


def _bears(header: Mapping[str, Any], name: str) -> bool:
    """Whether it was measured to lose less accuracy than LOSS."""
    measured = header.get("precision", {}).get(name)
    return measured is not None and measured["accuracy_difference"] > -LOSS
