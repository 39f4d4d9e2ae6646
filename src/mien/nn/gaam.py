"""Gaussian adaptive attention: every number is weighed by a density of its own distribution."""

from collections.abc import Iterable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mien.nn.base import Grid
from mien.nn.observe import Layout, Stages

Axis = Literal["tokens", "channels"]


class GAAM(nn.Module):
    """Every number times a softmax of densities along an axis: (B, N, dim) -> (B, N, dim).

        y_k = (x - μ - δ_k) / σ;   w = softmax(Σ_k -y_k² / (2 c_k²));   out = w · x

    μ, σ² = mean and unbiased variance (+ 1e-8) along `axis`; the softmax runs along it, too. A head has `num_gaussians`
    offsets δ (at first 0) and widths c (at first exp of a normal number), and one chunk of the axis `heads`. The last
    chunk of tokens takes what is left over; groups of channels must divide dim. In the published code heads and axis
    are the same: with 8 heads along the tokens the first chunk, and a class token in it, knows nothing of the others.
    By default our heads are groups of channels, and each is weighed over all tokens.

    A product of densities, as published, is a single density: K = 3 can do no more than K = 1. `mixture`, ours, takes
    their sum. All is computed as logarithms and in at least fp32, where published code can underflow to 0 for K = 5.
    `rescale`, ours, multiplies by the length of the axis: weights that sum to 1 leave little of x. Where x is
    `padding_value` it comes back as it is. It counts as 0 in μ and σ, but is in the softmax, as published.

    Nothing is carried from token to token but μ, σ and the softmax's sum: a class token sees the others through these
    alone. `grid` is ignored. All stages of `mien.nn.observe` are (B, N, dim): the logarithm of the density, w, w · x.

    Args:
        dim, num_heads: int, width of the tokens and number of heads, which divides it.
        num_gaussians: int from 1 on, K; 1.
        axis, heads: "tokens" or "channels", along which the softmax runs and heads are chunks; tokens and channels.
        mixture: bool, a sum of densities instead of their product; False.
        padding_value: float that marks padding, or None.
        rescale: bool, weights times the length of the axis; False.

    Paper: Ioannides et al., Gaussian Adaptive Attention Is All You Need, 2024. Reference:
    gioannides/Gaussian-Adaptive-Attention, 145d1bc.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_gaussians: int = 1,
        axis: Axis = "tokens",
        heads: Axis = "channels",
        mixture: bool = False,
        padding_value: float | None = None,
        rescale: bool = False,
    ):
        super().__init__()
        if heads != "tokens" and dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        for name, value in (("axis", axis), ("heads", heads)):
            if value not in get_args(Axis):
                raise ValueError(f"{name} must be tokens or channels, not {value!r}")
        if num_gaussians < 1:
            raise ValueError(f"there must be a Gaussian at least, not {num_gaussians}")
        self.dim, self.num_heads = dim, num_heads
        self.axis, self.along = (1 + get_args(Axis).index(name) for name in (axis, heads))
        self.mixture, self.padding_value, self.rescale = mixture, padding_value, rescale
        self.mean_offsets = nn.Parameter(torch.zeros(num_heads, num_gaussians))
        self.c = nn.Parameter(torch.randn(num_heads, num_gaussians).exp())
        self.attend = Stages()

    def forward(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        x = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        size = x.shape[self.along] // self.num_heads
        if (size if self.axis == self.along else x.shape[self.axis]) < 2:
            raise ValueError(f"{self.num_heads} heads of {tuple(x.shape[1:])} tokens and channels: a variance needs 2")
        chunks = x.split(
            [size] * (self.num_heads - 1) + [x.shape[self.along] - size * (self.num_heads - 1)], self.along
        )
        layout = Layout("token" if self.axis == 1 else "channel")
        densities = map(self.log_density, chunks, self.mean_offsets.to(x.dtype), self.c.to(x.dtype))
        scores = self.attend.stage("scores", torch.cat(list(densities), self.along), layout)
        parts = [self.weigh(part) for part in scores.split([part.shape[self.along] for part in chunks], self.along)]
        out = self.attend.stage("heads", x * self.attend.stage("attn", torch.cat(parts, self.along), layout), layout)
        if self.padding_value is not None:
            out = torch.where(x == self.padding_value, x, out)
        return out.to(tokens.dtype)

    def log_density(self, x: Tensor, offsets: Tensor, c: Tensor) -> Tensor:
        """What the softmax of one head is given: (B, n, d), δ (K), c (K) -> (B, n, d)."""
        seen = x if self.padding_value is None else x.masked_fill(x == self.padding_value, 0)
        var, mean = torch.var_mean(seen, self.axis, keepdim=True)
        y = ((x - mean).unsqueeze(-1) - offsets) / (var + 1e-8).sqrt().unsqueeze(-1)  # (B, n, d, K)
        log = -(y / c).square() / 2
        return (log - c.abs().log()).logsumexp(dim=-1) if self.mixture else log.sum(dim=-1)

    def weigh(self, scores: Tensor) -> Tensor:
        """w of one head: (B, n, d) -> the same."""
        return scores.softmax(dim=self.axis) * (scores.shape[self.axis] if self.rescale else 1)


class GAAMBlock(nn.Module):
    """One after the other, each around what was there: `x += layer(x)`, (B, N, dim) -> (B, N, dim).

    No norm and no mlp, as published. Paper and reference: `GAAM`.
    """

    def __init__(self, layers: Iterable[GAAM]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        for layer in self.layers:
            tokens = tokens + layer(tokens, grid)
        return tokens
