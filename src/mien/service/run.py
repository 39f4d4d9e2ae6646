"""The service from its first process to its last."""

import os
import signal
import socket
from collections.abc import Callable, Mapping
from typing import Any

import uvicorn

from mien import __version__
from mien.checkpoint import labels_of, read_header
from mien.classifier import DEFAULT_MODEL, find_model
from mien.errors import MienError
from mien.service.app import make_app, quiet
from mien.service.engine import Engine
from mien.service.keys import Keys
from mien.service.limits import Limits
from mien.service.patient import protocol
from mien.service.schema import Labels
from mien.service.worker import ReadAPI, hush


def serve(
    options: Mapping[str, Any],
    *,
    limits: Limits,
    keys: Keys,
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int = 1,
    batch_size: int = 16,
    batch_wait: float = 0.0,
    announce: Callable[[str], None] = print,
) -> None:
    """Serve until SIGTERM or SIGINT; requests that were begun are answered first.

    options: of `Reader.from_pretrained`. port 0: one that is free. batch_size: requests of a batch at most; batch_wait:
    seconds that the first of them waits for others. announce: is told the address, once every worker is ready.

    Raises MienError where the model cannot be opened, or nobody can listen at the address.
    """
    hush()
    quiet()
    path = find_model(options.get("model"))
    header = read_header(path)
    labels = Labels(
        model=str(options.get("model") or DEFAULT_MODEL),
        labels=labels_of(header),
        licence=header.get("training", {}).get("licence"),
    )
    threads = max(1, min(4, (os.cpu_count() or 1) // workers))
    api = ReadAPI(options, limits, batch_size=batch_size, batch_wait=batch_wait, threads=threads)
    engine = Engine(api, limits, workers)
    try:
        engine.prepare()
        with _listen(host, port) as listening:
            engine.start()
            lost: list[bool] = []

            def end(*_: object) -> None:
                server.should_exit = True

            def lose() -> None:
                lost.append(True)
                end()

            app = make_app(engine, limits=limits, keys=keys, labels=labels, version=__version__, lost=lose)
            server = uvicorn.Server(
                uvicorn.Config(
                    app,
                    http=protocol(limits),
                    ws="none",
                    lifespan="on",
                    log_config=None,
                    access_log=False,
                    server_header=False,
                    proxy_headers=False,
                    timeout_keep_alive=30,
                    timeout_graceful_shutdown=round(limits.seconds) + 5,
                )
            )
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, end)  # uvicorn puts its own in their place, and at its end hands on what it got
            address = f"[{host}]" if ":" in host else host
            announce(f"http://{address}:{listening.getsockname()[1]}")
            server.run(sockets=[listening])
            if lost:
                raise MienError("the service lost the process that keeps its queue")
    finally:
        engine.stop()


def _listen(host: str, port: int) -> socket.socket:
    """A socket at the address; not earlier than the process that keeps the queue, which would hold it open."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        raise MienError(f"{host}:{port}: {(error.strerror or str(error)).partition(' (')[0].lower()}") from error
