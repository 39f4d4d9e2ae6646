"""MoH-ViT: TransNeXt, whose tokens look at their neighbours and at a coarse view, each with some of the heads."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mien.networks.mixers import one_a_block
from mien.networks.network import Network
from mien.networks.staged import check_size, draw_weights, needs_whole_windows, rates
from mien.nn.attend import merge_heads, split_heads
from mien.nn.base import Grid, MakeMixer, MakeMixers
from mien.nn.block import DropPath
from mien.nn.grid import checked_grid, to_map, to_tokens
from mien.nn.moh import CosineMoH
from mien.nn.observe import Layout


class AggregatedMoH(CosineMoH):
    """Cosine MoH of a token's 3×3 neighbours and of a pooled map: (B, H · W, dim), grid -> the same.

        pooled = norm(mean over r × r of gelu(sr(x)))       (B, P, dim), P = H/r · W/r, r is `pool`
        scores = softplus(τ) · log(n_i + P) · (q / ‖q‖ + e) · k / ‖k‖ + bias, of n_i ≤ 9 neighbours and P pooled tokens
        head = softmax(scores) v + (q / ‖q‖ · T + t) v_near

    Neighbours have one learned bias for each of the nine places, pooled tokens that of CosineMoH's offsets, counted
    from the middle of what was pooled. T (heads, head_dim, 9) and t (heads, 1, 9) weigh neighbours by the query alone.
    Gates are MoH's. The grid is one that `pool` divides; there is no prefix. `observe` shows pooled keys before tokens.

    Paper: Shi, TransNeXt, 2024; Jin et al., MoH, 2024. Reference: SkyworkAI/MoH, 2cefd57 (MoH-ViT).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_shared: int | None = None,
        top_k: int | None = None,
        pool: int = 2,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ):
        super().__init__(dim, num_heads, num_shared, top_k, qkv_bias, attn_drop, proj_drop)
        self.pool = pool
        self.sr, self.norm = nn.Linear(dim, dim), nn.LayerNorm(dim)
        self.local_bias = nn.Parameter(nn.init.trunc_normal_(torch.empty(num_heads, 9), std=0.0004))
        self.local_tokens = nn.Parameter(nn.init.trunc_normal_(torch.empty(num_heads, dim // num_heads, 9), std=0.02))
        self.local_weights = nn.Parameter(torch.zeros(num_heads, 1, 9))

    def forward(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        grid = checked_grid(tokens, grid, type(self).__name__)
        if tokens.shape[1] != grid[0] * grid[1] or any(side % self.pool for side in grid):
            raise ValueError(f"AggregatedMoH takes a plane that {self.pool} divides, not {grid[0]}×{grid[1]}")
        dim, dtype = tokens.shape[2], tokens.dtype
        gates = self.gates(tokens).transpose(1, 2).unsqueeze(-1).to(dtype)  # (B, heads, N, 1)
        q, k, v = (split_heads(x, self.num_heads) for x in self.qkv(tokens).chunk(3, dim=-1))
        bias = None if self.qkv.bias is None else self.qkv.bias[dim:]
        pooled = F.linear(self.pooled(tokens, grid), self.qkv.weight[dim:], bias)
        pooled_k, pooled_v = (split_heads(x, self.num_heads) for x in pooled.chunk(2, dim=-1))
        q, k, pooled_k = (F.normalize(x, dim=-1) for x in (q, k, pooled_k))
        inside = near(tokens.new_ones(1, 1, tokens.shape[1], 1), grid)[0, 0, :, :, 0]  # (N, 9)
        length = (inside.sum(1, keepdim=True) + pooled_k.shape[2]).log()
        by_query = q @ self.local_tokens + self.local_weights  # (B, heads, N, 9)
        asked = (q + self.query_embedding) * F.softplus(self.temperature).to(dtype) * length
        of_near = (asked.unsqueeze(3) * near(k, grid)).sum(4) + self.local_bias[:, None]
        of_near = of_near.masked_fill(inside == 0, -math.inf)
        of_pooled = asked @ pooled_k.mT + self.pooled_bias(grid, q)
        v_near = near(v, grid)
        if self.attend.open:
            heads = self.seen(of_near, of_pooled, v, pooled_v, grid)
        else:
            attn = torch.cat([of_near, of_pooled], -1).softmax(-1)
            attn = F.dropout(attn, self.attend.dropout, self.training)
            heads = (attn[..., :9].unsqueeze(4) * v_near).sum(3) + attn[..., 9:] @ pooled_v
        heads = (heads + (by_query.unsqueeze(4) * v_near).sum(3)) * gates
        if self.attend.open:
            heads = self.attend.stage("heads", heads, Layout("cross", pooled_k.shape[2], 1, grid))
        return self.proj_drop(self.proj(merge_heads(heads)))

    def pooled(self, tokens: Tensor, grid: Grid) -> Tensor:
        """(B, H · W, dim) -> (B, P, dim)."""
        return self.norm(to_tokens(F.avg_pool2d(to_map(F.gelu(self.sr(tokens)), grid), self.pool)))

    def pooled_bias(self, grid: Grid, like: Tensor) -> Tensor:
        """The bias of every token's scores of pooled tokens: (heads, N, P)."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        axes, index = [], []
        for n in grid:
            count = n // self.pool
            offsets = torch.arange(-self.pool * (count - 1), n, dtype=dtype, device=like.device)
            r = 8 * (offsets - (self.pool - 1) / 2) / max(n - 1, 1)
            axes.append(r.sign() * (r.abs() + 1).log2() / 3)
            place = torch.arange(n, device=like.device)
            index.append(place[:, None] + self.pool * (count - 1 - place[:count]))
        table = self.cpb_fc2(self.cpb_fc1(torch.cartesian_prod(*axes).to(self.cpb_fc1.weight)).relu())
        y, x = index
        both = y[:, None, :, None] * len(axes[1]) + x[None, :, None, :]
        return table[both.flatten(2).flatten(0, 1)].permute(2, 0, 1).to(like.dtype)

    def seen(self, of_near: Tensor, of_pooled: Tensor, v: Tensor, pooled_v: Tensor, grid: Grid) -> Tensor:
        """What softmax gathers, for whoever looks: scores of the P pooled tokens and of all N tokens."""
        size, layout = grid[0] * grid[1], Layout("cross", of_pooled.shape[-1], 1, grid)
        numbers = torch.arange(1, size + 1, device=v.device, dtype=torch.float32)[None, None, :, None]
        places = near(numbers, grid)[0, 0, :, :, 0].long()  # (N, 9), from 1; 0 is outside
        dense = of_near.new_full((*of_near.shape[:3], size + 1), -math.inf)
        dense = dense.scatter(3, places.expand_as(of_near), of_near)[..., 1:]
        scores = self.attend.stage("scores", torch.cat([of_pooled, dense], -1), layout)
        attn = F.dropout(self.attend.stage("attn", scores.softmax(-1), layout), self.attend.dropout, self.training)
        return attn @ torch.cat([pooled_v, v], 2)


def near(tokens: Tensor, grid: Grid) -> Tensor:
    """Every token's 3×3 neighbours, row-major, 0 outside of the grid: (B, heads, N, d) -> (B, heads, N, 9, d)."""
    maps = F.pad(tokens.unflatten(2, grid), (0, 0, 1, 1, 1, 1))
    height, width = grid
    shifted = [maps[:, :, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return torch.stack(shifted, 4).flatten(2, 3)


class GatedMlp(nn.Module):
    """`W2 (gelu(conv(a)) · b), (a, b) = W1 x`, of a depthwise 3×3 convolution: (B, N, dim), grid -> the same."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        a, b = self.fc1(tokens).chunk(2, dim=-1)
        return self.fc2(F.gelu(to_tokens(self.dwconv(to_map(a, grid)))) * b)


class GatedBlock(nn.Module):
    """`x += attn(norm1(x)); x += mlp(norm2(x))` with a gated mlp: (B, N, D), grid -> (B, N, D)."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float, mixer: MakeMixer):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(dim, eps=1e-6) for _ in range(2))
        self.attn, self.drop_path = mixer(dim, num_heads), DropPath(drop_path)
        self.mlp = GatedMlp(dim, int(2 * int(dim * mlp_ratio) / 3))

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens), grid))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens), grid))


class MoHViT(Network):
    """Images (B, 3, img_size, img_size) -> logits (B, C).

        maps = blocks(norm(conv(maps)))                     7×7 of stride 4, then 3×3 of stride 2 before each stage
        logits = head(mean(norm(maps)))

    A stage whose `pools` is 1 has `CosineMoH`, others have attention to neighbours and a pooled map. In a stage
    `shared` heads serve all tokens, and each token uses `top_k` of the others. The routers' loss is `aux_loss` of each
    mixer (published weight 0.01). `mixer` makes that of every block, or is a list with one a block.

    Args:
        num_classes: int, C.
        img_size: int, pixels along the side of the images; all maps are ones that their pools divide; 224.
        dims, depths, num_heads, mlp_ratios, pools: of each stage; those of TransNeXt-Tiny.
        shared, top_k: int for each stage, heads that all tokens use, and routed ones that each token uses.
        drop_path: float in [0, 1), rate of stochastic depth of the last block, rising to it; 0.
        mixer: makes that of every block, or a list with one a block; None is the paper's.

    Paper: Jin et al., MoH: Multi-Head Attention as Mixture-of-Head Attention, 2024; Shi, TransNeXt, 2024.
    Reference: SkyworkAI/MoH, 2cefd57 (MoH-ViT, in plain PyTorch).
    """

    def __init__(
        self,
        *,
        num_classes: int,
        img_size: int = 224,
        dims: Sequence[int] = (72, 144, 288, 576),
        depths: Sequence[int] = (2, 2, 15, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        pools: Sequence[int] = (8, 4, 2, 1),
        shared: Sequence[int] = (3, 6, 3, 4),
        top_k: Sequence[int] = (0, 0, 6, 12),
        drop_path: float = 0.0,
        mixer: MakeMixers | None = None,
    ):
        super().__init__()
        needs_whole_windows(img_size, [4 * 2**i * pool for i, pool in enumerate(pools)], (1, 1))
        self.img_size = img_size
        usual: list[MakeMixer] = []
        for depth, pool, common, routed in zip(depths, pools, shared, top_k, strict=True):
            heads = {"num_shared": common, "top_k": routed}
            made = partial(CosineMoH, **heads) if pool == 1 else partial(AggregatedMoH, pool=pool, **heads)
            usual += [cast(MakeMixer, made)] * depth
        makes = iter(one_a_block(usual if mixer is None else mixer, len(usual)))
        self.stages, width = nn.ModuleList(), 3
        every = rates(drop_path, depths)
        for i, (dim, heads, ratio) in enumerate(zip(dims, num_heads, mlp_ratios, strict=True)):
            size, stride = (3, 2) if i else (7, 4)
            blocks = [GatedBlock(dim, heads, ratio, rate, next(makes)) for rate in every[i]]
            parts: dict[str, nn.Module] = {
                "proj": nn.Conv2d(width, dim, size, stride, size // 2),
                "proj_norm": nn.LayerNorm(dim),
                "blocks": nn.ModuleList(blocks),
                "norm": nn.LayerNorm(dim, eps=1e-6),
            }
            self.stages.append(nn.ModuleDict(parts))
            width = dim
        self.head = nn.Linear(width, num_classes)
        draw_weights(self)

    def forward_features(self, images: Tensor) -> Tensor:
        check_size(images, self.img_size)
        maps = images
        for stage in self.stages:
            parts = dict(stage.named_children())
            maps = parts["proj"](maps)
            grid: Grid = (maps.shape[2], maps.shape[3])
            tokens = parts["proj_norm"](to_tokens(maps))
            for block in parts["blocks"].children():
                tokens = block(tokens, grid)
            maps = to_map(parts["norm"](tokens), grid)
        return maps.mean((2, 3))

    def forward_head(self, features: Tensor) -> Tensor:
        return self.head(features)


def moh_vit_tiny(*, num_classes: int = 8, img_size: int = 224, drop_path: float = 0.0, **options: Any) -> MoHViT:
    """TransNeXt-Tiny with the heads of MoH-ViT-S at 75 %, 28 M parameters; there are no published weights of it.

    num_classes, img_size, drop_path, options: as of `MoHViT`; 8, 224 and 0.
    """
    return MoHViT(num_classes=num_classes, img_size=img_size, drop_path=drop_path, **options)


def moh_vit_small_75(*, num_classes: int = 8, img_size: int = 224, drop_path: float = 0.0, **options: Any) -> MoHViT:
    """MoH-ViT-S as published, with 75 % of the heads; 50 M parameters.

    num_classes, img_size, drop_path, options: as of `MoHViT`; 8, 224 and 0.
    """
    return MoHViT(
        num_classes=num_classes,
        img_size=img_size,
        drop_path=drop_path,
        depths=(5, 5, 22, 5),
        **options,
    )


def moh_vit_small_80(*, num_classes: int = 8, img_size: int = 224, drop_path: float = 0.0, **options: Any) -> MoHViT:
    """MoH-ViT-S as published, with 80 % of the heads.

    num_classes, img_size, drop_path, options: as of `MoHViT`; 8, 224 and 0.
    """
    return MoHViT(
        num_classes=num_classes,
        img_size=img_size,
        drop_path=drop_path,
        depths=(5, 5, 22, 5),
        shared=(3, 6, 3, 8),
        **options,
    )


def moh_vit_base_75(*, num_classes: int = 8, img_size: int = 224, drop_path: float = 0.0, **options: Any) -> MoHViT:
    """MoH-ViT-B as published, with 75 % of the heads; 90 M parameters.

    num_classes, img_size, drop_path, options: as of `MoHViT`; 8, 224 and 0.
    """
    return MoHViT(
        num_classes=num_classes,
        img_size=img_size,
        drop_path=drop_path,
        dims=(96, 192, 384, 768),
        num_heads=(4, 8, 16, 32),
        depths=(5, 5, 23, 5),
        shared=(4, 8, 4, 5),
        top_k=(0, 0, 8, 16),
        **options,
    )


def moh_vit_base_50(*, num_classes: int = 8, img_size: int = 224, drop_path: float = 0.0, **options: Any) -> MoHViT:
    """MoH-ViT-B as published, with 50 % of the heads.

    num_classes, img_size, drop_path, options: as of `MoHViT`; 8, 224 and 0.
    """
    return MoHViT(
        num_classes=num_classes,
        img_size=img_size,
        drop_path=drop_path,
        dims=(96, 192, 384, 768),
        num_heads=(4, 8, 16, 32),
        depths=(5, 5, 23, 5),
        shared=(2, 2, 2, 4),
        top_k=(2, 4, 6, 8),
        **options,
    )


def moh_vit_mobile(*, num_classes: int = 8, drop_path: float = 0.0, **options: Any) -> MoHViT:
    """Three narrow stages for images of 112 pixels, whose maps are 28, 14 and 7; the sizes are ours.

    num_classes, drop_path, options: as of `MoHViT`; 8 and 0.
    """
    return MoHViT(
        num_classes=num_classes,
        img_size=112,
        drop_path=drop_path,
        dims=(48, 96, 192),
        num_heads=(2, 4, 8),
        depths=(1, 2, 2),
        mlp_ratios=(4, 4, 4),
        pools=(4, 2, 1),
        shared=(2, 2, 2),
        top_k=(0, 1, 3),
        **options,
    )
