import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import COLOURS, HEADER, write_stand_in
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F
from torchmetrics.functional import classification as tm

from mien.__main__ import main
from mien.classifier import Classifier
from mien.data import Folder, Row
from mien.errors import MienError, Misuse
from mien.evaluation import classification_report, evaluate, measure
from mien.faces.detect import Detection
from mien.labels import EXPRESSIONS

NAMES = ("a", "b", "c", "d")


def guesses(count: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (count, classes) that lean to the target (count,)."""
    random = np.random.default_rng(seed)
    target = random.integers(classes, size=count)
    logits = random.normal(size=(count, classes)) + 1.5 * np.eye(classes)[target]
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True), target


def test_measures_are_those_of_torchmetrics():
    probs, target = guesses(500, 4)
    report = classification_report(probs, target, NAMES)
    p, t = torch.from_numpy(probs), torch.from_numpy(target)
    assert report.accuracy == pytest.approx(tm.multiclass_accuracy(p, t, 4, average="micro").item())
    assert report.balanced_accuracy == pytest.approx(tm.multiclass_accuracy(p, t, 4, average="macro").item())
    assert report.macro_f1 == pytest.approx(tm.multiclass_f1_score(p, t, 4, average="macro").item())
    for ours, theirs in (
        (report.precision, tm.multiclass_precision),
        (report.recall, tm.multiclass_recall),
        (report.f1, tm.multiclass_f1_score),
    ):
        assert list(ours.values()) == pytest.approx(theirs(p, t, 4, average="none").tolist())
    assert report.nll == pytest.approx(F.nll_loss(p.log(), t).item())
    assert (report.count, sum(report.support.values()), np.sum(report.confusion)) == (500, 500, 500)


def test_calibration_error_by_hand():
    probs = np.array([[0.9, 0.1]] * 4 + [[0.7, 0.3]] * 2)
    report = classification_report(probs, np.array([0, 0, 0, 1, 0, 0]), ("a", "b"))
    assert report.calibration_error == pytest.approx((4 * abs(0.75 - 0.9) + 2 * abs(1 - 0.7)) / 6)


def test_intervals_are_of_the_right_width_and_drawn_alike_every_time():
    probs, target = guesses(2000, 4)
    report = classification_report(probs, target, NAMES)
    low, high = report.accuracy_interval
    half = 1.96 * np.sqrt(report.accuracy * (1 - report.accuracy) / 2000)
    assert (low, high) == pytest.approx((report.accuracy - half, report.accuracy + half), abs=half / 5)
    assert report.macro_f1_interval[0] < report.macro_f1 < report.macro_f1_interval[1]
    assert classification_report(probs, target, NAMES) == report
    assert classification_report(probs, target, NAMES, seed=1).macro_f1_interval != report.macro_f1_interval


def test_intervals_equal_resampling_the_faces():
    probs, target = guesses(300, 3)
    random = np.random.default_rng(0)
    right = probs.argmax(1) == target
    low, high = np.quantile(right[random.integers(300, size=(4000, 300))].mean(1), (0.025, 0.975))
    assert classification_report(probs, target, "abc", resamples=4000).accuracy_interval == pytest.approx(
        (low, high), abs=0.005
    )


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(4)), st.integers(0, 50))
def test_the_order_of_the_classes_changes_nothing(order, seed):
    probs, target = guesses(60, 4, seed)
    report = classification_report(probs, target, NAMES)
    other = classification_report(probs[:, order], np.argsort(order)[target], [NAMES[i] for i in order])
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "nll", "calibration_error"):
        assert getattr(other, name) == pytest.approx(getattr(report, name)), name
    assert other.recall == report.recall


def test_a_class_without_faces_has_no_recall_and_no_share_in_the_means():
    report = classification_report(np.eye(3)[[0, 1, 2]], np.array([0, 1, 1]), ("a", "b", "c"))
    assert report.recall == {"a": 1, "b": 0.5, "c": None}
    assert report.precision == {"a": 1, "b": 1, "c": 0}
    assert report.balanced_accuracy == pytest.approx(0.75)
    assert report.macro_f1 == pytest.approx((1 + 2 / 3) / 2)
    assert "c                      0.000       –       –      0" in str(report)
    never = classification_report(np.eye(3)[[0, 1]], np.array([0, 2]), ("a", "b", "c"))
    assert never.precision["c"] is None
    assert json.loads(json.dumps(never.to_dict())) == never.to_dict()


def test_a_distribution_counts_by_its_largest_share():
    probs, _ = guesses(40, 4)
    shares, _ = guesses(40, 4, seed=1)
    report = classification_report(probs, shares, NAMES)
    assert report.accuracy == classification_report(probs, shares.argmax(1), NAMES).accuracy
    theirs = F.cross_entropy(torch.from_numpy(np.log(probs)), torch.from_numpy(shares))
    assert report.nll == pytest.approx(theirs.item())


@pytest.mark.parametrize(
    ("probs", "target"),
    [
        (np.full((2, 3), 1 / 3), [0, 1]),
        (np.full((2, 4), 0.3), [0, 1]),
        (np.full((2, 4), np.nan), [0, 1]),
        (np.full((2, 4), 0.25), [0, 4]),
        (np.full((2, 4), 0.25), [-1, 0]),
        (np.full((2, 4), 0.25), [0.0, 1.0]),
        (np.full((2, 4), 0.25), [0, 1, 2]),
        (np.full((2, 4), 0.25), np.ones((2, 4))),
        (np.full((2, 4), 0.25), np.full((2, 3), 1 / 3)),
        (np.empty((0, 4)), []),
    ],
)
def test_what_cannot_be_measured_is_refused(probs, target):
    with pytest.raises(ValueError, match="must be"):
        classification_report(probs, np.array(target), NAMES)


def faces(root: Path, split: str = "validation", wrong: int = 0, side: int = 30) -> Folder:
    """Two faces for each colour, and `wrong` red ones that are labelled sad."""
    for label, colour in [*COLOURS.items(), *[("sadness", COLOURS["anger"])] * (wrong > 0)]:
        folder = root / split / label
        folder.mkdir(parents=True, exist_ok=True)
        start = len(list(folder.iterdir()))
        for i in range(start, start + (wrong if start else 2)):
            Image.new("RGB", (side + i, side), colour).save(folder / f"{i}.png")
    return Folder(str(root))


def test_measure_matches_classes_by_name(stand_in, tmp_path):
    classifier, data = Classifier.from_pretrained(stand_in), faces(tmp_path, wrong=2)
    assert data.labels == ("neutral", "sadness", "disgust", "anger")  # 8 there, 4 here, in other places
    measured = measure(classifier, data, "validation", batch_size=3)
    assert measured.report.labels == EXPRESSIONS
    assert measured.report.accuracy == pytest.approx(8 / 10)
    assert measured.report.recall["sadness"] == pytest.approx(2 / 4)
    assert measured.report.recall["contempt"] is None
    assert (measured.malformed, measured.found) == (0, None)
    assert measure(classifier, data, "validation").report == measured.report


@pytest.mark.parametrize(
    "learned, said",
    [
        ("Folder, validation", True),
        ("Folder, train+validation", True),
        ("Folder, train", False),
        ("FERPlus, train+validation", False),
        (None, False),
    ],
)
def test_faces_that_the_model_has_learned_are_named(tmp_path, caplog, learned, said):
    training = {} if learned is None else {"training": {"data": learned}}
    model = write_stand_in(tmp_path / "model/model.onnx", HEADER | training)
    measure(Classifier.from_pretrained(model), faces(tmp_path / "data"), "validation")
    lines = [f"{model}: learned from {learned}: of faces that it learned figures say nothing"] if said else []
    assert [record.message for record in caplog.records if "learned" in record.message] == lines


def test_measure_refuses_a_class_that_the_model_does_not_know(tmp_path):
    labels = {str(i): label for i, label in enumerate(["surprise", "fear", "disgust", *"abcd", "neutral"])}
    model = write_stand_in(tmp_path / "model/model.onnx", HEADER | {"id2label": labels})
    with pytest.raises(MienError, match="the class 'sadness' and 'anger', and the model only knows surprise, fear"):
        measure(Classifier.from_pretrained(model), faces(tmp_path / "data"), "validation")


def test_faces_without_a_label_are_not_judged(stand_in, tmp_path):
    rows = faces(tmp_path).rows("validation")
    judged = measure(Classifier.from_pretrained(stand_in), faces(tmp_path), "validation").report
    data = faces(tmp_path)
    bare = Row(rows[0].source, np.zeros_like(rows[0].target), "validation")
    data.rows("validation").append(bare)
    assert measure(Classifier.from_pretrained(stand_in), data, "validation").report == judged
    data.rows("validation")[:] = [bare]
    with pytest.raises(MienError, match="not one row has a label"):
        measure(Classifier.from_pretrained(stand_in), data, "validation")


def test_measure_cuts_out_the_largest_face_that_is_found(stand_in, tmp_path):
    """Red pictures, called sad, with a blue face in the wider half of them and a green one, smaller, beside it."""
    folder = tmp_path / "test" / "sadness"
    folder.mkdir(parents=True)
    for i, width in enumerate((200, 200, 50, 50)):
        image = Image.new("RGB", (width, 60), COLOURS["anger"])
        image.paste(COLOURS["sadness"], (100, 0, 160, 60))
        image.paste(COLOURS["disgust"], (0, 0, 30, 30)) if width == 200 else None
        image.putpixel((0, 0), (i, 0, 0))
        image.save(folder / f"{i}.png")
    places = [((0, 0, 30, 30), 0.9), ((100, 0, 60, 60), 0.8)]

    def detector(image: np.ndarray) -> list[Detection]:
        points = np.zeros((5, 2), np.float32)  # no face: the box stands in
        return [Detection(box, score, points) for box, score in places] if image.shape[:2] == (60, 200) else []

    measured = measure(Classifier.from_pretrained(stand_in), Folder(str(tmp_path)), "test", detector=detector)
    assert measured.found == 2
    assert measured.report.confusion[EXPRESSIONS.index("sadness")] == [0, 0, 2, 0, 0, 0, 2, 0]


def run(*arguments: object) -> int:
    return main(["eval", *map(str, arguments)])


def test_command_prints_and_saves(stand_in, tmp_path, capsys):
    faces(tmp_path / "data", wrong=2)
    (tmp_path / "data/validation/anger/bad.png").write_bytes(b"x")
    assert run(stand_in, "--data", tmp_path / "data", "--out", tmp_path / "deep/out") == 0
    text = capsys.readouterr().out
    for part in (
        "validation: 10 faces, as they are",
        "left out: 1 malformed",
        "accuracy           0.8000  (",
        "10 faces",
    ):
        assert part in text
    saved = json.loads((tmp_path / "deep/out/report.json").read_text())
    assert (saved["accuracy"], saved["split"], saved["malformed"]) == (0.8, "validation", 1)
    with Image.open(tmp_path / "deep/out/confusion.png") as image:
        image.load()
        assert image.format == "PNG"
        assert min(image.size) > 500
    assert sorted(path.name for path in (tmp_path / "deep/out").iterdir()) == [
        "calibration.png", "confusion.png", "report.html", "report.json",
    ]  # fmt: skip
    assert run(stand_in, "--data", tmp_path / "data", "--out", tmp_path / "deep/out", "--json") == 0
    assert json.loads(capsys.readouterr().out) == saved


def test_command_chooses_the_split(stand_in, tmp_path, capsys):
    data = tmp_path / "data"
    faces(data, "train")
    common = (stand_in, "--data", data, "--out", tmp_path / "out", "--json")
    assert run(*common) == 0
    assert json.loads(capsys.readouterr().out)["split"] == "train"  # the only one
    faces(data, "other")
    assert run(*common) == 1
    assert "which split (--split): other or train?" in capsys.readouterr().err
    faces(data, "val")
    assert run(*common) == 0
    assert json.loads(capsys.readouterr().out)["split"] == "validation"
    assert run(*common, "--split", "training") == 0
    assert json.loads(capsys.readouterr().out)["split"] == "train"
    assert run(*common, "--split", "tset") == 1
    assert "no split 'tset'" in capsys.readouterr().err


def test_command_detects_first(stand_in, tmp_path, capsys):
    faces(tmp_path / "data")
    common = ("--data", tmp_path / "data", "--out", tmp_path / "out", "--align", "detect")
    assert run(stand_in, *common) == 0
    assert "aligned, but for 8 in which no face was found: as they are" in capsys.readouterr().out


def test_command_takes_the_order_of_numbered_labels(stand_in, tmp_path, capsys):
    for number, label in ((5, "sadness"), (6, "anger")):
        (tmp_path / f"data/test/{number}").mkdir(parents=True)
        Image.new("RGB", (9, 9), COLOURS[label]).save(tmp_path / f"data/test/{number}/a.png")
    common = (stand_in, "--data", tmp_path / "data", "--out", tmp_path / "out", "--json")
    assert run(*common) == 1
    assert run(*common, "--labels", "rafdb") == 0
    assert run(*common, "--labels", "fear,surprise,disgust,happy,sad,angry") == 0
    assert '"accuracy": 1.0' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "data", "code"), [("nowhere.onnx", "data", 1), ("model", "nowhere", 1), ("model", None, 2)]
)
def test_command_says_in_a_line_what_is_missing(stand_in, tmp_path, capsys, model, data, code):
    faces(tmp_path / "data")
    arguments = [stand_in if model == "model" else tmp_path / model]
    arguments += ["--data", tmp_path / data, "--out", tmp_path / "out"] if data else []
    try:
        assert run(*arguments) == code
    except SystemExit as end:
        assert end.code == code
    error = capsys.readouterr().err
    assert "Traceback" not in error
    if code == 1:
        assert error.startswith("mien: ")
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_python_gets_what_the_command_prints(stand_in, tmp_path, capsys):
    data = faces(tmp_path / "data", wrong=2)
    assert run(stand_in, "--data", tmp_path / "data", "--against", stand_in, "--robustness", "--consistency",
               "--limit", 2, "--out", tmp_path / "a") == 0  # fmt: skip
    printed = capsys.readouterr().out
    also = {"against": stand_in, "robustness": True, "consistency": True, "limit": 2}
    found = evaluate(stand_in, tmp_path / "data", **also)
    assert printed == f"{found}\n\nsaved in {tmp_path / 'a'}: report.html, report.json and the plots\n"
    found.save(tmp_path / "b")
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {"report.json", "report.html", "confusion.png", "calibration.png", "robustness.png"}
    assert names == {path.name for path in (tmp_path / "b").iterdir()}
    saved = json.loads((tmp_path / "b/report.json").read_text())
    assert saved == json.loads(json.dumps(found.to_dict())) == json.loads((tmp_path / "a/report.json").read_text())
    assert (found.split, found.report.count, found.report.labels) == ("validation", 2, EXPRESSIONS)

    classifier = Classifier.from_pretrained(stand_in)  # opened already, and a data set
    again = evaluate(classifier, data, split="val")
    assert again.report == measure(classifier, data, "validation").report
    assert (again.model, again.data) == (str(stand_in / "model.onnx"), str(tmp_path / "data"))


def test_what_evaluate_was_before(stand_in):
    probs, target = np.eye(8)[:4], np.arange(4)
    with pytest.warns(DeprecationWarning, match="is called classification_report now"):
        old = evaluate(probs, target, EXPRESSIONS)
    assert old == classification_report(probs, target, EXPRESSIONS)


def test_options_that_do_not_go_together(stand_in, tmp_path, capsys):
    faces(tmp_path)
    with pytest.raises(Misuse, match="align is"):
        evaluate(stand_in, tmp_path, align="somehow")
    for also in ("consistency", "robustness"):
        with pytest.raises(Misuse, match=f"{also} changes pictures that are faces already"):
            evaluate(stand_in, tmp_path, align="detect", **{also: True})
        with pytest.raises(SystemExit) as end:
            run(stand_in, "--data", tmp_path, "--align", "detect", f"--{also}")
        assert end.value.code == 2 and f"{also} changes pictures" in capsys.readouterr().err


def test_groups_of_which_the_data_says_nothing(stand_in, tmp_path, call):
    faces(tmp_path / "data")
    code, out, err = call("eval", stand_in, "--data", tmp_path / "data", "--group-by", "sex", "--out", tmp_path / "out")
    assert (code, out) == (1, []) and not (tmp_path / "out").exists()
    said = "no row of validation says the sex of a person; it says nothing of them but what they show"
    assert err == [f"mien: {tmp_path / 'data'}: {said}"]

    data = faces(tmp_path / "data")
    rows = data.rows("validation")
    rows[:] = [replace(row, groups={"age": "30", "gender": "f"}) for row in rows]
    with pytest.raises(MienError, match="says the sex of a person; it says age, gender$"):
        evaluate(stand_in, data, group_by=["age", "sex"])
    assert evaluate(stand_in, data, group_by=["age"]).groups["age"]["30"].count == len(rows)


def test_help_waits_for_no_library():
    code = "import mien.commands.eval, mien.evaluation, sys; print({'torch', 'matplotlib'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
