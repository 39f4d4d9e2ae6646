"""The pages of docs/mechanisms: one for each mechanism of mien.nn, out of its docstring, a drawing and a benchmark.

    mien bench mixers --json > docs/mechanisms/bench.json
    python docs/make_mechanisms.py [--only NAME …] [--out FOLDER]

A drawing shows how far a mixer truly reaches: how strongly what it gives for one token depends on every other. Of
mixers that are a matrix over the tokens (`mien.nn.mixing_matrix`) another shows it.
"""

import argparse
import inspect
import io
import json
import math
import re
import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import LogNorm, SymLogNorm
from matplotlib.patches import Circle, Ellipse, Rectangle
from PIL import Image
from torch import Tensor, nn

import mien.nn
from mien.commands.list import mixers, summary
from mien.networks.cost import fitted
from mien.nn import LookError, mixing_matrix
from mien.nn.base import Grid

HERE = Path(__file__).parent / "mechanisms"
GRID: Grid = (14, 14)
QUERIES = {"the middle": (7, 7), "the mouth": (11, 7)}
LANDMARKS = ((38.3, 51.7), (73.5, 51.5), (56.0, 71.7), (41.5, 92.4), (70.7, 92.2))  # of an aligned face of 112 pixels
LEAST = 1e-3  # of the strongest: what is less is drawn as this
PARTS = {"Attend", "Block", "DropPath", "LayerScale", "Mlp"}  # of mechanisms, and none themselves

COLUMNS = {  # of the tables: title, unit, digits behind the point
    "parameters": ("parameters", 1, 0),
    "macs": ("MMAC", 1e6, 1),
    "forward_ms": ("ms, forward", 1, 1),
    "training_ms": ("ms, and backward", 1, 1),
    "forward_mb": ("MB, forward", 1, 1),
    "training_mb": ("MB, and backward", 1, 1),
}


def reach(kind: type, query: Grid, grid: Grid = GRID, dim: int = 48, num_heads: int = 6, draws: int = 16) -> Tensor:
    """How strongly the output at `query` depends on the input at each place of `grid`: ‖∂out_q / ∂in_k‖, (H, W).

    Of a mixer and tokens drawn at random, in fp64 and eval mode, the norm being taken over `draws` directions of the
    output. What a mixer starts at 0 is drawn, too.
    """
    mixer, tokens = random_mixer(kind, grid, dim, num_heads)
    tokens = tokens.repeat(draws, 1, 1).requires_grad_()
    out = mixer(tokens, grid)[:, query[0] * grid[1] + query[1]]
    (out * torch.randn_like(out)).sum().backward()
    return tokens.grad.square().sum(-1).mean(0).sqrt().unflatten(0, grid)


def random_mixer(kind: type, grid: Grid, dim: int, num_heads: int) -> tuple[nn.Module, Tensor]:
    """A mixer in fp64 and eval mode, what starts at 0 moved a little, and tokens for it."""
    torch.manual_seed(0)
    mixer = fitted(kind, grid)(dim, num_heads).double().eval()
    with torch.no_grad():
        for p in mixer.parameters():
            p += 0.02 * torch.randn_like(p)
    return mixer, torch.randn(1, grid[0] * grid[1], dim, dtype=torch.float64)


def draw(kind: type, path: Path) -> dict[str, int]:
    """Write the drawing; how many tokens are reached from each query."""
    figure, axes = plt.subplots(1, len(QUERIES), figsize=(6.2, 2.9), dpi=100, layout="compressed")
    reached = {}
    for axis, (name, query) in zip(axes, QUERIES.items(), strict=True):
        strength = reach(kind, query)
        strength = strength / strength.max()
        reached[name] = int((strength > 0).sum())
        axis.imshow(torch.ones(GRID).numpy(), cmap="Greys", vmin=0, vmax=9)
        shown = torch.where(strength > 0, strength.clamp(min=LEAST), math.nan)
        colours = axis.imshow(shown.numpy(), cmap="YlGnBu", norm=LogNorm(LEAST / 4, 1))  # the least is no grey yet
        for i in range(1, GRID[0]):
            axis.axhline(i - 0.5, color="white", linewidth=0.6)
            axis.axvline(i - 0.5, color="white", linewidth=0.6)
        face(axis)
        axis.add_patch(Rectangle((query[1] - 0.5, query[0] - 0.5), 1, 1, fill=False, edgecolor="#e8242a", linewidth=2))
        axis.set_title(f"from {name}: {reached[name]} of {GRID[0] * GRID[1]}", fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    scale = figure.colorbar(colours, ax=axes, ticks=[1, 0.1, 0.01, LEAST], shrink=0.9, pad=0.015)
    scale.ax.set_ylim(LEAST, 1)
    scale.ax.set_yticklabels(["1", "1/10", "1/100", "1/1000"], fontsize=7)
    scale.ax.tick_params(which="both", length=0)
    scale.outline.set_visible(False)
    figure.savefig(path, metadata={"Software": None}, pil_kwargs={"optimize": True})
    plt.close(figure)
    return reached


def draw_matrix(kind: type, path: Path) -> str | None:
    """Write the drawing of the mixing matrix, of one head; what it says, or None where there is no matrix."""
    mixer, tokens = random_mixer(kind, GRID, 48, 6)
    try:
        matrix = mixing_matrix(mixer, 3 * tokens, GRID)[0, 0]
    except LookError:
        return None
    matrix, signed = matrix / matrix.abs().max(), bool((matrix < 0).any())
    figure, axis = plt.subplots(figsize=(3.4, 2.9), dpi=100, layout="compressed")
    axis.imshow(torch.ones_like(matrix).numpy(), cmap="Greys", vmin=0, vmax=9)
    if signed:
        norm, ticks = SymLogNorm(0.01, vmin=-1, vmax=1), {-1: "-1", -0.1: "-1/10", 0: "0", 0.1: "1/10", 1: "1"}
    else:
        norm, ticks = LogNorm(LEAST / 4, 1), {1: "1", 0.1: "1/10", 0.01: "1/100", LEAST: "1/1000"}
    shown = torch.where(matrix == 0, math.nan, matrix if signed else matrix.clamp(min=LEAST))
    colours = axis.imshow(shown.numpy(), cmap="RdYlBu" if signed else "YlGnBu", norm=norm, interpolation="none")
    axis.set_xlabel("whose value", fontsize=8)
    axis.set_ylabel("who is given it", fontsize=8)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    scale = figure.colorbar(colours, ax=axis, ticks=list(ticks), shrink=0.9, pad=0.03)
    scale.ax.set_ylim(-1 if signed else LEAST, 1)
    scale.ax.set_yticklabels(ticks.values(), fontsize=7)
    scale.ax.tick_params(which="both", length=0)
    scale.outline.set_visible(False)
    drawn = io.BytesIO()
    figure.savefig(drawn)
    plt.close(figure)
    picture = Image.open(drawn).convert("RGB")  # noise, of fewer colours, takes less room
    picture.quantize(128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)
    one = "channel" if kind is mien.nn.SpectralGate else "head"
    return prose(f"""
        The [mixing matrix](../sequences.md#the-matrix-of-a-mixer) of a {one} among the same tokens, row by row of the
        grid: how much of the value of each (to the right) each is given (downwards), as a fraction of the
        most{"; red: negative" if signed else ""}; grey: none.
    """)


def face(axis: Any) -> None:
    """Where the face lies: its outline, eyes, nose and mouth, as they are aligned."""
    places = [(x / 8 - 0.5, y / 8 - 0.5) for x, y in LANDMARKS]
    style = {"fill": False, "edgecolor": "#444444", "linewidth": 0.8, "alpha": 0.55}
    axis.add_patch(Ellipse((6.5, 7.3), 9.6, 13.2, **style))
    for x, y in places[:2]:
        axis.add_patch(Ellipse((x, y), 2.0, 0.9, **style))
    axis.add_patch(Circle(places[2], 0.35, **style))
    (left, low), (right, _) = places[3:]
    axis.add_patch(Ellipse(((left + right) / 2, low), right - left, 1.1, **style))


def prose(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


def departs(paragraph: str) -> bool:
    words = r"\bours\b|inferred|unlike\b|departure"
    return not paragraph.startswith("    ") and re.search(words, paragraph, re.I) is not None


def linked(text: str, names: set[str]) -> str:
    """Prose in which the names of other mechanisms lead to their pages."""
    if text.startswith("    "):  # a formula
        return text
    return re.sub(r"`(\w+)`", lambda m: f"[`{m[1]}`]({m[1]}.md)" if m[1] in names else m[0], text)


def page(name: str, kind: type, names: set[str], bench: dict[str, Any], folder: Path) -> None:
    """Write the page of a mechanism and, of a mixer, its drawing."""
    is_mixer = name in mixers()
    paragraphs = [linked(p, names - {name}) for p in (inspect.getdoc(kind) or "").split("\n\n")]
    sources = [p for p in paragraphs if re.match(r"Papers?\b|Reference\b", p)]
    arguments = [p for p in paragraphs if p.startswith("Args:")]
    first, *others = [p for p in paragraphs if p not in sources + arguments]
    parts = [f"# {name}", first]
    if is_mixer:
        reached = draw(kind, folder / f"{name}.png")
        counts = ", ".join(f"{count} from {query}" for query, count in reached.items())
        parts += [
            f"![what a token reaches]({name}.png)",
            prose(f"""
                How strongly the output at the red token depends on each token of a 14×14 grid over a face: ‖∂out / ∂in‖
                as a fraction of the strongest, of a mixer and tokens drawn at random; grey: not at all. Of 196 tokens
                it reaches {counts}.
            """),
        ]
        said = draw_matrix(kind, folder / f"{name}.mixing.png")
        parts += [f"![how it mixes values]({name}.mixing.png)", said] if said else []
    parts += [p for p in others if not departs(p)]
    if any(map(departs, others)):
        parts += ["## Beside the paper: departures, what was inferred, what is ours", *filter(departs, others)]
    parts += ["## In a network" if is_mixer else "## Built with", *use(name, kind, is_mixer), *map(listed, arguments)]
    if is_mixer:
        parts += ["## Cost", *cost(name, bench)]
    source = Path(inspect.getfile(kind)).name
    parts += ["## Source", *sources, f"Code: [src/mien/nn/{source}](../../src/mien/nn/{source})"]
    (folder / f"{name}.md").write_text("\n\n".join(parts) + "\n")


def listed(arguments: str) -> str:
    """The arguments of a docstring as a list."""
    return re.sub(r"^ {4}(?=\S)", "- ", arguments.partition("\n")[2], flags=re.MULTILINE).replace("\n        ", "\n  ")


def use(name: str, kind: type, is_mixer: bool) -> list[str]:
    given = []
    for p in inspect.signature(kind).parameters.values():
        default = (
            json.dumps(p.default) if isinstance(p.default, str) else getattr(p.default, "__name__", repr(p.default))
        )
        given.append(p.name if p.default is p.empty else f"{p.name}={default}")
    call = f"{name}({', '.join(given)})"
    if len(call) > 120:
        call = f"{name}(\n    " + ",\n    ".join(given) + ",\n)"
    parts = [f"```yaml\nmixer: mien.nn.{name}\n```"] if is_mixer else []
    parts.append(f"```python\n{call}\n```")
    if getattr(kind, "needs_grid", False):
        parts.append("It needs the grid, so it cannot stand behind pooling.")
    if hasattr(kind, "with_class_scores"):
        parts.append("It gives the scores of the class token, so a block can drop tokens behind it.")
    return parts


def cost(name: str, bench: dict[str, Any]) -> list[str]:
    measured = bench.get("mixers", {}).get(name)
    if measured is None:
        return ["Not measured yet."]
    rows = [["grid", *(title for title, *_ in COLUMNS.values())]]
    for grid, found in measured["grids"].items():
        cells = [
            f"{found[measure]['value'] / unit:,.{digits}f} ({found[measure]['ratio']:.2f})"
            for measure, (_, unit, digits) in COLUMNS.items()
        ]
        rows.append([grid.replace(",", "×"), *cells])
    if measured["slopes"]:
        rows.append(["grows as", *(f"N^{measured['slopes'][measure]:.2f}" for measure in COLUMNS)])
    return [prose(f"In brackets the ratio to [`SelfAttention`](SelfAttention.md) {conditions(bench)}"), table(rows)]


def conditions(bench: dict[str, Any]) -> str:
    return f"""
        in the same run of `mien bench mixers`: {bench["dim"]} wide, {bench["heads"]} heads, {bench["batch"]} faces,
        {bench["threads"]} thread, fp32, torch {bench["torch"]}, medians of {bench["rounds"]} rounds. MMAC are those of
        one face; time is the processor's; memory is the most that torch's profiler saw allocated at once."""


def table(rows: list[list[str]], numbers: bool = True) -> str:
    head, *others = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|---|" + ("---:|" if numbers else "---|") * (len(rows[0]) - 1), *others])


def index(kinds: dict[str, type], bench: dict[str, Any]) -> str:
    """README.md: every mechanism in a line, and what mixers cost."""
    lines = [["mixer", "what it does", "grid"]] + [
        [f"[{name}]({name}.md)", summary(kind), "needed" if getattr(kind, "needs_grid", False) else ""]
        for name, kind in kinds.items()
        if name in mixers()
    ]
    parts = [
        "# Mechanisms",
        prose("""
            Every attention mechanism of `mien.nn`, a page each. `python docs/make_mechanisms.py` makes the pages, out
            of the docstrings.
        """),
        "## Mixers",
        prose("""
            A mixer takes tokens (B, N, D) and their grid and gives tokens. Any network with ViT blocks takes any of
            them, one for all blocks or a list with one a block: `mixer: mien.nn.MoH` in a recipe, `ViT(mixer=MoH)` in
            Python. [On faces](../mixers_on_faces.md): each in the same small network, accuracy beside time.
        """),
        table(lines, numbers=False),
        "## What mixers cost",
        *costs({name: one for name, one in bench.get("mixers", {}).items() if name in kinds}, bench),
    ]
    others = [[f"[{name}]({name}.md)", summary(kind)] for name, kind in kinds.items() if name not in mixers()]
    if others:
        parts += ["## Refiners, pools, selections and query layers"]
        parts += [table([["mechanism", "what it does"], *others], numbers=False)]
    return "\n\n".join(parts) + "\n"


def costs(measured: dict[str, Any], bench: dict[str, Any]) -> list[str]:
    """The table of all mixers, on the smallest and the largest grid."""
    if not measured:
        return ["Not measured yet: `mien bench mixers --json > docs/mechanisms/bench.json`."]
    grids = list(next(iter(measured.values()))["grids"])
    ends = list(dict.fromkeys((grids[0], grids[-1])))
    titles = [f"{title}, {grid.replace(',', '×')}" for grid in ends for title in ("MAC", "time", "memory")]
    rows = [["mixer", "parameters", *titles, "time grows as"]]
    for name, one in measured.items():
        cells = [f"{next(iter(one['grids'].values()))['parameters']['ratio']:.2f}"]
        for grid in ends:
            for measure in ("macs", "training_ms", "training_mb"):
                cells.append(f"{one['grids'][grid][measure]['ratio']:.2f}" if grid in one["grids"] else "–")
        cells.append(f"N^{one['slopes']['training_ms']:.2f}" if one["slopes"] else "–")
        rows.append([f"[{name}]({name}.md)", *cells])
    note = "Time and memory are those of a forward and a backward pass; a dash: it would have taken too much memory."
    return [prose(f"Ratios to [`SelfAttention`](SelfAttention.md) {conditions(bench)} {note}"), table(rows)]


def mechanisms() -> dict[str, type]:
    """Mixers, and whatever else of mien.nn comes out of a paper."""
    found = {}
    for name in sorted(mien.nn.__all__, key=str.lower):
        made = getattr(mien.nn, name)
        published = inspect.isclass(made) and issubclass(made, nn.Module) and "Paper" in (made.__doc__ or "")
        if name in mixers() or (published and name not in PARTS):
            found[name] = made
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the pages of docs/mechanisms.")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="pages of these alone; README.md names all")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--bench", type=Path, default=HERE / "bench.json", help="what mien bench mixers --json printed")
    args = parser.parse_args()
    bench = json.loads(args.bench.read_text()) if args.bench.exists() else {}
    kinds = mechanisms()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.only or kinds:
        page(name, kinds[name], set(kinds), bench, args.out)
    (args.out / "README.md").write_text(index(kinds, bench))


if __name__ == "__main__":
    main()
