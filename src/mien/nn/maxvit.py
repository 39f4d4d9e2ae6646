"""MaxViT's two axes of attention: within blocks of neighbours, and across the whole grid."""

import math

import torch
from torch import Tensor, nn

from mien.nn.base import Grid
from mien.nn.grid import from_windows, pair, relative_bias, to_windows
from mien.nn.local_attention import LocalAttention


class MaxViTBlockAttention(LocalAttention):
    """Every token attends to those of its block of h × w neighbours: (B, N, dim), grid -> (B, N, dim).

        out = proj(softmax(head_dim^-1/2 · q kᵀ + R) v)
        R[i, j] = relative_bias[:, y_j - y_i + h - 1, x_j - x_i + w - 1]

    `relative_bias` (heads, 2h - 1, 2w - 1) lies as in the published TensorFlow weights, and `qkv` gives q of all heads,
    then k, then v. The paper needs a grid that the block divides; here others are padded below and to the right, no
    token attends to padding, and a block is never larger than the grid. The prefix is seen by and sees all, which is
    ours. In the paper a layer with this stands before each with `MaxViTGridAttention`: after two, all have seen all.

    Args:
        dim, num_heads: int, width of the tokens and number of heads, which divides it.
        window_size: int from 1 on, or (rows, columns), tokens along the sides of a block; 7.
        qkv_bias: bool, whether q, k and v have biases; True.
        attn_drop, proj_drop: float in [0, 1], fraction of attn and of outputs that training drops; 0.

    Paper: Tu et al., MaxViT: Multi-Axis Vision Transformer, 2022. Reference: huggingface/pytorch-image-models 1.0.31,
    `PartitionAttentionCl` with rel_pos_type="bias_tf" and head_first=False.
    """

    spread = False

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int | Grid = 7,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ):
        super().__init__(dim, num_heads, qkv_bias, attn_drop, proj_drop)
        self.window_size = pair(window_size, "window_size")
        self.relative_bias = nn.Parameter(torch.empty(num_heads, *(2 * size - 1 for size in self.window_size)))
        nn.init.trunc_normal_(self.relative_bias, std=0.02)

    def window(self, grid: Grid) -> Grid:
        return min(grid[0], self.window_size[0]), min(grid[1], self.window_size[1])

    def queries(self, planes: Tensor, grid: Grid) -> Tensor:
        return to_windows(planes, grid, self.window(grid), self.spread)[0]

    keys = queries

    def join(self, windows: Tensor, grid: Grid) -> Tensor:
        return from_windows(windows, grid, self.window(grid), self.spread)

    def bias(self, q: Tensor, grid: Grid) -> Tensor:
        window = self.window(grid)
        positions = (torch.arange(size, device=q.device) for size in window)
        offsets = [(x - x[:, None] + size - 1)[None] for x, size in zip(positions, self.window_size, strict=True)]
        bias = relative_bias(self.relative_bias, *offsets)  # (1, heads, h · w, h · w)
        inside = to_windows(q.new_ones(1, grid[0] * grid[1], 1), grid, window, self.spread)[1]
        if inside is not None:
            bias = bias.masked_fill(~inside[:, None, None], -math.inf)
        return bias[None]


class MaxViTGridAttention(MaxViTBlockAttention):
    """The same among h × w tokens that lie spread over the whole plane: (B, N, dim), grid -> (B, N, dim).

    They are H/h rows and W/w columns apart, both rounded up: token (y, x) attends to those whose row leaves the same
    rest as y when divided by the one, and whose column as x by the other. y_j - y_i counts these steps. Where the grid
    is no larger than h × w, as at 7×7, this and the block are attention to all tokens.

    Args:
        dim, num_heads, qkv_bias, attn_drop, proj_drop: as for `MaxViTBlockAttention`.
        window_size: int from 1 on, or (rows, columns), how many rows and columns attend to one another; 7.

    Paper, reference, departures: see `MaxViTBlockAttention`.
    """

    spread = True
