"""`mien export`: a checkpoint as the files that other engines run."""

import argparse
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mien.checkpoint import read_header
from mien.classifier import Classifier, find_checkpoint
from mien.commands.eval import add_format_arguments, choose_split, open_stored
from mien.commands.options import add_reading_arguments, count
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


KINDS = (".onnx", ".xml", ".pt2")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(misuse=parser.error)
    parser.add_argument(
        "out",
        metavar="OUT",
        help="OUT.onnx, for any engine; OUT.xml, OpenVINO's, with its weights in OUT.bin; OUT.pt2, torch's; or a "
        "folder, for model.safetensors with fp16 weights and model.onnx, which answer alike",
    )
    parser.add_argument(
        "--model",
        help="a model's name, a .safetensors file, a folder with one, or owner/name on the Hub, with @revision behind "
        "it for one that is not the newest (default: the best)",
    )
    add_reading_arguments(parser, "--trust")
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        help="weights stored in full, as fp16, or convolutions computed in int8 (default: fp16 in a folder; else fp16 "
        "where it holds the weights without loss)",
    )
    parser.add_argument(
        "--calibrate",
        metavar="DATA",
        help=f"labelled pictures; {CALIBRATION} of their training faces, for int8 (default: those of --check)",
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
    out = Path(args.out)
    folder = out.is_dir() or not out.suffix
    kind, int8 = ".onnx" if folder else out.suffix, args.precision == "int8"
    if kind not in KINDS:
        raise MienError(
            f"{out}: export writes a .onnx, .xml or .pt2 file or a folder; --model names the checkpoint that it reads"
        )
    if int8 and folder:
        args.misuse("--precision int8 writes a file, .onnx or .xml, and no folder")
    if int8 and kind == ".pt2":
        args.misuse("--precision int8 is for .onnx and .xml: torch by itself has no convolutions in int8 to export")
    if int8 and not (args.calibrate or args.check):
        args.misuse("--precision int8 takes --calibrate DATA, or --check DATA that has training faces as well")
    if args.calibrate and not int8:
        args.misuse("--calibrate goes with --precision int8")
    if args.measure and int8:
        args.misuse("--measure is of what bf16 does to a model that is not int8 already")
    if args.measure and kind == ".pt2":
        args.misuse("--measure is of OpenVINO's bf16, and torch runs a .pt2")
    for module in ("torch", "onnxscript", *(["onnxruntime.quantization"] if int8 else [])):
        require(module, "export")
    import torch

    from mien.export import export_program, make_onnx, write_ir, write_onnx
    from mien.networks import load_network, save_network
    from mien.networks.checkpoint import write_header

    opened = cache(partial(open_stored, args))  # each data set once
    for path in filter(None, (args.calibrate, args.check, args.measure)):
        opened(path)  # before the work, not after it
    calibrating = int8 and _calibrating_split(args, opened)
    source = find_checkpoint(args.model)
    header = dict(read_header(source))
    network = load_network(source, trust=args.trust)
    with tempfile.TemporaryDirectory() as name:
        weights, graph = Path(name, "model.safetensors"), Path(name, f"model{kind}")
        if args.precision in ("fp16", "int8") or (folder and not args.precision):
            save_network(weights, network, header, torch.float16)
            network = load_network(weights, trust=args.trust)
        elif folder:
            save_network(weights, network, header)
        half = args.precision != "fp32"
        if kind == ".pt2":
            export_program(graph, network, header, half=half)
        else:
            calibration = None
            if int8:
                calibration = _training_faces(opened(args.calibrate or args.check), calibrating, header)
                header.pop("precision", None)  # of bf16 in place of fp32, which is another matter here
            model = make_onnx(network, header, half=half, calibration=calibration)
            write = write_ir if kind == ".xml" else write_onnx
            write(graph, model, header)
            if args.measure and (measured := _measure_bf16(args, opened(args.measure), graph)):
                header["precision"] = {**header.get("precision", {}), "bf16": measured}
                write(graph, model, header)
                if folder:
                    write_header(weights, header)
        if args.check:
            _check(args, opened(args.check), source, graph, out)
        files = {graph: out}
        if folder:
            files = {file: out / file.name for file in (weights, graph)}
        elif kind == ".xml":
            files = {graph.with_suffix(".bin"): out.with_suffix(".bin"), **files}
        with ExitStack() as stack:  # all of them or none
            for file, place in files.items():
                place.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(whole(place)).write(file.read_bytes())
    print(out / "model.onnx" if folder else out)
    return 0


def _calibrating_split(args: argparse.Namespace, opened: Callable[[str], DataSet]) -> str:
    """That of the faces from which int8 takes its ranges, which are not those that check it."""
    if args.calibrate:
        return choose_split(opened(args.calibrate), prefer=("train",))
    data = opened(args.check)
    if "train" not in data.splits or choose_split(data, args.split) == "train":
        args.misuse(f"{args.check} has no training faces beside those to check with: --calibrate DATA names others")
    return "train"


def _training_faces(data: DataSet, split: str, header: dict[str, Any]) -> np.ndarray:
    """(CALIBRATION, S, S, 3) uint8."""
    from mien.evaluation.measure import sample

    return np.stack([crop(row.image(), header["preprocess"]) for row in sample(data.rows(split), CALIBRATION)])


def _check(args: argparse.Namespace, data: DataSet, source: Path, graph: Path, out: Path) -> None:
    torch = Classifier.from_pretrained(source, device="cpu", precision="fp32", trust=args.trust)
    exported = _classifier(graph, "fp32")
    runs = "torch" if graph.suffix == ".pt2" else type(exported.engine).__name__.removesuffix("Engine")
    found = _compare(args, data, {f"{source}, torch": torch, f"{out}, {runs}": exported})
    if found.accuracy_difference < -LOSS:
        raise MienError(f"{out}: not written, it loses {-found.accuracy_difference:.1%} of accuracy")


def _measure_bf16(args: argparse.Namespace, data: DataSet, graph: Path) -> dict[str, Any] | None:
    """What bf16 does to the answers of `graph`, as a header has it; None where there is none."""
    if not computes_bf16():
        print("mien: --measure is left out: this CPU does not compute in bf16", file=sys.stderr)
        return None
    found = _compare(args, data, {name: _classifier(graph, name) for name in ("fp32", "bf16")})
    return {
        "accuracy_difference": round(found.accuracy_difference, 6),
        "interval": [round(end, 6) for end in found.interval],
        "faces": found.faces,
        "mean_distance": round(found.mean_distance, 6),
    }


def _classifier(graph: Path, precision: str) -> Classifier:
    """Of a file that may not stay: what is compiled of it is not kept."""
    return Classifier(open_model(graph, device="cpu", precision=precision, cache=False), read_header(graph), graph)


def _compare(args: argparse.Namespace, data: DataSet, classifiers: dict[str, Classifier]) -> "Comparison":
    """What the second of two classifiers changes; prints it, and how right and how fast both are."""
    from mien.evaluation.compare import compare, read_side_by_side
    from mien.evaluation.measure import sample, targets

    rows = sample(data.rows(choose_split(data, args.split)), args.limit)
    target = targets(next(iter(classifiers.values())), data, rows)
    answers = read_side_by_side(classifiers, rows, progress=sys.stderr.isatty())
    wide = max(map(len, classifiers))
    first, second = answers.values()
    print(f"{'':{wide}}  accuracy  CPU-ms a face  speed")
    for name, answer in answers.items():
        right, times = (answer.probs.argmax(1) == target).mean(), first.cpu_ms / answer.cpu_ms
        print(f"{name:{wide}}  {right:>8.4f}  {answer.cpu_ms:>13.2f}  {times:>4.1f}×")
    print(found := compare(first.probs, second.probs, target))
    return found
