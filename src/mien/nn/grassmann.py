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
    t - lag, as all reproductions do. Proj being linear, the mean is taken first and projected once.

    Ours: the grid, `direction`, and the prefix, which pairs with every token, and every token with it; it stands
    before the planes, so that with 'past' it sees but the prefix before it, and with 'future' is not seen by them.
    `num_heads` is ignored. It replaces attention and the skip around it: a is that skip. After it the paper has a norm.

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
        place, offsets = ((1, tokens.shape[1]), self.lags) if grid is None else (grid, self.offsets)
        z = self.reduce(tokens)
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        prefix, planes = split_planes(z, place, "Grassmann")
        total, count = self.near(planes.unflatten(1, place), offsets)
        total = total.unflatten(0, (z.shape[0], -1)).flatten(1, 2)  # (B, k · H · W, pairs)
        count = count.repeat(total.shape[1] // count.shape[0], 1)
        if prefix.shape[1]:
            total, count = self.far(prefix, z, total, count)
        g = self.proj((total / count.clamp(min=1)).to(tokens.dtype))
        if not self.bias_alone:
            g = g * (count > 0)
        a = self.gate(torch.cat([tokens, g], -1)).sigmoid()
        return a * tokens + (1 - a) * g

    def near(self, z: Tensor, offsets: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Sums over partners in a plane, and how many: (Z, H, W, rank) -> (Z, H · W, pairs), (H · W, 1)."""
        height, width = z.shape[1:3]
        z = pairs(z)  # (2, Z, H, W, pairs)
        total, count = torch.zeros_like(z[0]), z.new_zeros(height, width, 1)
        for y, x in offsets:
            if y >= height or abs(x) >= width:
                continue
            ahead = slice(y, None), slice(max(x, 0), width + min(x, 0))
            behind = slice(0, height - y), slice(max(-x, 0), width - max(x, 0))
            p = span(z[:, :, *ahead], z[:, :, *behind])
            if self.direction != "future":
                total[:, *ahead] += p
                count[ahead] += 1
            if self.direction != "past":
                total[:, *behind] -= p  # p(s, t) = -p(t, s)
                count[behind] += 1
        return total.flatten(1, 2), count.flatten(0, 1)

    def far(self, prefix: Tensor, z: Tensor, total: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """The same with the prefix (B, P, rank) as everybody's partner: -> (B, N, pairs), (N, 1)."""
        first, n = prefix.shape[1], z.shape[1]
        p = span(pairs(prefix)[:, :, :, None], pairs(z)[:, :, None])  # (B, P, N, pairs)
        order = torch.arange(n, device=z.device) - torch.arange(first, device=z.device)[:, None]  # (P, N)
        seen = {"past": order < 0, "future": order > 0, "both": order != 0}[self.direction].to(z.dtype)
        if self.direction != "future":
            total, count = total - p[:, :, first:].sum(1), count + first
        total = torch.cat([(p * seen[..., None]).sum(2), total], 1)
        return total, torch.cat([seen.sum(1, keepdim=True), count])


def pairs(z: Tensor) -> Tensor:
    """z_i and z_j for every i < j: (…, r) -> (2, …, r · (r - 1) / 2)."""
    return torch.stack([z[..., i] for i in torch.triu_indices(z.shape[-1], z.shape[-1], 1, device=z.device)])


def span(u: Tensor, v: Tensor) -> Tensor:
    """The plane of two vectors, `u_i v_j - u_j v_i` over its norm: their `pairs`, (2, …, pairs) each -> (…, pairs).

    Another basis of the same plane gives the same but for the sign; of vectors along one line it is 0.
    """
    return F.normalize(u[0] * v[1] - u[1] * v[0], dim=-1, eps=1e-6)
