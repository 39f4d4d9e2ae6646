"""DirectMHP's idea on a small trunk: all heads of a picture, and how each is turned, in one look."""

import torch
from torch import Tensor, nn

from mien.networks.mobilefacenet import InvertedResidual, MobileFaceNet, Unit

STRIDE = 8


class DirectMHP(nn.Module):
    """Pictures (B, 3, H, W), normalised, -> a head, or none, for each cell of the grid (H/8, W/8): (B, 8, H/8, W/8).

    H and W are multiples of 16. The trunk's map of stride 16, enlarged, is added to that of stride 8; `depth` blocks
    read the sum. Of each cell the 8 values are

        objectness            a logit: whether a head's centre lies here
        dx, dy                the centre is at (column + ½ + dx, row + ½ + dy) · 8 pixels
        log w, log h          the box's sides are 8 · exp of them, in pixels
        pitch, yaw, roll      sigmoid of them is what `mien.heads.angles.encode` makes of degrees

    Args:
        width: int, channels of the blocks behind the trunk; 96.
        depth: int, how many of them; 2.
        rest: int, how many of the trunk's stages, with its stem, stay as they are in training, 0 (then the stem learns,
            too) to 3; 1.

    Departures: anchor-free cells in place of YOLOv5-P6 and its anchors, a phone's trunk, one level in place of four.
    Paper: Zhou et al., DirectMHP: Direct 2D Multi-Person Head Pose Estimation with Full-range Angles, arXiv 2302.01110.
    Its published code (GPL) was not read.
    """

    def __init__(self, *, width: int = 96, depth: int = 2, rest: int = 1):
        super().__init__()
        self.trunk = MobileFaceNet("relu6")
        if rest not in (0, 1, 2, 3):
            raise ValueError(f"rest must be 0, 1, 2 or 3, not {rest!r}")
        for name, value, most in (("width", width, 1024), ("depth", depth, 32)):
            if type(value) is not int or not 1 <= value <= most:
                raise ValueError(f"{name} must be a whole number of 1 to {most}, not {value!r}")
        self.rest = rest
        (_, (near, _), (far, _)) = self.trunk.levels
        self.near, self.far = Unit(near, width, 1), Unit(far, width, 1)
        self.blocks = nn.Sequential(*(InvertedResidual(width, width, 2 * width, 1, "relu6") for _ in range(depth)))
        self.head = nn.Conv2d(width, 8, 1)
        nn.init.normal_(self.head.weight, std=0.01)
        start = torch.tensor([-4.0, 0, 0, 1.4, 1.4, 0, 0, 0])  # few cells hold a head, and one is some 4 cells wide
        self.head.bias = nn.Parameter(start)
        for part in self.resting():
            part.requires_grad_(False).train(False)

    def resting(self) -> list[nn.Module]:
        """The parts that stay as they are in training."""
        return [self.trunk.stem, self.trunk.stem_dw, *self.trunk.stages[: self.rest]] if self.rest else []

    def train(self, mode: bool = True):
        super().train(mode)
        for part in self.resting():
            part.train(False)
        return self

    def front(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> the map behind all that stays as it is; without such, the images."""
        for part in self.resting():
            images = part(images)
        return images

    def behind(self, x: Tensor) -> Tensor:
        """What `front` gives -> (B, 8, H/8, W/8)."""
        trunk, near = self.trunk, x
        if not self.rest:
            x = trunk.stem_dw(trunk.stem(x))
        for i in range(self.rest, len(trunk.stages)):
            x = trunk.stages[i](x)
            near = x if i == 2 else near
        far = nn.functional.interpolate(self.far(trunk.last(x)), scale_factor=2.0, mode="nearest")
        return self.head(self.blocks(self.near(near) + far))

    def forward(self, images: Tensor) -> Tensor:
        return self.behind(self.front(images))


def read_grid(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `DirectMHP` gives, (B, 8, h, w) -> scores (B, N), boxes (B, N, 4), angles (B, N, 3), N = h · w.

    scores: 0 to 1. boxes: x, y, width, height in pixels. angles: encoded, 0 to 1, in the order pitch, yaw, roll.
    """
    rows, columns = values.shape[-2:]
    y, x = (torch.arange(n, dtype=values.dtype, device=values.device) + 0.5 for n in (rows, columns))
    flat = values.flatten(2).transpose(1, 2)  # (B, N, 8)
    place = torch.stack([x.repeat(rows), y.repeat_interleave(columns)], 1)
    sides = flat[..., 3:5].clamp(-4, 6).exp()
    boxes = torch.cat([place + flat[..., 1:3] - sides / 2, sides], -1) * STRIDE
    return flat[..., 0].sigmoid(), boxes, flat[..., 5:].sigmoid()
