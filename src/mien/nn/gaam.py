"""Gaussian adaptive attention: tokens are weighed by how near they are to where their kind is expected."""

from collections.abc import Iterable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mien.nn.base import Grid

Axis = Literal["tokens", "channels"]


class GAAM(nn.Module):
    """Every number times its share of a density along an axis: (B, N, dim) -> (B, N, dim).

        y_k = (x - μ - δ_k) / σ;   w = softmax(Σ_k -y_k² / (2 c_k²));   out = w · x

    μ, σ² = mean and unbiased variance (+ 1e-8) along `axis`, over which the softmax runs, too. A head has
    `num_gaussians` offsets δ (at first 0) and widths c (at first exp of a normal number), and a chunk of `heads`. In
    the published code that is the very axis: with 8 heads along the tokens the first chunk's knows nothing of the rest,
    nor does a class token there. By default our heads are groups of channels, and every token is weighed by all.

    A product of densities, as published, is one of them: K = 3 can do no more than K = 1. `mixture`: their sum, ours.
    All is computed as logarithms and in at least fp32, where published code can underflow to 0 for K = 5. `rescale`
    multiplies by the length of the axis, ours: weights that sum to 1 leave little of x. Where x is `padding_value` it
    comes back as it is and counts as 0 in μ and σ, but is in the sum, as published.

    Nothing is carried from token to token but μ, σ and the sum: a class token sees the others through these alone. A
    forward hook on `weights` sees (and may replace) w (B, N, dim). `grid` is ignored.

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
        if dim % num_heads:
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
        self.weights = nn.Identity()

    def forward(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        x = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        size = x.shape[self.along] // self.num_heads
        if (size if self.axis == self.along else x.shape[self.axis]) < 2:
            raise ValueError(
                f"{self.num_heads} heads of {tuple(x.shape[1:])} tokens and channels: a variance needs two"
            )
        chunks = x.split(
            [size] * (self.num_heads - 1) + [x.shape[self.along] - size * (self.num_heads - 1)], self.along
        )
        parts = map(self.weigh, chunks, self.mean_offsets.to(x.dtype), self.c.to(x.dtype))
        out = x * self.weights(torch.cat(list(parts), self.along))
        if self.padding_value is not None:
            out = torch.where(x == self.padding_value, x, out)
        return out.to(tokens.dtype)

    def weigh(self, x: Tensor, offsets: Tensor, c: Tensor) -> Tensor:
        """w of one head: (B, n, d), δ (K), c (K) -> (B, n, d)."""
        seen = x if self.padding_value is None else x.masked_fill(x == self.padding_value, 0)
        var, mean = torch.var_mean(seen, self.axis, keepdim=True)
        y = ((x - mean).unsqueeze(-1) - offsets) / (var + 1e-8).sqrt().unsqueeze(-1)  # (B, n, d, K)
        log = -(y / c).square() / 2
        log = (log - c.abs().log()).logsumexp(dim=-1) if self.mixture else log.sum(dim=-1)
        return log.softmax(dim=self.axis) * (x.shape[self.axis] if self.rescale else 1)


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
