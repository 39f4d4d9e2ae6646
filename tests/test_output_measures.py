"""Measures of outputs by kind, beside those of torchmetrics and numbers made by hand."""

import json

import numpy as np
import pytest
import torch
from torchmetrics.functional import concordance_corrcoef, mean_squared_error, pearson_corrcoef
from torchmetrics.functional.classification import binary_calibration_error, binary_f1_score

from mien.evaluation.answers import measure_output, report_outputs
from mien.outputs import Output

UNITS = Output("action_units", "binary", ("AU1", "AU12"))
AFFECT = Output("affect", "range", ("valence", "arousal"))


def drawn(count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    truth = draw.uniform(-1, 1, (count, 2))
    return (0.6 * truth + draw.normal(0, 0.3, truth.shape)).clip(-1, 1), truth


def test_units_as_torchmetrics_measures_them():
    given, truth = drawn()
    probs, truth = (given + 1) / 2, (truth > 0.3).astype(float)
    truth[:20, 0] = np.nan  # nobody looked
    report = measure_output(UNITS, probs, truth, resamples=200)
    for i, label in enumerate(UNITS.labels):
        known = np.isfinite(truth[:, i])
        p, t = torch.tensor(probs[known, i]), torch.tensor(truth[known, i]).long()
        assert report.measures["f1"].by_label[label] == pytest.approx(binary_f1_score(p, t).item(), abs=1e-6)
        # torchmetrics bins the probability of the ones, mien that of what is answered: 0.5 and above on both sides
        p_answered, right = torch.maximum(p, 1 - p), ((p >= 0.5).long() == t).long()
        error = binary_calibration_error(p_answered, right, n_bins=15)
        assert report.measures["calibration_error"].by_label[label] == pytest.approx(error.item(), abs=1e-6)
    f1 = report.measures["f1"]
    assert f1.value == pytest.approx(np.mean(list(f1.by_label.values())))
    assert f1.interval[0] < f1.value < f1.interval[1] and report.count == 200


def test_ranges_as_torchmetrics_measures_them():
    given, truth = drawn()
    report = measure_output(AFFECT, given, truth, resamples=50)
    wanted = {
        "ccc": concordance_corrcoef(torch.tensor(given), torch.tensor(truth)),
        "pcc": pearson_corrcoef(torch.tensor(given), torch.tensor(truth)),
        "rmse": mean_squared_error(torch.tensor(given), torch.tensor(truth), num_outputs=2).sqrt(),
    }
    for name, values in wanted.items():
        got = list(report.measures[name].by_label.values())
        # torchmetrics takes the variance of a sample in its concordance
        np.testing.assert_allclose(got, values.numpy(), atol=3e-3 if name == "ccc" else 1e-6)


def test_angles_a_turn_apart_are_near():
    pose = Output("pose", "angles", ("yaw",))
    report = measure_output(pose, np.array([[179.0], [-10]]), np.array([[-179.0], [10]]), resamples=10)
    assert report.measures["mean_absolute_error"].value == pytest.approx(11)


def test_points_by_the_distance_of_the_eyes():
    eyes = Output("eyes", "points", ("left", "right", "nose"))
    truth = np.array([[[0.2, 0.3], [0.6, 0.3], [0.4, 0.5]]])
    report = measure_output(eyes, truth + [0.0, 0.04], truth, resamples=10)
    assert report.measures["normalized_error"].value == pytest.approx(0.1)


def test_classes_that_are_not_the_first_question():
    mood = Output("mood", "classes", ("calm", "glad"))
    target = np.array([[1, 0], [0, 1], [0, 1], [np.nan, np.nan]])
    report = measure_output(mood, np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.5, 0.5]]), target, resamples=10)
    assert report.count == 3 and report.measures["balanced_accuracy"].value == pytest.approx(0.75)
    assert report.measures["macro_f1"].value == pytest.approx(2 / 3)


def test_nothing_known_and_constant_targets_give_no_number():
    report = measure_output(AFFECT, np.zeros((3, 2)), np.full((3, 2), np.nan))
    assert report.count == 0 and np.isnan(report.measures["ccc"].value)
    assert "–" in str(report) and json.loads(json.dumps(report.to_dict()))["measures"]["ccc"]["value"] is None
    constant = measure_output(AFFECT, np.zeros((3, 2)), np.zeros((3, 2)), resamples=5)
    assert np.isnan(constant.measures["pcc"].value) and constant.measures["rmse"].value == 0


def test_only_outputs_that_the_data_tells_of_are_reported():
    given, truth = drawn(10)
    answers = {"action_units": (given + 1) / 2, "affect": given}
    [report] = report_outputs([UNITS, AFFECT], answers, {"affect": truth}, resamples=5)
    assert report.name == "affect" and str(report).startswith("affect (range, 10 faces)")
    with pytest.raises(ValueError, match="affect: answers"):
        measure_output(AFFECT, given, truth[:5])
