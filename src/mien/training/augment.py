"""Changes to training faces: small grey squares in, what cameras and detectors really deliver out."""

import cv2
import kornia.augmentation as K
import numpy as np
import torch
import torch.nn.functional as F
from kornia.augmentation.auto import RandAugment
from kornia.enhance import jpeg_codec_differentiable
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


class Jpeg(nn.Module):
    """With probability `p` a face is compressed: (B, 3, H, W) in [0, 1].

    It is shrunk to a side between `smallest` pixels and its own, written as a JPEG file of a quality between `quality`,
    read and enlarged again. On a GPU a group of faces has one side, a multiple of 16, and the coding is `kornia`'s.
    """

    def __init__(self, p: float = 0.1, quality: tuple[int, int] = (15, 90), smallest: int = 40):
        super().__init__()
        if not 1 <= quality[0] <= quality[1] <= 100:
            raise ValueError(f"qualities rise from 1 to 100, not {quality}")
        self.p, self.quality, self.smallest = p, quality, smallest

    def forward(self, images: Tensor) -> Tensor:
        if images.is_cuda:
            return self._on_gpu(images)
        height, width = images.shape[2:]
        out = images.clone()
        for i in (torch.rand(len(images)) < self.p).nonzero().flatten().tolist():
            side = int(torch.randint(min(self.smallest, height), height + 1, ()))
            quality = int(torch.randint(self.quality[0], self.quality[1] + 1, ()))
            face = (images[i].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy(force=True)
            small = cv2.resize(face, (side * width // height, side), interpolation=cv2.INTER_AREA)
            coded = cv2.imencode(".jpg", small[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, quality))[1]
            face = cv2.resize(cv2.imdecode(coded, cv2.IMREAD_COLOR), (width, height))[..., ::-1]
            out[i] = torch.from_numpy(np.ascontiguousarray(face)).to(out).permute(2, 0, 1) / 255
        return out

    def _on_gpu(self, images: Tensor) -> Tensor:
        size, out = images.shape[2:], images.clone()
        chosen = (torch.rand(len(images)) < self.p).nonzero().flatten()
        for part in chosen.split(-(-max(1, len(chosen)) // 4)):
            if not len(part):
                break
            side = 16 * int(torch.randint(min(self.smallest, size[0]) // 16, size[0] // 16 + 1, ()))
            quality = torch.randint(self.quality[0], self.quality[1] + 1, (len(part),)).to(images)
            part = part.to(images.device)
            small = F.interpolate(images[part], (side, side), mode="bilinear", antialias=True, align_corners=False)
            coded = jpeg_codec_differentiable(small.clamp(0, 1), quality)
            out[part] = F.interpolate(coded, size, mode="bilinear", align_corners=False).to(out)
        return out


class RandomChanges(nn.Module):
    """`count` of RandAugment's thirteen changes, drawn for each of `groups` parts of a batch: (B, 3, H, W) in [0, 1].

    magnitude: in (0, 30), of every change that has one. What is turned, sheared or moved leaves black behind.

    Paper: Cubuk et al., RandAugment, 2020; the changes are its, kornia computes them.
    """

    POLICY = (
        ("auto_contrast", 0, 1),
        ("equalize", 0, 1),
        ("rotate", -30.0, 30.0),
        ("posterize", 4.0, 8.0),
        ("solarize", 0.0, 1.0),
        ("color", 0.1, 1.9),
        ("contrast", 0.1, 1.9),
        ("brightness", 0.1, 1.9),
        ("sharpness", 0.1, 1.9),
        ("shear_x", -0.3, 0.3),
        ("shear_y", -0.3, 0.3),
        ("translate_x", -0.1, 0.1),
        ("translate_y", -0.1, 0.1),
    )

    def __init__(self, count: int = 2, magnitude: int = 10, groups: int = 4):
        super().__init__()
        if not 0 < magnitude < 30 or not 0 < count <= len(self.POLICY):
            allowed = f"1 to {len(self.POLICY)} changes of a magnitude within 0 and 30"
            raise ValueError(f"RandAugment: {allowed}, not {count} of {magnitude}")
        self.groups = groups
        self.change = RandAugment(count, magnitude, [[each] for each in self.POLICY])

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self.change(part) for part in images.chunk(self.groups)])


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


def mix_up(images: Tensor, target: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Every face is mixed with another of its batch, `λ · own + (1 - λ) · other`, and its target is, too.

    images: (B, ...); target: (B, C) shares. λ is the larger of l and 1 - l, l ~ Beta(alpha, alpha), drawn for each
    face; every face is the other of one, now and then its own.

    Paper: Zhang et al., mixup: Beyond Empirical Risk Minimization, 2018, which draws one λ for a batch.
    """
    own = torch.distributions.Beta(alpha, alpha).sample((len(images),))
    own = torch.maximum(own, 1 - own).to(images)
    other = torch.randperm(len(images)).to(images.device)

    def mix(x: Tensor) -> Tensor:
        return x[other].lerp(x, own.to(x.dtype).view(-1, *[1] * (x.ndim - 1)))

    return mix(images), mix(target)


def cut_mix(images: Tensor, target: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Every face has a rectangle of another of its batch in the same place, and that share of the other's target.

    images: (B, D, H, W); target: (B, C) shares. The rectangle has the picture's ratio of sides and a share 1 - λ of its
    area, λ ~ Beta(alpha, alpha), drawn for each face; its centre is drawn evenly, and what lies outside of the picture
    is cut off and does not count. Every face is the other of one, now and then its own.

    Paper: Yun et al., CutMix, ICCV 2019, which draws one λ and one rectangle for a batch.
    """
    count, _, height, width = images.shape
    side = (1 - torch.distributions.Beta(alpha, alpha).sample((count, 1))).sqrt()

    def band(length: int) -> Tensor:  # (B, length), true within the rectangle
        middle, half = torch.rand(count, 1) * length, side * length / 2
        places = torch.arange(length) + 0.5
        return (places > middle - half) & (places < middle + half)

    inside = (band(height)[:, :, None] & band(width)[:, None]).to(images.device)
    other = torch.randperm(count).to(images.device)
    share = inside.float().mean((1, 2)).to(target)[:, None]
    return torch.where(inside[:, None], images[other], images), target.lerp(target[other], share)


class Augmentation(nn.Module):
    """Images (B, 3, H, W) in [0, 1] -> the same, changed at random; `after` changes them again once normalised."""

    def after(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), of mean about 0 and deviation about 1 -> the same."""
        return images


class Augment(Augmentation):
    """Images (B, 3, H, W) in [0, 1] -> the same, changed at random.

    Flip; rotation, shift and scale, which imitate another detector's crop; brightness and contrast; colour; resolution
    (a side drawn from `resample_side`, in pixels); compression (a quality drawn from `jpeg_quality`, at a side from
    `jpeg_smallest` pixels up); noise; erased rectangles. Every `p` is the share of faces that a change meets.
    `rand_count` above 0 has `RandomChanges` of `rand_magnitude` before all of this.
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
        resample_side: tuple[int, int] = (20, 64),
        jpeg_p: float = 0.0,
        jpeg_quality: tuple[int, int] = (15, 90),
        jpeg_smallest: int = 40,
        noise_p: float = 0.2,
        erase_p: float = 0.3,
        erase_scale: tuple[float, float] = (0.02, 0.15),
        rand_count: int = 0,
        rand_magnitude: int = 10,
    ):
        super().__init__()
        self.steps = nn.Sequential(
            *([RandomChanges(rand_count, rand_magnitude)] if rand_count else []),
            K.RandomHorizontalFlip(p=flip),
            K.RandomAffine(degrees, (translate, translate), scale, padding_mode="border", p=affine_p),
            K.ColorJiggle(brightness, contrast, 0.0, 0.0, p=0.8),
            Tint(tint, tint),
            Resample(*resample_side, p=resample_p),
            Jpeg(jpeg_p, jpeg_quality, jpeg_smallest),
            K.RandomGaussianNoise(std=0.03, p=noise_p),
            K.RandomErasing(erase_scale, (0.3, 3.3), value=0.5, p=erase_p),
        )

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.steps(images).clamp(0, 1)


class Erase(nn.Module):
    """With probability `p` a rectangle is filled with noise, N(0, 1) in every pixel: (B, 3, H, W), normalised.

    Its share of the picture is drawn evenly from `scale`, its height by its width evenly from `ratio`; where none of
    ten draws is smaller than the picture, the face stays whole.

    Paper: Zhong et al., Random Erasing Data Augmentation, 2020. Reference: youqingxiaozhua/APViT, 9efaf97
    (mmcls/datasets/pipelines/transforms.py): `ratio` is even there, where others draw its logarithm.
    """

    def __init__(
        self, p: float = 0.5, scale: tuple[float, float] = (0.02, 0.33), ratio: tuple[float, float] = (0.3, 3.3)
    ):
        super().__init__()
        self.p, self.scale, self.ratio = p, scale, ratio

    def forward(self, images: Tensor) -> Tensor:
        count, _, height, width = images.shape
        area = height * width * torch.empty(count, 10).uniform_(*self.scale)
        ratio = torch.empty(count, 10).uniform_(*self.ratio)
        h, w = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (h < height) & (w < width)
        first = fits.int().argmax(1, keepdim=True)
        h, w = h.gather(1, first), w.gather(1, first)  # (B, 1)
        y = torch.arange(height) - (torch.rand(count, 1) * (height - h + 1)).floor()  # (B, H), 0 at the upper edge
        x = torch.arange(width) - (torch.rand(count, 1) * (width - w + 1)).floor()
        chosen = fits.any(1) & (torch.rand(count) < self.p)
        rows, columns = (y >= 0) & (y < h) & chosen[:, None], (x >= 0) & (x < w)
        hole = (rows[:, None, :, None] & columns[:, None, None]).to(images.device)
        return torch.where(hole, torch.randn_like(images), images)


class APViTAugment(Augmentation):
    """Images (B, 3, S, S) in [0, 1] of any side S -> (B, 3, size, size), as APViT, and TransFER before it, was trained.

    In this order: turned by up to `degrees` about the middle, black behind the corners; a square of a share `crop` of
    the area, resized (bilinear, as OpenCV does it, without antialiasing); flipped; grey; brightness, contrast,
    saturation and hue (`jitter`, torchvision's); and, once normalised, erased (`Erase`). Every `p` is the share of
    faces that a change meets.

    The published code changes colours of pictures whose channels are still in OpenCV's order: its grey has 0.299 of
    blue, its hues turn the other way. `bgr_compat` does so, too. Departs from it: nothing is rounded to 8 bits
    between the steps, and the order of the four changes of colour is drawn for a batch, not for every face.

    Paper: Xue et al., APViT, arXiv 2212.05463. Reference: youqingxiaozhua/APViT, 9efaf97
    (configs/_base_/datasets/RAF.py).
    """

    def __init__(
        self,
        size: int = 112,
        degrees: float = 6.0,
        rotate_p: float = 0.5,
        crop: tuple[float, float] = (0.8, 1.0),
        flip: float = 0.5,
        grey_p: float = 0.2,
        jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1),
        jitter_p: float = 0.8,
        erase_p: float = 0.5,
        erase_scale: tuple[float, float] = (0.02, 0.33),
        erase_ratio: tuple[float, float] = (0.3, 3.3),
        bgr_compat: bool = False,
    ):
        super().__init__()
        self.shape = nn.Sequential(
            K.RandomRotation(degrees, p=rotate_p),
            K.RandomResizedCrop((size, size), crop, (1.0, 1.0), align_corners=False),
            K.RandomHorizontalFlip(p=flip),
        )
        self.colour = nn.Sequential(K.RandomGrayscale(p=grey_p), K.ColorJitter(*jitter, p=jitter_p))
        self.erase, self.bgr_compat = Erase(erase_p, erase_scale, erase_ratio), bgr_compat

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        images = self.shape(images)
        images = self.colour(images.flip(1)).flip(1) if self.bgr_compat else self.colour(images)
        return images.clamp(0, 1)

    @torch.no_grad()
    def after(self, images: Tensor) -> Tensor:
        return self.erase(images)
