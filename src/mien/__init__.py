"""Reads facial expressions from photographs, and trains the attention networks that do it.

reader = mien.Reader.from_pretrained()
for face in reader("photograph.jpg"):
    print(face.box, face.expression, face.probability)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mien import data as data
    from mien import networks as networks
    from mien import nn as nn
    from mien.catalogue import list_networks
    from mien.classifier import Classifier
    from mien.errors import MienError, MienWarning, ReadError
    from mien.faces.face import Face
    from mien.faces.faces import Faces
    from mien.networks import load_network
    from mien.reader import Reader
    from mien.video import read_video

    __version__: str

__all__ = [
    "Classifier",
    "Face",
    "Faces",
    "MienError",
    "MienWarning",
    "ReadError",
    "Reader",
    "__version__",
    "list_networks",
    "load_network",
    "read_video",
]

# Where each public name lives: imported when first used, since the libraries behind it take a third of a second.
_HOMES = {
    "Classifier": "mien.classifier",
    "Face": "mien.faces.face",
    "Faces": "mien.faces.faces",
    "MienError": "mien.errors",
    "MienWarning": "mien.errors",
    "ReadError": "mien.errors",
    "Reader": "mien.reader",
    "list_networks": "mien.catalogue",
    "load_network": "mien.networks",
    "read_video": "mien.video",
}
_PACKAGES = ("data", "networks", "nn")  # `import mien` is enough for these; they are in no `from mien import *`
_TORCH = ("load_network", "networks", "nn")


def __getattr__(name: str) -> Any:
    if name in _TORCH:
        importlib.import_module("mien.errors").require("torch", "torch")
    if name == "__version__":
        metadata = importlib.import_module("importlib.metadata")
        try:
            value = metadata.version("mien")
        except metadata.PackageNotFoundError:  # of a checkout that is not installed
            value = "unknown"
    elif name in _PACKAGES:
        value = importlib.import_module(f"{__name__}.{name}")
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_PACKAGES])
