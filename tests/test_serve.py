"""mien serve: what it answers, what it refuses, what it outlives, and what it leaves behind."""

import asyncio
import base64
import html
import http.client
import importlib.util
import io
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from conftest import COLOURS, HEADER, write_stand_in
from PIL import Image, PngImagePlugin

import mien
from mien.__main__ import main
from mien.engines import computes_int8
from mien.errors import MienError
from mien.faces import Faces
from mien.faces.columns import entries
from mien.faces.record import record
from mien.labels import EXPRESSIONS
from mien.outputs import expression_output

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from mien.service import Keys, Limits, Refused  # noqa: E402
from mien.service.apidocs import page  # noqa: E402
from mien.service.app import make_app  # noqa: E402
from mien.service.bodies import pictures_in  # noqa: E402
from mien.service.dispatch import Dispatcher, Worker  # noqa: E402
from mien.service.limits import busy  # noqa: E402
from mien.service.schema import Labels, Question, answers, example  # noqa: E402
from mien.service.worker import Answer, JobReader, ReadJob, Request, Slow, Threads  # noqa: E402

ROOT = Path(__file__).parents[1]
OUTPUTS = (expression_output(EXPRESSIONS),)
Reading, Unreadable = answers(OUTPUTS)
ASKED = [Question(name="expression", kind="classes", labels=["a"], meaning="probability, 0 to 1")]
PHOTO = (ROOT / "examples" / "hopper.jpg").read_bytes()
KEY = "a-key-of-nobody-at-all"
LIMITS = ["--max-body", "4", "--max-pictures", "12", "--max-pixels", "2", "--max-faces", "1", "--max-connections", "60"]

_spec = importlib.util.spec_from_file_location("serve_benchmark", ROOT / "benchmarks" / "serve.py")
bench = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bench)

# Whoever connects to anything but this machine is ended, and so says the exit code.
GUARD = """
import os, sys
def hook(event, args):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo"):
        address = args[0] if event == "socket.getaddrinfo" else args[-1]
        host = address[0] if isinstance(address, tuple) else address
        if isinstance(address, tuple) or event == "socket.getaddrinfo":
            if host not in ("127.0.0.1", "localhost", "::1", None):
                os.write(2, f"REACHED OUT to {host}\\n".encode())
                os._exit(99)
sys.addaudithook(hook)
"""


class Served:
    """A server whose processes may write no file of more than a kilobyte, and reach nobody."""

    def __init__(self, folder: Path, *options: str, **environment: str):
        (folder / "sitecustomize.py").write_text(GUARD)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mien", "serve", "--port", "0", *map(str, options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]),
                "PYTHONDONTWRITEBYTECODE": "1",  # Python would keep what was cut short of it
                **environment,
            },
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024)),
            start_new_session=True,
        )
        self.errors = b""
        self._listening = threading.Thread(target=self._listen, daemon=True)
        self._listening.start()
        line = self.process.stdout.readline().decode()
        assert line.startswith("mien: serving at http://127.0.0.1:"), (line, self.errors)
        self.port = int(line.split()[3].rpartition(":")[2])

    def _listen(self):
        while chunk := os.read(self.process.stderr.fileno(), 4096):
            self.errors += chunk

    def ask(self, method, path, body=None, kind=None, key=KEY):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        connection.request(method, path, body, headers | ({"Content-Type": kind} if kind else {}))
        response = connection.getresponse()
        data = response.read()
        connection.close()
        return response.status, json.loads(data) if "json" in response.getheader("content-type", "") else data

    def read(self, *pictures, path="/v1/read"):
        kind, body = bench.multipart(*pictures)
        return self.ask("POST", path, body, kind)

    def metric(self, name):
        return float(re.search(rf"^{re.escape(name)} (.+)$", self.ask("GET", "/metrics")[1].decode(), re.M)[1])

    def descendants(self, pid=None):
        pid = pid or self.process.pid
        tasks = Path(f"/proc/{pid}/task").glob("*/children")  # a thread's children are no other's
        children = [child for task in tasks for child in task.read_text().split()]
        return [*map(int, children), *(below for child in children for below in self.descendants(int(child)))]

    def end(self, number, group=False):
        """Send the signal; the exit code, and the processes that are left."""
        below = self.descendants()
        os.killpg(self.process.pid, number) if group else self.process.send_signal(number)
        code = self.process.wait(60)
        self._listening.join(10)
        end = time.monotonic() + 10
        while (left := [*filter(lives, below)]) and time.monotonic() < end:
            time.sleep(0.1)
        return code, left


def lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    (folder / "keys").write_text(f"# ours\n\n{KEY}\nanother-key-of-nobody\n")
    served = Served(folder, *LIMITS, "--upload-timeout", "4", "--keys", folder / "keys", "--access-log")
    yield served
    assert served.ask("GET", "/healthz")[0] == 200  # one line of the log at the least, whichever tests ran here
    code, left = served.end(signal.SIGTERM)
    assert (code, left) == (0, []), served.errors
    line = r"mien: (([A-Z]+|\?) (/[\w/.]*|other) \d{3} \d+\.\d{3} s|a worker died \(exit code -9\); another one starts)"
    lines = served.errors.decode().splitlines()
    assert [text for text in lines if not re.fullmatch(line, text)] == []  # no key, name, address, traceback, warning
    assert any("/healthz" in text or "/v1/" in text for text in lines)


@pytest.fixture
def start(tmp_path, stand_in):
    """Start a server with the stand-in model, which is gone after the test whatever became of it."""
    started = []
    yield (
        lambda *options, **environment: (
            started.append(Served(tmp_path, "--model", stand_in, *options, **environment)) or started[-1]
        )
    )
    for served in started:
        if served.process.poll() is None:
            os.killpg(served.process.pid, signal.SIGKILL)


def png(size, colour=(90, 120, 40)):
    Image.new("RGB", size, colour).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def close_to(expected):
    return json.loads(json.dumps(expected), parse_float=lambda text: pytest.approx(float(text), abs=2e-3))


# --- a real server


def test_pictures_are_read_as_by_the_reader(server):
    status, answer = server.read(PHOTO, png((64, 64)))
    assert status == 200
    Reading.model_validate(answer)
    faces = mien.Reader.from_pretrained()(ROOT / "examples" / "hopper.jpg")
    assert answer == {
        "pictures": [
            {"source": "0", "faces": [close_to(record("0", 0, faces[0]))]},
            {"source": "1", "faces": []},
        ]
    }


def test_json_is_read_as_multipart_is(server):
    data = base64.b64encode(PHOTO).decode()
    uploads = [{"name": "ähnlich\n.jpg", "data": data}, {"data": f"data:image/jpeg;base64,{data}"}]
    status, answer = server.ask("POST", "/v1/read", json.dumps({"pictures": uploads}), "application/json")
    assert status == 200
    assert [picture["source"] for picture in answer["pictures"]] == ["ähnlich\n.jpg", "picture 2"]
    faces = [picture["faces"][0] for picture in answer["pictures"]]
    assert faces[0] | {"source": ""} == close_to(faces[1] | {"source": ""})
    assert faces[0]["box"] == close_to(server.read(PHOTO)[1]["pictures"][0]["faces"][0]["box"])


def test_crops_are_classified(server):
    crop = Image.open(io.BytesIO(PHOTO)).crop((175, 111, 350, 325))
    crop.save(file := io.BytesIO(), "PNG")
    status, answer = server.read(file.getvalue(), b"junk", path="/v1/classify")
    assert status == 200
    (face,) = answer["pictures"][0]["faces"]
    probs = mien.Classifier.from_pretrained().predict_proba([crop])[0]
    assert list(face["probabilities"].values()) == close_to(list(map(float, probs)))
    assert face["box"] is face["landmarks"] is face["score"] is None
    assert answer["pictures"][1]["error"] == {"code": "unreadable", "reason": "not a picture"}


def test_each_picture_that_cannot_be_read_has_its_reason(server):
    wide = Image.new("RGB", (1024, 600))
    face = Image.open(io.BytesIO(PHOTO)).resize((512, 600))
    wide.paste(face, (0, 0))
    wide.paste(face, (512, 0))
    wide.save(two := io.BytesIO(), "PNG")
    bad = {
        b"": "an empty file",
        b"junk": "not a picture",
        PHOTO[:20_000]: "damaged or cut short",
        png((2000, 2000)): "more than 2 million pixels",
        bench.bomb(20_000): "more than 2 million pixels",
        two.getvalue(): "2 faces, more than 1",
    }
    status, answer = server.read(*bad)
    assert status == 422
    Unreadable.model_validate(answer)
    assert answer["error"]["reason"] == "none of the pictures could be read"
    assert [picture["error"]["reason"] for picture in answer["pictures"]] == list(bad.values())
    status, answer = server.read(b"junk", PHOTO)
    assert status == 200
    assert ["error" in picture for picture in answer["pictures"]] == [True, False]
    assert server.read(b"junk")[1]["error"] == {"code": "unreadable", "reason": "not a picture"}


def test_shapes_that_no_photograph_has_harm_nobody(server):
    for size in ((1, 1), (1, 60_000), (60_000, 1), (2, 3)):
        status, answer = server.read(png(size))
        assert status == 200, (size, answer)


def test_megabytes_are_read_and_never_written(server):
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file := io.BytesIO(), "PNG", compress_level=0)
    assert 2 * 2**20 < len(file.getvalue()) < 3 * 2**20
    status, answer = server.read(file.getvalue())  # a file for them could not be written: see Served
    assert (status, answer["pictures"][0]["faces"]) == (200, [])
    data = base64.b64encode(file.getvalue()).decode()
    assert server.ask("POST", "/v1/read", json.dumps({"pictures": [{"data": data}]}), "application/json")[0] == 200


def test_pictures_are_bytes_and_never_addresses(server):
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("a.jpg", PHOTO)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/a.jpg"
        photo = ROOT / "examples" / "hopper.jpg"
        sources = [address, f"file://{photo}", str(photo), "-", f"{photo.parent}/a.zip/a.jpg"]
        status, answer = server.read(zipped.getvalue(), *(source.encode() for source in sources))
        assert status == 422
        assert [picture["error"]["reason"] for picture in answer["pictures"][1:]] == ["not a picture"] * 5
        uploads = [{"name": source, "data": base64.b64encode(b"junk").decode()} for source in sources]
        status, answer = server.ask("POST", "/v1/read", json.dumps({"pictures": uploads}), "application/json")
        assert status == 422
        assert [picture["source"] for picture in answer["pictures"]] == sources
        for source in sources[:2]:
            body = json.dumps({"pictures": [{"data": source}]})
            assert server.ask("POST", "/v1/read", body, "application/json")[1]["error"]["code"] == "bad_body"
        listening.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listening.accept()


def test_a_request_has_no_more_than_its_share_of_pixels(server):
    large = png((1400, 1400))  # with two million pixels a picture, four million a request
    assert server.read(large, large)[0] == 200
    status, answer = server.read(large, large, large)
    assert (status, answer["error"]["code"]) == (422, "too_many_pixels")
    assert answer["error"]["reason"] == "the pictures of a request have at most 4,000,000 pixels together"


def test_the_documented_command_sends_a_large_photograph(server, tmp_path):
    text = (ROOT / "docs" / "serve.md").read_text()
    (command,) = re.findall(r"^\(printf .+?(?=\|\n +curl)", text, re.M | re.S)
    noise = np.random.default_rng(0).integers(0, 256, (500, 500, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.jpg", "PNG")  # some 750 kB, too long for a command line
    body = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, timeout=60, check=True).stdout
    assert len(body) > 900_000
    status, answer = server.ask("POST", "/v1/read", body, "application/json")
    assert (status, answer) == (200, {"pictures": [{"source": "large.jpg", "faces": []}]})


def test_too_large_a_body_is_refused_before_it_comes(server):
    with socket.create_connection(("127.0.0.1", server.port), 30) as client:
        head = f"POST /v1/read HTTP/1.1\r\nHost: a\r\nX-API-Key: {KEY}\r\nContent-Length: {10**12}\r\n\r\n"
        client.sendall(head.encode())
        response = http.client.HTTPResponse(client)
        response.begin()
        assert response.status == 413 and json.loads(response.read())["error"]["code"] == "too_large"


def test_keys(server):
    for path in ("/v1/read", "/v1/classify"):
        assert server.ask("POST", path, b"{}", "application/json", key=None)[0] == 401
    for path in ("/v1/labels", "/metrics"):
        for key in (None, "a-key-of-nobody-at-al", KEY + "l", "\xff" * 20):
            status, answer = server.ask("GET", path, key=key)
            assert (status, answer["error"]["code"]) == (401, "no_key")
        assert server.ask("GET", path)[0] == 200
        assert server.ask("GET", path, key="another-key-of-nobody")[0] == 200
    for path in ("/healthz", "/docs", "/openapi.json"):
        assert server.ask("GET", path, key=None)[0] == 200


def test_labels_and_health(server):
    labels = server.ask("GET", "/v1/labels")[1]
    assert labels["labels"] == list(mien.Classifier.from_pretrained().labels)
    assert server.ask("GET", "/healthz")[1] == {"status": "ok", "workers": 1}


def test_requests_share_batches_and_are_counted(server):
    names = ("mien_batch_requests_count", "mien_batch_requests_sum", "mien_faces_total")
    before = [server.metric(name) for name in names]
    answered = 'mien_requests_total{route="/v1/read",status="200"}'
    was = server.metric(answered) if before[0] else 0
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: server.read(PHOTO), range(24)))
    assert [status for status, _ in answers] == [200] * 24
    assert all(answer == close_to(answers[0][1]) for _, answer in answers)
    batches, requests, faces = (server.metric(name) - old for name, old in zip(names, before, strict=True))
    assert (requests, faces) == (24, 24)
    assert batches < requests
    assert server.metric(answered) - was == 24
    assert server.metric("mien_queue_depth") == server.metric("mien_held_bytes") == 0


def test_slow_clients_are_hung_up_on_and_hinder_nobody(server):
    kind, body = bench.multipart(PHOTO)
    head = f"POST /v1/read HTTP/1.1\r\nHost: a\r\nX-API-Key: {KEY}\r\nContent-Type: {kind}\r\n"
    clients = [socket.create_connection(("127.0.0.1", server.port), 30) for _ in range(30)]
    for number, client in enumerate(clients):
        started = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:50]
        client.sendall((b"POST /v1/re", b"", started)[number % 3])
    begin, got = time.monotonic(), {}
    while len(got) < len(clients) and time.monotonic() - begin < 60:
        assert server.ask("GET", "/healthz", key=None)[0] == 200
        time.sleep(0.5)
        for number, client in enumerate(clients):
            if number in got:
                continue
            client.setblocking(False)
            try:
                if number % 3 != 1:
                    client.send(b"a")  # a byte now and then, for ever
                got[number] = client.recv(4096)
            except BlockingIOError:
                pass
            except OSError:
                got[number] = b""
    assert len(got) == len(clients)
    assert time.monotonic() - begin > 2
    for number, answer in got.items():
        assert answer.startswith(b"HTTP/1.1 408") if number % 3 == 2 else not answer, (number, answer)
        clients[number].close()
    assert server.metric("mien_held_bytes") == 0


def test_no_more_connections_than_allowed(server):
    clients = [socket.create_connection(("127.0.0.1", server.port), 30) for _ in range(70)]
    time.sleep(0.5)
    shut = 0
    for client in clients:
        client.setblocking(False)
        try:
            shut += client.recv(1) == b""
        except BlockingIOError:
            pass
        except ConnectionError:
            shut += 1
        client.close()
    assert 10 <= shut < 20
    time.sleep(0.2)
    assert server.read(PHOTO)[0] == 200


def test_idle_connections_keep_nobody_out(server):
    heads = (
        b"",
        b"POST /v1/read HTTP/1.1\r\nHost: a\r\nX-API-Key: " + KEY.encode() + b"\r\nContent-Length: 1000\r\n\r\na",
    )
    clients = []
    for number in range(150):  # more than twice as many as may be open: a good one finds its place all the same
        clients.append(socket.create_connection(("127.0.0.1", server.port), 30))
        clients[-1].sendall(heads[number % 2])
        if number % 10 == 9:
            assert server.read(PHOTO)[0] == 200
    kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    for _ in range(2):
        kept.request("GET", "/healthz")
        assert kept.getresponse().read()
    kept.close()
    for client in clients:
        client.close()


def test_an_endless_head_is_refused(server):
    with socket.create_connection(("127.0.0.1", server.port), 30) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-Long: " + b"a" * 200_000)
        response = http.client.HTTPResponse(client)
        response.begin()
        assert response.status == 400 and json.loads(response.read())["error"]["code"] == "bad_request"


def test_a_body_that_breaks_off_in_chunks_is_refused(server):
    with socket.create_connection(("127.0.0.1", server.port), 30) as client:
        head = f"POST /v1/read HTTP/1.1\r\nHost: a\r\nX-API-Key: {KEY}\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.sendall(head.encode() + b"4\r\nabcd\r\nno chunk\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 400")
        assert client.recv(4096) == b""
    assert server.metric("mien_held_bytes") == 0


def test_random_requests_leave_it_serving(tmp_path_factory, server):
    before, restarts = server.read(PHOTO), server.metric("mien_worker_restarts")
    key = f"X-API-Key: {KEY}\r\n".encode()
    statuses = asyncio.run(_fuzz(server, 500, key))
    assert set(statuses) <= {200, 400, 401, 404, 405, 413, 415, 422, "no HTTP"}, statuses
    assert statuses[422] > 100
    assert statuses[200] > 10
    assert server.read(PHOTO) == (200, close_to(before[1]))
    assert server.metric("mien_worker_restarts") == restarts


async def _fuzz(server, count, key):
    ask, address = bench.ask, bench.Server("127.0.0.1", server.port, 0)

    async def keyed(server, raw, seconds):
        return await ask(server, raw.replace(b"Host: mien\r\n", b"Host: mien\r\n" + key, 1), seconds)

    bench.ask = keyed
    try:
        return await bench.fuzz(address, count, seed=1)
    finally:
        bench.ask = ask


def test_a_worker_that_dies_is_replaced(server):
    before = server.metric("mien_worker_restarts")
    (worker,) = server.descendants()
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(server.read, *[PHOTO] * 10) for _ in range(2)]
        time.sleep(0.05)
        os.kill(worker, signal.SIGKILL)
        answers = [future.result() for future in asked]
    assert {status for status, _ in answers} == {200}  # what it had begun is read by the next
    end = time.monotonic() + 60
    while server.metric("mien_worker_restarts") == before or server.ask("GET", "/healthz")[0] != 200:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert server.read(PHOTO)[0] == 200


def test_a_port_in_use_is_one_line(server):
    words = [sys.executable, "-m", "mien", "serve", "--port", str(server.port)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"mien: 127.0.0.1:{server.port}: address already in use\n"


def test_ctrl_c_answers_what_was_begun_and_leaves_nothing(start):
    colour = png((48, 48), COLOURS["anger"])
    served = start("--workers", "2", MIEN_API_KEYS=f"{KEY},another-key-of-nobody")
    assert served.ask("GET", "/healthz")[1] == {"status": "ok", "workers": 2}
    assert served.ask("GET", "/v1/labels", key=None)[0] == 401
    assert served.read(colour, path="/v1/classify")[1]["pictures"][0]["faces"][0]["expression"] == "anger"
    children = served.descendants()
    assert len(children) == 2
    assert not any(KEY.encode() in Path(f"/proc/{pid}/environ").read_bytes() for pid in children)
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(served.read, *[PHOTO] * 12) for _ in range(4)]
        while not served.metric("mien_requests_working"):
            assert not all(future.done() for future in asked), "too quick to be interrupted"
        code, left = served.end(signal.SIGINT, group=True)  # as a terminal does: every process gets it
        answers = [future.result() for future in asked]
    assert [status for status, _ in answers] == [200] * 4
    assert all(len(answer["pictures"]) == 12 for _, answer in answers)
    assert (code, left) == (0, [])
    assert served.errors == b""


def test_killed_outright_it_leaves_nothing(start):
    served = start()
    assert len(served.descendants()) == 1
    assert served.end(signal.SIGKILL) == (-signal.SIGKILL, [])


def test_a_model_that_is_none_is_one_line(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no model")
    words = [sys.executable, "-m", "mien", "serve", "--port", "0", "--model", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert re.fullmatch(r"mien: .*model\.onnx: .*\n", done.stderr)


# --- the dispatcher alone


def endless():
    """A JPEG of few bytes and three million pixels whose last scan comes ten thousand times: minutes of work."""
    Image.new("L", (1700, 1700), 128).save(file := io.BytesIO(), "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 10_000 + data[-2:]


def test_a_picture_that_takes_for_ever_keeps_nobody_waiting_for_ever(start):
    served = start("--max-read-seconds", "2")
    with ThreadPoolExecutor(2) as pool:
        bad = pool.submit(served.read, endless())
        while not served.metric("mien_requests_working"):
            assert not bad.done()
        good = pool.submit(served.read, PHOTO)
        assert good.result()[0] == 200
        status, answer = bad.result()
    assert (status, answer["error"]) == (422, {"code": "too_long", "reason": "a picture took longer than 2 seconds"})
    assert served.metric("mien_worker_restarts") == 1
    assert served.end(signal.SIGTERM) == (0, [])
    ended = rb"mien: a worker took too long over one picture \(exit code (1|-9)\); another one starts\n"
    assert re.fullmatch(ended, served.errors)  # it ends by itself, or is ended, whichever comes first


def test_a_strip_costs_no_more_memory_than_a_photograph(start):
    served = start()
    (worker,) = served.descendants()
    Image.new("L", (1, 20_000_000)).save(file := io.BytesIO(), "PNG")
    status, answer = served.read(file.getvalue())
    assert (status, answer["pictures"][0]["faces"]) == (200, [])
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{worker}/status").read_text())[1])
    assert peak < 2**20


class Process:
    """In place of a worker: what it answers is a function's matter, and so is whether it dies. Counts its batches."""

    def __init__(self, answer):
        self.answer, self.alive, self.batches = answer, True, []

    def __call__(self, options, limits, threads):
        self.alive = True
        return self

    def wait_ready(self):
        pass

    def ask(self, jobs):
        self.batches.append([name for job in jobs for name, _ in job.pictures])
        return self.answer(jobs)

    def end(self, seconds=0.0):
        self.alive = False
        return -9


def dispatched(monkeypatch, names, answer=None, later=(), **options):
    """Jobs of one picture each, all there before the worker is: their answers or refusals, the worker, the dispatcher.

    later: more of them, which come once the worker is there.
    """
    worker = Process(answer or (lambda jobs: [Answer(job.pictures[0][0].encode(), 200, 1, 0, 0) for job in jobs]))
    monkeypatch.setattr("mien.service.dispatch.Worker", worker)
    dispatcher = Dispatcher({}, Limits(), **options)

    async def submit(name):
        try:
            return (await dispatcher.submit(ReadJob([(name, b"")], False, time.monotonic() + 30))).body.decode()
        except Refused as refused:
            return refused.status, refused.code

    async def run():
        tasks = [asyncio.create_task(submit(name)) for name in names]
        await asyncio.sleep(0)
        dispatcher.start()
        for name in later:
            while dispatcher.waiting != len(tasks):
                await asyncio.sleep(0.01)
            tasks.append(asyncio.create_task(submit(name)))
            await asyncio.sleep(0)
        return await asyncio.gather(*tasks)

    try:
        return asyncio.run(run()), worker, dispatcher
    finally:
        dispatcher.stop()


@pytest.mark.skipif(not computes_int8(), reason="a CPU without int8")
def test_a_worker_says_that_its_int8_file_is_missing(tmp_path, capfd):
    measured = {
        "accuracy_difference": 0.0,
        "interval": [0.0, 0.0],
        "faces": 9,
        "mean_distance": 0.0,
        "sha256": "0" * 64,
    }
    path = write_stand_in(tmp_path / "model.onnx", HEADER | {"precision": {"int8": measured}})
    worker = Worker({"model": str(path)}, Limits(), 1)
    worker.wait_ready()
    worker.end()
    reason = f"{path}: its int8 file, model.int8.onnx, is not beside it: fp32 is taken, which is slower"
    assert capfd.readouterr().err == f"mien: {reason}\n"


def test_requests_that_wait_are_read_together(monkeypatch):
    answers, worker, dispatcher = dispatched(monkeypatch, "abcde", batch_size=3)
    assert answers == list("abcde")
    assert worker.batches == [["a", "b", "c"], ["d", "e"]]
    assert (dispatcher.waiting, dispatcher.working, dispatcher.restarts) == (0, 0, 0)


def test_a_batch_waits_for_company_until_it_is_full(monkeypatch):
    begin = time.monotonic()
    answers, worker, _ = dispatched(monkeypatch, "a", later="bc", batch_size=3, batch_wait=60)
    assert (answers, worker.batches) == (["a", "b", "c"], [["a", "b", "c"]])
    assert time.monotonic() - begin < 30
    assert dispatched(monkeypatch, "a", batch_size=3, batch_wait=0.01)[1].batches == [["a"]]


def answer_or_die(jobs):
    if any(job.pictures[0][0] == "poison" for job in jobs):
        raise EOFError
    return [Answer(job.pictures[0][0].encode(), 200, 1, 0, 0) for job in jobs]


def test_who_shares_a_batch_with_a_killer_is_answered(monkeypatch):
    answers, worker, dispatcher = dispatched(monkeypatch, ["a", "poison", "b", "c"], answer_or_die, batch_size=3)
    assert answers == ["a", (503, "worker_died"), "b", "c"]
    assert worker.batches == [["a", "poison", "b"], ["c"], ["a"], ["poison"], ["b"]]
    assert dispatcher.restarts == 2


def test_a_worker_that_dies_once_costs_nobody_an_answer(monkeypatch):
    dies = iter([TimeoutError, ConnectionResetError])

    def answer(jobs):
        for error in dies:
            raise error
        return answer_or_die(jobs)

    answers, _, dispatcher = dispatched(monkeypatch, ["a"], answer)
    assert (answers, dispatcher.restarts) == ([(503, "worker_died")], 2)
    dies = iter([TimeoutError])
    answers, _, dispatcher = dispatched(monkeypatch, ["a"], answer)
    assert (answers, dispatcher.restarts) == (["a"], 1)


def test_many_pixels_let_others_pass(monkeypatch):
    pixels = {"h1": 60_000_000, "h2": 60_000_000, "h3": 30_000_000}  # of 100 million

    def answer(jobs):
        names = [job.pictures[0][0] for job in jobs]
        many = sum(pixels.get(name, 0) for name in names) > 100_000_000
        return [pixels[n] if many and n in pixels else Answer(n.encode(), 200, 1, 0, 0) for n in names]

    names = ["h1", "h2", "h3", "a", "b", "c"]
    answers, worker, dispatcher = dispatched(monkeypatch, names, answer, batch_size=4)
    assert answers == names
    assert worker.batches == [["h1", "h2", "h3", "a"], ["b", "c"], ["h1"], ["h2", "h3"]]
    assert (dispatcher.waiting, dispatcher.restarts) == (0, 0)


def test_a_picture_without_end_costs_only_its_request_the_answer(monkeypatch):
    def answer(jobs):
        names = [job.pictures[0][0] for job in jobs]
        return Slow(names.index("slow")) if "slow" in names else answer_or_die(jobs)

    answers, worker, dispatcher = dispatched(monkeypatch, ["a", "slow", "b"], answer)
    assert answers == ["a", (422, "too_long"), "b"]
    assert worker.batches == [["a", "slow", "b"], ["a", "b"]]
    assert dispatcher.restarts == 1


def test_a_worker_that_dies_while_it_waits_is_replaced(monkeypatch):
    worker = Process(answer_or_die)
    monkeypatch.setattr("mien.service.dispatch.Worker", worker)
    monkeypatch.setattr("mien.service.dispatch.PATIENCE", 0.01)
    dispatcher = Dispatcher({}, Limits())
    dispatcher.start()
    worker.alive = False
    end = time.monotonic() + 30
    while not (dispatcher.restarts and dispatcher.ready) and time.monotonic() < end:
        time.sleep(0.01)
    assert (dispatcher.restarts, dispatcher.ready) == (1, True)
    dispatcher.stop()


def test_nothing_is_kept_of_those_who_wait_no_longer():
    dispatcher = Dispatcher({}, Limits(seconds=0.01, queue=1))  # without workers

    async def run():
        for _ in range(2):
            with pytest.raises(Refused, match="timeout"):
                await dispatcher.submit(ReadJob([("a", b"")], False, time.monotonic() + 0.01))
            assert dispatcher.waiting == 0
        full = asyncio.create_task(dispatcher.submit(ReadJob([], False, time.monotonic() + 30)))
        await asyncio.sleep(0)
        with pytest.raises(Refused, match="queue_full"):
            await dispatcher.submit(ReadJob([], False, time.monotonic() + 30))
        full.cancel()

    asyncio.run(run())


# --- the front alone


class Answers:
    """A dispatcher whose answers are given beforehand."""

    waiting = working = restarts = 0
    alive, ready, full = 1, True, False

    def __init__(self, answer=None):
        self.answer, self.jobs = answer or Answer(b'{"pictures": []}', 200, 1, 0, 0), []

    async def submit(self, job):
        self.jobs.append(job)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def ask(dispatcher, method="GET", path="/", body=(), kind="", keys=(), limits=None, headers=(), slowly=0.0, app=None):
    """One request to the application: status, headers, body; and how often it asked for more of the body."""
    labels = Labels(model="m", labels=["a"], outputs=ASKED, licence=None)
    about = {"labels": labels, "outputs": OUTPUTS, "version": "1"}
    app = app or make_app(dispatcher, limits=limits or Limits(), keys=Keys(keys), **about)
    parts, asked, sent = list(body), [], []

    async def receive():
        asked.append(1)
        await asyncio.sleep(slowly)
        return {"type": "http.request", "body": parts.pop(0) if parts else b"", "more_body": bool(parts)}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [(b"content-type", kind.encode()), *headers],
        "state": {"connection": mock.Mock()},
        "server": ("127.0.0.1", 1),
        "client": ("127.0.0.1", 2),
    }
    asyncio.run(app(scope, receive, send))
    data = b"".join(message.get("body", b"") for message in sent[1:])
    fields = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], fields, data, len(asked)


def post(dispatcher, *pictures, **options):
    kind, body = bench.multipart(*pictures)
    status, headers, data, asked = ask(dispatcher, "POST", "/v1/read", [body], kind, **options)
    return status, headers, json.loads(data), asked


def test_a_full_queue_is_refused_before_the_body_is_read():
    dispatcher = Answers()
    dispatcher.full = True
    status, headers, answer, asked = post(dispatcher, b"a")
    assert (status, headers["retry-after"], answer["error"]["code"], asked) == (429, "1", "queue_full", 0)


@pytest.mark.parametrize(
    "refused", [busy("timeout", "no answer", 503), busy("queue_full", "many"), Refused(500, "internal", "a mistake")]
)
def test_what_the_dispatcher_refuses_is_answered(refused):
    status, _, answer, _ = post(Answers(refused), b"a")
    assert (status, answer) == (refused.status, {"error": {"code": refused.code, "reason": refused.reason}})


def test_a_body_in_pieces_is_refused_once_it_is_too_large():
    kind, body = bench.multipart(bytes(1000))
    pieces = [body[at : at + 100] for at in range(0, len(body), 100)]
    status, _, data, asked = ask(Answers(), "POST", "/v1/read", pieces, kind, limits=Limits(body=500))
    assert (status, json.loads(data)["error"]["code"], asked) == (413, "too_large", 6)


def test_bodies_do_not_fill_the_memory():
    kind, body = bench.multipart(bytes(1000))
    status, _, data, _ = ask(Answers(), "POST", "/v1/read", [body], kind, limits=Limits(held=500))
    assert (status, json.loads(data)["error"]["code"]) == (429, "memory_full")


def test_a_body_that_trickles_is_refused():
    limits = Limits(upload_seconds=0.05)
    status, _, data, _ = ask(Answers(), "POST", "/v1/read", [b"a"] * 100, "", limits=limits, slowly=0.02)
    assert (status, json.loads(data)["error"]["code"]) == (408, "too_slow")


def test_without_a_key_nothing_is_read():
    dispatcher = Answers()
    status, headers, answer, asked = post(dispatcher, b"a", keys=[KEY])
    assert (status, headers["www-authenticate"], answer["error"]["code"], asked) == (401, "Bearer", "no_key", 0)
    assert post(dispatcher, b"a", keys=[KEY], headers=[(b"x-api-key", KEY.encode())])[0] == 200
    assert post(dispatcher, b"a", keys=[KEY], headers=[(b"authorization", b"bearer " + KEY.encode())])[0] == 200
    assert len(dispatcher.jobs) == 2


def test_wrong_routes_and_types_are_refused_in_json():
    for method, path, status in (("GET", "/v1/read", 405), ("GET", "/nothing", 404), ("POST", "/healthz", 405)):
        answer = ask(Answers(), method, path)
        assert answer[0] == status
        assert set(json.loads(answer[2])["error"]) == {"code", "reason"}
    assert ask(Answers(), "POST", "/v1/read", [b"a"], "image/jpeg")[0] == 415
    gzip = ask(Answers(), "POST", "/v1/read", [b"a"], headers=[(b"content-encoding", b"gzip")])
    assert (gzip[0], gzip[3]) == (415, 0)


def test_jobs_have_a_deadline():
    dispatcher = Answers()
    post(dispatcher, b"a", b"b", limits=Limits(seconds=5))
    (job,) = dispatcher.jobs
    assert job.pictures == [("0", b"a"), ("1", b"b")]
    assert 4 < job.deadline - time.monotonic() <= 5


def test_the_page_is_whole_and_asks_nobody_outside():
    _, headers, data, _ = ask(Answers(), path="/docs", keys=[KEY])
    text = data.decode()
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "<script" not in text
    assert not re.search(r"(src|href|action)=\"(https?:)?//|url\(|@import", text)
    for word in ("POST /v1/read", "POST /v1/classify", "GET /healthz", "/v1/labels", "/metrics", "landmarks", "429"):
        assert word in text


def test_the_page_is_rendered_once_and_shows_an_answer(monkeypatch):
    rendered = mock.Mock(wraps=page)
    monkeypatch.setattr("mien.service.app.page", rendered)
    labels = Labels(model="m", labels=["a"], outputs=ASKED, licence=None)
    app = make_app(Answers(), limits=Limits(), keys=Keys(), labels=labels, outputs=OUTPUTS, version="1")
    first, second = (ask(None, path="/docs", app=app)[2] for _ in range(2))
    assert first == second
    assert rendered.call_count == 1
    shown = json.loads(html.unescape(re.search("For example:</p><pre>(.*?)</pre>", first.decode(), re.S)[1]))
    assert shown == example(OUTPUTS)
    Reading.model_validate(shown)
    faces = shown["pictures"][0]["faces"]
    assert list(faces[0]) == [entry.name for entry in entries(OUTPUTS)][:-1]  # without the note
    assert list(faces[0]["probabilities"]) == list(mien.Classifier.from_pretrained().labels)


def test_openapi_says_what_is_so():
    document = json.loads(ask(Answers(), path="/openapi.json", keys=[KEY])[2])
    assert set(document["paths"]) == {"/v1/read", "/v1/classify", "/v1/labels", "/healthz", "/metrics"}
    for reference in re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document)):
        part = document
        for name in reference.split("/"):
            part = part[name]
    for path in ("/v1/read", "/v1/classify"):
        operation = document["paths"][path]["post"]
        assert set(operation["requestBody"]["content"]) == {"multipart/form-data", "application/json"}
        assert {"200", "401", "408", "413", "415", "422", "429", "500", "503"} <= set(operation["responses"])
        assert operation["security"] == [{"bearer": []}, {"header": []}]
    assert "security" not in document["paths"]["/healthz"]["get"]
    assert "security" not in json.loads(ask(Answers(), path="/openapi.json")[2])["paths"]["/v1/read"]["post"]


# --- what a worker does


def job_reader(read, limits=None):
    """A JobReader whose pictures are read by a function, in one thread."""

    class Pictures:
        def read_many(self, sources, workers, **_):
            yield from [future.result() for future in [workers.submit(read, source) for source in sources]]

    reader = object.__new__(JobReader)
    reader._limits = limits or Limits()
    reader._readers, reader.threads = {False: Pictures(), True: Pictures()}, Threads(1, reader._limits.read_seconds)
    return reader


def in_an_hour(*pictures, aligned=False):
    return ReadJob([(str(number), data) for number, data in enumerate(pictures)], aligned, time.monotonic() + 3600)


def test_a_job_that_breaks_the_reader_harms_no_other():
    def read(source):
        if source == b"bad":
            raise RuntimeError("by a picture")
        return Faces()

    good, bad = in_an_hour(b"good"), in_an_hour(b"bad")
    answers = job_reader(read).answers([good, bad, good._replace(aligned=True)])
    read = {"pictures": [{"source": "0", "faces": []}]}
    broken = {"error": {"code": "internal", "reason": "the service made a mistake"}}
    assert [json.loads(answer.body) for answer in answers] == [read, broken, read]
    assert [answer.status for answer in answers] == [200, 500, 200]
    assert [answer.batch for answer in answers] == [(3, 3), None, None]


def test_a_request_has_a_budget_of_pixels():
    opened = []
    reader = job_reader(lambda source: opened.append(source) or Faces(), Limits(request_pixels=5000))
    small, large = png((40, 50)), png((60, 60))
    noted = PngImagePlugin.PngInfo()
    noted.add_text("note", "a" * 2**21, zip=True)  # which Pillow's own head refuses, and mien reads
    Image.new("RGB", (60, 60)).save(file := io.BytesIO(), "PNG", pnginfo=noted)
    jobs = [
        in_an_hour(*pictures) for pictures in ([small, small], [large, small], [small] * 3, [small, file.getvalue()])
    ]
    answers = reader.answers([*jobs, in_an_hour(b"junk")])
    assert [answer.status for answer in answers] == [200, 422, 422, 422, 200]
    assert {json.loads(answer.body)["error"]["code"] for answer in answers[1:4]} == {"too_many_pixels"}
    assert [bytes(data) for data in opened] == [small, small, b"junk"]


def test_a_batch_has_no_more_pixels_than_a_request_and_the_largest_are_put_off():
    reader = job_reader(lambda source: Faces(), Limits(request_pixels=5000))
    small, large = png((40, 50)), png((60, 60))
    answers = reader.answers([in_an_hour(large), in_an_hour(small, small), in_an_hour(small), in_an_hour(b"junk")])
    assert answers[:2] == [3600, 4000]
    assert [answer.status for answer in answers[2:]] == [200, 200]
    assert answers[2].batch == (2, 2)
    assert reader.answers([in_an_hour(large)])[0].status == 200


def test_a_request_has_a_budget_of_time():
    opened = []

    def read(source):
        begun = time.thread_time()
        opened.append(bytes(source))
        while source == b"slow" and time.thread_time() - begun < 0.2:
            pass
        return Faces()

    reader = job_reader(read, Limits(read_seconds=0.1))
    answers = reader.answers([in_an_hour(b"a", b"slow", b"b", b"c"), in_an_hour(b"d")])
    assert opened == [b"a", b"slow", b"", b"", b"d"]  # the pixels are counted by another function
    first, second = (json.loads(answer.body)["pictures"] for answer in answers)
    assert [picture.get("error", {}).get("code") for picture in first] == [None, None, "too_long", "too_long"]
    assert first[2]["error"]["reason"] == "the 0.1 seconds for the pictures of a request were used up"
    assert "faces" in second[0]


def test_a_picture_that_takes_too_long_is_noticed_while_it_is_read():
    go, threads = threading.Event(), Threads(2, 0.05)

    def work(picture):
        while not go.is_set():
            pass
        return len(picture)

    pictures = Request(7, in_an_hour(b"quick", b"endless")).pictures
    assert threads.submit(len, pictures[0]).result() == 5
    assert threads.slow() is None
    reading = threads.submit(work, pictures[1])
    end = time.monotonic() + 30
    while threads.slow() is None and time.monotonic() < end:
        time.sleep(0.01)
    assert threads.slow() == 7
    go.set()
    assert reading.result() == 7
    assert threads.slow() is None


def test_nothing_is_read_for_those_who_wait_no_longer():
    opened = []
    reader = job_reader(lambda source: opened.append(source) or Faces())
    reader.answers([in_an_hour(b"late")._replace(deadline=time.monotonic()), in_an_hour(b"early")])
    assert opened == [b"", b"early"]


# --- bodies and keys


def refusal(*arguments):
    with pytest.raises(Refused) as caught:
        pictures_in(*arguments)
    return caught.value.status, caught.value.code


def test_pictures_in_multipart():
    kind = 'multipart/form-data; boundary="b"'
    head = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nno picture\r\n--b\r\n'
    body = head + b'content-disposition: form-data; filename="x.jpg"; name="p"\r\n\r\n\r\n--no\r\n\r\n--b--\r\n'
    assert pictures_in(body, kind, 1) == [("x.jpg", b"\r\n--no\r\n")]
    assert refusal(head, kind, 1) == (422, "bad_body")
    assert refusal(body[:-6], kind, 1) == (422, "bad_body")
    assert refusal(body, "multipart/form-data", 1) == (422, "bad_body")
    assert refusal(b"", kind, 1)[0] == 422
    assert refusal(head[:-5] + b"--b--\r\n", kind, 1) == (422, "no_pictures")
    assert refusal(bench.multipart(b"a", b"b")[1], bench.multipart()[0], 1) == (422, "too_many_pictures")
    assert refusal(b"--b\r\n\r\n\r\n" * 1000 + b"--b--\r\n", kind, 1)[0] == 422


@pytest.mark.parametrize(
    "body",
    [b"", b"[" * 100_000, b'{"pictures": 1}', b"{}", b'{"pictures": [{}]}', b'{"pictures": [{"data": "%"}]}', b"\xff"]
    + [b'{"pictures": [' + b"{}," * 10**6, b"1" * 10**6, b'{"pictures": [{"data": "\xc3\xa4"}]}'],
)
def test_what_is_not_the_json_of_pictures(body):
    begin = time.process_time()
    assert refusal(body, "application/json; charset=utf-8", 4) == (422, "bad_body")
    assert time.process_time() - begin < 1


def test_the_reason_never_repeats_the_body():
    with pytest.raises(Refused) as caught:
        pictures_in(b'{"pictures": [{"data": ["SECRET"]}]}', "application/json", 4)
    assert caught.value.reason == "pictures.0.data: Input should be a valid string"


def test_key_files(tmp_path):
    file = tmp_path / "keys"
    assert not Keys()
    for text, reason in ((f"{KEY}\nshort\n", "line 2: a key has at least 16"), ("# none\n", "no key in it")):
        file.write_text(text)
        with pytest.raises(MienError, match=reason) as caught:
            Keys.read(file)
        assert "short" not in str(caught.value)
    with pytest.raises(MienError, match="no such file"):
        Keys.read(tmp_path / "nothing")
    file.write_text(f" {KEY} \r\n")
    keys = Keys.read(file)
    assert KEY.encode() in keys
    assert KEY[:-1].encode() not in keys
    assert KEY not in repr(vars(keys))


def test_the_missing_extra_is_named(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith(("mien.service", "mien.commands.serve"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve"]) == 1
    assert capsys.readouterr().err == 'mien: mien serve needs uvicorn: pip install "mien[serve]"\n'
