"""The service from its first process to its last."""

import os
import signal
import socket
from collections.abc import Callable, Mapping
from typing import Any

import uvicorn

from mien import __version__
from mien.checkpoint import outputs_of, read_header
from mien.classifier import DEFAULT_MODEL, find_model
from mien.errors import MienError
from mien.faces.bundle import find_bundle, read_bundle
from mien.faces.measure import measured_outputs
from mien.service.app import make_app
from mien.service.connections import IDLE_SECONDS, protocol
from mien.service.dispatch import Dispatcher
from mien.service.keys import Keys
from mien.service.limits import Limits
from mien.service.schema import Labels, Question


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

    options: of `Reader.from_pretrained`.
    limits: what a request may bring and cost.
    keys: of which a request has to show one; none at all lets everybody in.
    host: the name or address to listen at; "127.0.0.1", this machine alone.
    port: int, 0 for one that is free; 8000.
    workers: int from 1 on, processes that read; 1.
    batch_size: int from 1 on, requests of a batch at most; 16.
    batch_wait: seconds that the first request of a batch waits for others; 0.
    announce: called with the address, once every worker is ready; `print` by default.

    Raises MienError where the model cannot be opened, or nobody can listen at the address.
    """
    path = find_model(options.get("model"))
    header = read_header(path)
    answered = outputs_of(header)
    if options.get("landmarker"):
        read_bundle(find_bundle(options["landmarker"])).close()
    wanted = bool(options.get("landmarker")), *(options.get(name, False) for name in ("action_units", "mesh"))
    measured = measured_outputs(*wanted)
    outputs = (*answered, *(output for output in measured if output.name not in {one.name for one in answered}))
    labels = Labels(
        model=str(options.get("model") or DEFAULT_MODEL),
        labels=list(outputs[0].labels),
        outputs=[Question(name=o.name, kind=o.kind, labels=list(o.labels), meaning=o.meaning) for o in outputs],
        licence=header.get("training", {}).get("licence"),
    )
    threads = max(1, min(4, (os.cpu_count() or 1) // workers))
    dispatcher = Dispatcher(
        options, limits, workers=workers, threads=threads, batch_size=batch_size, batch_wait=batch_wait
    )
    try:
        with _listen(host, port) as listening:
            dispatcher.start()
            app = make_app(dispatcher, limits=limits, keys=keys, labels=labels, outputs=outputs, version=__version__)
            server = uvicorn.Server(
                uvicorn.Config(
                    app,
                    http=protocol(limits),
                    ws="none",
                    lifespan="off",
                    log_config=None,
                    access_log=False,
                    server_header=False,
                    proxy_headers=False,
                    timeout_keep_alive=round(2 * IDLE_SECONDS),  # ours ends first
                    timeout_graceful_shutdown=round(limits.seconds) + 5,
                )
            )

            def end(*_: object) -> None:
                server.should_exit = True

            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, end)  # uvicorn puts its own in their place, and at its end hands on what it got
            address = f"[{host}]" if ":" in host else host
            announce(f"http://{address}:{listening.getsockname()[1]}")
            server.run(sockets=[listening])
    finally:
        dispatcher.stop()


def _listen(host: str, port: int) -> socket.socket:
    """A socket at the address."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        raise MienError(f"{host}:{port}: {(error.strerror or str(error)).partition(' (')[0].lower()}") from error
