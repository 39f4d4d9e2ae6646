"""What the file of a head detector says of itself."""

import os
from typing import Any

from mien.checkpoint import read_metadata
from mien.errors import CheckpointError

KEY = "mien_heads"
"""The key under which the metadata of a head detector's file holds what the file is."""

OUTPUTS = ("scores", "boxes", "angles")


def read_heads_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """{"version": 1, "model": {class_path, init_args}, "input_size", "mean", "std", "training"} of a head detector.

    Raises CheckpointError for a file that is none.
    """
    header = read_metadata(path, KEY)
    fine = (
        isinstance(header, dict)
        and header.get("version") == 1
        and isinstance(header.get("model"), dict)
        and isinstance(header["model"].get("class_path"), str)
        and type(size := header.get("input_size")) is int
        and 0 < size <= 4096
        and size % 16 == 0
        and all(_three(header.get(name)) for name in ("mean", "std"))
        and min(header["std"]) > 1e-6
    )
    if not fine:
        raise CheckpointError(f"{path}: its header is not one of a head detector, or of another version")
    return header


def _three(values: Any) -> bool:
    return (
        isinstance(values, list) and len(values) == 3 and all(type(v) in (int, float) and abs(v) < 1e6 for v in values)
    )
