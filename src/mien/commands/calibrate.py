"""`mien calibrate`: fit the temperature of a checkpoint on labelled pictures."""

import argparse
import sys
from pathlib import Path

from mien.checkpoint import read_header
from mien.classifier import Classifier
from mien.commands.eval import add_data_arguments, open_data
from mien.errors import MienError, require


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="CHECKPOINT.safetensors", help="a checkpoint; its header is changed in place")
    add_data_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Divide the logits by what makes labelled pictures likeliest, and keep it in the header."""
    for module in ("torch", "torchmetrics"):
        require(module, "eval")
    import numpy as np

    from mien.evaluation import evaluate
    from mien.evaluation.calibrate import fit_temperature, held_out
    from mien.evaluation.measure import read_all
    from mien.networks.checkpoint import write_header

    path = Path(args.model)
    if path.suffix != ".safetensors":
        raise MienError(f"{path}: only a .safetensors checkpoint is calibrated; an ONNX file is exported from it again")
    data, split = open_data(args)
    classifier = Classifier.from_pretrained(path, device=args.device)
    probs, target, _ = read_all(classifier, data, split, args.batch_size, progress=sys.stderr.isatty())
    header = dict(read_header(path))
    logits = np.log(probs.astype(np.float64).clip(1e-12)) * header.get("temperature", 1.0)
    before = evaluate(probs, target, classifier.labels)
    after = evaluate(held_out(logits, target), target, classifier.labels)
    header["temperature"] = round(fit_temperature(logits, target), 4)
    write_header(path, header)
    print(
        f"{path}: temperature {header['temperature']}, fitted on {len(target):,} faces of {split}\n"
        f"calibration error {before.calibration_error:.4f} before; {after.calibration_error:.4f} on each half of these "
        f"faces with the temperature of the other half"
    )
    return 0
