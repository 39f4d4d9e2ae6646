"""Tampered .pt2 files: other values, calls and code in the program, other files in the archive, bytes changed."""

import io
import json
import os
import pickle
import warnings
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import HEADER
from torch import Tensor, nn

from fuzz.models import FACES, VALUES, places
from mien import Classifier
from mien.errors import MienError
from mien.export import export_program

GRAPH = "models/model.json"
CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
KINDS = ("value", "call", "code", "record", "config", "bytes", "cut", "doubled")


class Colour(nn.Module):
    """The mean colour decides: (B, 3, H, W) -> (B, 8)."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 8)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.mean((2, 3)))


class Trap:
    """What a pickle does when it is opened: it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@cache
def honest(folder: Path) -> dict[str, bytes]:
    """The files of an archive that is as it should be."""
    torch.manual_seed(0)
    export_program(folder / "honest.pt2", Colour(), HEADER, half=False)
    with zipfile.ZipFile(folder / "honest.pt2") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(folder: Path, seed: int) -> tuple[str, Path, Path]:
    """What is wrong with it, the file, and the file that it would make if something in it were run."""
    draw, what = np.random.default_rng((4, seed)), KINDS[seed % len(KINDS)]
    files, path, trap = dict(honest(folder)), folder / f"program_{seed}.pt2", folder / f"trap_{seed}"
    root, extra = next(iter(files)).partition("/")[0], []

    def change(record: str, by: Any) -> None:
        value = json.loads(files[f"{root}/{record}"])
        by(value)
        files[f"{root}/{record}"] = json.dumps(value).encode()

    def pick(choices: Any) -> Any:
        return choices[int(draw.integers(len(choices)))]

    call = f"open({str(trap)!r}, 'w')"
    code = (call, f"__import__('builtins').{call}", f"Symbol('s0') if {call} else 1", f"x={call}", f"s0); {call}; (")
    targets = ("torch.os.mkdir", "torch.os.system", "os.system", "builtins.open", "torch.load", "torch.hub.load")
    targets += ("torch.ops.aten.save.default", "torch.ops.aten.from_file.default", "torch.ops.higher_order.cond")
    targets += ("torch._dynamo.eval_frame", "subprocess.call", "torch.ops.aten.nothing.default", "_operator.call")
    match what:
        case "value":
            change(pick((GRAPH, *CONFIGS)), lambda value: _put(value, draw, pick(VALUES)))
        case "call":
            change(GRAPH, lambda value: _call(value, draw, pick(targets), str(trap)))
        case "code":
            change(GRAPH, lambda value: _put(value, draw, pick(code), texts=True))
        case "record":
            names = ("data/sample_inputs/model.pt", "data/constants/custom_obj_0", "data/weights/model.pt", "code/a.py")
            names += ("data/aotinductor/model/a.so", "models/other.json", "../../trap", "/tmp/trap", "extra/../x")
            files[f"{root}/{pick(names)}"] = pickle.dumps(Trap(trap))
        case "config":
            name = f"{root}/{pick(CONFIGS)}"
            files[name] = files[name].replace(b'"use_pickle": false', b'"use_pickle": true')
            weight = next(key for key in files if "/data/weights/weight" in key)
            files[weight] = pick((pickle.dumps(Trap(trap)), files[weight][:-4], files[weight] * 2, b""))
        case "doubled":
            extra.append((pick(tuple(files)), pickle.dumps(Trap(trap))))
    made = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(made, "w") as archive:
        warnings.simplefilter("ignore")  # of two files with one name
        for name, data in [*files.items(), *extra]:
            archive.writestr(zipfile.ZipInfo(name), data)
    data = bytearray(made.getvalue())
    if what == "cut":
        del data[int(draw.integers(len(data))) :]
    elif what == "bytes":
        for place in draw.integers(0, len(data), int(draw.integers(1, 30))):
            data[place] = int(draw.integers(256))
    path.write_bytes(data)
    return what, path, trap


def _put(value: Any, draw: np.random.Generator, new: Any, texts: bool = False) -> None:
    """Another value somewhere; `texts`: in the place of a text, or of the name of one."""

    def at(path: tuple) -> tuple[Any, Any]:
        part = value
        for key in path[:-1]:
            part = part[key]
        return part, path[-1]

    found = [at(path) for path in places(value)[1:]]
    if texts:
        found = [(part, key) for part, key in found if isinstance(part[key], str) or part[key] == {}]
    part, key = found[int(draw.integers(len(found)))]
    part[key] = {new: 1} if part[key] == {} else new


def _call(value: Any, draw: np.random.Generator, target: str, trap: str) -> None:
    nodes = value["graph_module"]["graph"]["nodes"]
    node = nodes[int(draw.integers(len(nodes)))]
    node["target"] = target
    if draw.integers(2):
        node["inputs"] = [{"name": "", "arg": {"as_string": trap}, "kind": 1}]


def fault(seed: int, folder: Path) -> str | None:
    """What is wrong with how it is opened and run: something was run, or it was neither read nor refused in a line."""
    what, path, trap = write(folder, seed)
    before = set(os.listdir())
    try:
        Classifier.from_pretrained(os.fspath(path)).answers(FACES)
    except MienError as error:
        if "\n" in str(error) or not str(error).startswith(str(path)):
            return f"{seed}, {what}: {str(error)[:300]}"
    except BaseException as error:
        return f"{seed}, {what}: {type(error).__name__}: {str(error)[:300]}"
    finally:
        path.unlink()
    if trap.exists() or set(os.listdir()) - {path.name} != before - {path.name}:
        return f"{seed}, {what}: something in it was run"
    return None
