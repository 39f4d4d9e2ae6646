"""`mien doctor`: what is installed, which engine reads and why, what is kept, and how fast it is here."""

import argparse
import os
import platform
import re
import time
from collections.abc import Callable
from importlib import metadata

import numpy as np

import mien
from mien.classifier import DEFAULT_MODEL
from mien.commands.options import add_reading_arguments, reading_options
from mien.console import printable
from mien.engines.openvino import cache_folder, cpu_capabilities
from mien.errors import MienError
from mien.reader import Reader

WIDTH = 14
"""Of the first column."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_reading_arguments(parser, "--model", "--trust", "--device", "--precision")


def run(args: argparse.Namespace) -> int:
    """A line for each fact; 1 if the model cannot be opened here."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    _say("mien", f"{mien.__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    _say("processor", f"{cores} cores that compute in {', '.join(cpu_capabilities())}")
    needed, extras = requirements()
    _say("packages", ", ".join(f"{name} {installed(name)}" for name in needed))
    for extra, names in extras.items():
        missing = [name for name in names if installed(name) is None]
        text = f"not installed: {', '.join(missing)}" if missing else ", ".join(f"{n} {installed(n)}" for n in names)
        _say(extra, text)
    _say("cache", cached())
    try:
        reader = Reader.from_pretrained(**reading_options(args))
    except MienError as error:
        _say("model", f"cannot be opened: {error}")
        return 1
    engine = reader.classifier.engine
    _say("model", f"{args.model or DEFAULT_MODEL}, in {type(engine).__name__.removesuffix('Engine')}")
    why = "as asked for" if args.precision != "auto" else "the fastest that this processor and this model bear"
    _say("precision", f"{engine.precision}: {why}")
    _say("speed", speed(reader))
    return 0


def requirements() -> tuple[list[str], dict[str, list[str]]]:
    """The packages that mien cannot do without, and those of each extra, by their names."""
    needed: list[str] = []
    extras: dict[str, list[str]] = {}
    for line in metadata.requires("mien") or ():
        name, extra = re.match(r"[\w.-]+", line)[0], re.search(r"""extra == ["']([\w-]+)["']""", line)  # type: ignore[index]
        names = extras.setdefault(extra[1], []) if extra else needed
        if name != "mien":
            names.append(name)
    return needed, {extra: names for extra, names in extras.items() if names and extra != "test"}


def installed(name: str) -> str | None:
    """The version of a package that is installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def cached() -> str:
    """What is kept of compiled models, and where."""
    try:
        folder = cache_folder()
    except RuntimeError:
        return "none: the user has no home folder, and MIEN_CACHE is not set"
    files = [file.stat().st_size for file in folder.glob("*.compiled")]
    return f"{len(files)} compiled models, {sum(files) / 1e6:.0f} MB in {folder}"


def speed(reader: Reader) -> str:
    """Milliseconds for a photograph and for a face in it, half a second of each."""
    size = reader.classifier.header["preprocess"]["input_size"]
    photograph = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    face = np.zeros((1, size, size, 3), np.uint8)
    find = measured(lambda: reader.detector(photograph)) if reader.detector is not None else 0.0
    return (
        f"{find:.1f} ms to look for faces in a photograph of 640×480, "
        f"{measured(lambda: reader.classifier.run(face)):.1f} ms to read one"
    )


def measured(work: Callable[[], object], seconds: float = 0.5) -> float:
    """The median of the milliseconds that it takes, after once without a clock."""
    work()
    times: list[float] = []
    begin = time.perf_counter()
    while not times or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times))


def _say(name: str, text: str) -> None:
    print(f"{name:<{WIDTH}}{printable(text)}")
