"""One half of the labelled faces chooses among models, the other judges; then the halves change places."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from mien.errors import MienError
from mien.evaluation.calibrate import fit_temperature, with_temperature
from mien.evaluation.compare import Comparison, compare
from mien.evaluation.report import Report, classification_report
from mien.files import whole

HALVES = ("even", "odd")
"""By the parity of the number that a picture has in its set."""

NOBODY = -1
"""In a target: by this rule the face has no label, and does not count."""

HEAD = "| look | date | what was looked at | rule | n | accuracy (95 %) | macro-F1 | calibration | beyond (95 %) |"
_ROW = re.compile(r"^\| (\d+) \|")


@dataclass(frozen=True, slots=True)
class Candidate:
    """How a model reads the half that chooses: `accuracy` and `faces` by rule, the mean of `-log p` by the first."""

    name: str
    accuracy: dict[str, float]
    faces: dict[str, int]
    log_loss: float


@dataclass(frozen=True, slots=True)
class JointLook:
    """What both halves together say of what the other half of each chose.

    chosen: by the half that judged, the name of the model. temperature: likewise, fitted on the half that chose.
    reports: by rule. differences: by rule, beyond the model that was compared with, where there was one.
    """

    chosen: dict[str, str]
    temperature: dict[str, float]
    reports: dict[str, Report]
    differences: dict[str, Comparison]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        return {
            "chosen": self.chosen,
            "temperature": self.temperature,
            "rules": {rule: report.to_dict() for rule, report in self.reports.items()},
            "against": {rule: asdict(found) for rule, found in self.differences.items()},
        }


def halves(numbers: Sequence[int]) -> np.ndarray:
    """(N,) 0 for even and 1 for odd; raises MienError where a picture has no number."""
    numbers = np.asarray(numbers)
    if (numbers < 0).any():
        raise MienError(f"{int((numbers < 0).sum())} pictures have no number in their set: they cannot be halved")
    return numbers % 2


def candidates(
    probs: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray], chosen: np.ndarray
) -> list[Candidate]:
    """The models by how they read the faces `chosen` (N,) bool, the best first.

    probs: by name, (N, C). targets: by rule, classes (N,), or NOBODY. The best has the largest mean, over the rules, of
    accuracy; of equals the one with the smaller log loss.
    """

    def judged(name: str, answers: np.ndarray) -> Candidate:
        right, faces = {}, {}
        for rule, target in targets.items():
            counts = chosen & (target != NOBODY)
            right[rule], faces[rule] = float((answers.argmax(1) == target)[counts].mean()), int(counts.sum())
        target = next(iter(targets.values()))
        counts = chosen & (target != NOBODY)
        logs = np.log(answers[counts].astype(np.float64).clip(1e-7))
        return Candidate(name, right, faces, float(-logs[np.arange(len(logs)), target[counts]].mean()))

    found = [judged(name, answers) for name, answers in probs.items()]
    return sorted(found, key=lambda c: (-sum(c.accuracy.values()), c.log_loss))


def look(
    probs: Mapping[str, np.ndarray],
    targets: Mapping[str, np.ndarray],
    half: np.ndarray,
    labels: Sequence[str],
    against: np.ndarray | None = None,
) -> JointLook:
    """Each half judges the model, and the temperature, that the other one chose; figures are of both together.

    probs, targets: as `candidates` takes them. half: (N,), of `halves`. against: (N, C), answers to compare with.
    The temperature is fitted to the labels of the first rule.
    """
    answers = np.empty_like(next(iter(probs.values())), dtype=np.float64)
    chosen, temperature = {}, {}
    first = next(iter(targets.values()))
    for judge, name in enumerate(HALVES):
        chooses = half != judge
        best = candidates(probs, targets, chooses)[0].name
        logs = np.log(probs[best].astype(np.float64).clip(1e-12))
        counts = chooses & (first != NOBODY)
        chosen[name], temperature[name] = best, fit_temperature(logs[counts], first[counts])
        answers[half == judge] = with_temperature(logs[half == judge], temperature[name])
    reports, differences = {}, {}
    for rule, target in targets.items():
        counts = target != NOBODY
        reports[rule] = classification_report(answers[counts], target[counts], labels)
        if against is not None:
            differences[rule] = compare(against[counts], answers[counts], target[counts])
    return JointLook(chosen, temperature, reports, differences)


def log_look(file: Path, what: str, found: JointLook, against: str = "") -> int:
    """Append a row a rule to the table of looks at the end of a Markdown page; the number of the look, from 1.

    Looks are counted over the rows that the table has. A page without that table gets one.
    """
    text = file.read_text() if file.exists() else ""
    numbers = [int(row[1]) for line in text.splitlines() if (row := _ROW.match(line))]
    number = max(numbers, default=0) + 1
    lines = []
    if HEAD not in text:
        lines += [HEAD, "|---:|---|---|---|---:|---:|---:|---:|---:|"]
        lines = ["", *lines] if text else lines
    models = ", ".join(f"{half}: {name}" for half, name in found.chosen.items())
    for rule, report in found.reports.items():
        low, high = report.accuracy_interval
        beyond = "–"
        if rule in found.differences:
            difference = found.differences[rule]
            beyond = "{:+.4f} ({:+.4f} to {:+.4f}) {}".format(
                difference.accuracy_difference, *difference.interval, against
            ).strip()
        cells = [number, date.today().isoformat(), f"{what} ({models})".replace("|", "/"), rule, f"{report.count:,}"]
        cells += [f"{report.accuracy:.4f} ({low:.4f} to {high:.4f})", f"{report.macro_f1:.4f}"]
        lines.append("| " + " | ".join(map(str, [*cells, f"{report.calibration_error:.4f}", beyond])) + " |")
    with whole(file) as out:
        out.write((text.rstrip("\n") + "\n" * bool(text) + "\n".join(lines) + "\n").encode())
    return number
