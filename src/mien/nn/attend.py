"""Softmax attention, once for every mechanism that needs it."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mien.nn.observe import Layout, Stages


class Attend(Stages):
    """`softmax(scale · q kᵀ + bias) v`, with `scale = head_dim^-1/2` unless another is given.

    q (B, heads, N, head_dim), k and v (B, heads, M, head_dim), bias broadcastable to (B, heads, N, M)
    -> (B, heads, N, head_dim), multiplied by `gates` (B, heads, N, 1) if there are some. Fused as long as nobody looks.
    Within `mien.nn.observe` or `intervene` the same is computed step by step, and `layout` says what its axes are.

    Args:
        dropout: the fraction of attn, from 0 to 1, that is dropped in training; 0.
        scale: of the scores; head_dim^-1/2.

    Paper: Vaswani et al., Attention Is All You Need, 2017.
    """

    def __init__(self, dropout: float = 0.0, scale: float | None = None):
        super().__init__()
        self.dropout, self.scale = dropout, scale

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None = None,
        layout: Layout = Layout("token"),  # noqa: B008 a tuple
        gates: Tensor | None = None,
    ) -> Tensor:
        if bias is not None:
            bias = bias.to(q.dtype)
        if self.open:
            scores = self.scores(q, k)
            return self.gather(scores if bias is None else scores + bias, v, layout, gates)
        dropout = self.dropout if self.training else 0.0
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=self.scale)
        return heads if gates is None else heads * gates

    def with_class_scores(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: Layout = Layout("token"),  # noqa: B008 a tuple
    ) -> tuple[Tensor, Tensor]:
        """The same without a bias, and the scores of the first query alone, (B, heads, M)."""
        if not self.open:
            return self(q, k, v), self.scores(k, q[:, :, :1])[..., 0]  # the other way k would be turned
        scores = self.stage("scores", self.scores(q, k), layout)
        return self.finish(scores, v, layout), scores[:, :, 0]

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """`scale · q kᵀ`: (B, heads, N, M)."""
        return q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if self.scale is None else self.scale)

    def gather(
        self,
        scores: Tensor,
        v: Tensor,
        layout: Layout,
        gates: Tensor | None = None,
        padding: tuple[Tensor, Tensor | None] | None = None,
    ) -> Tensor:
        """`softmax(scores) v`, all three stages of it: (B, heads, N, M), (B, heads, M, head_dim) -> heads.

        padding: the scores (B, heads, N, 1) of all padding together, which takes part in the softmax, and its value
        (heads, head_dim), or None for 0.
        """
        return self.finish(self.stage("scores", scores, layout), v, layout, gates, padding)

    def finish(
        self,
        scores: Tensor,
        v: Tensor,
        layout: Layout,
        gates: Tensor | None = None,
        padding: tuple[Tensor, Tensor | None] | None = None,
    ) -> Tensor:
        """What `gather` does once the scores are known."""
        count = scores.shape[-1]
        scores = scores if padding is None else torch.cat([scores, padding[0]], -1)
        attn = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype)
        attn, rest = attn[..., :count], attn[..., count:]
        attn = F.dropout(self.stage("attn", attn, layout), self.dropout, self.training)
        heads = attn @ v
        if padding is not None and padding[1] is not None:
            heads = heads + rest * padding[1][:, None].to(v.dtype)
        return self.stage("heads", heads if gates is None else heads * gates, layout)

    def in_planes(
        self,
        windows: Tensor,
        of_prefix: Tensor,
        cells: tuple[Tensor, Tensor],
        grid: tuple[int, int],
        v: Tensor,
        gates: Tensor | None = None,
        padding: bool = False,
        padding_value: Tensor | None = None,
    ) -> Tensor:
        """`gather` of scores that are known by windows of planes, for whoever looks: heads (B, heads, N, head_dim).

        windows: (Z · C, heads, n, P + m), of n queries and the prefix's and m other keys in each of C windows of
        Z = B · k planes. of_prefix: (B, heads, P, N). cells: of these queries (C, n) and keys (C, m) on the grid,
        counted from 1; 0 is padding. padding: whether it takes part, of `padding_value` (heads, head_dim), or 0.
        """
        size, first, (queries, keys) = grid[0] * grid[1], of_prefix.shape[2], cells
        batch, heads, n = v.shape[:3]
        windows = windows.unflatten(0, (-1, queries.shape[0])).transpose(1, 2)  # (Z, heads, C, n, P + m)
        hidden = windows.new_full((windows.shape[0], heads, size + 1, first + size + 1), -math.inf)
        hidden[:, :, queries, :first] = windows[..., :first]
        hidden[:, :, queries[:, :, None], first + keys[:, None]] = windows[..., first:]
        planes = torch.cat([hidden[:, :, 1:, :first], hidden[:, :, 1:, first + 1 :]], -1).unflatten(0, (batch, -1))
        scores = windows.new_full((batch, heads, n, n), -math.inf)
        scores[:, :, :first] = of_prefix
        for i, start in enumerate(range(first, n, size)):
            scores[:, :, start : start + size, :first] = planes[:, i, :, :, :first]
            scores[:, :, start : start + size, start : start + size] = planes[:, i, :, :, first:]
        rest = None
        if padding and bool((keys == 0).any()):
            outside = windows[..., first:].masked_fill(keys[:, None] != 0, -math.inf).logsumexp(-1)  # (Z, heads, C, n)
            hidden = windows.new_full((windows.shape[0], heads, size + 1), -math.inf)
            hidden[:, :, queries] = outside
            outside = hidden[:, :, 1:].unflatten(0, (batch, -1)).transpose(1, 2).flatten(2)
            rest = F.pad(outside, (first, 0), value=-math.inf)[..., None], padding_value
        return self.gather(scores, v, Layout.of_tokens(n, grid), gates, rest)


def split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """(B, N, D) -> (B, heads, N, D / heads)."""
    return tokens.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(heads: Tensor) -> Tensor:
    """(B, heads, N, head_dim) -> (B, N, heads · head_dim)."""
    return heads.transpose(1, 2).flatten(2)
