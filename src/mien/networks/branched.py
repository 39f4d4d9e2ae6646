"""A trunk, and a head that in training has further answers, each with a loss of its own."""

from collections.abc import Iterable

from torch import Tensor

from mien.networks.mobilefacenet import MobileFaceNet
from mien.networks.network import Network
from mien.networks.trunk import Trunk
from mien.nn.acmil import ACMILHead, ACMILPool
from mien.nn.base import MakePool
from mien.nn.grid import to_tokens
from mien.nn.guided_attention import GuidedAttention
from mien.outputs import Output


class Branched(Network):
    """Images (B, 3, 112, 112) -> logits (B, C), and in training those of M branches, by the names branch_0 and on.

        L = CE(logits) · loss_weights["logits"] + Σ_m CE(branch_m) · loss_weights["branch_m"] + aux_weight · aux_loss

    The published `aux_weight` (of the training task) is 1 for both kinds. There is no one vector that the answer is
    read from, so nothing that needs `forward_features` can be built around it.
    """

    def add_heads(self, outputs: Iterable[Output]) -> None:
        if outputs := list(outputs):
            raise ValueError(f"{type(self).__name__} has no one vector of features that {outputs[0].name} could read")

    def branches(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, 112, 112) -> logits (B, C), branch logits (B, M, C)."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        return self.branches(images)[0]

    def training_logits(self, images: Tensor) -> dict[str, Tensor]:
        logits, branches = self.branches(images)
        _, *names = self.loss_weights
        return {"logits": logits} | dict(zip(names, branches.unbind(1), strict=True))


class ACMILClassifier(Branched):
    """ACMIL's head on the tokens of a trunk's last map: `L = CE(logits) + mean_m CE(branch_m) + aux_loss`.

    Args:
        image: a trunk.
        num_classes: int, C.
        width, pool: of `mien.nn.ACMILHead`; 256 and ACMILPool.

    Paper and reference: `mien.nn.ACMILHead`.
    """

    def __init__(self, *, image: Trunk, num_classes: int, width: int = 256, pool: MakePool = ACMILPool):
        super().__init__()
        self.image, self.head = image, ACMILHead(image.levels[-1][0], num_classes, width, pool)
        count = len(self.head.branch_heads)
        self.loss_weights = {"logits": 1.0} | {f"branch_{m}": 1 / count for m in range(count)}

    def branches(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, branches = self.head(to_tokens(self.image(images)[-1]))
        return logits, branches[:, : len(self.head.branch_heads)]


class GuidedClassifier(Branched):
    """Multi-scale self-guided attention on all maps of a trunk: `L = Σ_m CE(branch_m) + aux_loss`.

    Branches are the sides of both rounds, and the logits, the mean of those of the second, have no loss of their own.

    Args:
        image: a trunk.
        num_classes: int, C.
        dim, level, init_values: of `mien.nn.GuidedAttention`; 64, 0 and 0.

    Paper and reference: `mien.nn.GuidedAttention`.
    """

    def __init__(self, *, image: Trunk, num_classes: int, dim: int = 64, level: int = 0, init_values: float = 0.0):
        super().__init__()
        channels = [width for width, _ in image.levels]
        self.image, self.head = image, GuidedAttention(channels, num_classes, dim, level, init_values)
        self.loss_weights = {"logits": 0.0} | {f"branch_{m}": 1.0 for m in range(2 * len(channels))}

    def branches(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(self.image(images))


def acmil_mobile(*, num_classes: int = 8, width: int = 256, pool: MakePool = ACMILPool) -> ACMILClassifier:
    """ACMIL's head on a MobileFaceNet's 7×7 map.

    num_classes, width, pool: as of `ACMILClassifier`; 8, 256 and ACMILPool.
    """
    return ACMILClassifier(image=MobileFaceNet("relu6"), num_classes=num_classes, width=width, pool=pool)


def guided_mobile(*, num_classes: int = 8, dim: int = 64, level: int = 1, init_values: float = 0.0) -> GuidedClassifier:
    """Guided attention on a MobileFaceNet's three maps, all brought to 14×14 (28×28 with `level` 0, as published).

    num_classes, dim, level, init_values: as of `GuidedClassifier`; 8, 64, 1 and 0.
    """
    image = MobileFaceNet("relu6")
    return GuidedClassifier(image=image, num_classes=num_classes, dim=dim, level=level, init_values=init_values)
