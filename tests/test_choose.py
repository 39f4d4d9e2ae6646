"""One half of the labelled faces chooses, the other judges."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import test_ferplus_csv
from conftest import HEADER, write_stand_in
from test_data import png, table, votes

from mien.data import FERPlus
from mien.errors import MienError
from mien.evaluation.choose import NOBODY, candidates, halves, log_look, look
from mien.labels import EXPRESSIONS

LABELS = ("a", "b", "c")


def answers(labels, sure: float = 0.8) -> np.ndarray:
    return np.where(np.eye(3)[labels] > 0, sure, (1 - sure) / 2).astype(np.float32)


def test_halves_of_ferplus_go_by_the_number_of_the_picture(tmp_path):
    rows = [votes(png(10 * i), "validation", fear=2 + i) for i in range(5)]
    path = table(tmp_path / "fer.parquet", rows)
    with pytest.raises(MienError, match="without a number"):
        FERPlus(path).rows("validation-even")
    numbered = pq.read_table(path).append_column("fer_row", [[4, 7, 9, 10, 2]])
    pq.write_table(numbered, path)
    data = FERPlus(path)
    assert [row.number for row in data.rows("validation-even")] == [4, 10, 2]
    assert [row.number for row in data.rows("val-odd")] == [7, 9]
    assert [row.number for row in data.rows("validation")] == [4, 7, 9, 10, 2]
    assert data.splits == ("validation",)
    with pytest.raises(MienError, match="no split 'test'"):
        data.rows("test-odd")


def test_the_makers_files_number_their_pictures(tmp_path):
    data = FERPlus(str(test_ferplus_csv.write(tmp_path)))
    whole = [row.number for row in data.rows("validation")]
    assert whole == [6, 7, 8]  # of "fer0000006.png" and on
    assert [row.number for row in data.rows("validation-odd")] == [7]


def test_a_picture_without_a_number_is_in_no_half():
    assert halves([4, 7, 0]).tolist() == [0, 1, 0]
    with pytest.raises(MienError, match="1 pictures have no number"):
        halves([4, -1])


def test_the_half_that_chooses_never_sees_the_other():
    target = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    half = np.arange(8) % 2
    rules = {"first": target, "second": np.where(np.arange(8) < 2, NOBODY, target)}
    wrong = (target + 1) % 3
    even = answers(np.where(half == 0, target, wrong))  # right on the even half alone
    odd = answers(np.where(half == 1, target, wrong))
    models = {"odd": odd, "even": even}
    found = candidates(models, rules, half == 0)
    assert [c.name for c in found] == ["even", "odd"]
    assert found[0].accuracy == {"first": 1.0, "second": 1.0} and found[0].faces == {"first": 4, "second": 3}
    assert found[0].log_loss == pytest.approx(-np.log(0.8), abs=1e-6)
    seen = look(models, rules, half, LABELS, against=answers(target))
    assert seen.chosen == {"even": "odd", "odd": "even"}  # each judges what the other has chosen
    assert seen.reports["first"].accuracy == 0 and seen.reports["first"].count == 8
    assert seen.reports["second"].count == 6
    assert seen.differences["first"].accuracy_difference == -1
    assert seen.temperature["even"] == pytest.approx(0.05, abs=0.01)  # fitted where it was always right


def test_of_equals_the_smaller_log_loss_is_chosen():
    target = np.array([0, 1, 2, 0])
    models = {"timid": answers(target, 0.5), "sure": answers(target, 0.9)}
    assert candidates(models, {"first": target}, np.ones(4, bool))[0].name == "sure"


def test_looks_are_counted_in_the_log(tmp_path):
    target = np.array([0, 1, 2, 0])
    found = look({"m": answers(target)}, {"first": target}, np.arange(4) % 2, LABELS, answers((target + 1) % 3))
    page = tmp_path / "page.md"
    page.write_text("# Looks\n\nEvery one.\n")
    assert log_look(page, "an idea | of ours", found, "the default") == 1
    assert log_look(page, "once more", replace(found, differences={})) == 2
    lines = page.read_text().splitlines()
    assert lines[:4] == ["# Looks", "", "Every one.", ""]
    assert lines[4].startswith("| look |") and len(lines) == 8
    assert lines[6].startswith("| 1 | ") and "an idea / of ours (even: m, odd: m) | first | 4 | 1.0000" in lines[6]
    assert lines[6].endswith("+1.0000 (+1.0000 to +1.0000) the default |") and lines[7].endswith("| – |")


@pytest.fixture
def data(tmp_path):
    """Twelve pictures of one colour, two of them not agreed upon: faces of the stand-in's anger and neutral."""
    rows = []
    for i in range(12):
        shown = "anger" if i % 3 else "neutral"
        said = {shown: 4, "fear": 3, "sadness": 3} if i < 2 else {shown: 10}
        rows.append(votes(png(255 if i % 2 else 200), "validation", **said))
    path = table(tmp_path / "fer.parquet", rows)
    pq.write_table(pq.read_table(path).append_column("fer_row", [list(range(12))]), path)
    return path


def test_the_command_chooses_then_looks_once(tmp_path, data, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = write_stand_in(tmp_path / "one" / "model.onnx").parent
    other = write_stand_in(tmp_path / "other" / "model.onnx", HEADER | {"temperature": 2.0}).parent
    code, out, err = call("choose", one, other, "--data", data)
    assert code == 0 and not (tmp_path / "docs").exists()
    assert out[0].startswith(f"the even half of {data}, validation, chooses ")
    assert out[2] == "| model | first largest vote (n = 6) | more than half of the votes (n = 5) | log loss |"
    few = call("choose", one, other, "--data", data, "--limit", "3", "--half", "odd")[1]
    assert few[2].startswith("| model | first largest vote (n = 3) | ")
    (tmp_path / "log.md").write_text("")
    words = ["choose", one, "--data", data, "--look", "an idea", "--against", other, "--log", "log.md"]
    code, out, err = call(*words, "--json")
    told = json.loads("\n".join(out))
    assert (code, told["look"]) == (0, 1)
    assert [told["rules"][rule]["count"] for rule in ("votes", "majority")] == [12, 10]
    assert told["against"]["votes"]["faces"] == 12
    assert call(*words)[1][0].startswith("look 2 at ")
    assert len((tmp_path / "log.md").read_text().splitlines()) == 2 + 4


def test_what_cannot_be_chosen_is_one_line(tmp_path, data, call, stand_in):
    code, _, err = call("choose", stand_in, "--data", data, "--against", stand_in)
    assert code == 2 and err[-1].endswith("error: --against goes with --look: before it, nothing is compared")
    code, _, err = call("choose", stand_in, "--data", data, "--look", "x", "--limit", "3")
    assert code == 2 and err[-1].endswith("error: --limit goes without --look: a look is at all faces")
    code, _, err = call("choose", stand_in, stand_in, "--data", data)
    assert code == 2 and err[-1].endswith("error: a model was named twice")
    unnumbered = table(tmp_path / "plain.parquet", [votes(png(9), "validation", fear=3)])
    code, _, err = call("choose", stand_in, "--data", unnumbered, "--out", tmp_path / "out")
    assert (code, err) == (1, ["mien: 1 pictures have no number in their set: they cannot be halved"])
    switched = {str(i): label for i, label in enumerate(reversed(EXPRESSIONS))}
    other = write_stand_in(tmp_path / "switched" / "model.onnx", HEADER | {"id2label": switched}).parent
    code, _, err = call("choose", stand_in, other, "--data", data, "--out", tmp_path / "out")
    assert code == 1 and "knows other labels than" in err[0]


def test_several_splits_at_once(tmp_path):
    rows = [votes(png(10 * i), "train" if i < 3 else "validation", fear=2 + i) for i in range(5)]
    path = table(tmp_path / "fer.parquet", rows)
    pq.write_table(pq.read_table(path).append_column("fer_row", [list(range(5))]), path)
    data = FERPlus(path)
    assert [row.number for row in data.rows("train+validation")] == [0, 1, 2, 3, 4]
    assert [row.number for row in data.rows("train+validation-odd")] == [0, 1, 2, 3]
    assert data.class_counts("train+validation").sum() == 5
