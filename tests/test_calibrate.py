import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import HEADER
from PIL import Image

from mien.__main__ import main
from mien.checkpoint import outputs_of, read_header
from mien.classifier import Classifier
from mien.evaluation.calibrate import fit_temperature, held_out, with_temperature
from mien.labels import EXPRESSIONS
from mien.networks import mobilefacenet, save_network


def draws(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits (count, 4) and classes drawn just as often as they say."""
    random = np.random.default_rng(seed)
    logits = 2 * random.normal(size=(count, 4))
    edges = with_temperature(logits, 1).cumsum(1)
    return logits, (random.random((count, 1)) > edges[:, :3]).sum(1)


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_the_temperature_undoes_a_factor(factor):
    logits, target = draws(20_000)
    assert fit_temperature(factor * logits + 5.0, target) == pytest.approx(factor, rel=0.05)


def test_no_other_temperature_is_likelier():
    logits, target = draws(200)
    best = fit_temperature(logits, target)

    def loss(temperature):
        return -np.log(with_temperature(logits, temperature)[np.arange(200), target]).mean()

    assert loss(best) < min(loss(best * 1.05), loss(best / 1.05))


def test_a_half_is_scaled_by_what_the_other_half_says():
    logits, target = draws(40)
    probs = held_out(logits, target)
    scales = [np.log(p[0] / p[1]) / (z[0] - z[1]) for p, z in zip(probs, logits, strict=True)]  # 1 / T of each face
    kinds, counts = np.unique(np.round(scales, 6), return_counts=True)
    assert counts.tolist() == [20, 20]
    own = np.isclose(scales, kinds[0], atol=1e-5)
    assert 1 / fit_temperature(logits[~own], target[~own]) == pytest.approx(kinds[0], rel=1e-4)


def written(tmp_path) -> tuple[Path, list[str]]:
    """A checkpoint with answers at random, and the words of a command for it and eight faces."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    for label in EXPRESSIONS[:2]:
        (tmp_path / "data/validation" / label).mkdir(parents=True)
        for i in range(4):
            picture = Image.fromarray(random.integers(0, 255, (30, 30, 3), np.uint8))
            picture.save(tmp_path / "data/validation" / label / f"{i}.png")
    path = tmp_path / "a.safetensors"
    model = {"class_path": "mien.networks.mobilefacenet", "init_args": {"num_classes": 8}}
    labels = dict(zip(map(str, range(8)), EXPRESSIONS, strict=True))
    save_network(path, mobilefacenet(num_classes=8), HEADER | {"model": model, "id2label": labels}, torch.float16)
    return path, ["calibrate", str(path), "--data", str(tmp_path / "data")]


def test_command_keeps_weights_and_changes_answers(tmp_path, capsys):
    path, command = written(tmp_path)
    face = np.random.default_rng(1).integers(0, 255, (112, 112, 3), np.uint8)
    before, weights = Classifier.from_pretrained(path).predict_proba([face]), path.read_bytes()[-1_000_000:]

    assert main(command) == 0

    temperature = outputs_of(read_header(path))[0].temperature
    assert f"temperature {temperature}, fitted on 8 faces of validation" in capsys.readouterr().out
    assert temperature != 1.0
    assert path.read_bytes()[-1_000_000:] == weights
    after = Classifier.from_pretrained(path).predict_proba([face])
    np.testing.assert_allclose(after, with_temperature(np.log(before), temperature), atol=1e-6)


def test_command_keeps_from_where_on_it_is_sure(tmp_path, monkeypatch, capsys):
    path, command = written(tmp_path)
    right = np.array([0, 0, 0, 0, 1, 1, 1, 1]) ^ 1  # of folders by the alphabet: happiness, neutral
    probs = np.full((8, 8), 0.01)
    probs[range(8), right] = np.linspace(0.95, 0.8, 8)
    probs[7] = np.roll(probs[7], 2)  # wrong, and of these the least sure
    probs /= probs.sum(1, keepdims=True)
    monkeypatch.setattr(sys.modules["mien.evaluation.measure"], "read_rows", lambda *_, **__: (probs, 0))
    assert main([*command, "--sure", "0.95"]) == 0
    header = read_header(path)
    scaled = with_temperature(np.log(probs), outputs_of(header)[0].temperature).max(1)
    assert scaled[7] < header["uncertain"] <= scaled[:7].min() < header["uncertain"] + 1e-4
    out = capsys.readouterr().out
    assert f"below {header['uncertain']}: 12.5% of the faces; of the others 100.0% are read right, of all 87.5%" in out
    probs[:] = np.roll(probs, 3, axis=1)
    assert main(command) == 0
    assert "uncertain" not in read_header(path)  # what was there is no longer so
    assert "not even the surest answers are right 90% of the time" in capsys.readouterr().out


def test_command_wants_weights_that_can_be_exported_again(stand_in, tmp_path, capsys):
    assert main(["calibrate", str(stand_in), "--data", str(tmp_path)]) == 1
    assert "only a .safetensors checkpoint is calibrated" in capsys.readouterr().err
