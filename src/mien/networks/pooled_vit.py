"""The transformer of APViT, which drops tokens on its way."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mien.networks.intermediates import intermediates
from mien.networks.mixers import needing_grid, one_a_block
from mien.nn.base import Grid, MakeMixers
from mien.nn.block import Block
from mien.nn.distance_position import Position, set_positions
from mien.nn.observe import Layout
from mien.nn.select import AttentiveSelect
from mien.nn.self_attention import SelfAttention

TokenCriterion = Literal["sum", "abs", "max", "square", "max_abs", "random"]
"""By what tokens are judged in a block; a criterion that learns is for patches alone."""


class PooledViT(nn.Module):
    """Patches (B, K, D) and their numbers (B, K) -> normalised tokens (B, 1 + n, D), the class token first.

    Every patch gets the position that it had among all `num_tokens`; the class token has a position of its own. Blocks
    drop tokens by their class scores (attentive token pooling), at the rates of `keep_rate`: one for each block, or one
    for the second half of them. `qk_scale` is head_dim^-1/2 unless given; the timm weights that APViT starts from were
    trained with embed_dim^-1/2, which its code does not set.

    `mixer` makes that of every block, or is a list with one a block; None is self-attention, whose arguments `qkv_bias`
    and `qk_scale` are. Blocks are given the square grid as long as all patches are there: a mixer that needs it cannot
    stand behind pooling, and one without `with_class_scores` cannot drop tokens.

    Args:
        num_tokens: int, patches that there are at most; 196.
        embed_dim, depth, num_heads: int; 768, 8 and 8.
        mlp_ratio: float, hidden width of the mlp over embed_dim; 3.
        qkv_bias: bool, whether q, k and v have biases; False.
        qk_scale: float above 0, or None: head_dim^-1/2.
        keep_rate: float in (0, 1], of the second half of the blocks, or one for each; 0.9.
        token_criterion: of `AttentiveSelect`, but lanet; sum.
        mixer: makes that of every block, or a list with one a block; None is self-attention.
        position: of patches, as for `ViT`; learned.

    Paper: Xue et al., APViT, arXiv 2212.05463. Reference: youqingxiaozhua/APViT, 9efaf97.
    """

    patch_pos_embed: Tensor

    def __init__(
        self,
        *,
        num_tokens: int = 196,
        embed_dim: int = 768,
        depth: int = 8,
        num_heads: int = 8,
        mlp_ratio: float = 3.0,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        keep_rate: float | Sequence[float] = 0.9,
        token_criterion: TokenCriterion = "sum",
        mixer: MakeMixers | None = None,
        position: Position = "learned",
    ):
        super().__init__()
        if mixer is not None and qk_scale is not None:
            raise ValueError("qk_scale is self-attention's: another mixer has options of its own")
        if token_criterion == "lanet":
            raise ValueError("lanet judges patches; tokens are judged by a criterion that learns nothing")
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.cls_pos_embed = nn.Parameter(torch.zeros(1, 1, embed_dim))
        side = math.isqrt(num_tokens)
        self.grid = (side, side) if side**2 == num_tokens else None
        if self.grid is None and position != "learned":
            raise ValueError(f"position={position!r} needs a grid, and {num_tokens} patches are no square")
        set_positions(self, "patch_pos_embed", position, self.grid or (num_tokens,), embed_dim)
        usual = partial(SelfAttention, qkv_bias=qkv_bias, scale=qk_scale)
        made = [Block(embed_dim, num_heads, mlp_ratio, mixer=make) for make in one_a_block(mixer, depth, usual)]
        self.blocks = cast(Sequence[Block], nn.ModuleList(made))
        for block in self.blocks:
            if hasattr(block.attn, "with_class_scores"):
                block.select = AttentiveSelect(criterion=token_criterion)
        if self.grid is None and (name := needing_grid(self.blocks)):
            raise ValueError(f"{name} needs a grid, and {num_tokens} patches are no square")
        self.keep_rate = keep_rate
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        if position == "learned":
            nn.init.trunc_normal_(self.patch_pos_embed, std=0.02)

    @property
    def keep_rate(self) -> list[float]:
        """The share of its tokens that each block keeps; can be set, to one for each or to one for the second half."""
        return [block.select.rate if isinstance(block.select, AttentiveSelect) else 1.0 for block in self.blocks]

    @keep_rate.setter
    def keep_rate(self, rates: float | Sequence[float]) -> None:
        depth = len(self.blocks)
        if isinstance(rates, int | float):
            rates = [1.0] * (depth // 2) + [rates] * (depth - depth // 2)
        if len(rates) != depth:
            raise ValueError(f"keep_rate has {len(rates)} rates for {depth} blocks")
        for i, (block, rate) in enumerate(zip(self.blocks, rates, strict=True)):
            if rate == 1:
                continue
            if block.select is None:
                raise ValueError(f"{type(block.attn).__name__} has no class scores by which tokens could be selected")
            if name := needing_grid(self.blocks[i + 1 :]):
                raise ValueError(f"{name} needs a grid, and stands behind a block that drops tokens (number {i})")
        for block, rate in zip(self.blocks, rates, strict=True):
            if isinstance(block.select, AttentiveSelect):
                block.select.rate = rate

    def start(self, patches: Tensor, index: Tensor) -> Tensor:
        """What the first block reads: (B, K, D), (B, K) -> (B, 1 + K, D)."""
        every = patches.shape[1] == self.patch_pos_embed.shape[1]
        position = self.patch_pos_embed if every else F.embedding(index, self.patch_pos_embed[0])
        class_token = (self.cls_token + self.cls_pos_embed).expand(patches.shape[0], -1, -1)
        return torch.cat([class_token, patches + position], dim=1)

    def grid_of(self, tokens: Tensor) -> Grid | None:
        """The grid, as long as all patches are there behind the class token."""
        return self.grid if tokens.shape[1] == 1 + self.patch_pos_embed.shape[1] else None

    def forward_intermediates(self, patches: Tensor, index: Tensor, **options) -> list | tuple[Tensor, list]:
        """The tokens between blocks; `options` are those of `mien.networks.intermediates.intermediates`."""
        blocks = [lambda tokens, block=block: block(tokens, self.grid_of(tokens)) for block in self.blocks]
        layout = Layout("token", 1, 1, self.grid)
        return intermediates(self.start(patches, index), blocks, self.norm, self.norm, layout, **options)

    def forward(self, patches: Tensor, index: Tensor) -> Tensor:
        tokens = self.start(patches, index)
        for block in self.blocks:
            tokens = block(tokens, self.grid_of(tokens))
        return self.norm(tokens)
