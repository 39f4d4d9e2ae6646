"""Random-feature attention: what a layer can learn whose queries and keys are random, and only its values trained.

Targets of a query x0 and keys x_1 … x_N on the sphere: of the keys alone, `(1 / N) Σ <b, x_i>^p`, or of both,
`(1 / N) Σ <x0, x_i>^p <b, x_i>^r`. Three layers of the same width learn them from n samples, by ridge regression:

    RFA     attention with random weights (`mien.nn.random_features`)
    BRFA    the same, biased: its weights lean towards the product of query and key
    RFMLP   relu of a random projection of all the inputs, laid end to end

The strength of the ridge is chosen on samples of its own, and errors are measured on others.

Paper: Fu et al., What can a Single Attention Layer Learn? A Study Through the Random Features Lens, arXiv 2307.11353.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mien.nn.random_feature_attention import append_one, draw_weight, random_features
from mien.study.findings import Bound, Findings, NumberTable, Series


class RfaSize(NamedTuple):
    """D, N, the heads, how many samples teach and judge, the seeds, and how often one error should be the other's."""

    width: int = 8
    keys: int = 6
    heads: int = 120
    samples: Sequence[int] = (150, 500, 1500)
    judged: int = 2000
    seeds: int = 3
    factor: float = 3.0


SMALL = RfaSize(5, 6, 60, (150, 600), 500, 1, 2.0)
STRENGTHS = [10.0**power for power in range(-8, 3)]

TARGETS: dict[str, tuple[int, int]] = {  # powers of <x0, x_i> and of <b, x_i>
    "<b, x>": (0, 1),
    "<b, x>²": (0, 2),
    "<b, x>³": (0, 3),
    "<x0, x><b, x>": (1, 1),
    "<x0, x>²": (2, 0),
    "<x0, x>³<b, x>": (3, 1),
}
Layer = Callable[[Tensor], Tensor]
"""Query and keys (n, 1 + N, D) -> features (n, width)."""


def layers(size: RfaSize, generator: torch.Generator) -> dict[str, Layer]:
    """The three, each of heads · (D + 1) features."""
    d, heads = size.width, size.heads

    def attention(weight: Tensor, lifted: bool = True) -> Layer:
        lift = append_one if lifted else (lambda x: x)
        return lambda x: random_features(weight, lift(x[:, 0]), lift(x[:, 1:]))

    plain, biased = (draw_weight(d, heads, lean, generator).double() for lean in (False, True))
    projection = torch.randn(heads * (d + 1), (1 + size.keys) * d + 1, generator=generator).double() / 2
    return {
        "RFA": attention(plain),
        "BRFA": attention(biased),
        "RFMLP": lambda x: F.linear(append_one(x.flatten(1)), projection).relu(),
        "RFA without the 1": attention(plain[:, :d, :d], lifted=False),
    }


def draw(count: int, size: RfaSize, generator: torch.Generator) -> Tensor:
    """Queries and keys on the sphere: (count, 1 + N, D)."""
    return F.normalize(torch.randn(count, 1 + size.keys, size.width, generator=generator).double(), dim=-1)


def target(x: Tensor, b: Tensor) -> Tensor:
    """All targets of (n, 1 + N, D), over their standard deviation: (n, targets)."""
    query, keys = (x[:, :1] * x[:, 1:]).sum(-1), x[:, 1:] @ b
    found = torch.stack([(query**p * keys**r).mean(1) for p, r in TARGETS.values()], 1)
    return found / found.std(0)


def errors(layer: Layer, train: Tensor, choose: Tensor, test: Tensor, b: Tensor) -> Tensor:
    """Squared error over variance of each target, learned from `train` at the strength that `choose` likes best."""
    (x, y), *others = ((layer(part), target(part, b)) for part in (train, choose, test))
    x_mean, y_mean = x.mean(0), y.mean(0)
    size = (x - x_mean).square().mean().sqrt()
    if len(x) < x.shape[1]:  # fewer samples than features: the same answer from the samples' products
        values, vectors = torch.linalg.eigh((gram := (x - x_mean) / size) @ gram.mT / len(x))
        turned = vectors.mT @ (y - y_mean) / len(x)
        bases = [((part - x_mean) / size @ gram.mT @ vectors, wanted) for part, wanted in others]
    else:
        gram = (x - x_mean) / size
        values, vectors = torch.linalg.eigh(gram.mT @ gram / len(x))
        turned = vectors.mT @ (gram.mT @ (y - y_mean)) / len(x)
        bases = [((part - x_mean) / size @ vectors, wanted) for part, wanted in others]
    found = []
    for basis, wanted in bases:
        answers = torch.stack([basis @ (turned / (values[:, None] + strength)) for strength in STRENGTHS])
        found.append((answers + y_mean - wanted).square().mean(1) / wanted.var(0))  # (strengths, targets)
    chosen, tested = found
    return tested.gather(0, chosen.argmin(0, keepdim=True))[0]


def run(small: bool = False) -> Findings:
    """Three layers, six targets, samples by the hundred; `small`: fewer heads and samples, one seed."""
    size = SMALL if small else RfaSize()
    sizes, seeds = size.samples, size.seeds
    found: dict[str, list[Tensor]] = {}
    moved = 0.0
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        made = layers(size, generator)
        b = F.normalize(torch.randn(size.width, generator=generator).double(), dim=0)
        train, choose, test = (draw(n, size, generator) for n in (max(sizes), size.judged, size.judged))
        for name, layer in made.items():
            found.setdefault(name, []).append(torch.stack([errors(layer, train[:n], choose, test, b) for n in sizes]))
        shuffled = torch.cat([test[:, :1], test[:, 1:].flip(1)], 1)
        moved = max(moved, float((made["RFA"](test) - made["RFA"](shuffled)).abs().max()))
    means = {name: torch.stack(each).mean(0) for name, each in found.items()}  # (sizes, targets)
    last = {name: dict(zip(TARGETS, mean[-1].tolist(), strict=True)) for name, mean in means.items()}
    squared, alike = "<b, x>²", "<x0, x>²"
    bounds = [
        Bound(f"{squared}: error of RFMLP over RFA", last["RFMLP"][squared] / last["RFA"][squared], low=size.factor),
        Bound(f"{alike}: error of RFA over BRFA", last["RFA"][alike] / last["BRFA"][alike], low=size.factor),
        Bound("features of RFA, keys in another order: greatest change", moved, high=1e-6, theory=0),
        Bound(f"{squared}: error of RFA without the appended 1", last["RFA without the 1"][squared], 0.9, theory=1),
        Bound("<b, x>: error of BRFA over RFA", last["BRFA"]["<b, x>"] / last["RFA"]["<b, x>"]),
    ]
    rows = [f"{name}, {n} samples" for name in means for n in sizes]
    values = [row.tolist() for mean in means.values() for row in mean]
    title = f"squared error over variance, mean of {seeds} seeds" if seeds > 1 else "squared error over variance"
    tables = {"errors": NumberTable(title, rows, list(TARGETS), values)}
    shown = ("RFA", "BRFA", "RFMLP")
    series = {
        name: Series(
            f"learning the mean of {of} over the keys",
            "samples",
            "squared error over variance",
            sizes,
            {layer: means[layer][:, list(TARGETS).index(of)].tolist() for layer in shown},
            scale="log",
        )
        for name, of in (("keys", squared), ("query", alike))
    }
    settings = {"width": size.width, "keys": size.keys, "heads": size.heads, "samples": max(sizes), "seeds": seeds}
    return Findings("rfa", "Random-feature attention", settings, bounds, tables, series)
