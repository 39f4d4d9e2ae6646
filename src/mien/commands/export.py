"""`mien export`: a checkpoint as the files that other engines run."""

import argparse
from pathlib import Path

from mien.errors import MienError, require


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="CHECKPOINT.safetensors", help="a checkpoint for torch")
    parser.add_argument(
        "out",
        metavar="OUT",
        help="OUT.onnx; or a folder, for model.safetensors with fp16 weights and model.onnx, which answer alike",
    )


def run(args: argparse.Namespace) -> int:
    require("torch", "export")
    require("onnxscript", "export")
    import torch

    from mien.checkpoint import read_header
    from mien.export import export_onnx
    from mien.networks import load_network, save_network

    out = Path(args.out)
    if out.suffix not in ("", ".onnx"):
        raise MienError(f"{out}: export writes a .onnx file or a folder")
    header = read_header(args.model)
    network = load_network(args.model)
    if not out.suffix:
        half = out / "model.safetensors"
        save_network(half, network, header, torch.float16)
        network, out = load_network(half), out / "model.onnx"
    export_onnx(out, network, header)
    print(out)
    return 0
