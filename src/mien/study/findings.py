"""What a study found: figures beside their bounds, series to plot, and how they are written."""

import importlib
import io
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mien.errors import Misuse, require
from mien.files import whole


@dataclass(frozen=True)
class Bound:
    """A figure and what it should be: `low <= value <= high`. Without bounds it stands there for comparison.

    name: what the figure is.
    value: as measured.
    low: -inf by default.
    high: inf by default.
    theory: what a formula says it is; None where there is none.
    """

    name: str
    value: float
    low: float = -math.inf
    high: float = math.inf
    theory: float | None = None

    @classmethod
    def near(cls, name: str, value: float, theory: float, share: float) -> "Bound":
        """A figure that should be the theory's to within a share of it."""
        return cls(name, value, theory * (1 - share), theory * (1 + share), theory)

    @property
    def bounded(self) -> bool:
        return math.isfinite(self.low) or math.isfinite(self.high)

    @property
    def holds(self) -> bool:
        """Whether the value is within; one that is not finite never is."""
        return not self.bounded or self.low <= self.value <= self.high

    @property
    def limits(self) -> str:
        if not self.bounded:
            return ""
        if math.isinf(self.low):
            return f"at most {spell(self.high)}"
        if math.isinf(self.high):
            return f"at least {spell(self.low)}"
        return f"{spell(self.low)} to {spell(self.high)}"


@dataclass(frozen=True)
class Series:
    """Lines of a plot: y by x for every name. `dashed` names those that are theory."""

    title: str
    x_label: str
    y_label: str
    x: Sequence[float]
    lines: Mapping[str, Sequence[float]]
    dashed: Sequence[str] = ()
    scale: Literal["linear", "log"] = "linear"


@dataclass(frozen=True)
class NumberTable:
    """Numbers in rows and columns, such as weights, to be printed or drawn in colours."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]
    drawn: bool = False


@dataclass(frozen=True)
class Findings:
    """All that a study found.

    name: of the study, and of its files.
    title: a sentence for people.
    settings: its sizes and seeds, by name.
    bounds: the figures beside their bounds.
    tables: numbers in rows and columns, by name; none by default.
    series: lines to plot, by name; none by default.
    """

    name: str
    title: str
    settings: Mapping[str, Any]
    bounds: Sequence[Bound]
    tables: Mapping[str, NumberTable] = field(default_factory=dict)
    series: Mapping[str, Series] = field(default_factory=dict)

    @property
    def missed(self) -> list[Bound]:
        """The figures that lie outside their bounds."""
        return [bound for bound in self.bounds if not bound.holds]

    def __str__(self) -> str:
        rows = [("", "measured", "theory", "bound", "")]
        for bound in self.bounds:
            verdict = ("holds" if bound.holds else "MISSED") if bound.bounded else ""
            theory = "" if bound.theory is None else spell(bound.theory)
            rows.append((bound.name, spell(bound.value), theory, bound.limits, verdict))
        parts = [f"{self.title}\n{', '.join(f'{name} {value}' for name, value in self.settings.items())}", grid(rows)]
        for table in self.tables.values():
            cells = [(name, *map(spell, row)) for name, row in zip(table.rows, table.values, strict=True)]
            parts.append(f"{table.title}\n{grid([('', *table.columns), *cells])}")
        return "\n\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it: what is not finite is None."""
        return _plain(asdict(self) | {"bounds": [asdict(bound) | {"holds": bound.holds} for bound in self.bounds]})

    def save(self, folder: Path) -> list[Path]:
        """Write NAME.json, and a PNG for each series and drawn table, into the folder. Needs the extra [eval]."""
        figure_class = require("matplotlib.figure", "eval").Figure
        folder.mkdir(parents=True, exist_ok=True)
        made = {folder / f"{self.name}.json": json.dumps(self.to_dict(), indent=1, allow_nan=False).encode()}
        for name, drawn in {**self.series, **{n: t for n, t in self.tables.items() if t.drawn}}.items():
            figure = figure_class(figsize=(5.6, 3.6), dpi=120, layout="constrained")
            (plot if isinstance(drawn, Series) else paint)(figure.add_subplot(), drawn)
            figure.savefig(file := io.BytesIO(), format="png", metadata={"Software": None})
            made[folder / f"{self.name}_{name}.png"] = file.getvalue()
        for path, content in made.items():
            with whole(path) as file:
                file.write(content)
        return list(made)


def study(name: str, small: bool = False) -> Findings:
    """Do a study.

    name: "icl", "rfa" or "memory".
    small: whether to do a small one, which takes seconds; False.

    Raises Misuse for another name, and MissingExtra without torch.
    """
    from mien.study import STUDIES

    if name not in STUDIES:
        raise Misuse(f"there is no study {name}; there are {', '.join(STUDIES)}")
    require("torch", "torch")
    return importlib.import_module(f"mien.study.{name}").run(small)


def spell(value: float) -> str:
    """Four digits that count."""
    return f"{value:.4g}" if math.isfinite(value) else "–"


def grid(rows: Sequence[Sequence[str]]) -> str:
    """Columns one under another, the first to the left and others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append(f"  {'  '.join(cells)}".rstrip())
    return "\n".join(lines)


def plot(axes: Any, series: Series) -> None:
    strokes, widths = itertools.cycle(("--", ":", "-.")), itertools.chain((4.2, 2.6), itertools.repeat(1.4))
    for name, values in series.lines.items():
        if name in series.dashed:
            axes.plot(series.x, values, label=name, linewidth=1.4, linestyle=next(strokes), color="0.25")
        else:  # a line on another is seen beside it
            width = next(widths)
            axes.plot(series.x, values, label=name, linewidth=width, marker="o", markersize=width + 2)
    axes.set(xlabel=series.x_label, ylabel=series.y_label, xscale=series.scale, yscale=series.scale)
    if len(series.x) < 8:
        axes.set_xticks(series.x, [f"{x:,g}" for x in series.x])
        axes.set_xticks([], minor=True)
    axes.set_title(series.title, fontsize="medium", wrap=True)
    axes.grid(alpha=0.25, which="both")
    axes.legend(fontsize="small")


def paint(axes: Any, table: NumberTable) -> None:
    most = max(abs(value) for row in table.values for value in row) or 1.0
    image = axes.imshow(table.values, cmap="RdBu_r", vmin=-most, vmax=most)
    axes.set_xticks(range(len(table.columns)), table.columns, fontsize="small")
    axes.set_yticks(range(len(table.rows)), table.rows, fontsize="small")
    axes.set_title(table.title, fontsize="medium", wrap=True)
    axes.figure.colorbar(image, ax=axes, shrink=0.85)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
