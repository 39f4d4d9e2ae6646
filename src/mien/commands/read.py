"""`mien read`: the expressions of the faces in pictures, as a table, as JSON Lines, or in a file."""

import argparse
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TextIO

from mien.commands.rows import WRITERS, JsonLines, Row, no_face, row
from mien.errors import ReadError, require
from mien.faces import find_pictures, open_picture
from mien.files import whole
from mien.reader import Reader


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_face_arguments(parser)
    parser.add_argument("--model", help="a model's name, file, folder, or owner/name on the Hub (default: the best)")
    parser.add_argument("--output", type=_output, metavar="FILE", help="write a .csv, .jsonl or .parquet file instead")
    parser.add_argument("--annotate", type=folder, metavar="DIR", help="draw the faces into copies of the pictures")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="bf16 is faster where the CPU has it; auto takes it where the model was measured to bear it (default)",
    )
    parser.add_argument("--batch-size", type=_count, default=32, metavar="N", help="faces read at a time (default: 32)")
    parser.add_argument(
        "--abstain", action="store_true", help='say "uncertain" where the model was found not to be sure enough'
    )


def add_face_arguments(parser: argparse.ArgumentParser) -> None:
    """What says which pictures are read, and what is a face in them."""
    parser.set_defaults(misuse=parser.error)
    parser.add_argument("source", nargs="+", metavar="SOURCE", help="a picture, a folder of pictures, or a glob")
    parser.add_argument("--aligned", action="store_true", help="the sources are face crops: read them as they are")
    parser.add_argument(
        "--min-face", type=_pixels, default=20, metavar="PIXELS", help="least shorter side of a face (default: 20)"
    )
    parser.add_argument(
        "--threshold", type=_share, default=0.6, metavar="SCORE", help="least score of a face, 0 to 1 (default: 0.6)"
    )


def begin() -> None:
    """What a command does first that reads strangers' pictures and writes files."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or a half-written file would stay
    warnings.simplefilter(
        "ignore"
    )  # of Pillow, on pictures that it reads all the same: stderr is for those it does not


def run(args: argparse.Namespace) -> int:
    """Read the sources; 1 if one of them could not be."""
    begin()
    if args.output and args.output.suffix == ".parquet":
        require("pyarrow.parquet", "parquet")
    pictures = find_pictures(args.source)
    drawings: Sequence[Path | None] = [None] * len(pictures)  # where each is drawn
    if args.annotate:
        from mien.commands.annotate import annotate, annotated_names

        pictures = outside(args.annotate, pictures, set(args.source))
        drawings = annotated_names(args.annotate, pictures)
        if lost := set(map(os.path.realpath, pictures)) & set(map(os.path.realpath, drawings)):
            args.misuse(f"--annotate would overwrite {min(lost)}, which is to be read")

    reader = Reader.from_pretrained(
        args.model,
        aligned=args.aligned,
        threshold=args.threshold,
        min_face=args.min_face,
        device=args.device,
        precision=args.precision,
        abstain=args.abstain,
    )
    labels = reader.classifier.labels
    if args.annotate:
        args.annotate.mkdir(parents=True, exist_ok=True)
    counts = Counter()
    with ExitStack() as stack:
        bar = stack.enter_context(closing(Progress(len(pictures))))
        if args.output:
            writer = WRITERS[args.output.suffix](stack.enter_context(whole(args.output)), labels)
        elif sys.stdout.isatty():
            writer = _Table(bar, pictures, labels)
        else:
            writer = JsonLines(sys.stdout.buffer, labels)
        stack.enter_context(closing(writer))
        answers = reader.read_many(pictures, batch_size=args.batch_size)
        for source, drawing, faces in zip(pictures, drawings, answers, strict=True):
            try:
                if isinstance(faces, ReadError):
                    raise faces
                if drawing and faces:
                    annotate(open_picture(source), faces, drawing)
                    counts["drawing"] += 1
            except ReadError as error:
                bar.write(f"mien: {printable(str(error))}", file=sys.stderr)
                counts["error"] += 1
            else:
                for index, face in enumerate(faces):
                    writer.write(row(source, index, face))
                if not faces:
                    writer.write(no_face(source, "no face found"))
                counts["face"] += len(faces)
            bar.update()
    if args.output:
        read = len(pictures) - counts["error"]
        unread = f", {counts['error']} could not be read" if counts["error"] else ""
        print(f"{args.output}: {_counted(counts['face'], 'face')} in {_counted(read, 'picture')}{unread}")
    if args.annotate and (args.output or sys.stdout.isatty()):
        print(f"{args.annotate}: {_counted(counts['drawing'], 'drawing')}")
    return 1 if counts["error"] else 0


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def printable(text: str) -> str:
    """Text that stays on its line of the terminal, whatever a file is called."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


class _Table:
    """Rows as a person reads them."""

    def __init__(self, bar: "Progress", sources: Sequence[str], labels: Sequence[str]):
        self._say = bar.write
        self._label = max(map(len, [*labels, "expression"]))
        room = max(16, shutil.get_terminal_size().columns - self._label - 38)
        self._source = min(room, max(map(len, [*sources, "picture"])))
        self._header = f"{'picture':{self._source}}  face  {'expression':{self._label}}        where"

    def write(self, row: Row) -> None:
        if self._header:
            self._say(self._header)
            self._header = ""
        source = printable(row["source"])
        if len(source) > self._source:
            source = "…" + source[1 - self._source :]
        if row["expression"] is None:
            self._say(f"{source:{self._source}}        {row['note']}")
            return
        where = "{2:.0f}×{3:.0f} at {0:.0f}, {1:.0f}".format(*row["box"]) if row["box"] else "all of it"
        face = f"{row['face']:>4}  {row['expression']:{self._label}} {row['probability']:>5.0%}"
        self._say(f"{source:{self._source}}  {face}  {where}")

    def close(self) -> None:
        pass


class Progress:
    """Prints lines, and below them a progress bar once the work has taken a second, where somebody looks."""

    def __init__(self, total: int):
        self._total, self._done, self._bar = total, 0, None
        self._begin = time.monotonic() + 1 if sys.stderr.isatty() else float("inf")

    def write(self, line: str, file: TextIO | None = None) -> None:
        (self._bar.write if self._bar else print)(line, file=file)

    def update(self) -> None:
        self._done += 1
        if self._bar:
            self._bar.update()
        elif time.monotonic() > self._begin:
            from tqdm import tqdm

            self._bar = tqdm(total=self._total, initial=self._done, unit=" pictures", leave=False)

    def close(self) -> None:
        if self._bar:
            self._bar.close()


def outside(drawn: Path, pictures: Sequence[str], named: set[str]) -> list[str]:
    """The pictures without those that an earlier run has drawn into the folder, unless they were named themselves."""
    inside = os.path.join(os.path.realpath(drawn), "")
    return [name for name in pictures if name in named or not os.path.realpath(name).startswith(inside)]


def _output(text: str) -> Path:
    path = Path(text)
    if path.suffix not in WRITERS:
        raise argparse.ArgumentTypeError(f"{text}: ends in none of {', '.join(WRITERS)}")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: a folder")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: no folder {path.parent}")
    return path


def folder(text: str) -> Path:
    if os.path.lexists(text) and not os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"{text}: not a folder")
    return Path(text)


def _count(text: str) -> int:
    return int(number(text, int, 1, 1_000_000))


def _pixels(text: str) -> float:
    return number(text, float, 0, 1_000_000)


def _share(text: str) -> float:
    return number(text, float, 0, 1)


def number(text: str, kind: type, least: float, most: float) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not least <= value <= most:
        raise argparse.ArgumentTypeError(
            f"{text}: not {'a whole number' if kind is int else 'a number'} of {least:,} to {most:,}"
        )
    return value
