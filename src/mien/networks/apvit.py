"""APViT: a transformer that looks at the patches of a face that matter, and drops tokens on its way."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mien.networks.ir50 import IR50
from mien.networks.mixers import needing_grid
from mien.networks.mobilefacenet import MobileFaceNet
from mien.networks.network import Network
from mien.networks.pooled_vit import PooledViT, TokenCriterion
from mien.networks.trunk import Trunk
from mien.nn.base import MakeMixers, MakePool
from mien.nn.distance_position import Position
from mien.nn.grid import patches_along, resize_positions, to_tokens
from mien.nn.observe import attentions, observe
from mien.nn.select import AttentiveSelect, Criterion


@dataclass(frozen=True)
class BlockTrace:
    """What one block did.

    `came` (B, n) and `stayed` (B, m) are the patches that reached it and that it kept, by their number on the grid,
    row-major. `scores` and `attn` (B, heads, 1 + n) are the class token's, before and after the softmax, the one for
    itself first; None for a mixer in which a class token does not attend to tokens.
    """

    came: Tensor
    stayed: Tensor
    scores: Tensor | None
    attn: Tensor | None


@dataclass(frozen=True)
class Trace:
    """What was kept on the way to the logits (B, C).

    `worth` (B, N) is that of every patch of the `grid`, row-major; `patches` (B, K) are the numbers of those that were
    kept, ascending; then comes what every block did with them.
    """

    logits: Tensor
    grid: tuple[int, int]
    worth: Tensor
    patches: Tensor
    blocks: tuple[BlockTrace, ...]


class APViT(Network):
    """Images -> logits (B, C), of the patches and tokens that matter.

        P = proj(trunk(images)[level])            (B, N, D) by a 1×1 convolution; without a trunk, of squares of pixels
        tokens, index = select(P, evidence=P)     attentive patch pooling: `keep_patches` of N, with their
        tokens = tokens + position[index]         positions among all
        tokens = norm(blocks([class, tokens]))    attentive token pooling: `keep_rate` in each of the second half
        logits = head(pool(tokens))

    With `keep_patches=None` and `keep_rate=1.0` nothing is pooled; both can be set on a network, too, and change none
    of its parameters. `pool` is the "class" token, the "mean" of the patches that are left, or makes a pool of them.
    `soft` multiplies patches by their map and drops none. As in the published code, and unlike the paper, the map is
    that of P and not the trunk's, and that of `patch_criterion="lanet"` ends in a sigmoid. *Inferred*: that the mean is
    of patches alone, and that soft pooling is of patches. A trunk's last map is read unless `level` says another; none
    reads images of `img_size` in squares of `patch_size`. `mixer` is `PooledViT`'s.

    `num_action_units` adds a second head on the same feature: `training_logits` then gives "expression" and
    "action_units", weighted 10 to 1. Heads start at 0.

    Args:
        image: a trunk, or None: squares of pixels.
        num_classes: int, C.
        level: int, of the trunk's maps, negative ones from the end; -1.
        img_size, patch_size: int, pixels along the side of the images and of a square; 112 and 16.
        embed_dim, depth, num_heads: int, of the transformer; 768, 8 and 8.
        mlp_ratio: float, hidden width of its mlp over embed_dim; 3.
        qkv_bias, qk_scale, mixer, token_criterion, position: as for `PooledViT`.
        keep_patches: int in [1, N], or None: all.
        keep_rate: float in (0, 1], or one for each block; 1.
        patch_criterion: of `AttentiveSelect`; abs.
        soft: bool; False.
        pool: "class", "mean" or what makes a pool of a width; class.
        num_action_units: int from 0 on; 0.

    Paper: Xue et al., APViT, arXiv 2212.05463. Reference: youqingxiaozhua/APViT, 9efaf97.
    """

    def __init__(
        self,
        *,
        image: Trunk | None,
        num_classes: int,
        level: int = -1,
        img_size: int = 112,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 8,
        num_heads: int = 8,
        mlp_ratio: float = 3.0,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        keep_patches: int | None = None,
        keep_rate: float | Sequence[float] = 1.0,
        patch_criterion: Criterion = "abs",
        token_criterion: TokenCriterion = "sum",
        soft: bool = False,
        mixer: MakeMixers | None = None,
        pool: Literal["class", "mean"] | MakePool = "class",
        num_action_units: int = 0,
        position: Position = "learned",
    ):
        super().__init__()
        self.image, self.level, self.img_size = image, level, img_size
        if image is None:
            self.side = patches_along(img_size, patch_size)
            self.proj = nn.Conv2d(3, embed_dim, patch_size, patch_size)
        else:
            if img_size != 112:
                raise ValueError(f"a trunk's maps are those of 112 pixels, not of {img_size}")
            if not -len(image.levels) <= level < len(image.levels):
                raise ValueError(f"the trunk has {len(image.levels)} levels, and none is number {level}")
            channels, self.side = image.levels[level]
            self.proj = nn.Conv2d(channels, embed_dim, 1)
        self.num_patches = self.side**2
        self.select = AttentiveSelect(criterion=patch_criterion, dim=embed_dim, soft=soft)
        self.vit = PooledViT(
            num_tokens=self.num_patches,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            qk_scale=qk_scale,
            keep_rate=keep_rate,
            token_criterion=token_criterion,
            mixer=mixer,
            position=position,
        )
        self.keep_patches = keep_patches
        if isinstance(pool, str) and pool not in ("class", "mean"):
            raise ValueError(f"pool must be 'class', 'mean' or make a pool, not {pool!r}")
        self.pool = pool if isinstance(pool, str) else pool(embed_dim)
        self.head = nn.Linear(embed_dim, num_classes)
        self.action_units = nn.Linear(embed_dim, num_action_units) if num_action_units else None
        for head in (self.head, self.action_units):
            if head is not None:
                nn.init.zeros_(head.weight)
                nn.init.zeros_(head.bias)
        if num_action_units:
            self.loss_weights = {"expression": 10.0, "action_units": 1.0}

    @property
    def keep_patches(self) -> int | None:
        """How many patches the transformer sees, None for all; can be set."""
        return self.select.keep

    @keep_patches.setter
    def keep_patches(self, keep: int | None) -> None:
        if keep is None:
            self.select.rate = 1.0
            return
        if self.select.soft:
            raise ValueError("soft pooling drops no patches: keep_patches must be None")
        if isinstance(keep, int) and keep > self.num_patches:
            raise ValueError(f"keep_patches is {keep}, and there are {self.num_patches} patches")
        if keep != self.num_patches and (name := needing_grid(self.vit.blocks)):
            raise ValueError(f"{name} needs a grid, of which only {keep} patches would be kept")
        self.select.keep = keep

    @property
    def keep_rate(self) -> list[float]:
        """The share of its tokens that each block keeps; can be set, to one for each or to one for the second half."""
        return self.vit.keep_rate

    @keep_rate.setter
    def keep_rate(self, rates: float | Sequence[float]) -> None:
        self.vit.keep_rate = rates

    @property
    def front_parts(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return () if self.image is None else ("image",)

    def front(self, images: Tensor) -> tuple[Tensor, ...]:
        if self.image is None:
            raise ValueError("APViT without a trunk has nothing in front")
        return (self.image(images)[self.level],)

    def patches(self, images: Tensor | tuple[Tensor]) -> Tensor:
        """Images -> P (B, N, D)."""
        maps = images[0] if isinstance(images, tuple) else images if self.image is None else self.front(images)[0]
        maps = self.proj(maps)
        if maps.shape[2:] != (self.side, self.side):
            height, width = (images[0] if isinstance(images, tuple) else images).shape[2:]
            found = "×".join(map(str, maps.shape[2:]))
            raise ValueError(
                f"images of {height}×{width} pixels give {found} patches, and positions are for {self.side}×{self.side}"
            )
        return to_tokens(maps)

    def pooled(self, tokens: Tensor) -> Tensor:
        """Normalised tokens (B, 1 + n, D) -> (B, D)."""
        if isinstance(self.pool, nn.Module):
            return self.pool(tokens[:, 1:])
        return tokens[:, 0] if self.pool == "class" else tokens[:, 1:].mean(1)

    def forward_intermediates(self, images: Tensor, **options) -> list | tuple[Tensor, list]:
        patches = self.patches(images)
        return self.vit.forward_intermediates(*self.select(patches, patches), **options)

    def forward_features(self, images: Tensor) -> Tensor:
        patches = self.patches(images)
        return self.pooled(self.vit(*self.select(patches, patches)))

    def forward_head(self, features: Tensor) -> Tensor:
        return self.head(features)

    def fit(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Positions of another `img_size` are interpolated, where they are learned."""
        name, own = "vit.patch_pos_embed", self.vit.patch_pos_embed
        if name not in tensors:
            return tensors
        learned = isinstance(own, nn.Parameter)
        return {**tensors, name: resize_positions(tensors[name], self.side) if learned else own}

    @property
    def head_names(self) -> tuple[str, ...]:
        return super().head_names + ("action_units",) * (self.action_units is not None)

    def head_answers(self, features: Tensor) -> dict[str, Tensor]:
        units = {} if self.action_units is None else {"action_units": self.action_units(features)}
        return units | super().head_answers(features)

    def training_pass(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if self.action_units is None:
            return super().training_pass(images)
        features = self.forward_features(images)
        return features, {"expression": self.forward_head(features), "action_units": self.action_units(features)}

    @torch.no_grad()
    def trace(self, images: Tensor) -> Trace:
        """The same pass in eval mode, and all that was kept, dropped and attended to on the way."""
        patches = self.patches(images)
        tokens, index = self.select(patches, patches)
        tokens, came, blocks = self.vit.start(tokens, index), index, []
        for block in self.vit.blocks:
            grid, stayed = self.vit.grid_of(tokens), came
            with observe(block) if attentions(block) else nullcontext({}) as seen:
                if block.select is None:
                    tokens = block(tokens, grid)
                else:
                    tokens, kept, _ = block.selecting(tokens, grid)
                    stayed = came.gather(1, kept)
            scores = attn = None
            for look in seen.values():
                rows = [x[:, :, 0] for x in (look.scores, look.attn) if x is not None and x.ndim == 4]
                if look.layout.kind == "token" and len(rows) == 2:  # the last of several, as in `Axial`
                    scores, attn = rows
            if attn is not None and not (attn[..., 1:] > 1e-6).any():  # where a token sees none of those behind it
                scores = attn = None
            blocks.append(BlockTrace(came, stayed, scores, attn))
            came = stayed
        logits = self.forward_head(self.pooled(self.vit.norm(tokens)))
        return Trace(logits, (self.side, self.side), self.select.map(patches), index, tuple(blocks))


def apvit(
    *, num_classes: int = 7, keep_patches: int | None = 160, keep_rate: float | Sequence[float] = 0.9, **options
) -> APViT:
    """APViT at its published size: IR-50, eight blocks 768 wide. 65.2 M parameters, 12.7 G (15.3 unpooled).

    num_classes, keep_patches, keep_rate, options: as of `APViT`; 7, 160 and 0.9.
    """
    return APViT(image=IR50(), num_classes=num_classes, keep_patches=keep_patches, keep_rate=keep_rate, **options)


def hybrid_deit_tiny(
    *, num_classes: int = 7, keep_patches: int | None = 120, keep_rate: float | Sequence[float] = 0.9, **options
) -> APViT:
    """IR-50 and the blocks of DeiT-Tiny: twelve, 192 wide. 23.0 M parameters, 6.1 G (6.7 unpooled).

    num_classes, keep_patches, keep_rate, options: as of `APViT`; 7, 120 and 0.9.
    """
    return APViT(
        image=IR50(),
        num_classes=num_classes,
        embed_dim=192,
        depth=12,
        num_heads=3,
        mlp_ratio=4.0,
        qkv_bias=True,
        keep_patches=keep_patches,
        keep_rate=keep_rate,
        **options,
    )


def deit_tiny(
    *,
    num_classes: int = 7,
    img_size: int = 224,
    keep_patches: int | None = None,
    keep_rate: float | Sequence[float] = 0.8,
    **options,
) -> APViT:
    """DeiT-Tiny: squares of 16 pixels, twelve blocks 192 wide. 5.5 M parameters, 0.96 G (1.26 unpooled).

    num_classes, img_size, keep_patches, keep_rate, options: as of `APViT`; 7, 224, None and 0.8.
    """
    return APViT(
        image=None,
        num_classes=num_classes,
        img_size=img_size,
        embed_dim=192,
        depth=12,
        num_heads=3,
        mlp_ratio=4.0,
        qkv_bias=True,
        keep_patches=keep_patches,
        keep_rate=keep_rate,
        **options,
    )


def apvit_mobile(
    *, num_classes: int = 8, keep_patches: int | None = 160, keep_rate: float | Sequence[float] = 0.9, **options
) -> APViT:
    """APViT at the size of a phone, ours: MobileFaceNet up to its 14×14 map, four blocks 192 wide.

    num_classes, keep_patches, keep_rate, options: as of `APViT`; 8, 160 and 0.9.
    """
    return APViT(
        image=MobileFaceNet("relu6", num_levels=2),
        num_classes=num_classes,
        embed_dim=192,
        depth=4,
        num_heads=3,
        keep_patches=keep_patches,
        keep_rate=keep_rate,
        **options,
    )
