"""How large a recipe may be: deep YAML would take the interpreter down before anything of it is known."""

from collections.abc import Sequence
from pathlib import Path

import yaml
from jsonargparse import get_loader, set_loader

from mien.errors import MienError

MAX_BYTES, MAX_DEPTH, MAX_NODES = 1_000_000, 50, 100_000
"""Of a recipe: its size; how deep lists and tables lie within each other; how many values there are once every alias is
what it stands for."""

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_recipe(path: str | Path) -> str:
    """The text of a recipe, checked; MienError, naming the file, for what is none, or too large, deep or manifold."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise MienError(f"{path}: a folder" if path.is_dir() else f"{path}: not a file")
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode()
    except FileNotFoundError as error:
        raise MienError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise MienError(f"{path}: a recipe is text in UTF-8") from error
    except OSError as error:
        raise MienError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    check_yaml(text, str(path))
    return text


def check_yaml(text: str, name: str = "the recipe") -> None:
    """Raise MienError for YAML beyond MAX_BYTES, MAX_DEPTH and MAX_NODES; what is no YAML at all passes."""
    if len(text) > MAX_BYTES:
        raise MienError(f"{name}: of more than {MAX_BYTES:,} bytes")
    counts, anchors = [0], {}  # values in each collection that is open, and of each anchor
    opened: list[str | None] = []
    try:
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.CollectionStartEvent):
                opened.append(event.anchor)
                counts.append(1)
            elif isinstance(event, yaml.CollectionEndEvent):
                count = counts.pop()
                counts[-1] += count
                if anchor := opened.pop():
                    anchors[anchor] = count
            elif isinstance(event, yaml.AliasEvent):
                if event.anchor in opened:
                    raise MienError(f"{name}: *{event.anchor} is within itself")
                counts[-1] += anchors.get(event.anchor, 1)
            elif isinstance(event, yaml.ScalarEvent):
                counts[-1] += 1
                if event.anchor:
                    anchors[event.anchor] = 1
                _check_depth(event.value.count("[") + event.value.count("{"), name)  # it may be parsed once more
            _check_depth(len(opened), name)
            if counts[-1] > MAX_NODES:
                raise MienError(f"{name}: of more than {MAX_NODES:,} values")
    except (yaml.YAMLError, ValueError):  # which is said where it is parsed
        return


def _check_depth(depth: int, name: str) -> None:
    if depth > MAX_DEPTH:
        raise MienError(f"{name}: deeper than {MAX_DEPTH} lists and tables within each other")


def check_recipes(arguments: Sequence[str]) -> None:
    """Check the recipes that stand behind --config, and every option; and have jsonargparse check what these name."""
    parse = get_loader("yaml")
    if parse.__module__ != __name__:

        def bounded(text: str):
            check_yaml(text)
            return parse(text)

        set_loader("yaml", bounded, (yaml.YAMLError,))
    for before, word in zip(["", *arguments], arguments, strict=False):
        if before == "--config" or word.startswith("--config="):
            read_recipe(word.removeprefix("--config="))
        check_yaml(word, "an option")
