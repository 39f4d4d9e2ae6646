"""CIFAR-10: small pictures of ten kinds of things."""

import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mien.data.dataset import DataSet
from mien.data.row import Row
from mien.errors import MienError, ReadError
from mien.labels import ORDERS

_BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
_PIXELS = 3 * 32 * 32


class CIFAR10(DataSet):
    """Pictures of 32×32 pixels, 50,000 in "train" and 10,000 in "test", in the order of mien.labels.ORDERS["cifar10"].

    path: the folder `cifar-10-batches-bin` or `cifar-10-batches-py`, or the one that holds it. In `data_batch_1.bin` a
        picture is a byte for its label and 3072 for red, green and blue, row by row. `data_batch_1` is a pickle, of
        which nothing is called: only numbers, words, lists, and the bytes of one array are read.
    check: decode each picture once, to count the repeated; True.

    Raises MienError where neither is there.

    Reference: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """

    labels = ORDERS["cifar10"]
    splits = ("train", "test")
    published = {"train": (5000,) * 10, "test": (1000,) * 10}

    def __init__(self, path: str, check: bool = True):
        super().__init__(check)
        self.path = Path(path)
        for folder in (self.path, self.path / "cifar-10-batches-bin", self.path / "cifar-10-batches-py"):
            for ending in (".bin", ""):
                if (folder / f"test_batch{ending}").is_file():
                    self.folder, self.ending = folder, ending
                    return
        raise MienError(f"{path}: no test_batch.bin or test_batch there")

    def __str__(self) -> str:
        return str(self.path)

    def read(self, split: str) -> Iterator[Row | ReadError]:
        targets = np.eye(len(self.labels), dtype=np.float32)
        for batch in _BATCHES[split]:
            file = self.folder / f"{batch}{self.ending}"
            try:
                labels, pixels = (_read_binary if self.ending else _read_pickle)(file.read_bytes())
            except OSError as error:
                yield ReadError(file, (error.strerror or str(error)).lower())
                continue
            except ValueError as error:
                yield ReadError(file, str(error))
                continue
            pictures = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            for i, (label, picture) in enumerate(zip(labels, pictures, strict=True)):
                name = f"{file} picture {i}"
                if not 0 <= label < len(self.labels):
                    yield ReadError(name, f"label {label} is not a number from 0 to {len(self.labels) - 1}")
                else:
                    yield Row(picture, targets[label], split, label=label, name=name)


def _read_binary(data: bytes) -> tuple[list[int], np.ndarray]:
    if not data or len(data) % (1 + _PIXELS):
        raise ValueError(f"{len(data)} bytes are no whole number of pictures of {1 + _PIXELS}")
    rows = np.frombuffer(data, np.uint8).reshape(-1, 1 + _PIXELS)
    return rows[:, 0].tolist(), rows[:, 1:]


class _Array:
    """Stands for every function and class of numpy that the pickle names: keeps what it is given, and does nothing."""

    def __init__(self, *_: Any):
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")):
            return _Array
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _read_pickle(data: bytes) -> tuple[list[int], np.ndarray]:
    try:
        batch = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        labels, pixels = batch[b"labels"], batch[b"data"].state[4]
        if not (isinstance(labels, list) and all(type(label) is int for label in labels) and type(pixels) is bytes):
            raise TypeError("labels that are no numbers, or pixels that are no bytes")
    except Exception as error:  # an unpickler raises whatever a damaged file leads it to
        raise ValueError(f"not a batch of CIFAR-10 ({' '.join(str(error).split())})") from error
    if len(pixels) != len(labels) * _PIXELS:
        raise ValueError(f"{len(labels)} labels and {len(pixels)} bytes of pictures, of {_PIXELS} each")
    return labels, np.frombuffer(pixels, np.uint8).reshape(-1, _PIXELS)
