"""Find the faces of each frame, as those of a picture, or by following people."""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from mien.faces import Detection, Detector, find_faces
from mien.faces.face import as_box
from mien.reader import Reader
from mien.video.cuts import Cuts
from mien.video.source import DecodedFrame, Every
from mien.video.track import Track, Tracker, overlaps

_LOOK, _AROUND = 192, 2.0  # pixels of the look between key frames, in which the face takes a half

Tracked = tuple[Detection | None, int | None]
"""A detection and its track; no detection where all of the frame is the face, and no track without tracking."""


class Finder:
    """Finds the faces of each frame as those of a picture, but without turns, and without tiles unless "full".

    cut: whether the last frame began another scene.
    """

    cut = False

    def __init__(self, reader: Reader):
        self.detector, self.min_face = reader.detector, reader.min_face
        self._search = "full" if reader.search == "full" else "fast"

    def __call__(self, picture: DecodedFrame) -> list[Tracked]:
        return [(face, None) for face in self.find(picture.image)] if self.detector else [(None, None)]

    def find(self, image: np.ndarray) -> list[Detection]:
        return find_faces(self.detector, image, self.min_face, search=self._search, turn=False)

    def large_enough(self, faces: Sequence[Detection]) -> list[Detection]:
        return [face for face in faces if min(face.box[2:]) >= self.min_face]


class Follower(Finder):
    """Finds the faces of key frames as `Finder` does, and in between looks only where a face is expected.

    There it looks with the detector, too, at a square twice as wide as the face, brought to 192 pixels: landmarks that
    were carried along instead would drift, and how a crop is aligned changes what is read in it. Where a face that was
    there a frame ago is not seen again, the frame becomes a key frame; new faces appear in key frames only.

    With another scene all tracks end. Where frames become larger or smaller, tracks go along; where frames get other
    proportions, tracks end, too.
    """

    def __init__(self, reader: Reader, keys: Every, cuts: Cuts):
        super().__init__(reader)
        self._keys, self._tracker, self._count, self._before = keys, Tracker(), 0, -math.inf
        self._cuts, self._size, self._scenes = cuts, (0, 0), 0

    def __call__(self, picture: DecodedFrame) -> list[Tracked]:
        size = picture.image.shape[1], picture.image.shape[0]
        other = self._size != (0, 0) and abs(size[0] * self._size[1] / (size[1] * self._size[0]) - 1) > 0.02
        self.cut = self._cuts(picture.image) or other
        self._scenes += self.cut
        if self.detector is None:
            self._size = size
            return [(None, 1 + self._scenes)]
        if self.cut:
            self._tracker.tracks.clear()
        elif self._size not in (size, (0, 0)):
            self._tracker.rescale(size[0] / self._size[0])
        self._size = size
        tracks = self._tracker.predict(picture.time, size)
        key = self._keys.due(self._count, picture.time) or self.cut
        faces: list[Detection] = []
        if not key and tracks:
            faces = self._look_near(picture.image, tracks)
            near = overlaps(np.array([t.box for t in tracks]), np.array([f.box for f in faces]).reshape(-1, 4))
            key = any(t.seen == self._before and not (row > 0.25).any() for t, row in zip(tracks, near, strict=True))
        if key:
            faces = self.find(picture.image)
        ids = self._tracker.update([face.box for face in faces], births=key)
        self._count, self._before = self._count + 1, picture.time
        found = [(face, id) for face, id in zip(faces, ids, strict=True) if id is not None]
        return sorted(found, key=lambda pair: -pair[0].box[2] * pair[0].box[3])

    def _look_near(self, image: np.ndarray, tracks: Sequence[Track]) -> list[Detection]:
        """What is seen about where the faces are expected, once each."""
        faces: list[Detection] = []
        for track in tracks:
            faces += look_near(self.detector, image, track.box, _AROUND + min(2, 2 * track.doubt))
        faces = sorted(self.large_enough(faces), key=lambda face: -face.score)
        boxes = np.array([face.box for face in faces]).reshape(-1, 4)
        same = np.triu(overlaps(boxes, boxes) > 0.4, 1).any(0)  # as one that is surer
        return [face for face, again in zip(faces, same, strict=True) if not again]


def look_near(detector: Detector, image: np.ndarray, box: np.ndarray, around: float = _AROUND) -> list[Detection]:
    """The faces in the square `around` times as wide as a box, as the detector sees it brought to 192 pixels.

    Boxes, (x, y, width, height), and faces are in pixels of the image (H, W, 3) uint8.
    """
    side = max(box[2:].max() * around, 8)
    low = np.floor(box[:2] + (box[2:] - side) / 2).astype(int).clip(0)
    high = np.ceil(box[:2] + (box[2:] + side) / 2).astype(int).clip(0, image.shape[1::-1])
    if (high <= low).any():
        return []
    part = image[low[1] : high[1], low[0] : high[0]]
    size = np.rint((high - low) * (_LOOK / side)).astype(int).clip(1, _LOOK)
    smaller = size[0] < part.shape[1]
    part = cv2.resize(part, tuple(map(int, size)), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
    # always of one size, since OpenVINO prepares itself, and keeps memory, for each
    part = cv2.copyMakeBorder(part, 0, _LOOK - int(size[1]), 0, _LOOK - int(size[0]), cv2.BORDER_CONSTANT)
    find = getattr(detector, "find", detector)  # whatever size they have in this look
    ratio = (high - low) / size
    return [
        Detection(
            as_box([*(low + face.box[:2] * ratio), *(face.box[2:] * ratio)]),
            face.score,
            (low + face.landmarks * ratio).astype(np.float32),
        )
        for face in find(part)
    ]
