"""`mien study`: small experiments on attention, every figure beside what it should be."""

import argparse
import json

from mien.commands.options import folder
from mien.errors import require
from mien.study import STUDIES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name",
        choices=tuple(STUDIES),
        metavar="NAME",
        help="; ".join(f"{name}: {purpose}" for name, purpose in STUDIES.items()),
    )
    parser.add_argument("--small", action="store_true", help="of a size that takes seconds")
    parser.add_argument("--output", type=folder, metavar="DIR", help="where plots and a JSON of all figures go")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run(args: argparse.Namespace) -> int:
    """Do a study and print what it found; 1 if a figure missed its bound."""
    require("torch", "torch")
    if args.output:
        require("matplotlib.figure", "eval")  # before the work
    from mien.study import study

    found = study(args.name, args.small)
    print(json.dumps(found.to_dict(), indent=1) if args.json else found)
    if args.output:
        made = found.save(args.output)
        if not args.json:
            print(f"\nsaved in {args.output}: {', '.join(path.name for path in made)}")
    return 1 if found.missed else 0
