"""A service whose workers are killed while it answers: nothing may be lost, and nobody gets another's answer."""

import http.client
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from conftest import COLOURS, write_stand_in
from PIL import Image

ASKING = 4
"""Clients at a time."""

PATIENCE = 300
"""Seconds after which an answer, or the service, is given up."""


def faults(count: int, seed: int, folder: Path) -> list[str]:
    """What went wrong with so many requests, while a worker of two is killed about every tenth answer."""
    write_stand_in(folder / "model.onnx")
    words = ["serve", "--port", "0", "--workers", "2", "--model", str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, "-m", "mien", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert server.stdout is not None
    errors = [b""]
    listening = threading.Thread(target=lambda: errors.append(server.stderr.read()), daemon=True)
    listening.start()
    try:
        port = int(server.stdout.readline().decode().split()[3].rpartition(":")[2])
        found, killed = _ask_all(port, server.pid, count, seed)
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(60)
        listening.join(10)
    print(f"{killed} workers killed")
    line = r"mien: a worker (died \(exit code -\d+\); another one starts|could not start: .+)"  # it was killed there
    found += [f"stderr: {text}" for text in errors[-1].decode().splitlines() if not re.fullmatch(line, text)]
    return found + ([f"exit code {code}"] if code else [])


def _ask_all(port: int, server: int, count: int, seed: int) -> tuple[list[str], int]:
    """Faults of the requests and of the service after them, and how many workers were killed."""
    draw, killed, lock = random.Random(seed), [0, 1], threading.Lock()  # so many, and answers until the next

    def ask(number: int) -> str | None:
        fault = _ask(port, number)
        with lock:
            killed[1] -= 1
            if killed[1] <= 0 and (there := _workers(server)):
                killed[1] = draw.randint(4, 16)
                with suppress(ProcessLookupError):
                    os.kill(draw.choice(there), signal.SIGKILL)
                    killed[0] += 1
        return fault

    with ThreadPoolExecutor(ASKING) as pool:
        found = [fault for fault in pool.map(ask, range(count)) if fault]
    until = time.monotonic() + PATIENCE
    while _request(port, "GET", "/healthz")[0] != 200:
        if time.monotonic() > until:
            return [*found, "the service does not recover"], killed[0]
        time.sleep(0.2)
    return found, killed[0]


def _workers(server: int) -> list[int]:
    tasks = Path(f"/proc/{server}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def _ask(port: int, number: int) -> str | None:
    """What is wrong with one answer: not the expression of its colour, and not "try again", which is heeded."""
    expression = list(COLOURS)[number % len(COLOURS)]
    Image.new("RGB", (48, 48), COLOURS[expression]).save(file := io.BytesIO(), "PNG")
    head = b'--x\r\nContent-Disposition: form-data; name="pictures"; filename="a.png"\r\n\r\n'
    body = head + file.getvalue() + b"\r\n--x--\r\n"
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            status, answer = _request(port, "POST", "/v1/classify", body, "multipart/form-data; boundary=x")
        except (OSError, http.client.HTTPException, ValueError) as error:
            return f"{number}: {type(error).__name__}: {error}"
        if status == 200:
            found = answer["pictures"][0]["faces"][0]["expression"]
            return None if found == expression else f"{number}: {found}, not {expression}"
        if (status, answer.get("error", {}).get("code")) not in ((503, "worker_died"), (503, "timeout")):
            return f"{number}: {status}, {str(answer)[:300]}"
        time.sleep(0.1)
    return f"{number}: no answer"


def _request(port: int, method: str, path: str, body: bytes | None = None, kind: str = "") -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request(method, path, body, {"Content-Type": kind} if kind else {})
    response = connection.getresponse()
    status, answer = response.status, json.loads(response.read())
    connection.close()
    return status, answer
