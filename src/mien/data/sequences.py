"""Tracks as a video might have them, made of features of single faces."""

from typing import NamedTuple

import numpy as np


class SyntheticTrack(NamedTuple):
    """A made-up track.

    times: (T,) float32, seconds, rising.
    features: (T, D) float32.
    target: (T,) int64, what is taken to be shown.
    faces: (T,) int64, the row of the face of each frame; in a transition, of the face that it leads to.
    """

    times: np.ndarray
    features: np.ndarray
    target: np.ndarray
    faces: np.ndarray


class FaceSequences:
    """Made-up tracks: item i depends on the seed and i alone.

    These are still faces, so that all that moves is made up, and a model that wins on such tracks has won on such
    tracks:

    - a frame rate of 5 to 30 a second a track, and times that jitter by a tenth of a frame;
    - segments of one expression, half of them neutral, of 0.4 s and more, 2.5 s in the mean;
    - in each up to three faces of that expression, of which one stays for half a second in the mean;
    - transitions of 0.1 to 0.5 s, in which features go evenly from one face's to the other's, and the target changes in
      the middle;
    - stretches of 0.2 to 1 s in which every picture is spoilt, a fifth of the time;
    - 4 % of frames that are of a wrong face, of whatever expression;
    - gaps of 0.1 to 0.9 s without frames, one every eight seconds.

    features: (N, V, D) float of N faces, of which view 0 is as it was and the others spoilt. labels: (N,) classes.
    neutral: the class that half of the segments are of. seed: of all chance. length: T, frames a track. count: tracks.
    """

    def __init__(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        *,
        seed: int,
        neutral: int = 0,
        length: int = 64,
        count: int = 1000,
    ):
        if features.ndim != 3 or len(features) != len(labels) or not len(labels):
            raise ValueError(f"features {features.shape} are not (N, V, D) of {len(labels)} labels")
        self.features, self.labels, self.seed, self.length, self.count = features, labels, seed, length, count
        self.neutral = neutral
        self.of = {int(label): np.flatnonzero(labels == label) for label in np.unique(labels)}
        self.others = [label for label in self.of if label != neutral] or [neutral]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> SyntheticTrack:
        if not 0 <= i < self.count:
            raise IndexError(i)
        chance = np.random.default_rng([self.seed, i])
        times = self._times(chance)
        target, faces, share, before = self._shown(chance, times)
        spoilt = _stretches(chance, times, every=2.4, low=0.2, high=1.0)
        views = np.where(spoilt, chance.integers(1, max(2, self.features.shape[1]), len(times)), 0)
        views = np.minimum(views, self.features.shape[1] - 1)
        wrong = chance.random(len(times)) < 0.04
        strangers = chance.integers(len(self.labels), size=len(times))
        shown = np.where(wrong, strangers, faces)
        part = np.where(wrong, 1.0, share).astype(np.float32)[:, None]
        values = part * self.features[shown, views] + (1 - part) * self.features[before, views]
        return SyntheticTrack(times, values.astype(np.float32), target, faces)

    def _times(self, chance: np.random.Generator) -> np.ndarray:
        rate = float(np.exp(chance.uniform(np.log(5), np.log(30))))
        steps = chance.normal(1, 0.1, 4 * self.length).clip(0.5, 1.5) / rate
        times = np.cumsum(steps) - steps[0]
        gone = _stretches(chance, times, every=8.0, low=0.1, high=0.9)
        gone[0] = False
        return times[~gone][: self.length].astype(np.float32)

    def _shown(self, chance: np.random.Generator, times: np.ndarray) -> tuple[np.ndarray, ...]:
        """For each frame: the target, the face, how far it has come to that face, and the one from which it came."""
        target, faces = (np.zeros(len(times), np.int64) for _ in range(2))
        share, before = np.ones(len(times)), np.zeros(len(times), np.int64)
        at, label, last = 0.0, -1, None
        while at <= times[-1]:
            length = 0.4 + chance.exponential(2.1)
            label = self._next(chance, label)
            some = chance.choice(self.of[label], chance.integers(1, 4))
            here = np.flatnonzero((times >= at) & (times < at + length))
            stay = np.diff(times[here], prepend=at) < chance.exponential(0.5, len(here))
            face = int(some[0])
            for k, t in enumerate(here):
                face = face if stay[k] else int(chance.choice(some))
                target[t], faces[t], before[t] = label, face, face
            if last is not None:
                half = chance.uniform(0.05, 0.25)
                for t in np.flatnonzero(np.abs(times - at) < half):
                    come = (times[t] - at + half) / (2 * half)
                    if times[t] < at:  # still the target before
                        before[t], faces[t], share[t] = faces[t], int(some[0]), come
                    else:
                        before[t], share[t] = last, come
            if len(here):
                last = int(faces[here[-1]])
            at += length
        return target, faces, share, before

    def _next(self, chance: np.random.Generator, label: int) -> int:
        if self.neutral in self.of and label != self.neutral and chance.random() < 0.6:
            return self.neutral
        return int(chance.choice([other for other in self.others if other != label] or self.others))


def _stretches(chance: np.random.Generator, times: np.ndarray, *, every: float, low: float, high: float) -> np.ndarray:
    """(T,) bool: stretches of low to high seconds that begin every so many seconds in the mean."""
    inside, at = np.zeros(len(times), bool), chance.exponential(every)
    while at < times[-1]:
        length = chance.uniform(low, high)
        inside |= (times >= at) & (times < at + length)
        at += length + chance.exponential(every)
    return inside
