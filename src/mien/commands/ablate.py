"""`mien ablate RECIPE`: a recipe with some of its options varied, several seeds of each, as one table."""

import argparse
import json
import logging
import sys
from pathlib import Path

from mien.commands.options import count
from mien.errors import MienError, require
from mien.files import whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe, as for mien train")
    parser.add_argument(
        "--vary",
        action="append",
        required=True,
        metavar="OPTION=VALUE,VALUE",
        help="values of an option of the recipe, of which default is the recipe's own; of several such options every "
        "combination is trained",
    )
    parser.add_argument(
        "--seeds", type=count, default=3, metavar="N", help="runs of each, seeds 0 to N - 1 (default: 3)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="of the runs and the table; resumes what is there (default: runs/ablate_RECIPE)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="set an option of the recipe in every run, such as trainer.max_epochs=1",
    )


def run(args: argparse.Namespace) -> int:
    """Train what is missing, and print and save the table after every run."""
    for module in ("torch", "lightning", "kornia", "jsonargparse"):
        require(module, "train")
    from mien.training.ablate import ablate, ablation_table, settings, variants

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its hints and advertisements are INFO
    if not Path(args.recipe).is_file():
        raise MienError(f"{args.recipe}: no such recipe")
    out = args.out or Path("runs") / f"ablate_{Path(args.recipe).stem}"
    table = variants(args.vary)
    total, number, text = len(table) * args.seeds, 0, ""
    for variant, seed, result in ablate(args.recipe, table, args.seeds, out, settings(args.set)):
        if result is None:
            print(f"{number + 1} of {total}: {variant.name}, seed {seed}", file=sys.stderr)
            continue
        number += 1
        text = ablation_table(table)
        with whole(out / "table.md") as file:
            file.write(text.encode() + b"\n")
        facts = [{"settings": each.settings, "results": each.results} for each in table]
        with whole(out / "table.json") as file:
            file.write(json.dumps(facts, indent=2).encode() + b"\n")
    print(f"{text}\n\nsaved: {out / 'table.md'}, {out / 'table.json'}")
    return 0
