"""The same measures for each group of people."""

from collections.abc import Sequence

import numpy as np

from mien.data import Row
from mien.errors import MienError
from mien.evaluation.report import Report, classification_report

UNKNOWN = "not known"
"""The group of the faces of which the data does not say it."""


def by_group(
    probs: np.ndarray, target: np.ndarray, labels: Sequence[str], rows: Sequence[Row], column: str
) -> dict[str, Report]:
    """A report of each group that `column` tells apart, by its name; probs (N, C), target (N,), N rows.

    A group's means are over the classes that occur in it. Raises MienError where no row knows the column.
    """
    names = np.array([row.groups.get(column, UNKNOWN) for row in rows])
    if (names == UNKNOWN).all():
        raise MienError(f"no row says its {column!r}")
    return {
        str(name): classification_report(probs[names == name], target[names == name], labels)
        for name in np.unique(names)
    }


def group_table(column: str, groups: dict[str, Report]) -> str:
    """For a person: faces, accuracy and macro-F1 with their 95 %, calibration error."""
    wide = max(len(column), *map(len, groups))
    lines = [f"{column:{wide}}  faces  accuracy                      macro F1                      calibration error"]
    for name, report in groups.items():
        accuracy = "{:.4f}  ({:.4f} to {:.4f})".format(report.accuracy, *report.accuracy_interval)
        f1 = "{:.4f}  ({:.4f} to {:.4f})".format(report.macro_f1, *report.macro_f1_interval)
        lines.append(f"{name:{wide}}  {report.count:>5}  {accuracy}    {f1}    {report.calibration_error:.4f}")
    return "\n".join(lines)
