"""How much each head of attention matters: answers without it beside answers with it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mien.errors import MienError
from mien.nn.observe import Layout, Rule, attentions, intervene, observe

Queries = Literal["all", "class"] | Sequence[int]
"""Whose share of a head is taken: that of all queries, of the class token's row alone, or of these, by number."""


class Head(NamedTuple):
    """One head of one attention, by the name that `mien.nn.observe` gives it; counted from 0."""

    attention: str
    number: int

    def __str__(self) -> str:
        return f"{self.attention} head {self.number}"


def heads_of(network: nn.Module, images: Any) -> list[Head]:
    """All heads that the answers of a network can do without, in the order of a forward pass of `images`.

    Raises MienError for a network without attention in several heads (`mien.nn.observe` lists what has some).
    """
    if not attentions(network):
        raise MienError(f"{type(network).__name__} has no attention whose heads could be analysed")
    with torch.no_grad(), observe(network, stages=None) as seen:
        network(images)
    found = [
        Head(name, i)
        for name, look in seen.items()
        if look.heads is not None and look.heads.ndim == 4 and look.layout.kind != "batch"
        for i in range(look.heads.shape[1])
    ]
    if not found:
        raise MienError(f"{type(network).__name__} has no attention in heads that could be taken away")
    return found


@contextmanager
def without(
    network: nn.Module, heads: Sequence[Head], queries: Queries = "all", by: Literal["zero", "mean"] = "zero"
) -> Iterator[None]:
    """Take heads away, in every forward within the context: before the output projection there is 0 in their place.

    queries: whose rows of the heads go; by default of all (`Queries`). by: "mean" puts there what the head gathers on
    average over the faces and queries of the batch. Raises MienError for a head that is not there.
    """
    numbers: dict[str, list[int]] = {}
    for head in heads:
        numbers.setdefault(head.attention, []).append(head.number)
    with intervene(network, {name: _taking(name, each, queries, by) for name, each in numbers.items()}, ["heads"]):
        yield


def _taking(name: str, numbers: Sequence[int], queries: Queries, by: str) -> Rule:
    def rule(_stage: str, heads: Tensor, layout: Layout) -> Tensor:
        if max(numbers) >= heads.shape[1]:
            raise MienError(f"{name} has no head {max(numbers)}: its heads are 0 to {heads.shape[1] - 1}")
        if queries == "class" and layout.kind == "token" and not layout.prefix:
            raise MienError(f"{name} has no class token whose row could be taken")
        rows: Any = slice(None)
        if queries == "class":
            rows = slice(0, layout.prefix) if layout.kind == "token" else slice(None)
        elif queries != "all":
            rows = list(queries)
        left = heads.clone()
        for number in numbers:
            gone = heads[:, number].mean((0, 1)) if by == "mean" else torch.zeros_like(heads[0, 0, 0])
            left[:, number, rows] = gone.to(left.dtype)
        return left

    return rule


def ablations(
    network: nn.Module,
    parts: Sequence[Any],
    heads: Sequence[Head],
    queries: Queries = "all",
    by: Literal["zero", "mean"] = "zero",
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, C) of the network as it is, and (heads, N, C) with each head taken away in turn.

    parts: batches of images, or of what the network's `front` made of them. queries, by: as for `without`.
    """
    with torch.no_grad():
        base = np.concatenate([network(part).float().numpy() for part in parts])
        rows = []
        for head in heads:
            with without(network, [head], queries, by):
                rows.append(np.concatenate([network(part).float().numpy() for part in parts]))
    return base, np.stack(rows)


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


METRICS = {
    "d_prob": "Δp of the true class",
    "d_ce": "Δ cross entropy, nats",
    "jsd": "Jensen-Shannon divergence, nats",
    "d_rank": "Δ rank of the true class",
    "flip": "changed labels",
    "d_acc": "Δ accuracy",
}
"""What is measured; each grows with what was lost."""


def importance(base: np.ndarray, ablated: np.ndarray, target: np.ndarray) -> dict[str, np.ndarray]:
    """What answers lose without each head, face by face: METRICS, (heads, N) each; means over faces are what counts.

        d_prob = p(true) - p₋(true);   d_ce = CE₋ - CE;   jsd = ½ KL(p ‖ m) + ½ KL(p₋ ‖ m), m = ½ (p + p₋)
        d_rank = rank₋(true) - rank(true);   flip: another label is likeliest;   d_acc = right - right₋

    base (N, C), ablated (heads, N, C): logits. target (N,): classes. After the visual analytics of Li et al., How Does
    Attention Work in Vision Transformers?, arXiv 2303.13731, whose exact formulas could not be read: *inferred*.
    """
    p, q, faces = softmax(base), softmax(ablated), np.arange(len(target))
    middle = (p + q) / 2

    def divergence(a: np.ndarray) -> np.ndarray:
        return (a * (np.log(np.maximum(a, 1e-300)) - np.log(np.maximum(middle, 1e-300)))).sum(-1)

    true, true_without = p[faces, target], q[:, faces, target]
    ranks = [(each > at[..., None]).sum(-1) for each, at in ((p, true), (q, true_without))]
    best, best_without = base.argmax(-1), ablated.argmax(-1)
    return {
        "d_prob": true - true_without,
        "d_ce": np.log(true) - np.log(true_without),
        "jsd": (divergence(np.broadcast_to(p, q.shape)) + divergence(q)) / 2,
        "d_rank": (ranks[1] - ranks[0]).astype(float),
        "flip": (best_without != best).astype(float),
        "d_acc": (best == target).astype(float) - (best_without == target),
    }


def agreement(means: Mapping[str, np.ndarray]) -> dict[tuple[str, str], float]:
    """Spearman's correlation of every two metrics (heads,), of equals their mean rank; NaN where one has one value."""

    def ranks(values: np.ndarray) -> np.ndarray:
        return np.array([(values < v).sum() + ((values == v).sum() - 1) / 2 for v in values])

    ranked, found = {name: ranks(each) for name, each in means.items()}, {}
    names = list(ranked)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            a, b = (ranked[name] - ranked[name].mean() for name in (one, other))
            size = np.sqrt((a @ a) * (b @ b))
            found[one, other] = float(a @ b / size) if size else float("nan")
    return found


def pruned(
    network: nn.Module, parts: Sequence[Any], heads: Sequence[Head], order: Sequence[int], target: np.ndarray
) -> np.ndarray:
    """Which faces are read right with the first k heads of an order gone, k from 0 to all: (heads + 1, N) bool."""
    right = []
    with torch.no_grad():
        for k in range(len(heads) + 1):
            with without(network, [heads[i] for i in order[:k]]):
                logits = np.concatenate([network(part).float().numpy() for part in parts])
            right.append(logits.argmax(1) == target)
    return np.stack(right)
