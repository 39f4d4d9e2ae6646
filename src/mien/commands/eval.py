"""`mien eval`: a model measured on labelled pictures."""

import argparse
import json
import sys
from pathlib import Path

from mien.commands import terminal
from mien.commands.labelled import add_data_arguments
from mien.commands.options import add_reading_arguments, count
from mien.errors import require


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model's name, file, folder, or owner/name on the Hub")
    add_data_arguments(parser)
    parser.add_argument(
        "--align",
        choices=("as-is", "detect"),
        help="read the pictures as they are, or find the face in each first (default: as mien finetune taught the "
        "model, else as-is)",
    )
    add_reading_arguments(parser, "--precision")
    parser.add_argument(
        "--consistency",
        action="store_true",
        help="measure as well how far answers move when a face is tinted, resized, compressed or cropped otherwise",
    )
    parser.add_argument(
        "--robustness",
        action="store_true",
        help="measure as well how accuracy falls as faces are hidden, made small or dark, blurred, turned, shifted",
    )
    parser.add_argument(
        "--intervene",
        metavar="RULE",
        help="compare with the same model under a rule that moves its attention, on the same faces: sinks, heads or "
        "boost, with options as in heads:alpha=1.5,baseline=zero, or the import path of a rule of yours",
    )
    parser.add_argument("--against", metavar="MODEL", help="compare with another model on the same faces")
    parser.add_argument(
        "--group-by",
        action="append",
        default=[],
        metavar="COLUMN",
        help="measure each group that this tells apart, a column of a parquet file, or gender, race or age of RAF-DB; "
        "may be said several times",
    )
    parser.add_argument("--limit", type=count, metavar="N", help="read N faces, the same ones every time, and no more")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out/eval"),
        metavar="DIR",
        help="of the JSON, the plots and the web page (default: out/eval)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")


def run(args: argparse.Namespace) -> int:
    """Print and save what `mien.evaluation.evaluate` finds."""
    terminal.begin(f"opening {args.model} and {args.data}")
    for module in ("torch", "torchmetrics", "matplotlib"):
        require(module, "eval")
    from mien.evaluation import evaluate

    reading = ("split", "format", "labels", "align", "limit", "device", "precision", "trust", "batch_size")
    options = {
        name: getattr(args, name)
        for name in (*reading, "group_by", "against", "consistency", "robustness", "intervene")
    }
    found = evaluate(args.model, args.data, **options, progress=sys.stderr.isatty())
    found.save(args.out)
    if args.json:
        print(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
    else:
        print(f"{found}\n\nsaved in {args.out}: report.html, report.json and the plots")
    return 0
