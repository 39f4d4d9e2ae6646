"""What rows say beside the expression: valence and arousal as sets ship them, and how they are kept and refused."""

import os
from pathlib import Path

import numpy as np
import pytest
from sets import HEADER, write, write_affectnet, write_affectnet_2017, write_affwild2

from mien.__main__ import main
from mien.data import AffectNet, AffWild2, DataSet, Row, open_dataset
from mien.data.prepare import Options, prepare
from mien.outputs import Output


def affect(data: DataSet, split: str = "train") -> dict[str, list[float]]:
    """By the picture's number, what `targets` gives of valence and arousal."""
    rows = data.rows(split)
    targets = [data.targets(row) for row in rows]
    return {
        f"{row.subject or ''}{Path(str(row.source)).stem}": [
            round(float(t[name][0]), 3) for name in ("valence", "arousal")
        ]
        for row, t in zip(rows, targets, strict=True)
    }


def test_affwild2_of_three_kinds(tmp_path):
    root = write_affwild2(tmp_path)
    folder = root / "annotations/VA_Set/Train_Set"
    write(folder / "1.txt", "valence,arousal", "0.5,-0.25", "-5,-5", "0,0", "1,-1", "-5,0.1")
    write(folder / "2_left.txt", "valence,arousal", "-5,-5", "0.125,0")
    data = AffWild2(str(root), action_units=True, valence_arousal=True)
    assert [output.name for output in data.outputs] == ["expression", "action_units", "valence", "arousal"]
    nan = np.nan
    got = affect(data)
    wanted = {
        "100001": [0.5, -0.25], "100002": [nan, nan], "100004": [1, -1], "100005": [nan, 0.1],
        "2_left00001": [nan, nan], "2_left00002": [0.125, 0], "2_left00005": [nan, nan],
        "300001": [nan, nan], "300002": [nan, nan], "300004": [nan, nan],
    }  # fmt: skip
    assert got.keys() == wanted.keys()
    np.testing.assert_equal(got, wanted)
    fourth = next(row for row in data.rows("train") if str(row.source).endswith("1/00004.png"))
    assert fourth.label == -1 and not fourth.target.any() and (fourth.units == -1).all()
    units = data.targets(next(row for row in data.rows("train") if row.subject == "2_left"))["action_units"]
    np.testing.assert_array_equal(units, [0, 0, 1])
    assert [o.name for o in AffWild2(str(root)).outputs] == ["expression"]


@pytest.mark.parametrize("line", ["1.5,0", "0.5", "a,b", "-5,-4", "nan,0", ""])
def test_what_is_wrong_in_affwild2(tmp_path, line):
    root = write_affwild2(tmp_path)
    write(root / "annotations/VA_Set/Train_Set/1.txt", "valence,arousal", "0.5,0.5", line or " ", "0,0", "0,0", "0,0")
    data = AffWild2(str(root), valence_arousal=True)
    data.rows("train")
    [error] = data.findings["train"].malformed
    assert str(error).endswith(f"VA_Set/Train_Set/1.txt:3: {line or ' '!r} is not two numbers from -1 to 1, or -5")
    write(root / "annotations/VA_Set/Train_Set/1.txt", "arousal,valence", "0.5,0.5")
    data = AffWild2(str(root), valence_arousal=True)
    data.rows("train")
    assert "'arousal,valence' is not valence,arousal" in str(data.findings["train"].malformed[0])


def test_affectnet_of_2017(tmp_path):
    root = write_affectnet_2017(tmp_path)
    data = AffectNet(str(root), valence_arousal=True)
    lines = (root / "training.csv").read_text().splitlines()
    lines[2] = lines[2].replace("-0.1,0.2", "-2,-2")  # row 1
    lines[3] = lines[3].replace("-0.1,0.2", "0.5,-3")  # row 2
    write(root / "training.csv", *lines)
    rows = data.rows("train")
    assert HEADER in lines
    # 8 (no expression) and 9 (uncertain) have valence and arousal, 10 has no box
    assert [row.label for row in rows] == [0, 1, 3, 4, 5, 6, 7, -1, -1]
    assert [dict(row.targets) for row in rows[:2]] == [
        {"valence": pytest.approx([-0.1]), "arousal": pytest.approx([0.2])},
        {},
    ]
    assert [error.reason for error in data.findings["train"].malformed] == [
        "its arousal, -3, is neither in [-1, 1] nor -2",
        "its box is not of numbers",
    ]
    assert len(AffectNet(str(root)).rows("train")) == 8


def test_affectnet_as_it_is_now(tmp_path):
    root = write_affectnet(tmp_path)
    for i in range(8):
        np.save(root / f"train_set/annotations/{9 + i}_aro.npy", np.array(-2 if i == 3 else "-0.25"))
    data = AffectNet(str(root), valence_arousal=True)
    rows = data.rows("train")
    assert len(rows) == 8 and all(row.targets["valence"] == [0.5] for row in rows)
    assert [row.targets.get("arousal", [None])[0] for row in rows].count(None) == 1
    os.remove(root / "train_set/annotations/10_val.npy")
    data = AffectNet(str(root), valence_arousal=True)
    assert len(data.rows("train")) == 7 and "no such file" in str(data.findings["train"].malformed[0])


def test_prepared_rows_keep_their_targets(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = write_affwild2(tmp_path / "set")
    write(
        root / "annotations/VA_Set/Train_Set/1.txt", "valence,arousal", "0.5,-0.25", "-5,0.5", "0,0", "1,-1", "-5,0.1"
    )

    data = AffWild2(str(root), action_units=True, valence_arousal=True)
    prepare(data, tmp_path / "faces", Options(align="as-is", size=16))
    again = open_dataset(str(tmp_path / "faces"))
    assert again.outputs == data.outputs
    wanted, got = data.rows("train"), again.rows("train")
    assert len(wanted) == len(got)
    for one, other in zip(wanted, got, strict=True):
        np.testing.assert_equal(again.targets(other), data.targets(one))
    assert main(["data", "check", "parquet", "faces"]) in (0, 1) and "valence" not in capsys.readouterr().err


def test_a_target_that_does_not_fit_is_a_malformed_row():
    class Turned(DataSet):
        labels, splits, further = ("a", "b"), ("train",), (Output("pose", "angles", ("yaw", "pitch")),)

        def read(self, split):
            for i, pose in enumerate(([0, 10], [0], [0, 400], [np.nan, 3])):
                picture, target = np.full((4, 4, 3), i, np.uint8), np.float32([1, 0])
                yield Row(picture, target, split, name=f"row {i}", targets={"pose": pose})

        def __str__(self):
            return "turned"

    data = Turned()
    assert [row.name for row in data.rows("train")] == ["row 0", "row 3"]
    reasons = [str(error) for error in data.findings["train"].malformed]
    assert reasons == [
        "row 1: pose: [0] is not (2,) of -180 to 180",
        "row 2: pose: [0, 400] is not (2,) of -180 to 180",
    ]
