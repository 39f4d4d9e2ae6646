import io
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mien.data import FERPlus, Folder, Parquet, Row, open_dataset
from mien.errors import MienError, ReadError
from mien.labels import EXPRESSIONS, ORDERS

SHARED = Path(os.environ.get("MIEN_SHARED", Path(__file__).parents[2] / "shared"))
FER = SHARED / "data/fer2013plus/train_validation.parquet"
FILE_ORDER = [*ORDERS["ferplus"], "unknown", "not_a_face"]


def png(value: int, side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("L", (side, side), value).save(file, "png")
    return file.getvalue()


def tree(root: Path, names: dict[str, bytes]) -> Path:
    for name, data in names.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def table(path: Path, rows: list[dict], **types: pa.DataType) -> str:
    columns = {name: pa.array([row.get(name) for row in rows], types.get(name)) for name in rows[0]}
    pq.write_table(pa.table(columns), path)
    return str(path)


def votes(image: bytes | None, split: str = "train", twin: bool = False, **counts: int) -> dict:
    row = {"image": image, "split": split} | {name: counts.get(name, 0) for name in FILE_ORDER}
    return row | {"duplicate_of_validation": twin}


def test_row_defaults_to_the_first_largest_share():
    row = Row(png(7), np.array([0.2, 0.4, 0.4], np.float32), "train")
    assert row.label == 1
    assert row.image().shape == (8, 8, 3)
    assert (row.image() == 7).all()


def test_row_names_itself_when_its_picture_is_bad():
    with pytest.raises(ReadError, match="^table row 3: "):
        Row(b"nothing", np.ones(1, np.float32), "train", name="table row 3").image()


def test_folder_knows_other_spellings(tmp_path):
    names = {
        "train/Happy/a.png": png(1),
        "train/sad/b.png": png(2),
        "val/SURPRISED/c.png": png(3),
        "val/sad/d.PNG": png(4),
    }
    names |= {"val/sad/notes.txt": b"x", "val/sad/.e.png": b"x", ".git/sad/f.png": b"x"}
    data = Folder(str(tree(tmp_path, names)))
    assert data.labels == ("happiness", "sadness", "surprise")
    assert sorted(data.splits) == ["train", "validation"]
    assert [Path(row.source).name for row in data.rows("val")] == ["c.png", "d.PNG"]
    assert data.class_counts("validation").tolist() == [0, 1, 1]
    assert data.rows("train")[0].target.tolist() == [1, 0, 0]
    assert data.findings["validation"].malformed == []


@pytest.mark.parametrize("first", [0, 1])
def test_folder_numbers_follow_the_order_that_is_given(tmp_path, first):
    tree(tmp_path, {f"train/{i + first}/{i}.png": png(i) for i in range(7)})
    with pytest.raises(MienError, match="numbered.*say labels"):
        Folder(str(tmp_path))
    data = Folder(str(tmp_path), labels="rafdb")
    assert data.labels == ORDERS["rafdb"]
    assert [(row.label, int(row.image()[0, 0, 0])) for row in data.rows("train")] == [(i, i) for i in range(7)]


def test_folder_without_splits_is_one(tmp_path):
    data = Folder(str(tree(tmp_path, {"fear/a.png": png(1), "anger/deep/b.png": png(2)})))
    assert data.splits == ("all",)
    assert [data.labels[row.label] for row in data.rows("all")] == ["anger", "fear"]


def test_folder_leaves_out_what_is_malformed_and_says_so(tmp_path, caplog):
    whole = png(9, 64)
    names = {"fear/a.png": whole, "fear/cut.png": whole[:-30], "fear/empty.png": b""}
    names |= {f"hapiness/{i}.png": whole for i in range(5)}
    tree(tmp_path, {f"train/{name}": data for name, data in names.items()})
    (tmp_path / "train/fear/gone.png").symlink_to("nowhere")
    data = Folder(str(tmp_path), labels=["fear", "happiness"])
    assert [Path(row.source).name for row in data.rows("train")] == ["a.png"]
    data.rows("train")  # told once
    told = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    for name, reason in {
        "fear/cut.png": "damaged or cut short",
        "fear/empty.png": "empty",
        "fear/gone.png": "no such file",
        "hapiness": "'hapiness' is none of fear, happiness: is 'happiness' meant?: 5 pictures left out",
    }.items():
        assert sum(f"/{name}: " in line and reason in line for line in told) == 1, told
    assert len(told) == 5  # a folder is told of once
    assert told[-1].endswith("8 malformed of 9 rows left out of 'train'")


def test_all_rows_bad_is_an_error(tmp_path):
    data = Folder(str(tree(tmp_path, {"train/fear/a.png": b"x", "train/fear/b.png": b""})))
    with pytest.raises(MienError, match="all 2 are malformed, the first: .*a.png"):
        data.rows("train")
    with pytest.raises(MienError, match="no split 'test', only train"):
        data.rows("test")


@pytest.mark.parametrize("names", [{}, {"a.png": b"x"}, {"train/a.txt": b"x"}])
def test_what_is_no_tree_is_an_error(tmp_path, names):
    with pytest.raises(MienError):
        Folder(str(tree(tmp_path, names)))
    with pytest.raises(MienError, match="no such folder"):
        Folder(str(tmp_path / "nowhere"))


def test_repeated_pictures_are_counted(tmp_path, caplog):
    names = {
        "train/fear/a.png": png(1),
        "train/fear/b.png": png(1),
        "train/anger/c.png": png(2),
        "val/fear/d.png": png(1),
    }
    data = Folder(str(tree(tmp_path, names)))
    assert len(data.rows("train")) == 3
    assert len(data.rows("validation")) == 1
    assert data.findings["train"].repeated == 1
    assert data.findings["validation"].shared == {"train": 1}
    assert "1 rows of 'validation' show a picture that is in 'train', too" in caplog.text


def test_without_check_nothing_is_decoded(tmp_path):
    data = Folder(str(tree(tmp_path, {"train/fear/a.png": b"x"})), check=False)
    with pytest.raises(ReadError):
        data.rows("train")[0].image()


def test_ferplus_rule(tmp_path, caplog):
    rows = [
        votes(png(0), surprise=4, sadness=4, neutral=2),  # a tie: the file has surprise first, EXPRESSIONS sadness
        votes(png(1), unknown=5, neutral=4, fear=1),
        votes(png(2), not_a_face=4, neutral=4, fear=2),  # a tie: neutral comes first
        votes(png(3), twin=True, fear=10),
        votes(png(4)),
        votes(None, fear=9),
        votes(b"no picture", fear=9),
        votes(png(5), "validation", anger=8, fear=1, unknown=1),
    ]
    path = table(tmp_path / "fer.parquet", rows)
    data = FERPlus(path)
    assert data.labels == EXPRESSIONS
    first, third = data.rows("train")
    assert data.labels[first.label] == "surprise"
    assert data.labels[third.label] == "neutral"
    assert third.target == pytest.approx([4 / 6, 0, 0, 0, 2 / 6, 0, 0, 0])
    assert third.target.dtype == np.float32
    reasons = {"row 4": "no votes", "row 5": "no picture", "row 6": "not a picture"}
    assert [str(error) for error in data.findings["train"].malformed] == [
        f"{path} {row}: {reason}" for row, reason in reasons.items()
    ]
    assert "3 malformed of 5 rows" in caplog.text
    (row,) = FERPlus(path, min_votes=2).rows("validation")
    assert row.target.tolist() == np.eye(8)[EXPRESSIONS.index("anger")].tolist()
    assert isinstance(open_dataset(path), FERPlus)


def test_cleaning_never_takes_the_last_vote(tmp_path):
    path = table(tmp_path / "a.parquet", [votes(png(0), fear=1, anger=1)])
    (row,) = FERPlus(path, min_votes=2).rows("train")
    assert row.target[[EXPRESSIONS.index("fear"), EXPRESSIONS.index("anger")]].tolist() == [0.5, 0.5]


def test_votes_that_are_no_counts_are_malformed(tmp_path):
    rows = [
        {"image": png(i), "split": "train", "fear": fear, "Happy": 2.0}
        for i, fear in enumerate((1.0, -1.0, np.nan, None))
    ]
    data = Parquet(table(tmp_path / "a.parquet", rows))
    assert data.labels == ("happiness", "fear")
    assert [row.target.tolist() for row in data.rows("train")] == [pytest.approx([2 / 3, 1 / 3]), [1, 0]]
    assert len(data.findings["train"].malformed) == 2


def test_parquet_of_names(tmp_path):
    rows = [{"image": png(i), "emotion": name, "who": i} for i, name in enumerate(("happy", "Anger", "bored", None))]
    path = table(tmp_path / "test-00000-of-00001.parquet", rows)
    assert Parquet(path).labels == ("Anger", "bored", "happy")  # the classes are what the column says
    data = Parquet(path, subject="who", labels=["happiness", "anger"])
    assert (data.labels, data.splits) == (("happiness", "anger"), ("test",))
    assert [(row.label, row.subject) for row in data.rows("test")] == [(0, "0"), (1, "1")]
    assert [error.reason for error in data.findings["test"].malformed] == [
        "label 'bored' is none of happiness, anger",
        "no label",
    ]


def test_parquet_of_numbers(tmp_path):
    path = table(tmp_path / "a.parquet", [{"image": png(i), "label": i, "split": "train"} for i in range(9)])
    with pytest.raises(MienError, match="say labels"):
        Parquet(path)
    data = Parquet(path, labels="rafdb", first=1)
    assert [row.label for row in data.rows("train")] == list(range(7))
    assert len(data.findings["train"].malformed) == 2


def test_parquet_as_on_the_hub(tmp_path):
    tree(tmp_path, {"beside.png": png(7)})
    pictures = [{"bytes": png(5), "path": None}, {"bytes": None, "path": "beside.png"}, {"bytes": None, "path": None}]
    features = '{"info": {"features": {"label": {"names": ["fear", "joy"], "_type": "ClassLabel"}}}}'
    columns = pa.table({"image": pictures, "label": [1, 0, 0]}).replace_schema_metadata({"huggingface": features})
    for name in ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet"):
        pq.write_table(columns, tmp_path / name)
    data = open_dataset(tmp_path)
    assert (data.labels, data.splits) == (("fear", "happiness"), ("train",))
    assert [int(row.image()[0, 0, 0]) for row in data.rows("train")] == [5, 7, 5, 7]
    assert len(data.findings["train"].malformed) == 2


def test_parquet_that_cannot_be_told_is_an_error(tmp_path):
    path = table(tmp_path / "a.parquet", [{"image": png(1), "x": 1}])
    (tmp_path / "b.parquet").write_bytes(b"PAR1 not really PAR1")
    for call, reason in [
        (lambda: Parquet(path), "say which are votes"),
        (lambda: Parquet(path, label="y"), "no column 'y'"),
        (lambda: Parquet(path, label="x", labels="nobody"), "no order of labels"),
        (lambda: Parquet(path, label="x", labels=["fear", "Fear"]), "each class once"),
        (lambda: Parquet(path, label="x", votes=["x"]), "not both"),
        (lambda: Parquet(str(tmp_path / "b.parquet")), "not a parquet file"),
        (lambda: Parquet(str(tmp_path / "c.parquet")), "no such file"),
        (lambda: open_dataset(tmp_path / "b.parquet"), "not a parquet file"),
        (lambda: open_dataset(path, "ferplus"), "no column"),
        (lambda: open_dataset(path, "ferplus", labels="rafdb"), "labels"),
        (lambda: open_dataset(path, "mien.data.Nothing"), "no reader"),
        (lambda: open_dataset(path, "mien.labels.ORDERS"), "no reader"),
    ]:
        with pytest.raises(MienError, match=reason) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_rows_are_the_same_after_pickling(tmp_path):
    data = FERPlus(table(tmp_path / "fer.parquet", [votes(png(3), fear=3), votes(png(4), anger=3)]))
    rows = pickle.loads(pickle.dumps(data.rows("train")))
    assert [row.label for row in rows] == [row.label for row in data.rows("train")]
    assert pickle.loads(pickle.dumps(data)).rows("train")[1].image()[0, 0, 0] == 4


def test_importing_brings_in_neither_torch_nor_a_table_library():
    code = "import mien.data, sys; print({'torch', 'pandas', 'pyarrow'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


@pytest.mark.skipif(not FER.exists(), reason="FER2013 with FER+'s votes is not beside the checkout")
def test_the_real_ferplus():
    data = open_dataset(FER)
    assert isinstance(data, FERPlus)
    order = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
    sizes = {
        "train": (10201, 7451, 3288, 3438, 2377, 165, 624, 157),
        "validation": (1326, 891, 436, 408, 316, 34, 74, 24),
    }
    for split, size in sizes.items():
        counts = dict(zip(data.labels, data.class_counts(split).tolist(), strict=True))
        assert counts == dict(zip(order, size, strict=True))
        assert data.findings[split].malformed == []
    assert len(data.rows("train")) == 27_701
    assert len(data.rows("validation")) == 3_509
    assert data.findings["validation"].shared == {}
    raw = pq.read_table(FER, columns=FILE_ORDER, filters=[("split", "==", "validation")])
    counts = np.stack([raw[name].to_numpy() for name in FILE_ORDER], axis=1)
    counts = counts[counts.argmax(1) < 8]
    assert np.sum(np.sum(counts == counts.max(1, keepdims=True), axis=1) > 1) == 157  # ties
    for row, count in zip(data.rows("validation"), counts, strict=True):
        assert data.labels[row.label] == FILE_ORDER[count.argmax()]
        shares = dict(zip(FILE_ORDER, count / count[:8].sum(), strict=True))
        assert row.target == pytest.approx([shares[label] for label in EXPRESSIONS])
