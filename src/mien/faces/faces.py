"""The faces of one picture, and what is to be said of the search for them."""

from collections.abc import Iterable

from mien.faces.face import Face


class Faces(list[Face]):
    """The faces of one picture, the largest first: a list that also says how they were searched for.

    faces: the faces, none by default.
    note: what was not searched for, in one sentence, as the row's `note` says it; None where nothing was left out.
    rotation: degrees clockwise, 0, 90, 180 or 270, by which the picture is turned to bring its faces upright; boxes and
        landmarks are in pixels of the picture as it was given, before that turn.
    """

    def __init__(self, faces: Iterable[Face] = (), *, note: str | None = None, rotation: int = 0):
        super().__init__(faces)
        self.note, self.rotation = note, rotation
