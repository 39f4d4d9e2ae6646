"""All heads of a picture, wherever they look: a checkpoint of DirectMHP, in an engine."""

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from mien.engines import open_model
from mien.errors import MienError
from mien.heads.angles import decode
from mien.heads.annotations import Head
from mien.heads.header import OUTPUTS, read_heads_header


class HeadDetector:
    """Finds the heads of a picture and how each is turned: `HeadDetector(path)(image)`.

    source: a .onnx file that `mien heads export` wrote, run by an engine; a .safetensors file, run by torch; or what
        takes uint8 (B, S, S, 3) RGB and gives "scores" (B, N), "boxes" (B, N, 4), "angles" (B, N, 3), for tests.
    size: int, S, of a source that is no file; a file says its own.
    threshold: the least score, 0 to 1; 0.3 by default.
    overlap: the IoU of two boxes above which the one with the lower score is left out, 0 to 1; 0.5 by default.

    The picture is brought to S pixels, its longer side, with black below or on the right. What is smaller than some 12
    pixels there is not found.

    Raises CheckpointError for a file that is no head detector, and MienError for a threshold or overlap out of range.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Callable[[np.ndarray], dict[str, np.ndarray]],
        *,
        size: int | None = None,
        threshold: float = 0.3,
        overlap: float = 0.5,
    ):
        for name, value in (("threshold", threshold), ("overlap", overlap)):
            if not 0 <= value <= 1:
                raise MienError(f"{name} must be 0 to 1, not {value!r}")
        self.threshold, self.overlap = threshold, overlap
        if callable(source):
            if size is None:
                raise MienError("a detector that is no file needs a size")
            self.size, self.run = size, source
            return
        self.size = read_heads_header(source)["input_size"]
        if Path(source).suffix == ".safetensors":
            from mien.heads.checkpoint import open_checkpoint

            self.run = open_checkpoint(source)
        else:
            self.run = open_model(source, device="cpu")

    def __call__(self, image: np.ndarray) -> list[Head]:
        """The heads of image (H, W, 3) uint8 RGB, the surest first, in pixels of it; boxes are cut at its edges."""
        scale = self.size / max(image.shape[:2])
        size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        small = cv2.resize(image, size, interpolation=way)
        framed = cv2.copyMakeBorder(small, 0, self.size - size[1], 0, self.size - size[0], cv2.BORDER_CONSTANT)
        found = self.run(framed[None])
        scores, boxes, codes = (np.asarray(found[name][0]) for name in OUTPUTS)
        sure = scores > self.threshold
        scores, boxes, angles = scores[sure], boxes[sure], decode(codes[sure].clip(0, 1))
        low = np.clip(boxes[:, :2], 0, size)
        boxes = np.concatenate([low, np.clip(boxes[:, :2] + boxes[:, 2:], 0, size) - low], 1)
        boxes *= np.tile(np.divide(image.shape[1::-1], size), 2)
        whole = (boxes[:, 2:] > 0).all(1)
        keep = [i for i in suppress(boxes, scores, self.overlap) if whole[i]]
        return [Head(tuple(map(float, boxes[i])), tuple(map(float, angles[i])), float(scores[i])) for i in keep]


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (n, 4) with others (m, 4) -> (n, m)."""
    low = np.maximum(boxes[:, None, :2], others[:, :2])
    high = np.minimum((boxes[:, :2] + boxes[:, 2:])[:, None], others[:, :2] + others[:, 2:])
    shared = (high - low).clip(0).prod(-1)
    total = boxes[:, 2:].prod(-1)[:, None] + others[:, 2:].prod(-1) - shared
    return shared / np.maximum(total, 1e-9)


def suppress(boxes: np.ndarray, scores: np.ndarray, overlap: float) -> list[int]:
    """The numbers of boxes (n, 4) of which none with a higher score overlaps by more, the highest score first."""
    keep: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        if not keep or overlaps(boxes[i : i + 1], boxes[keep]).max() <= overlap:
            keep.append(int(i))
    return keep
