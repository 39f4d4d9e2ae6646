"""Measures of probabilities against labels."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mien.errors import require

BINS = 15
"""Of the calibration error: equal widths of confidence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `classification_report` finds.

    labels: of the classes, in order.
    count: the number of faces.
    accuracy: the fraction of the faces that is read right.
    accuracy_interval, macro_f1_interval: 95 %, percentiles over `resamples` resamples of the faces with replacement.
    resamples: their number.
    balanced_accuracy, macro_f1: the means of recall and of F1 = 2 tp / (2 tp + fp + fn) over the classes that occur.
    calibration_error: Σ_b n_b/n |accuracy_b - confidence_b| over BINS bins of the likeliest label's probability.
    nll: the mean of -Σ_c target_c log(p_c), in nats; p is at least 1e-7.
    precision, recall, f1: by label; None if there is nothing to divide by.
    support: the number of faces by label.
    confusion: (C, C) counts; a row for each true label, a column for each label that was read.
    """

    labels: tuple[str, ...]
    count: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    balanced_accuracy: float
    macro_f1: float
    macro_f1_interval: tuple[float, float]
    resamples: int
    calibration_error: float
    nll: float
    precision: dict[str, float | None]
    recall: dict[str, float | None]
    f1: dict[str, float | None]
    support: dict[str, int]
    confusion: list[list[int]]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        plain = asdict(self)
        return plain | {name: list(value) for name, value in plain.items() if isinstance(value, tuple)}

    def __str__(self) -> str:
        """Tables for a person; "–" is where there is nothing to divide by."""

        def between(interval: tuple[float, float]) -> str:
            return "  ({:.4f} to {:.4f})".format(*interval)

        wide = max(len("calibration error"), *map(len, self.labels))
        lines = [
            f"{'accuracy':{wide}}  {self.accuracy:.4f}{between(self.accuracy_interval)}",
            f"{'balanced accuracy':{wide}}  {self.balanced_accuracy:.4f}",
            f"{'macro F1':{wide}}  {self.macro_f1:.4f}{between(self.macro_f1_interval)}",
            f"{'calibration error':{wide}}  {self.calibration_error:.4f}  ({BINS} bins)",
            f"{'log loss':{wide}}  {self.nll:.4f}",
            f"in brackets 95 %, from {self.resamples:,} resamples of the {self.count:,} faces",
            "",
            f"{'':{wide}}  precision  recall      F1  faces",
        ]
        for label in self.labels:
            rates = [
                "–" if value is None else f"{value:.3f}"
                for value in (self.precision[label], self.recall[label], self.f1[label])
            ]
            lines.append(f"{label:{wide}}  {rates[0]:>9}  {rates[1]:>6}  {rates[2]:>6}  {self.support[label]:>5}")
        widths = [max(len(label), *(len(str(row[i])) for row in self.confusion)) for i, label in enumerate(self.labels)]
        heads = "  ".join(f"{label:>{width}}" for label, width in zip(self.labels, widths, strict=True))
        lines += ["", f"{'is ↓   read as →':{wide}}  {heads}"]
        for label, row in zip(self.labels, self.confusion, strict=True):
            cells = "  ".join(f"{value:>{width}}" for value, width in zip(row, widths, strict=True))
            lines.append(f"{label:{wide}}  {cells}")
        return "\n".join(lines)


def classification_report(
    probs: np.ndarray, target: np.ndarray, labels: Sequence[str], *, resamples: int = 1000, seed: int = 0
) -> Report:
    """Measure probabilities against what is right.

    probs: (N, C), rows that sum to 1.
    target: (N,) classes, or (N, C) fractions of votes. Of votes, the first largest counts as right, and the log loss is
        the cross entropy with all of them.
    labels: the C names of the classes.
    resamples, seed: of the intervals (default 1,000 and 0).

    Raises ValueError for other shapes, no faces, classes out of range, and rows that are no distributions;
    MissingExtra without the extra [eval].
    """
    torch, metrics = require("torch", "eval"), require("torchmetrics.functional.classification", "eval")
    probs, target, classes = np.asarray(probs, np.float64), np.asarray(target), len(labels)
    if probs.ndim != 2 or not len(probs) or probs.shape[1] != classes or classes < 2:
        raise ValueError(f"probabilities must be (N, {classes}), a column for each label, not {probs.shape}")
    votes = target if target.ndim == 2 else None
    for name, rows in (("probabilities", probs), ("votes", votes)):
        if rows is not None and not (np.all(rows >= 0) and np.allclose(rows.sum(1), 1, atol=1e-3)):
            raise ValueError(f"{name} must be positive and sum to 1")
    right = target if votes is None else votes.argmax(1)
    if right.shape != (len(probs),) or (votes is not None and votes.shape != probs.shape):
        raise ValueError(f"the target must be ({len(probs)},) or {probs.shape}, not {target.shape}")
    if not np.issubdtype(right.dtype, np.integer) or right.min() < 0 or right.max() >= classes:
        raise ValueError(f"the target must be whole numbers from 0 to {classes - 1}")

    logs = np.log(probs.clip(1e-7))
    nll = -(logs[np.arange(len(right)), right] if votes is None else (votes * logs).sum(1)).mean()
    guessed, truth = torch.from_numpy(probs), torch.from_numpy(right.astype(np.int64))
    confusion = metrics.multiclass_confusion_matrix(guessed, truth, classes).numpy()
    error = metrics.multiclass_calibration_error(guessed, truth, classes, n_bins=BINS, norm="l1")

    # resampling faces is resampling cells of the confusion matrix, which these two measures depend on alone
    draws = np.random.default_rng(seed).multinomial(len(right), confusion.ravel() / len(right), resamples)
    accuracies, _, f1s = _summarise(draws.reshape(-1, classes, classes))
    accuracy, balanced, f1 = _summarise(confusion)
    hits, is_so, said_so = np.diag(confusion), confusion.sum(1), confusion.sum(0)

    def by_label(parts: np.ndarray, wholes: np.ndarray) -> dict[str, float | None]:
        return {
            label: float(part / whole) if whole else None
            for label, part, whole in zip(labels, parts, wholes, strict=True)
        }

    return Report(
        labels=tuple(labels),
        count=len(right),
        accuracy=float(accuracy),
        accuracy_interval=_middle(accuracies),
        balanced_accuracy=float(balanced),
        macro_f1=float(f1),
        macro_f1_interval=_middle(f1s),
        resamples=resamples,
        calibration_error=float(error),
        nll=float(nll),
        precision=by_label(hits, said_so),
        recall=by_label(hits, is_so),
        f1=by_label(2 * hits, np.where(is_so > 0, is_so + said_so, 0)),
        support={label: int(number) for label, number in zip(labels, is_so, strict=True)},
        confusion=confusion.tolist(),
    )


def _summarise(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Accuracy, balanced accuracy and macro F1, each (...), of confusion matrices (..., C, C)."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    is_so, said_so = confusion.sum(-1), confusion.sum(-2)
    present = is_so > 0

    def mean(rates: np.ndarray) -> np.ndarray:
        return np.where(present, rates, 0).sum(-1) / present.sum(-1)

    recall, f1 = hits / np.maximum(is_so, 1), 2 * hits / np.maximum(is_so + said_so, 1)
    return hits.sum(-1) / confusion.sum((-2, -1)), mean(recall), mean(f1)


def _middle(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 %."""
    if not len(values):
        return math.nan, math.nan
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
