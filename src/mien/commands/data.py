"""`mien data`: labelled pictures looked through, or made into shards of faces."""

import argparse
import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

from mien.commands.labelled import add_labels_argument
from mien.commands.options import count
from mien.console import printable
from mien.data import DataSet, open_dataset
from mien.data.check import Checked, check
from mien.data.opening import FORMATS
from mien.errors import require
from mien.files import whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="task", metavar="TASK", required=True)
    looking = commands.add_parser("check", help="tell all that is wrong with a set, at once", description=_CHECK)
    _add_set(looking)
    looking.add_argument(
        "--out", type=Path, default=Path("out/data"), metavar="DIR", help="of the contact sheets (default: out/data)"
    )
    looking.add_argument("--strict", action="store_true", help="exit with 1 for warnings, too")
    looking.add_argument("--json", action="store_true", help="print JSON in place of text")
    making = commands.add_parser("prepare", help="find and align the faces of a set, once", description=_PREPARE)
    _add_set(making)
    making.add_argument("out", metavar="OUT", type=Path, help="the folder of the parquet files")
    making.add_argument(
        "--align",
        choices=("detect", "as-is"),
        default="detect",
        help="find the face and turn it upright (default), or take the pictures as they are, resized",
    )
    making.add_argument("--size", type=count, default=112, metavar="PIXELS", help="of a side (default: 112)")
    making.add_argument("--encoding", choices=("png", "jpeg"), default="png", help="default: png")
    making.add_argument("--shard-size", type=count, default=4096, metavar="N", help="rows of a file (default: 4096)")
    for command in (looking, making):
        command.set_defaults(misuse=command.error)


_CHECK = """Read every row and every picture of a set, and tell what is wrong with it: rows that say what cannot be,
pictures that cannot be read, pictures that two splits show. Warn of what need not be wrong. Draw a contact sheet of
each class."""

_PREPARE = """Find and align the faces of a set, and store them in parquet files with all that is known of them. A run
that was cut goes on where it was when it is started again."""


def _add_set(parser: argparse.ArgumentParser) -> None:
    """What says which set, and how it is read."""
    parser.add_argument(
        "format", type=_format, metavar="FORMAT", help=f"{', '.join(FORMATS)}, or a reader's class path"
    )
    parser.add_argument("root", metavar="ROOT", help="the folder or file of the set, as its makers give it out")
    add_labels_argument(parser)
    parser.add_argument(
        "--set", type=_option, action="append", default=[], metavar="NAME=VALUE", help="an option of the reader"
    )
    parser.add_argument("--workers", type=count, metavar="N", help="threads (default: one a processor)")


def run(args: argparse.Namespace) -> int:
    """Check: 1 where something is wrong. Prepare: 1 where a row could not be used."""
    if args.out.exists() and not args.out.is_dir():
        args.misuse(f"{args.out}: not a folder")
    options: dict[str, Any] = dict(args.set)
    if args.labels:
        options["labels"] = args.labels
    return (_check if args.task == "check" else _prepare)(args, options)


def _check(args: argparse.Namespace, options: dict[str, Any]) -> int:
    logger = logging.getLogger("mien.data.dataset")
    logger.disabled = True  # what it says is in the report
    try:
        data = open_dataset(args.root, args.format, **options)
        checked = check(data, workers=args.workers, progress=sys.stderr.isatty())
    finally:
        logger.disabled = False
    args.out.mkdir(parents=True, exist_ok=True)
    sheets = []
    for label, sheet in checked.sheets():
        name = re.sub(r"[^\w-]", "_", f"{args.format.rpartition('.')[2]}-{label}")
        sheets.append(args.out / f"{name}.png")
        with whole(sheets[-1]) as file:
            sheet.save(file, "PNG")
    wrong = bool(checked.problems) or (args.strict and bool(checked.warnings))
    if args.json:
        text = json.dumps(_facts(args, data, checked, sheets, wrong), indent=2, ensure_ascii=False)
        print(text.encode(errors="backslashreplace").decode())
    else:
        _print(data, checked)
        print(f"contact sheets: {sheets[0]} and {len(sheets) - 1} more" if sheets else "no contact sheets")
    return 1 if wrong else 0


def _facts(
    args: argparse.Namespace, data: DataSet, checked: Checked, sheets: list[Path], wrong: bool
) -> dict[str, Any]:
    splits = {
        split: {
            "rows": int(counts.sum()) + checked.unlabelled[split],
            "classes": dict(zip(data.labels, counts.tolist(), strict=True)),
            "published": dict(zip(data.labels, data.published.get(split, ()), strict=False)),
            "without_label": checked.unlabelled[split],
            "left_out": checked.left_out[split],
            "repeated": [
                {"where": name, "as": first, "same_label": same} for name, first, same in checked.repeated[split]
            ],
        }
        for split, counts in checked.counts.items()
    }
    return {
        "format": args.format,
        "root": args.root,
        "wrong": wrong,
        "splits": splits,
        "problems": [problem.to_dict() for problem in checked.problems],
        "warnings": checked.warnings,
        "notes": list(data.notes),
        "contact_sheets": list(map(str, sheets)),
    }


def _print(data: DataSet, checked: Checked) -> None:
    """Problems, warnings, and a table of classes and splits."""
    for problem in checked.problems:
        print(printable(str(problem)))
    for warning in checked.warnings:
        print(printable(f"warning: {warning}"))
    for note in data.notes:
        print(printable(f"note: {note}"))
    splits = list(checked.counts)
    rows = [(label, [checked.counts[split][i] for split in splits]) for i, label in enumerate(data.labels)]
    if any(checked.unlabelled.values()):
        rows.append(("no expression", [checked.unlabelled[split] for split in splits]))
    rows.append(("all", [checked.counts[split].sum() + checked.unlabelled[split] for split in splits]))
    rows.append(("left out", [checked.left_out[split] for split in splits]))
    first = max(len(name) for name, _ in rows)
    widths = [max(10, len(split)) for split in splits]
    print("\n" * bool(checked.problems or checked.warnings or data.notes), end="")
    print(" " * first, *(f"{split:>{width}}" for split, width in zip(splits, widths, strict=True)))
    for name, numbers in rows:
        print(f"{name:{first}}", *(f"{n:>{width},}" for n, width in zip(numbers, widths, strict=True)))
    problems = len(checked.problems)
    summary = f"{problems:,} problem{'s' if problems > 1 else ''}" if problems else "nothing wrong"
    print(f"\n{printable(str(data))}: {summary}")


def _prepare(args: argparse.Namespace, options: dict[str, Any]) -> int:
    require("pyarrow.parquet", "parquet")
    from mien.data.prepare import Options, prepare

    root, out = Path(args.root).resolve(), args.out.resolve()
    if out == root or root in out.parents:
        args.misuse(f"{args.out} is in {args.root}, which is to be read")
    data = open_dataset(args.root, args.format, **options)
    how = Options(args.align, args.size, args.encoding, args.shard_size)
    prepared = prepare(data, args.out, how, root=args.root, workers=args.workers, progress=sys.stderr.isatty())
    splits = ", ".join(f"{split} {rows:,}" for split, rows in prepared.rows.items())
    print(f"{args.out}: {prepared.rows.total():,} faces ({splits})")
    if prepared.not_found:
        print(f"{prepared.not_found:,} were not found, and are as they were: the column `note` says so")
    if prepared.left_out:
        print(f"{len(prepared.left_out):,} rows left out, of which {args.out / 'left_out.jsonl'} says why")
    return 1 if prepared.left_out else 0


def _format(text: str) -> str:
    if text not in FORMATS and "." not in text:
        raise argparse.ArgumentTypeError(f"{text}: none of {', '.join(FORMATS)}")
    return text


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals):
        raise argparse.ArgumentTypeError(f"{text}: not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
