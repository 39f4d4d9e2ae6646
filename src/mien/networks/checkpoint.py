"""Networks in and out of files: a header that says everything, and weights that must all fit."""

import importlib
import inspect
import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from mien.checkpoint import KEY, at_temperature, check_header, outputs_of, read_header
from mien.errors import CheckpointError
from mien.files import whole
from mien.networks.network import Network
from mien.networks.trunk import Trunk

_BY_NAME = ("mixer", "pool", "refine", "batch_branch")
"""Arguments of networks that may be the name of a class alone."""


def build(model: Mapping[str, Any], *, trust: bool = False, **overrides) -> nn.Module:
    """The module that a `model` block names: {"class_path", "init_args"}, a class or a function of keyword arguments.

    An argument may be such a block itself, for a part of the network: the part, or where the network gives it more
    arguments (as to a mixer or a pool its width), what makes it. It may be a list of blocks, and of a `mixer`, a
    `pool`, a `refine` or a `batch_branch` the name will do: `mixer: mien.nn.TalkingHeads`. Unless `trust` is given,
    only what mien defines as a network is called: its classes of modules, and its functions that are declared to return
    one. Raises CheckpointError.
    """
    path = model["class_path"]
    make = _find(path, trust)
    try:
        arguments = _arguments({**model.get("init_args", {}), **overrides}, trust)
        inspect.signature(make).bind(**arguments)
        return make(**arguments)
    except CheckpointError:  # of a part
        raise
    except Exception as error:  # torch raises whatever sizes that cannot be lead it to
        raise CheckpointError(f"{path} cannot be built: {' '.join(str(error).split())}") from error


def _arguments(arguments: Mapping[str, Any], trust: bool) -> dict[str, Any]:
    """The same, with every block among them made into what it names."""
    return {
        name: _argument(value, trust, name in ("mixer", "pool", "refine", "batch_branch"))
        for name, value in arguments.items()
    }


def _argument(value: Any, trust: bool, by_name: bool) -> Any:
    if by_name and isinstance(value, str) and "." in value:
        value = {"class_path": value}
    if isinstance(value, list):
        return [_argument(one, trust, by_name) for one in value]
    return _part(value, trust) if isinstance(value, Mapping) and "class_path" in value else value


def _part(model: Mapping[str, Any], trust: bool) -> Any:
    """The module that a block names; where that lacks arguments, what takes them and makes it."""
    make, arguments = _find(model["class_path"], trust), model.get("init_args", {})
    try:
        inspect.signature(make).bind(**arguments)
    except (TypeError, ValueError):
        return partial(make, **_arguments(arguments, trust))
    return build(model, trust=trust)


def _find(path: str, trust: bool) -> Any:
    """What builds the network of that name."""
    if not trust and not path.startswith("mien."):
        raise CheckpointError(f"{path} is not one of mien's networks: trust=True (--trust) imports it all the same")
    module, _, name = path.rpartition(".")
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise CheckpointError(f"there is no network {path}") from error
    if not (callable(make) if trust else _is_network(make)):
        raise CheckpointError(f"{path} is not a network")
    return make


def _is_network(make: Any) -> bool:
    """Whether mien defines it as a network; a header is a stranger's, and mien has functions that write files."""
    made = make if inspect.isclass(make) else getattr(make, "__annotations__", {}).get("return")
    return (
        inspect.isclass(made)
        and issubclass(made, nn.Module)
        and made is not nn.Module  # what builds or loads any
        and all(what.__module__.startswith("mien.") for what in (make, made))
    )


def fill(module: nn.Module, tensors: Mapping[str, Tensor], source: object, most: int | None = 8) -> None:
    """Load `tensors` into `module`; every one must find its place and every place its tensor.

    A network may fit weights for another size of image to its own before, and a trunk that ends early drop the rest.

    Raises CheckpointError that lists what is missing, left over or of another shape, at `most` so many of each.
    """
    if isinstance(module, Network | Trunk):
        tensors = module.fit(tensors)
    places = module.state_dict()
    optional = {name for name in places if name.endswith("num_batches_tracked")}
    missing = sorted(places.keys() - tensors.keys() - optional)
    over = sorted(tensors.keys() - places.keys())
    other = [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(places[name].shape)}"
        for name in sorted(places.keys() & tensors.keys())
        if tensors[name].shape != places[name].shape
    ]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:most])}{', …' * (names != names[:most])}"
        for what, names in (("missing", missing), ("without a place", over), ("of another shape", other))
        if names
    ]
    if problems:
        raise CheckpointError(f"{source}: tensors do not fit: {'; '.join(problems)}")
    module.load_state_dict(tensors, strict=False)  # counters of batch norm may be absent


def load_tensors(path: str | os.PathLike[str], prefix: str = "") -> dict[str, Tensor]:
    """The weights of a .safetensors file in fp32, those under `prefix` alone and without it."""
    try:
        tensors = load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or cut short ({error})") from error
    prefix = prefix and prefix.rstrip(".") + "."
    return {
        name.removeprefix(prefix): tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def load_network(path: str | os.PathLike[str], *, trust: bool = False, **overrides) -> nn.Module:
    """The torch network of a .safetensors checkpoint, in eval mode and fp32.

    It takes float images (B, 3, S, S), S being `input_size` of the header's `preprocess` (112 mostly), normalised as
    that says, and gives logits (B, C); a trunk gives its maps. `overrides` replace arguments of its constructor that
    leave the weights alone, or the `img_size` of a network that can fit its weights to another. trust: see `build`.

    Raises CheckpointError, naming the file: not a checkpoint, an unknown network, a tensor missing or without a place.
    """
    header = read_header(path)
    if Path(path).suffix != ".safetensors":
        raise CheckpointError(f"{path}: its weights are for engines; torch takes them from a .safetensors file")
    try:
        network = build(header["model"], trust=trust, **overrides)
        if others := outputs_of(header)[1:]:
            network.add_heads(others)
    except (CheckpointError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    fill(network, load_tensors(path), path)
    return network.eval()


def save_network(
    path: str | os.PathLike[str], network: nn.Module, header: Mapping[str, Any], dtype: torch.dtype = torch.float32
) -> None:
    """Write the network's weights and its header to a .safetensors file, whole or not at all.

    `dtype` is that of tensors with two dimensions or more; the statistics of batch norm and the like, which are few and
    may be very small, stay fp32. Parts of a `Network` that are `training_only` are left out, of the header as well.
    """
    path = Path(path)
    if beside := getattr(network, "training_only", {}):
        model = header["model"]
        header = {**header, "model": {**model, "init_args": {**model.get("init_args", {}), **beside}}}
    check_header(header, path)
    tensors = {
        name: tensor.detach()
        .to("cpu", dtype if tensor.is_floating_point() and tensor.ndim > 1 else tensor.dtype)
        .clone(memory_format=torch.contiguous_format)
        for name, tensor in network.state_dict().items()
        if name.partition(".")[0] not in beside
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as file:
        file.write(save(tensors, metadata={KEY: json.dumps(header, ensure_ascii=False)}))


def write_header(path: str | os.PathLike[str], header: Mapping[str, Any]) -> None:
    """Give a .safetensors checkpoint another header, whole or not at all; its weights stay as they are."""
    check_header(header, path)
    data = save(load_file(path), metadata={KEY: json.dumps(header, ensure_ascii=False)})
    with whole(Path(path)) as file:
        file.write(data)


def average_networks(paths: Sequence[str | os.PathLike[str]]) -> tuple[nn.Module, dict[str, Any]]:
    """The network whose weights are the mean of those of several checkpoints, and its header.

    They are of one model, with the same labels and preprocessing: the last epochs of a run, or those of several runs
    from one start. Statistics of batch norm are averaged as well, whole numbers are those of the last. The header is
    that of the last; its `training` has no metrics, and names the files in `average_of`.

    Raises CheckpointError for fewer than two files, and for one of another model, labels or preprocessing.

    Paper: Izmailov et al., Averaging Weights Leads to Wider Optima, UAI 2018.
    """
    if len(paths) < 2:
        raise CheckpointError("an average is of two checkpoints or more")
    headers = [read_header(path) for path in paths]
    for path, header in zip(paths, headers, strict=True):
        header = at_temperature(header, 1.0)
        for key in ("model", "outputs", "preprocess"):
            if header[key] != at_temperature(headers[-1], 1.0)[key]:
                raise CheckpointError(f"{path}: of another {key} than {paths[-1]}: they cannot be averaged")
    network = load_network(paths[-1])
    all_tensors = [load_tensors(path) for path in paths]
    mean = {
        name: torch.stack([tensors[name] for tensors in all_tensors]).mean(0) if last.is_floating_point() else last
        for name, last in all_tensors[-1].items()
    }
    fill(network, mean, paths[-1])
    training = {key: value for key, value in headers[-1].get("training", {}).items() if key not in ("metrics", "steps")}
    training["average_of"] = [Path(path).name for path in paths]
    return network, {**at_temperature(headers[-1], 1.0), "training": training}
