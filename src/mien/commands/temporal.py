"""`mien temporal RECIPE`: a model that joins what another one says of a face through time."""

import argparse
import sys
from pathlib import Path

from mien.commands.options import folder
from mien.errors import MienError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE.yaml", help="such as recipes/temporal/ferplus.yaml")
    parser.add_argument("--out", type=folder, metavar="DIR", help="of temporal.safetensors (default: runs/temporal)")
    parser.add_argument("--seed", type=int, metavar="N", help="of tracks and training (default: the recipe's, else 0)")
    parser.add_argument("--data", metavar="PATH", help="in the place of the recipe's data.init_args.path")
    parser.add_argument("--cache", type=folder, metavar="DIR", help="keep what the model says of faces there")


def run(args: argparse.Namespace) -> int:
    """Train as the recipe says, and print how often frames are right beside filters."""
    from jsonargparse import ArgumentError, ArgumentParser

    from mien.training.recipe import check_yaml
    from mien.training.temporal import train_temporal

    try:
        text = Path(args.recipe).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MienError(f"{args.recipe}: {(getattr(error, 'strerror', None) or str(error)).lower()}") from error
    check_yaml(text, args.recipe)
    options = ArgumentParser(exit_on_error=False)
    options.add_function_arguments(train_temporal, skip={"progress"})
    try:
        config = options.parse_string(text)
    except ArgumentError as error:
        raise MienError(f"{args.recipe}: {' '.join(str(error).split())}") from error
    arguments = config.as_dict()
    for name in ("out", "seed", "cache"):
        if (given := getattr(args, name)) is not None:
            arguments[name] = given if name == "seed" else str(given)
    if args.data:
        arguments["data"] = {**arguments["data"], "init_args": {**arguments["data"]["init_args"], "path": args.data}}
    found = train_temporal(**arguments, progress=sys.stderr.isatty())
    wide = max(map(len, found))
    print(f"{'':{wide}}  of frames right, 95 % of tracks")
    for name, (mean, low, high) in found.items():
        print(
            f"{name:{wide}}  {mean:+.4f} ({low:+.4f} to {high:+.4f})" if " - " in name else f"{name:{wide}}  {mean:.4f}"
        )
    print(Path(arguments["out"], "temporal.safetensors"))
    return 0
