"""mien data: what is told of sets in the layouts in which they are published, and the shards that are made of them."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import test_ferplus_csv
from PIL import Image
from sets import (
    draw,
    write_affectnet,
    write_affectnet_2017,
    write_affwild2,
    write_cifar10,
    write_expw,
    write_rafdb,
    write_sfew,
)

from mien.__main__ import main
from mien.data import DataSet, Parquet, open_dataset
from mien.faces import ARCFACE112, YuNet, align, open_picture
from mien.faces.align import similarity
from mien.files import alone

HOPPER = Path(__file__).parents[1] / "examples" / "hopper.jpg"


@pytest.fixture
def mien(capfd, tmp_path, monkeypatch):
    """Run `mien data` in a folder of its own: exit code, stdout, stderr."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*words):
        try:
            code = main(["data", *map(str, words)])
        except SystemExit as end:
            code = end.code
        return code, *capfd.readouterr()

    return run


def write_folder(root: Path, count: int = 6) -> Path:
    for i in range(count):
        draw(root / f"train/{('fear', 'happy')[i % 2]}/{i:03}.png", 2 * i)
        draw(root / f"val/{('fear', 'happy')[i % 2]}/{i:03}.png", 2 * i + 1)
    return root


def write_parquet(root: Path) -> Path:
    def png(grey: int) -> bytes:
        file = io.BytesIO()
        Image.new("L", (8, 8), grey).save(file, "PNG")
        return file.getvalue()

    rows = {"image": [png(9 * i) for i in range(4)], "label": ["fear", "anger"] * 2, "split": ["train"] * 3 + ["test"]}
    root.mkdir()
    pq.write_table(pa.table(rows), root / "all.parquet")
    return root


def write_ferplus(root: Path) -> Path:
    root.mkdir()
    return test_ferplus_csv.write(root)


def write_cifar(root: Path) -> Path:
    root.mkdir()
    write_cifar10(root, "bin")
    return root


# what writes it, its name, the rows of its splits, and how many pictures two splits share
SETS = {
    "rafdb": (write_rafdb, "rafdb", {"train": 7, "test": 7}, 0),
    "affectnet2017": (write_affectnet_2017, "affectnet", {"train": 8, "validation": 8}, 8),
    "affectnet": (write_affectnet, "affectnet", {"train": 8, "validation": 8}, 8),
    "ferplus": (write_ferplus, "ferplus", {"train": 4, "validation": 3, "test": 2}, 0),
    "sfew": (write_sfew, "sfew", {"train": 7, "validation": 7}, 0),
    "expw": (write_expw, "expw", {"train": 30, "validation": 4, "test": 6}, 0),
    "affwild2": (write_affwild2, "affwild2", {"train": 5, "validation": 1}, 0),
    "cifar10": (write_cifar, "cifar10", {"train": 10, "test": 2}, 0),
    "folder": (write_folder, "folder", {"train": 6, "validation": 6}, 0),
    "parquet": (write_parquet, "parquet", {"train": 3, "test": 1}, 0),
}


@pytest.mark.parametrize("name", SETS)
def test_check_knows_every_set(name, tmp_path, mien):
    make, format, sizes, shared = SETS[name]
    root = make(tmp_path / "set")
    code, out, err = mien("check", format, root, "--json", "--workers", 3)
    told = json.loads(out)
    assert (code, told["wrong"], err) == ((1, True, "") if shared else (0, False, ""))
    assert {split: facts["rows"] for split, facts in told["splits"].items()} == sizes
    assert [problem["kind"] for problem in told["problems"]] == ["shared"] * shared
    data = open_dataset(root, format)
    for split, facts in told["splits"].items():
        assert facts["classes"] == dict(zip(data.labels, data.class_counts(split).tolist(), strict=True))
        assert list(facts["published"].values()) == list(data.published.get(split, ()))
    assert ("published" in " ".join(told["warnings"])) == (format not in ("folder", "parquet", "affwild2"))
    shown = {label for facts in told["splits"].values() for label, count in facts["classes"].items() if count}
    assert told["contact_sheets"] == [f"out/data/{format}-{label}.png" for label in data.labels if label in shown]
    assert mien("check", format, root, "--strict")[0] == (1 if shared or told["warnings"] else 0)


def test_check_tells_all_that_is_wrong_at_once(tmp_path, mien):
    root = write_rafdb(tmp_path / "set")
    pictures, at = root / "Image/aligned", f"{root}/EmoLabel/list_patition_label.txt"
    (pictures / "train_00003_aligned.png").unlink()
    (pictures / "test_00004_aligned.png").write_bytes(b"\x89PNG\r\n")
    shutil.copy(pictures / "train_00002_aligned.png", pictures / "test_00005_aligned.png")
    shutil.copy(pictures / "train_00001_aligned.png", pictures / "train_00006_aligned.png")
    with open(at, "a") as more:
        more.write("train_00001.png 2\ntrain_00009.png 8\ntrain_00010.png\n")
    code, out, err = mien("check", "rafdb", root)
    assert (code, err) == (1, "")
    problems, _, rest = out.partition("\nwarning: ")
    assert problems.splitlines() == [
        f"{at}:15: train_00001.png is listed already: {at}:1",
        f"{at}:16: label '8' is not a number from 1 to 7",
        f"{at}:17: 'train_00010.png' is not the name of a picture and its label",
        f"{at}:5: train_00003.png: no such file",
        f"{at}:8: test_00004_aligned.png: not a picture",
        f"{at}:10: test_00005_aligned.png: the same picture as {at}:3: train_00002_aligned.png, which is in 'train'",
    ]
    assert "'train' is not as published: 1 of surprise instead of 1,290" in rest
    assert "warning: 1 rows of 'train' show the picture of an earlier one, 1 of them under another label\n" in rest
    assert "warning: 'test' shows no happiness\n" in rest
    table = {line.split()[0]: line.split()[1:] for line in rest.splitlines()[-14:] if line}
    assert table["train"] == ["test"] and table["surprise"] == ["1", "1"] and table["happiness"] == ["1", "0"]
    assert table["all"] == ["6", "6"] and table["left"] == ["out", "4", "1"]
    assert rest.endswith(f"{root}: 6 problems\ncontact sheets: out/data/rafdb-surprise.png and 6 more\n")
    told = json.loads(mien("check", "rafdb", root, "--json")[1])
    assert [(problem["kind"], problem["file"], problem["line"]) for problem in told["problems"]] == [
        *(("row", at, line) for line in (15, 16, 17)),
        *(("picture", at, line) for line in (5, 8)),
        ("shared", at, 10),
    ]
    [again] = told["splits"]["train"]["repeated"]
    assert again["where"].endswith("train_00006_aligned.png") and again["same_label"] is False


def test_check_tells_of_boxes_people_and_files(tmp_path, mien):
    root = write_expw(tmp_path / "expw")
    with (root / "label/label.lst").open("a") as more:
        more.write("face_2.png 2 25 4 16 38 60.5 3\n")  # below the picture
    _, out, _ = mien("check", "expw", root)
    assert "label.lst:41: face_2.png: the box 4, 25, 12×13 is outside the picture, 40×20" in out
    assert "warning: its list is not as published: 3 of anger instead of 3,671" in out
    shares = write_affwild2(tmp_path / "affwild2")
    for folder in ("annotations/EXPR_Set/Validation_Set/3.txt", "annotations/EXPR_Set/Train_Set/3.txt"):
        (shares / folder).write_text("Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise\n4\n")
    (shares / "cropped_aligned/3/00002.png").unlink()
    (shares / "cropped_aligned/3/00004.png").unlink()
    (shares / "cropped_aligned/3/00005.png").unlink()
    code, out, _ = mien("check", "affwild2", shares)
    assert code == 1 and "the same picture as" in out
    assert "warning: 1 subjects of 'validation' are in 'train', too, such as '3'" in out
    (tmp_path / "cifar").mkdir()
    cifar = write_cifar10(tmp_path / "cifar", "bin")
    (cifar / "test_batch.bin").write_bytes(b"")
    code, out, _ = mien("check", "cifar10", cifar)
    assert code == 1 and "no usable row in 'test'" in out and "test_batch.bin: 0 bytes" in out


def test_a_contact_sheet_shows_each_split(tmp_path, mien):
    root = write_folder(tmp_path / "set", 60)
    assert mien("check", "folder", root, "--out", tmp_path / "sheets")[0] == 0
    assert sorted(path.name for path in (tmp_path / "sheets").iterdir()) == ["folder-fear.png", "folder-happiness.png"]
    sheet = np.array(Image.open(tmp_path / "sheets/folder-fear.png"))
    greys = set(np.unique(sheet[(sheet == sheet[..., :1]).all(2)][:, 0]).tolist())
    assert {0, 116, 1, 117} <= greys  # the first and the last of either split
    assert sheet.shape == (24 * 3 + 4 * 84 + 4, 12 * 84 + 4, 3)


@pytest.mark.parametrize(
    "words, code, reason",
    [
        (["check", "rafbd", "."], 2, "rafbd: none of folder, parquet"),
        (["check", "rafdb"], 2, "required: ROOT"),
        ([], 2, "required: TASK"),
        (["check", "rafdb", ".", "--workers", "0"], 2, "not a whole number"),
        (["check", "folder", ".", "--out", "file"], 2, "file: not a folder"),
        (["check", "folder", ".", "--set", "labels"], 2, "labels: not NAME=VALUE"),
        (["prepare", "folder", ".", "file"], 2, "file: not a folder"),
        (["prepare", "folder", ".", "inside"], 2, "inside is in ., which is to be read"),
        (["check", "rafdb", "gone"], 1, "mien: gone: no such folder"),
        (["check", "affectnet", ".", "--set", "classes=9"], 1, "AffectNet has 7 or 8 classes, not 9"),
        (["check", "folder", "set", "--set", "labels=5"], 1, "set: Folder cannot be opened with labels=5: "),
        (["check", "folder", "set", "--set", "labels=[1, 2]"], 1, "set: Folder cannot be opened with labels=[1, 2]: "),
        (["check", "folder", ".", "--set", "colour=1"], 1, "Folder has no option 'colour'; its options: labels, check"),
        (["prepare", "folder", "..", "x"], 2, "x is in .., which is to be read"),
    ],
)
def test_misuse(words, code, reason, mien):
    Path("file").write_text("")
    write_folder(Path("set"), 4)
    got, _, err = mien(*words)
    assert got == code and reason in err.splitlines()[-1]


# prepare


def same_rows(prepared: DataSet, data: DataSet) -> None:
    assert (prepared.labels, prepared.units, set(prepared.splits)) == (data.labels, data.units, set(data.splits))
    for split in data.splits:
        assert len(prepared.rows(split)) == len(data.rows(split))
        for one, other in zip(prepared.rows(split), data.rows(split), strict=True):
            assert (one.label, one.subject, one.split) == (other.label, other.subject, other.split)
            np.testing.assert_array_equal(one.target, other.target)
            np.testing.assert_array_equal(one.units, other.units)
            assert one.image().shape == (16, 16, 3)
            assert abs(one.image().mean() - other.image().mean()) < 2


@pytest.mark.parametrize("name", SETS)
def test_prepared_rows_are_those_of_the_set(name, tmp_path, mien):
    make, format, sizes, _ = SETS[name]
    root = make(tmp_path / "set")
    units = {"action_units": True} if name == "affwild2" else {}
    more = ["--set", "action_units=true"] if units else []
    code, out, err = mien("prepare", format, root, "faces", "--align", "as-is", "--size", 16, "--shard-size", 3, *more)
    assert (code, err) == (0, "") or "published" in err
    data, prepared = open_dataset(root, format, **units), open_dataset("faces")
    assert isinstance(prepared, Parquet)
    same_rows(prepared, data)
    if not units:
        assert {split: len(prepared.rows(split)) for split in prepared.splits} == sizes
    assert f"faces: {sum(len(data.rows(split)) for split in data.splits)} faces (" in out
    if name == "ferplus":
        assert any(0 < row.target.max() < 1 for row in prepared.rows("train"))


def test_faces_are_found_and_aligned(tmp_path, mien):
    for split in ("train", "val"):
        (tmp_path / f"set/{split}/neutral").mkdir(parents=True)
        shutil.copy(HOPPER, tmp_path / f"set/{split}/neutral/a.jpg")
    draw(tmp_path / "set/train/neutral/none.png", 77, (60, 40))
    code, out, _ = mien("prepare", "folder", tmp_path / "set", "faces")
    assert code == 0
    assert out == (
        "faces: 3 faces (train 2, validation 1)\n1 were not found, and are as they were: the column `note` says so\n"
    )
    one, none = pq.read_table("faces/train-00000-of-00001.parquet").to_pylist()
    landmarks = np.array(one["landmarks"], np.float32).reshape(5, 2)
    picture = open_picture(HOPPER)
    [face] = YuNet(min_face=0)(picture)
    np.testing.assert_allclose(landmarks, face.landmarks, atol=1e-3)
    np.testing.assert_array_equal(open_picture(one["image"]["bytes"]), align(picture, landmarks))
    matrix = similarity(landmarks)
    assert np.abs(landmarks @ matrix[:, :2].T + matrix[:, 2] - ARCFACE112).max() < 6
    assert (one["source"], one["note"]) == ("train/neutral/a.jpg", None)
    assert (none["note"], none["landmarks"], none["box"]) == ("no face found: as it is", None, None)
    assert len(open_dataset("faces").rows("train")) == 2
    assert len(open_dataset("faces", drop=["note"]).rows("train")) == 1


def test_of_two_faces_the_one_in_the_box(tmp_path, mien):
    """ExpW's layout: top, left, right, bottom."""
    hopper = Image.open(HOPPER)
    [face] = YuNet(min_face=0)(np.asarray(hopper))
    left, top, width, height = map(round, face.box)
    both = Image.new("RGB", (2 * hopper.width, hopper.height))
    both.paste(hopper, (0, 0))
    both.paste(hopper, (hopper.width, 0))
    (tmp_path / "set/image/origin").mkdir(parents=True)
    both.save(tmp_path / "set/image/origin/both.png")
    (tmp_path / "set/label").mkdir()
    lines = [
        f"both.png {i} {top} {x} {x + width} {top + height} 60.5 6\n" for i, x in enumerate((left, left + hopper.width))
    ]
    lines.append("both.png 2 0 0 20 20 60.5 6\n")  # nobody is there
    (tmp_path / "set/label/label.lst").write_text("".join(lines))
    assert mien("prepare", "expw", tmp_path / "set", "faces")[0] == 0
    rows = [row for file in Path("faces").glob("*.parquet") for row in pq.read_table(file).to_pylist()]
    for row, shift in zip(rows[:2], (0, hopper.width), strict=True):
        found = np.array(row["landmarks"]).reshape(5, 2) - (shift, 0)
        assert np.abs(found - face.landmarks).max() < 0.1 * width
    assert rows[2]["landmarks"] is None and rows[2]["note"] == "no face found: as it is"


def test_rows_that_cannot_be_used_are_told(tmp_path, mien):
    root = write_rafdb(tmp_path / "set")
    (root / "Image/aligned/train_00003_aligned.png").unlink()
    with (root / "EmoLabel/list_patition_label.txt").open("a") as more:
        more.write("train_00009.png 8\nx.png\n")
    arguments = ("prepare", "rafdb", root, "faces", "--align", "as-is", "--encoding", "jpeg")
    for _ in range(2):  # whether the files are made or are there
        code, out, _ = mien(*arguments)
        assert code == 1 and "faces: 13 faces (train 6, test 7)\n3 rows left out, of which faces/left_out.jsonl" in out
    told = [json.loads(line) for line in Path("faces/left_out.jsonl").read_text().splitlines()]
    assert sorted(line["where"].partition("label.txt:")[2] for line in told) == ["15", "16", "5: train_00003.png"]
    assert open_dataset("faces").rows("test")[0].source.startswith(b"\xff\xd8")


def test_groups_are_kept(tmp_path, mien):
    root = write_parquet(tmp_path / "set")
    table = pq.read_table(root / "all.parquet").append_column("sex", pa.array(["f", "m", None, "f"]))
    pq.write_table(table, root / "all.parquet")
    assert mien("prepare", "parquet", root, "faces", "--align", "as-is", "--set", 'groups=["sex"]')[0] == 0
    rows = open_dataset("faces", groups=["sex"]).rows("train")
    assert [row.groups for row in rows] == [{"sex": "f"}, {"sex": "m"}, {}]


def test_prepared_faces_go_into_training(tmp_path, mien):
    from mien.training.faces import FaceData

    root = write_folder(tmp_path / "set")
    assert mien("prepare", "folder", root, "faces", "--align", "as-is")[0] == 0
    faces = FaceData(open_dataset("faces"), batch_size=4, aligned=0.0)
    faces.setup()
    images, targets, labels = faces.train_faces[1]
    assert images.shape == (112, 112, 3)
    assert targets.tolist() in ([0, 1], [1, 0]) and labels == targets.argmax()


# a run that is killed

KILLED = """
import os, signal, sys
import mien.data.prepare as prepare
from mien.__main__ import main
left = int(sys.argv[2])
name = sys.argv[1]
whole = getattr(prepare, name)
def until(*arguments, **options):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*arguments, **options)
if name == "whole":  # in the middle of a file
    from contextlib import contextmanager
    @contextmanager
    def until(path):
        global left
        left -= 1
        with whole(path) as file:
            yield file
            if left < 0:
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
setattr(prepare, name, until)
main(["data", *sys.argv[3:]])
"""


@pytest.mark.parametrize("where, after, there", [("_encode", 6, 1), ("_write", 3, 3), ("whole", 4, 3), ("whole", 0, 0)])
def test_a_killed_run_goes_on_and_loses_nothing(where, after, there, tmp_path, mien):
    root = write_folder(tmp_path / "set", 8)
    (root / "train/fear/bad.png").write_bytes(b"x")
    words = ("prepare", "folder", root, "faces", "--align", "as-is", "--shard-size", 4, "--workers", 1)
    run = subprocess.run([sys.executable, "-c", KILLED, where, str(after), *map(str, words)])
    assert run.returncode == -signal.SIGKILL
    assert len(list(Path("faces").glob("*.parquet"))) == there
    assert len(list(Path("faces").glob(".*.part"))) == (where == "whole")
    made = {path.name: path.stat().st_mtime_ns for path in Path("faces").glob("*.parquet")}
    assert mien(*words)[0] == 1
    assert all(Path("faces", name).stat().st_mtime_ns == time for name, time in made.items())  # not made again
    assert mien(*["uncut" if word == "faces" else word for word in words[:-1]], 4)[0] == 1
    assert sorted(os.listdir("faces")) == sorted(os.listdir("uncut"))
    for name in os.listdir("uncut"):
        assert Path("faces", name).read_bytes() == Path("uncut", name).read_bytes(), name
    assert len(open_dataset("faces").rows("train")) == 8


def test_other_options_and_other_data_are_refused(tmp_path, mien):
    root = write_folder(tmp_path / "set")
    words = ("prepare", "folder", root, "faces", "--align", "as-is")
    assert mien(*words)[0] == 0
    assert mien(*words) == (0, "faces: 12 faces (train 6, validation 6)\n", "")
    code, _, err = mien(*words, "--size", 96)
    assert code == 1 and "'size': 112" in err and "'size': 96" in err
    shard = Path("faces/train-00000-of-00001.parquet")
    data = shard.read_bytes()
    shard.write_bytes(data[:100])
    assert f"{shard}: damaged; remove it, and run again" in mien(*words)[2]
    shard.unlink()
    assert mien(*words)[0] == 0 and shard.read_bytes() == data
    with alone("faces"):
        assert mien(*words)[::2] == (1, "mien: faces: another run is at work there\n")
    draw(root / "val/fear/000.png", 200)
    assert "faces: the rows are not those that it was begun with" in mien(*words)[2]
    Path("other").mkdir()
    Path("other/thing").write_text("")
    assert "other: thing is there, and no manifest.json" in mien("prepare", "folder", root, "other")[2]
    assert os.listdir("other") == ["thing"]
