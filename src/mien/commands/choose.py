"""`mien choose`: one half of the labelled faces chooses among models, the other judges."""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mien.classifier import Classifier
from mien.commands.labelled import add_data_arguments, open_data
from mien.commands.options import count
from mien.data import Row
from mien.errors import MienError, Misuse, require
from mien.files import whole

RULES = {"votes": "first largest vote", "majority": "more than half of the votes"}
"""What counts as right, by the mode of a reader of votes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", metavar="MODEL", nargs="+", help="what to choose from: names, files or folders")
    add_data_arguments(parser)
    parser.add_argument("--limit", type=count, metavar="N", help="read N faces of a half, the same ones every time")
    parser.add_argument("--half", choices=("even", "odd"), default="even", help="what chooses (default: even)")
    parser.add_argument(
        "--look",
        metavar="WHAT",
        help="look at both halves, each judging what the other has chosen, and say in the log what was looked at",
    )
    parser.add_argument("--against", metavar="MODEL", help="with --look: compare with this model on the same faces")
    parser.add_argument(
        "--log",
        type=Path,
        default=Path("docs/experiments.md"),
        metavar="FILE.md",
        help="with --look: the page whose last table gets a row for it (default: docs/experiments.md)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("out/choose"), metavar="DIR", help="of answers, kept (default: out/choose)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")


def run(args: argparse.Namespace) -> int:
    """Print which model one half chooses; or, with --look, what both say of each other's choices."""
    for module in ("torch", "torchmetrics"):
        require(module, "eval")
    import numpy as np

    from mien.evaluation.choose import HALVES, NOBODY, candidates, halves, log_look, look
    from mien.evaluation.measure import sample, targets

    if args.limit and args.look:
        raise Misuse("--limit goes without --look: a look is at all faces")
    if args.against and not args.look:
        raise Misuse("--against goes with --look: before it, nothing is compared")
    names = list(dict.fromkeys([*args.models, *([args.against] if args.against else [])]))
    if len(set(args.models)) < len(args.models):
        raise Misuse("a model was named twice")
    args.model = args.models[0]
    readers = {"votes": open_data(args)}
    data, split = readers["votes"]
    if type(data).__name__ == "FERPlus":
        readers["majority"] = open_data(args, mode="majority")
    rows = [row for row in data.rows(split) if row.label >= 0]
    half = halves([row.number for row in rows])
    if not args.look:
        rows = [row for row, its in zip(rows, half, strict=True) if HALVES[its] == args.half]
        rows = sample(rows, args.limit)
    half = halves([row.number for row in rows])

    probs, truth, labels = {}, {}, ()
    for name in names:
        classifier = Classifier.from_pretrained(name, device=args.device, precision="fp32", trust=args.trust)
        own = targets(classifier, data, rows)
        if truth and (classifier.labels != labels or (own != truth["votes"]).any()):
            raise MienError(f"{name} knows other labels than {names[0]}: {', '.join(classifier.labels)}")
        truth["votes"], labels = own, classifier.labels
        probs[name] = np.empty((len(rows), len(labels)), np.float32)
        for its in np.unique(half):
            chosen = np.flatnonzero(half == its)
            probs[name][chosen] = _answers(classifier, [rows[i] for i in chosen], args)
    for rule, (reader, _) in readers.items():
        by_number = {row.number: reader.labels[row.label] for row in reader.rows(split) if row.label >= 0}
        found = [by_number.get(row.number) for row in rows]
        truth[rule] = np.array([NOBODY if name is None else labels.index(name) for name in found])

    models = {name: probs[name] for name in args.models}
    if not args.look:
        table = candidates(models, truth, np.ones(len(rows), bool))
        if args.json:
            print(json.dumps({"half": args.half, "candidates": [_plain(c) for c in table]}, indent=2))
        else:
            print(f"the {args.half} half of {args.data}, {split}, chooses {table[0].name}\n")
            heads = [f"{RULES[rule]} (n = {n:,})" for rule, n in table[0].faces.items()]
            print("| model | " + " | ".join(heads) + " | log loss |\n|---|" + "---:|" * (len(heads) + 1))
            for c in table:
                print(f"| {c.name} | " + " | ".join(f"{a:.4f}" for a in c.accuracy.values()) + f" | {c.log_loss:.4f} |")
        return 0
    found = look(models, truth, half, labels, probs[args.against] if args.against else None)
    number = log_look(args.log, args.look, found, args.against or "")
    if args.json:
        print(json.dumps({"look": number, **found.to_dict()}, indent=2))
        return 0
    print(f"look {number} at {args.data}, {split}: {args.look}; logged in {args.log}")
    for judge, name in found.chosen.items():
        print(f"{judge} half: judges {name}, temperature {found.temperature[judge]:.3f}")
    for rule, report in found.reports.items():
        print(f"\n{RULES[rule]}:\n{report}")
        if rule in found.differences:
            print(f"\nbeyond {args.against}: {found.differences[rule]}")
    return 0


def _plain(candidate) -> dict:
    return {"model": candidate.name, "accuracy": candidate.accuracy, "log_loss": candidate.log_loss}


def _answers(classifier: Classifier, rows: Sequence[Row], args: argparse.Namespace):
    """Probabilities (N, C), read once for a model's file and these rows, and kept."""
    import numpy as np

    from mien.evaluation.measure import read_rows

    key = hashlib.blake2b(classifier.path.read_bytes(), digest_size=12)
    for row in rows:
        key.update(f"{row.name} {row.number}\n".encode())
    kept = args.out / f"{key.hexdigest()}.npy"
    if kept.exists():
        return np.load(kept)
    probs, _ = read_rows(classifier, rows, args.batch_size, progress=sys.stderr.isatty())
    args.out.mkdir(parents=True, exist_ok=True)
    with whole(kept) as file:
        np.save(file, probs)
    return probs
