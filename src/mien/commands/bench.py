"""`mien bench mixers`: what every attention mechanism costs, beside self-attention in the same run."""

import argparse
import importlib
import json
import os
import re
from typing import Any

from mien.commands.list import mixers
from mien.commands.options import count
from mien.commands.tables import on_terminal
from mien.errors import MienError, require


def grid(text: str) -> tuple[int, int]:
    sides = re.fullmatch(r"([1-9]\d*)[,x×]([1-9]\d*)", text)
    if sides is None:
        raise argparse.ArgumentTypeError(f"a grid is two whole numbers with a comma between, not {text!r}")
    return int(sides[1]), int(sides[2])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("mixers",), help="what is measured")
    parser.add_argument("names", nargs="*", metavar="NAME", help="mixers of mien.nn, or import paths (default: all)")
    parser.add_argument(
        "--grid", metavar="H,W", type=grid, action="append", help="may be repeated (default: 14,14 28,28 56,56)"
    )
    parser.add_argument("--dim", metavar="N", type=count, default=192, help="width of a token (192)")
    parser.add_argument("--heads", metavar="N", type=count, default=6, help="heads (6)")
    parser.add_argument("--batch", metavar="N", type=count, default=2, help="faces at once (2)")
    parser.add_argument("--threads", metavar="N", type=count, default=1, help="of torch (1)")
    parser.add_argument("--rounds", metavar="N", type=count, default=5, help="how often each is timed (5)")
    parser.add_argument("--memory", metavar="GB", type=float, default=4.0, help="skip what would take more (4)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run(args: argparse.Namespace) -> int:
    """Print a table a grid, and how everything grows with the tokens."""
    require("torch", "torch")
    import torch

    from mien.networks.cost import compare

    grids = list(dict.fromkeys(args.grid or [(14, 14), (28, 28), (56, 56)]))
    makers = {"SelfAttention": mixers()["SelfAttention"]}
    makers |= {name: find(name) for name in args.names} if args.names else mixers()
    torch.set_num_threads(args.threads)
    try:
        results = compare(makers, grids, args.dim, args.heads, args.batch, args.rounds, args.memory)
    except (ValueError, TypeError, RuntimeError) as error:  # of a width, a number of heads or a grid that will not do
        raise MienError(f"a mixer cannot be measured: {' '.join(str(error).split())}") from error
    result = {
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        **{option: getattr(args, option) for option in ("dim", "heads", "batch", "threads", "rounds")},
        "mixers": results,
    }
    print(json.dumps(result, indent=1) if args.json else on_terminal(tables(result)))
    return 0


def find(name: str) -> Any:
    """A mixer of mien.nn, or one of the user's own."""
    if name in mixers():
        return mixers()[name]
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise MienError(f"there is no mixer {name}; mien list mixers names mien's") from error


COLUMNS = {  # its title, its unit, digits behind the point
    "parameters": ("parameters", 1, 0),
    "macs": ("MMAC a face", 1e6, 1),
    "forward_ms": ("forward, ms", 1, 1),
    "training_ms": ("and backward, ms", 1, 1),
    "forward_mb": ("peak forward, MB", 1, 1),
    "training_mb": ("and backward, MB", 1, 1),
}


def tables(result: dict[str, Any]) -> str:
    """Markdown: each measure, and in brackets its ratio to self-attention."""
    made = result["mixers"]
    head = f"| {{}} |{''.join(f' {title} |' for title, *_ in COLUMNS.values())}"
    rule = "|---|" + "---:|" * len(COLUMNS)
    lines = [
        f"dim {result['dim']}, {result['heads']} heads, {result['batch']} faces, torch {result['torch']} on "
        f"{result['threads']} of {result['cores']} cores, medians of {result['rounds']} rounds. Times are the "
        "processor's; memory is the most that torch's profiler saw allocated at once. In brackets: the ratio to "
        "SelfAttention. A dash: it would have taken more memory than --memory allows."
    ]
    first = next(iter(made.values()))
    for name in first["grids"]:
        lines += ["", head.format(name.replace(",", "×")), rule]
        for mixer, figures in made.items():
            found = figures["grids"].get(name, {})
            cells = [
                f"{found[measure]['value'] / unit:,.{digits}f} ({found[measure]['ratio']:.2f})" if found else "–"
                for measure, (_, unit, digits) in COLUMNS.items()
            ]
            lines.append(f"| {mixer} | {' | '.join(cells)} |")
    if first["slopes"]:
        lines += ["", head.format("grows with tokens to the power of"), rule]
        for mixer, figures in made.items():
            cells = [f"{figures['slopes'][measure]:.2f}" if figures["slopes"] else "–" for measure in COLUMNS]
            lines.append(f"| {mixer} | {' | '.join(cells)} |")
    return "\n".join(lines)
