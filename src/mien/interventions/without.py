"""Faces without what is to be seen in them: a baseline in the place of all of it, or of a region."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from mien.errors import MienError

Baseline = Literal["mean", "zero", "positions"]
Region = Literal["face", "eyes", "mouth"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
REGIONS: tuple[Region, ...] = get_args(Region)

BOXES: dict[Region, tuple[float, float, float, float]] = {
    "face": (0.0, 0.0, 1.0, 1.0),
    "eyes": (0.33, 0.15, 0.60, 0.85),
    "mouth": (0.70, 0.28, 0.96, 0.72),
}
"""Top, left, bottom, right, in sides of the picture: about the eyes and the mouth of the ArcFace template, where they
lie in most pictures that are faces; nobody looks for them."""


def region_mask(region: Region, height: int, width: int) -> Tensor:
    """Which of (height, width) pixels or cells have their middle in the region, bool."""
    top, left, bottom, right = BOXES[region]
    y, x = ((torch.arange(n) + 0.5) / n for n in (height, width))
    return ((top <= y) & (y < bottom))[:, None] & ((left <= x) & (x < right))


class Without:
    """What a network reads in the place of a face.

    `mean` is the mean of the faces that it is fitted to, `zero` an image of zeros, which is the mean colour as networks
    are given images, `positions` no tokens but their positions and the class token.

    Args:
        baseline: "mean", "zero" or "positions"; mean.
        region: "face", "eyes" or "mouth", what is taken away; face.
    """

    def __init__(self, baseline: Baseline = "mean", region: Region = "face"):
        if baseline not in BASELINES:
            raise ValueError(f"the baseline is one of {', '.join(BASELINES)}, not {baseline!r}")
        if region not in REGIONS:
            raise ValueError(f"the region is one of {', '.join(REGIONS)}, not {region!r}")
        self.baseline: Baseline = baseline
        self.region: Region = region
        self.mean: Tensor | None = None

    def fit(self, batches: Sequence[Tensor]) -> None:
        """Learn the mean of images (B, 3, S, S)."""
        self.mean = torch.stack([images.sum(0) for images in batches]).sum(0) / sum(map(len, batches))

    def images(self, images: Tensor) -> Tensor:
        """The images (B, 3, S, S) as they are without it; of `positions`, as they are."""
        if self.baseline == "positions":
            return images
        if self.baseline == "mean" and self.mean is None:
            raise MienError("the mean face is not known: fit first")
        other = torch.zeros_like(images) if self.mean is None or self.baseline == "zero" else self.mean.to(images)
        return torch.where(region_mask(self.region, *images.shape[2:]).to(images.device), other, images)

    @contextmanager
    def behind(self, network: nn.Module, first: int) -> Iterator[None]:
        """A context in which the faces from number `first` on are read without it: an effect of `positions` alone.

        Raises MienError for a network in which no part has the `start` that joins tokens and positions.
        """
        if self.baseline != "positions":
            yield
            return
        wanted = ("start", "blocks", "cls_token")
        part: Any = next((p for p in network.modules() if all(hasattr(p, name) for name in wanted)), None)
        if part is None:
            kind = type(network).__name__
            raise MienError(f"{kind} has no ViT in which tokens meet their positions: the baseline is mean or zero")
        start = part.start

        def bare(tokens: Tensor, *index: Tensor) -> Tensor:
            gone = self._gone(part, tokens, *index)
            return start(torch.where(gone & (torch.arange(len(tokens)) >= first)[:, None, None], 0, tokens), *index)

        part.start = bare
        try:
            yield
        finally:
            del part.start

    def _gone(self, part: Any, tokens: Tensor, index: Tensor | None = None) -> Tensor:
        """Which tokens (B, N, D) lie in the region, (B or 1, N, 1) bool."""
        if self.region == "face":
            return torch.ones(1, tokens.shape[1], 1, dtype=torch.bool, device=tokens.device)
        if part.grid is None:
            raise MienError(f"tokens of {type(part).__name__} lie on no grid: their {self.region} cannot be taken away")
        cells = region_mask(self.region, *part.grid).flatten().to(tokens.device)
        return (cells.repeat(tokens.shape[1] // len(cells))[None] if index is None else cells[index])[..., None]
