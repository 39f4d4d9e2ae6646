"""POSTER++: landmarks attend to the image at three levels, and a ViT reads the result."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mien.networks.ir50 import IR50
from mien.networks.mobilefacenet import MobileFaceNet
from mien.networks.network import Network
from mien.networks.vit import ViT
from mien.nn.base import MakeMixers, MakePool
from mien.nn.grid import to_tokens
from mien.nn.landmark_cross_attention import LandmarkCrossAttention

SIDES = (28, 14, 7)  # of the low, the middle and the high level


def adapt(channels: int, side: int, dim: int, level_side: int, kernel: int) -> nn.Module:
    """Builds what brings a trunk's map (channels, side, side) to a level's (dim, level_side, level_side)."""
    stride = side // level_side
    if stride == 1 and channels == dim:
        return nn.Identity()
    return nn.Conv2d(channels, dim, kernel, stride, kernel // 2)


class Poster(Network):
    """Images (B, 3, 112, 112) -> logits (B, C).

    Image and landmark trunk see the same face and give three maps each. At every level the landmarks' map attends to
    the image's (`LandmarkCrossAttention`, sides 28, 14 and 7); each result becomes 49 tokens; a ViT reads all 147. The
    published network shrinks a 224 pixel picture to 112 in both trunks, by nearest neighbour: here that is a step of
    `preprocess`, done once.

    `freeze_landmarks`: the landmark trunk is not trained, runs without autograd and keeps its batch norm statistics;
    `landmark_bn_train` lets these statistics move, as they do in the published training. `mixer` and `pool` are the
    ViT's: for a mixer the tokens are three planes of 7×7 behind the class token.

    Paper: Mao et al., POSTER++, arXiv 2301.12149. Reference: Talented-Q/POSTER_V2, 18de559.
    """

    def __init__(
        self,
        *,
        image: nn.Module,
        landmarks: nn.Module,
        num_classes: int,
        dims: Sequence[int] = (64, 128, 256),
        head_dim: int = 32,
        adapt_kernel: int = 3,
        key_strides: Sequence[int] = (1, 1, 1),
        embed_dim: int = 768,
        depth: int = 2,
        num_heads: int = 8,
        num_tokens: int = 147,
        drop_path: Sequence[float] = (0.0, 0.125, 0.25),
        freeze_landmarks: bool = True,
        landmark_bn_train: bool = False,
        mixer: MakeMixers | None = None,
        pool: Literal["class"] | MakePool = "class",
    ):
        super().__init__()
        self.image, self.landmarks = image, landmarks
        self.freeze_landmarks, self.landmark_bn_train = freeze_landmarks, landmark_bn_train
        landmarks.requires_grad_(not freeze_landmarks)
        self.image_adapt, self.landmark_adapt = (
            nn.ModuleList(
                adapt(*level, dim, side, adapt_kernel)
                for level, dim, side in zip(trunk.levels, dims, SIDES, strict=True)
            )
            for trunk in (image, landmarks)
        )
        self.cross = nn.ModuleList(
            LandmarkCrossAttention(dim, dim // head_dim, side, drop_path=rate, key_stride=stride)
            for dim, side, rate, stride in zip(dims, SIDES, drop_path, key_strides, strict=True)
        )
        low, mid, high = dims
        self.embed_low = nn.Sequential(nn.Conv2d(low, embed_dim, 3, 2, 1), nn.Conv2d(embed_dim, embed_dim, 3, 2, 1))
        self.embed_mid = nn.Conv2d(mid, embed_dim, 3, 2, 1)
        self.embed_high = nn.Conv2d(high, embed_dim, 1)
        self.vit = ViT(
            num_classes=num_classes,
            num_tokens=num_tokens,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mixer=mixer,
            pool=pool,
        )

    @property
    def headed(self) -> nn.Module:
        return self.vit

    def train(self, mode: bool = True) -> "Poster":
        super().train(mode)
        if self.freeze_landmarks and not self.landmark_bn_train:
            self.landmarks.eval()
        return self

    def levels(self, images: Tensor) -> list[Tensor]:
        """(B, 3, 112, 112) -> the result of cross attention: maps (B, dim, side, side), low to high."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_landmarks):
            landmarks = self.landmarks(images)
        return [
            cross(adapt_image(x), adapt_landmark(f))
            for cross, adapt_image, adapt_landmark, x, f in zip(
                self.cross, self.image_adapt, self.landmark_adapt, self.image(images), landmarks, strict=True
            )
        ]

    def fuse(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, 112, 112) -> tokens (B, 147, D), low to high, and the highest map (B, dim, 7, 7)."""
        low, mid, high = self.levels(images)
        return self.embed(low, mid, high), high

    def embed(self, low: Tensor, mid: Tensor, high: Tensor) -> Tensor:
        maps = (self.embed_low(low), self.embed_mid(mid), self.embed_high(high))
        return torch.cat([to_tokens(m) for m in maps], dim=1)

    def forward_intermediates(self, images: Tensor, **options) -> list | tuple[Tensor, list]:
        return self.vit.forward_intermediates(self.fuse(images)[0], **options)

    def forward_features(self, images: Tensor) -> Tensor:
        return self.vit.forward_features(self.fuse(images)[0])

    def forward_head(self, features: Tensor) -> Tensor:
        return self.vit.forward_head(features)


def poster(
    *,
    num_classes: int = 7,
    freeze_landmarks: bool = True,
    landmark_bn_train: bool = False,
    mixer: MakeMixers | None = None,
) -> Poster:
    """POSTER++ at its published size: IR-50, MobileFaceNet, levels 64/128/256, a ViT of two blocks 768 wide."""
    return Poster(
        image=IR50(),
        landmarks=MobileFaceNet("prelu"),
        num_classes=num_classes,
        freeze_landmarks=freeze_landmarks,
        landmark_bn_train=landmark_bn_train,
        mixer=mixer,
    )
