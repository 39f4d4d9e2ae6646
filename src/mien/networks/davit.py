"""DaViT: attention among the tokens of windows and attention among channels, by turns."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mien.networks.mixers import one_a_block
from mien.networks.network import Network
from mien.networks.staged import rates
from mien.nn.base import Grid, MakeMixer, MakeMixers
from mien.nn.block import Block
from mien.nn.davit import ChannelAttention, WindowAttention
from mien.nn.grid import to_map, to_tokens


class PlacedBlock(Block):
    """A block that adds a depthwise 3×3 convolution of its tokens to them before the mixer, and before the mlp.

    x = x + cpe1(x);   x = x + attn(norm1(x));   x = x + cpe2(x);   x = x + mlp(norm2(x))
    """

    def __init__(self, dim: int, num_heads: int, drop_path: float, mixer: MakeMixer):
        super().__init__(dim, num_heads, drop_path=drop_path, mixer=mixer, eps=1e-5)
        self.cpe1, self.cpe2 = (nn.Conv2d(dim, dim, 3, padding=1, groups=dim) for _ in range(2))

    def forward(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        if grid is None:
            raise ValueError("PlacedBlock works on a grid, and was given none")
        tokens = tokens + to_tokens(self.cpe1(to_map(tokens, grid)))
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens), grid))
        tokens = tokens + to_tokens(self.cpe2(to_map(tokens, grid)))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class Downsample(nn.Module):
    """A norm and a 2×2 convolution of stride 2, padded below and to the right where it has to be: maps -> maps."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.conv = nn.Conv2d(channels, out, 2, 2)

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.norm(maps.movedim(1, 3)).movedim(3, 1)
        return self.conv(F.pad(maps, (0, maps.shape[3] % 2, 0, maps.shape[2] % 2)))


class DaViT(Network):
    """Images (B, 3, img_size, img_size) -> logits (B, C).

        maps = norm(conv(images))                           7×7, stride 4: (B, dims[0], S/4, S/4)
        maps = channel(window(maps))                        `depths[i]` times; each stage but the first halves the map
        logits = head(norm(mean(maps)))

    Windows that do not divide a map are padded with tokens of 0 which take part, as published, so images may be of any
    size that 4 divides. `mixer` makes the mixers of both kinds of layers, or is a list with one for each layer, in
    their order; the paper's two by turns where it is None.

    Args:
        num_classes: int, C.
        img_size: int, a multiple of 4, pixels along the side of the images; 224.
        dims, depths, num_heads: int for each stage, its width, pairs of layers, and heads.
        window_size: int, tokens along the side of a window; 7.
        drop_path: float in [0, 1), rate of stochastic depth of the last layer, rising to it; 0.
        mixer: makes that of every layer, or a list with one a layer; None is windows and channels by turns.

    Paper: Ding et al., DaViT: Dual Attention Vision Transformers, arXiv 2204.03645.
    Reference: dingmyu/davit, fc79470; huggingface/pytorch-image-models 1.0.31.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        img_size: int = 224,
        dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (1, 1, 3, 1),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        drop_path: float = 0.0,
        mixer: MakeMixers | None = None,
    ):
        super().__init__()
        if img_size < 4 or img_size % 4:
            raise ValueError(f"img_size {img_size}: the stem takes multiples of 4, such as 112 or 224")
        self.img_size = img_size
        self.stem = nn.ModuleDict({"conv": nn.Conv2d(3, dims[0], 7, 4, 3), "norm": nn.LayerNorm(dims[0])})
        usual = [partial(WindowAttention, window_size=window_size, mask_padding=False), ChannelAttention]
        count = 2 * sum(depths)
        makes = iter(one_a_block(usual * sum(depths) if mixer is None else mixer, count))
        every = iter(rates(drop_path, [count])[0])
        self.stages = nn.ModuleList()
        for i, (dim, depth, heads) in enumerate(zip(dims, depths, num_heads, strict=True)):
            blocks = nn.ModuleList(
                nn.ModuleList(PlacedBlock(dim, heads, next(every), next(makes)) for _ in range(2)) for _ in range(depth)
            )
            parts: dict[str, nn.Module] = {"downsample": Downsample(dims[i - 1], dim)} if i else {}
            self.stages.append(nn.ModuleDict({**parts, "blocks": blocks}))
        self.norm = nn.LayerNorm(dims[-1])
        self.head = nn.Linear(dims[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward_features(self, images: Tensor) -> Tensor:
        maps = self.stem["conv"](images)
        maps = self.stem["norm"](maps.movedim(1, 3)).movedim(3, 1)
        for stage in self.stages:
            parts = dict(stage.named_children())
            if "downsample" in parts:
                maps = parts["downsample"](maps)
            grid, tokens = (maps.shape[2], maps.shape[3]), to_tokens(maps)
            for pair in parts["blocks"].children():
                for block in pair.children():
                    tokens = block(tokens, grid)
            maps = to_map(tokens, grid)
        return self.norm(maps.mean((2, 3)))

    def forward_head(self, features: Tensor) -> Tensor:
        return self.head(features)


def davit_tiny(*, num_classes: int = 8, img_size: int = 224, drop_path: float = 0.0, **options: Any) -> DaViT:
    """DaViT-T as published, 28 M parameters; images of 224 pixels, or of another size, such as 112.

    num_classes, img_size, drop_path, options: as of `DaViT`; 8, 224 and 0.
    """
    return DaViT(num_classes=num_classes, img_size=img_size, drop_path=drop_path, **options)


def davit_small(*, num_classes: int = 8, img_size: int = 224, drop_path: float = 0.0, **options: Any) -> DaViT:
    """DaViT-S as published, 50 M parameters.

    num_classes, img_size, drop_path, options: as of `DaViT`; 8, 224 and 0.
    """
    return davit_tiny(num_classes=num_classes, img_size=img_size, drop_path=drop_path, depths=(1, 1, 9, 1), **options)


def davit_base(*, num_classes: int = 8, img_size: int = 224, drop_path: float = 0.0, **options: Any) -> DaViT:
    """DaViT-B as published, 88 M parameters.

    num_classes, img_size, drop_path, options: as of `DaViT`; 8, 224 and 0.
    """
    return DaViT(
        num_classes=num_classes,
        img_size=img_size,
        drop_path=drop_path,
        dims=(128, 256, 512, 1024),
        num_heads=(4, 8, 16, 32),
        depths=(1, 1, 9, 1),
        **options,
    )


def davit_mobile(*, num_classes: int = 8, drop_path: float = 0.0, **options: Any) -> DaViT:
    """Three narrow stages for images of 112 pixels, whose maps are 28, 14 and 7; the sizes are ours.

    num_classes, drop_path, options: as of `DaViT`; 8 and 0.
    """
    return DaViT(
        num_classes=num_classes,
        img_size=112,
        drop_path=drop_path,
        dims=(48, 96, 192),
        num_heads=(2, 4, 8),
        depths=(1, 2, 1),
        **options,
    )
