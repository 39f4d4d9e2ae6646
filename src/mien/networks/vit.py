"""The ViT at the end of POSTER++ and BTN: tokens in, logits out."""

import math
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from mien.networks.intermediates import intermediates
from mien.networks.mixers import needing_grid, one_a_block
from mien.nn.base import Grid, MakeMixers, MakePool
from mien.nn.block import Block
from mien.nn.distance_position import Position, set_positions
from mien.nn.observe import Layout


class Gate(nn.Module):
    """`x · sigmoid(W2 relu(W1 x))`: (B, D) -> (B, D)."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.linear2(self.linear1(x).relu()).sigmoid()


class ViT(nn.Module):
    """Tokens (B, N, D) -> logits (B, C): a class token, learned positions, pre-norm blocks, a gate, a linear head.

    `forward_features` gives the gated class token (B, D), `forward_head` the logits. With another `pool` than "class"
    the blocks have no class token, and the gate reads the pooled vector.

    `mixer` makes that of every block, or is a list with one a block; None is self-attention. Where the tokens fill
    planes of `grid`, row-major, mixers are given that grid.

    Args:
        num_classes, num_tokens: int, C and N; 7 and 147.
        embed_dim, depth, num_heads: int; 768, 2 and 8.
        mlp_ratio: float, hidden width of the mlp over embed_dim; 4.
        drop_path: float in [0, 1), rate of stochastic depth of the last block, rising to it; 0.
        mixer: makes that of every block, or a list with one a block; None is self-attention.
        grid: (rows, columns) of the planes, or None: there is none; (7, 7).
        pool: "class", or what makes a pool of a width; class.
        position: "learned", or fixed codes of the grid: "distance" or "sinusoid" (`mien.nn.distance_position`), which
            need one; several planes are an axis more; learned.

    Paper: Mao et al., POSTER++, arXiv 2301.12149. Reference: Talented-Q/POSTER_V2, 18de559 (models/vit_model.py),
    without the parameters there that no forward pass reads.
    """

    pos_embed: Tensor

    def __init__(
        self,
        *,
        num_classes: int = 7,
        num_tokens: int = 147,
        embed_dim: int = 768,
        depth: int = 2,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        mixer: MakeMixers | None = None,
        grid: Grid | None = (7, 7),
        pool: Literal["class"] | MakePool = "class",
        position: Position = "learned",
    ):
        super().__init__()
        if isinstance(pool, str) and pool != "class":
            raise ValueError(f"pool must be 'class' or make a pool, not {pool!r}")
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim)) if pool == "class" else None
        self.pool = None if pool == "class" else pool(embed_dim)
        whole = grid is not None and num_tokens > 0 and num_tokens % (grid[0] * grid[1]) == 0
        self.grid: Grid | None = (grid[0], grid[1]) if grid is not None and whole else None
        if self.grid is None and position != "learned":
            raise ValueError(f"position={position!r} needs a grid that {num_tokens} tokens fill, and has {grid}")
        sizes = (num_tokens,) if self.grid is None else (num_tokens // math.prod(self.grid), *self.grid)
        set_positions(self, "pos_embed", position, sizes, embed_dim, prefix=int(pool == "class"))
        rates = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, rate, make)
            for rate, make in zip(rates, one_a_block(mixer, depth), strict=True)
        )
        if self.grid is None and (name := needing_grid(self.blocks)):
            reason = "there is none" if grid is None else f"{num_tokens} tokens are no planes of {grid[0]}×{grid[1]}"
            raise ValueError(f"{name} needs a grid, and {reason}")
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.gate = Gate(embed_dim)
        self.head = nn.Linear(embed_dim, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)
        if position == "learned":
            nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def start(self, tokens: Tensor) -> Tensor:
        """What the first block reads: (B, N, D) -> (B, P + N, D)."""
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return tokens + self.pos_embed

    def forward_intermediates(self, tokens: Tensor, **options) -> list | tuple[Tensor, list]:
        """The tokens between blocks; `options` are those of `mien.networks.intermediates.intermediates`."""
        x, prefix = self.start(tokens), 0 if self.cls_token is None else 1
        planes = 1 if self.grid is None else tokens.shape[1] // (self.grid[0] * self.grid[1])
        blocks = [partial(block, grid=self.grid) for block in self.blocks]
        return intermediates(x, blocks, self.norm, self.norm, Layout("token", prefix, planes, self.grid), **options)

    def forward_features(self, tokens: Tensor) -> Tensor:
        x = self.start(tokens)
        for block in self.blocks:
            x = block(x, self.grid)
        return self.gate(self.norm(x[:, 0] if self.pool is None else self.pool(x)))

    def forward_head(self, features: Tensor) -> Tensor:
        return self.head(features)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(tokens))
