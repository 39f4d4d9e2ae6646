"""The tensors of a file from anywhere: nothing that it holds is executed."""

import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch._utils
from torch import Tensor

from mien.errors import CheckpointError
from mien.networks.checkpoint import load_tensors
from mien.networks.tfjs import tfjs_state_dict


def state_dict(source: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, of a graph model of TensorFlow.js (.json) or of a pickled checkpoint, without
    `module.`; nothing of it is executed."""
    if Path(source).suffix == ".safetensors":
        found: Any = load_tensors(source)
    elif Path(source).suffix == ".json":
        found = tfjs_state_dict(source)
    else:
        try:
            if _is_script(source):
                raise ValueError("a TorchScript program")
            found = torch.load(source, map_location="cpu", pickle_module=_INERT_PICKLE, weights_only=False)
        except FileNotFoundError as error:
            raise CheckpointError(f"{source}: no such file") from error
        except Exception as error:  # an unpickler raises whatever a damaged file leads it to
            raise CheckpointError(f"{source}: not a torch checkpoint, or damaged ({error})") from error
    for inner in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(inner), Mapping):
            found = found[inner]
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{source}: holds no state dict")
    tensors = {
        str(name).removeprefix("module."): t.detach().float() if t.is_floating_point() else t.detach()
        for name, t in found.items()
        if isinstance(t, Tensor)
    }
    if not tensors:
        raise CheckpointError(f"{source}: holds no tensors")
    return tensors


def _is_script(source: str | os.PathLike[str]) -> bool:
    """Whether torch.load would run the file as a program."""
    if not zipfile.is_zipfile(source):
        return False
    with zipfile.ZipFile(source) as archive:
        return any(name.rpartition("/")[2] == "constants.pkl" for name in archive.namelist())


class _Inert:
    """Stands for an object of any class that was pickled beside the tensors: takes everything, does nothing."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, *args, **kwargs):
        return self

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, value):
        pass

    def extend(self, values):
        pass


_SAFE = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
}


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _SAFE:
            return _SAFE[module, name]
        if module == "torch" and name.endswith("Storage") and hasattr(torch, name):
            return getattr(torch, name)
        if module == "torch.storage" and name in ("TypedStorage", "UntypedStorage"):
            return getattr(torch.storage, name)
        return type(name, (_Inert,), {})


def _load(file, **options):
    return _InertUnpickler(file, **options).load()


_INERT_PICKLE = SimpleNamespace(Unpickler=_InertUnpickler, load=_load, __name__="inert_pickle")
