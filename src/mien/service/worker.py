"""What runs in litserve's worker processes: batches of requests, out of one queue, through one reader."""

import json
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Mapping, MutableSequence, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import parent_process
from queue import Empty
from typing import Any, NamedTuple

from litserve import LitAPI, configure_logging
from litserve.loops.base import _SENTINEL_VALUE, _StopLoopError
from litserve.loops.simple_loops import BatchedLoop
from litserve.utils import LitAPIStatus, LoopResponseType
from PIL import Image

from mien.errors import MienError, ReadError
from mien.faces import Face
from mien.faces.record import record
from mien.reader import Reader
from mien.service.limits import Limits

FACES = 32
"""Faces that the network reads at a time."""

PATIENCE = 1.0
"""Seconds after which a worker that waits looks whether it is still wanted."""

PLACE = "/v1/read"
"""The path under which litserve keeps the queue."""


class Job(NamedTuple):
    """One request: pictures by name, `aligned` where they are face crops, and until when somebody waits for it."""

    pictures: Sequence[tuple[str, bytes]]
    aligned: bool
    deadline: float  # of time.monotonic(), which all processes of a machine share


class Answer(NamedTuple):
    """The JSON for a job, empty where the reader broke; how many of its pictures were read and not, and their faces.

    batch: requests and pictures of the batch, told once, with its first job; seconds: how long the batch took.
    """

    body: bytes
    read: int
    unread: int
    faces: int
    batch: tuple[int, int] | None = None
    seconds: float = 0.0


class Loop(BatchedLoop):
    """litserve's batches, gathered otherwise: a worker sleeps until a request is there, then waits for more of them.

    litserve's own asks its queue a thousand times a second while there is nothing to do (and without pause where it is
    not to wait), and counts the waiting time from when it began to ask.
    """

    def get_batch_requests(self, lit_api: LitAPI, request_queue: Any, transport: Any) -> tuple[list, list]:
        batch, until = [], 0.0
        while len(batch) < lit_api.max_batch_size:
            try:
                item = request_queue.get(timeout=max(0.0, until - time.monotonic()) if batch else PATIENCE)
            except Empty:
                if not batch and not parent_process().is_alive():
                    with suppress(ProcessLookupError):
                        os.kill(lit_api.keeper, signal.SIGKILL)  # nobody else would end it
                    raise _StopLoopError from None
                break
            except (EOFError, OSError):
                raise _StopLoopError from None  # the process that keeps the queue is gone
            if item == _SENTINEL_VALUE:
                if not batch:
                    raise _StopLoopError
                request_queue.put(item)  # for when this batch is done
                break
            until = until or time.monotonic() + lit_api.batch_timeout
            queue_id, uid, _, job = item
            if job.deadline > time.monotonic():  # else it was told so already
                self.put_response(transport, queue_id, uid, (), LitAPIStatus.START, LoopResponseType.REGULAR)
                batch.append((queue_id, uid, job))
        return batch, []


class ReadAPI(LitAPI):
    """Jobs in, answers out. options: of `Reader.from_pretrained`; threads: that find faces.

    keeper: the process that keeps the queue; complaints: a list in it, where a worker that cannot start says why.
    """

    keeper: int
    complaints: MutableSequence[str]

    def __init__(
        self, options: Mapping[str, Any], limits: Limits, *, batch_size: int = 16, batch_wait: float = 0.0, threads: int
    ):
        super().__init__(max_batch_size=batch_size, batch_timeout=batch_wait, api_path=PLACE, loop=Loop())
        self.options, self.limits, self.threads = dict(options), limits, threads

    def setup(self, device: str) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):  # sent to all processes of a terminal or a service at once:
            signal.signal(number, signal.SIG_IGN)  # the front ends first, and then the workers as it tells them
        warnings.simplefilter("ignore")  # of Pillow, on pictures that it reads all the same
        hush()
        Image.MAX_IMAGE_PIXELS = self.limits.pixels // 2  # refused above twice that: pictures inside of icons, too
        try:
            base = Reader.from_pretrained(**self.options)
        except MienError as error:
            self.complaints.append(str(error))
            raise SystemExit(1) from error
        settings = {"abstain": base.abstain, "max_pixels": self.limits.pixels, "max_faces": self.limits.faces}
        self._readers = {
            False: Reader(base.classifier, base.detector, min_face=base.min_face, **settings),
            True: Reader(base.classifier, aligned=True, **settings),
        }
        self._pool = ThreadPoolExecutor(self.threads, "mien")

    def predict(self, jobs: list[Job], **_: Any) -> list[Answer]:
        """The answers to a batch; a job that the reader breaks at is asked again alone, so that it harms no other."""
        begin = time.monotonic()
        try:
            answers = self._read(jobs)
        except Exception:
            answers = [self._alone(job) for job in jobs]
        pictures = sum(len(job.pictures) for job in jobs)
        first = answers[0]._replace(batch=(len(jobs), pictures), seconds=time.monotonic() - begin)
        return [first, *answers[1:]]

    def _alone(self, job: Job) -> Answer:
        try:
            return self._read([job])[0]
        except Exception:
            logging.getLogger("litserve").exception("the reader broke")
            return Answer(b"", 0, len(job.pictures), 0)

    def _read(self, jobs: Sequence[Job]) -> list[Answer]:
        told: dict[int, list[list[Face] | ReadError]] = {number: [] for number in range(len(jobs))}
        for aligned, reader in self._readers.items():
            asked = [
                (number, job, data)
                for number, job in enumerate(jobs)
                if job.aligned == aligned
                for _, data in job.pictures
            ]
            # nothing is read for those who wait no longer
            sources = (data if time.monotonic() < job.deadline else b"" for _, job, data in asked)
            for (number, _, _), faces in zip(
                asked, reader.read_many(sources, batch_size=FACES, workers=self._pool), strict=True
            ):
                told[number].append(faces)
        return [_answer(job, told[number]) for number, job in enumerate(jobs)]


def _answer(job: Job, told: Sequence[list[Face] | ReadError]) -> Answer:
    pictures, read, count = [], 0, 0
    for (name, _), faces in zip(job.pictures, told, strict=True):
        if isinstance(faces, ReadError):
            pictures.append({"source": name, "error": {"code": "unreadable", "reason": faces.reason}})
        else:
            pictures.append({"source": name, "faces": [record(name, index, face) for index, face in enumerate(faces)]})
            read, count = read + 1, count + len(faces)
    document: dict[str, Any] = {"pictures": pictures}
    if not read:
        reasons = {picture["error"]["reason"] for picture in pictures}
        reason = reasons.pop() if len(reasons) == 1 else "none of the pictures could be read"
        document = {"error": {"code": "unreadable", "reason": reason}, **document}
    body = json.dumps(document, ensure_ascii=False).encode()
    return Answer(body, read, len(pictures) - read, count)


def hush() -> None:
    """litserve tells errors and nothing else, on stderr."""
    configure_logging(logging.ERROR, stream=sys.stderr)
