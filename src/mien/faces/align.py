"""From a picture to the square that a network looks at: align to five landmarks, crop, resize."""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image

ARCFACE112 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float32
)
"""(5, 2): where eyes, nose and corners of the mouth lie in a 112×112 crop (ArcFace; insightface's `arcface_dst`)."""

_INTERPOLATION = {"nearest": cv2.INTER_NEAREST, "linear": cv2.INTER_LINEAR}


def similarity(landmarks: np.ndarray, template: np.ndarray = ARCFACE112) -> np.ndarray:
    """The 2×3 matrix of the rotation, scale and shift that brings landmarks closest to a template.

    landmarks: (5, 2), x and y.
    template: (5, 2), x and y where they are to lie; ARCFACE112 by default.

    With points as complex numbers and their means taken away, p from and q to, the least squares answer is
    `q ≈ m p`, `m = Σ p̄ q / Σ |p|²`: Umeyama's, without the mirror images.

    Raises ValueError where the points cannot be a face (they coincide, are not finite, or are mirrored), since the
    crop would then be of any size.
    """
    points = np.asarray(landmarks, np.float64) @ (1, 1j)
    goals = np.asarray(template, np.float64) @ (1, 1j)
    p, q = points - points.mean(), goals - goals.mean()
    spread, match = np.vdot(p, p).real, np.vdot(p, q)
    # |match| / (|p| |q|) is 1 for the template itself and 0.23 for its mirror image
    if not spread > 1e-6 or not abs(match) > 0.4 * np.sqrt(spread * np.vdot(q, q).real):
        raise ValueError("these landmarks do not make a face")
    m = match / spread
    t = goals.mean() - m * points.mean()
    return np.array([[m.real, -m.imag, t.real], [m.imag, m.real, t.imag]])


def align(image: np.ndarray, landmarks: np.ndarray, size: int = 112) -> np.ndarray:
    """Cut out a face, turned and scaled to bring its landmarks to ARCFACE112.

    image: (H, W, 3) uint8.
    landmarks: (5, 2), x and y in pixels of the image.
    size: int, pixels along the side of the crop; 112.

    Returns (size, size, 3) uint8. A face larger than the crop is averaged over the area of each of its pixels: whole
    blocks of pixels first while it is more than thrice as large, then n×n samples a pixel. What lies outside of the
    picture repeats its edge, since a black bar would be the strongest line in the crop.

    Raises ValueError where the landmarks cannot be a face.
    """
    matrix = similarity(landmarks, ARCFACE112 * (size / 112))
    shrink = 1 / np.hypot(*matrix[:, 0])  # pixels of the picture to one of the crop
    block = max(1, int(shrink / 3))
    image, (x, y) = _part(image, matrix, size, block)
    # pixel u of the part has its centre at x + block·u + (block - 1) / 2 of the picture
    matrix[:, 2] += matrix[:, :2] @ (x + (block - 1) / 2, y + (block - 1) / 2)
    matrix[:, :2] *= block
    samples = max(1, int(np.ceil(shrink / block - 0.1)))
    matrix *= samples
    matrix[:, 2] += (samples - 1) / 2
    crop = cv2.warpAffine(
        image, matrix, (size * samples, size * samples), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA) if samples > 1 else crop


def resize(image: np.ndarray, steps: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Bring an image to the size of the last of some steps, through each of them; never in place.

    image: (H, W, 3) uint8.
    steps: each {"size": pixels of the square's side, "interpolation": "auto" | "linear" | "nearest" | "bicubic"}.
        "auto", the default, averages areas along a side that shrinks and interpolates linearly along one that grows;
        "bicubic" is Pillow's and averages, too; "linear" and "nearest" are OpenCV's and never do.

    Raises ValueError for another interpolation.
    """
    for step in steps:
        size, interpolation = int(step["size"]), step.get("interpolation", "auto")
        if interpolation == "auto":
            height, width = image.shape[:2]
            if max(height, width) > size:
                image = cv2.resize(image, (min(width, size), min(height, size)), interpolation=cv2.INTER_AREA)
            image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
        elif interpolation == "bicubic":
            image = np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
        elif interpolation in _INTERPOLATION:
            image = cv2.resize(image, (size, size), interpolation=_INTERPOLATION[interpolation])
        else:
            raise ValueError(f"no such interpolation: {interpolation!r}")
    return image


def crop(
    image: np.ndarray,
    preprocess: Mapping[str, Any],
    landmarks: np.ndarray | None = None,
    box: Sequence[float] | None = None,
) -> np.ndarray:
    """What a network with this `preprocess` is shown of a face: the one way from a picture to its input, everywhere.

    image: (H, W, 3) uint8 RGB.
    preprocess: of the model's header; "align" and "resize" of it are read.
    landmarks: (5, 2), x and y in pixels of the image; None: there are none.
    box: x, y, width, height in the same pixels; None: the whole picture.

    Returns (input_size, input_size, 3) uint8 RGB: the face aligned to the size of the first step where
    `preprocess["align"]` is "arcface112" and there are landmarks; else the square around the box, or without a box the
    whole picture; then through the steps of `preprocess["resize"]`.

    Raises ValueError for an unknown alignment, and for landmarks that cannot be a face where no box stands in for them.
    """
    if preprocess["align"] not in ("arcface112", "none"):
        raise ValueError(f"no such alignment: {preprocess['align']!r}")
    if preprocess["align"] == "arcface112" and landmarks is not None:
        try:
            return resize(align(image, landmarks, int(preprocess["resize"][0]["size"])), preprocess["resize"])
        except ValueError:
            if box is None:
                raise
    return resize(image if box is None else square(image, box)[0], preprocess["resize"])


def _part(image: np.ndarray, matrix: np.ndarray, size: int, block: int) -> tuple[np.ndarray, tuple[int, int]]:
    """What a crop of `size` pixels sees of the picture, each block×block of it made one pixel, and where it begins."""
    inverse = cv2.invertAffineTransform(matrix)
    corners = np.array([[0, 0], [size, 0], [0, size], [size, size]]) - 0.5
    seen = corners @ inverse[:, :2].T + inverse[:, 2]
    limit = np.array(image.shape[1::-1])
    x, y = np.clip(np.floor(seen.min(0)).astype(int) - 2 * block, 0, limit - 1)
    right, bottom = np.clip(np.ceil(seen.max(0)).astype(int) + 2 * block, (x + 1, y + 1), limit)
    part = image[y:bottom, x:right]
    if block > 1:
        width, height = -(-(right - x) // block), -(-(bottom - y) // block)
        down, over = height * block - part.shape[0], width * block - part.shape[1]
        part = cv2.copyMakeBorder(part, 0, down, 0, over, cv2.BORDER_REPLICATE)
        part = cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA)
    return part, (int(x), int(y))


def square(image: np.ndarray, box: Sequence[float]) -> tuple[np.ndarray, tuple[int, int]]:
    """The square about the middle of the box, as wide as its longer side, and the x, y of its corner in the picture.

    image: (H, W, 3) uint8; box: x, y, width, height in its pixels. Beyond the picture its edge is repeated.
    """
    x, y, width, height = box
    side = max(1, round(max(width, height)))
    left, top = round(x + (width - side) / 2), round(y + (height - side) / 2)
    columns = np.arange(left, left + side).clip(0, image.shape[1] - 1)
    rows = np.arange(top, top + side).clip(0, image.shape[0] - 1)
    return image[rows[:, None], columns], (left, top)
