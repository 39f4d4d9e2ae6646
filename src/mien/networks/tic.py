"""TiC: a backbone of MSA-convolutions, whose kernels are an attention over what they cover."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mien.networks.mixers import one_a_block
from mien.networks.network import Network
from mien.networks.spectformer import conv_norm, small_linear
from mien.networks.staged import rates
from mien.nn.base import Grid, MakeMixer, MakeMixers
from mien.nn.block import DropPath, Mlp
from mien.nn.grid import to_map, to_tokens
from mien.nn.tic import TiC


class TiCBlock(nn.Module):
    """`x += mixer([pooled; norm1(x)]); x += mlp(norm2(x))`: (B, N, D), grid -> (B, N, D).

    `pooled` are the means of `pool` × `pool` parts of the normed plane, which stand before the mixer's tokens as a
    prefix: every token sees them in the same softmax as its own kernel. They do not come back.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float, mixer: MakeMixer, pool: int):
        super().__init__()
        self.pool = pool
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn, self.mlp = mixer(dim, num_heads), Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        mixed, pool = self.norm1(tokens), min(self.pool, *grid)
        if pool:
            mixed = torch.cat([to_tokens(F.adaptive_avg_pool2d(to_map(mixed, grid), pool)), mixed], 1)
        tokens = tokens + self.drop_path(self.attn(mixed, grid)[:, pool**2 :])
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class TiCNet(Network):
    """Images (B, 3, S, S) of any side from 32 on -> logits (B, C); no parameter knows S.

        maps = stem(images)                                        two 3×3 convolutions of stride 2: sides S/4
        tokens = tokens + mixer([pooled; norm1(tokens)])           an MSA-convolution in each block
        tokens = tokens + mlp(norm2(tokens))
        tokens = relu(conv(attention(norm(tokens)) + norm(tokens)))   stride 2, between two stages
        logits = head(mean(norm(tokens)))

    The published code has the MSA-convolution (`mien.nn.TiC` with its convolution) and no network: *inferred* are the
    stages, norms, residuals, mlps and sizes here, the cyclic shift of heads (`shift`), and inter-pooling: that every
    token also attends to the means of `inter_pool` × `inter_pool` parts of the plane, in one softmax with its kernel.

    Args:
        num_classes: int, C.
        img_size: int, side of the images that recipes and headers give it; 112.
        embed_dims, depths, num_heads: a number for each stage; (64, 128, 256), (2, 4, 2) and (2, 4, 8).
        kernel_size: odd int, of the MSA-convolutions; 3.
        mlp_ratio: float, hidden width of the mlp over the stage's; 2.
        shift: bool, heads look around five places; True.
        inter_pool: int from 0 on, parts along a side; 2.
        drop_path: float in [0, 1), rate of stochastic depth of the last block, rising to it; 0.
        mixer: makes that of every block, or a list with one a block; None is `mien.nn.TiC`.

    Paper: Zhang et al., TiC: Exploring Vision Transformer in Convolution, arXiv 2310.04134.
    Reference: zs670980918/MSA-Conv, 2d96f54.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        img_size: int = 112,
        embed_dims: Sequence[int] = (64, 128, 256),
        depths: Sequence[int] = (2, 4, 2),
        num_heads: Sequence[int] = (2, 4, 8),
        kernel_size: int = 3,
        mlp_ratio: float = 2.0,
        shift: bool = True,
        inter_pool: int = 2,
        drop_path: float = 0.0,
        mixer: MakeMixers | None = None,
    ):
        super().__init__()
        if not len(embed_dims) == len(depths) == len(num_heads) >= 1:
            raise ValueError("embed_dims, depths and num_heads have a number for each stage, and the same stages")
        if img_size < 32 or inter_pool < 0:
            raise ValueError(f"img_size must be 32 at least and inter_pool 0, not {img_size} and {inter_pool}")
        self.img_size, dims = img_size, embed_dims
        msa = partial(TiC, kernel_size=kernel_size, conv=True, shift=shift)
        makes = iter(one_a_block(mixer, sum(depths), msa))
        self.stem = nn.Sequential(*conv_norm(3, dims[0], 3, 2), *conv_norm(dims[0], dims[0], 3, 2))
        self.stages = nn.ModuleList(
            nn.ModuleList(TiCBlock(dim, heads, mlp_ratio, rate, next(makes), inter_pool) for rate in of_stage)
            for dim, heads, of_stage in zip(dims, num_heads, rates(drop_path, depths), strict=True)
        )
        self.down_norms = nn.ModuleList(nn.LayerNorm(dim, eps=1e-6) for dim in dims[:-1])
        self.downs = nn.ModuleList(
            TiC(before, heads, kernel_size, conv=True, stride=2, out_dim=after)
            for before, after, heads in zip(dims, dims[1:], num_heads, strict=False)
        )
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self.head = nn.Linear(dims[-1], num_classes)
        self.apply(small_linear)

    def forward_features(self, images: Tensor) -> Tensor:
        if min(images.shape[2:]) < 32:
            raise ValueError(f"images are {images.shape[2]}×{images.shape[3]} pixels, and 32 is the least")
        maps = self.stem(images)
        grid: Grid = (maps.shape[2], maps.shape[3])
        tokens = to_tokens(maps)
        for i, stage in enumerate(self.stages):
            if i:
                tokens = self.downs[i - 1](self.down_norms[i - 1](tokens), grid)
                grid = (-(-grid[0] // 2), -(-grid[1] // 2))
            for block in stage.children():
                tokens = block(tokens, grid)
        return self.norm(tokens).mean(1)

    def forward_head(self, features: Tensor) -> Tensor:
        return self.head(features)


def tic_mobile(*, num_classes: int = 8, img_size: int = 112, **options) -> TiCNet:
    """TiC at the size of a phone, ours: three stages, eight MSA-convolutions and two of stride 2.

    num_classes, img_size, options: as of `TiCNet`; 8 and 112.
    """
    return TiCNet(num_classes=num_classes, img_size=img_size, **options)
