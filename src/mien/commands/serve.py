"""`mien serve`: the reader as an HTTP service."""

import argparse
import logging
import os
import sys
from functools import partial
from pathlib import Path

from mien.commands.options import add_reading_arguments, count, number, reading_options
from mien.commands.read import begin
from mien.service import Keys, Limits, serve

VARIABLE = "MIEN_API_KEYS"
"""Where keys are looked for without --keys: one or several, with commas between."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    usual = Limits()
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this computer only)")
    parser.add_argument(
        "--port",
        type=partial(count, least=0, most=65_535),
        default=8000,
        metavar="N",
        help="default: 8000; 0: one that is free",
    )
    add_reading_arguments(
        parser,
        *("--model", "--trust", "--device", "--precision", "--min-face", "--search", "--threshold", "--abstain"),
        *("--landmarker", "--action-units", "--mesh"),
    )
    parser.add_argument(
        "--keys", type=Path, metavar="FILE", help=f"API keys, one a line (default: those in ${VARIABLE}; none: no keys)"
    )
    work = parser.add_argument_group("work")
    work.add_argument(
        "--workers", type=partial(count, most=256), default=1, metavar="N", help="processes that read (default: 1)"
    )
    work.add_argument(
        "--batch-size",
        type=partial(count, most=1024),
        default=16,
        metavar="N",
        help="requests read at a time (default: 16)",
    )
    work.add_argument(
        "--batch-wait", type=_real(0, 10_000), default=2, metavar="MS", help="wait for more of them (default: 2)"
    )
    limits = parser.add_argument_group("limits")
    megabytes, seconds = _real(0.001, 10**5), _real(0.01, 10**5)
    for name, kind, metavar, value, meaning in (
        ("max-body", megabytes, "MB", usual.body / 2**20, "of a request"),
        ("max-held", megabytes, "MB", usual.held / 2**20, "of all requests being received or worked on"),
        ("max-pictures", partial(count, most=10_000), "N", usual.pictures, "of a request"),
        ("max-pixels", _real(0.0001, 178), "MILLIONS", usual.pixels / 10**6, "of a picture"),
        ("max-faces", partial(count, most=10_000), "N", usual.faces, "of a picture"),
        ("max-read-seconds", seconds, "S", usual.read_seconds, "of a processor, for a request's pictures"),
        ("timeout", seconds, "S", usual.seconds, "from the end of a request to its answer"),
        ("upload-timeout", seconds, "S", usual.upload_seconds, "for the body of a request"),
        ("queue", partial(count, most=10**5), "N", usual.queue, "requests that wait or are worked on"),
        ("max-connections", partial(count, most=10**5), "N", usual.connections, "open at a time"),
    ):
        limits.add_argument(
            f"--{name}", type=kind, default=value, metavar=metavar, help=f"{meaning} (default: {value:g})"
        )
    limits.add_argument(
        "--max-request-pixels",
        type=_real(0.0001, 10**5),
        metavar="MILLIONS",
        help="of all pictures of a request (default: twice --max-pixels)",
    )
    parser.add_argument("--access-log", action="store_true", help="a line a request on stderr: route, status, seconds")


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    begin()
    logging.basicConfig(format="mien: %(message)s", stream=sys.stderr)
    for name in ("asyncio", "python_multipart", "uvicorn"):  # of clients that are gone, or send what is no form
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("mien.service.access").setLevel(logging.INFO if args.access_log else logging.ERROR)
    named = os.environ.pop(VARIABLE, "")  # popped: no process started from here has it
    keys = Keys.read(args.keys) if args.keys else Keys(filter(None, map(str.strip, named.split(","))))
    if not keys and args.host not in ("127.0.0.1", "::1", "localhost"):
        print(f"mien: no --keys: whoever reaches {args.host} may use this service", file=sys.stderr)
    limits = Limits(
        body=round(args.max_body * 2**20),
        held=round(args.max_held * 2**20),
        pictures=args.max_pictures,
        pixels=round(args.max_pixels * 10**6),
        request_pixels=round((args.max_request_pixels or 2 * args.max_pixels) * 10**6),
        faces=args.max_faces,
        read_seconds=args.max_read_seconds,
        seconds=args.timeout,
        upload_seconds=args.upload_timeout,
        queue=args.queue,
        connections=args.max_connections,
    )
    serve(
        reading_options(args),
        limits=limits,
        keys=keys,
        host=args.host,
        port=args.port,
        workers=args.workers,
        batch_size=args.batch_size,
        batch_wait=args.batch_wait / 1000,
        announce=lambda address: print(f"mien: serving at {address} (Ctrl-C ends it)", flush=True),
    )
    return 0


def _real(least: float, most: float):
    return partial(number, kind=float, least=least, most=most)
