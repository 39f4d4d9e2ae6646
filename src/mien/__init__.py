"""Reads facial expressions from photographs, and trains the attention networks that do it.

reader = mien.Reader.from_pretrained()
for face in reader("photograph.jpg"):
    print(face.box, face.expression, face.probability)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mien.classifier import Classifier
    from mien.errors import MienError, ReadError
    from mien.faces.face import Face
    from mien.networks import load_network
    from mien.reader import Reader

__all__ = ["Classifier", "Face", "MienError", "ReadError", "Reader", "__version__", "load_network"]

# Where each public name lives: imported when first used, since the libraries behind it take a third of a second.
_HOMES = {
    "Classifier": "mien.classifier",
    "Face": "mien.faces.face",
    "MienError": "mien.errors",
    "ReadError": "mien.errors",
    "Reader": "mien.reader",
    "load_network": "mien.networks",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = importlib.import_module("importlib.metadata").version("mien")
    elif name in _HOMES:
        if name == "load_network":
            importlib.import_module("mien.errors").require("torch", "torch")
        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
