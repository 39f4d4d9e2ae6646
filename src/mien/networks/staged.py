"""What networks of stages share, whose maps are halved from one to the next."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from mien.nn.base import Grid


def needs_whole_windows(img_size: int, strides: Sequence[int], window: Grid) -> None:
    """ValueError, naming the sizes that will do, unless windows divide the maps of all stages.

    img_size: pixels. strides: of each stage's map. window: (rows, columns), or (1, 1).
    """
    step = math.lcm(*(stride * side for stride in strides for side in window))
    if img_size % step or img_size < 1:
        maps = ", ".join(f"{img_size / stride:g}" for stride in strides)
        size = f"{window[0]}×{window[1]}"
        raise ValueError(
            f"img_size {img_size}: windows of {size} do not divide maps of {maps}; they do at {step}, {2 * step}, …"
        )


def check_size(images: Tensor, img_size: int) -> None:
    """ValueError unless images (B, 3, H, W) are of the size that the network was made for."""
    height, width = images.shape[2:]
    if (height, width) != (img_size, img_size):
        raise ValueError(f"images are {height}×{width} pixels, and the network is for {img_size}×{img_size}")


def rates(drop_path: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates of stochastic depth, rising to `drop_path` in the last block: for each stage those of its blocks."""
    total = sum(depths)
    every = [drop_path * i / max(1, total - 1) for i in range(total)]
    return [every[sum(depths[:i]) : sum(depths[: i + 1])] for i in range(len(depths))]


def draw_weights(network: nn.Module) -> None:
    """Linear layers from a narrow normal distribution, convolutions by what goes out of them, biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
