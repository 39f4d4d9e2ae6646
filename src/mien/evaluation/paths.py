"""How alike two paths of looks are."""

from collections.abc import Sequence


def sequence_score(path: Sequence[int], other: Sequence[int]) -> float:
    """How much of two paths over objects is the same in the same order, 0 to 1: the most objects that an alignment can
    match, over the length of the longer path; 1 for two empty ones.

    It is Needleman and Wunsch's alignment with 1 for a match and 0 for anything else. *Inferred*: that the score of
    Yang et al., Predicting Goal-directed Human Attention Using Inverse Reinforcement Learning, CVPR 2020, weighs so.
    """
    if not path or not other:
        return float(len(path) == len(other))
    best = [0] * (len(other) + 1)
    for one in path:
        before = 0
        for j, two in enumerate(other, 1):
            here = best[j]
            best[j] = before + 1 if one == two else max(best[j], best[j - 1])
            before = here
    return best[-1] / max(len(path), len(other))


def hit_rate(paths: Sequence[Sequence[int]], targets: Sequence[int], looks: int) -> float:
    """The share of searches whose first `looks` looks have the target among them."""
    return sum(target in path[:looks] for path, target in zip(paths, targets, strict=True)) / len(targets)
