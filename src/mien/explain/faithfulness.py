"""Whether an explanation can be believed: what happens to the answer as the parts it names go, or come."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from mien.explain.explanation import Run

Order = np.ndarray
"""Cells of a grid by number, row by row; what the explanation thinks most of comes first."""


def blurred(crop: np.ndarray) -> np.ndarray:
    """What stands in the place of cells that are gone: the crop (S, S, 3) so blurred that no feature is left.

    Not the mean colour, by which `Occlusion` hides: it would be judged by its own means.
    """
    return cv2.GaussianBlur(crop, (0, 0), len(crop) / 9)


def order_of(values: np.ndarray) -> Order:
    """The order of a map (grid, grid), greatest first; of equals the one that comes first."""
    return np.argsort(-values.ravel(), kind="stable")


def random_order(grid: int, seed: int) -> Order:
    return np.random.default_rng(seed).permutation(grid**2)


def face_prior(grid: int) -> np.ndarray:
    """A map (grid, grid) that knows nothing of the face: high in the middle, and lower along upright ellipses.

    An aligned crop has eyes, nose and mouth in its middle, so that this alone is a fair guess of what matters.
    """
    place = (np.arange(grid) + 0.5) / grid
    return -np.sqrt(((place[:, None] - 0.55) / 1.3) ** 2 + (place - 0.5) ** 2)


def path(crop: np.ndarray, order: Order, grid: int, steps: int, insertion: bool) -> np.ndarray:
    """The crop as its cells are lost in their order, or come back into the blurred one: (steps - 1, S, S, 3).

    The beginning and the end, the crop and the blurred crop, are not among them.
    """
    side = np.arange(len(crop)) * grid // len(crop)
    rank = np.empty(grid**2, int)
    rank[order] = np.arange(grid**2)
    rank = rank[side[:, None] * grid + side]  # (S, S): when a pixel's turn is
    first, then = (blurred(crop), crop) if insertion else (crop, blurred(crop))
    moved = [rank < round(k * grid**2 / steps) for k in range(1, steps)]
    return np.stack([np.where(mask[..., None], then, first) for mask in moved])


def curves(
    run: Run, crop: np.ndarray, index: int, orders: Mapping[str, Order], grid: int, steps: int
) -> dict[str, np.ndarray]:
    """By name of the order, the probability of the answer `index` along deletion and insertion: (2, steps + 1)."""
    images = [path(crop, order, grid, steps, way) for order in orders.values() for way in (False, True)]
    probs = run(np.concatenate([np.stack([crop, blurred(crop)]), *images]))[:, index]
    whole, gone, between = probs[0], probs[1], probs[2:].reshape(len(orders), 2, steps - 1)
    return {
        name: np.array([[whole, *deletion, gone], [gone, *insertion, whole]])
        for name, (deletion, insertion) in zip(orders, between, strict=True)
    }


@dataclass(frozen=True, slots=True)
class Score:
    """Areas under the two curves, from 0 to 1, means over faces, and 95 % of each; and beyond another method, face by
    face. A good explanation has a small deletion and a great insertion."""

    deletion: float
    deletion_interval: tuple[float, float]
    insertion: float
    insertion_interval: tuple[float, float]
    beyond: Mapping[str, tuple[float, float, float]]
    """By the other method's name: the mean of (insertion - deletion) minus the other's, and 95 % of it."""


def area(curve: np.ndarray) -> np.ndarray:
    """The area under curves (…, points) over 0 to 1, by trapezia."""
    return (curve[..., 1:] + curve[..., :-1]).mean(-1) / 2


def scores(
    found: Mapping[str, np.ndarray], against: Sequence[str], resamples: int = 10_000, seed: int = 0
) -> dict[str, Score]:
    """What `curves` found for N faces, (N, 2, points) by method -> scores; intervals are percentiles over resamples of
    the faces, each with all of its curves."""
    areas = {name: area(each) for name, each in found.items()}  # (N, 2)
    count = len(next(iter(areas.values())))
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples) / count

    def spread(values: np.ndarray) -> tuple[float, float, float]:
        low, high = np.quantile(draws @ values, (0.025, 0.975))
        return float(values.mean()), float(low), float(high)

    def beyond(name: str, other: str) -> tuple[float, float, float]:
        return spread(np.subtract(*areas[name].T[::-1]) - np.subtract(*areas[other].T[::-1]))

    result = {}
    for name, each in areas.items():
        deletion, *down = spread(each[:, 0])
        insertion, *up = spread(each[:, 1])
        others = {other: beyond(name, other) for other in against if other != name}
        result[name] = Score(deletion, (down[0], down[1]), insertion, (up[0], up[1]), others)
    return result
