"""Softmax attention, once for every mechanism that needs it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attend(nn.Module):
    """`softmax(scale · q kᵀ + bias) v`, with `scale = head_dim^-1/2`.

    q (B, heads, N, head_dim), k and v (B, heads, M, head_dim), bias broadcastable to (B, heads, N, M)
    -> (B, heads, N, head_dim). Fused as long as nobody looks; with `open = True` the same result is computed step by
    step, and a forward hook on `weights` sees (and may replace) `attn` (B, heads, N, M).

    Paper: Vaswani et al., Attention Is All You Need, 2017.
    """

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.dropout = dropout
        self.open = False
        self.weights = nn.Identity()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        if bias is not None:
            bias = bias.to(q.dtype)
        if not self.open:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        if bias is not None:
            scores = scores + bias
        at_least_fp32 = torch.promote_types(scores.dtype, torch.float32)
        attn = self.weights(scores.softmax(dim=-1, dtype=at_least_fp32).to(v.dtype))
        return F.dropout(attn, dropout) @ v


def split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """(B, N, D) -> (B, heads, N, D / heads)."""
    return tokens.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(heads: Tensor) -> Tensor:
    """(B, heads, N, head_dim) -> (B, N, heads · head_dim)."""
    return heads.transpose(1, 2).flatten(2)
