"""Faces spoilt: harder with every severity, the same for every model, and a picture of how accuracy falls."""

import io
import json

import numpy as np
import pytest
from conftest import COLOURS, write_stand_in
from PIL import Image

from mien.__main__ import main
from mien.classifier import Classifier
from mien.data import Row
from mien.evaluation.robustness import (
    SEVERITIES,
    WAYS,
    beyond,
    eyes,
    measure_robustness,
    mouth,
    plot_robustness,
    robustness_table,
)
from mien.faces.align import ARCFACE112
from mien.labels import EXPRESSIONS


def face(side: int = 112) -> np.ndarray:
    """Grey with a fine pattern, in which everything shows."""
    y, x = np.mgrid[:side, :side]
    return np.stack([120 + 60 * np.sin(x / 3), 120 + 60 * np.cos(y / 4), 100 + (x + y) % 40], 2).astype(np.uint8)


def spoil(name: str, severity: int, seed: int = 0) -> np.ndarray:
    return WAYS[name](face(), ARCFACE112, severity, np.random.default_rng(seed))


@pytest.mark.parametrize("name", WAYS)
def test_each_severity_takes_more_from_the_face(name):
    def taken(severity: int) -> float:
        images = [spoil(name, severity, seed) for seed in range(4)]
        same_size = [np.array(Image.fromarray(image).resize((112, 112))) for image in images]
        return float(np.mean([np.abs(image.astype(float) - face()).mean() for image in same_size]))

    moved = [taken(severity) for severity in range(SEVERITIES)]
    assert moved[0] > 0.1 and moved[-1] > moved[0]
    if name not in ("shifted crop", "turned"):  # a pattern that repeats may come to lie upon itself
        assert moved == sorted(moved)


@pytest.mark.parametrize("name", WAYS)
def test_chance_is_the_seed_and_the_face_is_left_alone(name):
    image = face()
    one, two = (WAYS[name](image, ARCFACE112, 2, np.random.default_rng(7)) for _ in range(2))
    assert one.dtype == np.uint8 and np.array_equal(one, two) and np.array_equal(image, face())


def test_bars_lie_where_landmarks_say():
    for hide, hidden, seen in ((eyes, (0, 1), (3, 4)), (mouth, (3, 4), (0, 1))):
        image = hide(face(), ARCFACE112, 4, np.random.default_rng(0))
        at = [image[int(y), int(x)].max() for x, y in ARCFACE112]
        assert [at[i] for i in hidden] == [0, 0] and all(at[i] > 0 for i in seen)


def rows(count: int = 6) -> tuple[list[Row], np.ndarray]:
    colours = list(COLOURS)
    names = [colours[i % len(colours)] for i in range(count)]
    images = [np.full((40, 40, 3), COLOURS[name], np.uint8) for name in names]
    labels = np.array([EXPRESSIONS.index(name) for name in names])
    return [
        Row(image, np.eye(8, dtype=np.float32)[label], "test") for image, label in zip(images, labels, strict=True)
    ], labels


def test_what_is_measured_is_who_is_right(tmp_path):
    classifier = Classifier.from_pretrained(write_stand_in(tmp_path / "model.onnx"))
    faces, target = rows()
    wrong = np.where(np.arange(6) == 2, (target + 1) % 8, target)
    found = measure_robustness(classifier, faces, wrong, batch_size=4)
    assert {name: levels.shape for name, levels in found.items()} == {
        "unchanged": (1, 6), **dict.fromkeys(WAYS, (SEVERITIES, 6)),
    }  # fmt: skip
    assert found["unchanged"][0].tolist() == [True, True, False, True, True, True]
    assert found["blur"].all(0).tolist() == found["unchanged"][0].tolist()  # of one colour: nothing to blur
    again = measure_robustness(classifier, faces, wrong, batch_size=6)
    assert all(np.array_equal(found[name], again[name]) for name in found)


def test_table_and_difference():
    right = {"unchanged": np.ones((1, 4), bool), "blur": np.array([[True] * 4] * 4 + [[False] * 4])}
    others = {"unchanged": np.ones((1, 4), bool), "blur": np.ones((5, 4), bool)}
    text = robustness_table(right, others)
    assert "  1.0000  1.0000  1.0000  1.0000  0.0000  0.8000   +0.2000 (+0.2000 to +0.2000)" in text
    difference, low, high = beyond(np.zeros((1, 100), bool), np.arange(100)[None] < 50)
    assert difference == 0.5 and high - low == pytest.approx(2 * 1.96 * 0.5 / 10)


def test_plot_is_a_picture():
    right = {name: np.ones((1 if name == "unchanged" else 5, 9), bool) for name in ("unchanged", *WAYS)}
    file = io.BytesIO()
    plot_robustness({"one": right, "other": right}, file, "a title with $ and _")
    assert Image.open(file).format == "PNG"


def test_command_prints_and_saves(tmp_path, capsys):
    (tmp_path / "data/test/anger").mkdir(parents=True)
    Image.new("RGB", (40, 40), COLOURS["anger"]).save(tmp_path / "data/test/anger/0.png")
    model = write_stand_in(tmp_path / "model/model.onnx")
    command = ["eval", str(model), "--data", str(tmp_path / "data"), "--robustness", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert "mouth hidden" in capsys.readouterr().out
    facts = json.loads((tmp_path / "out/report.json").read_text())["robustness"][str(model)]
    assert facts["unchanged"] == [1.0] and [len(facts[name]) for name in WAYS] == [5] * len(WAYS)
    assert (tmp_path / "out/robustness.png").stat().st_size > 10_000
    other = write_stand_in(tmp_path / "other/model.onnx")  # a file of the same name
    assert main([*command, "--against", str(other), "--consistency"]) == 0
    facts = json.loads((tmp_path / "out/report.json").read_text())
    assert list(facts["robustness"]) == [str(model), str(other)]
    assert facts["robustness_difference"]["blur"] == [0.0, 0.0, 0.0]
    page = (tmp_path / "out/report.html").read_text()
    assert "mouth hidden" in page and "JPEG, quality 30" in page and page.count('<img class="plot"') == 3
    with pytest.raises(SystemExit) as end:
        main([*command, "--align", "detect"])
    assert end.value.code == 2
    assert "robustness changes pictures" in capsys.readouterr().err
