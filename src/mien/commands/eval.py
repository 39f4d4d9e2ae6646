"""`mien eval`: a model measured on labelled pictures."""

import argparse
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mien.classifier import Classifier
from mien.commands.options import add_reading_arguments, count
from mien.data import DataSet, open_dataset
from mien.data.opening import FORMATS
from mien.data.spelling import spell_split
from mien.errors import MienError, require
from mien.files import whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model's name, file, folder, or owner/name on the Hub")
    add_data_arguments(parser)
    parser.add_argument(
        "--align",
        choices=("as-is", "detect"),
        default="as-is",
        help="read the pictures as they are, or find the face in each first (default: as-is)",
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


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """What says which labelled pictures are read."""
    parser.add_argument("--data", required=True, metavar="PATH", help="a tree of split/label/picture, or parquet")
    parser.add_argument("--split", help="default: validation, else test, else the only one")
    add_format_arguments(parser)
    add_reading_arguments(parser, "--trust", "--device", "--batch-size")


def add_format_arguments(parser: argparse.ArgumentParser) -> None:
    """What says how labelled pictures are stored."""
    parser.add_argument(
        "--format",
        metavar="NAME",
        help=f"{', '.join(FORMATS)}, or the path of a reader's class (default: by its looks)",
    )
    parser.add_argument(
        "--labels", metavar="NAMES", help='the classes in order, if numbered: "rafdb", or names with commas between'
    )


def open_data(args: argparse.Namespace, **options: Any) -> tuple[DataSet, str]:
    """The data set, its reader given `options`, and the split to read."""
    data = open_stored(args, args.data, **options)
    return data, choose_split(data, args.split)


def open_stored(args: argparse.Namespace, path: str, **options: Any) -> DataSet:
    """The data set at `path`, stored as the arguments say."""
    if args.labels:
        options["labels"] = args.labels.split(",") if "," in args.labels else args.labels
    return open_dataset(path, args.format, **options)


def run(args: argparse.Namespace) -> int:
    """Print and save what `mien.evaluation.measure` finds."""
    for module in ("torch", "torchmetrics", "matplotlib"):
        require(module, "eval")  # before the work, not after it
    from mien.evaluation import measure
    from mien.evaluation.compare import compare
    from mien.evaluation.consistency import consistency_table, measure_consistency
    from mien.evaluation.groups import by_group, group_table
    from mien.evaluation.page import page
    from mien.evaluation.plot import plot_confusion, plot_reliability
    from mien.evaluation.robustness import (
        beyond,
        measure_robustness,
        plot_robustness,
        robustness_facts,
        robustness_table,
    )
    from mien.faces.detect import YuNet

    if (args.consistency or args.robustness) and args.align == "detect":
        named = "--consistency" if args.consistency else "--robustness"
        raise MienError(f"{named} changes pictures that are faces already: it goes with --align as-is")
    data, split = open_data(args, **({"groups": args.group_by} if args.group_by else {}))
    opening = {"device": args.device, "precision": args.precision, "trust": args.trust}
    classifier = Classifier.from_pretrained(args.model, **opening)
    other = args.against and Classifier.from_pretrained(args.against, **opening)
    if other and other.labels != classifier.labels:
        raise MienError(f"{args.against} knows other labels than {args.model}: {', '.join(other.labels)}")
    detector = YuNet() if args.align == "detect" else None
    args.out.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"batch_size": args.batch_size, "progress": sys.stderr.isatty()}
    measured = measure(classifier, data, split, detector=detector, limit=args.limit, **options)
    report = measured.report
    moved = against = None
    if args.consistency:
        moved = measure_consistency(classifier, measured.rows, measured.target, **options)
    if other:
        others = measure(other, data, split, detector=detector, limit=args.limit, **options)
        against = args.against, compare(measured.probs, others.probs, measured.target)
    spoilt = {}
    if args.robustness:
        finder = YuNet(min_face=0)  # of landmarks, in pictures that are hardly more than a face
        for name, each in {args.model: classifier, **({args.against: other} if other else {})}.items():
            spoilt[name] = measure_robustness(each, measured.rows, measured.target, finder, **options)
    split_up = (measured.probs, measured.target, classifier.labels, measured.rows)
    groups = {column: by_group(*split_up, column) for column in args.group_by}

    shown = "as they are"
    if measured.found is not None:
        shown = f"aligned, but for {report.count - measured.found:,} in which no face was found: as they are"
    title = f"{args.model} on {args.data}, {split}: {report.count:,} faces, {shown}"
    facts = {
        "model": args.model,
        "data": args.data,
        "split": split,
        "align": args.align,
        "computed_in": classifier.engine.precision,
        "found": measured.found,
        "malformed": measured.malformed,
        **report.to_dict(),
    }
    if moved:
        facts["consistency"] = {name: asdict(row) for name, row in moved.items()}
    if against:
        facts["against"] = {"model": args.against, **against[1].to_dict()}
    if groups:
        facts["groups"] = {c: {name: r.to_dict() for name, r in reports.items()} for c, reports in groups.items()}
    if spoilt:
        facts["robustness"] = {name: robustness_facts(right) for name, right in spoilt.items()}
    if len(spoilt) > 1:
        right, rights = spoilt.values()
        facts["robustness_difference"] = {name: beyond(levels, rights[name]) for name, levels in right.items()}
    text = json.dumps(facts, indent=2, ensure_ascii=False)
    short = f"{Path(args.model).name} on {Path(args.data).name}, {split}, {args.align}"
    with whole(args.out / "report.json") as file:
        file.write(text.encode() + b"\n")
    with whole(args.out / "confusion.png") as file:
        plot_confusion(report, file, short)
    with whole(args.out / "calibration.png") as file:
        plot_reliability(measured.probs, measured.target, file, short)
    further: dict[str, tuple[str, bytes | None]] = {}
    if moved:
        further["Shown otherwise"] = consistency_table(moved), None
    if spoilt:
        drawn = io.BytesIO()
        plot_robustness(spoilt, drawn, short)
        further["Spoilt"] = robustness_table(*spoilt.values()), drawn.getvalue()
        with whole(args.out / "robustness.png") as file:
            file.write(drawn.getvalue())
    with whole(args.out / "report.html") as file:
        file.write(page(title, measured, classifier, groups, against, more=further).encode())
    if args.json:
        print(text)
    else:
        left_out = f"\nleft out: {measured.malformed:,} malformed rows" if measured.malformed else ""
        more = [group_table(column, reports) for column, reports in groups.items()]
        if against:
            more.append(f"going over to {args.against}: {against[1]}")
        more += [table for table, _ in further.values()]
        tables = "\n\n".join([f"{title}{left_out}", str(report), *more])
        print(f"{tables}\n\nsaved in {args.out}: report.html, report.json and the plots")
    return 0


def choose_split(data: DataSet, named: str | None = None, prefer: Sequence[str] = ("validation", "test")) -> str:
    """The split that was named, else the first preferred one that there is, else the only one."""
    if named:
        return spell_split(named)
    for split in prefer:
        if split in data.splits:
            return split
    if len(data.splits) > 1:
        raise MienError(f"{data}: which split? --split {' or '.join(data.splits)}")
    return data.splits[0]
