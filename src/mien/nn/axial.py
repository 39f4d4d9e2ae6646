"""Axial attention: along columns, and along rows."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mien.nn.base import Grid
from mien.nn.grid import checked_grid, from_windows, join_planes, split_planes, to_windows
from mien.nn.local_attention import LocalAttention
from mien.nn.self_attention import later


class Axial(nn.Module):
    """Every token attends to its column and to its row: (B, N, dim), grid -> (B, N, dim).

        columns(x) = proj(softmax(head_dim^-1/2 · q kᵀ) v),   q, k, v = qkv(x),   over the tokens of a column
        sum:         out = columns(x) + rows(x)
        sequential:  out = rows(columns(x))

    Each of the two has its own qkv and proj. A sequence of both reaches every token, the sum does in two layers; time
    grows with N^1.5. Ours: `share_qkv` (one qkv for both, still two projections), `positions` (`AxialPositions` of that
    grid, added to x first), and the prefix, which is seen in every line and sees all, once in each of the two. The
    paper's causal decoders are in `mien.networks.AxialTransformer`.

    Args:
        dim, num_heads: int, width of the tokens and number of heads, which divides it.
        combine: "sum" or "sequential"; sum.
        share_qkv: bool, one qkv for columns and rows; False.
        positions: grid (rows, columns) of learned positions, or None.
        qkv_bias: bool, whether q, k and v have biases; False.
        attn_drop, proj_drop: float in [0, 1], fraction of attn and of outputs that training drops; 0.

    Paper: Ho et al., Axial Attention in Multidimensional Transformers, arXiv 1912.12180.
    Reference: lucidrains/axial-attention, eff2c10, whose to_q and to_kv are our qkv, and to_out our proj.
    """

    needs_grid = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        combine: Literal["sum", "sequential"] = "sum",
        share_qkv: bool = False,
        positions: Grid | None = None,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ):
        super().__init__()
        if combine not in ("sum", "sequential"):
            raise ValueError(f"combine must be 'sum' or 'sequential', not {combine!r}")
        self.combine = combine
        self.positions = None if positions is None else AxialPositions(dim, positions)
        self.columns, self.rows = (Lines(axis, dim, num_heads, qkv_bias, attn_drop) for axis in (0, 1))
        self.qkv = nn.Identity()
        if share_qkv:
            self.qkv = self.columns.qkv
            self.columns.qkv, self.rows.qkv = nn.Identity(), nn.Identity()
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        grid = checked_grid(tokens, grid, "Axial")
        if self.positions is not None:
            tokens = self.positions(tokens, grid)
        tokens = self.qkv(tokens)
        columns = self.columns(tokens, grid)
        if self.combine == "sum":
            return self.proj_drop(columns + self.rows(tokens, grid))
        return self.proj_drop(self.rows(self.qkv(columns), grid))


class Lines(LocalAttention):
    """Attention within every column (axis 0) or every row (axis 1); `causal`: no token attends to a later one of it."""

    qkv: nn.Module  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, axis: int, dim: int, num_heads: int, qkv_bias: bool, attn_drop: float, causal: bool = False):
        super().__init__(dim, num_heads, qkv_bias, attn_drop, proj_drop=0.0)
        self.axis, self.causal = axis, causal

    def line(self, grid: Grid) -> Grid:
        return (1, grid[1]) if self.axis else (grid[0], 1)

    def queries(self, planes: Tensor, grid: Grid) -> Tensor:
        return to_windows(planes, grid, self.line(grid))[0]

    keys = queries

    def join(self, windows: Tensor, grid: Grid) -> Tensor:
        return from_windows(windows, grid, self.line(grid))

    def bias(self, q: Tensor, grid: Grid) -> Tensor | None:
        return later(q)[None, None, None] if self.causal else None


class AxialPositions(nn.Module):
    """Adds what was learned for a token's row and for its column: `x + rows[y] + columns[x]`, (B, N, dim) -> the same.

    On another grid than it was built for both are interpolated linearly (ours). Nothing is added to the prefix.
    """

    needs_grid = True

    def __init__(self, dim: int, grid: Grid):
        super().__init__()
        self.rows, self.columns = (nn.Parameter(0.02 * torch.randn(size, dim)) for size in grid)

    def forward(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        grid = checked_grid(tokens, grid, "AxialPositions")
        prefix, planes = split_planes(tokens, grid)
        rows, columns = (resize(*of) for of in zip((self.rows, self.columns), grid, strict=True))
        return join_planes(prefix, planes + (rows[:, None] + columns).flatten(0, 1))


def resize(line: Tensor, size: int) -> Tensor:
    """(H, dim) -> (size, dim), linear between the positions."""
    if size == line.shape[0]:
        return line
    return F.interpolate(line.mT[None], size, mode="linear", align_corners=False)[0].mT
