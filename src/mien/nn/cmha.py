"""ComplexFormer's attention: queries and keys are complex numbers, turned by their position."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mien.nn.attend import Attend, merge_heads
from mien.nn.base import Grid
from mien.nn.grid import checked_grid, count_planes
from mien.nn.observe import Layout
from mien.nn.plane_attend import attend_planes, heads_of_planes


class CMHA(nn.Module):
    """Complex attention: magnitudes are multiplied, and phases compared: (B, N, dim) -> (B, N, dim).

        m = √(re² + im² + 1e-9);   p = atan2(im, re);   f_i = base^(-2i / head_dim), i = 0 … head_dim / 2 - 1
        scores[a, b] = Σ_i m_q[a, i] m_k[b, i] cos(δ_i (p_q[a, i] - p_k[b, i]) + β_i + (a - b) f_i)
        out = proj(softmax(scores) v)

    The first half of a head's numbers is real, the other imaginary; scores have no head_dim^-1/2. δ, β (heads,
    head_dim / 2) are learned; δ = 1, β = 0 is rotary attention. Where δ is no whole number, a phase that goes round by
    ±π makes the score jump. a, b are positions in the sequence, row-major on a grid, which is ignored; with `base =
    None` positions do not count. `causal`: no token sees a later one.

    `axial`, ours: the first half of the i go by rows, and the others by columns, each with the frequencies of a head of
    half the width (for 14×14 a base of 100 will do). Every plane is mixed alone, with the prefix, which has no
    position: between it and others a - b is 0.

    The cosine of a difference is a product of two vectors, so that attention is fused: published code, which this
    equals, holds all N · N · head_dim / 2 cosines. Ours: δ starts at 1 (published: normal, of variance
    2 / head_dim, with `rope_start = False`); the angles are kept in at least fp32, where f is rounded to bf16 there.

    Args:
        dim, num_heads: int, width of the tokens and number of heads; twice these divide it.
        causal: bool, no token sees a later one; False.
        base: float above 0 of the frequencies, or None: positions do not count; 10000.
        rope_start: bool, δ starts at 1; True.
        axial: bool, rows and columns of a grid have frequencies of their own; False.
        attn_drop, proj_drop: float in [0, 1], fraction of attn and of outputs that training drops; 0.

    Paper: ComplexFormer, arXiv 2505.10222 (withdrawn). Reference: shaojintian/complexFormer, f91ac74.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        causal: bool = False,
        base: float | None = 10000.0,
        rope_start: bool = True,
        axial: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ):
        super().__init__()
        if dim % (2 * num_heads):
            raise ValueError(f"dim {dim} is not a multiple of twice num_heads {num_heads}: heads are pairs of numbers")
        if base is not None and base <= 0:
            raise ValueError(f"the base of the frequencies must be above 0, not {base!r}")
        half = dim // num_heads // 2
        if axial and (causal or half < 2):
            raise ValueError("axial attention is not causal, and its heads have four numbers at least")
        self.num_heads, self.causal, self.base, self.needs_grid = num_heads, causal, base, axial
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.delta = nn.Parameter(
            torch.ones(num_heads, half) if rope_start else torch.randn(num_heads, half) / half**0.5
        )
        self.phase = nn.Parameter(torch.zeros(num_heads, half))
        self.attend = Attend(attn_drop, scale=1.0)
        self.proj = nn.Linear(dim, dim, bias=False)
        self.proj_drop = nn.Dropout(proj_drop)
        for weight in (*self.qkv.weight.chunk(3), self.proj.weight):
            nn.init.xavier_uniform_(weight)

    def forward(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        plane = checked_grid(tokens, grid, "CMHA") if self.needs_grid else None
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        angle = self.angles(q, plane)
        phase = self.phase[:, None].to(angle.dtype)
        turned_q, turned_k = self.turned(q, angle + phase), self.turned(k, angle)
        bias = None
        if self.causal:
            bias = torch.full((q.shape[2],) * 2, -math.inf, dtype=q.dtype, device=q.device).triu(1)
        if plane is None:
            heads = self.attend(turned_q, turned_k, v, bias, Layout.of_tokens(q.shape[2], grid))
            return self.proj_drop(self.proj(merge_heads(heads)))
        count, prefix = count_planes(q.shape[2], plane)
        plain_k = None
        if prefix:  # scores of queries and a prefix that are not turned, less those that are
            plain_q, plain_k = self.turned(q, phase.expand(-1, q.shape[2], -1)), self.turned(k, 0 * angle)
            keys = plain_k[:, :, :prefix].repeat_interleave(count, 0)
            bias = heads_of_planes(plain_q - turned_q, plane) @ keys.transpose(-2, -1)
            bias = F.pad(bias, (0, plane[0] * plane[1]))
        heads = attend_planes(self.attend, turned_q, turned_k, v, plane, bias, plain_k)
        return self.proj_drop(self.proj(merge_heads(heads)))

    def angles(self, q: Tensor, grid: Grid | None) -> Tensor:
        """Position times frequency, 0 for a prefix: (N, head_dim / 2), in at least fp32."""
        n, half = q.shape[2], q.shape[-1] // 2
        kind = {"dtype": torch.promote_types(q.dtype, torch.float32), "device": q.device}
        if self.base is None:
            return torch.zeros(n, half, **kind)

        base = self.base

        def along(count: int, width: int) -> Tensor:
            frequency = base ** (-torch.arange(width, **kind) / width)
            return torch.arange(count, **kind)[:, None] * frequency

        if grid is None:
            return along(n, half)
        rows, columns = along(grid[0], half // 2), along(grid[1], half - half // 2)
        plane = torch.cat([rows.repeat_interleave(grid[1], 0), columns.repeat(grid[0], 1)], 1)  # (H · W, head_dim / 2)
        count, prefix = count_planes(n, grid)
        return F.pad(plane.repeat(count, 1), (0, 0, prefix, 0))

    def turned(self, x: Tensor, angle: Tensor) -> Tensor:
        """`m (cos, sin)(δ p + angle)`: (B, heads, N, head_dim) -> the same."""
        re, im = x.to(angle.dtype).chunk(2, dim=-1)
        square = re.square() + im.square()
        phase = torch.atan2(im, re.masked_fill(square == 0, 1))  # where both are 0 atan2 has no gradient
        turn = self.delta[:, None].to(angle.dtype) * phase + angle
        return ((square + 1e-9).sqrt().repeat(1, 1, 1, 2) * torch.cat([turn.cos(), turn.sin()], dim=-1)).to(x.dtype)
