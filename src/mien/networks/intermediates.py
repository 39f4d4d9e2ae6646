"""What stands between the blocks of a network, in timm's sense."""

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from mien.nn.grid import to_map
from mien.nn.observe import Layout


def intermediates(
    tokens: Tensor,
    blocks: Sequence[Callable[[Tensor], Tensor]],
    final: Callable[[Tensor], Tensor],
    norm_each: Callable[[Tensor], Tensor],
    layout: Layout,
    *,
    indices: int | Sequence[int] | None = None,
    return_prefix_tokens: bool = False,
    norm: bool = False,
    stop_early: bool = False,
    output_fmt: Literal["NCHW", "NLC"] = "NCHW",
    intermediates_only: bool = False,
) -> list | tuple[Tensor, list]:
    """The tokens after chosen blocks, as timm's `forward_intermediates` gives them.

    tokens: what the first block reads (B, P + N, D). final: what becomes of the last block's tokens; norm_each: of
    intermediates, with `norm`. layout: how many prefix tokens, and of which planes the others are.
    indices: numbers of blocks, negative ones from the end, or how many of the last; all by default.
    output_fmt: "NCHW", maps (B, D, H, W), planes of several levels one below another; "NLC", tokens (B, N, D).
    return_prefix_tokens: each intermediate is a pair with its prefix tokens (B, P, D) behind. stop_early: blocks after
    the last that is wanted are not run, so the first part of the answer is not final. intermediates_only: the list
    alone.

    Gives (final tokens, list of intermediates). Raises ValueError: a block that there is not, another format, maps of
    tokens that lie on no grid.
    """
    if output_fmt not in ("NCHW", "NLC"):
        raise ValueError(f"output_fmt must be 'NCHW' or 'NLC', not {output_fmt!r}")
    depth = len(blocks)
    if indices is None:
        wanted = list(range(depth))
    elif isinstance(indices, int):
        wanted = list(range(depth - indices, depth))
    else:
        wanted = [i + depth if i < 0 else i for i in indices]
    if not all(0 <= i < depth for i in wanted):
        raise ValueError(f"indices {indices!r} are not of {depth} blocks")
    seen: dict[int, Tensor] = {}
    for i, block in enumerate(blocks[: max(wanted, default=-1) + 1] if stop_early else blocks):
        tokens = block(tokens)
        if i in wanted:
            seen[i] = norm_each(tokens) if norm else tokens
    found = []
    for x in (seen[i] for i in sorted(set(wanted))):
        prefix, spread = x[:, : layout.prefix], x[:, layout.prefix :]
        if output_fmt == "NCHW":
            grid, planes = layout.grid, layout.planes
            if grid is None or spread.shape[1] != planes * grid[0] * grid[1]:
                raise ValueError(f"{spread.shape[1]} tokens lie on no grid: output_fmt must be 'NLC'")
            spread = to_map(spread, (planes * grid[0], grid[1]))
        found.append((spread, prefix) if return_prefix_tokens else spread)
    return found if intermediates_only else (final(tokens), found)
