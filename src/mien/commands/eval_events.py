"""`mien eval-events`: events that were found in videos, beside those that people noted."""

import argparse
import json
import sys
from functools import partial

from mien.commands.options import number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("predicted", metavar="PREDICTED.csv", help="as mien read --events writes it")
    parser.add_argument(
        "true",
        metavar="TRUTH.csv",
        help="of the same columns: person, expression, onset, offset, and optionally apex and source",
    )
    parser.add_argument(
        "--tolerance",
        type=partial(number, kind=float, least=0, most=3600),
        action="append",
        metavar="SECONDS",
        help="how far an onset or offset may be off; may be said several times (default: 0.1, 0.25, 0.5 and 1)",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="bounds of MSTA as in EOC-Bench's code, where 7.7 is off by more than a tenth of 7",
    )
    parser.add_argument(
        "--same-people",
        action="store_true",
        help="persons are called the same in both files (default: found out by where their events overlap)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")


def run(args: argparse.Namespace) -> int:
    """Print how well the events agree."""
    from mien.evaluation.events import TOLERANCES, compare_events, read_events

    predicted, true = read_events(args.predicted), read_events(args.true)
    if not true:
        print(f"mien: {args.true}: no event in it, so nothing can be met", file=sys.stderr)
    tolerances = sorted(set(args.tolerance or TOLERANCES))
    options = {"strict": args.strict, "same_people": args.same_people}
    found = compare_events(predicted, true, tolerances=tolerances, **options)
    print(json.dumps(found.to_dict(), indent=2) if args.json else found)
    return 0 if true else 1
