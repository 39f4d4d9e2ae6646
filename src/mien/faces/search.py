"""Search a picture for faces: the one place where a detector is asked again, of a framed or a turned picture."""

import warnings
from collections.abc import Callable, Iterable, Sequence

import cv2
import numpy as np

from mien.faces.detect import SEARCHES, Detection, Detector
from mien.faces.face import as_box
from mien.faces.tiles import shrink

_FRAMED = 320  # pixels of the longer side of a picture that is framed
_TURNED = 640  # pixels of the longer side of a picture that is turned
_SURER = 0.02  # how much higher the best score has to be in a turned picture

Find = Callable[[np.ndarray], Sequence[Detection]]


class Detections(list[Detection]):
    """The faces that were found in a picture, the largest first, in pixels of the picture as it was given.

    detections: those that were found.
    note: what was not searched for, in a sentence; None where nothing was left out.
    rotation: degrees clockwise, 0, 90, 180 or 270, by which the picture is turned to bring the faces upright.
    """

    def __init__(self, detections: Iterable[Detection] = (), *, note: str | None = None, rotation: int = 0):
        super().__init__(detections)
        self.note, self.rotation = note, rotation


def find_faces(
    detector: Detector,
    image: np.ndarray,
    min_face: float = 20,
    *,
    search: str = "auto",
    turn: bool = True,
    confirm: bool = True,
) -> Detections:
    """The faces in an image, whatever the detector, the largest first.

    detector: looks at the image.
    image: (H, W, 3) uint8 RGB.
    min_face: the least of a face's shorter side, in pixels of this very image, 20 by default.
    search: how thoroughly small faces are searched for, "auto" by default: see `YuNet.reach`.
    turn: whether a picture in which no face is surely upright is tried on its sides and upside down; True by default.
    confirm: whether what is not surely a face is left out unless a second look confirms it; True by default.

    Where the detector sees no face at all, it is shown the picture framed (`find_framed`). Where the best score is then
    not above `detector.sure` (0.92 of YuNet; of a detector that does not say, where nothing was found), the picture is
    also turned by 90, 180 and 270 degrees, brought to 640 pixels, framed only if it is no larger than 320, and the turn
    with the best score is kept if it is higher by 0.02.

    YuNet looks at most four times at a picture without faces, for each turn and beside its tiles.

    Raises ValueError for another `search`.
    """
    if search not in SEARCHES:
        raise ValueError(f"search is one of {', '.join(SEARCHES)}, not {search!r}")
    look = _Look(detector, confirm)
    found, rotation, stood = look(image, search), 0, image
    best = _best(found, min_face)
    if turn and best <= getattr(detector, "sure", 0.0):
        height, width = image.shape[:2]
        scale = min(1.0, _TURNED / max(height, width))
        small = shrink(image, max(1, round(width * scale)), max(1, round(height * scale)))
        turns = (90, 180, 270)
        again = look if max(height, width) <= _FRAMED else look.once  # what is small may be all face
        seen = [again(turn_image(small, degrees), "fast") for degrees in turns]
        scores = [_best(faces, min_face * scale) for faces in seen]
        if max(scores) > (best + _SURER if best else 0):
            surest = int(np.argmax(scores))
            rotation, stood = turns[surest], turn_image(image, turns[surest])
            found = look(stood, search) or [moved(face, (0, 0), (1 / scale, 1 / scale)) for face in seen[surest]]
    kept = [turn_face(face, stood.shape, -rotation) for face in found if min(face.box[2:]) >= min_face]
    return Detections(kept, note=_note(detector, image, min_face, search), rotation=rotation if kept else 0)


def find_known(detector: Detector, image: np.ndarray) -> Detections:
    """The faces in an image that surely shows one, upright: of any size, the doubtful included.

    detector: as for `find_faces`.
    image: (H, W, 3) uint8 RGB.
    """
    return find_faces(detector, image, 0, search="fast", turn=False, confirm=False)


class _Look:
    """The faces in a picture as it is, or where there are none, those in the picture framed.

    confirm: leave out what is doubtful, where the detector can tell.
    """

    def __init__(self, detector: Detector, confirm: bool):
        self._find = getattr(detector, "find", lambda image, search: detector(image))
        self._confirm = getattr(detector, "confirm", None) if confirm else None

    def __call__(self, image: np.ndarray, search: str) -> list[Detection]:
        return self.once(image, search) or find_framed(lambda framed: self.once(framed, "fast"), image)

    def once(self, image: np.ndarray, search: str) -> list[Detection]:
        """Those in the picture as it is."""
        faces = self._find(image, search)
        return [face for face in faces if self._confirm is None or self._confirm(image, face)]


def _best(faces: Sequence[Detection], min_face: float) -> float:
    return max((face.score for face in faces if min(face.box[2:]) >= min_face), default=0.0)


def _note(detector: Detector, image: np.ndarray, min_face: float, search: str) -> str | None:
    reach = getattr(detector, "reach", None)
    least = 0.0 if reach is None else reach(image.shape, search)
    return f"faces under {least:.0f} px were not searched for" if round(least) > max(min_face, 1) else None


def find_framed(find: Find, image: np.ndarray) -> list[Detection]:
    """What is found in an image whose longer side is brought to 320 pixels, in a black border.

    find: an image -> the detections in it; a detector is one.
    image: (H, W, 3) uint8 RGB.

    The border is half as wide and high as the picture, on either side. Detectors learnt from whole photographs, and a
    crop that is all face may be found only so: of FER2013's 48×48, 98 in 100 instead of 79.
    """
    height, width = image.shape[:2]
    scale = _FRAMED / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = size[0] // 2, size[1] // 2
    fitted = shrink(image, *size) if scale < 1 else cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    framed = cv2.copyMakeBorder(fitted, top, top, left, left, cv2.BORDER_CONSTANT)
    return [moved(face, (-left, -top), (width / size[0], height / size[1])) for face in find(framed)]


def moved(face: Detection, by: Sequence[float], scale: Sequence[float] = (1, 1)) -> Detection:
    """The detection moved by x and y pixels, and then scaled along x and y."""
    offset, factor = np.array(by, float), np.array(scale, float)
    corner, size = (np.array(face.box[:2]) + offset) * factor, np.array(face.box[2:]) * factor
    landmarks = ((face.landmarks + offset) * factor).astype(np.float32)
    return Detection(as_box([*corner, *size]), face.score, landmarks)


def upright(image: np.ndarray, found: Detections) -> tuple[np.ndarray, list[Detection]]:
    """The picture in which faces were found, turned to bring them upright, and where they lie in it then."""
    return turn_image(image, found.rotation), [turn_face(face, image.shape, found.rotation) for face in found]


def turn_image(image: np.ndarray, degrees: int) -> np.ndarray:
    """image (H, W, 3), turned clockwise by 0, 90, 180 or 270 degrees; itself where it is not turned."""
    return np.ascontiguousarray(np.rot90(image, -degrees // 90)) if degrees else image


def turn_face(face: Detection, shape: Sequence[int], degrees: int) -> Detection:
    """Where a face of a picture of this shape (H, W, …) lies once that is turned clockwise by 0 to 270 degrees."""
    x, y, w, h = face.box
    height, width = shape[:2]
    for _ in range(degrees // 90 % 4):
        x, y, w, h = height - y - h, x, h, w
        height, width = width, height
    return Detection((x, y, w, h), face.score, turn_points(face.landmarks, shape, degrees))


def turn_points(points: np.ndarray, shape: Sequence[int], degrees: int) -> np.ndarray:
    """Where points (N, 2) of a picture of this shape (H, W, …) lie once that is turned clockwise by so many degrees."""
    height, width = shape[:2]
    for _ in range(degrees // 90 % 4):
        points = np.stack([height - points[:, 1], points[:, 0]], axis=1)
        height, width = width, height
    return points


def detect_or_retry(detector: Detector, image: np.ndarray, min_face: float = 20) -> Detections:
    """The old name of `find_faces`, without turns.

    detector, image, min_face: as for `find_faces`.
    """
    warnings.warn("detect_or_retry is now find_faces", DeprecationWarning, stacklevel=2)
    return find_faces(detector, image, min_face, turn=False)


def look_again(detector: Detector, image: np.ndarray) -> list[Detection]:
    """The old name of `find_framed`.

    detector, image: as `find` and `image` there.
    """
    warnings.warn("look_again is now find_framed", DeprecationWarning, stacklevel=2)
    return find_framed(detector, image)
