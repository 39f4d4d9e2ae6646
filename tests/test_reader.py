"""Reader: what it answers does not depend on how a picture comes, on its neighbours in a batch, or on threads."""

import inspect
import shutil
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import COLOURS
from PIL import Image

from mien.classifier import Classifier
from mien.errors import ReadError
from mien.faces import Detection, Face, align, open_picture
from mien.labels import EXPRESSIONS
from mien.reader import Reader

EXAMPLES = Path(__file__).parents[1] / "examples"
SQUARE = np.array([[38, 52], [74, 52], [56, 72], [42, 92], [71, 92]], np.float32) / 112


class Blocks:
    """Takes every bright square of 32×32 pixels on a grid of such squares for a face, from left to right."""

    def __call__(self, image):
        found = []
        for y in range(0, image.shape[0] - 31, 32):
            for x in range(0, image.shape[1] - 31, 32):
                if image[y : y + 32, x : x + 32].max() > 50:
                    found.append(Detection((x, y, 32, 32), 0.9, SQUARE * 32 + np.float32((x, y))))
        return found


def picture(*colours) -> np.ndarray:
    """A strip of squares of the colours' names, with a black one between any two."""
    strip = np.zeros((32, 64 * max(1, len(colours)), 3), np.uint8)
    for i, colour in enumerate(colours):
        strip[:, 64 * i : 64 * i + 32] = COLOURS[colour]
    return strip


@pytest.fixture(scope="module")
def blocks(stand_in):
    return Reader(Classifier.from_pretrained(stand_in), Blocks())


@pytest.fixture(scope="module")
def reader(stand_in):
    return Reader.from_pretrained(stand_in)


def expressions(faces):
    return [face.expression for face in faces]


def key(faces):
    return [(face.box, face.score, face.landmarks.tolist(), face.expression, face.probabilities) for face in faces]


def test_a_detector_of_ones_own(blocks):
    faces = blocks(picture("anger", "sadness", "disgust"))
    assert expressions(faces) == ["anger", "sadness", "disgust"]
    assert [face.box for face in faces] == [(0, 0, 32, 32), (64, 0, 32, 32), (128, 0, 32, 32)]
    assert all(isinstance(face, Face) and face.score == 0.9 for face in faces)
    np.testing.assert_array_equal(faces[1].landmarks, SQUARE * 32 + np.float32((64, 0)))
    assert blocks(picture()) == []


def test_a_face_has_its_shares(blocks):
    [face] = blocks(picture("anger"))
    assert tuple(face.probabilities) == EXPRESSIONS
    assert sum(face.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert face.probability == face.probabilities[face.expression] == max(face.probabilities.values())
    assert all(type(share) is float for share in face.probabilities.values())


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 32])
@pytest.mark.parametrize("workers", [1, 5])
def test_many_pictures_in_order_whatever_the_batch(blocks, batch_size, workers, tmp_path):
    names = ["anger", "disgust", "sadness"]
    noise = np.random.default_rng(batch_size)
    sources, expected = [], []
    for _ in range(60):
        shown = [str(name) for name in noise.choice(names, noise.choice([0, 0, 1, 1, 2, 9]))]
        sources.append(picture(*shown))
        expected.append(shown)
    answers = blocks.read_many(iter(sources), batch_size=batch_size, workers=workers)
    assert [expressions(faces) for faces in answers] == expected


def test_faces_of_many_pictures_share_batches(blocks, monkeypatch):
    sizes = []
    read = Classifier.read
    monkeypatch.setattr(Classifier, "read", lambda self, crops: sizes.append(len(crops)) or read(self, crops))
    answers = list(blocks.read_many([picture("anger", "sadness", "anger")] * 7, batch_size=8))
    assert sizes == [8, 8, 5] and all(len(faces) == 3 for faces in answers)


def test_a_bad_source_is_an_answer_and_the_rest_is_read(blocks, tmp_path):
    (tmp_path / "empty.png").touch()
    sources = [picture("anger"), str(tmp_path / "empty.png"), "missing.png", picture("sadness")]
    first, empty, missing, last = blocks.read_many(sources)
    assert expressions(first) == ["anger"] and expressions(last) == ["sadness"]
    assert isinstance(empty, ReadError) and "empty.png" in str(empty)
    assert isinstance(missing, ReadError) and missing.source == "missing.png"
    with pytest.raises(ReadError, match="missing.png: no such file"):
        blocks("missing.png")


def test_a_batch_of_nothing_is_refused(blocks):
    with pytest.raises(ValueError, match="at least one"):
        next(blocks.read_many([picture("anger")], batch_size=0))


@pytest.mark.parametrize("source", [None, 3, np.zeros((4, 4)), np.zeros((2, 4, 4, 3), np.uint8)])
def test_what_is_no_picture_at_all(blocks, source):
    with pytest.raises(ReadError):
        blocks(source)


def test_answers_come_while_sources_are_still_coming(blocks):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield picture("anger")

    answers = blocks.read_many(endless(), batch_size=4, workers=2)
    assert [expressions(next(answers)) for _ in range(12)] == [["anger"]] * 12
    assert len(taken) <= 12 + 4 + 2 * 2
    answers.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("mien")]


def test_pictures_without_faces_do_not_wait_for_ever(blocks):
    taken = []

    def sources():
        yield picture("anger")
        while True:
            taken.append(1)
            yield picture()

    answers = blocks.read_many(sources(), batch_size=8, workers=1)
    assert expressions(next(answers)) == ["anger"]
    assert len(taken) < 100
    answers.close()


def test_memory_does_not_grow_with_the_number_of_pictures(blocks):
    def peak(count):
        tracemalloc.start()
        for faces in blocks.read_many((np.resize(picture("anger"), (512, 64, 3)) for _ in range(count)), batch_size=8):
            assert faces
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(20)
    assert peak(80) < 1.5 * peak(20)


def test_what_goes_wrong_inside_is_not_hidden(stand_in):
    def broken(image):
        raise RuntimeError("no luck")

    reader = Reader(Classifier.from_pretrained(stand_in), broken)
    with pytest.raises(RuntimeError, match="no luck"):
        reader(picture())
    with pytest.raises(RuntimeError, match="no luck"):
        list(reader.read_many([picture()] * 9))


def test_aligned_reads_every_picture_as_a_face(stand_in):
    reader = Reader.from_pretrained(stand_in, aligned=True)
    [face] = reader(np.full((40, 48, 3), COLOURS["disgust"], np.uint8))
    assert face.expression == "disgust"
    assert (face.box, face.score, face.landmarks) == (None, None, None)
    image = Image.open(EXAMPLES / "hopper.jpg").crop((180, 120, 350, 330))
    [face] = reader(image)
    np.testing.assert_allclose(
        list(face.probabilities.values()), reader.classifier.predict_proba([image])[0], atol=1e-6
    )


def test_a_photograph_however_it_comes(reader, tmp_path):
    path = EXAMPLES / "hopper.jpg"
    expected = reader(path)
    assert len(expected) == 1
    shutil.copy(path, tmp_path / "upright.jpg")
    image = open_picture(path)
    for source in (str(path), tmp_path / "upright.jpg", image, Image.open(path), path.read_bytes()):
        assert key(reader(source)) == key(expected)
    x, y, width, height = expected[0].box
    assert 0 < x < x + width < image.shape[1] and 0 < y < y + height < image.shape[0]
    assert ((expected[0].landmarks > (x, y)) & (expected[0].landmarks < (x + width, y + height))).all()


def test_the_network_is_shown_the_aligned_face(reader):
    image = open_picture(EXAMPLES / "hopper.jpg")
    [face] = reader(image)
    crop = align(image, face.landmarks)
    np.testing.assert_allclose(list(face.probabilities.values()), reader.classifier.run(crop[None])[0], atol=1e-6)


def test_boxes_are_in_pixels_of_the_upright_picture(reader, tmp_path):
    image = Image.open(EXAMPLES / "hopper.jpg").convert("RGB")
    exif = Image.Exif()
    exif[274] = 6  # to be turned clockwise by a quarter
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    assert key(reader(tmp_path / "turned.png")) == key(reader(image))


def test_eight_threads_answer_as_one(reader):
    sources = [open_picture(EXAMPLES / name) for name in ("hopper.jpg", "astronaut.png")]
    sources += [np.ascontiguousarray(image[:, ::-1]) for image in sources] + [image[::2, ::2] for image in sources]
    sources += [EXAMPLES / "hopper.jpg", np.full((64, 64, 3), 128, np.uint8)]
    sources *= 6
    expected = [key(reader(source)) for source in sources]
    assert any(expected)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda source: key(reader(source)), sources)) == expected


def test_one_at_a_time_or_many_the_same(reader):
    sources = [EXAMPLES / "hopper.jpg", EXAMPLES / "astronaut.png", np.zeros((50, 50, 3), np.uint8)] * 3
    for alone, faces in zip([reader(source) for source in sources], reader.read_many(sources), strict=True):
        assert [face.box for face in faces] == [face.box for face in alone]
        assert expressions(faces) == expressions(alone)
        for face, same in zip(faces, alone, strict=True):
            np.testing.assert_allclose(list(face.probabilities.values()), list(same.probabilities.values()), atol=1e-5)


def test_from_pretrained_takes_all_that_a_reader_takes():
    taken = {
        name: inspect.signature(make).parameters
        for name, make in (("Reader", Reader), ("opened", Reader.from_pretrained))
    }
    for name, parameter in taken["Reader"].items():
        if name not in ("classifier", "measures"):  # which it makes
            assert taken["opened"][name].default == parameter.default, name


def test_limits_of_a_reader_that_was_opened(stand_in, tmp_path):
    picture = np.zeros((60, 60, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    with pytest.raises(ReadError, match="pixels"):
        Reader.from_pretrained(stand_in, aligned=True, max_pixels=1_000)(tmp_path / "a.png")
    many = lambda image: [Detection((0, 0, 30, 30), 0.9, np.zeros((5, 2), np.float32))] * 3  # noqa: E731
    with pytest.raises(ReadError, match="3 faces, more than 2"):
        Reader.from_pretrained(stand_in, detector=many, max_faces=2)(picture)


def test_min_face_and_threshold(stand_in):
    path = EXAMPLES / "hopper.jpg"
    [face] = Reader.from_pretrained(stand_in, min_face=20)(path)
    shorter = min(face.box[2:])
    assert Reader.from_pretrained(stand_in, min_face=0.9 * shorter)(path)
    assert not Reader.from_pretrained(stand_in, min_face=1.1 * shorter)(path)
    assert not Reader.from_pretrained(stand_in, threshold=0.999)(path)


def test_pictures_of_too_many_pixels_or_faces_are_refused(stand_in):
    strict = Reader(Classifier.from_pretrained(stand_in), Blocks(), max_pixels=5000, max_faces=1)
    small, crowded, large = (Image.fromarray(picture(*["anger"] * count)) for count in (1, 2, 3))
    with ThreadPoolExecutor(2) as pool:
        told = list(strict.read_many([small, crowded, large], workers=pool))
        assert pool.submit(int).result() == 0  # a pool that was lent is given back as it was
    assert expressions(told[0]) == ["anger"]
    assert [error.reason for error in told[1:]] == ["2 faces, more than 1", "192×32, more than 5,000 pixels"]
    with pytest.raises(ReadError, match="192×32"):
        strict(large)
