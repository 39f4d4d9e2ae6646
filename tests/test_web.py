"""The static page: each stage of its JavaScript beside Python's, and the whole in a browser."""

import base64
import csv
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from fractions import Fraction
from functools import partial
from pathlib import Path

import browser
import cv2
import numpy as np
import pytest
from PIL import Image

from mien import Reader
from mien.evaluation.html import _STYLE, _table
from mien.explain import Occlusion
from mien.explain.page import page as explained
from mien.faces import ARCFACE112, crop, open_picture
from mien.faces.detect import _suppress
from mien.faces.places import places
from mien.faces.pose import FAR, HEAD, pose_of, rotation_of
from mien.faces.tiles import fit, shrink
from mien.outputs import Output
from mien.video.smooth import Exponential

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"

PREPROCESS = {"align": "arcface112", "resize": [{"size": 48}, {"size": 112}]}


@pytest.fixture(scope="module")
def astronaut():
    return open_picture(EXAMPLES / "astronaut.png")


def run_stages(cases, folder: Path) -> list:
    """What functions of web/*.js answer: a case is the function's name and its arguments."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on this machine")

    def encoded(value: np.ndarray) -> dict:
        data = {"base64": base64.b64encode(np.ascontiguousarray(value)).decode()}
        return data | {"shape": value.shape[:2]} if value.dtype == np.uint8 else data

    source, target = folder / "cases.json", folder / "answers.json"
    source.write_text(json.dumps(cases, default=encoded))
    subprocess.run([node, ROOT / "tests" / "web_stages.mjs", source, target], check=True)
    return json.loads(target.read_text())


def picture(answer) -> np.ndarray:
    flat = np.frombuffer(base64.b64decode(answer["data"]["base64"]), np.uint8)
    return flat.reshape(answer["height"], answer["width"], 3)


def test_resizes_as_opencv_does(astronaut, tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (97, 130, 3), np.uint8)
    part = np.ascontiguousarray(astronaut[60:260, 140:290])
    names = {"area": cv2.INTER_AREA, "linear": cv2.INTER_LINEAR, "nearest": cv2.INTER_NEAREST}
    sizes = [  # of the last two pictures: odd ratios, whole ratios, 2×2, one side alone
        ("area", (48, 48), (77, 31), (65, 97), (26, 1), (1, 1)),
        ("area", (75, 100), (50, 40), (150, 77), (30, 200)),
        ("linear", (224, 224), (131, 97), (391, 97), (130, 300), (65, 48)),
        ("linear", (75, 100), (112, 150)),
        ("nearest", (112, 112), (310, 200), (130, 97)),
    ]
    cases, wanted = [], []
    for name, *targets in sizes:
        for width, height in targets:
            for image in (noise, part):
                if name == "area" and (width > image.shape[1] or height > image.shape[0]):
                    continue
                cases.append((name, image, width, height))
                wanted.append(cv2.resize(image, (width, height), interpolation=names[name]))
    for (name, image, *size), answer, right in zip(cases, run_stages(cases, tmp_path), wanted, strict=True):
        assert np.array_equal(picture(answer), right), f"{name} of {image.shape} to {size}"


def test_crops_as_python_does(astronaut, tmp_path):
    """Faces from a tenth of the crop's size to six times, turned, partly outside; mirrored ones go by their box."""
    rng = np.random.default_rng(1)
    cases, wanted = [], []
    for scale in (0.1, 0.43, 0.5, 0.9, 1.3, 2.1, 3.6, 6):
        for mirrored in (False, True):
            a = rng.uniform(-1, 1)
            turn = scale * np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
            points = ARCFACE112 @ turn + rng.uniform(-40, 300, 2) + rng.normal(0, scale, (5, 2))
            points = points.astype(np.float32) * (1 - 2 * mirrored, 1) + (500 * mirrored, 0)
            box = [*map(float, rng.uniform(-50, 300, 2)), *map(float, rng.uniform(10, 300, 2))]
            cases.append(("crop", astronaut, PREPROCESS, points.ravel().tolist(), box))
            wanted.append(crop(astronaut, PREPROCESS, points, box))
    answers = run_stages(cases, tmp_path)
    for case, answer, right in zip(cases, answers, wanted, strict=True):
        assert np.array_equal(picture(answer), right), case[3:]


def test_hides_as_python_does(astronaut, tmp_path):
    """Windows of odd and even crops, and halves that are rounded to the even number."""
    crops = [np.ascontiguousarray(astronaut[100 : 100 + n, 200 : 200 + n]) for n in (112, 48, 33)]
    crops.append(np.array([[[0, 1, 2]], [[1, 2, 3]]], np.uint8).repeat(2, 1).repeat(1, 0))
    cases = [("hideRow", each, row) for each in crops for row in range(5)]
    wanted = [each for crop in crops for each in Occlusion(None, (), grid=5).hide(crop).reshape(5, 5, *crop.shape)]
    for case, answer, right in zip(cases, run_stages(cases, tmp_path), wanted, strict=True):
        assert np.array_equal([picture(one) for one in answer], right), case[1:]


def test_shrinks_and_greys_as_python_does(astronaut, tmp_path):
    """To a look of any size, through odd halves; and a look of a strip is bounded."""
    odd = np.ascontiguousarray(astronaut[:397, :501])
    sizes = [(333, 264), (250, 198), (125, 99), (124, 98), (30, 24), (501, 397), (7, 300)]
    cases = [("shrink", odd, *size) for size in sizes] + [("grey", odd)]
    wanted = [shrink(odd, *size) for size in sizes] + [
        cv2.cvtColor(cv2.cvtColor(odd, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    ]
    shapes = [(640, 480, 0.65), (6000, 4000, 0.65), (1, 20_000_000, 1), (30_000, 40, 0.65)]
    answers = run_stages(cases + [("fit", *shape) for shape in shapes], tmp_path)
    for case, answer, right in zip(cases, answers, wanted, strict=False):
        assert np.array_equal(picture(answer), right), case[2:]
    assert answers[len(cases) :] == pytest.approx([fit(*shape) for shape in shapes], rel=1e-9)


def test_suppresses_as_opencv_does(tmp_path):
    rng = np.random.default_rng(2)
    faces = np.zeros((60, 15), np.float32)
    faces[:, :4] = rng.uniform(-20, 100, (60, 4)).round(1)
    faces[:, 2:4] = np.abs(faces[:, 2:4])
    faces[:, 14] = rng.uniform(0.6, 1, 60).round(2)  # some of them alike
    kept = _suppress(faces, faces[:, 14]).tolist()
    assert 1 < len(kept) < 60
    answer = run_stages([("suppress", list(faces), faces[:, 14])], tmp_path)
    assert answer == [kept]


def test_places_labels_as_python_does(tmp_path):
    """A few faces and crowds of them, where labels have to give way."""
    rng, cases, wanted = np.random.default_rng(3), [], []
    for count, gap in ((1, 0), (2, 5), (9, 5), (40, 5), (120, 0)):
        corner, side = rng.integers(-20, 560, (count, 2)), rng.integers(20, 120, (count, 1))
        boxes = np.concatenate([corner, corner + side * (1, 1.5)], 1).clip(0, (640, 480, 640, 480))
        short, full = [[14, 22]] * count, [[int(wide), 22] for wide in rng.integers(60, 160, count)]
        found = places(boxes.tolist(), short, full, (640, 480), gap)
        wanted.append([one and {"place": list(one[0]), "full": one[1]} for one in found])
        cases.append(("places", boxes.tolist(), short, full, [640, 480], gap))
    assert run_stages(cases, tmp_path) == wanted
    crowd = [one for one in wanted[-1] if one]
    assert len(crowd) < 120 and {one["full"] for one in crowd} == {True, False}
    for i, one in enumerate(crowd):  # none covers another, or leaves the picture
        left, top, right, bottom = one["place"]
        assert left >= 0 and top >= 0 and right <= 640 and bottom <= 480
        for other in crowd[:i]:
            a, b, c, d = other["place"]
            assert left >= c or right <= a or top >= d or bottom <= b


def test_tells_poses_as_python_does(tmp_path):
    rng, points = np.random.default_rng(4), []
    for _ in range(40):
        angles = rng.uniform(-1, 1, 3) * (50, 30, 40)
        seen = HEAD @ rotation_of(*angles).T + (0, 0, FAR)
        points.append((seen[:, :2] / seen[:, 2:] * rng.uniform(50, 900) + 300 + rng.normal(0, 1, (5, 2))).astype("f4"))
    points.append(np.full((5, 2), 7, np.float32))
    cases = [("poseOf", one.ravel().tolist(), HEAD.tolist(), FAR) for one in points]
    for found, one in zip(run_stages(cases, tmp_path), points, strict=True):
        right = pose_of(one)
        assert (found is None) == (right is None)
        if found:
            assert np.abs(np.subtract(list(found.values()), right)).max() < 0.02


def test_follows_and_smooths_as_python_does(tmp_path):
    """Two who move, one of whom is hidden for a while, and one who comes later."""
    outputs = [{"name": "expression", "kind": "classes"}, {"name": "pose", "kind": "angles"}]
    outputs.append({"name": "valence", "kind": "range"})
    rng, frames = np.random.default_rng(5), []
    for i in range(20):
        faces = [{"box": [100 + 12 * i, 50, 80, 100]}]
        faces += [{"box": [400 - 5 * i, 60, 70, 90]}] if not 6 <= i < 9 else []
        faces += [{"box": [600, 300, 50, 60]}] if i > 12 else []
        for face in faces:
            share = float(rng.uniform())
            angles = {"yaw": float(rng.uniform(-180, 180))}
            face |= {"probabilities": {"a": share, "b": 1 - share}, "pose": angles, "valence": float(rng.normal())}
        frames.append({"time": 0.1 * i, "faces": faces})
    [answer] = run_stages([("followed", outputs, 0.5, frames)], tmp_path)
    kinds = [Output(one["name"], one["kind"], ("yaw",) if one["name"] == "pose" else ("a", "b")) for one in outputs]
    smoothing = Exponential(0.5, kinds)
    for frame, said in zip(frames, answer, strict=True):
        assert [face["track"] for face in said] == ([1, 2, 3] if len(said) == 3 else [1, 2] if len(said) == 2 else [1])
        for face, one in zip(frame["faces"], said, strict=True):
            right = smoothing(one["track"], frame["time"], {
                "expression": np.array(list(face["probabilities"].values()), np.float32),
                "pose": np.array([face["pose"]["yaw"]], np.float32),
                "valence": np.array([face["valence"]], np.float32),
            })  # fmt: skip
            assert list(one["probabilities"].values()) == pytest.approx(right["expression"], abs=1e-5)
            off = (one["pose"]["yaw"] - right["pose"][0] + 180) % 360 - 180
            assert abs(off) < 1e-3 and one["valence"] == pytest.approx(right["valence"][0], abs=1e-5)
            assert one["unsmoothed"] == face["probabilities"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the page, built anew."""
    if not shutil.which("chromium") or not shutil.which("chromedriver"):
        pytest.skip("no chromium and chromedriver on this machine")
    if not shutil.which("npm") and not (ROOT / "web" / "node_modules").is_dir():
        pytest.skip("no npm on this machine")
    out = tmp_path_factory.mktemp("web") / "dist"
    with browser.npm_lock():
        ran = subprocess.run(
            [sys.executable, ROOT / "web" / "build.py", "--out", out],
            capture_output=True,
            text=True,
            env=os.environ | {"npm_config_fetch_retries": "0"},
        )
    if ran.returncode and browser.UNREACHABLE.search(ran.stderr):
        pytest.skip("npm's registry cannot be reached")
    assert ran.returncode == 0, ran.stderr
    return out


@pytest.fixture(scope="module")
def photographs(astronaut, tmp_path_factory):
    """A folder of what the page is given."""
    folder = tmp_path_factory.mktemp("photographs")
    hopper = open_picture(EXAMPLES / "hopper.jpg")
    Image.fromarray(hopper).save(folder / "hopper.png")
    small = cv2.resize(hopper, (437, 512), interpolation=cv2.INTER_AREA)
    pair = np.concatenate([small, astronaut], axis=1)
    Image.fromarray(pair).save(folder / "pair.png")
    Image.fromarray(cv2.resize(pair, (2700, 1460), interpolation=cv2.INTER_LINEAR)).save(folder / "large.png")
    Image.fromarray(cv2.resize(pair, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)).save(folder / "tiny.png")
    Image.fromarray(np.ascontiguousarray(astronaut[72:196, 190:300])).save(folder / "all_face.png")
    lying = Image.Exif()
    lying[274] = 6
    Image.fromarray(astronaut).rotate(90, expand=True).save(folder / "lying.jpg", quality=95, exif=lying)
    Image.fromarray(cv2.GaussianBlur(astronaut, (0, 0), 5)).save(folder / "blurred.png")
    Image.new("RGB", (300, 200), "grey").save(folder / "nobody.png")
    (folder / "note.png").write_text("no picture")
    (folder / "empty.jpg").touch()
    pytest.importorskip("av", reason="PyAV is not installed")
    from films import film

    film(folder / "pair.mp4", 20 * [cv2.resize(pair, (640, 344))], codec="libx264", time_base=Fraction(1, 20))
    (folder / "note.mp4").write_text("no video")
    frame = np.zeros((480, 640, 3), np.uint8)
    frame[:, 64:576] = astronaut[:480]
    with open(folder / "webcam.y4m", "wb") as file:
        file.write(b"YUV4MPEG2 W640 H480 F10:1 Ip A1:1 C420jpeg\n")
        file.write(2 * (b"FRAME\n" + cv2.cvtColor(frame, cv2.COLOR_RGB2YUV_I420).tobytes()))
    return folder


@pytest.fixture(scope="module")
def page(site, photographs, tmp_path_factory):
    """A browser with the page, whose webcam shows the astronaut."""
    webcam = (
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-video-capture={photographs / 'webcam.y4m'}",
    )
    folder = tmp_path_factory.mktemp("browser")
    with serve(site) as (url, _), browser.open_browser(folder, *webcam) as driver:
        driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
        driver.folder = folder
        driver.get(url)
        browser.wait(driver, "#status", "Ready")
        yield driver


@pytest.fixture(scope="module")
def reader():
    return Reader.from_pretrained(precision="fp32", search="fast")


class serve:
    """Python's own server for a folder: its URL, and the paths that it is asked for."""

    def __init__(self, folder: Path, kind=http.server.SimpleHTTPRequestHandler):
        asked = []

        class Handler(kind):
            def log_message(self, *_):
                asked.append(self.path)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
        self.answer = f"http://127.0.0.1:{self.server.server_port}/", asked

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self.answer

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def give(driver, path: Path, told: str = "read in") -> list[dict]:
    """Choose a file, and the numbers that the page then shows."""
    driver.execute_script("document.querySelector('#status').textContent = ''")
    driver.find_element("id", "file").send_keys(str(path))
    browser.wait(driver, "#status", told)
    shown = driver.find_element("id", "numbers")
    return json.loads(shown.get_attribute("textContent") or "[]")


def assert_same(shown: list[dict], faces, *, places: float = 0.05, shares: float = 1e-3):
    assert len(shown) == len(faces)
    for one, face in zip(shown, faces, strict=True):
        assert one["expression"] == face.expression
        assert np.abs(np.subtract(one["box"], face.box)).max() <= places
        assert np.abs(np.subtract(one["landmarks"], face.landmarks)).max() <= places
        assert abs(one["score"] - face.score) <= max(1e-4, shares)
        assert one["probabilities"].keys() == face.probabilities.keys()
        for label, share in face.probabilities.items():
            assert abs(one["probabilities"][label] - share) <= shares, label


def test_a_photograph(page, reader):
    shown = give(page, EXAMPLES / "astronaut.png")
    assert_same(shown, reader(EXAMPLES / "astronaut.png"))
    assert page.find_element("id", "expression").text == "happiness"
    bars = [bar.text.split("\n")[0].split()[0] for bar in page.find_elements("css selector", "#bars li")]
    assert bars == list(reader.classifier.labels)
    asked = browser.requests(page)
    assert asked and all(map(browser.is_local, asked))  # those of the worker are looked at when the browser closes
    assert browser.complaints(page) == []


@pytest.mark.parametrize("name", ["hopper.png", "pair.png", "large.png", "tiny.png", "all_face.png", "blurred.png"])
def test_same_as_python(page, reader, photographs, name):
    """Faces large, small enough to be looked at alone, and with no room about them."""
    faces = reader(photographs / name)
    assert faces
    assert_same(give(page, photographs / name), faces)


def test_jpeg_turned_by_its_exif(page, reader, photographs):
    """Browsers and Pillow decode a JPEG to pixels that are a level or two apart."""
    for path in (photographs / "lying.jpg", EXAMPLES / "hopper.jpg"):
        assert_same(give(page, path), reader(path), places=1, shares=0.02)


def test_several_faces_by_keyboard(page, photographs):
    from selenium.webdriver.common.keys import Keys

    first, second = give(page, photographs / "pair.png")
    buttons = page.find_elements("css selector", "#faces input")
    assert [button.get_attribute("checked") for button in buttons] == ["true", None]
    assert first["expression"] in buttons[0].get_attribute("aria-label")
    buttons[0].send_keys(Keys.ARROW_RIGHT)
    browser.wait(page, "#status", f"Face 2 of 2 shows {second['expression']}")
    assert page.find_element("id", "expression").text.lower().startswith(second["expression"])


def test_what_the_answer_rests_on(page, reader):
    """The map of the model that reads, measured in the page as Python measures it, and gone with the next picture."""
    [face] = reader(EXAMPLES / "astronaut.png")
    give(page, EXAMPLES / "astronaut.png")
    page.find_element("id", "why").click()
    browser.wait(page, "#said", "Measured with 25 hidden windows")
    falls = json.loads(page.find_element("id", "falls").get_attribute("data-falls"))
    classifier = reader.classifier
    crop = classifier.crop(open_picture(EXAMPLES / "astronaut.png"), face.landmarks, face.box)
    right = Occlusion(classifier.run, classifier.labels, grid=5).explain(crop)
    assert np.abs(np.reshape(falls, (5, 5)) - right.values[0]).max() < 2e-3
    assert "takes from happiness: most in the" in page.find_element("id", "falls").get_attribute("aria-label")
    assert f"{right.values.max():.0%}".rstrip("%") in page.find_element("id", "most").text
    assert browser.complaints(page) == []
    give(page, EXAMPLES / "hopper.jpg")
    assert not page.find_element("id", "map").is_displayed()


def test_what_is_no_picture(page, photographs):
    give(page, photographs / "note.png", "note.png: not a picture that this browser can read")
    assert not page.find_element("id", "answer").is_displayed()
    give(page, photographs / "empty.jpg", "empty.jpg: an empty file")
    give(page, photographs / "nobody.png", "No face")
    give(page, ROOT / "tests" / "golden" / "galaxy.jpg", "No face")
    assert not page.find_element("id", "answer").is_displayed()
    page.find_element("id", "example").click()
    browser.wait(page, "#status", "One face")


def test_pasted_and_dropped(page):
    """What a person pastes or drops goes the way of what is chosen."""
    for kind, holder in (("paste", "clipboardData"), ("drop", "dataTransfer")):
        page.execute_script(
            """
            const [kind, holder, base64] = arguments;
            document.querySelector("#status").textContent = "";
            const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
            const files = new DataTransfer();
            files.items.add(new File([bytes], "photograph.png", { type: "image/png" }));
            const event = new Event(kind, { bubbles: true, cancelable: true });
            event[holder] = files;
            document.body.dispatchEvent(event);
            """,
            kind,
            holder,
            base64.b64encode((EXAMPLES / "astronaut.png").read_bytes()).decode(),
        )
        browser.wait(page, "#status", "One face")
    page.execute_script(
        "const drop = Object.assign(new Event('drop', { bubbles: true }), { dataTransfer: new DataTransfer() });"
        "document.body.dispatchEvent(drop);"
    )
    browser.wait(page, "#status", "That is no file")


def test_webcam(page):
    button = page.find_element("id", "webcam")
    button.click()
    browser.wait(page, "#status", "A frame takes")
    assert page.find_element("id", "expression").text == "happiness"
    [face] = json.loads(page.find_element("id", "numbers").get_attribute("textContent"))
    assert face["track"] == 1 and face["unsmoothed"].keys() == face["probabilities"].keys()
    assert not page.find_element("id", "why").is_displayed()  # it would be of a face that is gone
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    browser.wait(page, "#status", "The webcam is off.")
    assert page.execute_script("return document.querySelector('#video').srcObject") is None
    assert browser.complaints(page) == []


def downloads(page, name: str) -> tuple[list[dict], list[dict]]:
    """What the two buttons save: rows of JSON and of CSV, for a source of that name."""
    files = [page.folder / f"{Path(name).stem}.{kind}" for kind in ("json", "csv")]
    for path in files:
        path.unlink(missing_ok=True)  # of an earlier test: pair.png and pair.mp4 have one stem
        page.find_element("id", path.suffix[1:]).click()
    end = time.monotonic() + 20
    while not all(path.is_file() for path in files) and time.monotonic() < end:
        time.sleep(0.1)
    return json.loads(files[0].read_text()), list(csv.DictReader(files[1].read_text().splitlines()))


def assert_rows(found: list[dict], right: list[dict], pixels: float = 0.06, shares: float = 2e-3):
    """Rows of one kind with the same columns, in the same order, and the same values but for the last digits."""
    assert len(found) == len(right)
    for one, other in zip(found, right, strict=True):
        assert list(one) == list(other)
        for name, value in other.items():
            try:
                most = 1.0 if name.startswith("pose") else shares if name[0] in "psu" else pixels
                assert abs(float(one[name]) - float(value)) <= most, name
            except ValueError:  # words, and cells in which nothing stands
                assert one[name] == value, name


def test_rows_are_downloaded_as_mien_read_writes_them(page, photographs, tmp_path, monkeypatch, call):
    monkeypatch.chdir(photographs)
    for name in ("pair.png", "nobody.png"):
        shown = give(page, photographs / name, "read in")
        plain, table = downloads(page, name)
        options = ("--search", "fast", "--precision", "fp32")
        assert call("read", name, *options, "--output", tmp_path / "rows.csv")[0] == 0
        assert call("read", name, *options, "--output", tmp_path / "rows.jsonl")[0] == 0
        assert_rows(table, list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines())))
        right = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
        assert [list(row) for row in plain] == [list(row) for row in right]
        assert shown in ([], plain) and [row["expression"] for row in plain] == [row["expression"] for row in right]


def test_a_video(page, photographs, tmp_path, call):
    """Every fifth of a second is read, people are numbered and smoothed, and any moment can be looked at again."""
    give(page, photographs / "pair.mp4", "5 moments, one each 0.2 seconds, of 0:01.0")
    plain, table = downloads(page, "pair.mp4")
    assert (
        call("read", photographs / "pair.mp4", "--every", "0.2s", "--track", "--output", tmp_path / "rows.csv")[0] == 0
    )
    right = list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))
    assert [list(row) for row in table] == [list(row) for row in right]
    for name in ("time", "width", "height", "track", "face", "expression"):
        assert [row[name].removesuffix(".0") for row in table] == [row[name].removesuffix(".0") for row in right], name
    assert {row["frame"] for row in table} == {""} and {row["source"] for row in table} == {"pair.mp4"}
    assert all(row["unsmoothed"].keys() == row["probabilities"].keys() for row in plain)
    people = page.find_elements("css selector", "#people section")
    assert [person.text.split("\n")[0] for person in people] == ["Person 1", "Person 2"]
    assert "Seen for 1.0 s, from 0:00.0 to 0:00.8" in people[0].text
    for moment in (4, 2):
        page.execute_script(
            "const range = document.querySelector('#moment'); range.value = arguments[0];"
            "range.dispatchEvent(new Event('input'))",
            moment,
        )
        browser.wait(page, "#clock", f"0:00.{2 * moment}")
        [first, _] = json.loads(page.find_element("id", "numbers").get_attribute("textContent"))
        assert first == plain[2 * moment]
    page.find_elements("css selector", "#faces label")[1].click()
    browser.wait(page, "#status", "Person 2 shows")
    assert json.loads(page.find_element("id", "numbers").get_attribute("textContent"))[1] == plain[5]
    assert browser.barriers(page) == []
    give(page, photographs / "note.mp4", "note.mp4: not a video that this browser can play")
    assert not page.find_element("id", "files").is_displayed() and browser.complaints(page) == []


def test_phone_and_dark(page):
    """Nothing is wider than a small phone, and the page is dark where the visitor's system is."""
    give(page, EXAMPLES / "astronaut.png")
    page.find_element("css selector", "#more summary").click()
    page.find_element("id", "why").click()
    browser.wait(page, "#said", "Measured with")
    light = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert browser.barriers(page) == []
    night = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", night)
    dark = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    phone = {"width": 340, "height": 700, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    time.sleep(0.5)
    widths = page.execute_script(
        "return [document.documentElement.scrollWidth, document.querySelector('#canvas').clientWidth, innerWidth]"
    )
    assert browser.barriers(page) == []
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert light != dark
    assert widths[0] <= 340 and 200 < widths[1] < 340 and widths[2] == 340


def test_neither_page_nor_worker_can_ask_elsewhere(page, tmp_path):
    """The Content-Security-Policy holds in the worker as well, since that is started from a blob."""
    (tmp_path / "secret.txt").touch()
    with serve(tmp_path) as (elsewhere, asked):
        answers = page.execute_async_script(
            """
            const [url, done] = arguments;
            const send = `fetch("${url}").then(() => "sent", () => "refused")`;
            const blob = new Blob([`${send}.then(postMessage)`], { type: "text/javascript" });
            const worker = new Worker(URL.createObjectURL(blob), { type: "module" });
            const fromWorker = new Promise((resolve) => (worker.onmessage = ({ data }) => resolve(data)));
            const fromPage = fetch(url).then(() => "sent", () => "refused");
            Promise.all([fromPage, fromWorker]).then(done);
            """,
            f"{elsewhere}secret.txt",
        )
    assert answers == ["refused", "refused"]
    assert asked == []
    assert sum("Content Security Policy" in line for line in browser.complaints(page)) >= 1


def test_threads_where_the_server_isolates_the_page(page, site, reader):
    sys.path.insert(0, str(ROOT / "web"))
    from serve import Isolated

    sys.path.pop(0)
    before = page.current_url
    assert page.find_element("css selector", "body").get_attribute("data-threads") == "1"
    with serve(site, Isolated) as (url, _):
        page.get(url)
        browser.wait(page, "#status", "Ready")
        threads = int(page.find_element("css selector", "body").get_attribute("data-threads"))
        assert threads == min(4, page.execute_script("return navigator.hardwareConcurrency"))
        assert_same(give(page, EXAMPLES / "astronaut.png"), reader(EXAMPLES / "astronaut.png"))
        links = [page.find_element("id", name).get_attribute("href") for name in ("docs", "card")]
        for link, said in zip(links, ("A page that reads faces", "# mobilefacenet_ferplus"), strict=True):
            page.get(link)
            browser.wait(page, "pre", said)
            assert browser.barriers(page) == []
        assert browser.complaints(page) == []
    page.get(before)
    browser.wait(page, "#status", "Ready")


def test_reports_keep_nobody_out(page, site, photographs):
    """What `mien explain` writes, and tables as those of `mien eval`, on a phone: wide ones scroll by the keyboard."""
    head = f'<html lang="en"><meta name="viewport" content="width=device-width"><title>t</title><style>{_STYLE}</style>'
    rows = [["row", *map(str, range(9))]] * 3
    pages = {
        "explain.html": explained("a_model_with_a_long_name", "What it rests on.", [("a.png", "a.png, face 0")], ["b"]),
        "report.html": f"{head}<main><h1>t</h1>{_table(['', *(f'a long heading {i}' for i in range(9))], rows)}</main>",
    }
    before = page.current_url
    phone = {"width": 340, "height": 700, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    shutil.copyfile(photographs / "tiny.png", site / "a.png")
    for name, text in pages.items():
        (site / name).write_text(f"<!doctype html>{text}", encoding="utf-8")
        page.get(before + name)
        for scheme in ("light", "dark"):
            media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            page.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            assert page.execute_script("return document.documentElement.scrollWidth") <= 340
            assert browser.barriers(page) == []
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    page.get(before)
    browser.wait(page, "#status", "Ready")
    browser.complaints(page)


def test_build_refuses_what_the_page_cannot_run(tmp_path):
    build = [sys.executable, ROOT / "web" / "build.py", "--out", tmp_path / "dist"]
    model = EXAMPLES.parent / "src" / "mien" / "models" / "mobilefacenet_ferplus" / "model.safetensors"
    ran = subprocess.run([*build, model], capture_output=True, text=True)
    assert ran.returncode == 1 and "the page runs ONNX files" in ran.stderr
    ran = subprocess.run([*build, tmp_path / "none.onnx"], capture_output=True, text=True)
    assert ran.returncode == 1 and "none.onnx" in ran.stderr and "Traceback" not in ran.stderr
