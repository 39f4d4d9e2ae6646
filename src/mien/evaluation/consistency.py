"""How far answers move when a face is shown differently."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from tqdm import tqdm

from mien.classifier import Classifier
from mien.data import Row
from mien.evaluation.compare import distance
from mien.faces.align import resize

Change = Callable[[np.ndarray], np.ndarray]
"""A picture (H, W, 3) uint8 RGB -> another (H', W', 3) uint8 RGB; the same for the same."""


def tint(image: np.ndarray, factors: Sequence[float]) -> np.ndarray:
    """Red, green and blue multiplied by `factors`, cut off at 255."""
    return np.rint(image * np.asarray(factors)).clip(0, 255).astype(np.uint8)


def grey(image: np.ndarray) -> np.ndarray:
    """The luma in all three channels."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def gamma(image: np.ndarray, power: float) -> np.ndarray:
    """`255 (x / 255) ** power`: brighter below 1, darker above."""
    return np.rint(255 * (np.arange(256) / 255) ** power).astype(np.uint8)[image]


def small(image: np.ndarray, side: int) -> np.ndarray:
    """A square of `side` pixels, areas averaged where it shrinks, linear where it grows."""
    return resize(image, [{"size": side}])


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Compressed as JPEG of this quality, and decoded again."""
    data = cv2.imencode(".jpg", image[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, quality))[1]
    return np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])


def reframe(image: np.ndarray, right: float = 0.0, down: float = 0.0, scale: float = 1.0) -> np.ndarray:
    """The pixels in another box, whose edge is repeated beyond the picture.

    right, down: how far the box is shifted, as fractions of the picture's width and height (default 0).
    scale: of the box about its middle (default 1).
    """

    def positions(side: int, shift: float) -> np.ndarray:
        count = max(1, round(side * scale))
        first = round(side * shift + (side - count) / 2)
        return np.arange(first, first + count).clip(0, side - 1)

    return image[positions(image.shape[0], down)[:, None], positions(image.shape[1], right)]


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Turned anticlockwise about the middle; what comes in from outside repeats the edge."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


CHANGES: dict[str, tuple[Change, ...]] = {
    "tinted warm": (partial(tint, factors=(1.15, 1.0, 0.7)),),
    "tinted cool": (partial(tint, factors=(0.75, 0.95, 1.2)),),
    "tinted green": (partial(tint, factors=(0.75, 1.1, 0.75)),),
    "greyed": (grey,),
    "brighter, gamma 0.6": (partial(gamma, power=0.6),),
    "darker, gamma 1.6": (partial(gamma, power=1.6),),
    "resized to 28": (partial(small, side=28),),
    "resized to 48": (partial(small, side=48),),
    "resized to 64": (partial(small, side=64),),
    "resized to 224": (partial(small, side=224),),
    "JPEG, quality 30": (partial(jpeg, quality=30),),
    "JPEG, quality 10": (partial(jpeg, quality=10),),
    "box shifted 10 %": tuple(
        partial(reframe, right=right, down=down) for right, down in ((0.1, 0), (-0.1, 0), (0, 0.1), (0, -0.1))
    ),
    "box scaled 0.8": (partial(reframe, scale=0.8),),
    "box scaled 1.25": (partial(reframe, scale=1.25),),
    "rotated 15°": (partial(rotate, degrees=15), partial(rotate, degrees=-15)),
}
"""By name, what is done to a picture; of several functions the mean is reported."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What a change does to the answers; None if there is no face to change.

    faces: how many were changed.
    distance: the mean of `½ Σ_c |p_c - q_c|`, of the probabilities for the unchanged face and for the changed one.
    same_label: the fraction of the faces whose likeliest label stays.
    accuracy: the fraction of the changed faces that is read right.
    """

    faces: int
    distance: float | None
    same_label: float | None
    accuracy: float | None


def measure_consistency(
    classifier: Classifier,
    rows: Sequence[Row],
    target: np.ndarray,
    *,
    changes: dict[str, tuple[Change, ...]] = CHANGES,
    batch_size: int = 32,
    progress: bool = False,
) -> dict[str, Moved]:
    """What every change does to the answers, by name; the first entry is "unchanged".

    Pictures are taken as faces that fill their frame. They are changed, and then cropped as in reading. "greyed" is
    for pictures in colour only.

    classifier: reads the faces. rows, target: N faces, and their classes (N,).
    changes: CHANGES by default. batch_size: faces read at a time (default 32). progress: show a bar on stderr.
    """
    sums = {name: np.zeros(4) for name in ("unchanged", *changes)}  # faces, distance, same label, right

    def read(images: Sequence[np.ndarray], change: Change) -> np.ndarray:
        return classifier.run(np.stack(list(pool.map(lambda image: classifier.crop(change(image)), images))))

    def add(name: str, plain: np.ndarray, probs: np.ndarray, right: np.ndarray, weight: float = 1.0) -> None:
        best = probs.argmax(1)
        found = np.ones(len(probs)), distance(plain, probs), best == plain.argmax(1), best == right
        sums[name] += [weight * values.sum() for values in found]

    with ThreadPoolExecutor() as pool, tqdm(total=len(rows), unit=" faces", leave=False, disable=not progress) as bar:
        for start in range(0, len(rows), batch_size):
            images = list(pool.map(Row.image, rows[start : start + batch_size]))
            right = target[start : start + batch_size]
            coloured = np.array([bool((image != image[..., :1]).any()) for image in images])
            plain = read(images, lambda image: image)
            add("unchanged", plain, plain, right)
            for name, variants in changes.items():
                where = np.flatnonzero(coloured) if name == "greyed" else np.arange(len(images))
                for change in variants if len(where) else ():
                    probs = read([images[i] for i in where], change)
                    add(name, plain[where], probs, right[where], 1 / len(variants))
            bar.update(len(images))
    return {name: _moved(round(faces), rest) for name, (faces, *rest) in sums.items()}


def consistency_table(moved: dict[str, Moved]) -> str:
    """For a person; "–" is where there was nothing to change."""
    wide = max(map(len, moved))
    lines = [f"{'':{wide}}  distance  same label  accuracy  faces"]
    for name, row in moved.items():
        values = (row.distance, row.same_label, row.accuracy)
        cells = ["–" if value is None else f"{value:.4f}" for value in values]
        lines.append(f"{name:{wide}}  {cells[0]:>8}  {cells[1]:>10}  {cells[2]:>8}  {row.faces:>5}")
    return "\n".join(lines)


def _moved(faces: int, sums: Sequence[float]) -> Moved:
    return Moved(faces, *(float(value / faces) if faces else None for value in sums))
