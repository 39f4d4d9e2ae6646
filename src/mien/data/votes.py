"""What several people's votes for one picture come to."""

from typing import Literal

import numpy as np

Mode = Literal["votes", "majority", "probability"]


def judge(
    votes: np.ndarray, class_of: np.ndarray, num_classes: int, min_votes: int = 1, mode: Mode = "votes"
) -> tuple[int, np.ndarray] | None:
    """The label and the target (C,) float32 that votes come to, or None where no class won.

    votes: (V,) counts.
    class_of: (V,) int, the class that each counts for, -1 for none ("unknown").
    num_classes: int, C.
    min_votes: int, votes of fewer than this are forgotten in the target, unless none would be left; 1.
    mode: "votes", the default, or one of the two ways of FER+'s makers, who forget single votes and leave out more
        pictures.

    "votes": the label is the first largest vote, and the target is the share of each class among the votes for classes.

    "majority": the label is what more than half of the remaining votes are for, and the target that label alone.

    "probability": the largest votes, all that are equal at a time, are taken until they are three quarters of the
    remaining ones, or three. The target is their shares, and a picture is left out where they are no more than half, or
    more than three. A vote for no class ends the taking: behind another it is forgotten, and as the first it leaves the
    picture out.

    Raises ValueError for votes that are no counts, or none at all.

    Paper: Barsoum et al., Training Deep Networks for Facial Expression Recognition with Crowd-Sourced Label
    Distribution, ICMI 2016. Reference: microsoft/FERPlus, 06447e0, src/ferplus.py.
    """
    if not np.isfinite(votes).all() or (votes < 0).any():
        raise ValueError("votes that are no counts")
    if not votes.any():
        raise ValueError("no votes")
    if mode != "votes":
        votes = np.where(votes > 1, votes, 0)
        votes = _majority(votes) if mode == "majority" else _most(votes, class_of)
        if not votes.any():
            return None
        min_votes = 1
    label = class_of[votes.argmax()]
    if label < 0:
        return None
    cleaned = np.where(votes < min_votes, 0, votes)
    target = np.zeros(num_classes, np.float32)
    kept = class_of >= 0
    np.add.at(target, class_of[kept], (cleaned if cleaned[kept].any() else votes)[kept])
    return int(label), target / target.sum()


def _majority(votes: np.ndarray) -> np.ndarray:
    """The votes (V,) for what more than half are for, and 0 for all else."""
    return np.where((votes > votes.sum() / 2) & (np.arange(len(votes)) == votes.argmax()), votes, 0)


def _most(votes: np.ndarray, class_of: np.ndarray) -> np.ndarray:
    """The votes (V,) for the few that most are for, and 0 for all else; 0 throughout where too many are."""
    left, taken = votes.astype(np.float64), np.zeros(len(votes))
    count, passed = 0, 0.0
    while passed < 0.75 * votes.sum() and count < 3:
        for i in np.flatnonzero(left == left.max()):
            count, passed, first = count + 1, passed + left[i], not taken.any()
            if class_of[i] < 0:
                if first:
                    return np.zeros_like(taken)
                count, passed = count - 1, np.inf  # the end
                break
            taken[i], left[i] = left[i], 0
    return taken if taken.sum() > votes.sum() / 2 and count <= 3 else np.zeros_like(taken)
