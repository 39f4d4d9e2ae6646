"""Softmax attention of tokens to what is near them: what the local mixers share."""

import torch
from torch import Tensor, nn

from mien.nn.attend import Attend, merge_heads, split_heads
from mien.nn.base import Grid
from mien.nn.grid import join_planes, split_planes


class LocalAttention(nn.Module):
    """Softmax attention within windows: (B, P + k · H · W, dim) -> the same.

        proj(softmax(head_dim^-1/2 · q [kₚ, k]ᵀ + [0, bias]) [vₚ, v])

    A token of a plane sees the keys k of its own window and those kₚ of the P prefix tokens; a prefix token sees all
    tokens, without a bias. A derived class says which windows: it cuts planes (Z, H · W, E), Z = B · k, into C windows
    with `queries` (Z · C, n, E) and `keys` (Z · C, m, E), puts them together again with `join`, and gives their `bias`.

    `attend` works in the windows, (Z · C, heads, n, P + m) as a hook on its weights sees it, and `attend_prefix` for
    the prefix, (B, heads, P, N). What the prefix does is ours: the papers have none.
    """

    needs_grid = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool,
        attn_drop: float,
        proj_drop: float,
        head_dim: int | None = None,
        value_dim: int | None = None,
    ):
        super().__init__()
        for name, width in (("dim", dim), ("value_dim", value_dim or dim)):
            if width % num_heads:
                raise ValueError(f"{name} {width} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        keys = num_heads * (head_dim or dim // num_heads)
        self.widths = (keys, keys, value_dim or dim)  # of q, k and v
        self.qkv = nn.Linear(dim, sum(self.widths), bias=qkv_bias)
        self.attend, self.attend_prefix = Attend(attn_drop), Attend(attn_drop)
        self.proj = nn.Linear(self.widths[2], dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        qkv = self.qkv(tokens)
        prefix, planes = split_planes(qkv, grid, type(self).__name__)
        out, count = self.local(prefix, planes, grid), prefix.shape[1]
        if count:
            q, k, v = self.split(qkv)
            out = join_planes(merge_heads(self.attend_prefix(q[:, :, :count], k, v)), out)
        else:
            out = out.reshape(tokens.shape[0], tokens.shape[1], -1)
        return self.proj_drop(self.proj(out))

    def local(self, prefix: Tensor, planes: Tensor, grid: Grid) -> Tensor:
        """q, k and v of the prefix (B, P, E) and of planes (Z, H · W, E) -> what the planes attend to (Z, H · W, ·)."""
        q, kv = planes.split((self.widths[0], sum(self.widths[1:])), dim=-1)
        q, kv = self.queries(q, grid), self.keys(kv, grid)
        if count := prefix.shape[1]:
            seen = prefix[:, None, :, self.widths[0] :].expand(-1, kv.shape[0] // prefix.shape[0], -1, -1)
            kv = torch.cat([seen.flatten(0, 1), kv], dim=1)
        q = split_heads(q, self.num_heads)
        bias = self.bias(q, grid)
        if bias is not None:
            if bias.shape[1] > 1:  # windows differ
                bias = bias.expand(planes.shape[0], -1, -1, -1, -1)
            bias = bias.flatten(0, 1)
            bias = nn.functional.pad(bias, (count, 0)) if count else bias
        k, v = (split_heads(x, self.num_heads) for x in kv.split(self.widths[1:], dim=-1))
        return self.join(merge_heads(self.attend(q, k, v, bias)), grid)

    def split(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """(…, N, E) -> q, k, v, each (…, heads, N, ·)."""
        return tuple(split_heads(x, self.num_heads) for x in qkv.split(self.widths, dim=-1))

    def queries(self, planes: Tensor, grid: Grid) -> Tensor:
        """(Z, H · W, E) -> (Z · C, n, E)."""
        raise NotImplementedError

    def keys(self, planes: Tensor, grid: Grid) -> Tensor:
        """(Z, H · W, E) -> (Z · C, m, E)."""
        raise NotImplementedError

    def join(self, windows: Tensor, grid: Grid) -> Tensor:
        """The inverse of `queries`."""
        raise NotImplementedError

    def bias(self, q: Tensor, grid: Grid) -> Tensor | None:
        """What is added to the scores of q (Z · C, heads, n, d): (Z or 1, C or 1, heads or 1, n, m), or nothing."""
        raise NotImplementedError
