"""Changes to training faces: small grey squares in, what cameras and detectors really deliver out."""

import kornia.augmentation as K
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Resample(nn.Module):
    """With probability `p` a face is shrunk to a random side and enlarged again: (B, 3, H, W) in [0, 1].

    A batch is cut into `groups`, each with a side of its own between `smallest` and `largest` pixels.
    """

    def __init__(self, smallest: int = 20, largest: int = 64, p: float = 0.3, groups: int = 4):
        super().__init__()
        if not 1 < smallest <= largest:
            raise ValueError(f"the sides must rise from 2 up, not {smallest} to {largest}")
        self.smallest, self.largest, self.p, self.groups = smallest, largest, p, groups

    def forward(self, images: Tensor) -> Tensor:
        size = images.shape[2:]
        chosen = (torch.rand(len(images)) < self.p).nonzero().flatten()
        out = images.clone()
        for part in chosen.chunk(self.groups):
            if len(part):
                side = int(torch.randint(self.smallest, self.largest + 1, ()))
                small = F.interpolate(images[part], (side, side), mode="bilinear", antialias=True, align_corners=False)
                out[part] = F.interpolate(small, size, mode="bilinear", align_corners=False)
        return out


class Tint(nn.Module):
    """With probability `p` each channel gets a factor and an exponent of its own: (B, 3, H, W) in [0, 1].

    Factors lie in 1 ± `gain`, exponents in 1 ± `gamma`: coloured light and skin over grey pictures.
    """

    def __init__(self, gain: float = 0.2, gamma: float = 0.2, p: float = 0.5):
        super().__init__()
        self.gain, self.gamma, self.p = gain, gamma, p

    def forward(self, images: Tensor) -> Tensor:
        def around_one(spread: float) -> Tensor:
            spread = spread * (torch.rand(len(images), 1, 1, 1, device=images.device) < self.p)
            return 1 + spread * (2 * torch.rand(len(images), 3, 1, 1, device=images.device) - 1)

        return (images.clamp_min(1e-4) ** around_one(self.gamma) * around_one(self.gain)).clamp(0, 1)


class Augment(nn.Module):
    """Images (B, 3, H, W) in [0, 1] -> the same, changed at random.

    Flip; rotation, shift and scale, which imitate another detector's crop; brightness and contrast; colour; resolution;
    noise; erased rectangles. Every `p` is the share of faces that a change meets.
    """

    def __init__(
        self,
        flip: float = 0.5,
        degrees: float = 15.0,
        translate: float = 0.08,
        scale: tuple[float, float] = (0.85, 1.2),
        affine_p: float = 0.8,
        brightness: float = 0.25,
        contrast: float = 0.3,
        tint: float = 0.2,
        resample_p: float = 0.3,
        noise_p: float = 0.2,
        erase_p: float = 0.3,
        erase_scale: tuple[float, float] = (0.02, 0.15),
    ):
        super().__init__()
        self.steps = nn.Sequential(
            K.RandomHorizontalFlip(p=flip),
            K.RandomAffine(degrees, (translate, translate), scale, padding_mode="border", p=affine_p),
            K.ColorJiggle(brightness, contrast, 0.0, 0.0, p=0.8),
            Tint(tint, tint),
            Resample(p=resample_p),
            K.RandomGaussianNoise(std=0.03, p=noise_p),
            K.RandomErasing(erase_scale, (0.3, 3.3), value=0.5, p=erase_p),
        )

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.steps(images).clamp(0, 1)
