"""Softmax attention of tokens to what is near them: what the local mixers share."""

import torch
from torch import Tensor, nn

from mien.nn.attend import Attend, merge_heads, split_heads
from mien.nn.base import Grid
from mien.nn.grid import checked_grid, join_planes, split_planes


class LocalAttention(nn.Module):
    """Softmax attention within windows: (B, P + k · H · W, dim) -> the same.

        proj(softmax(head_dim^-1/2 · q [kₚ, k]ᵀ + [0, bias]) [vₚ, v])

    A token of a plane sees the keys k of its own window and those kₚ of the P prefix tokens; a prefix token sees all
    tokens, without a bias. A derived class defines the windows: it cuts planes (Z, H · W, E), Z = B · k, into C windows
    with `queries` (Z · C, n, E) and `keys` (Z · C, m, E), puts them together again with `join`, and gives their `bias`.

    `mien.nn.observe` shows all N tokens against all N: a token's own plane and window, and the prefix, have scores, and
    others -inf. What the prefix does is ours: the papers have none.
    """

    needs_grid = True
    qkv: nn.Module
    proj: nn.Module

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
        self.attend = Attend(attn_drop)
        self.proj = nn.Linear(self.widths[2], dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        qkv = self.qkv(tokens)
        grid = checked_grid(qkv, grid, type(self).__name__)
        prefix, planes = split_planes(qkv, grid)
        count = prefix.shape[1]
        if self.attend.open:
            out = self.dense(qkv, prefix, planes, grid)
        elif count:
            q, k, v = self.split(qkv)
            out = join_planes(merge_heads(self.attend(q[:, :, :count], k, v)), self.local(prefix, planes, grid))
        else:
            out = self.local(prefix, planes, grid).reshape(tokens.shape[0], tokens.shape[1], -1)
        return self.proj_drop(self.proj(out))

    def dense(self, qkv: Tensor, prefix: Tensor, planes: Tensor, grid: Grid) -> Tensor:
        """The same for whoever looks: scores of all tokens against all, (B, N, E) -> (B, N, ·)."""
        q, k, v = self.split(qkv)
        of_prefix = self.attend.scores(q[:, :, : prefix.shape[1]], k)
        windows, cells = self.window_scores(prefix, planes, grid), self.cells(grid, qkv.device)
        padding = not getattr(self, "mask_padding", True)
        value = self.padding_value() if padding else None
        return merge_heads(self.attend.in_planes(windows, of_prefix, cells, grid, v, None, padding, value))

    def cells(self, grid: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
        """Which tokens of a plane the queries (C, n) and keys (C, m) of its windows are, from 1; 0 is padding."""
        numbers = torch.arange(1, grid[0] * grid[1] + 1, device=device)[None, :, None]
        return self.queries(numbers, grid)[..., 0], self.keys(numbers, grid)[..., 0]

    def padding_value(self) -> Tensor | None:
        """The value (heads, ·) of padding that takes part; None is 0."""
        return None

    def window_scores(self, prefix: Tensor, planes: Tensor, grid: Grid) -> Tensor:
        """The scores of all windows, those of the prefix first: (Z · C, heads, n, P + m)."""
        q, k, _, bias = self.windows(prefix, planes, grid)
        scores = self.attend.scores(q, k)
        return scores if bias is None else scores + bias.to(scores.dtype)

    def local(self, prefix: Tensor, planes: Tensor, grid: Grid) -> Tensor:
        """q, k and v of the prefix (B, P, E) and of planes (Z, H · W, E) -> the output of the planes (Z, H · W, ·)."""
        return self.join(merge_heads(self.attend(*self.windows(prefix, planes, grid))), grid)

    def windows(self, prefix: Tensor, planes: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """q (Z · C, heads, n, ·), k and v (Z · C, heads, P + m, ·), and their bias."""
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
        return q, k, v, bias

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(…, N, E) -> q, k, v, each (…, heads, N, ·)."""
        q, k, v = (split_heads(x, self.num_heads) for x in qkv.split(self.widths, dim=-1))
        return q, k, v

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
        """Is added to the scores of q (Z · C, heads, n, d): (Z or 1, C or 1, heads or 1, n, m), or None."""
        raise NotImplementedError
