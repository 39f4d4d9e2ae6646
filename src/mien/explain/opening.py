"""A model as it has to be to be looked into: in torch."""

import os
from collections.abc import Callable, Mapping
from typing import Any

from mien.checkpoint import read_header
from mien.classifier import MODELS, find_checkpoint
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


def shipped_with(able: Callable[[Deployed], bool]) -> list[str]:
    """The names of those models that come with mien, and have a .safetensors, of which `able` is true."""
    names = sorted(file.parent.name for file in MODELS.glob("*/model.safetensors"))
    return [name for name in names if able(open_network(MODELS / name)[0])]
