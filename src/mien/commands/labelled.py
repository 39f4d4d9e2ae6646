"""The options that say which labelled pictures a command reads, and how they are stored."""

import argparse
from typing import Any

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
    add_labels_argument(parser)


def add_labels_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--labels",
        type=lambda text: text.split(",") if "," in text else text,
        metavar="NAMES",
        help='the classes in order, if numbered: "rafdb", or names with commas between (default: as they are named)',
    )


def open_data(args: argparse.Namespace, **options: Any) -> tuple[DataSet, str]:
    """The data set of --data, whose reader is given `options`, to judge the model by, and the split to read."""
    from mien.evaluation.measure import choose_split, open_labelled

    data = open_labelled(args.data, args.format, args.labels, model=find_checkpoint(args.model), **options)
    return data, choose_split(data, args.split)
