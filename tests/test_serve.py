"""mien serve: what it answers, what it refuses, what it outlives, and what it leaves behind."""

import asyncio
import base64
import functools
import http.client
import importlib.util
import io
import json
import os
import queue
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import COLOURS
from PIL import Image

import mien
from mien.__main__ import main
from mien.errors import MienError
from mien.faces.record import record

pytest.importorskip("litserve")
pytest.importorskip("prometheus_client")

from litserve.loops.base import _StopLoopError  # noqa: E402

from mien.service import Keys, Limits, Refused  # noqa: E402
from mien.service.app import make_app  # noqa: E402
from mien.service.bodies import pictures_in  # noqa: E402
from mien.service.engine import Engine, _Waiting  # noqa: E402
from mien.service.limits import busy  # noqa: E402
from mien.service.schema import Labels, Reading, Unreadable  # noqa: E402
from mien.service.worker import Answer, Job, Loop, ReadAPI  # noqa: E402

ROOT = Path(__file__).parents[1]
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
            env={**os.environ, "PYTHONPATH": str(folder), **environment},
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
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
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
    told = served.errors.decode().splitlines()
    assert [text for text in told if not re.fullmatch(line, text)] == []  # no key, name, address, traceback, warning
    assert any("/healthz" in text or "/v1/" in text for text in told)


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
    status, told = server.read(PHOTO, png((64, 64)))
    assert status == 200
    Reading.model_validate(told)
    faces = mien.Reader.from_pretrained()(ROOT / "examples" / "hopper.jpg")
    assert told == {
        "pictures": [
            {"source": "0", "faces": [close_to(record("0", 0, faces[0]))]},
            {"source": "1", "faces": []},
        ]
    }


def test_json_is_read_as_multipart_is(server):
    data = base64.b64encode(PHOTO).decode()
    uploads = [{"name": "ähnlich\n.jpg", "data": data}, {"data": f"data:image/jpeg;base64,{data}"}]
    status, told = server.ask("POST", "/v1/read", json.dumps({"pictures": uploads}), "application/json")
    assert status == 200
    assert [picture["source"] for picture in told["pictures"]] == ["ähnlich\n.jpg", "picture 2"]
    faces = [picture["faces"][0] for picture in told["pictures"]]
    assert faces[0] | {"source": ""} == close_to(faces[1] | {"source": ""})
    assert faces[0]["box"] == close_to(server.read(PHOTO)[1]["pictures"][0]["faces"][0]["box"])


def test_crops_are_classified(server):
    crop = Image.open(io.BytesIO(PHOTO)).crop((175, 111, 350, 325))
    crop.save(file := io.BytesIO(), "PNG")
    status, told = server.read(file.getvalue(), b"junk", path="/v1/classify")
    assert status == 200
    (face,) = told["pictures"][0]["faces"]
    shares = mien.Classifier.from_pretrained().predict_proba([crop])[0]
    assert list(face["probabilities"].values()) == close_to(list(map(float, shares)))
    assert face["box"] is face["landmarks"] is face["score"] is None
    assert told["pictures"][1]["error"] == {"code": "unreadable", "reason": "not a picture"}


def test_what_cannot_be_read_is_told_picture_by_picture(server):
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
    status, told = server.read(*bad)
    assert status == 422
    Unreadable.model_validate(told)
    assert told["error"]["reason"] == "none of the pictures could be read"
    assert [picture["error"]["reason"] for picture in told["pictures"]] == list(bad.values())
    status, told = server.read(b"junk", PHOTO)
    assert status == 200
    assert ["error" in picture for picture in told["pictures"]] == [True, False]
    assert server.read(b"junk")[1]["error"] == {"code": "unreadable", "reason": "not a picture"}


def test_shapes_that_no_photograph_has_harm_nobody(server):
    for size in ((1, 1), (1, 60_000), (60_000, 1), (2, 3)):
        status, told = server.read(png(size))
        assert status == 200, (size, told)


def test_megabytes_are_read_and_never_written(server):
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file := io.BytesIO(), "PNG", compress_level=0)
    assert 2 * 2**20 < len(file.getvalue()) < 3 * 2**20
    status, told = server.read(file.getvalue())  # a file for them could not be written: see Served
    assert (status, told["pictures"][0]["faces"]) == (200, [])
    data = base64.b64encode(file.getvalue()).decode()
    assert server.ask("POST", "/v1/read", json.dumps({"pictures": [{"data": data}]}), "application/json")[0] == 200


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
            status, told = server.ask("GET", path, key=key)
            assert (status, told["error"]["code"]) == (401, "no_key")
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
        told = list(pool.map(lambda _: server.read(PHOTO), range(24)))
    assert [status for status, _ in told] == [200] * 24
    assert all(answer == close_to(told[0][1]) for _, answer in told)
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
    begin, told = time.monotonic(), {}
    while len(told) < len(clients) and time.monotonic() - begin < 60:
        assert server.ask("GET", "/healthz", key=None)[0] == 200
        time.sleep(0.5)
        for number, client in enumerate(clients):
            if number in told:
                continue
            client.setblocking(False)
            try:
                if number % 3 != 1:
                    client.send(b"a")  # a byte now and then, for ever
                told[number] = client.recv(4096)
            except BlockingIOError:
                pass
            except OSError:
                told[number] = b""
    assert len(told) == len(clients)
    assert time.monotonic() - begin > 2
    for number, answer in told.items():
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
    told = asyncio.run(_fuzz(server, 500, key))
    assert set(told) <= {200, 400, 401, 404, 405, 413, 415, 422, "no HTTP"}, told
    assert told[422] > 100
    assert told[200] > 10
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
    (worker,) = (pid for pid in server.descendants() if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes())
    with ThreadPoolExecutor(2) as pool:
        told = [pool.submit(server.read, *[PHOTO] * 10) for _ in range(2)]
        time.sleep(0.05)
        os.kill(worker, signal.SIGKILL)
        answers = [future.result() for future in told]
    assert {status for status, _ in answers} <= {200, 503}
    assert {answer["error"]["code"] for status, answer in answers if status == 503} <= {"worker_died"}
    end = time.monotonic() + 60
    while server.metric("mien_worker_restarts") == before or server.ask("GET", "/healthz")[0] != 200:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert server.read(PHOTO)[0] == 200


def test_a_port_in_use_is_told_in_a_line(server):
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
    workers = [Path(f"/proc/{pid}") for pid in served.descendants()]
    workers = [place for place in workers if b"spawn_main" in (place / "cmdline").read_bytes()]
    assert len(workers) == 2
    assert not any(KEY.encode() in (place / "environ").read_bytes() for place in workers)
    with ThreadPoolExecutor(4) as pool:
        told = [pool.submit(served.read, *[PHOTO] * 12) for _ in range(4)]
        while not served.metric("mien_requests_working"):
            assert not all(future.done() for future in told), "too quick to be interrupted"
        code, left = served.end(signal.SIGINT, group=True)  # as a terminal does: every process gets it
        answers = [future.result() for future in told]
    assert [status for status, _ in answers] == [200] * 4
    assert all(len(answer["pictures"]) == 12 for _, answer in answers)
    assert (code, left) == (0, [])
    assert served.errors == b""


def test_killed_outright_it_leaves_nothing(start):
    served = start()
    assert len(served.descendants()) > 1
    assert served.end(signal.SIGKILL) == (-signal.SIGKILL, [])


def test_a_model_that_is_none_is_told_in_a_line(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no model")
    words = [sys.executable, "-m", "mien", "serve", "--port", "0", "--model", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert re.fullmatch(r"mien: .*model\.onnx: .*\n", done.stderr)


class Process:
    """Of which is known only whether it lives."""

    exitcode = -9

    def __init__(self, alive):
        self.alive = alive

    def is_alive(self):
        return self.alive

    def kill(self):
        self.alive = False

    def join(self, _):
        pass


@pytest.mark.parametrize(("since", "replaced"), [(0.0, False), (1.0, True), (None, False)])
def test_a_worker_that_hangs_is_replaced_and_nothing_is_lost(since, replaced):
    async def look_after():
        engine = Engine(ReadAPI({}, Limits(seconds=0.3), threads=1), Limits(seconds=0.3), 1)
        hanging, fresh, jobs = Process(True), Process(True), queue.Queue()
        engine._server.inference_workers = [hanging]
        engine._server.launch_single_inference_worker = lambda api, number: fresh
        engine._server.litapi_request_queues["/v1/read"] = jobs
        engine._begun = {} if since is None else {0: time.monotonic() - since}
        begun, waiting = (_Waiting(Job([], False, 0), asyncio.get_running_loop().create_future()) for _ in range(2))
        begun.worker = 0
        engine._waiting = {"begun": begun, "waiting": waiting}
        await engine._look_after()
        assert engine._server.inference_workers == [fresh if replaced else hanging]
        assert engine.restarts == replaced
        assert not waiting.answer.done()
        if not replaced:
            assert not begun.answer.done()
            assert jobs.empty()
            return
        refused = begun.answer.exception()
        assert (refused.status, refused.code) == (503, "worker_died")
        assert jobs.get_nowait()[1] == "waiting"
        assert jobs.empty()

    asyncio.run(look_after())


# --- the front alone


class StandIn:
    """An engine whose answers are said beforehand."""

    waiting = working = restarts = 0
    alive, ready, full = 1, True, False

    def __init__(self, answer=None):
        self.answer, self.jobs = answer or Answer(b'{"pictures": []}', 1, 0, 0), []

    async def run(self):
        await asyncio.sleep(60)

    async def submit(self, job):
        self.jobs.append(job)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def ask(engine, method="GET", path="/", body=(), kind="", keys=(), limits=None, headers=(), slowly=0.0):
    """One request to the application: status, headers, body; and how often it asked for more of the body."""
    labels = Labels(model="m", labels=["a"], licence=None)
    app = make_app(engine, limits=limits or Limits(), keys=Keys(keys), labels=labels, version="1", lost=lambda: None)
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
        "server": ("127.0.0.1", 1),
        "client": ("127.0.0.1", 2),
    }
    asyncio.run(app(scope, receive, send))
    data = b"".join(message.get("body", b"") for message in sent[1:])
    told = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], told, data, len(asked)


def post(engine, *pictures, **options):
    kind, body = bench.multipart(*pictures)
    status, headers, data, asked = ask(engine, "POST", "/v1/read", [body], kind, **options)
    return status, headers, json.loads(data), asked


def test_a_full_queue_is_told_before_the_body_is_read():
    engine = StandIn()
    engine.full = True
    status, headers, told, asked = post(engine, b"a")
    assert (status, headers["retry-after"], told["error"]["code"], asked) == (429, "1", "queue_full", 0)


@pytest.mark.parametrize(
    "refused", [busy("timeout", "no answer", 503), busy("queue_full", "many"), Refused(500, "internal", "a mistake")]
)
def test_what_the_engine_refuses_is_told(refused):
    status, _, told, _ = post(StandIn(refused), b"a")
    assert (status, told) == (refused.status, {"error": {"code": refused.code, "reason": refused.reason}})


def test_a_body_in_pieces_is_refused_once_it_is_too_large():
    kind, body = bench.multipart(bytes(1000))
    pieces = [body[at : at + 100] for at in range(0, len(body), 100)]
    status, _, data, asked = ask(StandIn(), "POST", "/v1/read", pieces, kind, limits=Limits(body=500))
    assert (status, json.loads(data)["error"]["code"], asked) == (413, "too_large", 6)


def test_bodies_do_not_fill_the_memory():
    kind, body = bench.multipart(bytes(1000))
    status, _, data, _ = ask(StandIn(), "POST", "/v1/read", [body], kind, limits=Limits(held=500))
    assert (status, json.loads(data)["error"]["code"]) == (429, "memory_full")


def test_a_body_that_trickles_is_told_so():
    limits = Limits(upload_seconds=0.05)
    status, _, data, _ = ask(StandIn(), "POST", "/v1/read", [b"a"] * 100, "", limits=limits, slowly=0.02)
    assert (status, json.loads(data)["error"]["code"]) == (408, "too_slow")


def test_without_a_key_nothing_is_read():
    engine = StandIn()
    status, headers, told, asked = post(engine, b"a", keys=[KEY])
    assert (status, headers["www-authenticate"], told["error"]["code"], asked) == (401, "Bearer", "no_key", 0)
    assert post(engine, b"a", keys=[KEY], headers=[(b"x-api-key", KEY.encode())])[0] == 200
    assert post(engine, b"a", keys=[KEY], headers=[(b"authorization", b"bearer " + KEY.encode())])[0] == 200
    assert len(engine.jobs) == 2


def test_wrong_routes_and_types_are_told_in_json():
    for method, path, status in (("GET", "/v1/read", 405), ("GET", "/nothing", 404), ("POST", "/healthz", 405)):
        answer = ask(StandIn(), method, path)
        assert answer[0] == status
        assert set(json.loads(answer[2])["error"]) == {"code", "reason"}
    assert ask(StandIn(), "POST", "/v1/read", [b"a"], "image/jpeg")[0] == 415
    gzip = ask(StandIn(), "POST", "/v1/read", [b"a"], headers=[(b"content-encoding", b"gzip")])
    assert (gzip[0], gzip[3]) == (415, 0)


def test_jobs_have_a_deadline():
    engine = StandIn()
    post(engine, b"a", b"b", limits=Limits(seconds=5))
    (job,) = engine.jobs
    assert job.pictures == [("0", b"a"), ("1", b"b")]
    assert 4 < job.deadline - time.monotonic() <= 5


def test_the_page_is_whole_and_asks_nobody_outside():
    _, headers, data, _ = ask(StandIn(), path="/docs", keys=[KEY])
    text = data.decode()
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "<script" not in text
    assert not re.search(r"(src|href|action)=\"(https?:)?//|url\(|@import", text)
    for word in ("POST /v1/read", "POST /v1/classify", "GET /healthz", "/v1/labels", "/metrics", "landmarks", "429"):
        assert word in text


def test_openapi_tells_what_is_so():
    document = json.loads(ask(StandIn(), path="/openapi.json", keys=[KEY])[2])
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
    assert "security" not in json.loads(ask(StandIn(), path="/openapi.json")[2])["paths"]["/v1/read"]["post"]


# --- batches


def test_a_batch_waits_for_company_but_not_for_long():
    api = ReadAPI({}, Limits(), batch_size=3, batch_wait=0.2, threads=1)
    jobs, loop, later = queue.Queue(), Loop(), time.monotonic() + 60
    gather = functools.partial(loop.get_batch_requests, api, jobs, None)
    for number in range(5):
        jobs.put((0, number, 0.0, Job([], False, later if number != 1 else 0.0)))
    assert [uid for _, uid, _ in gather()[0]] == [0, 2, 3]  # nobody waits for 1
    begin = time.monotonic()
    threading.Timer(0.05, jobs.put, [(0, 5, 0.0, Job([], False, later))]).start()
    assert [uid for _, uid, _ in gather()[0]] == [4, 5]
    assert time.monotonic() - begin > 0.15
    jobs.put((0, 6, 0.0, Job([], False, later)))
    jobs.put((None,) * 4)
    assert [uid for _, uid, _ in gather()[0]] == [6]  # the last batch is done before the end
    with pytest.raises(_StopLoopError):
        gather()


def test_a_job_that_breaks_the_reader_harms_no_other(monkeypatch):
    class Breaks:
        def read_many(self, sources, **_):
            for source in sources:
                if source == b"bad":
                    raise RuntimeError("by a picture")
                yield []

    api = ReadAPI({}, Limits(), threads=1)
    api._readers, api._pool = {False: Breaks(), True: Breaks()}, None
    later = time.monotonic() + 60
    good, bad = Job([("a", b"good")], False, later), Job([("b", b"bad")], False, later)
    answers = api.predict([good, bad, good._replace(aligned=True)])
    assert [json.loads(answer.body or "0") for answer in answers] == [
        {"pictures": [{"source": "a", "faces": []}]},
        0,
        {"pictures": [{"source": "a", "faces": []}]},
    ]
    assert [answer.batch for answer in answers] == [(3, 3), None, None]


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
    monkeypatch.setitem(sys.modules, "litserve", None)
    assert main(["serve"]) == 1
    assert capsys.readouterr().err == 'mien: mien serve needs litserve: pip install "mien[serve]"\n'
