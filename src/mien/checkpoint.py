"""The header of a checkpoint: labels, preprocessing, network and training, read without the weights."""

import json
import os
import re
import struct
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from mien.errors import CheckpointError
from mien.outputs import Output, check_outputs, expression_output, is_label

KEY = "mien"
"""The key under which the metadata of a checkpoint holds the header, as JSON."""

FEATURES = "features"
"""What the output is called that a network's head reads, (B, D), and the entry of a header that says D."""

VERSION = 2
"""Of the headers that are written. Those of version 1 are read: they have "id2label", and "temperature", in the place
of the first of "outputs", whose tensor they call "probs"."""

MAX_SIZE, MAX_STEPS = 4096, 8
"""How many pixels wide a face is made at most, and in how many steps."""

_LARGEST = 1_000_000  # of the numbers that a network is built of

_LONGEST = 100_000_000  # bytes of a header; safetensors sets the same limit


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The header of a .safetensors, .onnx, .xml or .pt2 file, checked. Skips the weights, and needs no package.

    Raises CheckpointError, naming the file, for a file that is missing, damaged or not mien's.
    """
    header = read_metadata(path)
    check_header(header, path)
    return header


def read_metadata(path: str | os.PathLike[str], key: str = KEY) -> Any:
    """The JSON that the metadata of a .safetensors, .onnx, .xml or .pt2 file holds under a key.

    Raises CheckpointError, naming the file, for a file that is missing, damaged or has nothing there.
    """
    path = Path(path)
    readers = {
        ".safetensors": _safetensors_metadata,
        ".onnx": _onnx_metadata,
        ".xml": _openvino_metadata,
        ".pt2": _torch_metadata,
    }
    if path.suffix not in readers:
        raise CheckpointError(f"{path}: a checkpoint is a .safetensors, .onnx, .xml or .pt2 file")
    try:
        if path.exists() and not path.is_dir() and not path.is_file():
            raise CheckpointError(f"{path}: neither a file nor a folder")
        with open(path, "rb") as file:
            text = readers[path.suffix](file, os.fstat(file.fileno()).st_size).get(key)
        if text is not None and not isinstance(text, str):
            raise ValueError("its metadata is not text")
        header = None if text is None else json.loads(text, parse_constant=_no_number)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except OSError as error:
        raise CheckpointError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except (ValueError, EOFError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged or cut short ({error})") from error
    if header is None:
        raise CheckpointError(f'{path}: not one of mien\'s checkpoints: no "{key}" in its metadata')
    return header


def check_header(header: Any, path: str | os.PathLike[str]) -> None:
    """Raise CheckpointError, naming `path`, unless `header` says all that reading needs.

    {"mien": 2, "model": {"class_path", "init_args"}, "outputs": [{"name", "kind", "labels", …}, …], "preprocess":
    {"align", "resize": [{"size", "interpolation"}], "input_size", "color", "mean", "std"}}, and optionally

    uncertain: the probability, in [0, 1), below which a reader that abstains names no expression.
    training: what the network was trained on, and how.
    features: how many numbers the graph's further output "features" (B, D) has: what the network's head reads.
    temporal: {"file", "window"}: the graph beside this file that joins a track's features over so many frames.
    precision: {"bf16": {"accuracy_difference", "interval": [low, high], "faces", "mean_distance"}}: what computing in
        bf16 changes in the answers that fp32 gives; likewise "int8", with the "sha256" of the int8 file beside the
        model's own.

    `mien.outputs.Output` says what an output has; the first is the expression.
    """

    def need(fine: Any, reason: str) -> None:
        if not fine:
            raise CheckpointError(f"{path}: its header {reason}")

    need(isinstance(header, dict), "is not a JSON object")
    version = header.get(KEY)
    known = version in (1, VERSION) and not isinstance(version, bool)
    need(known, f"is of version {version!r}, and this mien reads versions 1 and {VERSION}")
    model = header.get("model")
    need(
        isinstance(model, dict)
        and isinstance(model.get("class_path"), str)
        and isinstance(model.get("init_args", {}), dict),
        'has no "model" of a class_path and init_args',
    )
    need(all(part.isidentifier() for part in model["class_path"].split(".")), 'has a "class_path" that names no class')
    need(_sizes(model.get("init_args", {})), f'has "init_args" with a number that is not finite or above {_LARGEST:,}')
    if version == 1:
        _check_labels(header, need)
    need(isinstance(header.get("outputs", [] if version == 1 else None), list), 'has no "outputs"')
    try:
        outputs_of(header)
    except ValueError as error:
        need(False, f'has "outputs" that are wrong: {error}')
    need(_share(header.get("uncertain", 0)), 'has an "uncertain" that is not in [0, 1)')
    need(_count(header.get("features", 1), _LARGEST), 'has "features" that are not their number')
    _check_temporal(header, need)
    _check_precision(header.get("precision", {}), need)
    _check_preprocess(header.get("preprocess"), need)


def outputs_of(header: Mapping[str, Any]) -> tuple[Output, ...]:
    """The questions that the model of a checked header answers; "expression" is the first."""
    outputs = [Output.from_json(output) for output in header.get("outputs", ())]
    if header[KEY] == 1:
        labels = tuple(header["id2label"][str(i)] for i in range(len(header["id2label"])))
        outputs = [expression_output(labels, header.get("temperature", 1.0)), *outputs]
    return check_outputs(outputs)


def tensor_names(header: Mapping[str, Any]) -> tuple[str, ...]:
    """What a model file of this header gives: the logits of the first output, every output, and features if it has."""
    first, *others = (output.name for output in outputs_of(header))
    names = ("logits", "probs" if header[KEY] == 1 else first, *others)
    return (*names, *([FEATURES] if FEATURES in header else []))


def with_outputs(header: Mapping[str, Any], outputs: Iterable[Output]) -> dict[str, Any]:
    """The header, of version 2, with these outputs in the place of its own."""
    rest = {name: value for name, value in header.items() if name not in (KEY, "id2label", "temperature", "outputs")}
    return {KEY: VERSION, "model": header["model"], "outputs": [output.to_json() for output in outputs], **rest}


def at_temperature(header: Mapping[str, Any], temperature: float) -> dict[str, Any]:
    """The header, of version 2, with this temperature of the first output."""
    first, *others = outputs_of(header)
    return with_outputs(header, [replace(first, temperature=temperature), *others])


def labels_of(header: Mapping[str, Any]) -> tuple[str, ...]:
    """The labels of the first output of a checked header."""
    return outputs_of(header)[0].labels


def _check_labels(header: Mapping[str, Any], need: Callable[[Any, str], None]) -> None:
    labels: Any = header.get("id2label")
    need(isinstance(labels, dict) and labels, 'has no "id2label"')
    need(set(labels) == {str(i) for i in range(len(labels))}, 'does not number its "id2label" from 0 up')
    need(all(map(is_label, labels.values())), 'has an "id2label" without a name, or with a control character in it')
    need(len(set(labels.values())) == len(labels), 'names one label twice in "id2label"')
    need(_positive(header.get("temperature", 1.0)), 'has a "temperature" that is not above 0')


def _check_temporal(header: Mapping[str, Any], need: Callable[[Any, str], None]) -> None:
    if "temporal" not in header:
        return
    temporal = header["temporal"]
    need(
        isinstance(temporal, dict)
        and isinstance(temporal.get("file"), str)
        and temporal["file"] == os.path.basename(temporal["file"])
        and temporal["file"].endswith(".onnx")
        and _count(temporal.get("window"), 4096),
        'has a "temporal" that does not name a .onnx file beside it and how many frames it takes',
    )
    need(FEATURES in header, 'has a "temporal" without "features"')


def _check_precision(precision: Any, need: Callable[[Any, str], None]) -> None:
    need(isinstance(precision, dict), 'has a "precision" that is not a JSON object')
    for name, found in precision.items():
        need(
            isinstance(found, dict)
            and all(_finite(found.get(key)) for key in ("accuracy_difference", "mean_distance"))
            and isinstance(found.get("interval"), list)
            and list(map(_finite, found["interval"])) == [True, True]
            and _positive(found.get("faces")),
            f'has a "precision" that does not say what {name} does to the answers',
        )
    if "int8" in precision:
        named = re.fullmatch("[0-9a-f]{64}", str(precision["int8"].get("sha256")))
        need(named, 'has a "precision" that does not name the int8 file by its SHA-256')


def _check_preprocess(preprocess: Any, need: Callable[[Any, str], None]) -> None:
    need(isinstance(preprocess, dict), 'has no "preprocess"')
    need(preprocess.get("align") in ("arcface112", "none"), 'has a "preprocess" that aligns in no known way')
    need(preprocess.get("color") in ("rgb", "grey"), 'has a "preprocess" whose color is neither "rgb" nor "grey"')
    for name in ("mean", "std"):
        values = preprocess.get(name)
        need(
            isinstance(values, list) and len(values) == 3 and all(_finite(v, 1e6) for v in values),
            f'has a "preprocess" without the three numbers of {name}',
        )
    need(min(preprocess["std"]) >= 1e-6, 'has a "preprocess" whose std is not above 0')
    steps = preprocess.get("resize")
    need(
        isinstance(steps, list)
        and 0 < len(steps) <= MAX_STEPS
        and all(
            isinstance(step, dict)
            and type(step.get("size")) is int
            and 0 < step["size"] <= MAX_SIZE
            and step.get("interpolation", "auto") in ("auto", "linear", "nearest", "bicubic")
            for step in steps
        ),
        f'has a "preprocess" with no steps of resize that are known: {MAX_STEPS} at most, up to {MAX_SIZE:,} pixels',
    )
    need(preprocess.get("input_size") == steps[-1]["size"], 'resizes to another size than its "input_size"')


def _count(value: Any, most: int) -> bool:
    return type(value) is int and 0 < value <= most


def _finite(value: Any, most: float = sys.float_info.max) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -most <= value <= most  # no NaN is


def _share(value: Any) -> bool:
    return _finite(value) and 0 <= value < 1


def _positive(value: Any) -> bool:
    return _finite(value) and value > 0


def _sizes(value: Any) -> bool:
    """Whether every number in what a network is built of is finite, and no size is beyond any network's."""
    if isinstance(value, dict | list):
        return all(map(_sizes, value.values() if isinstance(value, dict) else value))
    return _finite(value, _LARGEST) if type(value) in (int, float) else True


def _no_number(text: str) -> None:
    raise ValueError(f"{text} in its header, which is no number")


def _safetensors_metadata(file: BinaryIO, size: int) -> dict[str, str]:
    (length,) = struct.unpack("<Q", _exactly(file, 8))
    if length > min(size - 8, _LONGEST):
        raise EOFError("the header ends behind the file")
    header = json.loads(_exactly(file, length))
    metadata = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        raise ValueError("the header is no table of tensors")
    return metadata


def _onnx_metadata(file: BinaryIO, size: int) -> dict[str, str]:
    """ModelProto.metadata_props, field 14: a list of messages of a key (field 1) and a value (field 2)."""
    metadata = {}
    while file.tell() < size:
        field, length = _protobuf_field(file, size - file.tell())
        if field == 14:
            entry = {}
            end = file.tell() + length
            while file.tell() < end:
                name, part = _protobuf_field(file, end - file.tell())
                entry[name] = _exactly(file, part)
            metadata[entry.get(1, b"").decode()] = entry.get(2, b"").decode()
        else:
            file.seek(length, os.SEEK_CUR)
    return metadata


def _openvino_metadata(file: BinaryIO, size: int) -> dict[str, str]:
    """OpenVINO's IR: <net> … <rt_info> <key value="…"/>."""
    from xml.etree import ElementTree  # here, since hardly any checkpoint needs it

    if size > _LONGEST:
        raise ValueError("too long for an OpenVINO model without its weights")
    try:
        net = ElementTree.parse(file).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"not an OpenVINO model: {error}") from error
    if net.tag != "net":
        raise ValueError(f"not an OpenVINO model, but <{net.tag}>")
    return {entry.tag: entry.get("value", "") for entry in net.iterfind("rt_info/*")}


def _torch_metadata(file: BinaryIO, size: int) -> dict[str, str]:
    """A .pt2 of torch.export: a zip archive that has extra files at NAME/extra/."""
    import zlib  # here, as above
    from zipfile import BadZipFile, ZipFile

    try:
        with ZipFile(file) as archive:
            metadata = {}
            for entry in archive.infolist():
                folder, _, key = entry.filename.rpartition("/")
                if key == KEY and folder.count("/") == 1 and folder.endswith("/extra"):
                    if entry.file_size > _LONGEST:
                        raise ValueError("its header is too long")
                    metadata[key] = archive.read(entry).decode()
            return metadata
    except (BadZipFile, NotImplementedError, RuntimeError, zlib.error) as error:
        raise ValueError(f"no archive of torch.export: {error}") from error


def _protobuf_field(file: BinaryIO, left: int) -> tuple[int, int]:
    """The number of the next field of a message with `left` bytes left, and how many bytes of it follow."""
    start = file.tell()
    tag = _varint(file)
    match tag & 7:
        case 0:
            _varint(file)
            length = 0
        case 1:
            length = 8
        case 2:
            length = _varint(file)
        case 5:
            length = 4
        case _:
            raise ValueError("not an ONNX model")
    if not tag >> 3 or file.tell() + length > start + left:
        raise EOFError("a field ends behind its message")
    return tag >> 3, length


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = _exactly(file, 1)[0]
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise ValueError("not an ONNX model")


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise EOFError("the file ends too early")
    return data
