"""SpectFormer's gate: every channel of a plane filtered by a learned spectrum."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mien.nn.base import Grid
from mien.nn.grid import checked_grid, join_planes, split_planes


class SpectralGate(nn.Module):
    """`irfft2(K ⊙ rfft2(x))` over the grid, channel by channel: (B, N, dim) -> (B, N, dim).

    K (H, W // 2 + 1, dim), complex, is kept as `complex_weight` (…, 2) and starts at 0.02 · randn. It is a depthwise
    convolution with a kernel as large as the plane, which wraps at the borders: what rolls the plane rolls the answer.
    An exported program does compute that convolution. The imaginary part of frequency 0 has no effect. Computed in fp32
    at least. `num_heads` is ignored.

    Ours: K is made for `grid`; on another it is interpolated linearly between its frequencies in cycles a token, so
    that a small kernel stays as small, and half the spectrum's last frequency is held. With `zero_pad` planes are
    padded to 2H × 2W, and K is as large: nothing wraps, which would mix forehead and chin. There is no softmax
    that a prefix token could take part in: it becomes `K_0 · (itself + the mean of all tokens)`, K_0 being what the
    gate does to a constant plane; no token of a plane sees it.

    The published spectral block has no skip around the gate: `x + mlp(norm2(gate(norm1(x))))`.

    Args:
        dim, num_heads: int, width of the tokens and number of heads, which divides it.
        grid: (rows, columns) that K is made for; (14, 14).
        zero_pad: bool, planes are padded to twice their sides; False.

    Paper: Patro et al., SpectFormer, arXiv 2304.06446.
    Reference: badripatro/SpectFormers, b6cf487, `SpectralGatingNetwork`.
    """

    needs_grid = True

    def __init__(self, dim: int, num_heads: int, grid: Grid = (14, 14), zero_pad: bool = False):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        if min(grid) < 1:
            raise ValueError(f"a grid has at least one row and one column, not {grid}")
        self.factor = 2 if zero_pad else 1
        self.size = (self.factor * grid[0], self.factor * grid[1])
        self.complex_weight = nn.Parameter(0.02 * torch.randn(self.size[0], self.size[1] // 2 + 1, dim, 2))

    def forward(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        grid = checked_grid(tokens, grid, "SpectralGate")
        prefix, planes = split_planes(tokens, grid)
        at_least_fp32 = torch.promote_types(tokens.dtype, torch.float32)
        size = (self.factor * grid[0], self.factor * grid[1])
        weight = self.resized(size).to(at_least_fp32)
        planes = planes.to(at_least_fp32).unflatten(1, grid)
        if torch.compiler.is_exporting():  # engines disagree about complex numbers
            maps = convolve(planes, weight, size)
        else:
            spectrum = torch.fft.rfft2(planes, size, dim=(1, 2), norm="ortho")
            maps = torch.fft.irfft2(spectrum * torch.view_as_complex(weight), size, dim=(1, 2), norm="ortho")
        planes = maps[:, : grid[0], : grid[1]].flatten(1, 2).to(tokens.dtype)
        if prefix.shape[1]:
            prefix = (weight[0, 0, :, 0] * (prefix + tokens.mean(1, keepdim=True))).to(tokens.dtype)
        return join_planes(prefix, planes)

    def resized(self, size: Grid) -> Tensor:
        """The weight of a plane of `size`: (H, W // 2 + 1, dim, 2)."""
        weight = self.complex_weight
        if size[0] != self.size[0]:  # frequencies of both signs, in a circle
            low, share = between(self.size[0], size[0], size[0], weight)
            weight = weight[low].lerp(weight[(low + 1) % self.size[0]], share[:, None, None, None])
        if size[1] != self.size[1]:
            low, share = between(self.size[1], size[1], size[1] // 2 + 1, weight)
            high = (low + 1).clamp(max=self.size[1] // 2)
            weight = weight[:, low.clamp(max=self.size[1] // 2)].lerp(weight[:, high], share[:, None, None])
        return weight.contiguous()


def convolve(planes: Tensor, weight: Tensor, size: Grid) -> Tensor:
    """The gate in real numbers: maps (B, H, W, dim), padded to `size`, and K -> (B, *size, dim).

    out[y, x] = Σ_ij kernel[i, j] · planes[y - i, x - j], indexes wrapping;   kernel = irfft2(K)
    """
    rows, columns = (
        (torch.arange(n, device=weight.device)[:, None] * torch.arange(count, device=weight.device) % n).to(weight) / n
        for n, count in zip(size, weight.shape, strict=False)  # position · frequency, in turns
    )
    phase = 2 * math.pi * (rows[:, None, :, None] + columns[:, None, :]).flatten(2)  # (H, W, frequencies)
    # all but the first and, of an even number, the last column stand for their mirror image as well
    twice = torch.tensor([1 if 2 * v in (0, size[1]) else 2 for v in range(weight.shape[1])], device=weight.device)
    real, imaginary = (weight * twice[:, None, None]).flatten(0, 1).unbind(-1)
    kernel = (phase.cos() @ real - phase.sin() @ imaginary) / (size[0] * size[1])
    maps = F.pad(planes, (0, 0, 0, size[1] - planes.shape[2], 0, size[0] - planes.shape[1]))
    for axis in (1, 2):  # what lies before the first row is the last
        maps = torch.cat([maps.narrow(axis, 1, maps.shape[axis] - 1), maps], dim=axis)
    kernel = kernel.flip(0, 1).permute(2, 0, 1)[:, None]  # (dim, 1, H, W)
    return F.conv2d(maps.permute(0, 3, 1, 2), kernel, groups=kernel.shape[0]).permute(0, 2, 3, 1)


def between(before: int, after: int, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Where frequencies of `after` tokens lie among those of `before`: (count,) of the one below, and how far above."""
    position = torch.arange(count, device=like.device) * before
    return position // after, ((position % after) / after).to(like.dtype)
