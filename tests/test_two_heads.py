"""Two heads on one network: an expression, and action units; faces that lack one of the labels."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from mien.__main__ import main
from mien.checkpoint import outputs_of, read_header
from mien.data import DataSet, Row
from mien.losses import weighted_cross_entropy
from mien.networks import Network, load_network
from mien.training.crops import Crops

WEIGHTS = {"expression": 10.0, "action_units": 1.0}
EXPRESSIONS = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 0.5, 0.5], [0, 0, 0]])
UNITS = torch.tensor([[1.0, 0], [-1, -1], [-1, 1], [0, 0]])


def logits() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        "expression": torch.randn(4, 3, generator=draw, requires_grad=True),
        "action_units": torch.randn(4, 2, generator=draw, requires_grad=True),
    }


@pytest.mark.parametrize("target", [EXPRESSIONS, torch.tensor([0, -1, 2, -1])], ids=["shares", "classes"])
def test_what_is_not_known_has_no_share_in_the_loss(target):
    told = logits()
    loss, parts = weighted_cross_entropy(told, target, WEIGHTS, label_smoothing=0.1, units=UNITS)
    known = told["expression"][[0, 2]]
    expression = F.cross_entropy(known, target[[0, 2]], label_smoothing=0.1)
    p = told["action_units"].sigmoid()
    seen = torch.stack([p[0, 0], 1 - p[0, 1], p[2, 1], 1 - p[3, 0], 1 - p[3, 1]])
    torch.testing.assert_close(parts["expression"], expression)
    torch.testing.assert_close(parts["action_units"], -seen.log().mean())
    torch.testing.assert_close(loss, 10 * expression - seen.log().mean())
    loss.backward()
    assert told["expression"].grad.any(1).tolist() == [True, False, True, False]
    assert (told["action_units"].grad != 0).tolist() == [[True, True], [False, False], [False, True], [True, True]]


@pytest.mark.parametrize(
    "target, units",
    [
        (torch.zeros(4, 3), torch.full((4, 2), -1.0)),
        (torch.full((4,), -1), UNITS),
        (EXPRESSIONS, torch.full((4, 2), -1.0)),
    ],
    ids=["neither", "no expression", "no units"],
)
def test_nothing_known_costs_nothing_and_has_a_gradient(target, units):
    told = logits()
    loss, parts = weighted_cross_entropy(told, target, WEIGHTS, units=units)
    loss.backward()
    for name, empty in {"expression": target is not EXPRESSIONS, "action_units": units is not UNITS}.items():
        assert told[name].grad is not None and told[name].grad.isfinite().all()
        assert (parts[name] == 0) == empty == (not told[name].grad.any())


def test_two_heads_need_two_labels():
    with pytest.raises(ValueError, match="logits of action units need units"):
        weighted_cross_entropy(logits(), EXPRESSIONS, WEIGHTS)


def test_without_units_the_loss_is_as_it_was():
    told = {"logits": logits()["expression"]}
    target = torch.tensor([0, 1, 2, 1])
    loss, _ = weighted_cross_entropy(told, target, {"logits": 1.0}, label_smoothing=0.1)
    assert torch.equal(loss, F.cross_entropy(told["logits"], target, label_smoothing=0.1))


class TwoHeads(Network):
    loss_weights = WEIGHTS

    def __init__(self, *, num_classes: int = 3, num_action_units: int = 2):
        super().__init__()
        self.trunk = nn.Conv2d(3, 4, 16, 16)
        self.head, self.units = nn.Linear(4, num_classes), nn.Linear(4, num_action_units)

    def forward_features(self, images):
        return self.trunk(images).relu().mean((2, 3))

    def forward_head(self, features):
        return self.head(features)

    @property
    def head_names(self):
        return ("action_units",)

    def head_answers(self, features):
        return {"action_units": self.units(features)}

    def training_logits(self, images):
        features = self.forward_features(images)
        return {"expression": self.head(features), "action_units": self.units(features)}


class Both(DataSet):
    """Faces with an expression, with action units, with both."""

    labels, splits, units = ("neutral", "happiness", "anger"), ("train", "validation"), ("AU1", "AU12")

    def __init__(self, path: str = "", check: bool = True):
        super().__init__(check)

    def read(self, split):
        for i, (target, units) in enumerate(zip(EXPRESSIONS.numpy(), UNITS.numpy(), strict=True)):
            yield Row(np.full((48, 48, 3), 50 * i, np.uint8), target, split, units=units)


def test_rows_may_lack_an_expression():
    rows = Both().rows("train")
    assert [row.label for row in rows] == [0, -1, 1, -1]
    assert Both().class_counts("train").tolist() == [1, 1, 0]
    preprocess = {"align": "none", "resize": [{"size": 8, "interpolation": "auto"}]}
    faces = Crops(rows, preprocess, label_share=1.0, further=Both().targets)
    assert [faces[i][1].tolist() for i in range(4)] == [[1, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]]
    units = np.stack([faces[i][3]["action_units"] for i in range(4)])
    np.testing.assert_array_equal(units, np.where(UNITS < 0, np.nan, UNITS))


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "two",
                "model": {"class_path": f"{__name__}.TwoHeads", "init_args": {"num_action_units": 2}},
                "data": {"class_path": f"{__name__}.Both"},
                "faces": {"batch_size": 1, "aligned": 0.0},
                "task": {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}},
                "trainer": {"max_epochs": 1, "accelerator": "cpu", "log_every_n_steps": 1},
            }
        )
    )
    return "recipe.yaml"


def test_a_run_of_two_heads(recipe, capfd):
    """A face a batch, so that every kind of subset is empty once."""
    assert main(["train", recipe]) == 0
    with open("runs/two/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    parts = [[float(row[name]) for name in ("loss", "loss_expression", "loss_action_units")] for row in rows]
    for loss, expression, units in parts:
        assert loss == pytest.approx(10 * expression + units, rel=1e-4)
    assert sorted((e > 0, u > 0) for _, e, u in parts) == [(False, False), (False, True), (True, True), (True, True)]
    header = read_header("runs/two/last.safetensors")
    assert [(output.name, output.labels) for output in outputs_of(header)] == [
        ("expression", Both.labels),
        ("action_units", Both.units),
    ]
    assert header["training"]["metrics"]["val_accuracy"] in (0.0, 0.5, 1.0)  # of the two that have an expression
    network = load_network("runs/two/last.safetensors", trust=True)
    assert network(torch.zeros(1, 3, 112, 112)).shape == (1, 3)


def test_heads_and_data_must_tell_of_the_same_units(recipe, capsys):
    assert main(["train", recipe, "--model.init_args.num_action_units", "12"]) == 1
    assert "the network tells of 12 action units" in capsys.readouterr().err
