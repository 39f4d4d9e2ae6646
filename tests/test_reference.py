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

from mien.faces.palette import palette
from mien.labels import EXPRESSIONS
from mien.video.read import TrackedFace, VideoFrame
from mien.video.summary import Summary


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


def test_summary_and_timeline_have_it(here, mien):
    frames = [np.full((64, 64, 3), COLOURS[name], np.uint8) for name in ("neutral", "anger")]
    film(here / "clip.mp4", [frames[i // 10] for i in range(20)])
    options = ("clip.mp4", "--track", "--smooth", "0", "--cuts", "off", "--output", "rows.jsonl", "--summary")
    assert mien(*options, "plain.csv")[0] == 0
    for name in ("seen.csv", "seen.json"):
        assert mien(*options, name, "--reference", "neutral.png")[0] == 0
    [person] = json.loads(Path("seen.json").read_text())
    rows = [json.loads(line)["change"] for line in Path("rows.jsonl").read_text().splitlines()]
    for label in EXPRESSIONS:  # frames are shown for equally long
        assert person["change"][label] == pytest.approx(np.mean([row[label] for row in rows]), abs=0.01)
    assert person["change"]["anger"] > 2 and person["change"]["neutral"] < -2
    [told] = csv.DictReader(Path("seen.csv").read_text().splitlines())
    assert [float(told[f"change_{label}"]) for label in EXPRESSIONS] == list(person["change"].values())
    assert "change_" not in Path("plain.csv").read_text()
    without, beside = (np.array(Image.open(f"{name}.png").convert("RGB")) for name in ("plain", "seen"))
    assert len(beside) > 1.5 * len(without)
    places = {}  # of lines below the strip, from the top
    for label, at in (("contempt", 400), ("anger", 1200), ("neutral", 1200)):
        [*places[label]] = np.flatnonzero((beside[len(beside) // 2 :, at] == palette(EXPRESSIONS)[label]).all(1))
    assert max(places["anger"]) + 20 < min(places["contempt"]) < min(places["neutral"]) - 20


def test_changes_of_a_long_video_keep_their_mean():
    seen = Summary(EXPRESSIONS, change=lambda probs: {label: 100 * p for label, p in probs.items()})
    seen.begin("a.mp4")
    for i in range(2000):
        probs = dict.fromkeys(EXPRESSIONS, 0.0) | {"fear" if i < 500 else "anger": 1.0}
        face = TrackedFace((0, 0, 9, 9), 0.9, None, max(probs, key=probs.get), 1.0, probs, 1, probs)
        seen.add(VideoFrame(i, i / 2, [face], None, i))
    seen.end()
    [person] = seen.people
    assert sorted(person.changes) == sorted(person.bins) and len(person.bins) <= 1200
    assert all(np.allclose(person.changes[at], 100 * person.bins[at]) for at in person.bins)
    assert seen.rows()[0]["change"]["fear"] == pytest.approx(25) and seen.rows()[0]["change"]["anger"] == 75
