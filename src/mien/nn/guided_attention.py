"""Multi-scale self-guided attention: maps of several levels, refined twice, guided by what they have in common."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mien.nn.base import OwnLoss
from mien.nn.dual_attention import CAM, PAM


def conv(c_in: int, c_out: int, kernel: int, act: nn.Module) -> nn.Sequential:
    """Convolution, batch norm, activation; the bias that is published before the norm would do nothing."""
    return nn.Sequential(nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(c_out), act)


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(B, D, H, W) -> (B, D, *size), bilinear."""
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


class MultiConv(nn.Sequential):
    """Two 3×3 convolutions and a 1×1: maps (B, c_in, H, W) -> (B, c_out, H, W).

    Each has a batch norm and a PReLU.

    Args:
        c_in, c_out: int, channels of the maps before and after.
        softmax: bool, whether the last activation is a softmax over channels; True.

    Paper and reference: `GuidedAttention`.
    """

    def __init__(self, c_in: int, c_out: int, softmax: bool = True):
        last = nn.Softmax(dim=1) if softmax else nn.PReLU()
        super().__init__(
            conv(c_in, c_out, 3, nn.PReLU()), conv(c_out, c_out, 3, nn.PReLU()), conv(c_out, c_out, 1, last)
        )


class SemanticModule(nn.Module):
    """An encoder and decoder: maps x (B, dim, H, W) -> code (B, 4 · dim, H / 4, W / 4), x rebuilt (B, dim, H, W).

    Two encoders of two 3×3 convolutions (batch norm, ReLU) and a 2×2 max pool; two decoders of two such convolutions
    and a transposed one; between the decoders the map is resized to the first encoder's. Ours: where H or W is no
    multiple of 4 it is resized again at the end, since the published module then gives another size.

    Paper and reference: `GuidedAttention`.
    """

    def __init__(self, dim: int):
        super().__init__()

        def two(c_in: int, c_out: int, last: nn.Module) -> nn.Sequential:
            return nn.Sequential(conv(c_in, c_out, 3, nn.ReLU()), conv(c_out, c_out, 3, nn.ReLU()), last)

        self.enc1 = two(dim, 2 * dim, nn.MaxPool2d(2))
        self.enc2 = two(2 * dim, 4 * dim, nn.MaxPool2d(2))
        self.dec2 = two(4 * dim, 2 * dim, nn.ConvTranspose2d(2 * dim, 2 * dim, 2, stride=2))
        self.dec1 = two(2 * dim, dim, nn.ConvTranspose2d(dim, dim, 2, stride=2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if min(x.shape[2:]) < 4:
            raise ValueError(f"the semantic module halves a map twice: {x.shape[2]}×{x.shape[3]} is too small")
        first = self.enc1(x)
        code = self.enc2(first)
        return code, resize(self.dec1(resize(self.dec2(code), first.shape[2:])), x.shape[2:])


def attention_layer(dim: int, attention: type[PAM | CAM], init_values: float = 0.0) -> nn.Sequential:
    """3×3 convolution (B, 2 · dim, H, W) -> (B, dim, H, W), PAM or CAM, 3×3 convolution."""
    return nn.Sequential(
        conv(2 * dim, dim, 3, nn.PReLU()), attention(dim, init_values=init_values), conv(dim, dim, 3, nn.PReLU())
    )


class GuidedRound(nn.Module):
    """One round over S scales: `A_s = join_s((pam_s(x) + cam_s(x)) · meaning_s(semantic(x)))`, `x = [side_s; guide_s]`.

    Sides and guides are S maps (B, dim, H, W) each -> S maps A, S codes, and the sum of the semantic module's S mean
    squared errors, which all scales share. Paper and reference: `GuidedAttention`.
    """

    def __init__(self, dim: int, scales: int, init_values: float = 0.0):
        super().__init__()
        self.pam = nn.ModuleList(attention_layer(dim, PAM, init_values) for _ in range(scales))
        self.cam = nn.ModuleList(attention_layer(dim, CAM, init_values) for _ in range(scales))
        self.semantic = SemanticModule(2 * dim)
        self.meaning = nn.ModuleList(nn.Conv2d(2 * dim, dim, 3, padding=1) for _ in range(scales))
        self.join = nn.ModuleList(nn.Conv2d(dim, dim, 1) for _ in range(scales))

    def forward(self, sides: list[Tensor], guides: list[Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor]:
        maps, codes, errors = [], [], []
        for s, pair in enumerate(zip(sides, guides, strict=True)):
            x = torch.cat(pair, dim=1)
            code, again = self.semantic(x)
            maps.append(self.join[s]((self.pam[s](x) + self.cam[s](x)) * self.meaning[s](again)))
            codes.append(code)
            errors.append(F.mse_loss(again, x))
        return maps, codes, sum(errors[1:], errors[0])


class GuidedAttention(OwnLoss):
    """A head over S maps (B, channels_s, H_s, W_s) -> logits (B, C), side logits (B, 2 · S, C).

        D_s = resize(conv1x1(map_s));   F = fuse([D_1; …; D_S])
        A_s = attend([D_s; F]);   R_s = refine([D_s; A_s · F])
        side logits: S of the D_s, then S of the R_s;   logits: the mean of those of the R_s
        L = Σ_2S CE(side logits) + aux_loss
        aux_loss = 0.25 · Σ_S MSE(codes of both rounds) + 0.1 · Σ_2S MSE(x, x rebuilt)

    `attend` and `refine` are a `GuidedRound` each. All maps are brought to the grid of map number `level`; published is
    the largest, 0. `aux_loss` is that of the last training forward, None in eval; `loss` is the sum of the CE. Ours: a
    face has one label, so there are logits of a map's mean instead of each position; any number of scales. Modules that
    published code builds and never calls are left out. A network with it is `mien.networks.guided_mobile`.

    Args:
        channels: int for each of S maps.
        num_classes: int, C.
        dim: int, width of all maps; 64.
        level: int in [0, S), of the map whose grid is used; 0.
        init_values: float at which gamma of PAM and CAM starts; 0.

    Paper: Sinha and Dolz, Multi-scale self-guided attention, arXiv 1906.02849. Reference:
    sinAshish/Multi-Scale-Attention, 96d76f2.
    """

    def __init__(
        self, channels: Sequence[int], num_classes: int, dim: int = 64, level: int = 0, init_values: float = 0.0
    ):
        super().__init__()
        if not 0 <= level < len(channels):
            raise ValueError(f"level must be the number of one of {len(channels)} maps, not {level!r}")
        self.level, scales = level, len(channels)
        self.adapt = nn.ModuleList(conv(c, dim, 1, nn.PReLU()) for c in channels)
        self.fuse = MultiConv(scales * dim, dim, softmax=False)
        self.attend, self.refine = (GuidedRound(dim, scales, init_values) for _ in range(2))
        self.heads = nn.ModuleList(nn.Linear(dim, num_classes) for _ in range(2 * scales))

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        size = maps[self.level].shape[2:]
        sides = [resize(adapt(x), size) for adapt, x in zip(self.adapt, maps, strict=True)]
        fused = self.fuse(torch.cat(sides, dim=1))
        guides, codes, error = self.attend(sides, [fused] * len(sides))
        refined, again, other_error = self.refine(sides, [guide * fused for guide in guides])
        if self.training:
            self.aux_loss = 0.25 * sum(map(F.mse_loss, codes, again)) + 0.1 * (error + other_error)
        logits = [head(x.mean((2, 3))) for head, x in zip(self.heads, sides + refined, strict=True)]
        side_logits = torch.stack(logits, dim=1)
        return side_logits[:, len(sides) :].mean(1), side_logits

    @staticmethod
    def loss(side_logits: Tensor, target: Tensor) -> Tensor:
        """`Σ_2S CE(side logits (B, 2 · S, C), target)`: indices (B,) or probs (B, C) -> a scalar."""
        first, *rest = (F.cross_entropy(logits, target) for logits in side_logits.unbind(1))
        return sum(rest, first)
