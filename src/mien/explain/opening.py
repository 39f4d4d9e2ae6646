"""A model as it has to be to be looked into: in torch."""

import os
from collections.abc import Mapping
from typing import Any

from mien.checkpoint import read_header
from mien.classifier import find_checkpoint
from mien.networks import Deployed, deploy, load_network


def open_network(
    model: str | os.PathLike[str] | None = None, *, trust: bool = False
) -> tuple[Deployed, Mapping[str, Any]]:
    """The network of a model, from faces to probabilities, and its header.

    model, trust: as for `Classifier.from_pretrained`, but that of a folder with both files the .safetensors is read.
    Raises CheckpointError.
    """
    path = find_checkpoint(model)
    network, header = load_network(path, trust=trust), read_header(path)
    return deploy(network, header), header
