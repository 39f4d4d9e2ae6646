"""What a model answers, as data: each question with its name, its kind and its labels."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args
from unicodedata import category

import numpy as np

Kind = Literal["classes", "binary", "range", "angles", "points"]

KINDS: tuple[str, ...] = get_args(Kind)

EXPRESSION = "expression"
"""The name of the first output of every model, whatever its labels; a header of version 1 has it alone."""

RESERVED = frozenset(
    "source time frame width height track face box score landmarks rotation probability probabilities unsmoothed note "
    "faces features logits probs times".split()
)
"""Names of other columns and tensors, which no output may take."""

_LARGEST = float(np.finfo(np.float32).max)  # of what a graph can be given

_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Output:
    """One question that a model answers.

    name: lower-case letters, digits and underscores; unique in a model.
    kind: what a value is:
        "classes": one of `labels`; the graph gives a probability for each, (B, C), rows that sum to 1.
        "binary": each of `labels` is there or not; a probability for each, (B, U).
        "range": a number from `low` to `high` for each of `labels`, (B, R).
        "angles": degrees in [-180, 180) for each of `labels`, (B, A).
        "points": x and y of each of `labels`, as fractions of the crop's width and height, (B, P, 2).
    labels: what the values are called; of "range" and others the name itself where there is one.
    low, high: the ends of a "range".
    weight: of its loss.
    temperature: what logits of "classes" and "binary" are divided by, above 0.

    Raises ValueError, saying what is wrong, for anything else.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    low: float = -1.0
    high: float = 1.0
    weight: float = 1.0
    temperature: float = 1.0

    def __post_init__(self):
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name) or self.name in RESERVED:
            raise ValueError(f"no output can be called {self.name!r}")
        if self.kind not in KINDS:
            raise ValueError(
                f"the output {self.name} is of the unknown kind {self.kind!r}; there are {', '.join(KINDS)}"
            )
        labels = tuple(self.labels)
        object.__setattr__(self, "labels", labels)
        if not labels or not all(map(is_label, labels)):
            raise ValueError(f"the output {self.name} has a label without a name, or with a control character in it")
        if len(set(labels)) < len(labels):
            raise ValueError(f"the output {self.name} names one label twice")
        numbers = {name: getattr(self, name) for name in ("low", "high", "weight", "temperature")}
        for name, number in numbers.items():
            if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) <= _LARGEST:
                raise ValueError(f"the output {self.name} has a {name} that is not a number: {number!r}")
        if self.low >= self.high:
            raise ValueError(f"the output {self.name} has a range from {self.low} to {self.high}")
        if self.weight < 0 or self.temperature <= 0:
            raise ValueError(f"the output {self.name} has a weight below 0, or a temperature that is not above 0")

    @property
    def width(self) -> int:
        """How many values a network's head gives for a face."""
        return len(self.labels) * (2 if self.kind == "points" else 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the answer for a face."""
        return (len(self.labels), 2) if self.kind == "points" else (len(self.labels),)

    def check(self, values: np.ndarray) -> np.ndarray:
        """The answers (B, …) of a graph as float32, checked.

        Raises ValueError for another shape, for what is not a number, and for what lies outside of the kind's range.
        """
        values = np.asarray(values, np.float32)
        if values.shape[1:] != self.shape:
            shown = "×".join(map(str, values.shape[1:]))
            raise ValueError(f"{self.name}: answers of {shown} values for {len(self.labels)} labels")
        if not np.isfinite(values).all():
            raise ValueError(f"{self.name}: an answer that is not a number")
        low, high = self.limits
        slack = 1e-3 * (high - low)
        if values.size and not (low - slack <= values.min() and values.max() <= high + slack):
            raise ValueError(f"{self.name}: an answer outside of {low:g} to {high:g}")
        if self.kind == "classes" and np.abs(values.sum(1) - 1).max(initial=0) > 0.01:
            raise ValueError(f"{self.name}: probabilities that do not sum to 1")
        return values

    @property
    def limits(self) -> tuple[float, float]:
        """Between what values lie; points may lie a crop's width outside of it."""
        match self.kind:
            case "range":
                return self.low, self.high
            case "angles":
                return -180.0, 180.0
            case "points":
                return -1.0, 2.0
            case _:
                return 0.0, 1.0

    def decode(self, values: np.ndarray) -> Any:
        """What a person reads, of the answer for one face, of `shape`: a number where the only label is the name, else
        a number for each label, and of "points" a pair of numbers."""
        if self.kind == "points":
            return {label: (float(x), float(y)) for label, (x, y) in zip(self.labels, values, strict=True)}
        if self.labels == (self.name,):
            return float(values[0])
        return dict(zip(self.labels, map(float, values), strict=True))

    @property
    def meaning(self) -> str:
        """What a value is, in words."""
        return {
            "classes": "probability, 0 to 1",
            "binary": "probability, 0 to 1",
            "range": f"{self.low:g} to {self.high:g}",
            "angles": "degrees, -180 to 180",
            "points": "fractions of the crop's width and height",
        }[self.kind]

    def to_json(self) -> dict[str, Any]:
        """The output as a header holds it, without what is as usual."""
        usual = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != usual[name]} | {
            "labels": list(self.labels)
        }

    @classmethod
    def from_json(cls, entry: Any) -> "Output":
        """The output that a header holds; ValueError for what is none."""
        known = {field.name for field in fields(cls)}
        if not isinstance(entry, Mapping) or not {"name", "kind", "labels"} <= entry.keys() <= known:
            raise ValueError(f"an output has a name, a kind and labels, and nothing beside {', '.join(sorted(known))}")
        if not isinstance(entry["labels"], list):
            raise ValueError(f"the output {entry['name']} has labels that are no list")
        return cls(**{**entry, "labels": tuple(entry["labels"])})


def is_label(label: Any) -> bool:
    """Whether it is text with something in it, and nothing that would do something to a terminal."""
    return isinstance(label, str) and bool(label.strip()) and not any(category(c) in ("Cc", "Cs") for c in label)


def check_outputs(outputs: Iterable[Output]) -> tuple[Output, ...]:
    """The outputs of one model; ValueError where there is none, where two have one name, and where the first is not
    the expression."""
    outputs = tuple(outputs)
    if not outputs:
        raise ValueError("a model without outputs")
    names = [output.name for output in outputs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two outputs are called {', '.join(twice)}")
    if (outputs[0].name, outputs[0].kind) != (EXPRESSION, "classes"):
        raise ValueError(f'the first output is not "{EXPRESSION}", of classes')
    return outputs


def expression_output(labels: Sequence[str], temperature: float = 1.0) -> Output:
    """The output that models of one question have."""
    return Output(EXPRESSION, "classes", tuple(labels), temperature=temperature)


VALENCE_AROUSAL = (Output("valence", "range", ("valence",)), Output("arousal", "range", ("arousal",)))
"""How pleasant and how excited a face looks, each from -1 to 1."""
