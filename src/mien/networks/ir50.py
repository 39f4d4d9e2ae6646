"""IR-50, the ArcFace residual network, as a trunk: its first three stages."""

from torch import Tensor, nn

from mien.networks.trunk import Trunk


class Subsample(nn.Module):
    """Every `stride`-th pixel of every `stride`-th row: (B, C, H, W) -> (B, C, H / stride, W / stride)."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[..., :: self.stride, :: self.stride] if self.stride > 1 else x


class Residual(nn.Module):
    """BN, conv3×3, PReLU, conv3×3 with `stride`, BN; plus a shortcut, and no activation after the sum."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(c_in),
            nn.Conv2d(c_in, c_out, 3, 1, 1, bias=False),
            nn.PReLU(c_out),
            nn.Conv2d(c_out, c_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )
        if c_in == c_out:
            self.shortcut_layer = Subsample(stride)  # published as a max-pool of one pixel
        else:
            self.shortcut_layer = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


def stage(c_in: int, c_out: int, units: int) -> nn.Sequential:
    return nn.Sequential(Residual(c_in, c_out, 2), *[Residual(c_out, c_out, 1) for _ in range(units - 1)])


class IR50(Trunk):
    """(B, 3, 112, 112) -> maps (B, 64, 56, 56), (B, 128, 28, 28), (B, 256, 14, 14).

    Stages of 3, 4 and 14 units, without squeeze and excitation. The fourth stage and the embedding are left out, and so
    are the stages behind the first `num_levels`. Convolutions start Xavier-uniform.

    Paper: Deng et al., ArcFace, 2019. Reference: Talented-Q/POSTER_V2, 18de559 (models/ir50.py).
    """

    levels = ((64, 56), (128, 28), (256, 14))  # channels and side of each map

    def __init__(self, num_levels: int = 3):
        super().__init__()
        if num_levels not in (1, 2, 3):
            raise ValueError(f"num_levels must be 1, 2 or 3, not {num_levels!r}")
        self.levels = self.levels[:num_levels]
        self.beyond = ("body1.", "body2.", "body3.")[num_levels:]
        self.input_layer = nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64))
        self.body1 = stage(64, 64, 3)
        self.body2 = stage(64, 128, 4) if num_levels > 1 else None
        self.body3 = stage(128, 256, 14) if num_levels > 2 else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x, maps = self.input_layer(images), []
        for body in (self.body1, self.body2, self.body3):
            if body is not None:
                x = body(x)
                maps.append(x)
        return tuple(maps)
