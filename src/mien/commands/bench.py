"""`mien bench`: what attention mechanisms cost beside self-attention, and whole networks, in the same run."""

import argparse
import importlib
import json
import os
import re
from typing import Any

from mien.catalogue import NETWORKS, list_networks
from mien.commands.list import mixers
from mien.commands.options import count
from mien.commands.tables import on_terminal
from mien.errors import MienError, Misuse, require

FIRST = "mobilefacenet"
"""The network that all others are compared with."""


def grid(text: str) -> tuple[int, int]:
    sides = re.fullmatch(r"([1-9]\d*)[,x×]([1-9]\d*)", text)
    if sides is None:
        raise argparse.ArgumentTypeError(f"a grid is two whole numbers with a comma between, not {text!r}")
    return int(sides[1]), int(sides[2])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("mixers", "networks"), help="what is measured")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="those that mien list names, or import paths (default: all)"
    )
    parser.add_argument(
        "--grid", metavar="H,W", type=grid, action="append", help="of mixers, repeatable (default: 14,14 28,28 56,56)"
    )
    parser.add_argument("--dim", metavar="N", type=count, help="width of a token, for mixers (192)")
    parser.add_argument("--heads", metavar="N", type=count, help="heads, for mixers (6)")
    parser.add_argument("--batch", metavar="N", type=count, default=2, help="faces at once (2)")
    parser.add_argument("--threads", metavar="N", type=count, default=1, help="of torch (1)")
    parser.add_argument("--rounds", metavar="N", type=count, default=5, help="how often each is timed (5)")
    parser.add_argument("--memory", metavar="GB", type=float, default=4.0, help="skip what would take more (4)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run(args: argparse.Namespace) -> int:
    """Print a table a grid, and how everything grows with the tokens; or a table of networks."""
    require("torch", "torch")
    import torch

    from mien.networks.cost import compare

    if args.what == "networks":
        return run_networks(args)
    args.dim, args.heads = args.dim or 192, args.heads or 6
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


def run_networks(args: argparse.Namespace) -> int:
    """Print a table of networks, or JSON."""
    import torch

    import mien.networks
    from mien.networks.cost import compare_networks

    given = [f"--{option}" for option in ("grid", "dim", "heads") if getattr(args, option) is not None]
    if given:
        raise Misuse(f"{', '.join(given)}: networks have their own; only mixers are measured with it")
    names = dict.fromkeys([FIRST, *(args.names or list_networks())])
    makers = {n: getattr(mien.networks, n) if n in NETWORKS else imported(n, "network") for n in names}
    torch.set_num_threads(args.threads)
    try:
        found = compare_networks(makers, args.batch, args.rounds, args.memory)
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:  # of what is no network
        raise MienError(f"a network cannot be measured: {' '.join(str(error).split())}") from error
    options = {option: getattr(args, option) for option in ("batch", "threads", "rounds")}
    result = {"torch": torch.__version__, "cores": os.cpu_count(), **options, "networks": found}
    print(json.dumps(result, indent=1) if args.json else on_terminal(network_table(result)))
    return 0


def find(name: str) -> Any:
    """A mixer of mien.nn, or one of the user's own."""
    return mixers()[name] if name in mixers() else imported(name, "mixer")


def imported(name: str, what: str) -> Any:
    """What an import path of the user's names."""
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise MienError(f"there is no {what} {name}; mien list {what}s names mien's") from error


COLUMNS = {  # its title, its unit, digits behind the point
    "parameters": ("parameters", 1, 0),
    "macs": ("MMAC a face", 1e6, 1),
    "forward_ms": ("forward, ms", 1, 1),
    "training_ms": ("and backward, ms", 1, 1),
    "forward_mb": ("peak forward, MB", 1, 1),
    "training_mb": ("and backward, MB", 1, 1),
}


def cells(found: dict[str, Any] | None, titles: dict[str, tuple[str, float, int]]) -> str:
    """Each measure, and in brackets its ratio to the first."""
    return " | ".join(
        f"{found[measure]['value'] / unit:,.{digits}f} ({found[measure]['ratio']:.2f})" if found else "–"
        for measure, (_, unit, digits) in titles.items()
    )


def conditions(result: dict[str, Any], first: str) -> str:
    """Under which figures were measured."""
    return (
        f"{result['batch']} faces, torch {result['torch']} on {result['threads']} of {result['cores']} cores, medians "
        f"of {result['rounds']} rounds. Times are the processor's; memory is the most that torch's profiler saw "
        f"allocated at once. In brackets: the ratio to {first}. A dash: it would have taken more memory than --memory "
        "allows."
    )


def network_table(result: dict[str, Any]) -> str:
    """Markdown: a line a network."""
    titles = COLUMNS | {"macs": ("GMAC a face", 1e9, 3)}
    lines = [
        f"{conditions(result, FIRST)} Weights count in no memory.",
        "",
        f"| network | input |{''.join(f' {title} |' for title, *_ in titles.values())}",
        "|---|---:|" + "---:|" * len(titles),
    ]
    for name, found in result["networks"].items():
        measured = found if found["parameters"] else None
        lines.append(f"| {name} | {found['size']} | {cells(measured, titles)} |")
    return "\n".join(lines)


def tables(result: dict[str, Any]) -> str:
    """Markdown: each measure, and in brackets its ratio to self-attention."""
    made = result["mixers"]
    head = f"| {{}} |{''.join(f' {title} |' for title, *_ in COLUMNS.values())}"
    rule = "|---|" + "---:|" * len(COLUMNS)
    lines = [f"dim {result['dim']}, {result['heads']} heads, {conditions(result, 'SelfAttention')}"]
    first = next(iter(made.values()))
    for name in first["grids"]:
        lines += ["", head.format(name.replace(",", "×")), rule]
        for mixer, figures in made.items():
            lines.append(f"| {mixer} | {cells(figures['grids'].get(name), COLUMNS)} |")
    if first["slopes"]:
        lines += ["", head.format("grows with tokens to the power of"), rule]
        for mixer, figures in made.items():
            slopes = [f"{figures['slopes'][measure]:.2f}" if figures["slopes"] else "–" for measure in COLUMNS]
            lines.append(f"| {mixer} | {' | '.join(slopes)} |")
    return "\n".join(lines)
