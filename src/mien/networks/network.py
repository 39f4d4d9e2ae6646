"""What every network has in common."""

from collections.abc import Collection, Mapping

from torch import Tensor, nn


class Network(nn.Module):
    """Images (B, 3, 112, 112), normalised as the checkpoint's `preprocess` says -> logits (B, C).

    A network that reads another size says so in `img_size`; `preprocess` then has it as `input_size`.
    In eval mode the logits of a face never depend on the other faces of its batch. In training `training_logits` gives
    every set of logits that has a share in the loss, and `loss_weights` their weights.
    """

    loss_weights: Mapping[str, float] = {"logits": 1.0}
    no_decay: Collection[str] = ()
    """Names of parameters without weight decay, though they have two dimensions or more."""

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, 112, 112) -> the vector (B, D) that the head reads."""
        raise NotImplementedError

    def forward_head(self, features: Tensor) -> Tensor:
        """(B, D) -> logits (B, C)."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def fit(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Weights of the same network for another size of image, made to fit; all others come back as they are."""
        return tensors

    def training_logits(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, 112, 112) -> logits (B, C) by name, one for each of `loss_weights`."""
        return {"logits": self(images)}
