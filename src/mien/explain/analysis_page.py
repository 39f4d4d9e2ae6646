"""The analysis of a network's attention, as one web page that holds all of it, and as JSON."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from mien.explain import analysis_plots as plots
from mien.explain.analysis import Analysis
from mien.explain.heads import METRICS, agreement
from mien.faces.look import REPORT, plot, wide


def figures(found: Analysis) -> dict[str, bytes]:
    """The plots as PNG, by name."""
    tall = 1 + 0.28 * len(found.heads)
    drawn = {"importance": plots.png(plots.plot_importance, found.heads, found.importance, size=(11, tall))}
    if found.class_rows:
        size = (11, 1 + 0.28 * len(found.class_heads))
        drawn["class_rows"] = plots.png(plots.plot_importance, found.class_heads, found.class_rows, size=size)
    drawn["pruning"] = plots.png(plots.plot_pruning, found, size=(6.5, 4.2))
    if found.profiles:
        rows = -(-len(found.profiles) // 4)
        drawn["strength"] = plots.png(
            plots.plot_strength, found, size=(3 + 2.2 * min(4, len(found.profiles)), 3.2 * rows)
        )
        drawn["depth"] = plots.png(plots.plot_depth, found, size=(11, 3.4))
        count = sum(np.isfinite(one.class_row).all(1).sum() for one in found.profiles.values())
        if count:
            drawn["class_row"] = plots.png(plots.plot_class_rows, found, size=(10, 2 * -(-count // 6)))
    if found.patterns is not None:
        drawn["patterns"] = plots.png(plots.plot_patterns, found, size=(8, 7.5))
    return drawn


def summary(found: Analysis) -> str:
    """What a person reads first."""
    best = np.argsort(-found.importance["d_ce"].mean(1), kind="stable")[:3]
    named = ", ".join(f"{found.heads[i]} ({found.importance['d_ce'][i].mean():+.4f} nats)" for i in best)
    faces = found.importance["d_ce"].shape[1], found.pruning["random"].shape[1]
    value, low, high = found.beyond
    slower = "slower than at random" if low > 0 else "faster than at random" if high < 0 else "as at random"
    return (
        f"{len(found.heads)} heads, taken away one at a time: cross entropy grows most for {named}; {faces[0]} faces.\n"
        f"Pruned with the least important first, accuracy falls {slower}: over all numbers of heads it is {value:+.4f} "
        f"({low:+.4f} to {high:+.4f}) beyond it, on {faces[1]} other faces."
    )


def page(title: str, found: Analysis, drawn: dict[str, bytes]) -> str:
    """The page: loads nothing from elsewhere. drawn: what `figures` made."""

    def figure(name: str, words: str) -> str:
        return f"{plot(drawn[name], words)}<p><small>{escape(words)}</small></p>" if name in drawn else ""

    parts = [f"<h1>{escape(title)}</h1>", *(f"<p>{escape(line)}</p>" for line in summary(found).split("\n"))]
    parts += ["<h2>Importance</h2>", _importance(found)]
    parts += [figure("importance", "What answers lose without each head: means over faces, and 95 % of each.")]
    if found.class_rows:
        words = "The same with a head taken from the class token's row alone; other tokens keep it."
        parts += ["<h3>The class token's row alone</h3>", figure("class_rows", words)]
    pairs = agreement({name: each.mean(1) for name, each in found.importance.items()})
    rows = [(f"{METRICS[a]}, {METRICS[b]}", f"{value:.2f}") for (a, b), value in pairs.items()]
    parts += ["<h3>Do the metrics agree?</h3>", _table(("two metrics", "Spearman's correlation over heads"), rows)]
    parts += ["<h2>Pruning</h2>", figure("pruning", "Accuracy with so many heads gone: importance is of other faces.")]
    rows = [(name, f"{v:.4f}", f"{low:.4f} to {high:.4f}") for name, (v, low, high) in found.areas.items()]
    parts += [_table(("order", "accuracy, mean over all numbers of heads", "95 %"), rows)]
    if found.profiles:
        words = "Hop k is the greater of the steps down and across; 0 is the token itself. Dashed: were all alike."
        parts += ["<h2>Near and far</h2>", figure("strength", words)]
        parts += [figure("depth", "A dot is a head; from left to right in the order of a forward pass.")]
        parts += [_profiles(found)]
        if "class_row" in drawn:
            words = (
                "What the class token attends to, mean over faces; of several levels the sum. Each has its own scale."
            )
            parts += ["<h2>The class token</h2>", figure("class_row", words)]
    if found.patterns is not None:
        words = (
            "A dot is what one head does on one face: where it looks from wherever it stands (+), by an autoencoder "
            f"whose codes leave out {found.patterns.left_out:.0%} of the variance; the plane shows "
            f"{found.patterns.shown:.0%} of the codes'. Below, what each "
            "cluster has more (red) and less (blue) than the mean of all maps."
        )
        parts += ["<h2>Patterns</h2>", figure("patterns", words)]
    parts += ["<h2>Concentration</h2>", _concentration(found)]
    if found.factors:
        rows = [
            (name, f"{each.argmax()}", f"{each.max():.3f}", f"{each.min():.3f}") for name, each in found.factors.items()
        ]
        heads = ("GAAM", "token of the greatest mean importance factor", "its factor", "the least")
        parts += ["<h2>Importance factor</h2>", _table(heads, rows)]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{REPORT}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def facts(found: Analysis) -> dict[str, Any]:
    """Numbers alone, as JSON takes them."""
    return {
        "heads": list(map(str, found.heads)),
        "importance": {name: each.mean(1).tolist() for name, each in found.importance.items()},
        "class_rows": {
            "heads": list(map(str, found.class_heads)),
            **{name: each.mean(1).tolist() for name, each in found.class_rows.items()},
        },
        "profiles": {
            name: {
                field: np.where(np.isfinite(value), value, None).tolist()
                for field in one.__dataclass_fields__
                if (value := getattr(one, field)) is not None
            }
            for name, one in found.profiles.items()
        },
        "content_agnostic": {name: each.tolist() for name, each in found.agnostic.items()},
        "top_10": {name: each.tolist() for name, each in found.concentration.items()},
        "top_10_masked": {name: each.tolist() for name, each in found.masked.items()},
        "importance_factor": {name: each.tolist() for name, each in found.factors.items()},
        "pruning": {name: each.mean(1).tolist() for name, each in found.pruning.items()},
        "areas": found.areas,
        "least_first_beyond_random": found.beyond,
    }


def _importance(found: Analysis) -> str:
    rows = []
    for i in np.argsort(-found.importance["d_ce"].mean(1), kind="stable"):
        values = [found.importance[name][i].mean() for name in METRICS]
        rows.append((str(found.heads[i]), *(f"{round(value, 4) + 0.0:+.4f}" for value in values)))  # no -0
    return _table(("head", *METRICS.values()), rows)


def _profiles(found: Analysis) -> str:
    rows = [
        (f"{name} head {h}", f"{one.mean_distance[h]:.2f}", f"{one.entropy[h]:.2f}",
         "–" if np.isnan(one.class_column[h]) else f"{one.class_column[h]:.3f}", f"{found.agnostic[name][h]:.2f}")
        for name, one in found.profiles.items()
        for h in range(len(one.entropy))
    ]  # fmt: skip
    return _table(("head", "mean distance", "entropy", "class column", "alike on all faces, 0 to 1"), rows)


def _concentration(found: Analysis) -> str:
    rows = [
        (f"{name} head {h}", f"{value:.3f}", f"{found.masked[name][h]:.3f}" if name in found.masked else "–")
        for name, each in found.concentration.items()
        for h, value in enumerate(each)
    ]
    return _table(("head", "share of the ten keys that get most", "with tokens hidden as in ACMIL's training"), rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return wide(f"<table>{line(heads, 'th')}{''.join(line(row, 'td') for row in rows)}</table>")
