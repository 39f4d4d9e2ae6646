"""POSTER++: landmarks attend to the image at three levels, and a ViT reads the result."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mien.networks.ir50 import IR50
from mien.networks.mobilefacenet import MobileFaceNet
from mien.networks.network import Network
from mien.networks.trunk import Trunk
from mien.networks.vit import ViT
from mien.nn.base import MakeMixers, MakePool
from mien.nn.distance_position import Position
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

    `trunk_logits`, ours, lets a network begin as its image trunk's own classifier does, and learn what is beyond it:

        logits = head(gated class token) + trunk_head(mean of the image trunk's last map);   head starts at 0

    With the trunk and the head of a `PlainClassifier` as `image` and `trunk_head` the first answers are those. Beside a
    trunk that had learned the same faces the ViT then adds next to nothing, whatever it began with, in all runs so far
    (docs/ablations.md).

    Args:
        image, landmarks: trunks of three levels.
        num_classes: int, C.
        dims: int for each level, channels; (64, 128, 256).
        head_dim: int, width of a head of cross attention; 32.
        adapt_kernel: odd int, of the convolutions from trunks to levels; 3.
        key_strides: int from 1 on for each level; (1, 1, 1).
        cross_init_values: float at which the layer scales of cross attention start; 1e-5, as published.
        embed_dim, depth, num_heads, num_tokens: int, of the ViT; 768, 2, 8 and 147.
        drop_path: float in [0, 1) for each level, rate of stochastic depth; (0, 0.125, 0.25).
        freeze_landmarks, landmark_bn_train, trunk_logits: bool; True, False, False.
        mixer, pool, position: of the ViT; self-attention, the class token, learned.

    Paper: Mao et al., POSTER++, arXiv 2301.12149. Reference: Talented-Q/POSTER_V2, 18de559.
    """

    streams: Mapping[str, Sequence[int]] = {"image": (0, 1, 2, 6), "landmarks": (3, 4, 5)}

    def __init__(
        self,
        *,
        image: Trunk,
        landmarks: Trunk,
        num_classes: int,
        dims: Sequence[int] = (64, 128, 256),
        head_dim: int = 32,
        adapt_kernel: int = 3,
        key_strides: Sequence[int] = (1, 1, 1),
        cross_init_values: float = 1e-5,
        embed_dim: int = 768,
        depth: int = 2,
        num_heads: int = 8,
        num_tokens: int = 147,
        drop_path: Sequence[float] = (0.0, 0.125, 0.25),
        freeze_landmarks: bool = True,
        landmark_bn_train: bool = False,
        mixer: MakeMixers | None = None,
        pool: Literal["class"] | MakePool = "class",
        position: Position = "learned",
        trunk_logits: bool = False,
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
            LandmarkCrossAttention(
                dim, dim // head_dim, side, drop_path=rate, key_stride=stride, init_values=cross_init_values
            )
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
            position=position,
        )
        self.trunk_head = None
        if trunk_logits:
            self.trunk_head = nn.Linear(image.levels[-1][0], num_classes)
            nn.init.zeros_(self.vit.head.weight)

    @property
    def front_parts(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The trunks, and the adapters behind them where these rest."""
        return ("image", "landmarks", *(("image_adapt", "landmark_adapt") if self._adapters_rest() else ()))

    def _adapters_rest(self) -> bool:
        adapters = (*self.image_adapt.parameters(), *self.landmark_adapt.parameters())
        return not any(p.requires_grad for p in adapters)

    def front(self, images: Tensor) -> tuple[Tensor, ...]:
        """Three maps of the image and three of the landmarks, low to high, and the image's last one, pooled, if it is
        read. Maps are those behind the adapters where these rest."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_landmarks):
            landmarks = self.landmarks(images)
        image = self.image(images)
        pooled = () if self.trunk_head is None else (image[-1].mean((2, 3)),)
        if self._adapters_rest():
            image, landmarks = self._adapted(image, landmarks)
        return (*image, *landmarks, *pooled)

    def _adapted(self, image: Sequence[Tensor], landmarks: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        image = [adapt(x) for adapt, x in zip(self.image_adapt, image, strict=True)]
        return image, [adapt(f) for adapt, f in zip(self.landmark_adapt, landmarks, strict=True)]

    @property
    def headed(self) -> nn.Module:
        return self.vit

    def train(self, mode: bool = True) -> "Poster":
        super().train(mode)
        if self.freeze_landmarks and not self.landmark_bn_train:
            self.landmarks.eval()
        return self

    def levels(self, images: Tensor | tuple[Tensor, ...]) -> tuple[list[Tensor], Tensor | None]:
        """(B, 3, 112, 112), or what `front` gave -> maps of cross attention (B, dim, side, side), low to high, and the
        image trunk's own logits (B, C), if it has any."""
        maps = images if isinstance(images, tuple) else self.front(images)
        image, landmarks, pooled = maps[:3], maps[3:6], maps[6:]
        if not self._adapters_rest():
            image, landmarks = self._adapted(image, landmarks)
        crossed = [cross(x, f) for cross, x, f in zip(self.cross, image, landmarks, strict=True)]
        return crossed, None if self.trunk_head is None else self.trunk_head(*pooled)

    def fuse(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(B, 3, 112, 112) -> tokens (B, 147, D), low to high, the highest map (B, dim, 7, 7), the trunk's logits."""
        (low, mid, high), trunk = self.levels(images)
        return self.embed(low, mid, high), high, trunk

    def embed(self, low: Tensor, mid: Tensor, high: Tensor) -> Tensor:
        maps = (self.embed_low(low), self.embed_mid(mid), self.embed_high(high))
        return torch.cat([to_tokens(m) for m in maps], dim=1)

    def forward_intermediates(self, images: Tensor, **options) -> list | tuple[Tensor, list]:
        return self.vit.forward_intermediates(self.fuse(images)[0], **options)

    def forward_features(self, images: Tensor) -> Tensor:
        tokens, _, trunk = self.fuse(images)
        return self._with_trunk(self.vit.forward_features(tokens), trunk)

    @staticmethod
    def _with_trunk(features: Tensor, trunk: Tensor | None) -> Tensor:
        """The vector that the head reads: behind the ViT's D features come the trunk's logits, where it has any."""
        return features if trunk is None else torch.cat([features, trunk], 1)

    def logit_parts(self, features: Tensor) -> dict[str, Tensor]:
        if self.trunk_head is None:
            return {}
        width = self.vit.head.in_features
        return {"vit": self.vit.forward_head(features[:, :width]), "trunk": features[:, width:]}

    def forward_head(self, features: Tensor) -> Tensor:
        if self.trunk_head is None:
            return self.vit.forward_head(features)
        parts = self.logit_parts(features)
        return parts["vit"] + parts["trunk"]


def poster(
    *,
    num_classes: int = 7,
    freeze_landmarks: bool = True,
    landmark_bn_train: bool = False,
    mixer: MakeMixers | None = None,
) -> Poster:
    """POSTER++ at its published size: IR-50, MobileFaceNet, levels 64/128/256, a ViT of two blocks 768 wide.

    num_classes, freeze_landmarks, landmark_bn_train, mixer: as of `Poster`; 7, True, False and self-attention.
    """
    return Poster(
        image=IR50(),
        landmarks=MobileFaceNet("prelu"),
        num_classes=num_classes,
        freeze_landmarks=freeze_landmarks,
        landmark_bn_train=landmark_bn_train,
        mixer=mixer,
    )
