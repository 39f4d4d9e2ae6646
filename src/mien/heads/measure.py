"""How many heads a detector finds, and how far off their angles are."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from mien.errors import MienError
from mien.faces import open_picture
from mien.heads.angles import LABELS, difference, turn_between
from mien.heads.annotations import Head, Picture
from mien.heads.detector import HeadDetector, overlaps

LEAST = 0.01
"""The score from which finds count for average precision."""

SURE = 0.5
"""The IoU from which a box is of a head."""


@dataclass(frozen=True)
class Measured:
    """What was found of the heads that were annotated.

    heads: their number.
    from_behind: the number of those with a yaw beyond 90 degrees either way.
    false: the number of detections of no head.
    average_precision: at an IoU of 0.5, 0 to 1.
    average_precision_strict: the mean over IoUs of 0.5, 0.55, …, 0.95.
    recall, recall_from_behind: the shares found at an IoU of 0.5, of all and of those from behind.
    pitch, yaw, roll: mean absolute errors in degrees of what was found.
    angles, angles_from_the_front, angles_from_behind: the mean of these three, of all and of those.
    turn: the mean angle, in degrees, of the one rotation between what was found and what was annotated.

    Shares and errors are nan where there is nothing to measure.
    """

    heads: int
    from_behind: int
    false: int
    average_precision: float
    average_precision_strict: float
    recall: float
    recall_from_behind: float
    pitch: float
    yaw: float
    roll: float
    angles: float
    angles_from_the_front: float
    angles_from_behind: float
    turn: float

    def to_dict(self) -> dict[str, float | None]:
        return {name: None if value != value else round(value, 4) for name, value in asdict(self).items()}


def measure_heads(found: Iterable[Sequence[Head]], truth: Iterable[Sequence[Head]], sure: float = 0.3) -> Measured:
    """Measure what was found in each picture against what was annotated there.

    found: by picture, heads with scores, as low as they come, since average precision is over all of them.
    truth: by picture, the heads that were annotated.
    sure: the score, 0 to 1, above which a find counts for recall, false finds and angles; 0.3.

    Raises MienError where no head was annotated.
    """
    pairs = [(list(f), list(t)) for f, t in zip(found, truth, strict=True)]
    total = sum(len(t) for _, t in pairs)
    if not total:
        raise MienError("not one head was annotated")
    precisions = [average_precision(pairs, least) for least in np.arange(0.5, 0.96, 0.05)]
    matched, missed, false = [], [], 0
    for heads, true in pairs:
        surely = [head for head in heads if (head.score or 0) > sure]
        match = match_heads(surely, true, SURE)
        false += sum(i < 0 for i in match)
        matched += [(surely[k].angles, true[i].angles) for k, i in enumerate(match) if i >= 0]
        missed += [head.angles for i, head in enumerate(true) if i not in match]
    behind = sum(abs(head.angles[1]) > 90 for _, true in pairs for head in true)
    seen = np.array(matched).reshape(-1, 2, 3)
    errors = difference(seen[:, 0], seen[:, 1])
    back = np.abs(seen[:, 1, 1]) > 90
    return Measured(
        total,
        behind,
        false,
        precisions[0],
        float(np.mean(precisions)),
        len(matched) / total,
        back.sum() / behind if behind else float("nan"),
        *(_mean(errors[:, i]) for i in range(len(LABELS))),
        _mean(errors),
        _mean(errors[~back]),
        _mean(errors[back]),
        _mean(np.array([turn_between(one, other) for one, other in seen])),
    )


def match_heads(found: Sequence[Head], truth: Sequence[Head], least: float) -> list[int]:
    """For each head that was found, the surest first, which of the true ones it is, each once, or -1."""
    match = [-1] * len(found)
    if not truth:
        return match
    free = set(range(len(truth)))
    boxes = np.array([head.box for head in truth])
    for k in sorted(range(len(found)), key=lambda k: -(found[k].score or 0)):
        shared = overlaps(np.array([found[k].box]), boxes)[0]
        best = max(free, key=lambda i: shared[i], default=-1)
        if best >= 0 and shared[best] >= least:
            match[k] = best
            free.remove(best)
    return match


def average_precision(pairs: Sequence[tuple[Sequence[Head], Sequence[Head]]], least: float) -> float:
    """The area below precision over recall, precision made to fall (as COCO and VOC after 2010 have it)."""
    scores, right = [], []
    for found, truth in pairs:
        scores += [head.score or 0 for head in found]
        right += [i >= 0 for i in match_heads(found, truth, least)]
    if not scores:
        return 0.0
    hits = np.array(right)[np.argsort(-np.array(scores), kind="stable")]
    recall = hits.cumsum() / sum(len(truth) for _, truth in pairs)
    precision = np.maximum.accumulate((hits.cumsum() / np.arange(1, len(hits) + 1))[::-1])[::-1]
    return float((np.diff(recall, prepend=0) * precision).sum())


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def measure_detector(detector: HeadDetector, pictures: Sequence[Picture]) -> Measured:
    """What a detector finds in annotated pictures.

    detector: with a threshold of `LEAST`, since average precision is over all that it finds.
    pictures: annotated ones, one head at least.

    Raises ReadError for a picture that cannot be read, and MienError where no head was annotated.
    """
    found = [detector(open_picture(picture.path)) for picture in pictures]
    return measure_heads(found, [picture.heads for picture in pictures])


def summary(found: Measured) -> str:
    """One line of what matters."""
    return (
        f"AP {found.average_precision:.3f}, recall {found.recall:.3f} (from behind {found.recall_from_behind:.3f}), "
        f"{found.false} false, pitch {found.pitch:.1f}°, yaw {found.yaw:.1f}°, roll {found.roll:.1f}°, "
        f"mean {found.angles:.1f}° (from behind {found.angles_from_behind:.1f}°)"
    )
