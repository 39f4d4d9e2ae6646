"""FER2013 with FER+'s votes."""

from mien.data.parquet import Parquet
from mien.labels import EXPRESSIONS


class FERPlus(Parquet):
    """Faces of 48×48 grey pixels, each with the votes of ten people, in one parquet file.

    Columns: `image`, `split` ("train", "validation"), ten of votes, `duplicate_of_validation`. The classes are
    mien.labels.EXPRESSIONS. A row whose first largest vote, in the order of the file's columns, is "unknown" or
    "not_a_face" is left out, and so is a training picture that is in the validation split as well.

    min_votes: 2 forgets single votes, as the makers of FER+ do; 1 keeps all.

    Paper: Barsoum et al., Training Deep Networks for Facial Expression Recognition with Crowd-Sourced Label
    Distribution, ICMI 2016.
    """

    def __init__(self, path: str, min_votes: int = 1, check: bool = True):
        super().__init__(
            path,
            votes=list(EXPRESSIONS),
            reject=["unknown", "not_a_face"],
            labels=list(EXPRESSIONS),
            drop=["duplicate_of_validation"],
            min_votes=min_votes,
            check=check,
        )
