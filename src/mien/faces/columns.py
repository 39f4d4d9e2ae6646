"""What stands in a row about a face: one table, of which files, schemas and pages are made."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from mien.faces.landmarker import MESH
from mien.outputs import EXPRESSION, Output

Kind = Literal["text", "integer", "number", "numbers", "points"]


_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What makes a spreadsheet compute a cell of text that begins with it."""


def safe_cell(cell: Any) -> Any:
    """A cell of a CSV file: text that a spreadsheet would compute has an apostrophe before it."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


CHANGE = "How much larger the log-odds of {} are than in the reference, the same person's neutral face."


class Column(NamedTuple):
    """A column of a CSV file. width: how many characters a value takes."""

    name: str
    type: Literal["text", "integer", "number"]
    width: int
    description: str


class RowEntry(NamedTuple):
    """A value of a row as JSON and Parquet hold it, under `name`, and the columns that a CSV file has in its place.

    kind: "text", "integer", "number", "numbers" (a list of them) or "points" (a list of pairs). labels: where there are
    some, the value is an object that holds such a value for each.
    """

    name: str
    kind: Kind
    description: str
    columns: tuple[Column, ...]
    labels: tuple[str, ...] = ()

    def cells(self, value: Any) -> list[Any]:
        """The value as the columns hold it; of None, None for each."""
        if value is None:
            return [None] * len(self.columns)
        parts = [value.get(label) for label in self.labels] if self.labels else [value]
        if self.kind == "points" and not self.labels:
            parts = [number for point in value for number in point]
        elif self.kind in ("numbers", "points"):
            parts = [number for part in parts for number in part]
        return parts


def entries(outputs: Sequence[Output], moving: bool = False, change: bool = False) -> list[RowEntry]:
    """Every value of a row about a face that a model of these outputs has read, in the order of columns.

    moving: some rows are of videos, which have values of their own. change: rows are read beside a reference.
    """
    first, *others = outputs
    wide = max(map(len, (*first.labels, "uncertain")))
    times = [
        _one("time", "number", 9, "Of a video, when the frame is shown, in seconds."),
        _one("frame", "integer", 7, "Of a video, the number of the frame, from 0."),
        _one("width", "integer", 5, "Of a video, the width of the frame, upright, in pixels."),
        _one("height", "integer", 6, "Of a video, the height of the frame, upright, in pixels."),
        _one("track", "integer", 5, "Of a tracked video, the number of the person, from 1."),
    ]
    landmarks = ("eye on the left", "eye on the right", "tip of the nose", "left corner of the mouth", "right corner")
    return [
        _one("source", "text", 40, "The picture, as it was named."),
        *(times if moving else ()),
        _one("face", "integer", 4, "The number of the face in the picture, from 0, the largest first."),
        RowEntry(
            "box",
            "numbers",
            "x, y, width and height in pixels of the picture.",
            tuple(
                Column(f"box_{side}", "number", 8, f"The box's {name}, in pixels of the picture.")
                for side, name in zip("xywh", ("left edge", "upper edge", "width", "height"), strict=True)
            ),
        ),
        _one("score", "number", 6, "How sure the detector is that it is a face, 0 to 1."),
        RowEntry(
            "landmarks",
            "points",
            "x and y in pixels of the " + ", the ".join(landmarks[:3]) + ", the corners of the mouth on the left and "
            "on the right, as seen with the face upright.",
            tuple(
                Column(f"landmark_{i}_{axis}", "number", 8, f"{axis} of the {name}, in pixels.")
                for i, name in enumerate(landmarks)
                for axis in "xy"
            ),
        ),
        _one("rotation", "integer", 8, "Degrees clockwise by which the picture is turned to bring the face upright."),
        _one(EXPRESSION, "text", wide, 'The likeliest label, or "uncertain".'),
        _one("probability", "number", 8, "The probability of the likeliest label, 0 to 1."),
        _probabilities("probabilities", "p", first, "The probability of {}, 0 to 1."),
        *([_probabilities("unsmoothed", "unsmoothed", first, "The same of {} in this frame alone.")] if moving else ()),
        *([_probabilities("change", "change", first, CHANGE)] if change else ()),
        *map(answer_entry, others),
        _one("note", "text", 40, "What is to be said of the row, such as that no face was found."),
    ]


def _one(name: str, kind: Literal["text", "integer", "number"], width: int, description: str) -> RowEntry:
    return RowEntry(name, kind, description, (Column(name, kind, width, description),))


def _probabilities(name: str, prefix: str, output: Output, description: str) -> RowEntry:
    columns = (Column(f"{prefix}_{label}", "number", 8, description.format(label)) for label in output.labels)
    return RowEntry(name, "number", description.format("each label"), tuple(columns), output.labels)


def answer_entry(output: Output) -> RowEntry:
    """What a row says of an output that is not the first."""
    if output == MESH:
        meaning = "x, y and depth of each point, in pixels; depth is negative towards the camera."
        names = [(f"mesh_{label}_{axis}", label, axis) for label in output.labels for axis in "xyz"]
        columns = [Column(name, "number", 8, f"{axis} of the point {label}, in pixels.") for name, label, axis in names]
        return RowEntry(output.name, "points", f"The points of the face's mesh: {meaning}", tuple(columns))
    spoken = output.name.replace("_", " ")
    whole = f"{spoken.capitalize()}: {output.meaning}."
    if output.labels == (output.name,) and output.kind != "points":
        return _one(output.name, "number", 8, whole)
    axes = ("_x", "_y") if output.kind == "points" else ("",)
    columns = tuple(
        Column(f"{output.name}_{label}{axis}", "number", 8, f"{spoken.capitalize()}, {label}: {output.meaning}.")
        for label in output.labels
        for axis in axes
    )
    return RowEntry(output.name, "numbers" if output.kind == "points" else "number", whole, columns, output.labels)
