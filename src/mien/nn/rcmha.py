"""RCMHA: relative positions, and a convolution over queries, keys and values."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mien.nn.attend import Attend, merge_heads, split_heads
from mien.nn.base import Grid
from mien.nn.grid import checked_grid, join_planes, offset_index, split_planes
from mien.nn.observe import Layout
from mien.nn.plane_attend import attend_planes, heads_of_planes


class RCMHA(nn.Module):
    """Self-attention of convolved q, k, v with relative positions: (B, N, dim) -> (B, N, dim).

        q, k, v = conv(W x)           depthwise, kernel 3, a filter for each of head_dim, shared by all heads
        scores[i, j] = head_dim^-1/2 · ((q_i + u) · k_j + q_i · E[j - i] + c[j - i]);   out = proj(softmax(scores) v)

    u (heads, head_dim), E (offsets, heads, head_dim), c (offsets, heads) start at 0.

    Tokens are a sequence, as published, of up to `max_length`. With `causal` no token sees a later one, and the
    convolution covers past tokens only; otherwise it covers one token either way, which is ours (`conv_causal=True` is
    the published form without a mask). `memory` (B, M, dim) holds earlier tokens, which are attended to as well.

    With `grid` (H, W) the convolution is 3×3 and offsets are (y, x), on grids of up to this size: ours. Every
    plane is mixed alone, with the prefix, such as a class token, which no convolution touches and which has no
    position: between it and others E and c are 0.

    E is gathered for every pair, N² · dim numbers whatever the batch.

    Args:
        dim, num_heads: int, width of the tokens and number of heads, which divides it.
        causal: bool, no token sees a later one; False.
        conv_causal: bool, the convolution covers past tokens only; as `causal`.
        max_length: int, tokens of a sequence at most, memory included; 256.
        grid: (rows, columns) of the largest grid, or None: a sequence.
        attn_drop, proj_drop: float in [0, 1], fraction of attn and of outputs that training drops; 0.

    Paper: Sugiharto et al., RCMHA, arXiv 2308.03429. Reference: hermansh-id/rcmha, 87df49b, whose tables have 8192
    offsets whatever the length.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        causal: bool = False,
        conv_causal: bool | None = None,
        max_length: int = 256,
        grid: Grid | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        if grid is not None and (causal or conv_causal):
            raise ValueError("a grid has no order that could be causal")
        if causal and conv_causal is False:
            raise ValueError("a convolution that looks ahead is not causal")
        head_dim = dim // num_heads
        self.num_heads, self.causal = num_heads, causal
        self.conv_causal = causal if conv_causal is None else conv_causal
        self.max_length, self.grid, self.needs_grid = max_length, grid, grid is not None
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=bias) for bias in (False, False, True))
        conv, offsets = nn.Conv1d, 2 * max_length
        if grid is not None:
            conv, offsets = nn.Conv2d, math.prod(2 * size - 1 for size in grid)
        self.conv_q, self.conv_k, self.conv_v = (conv(head_dim, head_dim, 3, groups=head_dim) for _ in range(3))
        self.relative_key = nn.Parameter(torch.zeros(offsets, num_heads, head_dim))
        self.relative_bias = nn.Parameter(torch.zeros(offsets, num_heads))
        self.query_bias = nn.Parameter(torch.zeros(num_heads, head_dim))
        self.attend = Attend(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, tokens: Tensor, grid: Grid | None = None, memory: Tensor | None = None) -> Tensor:
        if memory is not None and self.needs_grid:
            raise ValueError("on a grid there are no tokens before the first: it takes no memory")
        source = tokens if memory is None else torch.cat([memory, tokens], dim=1)
        q = self.convolved(self.conv_q, self.q(tokens), grid)
        k, v = (
            self.convolved(conv, x, grid) for conv, x in ((self.conv_k, self.k(source)), (self.conv_v, self.v(source)))
        )
        biased = q + self.query_bias[:, None].to(q.dtype)
        if self.grid is not None:
            plane = checked_grid(tokens, grid, "RCMHA")
            bias = self.bias(heads_of_planes(q, plane), offset_index(plane, self.grid, q.device))
            heads = attend_planes(self.attend, biased, k, v, plane, bias)
        else:
            offset = self.in_line(q.shape[2], k.shape[2], q.device)
            bias = self.bias(q, offset + self.max_length)
            bias = bias.masked_fill(offset > 0, -math.inf) if self.causal else bias
            heads = self.attend(biased, k, v, bias, Layout.of_tokens(k.shape[2], grid if memory is None else None))
        return self.proj_drop(self.proj(merge_heads(heads)))

    def convolved(self, conv: nn.Module, x: Tensor, grid: Grid | None) -> Tensor:
        """(B, N, dim) -> heads (B, heads, N, head_dim), all but the prefix convolved."""
        prefix, planes, shape, pad = x[:, :0], x, x.shape[1:2], (2, 0) if self.conv_causal else (1, 1)
        if self.grid is not None:
            shape, pad = checked_grid(x, grid, "RCMHA"), (1, 1, 1, 1)
            prefix, planes = split_planes(x, grid, "RCMHA")
        maps = planes.transpose(1, 2).unflatten(1, (self.num_heads, -1)).flatten(0, 1).unflatten(2, shape)
        maps = conv(F.pad(maps, pad)).flatten(2).unflatten(0, (-1, self.num_heads))  # (B, heads, head_dim, H · W)
        return split_heads(join_planes(prefix, maps.flatten(1, 2).transpose(1, 2)), self.num_heads)

    def bias(self, q: Tensor, index: Tensor) -> Tensor:
        """`head_dim^-1/2 · (q · E + c)` where E, c stand at index (N, M): (B, heads, N, M)."""
        key = F.embedding(index, self.relative_key.flatten(1)).unflatten(-1, (self.num_heads, -1))  # (N, M, heads, d)
        bias = F.embedding(index, self.relative_bias).permute(2, 0, 1)
        return (torch.einsum("bhid,ijhd->bhij", q, key.to(q.dtype)) + bias) * q.shape[-1] ** -0.5

    def in_line(self, queries: int, keys: int, device: torch.device) -> Tensor:
        """How far a key stands behind a query, negative for those before; the last of both are the same token."""
        if keys > self.max_length:
            raise ValueError(f"RCMHA(max_length={self.max_length}) was given {keys} tokens")
        position = torch.arange(keys, device=device)
        return position - position[keys - queries :, None]
