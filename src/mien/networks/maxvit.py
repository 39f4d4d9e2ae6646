"""MaxViT: convolutions, attention within blocks and attention across the grid, one after another in every block."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mien.networks.mixers import one_a_block
from mien.networks.network import Network
from mien.networks.staged import check_size, draw_weights, needs_whole_windows, rates
from mien.nn.base import MakeMixers
from mien.nn.block import Block, DropPath
from mien.nn.grid import pair, to_map, to_tokens
from mien.nn.maxvit import MaxViTBlockAttention, MaxViTGridAttention


class Gelu(nn.GELU):
    """GELU by tanh, as the weights from TensorFlow have it."""

    def __init__(self):
        super().__init__(approximate="tanh")


class Convolution(nn.Conv2d):
    """A convolution of 3×3; with a stride of 2 padding is TensorFlow's where `same`: of even maps below and right."""

    def __init__(
        self, channels: int, out: int, stride: int = 1, groups: int = 1, bias: bool = False, same: bool = True
    ):
        self.shifted = same and stride == 2
        super().__init__(channels, out, 3, stride, 0 if self.shifted else 1, groups=groups, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (0, 1, 0, 1)) if self.shifted else input)


class SqueezeExcite(nn.Module):
    """`x · sigmoid(W2 silu(W1 mean(x)))`: (B, D, H, W) -> the same."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, maps: Tensor) -> Tensor:
        return maps * self.fc2(F.silu(self.fc1(maps.mean((2, 3), keepdim=True)))).sigmoid()


class MBConv(nn.Module):
    """The inverted bottleneck before the attention: (B, D, H, W) -> (B, out, H / stride, W / stride).

        x = conv3_1x1(se(act(norm2(conv2_kxk(act(norm1(conv1_1x1(pre_norm(x))))))))) + shortcut(x)

    tf: the published form, four times as wide as what comes out, squeezed to a quarter of it; else that of timm's own
    weights: four times as wide as what comes in, squeezed to a sixteenth of that, without biases.
    """

    def __init__(self, channels: int, out: int, stride: int = 1, drop_path: float = 0.0, tf: bool = True):
        super().__init__()
        wide = 4 * (out if tf else channels)
        eps = 1e-3 if tf else 1e-5
        self.act = Gelu() if tf else nn.SiLU()
        self.shortcut = nn.Identity()
        if stride == 2:
            self.shortcut = nn.Sequential()
            self.shortcut.add_module("pool", nn.AvgPool2d(2))
            if channels != out:
                self.shortcut.add_module("expand", nn.Conv2d(channels, out, 1, bias=tf))
        self.pre_norm = nn.BatchNorm2d(channels, eps)
        self.conv1_1x1 = nn.Conv2d(channels, wide, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(wide, eps)
        self.conv2_kxk = Convolution(wide, wide, stride, wide, same=tf)
        self.norm2 = nn.BatchNorm2d(wide, eps)
        self.se = SqueezeExcite(wide, out // 4 if tf else wide // 16)
        self.conv3_1x1 = nn.Conv2d(wide, out, 1, bias=tf)
        self.drop_path = DropPath(drop_path)

    def forward(self, maps: Tensor) -> Tensor:
        x = self.act(self.norm1(self.conv1_1x1(self.pre_norm(maps))))
        x = self.se(self.act(self.norm2(self.conv2_kxk(x))))
        return self.drop_path(self.conv3_1x1(x)) + self.shortcut(maps)


class MaxViTBlock(nn.Module):
    """Convolutions, then a layer of attention among neighbours, then one across the grid: maps -> maps."""

    def __init__(self, conv: MBConv, attn_block: Block, attn_grid: Block):
        super().__init__()
        self.conv, self.attn_block, self.attn_grid = conv, attn_block, attn_grid

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.conv(maps)
        grid = (maps.shape[2], maps.shape[3])
        return to_map(self.attn_grid(self.attn_block(to_tokens(maps), grid), grid), grid)


class MaxViT(Network):
    """Images (B, 3, img_size, img_size) -> logits (B, C).

        maps = stem(images)                                 (B, stem, S/2, S/2)
        maps = grid(block(conv(maps)))                      `depths[i]` times with `dims[i]` channels; each stage halves
        logits = head(norm(mean(maps)))                     tf: head(tanh(fc(norm(mean(maps)))))

    The map of every stage has to be one that `window_size` divides. Published: four stages for images of 224 pixels,
    whose maps are 56, 28, 14 and 7; of 112 pixels three stages have 28, 14 and 7. In the form of timm's own weights
    (`tf=False`) the last norm comes before the mean. `mixer` makes the mixers of both kinds of layers, or is a list
    with one for each layer, in their order, the paper's two a block where it is None.

    Args:
        num_classes: int, C.
        img_size: int, pixels along the side of the images; 224.
        dims, depths: int for each stage, its width, of which `head_dim` is a divisor, and its blocks.
        stem: (int, int), widths of the two convolutions before; (64, 64).
        tf: bool, as published, for weights that come from TensorFlow; or timm's own form; True.
        window_size: int, or (rows, columns): sides of blocks, and of what the grid is spread to; 7.
        head_dim: int, width of a head; 32.
        drop_path: float in [0, 1), rate of stochastic depth of the last block, rising to it; 0.
        mixer: makes that of every layer, or a list with one a layer; None is block and grid by turns.

    Paper: Tu et al., MaxViT: Multi-Axis Vision Transformer, 2022.
    Reference: huggingface/pytorch-image-models 1.0.31, `MaxxVit`.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        img_size: int = 224,
        dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 5, 2),
        stem: Sequence[int] = (64, 64),
        tf: bool = True,
        window_size: int | tuple[int, int] = 7,
        head_dim: int = 32,
        drop_path: float = 0.0,
        mixer: MakeMixers | None = None,
    ):
        super().__init__()
        window = pair(window_size, "window_size")
        needs_whole_windows(img_size, [2 ** (i + 2) for i in range(len(dims))], window)
        self.img_size, self.tf = img_size, tf
        self.stem = nn.Sequential()
        self.stem.add_module("conv1", Convolution(3, stem[0], 2, bias=tf, same=tf))
        self.stem.add_module("norm1", nn.BatchNorm2d(stem[0], 1e-3 if tf else 1e-5))
        self.stem.add_module("act", Gelu() if tf else nn.SiLU())
        self.stem.add_module("conv2", Convolution(stem[0], stem[1], bias=tf, same=tf))
        usual = [partial(kind, window_size=window) for kind in (MaxViTBlockAttention, MaxViTGridAttention)]
        makes = iter(one_a_block(usual * sum(depths) if mixer is None else mixer, 2 * sum(depths)))
        eps, width = 1e-5 if tf else 1e-6, stem[1]

        def layer(dim: int, rate: float) -> Block:
            block = Block(dim, dim // head_dim, drop_path=rate, mixer=next(makes), eps=eps)
            block.mlp.act = Gelu() if tf else nn.GELU()
            return block

        self.stages = nn.ModuleList()
        for dim, stage in zip(dims, rates(drop_path, depths), strict=True):
            if dim % head_dim:
                raise ValueError(f"dims: {dim} is not a multiple of head_dim {head_dim}")
            blocks = nn.Sequential()
            for i, rate in enumerate(stage):
                conv = MBConv(dim if i else width, dim, 1 if i else 2, rate, tf)
                blocks.append(MaxViTBlock(conv, layer(dim, rate), layer(dim, rate)))
            self.stages.append(blocks)
            width = dim
        self.norm = nn.LayerNorm(width, eps)
        self.fc = nn.Linear(width, width) if tf else None
        self.head = nn.Linear(width, num_classes)
        draw_weights(self)

    def forward_features(self, images: Tensor) -> Tensor:
        check_size(images, self.img_size)
        maps = self.stem(images)
        for stage in self.stages:
            maps = stage(maps)
        if self.fc is None:
            return self.norm(to_tokens(maps)).mean(1)
        return torch.tanh(self.fc(self.norm(maps.mean((2, 3)))))

    def forward_head(self, features: Tensor) -> Tensor:
        return self.head(features)


def maxvit_tiny_tf(*, num_classes: int = 8, img_size: int = 224, drop_path: float = 0.0, **options: Any) -> MaxViT:
    """MaxViT-T as published, 31 M parameters; `img_size` is 224 or a multiple. Paper: see `MaxViT`.

    num_classes, img_size, drop_path, options: as of `MaxViT`; 8, 224 and 0.
    """
    return MaxViT(num_classes=num_classes, img_size=img_size, drop_path=drop_path, **options)


def maxvit_tiny_rw(*, num_classes: int = 8, img_size: int = 224, drop_path: float = 0.0, **options: Any) -> MaxViT:
    """MaxViT-T in the form of timm's own weights, 29 M parameters; images of 224 pixels, or of a multiple.

    num_classes, img_size, drop_path, options: as of `MaxViT`; 8, 224 and 0.
    """
    return MaxViT(
        num_classes=num_classes,
        img_size=img_size,
        drop_path=drop_path,
        stem=(32, 64),
        tf=False,
        **options,
    )


def maxvit_mobile(*, num_classes: int = 8, drop_path: float = 0.0, **options: Any) -> MaxViT:
    """Three narrow stages in timm's form for images of 112 pixels, whose maps are 28, 14 and 7; the sizes are ours.

    num_classes, drop_path, options: as of `MaxViT`; 8 and 0.
    """
    return MaxViT(
        num_classes=num_classes,
        img_size=112,
        drop_path=drop_path,
        stem=(16, 32),
        tf=False,
        dims=(32, 64, 128),
        depths=(1, 2, 2),
        **options,
    )
