"""`mien export`: a checkpoint as the files that other engines run."""

import argparse
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from mien.classifier import DEFAULT_MODEL
from mien.commands import terminal
from mien.commands.labelled import add_format_arguments
from mien.commands.options import add_reading_arguments, count
from mien.errors import require


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "out",
        metavar="OUT",
        help="OUT.onnx, for any engine; OUT.xml, OpenVINO's, with its weights in OUT.bin; OUT.pt2, torch's; or a "
        "folder, for model.safetensors with fp16 weights and model.onnx, which answer alike, and with --calibrate for "
        "model.int8.onnx, which precision=auto takes where it is fastest and was measured to lose next to nothing",
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
        help="labelled pictures; 256 of their training faces, for int8 (default, but for a folder: those of --check)",
    )
    parser.add_argument(
        "--check",
        metavar="DATA",
        help="compare with torch on labelled pictures; a file that loses more than 1%% of them is not written",
    )
    parser.add_argument(
        "--measure",
        metavar="DATA",
        help="measure on labelled pictures what bf16 does to the answers, and write it into the header, where "
        "precision=auto looks for it; the int8 file of a folder is measured on them, too, else on those of --check",
    )
    parser.add_argument("--split", help="of --check and --measure (default: validation, else test, else the only one)")
    parser.add_argument("--limit", type=count, metavar="N", help="faces of --check and --measure (default: all)")
    parser.add_argument(
        "--features", action="store_true", help="give what the network's head reads as a further output, features"
    )
    parser.add_argument(
        "--temporal",
        metavar="FILE.safetensors",
        help="put a temporal model of mien temporal beside it, which joins the features of a track in videos",
    )
    add_format_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Write what `mien.export.export_model` makes, and print what it found."""
    terminal.begin(f"opening {args.model or DEFAULT_MODEL}")
    for module in ("torch", "onnxscript"):
        require(module, "export")
    from mien.export import AccuracyLost, export_model

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # torch's exporter warns about itself

    names = (
        "precision",
        "check",
        "calibrate",
        "measure",
        "split",
        "format",
        "labels",
        "limit",
        "features",
        "temporal",
        "trust",
    )
    options = {name: getattr(args, name) for name in names}
    try:
        with root_silenced():
            exported = export_model(args.model, args.out, **options, progress=sys.stderr.isatty())
    except AccuracyLost as error:
        print(error.checked)
        raise
    for found in (exported.measured, exported.int8, exported.checked):
        if found:
            print(found)
    print(exported.path)
    return 0


@contextmanager
def root_silenced() -> Iterator[None]:
    """onnxruntime advises on the root logger, of what the exporter has done; mien's own warnings are still shown."""
    root, own = logging.getLogger(), logging.getLogger("mien")
    levels, handlers = (root.level, own.level), root.handlers[:]
    root.setLevel(logging.ERROR)
    own.setLevel(logging.WARNING)
    root.addHandler(cast(logging.Handler, logging.lastResort))  # without one onnxruntime's call would add another
    try:
        yield
    finally:
        root.setLevel(levels[0])
        own.setLevel(levels[1])
        root.handlers[:] = handlers
