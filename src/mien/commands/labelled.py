"""The options that say which labelled pictures a command reads, and how they are stored."""

import argparse
from collections.abc import Sequence
from typing import Any

from mien.checkpoint import read_header
from mien.classifier import find_checkpoint
from mien.commands.options import add_reading_arguments
from mien.data import DataSet
from mien.data.opening import FORMATS


def add_data_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """--data, --split, --format and --labels, and how the pictures are read."""
    parser.add_argument(
        "--data", required=required, metavar="PATH", help="a folder of a folder for each class, a table, or parquet"
    )
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
        "--labels",
        metavar="NAMES",
        help='the classes in order, if numbered: "rafdb", or names with commas between (default: as they are named)',
    )


def open_data(args: argparse.Namespace, **options: Any) -> tuple[DataSet, str]:
    """The data set of --data, whose reader is given `options`, to judge the model by, and the split to read."""
    from mien.evaluation.measure import choose_split

    data = open_stored(args, args.data, **options)
    return data, choose_split(data, args.split)


def open_stored(args: argparse.Namespace, path: str, group_by: Sequence[str] = (), **options: Any) -> DataSet:
    """The data set at `path`, stored as the arguments say, to judge the model by."""
    from mien.evaluation.evaluation import open_grouped

    file = find_checkpoint(args.model)
    return open_grouped(path, group_by, args.format, model=(read_header(file), file), labels=labels(args), **options)


def labels(args: argparse.Namespace) -> list[str] | str | None:
    """What --labels says."""
    return args.labels.split(",") if args.labels and "," in args.labels else args.labels or None
