"""Between maps and tokens, and positions on a grid."""

import math
from collections.abc import Sequence
from operator import index

import torch
import torch.nn.functional as F
from torch import Tensor

from mien.nn.base import Grid


def to_tokens(maps: Tensor) -> Tensor:
    """(B, D, H, W) -> (B, H · W, D), row-major."""
    return maps.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, grid: Grid) -> Tensor:
    """(B, H · W, D) -> (B, D, H, W); the inverse of `to_tokens`."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def count_planes(tokens: int, grid: Grid) -> tuple[int, int]:
    """How many whole planes so many tokens fill, and how many tokens are left over: the prefix.

    `index` makes the compiler build a program for each grid: one for all of them takes it minutes.
    """
    size = index(grid[0]) * index(grid[1])
    return index(tokens // size), index(tokens % size)  # the compiler knows no divmod


def split_planes(tokens: Tensor, grid: Grid | None, name: str = "this mixer") -> tuple[Tensor, Tensor]:
    """Tokens (B, P + k · H · W, D) -> prefix (B, P, D), and k planes of H · W tokens, each alone: (B · k, H · W, D).

    As many whole planes as fit are planes; the P < H · W tokens before them, such as a class token, are the prefix.
    Raises ValueError without a grid, or for fewer tokens than one plane.
    """
    grid = checked_grid(tokens, grid, name)
    size, (count, prefix) = grid[0] * grid[1], count_planes(tokens.shape[1], grid)
    return tokens[:, :prefix], tokens[:, prefix:].unflatten(1, (count, size)).flatten(0, 1)


def checked_grid(tokens: Tensor, grid: Grid | None, name: str) -> Grid:
    """The grid, which there must be, and which tokens (B, N, D) must fill; or ValueError."""
    if grid is None:
        raise ValueError(f"{name} works on a grid, and was given none")
    if tokens.shape[1] < grid[0] * grid[1]:
        raise ValueError(f"{name}: {tokens.shape[1]} tokens do not fill a grid of {grid[0]}×{grid[1]}")
    return index(grid[0]), index(grid[1])


def patches_along(img_size: int, patch_size: int) -> int:
    """How many patches lie along a side, both in pixels; ValueError where they do not fill it."""
    if img_size < patch_size or img_size % patch_size:
        raise ValueError(f"img_size {img_size} is not a multiple of patch_size {patch_size}")
    return img_size // patch_size


def join_planes(prefix: Tensor, planes: Tensor) -> Tensor:
    """The inverse of `split_planes`: (B, P, D), (B · k, H · W, D) -> (B, P + k · H · W, D)."""
    return torch.cat([prefix, planes.unflatten(0, (prefix.shape[0], -1)).flatten(1, 2)], dim=1)


def to_windows(planes: Tensor, grid: Grid, window: Grid, spread: bool = False) -> tuple[Tensor, Tensor | None]:
    """Planes (B, H · W, D) -> their n windows (B · n, h · w, D), and which positions lie on the grid (n, h · w), bool.

    A grid that the window does not divide is padded with 0 below and to the right; where nothing is padded the second
    is None. `spread`: not neighbours share a window, but tokens as far apart as the grid allows: window (r, c) of
    (R, C) has those at (r + R · i, c + C · j).
    """
    rows, columns = (-(-size // step) for size, step in zip(grid, window, strict=True))
    below, right = rows * window[0] - grid[0], columns * window[1] - grid[1]

    def cut(maps: Tensor) -> Tensor:
        maps = F.pad(maps, (0, 0, 0, right, 0, below)) if below or right else maps
        if spread:  # (B, h, R, w, C, D)
            return maps.unflatten(2, (window[1], columns)).unflatten(1, (window[0], rows)).permute(0, 2, 4, 1, 3, 5)
        return maps.unflatten(2, (columns, window[1])).unflatten(1, (rows, window[0])).transpose(2, 3)

    windows = cut(planes.unflatten(1, grid)).flatten(3, 4).flatten(0, 2)
    if not (below or right):
        return windows, None
    inside = cut(torch.ones(1, *grid, 1, dtype=torch.bool, device=planes.device))
    return windows, inside.reshape(rows * columns, window[0] * window[1])


def from_windows(windows: Tensor, grid: Grid, window: Grid, spread: bool = False) -> Tensor:
    """The inverse of `to_windows`, without the padding: (B · n, h · w, D) -> (B, H · W, D)."""
    rows, columns = (-(-size // step) for size, step in zip(grid, window, strict=True))
    maps = windows.unflatten(1, window).unflatten(0, (-1, rows, columns))  # (B, R, C, h, w, D)
    maps = maps.permute(0, 3, 1, 4, 2, 5) if spread else maps.transpose(2, 3)
    maps = maps.flatten(3, 4).flatten(1, 2)
    return maps[:, : grid[0], : grid[1]].flatten(1, 2)


def pair(size: int | Sequence[int], name: str, least: int = 1) -> tuple[int, int]:
    """One number for both axes, or one each for rows and columns, checked: (rows', columns')."""
    both = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(both) != 2 or not all(isinstance(x, int) and x >= least for x in both):
        raise ValueError(f"{name} must be a whole number from {least} on, or two, not {size!r}")
    return both


def product(rows: Tensor, columns: Tensor) -> Tensor:
    """What holds along both axes: masks (R, h, h'), (C, w, w') -> their windows' (R · C, h · w, h' · w')."""
    both = rows[:, None, :, None, :, None] & columns[None, :, None, :, None, :]
    return both.flatten(4).flatten(2, 3).flatten(0, 1)


def relative_bias(table: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """What a table says of every query and key of a window: (heads, Y, X) -> (R · C, heads, h · w, h' · w').

    `rows` (R, h, h') and `columns` (C, w, w') hold indexes of the table for queries and keys along each axis.
    """
    bias = table[:, rows][..., columns].permute(1, 4, 0, 2, 5, 3, 6)  # (R, C, heads, h, w, h', w')
    return bias.flatten(5).flatten(3, 4).flatten(0, 1)


def take(planes: Tensor, grid: Grid, rows: list[list[int]], columns: list[list[int]]) -> Tensor:
    """Planes (Z, H · W, E) at rows (R, h) and columns (C, w): (Z · R · C, h · w, E); a single tile is all there is."""
    if len(rows) == len(columns) == 1:
        return planes
    maps = select(planes.unflatten(1, grid), sum(rows, []), sum(columns, []))
    maps = maps.unflatten(2, (len(columns), -1)).unflatten(1, (len(rows), -1)).transpose(2, 3)  # (Z, R, C, h, w, E)
    return maps.flatten(3, 4).flatten(0, 2)


def select(maps: Tensor, rows: list[int], columns: list[int]) -> Tensor:
    """(Z, H, W, E) -> (Z, rows, columns, E)."""
    for axis, positions in ((1, rows), (2, columns)):
        maps = maps.index_select(axis, torch.tensor(positions, device=maps.device))
    return maps


def resize_positions(positions: Tensor, side: int) -> Tensor:
    """Learned positions of a square grid (1, N, D) -> those of a `side × side` one (1, side², D), bicubic.

    What already fits, or lies on no square grid, comes back as it is.
    """
    before = math.isqrt(positions.shape[1]) if positions.ndim == 3 else side
    if before == side or before**2 != positions.shape[1]:
        return positions
    maps = to_map(positions, (before, before))
    return to_tokens(F.interpolate(maps, (side, side), mode="bicubic", antialias=True, align_corners=False))


def offset_index(grid: Grid, size: Grid, device: torch.device | None = None) -> Tensor:
    """Where the offset from query to key stands in a table of (2 · height - 1) · (2 · width - 1): (H · W, H · W).

    Entry (i, j) is `(y_j - y_i + height - 1) · (2 · width - 1) + (x_j - x_i + width - 1)`, on grids up to `size`.
    """
    if any(n > most for n, most in zip(grid, size, strict=True)):
        raise ValueError(f"offsets are known for grids up to {size[0]}×{size[1]}, not for {grid[0]}×{grid[1]}")
    positions = (torch.arange(n, device=device) for n in grid)
    y, x = (position - position[:, None] + most - 1 for position, most in zip(positions, size, strict=True))
    return (y[:, None, :, None] * (2 * size[1] - 1) + x[None, :, None, :]).flatten(2).flatten(0, 1)
