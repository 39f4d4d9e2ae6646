"""A network as it is used: uint8 faces in, logits and probabilities out."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

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


class Deployed(nn.Module):
    """Faces uint8 (B, S, S, 3) RGB -> logits (B, C), probs (B, C), with `probs = softmax(logits / temperature)`.

    S is `input_size` of the `preprocess`: 112 for most networks.
    This is what an ONNX file of mien computes, and what an engine runs.
    """

    def __init__(self, network: nn.Module, preprocess: Mapping[str, Any], temperature: float = 1.0):
        super().__init__()
        self.network, self.normalize, self.temperature = network, Normalize(preprocess), temperature

    def forward(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(self.normalize(to_float(faces)))
        return logits, (logits / self.temperature).softmax(-1)
