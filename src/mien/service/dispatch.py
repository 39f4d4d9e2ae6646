"""The worker processes, the queue in front of them, and what waits for their answers."""

import asyncio
import logging
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any

from mien.errors import MienError
from mien.service.limits import Limits, Refused, busy
from mien.service.worker import Answer, ReadJob, Slow, send

PATIENCE = 1.0
"""Seconds after which a thread without requests looks whether its worker is still there."""

_START = "import sys; sys.path[:] = sys.argv[2:]; from mien.service.worker import main; main()"

logger = logging.getLogger("mien.service")


class Worker:
    """A process that reads. It has a session of its own, where a terminal's Ctrl-C does not come."""

    def __init__(self, options: Mapping[str, Any], limits: Limits, threads: int):
        self._socket, theirs = socket.socketpair()
        self._stream = self._socket.makefile("rwb")
        self._limits, self._ready = limits, False
        with theirs:
            self._process = _start(theirs)
        with suppress(OSError):  # it died at once, which `wait_ready` will report
            send(self._stream, (options, limits, threads))

    def wait_ready(self) -> None:
        """Wait until it has opened the model. Raises MienError where it cannot."""
        try:
            reason = pickle.load(self._stream)
        except (EOFError, OSError):
            reason = "a worker of the service could not start"
        if reason is not None:
            self.end()
            raise MienError(reason)
        self._socket.settimeout(2 * self._limits.seconds)
        self._ready = True

    @property
    def alive(self) -> bool:
        """Whether it has opened the model, and lives."""
        return self._ready and self._process.poll() is None

    def ask(self, jobs: Sequence[ReadJob]) -> list[Answer | int] | Slow:
        """The answers of `JobReader`. Raises EOFError or OSError where the worker has died or hangs."""
        send(self._stream, jobs)
        return pickle.load(self._stream)

    def end(self, seconds: float = 0.0) -> int:
        """The exit code. A worker that has nothing to do ends as soon as the socket is shut."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads, too
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        with suppress(OSError):
            self._stream.close()
        self._socket.close()
        return code


def _start(theirs: socket.socket) -> subprocess.Popen[bytes]:
    """A worker's process, which has inherited its end of the socket; on Windows it is sent what opens it again."""
    command = [sys.executable, "-c", _START, str(theirs.fileno()), *sys.path]
    if sys.platform != "win32":
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        return subprocess.Popen(command, **streams, pass_fds=[theirs.fileno()], start_new_session=True)
    apart = subprocess.CREATE_NEW_PROCESS_GROUP
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, creationflags=apart)
    with process.stdin as stdin:
        stdin.write(theirs.share(process.pid))
    return process


class _Entry:
    """A job, who waits for its answer, whether a worker has it, and whether one has died over it.

    pixels: of its pictures, where the worker put it off because of them.
    """

    def __init__(self, job: ReadJob):
        self.job, self.begun, self.died, self.pixels = job, False, False, 0
        self.future: Future[Answer] = Future()

    def finish(self, answer: Answer | Refused) -> None:
        with suppress(InvalidStateError):  # nobody waits for it any longer
            if isinstance(answer, Refused):
                self.future.set_exception(answer)
            else:
                self.future.set_result(answer)


class Dispatcher:
    """Answers jobs: first `start`, then `submit` for each job, at last `stop`.

    Each worker has a thread here, which waits for requests, sends the worker a batch of them, and hands out the
    answers. Where a worker dies, another one takes its place, and each request of its batch is tried once more, alone.
    Requests with very many pixels have every second batch at most, so that the others need not wait for all of them.

    options: of `Reader.from_pretrained`. workers: processes. threads: of a worker. batch_size: requests of a batch at
    most. batch_wait: seconds that the first of them waits for others.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        limits: Limits,
        *,
        workers: int = 1,
        threads: int = 1,
        batch_size: int = 16,
        batch_wait: float = 0.0,
    ):
        self._worker_arguments = dict(options), limits, threads
        self._limits, self._count = limits, workers
        self._batch_size, self._batch_wait = batch_size, batch_wait
        self._workers: list[Worker] = []
        self._threads: list[threading.Thread] = []
        self._open: set[_Entry] = set()
        self._queue: deque[_Entry] = deque()
        self._put_off: deque[_Entry] = deque()
        self._turn = False  # whether the last batch was of those put off
        self._changed = threading.Condition()  # guards the queues, and the end
        self._ended = False
        self.restarts = 0

    def start(self) -> None:
        """Start the workers, and wait until they are ready. Raises MienError where one cannot."""
        for _ in range(self._count):
            self._workers.append(Worker(*self._worker_arguments))
        for worker in self._workers:
            worker.wait_ready()
        for number in range(self._count):
            self._threads.append(threading.Thread(target=self._tend, args=[number], daemon=True))
            self._threads[-1].start()

    def stop(self) -> None:
        """End all processes. A worker first ends the batch that it has begun, for which it has five seconds."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        until = time.monotonic() + 5
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        for worker in self._workers:
            worker.end(max(0.5, until - time.monotonic()) if self._threads else 0.0)

    async def submit(self, job: ReadJob) -> Answer:
        """Raises Refused: 429 if too many are waiting; 503 if no answer came in time or the worker died twice; 422."""
        if self.full:
            raise busy("queue_full", f"{len(self._open)} requests are waiting already")
        entry = _Entry(job)
        self._open.add(entry)
        self._put(self._queue, entry)
        try:
            async with asyncio.timeout(job.deadline - time.monotonic()):
                return await asyncio.wrap_future(entry.future)
        except TimeoutError as error:
            raise busy("timeout", f"no answer within {self._limits.seconds:g} seconds", 503) from error
        finally:
            self._open.discard(entry)
            with self._changed:
                for queue in (self._queue, self._put_off):
                    if entry in queue:
                        queue.remove(entry)

    @property
    def full(self) -> bool:
        return len(self._open) >= self._limits.queue

    @property
    def waiting(self) -> int:
        """Requests that no worker has begun with."""
        return len(self._queue) + len(self._put_off)

    @property
    def working(self) -> int:
        """Requests that a worker has begun with."""
        return sum(entry.begun for entry in self._open)

    @property
    def alive(self) -> int:
        """Workers that are ready, or at work."""
        return sum(worker.alive for worker in self._workers)

    @property
    def ready(self) -> bool:
        return self.alive == self._count

    def _tend(self, number: int) -> None:
        """Give a worker batch after batch, and start another one where it is gone."""
        while not self._ended:
            worker, batch = self._workers[number], self._gather()
            try:
                if not worker.alive:
                    raise EOFError
                answers = worker.ask([entry.job for entry in batch]) if batch else []
                if isinstance(answers, Slow):
                    self._replace(number, batch, "took too long over one picture", batch[answers.number])
                    continue
                for entry, answer in zip(batch, answers, strict=True):
                    if isinstance(answer, Answer):
                        entry.finish(answer)
                    else:
                        self._put(self._put_off, entry, answer)
            except Exception as error:  # whatever a dying process sends
                self._replace(number, batch, "hung" if isinstance(error, TimeoutError) else "died")

    def _gather(self) -> list[_Entry]:
        """The requests of a batch; none if none came for a while."""
        with self._changed:
            if self._changed.wait_for(lambda: self.waiting or self._ended, PATIENCE) and not self._put_off:
                self._changed.wait_for(lambda: len(self._queue) >= self._batch_size or self._ended, self._batch_wait)
            self._turn = bool(self._put_off) and not (self._turn and self._queue)
            queue = self._put_off if self._turn else self._queue
            batch: list[_Entry] = []
            while queue and len(batch) < self._batch_size:
                if batch and sum(entry.pixels for entry in (*batch, queue[0])) > self._limits.request_pixels:
                    break
                batch.append(queue.popleft())
                batch[-1].begun = True
            return batch

    def _put(self, queue: deque[_Entry], entry: _Entry, pixels: int = 0) -> None:
        with self._changed:
            if not entry.future.done():  # else nobody waits for it any longer
                entry.begun, entry.pixels = False, pixels
                queue.append(entry)
                self._turn |= queue is self._put_off  # the others come first
                self._changed.notify_all()

    def _again(self, batch: Sequence[_Entry], slow: _Entry | None = None) -> None:
        """Queue once more what a worker did not answer, but not what it was ended for, nor what two have died over."""
        for entry in batch:
            if entry is slow:
                reason = f"a picture took longer than {self._limits.read_seconds:g} seconds"
                entry.finish(Refused(422, "too_long", reason))
            elif slow:
                self._put(self._queue, entry)
            elif entry.died:
                entry.finish(busy("worker_died", "the worker died; try again", 503))
            else:
                entry.died = True
                self._put(self._put_off, entry, self._limits.request_pixels)  # which leaves no room for another

    def _replace(self, number: int, batch: Sequence[_Entry], fate: str, slow: _Entry | None = None) -> None:
        with self._changed:
            self.restarts += 1
        self._again(batch, slow)
        if self._ended:
            return
        code = self._workers[number].end()
        logger.error("a worker %s (exit code %s); another one starts", fate, code)
        while not self._ended:
            try:
                self._workers[number] = worker = Worker(*self._worker_arguments)
                worker.wait_ready()
                return
            except (MienError, OSError) as error:
                logger.error("a worker could not start: %s", error)
                with self._changed:
                    self._changed.wait_for(lambda: self._ended, PATIENCE)
