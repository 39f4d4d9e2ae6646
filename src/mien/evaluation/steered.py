"""A model whose attention a rule moves, beside the untouched one, on the same faces."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from mien.classifier import Classifier
from mien.data import DataSet
from mien.engines import TorchEngine
from mien.errors import MienError, require
from mien.evaluation.compare import Comparison, compare
from mien.evaluation.measure import Measured, sample
from mien.evaluation.report import BINS, Report

FITTED_TO = 256
"""Faces that a rule learns of the network from, drawn from those that are measured; labels are not looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steered:
    """What a rule changes.

    rule: as it was named. fitted_to: the faces that it learned from. notes: what it found there, a line each.
    report: on the answers under the rule. comparison: of these with the untouched ones.
    flips: how many faces are read as another label.
    calibration, log_loss: how much larger the calibration error and the log loss are under the rule, and 95 % of it,
        percentiles over resamples of the faces, each with both of its answers.
    """

    rule: str
    fitted_to: str
    notes: Sequence[str]
    report: Report = field(repr=False)
    comparison: Comparison
    flips: int
    calibration: tuple[float, float, float]
    log_loss: tuple[float, float, float]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        plain = asdict(self) | {"report": self.report.to_dict(), "comparison": self.comparison.to_dict()}
        return plain | {name: list(getattr(self, name)) for name in ("notes", "calibration", "log_loss")}

    def __str__(self) -> str:
        """A table for a person."""
        c, low, high = self.comparison, *self.comparison.interval
        rows = [
            ("accuracy", c.accuracy, c.other_accuracy, (c.accuracy_difference, low, high)),
            ("calibration error", *_before(self.report.calibration_error, self.calibration)),
            ("log loss", *_before(self.report.nll, self.log_loss)),
        ]
        lines = [f"under {self.rule}, fitted to {self.fitted_to}", *(f"  {note}" for note in self.notes)]
        lines.append(f"{'':17}  untouched   moved  difference (95 %)")
        lines += [
            f"{name:17}  {was:9.4f}  {now:6.4f}  " + "{:+.4f} ({:+.4f} to {:+.4f})".format(*by)
            for name, was, now, by in rows
        ]
        lines.append(
            f"{self.flips:,} of {c.faces:,} faces are read otherwise ({self.flips / c.faces:.2%}): {c.won} now right, "
            f"{c.lost} now wrong (McNemar p = {c.p_value:.2g}); mean distance of probabilities {c.mean_distance:.4f}"
        )
        return "\n".join(lines)


def _before(now: float, by: tuple[float, float, float]) -> tuple[float, float, tuple[float, float, float]]:
    return now - by[0], now, by


@dataclass(frozen=True, slots=True)
class Under:
    """A model under a rule: what the rule is called, what it was fitted to, and what it found there."""

    classifier: Classifier
    rule: str
    fitted_to: str
    notes: Sequence[str]


def steer(classifier: Classifier, rule: Any, data: DataSet, split: str) -> Under:
    """The same model under a rule.

    classifier: opened from a .safetensors file. rule: what `mien.interventions.make_rule` takes, or an `Intervention`.
    data, split: the faces to be read, to FITTED_TO of which the rule is fitted.

    Raises Misuse for a rule that there is not, and MienError where the model is not in torch, or forms no attention
    that the rule could move.
    """
    torch = require("torch", "torch")
    from mien.interventions import Intervened, make_rule
    from mien.networks import Deployed, deploy
    from mien.networks.deploy import to_float

    made = make_rule(rule) if isinstance(rule, str) else rule
    engine = classifier.engine
    if not isinstance(engine, TorchEngine) or not isinstance(engine.module, Deployed):
        raise MienError(f"{classifier.path}: attention is moved in torch, which needs the model's .safetensors file")
    deployed: Any = engine.module
    rows = sample(data.rows(split), FITTED_TO)
    with torch.inference_mode():
        batches = []
        for start in range(0, len(rows), 32):
            faces = np.stack([classifier.crop(row.image()) for row in rows[start : start + 32]])
            batches.append(deployed.normalize(to_float(torch.from_numpy(faces).to(engine.device))))
        made.fit(deployed.network, batches)
    moved = TorchEngine(
        deploy(Intervened(deployed.network, made), classifier.header),
        outputs=engine.outputs,
        device=engine.device.type,
        precision=engine.precision,
    )
    fitted = f"{len(rows):,} of them, without their labels"
    name = rule if isinstance(rule, str) else type(rule).__name__
    return Under(Classifier(moved, classifier.header, classifier.path), name, fitted, made.notes)


def steered(under: Under, before: Measured, after: Measured) -> Steered:
    """What a rule changes, of the answers to the same faces without it and under it."""
    probs, moved, target = before.probs, after.probs, before.target
    return Steered(
        rule=under.rule,
        fitted_to=under.fitted_to,
        notes=tuple(under.notes),
        report=after.report,
        comparison=compare(probs, moved, target),
        flips=int((probs.argmax(1) != moved.argmax(1)).sum()),
        calibration=difference(probs, moved, target, _calibration),
        log_loss=difference(probs, moved, target, _log_loss),
    )


def difference(
    probs: np.ndarray, moved: np.ndarray, target: np.ndarray, measure: Any, resamples: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """How much larger a measure is of `moved` than of `probs`, (N, C) each, and its 95 % over resamples of the faces.

    measure: probabilities, target, weights (R, N) of the faces -> (R,).
    """
    count = len(target)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)
    now, then = (measure(p, target, np.ones((1, count)))[0] for p in (moved, probs))
    low, high = np.quantile(measure(moved, target, draws) - measure(probs, target, draws), (0.025, 0.975))
    return float(now - then), float(low), float(high)


def _calibration(probs: np.ndarray, target: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`Report.calibration_error` of weighted faces."""
    sure = probs.max(1)
    gap = (probs.argmax(1) == target) - sure.astype(np.float64)
    within = np.zeros((len(target), BINS))
    within[np.arange(len(target)), np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)] = gap
    return np.abs(weights @ within).sum(1) / weights.sum(1)


def _log_loss(probs: np.ndarray, target: np.ndarray, weights: np.ndarray) -> np.ndarray:
    losses = -np.log(probs[np.arange(len(target)), target].astype(np.float64).clip(1e-7))
    return weights @ losses / weights.sum(1)
