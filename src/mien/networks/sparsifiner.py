"""Sparsifiner on DeiT: a ViT whose tokens attend to a few that a predictor chooses, and its two phases of training."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from mien.networks.intermediates import intermediates
from mien.networks.mixers import one_a_block
from mien.networks.network import Network
from mien.networks.spectformer import checked_size, small_linear
from mien.nn.base import MakeMixers
from mien.nn.block import Block
from mien.nn.grid import patches_along, resize_positions, to_tokens
from mien.nn.observe import Layout
from mien.nn.sparsifiner import Sparsifiner

PREDICTOR = ("reduce_q", "reduce_k", "reduce_tokens", "basis")
"""The parts of `mien.nn.Sparsifiner` that choose."""


class SparseDeiT(Network):
    """Images (B, 3, img_size, img_size) -> logits (B, C): DeiT, with `mien.nn.Sparsifiner` in every block.

        tokens = [cls_token; patch_embed(images)] + pos_embed      (B, 1 + N, D), N = (img_size / patch_size)²
        logits = head(norm(blocks(tokens))[0])

    Training has two phases. While less than `mask_phase` of it is over, attention is dense and the predictors alone
    learn, from this very attention (`aux_loss`): as the rest of the network is at rest it is its own dense teacher.
    From then on attention is sparse, and both learn: the network from the labels, the predictors from the attention
    that they would mask. 5 of 50 epochs were the first phase's, as published.

    Departures: the published second phase has a dense teacher's answers and tokens as targets as well (of a recipe
    `teachers` are the former, the latter are left out), and its predictors rest then. Pruning whole tokens is left out.
    With several processes a parameter that rests has to be allowed to have no gradient.

    Args:
        num_classes: int, C.
        img_size, patch_size: int, pixels along the side of the images and of a patch; 224 and 16.
        embed_dim, depth, num_heads: int; 384, 12 and 6.
        mlp_ratio: float, hidden width of the mlp over embed_dim; 4.
        keep: float in (0, 1], fraction of the tokens that each attends to; 0.25.
        reduce: int, by which the number of tokens is divided for the rank of the guess; 8, and 6 for fewer than 64.
        mask_phase: float in [0, 1], share of training in which predictors alone learn; 0.1.
        drop_path: float in [0, 1), rate of stochastic depth of the last block, rising to it; 0.
        mixer: makes that of every block, or a list with one a block; None is `mien.nn.Sparsifiner`.

    Papers: Wei et al., Sparsifiner, arXiv 2303.13755; Touvron et al., Training data-efficient image transformers, 2021.
    Reference: lim142857/Sparsifiner, 9a11e26.
    """

    no_decay = ("cls_token", "pos_embed")

    def __init__(
        self,
        *,
        num_classes: int,
        img_size: int = 224,
        patch_size: int = 16,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        keep: float = 0.25,
        reduce: int | None = None,
        mask_phase: float = 0.1,
        drop_path: float = 0.0,
        mixer: MakeMixers | None = None,
    ):
        super().__init__()
        if not 0 <= mask_phase <= 1:
            raise ValueError(f"mask_phase must be from 0 to 1, not {mask_phase!r}")
        side = patches_along(img_size, patch_size)
        count = 1 + side**2
        rank = max(2, count // (reduce or (8 if count >= 64 else 6)))
        usual = partial(Sparsifiner, num_tokens=count, keep=keep, rank=rank, detach_attn=True)
        self.img_size, self.grid, self.mask_phase = img_size, (side, side), mask_phase
        self.patch_embed = nn.Conv2d(3, embed_dim, patch_size, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, count, embed_dim))
        rates = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, rate, make)
            for rate, make in zip(rates, one_a_block(mixer, depth, usual), strict=True)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = nn.Linear(embed_dim, num_classes)
        for token in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(token, std=0.02)
        self.apply(small_linear)
        self._resting: list[nn.Parameter] = []

    @property
    def sparsifiners(self) -> list[Sparsifiner]:
        """The mixers that choose; `dense` and `aux_loss` are theirs."""
        return [part for part in self.modules() if isinstance(part, Sparsifiner)]

    def begin_step(self, done: float) -> None:
        """Go from the first phase to the second, or the other way; what was frozen before stays so."""
        first, mixers = done < self.mask_phase, self.sparsifiners
        for mixer in mixers:
            mixer.dense = first
        if first and mixers and not self._resting:
            learns = {id(p) for mixer in mixers for part in PREDICTOR for p in parameters(getattr(mixer, part))}
            self._resting = [p for p in self.parameters() if p.requires_grad and id(p) not in learns]
            for p in self._resting:
                p.requires_grad_(False)
        elif not first and self._resting:
            for p in self._resting:
                p.requires_grad_(True)
            self._resting = []

    def start(self, images: Tensor) -> Tensor:
        """What the first block reads: (B, 3, img_size, img_size) -> (B, 1 + N, D)."""
        checked_size(images, self.img_size)
        tokens = to_tokens(self.patch_embed(images))
        return torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], 1) + self.pos_embed

    def forward_intermediates(self, images: Tensor, **options) -> list | tuple[Tensor, list]:
        """The tokens between blocks; `options` are those of `mien.networks.intermediates.intermediates`."""
        blocks = [partial(block, grid=self.grid) for block in self.blocks]
        layout = Layout("token", 1, 1, self.grid)
        return intermediates(self.start(images), blocks, self.norm, self.norm, layout, **options)

    def forward_features(self, images: Tensor) -> Tensor:
        tokens = self.start(images)
        for block in self.blocks:
            tokens = block(tokens, self.grid)
        return self.norm(tokens[:, 0])

    def forward_head(self, features: Tensor) -> Tensor:
        return self.head(features)

    def fit(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Positions of another `img_size` are interpolated, but the class token's; predictors are for one size."""
        positions = tensors.get("pos_embed")
        if positions is None or positions.ndim != 3:
            return tensors
        spread = resize_positions(positions[:, 1:], self.grid[0])
        return {**tensors, "pos_embed": torch.cat([positions[:, :1], spread], 1)}


def parameters(part: nn.Module | nn.Parameter) -> list[nn.Parameter]:
    return [part] if isinstance(part, nn.Parameter) else list(part.parameters())


def sparsifiner_deit_small(*, num_classes: int = 7, img_size: int = 224, **options) -> SparseDeiT:
    """Sparsifiner on DeiT-Small: twelve blocks 384 wide. 22 M parameters.

    num_classes, img_size, options: as of `SparseDeiT`; 7 and 224.
    """
    return SparseDeiT(num_classes=num_classes, img_size=img_size, **options)


def sparsifiner_mobile(*, num_classes: int = 8, img_size: int = 112, **options) -> SparseDeiT:
    """Sparsifiner at the size of a phone, ours: 112 pixels in patches of 8, ten blocks 192 wide.

    num_classes, img_size, options: as of `SparseDeiT`; 8 and 112.
    """
    return SparseDeiT(
        num_classes=num_classes, img_size=img_size, patch_size=8, embed_dim=192, depth=10, num_heads=3, **options
    )
