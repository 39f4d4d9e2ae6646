"""A trunk, a pool and a linear layer: what every other network has to beat."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn

from mien.networks.mobilefacenet import MobileFaceNet
from mien.networks.mobilenet import MobileNet
from mien.networks.network import Network
from mien.networks.trunk import Trunk, widen
from mien.nn.base import MakeBatchBranch, MakePool, MakeRefiner, Refiner
from mien.nn.class_batch_attention import BatchTransformer
from mien.nn.grid import to_tokens
from mien.nn.medusa import Medusa


class PlainClassifier(Network):
    """Images (B, 3, S, S), S as the trunk says -> its last map, pooled -> dropout -> logits (B, C).

    BTN's batch branch is a companion in training alone: it reads the last map and the logits z, and no checkpoint or
    exported file has any of it.

        L = λ · CE(z) + CE(bt) + CE(cba);   bt = cba + z;   λ is `logits_loss_weight`

    Its learned encoding has a place for every place of the map: 49 of 7×7, `features=36` for faces of 96 pixels.

    Args:
        image: a trunk.
        num_classes: int, C.
        dropout: float in [0, 1], fraction of the features that training drops; 0.1.
        pool: "mean", or makes a pool of the map's tokens, such as `mien.nn.ClassAttentionPool`; mean.
        refine: "none", or makes a refiner for each of the trunk's levels, such as `mien.nn.PAM`; "medusa" is one body
            and a head a level; none.
        mirror: bool, whether in eval mode the features are the mean of those of the image and of its mirror image, so
            that both have the same answer, at twice the cost; False.
        batch_branch: "none", or makes a batch branch, `mien.nn.BatchTransformer`; none.
        logits_loss_weight: float, λ, of a network with a batch branch; 2.

    Raises ValueError for other words.

    Paper of the branch: Her et al., Batch Transformer, arXiv 2407.04218; that it stands beside a plain trunk is ours.
    """

    front_parts = ("image",)

    def __init__(
        self,
        *,
        image: Trunk,
        num_classes: int,
        dropout: float = 0.1,
        pool: Literal["mean"] | MakePool = "mean",
        refine: Literal["none", "medusa"] | MakeRefiner = "none",
        mirror: bool = False,
        batch_branch: Literal["none"] | MakeBatchBranch = "none",
        logits_loss_weight: float = 2.0,
    ):
        super().__init__()
        if isinstance(batch_branch, str) and batch_branch != "none":
            raise ValueError(f"batch_branch must be 'none' or make a batch branch, not {batch_branch!r}")
        if isinstance(pool, str) and pool != "mean":
            raise ValueError(f"pool must be 'mean' or make a pool, not {pool!r}")
        if isinstance(refine, str) and refine not in ("none", "medusa"):
            raise ValueError(f"refine must be 'none', 'medusa' or make a refiner, not {refine!r}")
        self.image, self.mirror, self.img_size = image, mirror, getattr(image, "img_size", 112)
        widths = [width for width, _ in image.levels]
        if refine == "medusa":
            self.refine = Medusa(widths)
        else:
            self.refine = None if refine == "none" else nn.ModuleList(map(refine, widths))
        self.pool = None if pool == "mean" else pool(image.levels[-1][0])
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(image.levels[-1][0], num_classes)
        self.batch_branch = None
        if batch_branch != "none":
            self.batch_branch = cast(BatchTransformer, batch_branch(image.levels[-1][0], num_classes))
            self.training_only = {"batch_branch": "none"}
            self.loss_weights = {"logits": logits_loss_weight, "bt": 1.0, "cba": 1.0}

    def refiners(self, images: Tensor) -> Sequence[Refiner]:
        """What looks over the trunk's levels, one each; none without `refine`."""
        if not isinstance(self.refine, Medusa):
            return list(self.refine or ())
        guide = self.refine.body(images)
        return [partial(head, guide=guide) for head in self.refine.heads]

    def forward_features(self, images: Tensor) -> Tensor:
        if self.training or not self.mirror:
            return self._features(images)
        both = self._features(torch.cat([images, images.flip(3)]))  # (2B, D)
        return both.reshape(2, -1, both.shape[1]).mean(0)

    def fit(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Weights of a narrower network are widened, if its trunk is of that kind."""
        tensors = super().fit(tensors)
        return widen(tensors, self.state_dict()) if getattr(self.image, "width", 1) > 1 else tensors

    def training_pass(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if self.batch_branch is None:
            return super().training_pass(images)
        maps = self._maps(images)
        features = self._pooled(maps)
        logits = self.forward_head(features)
        return features, {"logits": logits, **self.batch_branch(maps, logits)}

    def begin_step(self, done: float) -> None:
        if self.batch_branch is not None:
            self.batch_branch.remember()

    def front(self, images: Tensor) -> tuple[Tensor, ...]:
        if self.refine is not None or self.mirror:
            raise ValueError("nothing can be kept behind a trunk that is refined, or that looks twice")
        maps = self.image(images)[-1]
        return (maps.mean((2, 3)) if self.pool is None and self.batch_branch is None else maps,)

    def _maps(self, images: Tensor | tuple[Tensor]) -> Tensor:
        if isinstance(images, tuple):
            return images[0]
        return (self.image(images) if self.refine is None else self.image(images, self.refiners(images)))[-1]

    def _pooled(self, maps: Tensor) -> Tensor:
        if maps.ndim == 2:
            return maps
        return maps.mean((2, 3)) if self.pool is None else self.pool(to_tokens(maps))

    def _features(self, images: Tensor) -> Tensor:
        return self._pooled(self._maps(images))

    def forward_head(self, features: Tensor) -> Tensor:
        return self.head(self.dropout(features))


def mobilefacenet(
    *,
    num_classes: int = 8,
    dropout: float = 0.1,
    pool: Literal["mean"] | MakePool = "mean",
    refine: Literal["none", "medusa"] | MakeRefiner = "none",
    mirror: bool = False,
    batch_branch: Literal["none"] | MakeBatchBranch = "none",
    logits_loss_weight: float = 2.0,
    width: int = 1,
) -> PlainClassifier:
    """A single MobileFaceNet: 0.91 M parameters, 0.23 GMAC, twice that with `mirror`.

    num_classes: int, C; 8.
    dropout, pool, refine, mirror, batch_branch, logits_loss_weight: as of `PlainClassifier`.
    width: as of `MobileFaceNet`; 1. One of width 2 has 3.4 M parameters and 0.9 GMAC, and is as good as the narrow one
        whose weights it is given.

    Another `pool`, or `refine`, adds what it adds; `batch_branch` and `logits_loss_weight` are of training alone, and
    add nothing.
    """
    options = {"dropout": dropout, "pool": pool, "refine": refine, "mirror": mirror}
    options |= {"batch_branch": batch_branch, "logits_loss_weight": logits_loss_weight}
    return PlainClassifier(image=MobileFaceNet("relu6", width=width), num_classes=num_classes, **options)


def mobilenet(
    *,
    num_classes: int = 8,
    img_size: int = 160,
    dropout: float = 0.2,
    pool: Literal["mean"] | MakePool = "mean",
    refine: Literal["none", "medusa"] | MakeRefiner = "none",
    mirror: bool = False,
    batch_branch: Literal["none"] | MakeBatchBranch = "none",
    logits_loss_weight: float = 2.0,
) -> PlainClassifier:
    """A single MobileNet, the first one: 3.22 M parameters, 0.29 GMAC of faces of 160 pixels, 0.19 of 128.

    num_classes: int, C; 8.
    img_size: as of `MobileNet`; 160.
    dropout: as of `PlainClassifier`; 0.2.
    pool, refine, mirror, batch_branch, logits_loss_weight: as of `PlainClassifier`.

    Paper: Howard et al., MobileNets, arXiv 1704.04861.
    """
    options = {"dropout": dropout, "pool": pool, "refine": refine, "mirror": mirror}
    options |= {"batch_branch": batch_branch, "logits_loss_weight": logits_loss_weight}
    return PlainClassifier(image=MobileNet(img_size), num_classes=num_classes, **options)
