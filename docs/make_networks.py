"""The pages of docs/networks: one for each network that `mien list networks` names, out of its docstring and a drawing.

    python docs/make_networks.py [--only NAME …] [--out FOLDER]

The drawing is of the network itself: its parts in the order in which they ran, with what came out of each.
"""

import argparse
import inspect
import itertools
import re
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import mien.networks
from mien.catalogue import NETWORKS, Entry, list_networks
from mien.commands.list import summary
from mien.networks import Network
from mien.networks.trunk import Trunk
from mien.nn.observe import Stages

sys.path.insert(0, str(Path(__file__).parent))

from make_mechanisms import departs, linked, listed, prose, table

HERE = Path(__file__).parent / "networks"
WIDTH, HEIGHT, GAP, A_ROW = 176, 84, 22, 5  # of a box, between two, and how many stand in a row
CARD, LINE, TEXT, SOFT = "#ffffff", "#8a94a6", "#1d2433", "#566075"
SMALL = (nn.LayerNorm, nn.BatchNorm2d, nn.GroupNorm, nn.Identity, nn.Dropout)  # not drawn
FILLS = {"attention": "#dbe8ff", "other": "#eef1f5", "head": "#e3f4e4", "idle": "#ffffff"}


class Part(NamedTuple):
    """A part of a network, or several alike that follow one another."""

    name: str
    what: str
    parameters: int
    out: str  # "" where it did not run
    kind: str  # of `FILLS`
    reads: bool = False  # whether it depends on what came out of the part before it


class Origins(TorchFunctionMode):
    """Has every tensor name the parts of a network that it was computed from: its attribute `origins`, a set."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        mark(out, origins((args, kwargs)))
        return out


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | tuple | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from tensors(each)


def origins(value: Any) -> set[str]:
    return set().union(*(getattr(tensor, "origins", ()) for tensor in tensors(value)))


def mark(value: Any, names: set[str]) -> None:
    for tensor in tensors(value):
        if not isinstance(tensor, nn.Parameter):
            tensor.origins = getattr(tensor, "origins", set()) | names


def members(network: nn.Module, prefix: str = "", place: str = "") -> Iterator[tuple[str, str, nn.Module]]:
    """The parts that are drawn, each with the list that it stands in ("" for none) and its name; norms are not."""
    for short, child in network.named_children():
        name = prefix + short
        stage = bool(place) and isinstance(child, nn.Sequential) and forms_attention(child)
        if isinstance(child, nn.ModuleList) or stage:
            yield from members(child, f"{name}.", name)
        elif isinstance(child, nn.ModuleDict) and short != "heads" or opened(child):
            yield from members(child, f"{name}.")
        elif short != "heads" and not isinstance(child, SMALL) and any(True for _ in child.parameters()):
            yield place, name, child


def forms_attention(part: nn.Module) -> bool:
    return any(isinstance(each, Stages) for each in part.modules())


def opened(part: nn.Module) -> bool:
    """Whether a part is drawn by what it consists of: one with blocks of its own that is no trunk."""
    lists = [child for child in part.children() if isinstance(child, nn.ModuleList | nn.ModuleDict)]
    return bool(lists) and not isinstance(part, Trunk) and not type(part).__module__.startswith("mien.nn")


def described(part: nn.Module) -> str:
    """Its class, and that of the mixer in it."""
    mixer = getattr(part, "attn", None)
    inner = f" of {type(mixer).__name__}" if isinstance(mixer, nn.Module) and type(part).__name__ != "Attention" else ""
    names = {"Conv2d": "convolution", "Linear": "linear layer", "LayerNorm": "norm", "Sequential": "layers"}
    return names.get(type(part).__name__, type(part).__name__) + inner


def shape(out: Any) -> str:
    """What came out, without the batch: 196×192, or 512×7×7 of a map."""
    while isinstance(out, tuple | list) and out:
        out = out[-1]
    return "×".join(map(str, out.shape[1:])) if isinstance(out, Tensor) else ""


def parts(network: nn.Module, images: Tensor) -> list[Part]:
    """The parts in the order in which they ran, neighbours of one kind in a list as one; last, what did not run."""
    found = list(members(network.eval()))
    outs: dict[str, str] = {}
    read: dict[str, set[str]] = {}  # of each part that ran

    def note(name: str) -> Any:
        def hook(_module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            outs[name] = shape(out)
            read[name] = read.get(name, set()) | origins((args, kwargs))
            mark(out, {name})

        return hook

    hooks = [part.register_forward_hook(note(name), with_kwargs=True) for _, name, part in found]
    images.origins = {"images"}
    with torch.no_grad(), Origins():
        network(images)
    for hook in hooks:
        hook.remove()
    order = {name: i for i, name in enumerate(outs)}
    found.sort(key=lambda each: order.get(each[1], len(order)))
    made, before = [], {"images"}
    for (place, what, _), group in itertools.groupby(
        found, lambda each: (each[0] or each[1], described(each[2]), each[1] in outs)
    ):
        names, items = [], []
        for _, name, part in group:
            names.append(name)
            items.append(part)
        attends = any(map(forms_attention, items))
        kind = "idle" if names[-1] not in outs else "attention" if attends else "other"
        kind = "head" if names[-1].endswith("head") and kind == "other" else kind
        first, last = (name.rpartition(".")[2] for name in (names[0], names[-1]))
        numbers = names[0] if len(names) == 1 else f"{place}.{first} … {last}"
        whole = len(names) == sum(each[0] == place for each in found) and len(names) > 1
        count = f"{len(items)} × " if len(items) > 1 else ""
        weights = sum(p.numel() for item in items for p in item.parameters())
        reads = any(before & read.get(name, set()) for name in names)
        made.append(Part(place if whole else numbers, count + what, weights, outs.get(names[-1], ""), kind, reads))
        before = set(names)
    return made


def millions(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count >= 1e4 else f"{count:,}"


def draw(network: nn.Module, images: Tensor) -> str:
    """The SVG: boxes on a white card, so that it reads alike on light and dark pages."""
    boxes = [Part("images", "", 0, shape(images), "other"), *parts(network, images)]
    rows = -(-len(boxes) // A_ROW)
    width = min(A_ROW, len(boxes)) * (WIDTH + GAP) + GAP
    height = rows * (HEIGHT + GAP) + GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12">',
        f'<defs><marker id="tip" markerWidth="7" markerHeight="7" refX="6" refY="3.5" orient="auto">'
        f'<path d="M0 0 7 3.5 0 7z" fill="{LINE}"/></marker></defs>',
        f'<rect width="{width}" height="{height}" rx="10" fill="{CARD}" stroke="{LINE}"/>',
    ]
    for i, box in enumerate(boxes):
        x, y = GAP + i % A_ROW * (WIDTH + GAP), GAP + i // A_ROW * (HEIGHT + GAP)
        dashed = ' stroke-dasharray="4 3"' if box.kind == "idle" else ""
        lines.append(
            f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="{FILLS[box.kind]}" '
            f'stroke="{LINE}"{dashed}/>'
        )
        after = "did not run" if box.kind == "idle" else f"→ {box.out}" if i else box.out
        size = millions(box.parameters) if box.parameters else ""
        written = ((20, TEXT, "bold", box.name), (38, TEXT, "normal", box.what), (56, SOFT, "normal", after))
        for down, colour, weight, text in (*written, (74, SOFT, "normal", size)):
            fit = f' textLength="{WIDTH - 16}" lengthAdjust="spacingAndGlyphs"' if len(text) > 25 else ""
            if text:
                style = f'fill="{colour}" font-weight="{weight}"{fit}'
                lines.append(f'<text x="{x + 8}" y="{y + down}" {style}>{escape(text)}</text>')
        if i % A_ROW and box.reads:
            middle = y + HEIGHT / 2
            ends = f'x1="{x - GAP}" y1="{middle}" x2="{x - 1}" y2="{middle}"'
            lines.append(f'<line {ends} stroke="{LINE}" marker-end="url(#tip)"/>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def page(name: str, folder: Path) -> None:
    """Write the page of a network, and its drawing."""
    make, known = getattr(mien.networks, name), NETWORKS[name]
    with torch.device("meta"):
        network = make()
        images = network.example(1) if hasattr(network, "example") else torch.empty(1, 3, known.size, known.size)
        (folder / f"{name}.svg").write_text(draw(network, images))
    paragraphs = (inspect.getdoc(type(network)) or "").split("\n\n")
    sources = [p for p in paragraphs if re.match(r"Papers?[: ]|Reference[: ]", p)]
    arguments = [p for p in paragraphs if p.startswith("Args:")]
    others = [p for p in paragraphs if p not in sources + arguments]
    said = [p for p in others if not departs(p)]
    text = [f"# {name}", inspect.getdoc(make) or summary(type(network)), *figures(known)]
    text += [
        f"![the parts of the network]({name}.svg)",
        prose("""
            Its parts in the order in which they run, from left to right and row by row, what comes out of each for one
            face, and its parameters. An arrow: it depends on what came out of the part on its left. Blue: attention is
            formed in it. Dashed: it did not run itself; it is for training alone, or others read its parameters.
        """),
        f"## {type(network).__name__}",
        *(links(p) for p in said),
    ]
    if len(said) < len(others):
        text += ["## Beside the paper: departures, what was inferred, what is ours"]
        text += [links(p) for p in others if departs(p)]
    text += ["## Built with"]
    if isinstance(network, Network):  # what `mien train` takes
        text += [f"```yaml\nmodel: {{class_path: mien.networks.{name}, init_args: {{}}}}\n```"]
    text += [f"```python\nfrom mien.networks import {name}\n\nnetwork = {name}()\n```", *map(listed, arguments)]
    if known.opens:
        kinds = "\n".join(f"mien convert {kind} SOURCE OUT.safetensors{as_of(kind, name)}" for kind in known.opens)
        text += ["## Published weights", f"```sh\n{kinds}\n```"]
    source = Path(inspect.getfile(type(network))).name
    text += ["## Source", *map(links, sources), f"Code: [src/mien/networks/{source}](../../src/mien/networks/{source})"]
    (folder / f"{name}.md").write_text("\n\n".join(text) + "\n")


def as_of(kind: str, name: str) -> str:
    return f" --as {name}" if kind == "timm" else ""


def figures(known: Entry) -> list[str]:
    rows = [
        ["parameters", "GMAC for one face", "images", "paper", "weights it opens"],
        [
            f"{known.parameters:,}",
            f"{known.gmac:.3f}",
            f"{known.size}×{known.size}",
            known.paper,
            ", ".join(known.opens) or "–",
        ],
    ]
    return [table(rows, numbers=False)]


def links(paragraph: str) -> str:
    """Prose in which mechanisms lead to their pages."""
    names = {file.stem for file in (HERE.parent / "mechanisms").glob("*.md")} - {"README"}
    text = linked(paragraph.replace("`mien.nn.", "`"), names)
    return re.sub(r"\]\((\w+\.md)\)", r"](../mechanisms/\1)", text)


def index() -> str:
    rows = [["network", "what it is", "parameters", "GMAC", "images", "paper", "opens"]]
    for name in list_networks():
        known, make = NETWORKS[name], getattr(mien.networks, name)
        what = (inspect.getdoc(make) or "").partition("\n\n")[0].partition(". ")[0].replace("\n", " ")
        what = what.partition(":")[0].rstrip(".")
        size = f"{known.size}×{known.size}"
        opens = ", ".join(known.opens) or "–"
        numbers = [f"{known.parameters:,}", f"{known.gmac:.3f}", size]
        rows.append([f"[{name}]({name}.md)", what, *numbers, known.paper, opens])
    return (
        "\n\n".join(
            [
                "# Networks",
                prose("""
                Every network that `mien list networks` names, a page each, with a drawing of its parts. Parameters are
                with the classes that it has unless others are asked for; GMAC are 10⁹ multiplications, each with its
                addition, for one face; what it opens are kinds of `mien convert`. `mien bench networks` measures time
                and memory, side by side. `python docs/make_networks.py` makes the pages, out of the docstrings.
            """),
                table(rows, numbers=False),
            ]
        )
        + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the pages of docs/networks.")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="pages of these alone; README.md names all")
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.only or list_networks():
        page(name, args.out)
    (args.out / "README.md").write_text(index())


if __name__ == "__main__":
    main()
