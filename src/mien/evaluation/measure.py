"""A model measured on a data set."""

import inspect
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mien.checkpoint import read_header
from mien.classifier import Classifier
from mien.data import DataSet, Row, open_dataset, open_for
from mien.data.opening import find_reader
from mien.data.spelling import spell_split
from mien.errors import MienError
from mien.evaluation.answers import OutputReport, report_outputs
from mien.evaluation.report import Report, classification_report
from mien.faces import Detector, find_faces
from mien.outputs import Output

logger = logging.getLogger(__name__)

Data = str | os.PathLike[str] | DataSet
"""Labelled pictures, or where they are."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a model answers to the faces of a split.

    report: measures over the model's labels.
    malformed: the number of rows that were left out.
    found: the number of faces that the detector found; None without one.
    rows, probs, target: the N faces that were read, the probabilities (N, C), and the classes (N,).
    outputs: a report on every further output that the model answers and the data says something of.
    """

    report: Report
    malformed: int
    found: int | None
    rows: Sequence[Row] = field(repr=False, compare=False)
    probs: np.ndarray = field(repr=False, compare=False)
    target: np.ndarray = field(repr=False, compare=False)
    outputs: Sequence[OutputReport] = ()


def measure(
    classifier: Classifier,
    data: DataSet,
    split: str,
    *,
    batch_size: int = 32,
    detector: Detector | None = None,
    limit: int | None = None,
    progress: bool = False,
) -> Measured:
    """Read the labelled rows of a split, and measure the answers.

    classifier: the model. Classes are matched by their names, and so are further outputs that both have.
    data: the labelled set.
    split: its name; several have "+" between.
    batch_size: faces read at a time, 1 or more (default 32).
    detector: finds the largest face in each picture, which is cut out as in reading; a picture without any is read as
        it is. Without a detector (default) every picture is.
    limit: read so many rows only, the same ones every time; all by default.
    progress: show a bar on stderr.

    Rows without an expression count for further outputs.

    Raises MienError if the data has a class that the model does not know, or if no row has a label.
    """
    shared = shared_outputs(classifier, data)
    rows = sample(data.rows(split), limit, further=bool(shared))
    answers, found = read_answers(classifier, rows, batch_size, detector, progress)
    outputs = report_outputs(shared, answers, _further_targets(data, rows, shared)) if shared else []
    labelled = [i for i, row in enumerate(rows) if row.label >= 0]
    if not labelled:
        raise MienError("not one row has a label to compare with")
    rows, probs = [rows[i] for i in labelled], answers[classifier.outputs[0].name][labelled]
    target = targets(classifier, data, rows)
    malformed = data.findings[split].left_out
    report = classification_report(probs, target, classifier.labels)
    return Measured(report, malformed, None if detector is None else found, rows, probs, target, outputs)


def shared_outputs(classifier: Classifier, data: DataSet) -> list[Output]:
    """Outputs beside the expression that the model answers and the data says something of.

    Raises MienError where they are of another kind, or have other labels.
    """
    known = {output.name: output for output in data.outputs[1:]}
    shared = [output for output in classifier.outputs[1:] if output.name in known]
    for output in shared:
        other = known[output.name]
        if (output.kind, set(output.labels)) != (other.kind, set(other.labels)):
            here, there = (f"{one.kind} of {', '.join(one.labels)}" for one in (other, output))
            raise MienError(f"{data}: {output.name} is {here}, and in the model {there}")
    return shared


def _further_targets(data: DataSet, rows: Sequence[Row], outputs: Sequence[Output]) -> dict[str, np.ndarray]:
    """By output, (N, …), labels in the order of the model's."""
    said = [data.targets(row) for row in rows]
    known = {output.name: output for output in data.outputs}
    return {
        output.name: np.stack([one[output.name] for one in said])[
            :, [known[output.name].labels.index(label) for label in output.labels]
        ]
        for output in outputs
    }


def open_labelled(
    data: Data,
    format: str | None = None,
    labels: Sequence[str] | str | None = None,
    group_by: Sequence[str] = (),
    *,
    model: Path | Classifier | None = None,
    **options: Any,
) -> DataSet:
    """A data set itself, or the one at a path, as `mien.data.open_dataset` opens it.

    group_by: columns, which a reader with the option `groups` is given, such as that of parquet files.
    model: a classifier or its file, for which the data is opened as by `mien.data.open_for`.
    """
    if isinstance(data, DataSet):
        return data
    if labels is not None:
        options["labels"] = labels
    if group_by and "groups" in inspect.signature(find_reader(data, format)).parameters:
        options["groups"] = list(group_by)
    if model is None:
        return open_dataset(data, format, **options)
    header, file = (read_header(model), model) if isinstance(model, Path) else (model.header, model.path)
    return open_for(header, file and file.parent, data, format, **options)


def choose_split(data: DataSet, named: str | None = None, prefer: Sequence[str] = ("validation", "test")) -> str:
    """The split that was named, else the first preferred one that there is, else the only one.

    Raises MienError where none of these decides.
    """
    if named:
        return spell_split(named)
    for split in prefer:
        if split in data.splits:
            return split
    if len(data.splits) > 1:
        raise MienError(f"{data}: which split (--split): {' or '.join(data.splits)}?")
    return data.splits[0]


def targets(classifier: Classifier, data: DataSet, rows: Sequence[Row]) -> np.ndarray:
    """The classes of rows of the data, (N,), in the order of the model. They are matched by their names.

    Logs it where the model learned from a set and a split of these names.

    Raises MienError if the data has a class that the model does not know.
    """
    unknown = [label for label in data.labels if label not in classifier.labels]
    if unknown:
        raise MienError(
            f"{data} has the class {' and '.join(map(repr, unknown))}, and the model only knows "
            f"{', '.join(classifier.labels)}"
        )
    learned = str(classifier.header.get("training", {}).get("data", ""))
    kind, _, splits = learned.partition(", ")
    if kind == type(data).__name__ and any(row.split in splits.split("+") for row in rows):
        logger.warning("%s: learned from %s: of faces that it learned figures say nothing", classifier.path, learned)
    return np.array([classifier.labels.index(label) for label in data.labels])[[row.label for row in rows]]


def sample(rows: Sequence[Row], limit: int | None, seed: int = 0, *, further: bool = False) -> list[Row]:
    """The rows that have a label; at most `limit` of them, drawn by the seed, in their order.

    further: a target of a further output will do, too.

    Raises MienError if no row has one.
    """
    rows = [row for row in rows if row.label >= 0 or (further and (row.targets or row.units is not None))]
    if not rows:
        raise MienError("not one row has a label to compare with")
    if limit is None or limit >= len(rows):
        return rows
    return [rows[i] for i in np.sort(np.random.default_rng(seed).permutation(len(rows))[:limit])]


def read_rows(
    classifier: Classifier,
    rows: Sequence[Row],
    batch_size: int = 32,
    detector: Detector | None = None,
    progress: bool = False,
) -> tuple[np.ndarray, int]:
    """Probabilities (N, C), and how many faces the detector found; arguments as for `measure`."""
    answers, found = read_answers(classifier, rows, batch_size, detector, progress)
    return answers[classifier.outputs[0].name], found


def read_answers(
    classifier: Classifier,
    rows: Sequence[Row],
    batch_size: int = 32,
    detector: Detector | None = None,
    progress: bool = False,
) -> tuple[dict[str, np.ndarray], int]:
    """The answer of every output by its name, (N, …), and how many faces the detector found."""

    def cut(row: Row) -> tuple[np.ndarray, bool]:
        image = row.image()
        faces = find_faces(detector, image, turn=False) if detector else ()
        if not faces:
            return classifier.crop(image), False
        face = max(faces, key=lambda face: face.box[2] * face.box[3])
        return classifier.crop(image, face.landmarks, face.box), True

    parts, found = [], 0
    with ThreadPoolExecutor() as pool, tqdm(total=len(rows), unit=" faces", leave=False, disable=not progress) as bar:
        for start in range(0, len(rows), batch_size):
            crops, seen = zip(*pool.map(cut, rows[start : start + batch_size]), strict=True)
            parts.append(classifier.answers(np.stack(crops)))
            found += sum(seen)
            bar.update(len(crops))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, found
