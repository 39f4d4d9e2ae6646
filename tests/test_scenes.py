"""Scenes, sizes, people and events of videos."""

import csv
import json
import math
import shutil
from fractions import Fraction

import numpy as np
import pytest
from conftest import COLOURS
from films import film, scene

from mien.errors import MienWarning
from mien.labels import EXPRESSIONS
from mien.outputs import expression_output
from mien.reader import Reader
from mien.video import Spotter, Summary, Thumbnails, TrackedFace, Tracker, VideoFrame, read_video
from mien.video.cuts import Cuts
from mien.video.smooth import Exponential


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def reader(stand_in):
    return Reader.from_pretrained(stand_in)


@pytest.fixture(scope="module")
def whole_frame(stand_in):
    return Reader.from_pretrained(stand_in, aligned=True)


def flat(colour, size=(64, 64)) -> np.ndarray:
    return np.full((*size, 3), colour, np.uint8)


def place(seed: int) -> np.ndarray:
    """A picture of blots, (72, 128, 3), that has no like."""
    coarse = np.random.default_rng(seed).integers(0, 255, (5, 8, 3), np.uint8)
    return np.kron(coarse, np.ones((15, 16, 1), np.uint8))[:72]


def told(frames, **options) -> list[int]:
    tell = Cuts(**options)
    return [i for i, frame in enumerate(frames) if tell(frame)]


def test_cuts():
    a, b, chance = place(0), place(1), np.random.default_rng(2)
    assert told([a] * 5 + [b] * 5 + [a] * 2) == [5, 10]
    grey = [np.repeat(x.mean(2, keepdims=True), 3, 2).astype(np.uint8) for x in (a, b)]
    assert told([grey[0]] * 5 + [grey[1]] * 5) == [5]
    moving = [np.roll(a, 4 * i, 1) for i in range(20)]  # a width in a second and a third
    assert told(moving) == [] and told([*moving, *[b] * 3]) == [20]
    noisy = [(a // 4 + chance.integers(0, 25, a.shape)).astype(np.uint8) for _ in range(8)]
    assert told(noisy) == []
    dimmed = [(a * (0.6 + 0.4 * np.cos(i / 4))).astype(np.uint8) for i in range(25)]
    assert told(dimmed) == []
    assert told([a] * 5 + [flat(255, (72, 128))] + [a] * 5) == [5]  # a flash: its end is none
    assert told([a] * 5 + [b] * 5, threshold=math.inf) == []
    assert told([a, np.kron(b, np.ones((2, 2, 1), np.uint8))]) == [1]  # whatever their sizes
    for wrong in (-1, math.nan):
        with pytest.raises(ValueError, match="a number from 0"):
            Cuts(wrong)


def test_a_cut_ends_tracks_and_smoothing(here, reader, whole_frame):
    """Somebody else at the same place: another number, and nothing of the probabilities before."""
    first, other = scene((80, 50, 140)), scene((80, 50, 140))
    other[:, ::2] //= 4  # another place about, and the face in other light
    other = other[::-1, ::-1][::-1, ::-1].copy()
    other[:40], other[200:] = (250, 250, 250), (10, 10, 10)
    film(here / "a.mp4", [first] * 6 + [other] * 6)
    frames = list(read_video("a.mp4", reader, track=True))
    assert [frame.number for frame in frames if frame.cut] == [6]
    assert [face.track for frame in frames for face in frame.faces] == [1] * 6 + [2] * 6
    kept = list(read_video("a.mp4", reader, track=True, cuts=math.inf))
    assert {face.track for frame in kept for face in frame.faces} == {1}
    film(here / "b.mkv", [flat(COLOURS["neutral"])] * 5 + [flat(COLOURS["anger"])] * 5, codec="ffv1")
    faces = [frame.faces[0] for frame in read_video("b.mkv", whole_frame, track=True, smooth=10)]
    assert [face.track for face in faces] == [1] * 5 + [2] * 5
    assert faces[5].probabilities == faces[5].unsmoothed and faces[5].expression == "anger"


def joined(path, *parts):
    """Streams of MPEG one behind the other, as when a broadcast changes its size."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def test_other_sizes_within_a_stream(here, reader):
    large, upright = scene((80, 50, 140)), scene((10, 50, 140), size=(160, 240))
    small = np.ascontiguousarray(large[::2, ::2])
    times = {"codec": "mpeg2video", "container_format": "mpegts"}
    one, two = film(here / "1.ts", [large] * 6, **times), film(here / "2.ts", [small] * 6, pts=range(6, 12), **times)
    three = film(here / "3.ts", [upright] * 6, pts=range(12, 18), **times)
    frames = list(read_video(joined(here / "a.ts", one, two, three), reader, track=True))
    of = {}  # the decoder drops a frame at a seam
    for frame in frames:
        of.setdefault((frame.width, frame.height), []).append([face.track for face in frame.faces])
    assert list(of) == [(320, 240), (160, 120), (160, 240)] and all(len(tracks) >= 5 for tracks in of.values())
    assert all(track == [1] for size in list(of)[:2] for track in of[size])  # half as large, at the same place
    assert all(track == [2] for track in of[160, 240])  # other proportions
    assert [frame.width / frame.height for frame in frames if frame.cut] == [160 / 240]


def test_tracks_that_are_rescaled():
    tracker = Tracker()
    tracker.predict(0, (640, 480))
    assert tracker.update([(300, 200, 60, 80)]) == [1]
    tracker.rescale(0.5)
    tracker.predict(0.04, (320, 240))
    assert tracker.update([(150, 100, 30, 40), (250, 100, 30, 40)]) == [1, 2]


def face(track, expression="happiness", probability=0.9, thumbnail=None):
    probs = dict.fromkeys(EXPRESSIONS, (1 - probability) / 7) | {expression: probability}
    values = (expression, probability, probs, track, probs)
    return TrackedFace((0, 0, 9, 9), 0.9, None, *values, thumbnail=thumbnail)


def test_flickers_are_left_out_and_counted():
    """Memory holds nobody of them."""
    summary = Summary(EXPRESSIONS)
    summary.begin("a.mp4")
    for i in range(2000):
        summary.add(VideoFrame(i, i / 10, [face(1), face(2 + i // 3)], None, i))
        assert len(summary.people) < 80
    summary.end()
    assert [row["track"] for row in summary.rows()] == [1] and summary.flickers == 667
    assert {person for _, person, _ in summary.events()} == {1}
    everybody = Summary(EXPRESSIONS, min_seconds=0)
    everybody.begin("a.mp4")
    everybody.add(VideoFrame(0, 0.0, [face(1)], None, 0))
    everybody.end()
    assert len(everybody.rows()) == 1  # a track of one frame


def test_thumbnails_are_of_the_best_look():
    from mien.faces import Detection

    image = np.arange(64 * 96 * 3, dtype=np.uint64).reshape(64, 96, 3).astype(np.uint8)
    marks = np.zeros((5, 2), np.float32)
    look = lambda size, score=0.9: Detection((40.0, 20.0, size, size), score, marks)  # noqa: E731
    best = Thumbnails()
    assert best(image, look(10.0), 1).shape == (64, 64, 3)
    assert best(image, look(11.0), 1) is None and best(image, look(20.0, 0.4), 1) is None
    assert best(image, look(20.0), 1) is not None and best(image, look(10.0), 2) is not None
    assert best(image, Detection((-200.0, 20.0, 300.0, 9.0), 0.9, marks), 3).shape == (64, 64, 3)  # sticks out
    assert best(image, None, None).shape == (64, 64, 3)


def spot(values, step=0.1, **options):
    spotter = Spotter(["neutral", "fear"], **options)
    for i, p in enumerate(values):
        spotter.add(i * step, step, [1 - p, p])
    spotter.finish()
    return [tuple(round(x, 6) if isinstance(x, float) else x for x in event) for event in spotter.events]


def test_events_have_two_thresholds():
    """It begins where it rose above the lower one, if it reaches the upper one."""
    assert spot([0.1, 0.45, 0.7, 0.9, 0.5, 0.41, 0.39, 0.1]) == [("fear", 0.1, 0.3, 0.6, 0.9)]
    assert spot([0.1, 0.45, 0.59, 0.5, 0.1]) == []  # never reached
    assert spot([0.7, 0.3, 0.7]) == [("fear", 0.0, 0.0, 0.1, 0.7), ("fear", 0.2, 0.2, 0.3, 0.7)]
    assert spot([0.7, 0.45, 0.8]) == [("fear", 0.0, 0.2, 0.3, 0.8)]
    assert spot([0.7, 0.45, 0.8], offset=0.5) == [("fear", 0.0, 0.0, 0.1, 0.7), ("fear", 0.2, 0.2, 0.3, 0.8)]
    assert spot([0.0, 0.0]) == []  # neutral is no event
    gap = Spotter(["fear"])
    for at in (0.0, 0.1, 200.0):  # minutes without a face end it, and a time that goes back does
        gap.add(at, 0.1, [0.9])
    gap.add(5.0, 0.1, [0.9])
    gap.finish()
    assert [(round(e.onset, 6), round(e.offset, 6)) for e in gap.events] == [(0.0, 0.2), (200.0, 200.1), (5.0, 5.1)]
    for wrong in ((0.4, 0.6), (0.5, 0.0), (1.1, 0.5)):
        with pytest.raises(ValueError, match="events begin at"):
            Spotter(["fear"], *wrong)


def test_smoothing_of_unsorted_and_repeated_times():
    smooth = Exponential(1.0, [expression_output(["a", "b"])])
    say = lambda at, p: smooth(1, at, {"expression": np.array([p, 1 - p], np.float32)})["expression"][0]  # noqa: E731
    assert say(0.0, 0.0) == 0
    assert say(1.0, 1.0) == pytest.approx(1 - math.exp(-1), abs=1e-6)
    assert say(1.0, 0.0) == pytest.approx(1 - math.exp(-1), abs=1e-6)  # no time has passed
    assert say(0.5, 0.25) == 0.25  # the time of nothing that is known: it begins anew
    assert say(600.0, 1.0) == pytest.approx(1, abs=1e-6)
    smooth.forget(700.0)
    assert say(700.0, 0.5) == 0.5


def test_times_that_jump_and_stay_have_a_line_each(here, whole_frame):
    film(here / "a.mkv", [flat(9)] * 4, pts=[0, 40, 200_040, 200_080], time_base=Fraction(1, 1000), codec="ffv1")
    with pytest.warns(MienWarning, match=r"a.mkv: no frame from 0.0 to 200.0 seconds$"):
        frames = list(read_video("a.mkv", whole_frame, track=True))
    assert [frame.time for frame in frames] == [0, 0.04, 200.04, 200.08]
    film(here / "b.mkv", [flat(9)] * 4, pts=[0, 40, 40, 80], time_base=Fraction(1, 1000), codec="ffv1")
    with pytest.warns(MienWarning, match="b.mkv: a frame has a time not later than the one before"):
        assert len(list(read_video("b.mkv", whole_frame, track=True))) == 4


def test_the_people_and_the_events_of_a_video(here, call, stand_in, monkeypatch):
    """What a terminal shows at the end, and the file of events."""
    images = [flat(COLOURS["neutral"])] * 10 + [flat(COLOURS["anger"])] * 20 + [flat(COLOURS["neutral"])] * 10
    film(here / "a.mkv", images, time_base=Fraction(1, 10), codec="ffv1")
    read = ["--model", stand_in, "--aligned", "--track", "--smooth", "0", "--cuts", "off"]
    code, out, err = call("read", "a.mkv", *read, "--events", "e.csv", "--output", "rows.csv")
    assert (code, err) == (0, []) and "e.csv: 1 event" in out
    lines = list(csv.reader((here / "e.csv").open()))
    assert lines[0] == ["person", "expression", "onset", "apex", "offset", "peak"]
    assert lines[1][:5] == ["1", "anger", "1.0", "1.0", "3.0"] and float(lines[1][5]) > 0.99
    shutil.copy("a.mkv", "b.mkv")
    call("read", "a.mkv", "b.mkv", *read, "--events", "two.csv", "--summary", "s.json")
    assert [row["source"] for row in csv.DictReader((here / "two.csv").open())] == ["a.mkv", "b.mkv"]
    [event] = json.loads((here / "s.json").read_text())[0]["events"]
    assert (event["expression"], event["onset"], event["offset"]) == ("anger", 1.0, 3.0)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    code, out, err = call("read", "a.mkv", *read, "--min-track", "0")
    assert code == 0 and "50%" in out[-2] and out[-2].split()[:2] == ["1", "0.00s"] and "person" in out[-3]


@pytest.mark.parametrize(
    "words, reason",
    [
        (["--events", "e.csv"], "--events needs --track"),
        (["--track", "--events", "e.json"], "ends not in .csv"),
        (["--track", "--events", "rows.csv", "--output", "rows.csv"], "--events would overwrite rows.csv"),
        (["--track", "--event-onset", "0.3"], "--event-offset 0.4: not above 0 and up to --event-onset, 0.3"),
        (["--track", "--cuts", "300"], "300: not a number of 0 to 255"),
        (["--min-track", "1s"], "--min-track needs --track"),
        (["--track", "--min-track", "1m"], "1m: not a number"),
    ],
)
def test_misuse(here, call, stand_in, words, reason):
    (here / "a.mp4").touch()
    code, _, err = call("read", "a.mp4", "--model", stand_in, *words)
    assert code == 2 and reason in err[-1]


def test_a_line_about_flickers(here, call, stand_in):
    film(here / "a.mkv", [flat(9)] * 3, codec="ffv1")
    words = ["--model", stand_in, "--aligned", "--track", "--summary", "s.csv"]
    code, out, err = call("read", "a.mkv", *words)
    assert (code, len(out)) == (0, 3)  # its rows are all there
    assert err == ["mien: a track of less than 0.5 s left out of summaries and events (--min-track)"]
    assert len((here / "s.csv").read_text().splitlines()) == 1
    call("read", "a.mkv", *words, "--min-track", "0.1s")
    assert len((here / "s.csv").read_text().splitlines()) == 2
