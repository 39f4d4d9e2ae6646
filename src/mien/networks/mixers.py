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

    vit: the network, changed in place.
    mixer: one maker for all blocks, or a list with one a block. It is given the width and the number of heads that were
    there. Where it has a `qkv` or a `proj` of the same shape, it starts from the weights that were there, BEiT's
    separate biases of q and v included.
    grid: of the patches, by default the `patch_embed.grid_size` of timm; class and register tokens are its prefix.

    Names, and so state dicts, stay as they are where the new mixer has them. Raises ValueError, and changes nothing,
    where a mixer needs a grid and there is none, and where something would be lost: attention that is not plain
    (rotary or relative positions, windows, norms or gates of its own, heads of another width), and the grid of a hybrid
    stem, unless `grid` is given.
    """
    stem = getattr(vit, "patch_embed", None)
    if grid is None:
        if hasattr(stem, "backbone"):
            raise ValueError(f"the patches of {type(vit).__name__} come from a hybrid stem: give their grid")
        found: Any = getattr(stem, "grid_size", None)
        grid = None if found is None else (int(found[0]), int(found[1]))
    blocks: list[Any] = list(getattr(vit, "blocks", ()))
    before: list[Any] = [getattr(block, "attn", None) for block in blocks]
    if not before:
        raise ValueError(f"{type(vit).__name__} has no blocks, as timm's ViTs have")
    for i, (block, attn) in enumerate(zip(blocks, before, strict=True)):
        if reason := why_not(vit, block, attn):
            raise ValueError(f"blocks[{i}].attn {reason}")
    after = []
    for attn, make in zip(before, one_a_block(mixer, len(before)), strict=True):
        made: Any = make(attn.qkv.in_features, attn.num_heads)
        if grid is None and getattr(made, "needs_grid", False):
            raise ValueError(
                f"{type(made).__name__} needs a grid, and {type(vit).__name__} has no patch_embed.grid_size"
            )
        copy_linear(attn.qkv, getattr(made, "qkv", None), qkv_bias(attn))
        copy_linear(attn.proj, getattr(made, "proj", None), attn.proj.bias)
        made.register_forward_pre_hook(partial(as_timm_calls, grid=grid), with_kwargs=True)
        after.append(made.to(attn.qkv.weight).train(attn.training))
    for block, made in zip(blocks, after, strict=True):
        block.attn = made
    return vit


def why_not(vit: Any, block: Any, attn: Any) -> str | None:
    """What a block's attention has that another mixer would lose; None where it is plain attention."""
    parts = all(isinstance(getattr(attn, name, None), nn.Linear) for name in ("qkv", "proj"))
    if not parts or not hasattr(attn, "num_heads"):
        return "has no qkv, proj and num_heads, as timm's plain attention has"
    if any(getattr(part, "rope", None) is not None for part in (vit, block, attn)):
        return "has rotary positions, which no mixer here takes"
    own = {name.partition(".")[0] for name in attn.state_dict()} - {"qkv", "proj", "q_bias", "k_bias", "v_bias"}
    if own:
        return f"has {', '.join(sorted(own))} of its own, which would be lost"
    if getattr(vit, "rel_pos_bias", None) is not None:
        return "is given relative positions, which no mixer here takes"
    if getattr(block, "window_size", 0) or hasattr(attn, "use_rel_pos"):
        return "works on maps and in windows, not on tokens"
    if attn.qkv.out_features != 3 * attn.qkv.in_features or attn.proj.in_features != attn.proj.out_features:
        return f"has heads that are not {attn.qkv.in_features} / {attn.num_heads} wide"
    return None


def qkv_bias(attn: Any) -> Tensor | None:
    """The bias of q, k and v, though BEiT keeps those of q and v beside the layer, and has none of k."""
    q, v = getattr(attn, "q_bias", None), getattr(attn, "v_bias", None)
    return attn.qkv.bias if q is None or v is None else torch.cat([q, torch.zeros_like(q), v])


@torch.no_grad()
def copy_linear(old: nn.Linear, new: nn.Module | None, bias: Tensor | None) -> None:
    """Give `new` the weight of `old`, and the bias, where it is a linear layer of the same shape."""
    if not isinstance(new, nn.Linear) or new.weight.shape != old.weight.shape:
        return
    new.weight.copy_(old.weight)
    if new.bias is None and bias is not None and bias.any():
        raise ValueError("the bias of qkv or proj would be lost: the mixer has none (qkv_bias=True)")
    if new.bias is not None:
        new.bias.copy_(torch.zeros_like(new.bias) if bias is None else bias)


def as_timm_calls(
    mixer: nn.Module, arguments: tuple[Tensor, ...], options: dict[str, Any], *, grid: Grid | None
) -> tuple[tuple[Tensor, Grid | None], dict[str, Any]]:
    """What timm gives to its attention, as a mixer takes it; timm's masks are not understood."""
    given = [name for name, value in options.items() if value is not None and value is not False]
    if given or len(arguments) != 1:
        raise ValueError(f"{type(mixer).__name__} takes tokens alone here, and no {', '.join(given) or 'mask'}")
    return (arguments[0], grid), {}
