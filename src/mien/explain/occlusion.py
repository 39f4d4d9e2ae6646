"""What happens to an answer when a part of the face is hidden; needs no torch."""

from collections.abc import Sequence

import numpy as np

from mien.explain.explanation import Explanation, Run, answered, mean_colour

GRID = 7


class Occlusion:
    """How far the probability of an answer falls when a square window of the face is hidden, for any model.

        values[i, j] = p(answer | crop) - p(answer | crop with the window about cell (i, j) in its mean colour)

    The crop is divided into grid × grid cells; a window about the middle of a cell is cut off at the edge of the crop.
    Below 0 the answer is surer without that part. The network reads 1 + grid² faces.

    Args:
        run: reads faces (`Run`).
        labels: of its answers.
        grid: int from 1 on, cells along a side; 7.
        window: float above 0, its side as a share of the crop's; 2/7, so that windows overlap by half.
        batch_size: int from 1 on, faces read at a time; 25.

    Paper: Zeiler & Fergus, Visualizing and Understanding Convolutional Networks, arXiv 1311.2901; the window's mean
    colour in the place of grey is ours.
    """

    def __init__(self, run: Run, labels: Sequence[str], grid: int = GRID, window: float = 2 / 7, batch_size: int = 25):
        self.run, self.labels, self.grid, self.window, self.batch_size = run, labels, grid, window, batch_size

    def explain(self, crop: np.ndarray, target: str | None = None) -> Explanation:
        """The explanation of a face crop (S, S, 3) uint8 RGB, as the model's `preprocess` makes it.

        target: the label that is explained, by default the likeliest. Raises MienError if there is no such label.
        """
        hidden = np.stack([crop, *self.hide(crop)])
        starts = range(0, len(hidden), self.batch_size)
        probs = np.concatenate([self.run(hidden[i : i + self.batch_size]) for i in starts])
        index = answered(probs[0], self.labels, target)
        falls = (probs[0, index] - probs[1:, index]).reshape(1, self.grid, self.grid)
        unit = f"what hiding a part takes from the probability of {self.labels[index]}"
        label, prob = self.labels[index], float(probs[0, index])
        return Explanation("occlusion", falls.astype(np.float32), index, label, prob, unit, signed=True)

    def hide(self, crop: np.ndarray) -> np.ndarray:
        """The crop with each window hidden in turn, row by row: (grid², S, S, 3)."""
        hidden, colour = np.repeat(crop[None], self.grid**2, 0), mean_colour(crop)[0, 0]
        for k, image in enumerate(hidden):
            rows, columns = (self.span(i, len(crop)) for i in divmod(k, self.grid))
            image[rows, columns] = colour
        return hidden

    def span(self, i: int, side: int) -> slice:
        """The pixels of the window about the middle of the i-th cell, along a side of the crop."""
        first, last = (side * ((i + 0.5) / self.grid + sign * self.window / 2) for sign in (-1, 1))
        return slice(max(0, int(np.floor(first + 0.5))), min(side, int(np.floor(last + 0.5))))
