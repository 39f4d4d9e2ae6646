"""The faces of one picture, what is to be said of the search for them, and what people do with them."""

import io
import json
import os
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mien.errors import MienError, MissingExtra
from mien.faces.draw import cut_of, draw
from mien.faces.face import Box, Face
from mien.faces.picture import MAX_PIXELS, open_picture
from mien.faces.record import Record, flat, picture_records
from mien.faces.sources import Taken
from mien.files import whole


class Faces(list[Face]):
    """The faces of one picture, the largest first: a list that also says how they were searched for, and draws itself.

    faces = reader("photograph.jpg")
    faces.save("drawn.jpg")
    faces.to_pandas()

    faces: the faces, none by default.
    note: what was not searched for, in one sentence, as the row's `note` says it; None where nothing was left out.
    rotation: degrees clockwise, 0, 90, 180 or 270, by which the picture is turned to bring its faces upright; boxes and
        landmarks are in pixels of the picture as it was given, before that turn.
    name: what the picture is called in rows.
    source: what the picture is opened from when it is drawn: a path, or what it was read from; None where that was not
        kept, as `Reader.read_many` keeps only paths.
    max_pixels: a larger picture is not opened.
    """

    def __init__(
        self,
        faces: Iterable[Face] = (),
        *,
        note: str | None = None,
        rotation: int = 0,
        name: str = "picture",
        source: Taken | None = None,
        max_pixels: int = MAX_PIXELS,
    ):
        super().__init__(faces)
        self.note, self.rotation = note, rotation
        self.name, self.source, self.max_pixels = name, source, max_pixels

    def image(self) -> np.ndarray:
        """The picture (H, W, 3) uint8 RGB, opened anew.

        Raises ReadError where it is no longer there, MienError where it was not kept.
        """
        if self.source is None:
            raise MienError(f"{self.name}: the picture was not kept: hand it to the method as image=")
        return open_picture(self.source, max_pixels=self.max_pixels, name=self.name)

    def plot(self, image: np.ndarray | None = None, **options: Any) -> Image.Image:
        """The picture with its faces marked, as a Pillow picture.

        image: (H, W, 3) uint8 RGB, by default the picture that was read.
        options: what to draw, as for `mien.faces.draw.draw`: boxes, labels, bars, landmarks, axes,
            mesh, blur, names.

        Raises as `image` does.
        """
        return draw(self.image() if image is None else image, self, **options)

    def show(self, image: np.ndarray | None = None, **options: Any) -> None:
        """Show what `plot` draws: in a notebook below the cell, and else in the desktop's own program for pictures.

        Raises MienError where there is none, and as `plot` does.
        """
        from PIL import ImageShow

        picture = self.plot(image, **options)
        try:
            notebook = get_ipython().__class__.__name__ == "ZMQInteractiveShell"  # type: ignore[name-defined]
        except NameError:
            notebook = False
        if notebook:
            import_module("IPython.display").display(picture)
        elif not ImageShow.show(picture, self.name):
            raise MienError("nothing to show a picture with here: save(path) writes it")

    def save(self, path: str | os.PathLike[str], image: np.ndarray | None = None, **options: Any) -> None:
        """Write what `plot` draws into a file, whole or not at all; its name's ending says the format.

        Raises MienError for an ending that is no picture's, OSError where it cannot be written, and as `plot` does.
        """
        ending = Path(path).suffix.lower()
        kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"}.get(
            ending
        )
        if kind is None:
            raise MienError(f"{path}: ends in none of .jpg, .jpeg, .png, .webp, .tif, .tiff")
        picture = self.plot(image, **options)
        with whole(path) as file:
            picture.save(file, kind, **({} if kind in ("PNG", "TIFF") else {"quality": 92}))

    def crops(self, image: np.ndarray | None = None, *, margin: float = 0.25) -> list[np.ndarray]:
        """Each face cut out, (h, w, 3) uint8 RGB, upright where `rotation` says how the picture is turned.

        image: as for `plot`. margin: what is cut out about the box, on each side, as a share of it (default 0.25);
            what lies outside the picture is cut off.

        Raises as `image` does.
        """
        image = self.image() if image is None else image
        cuts = [cut_of(face, image.shape, margin) for face in self]
        turns = -self.rotation // 90
        return [np.rot90(image[top:bottom, left:right], turns).copy() for left, top, right, bottom in cuts]

    def to_dicts(self) -> list[Record]:
        """The rows that `mien read` writes of this picture: one for each face, or one that says there is none."""
        return picture_records(self.name, self)

    def to_json(self, **options: Any) -> str:
        """The same as the text of a JSON list; options: of `json.dumps`, such as indent=2."""
        return json.dumps(self.to_dicts(), **{"ensure_ascii": False, **options})

    def to_pandas(self) -> Any:
        """The same as a `pandas.DataFrame` with the columns of a .csv file of `mien read`; needs pandas."""
        return _installed("pandas").DataFrame([flat(row) for row in self.to_dicts()])

    def to_supervision(self) -> Any:
        """The faces as `supervision.Detections`; needs supervision.

        `xyxy` in pixels, `confidence` the detector's score (1 where all of the picture is the face), `class_id` the
        number of the likeliest label in the model's order, `data` with `class_name`, the expression, and `probability`.
        """
        corners = [(0, 0, *self.image().shape[1::-1]) if face.box is None else _corners(face.box) for face in self]
        likeliest = [max(face.probabilities, key=face.probabilities.__getitem__) for face in self]
        return _installed("supervision").Detections(
            xyxy=np.array(corners, np.float32).reshape(-1, 4),
            confidence=np.array([1.0 if face.score is None else face.score for face in self], np.float32),
            class_id=np.array(
                [list(face.probabilities).index(label) for face, label in zip(self, likeliest, strict=True)], int
            ),
            data={
                "class_name": np.array([face.expression for face in self]),
                "probability": np.array([face.probability for face in self], np.float32),
            },
        )

    def _repr_png_(self) -> bytes | None:
        """What Jupyter shows: the picture, at most 1,280 pixels wide or high; nothing where it was not kept."""
        try:
            picture = self.plot()
        except MienError:
            return None
        picture.thumbnail((1280, 1280))
        file = io.BytesIO()
        picture.save(file, "PNG")
        return file.getvalue()


def _corners(box: Box) -> tuple[float, float, float, float]:
    x, y, width, height = box
    return x, y, x + width, y + height


def _installed(package: str) -> Any:
    """A package that mien does not bring, for those who use it."""
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingExtra(f"this needs {package}: pip install {package}") from error
