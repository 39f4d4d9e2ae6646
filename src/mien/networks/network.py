"""What every network has in common."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mien.outputs import Output


class Network(nn.Module):
    """Images (B, 3, 112, 112), normalised as the checkpoint's `preprocess` says -> logits (B, C).

    A network that reads another size says so in `img_size`; `preprocess` then has it as `input_size`.
    In eval mode the logits of a face never depend on the other faces of its batch. The one exception is `ARBEx` with
    `balancing="full"` and `attention="batch"`, which is not the default. In training `training_logits` gives every set
    of logits that is part of the loss, and `loss_weights` their weights.

    A network answers one question, its first output; `add_heads` gives it more, which read the same features.
    """

    loss_weights: Mapping[str, float] = {"logits": 1.0}
    no_decay: Collection[str] = ()
    """Names of parameters without weight decay, though they have two dimensions or more."""
    training_only: Mapping[str, Any] = {}
    """Parts that have no share in the answer, by name: what the argument of that name is in a network without them.
    Checkpoints are of that network; one can be filled from such a checkpoint and keeps the parts that it has."""

    front_parts: Sequence[str] = ()
    """The trunks, by name, that nothing else stands before."""
    streams: Mapping[str, Sequence[int]] = {}
    """Where `front` gives maps of several trunks: which of them, by their places, each trunk gives."""

    def front(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, 112, 112) -> what all behind `front_parts` reads of them, which every method takes for the images.

        As little as will do, such as a map that was pooled. Raises ValueError for a network that has no such place.
        """
        raise NotImplementedError

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleDict()

    def add_heads(self, outputs: Iterable[Output]) -> None:
        """A linear layer, which begins at 0, for each output that the network has no head for yet.

        Raises ValueError for a network without one vector of features.
        """
        for output in outputs:
            if output.name not in self.head_names:
                head = nn.Linear(self.width, output.width)
                nn.init.zeros_(head.weight)
                nn.init.zeros_(head.bias)
                self.heads[output.name] = head

    @property
    def head_names(self) -> tuple[str, ...]:
        """The outputs beside the first that there are heads for."""
        return tuple(self.heads)

    def answers(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, 112, 112) -> "logits" (B, C) of the first output, and (B, width) of every other by its name.

        `mien.networks.activate` makes what a person reads of them.
        """
        if not self.head_names:
            return {"logits": self(images)}
        features = self.forward_features(images)
        return {"logits": self.forward_head(features), **self.head_answers(features)}

    def head_answers(self, features: Tensor) -> dict[str, Tensor]:
        """(B, D) -> what every head beside the first answers, (B, width) each."""
        return {name: head(features) for name, head in self.heads.items()}

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, 112, 112) -> the vector (B, D) that the head reads."""
        raise NotImplementedError

    def forward_head(self, features: Tensor) -> Tensor:
        """(B, D) -> logits (B, C)."""
        raise NotImplementedError

    def logit_parts(self, features: Tensor) -> dict[str, Tensor]:
        """(B, D) -> what logits are the sum of, by name, each (B, C); nothing where they are no such sum."""
        return {}

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

    def training_answers(self, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """`training_logits`, and what `heads` answer, in one pass."""
        if not self.heads:
            return self.training_logits(images), {}
        features, logits = self.training_pass(images)
        return logits, {name: head(features) for name, head in self.heads.items()}

    def begin_step(self, done: float) -> None:
        """Called before every batch of training, of which the share `done` is over, from 0 to 1.

        Once a batch, however often its loss is computed.
        """

    @property
    def headed(self) -> nn.Module:
        """The part whose `head` is the linear layer from features to logits."""
        return self

    @property
    def width(self) -> int:
        """D, of the features."""
        head: Any = self.headed.head
        return next(part for part in head.modules() if isinstance(part, nn.Linear)).in_features
