"""The service under load, with batches and without, and under requests that mean it no good.

    python benchmarks/serve.py [--clients 32] [--seconds 60] [--slice 5] [--against SRC]
    python benchmarks/serve.py --fuzz 10000 [--seed 0]

The first starts two servers, one with the default options and one that reads a request at a time. With `--against` the
second is another version of mien with the default options, from the folder `src` of its repository. The clients send
requests to either for `--seconds`, in turn, a slice each, so that a slow moment of the machine meets both. Every client
has one connection and sends the next request once it has an answer. Printed are requests a second, the median and the
99th percentile of the time to an answer, the processor time of all the server's processes a request, and how much of it
was not the workers'; then the answers that were none.

The second sends requests of random bytes and spoilt pictures, and ends with 1 if the server did not outlive them, lost
a worker, made a mistake (status 500), or reads a photograph otherwise than before.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import random
import signal
import statistics
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from PIL import Image

PHOTO = Path(__file__).parent.parent / "examples" / "hopper.jpg"
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")
BOUNDARY = b"5f0c6e31"


class Server(NamedTuple):
    host: str
    port: int
    pid: int


@contextmanager
def running(*options: str, source: Path | None = None) -> Iterator[Server]:
    """`mien serve` at a free port, of the version in a folder."""
    command = [sys.executable, "-m", "mien", "serve", "--port", "0", *options]
    environment = {**os.environ, "PYTHONPATH": str(source)} if source else None
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        line = process.stdout.readline()
        if not line:
            raise SystemExit("mien serve did not start")
        host, port = line.split()[3].removeprefix("http://").rsplit(":", 1)
        yield Server(host, int(port), process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def multipart(*pictures: bytes) -> tuple[str, bytes]:
    """Content type and body."""
    parts = [
        b'--%s\r\nContent-Disposition: form-data; name="pictures"; filename="%d"\r\n\r\n%s\r\n' % (BOUNDARY, n, data)
        for n, data in enumerate(pictures)
    ]
    return f"multipart/form-data; boundary={BOUNDARY.decode()}", b"".join(parts) + b"--" + BOUNDARY + b"--\r\n"


def request(path: str, kind: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: mien\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of one answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
    if b"content-length" in fields:
        return int(head[9:12]), await reader.readexactly(int(fields[b"content-length"]))
    return int(head[9:12]), await reader.read()


async def ask(server: Server, raw: bytes, seconds: float = 60) -> tuple[int, bytes]:
    """One request on a connection of its own."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        async with asyncio.timeout(seconds):
            writer.write(raw)
            await writer.drain()
            return await answer(reader)
    finally:
        writer.close()


# --- load


async def load(server: Server, clients: int, seconds: float, raw: bytes) -> tuple[list[float], Counter]:
    """Seconds to each answer, and what was none."""
    times, errors, end = [], Counter(), time.monotonic() + seconds

    async def client() -> None:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        while (begin := time.monotonic()) < end:
            try:
                writer.write(raw)
                status, _ = await asyncio.wait_for(answer(reader), 60)
            except (OSError, EOFError, TimeoutError) as error:
                errors[type(error).__name__] += 1
                break
            if status == 200:
                times.append(time.monotonic() - begin)
            else:
                errors[status] += 1
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return times, errors


def processor_seconds(pid: int) -> list[float]:
    """Of a process, and of each below it."""
    ticks = sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    children = [child for task in tasks for child in task.read_text().split()]
    below = (seconds for child in children for seconds in processor_seconds(int(child)))
    return [ticks / os.sysconf("SC_CLK_TCK"), *below]


def compare(clients: int, seconds: float, part: float, against: Path | None) -> int:
    raw = request("/v1/read", *multipart(PHOTO.read_bytes()))
    other = running(source=against) if against else running("--batch-size", "1")
    with running() as batched, other as second:
        servers = {"batched": batched, "other" if against else "unbatched": second}
        times = {name: [] for name in servers}
        errors = {name: Counter() for name in servers}
        clock, processor, beside = Counter(), Counter(), Counter()
        for server in servers.values():
            asyncio.run(load(server, clients, 1, raw))  # warm
        for _ in range(max(1, round(seconds / part))):
            for name, server in servers.items():
                begin, used = time.monotonic(), processor_seconds(server.pid)
                more, wrong = asyncio.run(load(server, clients, part, raw))
                times[name] += more
                errors[name] += wrong
                clock[name] += time.monotonic() - begin
                spent = [now - then for now, then in zip(processor_seconds(server.pid), used, strict=True)]
                processor[name] += sum(spent)
                beside[name] += sum(spent) - max(spent)
        head = ("", "requests", "errors", "a second", "p50 ms", "p99 ms", "CPU ms each", "beside reading")
        print("{:10} {:>9} {:>7} {:>9} {:>8} {:>8} {:>12} {:>15}".format(*head))
        for name, took in times.items():
            wrong = errors[name].total()
            if len(took) < 2:
                print(f"{name:10} {len(took):9} {wrong:7}")
                continue
            p99 = statistics.quantiles(took, n=100)[98]
            print(
                f"{name:10} {len(took):9} {wrong:7} {len(took) / clock[name]:9.1f} {statistics.median(took) * 1e3:8.0f}"
                f" {p99 * 1e3:8.0f} {processor[name] / len(took) * 1e3:12.1f} {beside[name] / len(took) * 1e3:15.1f}"
            )
        for name, wrong in errors.items():
            if wrong:
                print(f"{name}: {dict(wrong)}")
        return 1 if any(errors.values()) else 0


# --- requests that mean no good


def pictures() -> list[bytes]:
    """A small photograph in every format."""
    small = Image.open(PHOTO).convert("RGB").resize((96, 96))
    files = []
    for kind in FORMATS:
        small.save(file := io.BytesIO(), kind)
        files.append(file.getvalue())
    return files


def bomb(side: int) -> bytes:
    """A small PNG of side × side white pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    pixels = zlib.compressobj()
    rows = b"".join(pixels.compress(b"\0" + b"\xff" * (side // 8 + 1)) for _ in range(side)) + pixels.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def spoil(data: bytes, chance: random.Random) -> bytes:
    """Bytes changed, cut off, cut out, doubled or put in."""
    spoilt = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        at, length = chance.randrange(len(spoilt) + 1), chance.choice((1, 1, 4, 32, len(data) // 3))
        how = chance.randrange(5)
        if how == 0:
            spoilt[at : at + length] = chance.randbytes(length)
        elif how == 1:
            del spoilt[at : at + length]
        elif how == 2:
            spoilt[at:at] = chance.randbytes(length)
        elif how == 3:
            spoilt[at:at] = spoilt[at : at + length]
        elif length > 4 and len(spoilt) > 20:
            del spoilt[at:]
    return bytes(spoilt)


def bad_requests(count: int, seed: int = 0) -> Iterator[tuple[bytes, bool]]:
    """Requests as bytes, and whether each is HTTP as it should be, so that an answer must come."""
    chance = random.Random(seed)
    files = pictures()
    kinds = ("multipart/form-data", "application/json", "image/jpeg", multipart()[0], "", "text/plain; charset=utf-7")
    big = bomb(3000), bomb(20_000)
    for number in range(count):
        path = chance.choice(("/v1/read", "/v1/classify"))
        file = chance.choice(files)
        text = json.dumps({"pictures": [{"name": "a", "data": base64.b64encode(file).decode()}]}).encode()
        how = number % 10
        if how == 0:
            kind, body = chance.choice(kinds), chance.randbytes(chance.randrange(5000))
        elif how == 1:
            kind, body = multipart(chance.randbytes(chance.randrange(5000)))
        elif how == 2:
            kind, body = multipart(file[: chance.randrange(len(file))])
        elif how in (3, 4):
            kind, body = multipart(spoil(file, chance), spoil(file, chance))
        elif how == 5:
            kind, body = multipart(file)
            body = spoil(body, chance)
        elif how == 6:
            kind, body = "application/json", spoil(text, chance)
        elif how == 7:
            spoilt = base64.b64encode(spoil(file, chance)).decode()
            kind, body = "application/json", json.dumps({"pictures": [{"data": spoilt}] * 2}).encode()
        elif how == 8:
            token = chance.choice(
                ("[", '{"pictures":', '{"pictures":[{"data":""},', "{}", "1", '"\\ud800"', "\0", "[],")
            )
            kind, body = "application/json", token.encode() * chance.randrange(2000)
        elif number % 100 == 99:
            kind, body = multipart(chance.choice(big))
        else:
            whole = request(path, *multipart(file))
            head = whole.index(b"\r\n\r\n")
            yield chance.choice((chance.randbytes(500), spoil(whole[:head], chance) + whole[head:])), False
            continue
        yield request(path, kind, body), True


async def fuzz(server: Server, count: int, seed: int = 0, at_once: int = 8) -> Counter:
    """Send them all; what came back, by status."""
    statuses = Counter()
    todo = bad_requests(count, seed)

    async def client() -> None:
        for raw, whole in todo:
            try:
                status, _ = await ask(server, raw, 60 if whole else 0.3)
            except (OSError, EOFError, TimeoutError, ValueError) as error:
                status = type(error).__name__ if whole else "no HTTP"
            statuses[status] += 1

    await asyncio.gather(*(client() for _ in range(at_once)))
    return statuses


def endure(count: int, seed: int) -> int:
    photo = request("/v1/read", *multipart(PHOTO.read_bytes()))
    metrics = b"GET /metrics HTTP/1.1\r\nHost: mien\r\n\r\n"
    with running() as server:
        before = asyncio.run(ask(server, photo))
        begin = time.monotonic()
        statuses = asyncio.run(fuzz(server, count, seed))
        seconds = time.monotonic() - begin
        after = asyncio.run(ask(server, photo))
        restarts = b"mien_worker_restarts 0.0" not in asyncio.run(ask(server, metrics))[1]
        rss = Path(f"/proc/{server.pid}/status").read_text().partition("VmRSS:")[2].split()[0]
    print(f"{count:,} requests in {seconds:.0f} s: {dict(sorted(statuses.items(), key=str))}")
    print(f"front: {int(rss) // 1024} MB; a worker died: {restarts}; reads as before: {before == after}")
    fine = {200, 400, 404, 405, 408, 413, 415, 422, 429, "no HTTP"}
    return 0 if set(statuses) <= fine and before[0] == 200 and before == after and not restarts else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60, help="for each server")
    parser.add_argument("--slice", type=float, default=5, help="seconds at a time")
    parser.add_argument("--against", type=Path, metavar="SRC", help="compare with the mien in this folder")
    parser.add_argument("--fuzz", type=int, metavar="N", help="send N bad requests instead")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sys.exit(
        endure(args.fuzz, args.seed) if args.fuzz else compare(args.clients, args.seconds, args.slice, args.against)
    )
