"""mien demo: what the page says of photographs and videos, what it keeps and whom it asks; all of it in a browser."""

import base64
import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import browser
import numpy as np
import pytest
from PIL import Image

from mien.__main__ import main
from mien.demo import show
from mien.demo.clips import Clips
from mien.demo.drawing import drawing
from mien.demo.guard import Guard
from mien.demo.looking import Looking
from mien.demo.serve import POLICY, serve
from mien.demo.timeline import clock, strip, timeline
from mien.errors import MienError, MissingExtra
from mien.faces import Detection, Face
from mien.faces.palette import EXPRESSIONS as COLOURS
from mien.faces.record import picture_records
from mien.labels import EXPRESSIONS
from mien.reader import Reader
from mien.video import Summary, TrackedFace, VideoFrame

EXAMPLES = Path(__file__).parents[1] / "examples"
RED, BLUE = (255, 0, 0), (0, 0, 255)  # anger and sadness, to the stand-in


def png(image: np.ndarray, path: Path) -> Path:
    Image.fromarray(image).save(path)
    return path


def coloured(image: np.ndarray) -> list[Detection]:
    """Finds what is red, and what is blue, in a picture or in a part of one."""
    found = []
    for channel in (0, 2):
        rows, columns = np.nonzero(image[..., channel] > 128)
        if len(rows):
            x, y = columns.min(), rows.min()
            width, height = columns.max() + 1 - x, rows.max() + 1 - y
            points = np.array([(38, 52), (74, 52), (56, 72), (41, 92), (70, 92)], np.float32)  # upright in 112 × 112
            points = points * (min(width, height) / 112) + np.array((x, y), np.float32)
            found.append(Detection((float(x), float(y), float(width), float(height)), 0.9, points))
    return found


@pytest.fixture
def reader(stand_in) -> Reader:
    return Reader(Reader.from_pretrained(stand_in, aligned=True).classifier, coloured)


def halves(left: tuple, right: tuple) -> np.ndarray:
    image = np.zeros((112, 224, 3), np.uint8)
    image[:, :112], image[:, 112:] = left, right
    return image


def face(expression: str = "happiness", box=(20.0, 10.0, 40.0, 50.0), **probs: float) -> Face:
    probabilities = dict.fromkeys(EXPRESSIONS, 0.0) | (probs or {expression: 1.0})
    return Face(box, 0.9, None, expression, probabilities[expression], probabilities)


def test_boxes_lie_where_the_faces_are():
    html = show.photograph("data:,", (200, 100), [face()])
    assert "left:10.00%;top:10.00%;width:20.00%;height:50.00%" in html
    assert show.colour("happiness", EXPRESSIONS) == "#f0e442" and "--expression:#f0e442" in html
    assert "<b>happiness 100%</b>" in html and "one face" in html and 'aria-label="Face 1: happiness 100%"' in html
    beyond = show.photograph("data:,", (200, 100), [face(box=(-20.0, 50.0, 60.0, 100.0))])
    assert "left:0.00%;top:50.00%;width:20.00%;height:50.00%" in beyond  # cut at the edges


def test_faces_are_named_and_several_are_numbered():
    two = show.photograph("data:,", (200, 100), [face(), face("anger")], chosen=1)
    assert ">1 <b>happiness 100%</b>" in two and ">2 <b>anger 100%</b>" in two
    assert [pressed == "true" for pressed in re.findall('aria-pressed="(.*?)"', two)] == [False, True]
    assert "<span><b>happiness" in show.photograph("data:,", (200, 100), [face()])
    five = show.photograph("data:,", (200, 100), [face()] * 5)
    assert five.count("<b>happiness 100%</b>") == 5 and ">5 <b>" in five


def test_bars_are_as_long_as_the_probabilities():
    html = show.bars(face("fear", fear=0.75, anger=0.2465, neutral=0.0035), 2)
    widths = dict(zip(EXPRESSIONS, map(float, re.findall(r"width:([\d.]+)%", html)), strict=True))
    assert widths["fear"] == 75 and widths["anger"] == 24.65 and widths["sadness"] == 0
    assert "Face 3: <strong>fear</strong>" in html and "under 1%" in html
    assert [show.percent(p) for p in (0, 0.004, 0.006, 0.994, 0.996, 1)] == [
        "0%",
        "under 1%",
        "1%",
        "99%",
        "over 99%",
        "100%",
    ]


def test_a_large_picture_is_shown_smaller():
    import io

    url = show.picture_url(np.zeros((100, 2560, 3), np.uint8))
    shown = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    assert url.startswith("data:image/jpeg;base64,") and shown.size == (1280, 50)


def test_the_drawn_faces_are_read_as_they_are_meant():
    found = sorted(Reader.from_pretrained(precision="fp32")(drawing()), key=lambda face: face.box[0])
    assert [face.expression for face in found] == ["happiness", "surprise", "anger"]


class TestDesk:
    @pytest.fixture
    def desk(self, reader):
        pytest.importorskip("gradio", reason="gradio is not installed")
        from mien.demo.layout import Desk

        return Desk(reader, Looking())

    def test_reads_and_remembers_until_the_session_is_forgotten(self, desk, tmp_path):
        data = png(halves(RED, BLUE), tmp_path / "two.png").read_bytes()
        html, faces = desk.read("me", "two.png", data)
        assert [face.expression for face in faces] == ["anger", "sadness"] and "2 faces" in html
        assert "Face 1: <strong>anger</strong>" in desk.bars("me", 0)
        assert "Face 2: <strong>sadness</strong>" in desk.bars("me", 1)
        assert desk.bars("somebody else", 0) == "" and "data:" not in desk.photograph("somebody else", 0)
        desk.forget("me")
        assert desk.bars("me", 0) == "" and "choose it again" in desk.photograph("me", 0)

    def test_what_was_read_can_be_saved_as_mien_read_writes_it(self, desk, tmp_path, call, stand_in):
        picture = png(halves(RED, BLUE), tmp_path / "=two.png")
        _, faces = desk.read("me", "=two.png", picture.read_bytes())
        files = dict(re.findall(r'download="=two.(json|csv)" href="data:[a-z/]+;base64,(.*?)"', desk.bars("me", 1)))
        plain, table = (base64.b64decode(files[kind]).decode() for kind in ("json", "csv"))
        assert json.loads(plain) == picture_records("=two.png", faces)
        assert call("read", picture, "--model", stand_in, "--output", tmp_path / "rows.csv")[0] == 0
        head, first, second = csv.reader(table.splitlines())
        assert head == (tmp_path / "rows.csv").read_text().splitlines()[0].split(",")
        assert first[0] == second[0] == "'=two.png" and first[head.index("expression")] == faces[0].expression
        desk.read("me", "none.png", png(halves((0, 0, 0), (0, 0, 0)), tmp_path / "b.png").read_bytes())
        assert "No face was found" in desk.bars("me", 0) and "Download CSV" in desk.bars("me", 0)

    def test_remembers_so_many_sessions_only(self, desk, tmp_path):
        data = png(halves(RED, (0, 0, 0)), tmp_path / "red.png").read_bytes()
        for i in range(105):
            desk.read(str(i), "red.png", data)
        assert desk.bars("4", 0) == "" and desk.bars("5", 0) and desk.bars("104", 0)

    def test_what_is_no_picture_is_said_under_its_name(self, desk):
        html, faces = desk.read("me", "<b>.png", b"no picture at all")
        assert faces is None and "&lt;b&gt;.png: not a picture" in html and 'role="alert"' in html
        assert "an empty file" in desk.read("me", "x.png", b"")[0]
        cut = (EXAMPLES / "hopper.jpg").read_bytes()[:9000]
        assert "hopper.jpg: damaged or cut short" in desk.read("me", "hopper.jpg", cut)[0]

    def test_nobody_in_the_picture(self, desk, tmp_path):
        html, faces = desk.read("me", "black.png", png(halves((0, 0, 0), (0, 0, 0)), tmp_path / "b.png").read_bytes())
        assert faces == [] and "no face found in it" in html and "data-face" not in html
        assert "No face was found" in desk.bars("me", 0) and desk.panels("me", 0) == ""

    def test_draws_what_a_network_kept(self, desk, tmp_path):
        pytest.importorskip("torch", reason="torch is not installed")
        from test_explain import POOLED, checkpoint

        model = checkpoint(tmp_path / "pooled.safetensors", "APViT", **POOLED, keep_patches=160, keep_rate=0.6)
        desk.looking = Looking(str(model))
        desk.read("me", "two.png", png(halves(RED, BLUE), tmp_path / "two.png").read_bytes())
        html = desk.panels("me", 1)
        assert "160 of 196 patches" in html and html.count("<figure>") == 15
        assert html.count("data:image/png") == 18  # and a scale under each row's map
        assert html.count("<details>") == 2 and "With 80 of 196 patches only" in html
        assert "does not follow from it" in html and "another model, which reads it as sadness" in html

    def test_draws_what_the_answer_rests_on(self, desk, tmp_path, monkeypatch):
        """By the model that reads, and without torch."""
        monkeypatch.setitem(sys.modules, "torch", None)
        desk.read("me", "two.png", png(halves(RED, BLUE), tmp_path / "two.png").read_bytes())
        html = desk.rests_on("me", 1)
        assert "sadness" in html and "another model" not in html and html.count("<figure>") == 2
        assert "what hiding a part takes from the probability of sadness" in html and 'role="alert"' not in html
        assert desk.rests_on("somebody else", 0) == ""

    def test_says_which_extra_is_missing(self, desk, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch", None)
        desk.read("me", "two.png", png(halves(RED, BLUE), tmp_path / "two.png").read_bytes())
        assert "pip install &quot;mien[torch]&quot;" in desk.panels("me", 0)


def summary(*frames: tuple[float, dict[int, str]]) -> Summary:
    """Of a video whose frames show, at a time, people with expressions."""
    seen = Summary(EXPRESSIONS)
    seen.begin("clip.mp4")
    for number, (moment, people) in enumerate(frames):
        faces = []
        for track, expression in people.items():
            probs = face(expression).probabilities
            faces.append(TrackedFace((0.0, 0.0, 9.0, 9.0), 0.9, None, expression, 1.0, probs, track, probs))
        seen.add(VideoFrame(number, moment, faces, None, number))
    seen.end()
    return seen


def test_the_timeline_shows_who_was_seen_when():
    seen = summary((0.0, {1: "fear"}), (1.0, {1: "anger", 2: "fear"}), (2.0, {2: "fear"}), (3.0, {}))
    html = timeline(seen, 4.0)
    assert "Seen for 2.0 s, from 0:00.0 to 0:01.0: fear 50%, anger 50%." in html
    assert "left:0.000%;width:50.000%" in html and "left:25.000%;width:50.000%" in html
    image = strip(seen.people[0], EXPRESSIONS)
    assert image.shape == (48, 50, 3)
    assert (image[:, :25] == COLOURS["fear"]).all() and (image[:, 25:] == COLOURS["anger"]).all()
    assert "No face was seen" in timeline(Summary(EXPRESSIONS), 1.0)
    assert "3 seen more shortly" in timeline(summary((0.0, dict.fromkeys(range(23), "fear")), (1.0, {})), 1.0)
    assert [clock(s) for s in (0, 59.96, 61.25)] == ["0:00.0", "1:00.0", "1:01.2"]


class TestClips:
    @pytest.fixture
    def clip(self, tmp_path):
        av = pytest.importorskip("av", reason="PyAV is not installed")
        path = tmp_path / "clip.mp4"
        with av.open(str(path), "w") as file:
            stream = file.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = 224, 112, "yuv420p"
            for i in range(20):
                image = halves(RED, BLUE if i >= 10 else (0, 0, 0))
                file.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
            file.mux(stream.encode())
        return path

    @pytest.fixture
    def clips(self, reader) -> Clips:
        return Clips(reader)

    def test_reads_draws_and_deletes(self, clips, clip, tmp_path):
        drawn = tmp_path / "drawn.mp4"
        *_, (html, done) = clips.read("me", clip, "mine.mp4", drawn)
        assert done and drawn.is_file() and not clip.exists()
        # half of the picture changes at once: another scene, in which everybody is somebody new
        assert re.findall(r"Person (\d)", html) == ["1", "2", "3"]
        seen = [("1.0", "anger"), ("1.0", "anger"), ("1.0", "sadness")]
        assert sorted(re.findall(r"Seen for ([\d.]+) s.*?: (\w+) 100%", html)) == seen
        assert html.count("mien-thumbnail") == 3 and "1 event</summary>" in html
        clips.forget("me")
        assert not drawn.exists()

    def test_tells_what_was_read_so_far_and_can_be_stopped(self, clips, clip, tmp_path, monkeypatch):
        monkeypatch.setattr("mien.demo.clips._OFTEN", 0)
        reading = clips.read("me", clip, "mine.mp4", tmp_path / "drawn.mp4")
        html, done = next(reading)
        assert not done and "of 0:02.0 read" in html and "<progress" in html
        clips.stop("me")
        *_, (html, done) = reading
        assert done and "Person 1" in html and (tmp_path / "drawn.mp4").is_file()

    def test_who_leaves_in_the_middle_leaves_nothing(self, clips, clip, tmp_path, monkeypatch):
        monkeypatch.setattr("mien.demo.clips._OFTEN", 0)
        reading = clips.read("me", clip, "mine.mp4", tmp_path / "drawn.mp4")
        next(reading)
        reading.close()
        assert not any(tmp_path.iterdir())

    def test_a_video_that_is_forgotten_in_the_middle_leaves_nothing(self, clips, clip, tmp_path, monkeypatch):
        monkeypatch.setattr("mien.demo.clips._OFTEN", 0)
        reading = clips.read("me", clip, "mine.mp4", tmp_path / "drawn.mp4")
        next(reading)
        clips.forget("me")
        assert not any(done for _, done in reading) and not any(tmp_path.iterdir())

    def test_what_is_no_video(self, clips, tmp_path):
        source = tmp_path / "notes.mp4"
        source.write_text("no video at all")
        [(html, done)] = clips.read("me", source, "<i>.mp4", tmp_path / "drawn.mp4")
        assert done and "&lt;i&gt;.mp4: " in html and 'role="alert"' in html and not source.exists()


class TestGuard:
    @staticmethod
    def refused(host: str, asked: str, *origins: str, names=()) -> bool:
        headers = [(b"host", asked.encode()), *((b"origin", origin.encode()) for origin in origins)]
        return Guard(None, host, names).refusal(headers) is not None

    @pytest.mark.parametrize("asked", ["127.0.0.1:7860", "localhost:7860", "LOCALHOST", "[::1]:7860", "127.0.0.1:9"])
    def test_a_loopback_page_answers_to_its_names(self, asked):
        assert not self.refused("127.0.0.1", asked) and not self.refused("localhost", asked, f"http://{asked}")

    @pytest.mark.parametrize("asked", ["example.com", "127.0.0.1.example.com", "192.0.2.1:7860", "", "[::1", "a@b:c"])
    def test_and_to_no_other(self, asked):
        assert self.refused("127.0.0.1", asked) and self.refused("localhost", asked) and self.refused("::1", asked)

    def test_of_two_hosts_neither_counts(self):
        assert Guard(None, "127.0.0.1").refusal([(b"host", b"127.0.0.1"), (b"host", b"example.com")])
        assert Guard(None, "127.0.0.1").refusal([])

    @pytest.mark.parametrize(
        "origin",
        [
            "http://example.com",
            "http://127.0.0.1:9999",  # another server on this computer
            "http://localhost:7860",  # to a browser, this is another site, too
            "http://127.0.0.1:7860.example.com",
            "null",
            "file://",
            "chrome-extension://127.0.0.1:7860",
            "",
        ],
    )
    def test_a_foreign_origin(self, origin):
        assert self.refused("127.0.0.1", "127.0.0.1:7860", origin)
        assert self.refused("127.0.0.1", "127.0.0.1:7860", "http://127.0.0.1:7860", origin)

    def test_a_page_for_all_answers_to_numbers_and_to_its_own_name(self):
        own = socket.gethostname()
        for host in ("0.0.0.0", "::"):
            for asked in ("192.0.2.1:7860", "[2001:db8::1]:7860", "0.0.0.0:7860", "localhost", own, "127.0.0.1"):
                assert not self.refused(host, asked, f"http://{asked}")
            assert self.refused(host, "example.com") and self.refused(host, "192.0.2.1", "http://192.0.2.2")
        assert not self.refused("192.0.2.1", "192.0.2.1:80") and self.refused("192.0.2.1", "192.0.2.2:80")

    def test_a_proxy_is_named(self):
        names = ["Faces.example.com"]
        assert not self.refused("127.0.0.1", "faces.example.com", "https://faces.example.com", names=names)
        assert not self.refused("127.0.0.1", "127.0.0.1:7860", "https://faces.example.com", names=names)
        assert self.refused("127.0.0.1", "127.0.0.1:7860", "https://other.example.com", names=names)
        assert self.refused("127.0.0.1", "other.example.com", names=names)


class TestCommand:
    def test_a_port_that_is_taken(self, capsys):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            assert main(["demo", "--port", str(port)]) == 1
        assert f"127.0.0.1 port {port}: " in (said := capsys.readouterr().err) and "--port 0" in said

    def test_bad_options(self, capsys):
        with pytest.raises(SystemExit, match="2"):
            main(["demo", "--port", "70000"])
        assert "65,535" in capsys.readouterr().err
        assert main(["demo", "--port", "0", "--host", "not an address"]) == 1

    def test_names_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "gradio", None)
        with pytest.raises(MissingExtra, match=r"gradio: pip install \"mien\[demo\]\""):
            serve(lambda _: None, "127.0.0.1", 0, print)

    def test_a_model_that_is_not_there(self, capsys):
        pytest.importorskip("gradio", reason="gradio is not installed")
        assert main(["demo", "--port", "0", "--model", "nowhere"]) == 1
        assert "nowhere: no such model" in capsys.readouterr().err


def test_the_app_asks_nobody_and_shows_no_more_than_it_must(reader, tmp_path, monkeypatch):
    gradio = pytest.importorskip("gradio", reason="gradio is not installed")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    for name in ("ssrf_protected_download", "save_url_to_cache", "async_ssrf_protected_download"):
        monkeypatch.setattr(f"gradio.processing_utils.{name}", getattr(gradio.processing_utils, name))  # put back
    from fastapi.testclient import TestClient
    from starlette.websockets import WebSocketDisconnect

    from mien.demo.layout import build_page, examples
    from mien.demo.serve import _app

    page = build_page(reader, Looking(), examples(tmp_path))
    assert page.analytics_enabled is False
    client = TestClient(_app(gradio, page, "127.0.0.1", ["faces.example.com"]), base_url="http://127.0.0.1")
    answer = client.get("/")
    assert answer.status_code == 200 and answer.headers["content-security-policy"] == POLICY
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*(?:https?:)?//", answer.text)
    for closed in ("/docs", "/redoc", "/openapi.json", "/monitoring", "/gradio_api/runs"):
        assert client.get(closed).status_code in (403, 404), closed
    assert client.get("/gradio_api/info").json() == {"named_endpoints": {}, "unnamed_endpoints": {}}
    for foreign in ({"host": "example.com"}, {"origin": "http://example.com"}, {"origin": "null"}):
        for ask in (client.get, client.post, client.options):
            for path in ("/", "/gradio_api/queue/join", "/gradio_api/upload", "/nowhere"):
                answer = ask(path, headers=foreign)
                assert answer.status_code == 403 and answer.text.count("\n") == 1, (foreign, path)
                assert "access-control-allow-origin" not in answer.headers
    own = {"host": "faces.example.com", "origin": "https://faces.example.com"}
    assert client.get("/", headers=own).status_code == 200
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/", headers={"origin": "http://example.com"}):
        pass
    forged = {"path": "http://example.com/x.png", "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(MienError, match="not a file that was uploaded"):
        gradio.processing_utils.move_files_to_cache(forged, next(iter(page.blocks.values())))


# In the server's own process every socket that is opened and every name that is looked up is written down.
LISTENER = """
import os, sys
def listen(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        with open(os.environ["SOCKETS"], "a") as file:
            print(event, args[1] if event in ("socket.connect", "socket.sendto") else args[0], file=file)
sys.addaudithook(listen)
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The address of a page, and the folder in which its process may write."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    folder = tmp_path_factory.mktemp("served")
    (folder / "sitecustomize.py").write_text(LISTENER)
    (folder / "tmp").mkdir()
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    own = {"PYTHONPATH": path, "TMPDIR": str(folder / "tmp"), "SOCKETS": str(folder / "sockets")}
    process = subprocess.Popen(
        [sys.executable, "-m", "mien", "demo", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **own},
    )
    try:
        said = process.stdout.readline()
        assert "http://127.0.0.1:" in said
        yield said.split()[2], folder
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.stdout.close()
    assert not list((folder / "tmp").glob("mien-demo-*")), "what was written is gone at the end"
    asked = (folder / "sockets").read_text().splitlines()
    assert asked and all("127.0.0.1" in line or "/" in line.partition(" ")[2] for line in asked), asked


def webcam(path: Path) -> Path:
    """What chromium shows as a camera's picture: the astronaut."""
    av = pytest.importorskip("av", reason="PyAV is not installed")
    with av.open(str(path), "w", format="yuv4mpegpipe") as file:
        stream = file.add_stream("wrapped_avframe", rate=10)
        stream.width, stream.height, stream.pix_fmt = 512, 512, "yuv420p"
        picture = av.VideoFrame.from_image(Image.open(EXAMPLES / "astronaut.png").convert("RGB"))
        for _ in range(10):
            file.mux(stream.encode(picture.reformat(format="yuv420p")))
        file.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def driver(served, tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    camera = webcam(folder / "camera.y4m")
    with browser.open_browser(
        folder,
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-video-capture={camera}",
    ) as driver:
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": browser.WATCH})
        allowed = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite", "videoCapture", "audioCapture"]}
        driver.execute_cdp_cmd("Browser.grantPermissions", allowed)
        # a press that asks for a file opens no window
        driver.execute_cdp_cmd("Page.setInterceptFileChooserDialog", {"enabled": True})
        yield driver


@pytest.fixture
def page(driver, served):
    """The page, freshly opened; at the end no error popped up, and all that it asked for came from this computer."""
    driver.get(served[0])
    browser.wait(driver, "#mien-file")
    yield driver
    assert not driver.execute_script("return toasts.map(toast => toast.className + ': ' + toast.textContent)")
    asked = browser.requests(driver)
    assert asked and all(browser.is_local(url) for url in asked)
    blocked = [said for said in browser.complaints(driver) if "Method not implemented" not in said]  # gradio's own
    assert not blocked


def press(driver, text: str, within: str = "button") -> None:
    next(b for b in driver.find_elements("css selector", within) if text in (b.text or b.accessible_name)).click()


def until(driver, script: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 60).until(lambda driver: driver.execute_script(script), script)


def upload(driver, path: Path, where: str = "#mien-file") -> None:
    driver.find_element("css selector", f"{where} input[type=file]").send_keys(str(path))


def test_a_photograph_is_read_and_looked_into(page, served, tmp_path):
    (tmp_path / "me.png").write_bytes((EXAMPLES / "astronaut.png").read_bytes())
    upload(page, tmp_path / "me.png")
    browser.wait(page, ".mien-bars caption", "happiness")
    bars = page.find_elements("css selector", ".mien-bars tr")
    assert [bar.find_element("css selector", "th").text for bar in bars] == list(EXPRESSIONS)
    widths = [bar.find_element("css selector", "td span").rect["width"] for bar in bars]
    assert widths.index(max(widths)) == EXPRESSIONS.index("happiness") and max(widths) > 50 * min(widths)
    button, picture = (
        browser.wait(page, ".mien-face", "happiness"),
        page.find_element("css selector", "#mien-picture img"),
    )
    place = {k: (button.rect[k] - picture.rect[k]) / picture.rect["width"] * 512 for k in ("x", "y")}
    assert abs(place["x"] - 180) < 15 and abs(place["y"] - 63) < 15  # where mien read says that she is
    assert not list((served[1] / "tmp").rglob("me.png")), "kept on disk"
    press(page, "What it rests on", "button[role=tab]")
    browser.wait(page, ".mien-panels figcaption", "what hiding a part takes from the probability of happiness")
    press(page, "Inside another model", "button[role=tab]")
    browser.wait(page, ".mien-panels figcaption", "160 of 196 patches")
    assert "does not follow from it" in page.find_element("css selector", "body").text
    assert page.save_screenshot(str(tmp_path / "page.png")) and (tmp_path / "page.png").stat().st_size > 20_000


def test_one_of_several_faces_is_chosen(page):
    press(page, "Drawn faces")
    browser.wait(page, ".mien-bars caption", "Face 1")
    assert len(page.find_elements("css selector", "#mien-chooser button img")) == 3
    page.find_element("css selector", ".mien-face[data-face='1']").click()
    browser.wait(page, ".mien-bars caption", "Face 2")
    page.find_elements("css selector", "#mien-chooser button")[2].click()
    browser.wait(page, ".mien-bars caption", "Face 3")
    assert browser.text_of(page, "#mien-chooser button[aria-pressed=true]").startswith("3 ")
    assert browser.wait(page, ".mien-face[aria-pressed=true]").get_attribute("data-face") == "2"


def test_what_is_no_picture_is_said_and_the_next_is_read(page, tmp_path):
    (tmp_path / "notes.png").write_text("no picture")
    upload(page, tmp_path / "notes.png")
    browser.wait(page, ".mien-problem", "notes.png: not a picture")
    press(page, "Astronaut")
    browser.wait(page, ".mien-bars caption", "happiness")


def open_camera(page, where: str) -> None:
    press(page, "Capture from camera", f"{where} button")
    browser.wait(page, f"{where} button", "Access Webcam").click()
    until(page, f"return document.querySelector('{where} video')?.videoWidth === 512")


def test_a_webcam_is_read(page):
    open_camera(page, "#mien-file")
    browser.wait(page, "#mien-file [aria-label='capture photo']").click()
    browser.wait(page, ".mien-bars caption", "happiness")


def test_a_picture_in_the_clipboard_is_read(page):
    press(page, "Astronaut")
    browser.wait(page, ".mien-bars caption", "This face")
    copied = page.execute_async_script(
        """const [done] = arguments, image = document.querySelector('#mien-picture img');
        const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
        const brush = canvas.getContext('2d');
        brush.fillRect(0, 0, canvas.width, canvas.height);
        brush.drawImage(image, 0, 0, canvas.width / 2, canvas.height / 2);
        brush.drawImage(image, canvas.width / 2, canvas.height / 2, canvas.width / 2, canvas.height / 2);
        canvas.convertToBlob({type: 'image/png'})
            .then(blob => navigator.clipboard.write([new ClipboardItem({'image/png': blob})]))
            .then(() => done(''), error => done(String(error)));"""
    )
    assert copied == ""
    press(page, "Paste from clipboard", "#mien-file button")
    browser.wait(page, ".mien-bars caption", "Face 1")


def still(path: Path, frames: int) -> Path:
    """A video of the astronaut, 5 frames a second."""
    av = pytest.importorskip("av", reason="PyAV is not installed")
    photograph = Image.open(EXAMPLES / "astronaut.png").convert("RGB").resize((256, 256))
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 256, 256, "yuv420p"
        for _ in range(frames):
            file.mux(stream.encode(av.VideoFrame.from_image(photograph)))
        file.mux(stream.encode())
    return path


def test_a_video_is_read(page, served, tmp_path):
    press(page, "Video", "button[role=tab]")
    browser.wait(page, "#mien-clip")
    upload(page, still(tmp_path / "mine.mp4", 10), "#mien-clip")
    browser.wait(page, "#mien-drawn video")  # all of it is read
    said = browser.text_of(page, ".mien-timeline section", "Person 1")
    assert "Seen for 2.0 s" in said and "happiness" in said
    video = "document.querySelector('#mien-drawn video')"
    until(page, f"return {video}.readyState >= 2")
    page.find_element("css selector", ".mien-strip").click()  # in its middle
    assert page.execute_script(f"return {video}.currentTime") == pytest.approx(1.0, abs=0.1)
    assert not list((served[1] / "tmp").rglob("mine.mp4")), "kept on disk"


def test_a_film_recorded_in_the_page_is_followed_to_its_timeline(page, served):
    press(page, "Video", "button[role=tab]")
    open_camera(page, "#mien-clip")
    browser.wait(page, "#mien-clip button", "Record").click()
    time.sleep(2)
    browser.wait(page, "#mien-clip button", "Stop").click()
    browser.wait(page, "#mien-drawn video")  # all of it is read
    said = browser.text_of(page, ".mien-timeline section", "Person 1")
    seconds = float(re.search(r"Seen for ([\d.]+) s", said)[1])
    assert 0.5 < seconds < 30 and "happiness" in said
    until(page, "return document.querySelector('#mien-drawn video').readyState >= 2")
    assert not list((served[1] / "tmp").rglob("*.webm")), "kept on disk"


def test_the_video_chosen_last_is_the_one_that_is_shown(page, tmp_path):
    press(page, "Video", "button[role=tab]")
    browser.wait(page, "#mien-clip")
    upload(page, still(tmp_path / "long.mp4", 600), "#mien-clip")
    browser.wait(page, ".mien-reading", "read")
    upload(page, still(tmp_path / "short.mp4", 5), "#mien-clip")
    browser.wait(page, ".mien-timeline section", "Seen for 1.0 s, from 0:00.0 to 0:00.8")


PRESSABLE = """return [...document.querySelectorAll('button, summary, [role=tab], [role=button], input[type=radio]')]
    .filter(e => !e.disabled && !e.closest('.visually-hidden, [aria-hidden=true]'))
    .filter(e => e.checkVisibility({visibilityProperty: true}) && e.getBoundingClientRect().width)
    .map(e => [e, (e.closest('[id^=mien]')?.id ?? '') + ' '
        + (e.innerText.trim() || e.ariaLabel || e.value || e.title)])
"""
"""JavaScript: every element that can be pressed, and its name."""


def test_every_button_can_be_pressed(page):
    from selenium.common.exceptions import WebDriverException

    hiding = (" Photograph", " Video")  # the tabs, which hide what has not been pressed yet
    tried: list[str] = []
    pressed: list[str] = []
    while True:
        for _ in range(20):  # what the last press brings may take a while
            new = [(element, name) for element, name in page.execute_script(PRESSABLE) if name not in tried]
            if any(name not in hiding for _, name in new):
                break
            time.sleep(0.25)
        if not new:
            break
        element, name = min(new, key=lambda pair: pair[1] in hiding)
        tried.append(name)
        assert len(tried) < 100
        try:
            page.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
            element.click()
        except WebDriverException:  # it is gone, or under something else
            continue
        pressed.append(name)
        time.sleep(1.5 if "Record" in name or "Webcam" in name else 0.4)
        if name == "mien-clip Stop":  # before another button ends the reading
            browser.wait(page, ".mien-timeline section", "Person 1")
        assert not page.execute_script("return toasts.map(toast => toast.textContent)"), name
    for name in (
        "mien-file Capture from camera",
        "mien-file Click to Access Webcam",
        "mien-file capture photo",
        "mien-file Paste from clipboard",
        " Drawn faces",
        " What it rests on",
        " Inside another model",
        "mien-clip Capture from camera",
        "mien-clip Click to Access Webcam",
        "mien-clip Record",
        "mien-clip Stop",
    ):
        assert name in pressed, (name, pressed, set(tried) - set(pressed))


@contextmanager
def window(page, width: int, height: int = 1000):
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        yield
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_fits_a_telephone(page):
    with window(page, 360, 740):
        press(page, "Drawn faces")
        browser.wait(page, ".mien-bars caption", "Face 1")
        assert page.execute_script("return document.documentElement.scrollWidth") <= 360
        assert browser.wait(page, "#mien-picture img").rect["width"] > 320
        assert browser.text_of(page, ".mien-face[data-face='0']").startswith("1")


LABELS = """const done = arguments[0], frame = document.querySelector('.mien-photograph');
frame.scrollIntoView({block: 'center'});
const measured = () => {
const inside = frame.getBoundingClientRect(), shown = [...frame.querySelectorAll('.mien-face span')]
    .filter(label => label.checkVisibility({visibilityProperty: true}));
done(shown.map(label => {
    const box = label.getBoundingClientRect();
    return {text: label.innerText, box: [box.left - inside.left, box.top - inside.top, box.right - inside.left,
        box.bottom - inside.top], size: [inside.width, inside.height],
        above: label.contains(document.elementFromPoint((box.left + box.right) / 2, (box.top + box.bottom) / 2))};
}));
};
requestAnimationFrame(() => requestAnimationFrame(measured));  // when the page has been drawn
"""
"""JavaScript: the labels in the picture, where they lie in it, and whether each is above all else there."""


def labels_now(page) -> list[str]:
    """What the labels in the picture say, none of which covers another one or leaves the picture."""
    page.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": 1, "y": 1})
    labels = page.execute_async_script(LABELS)
    for i, label in enumerate(labels):
        left, top, right, bottom = label["box"]
        width, height = label["size"]
        assert left > -1 and top > -1 and right < width + 1 and bottom < height + 1, label
        assert label["above"], label
        for other in labels[:i]:
            x, y, end, low = other["box"]
            assert left >= end - 0.5 or right <= x + 0.5 or top >= low - 0.5 or bottom <= y + 0.5, (label, other)
    return [label["text"] for label in labels]


def labels_of(page) -> list[str]:
    """What `labels_now` gives, once the labels are where they stay: on a busy machine that takes more than a moment."""
    end = time.monotonic() + 20
    while True:
        try:
            return labels_now(page)
        except AssertionError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


@pytest.fixture(scope="module")
def group(tmp_path_factory) -> Path:
    """A photograph of 60 faces, close together."""
    head = Image.open(EXAMPLES / "astronaut.png").convert("RGB").crop((150, 30, 310, 220)).resize((118, 140))
    image = Image.new("RGB", (1600, 860), (90, 100, 110))
    for i in range(60):
        image.paste(head, (i % 12 * 130 + i // 12 % 2 * 20, 20 + i // 12 * 165))
    image.save(path := tmp_path_factory.mktemp("group") / "group.png")
    return path


def test_labels_of_a_group_do_not_cover_each_other(page, group):
    for width, least in ((1280, 45), (360, 8)):
        with window(page, width):
            press(page, "Drawn faces")
            browser.wait(page, ".mien-face[data-face='2']")
            texts = labels_of(page)
            assert {text.split()[0] for text in texts} == {"1", "2", "3"}
            if width > 1000:  # there is room for their expressions, too
                assert {text.split()[1] for text in texts} == {"happiness", "surprise", "anger"}
            upload(page, group)
            browser.wait(page, ".mien-face[data-face='59']")
            texts = labels_of(page)
            assert len(texts) >= least and any(text.startswith("1 ") or text == "1" for text in texts)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_its_ground(page, served, group, tmp_path, scheme):
    def check(state: str) -> None:
        time.sleep(0.3)  # colours that change slowly are there
        contrasts = page.execute_script(browser.CONTRASTS)
        assert len(contrasts) > 5
        assert not [(text, ratio) for text, ratio in contrasts if ratio < 4.5], state
        if state in ("the start", "many faces", "Inside another model", "a timeline"):
            assert browser.barriers(page) == [], state

    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        page.get(served[0])
        browser.wait(page, "#mien-file")
        assert page.execute_script("return document.body.classList.contains('dark')") == (scheme == "dark")
        check("the start")
        upload(page, group)
        browser.wait(page, ".mien-face[data-face='59']")
        check("many faces")
        press(page, "Astronaut")
        browser.wait(page, ".mien-bars caption", "This face")
        assert any("happiness" in text for text, _ in page.execute_script(browser.CONTRASTS))
        check("one face")
        for tab, text in (("What it rests on", "what hiding"), ("Inside another model", "patches")):
            press(page, tab, "button[role=tab]")
            browser.wait(page, ".mien-panels figcaption", text)
            check(tab)
        (tmp_path / "notes.png").write_text("no picture")
        upload(page, tmp_path / "notes.png")
        browser.wait(page, ".mien-problem", "not a picture")
        check("a problem")
        press(page, "Capture from camera", "#mien-file button")
        browser.wait(page, "#mien-file button", "Access Webcam")
        check("a camera")
        press(page, "Video", "button[role=tab]")
        browser.wait(page, "#mien-clip")
        check("the start of videos")
        open_camera(page, "#mien-clip")
        check("a camera for a film")
        press(page, "Upload file", "#mien-clip button")
        upload(page, still(tmp_path / "mine.mp4", 5), "#mien-clip")
        browser.wait(page, ".mien-timeline section", "Person 1")
        check("a timeline")
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_every_control_has_a_name(page):
    press(page, "Drawn faces")
    browser.wait(page, ".mien-bars caption", "Face 1")
    controls = page.find_elements("css selector", ":is(button, input, select):not([tabindex='-1'])")
    shown = [control for control in controls if control.is_displayed()]
    assert len(shown) > 10 and not [e.get_attribute("outerHTML") for e in shown if not e.accessible_name]
    assert all(i.get_attribute("alt") for i in page.find_elements("css selector", ".mien-photograph img"))
