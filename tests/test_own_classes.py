"""Classes that are somebody's own: what names of folders, columns and tables stand for, and what is held out."""

import csv
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import HEADER, write_stand_in
from PIL import Image

from mien.data import FER2013, Folder, HeldOut, Parquet, Table, open_dataset, open_for
from mien.data.heldout import content_of, read_list
from mien.data.spelling import Known, class_order, match_names
from mien.errors import MienError, MienWarning
from mien.labels import EXPRESSIONS, ORDERS


def draw(path: Path, grey: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), grey).save(path)
    return path


def folder(root: Path, **classes: int) -> Path:
    """So many pictures of each class, all of them different."""
    grey = iter(range(256))
    for name, count in classes.items():
        for i in range(count):
            draw(root / name / f"{i:02}.png", next(grey))
    return root


# names


@pytest.mark.parametrize(
    "names, labels",
    [
        ("pain none", "none pain"),  # "none" is no neutral face here
        ("none mild severe", "mild none severe"),
        ("Smile Happy sad", "Happy Smile sad"),  # two of one expression are two classes
        ("Happy SAD none", "neutral happiness sadness"),
        ("happy sad bored", "bored happy sad"),
        ("Bored engaged", "Bored engaged"),
        ("grade2 grade10", "grade10 grade2"),
        ("10 2 x", "2 10 x"),
    ],
)
def test_classes_are_the_names_that_are_there(names, labels, tmp_path):
    root = folder(tmp_path, **dict.fromkeys(names.split(), 2))
    data = Folder(str(root))
    assert data.labels == tuple(labels.split())
    assert data.class_counts("all").tolist() == [2] * len(data.labels)
    assert match_names([names.split()]).labels == class_order(data.labels) == data.labels


@pytest.mark.parametrize(
    "names, note",
    [
        ("Neutral happiness", None),
        ("happy none", "read happy as happiness, none as neutral"),
        ("pain none", "names of classes stay as they are (none), since 'pain' is no expression"),
        ("Smile Happy", "Happy and Smile stay as they are: two names of one expression are two classes here"),
        ("neutral hapiness", "'hapiness' is a class of its own: is 'happiness' meant?"),
    ],
)
def test_what_is_read_otherwise_than_written_is_told(names, note, tmp_path, caplog):
    data = Folder(str(folder(tmp_path, **dict.fromkeys(names.split(), 1))))
    assert caplog.messages == []
    data.rows("all")
    told = [message.partition(": ")[2] for message in caplog.messages]
    assert told == ([] if note is None else [note]), told
    assert list(data.notes) == told


def test_names_are_matched_to_those_of_a_model():
    def found(names, *labels, first=None):
        return [*match_names([names.split()], Known(labels, first)).label_of.values()]

    assert found("none PAIN", "none", "Pain") == ["none", "Pain"]
    assert found("none pain", *EXPRESSIONS) == [None, None]
    assert found("Happy none", *EXPRESSIONS) == ["happiness", "neutral"]
    assert found("Happy sad", "Happy", "bored", "sad") == ["Happy", "sad"]
    assert found("1 2 3", "no", "mild", "pain") == [None] * 3  # what a number means the model does not know
    assert found("1 2 3", "no", "mild", "pain", first=1) == ["no", "mild", "pain"]
    assert found("1 2 4", "no", "mild", "pain", first=1) == ["no", "mild", None]
    with pytest.raises(MienError, match="'Happy' and 'Smile' would both be 'happiness': rename one"):
        found("Happy Smile", *EXPRESSIONS)
    with pytest.raises(MienError, match="'Pain' and 'pain' would both be 'Pain'"):
        match_names([["Pain", "pain", "none"]])
    assert match_names([["Pain", "none"], ["pain", "none"]]).labels == ("Pain", "none")  # of two splits


def test_the_other_readers_name_classes_alike(tmp_path):
    pictures = [draw(tmp_path / f"{i}.png", i).read_bytes() for i in range(4)]
    names = ["none", "pain", "none", "mild"]
    pq.write_table(pa.table({"image": pictures, "label": names}), tmp_path / "train.parquet")
    assert Parquet(str(tmp_path / "train.parquet")).labels == ("mild", "none", "pain")
    features = json.dumps({"info": {"features": {"label": {"names": ["none", "pain", "mild"], "_type": "ClassLabel"}}}})
    numbered = pa.table({"image": pictures, "label": [0, 1, 0, 2]}).replace_schema_metadata({"huggingface": features})
    pq.write_table(numbered, tmp_path / "test.parquet")
    for labels in (None, Known(("pain", "none", "mild"))):  # the file's own numbers are no model's
        data = Parquet(str(tmp_path / "test.parquet"), labels=labels)
        assert [data.labels[row.label] for row in data.rows("test")] == names
    with pytest.raises(MienError, match="numbered, 1: say labels|numbered.*--labels"):
        match_names([["1", "2"]])


# the trees in which pictures come


def test_a_misnamed_folder_is_told_of_in_one_line(tmp_path, call):
    root = folder(tmp_path / "train", neutral=2, fear=2, feer=9)
    code, out, err = call("data", "check", "folder", tmp_path, "--labels", "neutral,fear", "--out", tmp_path / "sheets")
    assert code == 1 and err == []
    [line] = [line for line in out if "feer" in line]
    assert line == f"{root}/feer: 'feer' is none of neutral, fear: is 'fear' meant?: 9 pictures left out"
    assert any(line.split() == ["left", "out", "9"] for line in out)


def test_check_prints_the_classes_and_what_was_read_otherwise(tmp_path, call):
    folder(tmp_path / "pictures", happy=2, sad=1)
    for name, note in (
        ("sad", "read happy as happiness, sad as sadness"),
        ("pain", "names of classes stay as they are"),
    ):
        code, out, err = call("data", "check", "folder", tmp_path / "pictures", "--out", tmp_path / "out", "--strict")
        assert (code, err) == (0, []) and [line for line in out if line.startswith(f"note: {note}")], out
        assert any(line.split() == [{"sad": "sadness"}.get(name, name), "1"] for line in out)
        if name == "sad":
            (tmp_path / "pictures/sad").rename(tmp_path / "pictures/pain")


def test_kaggles_tree_names_the_option_that_helps(tmp_path, call):
    for split in ("train", "test"):
        folder(tmp_path / split, angry=2, happy=2)
    data = open_dataset(tmp_path)
    assert (data.labels, sorted(data.splits)) == (("happiness", "anger"), ["test", "train"])
    pytest.importorskip("lightning")
    words = ["--task.optimizer", "torch.optim.AdamW", "--model", "mien.networks.mobilefacenet"]
    code, _, err = call("train", *words, "--data", "mien.data.Folder", "--data.path", tmp_path)
    assert code == 1 and err[-1] == (
        f"mien: {tmp_path}: no split 'validation', only test, train: --faces.validation_split test"
    )
    code, _, err = call("train", *words, "--data", "mien.data.Folder", "--data.path", tmp_path / "train")
    assert code == 1 and "no split 'train', only all: mien finetune holds some of it out" in err[-1]


@pytest.mark.parametrize(
    "names, reason",
    [
        (("images/train/angry", "images/test/angry"), "its splits lie one folder deeper: give .*images"),
        (("pain/anna", "calm/anna"), "calm may be a split or a class: call splits train"),
    ],
)
def test_a_tree_that_can_be_read_in_two_ways_is_not_guessed_at(names, reason, tmp_path):
    for name in names:
        draw(tmp_path / name / "a.png", 1)
    with pytest.raises(MienError, match=reason):
        open_dataset(tmp_path)


def fer2013(path: Path, *lines: str, header: str = "emotion,pixels,Usage") -> Path:
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def test_fer2013_as_kaggle_gives_it_out(tmp_path, caplog):
    def pixels(grey: int) -> str:
        return " ".join([str(grey)] * 2304)

    usages = ("Training", "PublicTest", "PrivateTest")
    lines = [f"{i},{pixels(10 * i + j)},{usage}" for i in range(7) for j, usage in enumerate(usages)]
    bad = [f"7,{pixels(1)},Training", f"0,{pixels(1)} 9,Training", f"0,{pixels(256)},Training", f"0,{pixels(9)},Later"]
    fer2013(tmp_path / "fer2013.csv", *lines, *bad)
    for data in (open_dataset(tmp_path), open_dataset(tmp_path / "fer2013.csv"), FER2013(str(tmp_path))):
        assert type(data) is FER2013 and data.splits == ("train", "validation", "test")
    order = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
    assert data.labels == ORDERS["fer2013"] == order
    for j, split in enumerate(data.splits):
        rows = data.rows(split)
        assert [(row.label, int(row.image()[47, 47, 0])) for row in rows] == [(i, 10 * i + j) for i in range(7)]
        assert rows[0].image().shape == (48, 48, 3)
    assert [error.reason for error in data.findings["train"].malformed] == [
        "emotion '7' is not a number from 0 to 6",
        "2305 pixels instead of 48×48",
        "pixels above 255",
        "Usage 'Later' is none of Training, PublicTest and PrivateTest",
    ]
    assert "1 of anger instead of 3,995" in caplog.text
    assert [sum(counts) for counts in data.published.values()] == [28_709, 3_589, 3_589]


def test_fer2013_in_its_other_shapes(tmp_path):
    pixels = " ".join(["7"] * 2304)
    spaced = fer2013(tmp_path / "icml_face_data.csv", f"3, Training,{pixels}", header="emotion, Usage, pixels")
    assert [row.label for row in open_dataset(spaced.parent).rows("train")] == [3]
    spaced.unlink()
    alone = fer2013(tmp_path / "train.csv", f"3,{pixels}", header="emotion,pixels")
    assert open_dataset(alone).splits == FER2013(str(tmp_path)).splits == ("train",)
    for file, reason in (
        (fer2013(tmp_path / "a.csv", "3", header="emotion"), "no column 'pixels', only emotion"),
        (fer2013(tmp_path / "b.csv", header="emotion,pixels,Usage"), "no line is of Training"),
        (tmp_path / "gone.csv", "no such file"),
        (tmp_path / "empty", "neither of fer2013.csv, "),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(MienError, match=reason):
            FER2013(str(file))


def test_a_table_of_paths_and_labels(tmp_path):
    for i in range(5):
        draw(tmp_path / f"faces/{i}.png", i)
    lines = ["faces/0.png,pain,train", "faces/1.png,none,train", "faces/2.png,pain,val", "faces/3.png,,train"]
    (tmp_path / "all.csv").write_text("\n".join(["Path,Label,split", *lines, ",pain,train", "gone.png,pain,train"]))
    data = open_dataset(tmp_path / "all.csv")
    assert type(data) is Table and (data.labels, data.splits) == (("none", "pain"), ("train", "validation"))
    assert [(row.label, int(row.image()[0, 0, 0])) for row in data.rows("train")] == [(1, 0), (0, 1)]
    found = [str(error).removeprefix(f"{tmp_path}/") for error in data.findings["train"].malformed]
    assert found == ["all.csv:5: no label", "all.csv:6: no picture", "all.csv:7: gone.png: no such file"]

    (tmp_path / "two.tsv").write_text("who\tshot\tmood\nanna\tfaces/0.png\t2\nbert\tfaces/1.png\t1\n")
    with pytest.raises(MienError, match="no column .* of the pictures, only who, shot, mood: say image .*--set image="):
        open_dataset(tmp_path / "two.tsv")
    with pytest.raises(MienError, match="the classes are numbered, 2, 1.*--labels"):
        open_dataset(tmp_path / "two.tsv", image="shot", label="mood")
    data = Table(str(tmp_path / "two.tsv"), image="shot", label="mood", labels=["no", "pain"], subject="who")
    assert (data.splits, data.first) == (("all",), 1)
    assert [(row.label, row.subject) for row in data.rows("all")] == [(1, "anna"), (0, "bert")]


# held out


def test_a_share_of_each_class_is_held_out(tmp_path):
    data = HeldOut(Folder(str(folder(tmp_path, a=20, b=10, c=3, d=1))))
    assert data.splits == ("train", "validation") and data.counts() == (7, 34)
    assert data.class_counts("validation").tolist() == [4, 2, 1, 0]  # of one picture nothing is held out
    assert data.class_counts("train").tolist() == [16, 8, 2, 1]
    names = {split: {Path(row.name) for row in data.rows(split)} for split in data.splits}
    assert not names["train"] & names["validation"]
    shutil.copytree(tmp_path, moved := tmp_path.with_name("moved"))
    again = HeldOut(Folder(str(moved)))
    assert {Path(row.name).relative_to(moved) for row in again.rows("validation")} == {
        name.relative_to(tmp_path) for name in names["validation"]
    }
    other = HeldOut(Folder(str(tmp_path)), seed=1)
    assert {row.name for row in other.rows("validation")} != set(map(str, names["validation"]))


def test_copies_and_subjects_stay_together(tmp_path):
    root = folder(tmp_path / "twins", a=10, b=10)
    for i in range(10):
        shutil.copy(root / f"a/{i:02}.png", root / f"a/copy_{i:02}.png")
    data = HeldOut(Folder(str(root)), share=0.3)
    sides = {split: {content_of(row) for row in data.rows(split)} for split in data.splits}
    assert sides["validation"] and not sides["train"] & sides["validation"]

    lines = [f"faces/{i}.png,{'pain' if i % 2 else 'none'},{'abcdefgh'[i // 4]}" for i in range(32)]
    for i in range(32):
        draw(tmp_path / f"faces/{i}.png", i)
    (tmp_path / "all.csv").write_text("\n".join(["path,label,who", *lines]))
    data = HeldOut(Table(str(tmp_path / "all.csv"), subject="who"))
    people = {split: {row.subject for row in data.rows(split)} for split in data.splits}
    assert len(people["validation"]) in (1, 2) and not people["train"] & people["validation"]


def test_what_has_a_validation_split_is_not_split_again(tmp_path):
    for split in ("train", "val"):
        folder(tmp_path / split, a=2, b=2)
    with pytest.raises(MienError, match="nothing is to be held out"):
        HeldOut(Folder(str(tmp_path)))
    (tmp_path / "val").rename(tmp_path / "test")
    assert HeldOut(Folder(str(tmp_path))).splits == ("train", "validation", "test")


OWN = HEADER | {
    "id2label": dict(enumerate(EXPRESSIONS)) | {0: "none", 1: "pain"},
    "training": {"data": "none", "held_out": "2 of 10"},
}
OWN["id2label"] = {str(i): label for i, label in OWN["id2label"].items()}


def test_a_model_is_judged_by_what_it_was_not_taught(tmp_path, recwarn):
    pictures = folder(tmp_path / "pictures", none=6, pain=4)
    data = open_for(OWN, tmp_path, pictures)
    [warning] = recwarn.list
    assert warning.category is MienWarning and "held out 2 of 10 pictures of its own, and held_out.csv" in str(
        warning.message
    )
    assert data.splits == ("all",) and data.labels[:2] == ("none", "pain") and len(data.labels) == 8
    split = HeldOut(Folder(str(pictures)))
    split.write_list(tmp_path / "held_out.csv")
    assert sum(read_list(tmp_path / "held_out.csv").values()) == 8
    with (tmp_path / "held_out.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert {line["class"] for line in lines} == {"none", "pain"} and len(lines) == 10

    draw(pictures / "pain/new.png", 200)
    data = open_for(OWN, tmp_path, pictures)
    kept = {Path(row.name).name for row in data.rows("validation")}
    assert kept == {Path(row.name).name for row in split.rows("validation")} | {"new.png"}
    assert len(data.rows("train")) == 8
    folder(tmp_path / "others", pain=3)
    for i in range(3):
        draw(tmp_path / f"others/pain/{i:02}.png", 100 + i)
    assert open_for(OWN, tmp_path, tmp_path / "others").splits == ("all",)
    assert len(recwarn.list) == 1


def test_eval_asks_for_no_labels_and_leaves_out_what_was_taught(tmp_path, call, caplog):
    pictures = folder(tmp_path / "pictures", none=6, pain=4, pein=5)
    model = write_stand_in(tmp_path / "run/model.onnx", OWN)
    HeldOut(Folder(str(pictures), labels=["none", "pain"])).write_list(tmp_path / "run/held_out.csv")
    code, out, err = call("eval", model, "--data", pictures, "--out", tmp_path / "out", "--json")
    facts = json.loads("\n".join(out))
    assert (code, facts["split"], facts["count"], facts["support"]["pain"]) == (0, "validation", 2, 1)
    assert not caplog.messages  # of what is in "train", such as a folder of no class
    code, out, err = call("eval", model, "--data", pictures, "--split", "train", "--out", tmp_path / "out", "--json")
    assert json.loads("\n".join(out))["count"] == 8
    [line] = [line for line in caplog.messages if "pein" in line]
    assert line.endswith("is 'pain' meant?: 5 pictures left out")


def test_numbers_that_were_named_once_stay_named(tmp_path):
    pictures = folder(tmp_path, **{"1": 2, "2": 2})
    named = OWN | {"training": {"numbered_from": "1"}}
    data = open_for(named, None, pictures)
    assert [data.labels[row.label] for row in data.rows("all")] == ["none", "none", "pain", "pain"]
    with pytest.raises(MienError, match="'1' is none of .*--labels"):
        open_for(OWN | {"training": {}}, None, pictures).rows("all")
