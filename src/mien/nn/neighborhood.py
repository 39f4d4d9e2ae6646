"""Neighborhood attention: every token has its own window, which never leaves the grid."""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mien.nn.base import Grid
from mien.nn.grid import pair, product, relative_bias, select, take
from mien.nn.local_attention import LocalAttention


class Neighborhood(LocalAttention):
    """Every token attends to the k_y × k_x tokens around it, never to padding: (B, N, dim), grid -> (B, N, dim).

    Along an axis of n positions, with kernel k and dilation D, i = j · D + g is the j-th of the m positions that leave
    the remainder g. It attends to the positions (s + t) · D + g, t < k, where `s = clip(j - ⌊k / 2⌋, 0, m - k)`: at the
    border the window moves inward. A causal axis has those from j - k + 1 to j that exist. In a plane both must agree.

        out = proj(softmax(head_dim^-1/2 · q kᵀ + R) v)
        R[i, j] = relative_bias[:, (y_j - y_i) / D + k_y - 1, (x_j - x_i) / D + k_x - 1],   with `rel_pos_bias` only

    `kernel_size`, `dilation` and `causal` are one for both axes, or two. Of an axis shorter than k · D all positions
    with the same remainder are seen, so k ≥ n is attention to all; natten refuses that, and has no prefix: both are
    ours.

    How: up to `dense_tokens`, and where windows are most of the grid, all pairs under a mask; above, tiles of about
    `tile_size`² queries and the union of their windows, so that time grows with N. On CUDA natten's kernel is used
    where it is installed and able to (no prefix, no R, k · D ≤ n, a head_dim that 8 divides, no fp64).

    Args:
        dim, num_heads: int, width of the tokens and number of heads, which divides it.
        kernel_size: int from 1 on, or (rows, columns), tokens along the sides of a window; 7.
        dilation: int from 1 on, or two; 1.
        causal: bool, or two; False.
        rel_pos_bias: bool, whether there is R; False.
        qkv_bias: bool, whether q, k and v have biases; True.
        attn_drop, proj_drop: float in [0, 1], fraction of attn and of outputs that training drops; 0.
        dense_tokens: int, tokens of a plane up to which all pairs are computed; 400.
        tile_size: int from 1 on, tokens along the side of a tile; 8.

    Paper: Hassani et al., Neighborhood Attention Transformer, 2023, and Faster Neighborhood Attention, 2024.
    Reference: SHI-Labs/NATTEN 0.17.5, where `relative_bias` is called `rpb`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int | Sequence[int] = 7,
        dilation: int | Sequence[int] = 1,
        causal: bool | Sequence[bool] = False,
        rel_pos_bias: bool = False,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        dense_tokens: int = 400,
        tile_size: int = 8,
    ):
        super().__init__(dim, num_heads, qkv_bias, attn_drop, proj_drop)
        self.kernel_size, self.dilation = pair(kernel_size, "kernel_size"), pair(dilation, "dilation")
        self.causal = tuple(map(bool, pair(causal, "causal", least=0)))
        self.dense_tokens, self.tile_size = dense_tokens, pair(tile_size, "tile_size")[0]
        self.relative_bias = None
        if rel_pos_bias:
            self.relative_bias = nn.Parameter(torch.empty(num_heads, *(2 * k - 1 for k in self.kernel_size)))
            nn.init.trunc_normal_(self.relative_bias, std=0.02)

    def axes(self, grid: Grid) -> tuple["Axis", "Axis"]:
        """Rows and columns of a grid, in tiles or in one."""

        def cut(tiles: Grid) -> tuple[Axis, Axis]:
            make = cut_axis.__wrapped__ if torch.compiler.is_compiling() else cut_axis  # it warns of caches
            rows, columns = map(make, grid, tiles, self.kernel_size, self.dilation, self.causal)
            return rows, columns

        tokens = grid[0] * grid[1]
        if tokens > self.dense_tokens and not self.attend.open:
            rows, columns = cut((self.tile_size, self.tile_size))
            if 2 * len(rows.keys[0]) * len(columns.keys[0]) <= tokens:
                return rows, columns
        return cut(grid)

    def queries(self, planes: Tensor, grid: Grid) -> Tensor:
        rows, columns = self.axes(grid)
        return take(planes, grid, rows.queries, columns.queries)

    def keys(self, planes: Tensor, grid: Grid) -> Tensor:
        rows, columns = self.axes(grid)
        return take(planes, grid, rows.keys, columns.keys)

    def join(self, windows: Tensor, grid: Grid) -> Tensor:
        rows, columns = self.axes(grid)
        tiles = len(rows.queries), len(columns.queries)
        if tiles == (1, 1):
            return windows
        maps = windows.unflatten(1, (len(rows.queries[0]), -1)).unflatten(0, (-1, *tiles))
        maps = maps.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return select(maps, rows.back, columns.back).flatten(1, 2)

    def bias(self, q: Tensor, grid: Grid) -> Tensor | None:
        axes = self.axes(grid)
        if self.relative_bias is None:
            if all(axis.full for axis in axes):
                return None
            bias = q.new_zeros(())
        else:
            index = []
            for axis, k, dilation in zip(axes, self.kernel_size, self.dilation, strict=True):
                query, key = (torch.tensor(x, device=q.device) for x in (axis.queries, axis.keys))
                offset = (key[:, None, :] - query[:, :, None]).div(dilation, rounding_mode="floor")
                index.append((offset + k - 1).clamp(0, 2 * k - 2))  # beyond that nothing is near
            bias = relative_bias(self.relative_bias, *index)  # (R · C, heads, n, m)
        rows, columns = (torch.tensor(axis.near, dtype=torch.bool, device=q.device) for axis in axes)
        return bias.masked_fill(~product(rows, columns)[:, None], -math.inf)[None]

    def local(self, prefix: Tensor, planes: Tensor, grid: Grid) -> Tensor:
        able = not prefix.shape[1] and self.relative_bias is None and self.widths[0] // self.num_heads % 8 == 0
        able &= all(k > 1 and k * d <= n for k, d, n in zip(self.kernel_size, self.dilation, grid, strict=True))
        able &= not (self.training and self.attend.dropout)
        if able and (na2d := natten_for(planes)) is not None:
            q, k, v = planes.unflatten(1, grid).unflatten(-1, (3, self.num_heads, -1)).unbind(3)  # (Z, H, W, heads, d)
            out = na2d(q, k, v, kernel_size=self.kernel_size, dilation=self.dilation, is_causal=self.causal)
            return out.flatten(3).flatten(1, 2)
        return super().local(prefix, planes, grid)


class Axis(NamedTuple):
    """An axis in c tiles: positions of queries (c, n) and of keys (c, m), and which keys a query sees (c, n, m)."""

    queries: list[list[int]]
    keys: list[list[int]]
    near: list[list[list[bool]]]
    back: list[int]
    """Where each position is among the queries of all tiles."""

    @property
    def full(self) -> bool:
        return all(all(map(all, tile)) for tile in self.near)


def neighbours(length: int, kernel: int, dilation: int = 1, causal: bool = False) -> list[range]:
    """The positions to which each position of an axis attends."""
    found = []
    for i in range(length):
        j, rest = divmod(i, dilation)
        same = range(rest, length, dilation)
        first = max(j - kernel + 1, 0) if causal else max(min(j - kernel // 2, len(same) - kernel), 0)
        found.append(same[first : j + 1 if causal else first + kernel])
    return found


@cache
def cut_axis(length: int, tile: int, kernel: int, dilation: int, causal: bool) -> Axis:
    """Tiles of equal size, of neighbours with the same remainder, and their keys; the last may repeat queries."""
    seen = neighbours(length, kernel, dilation, causal)
    count = -(-length // tile)
    size = -(-length // count)
    order = sorted(range(length), key=lambda i: (i % dilation if count > 1 else 0, i))
    queries = [order[start : start + size] for start in (min(n * size, length - size) for n in range(count))]
    spans = [[order.index(j) for i in tile for j in seen[i]] for tile in queries]
    width = max(max(span) - min(span) + 1 for span in spans)
    keys = [order[start : start + width] for start in (min(min(span), length - width) for span in spans)]
    near = [[[j in seen[i] for j in theirs] for i in ours] for ours, theirs in zip(queries, keys, strict=True)]
    every = sum(queries, [])
    return Axis(queries, keys, near, [every.index(i) for i in range(length)])


def natten_for(tokens: Tensor) -> Callable[..., Tensor] | None:
    """natten's `na2d`, where it is installed and takes such tokens."""
    able = tokens.is_cuda and tokens.dtype != torch.float64 and not torch.compiler.is_compiling()
    return find_na2d() if able else None


@cache
def find_na2d() -> Callable[..., Tensor] | None:
    try:
        from natten.functional import na2d  # pyright: ignore[reportMissingImports]
    except (ImportError, AttributeError):  # an old one looks for what a new torch no longer has
        return None
    return na2d
