"""Videos: their times, what is read of them, what is written, and what remains where they are cut short or stopped."""

import csv
import http.server
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from contextlib import closing
from fractions import Fraction
from functools import partial

import av
import numpy as np
import pytest
from conftest import COLOURS
from films import EXAMPLES, film, scene
from PIL import Image

from mien.commands.read import find_sources
from mien.commands.terminal import Progress
from mien.errors import MienWarning, ReadError
from mien.faces import is_video
from mien.labels import EXPRESSIONS
from mien.reader import Reader
from mien.video import Every, Summary, TrackedFace, Video, VideoFrame, read_video


def noise(count: int) -> np.ndarray:
    """Frames that do not compress."""
    return np.random.default_rng(0).integers(0, 255, (count, 48, 64, 3), np.uint8)


GREEN = np.full((48, 64, 3), (90, 120, 40), np.uint8)


def flat(colour, side=64) -> np.ndarray:
    return np.full((side, side, 3), colour, np.uint8)


def walkers(count: int) -> list[np.ndarray]:
    """Two people, one on the way to the right and one to the left."""
    return [scene((10 + 3 * i, 10, 100), (200 - 2 * i, 110, 110)) for i in range(count)]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def mien(stand_in, call):
    """`mien read` with the stand-in model."""
    return lambda *words: call("read", *words, "--model", stand_in)


@pytest.fixture(scope="module")
def reader(stand_in):
    return Reader.from_pretrained(stand_in)


@pytest.fixture(scope="module")
def whole_frame(stand_in):
    """Takes each frame for a face."""
    return Reader.from_pretrained(stand_in, aligned=True)


# what a video is


def test_times_are_those_of_the_file(here):
    pts = [0, 1001, 5005, 6006, 30030]
    film(here / "a.mp4", [GREEN] * 5, pts=pts, time_base=Fraction(1, 30000))
    pictures = list(Video("a.mp4").pictures())
    assert [picture.time for picture in pictures] == [at / 30000 for at in pts]
    assert [picture.number for picture in pictures] == [0, 1, 2, 3, 4]


def test_time_begins_where_the_file_does(here):
    """As in a stream that was recorded for hours: the first frame is at ten seconds, the sound a bit before it."""
    film(here / "a.ts", noise(25), pts=range(250, 275), codec="mpeg2video", container_format="mpegts")
    with av.open("a.ts") as container:
        assert container.start_time > 9_000_000
    assert [picture.time for picture in Video("a.ts").pictures()] == [i / 25 for i in range(25)]


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_frames_are_upright(here, turn, reader):
    """Kept lying, with the turn that is to be undone, as telephones do; ffmpeg counts it against the clock."""
    lying = np.ascontiguousarray(np.rot90(scene((80, 50, 160)), -turn // 90))
    film(here / "a.mp4", [lying] * 2, turn=turn)
    for frame in read_video("a.mp4", reader, images=True):
        assert frame.image.shape == (240, 320, 3)
        [face] = frame.faces
        assert abs(face.box[0] + face.box[2] / 2 - 160) < 20 and face.landmarks[0, 1] < face.landmarks[3, 1]


BAD = {
    "missing.mp4": (None, "no such file"),
    "empty.mp4": (lambda path: path.touch(), "an empty file"),
    "text.mp4": (lambda path: path.write_text("hello" * 99), "damaged, or no video"),
    "noise.mkv": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(40_000)), "damaged, or no video"),
    "sound.mp4": (lambda path: film(path, [], sound="aac"), "sound only"),
    "sound.mkv": (lambda path: film(path, [], sound="pcm_s16le"), "sound only"),
    "headless.mp4": (
        lambda path: cut(film(path, noise(9)), 0.5),
        "damaged, or no video",
    ),
    "pipe.mp4": (os.mkfifo, "not a file"),
    "rtsp://127.0.0.1:9/x": (None, "connection refused"),
    "77": (None, "no such camera"),
}


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize("name", BAD)
def test_one_bad_source_has_a_line_and_the_others_are_read(here, mien, name):
    make, reason = BAD[name]
    if make:
        make(here / name)
    film(here / "good.mp4", [GREEN] * 3)
    code, out, err = mien("good.mp4", name, "good.mp4")
    assert code == 1 and len(out) == 6
    assert len(err) == 1 and err[0].startswith(f"mien: {name}: ") and reason in err[0]


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_a_video_cut_short_gives_what_there_is(here, mien, name):
    """ffmpeg itself says nothing of the end that is missing."""
    options = {"movflags": "faststart"} if name.endswith("mp4") else {}
    film(here / name, noise(50), options=options)
    cut(here / name, 0.6)
    code, out, [line] = mien(name, "--output", "rows.csv")
    rows = list(csv.DictReader((here / "rows.csv").open()))
    assert code == 1 and "short" in line and line.startswith(f"mien: {name}: ")
    assert 20 < len(rows) < 40 and [int(row["frame"]) for row in rows] == list(range(len(rows)))
    assert out == [f"rows.csv: 0 faces in {len(rows)} frames of 1 video, 1 could not be read to the end"]


def test_damage_in_the_middle_is_passed_over_and_told(here, reader):
    data = bytearray(film(here / "a.mp4", noise(50)).read_bytes())
    middle, tenth = len(data) // 2, len(data) // 10
    data[middle : middle + tenth] = np.random.default_rng(1).bytes(tenth)
    (here / "a.mp4").write_bytes(data)
    frames = []
    with pytest.raises(ReadError, match="damaged: .* could not be decoded"):
        for frame in read_video("a.mp4", reader):
            frames.append(frame.number)
    assert 40 < len(frames) < 50


def test_a_file_opens_no_connection(here, reader):
    """A playlist that calls itself a video names an address, which is not asked."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        text = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:{server.getsockname()[1]}/a.ts\n"
        (here / "list.mp4").write_text(text)
        with pytest.raises(ReadError):
            list(read_video("list.mp4", reader))
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize(
    "name, moving",
    [("0", True), ("12", True), ("/dev/video3", True), ("a.mp4", True), ("A.MKV", True), ("a.ts", True)]
    + [("rtsp://user:word@host/x", True), ("http://host/a.mp4?x=1", True), ("http://host/a.jpg?x=1", False)]
    + [("a.jpg", False), ("a", False)]
    + [("*.mp4", False), ("file:///a.mp4x", False), ("folder.mp4", False), ("5", False)],
)
def test_what_is_taken_for_a_video(here, name, moving):
    (here / "folder.mp4").mkdir()
    (here / "5").mkdir()  # as the classes of RAF-DB are called
    assert is_video(name) is moving


# which frames


def test_every(here, whole_frame):
    pts = [0, 1, 2, 3, 10, 11, 12, 30, 31, 32, 33, 60]  # tenths of a second
    film(here / "a.mkv", [flat(0)] * 12, pts=pts, time_base=Fraction(1, 10))
    numbers = lambda every: [frame.number for frame in read_video("a.mkv", whole_frame, every=every)]  # noqa: E731
    assert numbers(1) == list(range(12))
    assert numbers(5) == [0, 5, 10]
    assert numbers("0.5s") == [0, 4, 7, 11]
    assert numbers("1s") == [0, 4, 7, 11]
    assert numbers("0.2s") == [0, 2, 4, 6, 7, 9, 11]


def test_every_so_many_seconds_is_not_off_by_rounding():
    every = Every("0.2s")
    assert [i for i in range(100) if every.due(i, i / 25)] == list(range(0, 100, 5))


@pytest.mark.parametrize("every", ["0", 0, -1, "1.5", "s", "0s", "-1s", "nan", "1e3s"])
def test_every_is_a_count_or_a_time(every):
    with pytest.raises(ValueError, match="neither"):
        Every(every)


# people


def test_rows(here, mien):
    film(here / "a.mp4", walkers(12))
    code, out, err = mien("a.mp4")
    rows = list(map(json.loads, out))
    assert (code, err, len(rows)) == (0, [], 24)
    names = ["source", "time", "frame", "width", "height", "track", "face", "box", "score", "landmarks", "rotation"]
    assert list(rows[0]) == [*names, "expression", "probability", "probabilities", "pose"]
    assert [(row["frame"], row["time"], row["face"]) for row in rows[:3]] == [(0, 0, 0), (0, 0, 1), (1, 0.04, 0)]
    assert {row["track"] for row in rows} == {None}


def test_tracked_faces_lie_where_they_are_found_alone(here, reader):
    """Though the whole frame is searched five times less often."""
    film(here / "a.mp4", walkers(30))
    seen = []
    detector = reader.detector
    spy = Reader(reader.classifier, lambda image: (seen.append(image.shape), detector(image))[1])
    spy.detector.look = None
    alone, followed = list(read_video("a.mp4", reader)), list(read_video("a.mp4", reader, track=True))
    for one, other in zip(alone, followed, strict=True):
        assert {face.track for face in other.faces} == {1, 2}
        places = {face.track: face for face in other.faces}
        assert places[1].box[1] > places[2].box[1]  # the lower one is larger, and first
        for face in one.faces:
            [same] = [near for near in other.faces if abs(near.box[1] - face.box[1]) < 30]
            assert np.abs(same.landmarks - face.landmarks).max() < 5
    list(read_video("a.mp4", spy, track=True, detect_every=5))  # a detector of one's own serves for both
    assert [shape for shape in seen if shape == (240, 320, 3)] == [(240, 320, 3)] * 6
    assert len(seen) == 6 + 24 * 2 and set(seen) == {(240, 320, 3), (192, 192, 3)}


def test_a_face_that_comes_and_goes(here, reader):
    images = [scene((80, 50, 140))] * 10 + [scene()] * 35 + [scene((80, 50, 140))] * 5
    film(here / "a.mp4", images)
    frames = list(read_video("a.mp4", reader, track=True))
    assert [[face.track for face in frame.faces] for frame in frames[:10]] == [[1]] * 10
    assert all(not frame.faces for frame in frames[10:45])
    assert frames[-1].faces[0].track == 2  # longer than a second away


def test_smoothing_is_a_matter_of_seconds(here, whole_frame):
    """From grey to red: after t seconds the share has gone 1 - exp(-t / smooth) of its way, at any frame rate."""
    for rate in (10, 40):
        images = [flat(COLOURS["neutral"])] * rate + [flat(COLOURS["anger"])] * rate
        film(here / f"{rate}.mkv", images, time_base=Fraction(1, rate), codec="ffv1")
    for smooth in (0.3, 1.0):
        told = {}
        for rate in (10, 40):
            for frame in read_video(f"{rate}.mkv", whole_frame, track=True, smooth=smooth, cuts=math.inf):
                [face] = frame.faces
                assert face.track == 1 and face.unsmoothed["anger"] == pytest.approx(float(frame.time > 0.99), abs=0.05)
                told[rate, round(frame.time, 3)] = face.probabilities["anger"]
        start, end = told[10, 0.9], face.unsmoothed["anger"]
        for at in (0.1, 0.3, 0.9):
            way = 1 - math.exp(-at / smooth)
            assert told[10, round(0.9 + at, 3)] == pytest.approx(start + (end - start) * way, abs=0.01)
            late = 1 - math.exp(-(at + 0.025) / smooth)  # its first red frame comes 25 ms after the last grey one
            assert told[40, round(1 + at, 3)] == pytest.approx(start + (end - start) * late, abs=0.01)
    [face] = list(read_video("10.mkv", whole_frame, track=True, smooth=0, cuts=math.inf))[-1].faces
    assert face.probabilities == face.unsmoothed


def test_batches_change_nothing(here, reader):
    film(here / "a.mp4", walkers(9))

    def told(**options):
        return [
            (f.number, [(x.track, x.box, x.probability) for x in f.faces])
            for f in read_video("a.mp4", reader, track=True, **options)
        ]

    ones = told(batch_size=1)
    for frames in (told(batch_size=7), told(images=True)):
        assert [f[0] for f in frames] == list(range(9))
        for (_, a), (_, b) in zip(frames, ones, strict=True):
            assert [x[:2] for x in a] == [x[:2] for x in b]
            assert [x[2] for x in a] == pytest.approx([x[2] for x in b], abs=1e-5)


# what is written


def test_csv_and_parquet(here, mien):
    import pyarrow.parquet

    film(here / "a.mp4", [*walkers(3), scene()])
    shutil.copy(EXAMPLES / "hopper.jpg", "face.jpg")
    _, lines, _ = mien("a.mp4", "face.jpg", "--track")
    rows = list(map(json.loads, lines))
    assert len(rows) == 8 and rows[-2]["note"] and rows[-1]["source"] == "face.jpg" and "time" not in rows[-1]
    for name in ("rows.csv", "rows.parquet"):
        code, out, err = mien("a.mp4", "face.jpg", "--track", "--output", name)
        assert (code, out, err) == (0, [f"{name}: 7 faces in 1 picture and 4 frames of 1 video"], [])
    table = list(csv.DictReader((here / "rows.csv").open()))
    for row, told, kept in zip(rows, table, pyarrow.parquet.read_table("rows.parquet").to_pylist(), strict=True):
        for name in ("time", "frame", "track", "face"):
            value = row.get(name)
            assert told[name] == ("" if value is None else str(value)) and kept[name] == value
        raw = row.get("unsmoothed")
        assert [told[f"unsmoothed_{x}"] for x in EXPRESSIONS] == [str(raw[x]) if raw else "" for x in EXPRESSIONS]
        assert kept["unsmoothed"] == (raw and pytest.approx(raw, abs=1e-6))


def test_pictures_have_the_columns_they_had(here, mien):
    shutil.copy(EXAMPLES / "hopper.jpg", "face.jpg")
    assert mien("face.jpg", "--output", "rows.csv")[0] == 0
    assert (here / "rows.csv").read_text().startswith("source,face,box_x,")
    assert "unsmoothed" not in (here / "rows.csv").read_text()


def face(track, expression, probability=0.75):
    shares = dict.fromkeys(EXPRESSIONS, (1 - probability) / 7) | {expression: probability}
    return TrackedFace((0, 0, 9, 9), 0.9, None, expression, probability, shares, track, shares)


def test_a_summary_counts_seconds_and_not_frames():
    summary = Summary(EXPRESSIONS, min_seconds=0.0)
    summary.begin("a.mp4")
    frames = [(0.0, ["happiness"]), (0.1, ["happiness", "anger"]), (0.2, ["neutral"]), (1.2, ["neutral"]), (1.3, [])]
    for i, (at, moods) in enumerate(frames):
        faces = [face(number + 1, mood) for number, mood in enumerate(moods)]
        summary.add(VideoFrame(i, at, faces, None, i))
    summary.end()
    first, second = summary.rows()
    assert (first["track"], first["first"], first["last"], first["frames"]) == (1, 0.0, 1.2, 4)
    assert first["seconds"] == pytest.approx(1.3) and first["expression"] == "neutral"
    assert first["shares"]["happiness"] == pytest.approx(0.2 / 1.3, abs=1e-5)
    assert sum(first["shares"].values()) == pytest.approx(1, abs=1e-5)
    assert first["mean"]["happiness"] == pytest.approx((0.75 * 0.2 + 0.25 / 7 * 1.1) / 1.3, abs=1e-5)
    assert second["frames"] == 1 and second["shares"]["anger"] == 1


def test_a_timeline_of_a_long_video_is_no_larger():
    summary = Summary(EXPRESSIONS)
    summary.begin("a.mp4")
    for i in range(20_000):
        summary.add(VideoFrame(i, i / 2, [face(1, "fear" if i < 10_000 else "anger")], None, i))
    summary.end()
    [person] = summary.people
    assert 500 < len(person.bins) <= 1200 and person.seconds == pytest.approx(10_000)
    likeliest = [EXPRESSIONS[person.bins[i].argmax()] for i in sorted(person.bins)]
    assert likeliest == sorted(likeliest, reverse=True) and abs(likeliest.count("fear") * 2 - len(likeliest)) <= 1


def test_summary_and_timeline(here, mien):
    film(here / "a.mp4", walkers(13))
    for name in ("sum.json", "sum.csv"):
        code, out, err = mien("a.mp4", "--track", "--summary", name, "--output", "rows.jsonl")
        assert (code, err) == (0, []) and f"{name} and sum.png: 2 people" in out
        assert Image.open("sum.png").size[0] > 1000
        os.remove("sum.png")
    rows = json.loads((here / "sum.json").read_text())
    table = list(csv.DictReader((here / "sum.csv").open()))
    assert [row["track"] for row in rows] == [1, 2] == [int(row["track"]) for row in table]
    assert rows[0]["seconds"] == 0.52 == float(table[0]["seconds"]) and rows[0]["last"] == 0.48
    for row, told in zip(rows, table, strict=True):
        assert {label: float(told[f"share_{label}"]) for label in EXPRESSIONS} == row["shares"]
        assert {label: float(told[f"mean_{label}"]) for label in EXPRESSIONS} == row["mean"]


def packets(path, kind):
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(**{kind: 0}) if packet.size]


def test_an_annotated_video_keeps_times_and_sound(here, mien):
    pts = [0, 40, 80, 300, 340, 1000, 1033, 1066]
    film(here / "a.mp4", walkers(8), pts=pts, time_base=Fraction(1, 1000), sound="aac")
    code, out, err = mien("a.mp4", "--track", "--annotate", "deep/drawn", "--output", "rows.csv")
    assert (code, err, out[-1]) == (0, [], "deep/drawn: 1 drawing")
    before, after = list(Video("a.mp4").pictures()), list(Video("deep/drawn/a.mp4").pictures())
    assert [p.time for p in after] == [p.time for p in before] == [at / 1000 for at in pts]
    difference = np.abs(before[3].image.astype(int) - after[3].image).max(2)
    assert 0.01 < (difference > 70).mean() < 0.3 and np.median(difference) < 5  # drawn in, in the same colours
    sound, kept = packets("a.mp4", "audio"), packets("deep/drawn/a.mp4", "audio")
    assert [bytes(p) for p in kept] == [bytes(p) for p in sound] and len(sound) > 40
    assert [p.pts * p.time_base for p in kept] == [p.pts * p.time_base for p in sound]


@pytest.mark.parametrize("name, sound", [("a.mkv", "pcm_s16le"), ("a.ts", "aac"), ("a.avi", "")])
def test_annotated_videos_of_other_kinds(here, mien, name, sound):
    """Sound that MP4 does not bear is coded anew; odd sizes and a turn are no trouble."""
    kind = {"container_format": "mpegts", "codec": "mpeg2video"} if name == "a.ts" else {}
    film(here / name, [scene((60, 40, 150), size=(322, 242))[:-1, :-1]] * 25, sound=sound, **kind)
    code, _, err = mien(name, "--annotate", "drawn.mp4")
    assert (code, err) == (0, [])
    before, after = list(Video(name).pictures()), list(Video("drawn.mp4").pictures())
    assert [p.time for p in after] == pytest.approx([p.time for p in before], abs=1e-3) and len(after) == 25
    assert after[0].image.shape == (242, 322, 3)
    if sound:
        heard, kept = packets(name, "audio"), packets("drawn.mp4", "audio")
        assert kept[0].stream.codec_context.name == "aac"
        lengths = [sum(p.duration * p.time_base for p in ps) for ps in (heard, kept)]
        assert abs(lengths[0] - lengths[1]) < 0.06


def test_no_frame_no_video(here, mien):
    (here / "a.mp4").touch()
    assert mien("a.mp4", "--annotate", "drawn.mp4")[0] == 1
    assert not (here / "drawn.mp4").exists() and not list(here.glob(".*"))


# which sources


def test_folders_and_globs(here):
    for name in ("both/a.jpg", "both/b.mp4", "films/deep/c.mp4", "films/d.mov", "films/e.txt", "none/f.ts"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).touch()
    assert find_sources(["both"]) == (
        ["both/a.jpg"],
        ["both: a video beside the pictures not read; name them to have them read"],
        [],
    )
    assert find_sources(["films"]) == (["films/d.mov", "films/deep/c.mp4"], [], [])
    assert find_sources(["none"]) == (["none"], [], [])
    assert find_sources(["both/*.mp4", "films/*"]) == (["both/b.mp4", "films/d.mov", "films/deep/c.mp4"], [], [])
    assert find_sources(["both/b.mp4", "both/a.jpg", "0"]) == (["both/b.mp4", "both/a.jpg", "0"], [], [])
    assert find_sources(["*.mp4", "rtsp://x/?a=*.mp4"]) == (["*.mp4", "rtsp://x/?a=*.mp4"], [], [])


@pytest.mark.parametrize(
    "words",
    [
        ["a.jpg", "--track"],
        ["a.jpg", "--every", "2"],
        ["a.jpg", "--annotate", "drawn.mp4"],
        ["a.mp4", "--summary", "sum.json"],
        ["a.mp4", "--smooth", "1"],
        ["a.mp4", "--detect-every", "2"],
        ["a.mp4", "--track", "--smooth", "-1"],
        ["a.mp4", "--every", "0"],
        ["a.mp4", "--every", "2.5"],
        ["a.mp4", "--track", "--summary", "sum.txt"],
        ["a.mp4", "--track", "--summary", "nowhere/sum.json"],
        ["a.mp4", "b.mp4", "--annotate", "drawn.mp4"],
        ["a.mp4", "--annotate", "a.mp4"],
        ["a.mp4", "--annotate", "."],
        ["a.mp4", "--annotate", "nowhere/drawn.mp4"],
    ],
)
def test_misuse(here, mien, monkeypatch, words):
    for name in ("a.jpg", "a.mp4", "b.mp4"):
        (here / name).touch()
    monkeypatch.setattr(Reader, "from_pretrained", lambda *_, **__: pytest.fail("it has begun to read"))
    code, out, err = mien(*words)
    assert (code, out) == (2, []) and err[-1].startswith("mien read: error: ")


def test_without_pyav_the_extra_is_named(here, mien, monkeypatch):
    film(here / "a.mp4", [GREEN])
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr(Reader, "from_pretrained", lambda *_, **__: pytest.fail("it has begun to read"))
    assert mien("a.mp4") == (1, [], ['mien: this needs av: pip install "mien[video]"'])


def test_reading_photographs_knows_nothing_of_videos():
    code = "import sys, mien.commands.read as read; read.find_sources(['x.jpg']); print(sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'mien.faces.video'" in out
    assert not any(f"'{name}'" in out for name in ("av", "mien.video", "mien.data", "matplotlib"))


# cameras and streams


def test_a_camera(here, reader, monkeypatch):
    """None is at hand: a file stands in for what v4l2 would give."""
    film(here / "a.mkv", walkers(12))
    opened, real = [], av.open

    def stand_in(name, **options):
        opened.append((name, options))
        return real("a.mkv")

    monkeypatch.setattr(av, "open", stand_in)
    video = Video(0)
    assert opened == [("/dev/video0", {"format": "v4l2"})] and video.live and video.duration is None
    frames = list(read_video(video, reader, track=True))
    numbers = [frame.number for frame in frames]
    assert numbers[0] == 0 and numbers == sorted(set(numbers)) and len(numbers) >= 4  # who is slow misses some
    assert all(frame.time == pytest.approx(frame.number / 25) for frame in frames)


def test_a_stream(here, mien):
    film(here / "a.ts", walkers(10), codec="mpeg2video", container_format="mpegts")

    def serve(server):
        link, _ = server.accept()
        with link:
            link.sendall((here / "a.ts").read_bytes())

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        name = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        code, out, err = mien(name, "--track", "--annotate", "drawn")
    rows = list(map(json.loads, out))
    assert (code, err) == (0, []) and len(rows) == 20 and {row["source"] for row in rows} == {name}
    assert rows[-1]["time"] == pytest.approx(0.36)
    [drawn] = (here / "drawn").iterdir()
    assert drawn.suffix == ".mp4" and len(list(Video(drawn).pictures())) == 10


def test_a_live_stream_that_falls_silent(here, reader, monkeypatch):
    """What was sent until then is read, and the end has its reason."""
    monkeypatch.setattr("mien.video.source._SILENCE", 2)
    told = film(here / "a.ts", walkers(25), codec="mpeg2video", container_format="mpegts").read_bytes()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def send():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
            for again in range(5):  # who listens late, or is slow, misses the first of them
                for start in range(0, len(told), 1316):
                    link.sendto(told[start : start + 1316], ("127.0.0.1", port))
                    time.sleep(0.002)
                time.sleep(0.05 * (again < 4))

    threading.Thread(target=send, daemon=True).start()
    frames = []
    warnings.simplefilter("ignore", MienWarning)  # each time that it is sent, its times begin anew
    with pytest.raises(ReadError, match=r"udp://127.0.0.1:\d+: ended \(silent for 2 seconds\) after \d+\.\d seconds"):
        frames.extend(read_video(f"udp://127.0.0.1:{port}", reader, track=True))
    numbers = [frame.number for frame in frames]
    assert numbers == sorted(set(numbers)) and any(frame.faces for frame in frames)


def test_a_video_on_a_server(here, reader):
    film(here / "a.mp4", [GREEN] * 5)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(here))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://user:word@127.0.0.1:{server.server_port}"
        assert len(list(read_video(f"{base}/a.mp4", reader))) == 5
        with pytest.raises(ReadError) as error:
            read_video(f"{base}/b.mp4", reader)
        server.shutdown()
    assert "not found" in str(error.value) and "word" not in str(error.value)


def test_a_silent_server_is_given_up(monkeypatch, reader):
    monkeypatch.setattr("mien.video.source._SILENCE", 1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        name = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ReadError, match="silent for 1 second"):
            read_video(name, reader)


# being stopped


@pytest.mark.parametrize("number, code, suffix", [(signal.SIGTERM, 143, ".csv"), (signal.SIGINT, 130, ".parquet")])
def test_a_signal_leaves_whole_files(here, stand_in, number, code, suffix):
    import pyarrow.parquet

    film(here / "a.mp4", [scene((30, 20, 75), size=(160, 120))] * 1200, sound="aac")
    options = ["--track", "--output", f"rows{suffix}", "--summary", "sum.json", "--annotate", "drawn.mp4"]
    command = [sys.executable, "-m", "mien", "read", "a.mp4", *options, "--model", str(stand_in)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while sum(path.stat().st_size > 1000 for path in here.glob(".*.part")) < 1 + (suffix != ".parquet"):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err.splitlines() == (["mien: interrupted"] if number == signal.SIGINT else [])
    assert not list(here.glob(".*"))
    if suffix == ".csv":
        frames = [int(row["frame"]) for row in csv.DictReader((here / "rows.csv").open())]
    else:
        frames = pyarrow.parquet.read_table("rows.parquet")["frame"].to_pylist()
    assert frames == list(range(len(frames))) and 0 < len(frames) < 1200
    assert json.loads((here / "sum.json").read_text())[0]["frames"] == len(frames)
    Image.open("sum.png").load()
    assert len(list(Video("drawn.mp4").pictures())) == len(frames)
    assert f"{len(frames):,} frame" in out


def test_a_signal_ends_waiting_for_a_server(here, stand_in):
    with socket.create_server(("127.0.0.1", 0)) as server:
        name = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        command = [sys.executable, "-m", "mien", "read", name, "--model", str(stand_in), "--output", "rows.csv"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        link, _ = server.accept()
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        link.close()
    assert process.returncode == 130 and err == "mien: interrupted\n" and time.monotonic() - begin < 9
    assert (here / "rows.csv").read_text().count("\n") == 1


def test_progress_of_a_video(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("mien.commands.terminal.time.monotonic", lambda: now[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with closing(Progress(1)) as progress:
        progress.begin(60.0, "clip.mp4")
        progress.update(0.5)
        assert capsys.readouterr().err == ""
        now[0] = 1.1
        progress.update(15.0)
        err = capsys.readouterr().err
        assert "clip.mp4:  25%" in err and "15.0 of 60.0 s" in err
        progress.begin(None, "0")
        now[0] = 2.2
        progress.update(7.5)
        err = capsys.readouterr().err
        assert "0: 7.5 s [" in err and "%" not in err


# several streams


def test_of_two_video_streams_the_default_is_read_and_the_other_named(here, mien):
    import av

    with av.open("two.mp4", "w") as container:
        streams = [container.add_stream("mpeg4", rate=10) for _ in range(2)]
        for stream, side in zip(streams, (64, 160), strict=True):
            stream.width = stream.height = side
            stream.pix_fmt = "yuv420p"
        streams[0].disposition = 0
        streams[1].disposition = av.stream.Disposition.default
        for stream in streams:
            for i in range(4):
                picture = av.VideoFrame.from_ndarray(np.full((stream.height, stream.width, 3), 40 * i, np.uint8))
                picture.pts, picture.time_base = i, Fraction(1, 10)
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
    code, out, err = mien("two.mp4")
    assert (code, len(out)) == (0, 4)
    assert err == ["mien: two.mp4: only its default video stream is read, not stream 0, 64×64"]
