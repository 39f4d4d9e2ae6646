"""Published data sets, in small: each in the very layout in which it is given out, and with what may be wrong in it."""

import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sets import (
    EXPR,
    UNITS,
    draw,
    pictures,
    python2_batch,
    write,
    write_affectnet,
    write_affectnet_2017,
    write_affwild2,
    write_cifar10,
    write_expw,
    write_rafdb,
    write_sfew,
)

from mien.data import CIFAR10, RAFDB, SFEW, AffectNet, AffWild2, DataSet, ExpW, open_dataset
from mien.data.expw import _PUBLISHED
from mien.errors import MienError, ReadError


def named(data: DataSet, split: str) -> list[tuple[str, int]]:
    """The class of each row, and the grey of its first pixel."""
    return [(data.labels[row.label], int(row.image()[0, 0, 0])) for row in data.rows(split)]


def reasons(data: DataSet, split: str) -> list[str]:
    data.rows(split)
    return [str(error).replace(f"{data}{os.sep}", "") for error in data.findings[split].malformed]


@pytest.fixture
def rafdb(tmp_path):
    return write_rafdb(tmp_path)


@pytest.fixture
def expw(tmp_path):
    return write_expw(tmp_path)


@pytest.fixture
def affectnet_2017(tmp_path):
    return write_affectnet_2017(tmp_path)


@pytest.fixture
def affectnet(tmp_path):
    return write_affectnet(tmp_path)


@pytest.fixture
def affwild2(tmp_path):
    return write_affwild2(tmp_path)


def test_every_reader_has_a_name(rafdb):
    assert isinstance(open_dataset(rafdb, "rafdb"), RAFDB)
    for name in ("affectnet", "sfew", "expw", "affwild2", "cifar10"):
        with pytest.raises(MienError, match=" there$"):
            open_dataset(rafdb, name)


# RAF-DB


def test_rafdb(rafdb, caplog):
    data = RAFDB(str(rafdb))
    order = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
    assert named(data, "train") == [(label, 10 + i) for i, label in enumerate(order)]
    assert named(data, "test") == [(label, 110 + i) for i, label in enumerate(order)]
    assert "'train' is not as published: 1 of surprise instead of 1,290, 1 of fear instead of 281" in caplog.text
    assert sum(RAFDB.published["train"]) == 12_271 and sum(RAFDB.published["test"]) == 3_068
    realigned = RAFDB(str(rafdb), pictures="Image/aligned_224")
    assert named(realigned, "test")[0] == ("surprise", 160)
    (rafdb / "Image/aligned").rename(rafdb / "aligned")
    (rafdb / "EmoLabel/list_patition_label.txt").rename(rafdb / "list_patition_label.txt")
    assert named(RAFDB(str(rafdb)), "train")[6] == ("neutral", 16)


def test_what_is_wrong_in_rafdb(rafdb):
    file = rafdb / "EmoLabel/list_patition_label.txt"
    (rafdb / "Image/aligned/train_00003_aligned.png").unlink()
    with file.open("a") as more:
        more.write("train_00001.png 2\n\ntrain_00009.png 8\ntest_00009.png 0\ntrain_00010.png\nvalid_1.png 3\n")
    data, at = RAFDB(str(rafdb)), "EmoLabel/list_patition_label.txt"
    assert sorted(reasons(data, "train")) == [
        f"{at}:15: train_00001.png is listed already: {at}:1",
        f"{at}:17: label '8' is not a number from 1 to 7",
        f"{at}:19: 'train_00010.png' is not the name of a picture and its label",
        f"{at}:20: 'valid_1.png 3' is not the name of a picture and its label",
        f"{at}:5: train_00003.png: no such file",
    ]
    assert "test_00009" not in " ".join(reasons(data, "train"))
    assert f"{at}:18: label '0' is not a number from 1 to 7" in reasons(data, "test")
    assert len(data.rows("train")) == 6
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MienError, match=r"list_patition_label.txt: not a text"):
        RAFDB(str(rafdb)).rows("train")
    file.unlink()
    with pytest.raises(MienError, match=r"no EmoLabel/list_patition_label.txt or list_patition_label.txt there"):
        RAFDB(str(rafdb))
    with pytest.raises(MienError, match="gone: no such folder"):
        RAFDB(str(rafdb / "gone"))


def test_rafdb_tells_of_people(rafdb):
    folder = rafdb / "Annotation/manual"
    folder.mkdir(parents=True)
    points = ["1.5\t2.5\n"] * 5
    for i, numbers in enumerate(["0\n0\n0\n", "1 \n1\n4", "2\n2\n2\n", "1\n3\n0\n", "1\n0\n", "1\n-1\n0\n"], 1):
        (folder / f"train_{i:05}_manu_attri.txt").write_text("".join(points) + numbers)
    data = RAFDB(str(rafdb), groups=["age", "gender"])
    assert [row.groups for row in data.rows("train")] == [
        {"age": "0-3", "gender": "male"}, {"age": "70+", "gender": "female"}, {"age": "20-39", "gender": "unsure"},
    ]  # fmt: skip
    at, here = "EmoLabel/list_patition_label.txt", "Annotation/manual/train_0000"
    wrong = "lines 6 to 8 are not the numbers of gender, race, age"
    assert reasons(data, "train") == [
        *(f"{at}:{2 * i - 1}: {here}{i}_manu_attri.txt: {wrong}" for i in (4, 5, 6)),
        f"{at}:13: {here}7_manu_attri.txt: no such file or directory",
    ]
    assert len(RAFDB(str(rafdb)).rows("train")) == 7 and not RAFDB(str(rafdb)).rows("train")[0].groups
    with pytest.raises(MienError, match="RAF-DB tells no 'sex' of anybody, only gender, race, age"):
        RAFDB(str(rafdb), groups=["sex"])
    folder.rename(rafdb / "elsewhere")
    with pytest.raises(MienError, match="no Annotation/manual or manual there"):
        RAFDB(str(rafdb), groups=["race"])


# ExpW


def test_expw(expw, caplog):
    data = ExpW(str(expw))
    sizes = {split: len(data.rows(split)) for split in data.splits}
    assert sizes == {"train": 30, "validation": 4, "test": 6}
    order = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
    seen = {}
    for split in data.splits:
        for row in data.rows(split):
            number = int(row.source.stem.removeprefix("face_"))
            assert seen.setdefault(number, split) == split  # the faces of a picture stay together
            left = int(row.image()[0, 0, 0]) < 100
            assert row.image().shape == ((16, 12, 3) if left else (17, 18, 3))  # what sticks out is cut off
            assert (row.image() == (3 * number if left else 200 + number)).all()
            assert data.labels[row.label] == (order[number % 7] if left else "neutral")
    assert len(seen) == 20

    def split_of(**options):
        return ExpW(str(expw), **options).split_of

    assert split_of() == split_of() != split_of(seed=1)
    told = [line for line in caplog.text.splitlines() if "published" in line]
    assert len(told) == 4  # the list's, whenever it is read; there is none of the splits
    assert "its list is not as published: 3 of anger instead of 3,671" in told[0]
    assert sum(_PUBLISHED) == 91_793


def test_what_is_wrong_in_expw(expw):
    with (expw / "label/label.lst").open("a") as more:
        more.write("face_0.png 0 2 4 16 18 60.5 3\n")  # again
        more.write("face_1.png 2 2 4 16 18 60.5 7\n")
        more.write("face_2.png 2 25 4 16 38 60.5 3\n")  # below the picture
        more.write("face_3.png 2 9 4 16 9 60.5 3\n")
        more.write("face_4.png 2 9 4 8\n")
        more.write("face_5.png 2 a 4 9 8 1.0 2\n")
    (expw / "image/origin/face_6.png").unlink()
    data = ExpW(str(expw))
    told = sorted(reason for split in data.splits for reason in reasons(data, split))
    at = "label/label.lst"
    words = "is not a picture, the number of a face, its box, a number and a label"
    assert told == [
        f"{at}:13: face_6.png: no such file",
        f"{at}:14: face_6.png: no such file",
        f"{at}:41: face_0.png 0 is listed already: {at}:1",
        f"{at}:42: label '7' is not a number from 0 to 6",
        f"{at}:43: face_2.png: the box 4, 25, 12×13 is outside the picture, 40×20",
        f"{at}:44: the box of 4 to 16, 9 to 9 is empty",
        f"{at}:45: 'face_4.png 2 9 4 8' {words}",
        f"{at}:46: 'face_5.png 2 a 4 9 8 1.0 2' {words}",
    ]


def test_a_box_outside_the_picture_is_told_when_it_is_used(expw):
    with (expw / "label/label.lst").open("a") as more:
        more.write("face_2.png 2 25 4 16 38 60.5 3\n")
    data = ExpW(str(expw), check=False)
    row = next(row for split in data.splits for row in data.rows(split) if row.box[1] == 25)
    with pytest.raises(ReadError, match=r"label.lst:41: face_2.png: the box 4, 25, 12×13 is outside the picture"):
        row.image()


# AffectNet

EIGHT = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")


@pytest.mark.parametrize("classes", [8, 7])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_affectnet_of_2017(classes, split, affectnet_2017, caplog):
    data = AffectNet(str(affectnet_2017), classes)
    assert named(data, split) == [(label, 10 + i) for i, label in enumerate(EIGHT[:classes])]
    assert all(row.image().shape == (6, 7, 3) and (row.image() == row.image()[0, 0]).all() for row in data.rows(split))
    assert reasons(data, split) == []
    published = {"train": "1 of fear instead of 6,378", "validation": "1 of fear instead of 500"}
    assert published[split] in caplog.text and ("contempt" in caplog.text) == (classes == 8)
    totals = {8: {"train": 287_651, "validation": 4_000}, 7: {"train": 283_901, "validation": 3_500}}
    assert sum(data.published[split]) == totals[classes][split]


def test_what_is_wrong_in_affectnet_of_2017(affectnet_2017):
    file = affectnet_2017 / "training.csv"
    (affectnet_2017 / "Manually_Annotated_Images/3/training.png").unlink()
    with file.open("a") as more:
        more.write("0/training.png,5,3,7,6,1;2,1,0,0\n")  # again
        more.write("1/validation.png,5,3,7,6,1;2,11,0,0\n")
        more.write("2/validation.png,5,30,7,6,1;2,1,0,0\n")
        more.write("3/validation.png,5,3,0,6,1;2,1,0,0\n")
        more.write("4/validation.png,x,3,7,6,1;2,1,0,0\n")
        more.write("5/validation.png,5,3\n")
    data = AffectNet(str(affectnet_2017))
    assert reasons(data, "train") == [
        "training.csv:5: training.png: no such file",
        "training.csv:13: 0/training.png is listed already: training.csv:2",
        "training.csv:14: label '11' is not a number from 0 to 10",
        "training.csv:15: validation.png: the box 5, 30, 7×6 is outside the picture, 20×20",
        "training.csv:16: the box of 0×6 is empty",
        "training.csv:17: its box is not of numbers",
        "training.csv:18: the line ends before its label",
    ]
    write(file, "subDirectory_filePath,face_x,face_y,face_width", "a.png,1,2,3")
    with pytest.raises(MienError, match=r"training.csv:1: no column expression, face_height"):
        AffectNet(str(affectnet_2017)).rows("train")
    file.unlink()
    with pytest.raises(MienError, match=r"no training.csv or Manually_Annotated_file_lists/training.csv there"):
        AffectNet(str(affectnet_2017))
    with pytest.raises(MienError, match="7 or 8 classes, not 9"):
        AffectNet(str(affectnet_2017), 9)


@pytest.mark.parametrize("classes", [8, 7])
def test_affectnet_as_it_is_now(classes, affectnet, caplog):
    data = AffectNet(str(affectnet), classes)
    assert [label for label, _ in named(data, "train")] == list(EIGHT[:classes])
    assert [abs(grey - 20 * i) < 3 for i, (_, grey) in enumerate(named(data, "validation"))] == [True] * classes
    assert [row.source.name for row in data.rows("train")][:3] == ["9.jpg", "10.jpg", "11.jpg"]
    assert sum(data.published["validation"]) == {8: 3_999, 7: 3_500}[classes]


def test_what_is_wrong_in_affectnet_as_it_is_now(affectnet, tmp_path):
    folder = affectnet / "train_set/annotations"
    (affectnet / "train_set/images/9.jpg").unlink()
    (folder / "10_exp.npy").unlink()
    np.save(folder / "11_exp.npy", np.array("12"))
    np.save(folder / "12_exp.npy", np.array(["1", "2"]))
    (folder / "13_exp.npy").write_bytes(b"")
    with (folder / "14_exp.npy").open("wb") as file:
        np.save(file, np.array({"a": Harmful()}, dtype=object), allow_pickle=True)
    data = AffectNet(str(affectnet))
    told = reasons(data, "train")
    assert [line.partition(":")[0] for line in told] == [f"train_set/annotations/{i}_exp.npy" for i in range(9, 15)]
    for line, part in zip(
        told, ("9.jpg: no such file", "there is a picture", "'12' is not a number", "size 1", "", "pickle"), strict=True
    ):
        assert part in line
    assert not Path("harmed").exists()


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


# SFEW


def test_sfew(tmp_path, caplog):
    write_sfew(tmp_path)
    (tmp_path / "readme.txt").write_text("")
    data = SFEW(str(tmp_path))
    order = ("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")
    assert data.splits == ("train", "validation")
    assert named(data, "train") == [(label, 10 + i) for i, label in enumerate(order)]
    assert named(data, "val") == [(label, 110 + i) for i, label in enumerate(order)]
    assert {row.split for row in data.rows("validation")} == {"validation"}
    assert "1 of anger instead of 178" in caplog.text and "1 of anger instead of 77" in caplog.text
    assert (sum(data.published["train"]), sum(data.published["validation"])) == (958, 436)

    caplog.clear()
    (tmp_path / "Train").rename(tmp_path / "Train_Aligned_Faces")
    (tmp_path / "Train_Aligned_Faces/Bored").mkdir()
    draw(tmp_path / "Train_Aligned_Faces/Bored/a.png", 1)
    (tmp_path / "Train_Aligned_Faces/Sad/cut.png").write_bytes(b"\x89PNG")
    aligned = SFEW(str(tmp_path))
    assert len(aligned.rows("train")) == 7 and "published" not in caplog.text
    told = reasons(aligned, "train")
    assert [line.partition(": ")[0] for line in told] == [
        f"Train_Aligned_Faces/{name}" for name in ("Bored", "Sad/cut.png")
    ]

    (tmp_path / "Train").mkdir()
    with pytest.raises(MienError, match="Train and Train_Aligned_Faces are both of 'train'"):
        SFEW(str(tmp_path))
    with pytest.raises(MienError, match="no folder Train or Val there"):
        SFEW(str(tmp_path / "Test"))
    draw(tmp_path / "nested/Train/Train/Angry/a.png", 1)
    with pytest.raises(MienError, match="not a tree of label/picture"):
        SFEW(str(tmp_path / "nested"))
    with pytest.raises(MienError, match="no such folder"):
        SFEW(str(tmp_path / "gone"))


# Aff-Wild2


def test_affwild2_of_expressions(affwild2):
    data = AffWild2(str(affwild2))
    assert (data.units, set(data.splits)) == ((), {"train", "validation"})
    assert named(data, "train") == [
        ("neutral", 41),
        ("happiness", 42),
        ("anger", 45),
        ("surprise", 122),
        ("fear", 124),
    ]
    assert [row.subject for row in data.rows("train")] == ["1", "1", "1", "3", "3"]
    assert all(row.units is None for row in data.rows("train"))
    assert named(data, "validation") == [("fear", 161)]
    assert reasons(data, "train") == []


def test_affwild2_of_both(affwild2):
    data = AffWild2(str(affwild2), action_units=True)
    assert data.units == ("AU1", "AU2", "AU12")
    told = {
        f"{row.subject}/{Path(row.source).stem}": (row.label, *row.units.astype(int).tolist())
        for row in data.rows("train")
    }
    assert told == {
        "1/00001": (0, -1, -1, -1),
        "1/00002": (4, -1, -1, -1),
        "1/00005": (1, -1, -1, -1),
        "2_left/00001": (-1, 0, 0, 1),
        "2_left/00002": (-1, 1, -1, 0),
        "2_left/00005": (-1, 1, 1, 1),
        "3/00001": (-1, 1, 0, 0),
        "3/00002": (6, -1, -1, -1),
        "3/00004": (3, 0, 1, 0),
    }
    for row in data.rows("train"):
        assert row.target.tolist() == [float(i == row.label) for i in range(7)] and row.units.dtype == np.float32
    assert data.class_counts("train").tolist() == [1, 1, 0, 1, 1, 0, 1]


def test_what_is_wrong_in_affwild2(affwild2):
    notes = affwild2 / "annotations"
    write(notes / "EXPR_Set/Train_Set/1.txt", f"{EXPR},Other", "0", "7", "8", "sad", "0,1")  # "Other" is not wrong
    write(notes / "AU_Set/Train_Set/2_left.txt", UNITS, "0,0,2", "1,-1", "0,0,0", "0,0,0")  # 5 has no line
    write(notes / "EXPR_Set/Train_Set/5.txt", EXPR, "0")
    write(notes / "EXPR_Set/Train_Set/6.txt", "Happiness,Sadness", "0")
    draw(affwild2 / "cropped_aligned/6/00001.png", 9)
    draw(affwild2 / "cropped_aligned/1/mask.png", 9)
    (affwild2 / "cropped_aligned/3/00002.png").write_bytes(b"GIF")
    data = AffWild2(str(affwild2), action_units=True)
    expr, au = "annotations/EXPR_Set/Train_Set", "annotations/AU_Set/Train_Set"
    whole = str(affwild2) + os.sep
    assert sorted(line.replace(whole, "") for line in reasons(data, "train")) == sorted(
        [
            f"{expr}/1.txt:4: '8' is not 1 of -1 to 7",
            f"{expr}/1.txt:5: 'sad' is not 1 of -1 to 7",
            f"{expr}/1.txt:6: '0,1' is not 1 of -1 to 7",
            f"cropped_aligned/1/mask.png: no line of {expr}/1.txt is of this frame",
            f"{au}/2_left.txt:2: '0,0,2' is not 3 of -1 to 1",
            f"{au}/2_left.txt:3: '1,-1' is not 3 of -1 to 1",
            f"cropped_aligned/2_left/00005.png: no line of {au}/2_left.txt is of this frame",
            "cropped_aligned/3/00002.png: not a picture",
            f"{expr}/5.txt: no folder cropped_aligned/5",
            f"{expr}/6.txt:1: 'Happiness,Sadness' is not {EXPR}",
        ]
    )
    write(notes / "AU_Set/Train_Set/3.txt", "AU1,AU2,AU4", "0,0,0")
    assert f"3.txt:1: 'AU1,AU2,AU4' is not {UNITS}" in " ".join(
        reasons(AffWild2(str(affwild2), action_units=True), "train")
    )
    with pytest.raises(MienError, match="no frames there"):
        AffWild2(str(affwild2), frames="frames")
    with pytest.raises(MienError, match="no action_units there"):
        AffWild2(str(affwild2), action_units=True, units="action_units")


# CIFAR-10


@pytest.fixture(params=["bin", "py"])
def cifar10(request, tmp_path):
    return write_cifar10(tmp_path, request.param)


def test_cifar10(cifar10, caplog):
    for path in (cifar10, cifar10.parent):
        data = CIFAR10(str(path))
        assert [(row.label, int(row.image()[0, 0, 0])) for row in data.rows("test")] == [(0, 0), (9, 1)]
    train = [(row.label, int(row.image()[5, 7, 0])) for row in data.rows("train")]
    assert train == [(label, 10 * i + n) for i in range(1, 6) for n, label in enumerate((i, 9 - i))]
    assert data.rows("train")[3].image()[5, 7].tolist() == [21, 5, 7]
    assert data.labels[:3] == ("airplane", "automobile", "bird")
    assert "2 of cat instead of 5,000" not in caplog.text and "instead of 5,000" in caplog.text
    assert Counter(row.split for row in data.rows("train")) == {"train": 10}


def test_the_layout_of_a_python_batch_is_what_pickle_reads(tmp_path):
    batch = pickle.loads(python2_batch([3, 4], pictures(2, 7).tobytes()), encoding="bytes")
    assert np.array_equal(batch[b"data"], pictures(2, 7)) and batch[b"labels"] == [3, 4]


def test_what_is_wrong_in_cifar10(cifar10, tmp_path):
    binary = cifar10.name.endswith("bin")
    end = ".bin" if binary else ""
    (cifar10 / f"data_batch_1{end}").unlink()
    cut, labelled = (cifar10 / f"data_batch_{number}{end}" for number in (2, 3))
    cut.write_bytes(cut.read_bytes()[:-10])
    at = 3073 if binary else labelled.read_bytes().index(b"K\x03K\x06") + 3
    data = bytearray(labelled.read_bytes())
    data[at] = 12
    labelled.write_bytes(data)
    (cifar10 / f"data_batch_4{end}").write_bytes(b"")
    data = CIFAR10(str(cifar10))
    told = dict(line.split(": ", 1) for line in reasons(data, "train"))
    assert told[f"data_batch_1{end}"] == "no such file or directory"
    assert ("6136 bytes are no whole number" if binary else "not a batch of CIFAR-10") in told[f"data_batch_2{end}"]
    assert told[f"data_batch_3{end} picture 1"] == "label 12 is not a number from 0 to 9"
    assert f"data_batch_4{end}" in told
    assert len(data.rows("train")) == 3
    with pytest.raises(MienError, match=r"no test_batch.bin or test_batch there"):
        CIFAR10(str(tmp_path / "gone"))


@pytest.mark.parametrize(
    "data, reason",
    [
        (pickle.dumps({"labels": Harmful()}, 2), "it asks for (posix|nt).mkdir"),
        (b"cos\nsystem\n(S'touch harmed'\ntR.", "it asks for os.system"),
        (pickle.dumps([1, 2], 2), "not a batch"),
        (pickle.dumps({b"labels": ["a"], b"data": None}, 2), "not a batch"),
        (python2_batch([1, 2, 3], bytes(3072)), "3 labels and 3072 bytes of pictures, of 3072 each"),
    ],
    ids=["mkdir", "system", "a list", "no array", "too few pixels"],
)
def test_a_batch_that_wants_to_do_something_is_refused(data, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test_batch").write_bytes(data)
    with pytest.raises(MienError, match=f"no usable row in 'test': all 1 are malformed.*({reason})"):
        CIFAR10(str(tmp_path)).rows("test")
    assert {path.name for path in tmp_path.iterdir()} == {"test_batch"}
