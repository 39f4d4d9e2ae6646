"""Pavlovian conditioning: attention without a softmax as a memory that pairs stimuli, its keys, with responses.

    Hebb    S = Σ_i v_i k_iᵀ                      what is read of key q is S q = Σ_i (k_i · q) v_i: linear attention
    delta   S ← S + (v_i - S k_i) k_iᵀ            only what S does not say yet is written

Keys are random of length 1 in d dimensions. On average the error of what Hebb's S reads is ‖error‖² / ‖v‖² =
(n - 1) / d: n may grow with d. That nothing is lost for sure, `Σ_{i≠j} |k_i · k_j| < ½` for every j, holds only while n
grows with √d. *Inferred* from the paper's abstract: both criteria, and how heads and layers fail together.

Paper: Qiao, Understanding Transformers through the Lens of Pavlovian Conditioning, arXiv 2508.08289.
"""

import math
from itertools import pairwise
from statistics import NormalDist
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mien.nn.linear_attention import remember
from mien.study.findings import Bound, Findings, NumberTable, Series

RESPONSE = 32  # numbers of a value


def draw(shape: tuple[int, ...], width: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Keys of length 1 (…, n, width), and values (…, n, RESPONSE)."""
    keys = F.normalize(torch.randn(*shape, width, generator=generator).double(), dim=-1)
    return keys, torch.randn(*shape, RESPONSE, generator=generator).double()


def written(keys: Tensor, values: Tensor, rule: Literal["hebb", "delta"], passes: int = 1) -> Tensor:
    """The memory (…, width, RESPONSE) after all pairs in their order, as often as there are passes."""
    state = keys.new_zeros(*keys.shape[:-2], keys.shape[-1], values.shape[-1])
    rate = keys.new_ones(*keys.shape[:-1], 1)
    for _ in range(passes):
        state = remember(keys, keys, values, rate, state, rule)[1]
    return state


def error(state: Tensor, keys: Tensor, values: Tensor) -> float:
    """Of all pairs, read at their keys: ‖error‖² / ‖v‖²."""
    return float((keys @ state - values).square().sum() / values.square().sum())


def on_average(width: int, count: int, trials: int, generator: torch.Generator) -> float:
    """The error of Hebb's rule."""
    pairs = (draw((count,), width, generator) for _ in range(trials))
    return sum(error(written(*pair, "hebb"), *pair) for pair in pairs) / trials


def average_capacity(width: int, trials: int, generator: torch.Generator) -> float:
    """How many pairs make an error of 1/4, between the numbers that were tried; NaN where none does."""
    counts = [1 + round(share * width) for share in (0.15, 0.2, 0.25, 0.3, 0.35)]
    found = [on_average(width, count, trials, generator) for count in counts]
    for (few, low), (many, high) in pairwise(zip(counts, found, strict=True)):
        if low < 0.25 <= high:
            return few + (0.25 - low) / (high - low) * (many - few)
    return math.nan


def worst_capacity(width: int, trials: int, generator: torch.Generator) -> float:
    """How many keys there are when the sum reaches ½ for one: halfway between the last number without and the next."""
    found, most = [], round(math.sqrt(width)) + 8
    for _ in range(trials):
        keys = draw((most,), width, generator)[0]
        sums = (keys @ keys.T).abs().fill_diagonal_(0).cumsum(1).triu()  # [j, n]: of key j, once there are n + 1
        found.append(int((sums.amax(0) < 0.5).sum()) + 0.5)
    return sum(found) / trials


def worst_theory(width: int) -> float:
    """The same, of n normal sums of |k_i · k_j|, whose mean is √(2 / πd), and the greatest of n of them: ours."""
    mean, spread = math.sqrt(2 / math.pi / width), math.sqrt((1 - 2 / math.pi) / width)
    low, high = 1.0, float(width)
    for _ in range(60):
        n = (low + high) / 2
        greatest = (n - 1) * mean + math.sqrt(n - 1) * spread * NormalDist().inv_cdf(0.5 ** (1 / n))
        low, high = (n, high) if greatest < 0.5 else (low, n)
    return low


def growth(widths: list[int], capacities: list[float]) -> float:
    """The power of the width with which the other pairs grow that one bears: the slope of a line through logarithms."""
    x, y = torch.tensor(widths).double().log(), (torch.tensor(capacities).double() - 1).log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def recalled(trials: int, layers: int, heads: int, generator: torch.Generator) -> Tensor:
    """Which pairs of so many memories are recalled: (trials, layers, heads, pairs).

    Every memory, Hebb's, has 18 pairs of its own and 16 dimensions; what is read is taken for the likest of its values.
    """
    keys, values = draw((trials, layers, heads, 18), 16, generator)
    read = keys @ written(keys, values, "hebb")
    likest = (read @ F.normalize(values, dim=-1).mT).argmax(-1)
    return likest == torch.arange(18)


def outvoted(failure: float, heads: int) -> float:
    """How often most of so many independent heads fail."""
    right = range(heads // 2 + 1)
    return sum(math.comb(heads, r) * (1 - failure) ** r * failure ** (heads - r) for r in right)


def run(small: bool = False) -> Findings:
    """Capacity, both rules, the softmax beside them, and depth; `small`: narrower memories, fewer trials."""
    generator = torch.Generator().manual_seed(0)
    trials = 20 if small else 40
    widths, deep = ([32, 64, 128], [64, 256, 1024]) if small else ([64, 256, 1024], [64, 256, 1024, 4096])
    bounds, middle = [], widths[1]
    for times in (0.25, 1, 4):
        count = round(times * middle)
        measured = on_average(middle, count, trials, generator)
        bounds.append(
            Bound.near(f"Hebb, error of {count} pairs in {middle} dimensions", measured, (count - 1) / middle, 0.05)
        )
    average = [average_capacity(width, trials, generator) for width in widths]
    worst = [worst_capacity(width, 5 * trials, generator) for width in deep]
    bounds.append(Bound.near("others at an error of ¼ grow with d to the power of", growth(widths, average), 1, 0.05))
    bounds.append(Bound.near("others without danger grow with d to the power of", growth(deep, worst), 0.5, 0.1))
    for width, found in zip(deep, worst, strict=True):
        bounds.append(Bound.near(f"pairs without danger in {width} dimensions", found, worst_theory(width), 0.1))

    counts, again = [8, 16, 32, 48, 64, 96], "delta, 50 passes more"
    curves: dict[str, list[float]] = {"Hebb": [], "delta": [], again: []}
    for count in counts:
        pairs = draw((trials // 4, count), 64, generator)
        curves["Hebb"].append(error(written(*pairs, "hebb"), *pairs))
        curves["delta"].append(error(once := written(*pairs, "delta"), *pairs))
        curves[again].append(error(written(*pairs, "delta", passes=51), *pairs))
    last = float((pairs[0][:, -1:] @ once - pairs[1][:, -1:]).abs().max())
    hebb, delta, often = (line[counts.index(32)] for line in curves.values())
    bounds += [
        Bound("32 pairs in 64 dimensions: error of delta over Hebb", delta / hebb, high=0.75),
        Bound("32 pairs in 64 dimensions: error of delta after 50 passes more", often, high=1e-4, theory=0),
        Bound("delta, the pair written last: greatest error", last, high=1e-9, theory=0),
    ]
    stored = 1024 if small else 4096
    keys, values = draw((stored,), 16, generator)
    for beta, high in ((32, 0.01), (8, math.inf)):
        soft = (beta * keys @ keys.T).softmax(-1) @ values
        name = f"softmax({beta} · k·q): error of {stored:,} pairs in 16 dimensions"
        bounds.append(Bound(name, float((soft - values).square().sum() / values.square().sum()), high=high))

    right = recalled(400, 12, 5, generator)
    failure = float(1 - right.double().mean())
    bounds.append(Bound("failure of one head of one layer, 18 pairs in 16 dimensions", failure))
    depths, lines = list(range(1, 13)), {}
    for heads in (1, 3, 5):
        layer = right[:, :, :heads].double().mean(2) > 0.5  # (trials, layers, pairs)
        through = layer.cumprod(1).double().mean((0, 2)).tolist()
        theory = [(1 - outvoted(failure, heads)) ** depth for depth in depths]
        plural = "s" if heads > 1 else ""
        lines |= {f"{heads} head{plural}": through, f"{heads} head{plural}, (1 - maj(ε))^depth": theory}
        for depth in (6, 12):
            name = f"recalled through {depth} layers of {heads} head{plural}"
            bounds.append(Bound.near(name, through[depth - 1], theory[depth - 1], 0.05))
    series = {
        "capacity": Series(
            "pairs that a memory holds",
            "d, width of keys",
            "pairs",
            deep,
            {
                "on average, error ¼": [average[widths.index(w)] if w in widths else math.nan for w in deep],
                "on average, 1 + d / 4": [1 + w / 4 for w in deep],
                "none in danger": worst,
                "none in danger, theory": [worst_theory(w) for w in deep],
            },
            ("on average, 1 + d / 4", "none in danger, theory"),
            "log",
        ),
        "rules": Series(
            "both rules, 64 dimensions",
            "pairs",
            "‖error‖² / ‖v‖²",
            counts,
            {**curves, "(n - 1) / d": [(n - 1) / 64 for n in counts]},
            ("(n - 1) / d",),
        ),
        "depth": Series(
            f"recalled through depth, one head fails {failure:.3f}",
            "layers",
            "share of pairs",
            depths,
            lines,
            [name for name in lines if "maj" in name],
        ),
    }
    tables = {
        "rules": NumberTable(
            "error by the number of pairs, 64 dimensions", list(curves), list(map(str, counts)), list(curves.values())
        )
    }
    settings = {"trials": trials, "widths": widths, "deep": deep, "seed": 0}
    return Findings("memory", "Pavlovian conditioning", settings, bounds, tables, series)
