"""CaiT: a deep ViT of talking heads, whose class token comes late and only attends."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from mien.networks.intermediates import intermediates
from mien.networks.mixers import one_a_block
from mien.networks.network import Network
from mien.nn.base import MakeMixers
from mien.nn.block import Block
from mien.nn.class_attention import ClassAttentionPool
from mien.nn.distance_position import Position, set_positions
from mien.nn.grid import patches_along, resize_positions, to_tokens
from mien.nn.observe import Layout
from mien.nn.talking_heads import TalkingHeads


class CaiT(Network):
    """Images (B, 3, img_size, img_size) -> logits (B, C).

        tokens = patch_embed(images) + pos_embed            (B, N, D), N = (img_size / patch_size)², no class token
        tokens = blocks(tokens)                             `depth` of talking heads, with LayerScale
        logits = head(pool(tokens))                         `class_depth` of class attention, and the last norm

    `init_values` starts every layer scale, those of the class attention too; None is the paper's choice by depth: 0.1
    up to 18 blocks, 1e-5 up to 24, 1e-6 beyond. The rate of `drop_path` is the same in all blocks, not a ramp, and the
    class attention has none. Another `mixer` than the paper's, one for all blocks or a list with one a block, has
    options of its own: `qkv_bias` is then the class attention's alone.

    Args:
        num_classes: int, C.
        img_size, patch_size: int, pixels along the side of the images and of a patch; 224 and 16.
        embed_dim, depth, class_depth, num_heads: int; 192, 24, 2 and 4.
        mlp_ratio: float, hidden width of the mlp over embed_dim; 4.
        qkv_bias: bool, whether q, k and v have biases; True.
        init_values: float at which layer scales start, or None: by depth.
        drop_path: float in [0, 1), rate of stochastic depth; 0.
        mixer: makes that of every block, or a list with one a block; None is talking heads.
        position: "learned", or fixed codes of the grid: "distance" or "sinusoid"; learned.

    Paper: Touvron et al., Going deeper with Image Transformers, 2021. Reference: huggingface/pytorch-image-models
    1.0.31, whose released XXS36 starts at 1e-5, and so does `cait_xxs36`.
    """

    no_decay = ("pos_embed", "pool.cls_token")
    pos_embed: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        img_size: int = 224,
        patch_size: int = 16,
        embed_dim: int = 192,
        depth: int = 24,
        class_depth: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        init_values: float | None = None,
        drop_path: float = 0.0,
        mixer: MakeMixers | None = None,
        position: Position = "learned",
    ):
        super().__init__()
        if init_values is None:
            init_values = 0.1 if depth <= 18 else 1e-5 if depth <= 24 else 1e-6
        self.img_size, self.side = img_size, patches_along(img_size, patch_size)
        self.patch_embed = nn.Conv2d(3, embed_dim, patch_size, patch_size)
        set_positions(self, "pos_embed", position, (self.side, self.side), embed_dim)
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, drop_path, make, init_values=init_values)
            for make in one_a_block(mixer, depth, usual=partial(TalkingHeads, qkv_bias=qkv_bias))
        )
        self.pool = ClassAttentionPool(embed_dim, num_heads, class_depth, mlp_ratio, init_values, qkv_bias)
        self.head = nn.Linear(embed_dim, num_classes)
        if position == "learned":
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def start(self, images: Tensor) -> Tensor:
        """What the first block reads: (B, 3, img_size, img_size) -> (B, N, D)."""
        height, width = images.shape[2:]
        if (height, width) != (self.img_size, self.img_size):
            raise ValueError(
                f"images are {height}×{width} pixels, and positions are for {self.img_size}×{self.img_size}"
            )
        return to_tokens(self.patch_embed(images)) + self.pos_embed

    def tokens(self, images: Tensor) -> Tensor:
        """(B, 3, img_size, img_size) -> (B, N, D), before the pool and its norm."""
        tokens = self.start(images)
        for block in self.blocks:
            tokens = block(tokens, (self.side, self.side))
        return tokens

    def forward_intermediates(self, images: Tensor, **options) -> list | tuple[Tensor, list]:
        """The tokens between blocks; the final ones are those of class attention: the class token, then the others."""
        grid = (self.side, self.side)
        blocks = [partial(block, grid=grid) for block in self.blocks]

        def final(tokens: Tensor) -> Tensor:
            return self.pool.norm(torch.cat([self.pool.class_token(tokens), tokens], dim=1))

        return intermediates(self.start(images), blocks, final, self.pool.norm, Layout("token", 0, 1, grid), **options)

    def forward_features(self, images: Tensor) -> Tensor:
        return self.pool(self.tokens(images))

    def forward_head(self, features: Tensor) -> Tensor:
        return self.head(features)

    def fit(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Positions of another `img_size` are interpolated, where they are learned."""
        if "pos_embed" not in tensors:
            return tensors
        if not isinstance(self.pos_embed, nn.Parameter):
            return {**tensors, "pos_embed": self.pos_embed}
        return {**tensors, "pos_embed": resize_positions(tensors["pos_embed"], self.side)}


def cait_xxs24(*, num_classes: int = 7, img_size: int = 224, drop_path: float = 0.0) -> CaiT:
    """CaiT-XXS24, 12 M parameters; published for 224 and 384 pixels, as XXS36 and S24.

    num_classes, img_size, drop_path: as of `CaiT`; 7, 224 and 0.
    """
    return CaiT(num_classes=num_classes, img_size=img_size, drop_path=drop_path)


def cait_xxs36(*, num_classes: int = 7, img_size: int = 224, drop_path: float = 0.0) -> CaiT:
    """CaiT-XXS36, 17 M parameters.

    num_classes, img_size, drop_path: as of `CaiT`; 7, 224 and 0.
    """
    return CaiT(num_classes=num_classes, img_size=img_size, depth=36, init_values=1e-5, drop_path=drop_path)


def cait_xs24(*, num_classes: int = 7, img_size: int = 224, drop_path: float = 0.0) -> CaiT:
    """CaiT-XS24, 27 M parameters; published for 384 pixels, as S36 and M36.

    num_classes, img_size, drop_path: as of `CaiT`; 7, 224 and 0.
    """
    return CaiT(num_classes=num_classes, img_size=img_size, embed_dim=288, num_heads=6, drop_path=drop_path)


def cait_s24(*, num_classes: int = 7, img_size: int = 224, drop_path: float = 0.0) -> CaiT:
    """CaiT-S24, 47 M parameters.

    num_classes, img_size, drop_path: as of `CaiT`; 7, 224 and 0.
    """
    return CaiT(num_classes=num_classes, img_size=img_size, embed_dim=384, num_heads=8, drop_path=drop_path)


def cait_s36(*, num_classes: int = 7, img_size: int = 224, drop_path: float = 0.0) -> CaiT:
    """CaiT-S36, 68 M parameters.

    num_classes, img_size, drop_path: as of `CaiT`; 7, 224 and 0.
    """
    return CaiT(num_classes=num_classes, img_size=img_size, embed_dim=384, depth=36, num_heads=8, drop_path=drop_path)


def cait_m36(*, num_classes: int = 7, img_size: int = 224, drop_path: float = 0.0) -> CaiT:
    """CaiT-M36, 271 M parameters.

    num_classes, img_size, drop_path: as of `CaiT`; 7, 224 and 0.
    """
    return CaiT(num_classes=num_classes, img_size=img_size, embed_dim=768, depth=36, num_heads=16, drop_path=drop_path)


def cait_m48(*, num_classes: int = 7, img_size: int = 224, drop_path: float = 0.0) -> CaiT:
    """CaiT-M48, 356 M parameters; published for 448 pixels.

    num_classes, img_size, drop_path: as of `CaiT`; 7, 224 and 0.
    """
    return CaiT(num_classes=num_classes, img_size=img_size, embed_dim=768, depth=48, num_heads=16, drop_path=drop_path)
