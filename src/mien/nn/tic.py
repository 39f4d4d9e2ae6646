"""TiC's MSA-Conv: a convolution whose weights are an attention over the kernel."""

from functools import reduce
from operator import add

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mien.nn.attend import merge_heads
from mien.nn.base import Grid
from mien.nn.grid import checked_grid, join_planes, split_planes
from mien.nn.local_attention import LocalAttention


class TiC(LocalAttention):
    """Every token attends to the `kernel_size`² tokens around it, `dilation` apart: (B, N, dim), grid -> (B, N, dim).

        attn = softmax_δ(head_dim^-1/2 · q_p · k_{p+δ});   mixed_p = Σ_δ attn_δ v_{p+δ};   out = proj(mixed)
        conv: out = relu(conv(mixed + x)), a convolution of that kernel, undilated, and of `stride`: dim -> out_dim

    Time grows with N, and no parameter knows the grid. Departure: what lies beyond the border has no mass; with
    `mask_padding=False`, as published, it takes part with score 0 and value 0. The published code has one head, though
    the abstract names several, and always the convolution; `proj` is ours. With a stride the planes shrink to
    ⌈H / stride⌉ · ⌈W / stride⌉ tokens, and no residual fits around it.

    `shift`, *inferred* from the paper's name for it (multi-directional cyclic shift, which the code has not): keys and
    values of head h lie rolled, where h mod 5 is not 0, by half the kernel, down, up, right or left, so that heads look
    around five places and across the border. Its inter-pooling is the network's (`mien.networks.TiCNet`).

    The prefix is ours: tokens see it in the same softmax, it sees everything, and passes the convolution as though the
    whole kernel lay on it.

    Args:
        dim, num_heads: int, width of the tokens and number of heads, which divides it.
        kernel_size: odd int; 3.
        dilation: int from 1 on; 1.
        mask_padding: bool, padding has no mass; True.
        shift: bool, heads look around five places; False.
        conv: bool, the published convolution in the place of proj; False.
        stride, out_dim, conv_bias: int from 1 on, int, bool, of that convolution; 1, dim, False.
        qkv_bias: bool, whether q, k and v have biases; True.
        attn_drop, proj_drop: float in [0, 1], fraction of attn and of outputs that training drops; 0.

    Paper: Zhang et al., TiC: Exploring Vision Transformer in Convolution, arXiv 2310.04134.
    Reference: zs670980918/MSA-Conv, 2d96f54.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int = 3,
        dilation: int = 1,
        mask_padding: bool = True,
        shift: bool = False,
        conv: bool = False,
        stride: int = 1,
        out_dim: int | None = None,
        conv_bias: bool = False,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ):
        super().__init__(dim, num_heads, qkv_bias, attn_drop, proj_drop)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, so that a token lies in the middle, not {kernel_size}")
        if dilation < 1 or stride < 1:
            raise ValueError(f"dilation and stride must be at least 1, not {dilation} and {stride}")
        if not conv and (stride > 1 or out_dim is not None or conv_bias):
            raise ValueError("stride, out_dim and conv_bias are the convolution's, which needs conv=True")
        if shift and not mask_padding:
            raise ValueError("shift goes with mask_padding: what was rolled in from the other side has mass")
        self.kernel_size, self.dilation, self.mask_padding, self.shift = kernel_size, dilation, mask_padding, shift
        self.conv = None
        if conv:
            self.conv = nn.Conv2d(dim, out_dim or dim, kernel_size, stride, kernel_size // 2, bias=conv_bias)
            self.proj = nn.Identity()

    def forward(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        mixed = super().forward(tokens, grid)
        if self.conv is None:
            return mixed
        grid = checked_grid(tokens, grid, "TiC")
        prefix, planes = split_planes(mixed + tokens, grid)
        prefix = F.linear(prefix, self.conv.weight.sum((2, 3)), self.conv.bias)
        return join_planes(prefix, self.conv(planes.mT.unflatten(2, grid)).flatten(2).mT).relu()

    def cells(self, grid: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
        numbers = torch.arange(1, grid[0] * grid[1] + 1, device=device)[:, None]
        if self.shift:  # heads differ
            return numbers.mT, numbers.mT
        return numbers, torch.cat(self.around(numbers[None, None], grid), -1)[0, 0]

    def window_scores(self, prefix: Tensor, planes: Tensor, grid: Grid) -> Tensor:
        scores = self.scores(prefix, planes, grid)[0]
        scores = self.spread(scores, grid) if self.shift else scores.transpose(1, 2).flatten(0, 1)[:, :, None]
        return scores.roll(prefix.shape[1], -1)  # the prefix first

    def spread(self, scores: Tensor, grid: Grid) -> Tensor:
        """Scores of the kernel's cells as those of all tokens: (Z, heads, N, kernel_size² + P) -> (…, N, N + P)."""
        tokens = grid[0] * grid[1]
        numbers = torch.arange(1, tokens + 1, device=scores.device).expand(1, self.num_heads, -1)[..., None]
        where = torch.cat(self.around(self.rolled(numbers, grid), grid), -1).expand(scores.shape[0], -1, -1, -1)
        cells, of_prefix = scores.split((self.kernel_size**2, scores.shape[-1] - self.kernel_size**2), -1)
        every = torch.full((*scores.shape[:-1], 1 + tokens), float("-inf"), dtype=scores.dtype, device=scores.device)
        return torch.cat([every.scatter(-1, where, cells)[..., 1:], of_prefix], -1)

    def local(self, prefix: Tensor, planes: Tensor, grid: Grid) -> Tensor:
        scores, v_prefix = self.scores(prefix, planes, grid)
        v = self.rolled(self.split(planes)[2], grid)
        at_least_fp32 = torch.promote_types(scores.dtype, torch.float32)
        attn = F.dropout(scores.softmax(-1, dtype=at_least_fp32).to(v.dtype), self.attend.dropout, self.training)
        parts = [attn[..., i : i + 1] * there for i, there in enumerate(self.around(v, grid))]
        if v_prefix is not None:
            parts.insert(0, attn[..., self.kernel_size**2 :] @ v_prefix)
        return merge_heads(reduce(add, parts))

    def scores(self, prefix: Tensor, planes: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None]:
        """Scores (Z, heads, H · W, kernel_size² + P), the kernel row by row, and v of the prefix (Z, heads, P, d)."""
        q, k, _ = self.split(planes)  # (Z, heads, H · W, d), Z = B · planes
        q = q * q.shape[-1] ** -0.5
        scores = torch.stack([(q * there).sum(-1) for there in self.around(self.rolled(k, grid), grid)], -1)
        if self.mask_padding:
            inside = self.around(q.new_ones(1, 1, grid[0] * grid[1], 1), grid)
            scores = scores.masked_fill(torch.cat(inside, -1) == 0, float("-inf"))
        if not prefix.shape[1]:  # engines cannot be given none
            return scores, None
        per_face = planes.shape[0] // prefix.shape[0]
        _, k_prefix, v_prefix = self.split(prefix.repeat_interleave(per_face, 0))  # (Z, heads, P, d)
        return torch.cat([scores, q @ k_prefix.mT], -1), v_prefix

    def rolled(self, x: Tensor, grid: Grid) -> Tensor:
        """Keys or values with each head's plane rolled: (Z, heads, H · W, d) -> the same."""
        if not self.shift:
            return x
        reach = self.dilation * (self.kernel_size // 2)
        ways = ((0, 0), (reach, 0), (-reach, 0), (0, reach), (0, -reach))
        maps = x.unflatten(2, grid)
        heads = [maps[:, h].roll(ways[h % 5], (1, 2)) for h in range(self.num_heads)]
        return torch.stack(heads, 1).flatten(2, 3)

    def around(self, x: Tensor, grid: Grid) -> list[Tensor]:
        """The tokens at each cell of the kernel, 0 beyond the border: (Z, heads, H · W, d) each."""
        reach = self.dilation * (self.kernel_size // 2)
        maps = F.pad(x.unflatten(2, grid), (0, 0, reach, reach, reach, reach))
        steps = range(0, 2 * reach + 1, self.dilation)
        return [maps[:, :, y : y + grid[0], x : x + grid[1]].flatten(2, 3) for y in steps for x in steps]
