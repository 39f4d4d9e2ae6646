"""Smoothing by a network that joins the features of a track, beside smoothing by a time constant."""

import warnings
from collections import deque

import numpy as np

from mien.checkpoint import FEATURES
from mien.classifier import Answer, Classifier
from mien.engines import open_model
from mien.errors import CheckpointError, MienError, MienWarning
from mien.video.smooth import FORGOTTEN, Exponential


class TemporalSmoothing:
    """What the model's temporal graph says of every frame, by the features of the last frames of a track.

        graph  `track` (1, W, 1 + D) float32, seconds before now and features -> `probs` (1, W, C) of the first output,
               and others by their names (1, W, …); of n < W frames the last is repeated, and row n is taken

    classifier: of a model whose header names a temporal graph.
    seconds: the time constant by which what the graph does not answer is smoothed; 0.5.

    A frame whose features are not numbers is answered by the time constant; the first such frame gives a MienWarning.

    Raises MienError for a model without a temporal graph, CheckpointError where its file is not there or is no model.
    """

    def __init__(self, classifier: Classifier, seconds: float = 0.5):
        if classifier.path is None or "temporal" not in classifier.header:
            raise MienError(f"{classifier.path}: no temporal model: its header names none")
        path = classifier.path.with_name(classifier.header["temporal"]["file"])
        if not path.is_file():
            raise CheckpointError(f"{classifier.path}: {path.name}, which its header names, is not beside it")
        self._window = classifier.header["temporal"]["window"]
        self._path, self._engine = path, open_model(path, precision="fp32")
        self._outputs = classifier.outputs
        self._usual = Exponential(seconds, classifier.outputs)
        self._tracks: dict[int, deque[np.ndarray]] = {}
        self._told = False

    def __call__(self, track: int, time: float, answer: Answer) -> Answer:
        usual = self._usual(track, time, answer)
        features = answer[FEATURES]
        if not np.isfinite(features).all():
            if not self._told:
                self._told = True
                what = f"track {track} at {time:.2f} s: features that are not numbers; such frames are smoothed by time"
                warnings.warn(what, MienWarning, stacklevel=2)
            return usual
        seen = self._tracks.setdefault(track, deque(maxlen=self._window))
        if seen and time < seen[-1][0]:
            seen.clear()
        seen.append(np.concatenate([[time], np.asarray(features, np.float64)]))
        rows = np.stack(seen)
        rows[:, 0] -= time  # floats of 32 bits do not hold hours and milliseconds
        last = len(rows) - 1
        rows = np.pad(rows, ((0, self._window - len(rows)), (0, 0)), "edge")
        given = self._engine(rows[None].astype(np.float32))
        if "probs" not in given:
            raise CheckpointError(f"{self._path}: gives no probs, only {', '.join(sorted(given))}")
        answers = dict(usual)
        for output in self._outputs:
            name = "probs" if output is self._outputs[0] else output.name
            if name in given:
                try:
                    answers[output.name] = output.check(given[name][0, last : last + 1])[0]
                except (ValueError, IndexError) as error:
                    raise CheckpointError(f"{self._path}: {error}") from error
        return answers

    def forget(self, time: float) -> None:
        self._usual.forget(time)
        for track in [track for track, seen in self._tracks.items() if time - seen[-1][0] > FORGOTTEN]:
            del self._tracks[track]
