"""Measures of what a model answers beside its first question, by the kind of the answer."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mien.outputs import Output


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure of one output: its value and 95 % of it, percentiles over resamples of the faces; NaN where no face
    tells. by_label: the same measure of every label alone."""

    value: float
    interval: tuple[float, float]
    by_label: dict[str, float]


@dataclass(frozen=True, slots=True)
class OutputReport:
    """How well one output is answered on `count` faces of which something of it is known.

    measures: by name, with the kind "binary" `f1` at a cut of 0.5, `accuracy` and `calibration_error` (15 bins); with
    "range" `ccc`, `pcc` and `rmse`; with "angles" `mean_absolute_error` in degrees; with "points" `normalized_error`,
    the mean distance divided by that of the first two points; with "classes" `balanced_accuracy` and `macro_f1`.
    """

    name: str
    kind: str
    count: int
    measures: dict[str, Measure]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it; None in the place of NaN."""

        def plain(value: Any) -> Any:
            match value:
                case dict():
                    return {name: plain(part) for name, part in value.items()}
                case tuple() | list():
                    return [plain(part) for part in value]
                case float():
                    return value if np.isfinite(value) else None
                case _:
                    return value

        return plain(asdict(self))

    def __str__(self) -> str:
        """A table for a person; "–" is where there is nothing to divide by."""

        def spell(value: float) -> str:
            return f"{value:.4f}" if np.isfinite(value) else "–"

        wide = max(len(name) for name in self.measures)
        lines = [f"{self.name} ({self.kind}, {self.count:,} faces)"]
        for name, measure in self.measures.items():
            low, high = map(spell, measure.interval)
            lines.append(f"  {name.replace('_', ' '):{wide}}  {spell(measure.value)}  ({low} to {high})")
            if len(measure.by_label) > 1:
                parts = ", ".join(f"{label} {spell(value)}" for label, value in measure.by_label.items())
                lines.append(f"  {'':{wide}}  {parts}")
        return "\n".join(lines)


def measure_output(
    output: Output, answers: np.ndarray, targets: np.ndarray, *, resamples: int = 1000, seed: int = 0
) -> OutputReport:
    """Compare answers (N, …) with targets (N, …) of the same shape, in which NaN is not known.

    Raises ValueError for other shapes.
    """
    answers, targets = np.asarray(answers, np.float64), np.asarray(targets, np.float64)
    shape = (len(answers), *output.shape)
    if answers.shape != shape or targets.shape != shape:
        raise ValueError(f"{output.name}: answers {answers.shape} and targets {targets.shape}, not {shape}")
    seen = np.isfinite(targets).reshape(len(targets), -1).any(1)
    answers, targets = answers[seen], targets[seen]
    count = len(answers)
    draws = np.random.default_rng(seed).integers(0, max(count, 1), (resamples if count else 0, count))

    def measure(score: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Measure:
        """score: answers and targets (n, …) -> a value for each label (L,)."""
        parts = score(answers, targets) if count else np.full(len(output.labels), np.nan)
        means = np.array([_mean(score(answers[draw], targets[draw])) for draw in draws])
        means = means[np.isfinite(means)]
        low, high = np.quantile(means, (0.025, 0.975)) if len(means) else (np.nan, np.nan)
        labels = output.labels if len(parts) == len(output.labels) else (output.name,)
        return Measure(_mean(parts), (float(low), float(high)), dict(zip(labels, map(float, parts), strict=True)))

    scores = {name: measure(score) for name, score in SCORES[output.kind].items()}
    return OutputReport(output.name, output.kind, count, scores)


def _mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else float("nan")


def _columns(score: Callable[[np.ndarray, np.ndarray], float]) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The score of each label over the faces of which that label is known."""

    def each(answers: np.ndarray, targets: np.ndarray) -> np.ndarray:
        known = np.isfinite(targets)
        return np.array(
            [
                score(answers[known[:, i], i], targets[known[:, i], i]) if known[:, i].any() else np.nan
                for i in range(targets.shape[1])
            ]
        )

    return each


def _f1(probs: np.ndarray, truth: np.ndarray) -> float:
    guessed, true = probs >= 0.5, truth >= 0.5
    both = guessed.sum() + true.sum()
    return 2 * (guessed & true).sum() / both if both else np.nan


def _calibration(probs: np.ndarray, truth: np.ndarray, bins: int = 15) -> float:
    sure = np.maximum(probs, 1 - probs)
    right = (probs >= 0.5) == (truth >= 0.5)
    which = np.minimum((sure * bins).astype(int), bins - 1)
    return sum(abs((right - sure)[which == b].sum()) for b in range(bins)) / len(probs)


def _ccc(given: np.ndarray, truth: np.ndarray) -> float:
    """Lin's concordance, 1989."""
    covariance = ((given - given.mean()) * (truth - truth.mean())).mean()
    spread = given.var() + truth.var() + (given.mean() - truth.mean()) ** 2
    return 2 * covariance / spread if spread > 0 else np.nan


def _pcc(given: np.ndarray, truth: np.ndarray) -> float:
    spread = given.std() * truth.std()
    return ((given - given.mean()) * (truth - truth.mean())).mean() / spread if spread > 0 else np.nan


def _turn(given: np.ndarray, truth: np.ndarray) -> float:
    return np.abs((given - truth + 180) % 360 - 180).mean()


def _points(answers: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(1,): the mean distance of points (n, P, 2) over that of the first two, of faces of which those two are known."""
    size = np.linalg.norm(targets[:, 0] - targets[:, min(1, targets.shape[1] - 1)], axis=1)
    if targets.shape[1] == 1:
        size = np.ones(len(targets))
    with np.errstate(invalid="ignore", divide="ignore"):
        errors = np.linalg.norm(answers - targets, axis=2) / size[:, None]
    errors = errors[np.isfinite(errors)]
    return np.array([errors.mean() if len(errors) else np.nan])


def _accuracy(probs: np.ndarray, target: np.ndarray) -> np.ndarray:
    right, truth = probs.argmax(1) == target.argmax(1), target.argmax(1)
    return np.array([right[truth == i].mean() if (truth == i).any() else np.nan for i in range(target.shape[1])])


def _macro_f1(probs: np.ndarray, target: np.ndarray) -> np.ndarray:
    one_hot = np.eye(probs.shape[1])
    guessed, truth = one_hot[probs.argmax(1)], one_hot[target.argmax(1)]
    rates = _columns(_f1)(guessed, truth)
    return np.where(truth.any(0), rates, np.nan)


Score = Callable[[np.ndarray, np.ndarray], np.ndarray]

SCORES: dict[str, dict[str, Score]] = {
    "classes": {"balanced_accuracy": _accuracy, "macro_f1": _macro_f1},
    "binary": {
        "f1": _columns(_f1),
        "accuracy": _columns(lambda probs, truth: float(((probs >= 0.5) == (truth >= 0.5)).mean())),
        "calibration_error": _columns(_calibration),
    },
    "range": {
        "ccc": _columns(_ccc),
        "pcc": _columns(_pcc),
        "rmse": _columns(lambda given, truth: float(np.sqrt(((given - truth) ** 2).mean()))),
    },
    "angles": {"mean_absolute_error": _columns(_turn)},
    "points": {"normalized_error": _points},
}
"""By kind, what is measured: answers and targets (n, …) -> a value for each label."""


def report_outputs(
    outputs: Sequence[Output], answers: dict[str, np.ndarray], targets: dict[str, np.ndarray], **options: Any
) -> list[OutputReport]:
    """A report for every output of which the data has targets, in the order of the outputs."""
    return [
        measure_output(output, answers[output.name], targets[output.name], **options)
        for output in outputs
        if output.name in targets
    ]
