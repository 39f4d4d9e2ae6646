"""The confusion matrix and the calibration as pictures."""

from typing import BinaryIO

import numpy as np

from mien.errors import require
from mien.evaluation.calibrate import reliability
from mien.evaluation.report import BINS, Report


def plot_confusion(report: Report, file: BinaryIO, title: str = "") -> None:
    """Write the confusion matrix as PNG: colours are fractions of a row, numbers are faces. Needs the extra [eval]."""
    figure_class = require("matplotlib.figure", "eval").Figure  # without pyplot: no window, no state
    counts = np.array(report.confusion)
    totals = counts.sum(1, keepdims=True)
    fractions = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    side = 2.6 + 0.62 * len(counts)
    figure = figure_class(figsize=(side + 0.8, side), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    recalls = [report.recall[label] for label in report.labels]
    rows = [
        f"{label}\n{'no faces' if recall is None else f'{recall:.1%}'}"
        for label, recall in zip(report.labels, recalls, strict=True)
    ]
    axes.set_xticks(range(len(counts)), report.labels, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(counts)), rows)
    for (y, x), count in np.ndenumerate(counts):
        if count:
            axes.text(x, y, f"{count}", ha="center", va="center", color="white" if fractions[y, x] > 0.5 else "black")
    axes.set_xlabel("read as")
    axes.set_ylabel("is (and recall)")
    measured = f"accuracy {report.accuracy:.4f}, {report.count:,} faces"
    axes.set_title(
        f"{title}\n{measured}" if title else measured, fontsize="medium", wrap=True, pad=12, parse_math=False
    )
    figure.colorbar(image, ax=axes, label="fraction of the row", shrink=0.8)
    figure.savefig(file, format="png")


def plot_reliability(probs: np.ndarray, target: np.ndarray, file: BinaryIO, title: str = "") -> None:
    """Write, as PNG, how often answers are right (above), and how many there are (below), by their probability.

    There are BINS bins of equal width. On the dashed line answers are right as often as their probability says.

    probs: (N, C). target: (N,) classes. file: to write to. title: above the plot.

    Needs the extra [eval].
    """
    figure = require("matplotlib.figure", "eval").Figure(figsize=(5, 5.4), dpi=120, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    sure, right, counts = map(np.array, zip(*reliability(probs, target, BINS), strict=True))
    z2 = 1.96**2  # Wilson's interval, since some have few faces
    middle = (right + z2 / 2 / counts) / (1 + z2 / counts)
    half = np.sqrt(z2 * (right * (1 - right) + z2 / 4 / counts) / counts) / (1 + z2 / counts)
    spread = np.clip([right - middle + half, middle + half - right], 0, None)
    above.plot([0, 1], [0, 1], "--", color="grey", linewidth=1)
    above.errorbar(sure, right, spread, fmt="o", capsize=2, color="tab:blue", markersize=4)
    above.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="fraction that is right, and 95 %")
    if title:
        above.set_title(title, fontsize="medium", wrap=True, parse_math=False)
    below.bar(sure, counts, 0.8 / BINS, color="tab:blue")
    below.set(xlabel="probability of the likeliest label", ylabel="faces")
    figure.savefig(file, format="png")
