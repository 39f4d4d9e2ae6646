"""Annotations out of 3-D head landmarks and cameras, which is what CMU Panoptic and AGORA have."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mien.errors import ReadError
from mien.heads.angles import encode, from_rotation
from mien.heads.annotations import Head, Picture, write_annotations

# x to the head's left, y down, z backwards, in decimetres: of MakeHuman's mesh (CC0), from between the ears
REFERENCE = {
    "eye_right": (-0.308, 0.07, -0.74),
    "eye_left": (0.308, 0.07, -0.74),
    "bridge": (0, 0.07, -0.9),
    "nose": (0, 0.445, -1.06),
    "mouth_right": (-0.265, 0.74, -0.8),
    "mouth_left": (0.265, 0.74, -0.8),
    "chin": (0, 1.13, -0.83),
}
"""Places of a head at rest that are fitted to landmarks."""

LANDMARKS = {
    "eye_right": range(36, 42),
    "eye_left": range(42, 48),
    "bridge": (27,),
    "nose": (30,),
    "mouth_right": (48,),
    "mouth_left": (54,),
    "chin": (8,),
}
"""Which of the 68 landmarks of iBUG 300-W, the first of OpenPose's 70, have their mean at each place."""

SKULL = np.array([0.86, 1.16, 1.03])
"""Half axes of the ellipsoid about the origin of REFERENCE that stands for the head."""

SEEN = 0.5
"""The share of a head's box that has to lie within the picture."""


@dataclass(frozen=True)
class Camera:
    """`pixel ~ K · distort(R · point + t)`, as OpenCV and CMU Panoptic have it: K, R (3, 3), t (3,), in the unit of the
    points; distortion (4,), (5,) or (8,) of OpenCV's; size: width and height of its pictures."""

    K: np.ndarray
    R: np.ndarray
    t: np.ndarray
    size: tuple[int, int]
    distortion: np.ndarray = field(default_factory=lambda: np.zeros(5))

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Camera":
        """{"K", "R", "t", "resolution": [width, height], "distCoef"}; KeyError and ValueError for what is none."""
        K, R = (np.array(entry[name], float).reshape(3, 3) for name in ("K", "R"))
        t, distortion = np.array(entry["t"], float).reshape(3), np.array(entry.get("distCoef", [0] * 5), float).ravel()
        if not np.isfinite(np.concatenate([K.ravel(), R.ravel(), t, distortion])).all() or len(distortion) not in (
            4,
            5,
            8,
        ):
            raise ValueError("numbers that are not finite, or another count of distCoef than 4, 5 or 8")
        if np.abs(R @ R.T - np.eye(3)).max() > 1e-3 or np.linalg.det(R) < 0:
            raise ValueError("an R that is no rotation")
        width, height = (int(side) for side in entry["resolution"])
        return cls(K, R, t, (width, height), distortion)


def fit(places: np.ndarray, points: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """The scale s, rotation R (3, 3) and shift t (3,) with the least `Σ |s · R · place + t - point|²`.

    Raises ValueError where the points lie on a line, or are fewer than three.

    Paper: Umeyama, Least-squares estimation of transformation parameters between two point patterns, 1991.
    """
    if len(points) < 3:
        raise ValueError("fewer than three landmarks")
    a, b = places - places.mean(0), points - points.mean(0)
    u, strength, v = np.linalg.svd(b.T @ a)
    if strength[1] < 1e-6 * max(strength[0], 1e-12):
        raise ValueError("landmarks on one line")
    sign = np.array([1, 1, np.sign(np.linalg.det(u @ v))])
    rotation = u * sign @ v
    scale = (strength * sign).sum() / np.square(a).sum()
    return scale, rotation, points.mean(0) - scale * rotation @ places.mean(0)


def head_of(landmarks: np.ndarray, camera: Camera, *, along_ray: bool = False) -> Head:
    """The box and the angles in the camera's picture of a head whose 68 or 70 landmarks are in the world, (n, 3).

    Landmarks that are nan are not known; at least three places of REFERENCE must be. The box is about the outline of an
    ellipsoid that stands for the skull, fitted to the face, and cut at the picture's edges. Angles are by the camera's
    own axes, as a solver of OpenCV's gives them; `along_ray` as the head looks when it is cut out and centred.

    Raises ValueError, saying why, for a head that this camera does not show.
    """
    if landmarks.ndim != 2 or len(landmarks) not in (68, 70) or landmarks.shape[1] != 3:
        raise ValueError(f"landmarks of {'×'.join(map(str, landmarks.shape))} numbers; 68×3 or 70×3 are known")
    found = {name: landmarks[list(index)].mean(0) for name, index in LANDMARKS.items()}
    known = [name for name, point in found.items() if np.isfinite(point).all()]
    scale, turn, shift = fit(np.array([REFERENCE[name] for name in known]), np.array([found[name] for name in known]))
    centre = camera.R @ shift + camera.t
    if centre[2] <= 1.5 * scale * SKULL.max():
        raise ValueError("behind the camera")
    rotation = camera.R @ turn
    if along_ray:
        rotation = _to_axis(centre) @ rotation
    outline = scale * _sphere() * SKULL @ turn.T + shift
    pixels = cv2.projectPoints(outline, cv2.Rodrigues(camera.R)[0], camera.t, camera.K, camera.distortion)[0][:, 0]
    low, high = pixels.min(0), pixels.max(0)
    inner = np.clip(low, 0, camera.size), np.clip(high, 0, camera.size)
    if (inner[1] - inner[0]).clip(0).prod() < SEEN * (high - low).prod():
        raise ValueError("outside of the picture")
    angles = from_rotation(rotation)
    encode(angles)
    return Head(tuple(map(float, (*inner[0], *(inner[1] - inner[0])))), tuple(map(float, angles)))


def _sphere(count: int = 200) -> np.ndarray:
    """Points (count, 3) spread evenly over the unit sphere, along a spiral."""
    i = np.arange(count) + 0.5
    z, turn = 1 - 2 * i / count, np.pi * (1 + 5**0.5) * i
    flat = np.sqrt(1 - z * z)
    return np.stack([flat * np.cos(turn), flat * np.sin(turn), z], 1)


def _to_axis(ray: np.ndarray) -> np.ndarray:
    """The smallest rotation (3, 3) that brings a ray to the z axis."""
    ray = ray / np.linalg.norm(ray)
    axis = np.cross(ray, (0, 0, 1))
    sine = np.linalg.norm(axis)
    return cv2.Rodrigues(axis / sine * np.arctan2(sine, ray[2]) if sine > 1e-12 else np.zeros(3))[0]


def convert(
    views: Iterable[tuple[Path, Camera, Sequence[np.ndarray]]], out: str | os.PathLike[str], *, along_ray: bool = False
) -> tuple[int, int, Counter[str]]:
    """Write annotations of views, each a picture, its camera and the landmarks of those who may be in it.

    Gives the numbers of pictures and of heads that were written, and of heads that were not, by the reason. Whether
    something stands before a head is not known from landmarks.
    """
    pictures, left_out = [], Counter()
    for path, camera, people in views:
        heads = []
        for landmarks in people:
            try:
                heads.append(head_of(landmarks, camera, along_ray=along_ray))
            except ValueError as error:
                left_out["angles beyond the codec" if "degrees" in str(error) else str(error)] += 1
        pictures.append(Picture(path, camera.size, tuple(heads)))
    if not pictures:
        raise ReadError(out, "no pictures to annotate")
    write_annotations(out, pictures)
    return len(pictures), sum(len(picture.heads) for picture in pictures), left_out


def read_views(path: str | os.PathLike[str]) -> list[tuple[Path, Camera, list[np.ndarray]]]:
    """Views of a JSON file that anything with landmarks and cameras can be brought to, such as AGORA.

        {"cameras": {"name": {"K": 3×3, "R": 3×3, "t": [3], "resolution": [w, h], "distCoef": [5]}},
         "views": [{"image": "a.png", "camera": "name", "heads": [68×3 or 70×3, …]}]}

    null among landmarks is not known. Raises ReadError, naming the file and the view, for what is missing.
    """
    path, where = Path(path), "cameras"
    content = _json(path)
    try:
        cameras = {}
        for name, entry in content["cameras"].items():
            where = f"cameras[{name}]"
            cameras[name] = Camera.from_json(entry)
        views = []
        for i, view in enumerate(content["views"]):
            where = f"views[{i}]"
            people = [np.array(head, float) for head in view["heads"]]
            views.append((path.parent / view["image"], cameras[view["camera"]], people))
        return views
    except KeyError as error:
        raise ReadError(path, f"{where}: {error} is missing") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ReadError(path, f"{where}: {error}") from error


def panoptic_views(
    folder: str | os.PathLike[str], *, every: int = 1, sure: float = 0.1
) -> Iterable[tuple[Path, Camera, list[np.ndarray]]]:
    """Views of a sequence of CMU Panoptic, as its toolbox unpacks one: calibration_NAME.json,
    hdFace3d/faceRecon3D_hdFRAME.json, hdImgs/CAMERA/CAMERA_FRAME.jpg or .png.

    every: takes one frame of so many. sure: the least mean score of a face. Pictures that were not unpacked are left
    out. Layout and names: panoptic-toolbox of CMU-Perceptual-Computing-Lab, 0281dcf.

    Raises ReadError for a folder that is none, and for files of it that are damaged.
    """
    folder = Path(folder)
    found = sorted(folder.glob("calibration_*.json"))
    if len(found) != 1:
        raise ReadError(folder, "no sequence of CMU Panoptic: there is not one calibration_NAME.json in it")
    try:
        entries = [camera for camera in _json(found[0])["cameras"] if camera["type"] == "hd"]
        cameras = {camera["name"]: Camera.from_json(camera) for camera in entries}
    except (KeyError, ValueError, TypeError) as error:
        raise ReadError(found[0], f"no calibration of cameras ({error})") from error
    frames = [
        (file, m[1])
        for file in sorted(folder.glob("hdFace3d/*.json"))
        if (m := re.fullmatch(r"faceRecon3D_hd(\d+)", file.stem))
    ]
    if not frames:
        raise ReadError(folder, "no hdFace3d/faceRecon3D_hdFRAME.json in it")
    for file, frame in frames[::every]:
        try:
            faces = [person["face70"] for person in _json(file)["people"] if "face70" in person]
            people = [
                np.array(face["landmarks"], float).reshape(70, 3)
                for face in faces
                if np.mean(face.get("averageScore", [1])) >= sure
            ]
        except (KeyError, ValueError, TypeError) as error:
            raise ReadError(file, f"no landmarks of faces ({error})") from error
        for name, camera in cameras.items():
            for ending in (".jpg", ".png"):
                if (picture := folder / "hdImgs" / name / f"{name}_{frame}{ending}").is_file():
                    yield picture, camera, people


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ReadError(path, (error.strerror or str(error)).lower()) from error
    except (ValueError, RecursionError) as error:
        raise ReadError(path, f"no JSON ({error})") from error
