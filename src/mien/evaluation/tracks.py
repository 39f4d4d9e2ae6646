"""Ways to smooth what is said of a track's frames, and how often what comes out is right."""

from collections.abc import Callable, Mapping

import numpy as np

Smooth = Callable[[np.ndarray, np.ndarray, float], np.ndarray]
"""Times (N, T), probabilities (N, T, C) and a number of seconds -> probabilities, none by later frames."""


def nothing(times: np.ndarray, probs: np.ndarray, seconds: float) -> np.ndarray:
    """Every frame alone."""
    return probs


def exponential(times: np.ndarray, probs: np.ndarray, seconds: float) -> np.ndarray:
    """`s + (1 - exp(-Δt / seconds)) (p - s)`, as `mien.video.smooth.Exponential`."""
    smoothed = probs.copy()
    for t in range(1, times.shape[1]):
        weight = 1 - np.exp(-(times[:, t] - times[:, t - 1])[:, None] / seconds)
        smoothed[:, t] = smoothed[:, t - 1] + weight * (probs[:, t] - smoothed[:, t - 1])
    return smoothed


def median(times: np.ndarray, probs: np.ndarray, seconds: float) -> np.ndarray:
    """The median of each label's probabilities in the last `seconds`, divided by their sum."""
    smoothed = np.empty_like(probs)
    for t in range(times.shape[1]):
        late = times[:, : t + 1] >= times[:, t, None] - seconds
        smoothed[:, t] = np.nanmedian(np.where(late[..., None], probs[:, : t + 1], np.nan), axis=1)
    return smoothed / np.maximum(smoothed.sum(2, keepdims=True), 1e-9)


def two_state(times: np.ndarray, probs: np.ndarray, seconds: float) -> np.ndarray:
    """Each label as a hidden Markov chain of two states, there or not, filtered forward; divided by their sum.

    before a frame   q ← π + (q - π) exp(-Δt / seconds)         π = 1 / C, what is known of a label without frames
    at a frame       odds(q) ← odds(q) · odds(p) / odds(π)      p, what is said of the frame alone
    """
    prior = 1 / probs.shape[2]
    odds = probs.clip(1e-3, 1 - 1e-3)
    odds = odds / (1 - odds) / (prior / (1 - prior))
    known, found = np.full((len(probs), probs.shape[2]), prior), np.empty_like(probs)
    for t in range(times.shape[1]):
        if t:
            known = prior + (known - prior) * np.exp(-(times[:, t] - times[:, t - 1])[:, None] / seconds)
        known = known * odds[:, t] / (known * odds[:, t] + 1 - known)
        known = known.clip(1e-6, 1 - 1e-6)
        found[:, t] = known
    return found / found.sum(2, keepdims=True)


FILTERS: Mapping[str, tuple[Smooth, tuple[float, ...]]] = {
    "nothing": (nothing, (0.0,)),
    "exponential": (exponential, (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8)),
    "median": (median, (0.1, 0.2, 0.3, 0.5, 0.8, 1.2)),
    "two-state HMM": (two_state, (0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0)),
}
"""By name, with the seconds that are tried."""


def right(probs: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(N,): of each track the share of its labelled frames whose likeliest label is right, NaN where none is labelled.

    probs: (N, T, C). target: (N, T), -1 where nobody said.
    """
    known = target >= 0
    hit = (probs.argmax(2) == target) & known
    with np.errstate(invalid="ignore"):
        return hit.sum(1) / np.where(known.any(1), known.sum(1), np.nan)


def choose_seconds(name: str, times: np.ndarray, probs: np.ndarray, target: np.ndarray) -> float:
    """Those of the filter `name` that are right most often on these tracks, which are not those that judge."""
    smooth, tried = FILTERS[name]
    return max(tried, key=lambda seconds: np.nanmean(right(smooth(times, probs, seconds), target)))


def interval(values: np.ndarray, resamples: int = 5000, seed: int = 0) -> tuple[float, float, float]:
    """The mean of values of tracks (N,) and the ends of its 95 %, percentiles over resamples of the tracks."""
    values = values[np.isfinite(values)]
    draws = np.random.default_rng(seed).multinomial(len(values), np.full(len(values), 1 / len(values)), resamples)
    low, high = np.quantile(draws @ values / len(values), (0.025, 0.975))
    return float(values.mean()), float(low), float(high)
