"""What a reviewer asks of figures: groups, a paired comparison, a page, and answers that abstain."""

import base64
import io
import json
import math
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import COLOURS, HEADER, write_stand_in
from PIL import Image

from mien.__main__ import main
from mien.checkpoint import check_header
from mien.classifier import Classifier
from mien.data import FERPlus, Parquet
from mien.errors import CheckpointError, MienError
from mien.evaluation.calibrate import reliability, uncertain_below
from mien.evaluation.compare import compare, mcnemar
from mien.evaluation.groups import by_group
from mien.reader import Reader


@pytest.fixture
def people(tmp_path):
    """Twelve faces: those of women are labelled right, of the four of men two are not; one says nothing of itself."""
    rows = []
    for i in range(12):
        colour = list(COLOURS)[i % len(COLOURS)]
        sex = "male" if i < 4 else "female"
        label = "fear" if i in (1, 2) else colour
        file = io.BytesIO()
        Image.new("RGB", (40, 40 + i), COLOURS[colour]).save(file, "png")
        rows.append(
            {"image": file.getvalue(), "label": label, "split": "test", "sex": None if i == 11 else sex, "age": i}
        )
    path = tmp_path / "people.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_groups_come_with_the_rows(people):
    rows = Parquet(str(people), groups=["sex", "age"]).rows("test")
    assert rows[0].groups == {"sex": "male", "age": "0"}
    assert rows[11].groups == {"age": "11"}
    assert Parquet(str(people), groups="age").rows("test")[11].groups == {"age": "11"}
    assert Parquet(str(people)).rows("test")[0].groups == {}
    with pytest.raises(MienError, match="no column 'height'"):
        Parquet(str(people), groups=["height"])


def test_the_makers_csv_knows_no_groups(tmp_path):
    with pytest.raises(MienError, match="tell no 'sex'"):
        FERPlus(str(tmp_path), groups=["sex"])


def test_command_measures_each_group(people, stand_in, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["eval", str(stand_in), "--data", str(people), "--group-by", "sex", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^male +4  0\.5000 ", shown, re.M) and re.search(r"^female +7  1\.0000 ", shown, re.M)
    groups = json.loads((out / "report.json").read_text())["groups"]["sex"]
    assert {name: (g["count"], g["accuracy"]) for name, g in groups.items()} == {
        "male": (4, 0.5), "female": (7, 1.0), "not known": (1, 1.0),
    }  # fmt: skip
    assert main(["eval", str(stand_in), "--data", str(people), "--group-by", "height", "--out", str(out)]) == 1
    assert "no column 'height'" in capsys.readouterr().err


def test_groups_that_nobody_is_of_are_an_error(people):
    rows = Parquet(str(people)).rows("test")
    with pytest.raises(MienError, match="no row says its 'sex'"):
        by_group(np.eye(8)[:12], np.zeros(12, int), "abcdefgh", rows, "sex")


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (1, 0), (5, 5), (12, 3), (3, 12), (400, 330)])
def test_mcnemar_is_the_coin_thrown(won, lost):
    count = won + lost
    ways = sum(math.comb(count, i) for i in range(min(won, lost) + 1))
    assert mcnemar(won, lost) == pytest.approx(min(1.0, 2 * ways / 2**count))


def test_a_comparison_counts_pairs():
    right, wrong = [0.9, 0.1], [0.2, 0.8]
    found = compare(np.array([right] * 6 + [wrong] * 4), np.array([right] * 5 + [wrong] + [right] * 3 + [wrong]),
                    np.zeros(10, int))  # fmt: skip
    assert (found.won, found.lost, found.accuracy, found.other_accuracy) == (3, 1, 0.6, 0.8)
    assert found.p_value == pytest.approx(2 * 5 / 16)


def test_command_compares_two_models(people, stand_in, tmp_path, capsys):
    swapped = {str(i): label for i, label in enumerate(reversed(list(HEADER["id2label"].values())))}
    other = write_stand_in(tmp_path / "other/model.onnx", HEADER | {"temperature": 1.0})
    out = tmp_path / "out"
    command = ["eval", str(stand_in), "--data", str(people), "--out", str(out), "--against"]
    assert main([*command, str(other)]) == 0
    assert "accuracy +0.0000" in capsys.readouterr().out
    assert json.loads((out / "report.json").read_text())["against"]["p_value"] == 1.0
    strange = write_stand_in(tmp_path / "strange/model.onnx", HEADER | {"id2label": swapped})
    assert main([*command, str(strange)]) == 1
    assert "knows other labels" in capsys.readouterr().err


def test_the_page_holds_everything_and_asks_for_nothing(people, stand_in, tmp_path):
    out = tmp_path / "out"
    command = ["eval", str(stand_in), "--data", str(people), "--group-by", "sex", "--against", str(stand_in)]
    assert main([*command, "--out", str(out)]) == 0
    text = (out / "report.html").read_text()
    assert not re.search(r'(?:src|href)="(?!data:image/png;base64,)', text) and "<script" not in text
    assert "The surest of 2 mistakes" in text and text.count("<figure>") == 2
    assert "people.parquet row 1<" in text and "is fear" in text
    assert "McNemar" in text and "<h2>By sex</h2>" in text
    pictures = [base64.b64decode(data) for data in re.findall(r"base64,([^\"]+)", text)]
    assert [Image.open(io.BytesIO(data)).size for data in pictures][-2:] == [(112, 112)] * 2
    assert Image.open(out / "calibration.png").size == (600, 648)


def test_reliability_by_hand():
    probs = np.array([[0.9, 0.1]] * 4 + [[0.3, 0.7]] * 2 + [[0.0, 1.0]])
    bins = reliability(probs, np.array([0, 0, 0, 1, 1, 0, 1]), 10)
    assert bins == [(pytest.approx(0.7), 0.5, 2), (pytest.approx((4 * 0.9 + 1) / 5), 0.8, 5)]


def test_uncertain_is_what_is_too_often_wrong():
    sure = np.array([0.95, 0.9, 0.8, 0.8, 0.6, 0.55])
    probs, target = np.stack([sure, 1 - sure], 1), np.array([0, 0, 0, 1, 0, 1])
    assert uncertain_below(probs, target, 1.0) == 0.9  # of the two at 0.8 one is wrong
    assert uncertain_below(probs, target, 0.8) == 0.6
    assert uncertain_below(probs, target, 0.6) == 0.0
    assert uncertain_below(probs, 1 - target, 1.0) == 1.0


def test_a_reader_abstains_below_what_its_model_says(tmp_path):
    face = np.full((112, 112, 3), 128, np.uint8)
    plain = write_stand_in(tmp_path / "plain/model.onnx")
    classifier = Classifier.from_pretrained(plain)
    share, (best,) = classifier.predict_proba([face]).max(), classifier.predict([face])
    for threshold, expected in ((share - 0.01, best), (share + 0.01, "uncertain")):
        model = write_stand_in(tmp_path / f"{expected}/model.onnx", HEADER | {"uncertain": float(threshold)})
        (read,) = Reader.from_pretrained(model, aligned=True, abstain=True)(face)
        assert read.expression == expected and read.probability == pytest.approx(share)
        assert Reader.from_pretrained(model, aligned=True)(face)[0].expression != "uncertain"
    assert Reader.from_pretrained(plain, aligned=True, abstain=1.0)(face)[0].expression == "uncertain"
    with pytest.raises(MienError, match="does not say when to abstain"):
        Reader.from_pretrained(plain, aligned=True, abstain=True)
    with pytest.raises(ValueError, match="from 0 to 1, not 80"):
        Reader.from_pretrained(plain, aligned=True, abstain=80)


def test_command_abstains(tmp_path, capsys):
    Image.new("RGB", (60, 60), (128, 128, 128)).save(tmp_path / "a.png")
    model = write_stand_in(tmp_path / "model/model.onnx", HEADER | {"uncertain": 0.9999})
    assert main(["read", str(tmp_path / "a.png"), "--aligned", "--model", str(model), "--abstain"]) == 0
    assert json.loads(capsys.readouterr().out)["expression"] == "uncertain"


@pytest.mark.parametrize("share", [-0.1, 1, "half"])
def test_a_threshold_is_a_share(share):
    with pytest.raises(CheckpointError, match="uncertain"):
        check_header(HEADER | {"uncertain": share}, "a.onnx")
