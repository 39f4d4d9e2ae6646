"""Two models, or two ways to compute one, side by side on the same faces."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from mien.classifier import Classifier
from mien.data import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How answers q differ from the answers p that they would replace.

    faces: how many were read.
    accuracy, other_accuracy: the fraction that p, and that q, has right.
    accuracy_difference: other_accuracy - accuracy.
    interval: its 95 %: percentiles over resamples of the faces, each with both of its answers.
    won, lost: the faces that only q, and that only p, has right.
    p_value: of McNemar's exact two-sided test: how likely `won` and `lost` differ so much if both are equally often
        right.
    agreement: the fraction of the faces whose likeliest label is the same.
    mean_distance: the mean of ½ Σ_c |p_c - q_c|.
    largest_difference: the largest |p_c - q_c|.
    """

    faces: int
    accuracy: float
    other_accuracy: float
    accuracy_difference: float
    interval: tuple[float, float]
    won: int
    lost: int
    p_value: float
    agreement: float
    mean_distance: float
    largest_difference: float

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        return asdict(self) | {"interval": list(self.interval)}

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"accuracy {self.accuracy_difference:+.4f} ({low:+.4f} to {high:+.4f}) on {self.faces:,} faces, "
            f"{self.won} won and {self.lost} lost (McNemar p = {self.p_value:.2g}), "
            f"same label {self.agreement:.2%}, mean distance {self.mean_distance:.4f}, "
            f"largest difference {self.largest_difference:.4f}"
        )


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model answers. probs: (N, C). cpu_ms: milliseconds of processor time a face, the median over batches."""

    probs: np.ndarray
    cpu_ms: float


def distance(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Total variation, `½ Σ_c |p_c - q_c|`, 0 to 1, of each row: (N, C), (N, C) -> (N,)."""
    return np.abs(np.asarray(p, np.float64) - q).sum(1) / 2


def mcnemar(won: int, lost: int) -> float:
    """The exact two-sided p-value: the probability of at most min(won, lost) heads, or tails, in won + lost throws.

    Paper: McNemar, Note on the sampling error of the difference between correlated proportions, 1947.
    """
    count = won + lost
    logs = [
        math.lgamma(count + 1) - math.lgamma(i + 1) - math.lgamma(count - i + 1) - count * math.log(2)
        for i in range(min(won, lost) + 1)
    ]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def compare(
    probs: np.ndarray, others: np.ndarray, target: np.ndarray, *, resamples: int = 10_000, seed: int = 0
) -> Comparison:
    """Compare the answers of two models to the same faces.

    probs, others: (N, C). target: (N,) classes. resamples, seed: of the interval (default 10,000 and 0).
    """
    before, after = probs.argmax(1), others.argmax(1)
    gain = (after == target).astype(int) - (before == target)  # -1, 0 or 1 a face
    counts = np.bincount(gain + 1, minlength=3)  # lost, equal, won
    draws = np.random.default_rng(seed).multinomial(len(gain), counts / len(gain), resamples)
    low, high = np.quantile((draws[:, 2] - draws[:, 0]) / len(gain), (0.025, 0.975))
    return Comparison(
        faces=len(gain),
        accuracy=float((before == target).mean()),
        other_accuracy=float((after == target).mean()),
        accuracy_difference=float(gain.mean()),
        interval=(float(low), float(high)),
        won=int(counts[2]),
        lost=int(counts[0]),
        p_value=mcnemar(int(counts[2]), int(counts[0])),
        agreement=float((before == after).mean()),
        mean_distance=float(distance(probs, others).mean()),
        largest_difference=float(np.abs(probs - others).max()),
    )


def read_side_by_side(
    classifiers: Mapping[str, Classifier], rows: Sequence[Row], *, batch_size: int = 16, progress: bool = False
) -> dict[str, Answers]:
    """Read every batch with each classifier in turn, so that a slow moment of the machine is the same for all of them.

    classifiers: by name; all are shown the crops of the first.
    rows: the faces. batch_size: how many are read at a time (default 16). progress: show a bar on stderr.

    The first batch is read once more beforehand, which is not timed.
    """
    first = next(iter(classifiers.values()))
    probs: dict[str, list[np.ndarray]] = {name: [] for name in classifiers}
    times: dict[str, list[float]] = {name: [] for name in classifiers}
    with tqdm(total=len(rows), unit=" faces", leave=False, disable=not progress) as bar:
        for start in range(0, len(rows), batch_size):
            crops = np.stack([first.crop(row.image()) for row in rows[start : start + batch_size]])
            for name, classifier in classifiers.items():
                if not start:
                    classifier.run(crops)
                begin = time.process_time()
                probs[name].append(classifier.run(crops))
                times[name].append((time.process_time() - begin) / len(crops) * 1e3)
            bar.update(len(crops))
    return {name: Answers(np.concatenate(probs[name]), float(np.median(times[name]))) for name in classifiers}
