"""`mien train RECIPE`: the only command that imports lightning."""

import argparse
import logging
import sys

from mien.errors import require


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.prefix_chars = ""  # options are not this parser's, and neither is --help
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="RECIPE [--OPTION VALUE ...]")


def run(args: argparse.Namespace) -> int:
    for module in ("torch", "lightning", "kornia", "jsonargparse"):
        require(module, "train")
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    from mien.training.run import train

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its hints and advertisements are INFO
    folder = train(args.arguments)
    if rank_zero_only.rank == 0:
        print(folder, file=sys.stdout)
    return 0
