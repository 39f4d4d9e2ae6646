import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import HEADER
from PIL import Image

from mien.__main__ import main
from mien.checkpoint import at_temperature, outputs_of, read_header
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


def written(tmp_path, monkeypatch, faces: int = 200, factor: float = 3.0) -> tuple[Path, list[str], np.ndarray]:
    """A checkpoint and the words of a command, with so many faces, whose answers are as sure as `factor` makes them.

    Given is the class of each face as the command counts them, too: of the folders happiness and neutral, half each.
    """
    torch.manual_seed(0)
    path = tmp_path / "a.safetensors"
    model = {"class_path": "mien.networks.mobilefacenet", "init_args": {"num_classes": 8}}
    labels = dict(zip(map(str, range(8)), EXPRESSIONS, strict=True))
    header = at_temperature(HEADER | {"model": model, "id2label": labels}, 1.0)
    save_network(path, mobilefacenet(num_classes=8), header, torch.float16)
    target = np.repeat([1, 0], faces // 2)
    for label, share in ((1, "happiness"), (0, "neutral")):
        (tmp_path / "data/validation" / share).mkdir(parents=True)
        for i in range(faces // 2):
            picture = Image.fromarray(np.full((2, 2, 3), (i % 250, i // 250, 9 * label), np.uint8))
            picture.save(tmp_path / "data/validation" / share / f"{i:03}.png")
    random = np.random.default_rng(0)
    logits = random.normal(size=(faces, 8)) - 4 * (np.arange(8) > 1)
    logits[np.arange(faces), target] += 1.5
    answers(monkeypatch, with_temperature(logits, 1 / factor))
    return path, ["calibrate", str(path), "--data", str(tmp_path / "data")], target


def answers(monkeypatch, probs: np.ndarray) -> None:
    """What is read in the faces."""
    monkeypatch.setattr(sys.modules["mien.evaluation.measure"], "read_rows", lambda *_, **__: (probs, 0))


def test_command_keeps_weights_and_changes_answers(tmp_path, monkeypatch, capsys):
    path, command, _ = written(tmp_path, monkeypatch)
    face = np.random.default_rng(1).integers(0, 255, (112, 112, 3), np.uint8)
    before, weights = Classifier.from_pretrained(path).predict_proba([face]), path.read_bytes()[-1_000_000:]

    assert main(command) == 0

    temperature = outputs_of(read_header(path))[0].temperature
    assert f"temperature {temperature}, fitted on 200 faces of validation" in capsys.readouterr().out
    assert temperature > 1.3
    assert path.read_bytes()[-1_000_000:] == weights
    after = Classifier.from_pretrained(path).predict_proba([face])
    np.testing.assert_allclose(after, with_temperature(np.log(before), temperature), atol=1e-6)


def test_what_was_there_before_can_be_had_back(tmp_path, monkeypatch, capsys):
    path, command, _ = written(tmp_path, monkeypatch)
    undo = ["calibrate", str(path), "--undo"]
    assert main(undo) == 1 and "was not calibrated since it was trained" in capsys.readouterr().err
    before = path.read_bytes()
    assert main(command) == 0 and main([*command, "--sure", "0.6"]) == 0  # what is put back is what was trained
    assert path.read_bytes() != before
    assert main(undo) == 0 and "temperature 1.0, as before" in capsys.readouterr().out
    assert outputs_of(read_header(path))[0].temperature == 1.0 and "before_calibration" not in read_header(path)
    assert path.read_bytes() == before
    for words in (["calibrate", str(path)], [*command, "--undo"]):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 2 and "--data PATH, or --undo" in capsys.readouterr().err


def test_what_does_not_determine_a_temperature_leaves_it(tmp_path, monkeypatch, capsys):
    """Few faces, nothing wrong, everything wrong and sure: the optimum lies at a bound, and says nothing of others."""
    path, command, target = written(tmp_path, monkeypatch)
    before = path.read_bytes()
    right = np.full((200, 8), 0.05)
    right[np.arange(200), target] = 0.65
    cases = {
        "all 200 faces are read right": right,
        "likeliest temperature, 20.0, is at the bound": np.roll(right, 1, axis=1),
    }
    for reason, probs in cases.items():
        answers(monkeypatch, probs / probs.sum(1, keepdims=True))
        assert main(command) == 1
        assert f"{path}: left as it is, temperature 1.0: " in (err := capsys.readouterr().err) and reason in err
        assert path.read_bytes() == before
    (tmp_path / "data/validation/neutral/000.png").unlink()
    answers(monkeypatch, right[1:])
    assert main(command) == 1
    assert "199 faces say too little, 200 are the least" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_command_keeps_from_where_on_it_is_sure(tmp_path, monkeypatch, capsys):
    path, command, target = written(tmp_path, monkeypatch)
    probs = np.full((200, 8), 0.01)
    probs[range(200), target] = np.linspace(0.95, 0.4, 200)
    probs[-25:] = np.roll(probs[-25:], 2, axis=1)  # wrong, and of these the least sure
    probs /= probs.sum(1, keepdims=True)
    answers(monkeypatch, probs)
    assert main([*command, "--sure", "1"]) == 0
    header = read_header(path)
    scaled = with_temperature(np.log(probs), outputs_of(header)[0].temperature).max(1)
    assert scaled[-25:].max() < header["uncertain"] <= scaled[:-25].min() < header["uncertain"] + 1e-4
    out = capsys.readouterr().out
    assert f"below {header['uncertain']}: 12.5% of the faces; of the others 100.0% are read right, of all 87.5%" in out
    probs[:] = 0.05
    probs[range(200), target] = 0.65
    probs[::2] = np.roll(probs[::2], 3, axis=1)  # all are as sure as any other, and half of them wrong
    assert main(command) == 0
    assert "uncertain" not in read_header(path)  # what was there is no longer so
    assert "not even the surest answers are right 90% of the time" in capsys.readouterr().out


def test_command_wants_weights_that_can_be_exported_again(stand_in, tmp_path, capsys):
    assert main(["calibrate", str(stand_in), "--data", str(tmp_path)]) == 1
    assert "only a .safetensors checkpoint is calibrated" in capsys.readouterr().err
