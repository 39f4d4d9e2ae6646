"""What several people's votes for one picture come to."""

import numpy as np


def judge(
    votes: np.ndarray, class_of: np.ndarray, num_classes: int, min_votes: int = 1
) -> tuple[int, np.ndarray] | None:
    """The label and the target (C,) float32, or None where no class won.

    votes: (V,) counts. class_of: (V,) the class that each counts for, -1 for none ("unknown"). The label is the first
    largest vote; the target is the share of each class among the votes for classes, those of fewer than `min_votes`
    forgotten unless none would be left.

    Raises ValueError for votes that are no counts, or none at all.
    """
    if not np.isfinite(votes).all() or (votes < 0).any():
        raise ValueError("votes that are no counts")
    if not votes.any():
        raise ValueError("no votes")
    label = class_of[votes.argmax()]
    if label < 0:
        return None
    cleaned = np.where(votes < min_votes, 0, votes)
    target = np.zeros(num_classes, np.float32)
    kept = class_of >= 0
    np.add.at(target, class_of[kept], (cleaned if cleaned[kept].any() else votes)[kept])
    return int(label), target / target.sum()
