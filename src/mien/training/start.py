"""What a network starts from: weights of other runs, and a head that owes nothing to theirs."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mien.checkpoint import labels_of, read_header
from mien.classifier import find_checkpoint
from mien.errors import CheckpointError, MienError
from mien.networks import Network, build
from mien.networks.checkpoint import fill, load_tensors

logger = logging.getLogger(__name__)


def seed_of_start(seed: int) -> int:
    """Of what a network that starts from other weights has anew.

    Another stream than that of `seed`, from which the other weights may have come, too: their head and a new one would
    be alike, class by class.
    """
    return int(np.random.SeedSequence((seed, 1)).generate_state(1)[0])


def start_from(
    network: nn.Module,
    init: Mapping[str, str],
    labels: Sequence[str] = (),
    model: Mapping[str, Any] | None = None,
) -> None:
    """Load parts of a network from checkpoints.

    network: is changed.
    init: by the name of a part ("" is all of the network), or of a single parameter, where it comes from: a file, or
        the name of a model, as `mien.find_checkpoint` takes it, and behind a "#" the part, or the parameter, of that.
    labels: the classes of the network, model: the block that it was built of. With both, a whole network of other
        classes, or of the same in another order, can be started from: what belongs to a class is taken from the class
        of the same name, and of a class that is new the row of the head is 0, and all else as it was drawn.

    What a checkpoint answers beside the expression is not taken over, and that is logged.

    Raises MienError where there is no such part, and CheckpointError where tensors do not fit.
    """
    parameters = dict(network.named_parameters())
    for part, source in init.items():
        name, _, prefix = source.partition("#")
        try:
            module = network if part in parameters else network.get_submodule(part)
        except AttributeError as error:
            raise MienError(f"--init: the network has no part {part!r}") from error
        path = find_checkpoint(name)
        if path.suffix != ".safetensors":
            raise CheckpointError(f"{path}: its weights are for engines; torch takes them from a .safetensors file")
        if part in parameters:
            _copy(parameters[part], load_tensors(path).get(prefix), part, source)
            continue
        tensors = load_tensors(path, prefix)
        if not prefix:
            tensors = _without_others(tensors, path)
        if model is not None and not part and not prefix:
            tensors = _by_name(network, tensors, path, labels, model)
        fill(module, tensors, source)


@torch.no_grad()
def settle_norms(network: nn.Module, images: Tensor) -> None:
    """Give batch norms the statistics of images, and weights with which they answer as before.

    network: is changed; with weights whose batch norm was part of the convolutions it learns nothing good otherwise, as
        the first step would normalise what never was normalised.
    images: (B, 3, S, S), normalised.
    """

    def settle(norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        mean, var = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3))
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        norm.bias += scale * (mean - norm.running_mean)
        norm.weight.copy_(scale * (var + norm.eps).sqrt())
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)

    hooks = [m.register_forward_pre_hook(settle) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    network.eval()(images)
    network.train()
    for hook in hooks:
        hook.remove()


def _copy(parameter: nn.Parameter, tensor: Tensor | None, part: str, source: str) -> None:
    if tensor is None or tensor.shape != parameter.shape:
        there = "no such tensor" if tensor is None else f"its shape is {tuple(tensor.shape)}"
        raise CheckpointError(f"{source}: {there}; {part} is {tuple(parameter.shape)}")
    with torch.no_grad():
        parameter.copy_(tensor)


def _without_others(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Without the heads of what is answered beside the expression: they are learned for a trunk as it is."""
    others = {name.split(".")[1]: None for name in tensors if name.startswith("heads.")}
    if others:
        logger.warning("%s: %s is not taken over", path, ", ".join(others))
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("heads.")}


def _by_name(
    network: nn.Module, tensors: dict[str, Tensor], path: Path, labels: Sequence[str], model: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The tensors with a row for each of `labels`."""
    there = labels_of(read_header(path))
    if tuple(labels) == there:
        return tensors
    rows = _class_rows(model, len(labels))
    head = _head(network)
    places = network.state_dict()
    for name, dim in rows.items():
        if name not in tensors or tensors[name].ndim <= dim or tensors[name].shape[dim] != len(there):
            continue  # `fill` says what does not fit
        fresh = places[name].clone()
        if head and name.startswith(f"{head}."):
            fresh.zero_()
        for i, label in enumerate(labels):
            if label in there:
                fresh.select(dim, i).copy_(tensors[name].select(dim, there.index(label)))
        tensors[name] = fresh
    return tensors


def _class_rows(model: Mapping[str, Any], classes: int) -> dict[str, int]:
    """The tensors with a row for each class, and along which dimension: those that change with their number."""
    with torch.random.fork_rng(devices=[]):
        one, more = (build(model, trust=True, num_classes=n).state_dict() for n in (classes, classes + 1))
    rows = {}
    for name, tensor in one.items():
        other = [dim for dim, (a, b) in enumerate(zip(tensor.shape, more[name].shape, strict=True)) if a != b]
        if len(other) == 1:
            rows[name] = other[0]
    return rows


def _head(network: nn.Module) -> str:
    """The name of the linear layer from features to logits, "" where there is none of its own."""
    head = getattr(network.headed, "head", None) if isinstance(network, Network) else None
    return next((name for name, part in network.named_modules() if part is head), "") if head is not None else ""


def freeze(network: nn.Module, prefixes: Sequence[str]) -> None:
    """Take the parameters whose names begin with one of `prefixes` out of training.

    Statistics of batch norm among them still move. Raises MienError where no name begins so.
    """
    for prefix in prefixes:
        found = [p for name, p in network.named_parameters() if name.startswith(prefix)]
        if not found:
            raise MienError(f"--freeze: no parameter's name begins with {prefix!r}")
        for p in found:
            p.requires_grad_(False)


def rest(network: nn.Module, parts: Sequence[str]) -> None:
    """Take whole parts out of training: in eval mode, where `mien.training.callbacks.Still` keeps them.

    Raises MienError where there is no such part.
    """
    for part in parts:
        try:
            network.get_submodule(part).eval().requires_grad_(False)
        except AttributeError as error:
            raise MienError(f"--rest: the network has no part {part!r}") from error
