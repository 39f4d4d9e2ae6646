"""mien read --reference: rows tell how far a face is from the same person's neutral one."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import COLOURS
from films import film
from PIL import Image

from mien.labels import EXPRESSIONS


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for label, colour in COLOURS.items():
        Image.new("RGB", (64, 64), colour).save(f"{label}.png")
    return tmp_path


@pytest.fixture
def mien(stand_in, call):
    """`mien read` with the stand-in model, of pictures that are faces."""
    return lambda *words: call("read", *words, "--aligned", "--model", stand_in)


def odds(p: float) -> float:
    return math.log(p / (1 - p))


def test_rows_have_the_change_from_the_reference(here, mien):
    code, out, err = mien("neutral.png", "anger.png", "--reference", "neutral.png")
    assert code == 0
    same, angry = map(json.loads, out)
    assert set(same["change"]) == set(EXPRESSIONS) and not any(same["change"].values())
    for label in ("neutral", "anger"):
        expected = odds(angry["probabilities"][label]) - odds(same["probabilities"][label])
        assert angry["change"][label] == pytest.approx(expected, abs=0.01)
    assert angry["change"]["anger"] > 5 and angry["change"]["neutral"] < -5
    assert "change" not in json.loads(mien("anger.png")[1][0])


def test_a_clip_and_files_have_it_too(here, mien):
    frames = [np.full((64, 64, 3), COLOURS[name], np.uint8) for name in ("neutral", "anger", "anger")]
    film(here / "clip.mp4", frames)
    code, _, err = mien("clip.mp4", "--reference", "neutral.png", "--output", "rows.csv")
    assert (code, err) == (0, [])
    rows = list(csv.DictReader(Path("rows.csv").read_text().splitlines()))
    change = [float(row["change_anger"]) for row in rows]
    assert len(change) == 3 and abs(change[0]) < 0.5 < change[1]
    code, *_ = mien("clip.mp4", "--reference", "neutral.png", "--output", "rows.parquet")
    parquet = pytest.importorskip("pyarrow.parquet").read_table("rows.parquet")["change"].to_pylist()
    assert code == 0 and [row["anger"] for row in parquet] == pytest.approx(change, abs=1e-3)
    mien("clip.mp4", "--output", "plain.csv")
    assert "change_anger" not in Path("plain.csv").read_text().splitlines()[0]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--aligned", "--reference", "gone.png"), 1, "gone.png: "),
        (("--reference", "disgust.png"), 1, "disgust.png: no face found, beside which others could be read"),
        (("--aligned", "--reference", "neutral.png", "--output", "neutral.png.csv"), 0, ""),
        (("--aligned", "--reference", "anger.png"), 0, ", and not as neutral: changes are from that"),
    ],
)
def test_what_a_person_should_know_of_the_reference(here, call, stand_in, words, code, said):
    found, _, err = call("read", "neutral.png", *words, "--model", stand_in)
    assert found == code and (said in err[-1] if said else err == [])
    assert len(err) <= 1


def test_several_faces_beside_one_person_are_told_once(here, call, stand_in):
    from films import scene

    Image.fromarray(scene((10, 10, 130), (180, 60, 120))).save("two.png")
    code, out, err = call("read", "two.png", "--reference", "two.png", "--model", stand_in)
    assert code == 0 and len(out) == 2 and all("change" in json.loads(line) for line in out)
    said = "\n".join(err)
    assert said.count("the largest of 2 faces is the reference") == 1
    assert said.count("there is more than one person's") == 1


def test_the_reference_is_not_overwritten(here, call, stand_in):
    Image.new("RGB", (64, 64)).save("face.csv", "PNG")
    code, _, err = call("read", "neutral.png", "--reference", "face.csv", "--output", "face.csv", "--model", stand_in)
    assert code == 2 and "would be overwritten" in err[-1]
