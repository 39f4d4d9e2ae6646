"""A reader in two passes: a coarse look says where, a second one looks there in detail, and both are joined."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mien.networks.mobilefacenet import Unit
from mien.networks.network import Network
from mien.nn.block import Block
from mien.nn.grid import to_tokens
from mien.nn.select import AttentiveSelect


class Stem(nn.Sequential):
    """Four 3×3 convolutions: images (B, 3, s, s) -> a map (B, dim, s / stride, s / stride), stride 4 or 8."""

    def __init__(self, dim: int, stride: int):
        if stride not in (4, 8):
            raise ValueError(f"the stride of a stem is 4 or 8, not {stride!r}")
        widths, steps = (3, dim // 4, dim // 2, dim, dim), (2, 2, stride // 4, 1)
        super().__init__(*(Unit(widths[i], widths[i + 1], 3, step, act="relu") for i, step in enumerate(steps)))


class Magnified(Network):
    """Images (B, 3, 112, 112) -> logits (B, C), of a coarse look at all of it and a close one at its best window.

        u = blocks([class; stem(images at coarse_size)])          a token for each of cells × cells cells
        a = mean_heads softmax(scores of the class token in the last of these blocks), without its own
        window = the `window × window` cells whose a is greatest together
        w = stem'(images in the window, at their own size)        looked at in detail
        logits = head(norm(blocks'([u; w + position + position of the window's middle cell]))_class)

    The window is chosen, not learned: it gets no gradient, and attention learns from `coarse`, the logits of the first
    pass, whose loss is part of training. With `window=0` there is one pass, plain resizing to `coarse_size`. *Inferred*
    is all of it but the idea: the published mechanism opens keys within a layer (`mien.nn.MagnifiedAttention`), and a
    second pass over pixels is our form of it. One window, so that a convolution sees a face as a whole.

    Args:
        num_classes: int, C.
        coarse_size: int, pixels along the side of the first look; 28.
        cells: int, along the side of its map, which divides 112; coarse_size is 4 or 8 times as many; 7.
        window: int from 0 to cells, cells along the side of the second look; 3.
        embed_dim, num_heads: int, width of tokens and heads; 64 and 4.
        depths: (int, int), blocks of the first pass, at least 1, and of the second; (1, 1).
        mlp_ratio: float; 2.

    Paper: Zhi et al., LSceneLLM, arXiv 2412.01292. Reference: Hoyyyaard/LSceneLLM, b85581b.
    """

    img_size = 112

    def __init__(
        self,
        *,
        num_classes: int,
        coarse_size: int = 28,
        cells: int = 7,
        window: int = 3,
        embed_dim: int = 64,
        num_heads: int = 4,
        depths: tuple[int, int] = (1, 1),
        mlp_ratio: float = 2.0,
    ):
        super().__init__()
        if coarse_size % cells or (window and self.img_size % cells):
            raise ValueError(f"{cells} cells do not divide both {coarse_size} and {self.img_size} pixels evenly")
        if not 0 <= window <= cells or (window * self.img_size // cells) % 8:
            raise ValueError(f"a window of {window} of {cells} cells cannot be cut into squares of 8 pixels")
        if depths[0] < 1:
            raise ValueError("the first pass needs a block, whose class token says where to look")
        self.coarse_size, self.cells, self.window = coarse_size, cells, window
        self.cell = self.img_size // cells  # pixels
        self.coarse = Stem(embed_dim, coarse_size // cells)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, cells**2, embed_dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

        def blocks(depth: int) -> nn.ModuleList:
            return nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio) for _ in range(depth))

        self.blocks = blocks(depths[0])
        cast(Block, self.blocks[-1]).select = AttentiveSelect()  # drops none; the block then tells its scores
        self.norm, self.head = nn.LayerNorm(embed_dim, eps=1e-6), nn.Linear(embed_dim, num_classes)
        if window:
            self.fine = Stem(embed_dim, 8)
            self.fine_embed = nn.Parameter(torch.empty(1, (window * self.cell // 8) ** 2, embed_dim))
            nn.init.trunc_normal_(self.fine_embed, std=0.02)
            self.fine_blocks = blocks(depths[1])
            self.coarse_norm, self.coarse_head = nn.LayerNorm(embed_dim, eps=1e-6), nn.Linear(embed_dim, num_classes)
            self.loss_weights = {"logits": 1.0, "coarse": 0.5}

    def first(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The coarse pass: images -> tokens (B, 1 + cells², D), the class token's attention (B, cells²)."""
        maps = self.coarse(F.interpolate(images, (self.coarse_size, self.coarse_size), mode="area"))
        tokens = torch.cat([self.cls_token.expand(maps.shape[0], -1, -1), to_tokens(maps) + self.pos_embed], 1)
        *blocks, last = cast(list[Block], list(self.blocks))
        for block in blocks:
            tokens = block(tokens, (self.cells, self.cells))
        tokens, _, scores = last.selecting(tokens, (self.cells, self.cells))
        return tokens, scores.softmax(-1).mean(1)[:, 1:]

    def choose(self, attn: Tensor) -> tuple[Tensor, Tensor]:
        """Where the window lies that attn (B, cells²) is greatest in: row and column of its first cell, (B,) each."""
        sums = F.avg_pool2d(attn.unflatten(1, (1, self.cells, self.cells)), self.window, 1)
        best, across = sums.flatten(1).argmax(1), self.cells - self.window + 1
        return best // across, best % across

    def cut(self, images: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """The window that begins at those cells: (B, 3, 112, 112) -> (B, 3, side, side)."""
        pixels = torch.arange(self.window * self.cell, device=images.device)
        rows, columns = (first[:, None] * self.cell + pixels for first in (row, column))  # (B, side)
        faces = torch.arange(images.shape[0], device=images.device)[:, None, None]
        return images.permute(0, 2, 3, 1)[faces, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images -> features (B, D), tokens of the first pass (B, 1 + cells², D)."""
        tokens, attn = self.first(images)
        if not self.window:
            return self.norm(tokens[:, 0]), tokens
        row, column = self.choose(attn)
        middle = (row + self.window // 2) * self.cells + column + self.window // 2
        fine = to_tokens(self.fine(self.cut(images, row, column))) + self.fine_embed
        joined = torch.cat([tokens, fine + F.embedding(middle, self.pos_embed[0])[:, None]], 1)
        for block in self.fine_blocks:
            joined = block(joined)
        return self.norm(joined[:, 0]), tokens

    def forward_features(self, images: Tensor) -> Tensor:
        return self.both(images)[0]

    def forward_head(self, features: Tensor) -> Tensor:
        return self.head(features)

    def training_pass(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        features, tokens = self.both(images)
        logits = {"logits": self.forward_head(features)}
        if self.window:
            logits["coarse"] = self.coarse_head(self.coarse_norm(tokens[:, 0]))
        return features, logits


def magnified(*, num_classes: int = 8, **options) -> Magnified:
    """A first look at 28×28 pixels, a second at 48×48 of the 112×112.

    num_classes: int, C; 8.
    options: as of `Magnified`.
    """
    return Magnified(num_classes=num_classes, **options)
