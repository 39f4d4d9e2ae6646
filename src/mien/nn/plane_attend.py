"""Softmax attention within planes, and of a prefix with everything: for mixers that see a whole plane at once."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mien.nn.attend import Attend
from mien.nn.base import Grid
from mien.nn.grid import count_planes


def attend_planes(
    attend: Attend,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Grid,
    bias: Tensor | None = None,
    k_of_prefix: Tensor | None = None,
    gates: Tensor | None = None,
) -> Tensor:
    """`softmax(scale · q kᵀ + bias) v` of a prefix and n planes: (B, heads, P + n · H · W, head_dim) -> the same.

    A token of a plane sees its plane, with `bias` (broadcastable to (B · n, heads, H · W, H · W), or with P more before
    the last), and the prefix; a prefix token sees all tokens of all planes and the prefix, as `k_of_prefix` where it
    sees other keys. `gates` (B, heads, N, 1) multiply the answers.
    """
    count, prefix = count_planes(q.shape[2], grid)
    inside_q, inside_k, inside_v = (heads_of_planes(x, grid) for x in (q, k, v))
    if prefix:
        before_k, before_v = (x[:, :, :prefix].repeat_interleave(count, 0) for x in (k, v))
        inside_k, inside_v = torch.cat([before_k, inside_k], 2), torch.cat([before_v, inside_v], 2)
        bias = None if bias is None else F.pad(bias, (inside_k.shape[2] - bias.shape[-1], 0))
    of_prefix = k if k_of_prefix is None else k_of_prefix
    if attend.open:
        scores = attend.scores(inside_q, inside_k)
        scores = scores if bias is None else scores + bias.to(q.dtype)
        cells = torch.arange(1, grid[0] * grid[1] + 1, device=q.device)[None]
        return attend.in_planes(scores, attend.scores(q[:, :, :prefix], of_prefix), (cells, cells), grid, v, gates)
    planes = attend(inside_q, inside_k, inside_v, bias)
    heads = planes.unflatten(0, (q.shape[0], -1)).transpose(1, 2).flatten(2, 3)  # (B, heads, n · H · W, head_dim)
    if prefix:
        heads = torch.cat([attend(q[:, :, :prefix], of_prefix, v), heads], 2)
    return heads if gates is None else heads * gates


def heads_of_planes(x: Tensor, grid: Grid) -> Tensor:
    """The planes alone: (B, heads, P + n · H · W, head_dim) -> (B · n, heads, H · W, head_dim)."""
    count, prefix = count_planes(x.shape[2], grid)
    return x[:, :, prefix:].unflatten(2, (count, -1)).transpose(1, 2).flatten(0, 1)
