"""Which explanation of a model can be believed: deletion and insertion on validation faces, a table and a plot.

python benchmarks/faithfulness.py DATA --out runs/faithfulness [--model MODEL] [--faces 512] [--grid 5] [--minutes 9]

Every method orders the cells of the same grid. Deletion replaces them by a blurred face, the first of them first;
insertion begins with the blurred face. What is measured is the probability of the label that the model gave to the
whole face. Random order and a map that is the same for every face, high in the middle, stand beside them. What is done
is kept in `--out`: run it again after a cut, or after `--minutes`, and it goes on. `--part 0/3`, `1/3` and `2/3` are a
third of the faces each, for three processes; whichever comes last draws the table.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from mien.checkpoint import labels_of
from mien.classifier import DEFAULT_MODEL, Classifier
from mien.data import open_dataset
from mien.evaluation.measure import sample
from mien.explain import GradCAM, IntegratedGradients, Occlusion, open_network
from mien.explain.explanation import on_grid
from mien.explain.faithfulness import curves, face_prior, order_of, random_order, scores

ABOVE = ("random", "face prior")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--faces", type=int, default=512)
    parser.add_argument("--grid", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--gradient-steps", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--part", default="0/1")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    data = open_dataset(args.data)
    rows = sample(data.rows(args.split), args.faces)
    classifier = Classifier.from_pretrained(args.model, precision="fp32")
    deployed, header = open_network(args.model)
    labels = labels_of(header)
    methods = {
        "occlusion": Occlusion(classifier.run, labels, args.grid),
        "integrated gradients": IntegratedGradients(deployed, labels, args.gradient_steps),
        "Grad-CAM": GradCAM(deployed, labels),
    }
    part, parts = map(int, args.part.split("/"))
    files = [args.out / f"curves-{i}-of-{parts}.npz" for i in range(parts)]
    mine, done, began = range(part, len(rows), parts), load(files[part]), time.monotonic()
    for i in mine[len(next(iter(done.values()), [])) :]:
        crop = classifier.crop(rows[i].image())
        explained = {name: method.explain(crop) for name, method in methods.items()}
        orders = {name: order_of(on_grid(each.values, args.grid)) for name, each in explained.items()}
        orders |= {"face prior": order_of(face_prior(args.grid)), "random": random_order(args.grid, i)}
        index = explained["occlusion"].index
        for name, each in curves(classifier.run, crop, index, orders, args.grid, args.steps).items():
            done.setdefault(name, []).append(each)
        late = time.monotonic() - began > 60 * args.minutes
        count = len(done["random"])
        if late or count % 4 == 0 or count == len(mine):
            np.savez(files[part], **{name: np.stack(each) for name, each in done.items()})
            print(f"part {args.part}: {count} of {len(mine)} faces", flush=True)
        if late:
            return
    every = [load(file) for file in files]
    if sum(len(each.get("random", ())) for each in every) == len(rows):
        found = {name: np.concatenate([each[name] for each in every]) for name in done}
        report(found, args.out, f"{args.model}, {len(rows)} faces of {args.split}")


def load(file: Path) -> dict[str, list[np.ndarray]]:
    """By method, the curves of the faces that were done."""
    if not file.is_file():
        return {}
    with np.load(file) as arrays:
        return {name: list(arrays[name]) for name in arrays}


def report(found: dict[str, np.ndarray], out: Path, title: str) -> None:
    """table.md, scores.json and faithfulness.png."""
    measured = scores(found, ABOVE)
    ranked = sorted(measured, key=lambda name: measured[name].deletion - measured[name].insertion)
    lines = ["| order | deletion, 95 % | insertion, 95 % | beyond random, 95 % | beyond the face prior, 95 % |",
             "|---|---|---|---|---|"]  # fmt: skip
    for name in ranked:
        one = measured[name]
        cells = [f"{v:.3f} ({low:.3f} to {high:.3f})" for v, (low, high) in
                 ((one.deletion, one.deletion_interval), (one.insertion, one.insertion_interval))]  # fmt: skip
        for other in ABOVE:
            cells.append("{:+.3f} ({:+.3f} to {:+.3f})".format(*one.beyond[other]) if other in one.beyond else "–")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    table = "\n".join(lines)
    print(f"{title}\n\n{table}")
    (out / "table.md").write_text(table + "\n")
    facts = {
        name: {"deletion": s.deletion, "insertion": s.insertion, "beyond": s.beyond} for name, s in measured.items()
    }
    (out / "scores.json").write_text(json.dumps(facts, indent=2) + "\n")
    plot(found, ranked, title, out / "faithfulness.png")


def plot(found: dict[str, np.ndarray], ranked: list[str], title: str, path: Path) -> None:
    """Mean curves, and 95 % of each mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), dpi=120, layout="constrained")
    for axes, which, name in zip(figure.subplots(1, 2, sharey=True), (0, 1), ("deletion", "insertion"), strict=True):
        for method in ranked:
            each = found[method][:, which]
            share, mean = np.linspace(0, 1, each.shape[1]), each.mean(0)
            half = 1.96 * each.std(0, ddof=1) / np.sqrt(len(each))
            style = {"linestyle": "--", "color": "black" if method == "random" else "grey"} if method in ABOVE else {}
            [line] = axes.plot(share, mean, label=method, **style)
            axes.fill_between(share, mean - half, mean + half, alpha=0.15, color=line.get_color(), linewidth=0)
        axes.set(xlabel=f"share of the face that is {'gone' if which == 0 else 'back'}", title=name, ylim=(0, 1))
    figure.axes[0].set_ylabel("probability of the label")
    figure.axes[1].legend(loc="lower right", fontsize="small")
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path)


if __name__ == "__main__":
    main()
