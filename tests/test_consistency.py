"""What each change does to a picture, and what is counted of the answers before and after."""

import json

import numpy as np
import pytest
from conftest import COLOURS
from PIL import Image
from test_evaluation import faces, run

from mien.classifier import Classifier
from mien.data import Row
from mien.evaluation.consistency import (
    CHANGES,
    consistency_table,
    gamma,
    grey,
    jpeg,
    measure_consistency,
    reframe,
    rotate,
    small,
    tint,
)
from mien.labels import EXPRESSIONS

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("shape", [(40, 50, 3), (1, 1, 3), (7, 3, 3)])
def test_every_change_gives_a_picture_and_leaves_its_own_alone(name, shape):
    picture = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    before = picture.copy()
    for change in CHANGES[name]:
        changed = change(picture)
        assert changed.dtype == np.uint8 and changed.ndim == 3 and changed.shape[2] == 3
        np.testing.assert_array_equal(change(picture), changed)
        if shape == (40, 50, 3):
            assert changed.shape != shape or (changed != picture).any()
    np.testing.assert_array_equal(picture, before)


def test_a_tint_multiplies_channels():
    pixel = np.array([[[200, 101, 0]]], np.uint8)
    np.testing.assert_array_equal(tint(pixel, (1.5, 0.5, 2)), [[[255, 50, 0]]])
    warm, cool, green = (CHANGES[f"tinted {name}"][0](np.full((1, 1, 3), 100, np.uint8)).ravel() for name in
                         ("warm", "cool", "green"))  # fmt: skip
    assert warm[0] > warm[1] > warm[2] and cool[0] < cool[1] < cool[2] and green[1] > max(green[0], green[2])


def test_grey_keeps_the_luma():
    pixels = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]], np.uint8)
    np.testing.assert_array_equal(grey(pixels)[0], np.repeat([[76], [150], [29], [9]], 3, axis=1))


def test_gamma_keeps_black_and_white():
    pixels = np.array([[[0, 64, 255]]], np.uint8)
    np.testing.assert_array_equal(gamma(pixels, 0.5), [[[0, 128, 255]]])  # 255 √(64 / 255) = 127.7
    np.testing.assert_array_equal(gamma(pixels, 2.0), [[[0, 16, 255]]])


def test_small_averages_areas():
    squares = np.kron(np.arange(0, 160, 10).reshape(4, 4), np.ones((10, 10))).astype(np.uint8)
    picture = np.repeat(squares[..., None], 3, axis=2)
    np.testing.assert_array_equal(small(picture, 4)[..., 0], np.arange(0, 160, 10).reshape(4, 4))
    assert small(picture, 224).shape == (224, 224, 3)
    np.testing.assert_array_equal(small(picture, 40), picture)


def test_jpeg_loses_more_the_lower_its_quality():
    smooth = np.repeat(np.add.outer(np.arange(64), np.arange(64))[..., None], 3, axis=2).astype(np.uint8)
    smooth[20:30, 20:30] = (255, 0, 40)
    lost = [np.abs(jpeg(smooth, quality).astype(int) - smooth).mean() for quality in (95, 30, 10)]
    assert 0 < lost[0] < lost[1] < lost[2] < 20
    red = jpeg(np.full((16, 16, 3), (250, 10, 10), np.uint8), 90)
    assert (red[..., 0] > 200).all() and (red[..., 2] < 60).all()  # channels keep their places


def test_another_box_cuts_whole_pixels_and_repeats_the_edge():
    np.testing.assert_array_equal(reframe(PICTURE), PICTURE)
    right = reframe(PICTURE, right=0.1)
    np.testing.assert_array_equal(right[:, :45], PICTURE[:, 5:])
    np.testing.assert_array_equal(right[:, 45:], PICTURE[:, -1:].repeat(5, axis=1))
    np.testing.assert_array_equal(reframe(PICTURE, down=-0.1)[4:], PICTURE[:-4])
    np.testing.assert_array_equal(reframe(PICTURE, scale=0.8), PICTURE[4:36, 5:45])
    wide = reframe(PICTURE, scale=1.2)
    assert wide.shape == (48, 60, 3)
    np.testing.assert_array_equal(wide[4:44, 5:55], PICTURE)
    assert (wide[:5, :6] == PICTURE[0, 0]).all()


def test_the_shifts_go_four_ways():
    ways = {tuple(change(PICTURE)[20, 25]) for change in CHANGES["box shifted 10 %"]}
    assert ways == {tuple(PICTURE[y, x]) for y, x in ((20, 30), (20, 20), (24, 25), (16, 25))}


def test_rotation_is_about_the_middle_and_repeats_the_edge():
    dot = np.zeros((41, 41, 3), np.uint8)
    dot[20, 30] = 255
    np.testing.assert_array_equal(rotate(dot, 90).nonzero()[:2], [[10] * 3, [20] * 3])  # from the right to the top
    # to x = 20 + 10 cos 15° = 29.7, y = 20 - 10 sin 15° = 17.4
    assert np.unravel_index(rotate(dot, 15)[..., 0].argmax(), (41, 41)) == (17, 30)
    assert (rotate(np.full((9, 9, 3), 77, np.uint8), 15) == 77).all()


def row(colour) -> Row:
    return Row(np.full((20, 20, 3), colour, np.uint8), np.eye(8)[0], "test", label=0)


def test_answers_before_and_after(stand_in):
    classifier = Classifier.from_pretrained(stand_in)
    rows = [row(COLOURS[name]) for name in ("anger", "anger", "sadness", "neutral", "neutral")]
    target = np.array([EXPRESSIONS.index(name) for name in ("anger", "sadness", "sadness", "neutral", "fear")])
    blue = np.full((8, 8, 3), COLOURS["sadness"], np.uint8)
    changes = {
        "blue": (lambda image: blue,),
        "blue or nothing": (lambda image: blue, lambda image: image),
        "greyed": (lambda image: blue,),
    }
    moved = measure_consistency(classifier, rows, target, changes=changes, batch_size=2)
    assert list(moved) == ["unchanged", "blue", "blue or nothing", "greyed"]
    assert moved["unchanged"].faces == 5 and moved["unchanged"].distance == 0
    assert (moved["unchanged"].same_label, moved["unchanged"].accuracy) == (1, pytest.approx(3 / 5))
    assert (moved["blue"].same_label, moved["blue"].accuracy) == (pytest.approx(1 / 5), pytest.approx(2 / 5))
    assert moved["blue"].distance == pytest.approx(4 / 5, abs=0.03)  # the stand-in is nearly sure of itself
    assert moved["blue or nothing"].distance == pytest.approx(moved["blue"].distance / 2)
    assert moved["blue or nothing"].same_label == pytest.approx(3 / 5)
    assert moved["blue or nothing"].faces == 5
    assert (moved["greyed"].faces, moved["greyed"].same_label) == (3, pytest.approx(1 / 3))  # black is grey already
    alone = measure_consistency(classifier, rows, target, changes=changes, batch_size=1)
    assert [vars_of(value) for value in alone.values()] == [pytest.approx(vars_of(v)) for v in moved.values()]

    moved = measure_consistency(classifier, rows[3:], target[3:], changes=changes)
    assert (moved["greyed"].faces, moved["greyed"].distance) == (0, None)
    assert consistency_table(moved).splitlines()[-1].split() == ["greyed", "–", "–", "–", "0"]


def vars_of(moved) -> tuple:
    return moved.faces, moved.distance, moved.same_label, moved.accuracy


def test_command_prints_and_saves(stand_in, tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    faces(data, wrong=2)
    assert run(stand_in, "--data", data, "--out", out, "--consistency") == 0
    text = capsys.readouterr().out
    lines = {line[:19].strip(): line[19:].split() for line in text.splitlines()}
    assert lines["unchanged"] == ["0.0000", "1.0000", "0.8000", "10"]
    assert lines["greyed"][-1] == "8"  # the black ones are grey
    saved = json.loads((out / "report.json").read_text())
    assert list(saved["consistency"]) == ["unchanged", *CHANGES]
    assert saved["computed_in"] == "fp32"
    assert saved["consistency"]["resized to 28"] == {"faces": 10, "distance": 0, "same_label": 1, "accuracy": 0.8}
    assert saved["consistency"]["greyed"]["same_label"] < 1


def test_limit_reads_the_same_few(stand_in, tmp_path, capsys):
    faces(tmp_path / "data")
    common = (stand_in, "--data", tmp_path / "data", "--out", tmp_path / "out", "--json", "--limit")
    shown = []
    for words in ((3, "--consistency"), (3,), (99,)):
        assert run(*common, *words) == 0
        shown.append(json.loads(capsys.readouterr().out))
    assert [found["count"] for found in shown] == [3, 3, 8]
    assert shown[0]["consistency"]["unchanged"]["faces"] == 3 and "consistency" not in shown[1]
    assert shown[0]["support"] == shown[1]["support"]


def test_faces_that_are_looked_for_are_not_changed(stand_in, tmp_path, capsys):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    common = (stand_in, "--data", tmp_path, "--out", tmp_path / "out")
    with pytest.raises(SystemExit) as end:
        run(*common, "--consistency", "--align", "detect")
    assert end.value.code == 2 and "align as-is" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
