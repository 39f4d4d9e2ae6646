"""The counts and times that Prometheus reads."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mien.service.worker import Answer

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counts of requests, pictures and faces; nothing of what was in them."""

    def __init__(self):
        self._all = CollectorRegistry()
        names = {"registry": self._all}
        self.requests = Counter("mien_requests", "Requests by route and status.", ["route", "status"], **names)
        self.seconds = Histogram(
            "mien_request_seconds",
            "From a request's head to its answer.",
            ["route"],
            buckets=SECONDS,
            **names,
        )
        self.pictures = Counter("mien_pictures", "Pictures, by whether they could be read.", ["outcome"], **names)
        self.faces = Counter("mien_faces", "Faces that were read.", **names)
        self.batches = Histogram("mien_batch_requests", "Requests of a batch.", buckets=SIZES, **names)
        self.batch_pictures = Histogram("mien_batch_pictures", "Pictures of a batch.", buckets=SIZES, **names)
        self.batch_seconds = Histogram("mien_batch_seconds", "Time that a batch took.", buckets=SECONDS, **names)

    def gauge(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        Gauge(f"mien_{name}", meaning, registry=self._all).set_function(value)

    def count(self, answer: Answer) -> None:
        """Count what is in a worker's answer."""
        self.pictures.labels("read").inc(answer.read)
        self.pictures.labels("unreadable").inc(answer.unread)
        self.faces.inc(answer.faces)
        if answer.batch:
            self.batches.observe(answer.batch[0])
            self.batch_pictures.observe(answer.batch[1])
            self.batch_seconds.observe(answer.seconds)

    def text(self) -> bytes:
        return generate_latest(self._all)
