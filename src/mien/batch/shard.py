"""One shard: its sources are read, and the answers go into one file."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mien import __version__
from mien.batch.sources import Item, contents
from mien.batch.store import Store, parquet_bytes
from mien.batch.tries import REASON, Tries
from mien.classifier import find_model
from mien.engines.graph import external_files
from mien.errors import MienError, ReadError
from mien.faces import Face
from mien.reader import Reader

Answer = tuple[str, list[Face] | ReadError]
"""A source, and its faces or why there are none."""

_REASONS = 20  # how many sources that could not be read are named outside of the file


@dataclass(frozen=True)
class Shard:
    """The sources of one file.

    number: int from 0 on; the file is called part-00000.parquet and on.
    items: pictures, and rows of tables.
    """

    number: int
    items: tuple[Item, ...]

    @property
    def name(self) -> str:
        return f"part-{self.number:05}.parquet"

    @property
    def count(self) -> int:
        return sum(1 if isinstance(item, str) else max(item[2], 1) for item in self.items)

    @cached_property
    def digest(self) -> str:
        return hashlib.blake2b(json.dumps(self.items).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Done:
    """A file that was written.

    name: of the file.
    sources: int, how many are in it.
    faces: int, how many were found in them.
    unread: int, how many of the sources could not be read.
    reasons: (source, reason) of the first 20 of these; empty where an earlier run wrote the file.
    """

    name: str
    sources: int
    faces: int
    unread: int
    reasons: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker has to know.

    out: the folder, or the address of a bucket, where files go.
    model: its name or its file; None is the default model.
    sha256: what `sha256_of` has to give for its file.
    reading: further arguments of `Reader.from_pretrained`.
    column: the column of the pictures in a table.
    batch_size: int from 1 on, faces that the network reads at a time.
    table: outputs and answers -> a pyarrow.Table with the columns `face` and `error`; it has to be importable, since
        workers are processes of their own.
    threads: int, those that open pictures and find faces; None: one a core, four at most.
    """

    out: str
    model: str | None
    sha256: str
    reading: Mapping[str, Any]
    column: str
    batch_size: int
    table: Callable[[Sequence[str], Iterable[Answer]], Any]
    threads: int | None = None


class ShardReader:
    """Reads shards, with one model for all of them.

    A picture that cannot be read is a row, and so is one that ends the process, once that has been tried twice with the
    whole shard and once by itself. Raises MienError for what is wrong with all of them: another model here than
    where the job was begun, or a folder of results that is not to be seen from here.
    """

    def __init__(self, job: Job):
        self.job, self._store = job, Store(job.out)
        if not self._store.names():
            raise MienError(
                f"{self._store.where} is not to be seen from here: it has to be a bucket or a shared folder"
            )
        path = find_model(job.model)
        if sha256_of(path) != job.sha256:
            raise MienError(f"{path}: not the model that the job was begun with")
        self._reader = Reader.from_pretrained(str(path), **job.reading)

    def __call__(self, shard: Shard, count: Callable[[], Any] = lambda: None) -> Done:
        """Read a shard and write its file, the same whenever that is done; `count` is called once for each source."""
        tries = Tries(self.job.out, shard.digest)
        try:
            return self._write(shard, self._answers(shard, tries, count))
        finally:
            tries.end()

    def _answers(self, shard: Shard, tries: Tries, count: Callable[[], Any]) -> list[Answer]:
        answers: list[Answer] = []
        if not tries.careful:
            try:
                with closing(self._read(shard)) as reading:
                    for answer in reading:
                        answers.append(answer)
                        count()
                return answers
            except MienError:
                raise
            except Exception:  # of what may be wrong with a picture, something that nobody thought of
                pass
        counted = len(answers)
        answers = []
        for answer in self._read_singly(shard, tries):
            answers.append(answer)
            if len(answers) > counted:
                count()
        return answers

    def _write(self, shard: Shard, answers: list[Answer]) -> Done:
        table = self.job.table(self._reader.outputs, answers)
        unread = [(name, faces.reason) for name, faces in answers if isinstance(faces, ReadError)]
        faces = len(table) - table["face"].null_count
        facts = {"sources": len(answers), "faces": faces, "unread": len(unread)}
        metadata = {"mien": 1, "version": __version__, "shard": shard.digest, **facts}
        self._store.write(shard.name, parquet_bytes(table, metadata))
        return Done(shard.name, **facts, reasons=unread[:_REASONS])

    def _read(self, shard: Shard) -> Iterator[Answer]:
        names: list[str] = []
        refused: dict[int, ReadError] = {}

        def given() -> Iterator[str | bytes]:
            with closing(contents(shard.items, self.job.column)) as pictures:
                for name, source in pictures:
                    if isinstance(source, ReadError):
                        refused[len(names)], source = source, b""
                    names.append(name)
                    yield source

        with closing(given()) as sources:
            answers = self._reader.read_many(sources, batch_size=self.job.batch_size, workers=self.job.threads)
            for index, faces in enumerate(answers):
                yield names[index], refused.get(index, faces)

    def _read_singly(self, shard: Shard, tries: Tries) -> Iterator[Answer]:
        for index, (name, source) in enumerate(contents(shard.items, self.job.column)):
            if index in tries.deadly:
                yield name, ReadError(name, REASON)
                continue
            tries.begin(index)
            try:
                yield name, source if isinstance(source, ReadError) else self._reader(source)
            except ReadError as error:
                yield name, error
            except Exception as error:
                yield name, ReadError(name, f"{type(error).__name__}: {error}")


def sha256_of(model: Path) -> str:
    """Of a model's file, and of the weights beside it where the format keeps them so."""
    digest = hashlib.sha256(model.read_bytes())
    weights = model.with_suffix(".bin")
    if model.suffix == ".xml" and weights.exists():
        digest.update(weights.read_bytes())
    for file in external_files(model):
        digest.update(file.read_bytes())
    return digest.hexdigest()
