"""The tracker: who keeps which number."""

import numpy as np
import pytest

from mien.video import Tracker
from mien.video.track import overlaps

SIZE = (640, 480)


def follow(frames, times=None, **options):
    """The numbers of the boxes of each frame; a box is (middle x, middle y), 60 wide and 80 high."""
    tracker, told = Tracker(**options), []
    rng = np.random.default_rng(0)
    for i, places in enumerate(frames):
        tracker.predict(0.04 * i if times is None else times[i], SIZE)
        boxes = [(x - 30, y - 40, 60, 80) + rng.normal(0, 1.5, 4) for x, y in places]
        told.append(tracker.update(boxes))
    return told


def test_numbers_are_those_of_places_whatever_the_order():
    frames = [[(100 + 3 * i, 200), (400 - 2 * i, 220), (250, 80)] for i in range(40)]
    shuffled = [[frame[(i + k) % 3] for k in range(3)] for i, frame in enumerate(frames)]
    for i, ids in enumerate(follow(shuffled)):
        assert ids == [(i + k) % 3 + 1 for k in range(3)]


def test_people_who_cross_keep_their_numbers():
    frames = [[(100 + 6 * i, 200), (500 - 6 * i, 210)] for i in range(67)]
    assert follow(frames) == [[1, 2]] * 67


def test_one_hidden_while_they_cross():
    """The detector sees but one of two faces that cover one another."""
    frames = [[(100 + 6 * i, 200), (500 - 6 * i, 210)] for i in range(67)]
    for i in range(29, 38):
        del frames[i][1]
    told = follow(frames)
    assert told[:29] == [[1, 2]] * 29 and told[38:] == [[1, 2]] * 29 and all(len(ids) == 1 for ids in told[29:38])
    assert {ids[0] for ids in told[29:38]} <= {1, 2}


@pytest.mark.parametrize("gap, number", [(5, 1), (20, 1), (30, 2)])
def test_a_gap(gap, number):
    """At 25 frames a second someone who walks on is known again within a second, and not after it."""
    frames = [[(100 + 4 * i, 200)] for i in range(60)]
    for i in range(20, 20 + gap):
        frames[i] = []
    told = follow(frames)
    assert told[19] == [1] and told[20 + gap :] == [[number]] * (40 - gap)


def test_entering_and_leaving():
    walk = [[(630 - 12 * i, 200)] if 630 - 12 * i > 5 else [] for i in range(60)]
    stay = (320, 400)
    told = follow([[stay, *place] for place in walk] + [[stay]] * 3 + [[stay, (5, 200)]] * 3)
    assert told[0] == [1, 2] and told[51] == [1, 2]
    assert told[-4] == [1] and told[-1] == [1, 3]  # who comes back is somebody new


def test_frames_at_any_rate():
    """Expected where the time says, not the count of frames."""
    times = [0.0, 0.04, 0.08, 0.12, 0.16, 0.2, 0.24, 0.28, 0.32, 0.36, 0.8, 0.84, 0.88, 1.4, 1.44]
    frames = [[(50 + 350 * t, 200), (50 + 350 * t, 300)] for t in times]
    assert follow(frames, times) == [[1, 2]] * len(times)


def test_without_births_strangers_have_no_number():
    tracker = Tracker()
    tracker.predict(0, SIZE)
    assert tracker.update([(10, 10, 50, 50)]) == [1]
    tracker.predict(0.04, SIZE)
    assert tracker.update([(300, 10, 50, 50), (11, 10, 50, 50)], births=False) == [None, 1]
    assert tracker.update([(300, 10, 50, 50)]) == [2]


def test_expected_where_it_goes_on():
    tracker = Tracker()
    for i in range(25):
        tracker.predict(0.04 * i, SIZE)
        tracker.update([(100 + 4 * i, 50, 60, 80)])
    doubt = tracker.tracks[0].doubt
    [track] = tracker.predict(0.96 + 0.4, SIZE)
    np.testing.assert_allclose(track.box, (100 + 4 * 34, 50, 60, 80), atol=3)
    assert track.doubt > 2 * doubt


def test_overlaps():
    a, b = np.array([[0.0, 0, 10, 10], [5, 0, 10, 10]]), np.array([[0.0, 0, 10, 10], [100, 0, 10, 10], [10, 0, 10, 10]])
    np.testing.assert_allclose(overlaps(a, b), [[1, 0, 0], [1 / 3, 0, 1 / 3]])
    np.testing.assert_allclose(overlaps(a[:1], b[2:], np.array([[5.0]])), [[1 / 3]])  # 20 wide, 10 apart
    assert overlaps(a[:0], b).shape == (0, 3)
