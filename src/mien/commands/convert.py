"""`mien convert KIND SOURCE OUT`: published weights into a checkpoint of mien's."""

import argparse

from mien.errors import require
from mien.labels import ORDERS

KINDS = ("poster", "ir50", "mobilefacenet", "vit")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=KINDS, help="POSTER++, its ViT alone, or a trunk")
    parser.add_argument("source", help="the published file: .pth, .pth.tar, .pt, .safetensors")
    parser.add_argument("out", help="the checkpoint to write, .safetensors")
    parser.add_argument(
        "--labels",
        metavar="NAMES",
        help=f"what class 0, 1, … means: one of {', '.join(ORDERS)}, or names with commas between them "
        "(default: rafdb for seven classes, affectnet8 for eight)",
    )


def run(args: argparse.Namespace) -> int:
    """Write the checkpoint and say where; nothing is written unless every tensor finds its place."""
    for module in ("torch", "safetensors"):
        require(module, "torch")
    from mien.networks.convert import convert

    print(convert(args.kind, args.source, args.out, args.labels))
    return 0
