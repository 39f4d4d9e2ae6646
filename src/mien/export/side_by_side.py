"""Two ways to compute one model, on the same labelled faces."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mien.checkpoint import read_header
from mien.classifier import Classifier
from mien.data import DataSet
from mien.engines import open_model
from mien.evaluation.compare import Comparison, compare, read_side_by_side
from mien.evaluation.measure import choose_split, sample, targets


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Two ways to compute one model, on the same labelled faces. `str` of it is a table for a person.

    names: of both. accuracy: the share that each has right. cpu_ms: processor time a face, in milliseconds.
    difference: what the second changes.
    """

    names: tuple[str, str]
    accuracy: tuple[float, float]
    cpu_ms: tuple[float, float]
    difference: Comparison

    def __str__(self) -> str:
        wide = max(map(len, self.names))
        lines = [f"{'':{wide}}  accuracy  CPU-ms a face  speed"]
        for name, right, ms in zip(self.names, self.accuracy, self.cpu_ms, strict=True):
            lines.append(f"{name:{wide}}  {right:>8.4f}  {ms:>13.2f}  {self.cpu_ms[0] / ms:>4.1f}×")
        return "\n".join([*lines, str(self.difference)])

    def to_header(self) -> dict[str, Any]:
        """What the second changes, as a header's "precision" has it."""
        found = self.difference
        return {
            "accuracy_difference": round(found.accuracy_difference, 6),
            "interval": [round(end, 6) for end in found.interval],
            "faces": found.faces,
            "mean_distance": round(found.mean_distance, 6),
        }


def put_side_by_side(
    data: DataSet, classifiers: Mapping[str, Classifier], *, split: str | None, limit: int | None, progress: bool
) -> SideBySide:
    """Both classifiers on the same faces of the data, each batch with both in turn; arguments as for `export_model`."""
    first, second = classifiers
    rows = sample(data.rows(choose_split(data, split)), limit)
    target = targets(classifiers[first], data, rows)
    answers = read_side_by_side(classifiers, rows, progress=progress)
    found = compare(answers[first].probs, answers[second].probs, target)
    times = answers[first].cpu_ms, answers[second].cpu_ms
    return SideBySide((first, second), (found.accuracy, found.other_accuracy), times, found)


def open_graph(path: Path, precision: str) -> Classifier:
    """A classifier of a file that may not stay: what is compiled of it is not kept."""
    return Classifier(open_model(path, device="cpu", precision=precision, cache=False), read_header(path), path)
