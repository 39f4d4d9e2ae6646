"""Lines over faces: which way a head is turned, its mesh, its irises, and where the eyes look."""

from collections.abc import Sequence

import cv2
import numpy as np

from mien.faces.face import Face
from mien.faces.palette import Colour
from mien.faces.pose import rotation_of

AXES: tuple[Colour, ...] = ((213, 94, 0), (0, 158, 115), (86, 180, 233))
"""Of the cross: to the person's left, down, and where the nose points."""

_LOOK: Colour = (240, 228, 66)
_LINE: Colour = (255, 255, 255)
_NOSE, _IRISES, _RIM = 1, (468, 473), 4  # points of a mesh; each iris is followed by as many points on its edge
_OUTLINES = tuple(
    np.array(line.split(), int)
    for line in (
        "10 338 297 332 284 251 389 356 454 323 361 288 397 365 379 378 400 377 152 148 176 149 150 136 172 58 132 93 "
        "234 127 162 21 54 103 67 109",
        "61 146 91 181 84 17 314 405 321 375 291 409 270 269 267 0 37 39 40 185",
        "78 95 88 178 87 14 317 402 318 324 308 415 310 311 312 13 82 81 80 191",
        "33 7 163 144 145 153 154 155 133 173 157 158 159 160 161 246",
        "263 249 390 373 374 380 381 382 362 398 384 385 386 387 388 466",
        "70 63 105 66 107 55 65 52 53 46",
        "300 293 334 296 336 285 295 282 283 276",
    )
)
"""Points of a mesh around the face, the lips outside and inside, the eyes and the brows."""

_WIDE = 110  # pixels of a face from which the lines between all points of a mesh can be seen apart
_SHIFT = 4  # bits behind the point of OpenCV's coordinates


def trace(
    image: np.ndarray, faces: Sequence[Face], *, axes: bool = True, mesh: bool = True, zoom: float = 1.0
) -> np.ndarray:
    """The picture with lines over its faces; itself where there is nothing to draw.

    image: (H, W, 3) uint8 RGB, which stays as it is: the picture, enlarged `zoom` times. axes: a cross in the middle of
        each face whose pose is known, with arms to the person's left, down, and where the nose points. mesh: of faces
        that have one, the lines of the mesh, outlines, irises, and where the eyes look.
    """
    faces = [face for face in faces if (axes and face.pose) or (mesh and face.mesh is not None)]
    if not faces:
        return image
    drawn = image.copy()
    for face in faces:
        if mesh and face.mesh is not None:
            _mesh(drawn, face, face.mesh[:, :2] * zoom)
    for face in faces:
        if axes and face.pose:
            _cross(drawn, face, zoom)
    return drawn


def _cross(image: np.ndarray, face: Face, zoom: float) -> None:
    """Arms a third of the face's width long, as they look from the camera; the nearest is drawn last."""
    if face.mesh is not None:
        middle = face.mesh[_NOSE, :2] * zoom
    elif face.landmarks is not None:
        middle = face.landmarks[2] * zoom
    else:
        middle = np.array(image.shape[1::-1]) / 2
    width = min(face.box[2:]) * zoom if face.box else min(image.shape[:2])
    arms = _head(face) * (1, 1, -1)  # the nose points against z
    thick = max(1, round(width / 60))
    for i in np.argsort(-arms[2]):
        _line(image, np.stack([middle, middle + arms[:2, i] * width / 3]), AXES[i], thick)


def _mesh(image: np.ndarray, face: Face, points: np.ndarray) -> None:
    width = float(np.ptp(points, axis=0).max())
    thick = max(1, round(width / 250))
    if width >= _WIDE:
        faint = image.copy()
        cv2.polylines(faint, list(_fixed(points[_edges(face)])), False, _LINE, 1, cv2.LINE_AA, _SHIFT)
        cv2.addWeighted(faint, 0.35, image, 0.65, 0, image)
    for outline in _OUTLINES:
        cv2.polylines(image, [_fixed(points[outline])], True, _LINE, thick, cv2.LINE_AA, _SHIFT)
    look = face.outputs.get("eye_direction")
    for iris in _IRISES:
        rim = points[iris + 1 : iris + 1 + _RIM]
        radius = float(np.linalg.norm(rim - points[iris], axis=1).mean())
        centre = tuple(np.rint(points[iris] * 2**_SHIFT).astype(int).tolist())
        cv2.circle(image, centre, max(1, round(radius * 2**_SHIFT)), _LOOK, thick, cv2.LINE_AA, _SHIFT)
        if look:
            ahead = -_turned(face.rotation) @ rotation_of(look["yaw"], look["pitch"], 0)[:, 2]
            _line(image, np.stack([points[iris], points[iris] + ahead[:2] * width * 0.6]), _LOOK, thick + 1)


def _edges(face: Face) -> np.ndarray:
    """(n, 2): the lines of a net over the mesh: Delaunay's, of the points as they lie with the head straight."""
    assert face.mesh is not None
    points = face.mesh[: _IRISES[0]]
    straight = points @ _head(face)[:, :2].astype(np.float32)
    low, high = straight.min(0) - 1, straight.max(0) + 1
    net = cv2.Subdiv2D((0, 0, *np.ceil(high - low).astype(int).tolist()))
    order: dict[int, int] = {}
    for index, point in enumerate((straight - low).tolist()):
        order.setdefault(net.insert(point), index)
    edges = set()
    for number in order:
        first = edge = net.getVertex(number)[1]
        while True:
            other = net.edgeDst(edge)[0]
            if other in order:
                edges.add((min(order[number], order[other]), max(order[number], order[other])))
            edge = net.nextEdge(edge)
            if edge == first:
                break
    return np.array(sorted(edges))


def _head(face: Face) -> np.ndarray:
    """(3, 3): from the axes of the head to those of the picture as it was given; straight where no pose is known."""
    pose = face.pose or {}
    return _turned(face.rotation) @ rotation_of(*(pose.get(name, 0.0) for name in ("yaw", "pitch", "roll")))


def _turned(rotation: int) -> np.ndarray:
    """(3, 3): from the axes of the upright picture to those of the picture as it was given, before that turn."""
    c, s = [(1, 0), (0, 1), (-1, 0), (0, -1)][rotation // 90 % 4]
    return np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])


def _line(image: np.ndarray, ends: np.ndarray, colour: Colour, thick: int) -> None:
    """With a dark edge, to be seen on any ground."""
    start, end = (tuple(point) for point in _fixed(ends).tolist())
    cv2.line(image, start, end, (0, 0, 0), thick + 2, cv2.LINE_AA, _SHIFT)
    cv2.line(image, start, end, colour, thick, cv2.LINE_AA, _SHIFT)


def _fixed(points: np.ndarray) -> np.ndarray:
    """As OpenCV takes fractions of pixels."""
    return np.rint(np.clip(points, -4096, 65535) * 2**_SHIFT).astype(np.int32)
