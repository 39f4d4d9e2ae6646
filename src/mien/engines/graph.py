"""What an ONNX file holds besides its numbers: the files beside it that hold others, and loops. Needs no package."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mien.errors import CheckpointError

_INNER: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {4: "text", 5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {1: "text", 2: "text"},
}
"""The messages of onnx.proto, ModelProto first, by the fields that hold what is looked for."""

_LOOPS = ("Loop", "Scan")
_DEPTH = 100  # of graphs within graphs


def external_files(path: Path, data: bytes | None = None) -> list[Path]:
    """The files that hold tensors of a model file, in order of their names; none for what is no ONNX file.

    path: of the model, for whose folder tensors are looked for. data: what is in it, read where it is not given.

    Raises CheckpointError for one that is not there, and for one that does not lie beside the model; and for a model
    with a loop, which may never end.
    """
    if path.suffix != ".onnx":
        return []
    data = path.read_bytes() if data is None else data
    if b"location" not in data and not any(name.encode() in data for name in _LOOPS):
        return []
    named: set[str] = set()
    try:
        for message, parts in _messages(memoryview(data), "model"):
            if message == "entry" and _text(parts, 1) == "location":
                named.add(_text(parts, 2))
            if message == "node" and (loop := _text(parts, 4)) in _LOOPS:
                raise CheckpointError(f"{path}: holds a {loop}, which may never end")
    except (ValueError, IndexError) as error:
        raise CheckpointError(f"{path}: damaged or cut short ({error})") from error
    files = []
    for name in sorted(named):
        shown = name.encode("ascii", "backslashreplace").decode()
        file = path.parent / name
        if not name or os.path.basename(name) != name or name in (".", "..") or "\0" in name:
            raise CheckpointError(f"{path}: its tensors in {shown!r} do not lie beside it")
        if file.is_symlink() and file.resolve().parent != path.resolve().parent and not path.is_symlink():
            raise CheckpointError(f"{path}: its tensors in {shown!r} do not lie beside it")
        if not file.is_file():
            raise CheckpointError(f"{path}: its tensors in {shown!r} are not beside it")
        files.append(file)
    return files


def check_layers(path: Path, data: bytes) -> None:
    """Raise CheckpointError for OpenVINO's IR with a loop, which may never end."""
    if found := re.search(rb'type\s*=\s*["\'](Loop|TensorIterator)["\']', data):
        raise CheckpointError(f"{path}: holds a {found[1].decode()}, which may never end")


def _messages(data: memoryview, kind: str, depth: int = 0) -> Iterator[tuple[str, Mapping[int, Any]]]:
    """Every message of a kind that is known, with its parts by their fields."""
    if depth > _DEPTH:
        raise ValueError("graphs within graphs without end")
    inner, parts, at = _INNER[kind], {}, 0
    while at < len(data):
        tag, at = _varint(data, at)
        match tag & 7:
            case 0:
                _, at = _varint(data, at)
                continue
            case 1:
                at += 8
                continue
            case 5:
                at += 4
                continue
            case 2:
                length, at = _varint(data, at)
            case _:
                raise ValueError("not an ONNX model")
        if at + length > len(data):
            raise ValueError("a field ends behind its message")
        part, at = data[at : at + length], at + length
        name = inner.get(tag >> 3)
        if name == "text":
            parts[tag >> 3] = part
        elif name is not None:
            yield from _messages(part, name, depth + 1)
    yield kind, parts


def _text(parts: Mapping[int, Any], field: int) -> str:
    return bytes(parts.get(field, b"")).decode()


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("not an ONNX model")
