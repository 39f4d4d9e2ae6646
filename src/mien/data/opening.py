"""Find the reader of a data set by name, by class path, or by looking at it."""

import glob
import importlib
import inspect
import os
from collections.abc import Mapping
from typing import Any

from mien.data.affectnet import AffectNet
from mien.data.affwild2 import AffWild2
from mien.data.cifar10 import CIFAR10
from mien.data.dataset import DataSet
from mien.data.expw import ExpW
from mien.data.fer2013 import FER2013
from mien.data.ferplus import FERPlus
from mien.data.folder import Folder
from mien.data.parquet import Parquet
from mien.data.rafdb import RAFDB
from mien.data.sfew import SFEW
from mien.data.spelling import Known
from mien.data.table import Table
from mien.errors import MienError, require

FORMATS: dict[str, type[DataSet]] = {
    "folder": Folder,
    "parquet": Parquet,
    "csv": Table,
    "fer2013": FER2013,
    "ferplus": FERPlus,
    "rafdb": RAFDB,
    "affectnet": AffectNet,
    "sfew": SFEW,
    "expw": ExpW,
    "affwild2": AffWild2,
    "cifar10": CIFAR10,
}


def open_dataset(path: str | os.PathLike[str], format: str | None = None, **options: Any) -> DataSet:
    """Open the data set at a path.

    path: a file or a folder, as the reader takes it.
    format: the reader: one of FORMATS, or the path of a class ("my.set.Reader"). None, the default, looks at the path:
        a folder with parquet files in it, or a file, is parquet (FER+'s when it has FER+'s columns); a folder with
        fer2013new.csv in it is FER+ as its makers ship it, and one with fer2013.csv FER2013, as is a table with a
        column of pixels; any other .csv or .tsv is a table of paths and labels, and any other folder a tree of
        split/class/picture.
    options: of the reader. `labels` may be a model's, as mien.data.spelling.Known; a reader whose classes are its own
        does without them.

    Raises MienError where there is no such reader, no such data, or an option that the reader does not take.
    """
    path, options = os.fspath(path), dict(options)
    reader = find_reader(path, format)
    if isinstance(options.get("labels"), Known) and "labels" not in inspect.signature(reader).parameters:
        del options["labels"]
    _check_options(reader, path, options)
    try:
        return reader(path, **options)
    except (AttributeError, TypeError, ValueError) as error:  # of a value of the wrong kind
        if not options or isinstance(error, MienError):
            raise
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        raise MienError(f"{path}: {reader.__name__} cannot be opened with {given}: {error}") from error


def find_reader(path: str | os.PathLike[str], format: str | None = None) -> type[DataSet]:
    """The class that reads the data set at `path`, and its errors, as for `open_dataset`."""
    return _find_reader(format or _guess(os.fspath(path)))


def _check_options(reader: type[DataSet], path: str, options: Mapping[str, Any]) -> None:
    """Raise MienError for an option that the reader does not take, and for one that it needs."""
    signature = inspect.signature(reader)
    try:
        signature.bind(path, **options)
    except TypeError as error:
        known = ", ".join([*signature.parameters][1:]) or "none"
        unknown = [name for name in options if name not in signature.parameters]
        wrong = f"has no option {unknown[0]!r}" if unknown else f"cannot be opened so ({error})"
        raise MienError(f"{path}: {reader.__name__} {wrong}; its options: {known}") from error


def _guess(path: str) -> str:
    if os.path.isfile(os.path.join(path, "fer2013new.csv")):
        return "ferplus"
    if any(os.path.isfile(os.path.join(path, name)) for name in ("fer2013.csv", "icml_face_data.csv")):
        return "fer2013"
    if os.path.isfile(path) and path.lower().endswith((".csv", ".tsv")):
        with open(path, "rb") as file:
            return "fer2013" if b"pixels" in file.readline(4096).lower() else "csv"
    if os.path.isdir(path) and not glob.glob(os.path.join(glob.escape(path), "**", "*.parquet"), recursive=True):
        return "folder"
    if os.path.isfile(path) and path.endswith(".parquet"):
        parquet, errors = require("pyarrow.parquet", "parquet"), require("pyarrow", "parquet").ArrowException
        try:
            columns = set(parquet.read_schema(path).names)
        except (OSError, errors) as error:
            raise MienError(f"{path}: not a parquet file, or damaged ({error})") from error
        if {"not_a_face", "contempt", "duplicate_of_validation"} <= columns:
            return "ferplus"
    return "parquet"


def _find_reader(format: str) -> type[DataSet]:
    if format in FORMATS:
        return FORMATS[format]
    module, _, name = format.rpartition(".")
    try:
        reader = getattr(importlib.import_module(module), name) if module else None
    except (ImportError, AttributeError) as error:
        raise MienError(f"no reader of data sets {format!r}: {error}") from error
    if not (isinstance(reader, type) and issubclass(reader, DataSet)):
        raise MienError(f"no reader of data sets {format!r}: one of {', '.join(FORMATS)}, or the path of a class")
    return reader
