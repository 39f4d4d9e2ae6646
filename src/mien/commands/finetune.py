"""`mien finetune FOLDER`: a model that knows your own classes, out of a folder for each."""

import argparse
import sys

from mien.commands.labelled import add_format_arguments
from mien.commands.options import add_reading_arguments, count, folder, share
from mien.errors import require


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", metavar="FOLDER", help="of a folder of pictures for each class, or of splits of those; or a table, …"
    )
    parser.add_argument(
        "--out", type=folder, required=True, metavar="DIR", help="of the run; best.safetensors in it is the model"
    )
    parser.add_argument(
        "--model", metavar="NAME|PATH", help="a model's name or file to start from (default: the best that came along)"
    )
    add_reading_arguments(parser, "--trust")
    parser.add_argument(
        "--align",
        choices=("detect", "as-is"),
        default="detect",
        help="find the face in each picture (default), or take the pictures as they are: face crops",
    )
    add_format_arguments(parser)
    parser.add_argument(
        "--held-out",
        type=share,
        default=0.2,
        metavar="SHARE",
        help="of the pictures, to judge by, where the set has no validation split (default: 0.2)",
    )
    parser.add_argument("--epochs", type=count, metavar="N", help="at most (default: as suits the number of pictures)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all that is drawn (default: 0)")
    parser.add_argument("--fresh", action="store_true", help="train anew, whatever run DIR holds")


def run(args: argparse.Namespace) -> int:
    """Print what `mien.training.finetune.finetune` found."""
    for module in ("torch", "lightning", "kornia", "jsonargparse", "pyarrow.parquet"):
        require(module, "train")
    from mien.classifier import DEFAULT_MODEL
    from mien.training.finetune import finetune

    names = ("format", "labels", "align", "held_out", "epochs", "seed", "fresh", "trust")
    made = finetune(
        args.data,
        args.out,
        model=args.model or DEFAULT_MODEL,
        **{name: getattr(args, name) for name in names},
        progress=sys.stderr.isatty(),
    )
    print(made.path)
    print(made)
    return 0
