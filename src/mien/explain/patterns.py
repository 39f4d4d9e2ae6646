"""Attention patterns of heads, summed up by an autoencoder: clusters, and a map in two dimensions."""

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn


def recentred(attn: np.ndarray, places: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Where heads look from wherever they stand: attention (B, heads, N, N) of patches -> (B, heads, 2H - 1, 2W - 1).

    Every query's row is moved so that the query is in the middle, and the mean over queries is taken; it adds up to 1.
    places: (N, 2) or (B, N, 2), as for `mien.explain.strength.profile`.
    """
    batch, heads, count, _ = attn.shape
    places = np.broadcast_to(places, (batch, *places.shape[-2:]))
    rows, columns = grid
    offset = places[:, None] - places[:, :, None] + (rows - 1, columns - 1)  # (B, query, key, 2)
    cell = (offset[..., 0] * (2 * columns - 1) + offset[..., 1]).reshape(batch, -1)
    size = (2 * rows - 1) * (2 * columns - 1)
    rows_ = attn / np.maximum(attn.sum(-1, keepdims=True), 1e-30) / count
    maps = [[np.bincount(cell[b], rows_[b, h].ravel(), size) for h in range(heads)] for b in range(batch)]
    return np.array(maps, np.float32).reshape(batch, heads, 2 * rows - 1, 2 * columns - 1)


def content_agnostic(maps: np.ndarray) -> np.ndarray:
    """How much alike a head's maps of different faces are: 1 - the mean total variation of every two of them.

    maps: (B, heads, …), each adding up to 1 -> (heads,), 1 where they are all the same. *Inferred.*
    """
    flat = np.moveaxis(maps.reshape(*maps.shape[:2], -1), 1, 0).astype(np.float64)  # (heads, B, cells)
    count, scores = flat.shape[1], []
    for each in flat:
        apart = np.abs(each[:, None] - each[None]).sum(-1) / 2
        scores.append(1 - apart.sum() / max(count * (count - 1), 1))
    return np.array(scores)


class PatternAutoencoder(nn.Module):
    """Maps (n, 1, H, W) -> a code (n, latent) -> maps again: two strided convolutions and a linear layer each way.

    grid: H and W. latent: int from 1 on; 16.
    """

    def __init__(self, grid: tuple[int, int], latent: int = 16, width: int = 16):
        super().__init__()
        self.encode = nn.Sequential(
            nn.Conv2d(1, width, 3, 2, 1), nn.GELU(), nn.Conv2d(width, 2 * width, 3, 2, 1), nn.GELU(), nn.Flatten()
        )
        small = [(side + 3) // 4 for side in grid]
        self.to_code = nn.Linear(2 * width * small[0] * small[1], latent)
        self.decode = nn.Sequential(
            nn.Linear(latent, 2 * width * small[0] * small[1]),
            nn.GELU(),
            nn.Unflatten(1, (2 * width, small[0], small[1])),
            nn.Upsample(size=grid, mode="bilinear"),
            nn.Conv2d(2 * width, width, 3, 1, 1),
            nn.GELU(),
            nn.Conv2d(width, 1, 3, 1, 1),
        )

    def code(self, maps: Tensor) -> Tensor:
        return cast(Tensor, self.to_code(self.encode(maps)))

    def forward(self, maps: Tensor) -> Tensor:
        return cast(Tensor, self.decode(self.code(maps)))


@dataclass(frozen=True, eq=False)
class Patterns:
    """Codes (n, latent) of n maps, their clusters (n,) from 0, their places (n, 2) on a plane by principal components,
    the share of the codes' variance that the plane shows, and the share of the maps' variance that codes leave out."""

    codes: np.ndarray
    clusters: np.ndarray
    places: np.ndarray
    shown: float
    left_out: float


def summarise(maps: np.ndarray, clusters: int = 5, latent: int = 16, steps: int = 300, seed: int = 0) -> Patterns:
    """Train an autoencoder on maps (n, H, W) by their mean square error, and group its codes.

    Maps are taken as their square roots, so that what is faint counts, too, with the mean map taken away, and scaled to
    a variance of 1. `steps` steps of Adam, of 64 maps each. Groups are k-means' of the codes, the best of ten starts.
    """
    torch.manual_seed(seed)
    x = np.sqrt(maps.astype(np.float64))
    x = (x - x.mean(0)) / max((x - x.mean(0)).std(), 1e-12)
    inputs = torch.from_numpy(x.astype(np.float32))[:, None]
    net = PatternAutoencoder((maps.shape[1], maps.shape[2]), latent)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(steps):
        batch = inputs[torch.randint(len(inputs), (min(64, len(inputs)),))]
        loss = (net(batch) - batch).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        codes = net.code(inputs).numpy().astype(np.float64)
        left_out = float((net(inputs) - inputs).square().mean() / inputs.square().mean())
    middle = codes - codes.mean(0)
    _, sizes, axes = np.linalg.svd(middle, full_matrices=False)
    shown = float((sizes[:2] ** 2).sum() / max((sizes**2).sum(), 1e-12))
    return Patterns(codes, k_means(codes, min(clusters, len(codes)), seed), middle @ axes[:2].T, shown, left_out)


def k_means(points: np.ndarray, count: int, seed: int = 0, beginnings: int = 10) -> np.ndarray:
    """The group (n,) of each point (n, d), by Lloyd's algorithm; the largest group is 0.

    Each beginning is drawn as by k-means++ (Arthur & Vassilvitskii, 2007); that with the least spread is taken.
    """
    rng, best, least = np.random.default_rng(seed), np.zeros(len(points), int), np.inf
    for _ in range(beginnings):
        centres = points[[rng.integers(len(points))]]
        while len(centres) < count:
            far = ((points[:, None] - centres) ** 2).sum(-1).min(1)
            share = far / far.sum() if far.sum() > 0 else np.full(len(points), 1 / len(points))
            centres = np.concatenate([centres, points[[rng.choice(len(points), p=share)]]])
        for _ in range(100):
            apart = ((points[:, None] - centres) ** 2).sum(-1)
            group = apart.argmin(1)
            moved = np.stack([points[group == k].mean(0) if (group == k).any() else centres[k] for k in range(count)])
            if np.allclose(moved, centres):
                break
            centres = moved
        if (spread := float(apart.min(1).sum())) < least:
            best, least = group, spread
    order = np.argsort(-np.bincount(best, minlength=count), kind="stable")
    return np.argsort(order)[best]
