"""A trunk, a pool and a linear layer: what every other network has to beat."""

from typing import Literal

from torch import Tensor, nn

from mien.networks.mobilefacenet import MobileFaceNet
from mien.networks.network import Network
from mien.nn.base import MakePool
from mien.nn.grid import to_tokens


class PlainClassifier(Network):
    """Images (B, 3, 112, 112) -> the trunk's last map, pooled -> dropout -> logits (B, C).

    `pool` is "mean", or makes a pool of the map's tokens, such as `mien.nn.ClassAttentionPool`.
    """

    def __init__(
        self, *, image: nn.Module, num_classes: int, dropout: float = 0.1, pool: Literal["mean"] | MakePool = "mean"
    ):
        super().__init__()
        if isinstance(pool, str) and pool != "mean":
            raise ValueError(f"pool must be 'mean' or make a pool, not {pool!r}")
        self.image = image
        self.pool = None if pool == "mean" else pool(image.levels[-1][0])
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(image.levels[-1][0], num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        maps = self.image(images)[-1]
        return maps.mean((2, 3)) if self.pool is None else self.pool(to_tokens(maps))

    def forward_head(self, features: Tensor) -> Tensor:
        return self.head(self.dropout(features))


def mobilefacenet(
    *, num_classes: int = 8, dropout: float = 0.1, pool: Literal["mean"] | MakePool = "mean"
) -> PlainClassifier:
    """A single MobileFaceNet: 0.91 M parameters, 0.23 GMAC; with another `pool` what that one adds."""
    return PlainClassifier(image=MobileFaceNet("relu6"), num_classes=num_classes, dropout=dropout, pool=pool)
