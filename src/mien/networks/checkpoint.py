"""Networks read from and written to files: a header that says everything, and weights that must all fit."""

import importlib
import inspect
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from mien.checkpoint import KEY, at_temperature, check_header, outputs_of, read_header
from mien.errors import CheckpointError
from mien.files import whole
from mien.networks.network import Network
from mien.networks.trunk import Trunk

MAX_TENSORS = 100_000
"""Of a network whose header may be a stranger's."""

_BY_NAME = ("mixer", "pool", "refine", "batch_branch")
"""Arguments of networks that may be the name of a class alone."""


def build(model: Mapping[str, Any], *, trust: bool = False, **overrides) -> nn.Module:
    """Build the module that a `model` block describes.

    model: {"class_path", "init_args"}: a class, or a function, and its keyword arguments. An argument may be a block
        itself, for a part of the network, or a list of blocks. If the part needs further arguments, such as a mixer its
        width, the network is given a function that takes them. A `mixer`, `pool`, `refine` or `batch_branch` may be a
        class path alone: `mixer: mien.nn.TalkingHeads`.
    trust: call whatever the block names. By default only mien's networks are called: its classes of modules, and its
        functions that are declared to return one.
    overrides: keyword arguments in place of those of the block.

    Raises CheckpointError for a network that does not exist, that mien does not define, or that these arguments cannot
    build.
    """
    path = model["class_path"]
    make = _find(path, trust)
    try:
        arguments = _arguments({**model.get("init_args", {}), **overrides}, trust)
        inspect.signature(make).bind(**arguments)
        return make(**arguments)
    except CheckpointError:  # of a part
        raise
    except Exception as error:  # impossible sizes raise anything in torch
        raise CheckpointError(f"{path} cannot be built: {' '.join(str(error).split())}") from error


def _arguments(arguments: Mapping[str, Any], trust: bool) -> dict[str, Any]:
    """The same arguments, with every block among them built."""
    return {name: _argument(value, trust, name in _BY_NAME) for name, value in arguments.items()}


def _argument(value: Any, trust: bool, by_name: bool) -> Any:
    if by_name and isinstance(value, str) and "." in value:
        value = {"class_path": value}
    if isinstance(value, list):
        return [_argument(one, trust, by_name) for one in value]
    return _part(value, trust) if isinstance(value, Mapping) and "class_path" in value else value


def _part(model: Mapping[str, Any], trust: bool) -> Any:
    """The module that a block describes; if it lacks arguments, a function that takes them and builds it."""
    make, arguments = _find(model["class_path"], trust), model.get("init_args", {})
    try:
        inspect.signature(make).bind(**arguments)
    except (TypeError, ValueError):
        return partial(make, **_arguments(arguments, trust))
    return build(model, trust=trust)


def _find(path: str, trust: bool) -> Any:
    """The class or function that builds the network of that name."""
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
    """Whether mien defines it as a network. A header may be a stranger's, and mien has functions that write files."""
    made = make if inspect.isclass(make) else getattr(make, "__annotations__", {}).get("return")
    return (
        inspect.isclass(made)
        and issubclass(made, nn.Module)
        and made is not nn.Module  # such as `build` itself
        and all(what.__module__.startswith("mien.") for what in (make, made))
    )


def fill(module: nn.Module, tensors: Mapping[str, Tensor], source: object, most: int | None = 8) -> None:
    """Load `tensors` into `module`. Every tensor must have a name of the module's, and every such name a tensor.

    Before that, a network may fit weights for images of another size to its own, and a trunk that ends early may drop
    the weights behind its end.

    module: filled in place.
    tensors: by the names of the module's state dict.
    source: where the tensors come from, for messages.
    most: how many names a message lists of each kind (default 8), None for all.

    Raises CheckpointError that lists what is missing, left over or of another shape.
    """
    if isinstance(module, Network | Trunk):
        tensors = module.fit(tensors)
    own = module.state_dict()
    optional = {name for name in own if name.endswith("num_batches_tracked")}
    missing = sorted(own.keys() - tensors.keys() - optional)
    over = sorted(tensors.keys() - own.keys())
    other = [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(own[name].shape)}"
        for name in sorted(own.keys() & tensors.keys())
        if tensors[name].shape != own[name].shape
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
    """The weights of a .safetensors file in fp32, by name.

    path: the file. prefix: only the names under this one are loaded, and without it (default: all names).

    Raises CheckpointError for a file that is missing or damaged.
    """
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

    The network takes float images (B, 3, S, S), normalised as the header's `preprocess` says, of which S is the
    `input_size` (mostly 112), and gives logits (B, C). A trunk gives its maps.

    path: the file.
    trust: build the network of whatever classes the header names; by default, of mien's classes only.
    overrides: arguments of its constructor that change no weights, or the `img_size` of a network that can fit its
        weights to another.

    Raises CheckpointError, naming the file, for a file that is no checkpoint, a network that is unknown, and tensors
    that are missing or left over.
    """
    header = read_header(path)
    if Path(path).suffix != ".safetensors":
        raise CheckpointError(f"{path}: its weights are for engines; torch takes them from a .safetensors file")
    try:
        with _bounded(4 * os.path.getsize(path) + 10_000_000):  # of two bytes each, and what is in training only
            network: Any = build(header["model"], trust=trust, **overrides)
            if others := outputs_of(header)[1:]:
                cast(Any, network).add_heads(others)
    except (CheckpointError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    fill(network, load_tensors(path), path)
    return network.eval()


@contextmanager
def _bounded(most: int) -> Iterator[None]:
    """Building a network of more than `most` weights, or of more than MAX_TENSORS tensors, raises CheckpointError."""
    thread, count, weights = threading.get_ident(), 0, 0

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count, weights
        if parameter is not None and threading.get_ident() == thread:
            count, weights = count + 1, weights + parameter.numel()
            if count > MAX_TENSORS or weights > most:
                raise CheckpointError("its header describes a network far larger than its weights")

    handle = register_module_parameter_registration_hook(register)
    try:
        yield
    finally:
        handle.remove()


def save_network(
    path: str | os.PathLike[str], network: nn.Module, header: Mapping[str, Any], dtype: torch.dtype = torch.float32
) -> None:
    """Write the network's weights and its header to a .safetensors file, whole or not at all.

    path: the file; its folder is made if it is missing.
    network: any module. Parts of a `Network` that are `training_only` are left out, of the header as well.
    header: what `mien.checkpoint.check_header` describes.
    dtype: of tensors with two dimensions or more, fp32 by default. The statistics of batch norm and the like, which are
        few and may be very small, stay fp32.

    Raises CheckpointError for a header that is not complete.
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
    """Replace the header of a .safetensors checkpoint, whole or not at all. Its weights stay as they are."""
    check_header(header, path)
    data = save(load_file(path), metadata={KEY: json.dumps(header, ensure_ascii=False)})
    with whole(Path(path)) as file:
        file.write(data)


def average_networks(
    paths: Sequence[str | os.PathLike[str]], *, trust: bool = False
) -> tuple[nn.Module, dict[str, Any]]:
    """The network whose weights are the mean of those of several checkpoints, and its header.

    They are of one model, with the same labels and preprocessing: the last epochs of a run, or those of several runs
    from one start. Statistics of batch norm are averaged as well, whole numbers are those of the last. The header is
    that of the last, without what was measured of it; its `training` names the files in `average_of`. trust: as for
    `load_network`.

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
    network = load_network(paths[-1], trust=trust)
    all_tensors = [load_tensors(path) for path in paths]
    mean = {
        name: torch.stack([tensors[name] for tensors in all_tensors]).mean(0) if last.is_floating_point() else last
        for name, last in all_tensors[-1].items()
    }
    fill(network, mean, paths[-1])
    training = {key: value for key, value in headers[-1].get("training", {}).items() if key not in ("metrics", "steps")}
    training["average_of"] = [Path(path).name for path in paths]
    header = at_temperature(headers[-1], 1.0) | {"training": training}
    return network, {key: value for key, value in header.items() if key != "precision"}
