"""What every network has in common."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn


class Network(nn.Module):
    """Images (B, 3, 112, 112), normalised as the checkpoint's `preprocess` says -> logits (B, C).

    A network that reads another size says so in `img_size`; `preprocess` then has it as `input_size`.
    In eval mode the logits of a face never depend on the other faces of its batch. The one exception is `ARBEx` with
    `balancing="full"` and `attention="batch"`, which is not the default. In training `training_logits` gives every set
    of logits that is part of the loss, and `loss_weights` their weights.
    """

    loss_weights: Mapping[str, float] = {"logits": 1.0}
    no_decay: Collection[str] = ()
    """Names of parameters without weight decay, though they have two dimensions or more."""
    training_only: Mapping[str, Any] = {}
    """Parts that have no share in the answer, by name: what the argument of that name is in a network without them.
    Checkpoints are of that network; one can be filled from such a checkpoint and keeps the parts that it has."""

    front_parts: Sequence[str] = ()
    """The trunks, by name, that nothing else stands before."""

    def front(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, 112, 112) -> what all behind `front_parts` reads of them, which every method takes for the images.

        As little as will do, such as a map that was pooled. Raises ValueError for a network that has no such place.
        """
        raise NotImplementedError

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, 112, 112) -> the vector (B, D) that the head reads."""
        raise NotImplementedError

    def forward_head(self, features: Tensor) -> Tensor:
        """(B, D) -> logits (B, C)."""
        raise NotImplementedError

    def forward_intermediates(self, images: Tensor, **options) -> list | tuple[Tensor, list]:
        """The final tokens, and those after each block, as timm gives them.

        `options` are those of `mien.networks.intermediates.intermediates`; ValueError for a network without blocks."""
        raise ValueError(f"{type(self).__name__} has no blocks between which tokens could be taken")

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def fit(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Weights of the same network for another size of image, made to fit; all others come back as they are.

        Parts that are `training_only` are added as they stand where there are none among them.
        """
        own = {name: t for name, t in self.state_dict().items() if name.partition(".")[0] in self.training_only}
        return {**own, **tensors}

    def training_pass(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, 3, 112, 112) -> what `forward_features` gives, and `training_logits`, in one pass."""
        features = self.forward_features(images)
        return features, {"logits": self.forward_head(features)}

    def training_logits(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, 112, 112) -> logits (B, C) by name, one for each of `loss_weights`; the network's answer comes first.

        `mien.losses.weighted_cross_entropy` says what else than logits there may be.
        """
        return self.training_pass(images)[1]

    def begin_step(self, done: float) -> None:
        """Called before every batch of training, of which the share `done` is over, from 0 to 1.

        Once a batch, however often its loss is computed.
        """

    @property
    def headed(self) -> nn.Module:
        """The part whose `head` is the linear layer from features to logits."""
        return self
