"""Shards on many machines, by Ray Data."""

import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from mien.batch.shard import Done, Job, Shard, ShardReader
from mien.batch.store import reason
from mien.errors import MienError, require

_CPUS = 4  # of a worker: more do not make one reader faster


def ray_and_data() -> tuple[Any, Any]:
    """Import Ray and Ray Data, so that they report to nobody; needs the extra [ray]."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    return require("ray", "ray"), require("ray.data", "ray")


def read_on_ray(
    job: Job, shards: Sequence[Shard], workers: int | None = None, cpus: int | None = None
) -> Iterator[Done]:
    """Read shards on Ray, each the work of one actor, and yield what is done as it is done.

    job: what every worker has to know.
    shards: those to read; none is nothing to do.
    workers: int, actors at a time; None: as many as there are cores for, and no more than shards.
    cpus: int, cores of a worker, and its threads; None: 4, or as many as the largest machine has.

    It runs on the cluster at $RAY_ADDRESS, else on all cores of this machine. A shard whose worker dies is begun anew
    by another: Ray does so without end, and `ShardReader` sees to it that an end comes. The file of a shard is there
    whole or not at all, and it is the same whoever wrote it.

    Raises MienError where there is no cluster, where no machine has so many cores, and for what is wrong with all
    shards.
    """
    if not shards:
        return
    ray, data = ray_and_data()
    with running_ray():
        context = data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.enable_auto_log_stats = False
        context.max_errored_blocks = -1  # the next shards are read all the same
        nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        cpus = cpus or max(1, min(_CPUS, max(nodes)))
        if cpus > max(nodes):
            raise MienError(f"no machine has the {cpus} cores that a worker is to have, only {max(nodes)}")
        workers = workers or max(1, sum(node // cpus for node in nodes))
        workers = min(workers, len(shards))
        texts = [{"shard": json.dumps([shard.number, shard.items])} for shard in shards]
        answers = data.from_items(texts, override_num_blocks=len(texts)).map_batches(  # a block is what is begun anew
            _Worker,
            fn_constructor_args=(replace(job, threads=cpus),),
            batch_size=1,
            compute=data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
            num_cpus=cpus,
            num_gpus=1 if job.reading.get("device") == "cuda" else None,
        )
        for row in answers.iter_rows():
            answer = json.loads(row["answer"])
            if "wrong" in answer:
                raise MienError(answer["wrong"])
            yield Done(**answer)


class _Worker:
    """An actor: a model, and the shards that it is given."""

    def __init__(self, job: Job):
        self._job, self._reader = job, None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"answer": [json.dumps(self._answer(text)) for text in batch["shard"]]}

    def _answer(self, text: str) -> dict[str, Any]:
        number, items = json.loads(text)
        shard = Shard(number, tuple(item if isinstance(item, str) else tuple(item) for item in items))
        try:
            self._reader = self._reader or ShardReader(self._job)
            return asdict(self._reader(shard))
        except MienError as error:  # caught here, since Ray would print a traceback
            return {"wrong": str(error)}
        except Exception as error:
            return {"wrong": f"{shard.name}: {type(error).__name__}: {error}"}


@contextmanager
def running_ray() -> Iterator[None]:
    """Ray on the cluster at $RAY_ADDRESS, else on this machine: unless it runs already, it is begun here and ended.

    Raises MienError where there is no cluster.
    """
    ray, _ = ray_and_data()
    if ray.is_initialized():
        yield
        return
    cluster = os.environ.get("RAY_ADDRESS") or "local"
    handler = signal.getsignal(signal.SIGTERM)
    options = {"include_dashboard": False} if cluster == "local" else {}
    try:
        host, colon, port = cluster.rpartition(":")
        if colon and port.isdecimal() and "/" not in host:
            socket.create_connection((host, int(port)), timeout=10).close()  # Ray itself would try for minutes
        level = logging.getLogger("ray").level  # as it is: it is not for a library to change it
        ray.init(cluster, **options, log_to_driver=False, logging_level=level)
    except (OSError, ValueError, RuntimeError) as error:
        raise MienError(f"{cluster}: no Ray to be had there ({reason(error)})") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # ray has put its own in its place
    try:
        yield
    finally:
        ray.shutdown()
