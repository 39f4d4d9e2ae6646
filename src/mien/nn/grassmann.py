"""The Grassmann layer: tokens are mixed by the planes that they span with others, without attention."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mien.nn.base import Grid
from mien.nn.grid import split_planes

AROUND = ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0), (0, 4), (4, 0))


class Grassmann(nn.Module):
    """`a ⊙ x + (1 - a) ⊙ g`, g from the planes that x spans with its partners: (B, N, dim) -> (B, N, dim).

        z = reduce(x)                                          (B, N, rank)
        p(t, s) = unit(z_t ∧ z_s) = unit((z_t,i z_s,j - z_t,j z_s,i) for i < j),   rank · (rank - 1) / 2 numbers
        g_t = proj(mean of p(t, s) over the partners s of t);   a = sigmoid(gate([x; g]))

    Partners in a sequence (`grid` None) are `lags` back ('past'), ahead ('future'), or 'both'; on a grid they are
    `offsets` (rows, columns) away, each of which points ahead in reading order, so that 'past' never looks ahead there
    either. Who has no partner beyond a border counts fewer; who has none at all keeps proj's bias as g, or 0 without
    `bias_alone`. The paper writes the pairs (t, t + lag), which shows a causal model its future; 'past' pairs t with
    t - lag, as all reproductions do.

    How: unit(z_t ∧ z_s) = z_t ∧ m, m being what z_s has across z_t, over the area of both. The mean over s is therefore
    z_t ∧ (mean of m), rank numbers a partner, and of their plane alone the numbers i < j are projected, once.

    Ours: the grid, `direction`, and the prefix, which pairs with every token, and every token with it; it stands
    before the planes, so that with 'past' it sees but the prefix before it, and with 'future' is not seen by them.
    `num_heads` is ignored. It replaces attention and the skip around it: a is that skip. After it the paper has a norm.

    Args:
        dim, num_heads: int, width of the tokens and number of heads, which divides it.
        rank: int from 2 on, width of z; 32.
        direction: "past", "future" or "both"; both.
        lags: int from 1 on each, distances of partners in a sequence; (1, 2, 4, 8, 12, 16).
        offsets: (rows, columns) each, ahead in reading order, of partners on a grid; eight of them.
        bias_alone: bool, a token without a partner has proj's bias as g; True.

    Paper: Attention Is Not What You Need, arXiv 2512.19428.
    Reference: youdie006/grassmann, 7a10f87; Adipks/sparse_grassmann_llm, 813dbf6 (no bias alone).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        rank: int = 32,
        direction: Literal["past", "future", "both"] = "both",
        lags: Sequence[int] = (1, 2, 4, 8, 12, 16),
        offsets: Sequence[tuple[int, int]] = AROUND,
        bias_alone: bool = True,
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        if rank < 2:
            raise ValueError(f"two vectors span a plane in 2 dimensions at least: rank must not be {rank}")
        if direction not in ("past", "future", "both"):
            raise ValueError(f"direction must be 'past', 'future' or 'both', not {direction!r}")
        self.lags, self.offsets = tuple((0, lag) for lag in lags), tuple((y, x) for y, x in offsets)
        for offset in self.lags + self.offsets:
            if offset <= (0, 0):
                raise ValueError(f"partners are given ahead, in reading order: not {offset} rows and columns")
        self.direction, self.bias_alone = direction, bias_alone
        self.reduce = nn.Linear(dim, rank)
        self.proj = nn.Linear(rank * (rank - 1) // 2, dim)
        self.gate = nn.Linear(2 * dim, dim)

    def forward(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        plane, offsets = ((1, tokens.shape[1]), self.lags) if grid is None else (grid, self.offsets)
        z = self.reduce(tokens)
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        prefix, planes = split_planes(z, plane, "Grassmann")
        total, count = self.near(planes.unflatten(1, plane), offsets)
        total = total.unflatten(0, (z.shape[0], -1)).flatten(1, 2)  # (B, k · H · W, rank)
        count = count.repeat(total.shape[1] // count.shape[0], 1)
        if prefix.shape[1]:
            total, count = self.far(prefix, z, total, count)
        g = self.project(z, total / count.clamp(min=1), tokens.dtype)
        if not self.bias_alone:
            g = g * (count > 0)
        a = self.gate(torch.cat([tokens, g], -1)).sigmoid()
        return a * tokens + (1 - a) * g

    def near(self, z: Tensor, offsets: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Sums of m over partners in a plane, and how many: (Z, H, W, rank) -> (Z, H · W, rank), (H · W, 1)."""
        height, width = z.shape[1:3]
        total, count = torch.zeros_like(z), z.new_zeros(height, width, 1)
        for y, x in offsets:
            if y >= height or abs(x) >= width:
                continue
            ahead = slice(y, None), slice(max(x, 0), width + min(x, 0))
            behind = slice(0, height - y), slice(max(-x, 0), width - max(x, 0))
            of_ahead, of_behind = across(z[:, *ahead], z[:, *behind])
            if self.direction != "future":
                total[:, *ahead] += of_ahead
                count[ahead] += 1
            if self.direction != "past":
                total[:, *behind] += of_behind
                count[behind] += 1
        return total.flatten(1, 2), count.flatten(0, 1)

    def far(self, prefix: Tensor, z: Tensor, total: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """The same with the prefix (B, P, rank) as everybody's partner: -> (B, N, rank), (N, 1)."""
        first, n = prefix.shape[1], z.shape[1]
        of_prefix, of_others = across(prefix[:, :, None], z[:, None])  # (B, P, N, rank)
        order = torch.arange(n, device=z.device) - torch.arange(first, device=z.device)[:, None]  # (P, N)
        seen = {"past": order < 0, "future": order > 0, "both": order != 0}[self.direction].to(z.dtype)
        if self.direction != "future":
            total, count = total + of_others[:, :, first:].sum(1), count + first
        total = torch.cat([(of_prefix * seen[..., None]).sum(2), total], 1)
        return total, torch.cat([seen.sum(1, keepdim=True), count])

    def project(self, z: Tensor, m: Tensor, dtype: torch.dtype) -> Tensor:
        """proj(z ∧ m), in which z_i m_j has the weight of (i, j), or less that of (j, i): (B, N, rank) -> (B, N, dim).

        One product of matrices with all z_i m_j is faster than to gather those of i < j and j < i first.
        """
        rank = z.shape[-1]
        i, j = torch.triu_indices(rank, rank, 1, device=z.device)
        weight = self.proj.weight.new_zeros(self.proj.out_features, rank, rank)
        weight[:, i, j] = self.proj.weight
        products = (z[..., :, None] * m[..., None, :]).flatten(-2).to(dtype)
        return F.linear(products, (weight - weight.mT).flatten(1), self.proj.bias)


def across(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """m and n, (…, rank) each, with `u ∧ m = unit(u ∧ v)` and `v ∧ n = unit(v ∧ u)`, both 0 where u and v are parallel.

    m is what is left of v without its part along u, over the area |u ∧ v|, 1e-6 at least; n is that of u along v.
    """
    dot, tiny = (u * v).sum(-1, keepdim=True), torch.finfo(u.dtype).tiny
    m = v - dot / (u * u).sum(-1, keepdim=True).clamp_min(tiny) * u
    n = u - dot / (v * v).sum(-1, keepdim=True).clamp_min(tiny) * v
    area = (u.norm(dim=-1, keepdim=True) * m.norm(dim=-1, keepdim=True)).clamp_min(1e-6)
    return m / area, n / area
