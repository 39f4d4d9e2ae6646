"""A model as it has to be to be looked into: in torch."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mien.checkpoint import read_header
from mien.classifier import find_model
from mien.networks import Deployed, load_network


def open_network(model: str | os.PathLike[str] | None = None) -> tuple[Deployed, Mapping[str, Any]]:
    """The network of a model, from faces to probabilities, and its header.

    model: as for `Classifier.from_pretrained`, but that of a folder with both files the .safetensors is read.
    Raises CheckpointError.
    """
    path = find_model(model)
    other = path.with_suffix(".safetensors")
    if path.suffix == ".onnx" and path != Path(model or "") and other.exists():
        path = other
    network, header = load_network(path), read_header(path)
    return Deployed(network, header["preprocess"], header.get("temperature", 1.0)).eval(), header
