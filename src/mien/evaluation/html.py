"""What was measured, as one web page that holds all of it."""

import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from mien.classifier import Classifier
from mien.evaluation.compare import Comparison
from mien.evaluation.measure import Measured
from mien.evaluation.report import BINS, Report
from mien.faces.look import REPORT, embedded, plot, wide

_STYLE = f"""{REPORT}
figure {{ display: inline-block; width: 9rem; margin: .3rem; vertical-align: top }}
figure img {{ width: 112px; height: 112px }} figcaption {{ font-size: .8rem; overflow-wrap: anywhere }}
"""


def page(
    title: str,
    measured: Measured,
    classifier: Classifier,
    groups: Mapping[str, Mapping[str, Report]],
    against: tuple[str, Comparison] | None = None,
    mistakes: int = 24,
    *,
    plots: Mapping[str, bytes],
    more: Mapping[str, str] = {},
) -> str:
    """A page that loads nothing from elsewhere: measures, plots, and the mistakes that the model was surest of.

    title: the first heading. measured: what `measure` found. classifier: crops the mistakes as it sees them.
    groups: reports by column and group. against: the name of another model, and the comparison with it.
    mistakes: how many are shown (default 24).
    plots: PNGs by what they show, "confusion", "calibration" and, below "Spoilt", "robustness".
    more: tables as text, by heading.
    """
    report = measured.report
    parts = [f"<h1>{escape(title)}</h1>", _measures(report)]
    if against:
        parts += [f"<h2>Beside {escape(against[0])}</h2>", f"<p>Going over to it: {escape(str(against[1]))}</p>"]
    for column, reports in groups.items():
        parts += [f"<h2>By {escape(column)}</h2>", _groups(column, reports)]
    parts += ["<h2>Classes</h2>", _classes(report), plot(plots["confusion"])]
    parts += ["<h2>Calibration</h2>", plot(plots["calibration"])]
    for heading, table in more.items():
        parts += [f"<h2>{escape(heading)}</h2>", f"<pre>{escape(table)}</pre>"]
        parts += [plot(plots["robustness"])] if heading == "Spoilt" else []
    if mistakes:
        seen = "" if measured.found is None else ", as they are before a face is found"
        parts += [
            f"<h2>The surest of {_wrong(measured).sum():,} mistakes{seen}</h2>",
            *_mistakes(measured, classifier, mistakes),
        ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _measures(report: Report) -> str:
    def between(interval: tuple[float, float]) -> str:
        return "{:.4f} to {:.4f}".format(*interval)

    rows = [
        ("accuracy", report.accuracy, between(report.accuracy_interval)),
        ("balanced accuracy", report.balanced_accuracy, ""),
        ("macro F1", report.macro_f1, between(report.macro_f1_interval)),
        (f"calibration error, {BINS} bins", report.calibration_error, ""),
        ("log loss, nats", report.nll, ""),
    ]
    note = f"<p><small>95 %: percentiles of {report.resamples:,} resamples of the faces</small></p>"
    return _table(["", f"{report.count:,} faces", "95 %"], [(n, f"{v:.4f}", i) for n, v, i in rows]) + note


def _classes(report: Report) -> str:
    def shown(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    rows = [
        (label, report.support[label], *(shown(each[label]) for each in (report.precision, report.recall, report.f1)))
        for label in report.labels
    ]
    return _table(["", "faces", "precision", "recall", "F1"], rows)


def _groups(column: str, reports: Mapping[str, Report]) -> str:
    rows = [
        (name, r.count, f"{r.accuracy:.4f}", "{:.4f} to {:.4f}".format(*r.accuracy_interval), f"{r.macro_f1:.4f}",
         f"{r.calibration_error:.4f}")
        for name, r in reports.items()
    ]  # fmt: skip
    return _table([column, "faces", "accuracy", "95 %", "macro F1", "calibration error"], rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def line(cells: Sequence[Any], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    return wide("<table>" + line(heads, "th") + "".join(line(row, "td") for row in rows) + "</table>")


def _wrong(measured: Measured) -> np.ndarray:
    return measured.probs.argmax(1) != measured.target


def _mistakes(measured: Measured, classifier: Classifier, count: int) -> list[str]:
    labels, wrong = classifier.labels, np.flatnonzero(_wrong(measured))
    figures = []
    for i in wrong[np.argsort(-measured.probs[wrong].max(1), kind="stable")][:count]:
        row, probs = measured.rows[i], measured.probs[i]
        file = io.BytesIO()
        Image.fromarray(classifier.crop(row.image())).save(file, "png")
        right = measured.target[i]
        said = escape(f"{labels[probs.argmax()]} {probs.max():.0%}, is {labels[right]} ({probs[right]:.0%})")
        caption = f"<figcaption>{said}<br><small>{escape(row.name)}</small></figcaption>"
        figures.append(f'<figure><img alt="" src="{embedded(file.getvalue())}">{caption}</figure>')
    return figures
