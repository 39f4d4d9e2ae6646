"""`mien calibrate`: fit the temperature of a checkpoint, and from where on it is sure, on labelled pictures."""

import argparse
import math
import sys
from functools import partial
from pathlib import Path

from mien.checkpoint import at_temperature, outputs_of, read_header
from mien.classifier import Classifier
from mien.commands.labelled import add_data_arguments, open_data
from mien.commands.options import share
from mien.errors import MienError, require


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="CHECKPOINT.safetensors", help="a checkpoint; its header is changed in place")
    add_data_arguments(parser)
    parser.add_argument(
        "--sure",
        type=partial(share, zero=False),
        default=0.9,
        metavar="SHARE",
        help="answers count as uncertain below the probability above which this share is right (default: 0.9)",
    )


def run(args: argparse.Namespace) -> int:
    """Divide the logits by what makes labelled pictures likeliest, find from where on a share of the answers is right,
    and keep both in the header."""
    for module in ("torch", "torchmetrics"):
        require(module, "eval")
    import numpy as np

    from mien.evaluation import classification_report
    from mien.evaluation.calibrate import fit_temperature, held_out, uncertain_below, with_temperature
    from mien.evaluation.measure import read_rows, sample, targets
    from mien.networks.checkpoint import write_header

    path = Path(args.model)
    if path.suffix != ".safetensors":
        raise MienError(f"{path}: only a .safetensors checkpoint is calibrated; an ONNX file is exported from it again")
    data, split = open_data(args)
    classifier = Classifier.from_pretrained(path, device=args.device, trust=args.trust)
    rows = sample(data.rows(split), None)
    target = targets(classifier, data, rows)
    probs, _ = read_rows(classifier, rows, args.batch_size, progress=sys.stderr.isatty())
    header = dict(read_header(path))
    logits = np.log(probs.astype(np.float64).clip(1e-12)) * outputs_of(header)[0].temperature
    before = classification_report(probs, target, classifier.labels)
    after = classification_report(held_out(logits, target), target, classifier.labels)
    temperature = round(fit_temperature(logits, target), 4)
    header = at_temperature(header, temperature)
    scaled = with_temperature(logits, temperature)
    threshold = uncertain_below(scaled, target, args.sure)
    header.pop("uncertain", None)
    told = f"no threshold for --abstain: not even the surest answers are right {args.sure:.0%} of the time"
    if threshold < 1:
        header["uncertain"] = math.floor(threshold * 1e4) / 1e4
        kept = scaled.max(1) >= header["uncertain"]
        told = (
            f"uncertain below {header['uncertain']}: {1 - kept.mean():.1%} of the faces; of the others "
            f"{(scaled.argmax(1) == target)[kept].mean():.1%} are read right, of all {after.accuracy:.1%}"
        )
    write_header(path, header)
    print(
        f"{path}: temperature {temperature}, fitted on {len(target):,} faces of {split}\n"
        f"calibration error {before.calibration_error:.4f} before; {after.calibration_error:.4f} on each half of these "
        f"faces with the temperature of the other half\n"
        f"{told}"
    )
    return 0
