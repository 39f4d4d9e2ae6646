"""HaloNet's attention: blocks of queries, and keys from a little further around."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mien.nn.base import Grid
from mien.nn.grid import from_windows, to_windows
from mien.nn.local_attention import LocalAttention


class Halo(LocalAttention):
    """Tokens of a b × b block attend to it and to a halo r wide around it: (B, N, dim), grid -> (B, N, dim).

        scores[i, j] = head_dim^-1/2 · q_i · k_j + q_i · (height_rel[y_j - y_i] + width_rel[x_j - x_i])
        out = proj(softmax(scores) v)

    height_rel and width_rel (2w - 1, head_dim), w = b + 2r, are shared by the heads; an index counts from the key's
    position in its window of w × w, and the query's in its block. With `scale_pos_embed` their part is scaled, too.

    The grid is padded around, and further where b does not divide it. The published code attends to
    this padding as if it were tokens whose key and value are 0: 41 % of a uniform attention at 14×14, and 71 % at 7×7.
    With `mask_padding`, which is the default and ours, it has no mass; without it all is as published (there b must
    divide the grid). The published mixer has no `proj`: `proj=False` leaves it out. `head_dim` of queries and
    keys is dim / num_heads, and `value_dim`, the width before `proj`, is dim, unless given. The prefix is ours.

    Args:
        dim, num_heads: int, width of the tokens and number of heads, which divides it.
        block_size: int from 1 on, b; 7.
        halo_size: int from 0 on, r; 3.
        mask_padding: bool, padding has no mass; True.
        scale_pos_embed: bool, the relative part is scaled, too; False.
        head_dim: int, of q and k; dim / num_heads.
        value_dim: int, of v of all heads; dim.
        qkv_bias: bool, whether q, k and v have biases; False.
        attn_drop, proj_drop: float in [0, 1], fraction of attn and of outputs that training drops; 0.
        proj: bool, whether there is a projection; without one the width that comes out is value_dim; True.

    Paper: Vaswani et al., Scaling Local Self-Attention for Parameter Efficient Visual Backbones, 2021.
    Reference: huggingface/pytorch-image-models 1.0.31, `HaloAttn`; masked and with `proj`: halonet-pytorch 0.0.5.
    """

    height_rel: nn.Parameter
    width_rel: nn.Parameter
    stride = 1  # 2: every other token of a block asks, in both directions

    def __init__(
        self,
        dim: int,
        num_heads: int,
        block_size: int = 7,
        halo_size: int = 3,
        mask_padding: bool = True,
        scale_pos_embed: bool = False,
        head_dim: int | None = None,
        value_dim: int | None = None,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        proj: bool = True,
    ):
        super().__init__(dim, num_heads, qkv_bias, attn_drop, proj_drop, head_dim, value_dim)
        if not proj:
            self.proj = nn.Identity()
        if block_size < 1 or halo_size < 0:
            raise ValueError(f"a block of {block_size} with a halo of {halo_size} holds no tokens")
        self.block_size, self.halo_size, self.mask_padding = block_size, halo_size, mask_padding
        head_dim = self.widths[0] // num_heads
        self.pos_scale = head_dim**-0.5 if scale_pos_embed else 1.0
        for name in ("height_rel", "width_rel"):
            table = nn.Parameter(torch.empty(2 * (block_size + 2 * halo_size) - 1, head_dim))
            setattr(self, name, nn.init.trunc_normal_(table, std=head_dim**-0.5))

    def cut(self, grid: Grid) -> tuple[Grid, Grid]:
        """Sides of a block, and widths of its halo: where padding is masked, no more of either than the grid has."""
        if not self.mask_padding:
            return (self.block_size, self.block_size), (self.halo_size, self.halo_size)
        block = min(grid[0], self.block_size), min(grid[1], self.block_size)
        above, beside = (self.halo_size if size > b else 0 for size, b in zip(grid, block, strict=True))
        return block, (above, beside)

    def queries(self, planes: Tensor, grid: Grid) -> Tensor:
        return to_windows(planes, grid, self.cut(grid)[0])[0]

    def keys(self, planes: Tensor, grid: Grid) -> Tensor:
        block, halo = self.cut(grid)
        left, above = halo[1], halo[0]
        below, right = (-size % b + r for size, b, r in zip(grid, block, halo, strict=True))
        maps = F.pad(planes.unflatten(1, grid), (0, 0, left, right, above, below))
        for axis in (0, 1):
            maps = maps.unfold(1 + axis, block[axis] + 2 * halo[axis], block[axis])
        return maps.permute(0, 1, 2, 4, 5, 3).flatten(3, 4).flatten(0, 2)  # from (Z, R, C, E, h, w)

    def join(self, windows: Tensor, grid: Grid) -> Tensor:
        return from_windows(windows, grid, self.cut(grid)[0])

    def bias(self, q: Tensor, grid: Grid) -> Tensor:
        block, halo = self.cut(grid)
        counts = [-(-size // b) for size, b in zip(grid, block, strict=True)]
        q = q.unflatten(2, [side // self.stride for side in block]) * self.pos_scale  # (Z · R · C, heads, h, w, d)
        tables, padding = [], []
        for table, size, count, b, r in zip((self.height_rel, self.width_rel), grid, counts, block, halo, strict=True):
            query, key = torch.arange(b // self.stride, device=q.device), torch.arange(b + 2 * r, device=q.device)
            first = self.block_size + 3 * self.halo_size - 1 - r  # of the table: key 0 seen from query 0
            tables.append(table[key - query[:, None] + first].to(q.dtype))  # (b, b + 2r, d)
            position = torch.arange(count, device=q.device)[:, None] * b + key - r  # (blocks, b + 2r)
            outside = ((position < 0) | (position >= size)) & self.mask_padding
            padding.append(q.new_zeros(outside.shape).masked_fill(outside, -math.inf))
        above = torch.einsum("zhyxd,ykd->zhyxk", q, tables[0])
        beside = torch.einsum("zhyxd,xkd->zhyxk", q, tables[1])
        # (Z, R · C, heads, h · w, b + 2r): of seven dimensions OpenVINO (2026.4) adds others than it should
        above, beside = (x.flatten(2, 3).unflatten(0, (-1, counts[0] * counts[1])) for x in (above, beside))
        above = above + padding[0].repeat_interleave(counts[1], 0)[:, None, None]
        beside = beside + padding[1].repeat(counts[0], 1)[:, None, None]
        return (above[..., :, None] + beside[..., None, :]).flatten(4)
