"""What the options of commands may be: each takes the text of one, and says what is wrong with it."""

import argparse
import os
from collections.abc import Container
from pathlib import Path

from mien.commands.rows import WRITERS


def table_file(text: str) -> Path:
    return _file(text, WRITERS, f"ends in none of {', '.join(WRITERS)}")


def summary_file(text: str) -> Path:
    return _file(text, (".json", ".csv"), "ends neither in .json nor in .csv")


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


def seconds(text: str) -> float:
    return number(text, float, 0, 3600)


def folder(text: str) -> Path:
    if os.path.lexists(text) and not os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"{text}: not a folder")
    return Path(text)


def count(text: str) -> int:
    return int(number(text, int, 1, 1_000_000))


def pixels(text: str) -> float:
    return number(text, float, 0, 1_000_000)


def share(text: str) -> float:
    return number(text, float, 0, 1)


def number(text: str, kind: type, least: float, most: float) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not least <= value <= most:
        raise argparse.ArgumentTypeError(
            f"{text}: not {'a whole number' if kind is int else 'a number'} of {least:,} to {most:,}"
        )
    return value
