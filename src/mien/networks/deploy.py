"""A network as it is used: uint8 faces in, answers out."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from mien.checkpoint import FEATURES, outputs_of
from mien.errors import CheckpointError
from mien.networks.temporal import Temporal
from mien.outputs import Output

LUMA = (0.299, 0.587, 0.114)


class Normalize(nn.Module):
    """Images (B, 3, H, W) RGB in [0, 1] -> what the network was trained on, as a checkpoint's `preprocess` says.

    `color="grey"` replaces the three channels by their luma first; then `(x - mean) / std`.
    """

    mean: Tensor
    std: Tensor
    luma: Tensor

    def __init__(self, preprocess: Mapping[str, Any]):
        super().__init__()
        self.grey = preprocess["color"] == "grey"
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(preprocess[name]).view(3, 1, 1), persistent=False)
        self.register_buffer("luma", torch.tensor(LUMA).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.grey:
            images = (images * self.luma).sum(1, keepdim=True)
        return (images - self.mean) / self.std


def to_float(faces: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, H, W) in [0, 1], channels last in memory."""
    return faces.permute(0, 3, 1, 2).float() / 255


def activate(output: Output, values: Tensor) -> Tensor:
    """What a head gives, (B, width) -> what a person reads, (B, …) of the shape that the output has.

    output: the question that the head answers.
    values: (B, width), z.

        classes  softmax(z / temperature)          binary  σ(z / temperature)
        range    low + (high - low) · σ(z)         angles  degrees(z), wrapped to [-180, 180)
        points   z as it is, (B, P, 2)
    """
    match output.kind:
        case "classes":
            return (values / output.temperature).softmax(-1)
        case "binary":
            return (values / output.temperature).sigmoid()
        case "range":
            return output.low + (output.high - output.low) * values.sigmoid()
        case "angles":
            return torch.remainder(values * (180 / math.pi) + 180, 360) - 180
        case _:
            return values.unflatten(-1, (-1, 2))


class Deployed(nn.Module):
    """Faces uint8 (B, S, S, 3) RGB -> logits (B, C) of the first output, then the answer of every output, as a tuple.

    S is `input_size` of the `preprocess`: 112 for most networks. This is what a model file computes for other engines.

    Args:
        network: images -> logits; with further outputs a `Network` that has heads for them.
        preprocess: of a checkpoint's header; "color", "mean" and "std" of it are read.
        temperature: float above 0, used where there are no `outputs`; 1.
        outputs: the questions that the network answers; without any it is one, of classes:
            `probs = softmax(logits / temperature)`.
        features: bool, whether to give what the heads read as well, (B, D), behind all others; False.

    Raises CheckpointError where the network has no head for an output.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocess: Mapping[str, Any],
        temperature: float = 1.0,
        outputs: Sequence[Output] = (),
        features: bool = False,
    ):
        super().__init__()
        self.network: Any = network
        self.normalize = Normalize(preprocess)
        self.temperature = outputs[0].temperature if outputs else temperature
        self.others = tuple(outputs[1:])
        heads = getattr(network, "head_names", ())
        if missing := [output.name for output in self.others if output.name not in heads]:
            raise CheckpointError(f"the network has no head for {', '.join(missing)}")
        self.features = features

    def forward(self, faces: Tensor) -> tuple[Tensor, ...]:
        images = self.normalize(to_float(faces))
        if self.features:
            return self.with_features(images)
        values = cast(Any, self.network).answers(images) if self.others else {"logits": self.network(images)}
        probs = (values["logits"] / self.temperature).softmax(-1)
        return values["logits"], probs, *(activate(output, values[output.name]) for output in self.others)

    def with_features(self, images: Tensor) -> tuple[Tensor, ...]:
        """The same of normalised images, and the features."""
        features = self.network.forward_features(images)
        logits = self.network.forward_head(features)
        others = self.network.head_answers(features) if self.others else {}
        answers = (activate(output, others[output.name]) for output in self.others)
        return logits, (logits / self.temperature).softmax(-1), *answers, features


def deploy(network: nn.Module, header: Mapping[str, Any]) -> Deployed:
    """The network of a checkpoint as it is used, in eval mode.

    network: with its weights.
    header: of the checkpoint, which names what comes out (`tensor_names`).

    Raises CheckpointError for a network that reads no faces.
    """
    if isinstance(network, Temporal):
        raise CheckpointError(
            "a temporal model reads no faces: mien export --temporal puts it beside the model that does"
        )
    return Deployed(network, header["preprocess"], outputs=outputs_of(header), features=FEATURES in header).eval()
