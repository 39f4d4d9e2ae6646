"""Programs that torch.export has saved: .pt2 files."""

import io
import json
import os
import re
import zipfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mien.checkpoint import read_header, tensor_names
from mien.engines.torch import TorchEngine
from mien.errors import CheckpointError, require

if TYPE_CHECKING:
    import torch

NAMES = re.compile(r"[\w.]*")
PATTERNS = {
    "name": NAMES,
    "as_name": NAMES,
    "as_string": re.compile(r"[\w ,.>-]*"),  # the equation of an einsum, say
    "expr_str": re.compile(r"(?:Symbol\('\w+'(?:, \w+=(?:True|False))*\)|[A-Z]\w*\(|-?\d++|[), ])*+"),
    "target": re.compile(
        r"torch\.ops\.aten\.(?!save\.|from_file\.)\w+\.\w+"
        r"|torch\.ops\.higher_order\.wrap_with_(?:autocast|set_grad_enabled)|torch\.sym_\w+|math\.\w+"
        r"|_operator\.(?:getitem|add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_)"
    ),
}
OTHERS = re.compile(r"[\w.:+-]*")
"""What strings of a serialized program look like, by the key that they have."""

TREES = (None, "builtins.tuple", "builtins.list", "builtins.dict")
"""What arguments and answers may be gathered in."""

RECORDS = re.compile(
    r"(?:archive_format|archive_version|byteorder|version|data/(?:weights|constants)/(?:weight|tensor)_\d+"
    r"|extra/[^/]*|\.data/(?:version|serialization_id))"
)
"""Files of an archive that hold tensors and notes."""


def open_program(path: str | os.PathLike[str], *, device: str = "auto", precision: str = "auto") -> TorchEngine:
    """A .pt2 file in torch, device and precision as for `TorchEngine`.

    torch would run whatever such a file tells it to; here it may only consist of torch's own operations on tensors,
    as a file that `mien export` wrote does: neither pickles nor compiled code, nor calls of anything else.

    Raises CheckpointError, naming the file, where no model can be made of it, and MissingExtra without torch.
    """
    torch = require("torch", "torch")
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except OSError as error:
        raise CheckpointError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    try:
        check_program(data)
        program = torch.export.load(io.BytesIO(data))
    except Exception as error:  # of any kind: of zipfile, of json, and of all that torch does with what is inside
        reason = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
        raise CheckpointError(f"{path}: no model that torch can run ({reason})") from error
    reopen = partial(open_program, os.path.abspath(path), device=device, precision=precision)
    module, names = _module(program), _names(path)
    return TorchEngine(module, outputs=names, device=device, precision=precision, reopen=reopen)


def _names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """What its header calls the answers; a program by itself has no names for them."""
    try:
        return tensor_names(read_header(path))
    except CheckpointError:
        return ("logits", "probs")


def check_program(data: bytes) -> None:
    """Raise some error unless an archive is whole, and holds a program of torch's own operations, and tensors."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if broken := archive.testzip():  # torch reads over checksums
            raise ValueError(f"{broken} in it is damaged")
        entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        if len(entries) != len(archive.infolist()):
            raise ValueError("two files in it have one name")
        _check(json.loads(archive.read(entries.pop("models/model.json"))))
        if entries.pop("data/sample_inputs/model.pt").file_size:
            raise ValueError("it holds sample inputs, which are pickled and could do anything")
        for kind in ("weights", "constants"):
            config = json.loads(archive.read(entries.pop(f"data/{kind}/model_{kind}_config.json")))["config"]
            if any(one["use_pickle"] or f"data/{kind}/{one['path_name']}" not in entries for one in config.values()):
                raise ValueError(f"not all of its {kind} are plain tensors")
        for name in entries:
            if not RECORDS.fullmatch(name):
                raise ValueError(f"it holds {name}, which no exported network needs")


def _check(value: Any, key: str = "") -> None:
    """Go through a serialized program: torch looks names up in its modules, and writes Python code out of others."""
    if isinstance(value, dict):
        for name, part in value.items():
            if not NAMES.fullmatch(name):
                raise ValueError(f"it has a name that is none: {name[:60]!r}")
            _check(part, name)
    elif isinstance(value, list):
        if key == "guards_code" and value:
            raise ValueError("it has guards, which are code")
        for part in value:
            _check(part, key)
    elif isinstance(value, str) and key in ("in_spec", "out_spec"):
        _check_tree(json.loads(value)[1])
    elif isinstance(value, str) and not PATTERNS.get(key, OTHERS).fullmatch(value):
        raise ValueError(f"it calls for {value[:60]!r}, which no exported network needs")


def _check_tree(spec: Any) -> None:
    if spec["type"] not in TREES:
        raise ValueError(f"it calls for {spec['type']!r}, which no exported network needs")
    for part in spec["children_spec"]:
        _check_tree(part)


def _module(program: "torch.export.ExportedProgram") -> "torch.nn.Module":
    torch = require("torch", "torch")

    class Program(torch.nn.Module):
        """What an exported program computes; it is moved as a whole, and knows no mode."""

        def to(self, device: "torch.device") -> "Program":
            placed = program
            if device.type != "cpu":
                from torch.export.passes import move_to_device_pass

                placed = move_to_device_pass(program, device)
            object.__setattr__(self, "run", placed.module())
            return self

        def forward(self, faces: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
            return self.run(faces)

    return Program()
