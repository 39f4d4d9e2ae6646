"""`mien analyse`: which heads of a network's attention matter, and where they look."""

import argparse
import json
from pathlib import Path

import numpy as np

from mien.commands import terminal
from mien.commands.labelled import add_data_arguments, open_data
from mien.commands.options import count
from mien.errors import MienError, require
from mien.files import whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model's name, file, folder, or owner/name on the Hub")
    add_data_arguments(parser)
    parser.add_argument(
        "--limit",
        type=lambda text: count(text, least=4),
        default=512,
        metavar="N",
        help="faces, the same ones every time: one half measures importance, the other judges pruning (default: 512)",
    )
    parser.add_argument("--draws", type=count, default=4, metavar="N", help="random orders of pruning (default: 4)")
    parser.add_argument("--seed", type=lambda text: count(text, least=0), default=0, metavar="N", help="default: 0")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out/analyse"),
        metavar="DIR",
        help="of analysis.html, analysis.json and the plots (default: out/analyse)",
    )


def run(args: argparse.Namespace) -> int:
    """Print and save what `mien.explain.analysis.analyse` finds."""
    for module in ("torch", "safetensors", "matplotlib"):
        require(module, "eval")
    from mien.classifier import Classifier
    from mien.evaluation.measure import sample, targets
    from mien.explain import analysis_page
    from mien.explain.analysis import analyse
    from mien.explain.opening import open_network

    deployed, header = open_network(args.model, trust=args.trust)
    classifier = Classifier(None, header)  # type: ignore[arg-type]  # it crops, and knows the labels
    data, split = open_data(args)
    rows = sample(data.rows(split), args.limit)
    if len(rows) < 4:
        raise MienError(f"{args.data}: {len(rows)} labelled faces of {split}: both halves need two at least")
    target = targets(classifier, data, rows)
    crops = np.stack([classifier.crop(row.image()) for row in rows])
    say = terminal.begin
    found = analyse(deployed, crops, target, draws=args.draws, seed=args.seed, tell=say)
    title = f"Attention of {Path(args.model).name} on {Path(args.data).name}, {split}: {len(rows):,} faces"
    drawn = analysis_page.figures(found)
    args.out.mkdir(parents=True, exist_ok=True)
    files = {f"{name}.png": content for name, content in drawn.items()}
    files["analysis.html"] = analysis_page.page(title, found, drawn).encode()
    files["analysis.json"] = json.dumps(analysis_page.facts(found), indent=1).encode() + b"\n"
    for name, content in files.items():
        with whole(args.out / name) as file:
            file.write(content)
    print(
        f"{title}\n\n{analysis_page.summary(found)}\n\nsaved in {args.out}: analysis.html, analysis.json and the plots"
    )
    return 0
