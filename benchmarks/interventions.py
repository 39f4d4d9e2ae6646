"""Shipped models under every rule for their attention, beside the untouched ones, on the same validation faces.

    python benchmarks/interventions.py train_validation.parquet [--faces 500] [--model btn_mobile_ferplus]

Rows of the table are what `mien eval MODEL --data DATA --limit N --intervene RULE` prints, but the trunk, which no rule
touches, reads each face once for all of them, and so do the untouched network and the fitting. Faces are those of
`--limit`. Answers are kept in --out, fifty faces at a time, and a run goes on where it was cut.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from mien.classifier import Classifier, find_checkpoint
from mien.data import open_dataset
from mien.evaluation.measure import Measured, sample, targets
from mien.evaluation.report import classification_report
from mien.evaluation.steered import FITTED_TO, Under, steered
from mien.interventions import Intervened, make_rule
from mien.networks.deploy import to_float

RULES = (
    "sinks",
    "sinks:rows=all,layers=*",
    "heads",
    "heads:baseline=zero",
    "heads:baseline=positions",
    "heads:mode=static",
    "heads:mode=static,region=eyes",
    "heads:mode=static,region=mouth",
    "boost",
    "boost:variant=odds",
)


class Fronted:
    """What a rule is to give for images, given what the trunk makes of them: `Without.images` in the trunk's terms."""

    def __init__(self, network, rule, size):
        blank = rule.without.images(torch.zeros(1, 3, size, size)) if rule.without.region == "face" else None
        self.maps = None if blank is None or rule.without.baseline == "positions" else network.front(blank)

    def __call__(self, maps):
        return maps if self.maps is None else tuple(x.expand(len(maps[0]), *x.shape[1:]) for x in self.maps)


def main() -> None:
    parser = argparse.ArgumentParser(description="Shipped models under rules for their attention.")
    parser.add_argument("data")
    parser.add_argument("--model", default="btn_mobile_ferplus")
    parser.add_argument("--faces", type=int, default=500)
    parser.add_argument("--fit", type=int, default=FITTED_TO)
    parser.add_argument("--rules", nargs="+", default=RULES)
    parser.add_argument("--out", type=Path, default=Path("out/rules"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    classifier = Classifier.from_pretrained(find_checkpoint(args.model))
    deployed = classifier.engine.module
    network = deployed.network
    data = open_dataset(args.data)
    rows = sample(data.rows("validation"), None)
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[: args.faces]]  # those of --limit

    def images(some):
        return deployed.normalize(to_float(torch.from_numpy(np.stack([classifier.crop(row.image()) for row in some]))))

    rules = {}
    with torch.inference_mode():
        batches = [images(rows[: args.fit][i : i + 32]) for i in range(0, min(args.fit, len(rows)), 32)]
        for text in args.rules:
            rules[text] = make_rule(text)
            rules[text].fit(network, batches)
            print(text, *rules[text].notes, sep="\n  ", flush=True)
            if hasattr(rules[text], "without") and not rules[text].static:
                rules[text].without.images = Fronted(network, rules[text], batches[0].shape[2])
        parts: dict[str, list[np.ndarray]] = {text: [] for text in ("", *rules)}
        for start in range(0, len(rows) - len(rows) % 50, 50):
            path = args.out / f"{args.model}-{args.fit}-{start}.npz"
            if not path.exists():
                maps = network.front(images(rows[start : start + 50]))
                probs = {"": (network(maps) / deployed.temperature).softmax(-1).numpy()}
                for text, rule in rules.items():
                    probs[text] = (Intervened(network, rule)(maps) / deployed.temperature).softmax(-1).numpy()
                np.savez(path, **{f"probs{i}": values for i, values in enumerate(probs.values())})
            for text, values in zip(parts, np.load(path).values(), strict=True):
                parts[text].append(values)
    rows = rows[: len(rows) - len(rows) % 50]
    target = targets(classifier, data, rows)

    def measured(text):
        probs = np.concatenate(parts[text])
        return Measured(classification_report(probs, target, classifier.labels), 0, None, rows, probs, target)

    plain = measured("")
    print(f"\n{args.model}: {len(rows):,} faces, accuracy {plain.report.accuracy:.4f}")
    print("\n| rule | accuracy (95 %) | won, lost | McNemar p | flips | calibration error (95 %) | log loss (95 %) |")
    print("|---|---|---:|---:|---:|---|---|")
    for text, rule in rules.items():
        found = steered(Under(classifier, text, f"{args.fit} of them", rule.notes), plain, measured(text))
        c = found.comparison
        by = [(c.accuracy_difference, *c.interval), found.calibration, found.log_loss]
        accuracy, calibration, loss = ("{:+.4f} ({:+.4f} to {:+.4f})".format(*each) for each in by)
        cells = [f"`{text}`", accuracy, f"{c.won}, {c.lost}", f"{c.p_value:.2g}", str(found.flips), calibration, loss]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
