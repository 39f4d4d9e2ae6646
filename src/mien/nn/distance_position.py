"""Where a token is: codes of places on a grid that are the less alike the farther places are apart."""

import math
from collections.abc import Sequence
from itertools import product
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Position = Literal["learned", "distance", "sinusoid"]
"""How tokens know where they are. "learned": a parameter a place. "distance", "sinusoid": fixed codes of length 1."""

POSITIONS: tuple[str, ...] = get_args(Position)

TOLERANCE = 0.01
"""Of the likeness of two places, -1 to 1, in a code of too few dimensions for its grid."""


def likeness(sizes: Sequence[int], sigma: float = 2.0) -> Tensor:
    """exp(-d² / 2σ²) of all pairs of places of a grid of any number of axes, (P, P), P = Π sizes, row-major; d is their
    distance in cells."""
    places = torch.tensor(list(product(*map(range, sizes))), dtype=torch.float64)
    return torch.exp(-torch.cdist(places, places).square() / (2 * sigma**2))


def distance_codes(sizes: Sequence[int], dim: int, sigma: float = 2.0) -> Tensor:
    """Codes (P, dim) of length 1 whose products are `likeness`: they fall with the distance, in every direction.

    The closed form, ours: K = V Λ Vᵀ, and the rows of V √Λ, of which the `dim` largest columns are kept.

    sizes: of the grid's axes, such as (14, 14); three planes of 7×7 are (3, 7, 7). dim: 1 or more. sigma: above 0, in
    cells, 2 by default as in OAT.

    Raises ValueError for a grid of one place, which has no distances, and where `dim` is too small for the likeness of
    any two places to be right within 0.01; it says how many are enough.
    """
    if sigma <= 0 or not math.isfinite(sigma):
        raise ValueError(f"sigma is a number of cells above 0, not {sigma!r}")
    shown = "×".join(map(str, sizes))
    if math.prod(sizes) < 2:
        raise ValueError(f"a grid of {shown} is too small for codes of distance: it has one place")
    kernel = likeness(sizes, sigma)
    strength, vectors = torch.linalg.eigh(kernel)
    columns = (vectors * strength.clamp_min(0).sqrt()).flip(1)  # the strongest first

    def cut(count: int) -> Tensor:
        return nn.functional.normalize(columns[:, :count], dim=1)

    def error(count: int) -> float:
        return float((cut(count) @ cut(count).T - kernel).abs().max())

    if error(dim) > TOLERANCE:
        enough = next(n for n in range(dim, len(kernel) + 1) if error(n) <= TOLERANCE)
        raise ValueError(f"codes of {dim} dimensions are too short for a grid of {shown}; {enough} are enough")
    codes = cut(dim)
    signs = torch.where(codes.sum(0) < 0, -1.0, 1.0)  # an eigenvector's is anybody's choice
    return nn.functional.pad(codes * signs, (0, max(0, dim - codes.shape[1]))).float()


def fit_codes(
    count: int, dim: int = 86, sigma: float = 2.0, steps: int = 5000, lr: float = 0.01, seed: int = 0
) -> Tensor:
    """Codes (count, dim) of the places of one axis, fitted as published: cos(W_i, W_j) = exp(-(i - j)² / 2σ²).

    Adam with the rate `lr` on the mean squared error of the cosines, and the variance of the rows' lengths, which are
    to be equal. *Inferred*: that both weigh the same, the start (normal) and the number of steps.

    Paper: OAT, ECCV 2024. Reference: HKUST-NISL/oat_eccv24, 0c48c3e.
    """
    target = likeness((count,), sigma).float()
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randn(count, dim, generator=draw).requires_grad_()
    optimizer = torch.optim.Adam([codes], lr=lr)
    for _ in range(steps):
        length = codes.norm(dim=1)
        unit = codes / length[:, None]
        loss = (unit @ unit.T - target).square().mean() + (length - length.mean()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return codes.detach()


def joined_codes(tables: Sequence[Tensor], index: Tensor, dim: int) -> Tensor:
    """Codes (…, dim) of objects as OAT makes them: those of their row, column and flag side by side, cut to `dim`.

    tables: of each axis (n, d). index: (…, axes) whole numbers. Such a code falls with the distance along each axis,
    and not in every direction: it is the mean of the axes' likenesses.
    """
    return torch.cat([table[index[..., i]] for i, table in enumerate(tables)], -1)[..., :dim]


def sinusoid_codes(sizes: Sequence[int], dim: int) -> Tensor:
    """Codes (P, dim) of length 1: sines and cosines of each axis, at wavelengths from 2π to 10,000 · 2π, side by side.

    Raises ValueError where `dim` is not twice a multiple of the number of axes longer than 1.
    """
    axes = [i for i, size in enumerate(sizes) if size > 1] or [0]
    if dim % (2 * len(axes)):
        raise ValueError(f"sinusoids of {len(axes)} axes need a multiple of {2 * len(axes)} dimensions, not {dim}")
    each = dim // (2 * len(axes))
    rates = 10_000.0 ** -(torch.arange(each, dtype=torch.float64) / each)
    places = torch.tensor(list(product(*map(range, sizes))), dtype=torch.float64)
    angles = torch.cat([places[:, i, None] * rates for i in axes], 1)
    return (torch.cat([angles.sin(), angles.cos()], 1) / math.sqrt(dim / 2)).float()


def set_positions(
    module: nn.Module, name: str, position: Position, sizes: Sequence[int], dim: int, prefix: int = 0
) -> None:
    """Give a module its positions (1, prefix + P, dim) under a name: a parameter, not yet initialised, or fixed codes,
    which checkpoints hold all the same. Prefix tokens, such as a class token, have 0 in a fixed code.

    Raises ValueError for another kind of position, and as `distance_codes` and `sinusoid_codes` do.
    """
    if position not in POSITIONS:
        raise ValueError(f"position must be one of {', '.join(map(repr, POSITIONS))}, not {position!r}")
    if position == "learned":
        module.register_parameter(name, nn.Parameter(torch.empty(1, prefix + math.prod(sizes), dim)))
        return
    codes = distance_codes(sizes, dim) if position == "distance" else sinusoid_codes(sizes, dim)
    module.register_buffer(name, nn.functional.pad(codes, (0, 0, prefix, 0))[None])
