"""What runs in a worker process: batches of requests, one after the other, through one reader."""

import json
import logging
import os
import pickle
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from PIL import Image

from mien.errors import MienError, MienWarning, ReadError
from mien.faces import Faces
from mien.faces.picture import TooManyPixels, open_picture
from mien.faces.record import record
from mien.reader import Reader
from mien.service.limits import Limits, Refused

FACES = 32
"""Faces that the network reads at a time."""


class ReadJob(NamedTuple):
    """One request: pictures by name, `aligned` where they are face crops, and until when somebody waits for it."""

    pictures: Sequence[tuple[str, bytes]]
    aligned: bool
    deadline: float  # of time.monotonic(), which all processes of a machine share


class Answer(NamedTuple):
    """The JSON for a job, its status, how many of its pictures were read and not, and their faces.

    batch: requests and pictures of the batch, only in the answer to its first job. seconds: how long the batch took.
    """

    body: bytes
    status: int
    read: int
    unread: int
    faces: int
    batch: tuple[int, int] | None = None
    seconds: float = 0.0


class Slow(NamedTuple):
    """Sent instead of answers: one picture of this job of the batch takes too long, and the worker ends itself."""

    number: int


class RequestPicture(bytes):
    """A picture's file, the request that is charged with it, and what was read in it."""

    request: "Request"
    faces: Faces | ReadError
    skipped = False


@dataclass
class Request:
    """A job of a batch, the processor seconds that each of its pictures took, and all their pixels."""

    number: int
    job: ReadJob
    pictures: list[RequestPicture] = field(default_factory=list)
    spent: list[float] = field(default_factory=list)
    pixels: int = 0

    def __post_init__(self) -> None:
        for _, data in self.job.pictures:
            self.pictures.append(RequestPicture(data))
            self.pictures[-1].request = self


class Threads(ThreadPoolExecutor):
    """Threads that open pictures and find faces, and charge each request with the processor time that this takes.

    Once a request has used up `seconds`, or nobody waits for it any longer, its other pictures are not opened.
    """

    def __init__(self, count: int, seconds: float):
        super().__init__(count, "mien")
        self._seconds = seconds
        self._running: dict[int, tuple[float, int]] = {}  # thread: its time at the beginning, and for which job

    def submit(self, work: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        if args and isinstance(args[0], RequestPicture):
            return super().submit(self._charge, work, *args, **options)
        return super().submit(work, *args, **options)

    def slow(self) -> int | None:
        """The job of which one picture alone has taken more than `seconds`."""
        for thread, (begin, job) in list(self._running.items()):
            if time.clock_gettime(time.pthread_getcpuclockid(thread)) - begin > self._seconds:
                return job
        return None

    def _charge(self, work: Callable[..., Any], picture: RequestPicture, *args: Any, **options: Any) -> Any:
        request, begin, thread = picture.request, time.thread_time(), threading.get_ident()
        if time.monotonic() >= request.job.deadline or sum(request.spent) >= self._seconds:
            picture.skipped = True
            return work(b"", *args, **options)
        self._running[thread] = begin, request.number
        try:
            return work(picture, *args, **options)
        finally:
            del self._running[thread]
            request.spent.append(time.thread_time() - begin)


class JobReader:
    """Jobs in, answers out. options: of `Reader.from_pretrained`. threads: that find faces."""

    def __init__(self, options: Mapping[str, Any], limits: Limits, threads: int):
        base = Reader.from_pretrained(**options)
        settings = {"abstain": base.abstain, "max_pixels": limits.pixels, "max_faces": limits.faces}
        found_by = {"min_face": base.min_face, "search": base.search}
        settings["measures"] = base.measures
        self._readers = {
            False: Reader(base.classifier, base.detector, **found_by, **settings),
            True: Reader(base.classifier, aligned=True, **settings),
        }
        self._limits, self.threads = limits, Threads(threads, limits.read_seconds)

    def answers(self, jobs: Sequence[ReadJob]) -> list[Answer | int]:
        """The answers to a batch. A job at which the reader breaks is read again alone, so that it harms no other.

        Where the pictures of a batch have more pixels than one request may have, those with most of them are put off:
        in place of an answer they get the number of their pixels.
        """
        begin = time.monotonic()
        requests = [Request(number, job) for number, job in enumerate(jobs)]
        counts = [[self.threads.submit(_pixels, picture) for picture in request.pictures] for request in requests]
        for request, pixels in zip(requests, counts, strict=True):
            request.pixels = sum(future.result() for future in pixels)
        most, total = self._limits.request_pixels, 0
        answers: dict[int, Answer | int] = {}
        for request in sorted(requests, key=lambda request: request.pixels):
            if request.pixels > most:
                reason = f"the pictures of a request have at most {most:,} pixels together"
                answers[request.number] = _refusal(request.job, Refused(422, "too_many_pixels", reason))
            elif total and total + request.pixels > most:
                answers[request.number] = request.pixels
            total += request.pixels
        wanted = [request for request in requests if request.number not in answers]
        try:
            answers |= self._read(wanted)
        except Exception:
            for request in wanted:
                answers |= self._alone(request)
        first = next((number for number, answer in sorted(answers.items()) if isinstance(answer, Answer)), None)
        if first is not None:
            pictures = sum(len(request.pictures) for request in wanted)
            seconds = time.monotonic() - begin
            answers[first] = answers[first]._replace(batch=(len(wanted), pictures), seconds=seconds)
        return [answers[number] for number in range(len(jobs))]

    def _alone(self, request: Request) -> dict[int, Answer]:
        try:
            return self._read([request])
        except Exception:
            logging.getLogger("mien.service").exception("the reader broke")
            return {request.number: _refusal(request.job, Refused(500, "internal", "the service made a mistake"))}

    def _read(self, requests: Sequence[Request]) -> dict[int, Answer]:
        for aligned, reader in self._readers.items():
            pictures = [
                picture for request in requests if request.job.aligned == aligned for picture in request.pictures
            ]
            read = reader.read_many(pictures, batch_size=FACES, workers=self.threads)
            for picture, faces in zip(pictures, read, strict=True):
                picture.faces = faces
        return {request.number: self._answer(request) for request in requests}

    def _answer(self, request: Request) -> Answer:
        pictures, read, count = [], 0, 0
        for (name, _), picture in zip(request.job.pictures, request.pictures, strict=True):
            if picture.skipped:
                reason = f"the {self._limits.read_seconds:g} seconds for the pictures of a request were used up"
                pictures.append({"source": name, "error": {"code": "too_long", "reason": reason}})
            elif isinstance(picture.faces, ReadError):
                pictures.append({"source": name, "error": {"code": "unreadable", "reason": picture.faces.reason}})
            else:
                records = [record(name, index, face) for index, face in enumerate(picture.faces)]
                note = picture.faces.note
                pictures.append({"source": name, "faces": records, **({"note": note} if note else {})})
                read, count = read + 1, count + len(records)
        document: dict[str, Any] = {"pictures": pictures}
        if not read:
            errors = [picture["error"] for picture in pictures]
            mixed = {"code": "unreadable", "reason": "none of the pictures could be read"}
            document = {"error": errors[0] if all(error == errors[0] for error in errors) else mixed, **document}
        body = json.dumps(document, ensure_ascii=False).encode()
        return Answer(body, 200 if read else 422, read, len(pictures) - read, count)


def _refusal(job: ReadJob, refused: Refused) -> Answer:
    return Answer(refused.body(), refused.status, 0, len(job.pictures), 0)


def _pixels(picture: bytes) -> int:
    """What a picture's head says; 0 for what is no picture, which reading it will report."""
    try:
        open_picture(picture, max_pixels=0)
    except TooManyPixels as error:
        return error.pixels
    except ReadError:
        pass
    return 0


def main() -> None:
    """Answer batches until the process that sends them closes the socket, or is gone.

    The socket's number is in the command line. Over it come, pickled, the arguments of JobReader, and then lists of
    jobs; back go None or the reason why the reader could not be opened, and then lists of answers.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # a service's end may send them to all its processes,
        signal.signal(number, signal.SIG_IGN)  # but what was begun is answered first
    warnings.simplefilter("ignore")  # of Pillow, on pictures that it reads all the same
    warnings.simplefilter("always", MienWarning)
    logging.basicConfig(format="mien: %(message)s", level=logging.ERROR)
    warnings.showwarning = lambda message, *_, **__: logging.getLogger("mien.service").error(message)
    with _connection() as connection, connection.makefile("rwb") as stream:
        try:
            _serve(stream)
        except (EOFError, ConnectionError):
            os._exit(0)  # nobody listens any more


def _connection() -> socket.socket:
    if sys.platform == "win32":
        return socket.fromshare(sys.stdin.buffer.read())
    return socket.socket(fileno=int(sys.argv[1]))


def _serve(stream: Any) -> None:
    options, limits, threads = pickle.load(stream)
    Image.MAX_IMAGE_PIXELS = limits.pixels // 2  # Pillow refuses twice that, also of pictures inside of icons
    try:
        reader = JobReader(options, limits, threads)
    except MienError as error:
        send(stream, str(error))
        return
    send(stream, None)
    with ThreadPoolExecutor(1) as pool:
        while True:
            answering = pool.submit(reader.answers, pickle.load(stream))
            while not wait([answering], 0.25).done:
                if (slow := reader.threads.slow()) is not None:
                    send(stream, Slow(slow))
                    os._exit(1)  # a decoder cannot be interrupted otherwise
            send(stream, answering.result())


def send(stream: Any, message: object) -> None:
    """Write one message, as `pickle.load` takes it."""
    pickle.dump(message, stream, pickle.HIGHEST_PROTOCOL)
    stream.flush()
