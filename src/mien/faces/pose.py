"""How a head is turned: angles, the rotations that they stand for, and the pose that five landmarks tell."""

from collections.abc import Mapping
from math import asin, atan2, cos, degrees, radians, sin

import cv2
import numpy as np

from mien.faces.align import similarity
from mien.outputs import Output

POSE = Output("pose", "angles", ("yaw", "pitch", "roll"))
"""How a head is turned, in degrees, as seen in the upright picture along the line from the camera to the face.

yaw: positive to the person's left, which is the right of the picture. pitch: positive upwards. roll: positive clockwise
as seen. Yaw and pitch say where the nose points, roll is a turn about that line.
"""

HEAD = np.array(
    [
        [-0.8189, -0.8294, 0.2089],
        [0.8189, -0.8294, 0.2089],
        [0.0, -0.0198, -0.4352],
        [-0.6610, 0.8393, 0.0087],
        [0.6610, 0.8393, 0.0087],
    ]
)
"""(5, 3): where the landmarks of `Face.landmarks` lie in one head for everybody, in the axes of `rotation_of` and a
unit of its own. Fitted to YuNet's landmarks of 483 training faces of FER+ and the landmarker's pose of them, by
benchmarks/geometry.py."""

TURNED = 25.0
"""Degrees of yaw or pitch beyond which expressions are read worse: see docs/geometry.md."""

FAR = 5.0  # units of HEAD from which a face is seen; of 6 to 100 none was nearer to the landmarker on training faces


def rotation_of(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """The rotation (3, 3) of a head with these angles in degrees, from the head's axes to the camera's.

    Both have x to the right of the picture, y down and z away from the camera; the head's are those of a face that
    looks straight into it. R = Y(yaw) P(pitch) C(roll), and -R[:, 2] is where the nose points.
    """
    (sy, cy), (sp, cp), (sr, cr) = ((sin(radians(angle)), cos(radians(angle))) for angle in (yaw, pitch, roll))
    turn = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
    nod = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    return turn @ nod @ np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])


def angles_of(rotation: np.ndarray) -> np.ndarray:
    """(3,) float32: yaw in [-180, 180], pitch in [-90, 90] and roll in [-180, 180] of a rotation (3, 3).

    The inverse of `rotation_of`; where the nose points straight up or down, yaw and roll are one turn.
    """
    pitch = degrees(asin(float(np.clip(rotation[1, 2], -1, 1))))
    yaw = degrees(atan2(-rotation[0, 2], rotation[2, 2]))
    return np.array([yaw, pitch, degrees(atan2(rotation[1, 0], rotation[1, 1]))], np.float32)


def direction_angles(direction: np.ndarray) -> np.ndarray:
    """(2,) float32: yaw and pitch, in degrees, of a direction (3,) in the camera's axes, as `POSE` counts them."""
    x, y, z = direction / np.linalg.norm(direction)
    return np.array([degrees(atan2(x, -z)), degrees(asin(float(np.clip(-y, -1, 1))))], np.float32)


def pose_of(landmarks: np.ndarray) -> np.ndarray | None:
    """The pose (3,) float32, yaw, pitch and roll as `POSE` has them, that five landmarks tell.

    landmarks: (5, 2), x and y in pixels, in the order of `Face.landmarks`, the face upright within 90 degrees.

    OpenCV's SQPNP finds the rotation that brings `HEAD`, one head for everybody, nearest to them; a long nose or a wide
    mouth reads as a turn. None where the landmarks cannot be a face.

    Paper: Terzakis, Lourakis: A Consistently Fast and Globally Optimal Solution to the Perspective-n-Point Problem,
    2020.
    """
    points = np.asarray(landmarks, np.float64)
    try:
        similarity(points)
    except ValueError:
        return None
    points = points - points.mean(0)
    points /= np.sqrt((points**2).sum(1).mean())
    camera = np.diag([FAR, FAR, 1.0])
    try:
        found, turn, _ = cv2.solvePnP(HEAD, points, camera, None, flags=cv2.SOLVEPNP_SQPNP)
    except cv2.error:  # points that all but coincide
        return None
    return angles_of(cv2.Rodrigues(turn)[0]) if found else None


def is_turned(pose: Mapping[str, float] | None) -> bool:
    """Whether a head is turned further than `TURNED`, to a side, up or down."""
    return pose is not None and max(abs(pose["yaw"]), abs(pose["pitch"])) > TURNED
