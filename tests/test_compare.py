"""Two ways to compute one model, side by side."""

import json
from pathlib import Path

import numpy as np
import pytest

from mien.classifier import Classifier
from mien.data import Row
from mien.evaluation.compare import compare, distance, read_side_by_side


def answers(labels, classes: int = 4, sure: float = 0.7) -> np.ndarray:
    return np.where(np.eye(classes)[labels] > 0, sure, (1 - sure) / (classes - 1))


def test_distance_is_what_would_have_to_be_moved():
    p = np.array([[1, 0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]])
    q = np.array([[0, 1, 0], [0.25, 0.5, 0.25], [0.2, 0.3, 0.5]])
    np.testing.assert_allclose(distance(p, q), [1, 0.25, 0])


def test_a_comparison_by_hand():
    target = np.array([0, 1, 2, 3, 0])
    before, after = answers([0, 1, 2, 0, 1]), answers([0, 1, 0, 3, 2])  # loses the third, wins the fourth
    found = compare(before, after, target)
    assert (found.faces, found.accuracy, found.other_accuracy, found.accuracy_difference) == (5, 0.6, 0.6, 0)
    assert found.agreement == 0.4
    assert found.mean_distance == pytest.approx(0.6 * 3 / 5)
    assert found.largest_difference == pytest.approx(0.6)
    assert found.interval[0] < 0 < found.interval[1]
    same = compare(before, before, target)
    assert (same.interval, same.agreement, same.mean_distance) == ((0, 0), 1, 0)
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()


def test_the_interval_is_that_of_pairs():
    """Of faces resampled with both of their answers; two that mostly err together differ by little."""
    random = np.random.default_rng(0)
    target = random.integers(4, size=1000)
    before = np.where(random.random(1000) < 0.7, target, (target + 1) % 4)
    after = np.where(random.random(1000) < 0.03, (target + 2) % 4, before)
    found = compare(answers(before), answers(after), target)
    gain = (after == target).astype(float) - (before == target)
    means = gain[random.integers(1000, size=(4000, 1000))].mean(1)
    assert found.interval == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.002)
    assert found.interval[0] < found.accuracy_difference == gain.mean() < found.interval[1] < 0


class Engine:
    outputs, precision = ("probs",), "fp32"

    def __init__(self, label: int, calls: list):
        self.label, self.calls = label, calls

    def __call__(self, x: np.ndarray) -> dict[str, np.ndarray]:
        self.calls.append((self.label, len(x), x[0, 0, 0, 0]))
        return {"probs": answers(np.full(len(x), self.label), 8).astype(np.float32)}


def test_batches_are_read_in_turn(stand_in):
    header, calls = Classifier.from_pretrained(stand_in).header, []
    classifiers = {name: Classifier(Engine(i, calls), header, Path(name)) for i, name in enumerate("ab")}
    rows = [Row(np.full((9, 9, 3), i, np.uint8), np.eye(8)[0], "test") for i in range(5)]
    read = read_side_by_side(classifiers, rows, batch_size=2)
    assert calls == [(0, 2, 0), (0, 2, 0), (1, 2, 0), (1, 2, 0), (0, 2, 2), (1, 2, 2), (0, 1, 4), (1, 1, 4)]
    assert [read[name].probs.argmax(1).tolist() for name in "ab"] == [[0] * 5, [1] * 5]
    assert all(answer.cpu_ms >= 0 for answer in read.values())
