"""`mien average`: one checkpoint out of several, whose weights are their mean."""

import argparse
from pathlib import Path

from mien.commands.options import add_reading_arguments
from mien.errors import MienError, require


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT.safetensors", help="the file to write")
    parser.add_argument("models", metavar="CHECKPOINT", nargs="+", help="two or more of one network, .safetensors")
    add_reading_arguments(parser, "--trust")


def run(args: argparse.Namespace) -> int:
    """Write the average, and print its file."""
    require("torch", "torch")
    from mien.networks.checkpoint import average_networks, save_network

    if Path(args.out).suffix != ".safetensors":
        raise MienError(f"{args.out}: an average is a .safetensors file")
    network, header = average_networks(args.models, trust=args.trust)
    save_network(args.out, network, header)
    print(args.out)
    return 0
