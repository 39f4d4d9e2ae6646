"""Frames of videos, and Aff-Wild2 read from its own."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
from sets import EXPR, UNITS, write

from mien.data import AffWild2
from mien.data.video import Frame
from mien.errors import MienError, MissingExtra, ReadError


def film(path: Path, frames: int, first: int = 0) -> Path:
    """Frame i is grey, as bright as first + 8 i on the left and 8 brighter on the right; lossless."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "bgr0"
        for i in range(frames):
            picture = np.full((16, 32, 3), first + 8 * i, np.uint8)
            picture[:, 16:] += 8
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture)):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def test_frames_in_any_order_and_from_threads(tmp_path):
    path = film(tmp_path / "a.avi", 24)
    order = [3, 0, 23, 5, 5, 4, 22, 1, *range(24)]
    with ThreadPoolExecutor(4) as pool:
        pictures = list(pool.map(lambda i: Frame(path, i).image(), order))
    assert [picture[0, 0].tolist() for picture in pictures] == [[8 * i] * 3 for i in order]
    assert pictures[0].shape == (16, 32, 3)
    left, right = (Frame(path, 2, side).image() for side in ("left", "right"))
    assert left.shape == right.shape == (16, 16, 3) and (left == 16).all() and (right == 24).all()
    with pytest.raises(ReadError, match=r"a.avi frame 25: the video ends after 24 frames"):
        Frame(path, 24).image()
    assert Frame(path, 0).image()[0, 0, 0] == 0  # and goes on after that


def test_what_is_no_video(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"nothing of the kind" * 99)
    with pytest.raises(ReadError, match=r"a.mp4 frame 1: "):
        Frame(tmp_path / "a.mp4", 0).image()
    with pytest.raises(ReadError, match=r"b.mp4 frame 1: no such file or directory"):
        Frame(tmp_path / "b.mp4", 0).image()


@pytest.fixture
def affwild2(tmp_path):
    notes = tmp_path / "annotations"
    write(notes / "EXPR_Set/Train_Set/1.txt", EXPR, "0", "-1", "5", "4")
    write(notes / "EXPR_Set/Train_Set/2_left.txt", EXPR, "1", "1")
    write(notes / "EXPR_Set/Train_Set/2_right.txt", EXPR, "-1", "2")
    write(notes / "AU_Set/Train_Set/2_right.txt", UNITS, "0,0,1", "1,-1,0")
    write(notes / "EXPR_Set/Validation_Set/3.txt", EXPR, "3")
    film(tmp_path / "batch1/1.avi", 3)
    film(tmp_path / "batch1/2.avi", 2, 100)
    film(tmp_path / "batch2/deep/3.avi", 1, 200)
    return tmp_path


def test_affwild2_from_its_videos(affwild2):
    data = AffWild2(str(affwild2), action_units=True)
    rows = data.rows("train")
    told = [(row.subject, row.label, row.units.astype(int).tolist(), int(row.image()[0, 0, 0])) for row in rows]
    unsaid = [-1, -1, -1]
    assert [row.number for row in rows] == [0, 2, 0, 1, 0, 1]  # of the frame, by which windows are cut
    assert told == [
        ("1", 0, unsaid, 0),
        ("1", 5, unsaid, 16),
        ("2_left", 1, unsaid, 100),
        ("2_left", 1, unsaid, 108),
        ("2_right", -1, [0, 0, 1], 108),
        ("2_right", 2, [1, -1, 0], 116),
    ]
    [error] = data.findings["train"].malformed
    assert str(error) == f"{affwild2}/batch1/1.avi frame 4: the video ends after 3 frames"
    assert [row.label for row in data.rows("validation")] == [3]
    (affwild2 / "batch1/2.avi").unlink()
    data = AffWild2(str(affwild2))
    data.rows("train")
    told = {Path(error.source).name: error.reason for error in data.findings["train"].malformed}
    assert told["2_left.txt"] == "no video 2_left" and told["2_right.txt"] == "no video 2_right"


def test_frames_come_first_and_something_must_be_there(affwild2):
    (affwild2 / "cropped_aligned").mkdir()
    assert AffWild2(str(affwild2)).videos is None
    assert set(AffWild2(str(affwild2), videos="batch1").videos) == {"1", "2"}
    with pytest.raises(MienError, match="no films there"):
        AffWild2(str(affwild2), videos="films")


def test_videos_without_pyav_name_the_extra(affwild2, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtra, match=r'this needs av: pip install "mien\[video\]"'):
        AffWild2(str(affwild2))
