"""MEDUSA: one body looks at the whole picture, and light heads gate several levels of a trunk with it."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    """A 3×3 convolution, batch norm, ReLU."""
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())


class MedusaBody(nn.Module):
    """An encoder and decoder of the picture: (B, in_channels, H, W) -> guide (B, guide, H / 4, W / 4).

    Four convolutions of stride 2 to `width` · (1, 2, 4, 4) channels; two steps back up (nearest), each beside the map
    of that size; a 1×1 convolution. Ours, all of it: see `Medusa`.
    """

    def __init__(self, in_channels: int = 3, width: int = 16, guide: int = 16):
        super().__init__()
        widths = [width, 2 * width, 4 * width, 4 * width]
        self.down = nn.ModuleList(conv(a, b, stride=2) for a, b in pairwise([in_channels, *widths]))
        self.up = nn.ModuleList([conv(widths[3] + widths[2], widths[2]), conv(widths[2] + widths[1], widths[1])])
        self.guide = nn.Conv2d(widths[1], guide, 1)

    def forward(self, images: Tensor) -> Tensor:
        maps = [images]
        for down in self.down:
            maps.append(down(maps[-1]))
        x = maps[4]
        for up, beside in zip(self.up, (maps[3], maps[2]), strict=True):
            x = up(torch.cat([F.interpolate(x, tuple(beside.shape[2:])), beside], dim=1))
        return self.guide(x)


class MedusaHead(nn.Module):
    """Gates one level with the body's guide: maps f (B, channels, h, w), guide (B, guide, H, W) -> gated maps as f.

        a = sigmoid(gate(relu(bn(conv3x3([f; average(guide)])))));   f ⊙ a,   or with `residual` f ⊙ (1 + a)

    The guide is averaged over squares to h × w. Ours: see `Medusa`.
    """

    def __init__(self, channels: int, guide: int = 16, hidden: int = 32, residual: bool = False):
        super().__init__()
        self.residual = residual
        self.mix = conv(channels + guide, hidden)
        self.gate = nn.Conv2d(hidden, channels, 1)

    def forward(self, maps: Tensor, guide: Tensor) -> Tensor:
        seen = F.adaptive_avg_pool2d(guide, (maps.shape[2], maps.shape[3]))
        attn = self.gate(self.mix(torch.cat([maps, seen], dim=1))).sigmoid()
        return maps * (1 + attn if self.residual else attn)


class Medusa(nn.Module):
    """One body, a head a level: images (B, 3, H, W) and maps (B, channels_j, H_j, W_j) -> the maps, gated.

    In a network the maps come one after another, and each, gated, is what the next level is made of: call `body` once
    and then `heads[j](maps_j, guide)` as `mien.networks.PlainClassifier` does. Everything is trained end to end.

    The paper's idea is one global attention body of the whole network, which light scale-specific heads share. Its
    layer list was not published: **all layers here are ours**. *Inferred* from the published code's two inputs is that
    the body sees the picture rather than a trunk's maps. `width` and `hidden` size body and heads; `residual`,
    ours, lets a head leave its map as it is.

    Args:
        channels: int for each level; (64, 128, 512).
        in_channels: int, of the pictures; 3.
        width, guide, hidden: int, channels of the body, of its guide, and in the heads; 16, 16 and 32.
        residual: bool; False.

    Paper: Aboutalebi et al., MEDUSA: Multi-scale Encoder-Decoder Self-Attention, arXiv 2110.06063. Reference: none.
    """

    def __init__(
        self,
        channels: Sequence[int] = (64, 128, 512),
        in_channels: int = 3,
        width: int = 16,
        guide: int = 16,
        hidden: int = 32,
        residual: bool = False,
    ):
        super().__init__()
        self.body = MedusaBody(in_channels, width, guide)
        self.heads = nn.ModuleList(MedusaHead(c, guide, hidden, residual) for c in channels)

    def forward(self, images: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
        guide = self.body(images)
        return [head(each, guide) for head, each in zip(self.heads, maps, strict=True)]
