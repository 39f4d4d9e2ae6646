"""`mien batch`: the expressions of the faces in very many pictures, as Parquet files."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext, redirect_stdout
from typing import Any

from mien import __version__
from mien.batch import (
    Answer,
    Done,
    Job,
    Plan,
    Shard,
    ShardReader,
    Store,
    address,
    find_sources,
    make_plan,
    ray_and_data,
    read_on_ray,
    running_ray,
    sha256_of,
)
from mien.checkpoint import read_header
from mien.classifier import DEFAULT_MODEL, find_model
from mien.commands.options import add_reading_arguments, count, share
from mien.commands.read import begin
from mien.commands.rows import schema
from mien.commands.terminal import counted
from mien.console import printable
from mien.errors import MienError, ReadError, require
from mien.faces.measure import measured_outputs
from mien.faces.record import no_face, picture_records
from mien.files import silence
from mien.outputs import Output
from mien.precision import choose

_NAMED = 20  # how many sources that could not be read are named on stderr


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _WHAT
    parser.set_defaults(misuse=parser.error)
    parser.add_argument(
        "source",
        nargs="+",
        metavar="SOURCE",
        help="a folder, a glob, a picture, a zip of pictures, - for a picture on stdin, a .parquet file of pictures, "
        "the address of any of these in a bucket, or https://…/photo.jpg",
    )
    parser.add_argument("out", metavar="OUT", help="a folder, or the address of one in a bucket; run again to go on")
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="one process (default), or Ray: the cluster at $RAY_ADDRESS, else all cores of this machine",
    )
    add_reading_arguments(parser)
    parser.add_argument(
        "--column", default="image", metavar="NAME", help="of a .parquet file: bytes or paths (default: image)"
    )
    parser.add_argument(
        "--shard-size", type=count, default=1000, metavar="N", help="pictures that make a file (default: 1000)"
    )
    parser.add_argument(
        "--retry", action="store_true", help="read the files anew in which there are pictures that could not be read"
    )
    parser.add_argument(
        "--tolerate",
        type=share,
        default=0.0,
        metavar="SHARE",
        help="of pictures that cannot be read, up to which the exit code is 0 (default: 0)",
    )
    parser.add_argument("--workers", type=count, metavar="N", help="of ray (default: as many as there are cores for)")
    parser.add_argument(
        "--worker-cpus", type=count, metavar="N", help="cores of a worker of ray (default: 4, or what a machine has)"
    )


_WHAT = """Read the faces in very many pictures into Parquet files, one for every so many pictures. Run the same command
again to go on where it was stopped, and to read what has come since. What cannot be read is a row that says why."""


def run(args: argparse.Namespace) -> int:
    """Read what is not read yet; 1 if more sources than tolerated could not be, in this run or in an earlier one."""
    begin()
    require("pyarrow.parquet", "parquet")
    if args.engine == "ray":
        ray_and_data()
    out = address(args.out)
    if "-" in args.source and args.engine == "ray":
        args.misuse("-: what comes in on stdin is read by --engine local")
    if os.path.isfile(out):
        args.misuse(f"{args.out}: not a folder")
    names = ("aligned", "min_face", "threshold", "search", "abstain", "precision")
    options = {name: getattr(args, name) for name in names}
    if args.landmarker:
        options["landmarker"] = "auto" if args.landmarker == "auto" else os.path.abspath(args.landmarker)
    options |= {name: True for name in ("action_units", "mesh") if getattr(args, name)}
    measured_outputs("landmarker" in options, args.action_units, args.mesh)
    path = find_model(args.model)
    sha256 = sha256_of(path)
    precision = choose(path, read_header(path), device=args.device, precision=args.precision)[1]
    manifest = {
        "mien": 1,
        "version": __version__,
        "model": {"name": args.model or DEFAULT_MODEL, "sha256": sha256},
        "options": {**options, "column": args.column},
        "begun_with": args.source,
    }
    job = Job(
        out=out,
        model=os.path.abspath(args.model) if args.model and os.path.exists(args.model) else args.model,
        sha256=sha256,
        reading={
            **options,
            "precision": precision,
            "device": args.device,
            "trust": args.trust,
        },  # on all machines alike
        column=args.column,
        batch_size=args.batch_size,
        table=table,
    )
    store = Store(out)
    with store.alone():
        missed: list[ReadError] = []
        items = find_sources(args.source, args.column, out, missed)
        for error in missed:
            print(f"mien: {printable(str(error))}", file=sys.stderr)
        plan = make_plan(store, manifest, items, args.shard_size, args.retry)
        if plan.version != __version__:
            print(f"mien: {out} was begun by mien {plan.version}, and this is {__version__}", file=sys.stderr)
        with _ray() if args.engine == "ray" and plan.todo else nullcontext():
            now = _read(args, job, plan)
        if lost := {shard.name for shard in now} - store.names():
            raise MienError(
                f"{out}: {min(lost)} was written, and is not there: is it a folder that all machines share?"
            )
    return _sum_up(args, plan, now, sum(error.rows for error in missed))


@contextmanager
def _ray() -> Iterator[None]:
    """Ray, which says nothing on stdout, and on stderr only that it begins something anew."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    for name in ("ray", "ray.data"):  # Ray, which was imported before, sets them itself
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with ExitStack() as stack:
        with silence():  # or it would say that it keeps silent
            stack.enter_context(running_ray())
        stack.enter_context(redirect_stdout(sys.stderr))
        yield


def _read(args: argparse.Namespace, job: Job, plan: Plan) -> list[Done]:
    """Read what is left to do. The first sources that could not be read are named on stderr."""
    from tqdm import tqdm

    todo, now, named = plan.todo, [], 0
    total, left = (sum(shard.count for shard in shards) for shards in (plan.shards, todo))
    off = not sys.stderr.isatty()
    with tqdm(total=total, initial=total - left, unit=" pictures", leave=False, disable=off) as bar:
        if args.engine == "ray":
            finished = read_on_ray(job, todo, args.workers, args.worker_cpus)
        else:
            finished = _one_by_one(job, todo, bar.update)
        with closing(finished):
            for done in finished:
                now.append(done)
                if args.engine == "ray":
                    bar.update(done.sources)
                for source, reason in done.reasons[: _NAMED - named]:
                    bar.write(f"mien: {printable(f'{source}: {reason}')}", file=sys.stderr)
                    named += 1
    if more := sum(done.unread for done in now) - named:
        print(f"mien: {more:,} more could not be read: the column error says why", file=sys.stderr)
    return now


def _one_by_one(job: Job, shards: Sequence[Shard], count: Callable[[], Any]) -> Iterator[Done]:
    reader = ShardReader(job) if shards else None
    for shard in shards:
        yield reader(shard, count)


def _sum_up(args: argparse.Namespace, plan: Plan, now: Sequence[Done], missed: int) -> int:
    """missed: pictures that were found and are in no file, since their formats do not open."""
    done = [*plan.done.values(), *now]
    sources, faces, unread = (sum(getattr(one, name) for one in done) for name in ("sources", "faces", "unread"))
    read = sum(one.sources for one in now)
    how = f"{read:,} of them now" if plan.done and now else "" if now else "nothing was left to do"
    line = f"{args.out}: {counted(faces, 'face')} in {counted(sources - unread, 'picture')}"
    line += f" ({how})" if how else ""
    print(line + (f", {unread:,} could not be read" if unread else ""))
    if undone := len(plan.shards) - len(done):
        print(f"mien: {counted(undone, 'file')} not written, since Ray gave up: run again", file=sys.stderr)
    return 1 if undone or unread + missed > args.tolerate * (sources + missed) else 0


def table(outputs: Sequence[Output], answers: Iterable[Answer]) -> Any:
    """The rows of `mien read --output x.parquet`, and a column `error`: why a source could not be read."""
    pa = require("pyarrow", "parquet")
    rows = []
    for source, faces in answers:
        if isinstance(faces, ReadError):
            rows.append(no_face(source, "") | {"note": None, "error": faces.reason})
        else:
            rows += picture_records(source, faces)
    return pa.Table.from_pylist(rows, schema(outputs).append(pa.field("error", pa.string())))
