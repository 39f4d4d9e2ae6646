"""Which prediction is which target: the pairs that together cost least."""

import numpy as np


def cheapest_pairs(cost: np.ndarray) -> np.ndarray:
    """cost (T, Q) of pairs, T at most Q -> for each row the column that is its own, (T,): the least sum of all.

    Shortest augmenting paths with potentials, O(T² Q). Paper: Kuhn, The Hungarian method, 1955.
    """
    rows, columns = cost.shape
    if rows > columns:
        raise ValueError(f"{rows} rows cannot each have one of {columns} columns")
    up, left = np.zeros(rows + 1), np.zeros(columns + 1)
    owner, before = np.full(columns + 1, -1), np.zeros(columns + 1, int)
    for row in range(rows):
        owner[columns], at = row, columns  # the last column is a place to begin at
        least, seen = np.full(columns, np.inf), np.zeros(columns + 1, bool)
        while owner[at] >= 0:
            seen[at] = True
            slack = cost[owner[at]] - up[owner[at]] - left[:columns]
            closer = ~seen[:columns] & (slack < least)
            least[closer], before[:columns][closer] = slack[closer], at
            after = int(np.argmin(np.where(seen[:columns], np.inf, least)))
            step = least[after]
            up[owner[seen]] += step
            left[seen] -= step
            least[~seen[:columns]] -= step
            at = after
        while at != columns:
            owner[at], at = owner[before[at]], before[at]
        owner[columns] = -1
    found = np.empty(rows, int)
    for column in range(columns):
        if owner[column] >= 0:
            found[owner[column]] = column
    return found
