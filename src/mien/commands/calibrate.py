"""`mien calibrate`: fit the temperature of a checkpoint, and from where on it is sure, on labelled pictures."""

import argparse
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

from mien.checkpoint import at_temperature, outputs_of, read_header
from mien.classifier import Classifier
from mien.commands.labelled import add_data_arguments, open_data
from mien.commands.options import share
from mien.errors import MienError, require

BEFORE = "before_calibration"
"""In the header: the temperature and the threshold of the checkpoint as it was trained, which --undo puts back."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="CHECKPOINT.safetensors", help="a checkpoint; its header is changed in place")
    add_data_arguments(parser, required=False)
    parser.add_argument(
        "--sure",
        type=partial(share, zero=False),
        default=0.9,
        metavar="SHARE",
        help="the fraction of answers that is right above the probability below which answers count as uncertain "
        "(default: 0.9)",
    )
    parser.add_argument("--undo", action="store_true", help="put back what the checkpoint said when it was trained")
    parser.set_defaults(misuse=parser.error)


def run(args: argparse.Namespace) -> int:
    """Fit the temperature, find from where on enough answers are right, and write both into the header; or leave it as
    it is, and say why."""
    if args.undo == bool(args.data):
        args.misuse("--data PATH, or --undo")
    for module in ("torch", "torchmetrics"):
        require(module, "eval")
    import numpy as np

    from mien.evaluation import classification_report
    from mien.evaluation.calibrate import calibrate, held_out, with_temperature
    from mien.evaluation.measure import read_rows, sample, targets
    from mien.networks.checkpoint import write_header

    path = Path(args.model)
    if path.suffix != ".safetensors":
        raise MienError(f"{path}: only a .safetensors checkpoint is calibrated; an ONNX file is exported from it again")
    header = dict(read_header(path))
    if args.undo:
        return _undo(path, header)
    data, split = open_data(args)
    classifier = Classifier.from_pretrained(path, device=args.device, trust=args.trust)
    rows = sample(data.rows(split), None)
    target = targets(classifier, data, rows)
    probs, _ = read_rows(classifier, rows, args.batch_size, progress=sys.stderr.isatty())
    before = outputs_of(header)[0].temperature
    logits = np.log(probs.astype(np.float64).clip(1e-12)) * before
    try:
        temperature, threshold = calibrate(logits, target, args.sure)
    except ValueError as error:
        raise MienError(f"{path}: left as it is, temperature {before}: {error}") from error
    report = classification_report(probs, target, classifier.labels)
    after = classification_report(held_out(logits, target), target, classifier.labels)
    header.setdefault(BEFORE, {"temperature": before, "uncertain": header.get("uncertain")})
    header = at_temperature(header, temperature)
    header.pop("uncertain", None)
    message = f"no threshold for --abstain: not even the surest answers are right {args.sure:.0%} of the time"
    if threshold < 1:
        header["uncertain"] = math.floor(threshold * 1e4) / 1e4
        scaled = with_temperature(logits, temperature)
        kept = scaled.max(1) >= header["uncertain"]
        message = (
            f"uncertain below {header['uncertain']}: {1 - kept.mean():.1%} of the faces; of the others "
            f"{(scaled.argmax(1) == target)[kept].mean():.1%} are read right, of all {after.accuracy:.1%}"
        )
    write_header(path, header)
    print(
        f"{path}: temperature {temperature}, fitted on {len(target):,} faces of {split} (--undo puts back "
        f"{header[BEFORE]['temperature']})\n"
        f"calibration error {report.calibration_error:.4f} before; {after.calibration_error:.4f} on each half of these "
        f"faces with the temperature of the other half\n"
        f"{message}"
    )
    return 0


def _undo(path: Path, header: dict[str, Any]) -> int:
    from mien.networks.checkpoint import write_header

    if BEFORE not in header:
        raise MienError(f"{path}: was not calibrated since it was trained: there is nothing to undo")
    before = header.pop(BEFORE)
    header.pop("uncertain", None)
    if before["uncertain"] is not None:
        header["uncertain"] = before["uncertain"]
    temperature = before["temperature"] or 1.0
    write_header(path, at_temperature(header, temperature))
    print(f"{path}: temperature {temperature}, as before it was calibrated")
    return 0
