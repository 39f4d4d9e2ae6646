import csv
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mien.data import FERPlus, open_dataset
from mien.data.votes import judge
from mien.errors import MienError

VOTES = "neutral happiness surprise sadness anger disgust fear contempt unknown NF".split()
USAGES = ["Training"] * 6 + ["PublicTest"] * 3 + ["PrivateTest"] * 2


def faces() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (48, 48), np.uint8) for _ in USAGES]
    pictures[2] = pictures[7]  # a training picture that is in the validation split, too
    return pictures


def png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def votes() -> np.ndarray:
    counts = np.random.default_rng(1).multinomial(10, np.full(10, 0.1), len(USAGES))
    counts[:, 8:] = 0
    counts[1] = [0, 0, 1, 0, 0, 0, 0, 0, 9, 0]  # unknown
    counts[4] = [3, 3, 1, 1, 1, 1, 0, 0, 0, 0]  # a tie
    counts[5] = [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]  # nothing but single votes
    return counts


def write(folder, spaced: bool = False, change=lambda number, face, vote: None):
    gap = " " if spaced else ""
    with (
        (folder / "fer2013.csv").open("w", newline="") as one,
        (folder / "fer2013new.csv").open("w", newline="") as two,
    ):
        pixels, labels = csv.writer(one), csv.writer(two)
        pixels.writerow(["emotion", gap + "Usage", gap + "pixels"])
        labels.writerow(["Usage", "Image name", *VOTES])
        for i, (usage, picture, counts) in enumerate(zip(USAGES, faces(), votes(), strict=True)):
            face = ["0", usage, " ".join(map(str, picture.ravel()))]
            vote = [usage, f"fer{i:07}.png", *map(str, counts)]
            change(i, face, vote)
            pixels.writerow(face)
            labels.writerow(vote)
    return folder


@pytest.mark.parametrize("min_votes", [1, 2])
@pytest.mark.parametrize("spaced", [False, True])
def test_rows_are_those_of_the_parquet(tmp_path, min_votes, spaced):
    table = {
        "image": [png(face) for face in faces()],
        "split": [{"Training": "train", "PublicTest": "validation", "PrivateTest": "test"}[usage] for usage in USAGES],
        **dict(zip([*VOTES[:9], "not_a_face"], votes().T.tolist(), strict=True)),
        "duplicate_of_validation": [i == 2 for i in range(len(USAGES))],
    }
    pq.write_table(pa.table(table), tmp_path / "faces.parquet")
    theirs = FERPlus(str(tmp_path / "faces.parquet"), min_votes=min_votes)
    ours = FERPlus(str(write(tmp_path, spaced)), min_votes=min_votes)
    for split, count in (("train", 4), ("validation", 3), ("test", 2)):
        assert len(ours.rows(split)) == len(theirs.rows(split)) == count
        for mine, other in zip(ours.rows(split), theirs.rows(split), strict=True):
            assert mine.label == other.label
            np.testing.assert_array_equal(mine.target, other.target)
            np.testing.assert_array_equal(mine.image(), other.image())


def test_a_folder_of_its_files_is_recognised(tmp_path):
    assert isinstance(open_dataset(write(tmp_path)), FERPlus)


def test_malformed_lines_are_told_by_file_and_line(tmp_path):
    def spoil(number, face, vote):
        if number == 0:
            face[2] = "1 2 3"
        if number == 3:
            vote[3] = "-1"
        if number == 4:
            face[2] = face[2].replace(" ", " x", 1)
        if number == 5:
            vote[0] = "PublicTest"
        if number == 7:
            vote[1] = "fer0000006.png"

    data = FERPlus(str(write(tmp_path, change=spoil)))
    with pytest.raises(MienError, match="no usable row in 'train': all 4 are malformed"):
        data.rows("train")
    assert [str(error).removeprefix(f"{tmp_path}/") for error in data.findings["train"].malformed] == [
        "fer2013.csv line 2: 3 pixels instead of 48×48",
        "fer2013new.csv line 5: votes that are no counts",
        "fer2013.csv line 6: pixels that are no numbers",
        "fer2013new.csv line 7: is of another picture than fer2013.csv",
    ]
    assert len(data.rows("validation")) == 2
    [error] = data.findings["validation"].malformed
    assert str(error) == f"{tmp_path}/fer2013new.csv line 9: fer0000006.png is listed already: line 8"


def test_lines_that_end_early_are_told(tmp_path):
    def cut(number, face, vote):
        if number == 7:
            del vote[5:]
        if number == 8:
            del face[2:]

    data = FERPlus(str(write(tmp_path, change=cut)))
    assert len(data.rows("validation")) == 1
    assert [str(error).removeprefix(f"{tmp_path}/") for error in data.findings["validation"].malformed] == [
        "fer2013new.csv line 9: the line ends before its last vote",
        "fer2013.csv line 10: 0 pixels instead of 48×48",
    ]


def test_what_is_no_table_is_refused(tmp_path):
    write(tmp_path)
    votes, pixels = tmp_path / "fer2013new.csv", tmp_path / "fer2013.csv"
    votes.write_text("\ufeff" + votes.read_text())
    assert len(FERPlus(str(tmp_path)).rows("test")) == 2  # as Excel saves it
    pixels.write_bytes(b"\x89PNG\r\n")
    with pytest.raises(MienError, match="fer2013.csv or fer2013new.csv is no table"):
        FERPlus(str(tmp_path)).rows("test")


def test_what_is_not_the_set_is_refused(tmp_path):
    with pytest.raises(MienError, match="fer2013.csv: no such file"):
        FERPlus(str(tmp_path))
    write(tmp_path)
    text = (tmp_path / "fer2013new.csv").read_text()
    (tmp_path / "fer2013new.csv").write_text(text.replace("contempt", "scorned"))
    with pytest.raises(MienError, match="fer2013new.csv: no column 'contempt'"):
        FERPlus(str(tmp_path)).rows("test")
    (tmp_path / "fer2013new.csv").write_text(text + "Training,a.png" + ",1" * 10 + "\n")
    with pytest.raises(MienError, match="more lines than fer2013.csv"):
        FERPlus(str(tmp_path)).rows("test")


@pytest.mark.parametrize(
    "counts, majority, probability",
    [
        ([6, 4, 0, 0, 0, 0, 0, 0, 0, 0], ["neutral", 1.0], ["neutral", 0.6]),
        ([5, 3, 0, 1, 0, 0, 0, 0, 1, 0], ["neutral", 1.0], ["neutral", 0.625]),  # single votes are forgotten
        ([4, 0, 4, 0, 0, 2, 0, 0, 0, 0], None, ["neutral", 0.5]),  # a tie is taken at once, and is four fifths
        ([0, 0, 0, 3, 0, 0, 2, 0, 5, 0], None, None),  # unknown comes first
        ([6, 0, 0, 0, 0, 0, 0, 0, 4, 0], ["neutral", 1.0], ["neutral", 1.0]),  # and behind another is forgotten
        ([4, 0, 0, 0, 0, 0, 0, 0, 4, 2], None, None),  # four of ten are no more than half
        ([2, 2, 2, 2, 2, 0, 0, 0, 0, 0], None, None),  # too many
        ([1, 1, 1, 1, 1, 1, 1, 1, 1, 1], None, None),
    ],
)
def test_the_makers_two_ways_with_votes(counts, majority, probability):
    order = [*VOTES[:8]]
    class_of = np.array([*range(8), -1, -1])
    for mode, wanted in (("majority", majority), ("probability", probability)):
        judged = judge(np.array(counts, float), class_of, 8, mode=mode)
        assert (judged and [order[judged[0]], pytest.approx(judged[1].max())]) == wanted


def test_the_mode_is_an_option(tmp_path, caplog):
    def decide(number, face, vote):
        vote[2:] = ["7", "3"] + ["0"] * 8 if number % 2 else ["5", "5"] + ["0"] * 8

    files = write(tmp_path, change=decide)
    for mode, sizes, shares in (("majority", (3, 1, 1), {1.0}), ("probability", (5, 3, 2), {0.5, np.float32(0.7)})):
        data = FERPlus(str(files), mode=mode)
        assert tuple(len(data.rows(split)) for split in data.splits) == sizes
        assert {row.target.max() for split in data.splits for row in data.rows(split)} == shares
    assert "'train' is not as published: 6 lines instead of 28,709" in caplog.text
    with pytest.raises(MienError, match="no mode 'median', only votes, majority, probability"):
        FERPlus(str(tmp_path), mode="median")
