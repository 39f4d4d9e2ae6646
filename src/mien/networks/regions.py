"""A reader by regions: eyes, brows and mouth are read apart, and compared with a neutral face of the same person."""

import torch
from torch import Tensor, nn

from mien.networks.mobilefacenet import MobileFaceNet
from mien.networks.network import Network
from mien.networks.trunk import Trunk
from mien.nn.base import Grid
from mien.nn.grid import to_tokens
from mien.nn.region_cross_attention import RegionCrossAttention

REGIONS = ("face", "background", "eyes", "brows", "mouth")
"""The slots, in order: the first is global and the second what belongs to no other, as AutoStudio has them."""

ARCFACE = ((0.342, 0.462), (0.657, 0.460), (0.500, 0.641), (0.371, 0.825), (0.632, 0.823))
"""x and y, in sides of the crop, of eyes, nose and corners of the mouth in faces that are aligned to that template."""


def region_masks(landmarks: Tensor, grid: Grid) -> Tensor:
    """How much each region has of each cell: (B, 5, 2) in sides of the crop -> (B, 5, H, W); they sum to 1 in a cell.

    The eyes are two Gaussians a quarter of the distance between them wide; brows are the same, half of it higher, and
    the mouth is one about the middle of its corners, wider than high. What the three leave is shared by the whole face,
    within an ellipse about all five points, and the background outside of it. *Inferred*: published masks are boxes.
    """
    y, x = ((torch.arange(n, device=landmarks.device, dtype=landmarks.dtype) + 0.5) / n for n in grid)
    cells = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)  # (H, W, 2)
    across = landmarks[:, 1] - landmarks[:, 0]
    apart = across.norm(dim=-1)[:, None, None, None]
    up = torch.stack([across[:, 1], -across[:, 0]], -1) * 0.5

    def about(points: Tensor, wide: float, high: float) -> Tensor:
        """The nearest of points (B, n, 2)."""
        step = (cells - points[:, :, None, None]) / (torch.tensor([wide, high]).to(points) * apart[..., None])
        return (-0.5 * step.square().sum(-1)).exp().amax(1)

    eyes, mouth = landmarks[:, :2], landmarks[:, 3:].mean(1, keepdim=True)
    parts = torch.stack([about(eyes, 0.25, 0.2), about(eyes + up[:, None], 0.3, 0.2), about(mouth, 0.4, 0.25)], 1)
    parts = parts / parts.sum(1, keepdim=True).clamp(min=1)
    inside = (about(landmarks.mean(1, keepdim=True), 1.0, 1.3)[:, None] > 0.5).to(parts.dtype)
    rest = 1 - parts.sum(1, keepdim=True)
    return torch.cat([rest * inside, rest * (1 - inside), parts], 1)


class RegionReader(Network):
    """Images (B, 3, 112, 112), and a neutral face of each person where there is one -> logits (B, C).

        tokens = proj(trunk(images)[level])
        tokens = tokens + regions(norm(tokens))     parallel cross attention to learned prompts of each region, and to
        logits = head(norm(mean(tokens)))           the same tokens of the reference, less those of the face itself

    A face as its own reference changes nothing, and so does none (`reference=None`, or 0 in `have_ref`): bitwise.
    Crops are aligned, so regions lie where ARCFACE has them, unless `landmarks` are given. Ours; the mechanism is
    `mien.nn.RegionCrossAttention`'s, whose words are prompts here. No weights come with it: faces of the same person
    with and without an expression are what it would be trained on.

    Args:
        image: a trunk.
        num_classes: int, C.
        level: int, of the trunk's maps, negative ones from the end; -1.
        embed_dim, num_heads: int, of the attention; 128 and 4.
        prompts: int from 1 on, learned tokens of each region; 4.
        scale: float, of the reference; 1.
    """

    def __init__(
        self,
        *,
        image: Trunk,
        num_classes: int,
        level: int = -1,
        embed_dim: int = 128,
        num_heads: int = 4,
        prompts: int = 4,
        scale: float = 1.0,
    ):
        super().__init__()
        self.image, self.level = image, level
        channels, side = image.levels[level]
        self.grid: Grid = (side, side)
        self.proj = nn.Conv2d(channels, embed_dim, 1)
        self.norm1, self.norm = (nn.LayerNorm(embed_dim, eps=1e-6) for _ in range(2))
        self.prompts = nn.Parameter(torch.empty(1, len(REGIONS), prompts, embed_dim))
        nn.init.trunc_normal_(self.prompts, std=0.02)
        self.regions = RegionCrossAttention(embed_dim, num_heads, scale=scale)
        self.head = nn.Linear(embed_dim, num_classes)

    def tokens(self, images: Tensor) -> Tensor:
        return to_tokens(self.proj(self.image(images)[self.level]))

    def forward_features(
        self,
        images: Tensor,
        reference: Tensor | None = None,
        have_ref: Tensor | None = None,
        landmarks: Tensor | None = None,
    ) -> Tensor:
        tokens = self.tokens(images)
        normed, count = self.norm1(tokens), len(REGIONS)
        points = tokens.new_tensor(ARCFACE)[None] if landmarks is None else landmarks
        masks = region_masks(points, self.grid).expand(tokens.shape[0], -1, -1, -1)
        masks = masks[:, None].expand(-1, 2, -1, -1, -1)
        other = own = None
        if reference is not None:
            other, own = (x[:, None].expand(-1, count, -1, -1) for x in (self.norm1(self.tokens(reference)), normed))
            have_ref = None if have_ref is None else have_ref[:, None].expand(-1, count)
        prompts = self.prompts.expand(tokens.shape[0], -1, -1, -1)
        tokens = tokens + self.regions(normed, self.grid, prompts, masks, other, have_ref, own)
        return self.norm(tokens.mean(1))

    def forward_head(self, features: Tensor) -> Tensor:
        return self.head(features)

    def forward(
        self,
        images: Tensor,
        reference: Tensor | None = None,
        have_ref: Tensor | None = None,
        landmarks: Tensor | None = None,
    ) -> Tensor:
        """reference: (B, 3, 112, 112), neutral faces of the same people. have_ref: (B,), 0 where there is none.
        landmarks: (B, 5, 2), in sides of the crop, of crops that are not aligned."""
        return self.forward_head(self.forward_features(images, reference, have_ref, landmarks))


def region_reader(*, num_classes: int = 8, **options) -> RegionReader:
    """A reader by regions on the 14×14 map of a MobileFaceNet.

    num_classes: int, C; 8.
    options: as of `RegionReader`.
    """
    return RegionReader(image=MobileFaceNet("relu6", num_levels=2), num_classes=num_classes, **options)
