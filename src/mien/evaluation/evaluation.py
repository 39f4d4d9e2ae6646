"""A model on labelled pictures, from its name to a page about it."""

import io
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mien.classifier import DEFAULT_MODEL, Classifier, find_checkpoint
from mien.data import DataSet
from mien.errors import MienError, Misuse, require
from mien.evaluation.compare import Comparison, compare
from mien.evaluation.consistency import Moved, consistency_table, measure_consistency
from mien.evaluation.groups import by_group, group_table
from mien.evaluation.html import page
from mien.evaluation.measure import Data, Measured, choose_split, measure, open_labelled
from mien.evaluation.plot import plot_confusion, plot_reliability
from mien.evaluation.report import Report, classification_report
from mien.evaluation.robustness import (
    beyond,
    measure_robustness,
    plot_robustness,
    robustness_facts,
    robustness_table,
)
from mien.evaluation.steered import Steered, steer, steered
from mien.faces import YuNet
from mien.files import whole

Model = str | os.PathLike[str] | Classifier
Rule = Any  # the text of one, or a mien.interventions.Intervention, which needs torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What `evaluate` finds. `str` of it is tables for a person.

    model, data, split, align: what was read, by name, and how.
    precision: what the model computed in, "fp32", "bf16" or "int8".
    measured: the rows, the answers, and the report on them.
    groups: a report by column and group.
    against: the name of the other model, and what its answers change.
    consistency: by the name of a change.
    robustness: by the name of a model, which faces it reads right, as `measure_robustness` gives them.
    intervention: what a rule for the model's attention changes.
    classifier: the model, opened.
    """

    model: str
    data: str
    split: str
    align: str
    precision: str
    measured: Measured
    groups: Mapping[str, Mapping[str, Report]] = field(default_factory=dict)
    against: tuple[str, Comparison] | None = None
    consistency: Mapping[str, Moved] | None = None
    robustness: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict, repr=False)
    intervention: Steered | None = None
    classifier: Classifier = field(repr=False)

    @property
    def report(self) -> Report:
        return self.measured.report

    @property
    def title(self) -> str:
        shown = "as they are"
        if (found := self.measured.found) is not None:
            missed = self.report.count - found
            shown = f"aligned, but for {missed:,} in which no face was found: as they are"
        return f"{self.model} on {self.data}, {self.split}: {self.report.count:,} faces, {shown}"

    def to_dict(self) -> dict[str, Any]:
        """Everything but the single answers, as JSON takes it."""
        facts = {
            "model": self.model,
            "data": self.data,
            "split": self.split,
            "align": self.align,
            "computed_in": self.precision,
            "found": self.measured.found,
            "malformed": self.measured.malformed,
            **self.report.to_dict(),
        }
        if self.measured.outputs:
            facts["outputs"] = {report.name: report.to_dict() for report in self.measured.outputs}
        if self.consistency:
            facts["consistency"] = {name: asdict(moved) for name, moved in self.consistency.items()}
        if self.against:
            facts["against"] = {"model": self.against[0], **self.against[1].to_dict()}
        if self.intervention:
            facts["intervention"] = self.intervention.to_dict()
        if self.groups:
            facts["groups"] = {
                column: {name: report.to_dict() for name, report in reports.items()}
                for column, reports in self.groups.items()
            }
        if self.robustness:
            facts["robustness"] = {name: robustness_facts(right) for name, right in self.robustness.items()}
        if len(self.robustness) > 1:
            right, others = self.robustness.values()
            facts["robustness_difference"] = {name: beyond(levels, others[name]) for name, levels in right.items()}
        return facts

    def __str__(self) -> str:
        malformed = self.measured.malformed
        left_out = f"\nleft out: {malformed:,} malformed rows" if malformed else ""
        tables = [f"{self.title}{left_out}", str(self.report)]
        tables += [group_table(column, reports) for column, reports in self.groups.items()]
        if self.against:
            tables.append(f"going over to {self.against[0]}: {self.against[1]}")
        return "\n\n".join([*tables, *self._further().values()])

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write report.json, report.html and the plots as PNG into the folder, which is made if it is not there."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        short = f"{Path(self.model).name} on {Path(self.data).name}, {self.split}, {self.align}"
        plots = {
            "confusion": _drawn(plot_confusion, self.report, title=short),
            "calibration": _drawn(plot_reliability, self.measured.probs, self.measured.target, title=short),
        }
        if self.robustness:
            plots["robustness"] = _drawn(plot_robustness, self.robustness, title=short)
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False)
        html = page(
            self.title, self.measured, self.classifier, self.groups, self.against, plots=plots, more=self._further()
        )
        files = {"report.json": text.encode() + b"\n", **{f"{name}.png": png for name, png in plots.items()}}
        for name, content in {**files, "report.html": html.encode()}.items():
            with whole(folder / name) as file:
                file.write(content)

    def _further(self) -> dict[str, str]:
        """Tables by their headings."""
        tables = {}
        if self.intervention:
            tables["Attention moved"] = str(self.intervention)
        if self.measured.outputs:
            tables["Other answers"] = "\n\n".join(map(str, self.measured.outputs))
        if self.consistency:
            tables["Shown otherwise"] = consistency_table(self.consistency)
        if self.robustness:
            tables["Spoilt"] = robustness_table(*self.robustness.values())
        return tables


def _or_report(evaluate: Callable[..., Evaluation]) -> Callable[..., Evaluation]:
    """`evaluate(probs, target, labels)` was what is called `classification_report` now."""

    @wraps(evaluate)
    def either(*args: Any, **options: Any) -> Any:
        if len(args) != 3 and "probs" not in options:
            return evaluate(*args, **options)
        warnings.warn(
            "mien.evaluation.evaluate(probs, target, labels) is called classification_report now",
            DeprecationWarning,
            stacklevel=2,
        )
        return classification_report(*args, **options)

    return either


@_or_report
def evaluate(
    model: Model | None,
    data: Data,
    *,
    split: str | None = None,
    format: str | None = None,
    labels: Sequence[str] | str | None = None,
    align: Literal["as-is", "detect"] | None = None,
    group_by: Sequence[str] = (),
    against: Model | None = None,
    consistency: bool = False,
    robustness: bool = False,
    intervene: Rule | None = None,
    limit: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    trust: bool = False,
    batch_size: int = 32,
    progress: bool = False,
) -> Evaluation:
    """Measure a model on labelled pictures: what `mien eval` prints and saves.

    model: a classifier, or what `Classifier.from_pretrained` opens.
    data: a data set, or the path of one, which `mien.data.open_for` opens: by default its classes are the model's, and
        pictures that the model was taught are not among those of "validation".
    split: validation, else test, else the only one, unless another is named.
    format, labels: as `mien.data.open_for` takes them, of a path.
    align: read the pictures as they are, or find the largest face in each first; by default as the model was
        taught by `mien finetune`, and else as they are.
    group_by: columns of the data, such as "gender", that tell people apart; each group is measured.
    against: another model, to compare with on the same faces; it must have the same labels.
    consistency: measure how far answers move when a face is shown differently (see `measure_consistency`).
    robustness: measure how accuracy falls as faces are spoilt (see `measure_robustness`).
    intervene: a rule for the model's attention, as `mien.interventions.make_rule` takes it, or an `Intervention`; the
        answers under it are compared with the untouched ones. Of a folder the .safetensors is then read, in torch.
    limit: read so many faces only, the same ones every time; all of them by default.
    device, precision, trust: as for `Classifier.from_pretrained`, of a model that is not yet opened.
    batch_size: faces read at a time, 1 or more (default 32).
    progress: show a bar on stderr.

    Raises Misuse for options that do not go together; MienError for data or a model that cannot be read, classes
    that the model does not know, and groups of which the data says nothing; MissingExtra without the extra [eval].
    """
    for module in ("torch", "torchmetrics", "matplotlib"):
        require(module, "eval")  # before the work, not after it
    if align not in ("as-is", "detect", None):
        raise Misuse(f'align is "as-is" or "detect", not {align!r}')
    if (consistency or robustness) and align == "detect":
        named = "consistency" if consistency else "robustness"
        raise Misuse(f"{named} changes pictures that are faces already: it goes with align as-is")
    opening = {"device": device, "precision": precision, "trust": trust}
    name = _name(model)
    if intervene is not None and not isinstance(model, Classifier):
        model = find_checkpoint(model)
    classifier = _open(model, **opening)
    opened = open_labelled(data, format, labels, group_by, model=classifier)
    split = choose_split(opened, split)
    if align is None:
        learned = classifier.header.get("training", {}).get("align", "as-is")
        align = "as-is" if consistency or robustness else learned
    other, other_name = (None, "") if against is None else (_open(against, **opening), _name(against))
    if other and other.labels != classifier.labels:
        raise MienError(f"{other_name} knows other labels than {name}: {', '.join(other.labels)}")
    _check_groups(opened, split, group_by)

    detector = YuNet() if align == "detect" else None
    options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    under = None if intervene is None else steer(classifier, intervene, opened, split)
    reading = {"detector": detector, "limit": limit, **options}
    measured = measure(classifier, opened, split, **reading)
    shown = (measured.rows, measured.target)
    moved = measure_consistency(classifier, *shown, **options) if consistency else None
    compared = None
    if other:
        others = measure(other, opened, split, **reading)
        compared = other_name, compare(measured.probs, others.probs, measured.target)
    spoilt = {}
    if robustness:
        landmarks = YuNet(min_face=0)  # of pictures that are hardly more than a face
        for each, called in ((classifier, name), *([(other, other_name)] if other else [])):
            spoilt[called] = measure_robustness(each, *shown, landmarks, **options)
    answers = (measured.probs, measured.target, classifier.labels, measured.rows)
    return Evaluation(
        model=name,
        data=str(opened) if isinstance(data, DataSet) else os.fspath(data),
        split=split,
        align=align,
        precision=classifier.engine.precision,
        measured=measured,
        groups={column: by_group(*answers, column) for column in group_by},
        against=compared,
        consistency=moved,
        robustness=spoilt,
        intervention=under and steered(under, measured, measure(under.classifier, opened, split, **reading)),
        classifier=classifier,
    )


def _open(model: Model | None, **options: Any) -> Classifier:
    return model if isinstance(model, Classifier) else Classifier.from_pretrained(model, **options)


def _name(model: Model | None) -> str:
    """What a model is called."""
    if isinstance(model, Classifier):
        return str(model.path or "the classifier")
    return os.fspath(DEFAULT_MODEL if model is None else model)


def _check_groups(data: DataSet, split: str, group_by: Sequence[str]) -> None:
    """Raise MienError, before the work, for a column of which no row says anything."""
    known = dict.fromkeys(name for row in data.rows(split) for name in row.groups) if group_by else {}
    if unknown := [column for column in group_by if column not in known]:
        said = f"it says {', '.join(known)}" if known else "it says nothing of them but what they show"
        raise MienError(f"{data}: no row of {split} says the {unknown[0]} of a person; {said}")


def _drawn(plot: Callable[..., None], *what: Any, title: str) -> bytes:
    file = io.BytesIO()
    plot(*what, file, title)
    return file.getvalue()
