"""MobileFaceNet as a trunk: three levels of feature maps, no embedding."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mien.networks.trunk import Trunk, widen
from mien.nn.base import Refiner


class Unit(nn.Sequential):
    """Convolution without bias, batch norm, and an activation or none."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1, act: str | None = None):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(c_out)
        if act == "prelu":
            self.act = nn.PReLU(c_out)
        elif act is not None:
            self.act = {"relu": nn.ReLU, "relu6": nn.ReLU6}[act](inplace=True)

    def forward(self, input: Tensor) -> Tensor:
        conv = self.conv
        if not (self.training and input.device.type == "cpu" and conv.groups > 1 and conv.stride == (2, 2)):
            return super().forward(input)
        # the same numbers: torch's gradient of a strided depthwise convolution is slow on a CPU
        x = F.conv2d(input, conv.weight, None, 1, conv.padding, 1, conv.groups)[..., ::2, ::2]
        return self.act(self.bn(x.contiguous(memory_format=torch.channels_last)))


class InvertedResidual(nn.Module):
    """1×1 to `hidden`, 3×3 depthwise with `stride`, 1×1 to `c_out`; the identity is added where shapes allow."""

    def __init__(self, c_in: int, c_out: int, hidden: int, stride: int, act: str):
        super().__init__()
        self.expand = Unit(c_in, hidden, 1, act=act)
        self.depthwise = Unit(hidden, hidden, 3, stride, groups=hidden, act=act)
        self.project = Unit(hidden, c_out, 1)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


# c_in, c_out, hidden, number of blocks, stride of the first
STAGES = (
    (64, 64, 128, 5, 2),
    (64, 128, 256, 1, 2),
    (128, 128, 256, 6, 1),
    (128, 128, 512, 1, 2),
    (128, 128, 256, 2, 1),
)


class MobileFaceNet(Trunk):
    """(B, 3, 112, 112) -> maps (B, 64, 28, 28), (B, 128, 14, 14), (B, 512, 7, 7).

    The layers behind the last map (landmarks, embedding) are left out. `forward` also takes `refine`, a refiner a
    level: each has its map before the next level is made of it.

    Args:
        variant: "prelu" is the landmark network of POSTER++ (PReLU, a bare depthwise second layer); "relu6" is the
            identity network of foamliu/MobileFaceNet (ReLU6, a pointwise convolution after the second layer); relu6.
        num_levels: 1, 2 or 3, how many of the maps; the layers behind them are left out; 3.
        width: int from 1 on, by which the channels of every layer are multiplied; 1. It is ours, and the weights of a
            narrower network fit a wider one (`widen`).

    Raises ValueError for other values.

    Paper: Chen et al., MobileFaceNets, arXiv 1804.07573. Reference: Talented-Q/POSTER_V2, 18de559;
    foamliu/MobileFaceNet.
    """

    levels = ((64, 28), (128, 14), (512, 7))  # channels and side of each map

    def __init__(self, variant: Literal["prelu", "relu6"] = "relu6", num_levels: int = 3, width: int = 1):
        super().__init__()
        if variant not in ("prelu", "relu6"):
            raise ValueError(f"variant must be 'prelu' or 'relu6', not {variant!r}")
        if num_levels not in (1, 2, 3):
            raise ValueError(f"num_levels must be 1, 2 or 3, not {num_levels!r}")
        if width < 1:
            raise ValueError(f"width must be a whole number from 1 up, not {width!r}")
        self.width = width
        self.levels = tuple((width * channels, side) for channels, side in self.levels[:num_levels])
        count = (1, 3, 5)[num_levels - 1]  # the stages up to that map
        self.beyond = (*(f"stages.{i}." for i in range(count, 5)), *["last."] * (num_levels < 3))
        first = 64 * width
        self.stem = Unit(3, first, 3, 2, act=variant)
        depthwise = Unit(first, first, 3, groups=first, act="prelu" if variant == "prelu" else "relu")
        if variant == "prelu":
            self.stem_dw = nn.Sequential(depthwise)
        else:
            self.stem_dw = nn.Sequential(depthwise, Unit(first, first, 1, act="relu"))
        stages = []
        for *channels, repeats, stride in STAGES[:count]:
            c_in, c_out, hidden = (width * c for c in channels)
            blocks = [InvertedResidual(c_in, c_out, hidden, stride, variant)]
            # within a stage the expansion factor stays, and so does `hidden` once c_in equals c_out
            blocks += [InvertedResidual(c_out, c_out, hidden, 1, variant) for _ in range(repeats - 1)]
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.last = Unit(128 * width, 512 * width, 1, act=variant) if num_levels == 3 else nn.Identity()

    def fit(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return widen(super().fit(tensors), self.state_dict())

    def forward(self, images: Tensor, refine: Sequence[Refiner] | None = None) -> tuple[Tensor, ...]:
        x, maps = self.stem_dw(self.stem(images)), []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in (0, 2, 4):
                if i == 2 * len(self.levels) - 2:
                    x = self.last(x)
                if refine is not None:
                    x = refine[i // 2](x)
                maps.append(x)
        return tuple(maps)
