"""Temperature scaling: probabilities that say how often they are right."""

import numpy as np

LEAST = 200
"""Fewer faces do not determine a temperature."""

BOUNDS = 0.05, 20.0
"""Between which a temperature is sought."""


def calibrate(logits: np.ndarray, target: np.ndarray, right: float) -> tuple[float, float]:
    """The temperature, and the probability below which answers are uncertain (see `uncertain_below`).

    logits: (N, C), before any temperature. target: (N,) classes. right: the share that is to be right, above 0 up to 1.

    Raises ValueError where the faces do not determine them: fewer than LEAST, all answers right, or a likeliest
    temperature at the bound of those that are sought.
    """
    faces = len(target)
    if faces < LEAST:
        raise ValueError(f"{faces} faces say too little, {LEAST} are the least")
    if (logits.argmax(1) == target).all():
        raise ValueError(f"all {faces:,} faces are read right, so that no temperature would make an answer too sure")
    temperature = round(fit_temperature(logits, target), 4)
    low, high = BOUNDS
    if not low * 1.01 < temperature < high / 1.01:
        raise ValueError(f"the likeliest temperature, {temperature}, is at the bound of those that are sought")
    return temperature, uncertain_below(with_temperature(logits, temperature), target, right)


def fit_temperature(logits: np.ndarray, target: np.ndarray) -> float:
    """The temperature T that minimises the mean of `-log softmax(logits / T)[target]`, within BOUNDS.

    logits: (N, C), or the logarithms of probabilities. target: (N,) classes.

    Paper: Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    logits = np.asarray(logits, np.float64)
    low, high = np.log(BOUNDS)
    for _ in range(60):  # the loss is convex in 1/T, so it has one valley in log T
        left, right = low + (high - low) / 3, high - (high - low) / 3
        if _log_loss(logits / np.exp(left), target) < _log_loss(logits / np.exp(right), target):
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2))


def with_temperature(logits: np.ndarray, temperature: float) -> np.ndarray:
    """`softmax(logits / T)`, (N, C)."""
    powers = np.asarray(logits, np.float64) / temperature
    powers = np.exp(powers - powers.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def held_out(logits: np.ndarray, target: np.ndarray, seed: int = 0) -> np.ndarray:
    """Probabilities (N, C) of logits (N, C): each half of the faces has the temperature fitted on the other half.

    target: (N,) classes. seed: of the halves (default 0).
    """
    probs = np.empty(logits.shape)
    order = np.random.default_rng(seed).permutation(len(logits))
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    for mine, other in (halves, halves[::-1]):
        probs[mine] = with_temperature(logits[mine], fit_temperature(logits[other], target[other]))
    return probs


def uncertain_below(probs: np.ndarray, target: np.ndarray, right: float) -> float:
    """The least probability above which the fraction `right` of the answers is right.

    An answer is the likeliest class; one that is as likely as the threshold is kept.

    probs: (N, C). target: (N,) classes. right: 0 to 1.

    Returns 0 if all answers together are right that often, and 1 if no number of the surest answers is.
    """
    sure, order = probs.max(1), np.argsort(-probs.max(1), kind="stable")
    fraction = (probs.argmax(1) == target)[order].cumsum() / np.arange(1, len(order) + 1)
    last = np.append(np.diff(sure[order]) != 0, True)  # of those that are equally sure
    kept = np.flatnonzero((fraction >= right) & last)
    if not len(kept):
        return 1.0
    return 0.0 if kept[-1] == len(order) - 1 else float(sure[order[kept[-1]]])


def reliability(probs: np.ndarray, target: np.ndarray, bins: int) -> list[tuple[float, float, int]]:
    """The mean confidence, the accuracy and the number of the answers in each bin of confidence that is not empty.

    probs: (N, C). target: (N,) classes. bins: how many, of equal width.
    """
    sure, right = probs.max(1), probs.argmax(1) == target
    bin_of = np.minimum((sure * bins).astype(int), bins - 1)
    return [(float(sure[bin_of == b].mean()), float(right[bin_of == b].mean()), int((bin_of == b).sum()))
            for b in np.unique(bin_of)]  # fmt: skip


def _log_loss(logits: np.ndarray, target: np.ndarray) -> float:
    top = logits.max(1)
    normaliser = top + np.log(np.exp(logits - top[:, None]).sum(1))
    return float((normaliser - logits[np.arange(len(target)), target]).mean())
