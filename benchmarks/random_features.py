"""Random-feature attention over the frozen tokens of a shipped trunk, beside a linear probe: accuracy and seconds.

    python benchmarks/random_features.py train_validation.parquet [--model mobilefacenet_ferplus] [--train 3000]
        [--judged 1500] [--features 1024 4096] [--seeds 3] [--keep tokens.pt]

Faces of the training split, by seed 0, teach; a fifth of them chooses how strong the penalty is, and then all of them
teach again. Faces of the validation split, by seed 0, judge, and choose nothing. The trunk saw the training faces'
labels when it was made. Seconds are the processor's, of the read-out alone: pooling, choosing and solving.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mien.checkpoint import read_header
from mien.classifier import find_checkpoint
from mien.data.ferplus import FERPlus
from mien.networks import Normalize, load_network
from mien.networks.deploy import to_float
from mien.nn import RandomFeatureAttentionPool, Ridge
from mien.nn.grid import to_tokens
from mien.training.crops import Crops

STRENGTHS = [10.0**power for power in range(-5, 1)]
PENALTIES = [1e-4, 1e-3, 1e-2]
Split = tuple[Tensor, Tensor, Tensor]
"""Tokens (n, N, D), shares of the classes (n, C), labels (n,)."""


def make_tokens(model: str, path: str, counts: dict[str, int]) -> dict[str, dict[str, Tensor]]:
    """By split: "middle" and "last", the maps of the trunk as fp16 tokens, "target" and "label"."""
    checkpoint = find_checkpoint(model)
    network = load_network(checkpoint).eval()
    preprocess = read_header(checkpoint)["preprocess"]
    normalize, data, out = Normalize(preprocess), FERPlus(path, min_votes=2, check=False), {}
    for split, count in counts.items():
        rows = data.rows(split)
        rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:count]]
        crops, maps = Crops(rows, preprocess), ([], [])
        for start in range(0, len(rows), 64):
            faces = torch.stack([crops[i][0] for i in range(start, min(start + 64, len(rows)))])
            with torch.inference_mode():
                for kept, one in zip(maps, network.image(normalize(to_float(faces)))[-2:], strict=True):
                    kept.append(to_tokens(one).half())
        out[split] = {name: torch.cat(kept).clone() for name, kept in zip(("middle", "last"), maps, strict=True)}
        out[split]["target"] = torch.from_numpy(np.stack([row.target for row in rows]))
        out[split]["label"] = torch.tensor([row.label for row in rows])
    return out


def by_ridge(pool: Callable[[Tensor], Tensor], train: Split, choose: Split | None, strength: float | None = None):
    """The best linear layer on pooled tokens: at the strength that `choose` likes best, or at a given one."""
    features = torch.cat([pool(part.float()) for part in train[0].split(256)])
    ridge = Ridge(features.shape[1], train[1].shape[1])
    ridge.add(features, train[1])
    if choose is None:
        return ridge.solve(strength or 0)
    seen = torch.cat([pool(part.float()) for part in choose[0].split(256)])
    return max(STRENGTHS, key=lambda strength: right(ridge.solve(strength)(seen), choose[2]).float().mean())


def probe(train: Split, penalty: float) -> nn.Linear:
    """Softmax regression on the mean token, by L-BFGS, on the votes."""
    x = train[0].float().mean(1)
    mean, deviation = x.mean(0), x.std(0).clamp(min=1e-4)  # some channels are never above 0
    layer = nn.Linear(x.shape[1], train[1].shape[1])
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = F.cross_entropy(layer((x - mean) / deviation), train[1]) + penalty * layer.weight.square().sum()
        found.backward()
        return found

    optimizer.step(loss)  # type: ignore[arg-type]
    with torch.no_grad():
        layer.weight /= deviation
        layer.bias -= layer.weight @ mean
    return layer


def right(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.argmax(1) == labels


def interval(hits: Tensor) -> str:
    """Accuracy, and 95 % of it over the faces."""
    p, n, z2 = hits.float().mean().item(), len(hits), 1.96**2
    middle, half = (p + z2 / 2 / n) / (1 + z2 / n), (z2 * (p * (1 - p) + z2 / 4 / n) / n) ** 0.5 / (1 + z2 / n)
    return f"{p:.4f} ({middle - half:.3f} to {middle + half:.3f})"


def beyond(hits: Tensor, others: Tensor) -> str:
    """The difference in accuracy, and 95 % of it, face by face."""
    difference = hits.double() - others.double()
    half = 1.96 * difference.std().item() / len(difference) ** 0.5
    return f"{difference.mean():+.4f} ({difference.mean() - half:+.3f} to {difference.mean() + half:+.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data")
    parser.add_argument("--model", default="mobilefacenet_ferplus", help="one with a single trunk, `image`")
    parser.add_argument("--train", type=int, default=3000)
    parser.add_argument("--judged", type=int, default=1500)
    parser.add_argument(
        "--features", type=int, nargs="+", default=[1024, 4096], help="about so many: heads · (width + 1)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="draws of the random weights")
    parser.add_argument("--level", nargs="+", choices=("middle", "last"), default=["middle", "last"], help="maps read")
    parser.add_argument("--keep", type=Path, help="a file for the tokens, which is used where it is there")
    args = parser.parse_args()
    if args.keep and args.keep.exists():
        tokens = torch.load(args.keep)
    else:
        tokens = make_tokens(args.model, args.data, {"train": args.train, "validation": args.judged})
        if args.keep:
            torch.save(tokens, args.keep)
    print(f"{args.model}, {args.train} faces teach, {args.judged} judge, torch {torch.__version__}\n")
    print("| tokens | read-out | features | accuracy, 95 % | beyond the linear probe, 95 % | seconds |")
    print("|---|---|---:|---|---|---:|")
    for level in args.level:
        every, judged = (tuple(tokens[s][k] for k in (level, "target", "label")) for s in ("train", "validation"))
        compare(every, judged, args.features, args.seeds)


def compare(every: Split, judged: Split, features: list[int], seeds: int) -> None:
    """Print a row for each read-out of these tokens, the linear probe first."""
    count, dim = every[0].shape[1:]
    cut = len(every[0]) * 4 // 5
    train, choose = ((*(x[part] for x in every),) for part in (slice(cut), slice(cut, None)))
    found: list[Tensor] = []

    def tell(name: str, width: int, seconds: float, logits: Tensor) -> None:
        found.append(right(logits, judged[2]))
        difference = beyond(found[-1], found[0]) if len(found) > 1 else "–"
        cells = [f"{count} × {dim}", name, f"{width:,}", interval(found[-1]), difference, f"{seconds:.1f}"]
        print(f"| {' | '.join(cells)} |", flush=True)

    began, mean = time.process_time(), choose[0].float().mean(1)
    best = max(PENALTIES, key=lambda penalty: right(probe(train, penalty)(mean), choose[2]).float().mean())
    layer = probe(every, best)
    tell("linear probe, softmax", dim, time.process_time() - began, layer(judged[0].float().mean(1)))
    scale = 1 / every[0][:500].float().norm(dim=-1).mean().item()
    pools: list[tuple[str, Callable[[], Callable[[Tensor], Tensor]]]] = [
        ("linear probe, ridge", lambda: lambda tokens: tokens.mean(1))
    ]
    for number in (round(wanted / (dim + 1)) for wanted in features):
        for seed in range(seeds):

            def make(number: int = number, seed: int = seed) -> Callable[[Tensor], Tensor]:
                torch.manual_seed(seed)
                return RandomFeatureAttentionPool(dim, number, scale=scale).features

            pools.append((f"random features, {number} heads, seed {seed}", make))
    for name, make in pools:
        with torch.inference_mode():
            began, pool = time.process_time(), make()
            layer = by_ridge(pool, every, None, by_ridge(pool, train, choose))
            seconds = time.process_time() - began
            logits = torch.cat([layer(pool(part.float())) for part in judged[0].split(256)])
        tell(name, layer.in_features, seconds, logits)


if __name__ == "__main__":
    main()
