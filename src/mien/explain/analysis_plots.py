"""The analysis of a network's attention, as plots."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np

from mien.errors import require
from mien.explain.analysis import Analysis
from mien.explain.heads import METRICS, Head

_COLOURS = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#000000"]


def png(draw: Callable[..., None], *what: Any, size: tuple[float, float]) -> bytes:
    """A plot of (width, height) inches as PNG. Needs the extra [eval]."""
    figure = require("matplotlib.figure", "eval").Figure(figsize=size, dpi=110, layout="constrained")
    draw(figure, *what)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def short(head: Head) -> str:
    """The head's name without what all of them have in common."""
    name = head.attention.replace("vit.", "").replace("blocks.", "block ").replace("landmarks.", "")
    return f"{name} h{head.number}"


def plot_importance(figure: Any, heads: list[Head], measured: dict[str, np.ndarray]) -> None:
    """Every metric of every head, its mean over faces and 95 % of that."""
    names = ["d_ce", "d_prob", "jsd", "flip"]
    for axes, name in zip(figure.subplots(1, 4, sharey=True), names, strict=True):
        mean, count = measured[name].mean(1), measured[name].shape[1]
        half = 1.96 * measured[name].std(1, ddof=1) / np.sqrt(count)
        axes.barh(range(len(heads)), mean, xerr=half, color=_COLOURS[0], error_kw={"elinewidth": 1, "capsize": 2})
        axes.axvline(0, color="black", linewidth=0.6)
        axes.set_title(METRICS[name], fontsize="medium")
        axes.set_yticks(range(len(heads)), [short(head) for head in heads], fontsize="small")
    figure.axes[0].invert_yaxis()


def plot_strength(figure: Any, found: Analysis) -> None:
    """The share of attention by hop, a line a head, beside attention that is alike for all."""
    names = list(found.profiles)
    rows = -(-len(names) // 4)
    grid = np.atleast_1d(figure.subplots(rows, min(4, len(names)), squeeze=False)).ravel()
    for axes, name in zip(grid, names, strict=False):
        one = found.profiles[name]
        for h, share in enumerate(one.share_by_hop):
            axes.plot(share, color=_COLOURS[h % 8], label=f"head {h}", marker="o", markersize=3)
        axes.plot(one.uniform, "--", color="black", label="alike for all")
        axes.set(title=short(Head(name, 0)).rpartition(" ")[0], xlabel="hops", ylim=(0, None))
    for axes in grid[len(names) :]:
        axes.remove()
    grid[0].set_ylabel("share of attention")
    grid[0].legend(fontsize="x-small")


def plot_depth(figure: Any, found: Analysis) -> None:
    """Mean distance, entropy and the class column, by attention in the order of a forward pass."""
    names = list(found.profiles)
    for axes, (field, words) in zip(
        figure.subplots(1, 3),
        (
            ("mean_distance", "mean distance, steps of the grid"),
            ("entropy", "entropy, nats"),
            ("class_column", "share that patches give to the class token"),
        ),
        strict=True,
    ):
        values = [getattr(found.profiles[name], field) for name in names]
        for i, each in enumerate(values):
            axes.plot([i] * len(each), each, "o", color=_COLOURS[0], alpha=0.7)
        if len(names) > 1:
            axes.plot([each.mean() for each in values], color=_COLOURS[1], label="mean")
            axes.legend(fontsize="x-small")
        axes.set_xticks(range(len(names)), [short(Head(n, 0)).rpartition(" ")[0] for n in names], fontsize="small")
        axes.set_title(words, fontsize="medium")
        axes.set_ylim(0, 1.1 * max(1e-9, *(np.nanmax(each, initial=0) for each in values)))
        axes.margins(x=0.2)


def plot_patterns(figure: Any, found: Analysis) -> None:
    """The maps on a plane, in the colours of their clusters, and the mean map of each cluster."""
    patterns, maps = found.patterns, found.maps
    assert patterns is not None and maps is not None
    groups = int(patterns.clusters.max()) + 1
    layout = figure.add_gridspec(2, groups, height_ratios=(3, 1))
    axes = figure.add_subplot(layout[0, :])
    for k in range(groups):
        x, y = patterns.places[patterns.clusters == k].T
        axes.scatter(x, y, s=9, color=_COLOURS[k % 8], label=f"cluster {k + 1}", alpha=0.6)
    for head in dict.fromkeys(found.pattern_heads):
        x, y = patterns.places[[each == head for each in found.pattern_heads]].mean(0)
        axes.annotate(short(head), (x, y), fontsize=7, ha="center")
    axes.set(xlabel="first component", ylabel="second component")
    axes.legend(fontsize="x-small")
    for k in range(groups):
        axes, mean = figure.add_subplot(layout[1, k]), maps[patterns.clusters == k].mean(0) - maps.mean(0)
        most = max(float(np.abs(mean).max()), 1e-12)
        axes.imshow(mean, cmap="RdBu_r", vmin=-most, vmax=most)
        axes.plot(mean.shape[1] // 2, mean.shape[0] // 2, "+", color="black", markersize=6)
        axes.set_title(f"{k + 1}: {(patterns.clusters == k).sum()} maps", fontsize="small", color=_COLOURS[k % 8])
        axes.set_xticks([])
        axes.set_yticks([])


def plot_class_rows(figure: Any, found: Analysis) -> None:
    """What the class token attends to, a picture a head, the planes of several levels added up where there are some.

    Where tokens were dropped, a row is of other places in every face, and there is no picture of it.
    """
    shown = [(name, h, row) for name, one in found.profiles.items() for h, row in enumerate(one.class_row)
             if np.isfinite(row).all() and len(row) % np.prod(found.grids[name]) == 0]  # fmt: skip
    if not shown:
        figure.text(0.5, 0.5, "tokens were dropped: rows are of other places in every face", ha="center", va="center")
        return
    grid = figure.subplots(-(-len(shown) // 6), min(6, len(shown)), squeeze=False).ravel()
    for axes, (name, h, row) in zip(grid, shown, strict=False):
        picture = row.reshape(-1, *found.grids[name]).sum(0)
        axes.imshow(picture, cmap="inferno", vmin=0)
        axes.set_title(f"{short(Head(name, h))}\nup to {picture.max():.1%}", fontsize="x-small")
    for axes in grid:
        axes.axis("off")


def plot_pruning(figure: Any, found: Analysis) -> None:
    """Accuracy as heads go, and 95 % of it."""
    axes = figure.add_subplot()
    for name, colour in (("least first", _COLOURS[2]), ("random", "black"), ("most first", _COLOURS[1])):
        right = found.pruning[name]
        mean, half = right.mean(1), 1.96 * right.std(1, ddof=1) / np.sqrt(right.shape[1])
        axes.plot(mean, color=colour, label=name, marker="o", markersize=3)
        axes.fill_between(range(len(mean)), mean - half, mean + half, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="heads taken away", ylabel="accuracy")
    axes.legend()
