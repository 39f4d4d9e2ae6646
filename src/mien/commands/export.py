"""`mien export`: a checkpoint as the files that other engines run."""

import argparse
import sys
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mien.checkpoint import read_header
from mien.classifier import Classifier
from mien.commands.eval import add_format_arguments, choose_split, count, open_stored
from mien.data import DataSet
from mien.engines import computes_bf16, open_model
from mien.errors import MienError, require
from mien.faces import crop
from mien.files import whole

if TYPE_CHECKING:
    from mien.evaluation.compare import Comparison

CALIBRATION = 256
"""Training faces from which the ranges of int8 are taken."""

LOSS = 0.01
"""Of accuracy; a file that loses more against torch is not written."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(misuse=parser.error)
    parser.add_argument("model", metavar="CHECKPOINT.safetensors", help="a checkpoint for torch")
    parser.add_argument(
        "out",
        metavar="OUT",
        help="OUT.onnx; or a folder, for model.safetensors with fp16 weights and model.onnx, which answer alike",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        help="weights stored in full, as fp16, or convolutions computed in int8 (default: fp16 in a folder; else fp16 "
        "where it holds the weights without loss)",
    )
    parser.add_argument(
        "--calibrate", metavar="DATA", help=f"labelled pictures; {CALIBRATION} of their training faces, for int8"
    )
    parser.add_argument(
        "--check",
        metavar="DATA",
        help=f"compare with torch on labelled pictures; a file that loses more than {LOSS:.0%}% of them is not written",
    )
    parser.add_argument(
        "--measure",
        metavar="DATA",
        help="measure on labelled pictures what bf16 does to the answers, and write it into the header, where "
        "precision=auto looks for it",
    )
    parser.add_argument("--split", help="of --check and --measure (default: validation, else test, else the only one)")
    parser.add_argument("--limit", type=count, metavar="N", help="faces of --check and --measure (default: all)")
    add_format_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Write the files beside their place first: where one is refused, nothing of it stays."""
    out, int8 = Path(args.out), args.precision == "int8"
    if out.suffix not in ("", ".onnx"):
        raise MienError(f"{out}: export writes a .onnx file or a folder")
    if int8 and (not args.calibrate or not out.suffix):
        args.misuse("--precision int8 takes --calibrate DATA, and writes a .onnx file")
    if args.calibrate and not int8:
        args.misuse("--calibrate goes with --precision int8")
    if args.measure and int8:
        args.misuse("--measure is of what bf16 does to a model that is not int8 already")
    for module in ("torch", "onnxscript", *(["onnxruntime.quantization"] if int8 else [])):
        require(module, "export")
    import torch

    from mien.export import export_onnx
    from mien.networks import load_network, save_network

    opened = cache(partial(open_stored, args))  # each data set once
    for path in filter(None, (args.calibrate, args.check, args.measure)):
        opened(path)  # before the work, not after it
    header = dict(read_header(args.model))
    network = load_network(args.model)
    with tempfile.TemporaryDirectory() as name:
        weights, graph = Path(name, "model.safetensors"), Path(name, "model.onnx")
        if args.precision in ("fp16", "int8") or not (out.suffix or args.precision):
            save_network(weights, network, header, torch.float16)
            network = load_network(weights)
        elif not out.suffix:
            save_network(weights, network, header)
        calibration = None
        if int8:
            calibration = _training_faces(opened(args.calibrate), header)
            header.pop("precision", None)  # of bf16 in place of fp32, which is another matter here
        export_onnx(graph, network, header, half=args.precision != "fp32", calibration=calibration)
        if args.measure:
            _measure_bf16(args, opened(args.measure), graph, weights if not out.suffix else None)
        if args.check:
            _check(args, opened(args.check), graph, out)
        for file in (graph,) if out.suffix else (weights, graph):
            place = out if out.suffix else out / file.name
            place.parent.mkdir(parents=True, exist_ok=True)
            with whole(place) as copy:
                copy.write(file.read_bytes())
    print(out if out.suffix else out / "model.onnx")
    return 0


def _training_faces(data: DataSet, header: dict[str, Any]) -> np.ndarray:
    """(CALIBRATION, S, S, 3) uint8, of the split "train" where there is one."""
    from mien.evaluation.measure import sample

    rows = sample(data.rows(choose_split(data, prefer=("train",))), CALIBRATION)
    return np.stack([crop(row.image(), header["preprocess"]) for row in rows])


def _check(args: argparse.Namespace, data: DataSet, graph: Path, out: Path) -> None:
    torch = Classifier.from_pretrained(args.model, device="cpu", precision="fp32")
    exported = _classifier(graph, "fp32")
    names = f"{args.model}, torch", f"{out}, {type(exported.engine).__name__.removesuffix('Engine')}"
    print(found := _compare(args, data, dict(zip(names, (torch, exported), strict=True))))
    if found.accuracy_difference < -LOSS:
        raise MienError(f"{out}: not written, it loses {-found.accuracy_difference:.1%} of accuracy")


def _measure_bf16(args: argparse.Namespace, data: DataSet, graph: Path, weights: Path | None) -> None:
    """Into the header of `graph`, and of `weights` if it is there."""
    import onnx

    from mien.export import write_onnx
    from mien.networks.checkpoint import write_header

    if not computes_bf16():
        print("mien: --measure is left out: this CPU does not compute in bf16", file=sys.stderr)
        return
    print(found := _compare(args, data, {name: _classifier(graph, name) for name in ("fp32", "bf16")}))
    measured = {
        "accuracy_difference": round(found.accuracy_difference, 6),
        "interval": [round(end, 6) for end in found.interval],
        "faces": found.faces,
        "mean_distance": round(found.mean_distance, 6),
    }
    header = read_header(graph)
    header["precision"] = {**header.get("precision", {}), "bf16": measured}
    write_onnx(graph, onnx.load(graph), header)
    if weights:
        write_header(weights, header)


def _classifier(graph: Path, precision: str) -> Classifier:
    """Of a file that may not stay: what is compiled of it is not kept."""
    return Classifier(open_model(graph, precision=precision, cache=False), read_header(graph), graph)


def _compare(args: argparse.Namespace, data: DataSet, classifiers: dict[str, Classifier]) -> "Comparison":
    """What the second of two classifiers changes; prints how right and how fast both are."""
    from mien.evaluation.compare import compare, read_side_by_side
    from mien.evaluation.measure import sample, targets

    rows = sample(data.rows(choose_split(data, args.split)), args.limit)
    target = targets(next(iter(classifiers.values())), data, rows)
    answers = read_side_by_side(classifiers, rows, progress=sys.stderr.isatty())
    wide = max(map(len, classifiers))
    print(f"{'':{wide}}  accuracy  CPU-ms a face")
    for name, answer in answers.items():
        print(f"{name:{wide}}  {(answer.probs.argmax(1) == target).mean():>8.4f}  {answer.cpu_ms:>13.2f}")
    return compare(*(answer.probs for answer in answers.values()), target)
