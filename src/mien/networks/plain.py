"""A trunk, a mean and a linear layer: what every other network has to beat."""

from torch import Tensor, nn

from mien.networks.mobilefacenet import MobileFaceNet
from mien.networks.network import Network


class PlainClassifier(Network):
    """Images (B, 3, 112, 112) -> the trunk's last map, averaged -> dropout -> logits (B, C)."""

    def __init__(self, *, image: nn.Module, num_classes: int, dropout: float = 0.1):
        super().__init__()
        self.image = image
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(image.levels[-1][0], num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        return self.image(images)[-1].mean((2, 3))

    def forward_head(self, features: Tensor) -> Tensor:
        return self.head(self.dropout(features))


def mobilefacenet(*, num_classes: int = 8, dropout: float = 0.1) -> PlainClassifier:
    """A single MobileFaceNet: 0.91 M parameters, 0.23 GMAC."""
    return PlainClassifier(image=MobileFaceNet("relu6"), num_classes=num_classes, dropout=dropout)
