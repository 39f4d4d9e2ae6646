"""`mien convert KIND SOURCE OUT`: published weights into a checkpoint of mien's."""

import argparse
import sys

from mien.checkpoint import read_header
from mien.console import printable
from mien.errors import require
from mien.labels import ORDERS

KINDS = (
    *("poster", "apvit", "ir50", "mobilefacenet", "mobilenet", "vit", "timm_vit", "cait"),
    *("spectformer", "deit", "davit", "halonet", "moh_vit", "timm"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=KINDS, help="a network; a trunk; a ViT; timm: a network of timm's")
    parser.add_argument(
        "source", help="the published file: .pth, .pth.tar, .pt, .safetensors, or .json of TensorFlow.js"
    )
    parser.add_argument("out", help="the checkpoint to write, .safetensors")
    parser.add_argument(
        "--labels",
        metavar="NAMES",
        help=f"what class 0, 1, … means: one of {', '.join(ORDERS)}, or names with commas between them "
        "(default: as published; apvit7 and apvit8 for apvit, else rafdb for seven classes, affectnet8 for eight)",
    )
    parser.add_argument(
        "--num-classes", metavar="N", type=int, help="a head for N classes instead of the published one, to be trained"
    )
    parser.add_argument(
        "--as",
        dest="as_",
        metavar="NETWORK",
        help="which network, for timm: one that mien list networks says opens it; other kinds see it by the tensors",
    )
    parser.add_argument(
        "--img-size",
        metavar="PIXELS",
        type=int,
        help="interpolate the positions for images of another size (cait, deit, spectformer)",
    )


def run(args: argparse.Namespace) -> int:
    """Write the checkpoint and say where; nothing is written unless every tensor finds its place."""
    for module in ("torch", "safetensors"):
        require(module, "torch")
    from mien.networks.convert import convert

    options = {"num_classes": args.num_classes, "img_size": args.img_size, "as_": args.as_}
    out = convert(args.kind, args.source, args.out, args.labels, **options)
    print(out)
    if untrained := read_header(out)["training"].get("untrained"):
        print(printable(f"{args.source}: has no {', '.join(untrained)}: they begin at random"), file=sys.stderr)
    return 0
