"""What people do with faces: draw them, cut them out, hide them, hand them on as rows; and the colours of answers."""

import csv
import io
import itertools
import json
import os
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import COLOURS, HEADER, write_stand_in
from PIL import Image

import mien
from mien.commands.terminal import Progress, TerminalTable
from mien.demo import show
from mien.errors import MienError, MissingExtra, ReadError
from mien.faces import Face, Faces, open_picture
from mien.faces.draw import draw, hide, label_of
from mien.faces.palette import EXPRESSIONS as COLOUR_OF
from mien.faces.palette import OTHERS, colour_of, css, ink_on, palette
from mien.labels import EXPRESSIONS
from mien.outputs import expression_output
from mien.video import TrackedFace

EXAMPLES = Path(__file__).parents[1] / "examples"
ASTRONAUT = EXAMPLES / "astronaut.png"
POINTS = np.array([[30, 30], [50, 30], [40, 40], [32, 52], [48, 52]], np.float32)


def face(box=(20.0, 20.0, 40.0, 40.0), expression="happiness", labels=EXPRESSIONS, probability=0.9, **more) -> Face:
    rest = (1 - probability) / (len(labels) - 1)
    probabilities = {label: probability if label == expression else rest for label in labels}
    return Face(box, 0.9, POINTS, expression, probability, probabilities, **more)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def reader(stand_in):
    return mien.Reader.from_pretrained(stand_in)


# ---- colours


def seen(colour, without: str = "") -> np.ndarray:
    """CIE L*a*b* of an sRGB colour, as it looks to somebody without one kind of cone (Machado et al., 2009)."""
    cones = {
        "": np.eye(3),
        "L": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "M": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        "S": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    }
    part = np.array(colour) / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(cones[without]) @ linear, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ linear / (0.95047, 1, 1.08883)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("without", ["", "L", "M", "S"])
@pytest.mark.parametrize(
    "labels", [EXPRESSIONS, tuple("abc"), tuple("abcdefghijkl"), ("anger", "joy", "calm", "fear", "awe")]
)
def test_labels_stay_apart_for_the_colour_blind(labels, without):
    colours = palette(labels)
    assert list(colours) == [*labels, "uncertain"] or set(colours) == {*labels, "uncertain"}
    looks = [seen(colours[label], without) for label in labels]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(looks, 2)) > 15
    white = seen((255, 255, 255), without)
    assert all(np.linalg.norm(look - white) > 10 for look in looks)


def test_expressions_keep_their_colours_among_others():
    assert palette(EXPRESSIONS) == COLOUR_OF | {"uncertain": (255, 255, 255)}
    mixed = palette(["sadness", "boredom"])
    assert mixed["sadness"] == COLOUR_OF["sadness"] != mixed["boredom"]
    many = [f"class {i}" for i in range(30)]
    assert len({palette(many)[label] for label in many}) == len(OTHERS) == 12
    assert colour_of("nonsense", many) == colour_of("uncertain", many) == (255, 255, 255)
    assert css((240, 228, 66)) == "#f0e442"
    assert ink_on((240, 228, 66)) == (0, 0, 0) and ink_on((0, 0, 120)) == (255, 255, 255)
    assert ink_on(COLOUR_OF["disgust"]) == (0, 0, 0)  # white has a contrast of 3.4


@pytest.mark.parametrize("count", [3, 12])
def test_own_labels_have_coloured_boxes_and_pages(count):
    labels = [f"state {i}" for i in range(count)]
    image = np.full((200, 300, 3), 255, np.uint8)
    for label in labels:
        one = face((100.0, 60.0, 90.0, 90.0), label, labels)
        drawn = np.asarray(draw(image, [one])).reshape(-1, 3)
        colour = palette(labels)[label]
        assert colour != (255, 255, 255) and (drawn == colour).all(1).sum() > 200
        html = show.photograph("data:,", (300, 200), [one]) + show.bars(one)
        assert f"--expression:{css(colour)}" in html and f"background:{css(colour)}" in html


# ---- drawing


def test_numbers_stand_where_there_are_several(monkeypatch):
    written = []
    monkeypatch.setattr("PIL.ImageDraw.ImageDraw.text", lambda self, at, text, *rest, **more: written.append(text))
    image = np.zeros((300, 300, 3), np.uint8)
    two = [face((20.0, 100.0, 60.0, 60.0)), face((150.0, 100.0, 60.0, 60.0), "anger", probability=0.31, doubtful=True)]
    draw(image, two)
    draw(image, two[:1])
    draw(image, two, ["7", ""])
    assert written == ["0 happiness 90%", "1 anger? 31%", "happiness 90%", "7 happiness 90%", "anger? 31%"]
    assert label_of(face(probability=0.998)) == "happiness >99%" and label_of(face(probability=1.0)) == "happiness 100%"


def test_options_of_drawing():
    image = np.full((300, 600, 3), 128, np.uint8)
    one = face((150.0, 100.0, 100.0, 100.0))
    moved = replace(one, landmarks=one.landmarks + (150, 100))
    plain = np.asarray(draw(image, [moved], boxes=False, labels=False))
    np.testing.assert_array_equal(plain, image)
    changed = {}
    for option in ("boxes", "labels", "bars", "landmarks", "blur"):
        options = {"boxes": False, "labels": False} | {option: True}
        changed[option] = (np.asarray(draw(image, [moved], **options)) != image).any(2)
    assert changed["boxes"][100, 200] and not changed["boxes"][130, 200]
    assert changed["labels"].any() and not changed["labels"][102:198, 152:248].any()
    assert changed["bars"].sum() > changed["labels"].sum() and not changed["bars"][102:198, 152:248].any()
    for x, y in moved.landmarks.astype(int):
        assert changed["landmarks"][y, x]
    assert changed["landmarks"].sum() < 1000
    assert not changed["blur"].any()  # the picture is all of one colour
    assert image.min() == image.max() == 128  # what was handed in stays as it is


def test_line_width_follows_the_face_not_the_picture():
    def width(side, picture):
        image = np.zeros((picture, picture, 3), np.uint8)
        drawn = np.asarray(draw(image, [face((50.0, 50.0, side, side))], labels=False))
        row = drawn[50 + int(side / 2), : 50 + int(side / 2)]
        return int((row == COLOUR_OF["happiness"]).all(1).sum())

    assert width(200.0, 400) == width(200.0, 4000) == 4
    assert width(40.0, 400) == width(40.0, 4000) == 1


def test_tables_of_bars_do_not_cover_faces_where_there_is_room():
    image = np.zeros((600, 900, 3), np.uint8)
    faces = [face((x, 240.0, 90.0, 90.0), expression) for x, expression in ((100.0, "fear"), (500.0, "anger"))]
    drawn = np.asarray(draw(image, faces, boxes=False, labels=False, bars=True))
    for one in faces:
        x, y, w, h = map(int, one.box)
        assert not drawn[y : y + h, x : x + w].any()


# ---- hiding


def test_hidden_faces_cannot_be_told_apart():
    image = open_picture(ASTRONAUT)
    box = (178.0, 62.0, 92.0, 113.0)
    hidden = hide(image, [face(box)])
    x, y, w, h = map(int, box)
    outside = np.ones(image.shape[:2], bool)
    outside[y - int(0.2 * h) - 1 : y + int(1.2 * h) + 2, x - int(0.2 * w) - 1 : x + int(1.2 * w) + 2] = False
    np.testing.assert_array_equal(hidden[outside], image[outside])
    part = hidden[y : y + h, x : x + w].astype(float)
    assert (
        np.abs(np.diff(part, axis=1)).max()
        < 15
        < np.abs(np.diff(image[y : y + h, x : x + w].astype(float), axis=1)).max()
    )
    assert np.linalg.matrix_rank(part[:, :, 0], tol=part.max()) <= 6  # no more is in it than in so many patches
    for beyond in ((-500.0, 0.0, 90.0, 90.0), (500.0, 500.0, 90.0, 90.0), (0.0, 0.0, 0.5, 0.5)):
        assert hide(image, [face(beyond)]).shape == image.shape
    whole = hide(image, [replace(face(), box=None)])
    assert np.abs(np.diff(whole.astype(float), axis=1)).max() < 15


# ---- faces as a list


def test_reading_gives_faces_that_draw_themselves(here, reader):
    faces = reader(ASTRONAUT)
    assert isinstance(faces, Faces) and len(faces) == 1 and faces.name == str(ASTRONAUT)
    np.testing.assert_array_equal(faces.image(), open_picture(ASTRONAUT))
    np.testing.assert_array_equal(faces.plot(), draw(open_picture(ASTRONAUT), faces))
    np.testing.assert_array_equal(
        faces.plot(bars=True, landmarks=True), draw(faces.image(), faces, bars=True, landmarks=True)
    )
    for name, kind in (("a.png", "PNG"), ("a.JPG", "JPEG"), ("a.webp", "WEBP"), ("a.tiff", "TIFF")):
        faces.save(name)
        assert Image.open(name).format == kind and Image.open(name).size == (512, 512)
    with pytest.raises(MienError, match="a.heic: ends in none of"):
        faces.save("a.heic")
    assert sorted(os.listdir()) == ["a.JPG", "a.png", "a.tiff", "a.webp"]
    shown = Image.open(io.BytesIO(faces._repr_png_()))
    np.testing.assert_array_equal(shown, faces.plot())


def test_rows_are_those_of_mien_read(here, reader, stand_in, call):
    faces = reader(str(ASTRONAUT))
    _, [line], _ = call("read", ASTRONAUT, "--model", stand_in)
    assert faces.to_dicts() == [json.loads(line)] == json.loads(faces.to_json())
    assert faces.to_json(indent=2).startswith("[\n  {")
    none = reader(np.zeros((60, 60, 3), np.uint8))
    assert none.to_dicts()[0]["note"].startswith("no face found") and none.to_dicts()[0]["source"] == "array"
    assert faces[0].to_dict() == {
        name: value for name, value in json.loads(line).items() if name not in ("source", "face")
    }


def test_pandas(here, reader, stand_in, call):
    pytest.importorskip("pandas")
    faces = reader(str(ASTRONAUT))
    assert call("read", ASTRONAUT, "--model", stand_in, "--output", "rows.csv")[0] == 0
    [row] = csv.DictReader(Path("rows.csv").read_text().splitlines())
    table = faces.to_pandas()
    assert len(table) == 1
    for name, value in row.items():
        if value:
            found = table[name][0]
            assert str(found) == value or float(found) == float(value), name
    assert set(table.columns) <= set(row)
    assert len(reader(np.zeros((60, 60, 3), np.uint8)).to_pandas()) == 1


def test_packages_that_are_not_there(reader, monkeypatch):
    faces = reader(ASTRONAUT)
    for package in ("pandas", "supervision"):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingExtra, match=f"this needs {package}: pip install {package}"):
            getattr(faces, f"to_{package}")()


def test_supervision(reader, monkeypatch):
    monkeypatch.setitem(
        sys.modules, "supervision", SimpleNamespace(Detections=lambda **parts: SimpleNamespace(**parts))
    )
    faces = Faces([face((20.0, 30.0, 40.0, 50.0)), face(expression="anger", probability=0.5)], source=None)
    found = faces.to_supervision()
    np.testing.assert_array_equal(found.xyxy, [[20, 30, 60, 80], [20, 20, 60, 60]])
    assert found.class_id.tolist() == [EXPRESSIONS.index("happiness"), EXPRESSIONS.index("anger")]
    assert found.data["class_name"].tolist() == ["happiness", "anger"]
    np.testing.assert_allclose(found.confidence, [0.9, 0.9])
    assert Faces().to_supervision().xyxy.shape == (0, 4)


def test_crops_are_upright():
    image = np.zeros((200, 300, 3), np.uint8)
    image[60:100, 100:160] = 9
    image[60, 100] = 200  # the corner at the top left
    one = face((100.0, 60.0, 60.0, 40.0))
    [cut] = Faces([one]).crops(image, margin=0)
    np.testing.assert_array_equal(cut, image[60:100, 100:160])
    [wide] = Faces([one]).crops(image)
    assert wide.shape == (60, 90, 3)
    for rotation, corner in ((90, (0, -1)), (180, (-1, -1)), (270, (-1, 0))):
        [turned] = Faces([one], rotation=rotation).crops(image, margin=0)
        assert turned[corner][0] == 200 and turned.shape == ((40, 60, 3) if rotation == 180 else (60, 40, 3))
    [edge] = Faces([face((280.0, -20.0, 60.0, 60.0))]).crops(image, margin=0)
    assert edge.shape == (40, 20, 3)


def test_what_is_kept_of_a_picture(here, reader):
    data = ASTRONAUT.read_bytes()
    for source in (data, io.BytesIO(data), open_picture(data), Image.open(ASTRONAUT)):
        faces = reader(source)
        assert faces.plot().size == (512, 512)
    [faces] = reader.read_many([data])
    with pytest.raises(MienError, match="picture: the picture was not kept: hand it to the method as image="):
        faces.plot()
    assert faces.plot(open_picture(data)).size == (512, 512) and faces._repr_png_() is None
    [faces] = reader.read_many([data], keep=True)
    assert faces.plot().size == (512, 512)
    Path("gone.png").write_bytes(data)
    [faces] = reader.read_many(["gone.png"])
    os.chdir("/")
    assert faces.plot().size == (512, 512)  # though the folder is another
    os.unlink(here / "gone.png")
    with pytest.raises(ReadError, match="gone.png: no such file"):
        faces.plot()


def test_showing(reader, monkeypatch, capsys):
    from PIL import ImageShow

    faces, shown = reader(ASTRONAUT), []
    monkeypatch.setattr(ImageShow, "show", lambda picture, title: shown.append((picture.size, title)) or True)
    faces.show(bars=True)
    assert shown == [((512, 512), str(ASTRONAUT))]
    monkeypatch.setattr(ImageShow, "show", lambda picture, title: False)
    with pytest.raises(MienError, match="nothing to show a picture with"):
        faces.show()
    ZMQInteractiveShell = type("ZMQInteractiveShell", (), {})  # of a notebook
    monkeypatch.setattr("builtins.get_ipython", ZMQInteractiveShell, raising=False)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace())
    monkeypatch.setitem(
        sys.modules, "IPython.display", SimpleNamespace(display=lambda picture: shown.append(picture.size))
    )
    faces.show()
    assert shown[1:] == [(512, 512)]


def test_faces_are_equal_by_value_and_are_pickled(reader):
    first, second = reader(ASTRONAUT), reader(ASTRONAUT)
    assert first == second and first[0] == second[0] and hash(first[0]) == hash(second[0])
    assert first[0] != replace(first[0], landmarks=first[0].landmarks + 1)
    for change in ({"box": None}, {"expression": "fear"}, {"doubtful": True}, {"rotation": 90}, {"landmarks": None}):
        assert face() != replace(face(), **change)
    assert face() != "face" and len({face(), face()}) == 1
    again = pickle.loads(pickle.dumps(first))
    assert isinstance(again, Faces) and again == first and (again.name, again.source) == (first.name, first.source)
    assert again.plot().size == (512, 512)
    tracked = TrackedFace((0.0, 0.0, 9.0, 9.0), 0.9, POINTS, "fear", 0.5, {"fear": 0.5}, 3, None, doubtful=True)
    assert pickle.loads(pickle.dumps(tracked)) == tracked != replace(tracked, track=4)
    assert tracked != Face((0.0, 0.0, 9.0, 9.0), 0.9, POINTS, "fear", 0.5, {"fear": 0.5}, doubtful=True)


# ---- answers that are not sure enough


def test_doubtful_answers_are_marked(tmp_path):
    path = write_stand_in(tmp_path / "model.onnx", {**HEADER, "uncertain": 0.9})
    sure, unsure = np.full((48, 48, 3), COLOURS["anger"], np.uint8), np.full((48, 48, 3), 60, np.uint8)
    marked = mien.Reader.from_pretrained(path, aligned=True)
    [a], [b] = marked(sure), marked(unsure)
    assert (a.doubtful, b.doubtful) == (False, True) and b.expression in EXPRESSIONS
    abstaining = mien.Reader.from_pretrained(path, aligned=True, abstain=True)
    [c] = abstaining(unsure)
    assert (c.expression, c.doubtful) == ("uncertain", True)
    lower = mien.Reader.from_pretrained(path, aligned=True, abstain=0.1)
    assert not lower(unsure)[0].doubtful
    assert not mien.Reader.from_pretrained(write_stand_in(tmp_path / "plain.onnx"), aligned=True)(unsure)[0].doubtful
    assert f"<strong>{b.expression}?</strong>" in show.bars(b) and "?" not in show.bars(a)
    assert show.title(0, b).startswith(f"Face 1: {b.expression}? ")


def test_doubtful_answers_are_marked_in_tables(capsys):
    table = TerminalTable(Progress(1), ["a.jpg"], [expression_output(EXPRESSIONS)], doubt=0.5)
    for probability in (0.49, 0.51):
        table.write({"source": "a.jpg", "face": 0, **face(probability=probability).to_dict()})
    _, unsure, sure = capsys.readouterr().out.splitlines()
    assert unsure.split()[2:4] == ["happiness?", "49%"] and sure.split()[2:4] == ["happiness", "51%"]
    assert unsure.index("40×40") == sure.index("40×40")


# ---- copies that the command writes


@pytest.fixture
def pictures(here):
    for name in ("a.jpg", "b/a.jpg", "c.png"):
        Path(name).parent.mkdir(exist_ok=True)
        (Image.open(ASTRONAUT) if name != "c.png" else Image.new("RGB", (300, 200))).save(name)
    return here


def test_crops_and_blurred_copies(pictures, stand_in, call):
    code, out, err = call(
        "read", "a.jpg", "b", "c.png", "--model", stand_in, "--crops", "cut", "--blur", "hid", "--annotate", "drawn",
        "--output", "rows.csv",
    )  # fmt: skip
    assert code == 0
    assert out == [
        "rows.csv: 2 faces in 3 pictures", "drawn: 2 drawings", "cut: 2 crops", "hid: 2 blurred pictures"
    ]  # fmt: skip
    assert err == ["mien: hid: without 1 picture in which no face was found: look whether somebody is"]
    assert sorted(os.listdir("cut")) == ["a-2-face0.png", "a-face0.png"]
    assert sorted(os.listdir("hid")) == ["a-2.jpg", "a.jpg"] == sorted(os.listdir("drawn"))
    reader = mien.Reader.from_pretrained(stand_in)
    [faces] = reader.read_many(["a.jpg"])
    np.testing.assert_array_equal(open_picture("cut/a-face0.png"), faces.crops()[0])
    np.testing.assert_allclose(open_picture("hid/a.jpg"), hide(open_picture("a.jpg"), faces), atol=40)
    assert Image.open("hid/a.jpg").size == (512, 512)
    assert call("read", ".", "--model", stand_in, "--crops", "cut", "--blur", "hid", "--annotate", "drawn")[0] == 0
    assert sorted(os.listdir("cut")) == ["a-2-face0.png", "a-face0.png"]  # what was written is not read


def test_no_note_of_who_it_was_stays_in_a_blurred_copy(here, stand_in, call):
    exif = Image.Exif()
    exif[0x9286] = "who it is"
    Image.open(ASTRONAUT).save("a.jpg", exif=exif)
    assert call("read", "a.jpg", "--model", stand_in, "--blur", "hid")[0] == 0
    assert b"who it is" in Path("a.jpg").read_bytes() and b"who it is" not in Path("hid/a.jpg").read_bytes()


@pytest.mark.parametrize(
    "words, said",
    [
        (["a.jpg", "--crops", "x", "--blur", "x"], "--crops and --blur would write into one folder"),
        (["a.jpg", "--blur", "."], "--blur would overwrite a.jpg, which is to be read"),
        (
            ["cut/a-face0.png", "a.jpg", "--crops", "cut"],
            "--crops would overwrite cut/a-face0.png, which is to be read",
        ),
        (["clip.mp4", "--crops", "x"], "--crops is for pictures, and clip.mp4 is a video"),
        (["a.jpg", "--blur", "c.png"], "c.png: not a folder"),
    ],
)
def test_misuse(pictures, stand_in, call, words, said):
    os.mkdir("cut")
    Image.open(ASTRONAUT).save("cut/a-face0.png")
    before = {path: path.read_bytes() for path in pictures.rglob("*.[jp]*g")}
    code, out, err = call("read", *words, "--model", stand_in)
    assert (code, out) == (2, []) and said in err[-1]
    assert {path: path.read_bytes() for path in pictures.rglob("*.[jp]*g")} == before
