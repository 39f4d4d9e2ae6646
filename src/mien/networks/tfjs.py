"""The weights of a graph model of TensorFlow.js: numbers, by the names of its constants."""

import json
import math
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mien.errors import CheckpointError

_STORED = {"float32": "<f4", "float16": "<f2", "int32": "<i4"}


def tfjs_state_dict(source: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The constants of a model.json, whose files of weights lie beside it; float ones as fp32.

    Raises CheckpointError for a file that is none, for weights that are missing or cut off, and for those that were
    quantised to whole numbers.
    """
    source, tensors = Path(source), {}
    try:
        groups = json.loads(source.read_text("utf-8"))["weightsManifest"]
        for group in groups:
            stored = b"".join((source.parent / Path(name).name).read_bytes() for name in group["paths"])
            place = 0
            for each in group["weights"]:
                kind = _STORED[each.get("quantization", each)["dtype"]]
                count = math.prod(each["shape"])
                numbers = np.frombuffer(stored, kind, count, place).reshape(each["shape"])
                tensors[each["name"]] = torch.from_numpy(numbers.astype("i4" if kind == "<i4" else "f4"))
                place += numbers.nbytes
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename}: no such file") from error
    except (OSError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{source}: no graph model of TensorFlow.js, or damaged ({reason})") from error
    return tensors
