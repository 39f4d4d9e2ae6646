"""`mien list`: the models that came with mien; `mien list networks` and `mixers`: what models can be built of."""

import argparse
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from mien.catalogue import NETWORKS, list_networks
from mien.checkpoint import labels_of, read_header
from mien.classifier import DEFAULT_MODEL, MODELS, find_model
from mien.commands.tables import aligned, mixer_table, model_table, room
from mien.console import printable
from mien.errors import MienError, require


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        nargs="?",
        choices=("models", "networks", "mixers"),
        default="models",
        help="models; networks, which are trained or converted; what mixes their tokens (models)",
    )
    parser.add_argument("pattern", nargs="?", default="*", help="of names, such as '*vit*' (default: all)")
    parser.add_argument("--details", action="store_true", help="of models, all that they say of their training")


def run(args: argparse.Namespace) -> int:
    """Print the name, the labels and the training of each model, the size of each network, or what each mixer does."""
    if args.what == "networks":
        print(networks(chosen(list_networks(), args)))
        return 0
    if args.what == "mixers":
        require("torch", "torch")
        found = mixers()
        print(mixer_table({name: (found[name], summary(found[name])) for name in chosen(found, args)}))
        return 0
    names = sorted({file.parent.name for file in MODELS.glob("*/model.*")})
    headers = {name: read_header(find_model(MODELS / name)) for name in (chosen(names, args) if names else ())}
    if headers and not args.details:
        print(model_table((_called(name), MODELS / name, header) for name, header in headers.items()))
    for name, header in headers.items() if args.details else ():
        print(printable(_called(name)))
        print(printable(f"    labels: {', '.join(labels_of(header))}"))
        for fact, value in header.get("training", {}).items():
            text = ", ".join(f"{key} {part}" for key, part in value.items()) if isinstance(value, dict) else value
            print(printable(f"    {fact}: {text}"))
    return 0


def _called(name: str) -> str:
    return f"{name} (default)" if name == DEFAULT_MODEL else name


def chosen(names: Iterable[str], args: argparse.Namespace) -> list[str]:
    """Those that the pattern is of; MienError where there are none."""
    if found := [name for name in names if fnmatchcase(name, args.pattern)]:
        return found
    raise MienError(f"none of the {args.what} is called {args.pattern!r}; mien list {args.what} names them")


def networks(names: Iterable[str]) -> str:
    """A table of mien's networks, aligned."""
    rows = [("name", "parameters", "GMAC", "input", "paper", "opens")]
    for name in names:
        known = NETWORKS[name]
        numbers = f"{known.parameters:,}", f"{known.gmac:.3f}", f"{known.size}×{known.size}"
        rows.append((name, *numbers, known.paper, ", ".join(known.opens) or "–"))
    return aligned(rows, room())


def mixers() -> dict[str, type]:
    """The mixers of mien.nn by name, in the order of the alphabet."""
    import mien.nn
    from mien.nn.base import is_mixer

    return {name: kind for name in sorted(mien.nn.__all__) if is_mixer(kind := getattr(mien.nn, name))}


def summary(kind: type) -> str:
    """The first sentence of a docstring, without its formula."""
    first = " ".join((kind.__doc__ or "").partition("\n\n")[0].split())
    short = re.split(r"(?::[^:`(]*|,)? \(B,|: `|\.(?: |$)", first)[0]
    return (short if " " in short else first.partition(". ")[0]).replace("`", "")
