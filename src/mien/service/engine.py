"""litserve's queue and worker processes, and what waits for them here."""

import asyncio
import logging
import signal
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty

from litserve import LitServer
from litserve.loops.base import _SENTINEL_VALUE
from litserve.utils import LitAPIStatus, WorkerSetupStatus

from mien.errors import MienError
from mien.service.limits import Limits, Refused, busy
from mien.service.worker import PATIENCE, PLACE, Answer, Job, ReadAPI

logger = logging.getLogger("mien.service")


@dataclass
class _Waiting:
    job: Job
    answer: asyncio.Future[Answer]
    worker: int | None = None  # the one that has begun with it


class Engine:
    """Answers jobs: `prepare` and `start` first, `run` in the event loop, there `submit` for each job, at last `stop`.

    Of litserve it takes the worker processes, the queue between them and this process, and the batches. litserve's own
    front is not used: it cannot listen at every address, refuses no request before its body is read, and ends by
    breaking off what is being worked on.
    """

    def __init__(self, api: ReadAPI, limits: Limits, workers: int):
        self._api, self._limits, self._count = api, limits, workers
        self._server = LitServer(
            api, accelerator="cpu", workers_per_device=workers, timeout=False, restart_workers=True
        )
        self._waiting: dict[str, _Waiting] = {}
        self._begun: dict[int, float] = {}  # when each worker began with its batch
        self.restarts = 0

    def prepare(self) -> None:
        """Start the process that keeps the queue; first of all, since it inherits what this one has open."""
        with _ignoring(signal.SIGTERM):  # it ends when it is told to
            self._manager = self._server._init_manager(1)
            self._api.complaints = self._manager.list()
            self._api.keeper = self._manager._process.pid

    def start(self) -> None:
        """Start the workers, and wait until they are ready. Raises MienError where one cannot."""
        with _ignoring(signal.SIGTERM, signal.SIGINT):
            self._server.inference_workers = self._server.launch_inference_worker(self._api)
        status = self._server.workers_setup_status
        while any(value != WorkerSetupStatus.READY for value in status.values()):
            if WorkerSetupStatus.ERROR in status.values() or self.alive < self._count:
                reasons = list(self._api.complaints)
                raise MienError(reasons[0] if reasons else "a worker of the service could not start")
            time.sleep(0.02)

    def stop(self) -> None:
        """End all processes: a worker first ends the batch that it has begun."""
        if not hasattr(self, "_manager"):
            return
        workers = getattr(self._server, "inference_workers", [])
        with suppress(OSError, EOFError):
            for _ in workers:
                self._queue.put(_SENTINEL_VALUE)
        until = time.monotonic() + 5
        for worker in workers:
            worker.join(max(0.1, until - time.monotonic()))
            if worker.is_alive():
                worker.kill()
                worker.join()
        self._manager.shutdown()

    async def run(self) -> None:
        """Hand out answers and look after the workers, until cancelled; returns if the queue is lost."""
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(32, "mien-front"))
        handing = asyncio.create_task(self._hand_out())
        try:
            while self._manager._process.is_alive():
                await asyncio.sleep(0.5)
                await self._look_after()
            logger.error("the process that keeps the queue has died")
        finally:
            handing.cancel()
            self._server._transport.close()  # wakes the thread that listens

    async def submit(self, job: Job) -> Answer:
        """Raises Refused: 429 if too many are waiting, 503 if no answer came in time or the worker died, 500."""
        if self.full:
            raise busy("queue_full", f"{len(self._waiting)} requests are waiting already")
        uid = uuid.uuid4().hex
        waiting = self._waiting[uid] = _Waiting(job, asyncio.get_running_loop().create_future())
        try:
            async with asyncio.timeout(job.deadline - time.monotonic()):
                await asyncio.to_thread(self._queue.put, (0, uid, time.monotonic(), job))
                return await waiting.answer
        except TimeoutError as error:
            raise busy("timeout", f"no answer within {self._limits.seconds:g} seconds", 503) from error
        finally:
            del self._waiting[uid]

    @property
    def full(self) -> bool:
        return len(self._waiting) >= self._limits.queue

    @property
    def waiting(self) -> int:
        """Requests that no worker has begun with."""
        return sum(waiting.worker is None for waiting in self._waiting.values())

    @property
    def working(self) -> int:
        """Requests that a worker has begun with."""
        return len(self._waiting) - self.waiting

    @property
    def alive(self) -> int:
        """Workers that are."""
        return sum(worker.is_alive() for worker in self._server.inference_workers)

    @property
    def ready(self) -> bool:
        return self.alive == self._count

    @property
    def _queue(self):
        return self._server._get_request_queue(PLACE)

    async def _hand_out(self) -> None:
        while True:
            told = await self._server._transport.areceive(0)
            if told is None:  # litserve looks up once a second
                await asyncio.sleep(0.001)
                continue
            uid, (answer, status, _, worker) = told
            waiting = self._waiting.get(uid)
            if status == LitAPIStatus.START:
                self._begun.setdefault(worker, time.monotonic())
                if waiting:
                    waiting.worker = worker
                continue
            self._begun.pop(worker, None)
            if waiting and not waiting.answer.done():
                if isinstance(answer, Answer) and answer.body:
                    waiting.answer.set_result(answer)
                else:
                    waiting.answer.set_exception(Refused(500, "internal", "the service made a mistake"))

    async def _look_after(self) -> None:
        """End workers that hang; for those that died, start others, and tell whom they were working for."""
        for number, worker in enumerate(self._server.inference_workers):
            begun = self._begun.get(number)
            if begun and time.monotonic() - begun > 2 * self._limits.seconds:
                logger.error("a worker hung and was ended")
                worker.kill()
                await asyncio.to_thread(worker.join, 1)
            if worker.is_alive():
                continue
            logger.error("a worker died (exit code %s); another one starts", worker.exitcode)
            self._begun.pop(number, None)
            for waiting in self._waiting.values():
                if waiting.worker == number and not waiting.answer.done():
                    waiting.answer.set_exception(busy("worker_died", "the worker died; try again", 503))
            await asyncio.sleep(1.5 * PATIENCE)  # until nothing is handed to the dead; and perhaps it cannot even start
            start = self._server.launch_single_inference_worker
            self._server.inference_workers[number] = await asyncio.to_thread(start, self._api, number)
            await asyncio.to_thread(self._queue_anew)
            self.restarts += 1

    def _queue_anew(self) -> None:
        """Queue once more what nobody has begun with: one job may have been handed to a worker that was dead.

        A job that comes twice is answered twice, and the second answer dropped.
        """
        with suppress(Empty):
            while True:
                self._queue.get_nowait()
        for uid, waiting in list(self._waiting.items()):
            if waiting.worker is None:
                self._queue.put((0, uid, time.monotonic(), waiting.job))


@contextmanager
def _ignoring(*numbers: int) -> Iterator[None]:
    """Processes started meanwhile ignore the signals for good."""
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
