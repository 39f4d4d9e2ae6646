"""What fp32, bf16 and int8 take and answer: every batch is read by each in turn, in one run.

    python benchmarks/precision.py MODEL --data DATA [--int8 SMALL.onnx] [--limit 500]

MODEL is a model's name, folder or .onnx file; SMALL.onnx is the int8 file beside it if it names one, or comes from
`mien export … --precision int8`, and is run with the rest of it in fp32 and, where the CPU has it, in bf16. Printed are
milliseconds of processor time a face (the median over batches), the accuracy, and against fp32: its difference with the
95 % interval of pairs, the share of faces that keep their label, and how far probabilities move (mean total variation);
for FER2013 with FER+'s votes by both rules, the first largest vote and the majority of the votes.
"""

import argparse
import os
import sys

import numpy as np

from mien.checkpoint import read_header
from mien.classifier import Classifier, find_model
from mien.commands.labelled import add_format_arguments
from mien.commands.options import count
from mien.data import FERPlus
from mien.engines import computes_bf16, open_model
from mien.evaluation.compare import compare, read_side_by_side
from mien.evaluation.measure import choose_split, open_labelled, sample, targets
from mien.precision import int8_beside


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare precisions, side by side.")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", help="default: validation, else test, else the only one")
    parser.add_argument("--int8", metavar="SMALL.onnx")
    parser.add_argument("--limit", type=count, metavar="N", help="faces (default: all)")
    parser.add_argument("--batch-size", type=count, default=16, metavar="N")
    add_format_arguments(parser)
    args = parser.parse_args()

    path = find_model(args.model)
    small = find_model(args.int8) if args.int8 else int8_beside(path)
    floats = ["fp32", "bf16"] if computes_bf16() else ["fp32"]
    cases = {name: (path, name) for name in floats}
    if args.int8 or "int8" in read_header(path).get("precision", {}):
        cases |= {f"int8, the rest {name}": (small, name) for name in floats}
    classifiers = {
        name: Classifier(open_model(file, precision=precision, cache=False), read_header(file), file)
        for name, (file, precision) in cases.items()
    }
    data = open_labelled(args.data, args.format, args.labels)
    rows = sample(data.rows(choose_split(data, args.split)), args.limit)
    truth = {"the label": targets(classifiers["fp32"], data, rows)}
    if isinstance(data, FERPlus):
        more = open_labelled(args.data, args.format, args.labels, mode="majority")
        won = {row.number for row in more.rows(choose_split(data, args.split))}
        truth["the majority's label"] = np.where([row.number in won for row in rows], truth["the label"], -1)
    answers = read_side_by_side(classifiers, rows, batch_size=args.batch_size, progress=sys.stderr.isatty())

    print(f"{os.cpu_count()} cores, {path.parent.name}/{path.name}, {args.batch_size} faces at a time")
    for rule, target in truth.items():
        print(f"\n{rule}, {(target >= 0).sum():,} faces\n")
        print("| precision | CPU-ms a face | accuracy | difference (95 %) | same label | mean distance |")
        print("|---|---:|---:|---:|---:|---:|")
        for name, answer in answers.items():
            found = compare(*(a.probs[target >= 0] for a in (answers["fp32"], answer)), target[target >= 0])
            low, high = found.interval
            difference = "" if name == "fp32" else f"{found.accuracy_difference:+.4f} ({low:+.4f} to {high:+.4f})"
            cells = [f"{answer.cpu_ms:.1f}", f"{found.other_accuracy:.4f}", difference]
            cells += [f"{found.agreement:.2%}", f"{found.mean_distance:.4f}"]
            print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
