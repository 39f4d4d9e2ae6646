"""Searching a picture for faces: how often it is looked at, small faces, strips, turned pictures, what is no face."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_faces import PHOTOGRAPHS, crop_distance, mosaic
from test_reader import SQUARE, Blocks, key, picture

from mien.classifier import Classifier
from mien.faces import SEARCHES, Detection, Face, Faces, YuNet, find_faces, find_framed, find_known, open_picture
from mien.faces.record import picture_records
from mien.faces.search import turn_face, turn_image, upright
from mien.faces.tiles import LOOK, fit, padded, plan, shrink
from mien.reader import Reader

EXAMPLES = Path(__file__).parents[1] / "examples"
GALAXY = Path(__file__).parent / "golden" / "galaxy.jpg"
TURNS = (90, 180, 270)


class Counted:
    """YuNet's engine, which notes the shape of each picture that it is run on."""

    def __init__(self):
        self._engine, self.shapes = YuNet()._engine, []

    def __call__(self, x):
        self.shapes.append(x.shape[2:])
        return self._engine(x)


@pytest.fixture
def counted():
    return Counted()


@pytest.fixture(scope="module")
def yunet():
    return YuNet()


@pytest.fixture(scope="module")
def cuts(yunet):
    """A face out of each example, with as much again about it, and its box in it."""
    found = []
    for name in ("astronaut.png", "hopper.jpg"):
        image = open_picture(EXAMPLES / name)
        [face] = yunet(image)
        x, y, w, h = map(round, face.box)
        left, top = max(0, x - w // 2), max(0, y - h // 2)
        found.append((image[top : y + h + h // 2, left : x + w + w // 2], (x - left, y - top, w, h)))
    return found


def leaves(height: int, width: int) -> np.ndarray:
    """A picture without faces that is no plain grey."""
    noise = np.random.default_rng(0).integers(0, 256, (max(1, height // 40), max(1, width // 40), 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


# ---- how often it is looked at


@pytest.mark.parametrize("height, width", [(480, 640), (48, 48), (1080, 1920), (3000, 4000), (1, 5000)])
def test_a_picture_without_faces_is_looked_at_four_times_at_most(counted, height, width):
    assert find_faces(YuNet(engine=counted), leaves(height, width), search="fast", turn=False) == []
    assert 1 <= len(counted.shapes) <= 4


def test_whoever_asks_the_detector(counted, stand_in):
    """The reader, the detector wrapped into somebody else's, a video: each turn takes four looks at most."""
    image, yunet = leaves(480, 640), YuNet(engine=counted)
    for detector in (yunet, lambda image: yunet(image)):
        counted.shapes.clear()
        assert Reader(Classifier.from_pretrained(stand_in), detector)(image) == []
        assert 4 <= len(counted.shapes) <= 4 + 3 * 2
    av = pytest.importorskip("av")
    from mien.video.follow import Finder

    assert av
    for detector in (yunet, lambda image: yunet(image)):
        counted.shapes.clear()
        assert Finder(Reader(Classifier.from_pretrained(stand_in), detector)).find(image) == []
        assert 1 <= len(counted.shapes) <= 4


def test_one_look_is_enough_where_it_finds_a_face(counted):
    image = open_picture(EXAMPLES / "astronaut.png")
    assert len(find_faces(YuNet(engine=counted), image)) == 1
    assert len(counted.shapes) == 1 and np.prod(counted.shapes[0]) < 0.5 * image[:, :, 0].size


def test_a_detector_of_ones_own_is_asked_in_the_same_way():
    """Of the picture and of the picture framed, for each turn; once only where it finds something."""
    seen = []

    def blind(image):
        seen.append(image.shape)
        return []

    image = np.zeros((300, 400, 3), np.uint8)
    assert find_faces(blind, image) == []
    assert seen == [(300, 400, 3), (480, 640, 3), (400, 300, 3), (300, 400, 3), (400, 300, 3)]
    seen.clear()
    assert find_faces(blind, image[:150, :200]) == []
    assert seen == 2 * [(150, 200, 3), (480, 640, 3), (200, 150, 3), (640, 480, 3)]
    seen.clear()
    assert find_faces(blind, image, turn=False) == [] and len(seen) == 2
    calls = []

    def blocks(image):
        calls.append(image.shape)
        return Blocks()(image)

    assert len(find_faces(blocks, picture("anger", "sadness"))) == 2 and len(calls) == 1


def test_a_crop_is_found_framed_in_a_video_too(stand_in):
    """By a detector of one's own, which finds only what has a border."""
    pytest.importorskip("av")
    from mien.video.follow import Finder

    def shy(image):
        if image[0, 0].any():
            return []
        y, x = np.argwhere(image.any(2))[0]
        return [Detection((float(x), float(y), 150.0, 150.0), 0.95, SQUARE * 150 + np.float32((x, y)))]

    [face] = Finder(Reader(Classifier.from_pretrained(stand_in), shy)).find(np.full((100, 100, 3), 200, np.uint8))
    assert np.abs(np.array(face.box[:2])).max() < 1


def test_unknown_searches_are_refused(yunet, stand_in):
    with pytest.raises(ValueError, match="fast, auto, full, not 'deep'"):
        find_faces(yunet, leaves(40, 40), search="deep")
    with pytest.raises(ValueError, match="not 'deep'"):
        Reader(Classifier.from_pretrained(stand_in), Blocks(), search="deep")
    assert Reader.from_pretrained(stand_in, search="full").search == "full"


def test_old_names_still_work(yunet):
    from mien.faces import detect_or_retry, look_again

    image = open_picture(EXAMPLES / "astronaut.png")
    with pytest.warns(DeprecationWarning, match="find_faces"):
        assert len(detect_or_retry(yunet, image)) == 1
    with pytest.warns(DeprecationWarning, match="find_framed"):
        assert len(look_again(yunet, image)) == 1


# ---- scales and tiles


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 30_000), st.integers(1, 30_000), st.floats(0.001, 1))
def test_one_look_is_bounded_with_its_padding(width, height, scale):
    fitted = fit(width, height, scale)
    assert 0 < fitted <= scale
    assert padded(round(width * fitted)) * padded(round(height * fitted)) <= LOOK
    if fitted < scale:  # and it is not much smaller than it has to be
        larger = 1.3 * fitted
        assert padded(round(width * larger)) * padded(round(height * larger)) > 0.9 * LOOK


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(0, 160))
def test_tiles_cover_the_picture_and_overlap(width, height, overlap):
    planned = plan(width, height, overlap)
    assert planned.cost >= sum(padded(r - x) * padded(b - y) for x, y, r, b in planned.tiles)
    assert all(padded(r - x) * padded(b - y) <= LOOK for x, y, r, b in planned.tiles)
    for low, high, length in ((0, 2, width), (1, 3, height)):
        spans = sorted({(tile[low], tile[high]) for tile in planned.tiles})
        assert spans[0][0] == 0 and spans[-1][1] == length
        assert all(before[1] - after[0] >= overlap for before, after in zip(spans, spans[1:], strict=False))
    assert len(set(planned.tiles)) == len(planned.tiles)


def test_shrinking_is_close_to_averaging(yunet):
    image = open_picture(EXAMPLES / "hopper.jpg")
    for width, height in ((512, 600), (333, 390), (256, 300), (200, 235), (77, 90)):
        small = shrink(image, width, height)
        assert small.shape == (height, width, 3)
        wanted = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        assert np.abs(small.astype(int) - wanted).mean() < 6
    assert shrink(image, 512, 600) is image


def hits(found, boxes) -> tuple[int, int, int]:
    """How many of the boxes were found, how many twice, and how many finds are of none of them."""
    counts, false = np.zeros(len(boxes), int), 0
    for face in found:
        near = [abs(face.box[0] - x) + abs(face.box[1] - y) + abs(face.box[2] - w) for x, y, w, _ in boxes]
        best = int(np.argmin(near))
        if near[best] < 0.8 * boxes[best][2]:
            counts[best] += 1
        else:
            false += 1
    return int((counts > 0).sum()), int((counts > 1).sum()), false


def test_small_faces_in_a_large_photograph(yunet, cuts):
    """40 faces of 48 pixels in 24 megapixels: all of them, once each."""
    image = np.full((4000, 6000, 3), 110, np.uint8)
    boxes = []
    for i in range(40):
        part, found = mosaic(cuts[i % 2 :], 140, 140, [48])
        y, x = 37 + 970 * (i // 10), 29 + 593 * (i % 10)
        image[y : y + 140, x : x + 140] = part
        boxes.append((found[0][0] + x, found[0][1] + y, *found[0][2:]))
    found = find_faces(yunet, image)
    assert hits(found, boxes) == (40, 0, 0)
    assert found.note == "faces under 27 px were not searched for"
    fast = find_faces(yunet, image, search="fast")
    assert hits(fast, boxes)[0] < 20 and fast.note == "faces under 74 px were not searched for"


def test_large_and_small_faces_in_tiles(yunet, cuts):
    """From 25 to 1,200 pixels, also across the edges of tiles: each is found once, in "full" without a note."""
    image, boxes = mosaic(cuts, 4200, 3800, [1200, 600, 27, 30, 45, 25, 300, 150, 80, 60, 25, 48, 36, 27, 33, 25, 240])
    found = find_faces(yunet, image, search="full")
    assert hits(found, boxes) == (len(boxes), 0, 0)
    assert found.note is None
    areas = [face.box[2] * face.box[3] for face in found]
    assert areas == sorted(areas, reverse=True)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("height, width", [(480, 640), (1152, 1536), (3000, 4000), (9000, 13000), (1, 10**7)])
def test_the_work_is_bounded_and_the_note_says_what_was_left_out(counted, search, height, width):
    detector = YuNet(engine=counted)
    reach = detector.reach((height, width, 3), search)
    assert reach >= 20
    if search == "full" or height * width < 2_000_000 or height == 1:
        assert reach == pytest.approx(20, abs=0.5)
    if search == "full" and height > 1:
        return
    image = np.zeros((height, width, 3), np.uint8)
    found = find_faces(detector, image, search=search, turn=False)
    assert found.note == (None if round(reach) == 20 else f"faces under {reach:.0f} px were not searched for")
    assert max(h * w for h, w in counted.shapes) <= LOOK
    assert sum(h * w for h, w in counted.shapes) <= {"fast": 0, "auto": 7_000_000, "full": 0}[search] + 4 * LOOK


def test_a_larger_least_face_takes_fewer_looks(counted):
    image, pixels = leaves(3000, 4000), []
    for least in (20, 40, 80):
        counted.shapes.clear()
        assert find_faces(YuNet(engine=counted, min_face=least), image, least, turn=False).note is None
        pixels.append(sum(h * w for h, w in counted.shapes))
    assert pixels[0] > 2 * pixels[1] > 3 * pixels[2]


def test_a_strip_takes_little_memory(tmp_path):
    """1 × 20,000,000 pixels, either way round: less than a gigabyte, the process included."""
    code = """
import re
from pathlib import Path
import numpy as np
from mien.faces import YuNet, find_faces
detector = YuNet()
for shape in ((1, 20_000_000, 3), (20_000_000, 1, 3), (14, 1_500_000, 3)):
    assert find_faces(detector, np.zeros(shape, np.uint8)) == []
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""  # what getrusage counts begins with the process that started this one
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(ran.stdout) * 1024 < 10**9


# ---- turned pictures


@pytest.mark.parametrize("degrees", [0, *TURNS])
def test_turning_is_undone(degrees):
    shape, rng = (60, 100, 3), np.random.default_rng(degrees)
    face = Detection((10.0, 20.0, 30.0, 25.0), 0.9, rng.uniform(0, 50, (5, 2)).astype(np.float32))
    turned = turn_face(face, shape, degrees)
    back = turn_face(turned, turn_image(np.zeros(shape), degrees).shape, -degrees)
    assert back.box == face.box and np.allclose(back.landmarks, face.landmarks, atol=1e-4)
    image = np.zeros(shape, np.uint8)
    image[20:45, 10:40] = 255
    rows, columns = np.nonzero(turn_image(image, degrees)[:, :, 0])
    x, y, w, h = turned.box
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (x, y, x + w, y + h)


@pytest.mark.parametrize("degrees", TURNS)
@pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda path: f"{path.parent.parent.name}-{path.name}")
def test_a_photograph_on_its_side_or_upside_down(yunet, path, degrees):
    image = open_picture(path)
    image = shrink(
        image, round(640 * image.shape[1] / max(image.shape)), round(640 * image.shape[0] / max(image.shape))
    )
    [wanted] = find_faces(yunet, image)
    given = turn_image(image, 360 - degrees)
    found = find_faces(yunet, given)
    assert found.rotation == degrees and len(found) == 1
    again, [face] = upright(given, found)
    np.testing.assert_array_equal(again, image)
    np.testing.assert_allclose(face.landmarks, wanted.landmarks, atol=1e-2)
    x, y, w, h = found[0].box
    assert x >= -1 and y >= -1 and x + w <= given.shape[1] + 1 and y + h <= given.shape[0] + 1
    assert crop_distance(found[0].landmarks, turn_face(wanted, image.shape, 360 - degrees).landmarks) < 0.1


def test_small_pictures_and_small_faces_turned(yunet, cuts):
    crop = cuts[0][0]
    scene = leaves(480, 640)
    scene[200:260, 300:350] = cv2.resize(crop, (50, 60), interpolation=cv2.INTER_AREA)
    for image in (cv2.resize(crop, (64, 76), interpolation=cv2.INTER_AREA), scene):
        assert find_faces(yunet, image).rotation == 0
        for degrees in TURNS:
            assert find_faces(yunet, turn_image(image, 360 - degrees)).rotation == degrees
    assert find_faces(yunet, turn_image(scene, 90), turn=False).rotation == 0


def test_a_turned_photograph_is_read_as_the_upright_one(stand_in, tmp_path):
    reader = Reader.from_pretrained(stand_in)
    image = open_picture(EXAMPLES / "astronaut.png")
    [wanted] = reader(image)
    for degrees in TURNS:
        faces = reader(turn_image(image, 360 - degrees))
        assert faces.rotation == degrees and faces[0].rotation == degrees
        assert list(faces[0].probabilities.values()) == pytest.approx(list(wanted.probabilities.values()), abs=1e-5)
        [record] = picture_records("a.png", faces)
        assert record["rotation"] == degrees and "note" not in record
    assert wanted.rotation == 0


def test_a_face_without_landmarks_is_turned_as_well(stand_in_loose, cuts):
    """A model that is shown the box, and not an aligned face, sees it upright."""
    reader, shown = Reader(stand_in_loose, YuNet()), []
    crop = reader.classifier.crop

    def spy(*values):
        shown.append(crop(*values))
        return shown[-1]

    reader.classifier.crop = spy
    image = open_picture(EXAMPLES / "hopper.jpg")
    reader(image)
    reader(turn_image(image, 90))
    np.testing.assert_allclose(shown[0].astype(float), shown[1], atol=1)


@pytest.fixture
def stand_in_loose(stand_in):
    classifier = Classifier.from_pretrained(stand_in)
    classifier.header = {**classifier.header, "preprocess": {**classifier.header["preprocess"], "align": "none"}}
    return classifier


# ---- what is no face


def test_a_galaxy_is_no_face(yunet):
    image = open_picture(GALAXY)
    [doubtful] = yunet.find(image)
    assert doubtful.score < 0.85 and not yunet.confirm(image, doubtful)
    assert find_faces(yunet, image) == []
    assert len(find_known(yunet, image)) == 1  # where somebody knows better
    for degrees in TURNS:
        assert find_faces(yunet, turn_image(image, degrees)) == []


@pytest.mark.parametrize("name", ["astronaut.png", "hopper.jpg"])
def test_faces_that_are_hard_to_see_are_confirmed(yunet, name):
    """Small, blurred, dark and half hidden ones."""
    image = open_picture(EXAMPLES / name)
    [face] = yunet(image)
    blurred = cv2.GaussianBlur(image, (0, 0), face.box[2] / 20)
    dark = (image * 0.15).astype(np.uint8)
    hidden = image.copy()
    hidden[:, : round(face.box[0] + 0.3 * face.box[2])] = 90
    small = shrink(image, round(image.shape[1] * 22 / face.box[2]), round(image.shape[0] * 22 / face.box[2]))
    for spoilt in (blurred, dark, hidden, small):
        found = find_faces(yunet, spoilt)
        assert len(found) == 1 and found.rotation == 0
        assert yunet.confirm(spoilt, Detection(found[0].box, 0.6, found[0].landmarks))  # whatever its score was


def test_a_detector_of_ones_own_is_not_doubted():
    assert len(find_faces(Blocks(), picture("anger"))) == 1


# ---- what is said of it


def test_faces_are_a_list_that_carries_its_note():
    face = Face(None, None, None, "anger", 1.0, {"anger": 1.0}, rotation=90)
    faces = pickle.loads(pickle.dumps(Faces([face], note="faces under 30 px were not searched for", rotation=90)))
    assert isinstance(faces, list) and len(faces) == 1 and faces[0].rotation == 90
    assert (faces.note, faces.rotation) == ("faces under 30 px were not searched for", 90)
    assert (Faces().note, Faces().rotation, Faces() == []) == (None, 0, True)


def test_notes_and_turns_stand_in_all_files(stand_in, tmp_path, call, monkeypatch):
    import csv

    import pyarrow.parquet
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    image = np.zeros((2000, 3000, 3), np.uint8)
    astronaut = open_picture(EXAMPLES / "astronaut.png")
    image[200:712, 300:812] = turn_image(astronaut, 90)
    Image.fromarray(image).save("turned.png")
    Image.fromarray(image[800:]).save("nobody.png")
    note = "faces under {} px were not searched for"
    reach = [round(YuNet().reach(shape, "fast")) for shape in ((1200, 3000), (2000, 3000))]
    for name in ("out.jsonl", "out.csv", "out.parquet"):
        code, _, error = call(
            "read", "nobody.png", "turned.png", "--search", "fast", "--model", stand_in, "--output", name
        )
        assert code == 0, error
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [row["note"] for row in rows] == ["no face found; " + note.format(reach[0]), note.format(reach[1])]
    assert [row["rotation"] for row in rows] == [None, 270]
    with open("out.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["rotation"], line["note"]) for line in lines] == [
        ("", rows[0]["note"]), ("270", rows[1]["note"])
    ]  # fmt: skip
    table = pyarrow.parquet.read_table("out.parquet").to_pylist()
    assert [(row["rotation"], row["note"]) for row in table] == [(row["rotation"], row["note"]) for row in rows]


def test_a_user_who_reads_twice_gets_the_same(stand_in):
    reader = Reader.from_pretrained(stand_in)
    image = turn_image(open_picture(EXAMPLES / "hopper.jpg"), 180)
    one, [many] = reader(image), reader.read_many([image])
    assert key(one) == key(many) and one.rotation == many.rotation == 180
    assert find_framed(YuNet().find, open_picture(EXAMPLES / "hopper.jpg"))
