"""HaloNet: a ResNet whose deeper convolutions are attention to a block and a halo around it."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mien.networks.mixers import one_a_block
from mien.networks.network import Network
from mien.networks.staged import check_size, needs_whole_windows, rates
from mien.nn.attend import merge_heads
from mien.nn.base import Grid, MakeMixers
from mien.nn.block import DropPath
from mien.nn.grid import checked_grid, from_windows, to_map, to_tokens
from mien.nn.halo import Halo
from mien.nn.observe import Layout


class HalvingHalo(Halo):
    """Halo attention of every other token in both directions: (B, H · W, dim), grid -> (B, H/2 · W/2, value_dim).

    As timm has it: a query counts its place among those of its block that ask, and a key its place among all tokens of
    the window, so an offset of 1 is two tokens for the one and one for the other. It takes one plane without a prefix.
    """

    stride = 2

    def forward(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        grid = checked_grid(tokens, grid, type(self).__name__)
        qkv = self.qkv(tokens)
        none = qkv[:, :0]
        out = self.dense(qkv, none, qkv, grid) if self.attend.open else self.local(none, qkv, grid)
        return self.proj_drop(self.proj(out))

    def queries(self, planes: Tensor, grid: Grid) -> Tensor:
        block = self.cut(grid)[0]
        return super().queries(planes, grid).unflatten(1, block)[:, ::2, ::2].flatten(1, 2)

    def join(self, windows: Tensor, grid: Grid) -> Tensor:
        block = self.cut(grid)[0]
        return from_windows(windows, (grid[0] // 2, grid[1] // 2), (block[0] // 2, block[1] // 2))

    def dense(self, qkv: Tensor, prefix: Tensor, planes: Tensor, grid: Grid) -> Tensor:
        queries, keys = self.cells(grid, qkv.device)  # (C, n), (C, m), numbers from 1; 0 is padding
        windows = self.window_scores(prefix, planes, grid).unflatten(0, (-1, len(keys))).transpose(1, 2)
        size = grid[0] * grid[1]
        every = windows.new_full((*windows.shape[:2], size + 1, size + 1), -math.inf)
        every[:, :, queries[:, :, None], keys[:, None]] = windows
        asking = torch.arange(size, device=qkv.device).unflatten(0, grid)[::2, ::2].flatten() + 1
        outside = windows.masked_fill(keys[:, None] != 0, -math.inf).logsumexp(-1)  # (B, heads, C, n)
        rest = windows.new_full((*windows.shape[:2], size + 1), -math.inf)
        rest[:, :, queries] = outside
        v = self.split(qkv)[2]
        scores, layout = every[:, :, asking, 1:], Layout("cross", 0, 1, grid)
        return merge_heads(self.attend.gather(scores, v, layout, padding=(rest[:, :, asking, None], None)))


class ConvUnit(nn.Module):
    """A convolution without a bias, batch norm, and what follows it."""

    def __init__(self, channels: int, out: int, size: int = 1, stride: int = 1, act: nn.Module | None = None):
        super().__init__()
        self.conv = nn.Conv2d(channels, out, size, stride, size // 2, bias=False)
        self.bn = nn.BatchNorm2d(out)
        self.act = act or nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(maps)))


class Bottleneck(nn.Module):
    """Narrow, look around, widen again, beside a shortcut: (B, D, H, W) -> (B, out, H / stride, W / stride).

    What looks around is a 3×3 convolution, or the attention `attn` of `mid` channels and `post_attn`, a norm.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        stride: int,
        act: nn.Module,
        attn: nn.Module | None = None,
        drop_path: float = 0.0,
    ):
        super().__init__()
        mid = out // 4
        self.shortcut = ConvUnit(channels, out, 1, stride) if channels != out or stride > 1 else nn.Identity()
        self.conv1_1x1 = ConvUnit(channels, mid, act=act)
        self.conv2_kxk = ConvUnit(mid, mid, 3, stride, act) if attn is None else None
        self.attn, self.stride = attn, stride
        self.post_attn = None if attn is None else nn.BatchNorm2d(mid)
        self.conv3_1x1 = ConvUnit(mid, out)
        self.drop_path, self.act = DropPath(drop_path), act

    def forward(self, maps: Tensor) -> Tensor:
        x = self.conv1_1x1(maps)
        if self.conv2_kxk is not None:
            x = self.conv2_kxk(x)
        elif self.attn is not None and self.post_attn is not None:
            x = self.act(self.post_attn(self.attended(self.attn, x)))
        return self.act(self.drop_path(self.conv3_1x1(x)) + self.shortcut(maps))

    def attended(self, attn: nn.Module, x: Tensor) -> Tensor:
        grid = (x.shape[2], x.shape[3])
        tokens = attn(to_tokens(x), grid)
        if isinstance(attn, HalvingHalo):
            return to_map(tokens, (grid[0] // 2, grid[1] // 2))
        return to_map(tokens, grid)[:, :, :: self.stride, :: self.stride]


class HaloNet(Network):
    """Images (B, 3, img_size, img_size) -> logits (B, C).

        maps = pool(stem(images))                           three convolutions: (B, stem, S/4, S/4)
        maps = stages(maps)                                 bottlenecks; each stage but the first halves the map
        logits = head(mean(maps))

    `plan` says of each stage which blocks convolve (c) and which attend (a): "ca" is one of each. Attention is as
    published: padding around the image takes part, as tokens whose key and value are 0, and blocks have to divide
    the maps, at 256 pixels; with `mask_padding` it has no mass, and any multiple of 32 pixels will do, or of 16 with
    three stages. Where an attending block halves the map, and the mixer is another one, every other answer is kept.

    Args:
        num_classes: int, C.
        img_size: int, pixels along the side of the images; 256.
        dims, num_heads: int for each stage, the width that comes out, and heads of its attention, at a quarter of it.
        plan: str of "c" and "a" for each stage.
        stem: int, width of the last of its convolutions; 64.
        block_size, halo_size: int, of the attention; 8 and 2.
        act: "relu" or "silu"; relu.
        mask_padding: bool, padding has no mass; False.
        drop_path: float in [0, 1), rate of stochastic depth of the last block, rising to it; 0.
        mixer: makes that of every attending block, or a list with one for each; None is `Halo`, without a projection.

    Paper: Vaswani et al., Scaling Local Self-Attention for Parameter Efficient Visual Backbones, 2021.
    Reference: huggingface/pytorch-image-models 1.0.31, `ByobNet`; the sizes are timm's, as there are no weights of the
    paper's.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        img_size: int = 256,
        dims: Sequence[int] = (256, 512, 1024, 2048),
        num_heads: Sequence[int] = (8, 8, 8, 8),
        plan: Sequence[str] = ("cc", "cc", "ca", "aa"),
        stem: int = 64,
        block_size: int = 8,
        halo_size: int = 2,
        act: Literal["relu", "silu"] = "relu",
        mask_padding: bool = False,
        drop_path: float = 0.0,
        mixer: MakeMixers | None = None,
    ):
        super().__init__()
        if not all(set(blocks) <= {"a", "c"} and blocks for blocks in plan):
            raise ValueError(f"plan must be of c and a for each stage, not {list(plan)!r}")
        attending = [4 * 2**i for i, blocks in enumerate(plan) if "a" in blocks]
        side = 1 if mask_padding else block_size
        needs_whole_windows(img_size, attending or [4], (side, side))
        needs_whole_windows(img_size, [4 * 2 ** (len(plan) - 1)], (1, 1))
        self.img_size = img_size
        kind = {"relu": nn.ReLU, "silu": nn.SiLU}[act]
        widths = (3, 3 * stem // 8, stem // 2, stem)
        self.stem = nn.Sequential()
        for i in range(3):
            self.stem.add_module(f"conv{i + 1}", ConvUnit(widths[i], widths[i + 1], 3, 1 if i else 2, kind()))
        self.stem.add_module("pool", nn.MaxPool2d(3, 2, 1))
        options = {"block_size": block_size, "halo_size": halo_size, "mask_padding": mask_padding, "proj": False}
        halves = [i > 0 and j == 0 for i, blocks in enumerate(plan) for j, one in enumerate(blocks) if one == "a"]
        usual = [partial(HalvingHalo if half and not mask_padding else Halo, **options) for half in halves]
        makes = iter(one_a_block(usual if mixer is None else mixer, len(usual)))
        self.stages = nn.ModuleList()
        width = stem
        for i, (dim, heads, blocks) in enumerate(zip(dims, num_heads, plan, strict=True)):
            stage = nn.Sequential()
            for j, rate in enumerate(rates(drop_path, [len(blocks) for blocks in plan])[i]):
                attn = next(makes)(dim // 4, heads) if blocks[j] == "a" else None
                stage.append(Bottleneck(width, dim, 2 if i and not j else 1, kind(), attn, rate))
                width = dim
            self.stages.append(stage)
        self.head = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward_features(self, images: Tensor) -> Tensor:
        check_size(images, self.img_size)
        maps = self.stem(images)
        for stage in self.stages:
            maps = stage(maps)
        return maps.mean((2, 3))

    def forward_head(self, features: Tensor) -> Tensor:
        return self.head(features)


def halonet26t(*, num_classes: int = 8, img_size: int = 256, drop_path: float = 0.0, **options: Any) -> HaloNet:
    """timm's small HaloNet, 12 M parameters; images of 256 pixels, or of a multiple.

    num_classes, img_size, drop_path, options: as of `HaloNet`; 8, 256 and 0.
    """
    return HaloNet(num_classes=num_classes, img_size=img_size, drop_path=drop_path, **options)


def halonet50ts(*, num_classes: int = 8, img_size: int = 256, drop_path: float = 0.0, **options: Any) -> HaloNet:
    """timm's deeper HaloNet, 23 M parameters; images of 256 pixels, or of a multiple.

    num_classes, img_size, drop_path, options: as of `HaloNet`; 8, 256 and 0.
    """
    return HaloNet(
        num_classes=num_classes,
        img_size=img_size,
        drop_path=drop_path,
        plan=("ccc", "ccca", "cacaca", "cac"),
        num_heads=(8, 4, 8, 8),
        halo_size=3,
        act="silu",
        **options,
    )


def halonet_mobile(*, num_classes: int = 8, drop_path: float = 0.0, **options: Any) -> HaloNet:
    """Three narrow stages for images of 112 pixels, whose maps are 28, 14 and 7; the sizes are ours.

    num_classes, drop_path, options: as of `HaloNet`; 8 and 0.
    """
    return HaloNet(
        num_classes=num_classes,
        img_size=112,
        drop_path=drop_path,
        dims=(128, 256, 512),
        num_heads=(2, 4, 4),
        plan=("cca", "cac", "cac"),
        stem=32,
        block_size=7,
        halo_size=3,
        act="silu",
        mask_padding=True,
        **options,
    )
