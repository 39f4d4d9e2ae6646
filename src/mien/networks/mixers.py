"""Which mixer stands in which block, and another one in the place of timm's attention."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mien.nn.base import Grid, MakeMixer, MakeMixers
from mien.nn.self_attention import SelfAttention


def one_a_block(mixer: MakeMixers | None, depth: int, usual: MakeMixer = SelfAttention) -> list[MakeMixer]:
    """One maker for each of `depth` blocks, where `mixer` is one for all, a list of as many, or None for `usual`."""
    if mixer is None or callable(mixer):
        return [mixer or usual] * depth
    if isinstance(mixer, str) or not all(map(callable, mixer)):
        raise ValueError(f"mixer must make a mixer, or be a list with one that does for each block, not {mixer!r}")
    if len(mixer) != depth:
        raise ValueError(f"mixer is a list of {len(mixer)} for {depth} blocks")
    return list(mixer)


def needing_grid(blocks: Iterable[nn.Module]) -> str | None:
    """The name of the first mixer among `blocks` that cannot do without a grid."""
    mixers = (block.attn for block in blocks)
    names = (type(mixer).__name__ for mixer in mixers if getattr(mixer, "needs_grid", False))
    return next(names, None)


def swap_attention(vit: nn.Module, mixer: MakeMixers, *, grid: Grid | None = None) -> nn.Module:
    """Put another mixer in the place of every `blocks[i].attn` of a ViT that has timm's names; the same ViT comes back.

    mixer: one maker for all blocks, or a list with one a block. It is given the width and the number of heads that were
    there; where it has a `qkv` or a `proj` of the same shape, it starts from the weights that were there.
    grid: of the patches, by default the `patch_embed.grid_size` of timm; class and register tokens are its prefix.

    Names, and so state dicts, stay as they are where the new mixer has them. Raises ValueError, and changes nothing,
    where a block has no such attention, or a mixer needs a grid and there is none.
    """
    if grid is None and (found := getattr(getattr(vit, "patch_embed", None), "grid_size", None)) is not None:
        grid = (int(found[0]), int(found[1]))
    blocks: list[Any] = list(getattr(vit, "blocks", ()))
    before: list[Any] = [getattr(block, "attn", None) for block in blocks]
    if not before:
        raise ValueError(f"{type(vit).__name__} has no blocks, as timm's ViTs have")
    for i, attn in enumerate(before):
        if not all(hasattr(attn, name) for name in ("qkv", "proj", "num_heads")):
            raise ValueError(f"blocks[{i}].attn has no qkv, proj and num_heads, as timm's attention has")
    after = []
    for attn, make in zip(before, one_a_block(mixer, len(before)), strict=True):
        made = make(attn.qkv.in_features, attn.num_heads)
        if grid is None and getattr(made, "needs_grid", False):
            raise ValueError(
                f"{type(made).__name__} needs a grid, and {type(vit).__name__} has no patch_embed.grid_size"
            )
        for name in ("qkv", "proj"):
            copy_linear(getattr(attn, name), getattr(made, name, None))
        made.register_forward_pre_hook(partial(as_timm_calls, grid=grid), with_kwargs=True)
        after.append(made.to(attn.qkv.weight).train(attn.training))
    for block, made in zip(blocks, after, strict=True):
        block.attn = made
    return vit


@torch.no_grad()
def copy_linear(old: nn.Linear, new: nn.Module | None) -> None:
    """Give `new` the weight and the bias of `old`, where it is a linear layer of the same shape."""
    if not isinstance(new, nn.Linear) or new.weight.shape != old.weight.shape:
        return
    new.weight.copy_(old.weight)
    if new.bias is not None:
        new.bias.zero_() if old.bias is None else new.bias.copy_(old.bias)


def as_timm_calls(
    mixer: nn.Module, arguments: tuple[Tensor, ...], options: dict[str, Any], *, grid: Grid | None
) -> tuple[tuple[Tensor, Grid | None], dict[str, Any]]:
    """What timm gives to its attention, as a mixer takes it; timm's masks are not understood."""
    given = [name for name, value in options.items() if value is not None and value is not False]
    if given or len(arguments) != 1:
        raise ValueError(f"{type(mixer).__name__} takes tokens alone here, and no {', '.join(given) or 'mask'}")
    return (arguments[0], grid), {}
