"""Softmax attention, once for every mechanism that needs it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attend(nn.Module):
    """`softmax(scale · q kᵀ + bias) v`, with `scale = head_dim^-1/2` unless another is given.

    q (B, heads, N, head_dim), k and v (B, heads, M, head_dim), bias broadcastable to (B, heads, N, M)
    -> (B, heads, N, head_dim). Fused as long as nobody looks; with `open = True` the same result is computed step by
    step, and a forward hook on `weights` sees (and may replace) `attn` (B, heads, N, M).

    Paper: Vaswani et al., Attention Is All You Need, 2017.
    """

    def __init__(self, dropout: float = 0.0, scale: float | None = None):
        super().__init__()
        self.dropout, self.scale = dropout, scale
        self.open = False
        self.weights = nn.Identity()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        if bias is not None:
            bias = bias.to(q.dtype)
        if not self.open:
            dropout = self.dropout if self.training else 0.0
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=self.scale)
        scores = self.scores(q, k)
        return self.gather(scores if bias is None else scores + bias, v)

    def with_class_scores(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The same without a bias, and the scores of the first query alone, (B, heads, M)."""
        if not self.open:
            return self(q, k, v), self.scores(k, q[:, :, :1])[..., 0]  # the other way k would be turned
        scores = self.scores(q, k)
        return self.gather(scores, v), scores[:, :, 0]

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """`scale · q kᵀ`: (B, heads, N, M)."""
        return q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if self.scale is None else self.scale)

    def gather(self, scores: Tensor, v: Tensor) -> Tensor:
        """`softmax(scores) v`, where it can be seen."""
        at_least_fp32 = torch.promote_types(scores.dtype, torch.float32)
        attn = self.weights(scores.softmax(dim=-1, dtype=at_least_fp32).to(v.dtype))
        return F.dropout(attn, self.dropout, self.training) @ v


def split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """(B, N, D) -> (B, heads, N, D / heads)."""
    return tokens.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(heads: Tensor) -> Tensor:
    """(B, heads, N, head_dim) -> (B, N, heads · head_dim)."""
    return heads.transpose(1, 2).flatten(2)
