"""SpectFormer: blocks that filter the whole plane first, blocks of attention behind them; vanilla and hierarchical."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from mien.networks.intermediates import intermediates
from mien.networks.mixers import one_a_block
from mien.networks.network import Network
from mien.nn.base import Grid, MakeMixer, MakeMixers
from mien.nn.block import Block, DropPath, Mlp
from mien.nn.class_attention import ClassBlock
from mien.nn.grid import patches_along, resize_positions, to_map, to_tokens
from mien.nn.observe import Layout
from mien.nn.spectral_gate import SpectralGate


class SpectralBlock(nn.Module):
    """`x + mlp(norm2(gate(norm1(x))))`, one residual for both, as published: (B, N, D), grid -> (B, N, D)."""

    def __init__(self, dim: int, grid: Grid, mlp_ratio: float = 4.0, drop_path: float = 0.0):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = SpectralGate(dim, 1, grid)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        return tokens + self.drop_path(self.mlp(self.norm2(self.attn(self.norm1(tokens), grid))))


class ConvMlp(nn.Module):
    """`W2 gelu(conv(W1 x))`, the convolution 3×3 and of each channel alone: (B, N, dim), grid -> (B, N, dim).

    Paper: Wang et al., PVT v2, arXiv 2106.13797.
    """

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        return self.fc2(nn.functional.gelu(to_tokens(self.conv(to_map(self.fc1(tokens), grid)))))


class ConvBlock(nn.Module):
    """`x += mixer(norm1(x)); x += conv_mlp(norm2(x))`: (B, N, D), grid -> (B, N, D)."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float, mixer: MakeMixer):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn, self.mlp = mixer(dim, num_heads), ConvMlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens), grid))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens), grid))


class SpectFormer(Network):
    """Images (B, 3, img_size, img_size) -> logits (B, C).

        tokens = patch_embed(images) + pos_embed                 (B, N, D), N = (img_size / patch_size)²
        tokens = tokens + mlp(norm2(gate(norm1(tokens))))        `spectral_depth` blocks, a `SpectralGate` each
        tokens = block(tokens)                                   `depth - spectral_depth` blocks of self-attention
        logits = head(mean(norm(tokens)))

    The gate's spectrum is made for the grid; weights of another `img_size` are interpolated in frequency (ours), as
    positions are in place. `mixer` stands in the blocks of attention alone.

    Args:
        num_classes: int, C.
        img_size, patch_size: int, pixels along the side of the images and of a patch; 224 and 16.
        embed_dim, depth, spectral_depth, num_heads: int; 384, 19, 4 and 6.
        mlp_ratio: float, hidden width of the mlp over embed_dim; 4.
        drop_path: float in [0, 1), rate of stochastic depth of the last block, rising to it; 0, published 0.15.
        mixer: makes that of every block behind the gates, or a list with one a block; None is self-attention.

    Paper: Patro et al., SpectFormer, arXiv 2304.06446.
    Reference: badripatro/SpectFormers, b6cf487 (vanilla_architecture), whose head count 6 is fixed in the file.
    """

    no_decay = ("pos_embed",)

    def __init__(
        self,
        *,
        num_classes: int,
        img_size: int = 224,
        patch_size: int = 16,
        embed_dim: int = 384,
        depth: int = 19,
        spectral_depth: int = 4,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        mixer: MakeMixers | None = None,
    ):
        super().__init__()
        if not 0 <= spectral_depth <= depth:
            raise ValueError(f"of {depth} blocks {spectral_depth} cannot be spectral")
        side = patches_along(img_size, patch_size)
        self.img_size, self.grid = img_size, (side, side)
        self.patch_embed = nn.Conv2d(3, embed_dim, patch_size, patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, side**2, embed_dim))
        rates = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        makes = one_a_block(mixer, depth - spectral_depth)
        self.blocks = nn.ModuleList(
            [SpectralBlock(embed_dim, self.grid, mlp_ratio, rate) for rate in rates[:spectral_depth]]
            + [
                Block(embed_dim, num_heads, mlp_ratio, rate, make)
                for rate, make in zip(rates[spectral_depth:], makes, strict=True)
            ]
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = nn.Linear(embed_dim, num_classes)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.apply(small_linear)

    def start(self, images: Tensor) -> Tensor:
        """What the first block reads: (B, 3, img_size, img_size) -> (B, N, D)."""
        checked_size(images, self.img_size)
        return to_tokens(self.patch_embed(images)) + self.pos_embed

    def forward_intermediates(self, images: Tensor, **options) -> list | tuple[Tensor, list]:
        """The tokens between blocks; `options` are those of `mien.networks.intermediates.intermediates`."""
        blocks = [partial(block, grid=self.grid) for block in self.blocks]
        layout = Layout("token", 0, 1, self.grid)
        return intermediates(self.start(images), blocks, self.norm, self.norm, layout, **options)

    def forward_features(self, images: Tensor) -> Tensor:
        tokens = self.start(images)
        for block in self.blocks:
            tokens = block(tokens, self.grid)
        return self.norm(tokens).mean(1)

    def forward_head(self, features: Tensor) -> Tensor:
        return self.head(features)

    def fit(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Positions and spectra of another `img_size` are interpolated."""
        tensors = fitted_spectra(self, tensors)
        if "pos_embed" not in tensors:
            return tensors
        return {**tensors, "pos_embed": resize_positions(tensors["pos_embed"], self.grid[0])}


class HierarchicalSpectFormer(Network):
    """Images (B, 3, img_size, img_size) -> logits (B, C), through four stages of halved sides.

        maps   = stem(images), then a convolution of stride 2 before each further stage      sides s/4, s/8, s/16, s/32
        tokens = blocks(tokens)       gates in the first two stages, self-attention in the others; two residuals a block
        c      = class_block(mean(tokens), tokens);   c, tokens = norm(c), norm(tokens)
        logits = head(c) + 0.5 · max_n aux_head(tokens_n)         the second part with `token_labels` alone

    As published, the answer has a share of the tokens' own answers. Ours: where every token's label is not known, as of
    token labelling it would be, training takes the mean of the tokens' logits for the whole image,
    `L = CE(head(c)) + 0.5 · CE(mean_n aux_head(tokens_n))`, and mixes no tokens of two images. `mixer` stands in the
    blocks of attention alone. Spectra of another `img_size` are interpolated in frequency (ours).

    Args:
        num_classes: int, C.
        img_size: int, a multiple of 16 from 32 on, pixels along the side of the images; 224.
        embed_dims, depths, num_heads, mlp_ratios: four numbers each, of the stages.
        stem_dim: int, channels within the stem; 32.
        drop_path: float in [0, 1), rate of stochastic depth of the last block, rising to it; 0, published 0.1.
        token_labels: bool, whether there is a head for tokens; True.
        mixer: makes that of every block of attention, or a list with one a block; None is self-attention.

    Paper: Patro et al., SpectFormer, arXiv 2304.06446.
    Reference: badripatro/SpectFormers, b6cf487 (hierarchical_architecture).
    """

    def __init__(
        self,
        *,
        num_classes: int,
        img_size: int = 224,
        embed_dims: Sequence[int] = (64, 128, 320, 448),
        depths: Sequence[int] = (3, 4, 6, 3),
        num_heads: Sequence[int] = (2, 4, 10, 14),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        stem_dim: int = 32,
        drop_path: float = 0.0,
        token_labels: bool = True,
        mixer: MakeMixers | None = None,
    ):
        super().__init__()
        if img_size < 32 or img_size % 16:
            raise ValueError(f"img_size must be a multiple of 16 from 32 on, not {img_size}")
        if not len(embed_dims) == len(depths) == len(num_heads) == len(mlp_ratios) == 4:
            raise ValueError("embed_dims, depths, num_heads and mlp_ratios have a number for each of four stages")
        self.img_size, dim = img_size, embed_dims[-1]
        self.stem = nn.Sequential(
            *conv_norm(3, stem_dim, 7, 2), *conv_norm(stem_dim, stem_dim), *conv_norm(stem_dim, stem_dim)
        )
        self.downs = nn.ModuleList(
            nn.Conv2d(before, after, 3, 2, 1)
            for before, after in zip((stem_dim, *embed_dims), embed_dims, strict=False)
        )
        self.down_norms, self.norms = (
            nn.ModuleList(nn.LayerNorm(each, eps=eps) for each in embed_dims) for eps in (1e-5, 1e-6)
        )
        sides = [img_size // 4, img_size // 8, img_size // 16, -(-img_size // 32)]
        makes: list[MakeMixer] = [
            partial(SpectralGate, grid=(side, side)) for side, depth in zip(sides, depths[:2], strict=False)
            for _ in range(depth)
        ]  # fmt: skip
        made = iter(makes + one_a_block(mixer, sum(depths[2:])))
        rates = iter([drop_path * i / max(1, sum(depths) - 1) for i in range(sum(depths))])
        self.stages = nn.ModuleList(
            nn.ModuleList(ConvBlock(width, heads, ratio, next(rates), next(made)) for _ in range(depth))
            for width, depth, heads, ratio in zip(embed_dims, depths, num_heads, mlp_ratios, strict=True)
        )
        self.class_block = ClassBlock(dim, num_heads[-1], mlp_ratios[-1], init_values=None)
        self.head = nn.Linear(dim, num_classes)
        self.aux_head = nn.Linear(dim, num_classes) if token_labels else None
        if token_labels:
            self.loss_weights = {"logits": 1.0, "tokens": 0.5}
        self.apply(small_linear)

    def tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, img_size, img_size) -> the class token (B, D) and the last stage's tokens (B, N, D), both normed."""
        checked_size(images, self.img_size)
        maps = tokens = self.stem(images)
        for stage, (down, down_norm) in enumerate(zip(self.downs, self.down_norms, strict=True)):
            maps = down(maps)
            grid: Grid = (maps.shape[2], maps.shape[3])
            tokens = down_norm(to_tokens(maps))
            for block in cast(nn.ModuleList, self.stages[stage]):
                tokens = block(tokens, grid)
            if stage < 3:
                maps = to_map(self.norms[stage](tokens), grid)
        c, norm = self.class_block(tokens.mean(1, keepdim=True), tokens), self.norms[-1]
        return norm(c[:, 0]), norm(tokens)

    def forward_features(self, images: Tensor) -> Tensor:
        """The class token (B, D); `forward_head` gives its logits alone, without the tokens' share."""
        return self.tokens(images)[0]

    def forward_head(self, features: Tensor) -> Tensor:
        return self.head(features)

    def together(self, c: Tensor, tokens: Tensor) -> Tensor:
        """The answer: (B, D), (B, N, D) -> (B, C)."""
        logits = self.forward_head(c)
        return logits if self.aux_head is None else logits + 0.5 * self.aux_head(tokens).amax(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.together(*self.tokens(images))

    def answers(self, images: Tensor) -> dict[str, Tensor]:
        c, tokens = self.tokens(images)
        return {"logits": self.together(c, tokens), **self.head_answers(c)}

    def training_pass(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        c, tokens = self.tokens(images)
        logits = {"logits": self.forward_head(c)}
        return c, logits if self.aux_head is None else logits | {"tokens": self.aux_head(tokens.mean(1))}

    def fit(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Spectra of another `img_size` are interpolated."""
        return fitted_spectra(self, tensors)


def conv_norm(before: int, after: int, kernel: int = 3, stride: int = 1) -> tuple[nn.Module, ...]:
    return nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(after), nn.ReLU()


def small_linear(module: nn.Module) -> None:
    """Linear layers start small, without a bias, as published."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def checked_size(images: Tensor, img_size: int) -> None:
    height, width = images.shape[2:]
    if (height, width) != (img_size, img_size):
        raise ValueError(f"images are {height}×{width} pixels, and the network is for {img_size}×{img_size}")


def fitted_spectra(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Spectra of square grids (H, H // 2 + 1, D, 2), interpolated for the grids that the network's gates have."""
    fitted = dict(tensors)
    for name, part in network.named_modules():
        spectrum = fitted.get(f"{name}.complex_weight")
        if not isinstance(part, SpectralGate) or spectrum is None or spectrum.shape == part.complex_weight.shape:
            continue
        side = spectrum.shape[0]
        if spectrum.ndim == 4 and spectrum.shape[1:] == (side // 2 + 1, *part.complex_weight.shape[2:]):
            there = SpectralGate(spectrum.shape[2], 1, (side, side))
            with torch.no_grad():
                there.complex_weight.copy_(spectrum)
                fitted[f"{name}.complex_weight"] = there.resized(part.size)
    return fitted


def spectformer_s(*, num_classes: int = 7, img_size: int = 224, **options) -> SpectFormer:
    """Vanilla SpectFormer-S: 19 blocks 384 wide, four of them spectral. 32.4 M parameters with 1,000 classes.

    num_classes, img_size, options: as of `SpectFormer`; 7 and 224.
    """
    return SpectFormer(num_classes=num_classes, img_size=img_size, **options)


def spectformer_h_s(*, num_classes: int = 7, img_size: int = 224, **options) -> HierarchicalSpectFormer:
    """Hierarchical SpectFormer-S: 16 blocks in four stages. 22 M parameters with 1,000 classes.

    num_classes, img_size, options: as of `HierarchicalSpectFormer`; 7 and 224.
    """
    return HierarchicalSpectFormer(num_classes=num_classes, img_size=img_size, **options)


def spectformer_mobile(*, num_classes: int = 8, img_size: int = 112, **options) -> SpectFormer:
    """SpectFormer at the size of a phone, ours: 112 pixels in patches of 8, ten blocks 192 wide, four spectral.

    num_classes, img_size, options: as of `SpectFormer`; 8 and 112.
    """
    return SpectFormer(
        num_classes=num_classes, img_size=img_size, patch_size=8, embed_dim=192, depth=10, num_heads=3, **options
    )
