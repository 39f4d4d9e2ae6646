"""The options that say which labelled pictures a command reads, and how they are stored."""

import argparse
from collections.abc import Sequence
from typing import Any

from mien.commands.options import add_reading_arguments
from mien.data import DataSet
from mien.data.opening import FORMATS


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """--data, --split, --format and --labels, and how the pictures are read."""
    parser.add_argument("--data", required=True, metavar="PATH", help="a tree of split/label/picture, or parquet")
    parser.add_argument("--split", help="default: validation, else test, else the only one")
    add_format_arguments(parser)
    add_reading_arguments(parser, "--trust", "--device", "--batch-size")


def add_format_arguments(parser: argparse.ArgumentParser) -> None:
    """--format and --labels."""
    parser.add_argument(
        "--format",
        metavar="NAME",
        help=f"{', '.join(FORMATS)}, or the path of a reader's class (default: by its looks)",
    )
    parser.add_argument(
        "--labels", metavar="NAMES", help='the classes in order, if numbered: "rafdb", or names with commas between'
    )


def open_data(args: argparse.Namespace, **options: Any) -> tuple[DataSet, str]:
    """The data set of --data, whose reader is given `options`, and the split to read."""
    from mien.evaluation.measure import choose_split

    data = open_stored(args, args.data, **options)
    return data, choose_split(data, args.split)


def open_stored(args: argparse.Namespace, path: str, group_by: Sequence[str] = (), **options: Any) -> DataSet:
    """The data set at `path`, stored as the arguments say."""
    from mien.evaluation.evaluation import open_grouped

    if args.labels:
        options["labels"] = args.labels.split(",") if "," in args.labels else args.labels
    return open_grouped(path, group_by, args.format, **options)
