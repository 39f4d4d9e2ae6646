"""How strongly tokens attend to tokens near and far, head by head."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Profile:
    """Means over faces and queries, of each of the heads of one attention.

    share_by_hop: (heads, hops), what falls at hop k = max(|Δy|, |Δx|), 0 the token itself. uniform: (hops,), the same
    of attention that is alike for all, since tokens at the border have fewer neighbours. mean_by_hop: a single key's
    share at that hop; queries without such keys are left out, and NaN is where there is no query with one.
    mean_distance: in steps of the grid. entropy: nats. Those are of patches alone, their rows made to add up to 1.
    class_column: what patches give to the class token; class_row: (heads, N), what it gives to each patch. NaN without
    a class token.
    """

    share_by_hop: np.ndarray
    uniform: np.ndarray
    mean_by_hop: np.ndarray
    mean_distance: np.ndarray
    entropy: np.ndarray
    class_column: np.ndarray
    class_row: np.ndarray


def grid_places(planes: int, grid: tuple[int, int]) -> np.ndarray:
    """The row and the column of each token of so many planes (planes · H · W, 2); planes lie one on the other."""
    return np.tile(np.argwhere(np.ones(grid)), (planes, 1))


def profile(attn: np.ndarray, places: np.ndarray, prefix: int = 0) -> Profile:
    """What `Profile` holds, of attention (B, heads, P + N, P + N), the tokens of the grid behind a prefix of P.

    places: of the tokens (N, 2), or of those of each face (B, N, 2) where some were dropped: row and column.
    """
    attn = attn.astype(np.float64)
    places = np.broadcast_to(places, (len(attn), *places.shape[-2:]))
    apart = np.abs(places[:, :, None] - places[:, None]).astype(np.float64)  # (B, N, N, 2)
    hop, distance = apart.max(-1).astype(int), np.hypot(*np.moveaxis(apart, -1, 0))
    patches = attn[:, :, prefix:, prefix:]
    patches = patches / np.maximum(patches.sum(-1, keepdims=True), 1e-300)
    shares, uniform, means = [], [], []
    for k in range(hop.max() + 1):
        at = hop == k  # (B, N, N)
        keys = at.sum(-1)  # (B, N)
        fallen = (patches * at[:, None]).sum(-1)  # (B, heads, N)
        shares.append(fallen.mean((0, 2)))
        uniform.append((keys / at.shape[-1]).mean())
        some = (keys > 0)[:, None]
        each = np.where(some, fallen / np.maximum(keys, 1)[:, None], 0)
        means.append(each.sum((0, 2)) / max(some.sum(), 1) if some.any() else np.full(attn.shape[1], np.nan))
    nothing = np.full(attn.shape[1], np.nan)
    return Profile(
        np.stack(shares, 1),
        np.array(uniform),
        np.stack(means, 1),
        (patches * distance[:, None]).sum(-1).mean((0, 2)),
        -(patches * np.log(np.maximum(patches, 1e-300))).sum(-1).mean((0, 2)),
        attn[:, :, prefix:, :prefix].sum(-1).mean((0, 2)) if prefix else nothing,
        attn[:, :, 0, prefix:].mean(0) if prefix else np.full((attn.shape[1], attn.shape[-1]), np.nan),
    )


def concentration(attn: np.ndarray, top: int = 10) -> np.ndarray:
    """What the `top` keys that get most get together, mean over queries: (B, heads, queries, keys) -> (B, heads).

    Of ACMIL's branches a query is a branch. *Inferred* from the plots of Zhang et al., ACMIL, arXiv 2311.07125.
    """
    return np.sort(attn.astype(np.float64), -1)[..., -top:].sum(-1).mean(-1)


def importance_factor(weights: np.ndarray, axis: int = 1) -> np.ndarray:
    """GAAM's importance factor: weights (B, N, dim), of each face from 0 for the least to 1 for the greatest along the
    axis; 0 where they are all alike.

    Paper: Ioannides et al., Gaussian Adaptive Attention Is All You Need, 2024; the exact formula is *inferred*.
    """
    low, high = weights.min(axis, keepdims=True), weights.max(axis, keepdims=True)
    return (weights - low) / np.where(high > low, high - low, 1)
