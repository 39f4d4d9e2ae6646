"""`mien read`: the expressions of the faces in pictures and videos, as a table, as JSON Lines, or in a file."""

import argparse
import glob
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from itertools import groupby
from pathlib import Path

from mien.commands.options import (
    add_reading_arguments,
    drawing_place,
    every,
    reading_options,
    seconds,
    summary_file,
    table_file,
)
from mien.commands.rows import WRITERS, JsonLinesWriter, Writer
from mien.commands.terminal import Changes, Progress, Table, printable
from mien.errors import ReadError, require
from mien.faces import VIDEO_SUFFIXES, find_pictures, is_video, open_picture
from mien.faces.record import no_face, record
from mien.files import whole
from mien.reader import Reader


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(misuse=parser.error)
    parser.add_argument(
        "source",
        nargs="+",
        metavar="SOURCE",
        help="a picture, a video, a folder, a glob, a zip of pictures, - for a picture on stdin, 0 for a camera, or an "
        "address such as https://…/photo.jpg or rtsp://…",
    )
    add_reading_arguments(parser)
    parser.add_argument(
        "--output", type=table_file, metavar="FILE", help="write a .csv, .jsonl or .parquet file instead"
    )
    parser.add_argument(
        "--annotate",
        type=drawing_place,
        metavar="DIR",
        help="draw the faces into copies of the pictures and videos; of one video, FILE.mp4 will do, too",
    )
    videos = parser.add_argument_group("videos, cameras and streams")
    videos.add_argument("--video", action="store_true", help="take the sources for videos, whatever they are called")
    videos.add_argument(
        "--every", type=every, metavar="N|Ns", help="read every N-th frame, or with 0.5s one each half second"
    )
    videos.add_argument(
        "--track", action="store_true", help="number the people, look for them faster, and smooth their probabilities"
    )
    videos.add_argument(
        "--smooth", type=seconds, metavar="SECONDS", help="time constant of that smoothing, 0 for none (default: 0.5)"
    )
    videos.add_argument(
        "--detect-every",
        type=every,
        metavar="N|Ns",
        help="how often, while tracking, the whole frame is searched for faces (default: 0.2s)",
    )
    videos.add_argument(
        "--summary",
        type=summary_file,
        metavar="FILE",
        help="with --track: write a .json or .csv with a line a person, and a timeline beside it as .png",
    )


def begin() -> None:
    """What a command does first that reads strangers' pictures and writes files."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or a half-written file would stay


def run(args: argparse.Namespace) -> int:
    """Read the sources; 1 if one of them could not be, 128 and the signal's number if one ended a video."""
    begin()
    if args.output and args.output.suffix == ".parquet":
        require("pyarrow.parquet", "parquet")
    sources, notes, missed = find_sources(args.source, args.video)
    films = set(sources) if args.video else set(filter(is_video, sources))
    moving = bool(films)
    if moving:
        require("av", "video")
        if args.summary:
            require("matplotlib.figure", "video")
    _check(args, moving)
    drawings: Sequence[Path | None] = [None] * len(sources)  # where each is drawn
    if args.annotate:
        from mien.commands.annotate import annotated_names

        if args.annotate.suffix == ".mp4" and not args.annotate.is_dir():
            drawings = [args.annotate]
            if len(sources) > 1 or not moving:
                args.misuse(f"--annotate {args.annotate}: for one video, and not for what is to be read")
        else:
            sources = outside(args.annotate, sources, set(args.source))
            drawings = annotated_names(args.annotate, sources)
    timeline = args.summary and args.summary.with_suffix(".png")
    for option, paths in (("--annotate", drawings), ("--summary", [args.summary, timeline])):
        if lost := set(map(os.path.realpath, sources)) & {os.path.realpath(path) for path in paths if path}:
            args.misuse(f"{option} would overwrite {min(lost)}, which is to be read")

    reader = Reader.from_pretrained(**reading_options(args))
    labels = reader.classifier.labels
    if args.annotate and drawings != [args.annotate]:
        args.annotate.mkdir(parents=True, exist_ok=True)
    counts = Counter()
    with ExitStack() as stack:
        bar = stack.enter_context(closing(Progress(len(sources))))
        films = None
        if moving:
            from mien.commands.film import Films

            films = stack.enter_context(Films(args, reader, bar, counts))
        if args.output:
            writer = WRITERS[args.output.suffix](stack.enter_context(whole(args.output)), labels, moving)
        elif sys.stdout.isatty():
            writer = (Changes if moving else Table)(bar, sources, labels)
        else:
            writer = JsonLinesWriter(sys.stdout.buffer, labels)
        stack.enter_context(closing(writer))
        for note in notes:
            bar.write(f"mien: {printable(note)}", file=sys.stderr)
        pairs = zip(sources, drawings, strict=True)
        for is_film, group in groupby(pairs, lambda pair: is_video(pair[0])):
            if is_film:
                films.read(list(group), writer)
            else:
                _read_pictures(list(group), args, reader, writer, bar, counts, films.stop if films else lambda: False)
        if films:
            films.summarise()
    if args.output:
        print(f"{args.output}: {_counted(counts['face'], 'face')} in {_said(counts)}")
    if args.annotate and (args.output or sys.stdout.isatty()):
        print(f"{args.annotate}: {_counted(counts['drawing'], 'drawing')}")
    if films and films.signal:
        return films.end()
    return 1 if counts["error"] else 0


def find_sources(named: Sequence[str]) -> tuple[list[str], list[str]]:
    """The pictures and videos that are named, in order, and what is to be told of those that are not read.

    A folder, and a glob that spells no ending, means its pictures where there are any, and else its videos.
    """
    sources: list[str] = []
    notes: list[str] = []
    for name in named:
        found = [name] if is_video(name) else find_pictures(name)
        if os.path.isdir(name) or found != [name]:
            videos = find_pictures(name, VIDEO_SUFFIXES)
            if videos != [name] and found == [name]:
                found = videos
            elif passed := len(set(videos) - set(found) - {name}):
                what = "a video" if passed == 1 else f"{passed:,} videos"
                notes.append(f"{name}: {what} beside the pictures not read; name them to have them read")
        elif glob.has_magic(name) and not os.path.lexists(name) and not is_video(name):
            found = find_pictures(name, VIDEO_SUFFIXES)
        sources += found
    return sources, notes


def _check(args: argparse.Namespace, moving: bool) -> None:
    """Options that say nothing here."""
    for option in ("every", "track", "smooth", "detect_every", "summary"):
        name = f"--{option.replace('_', '-')}"
        given = getattr(args, option) not in (None, False)
        if given and not moving:
            args.misuse(f"{name} is for videos, and none is to be read")
        if given and not args.track and option in ("smooth", "detect_every", "summary"):
            args.misuse(f"{name} needs --track")


def _read_pictures(
    pairs: Sequence[tuple[str, Path | None]],
    args: argparse.Namespace,
    reader: Reader,
    writer: Writer,
    bar: "Progress",
    counts: Counter[str],
    stop: Callable[[], bool],
) -> None:
    bar.begin(len(pairs))
    pictures = [source for source, _ in pairs]
    with closing(reader.read_many(pictures, batch_size=args.batch_size)) as answers:
        for (source, drawing), faces in zip(pairs, answers, strict=True):
            try:
                if isinstance(faces, ReadError):
                    raise faces
                if drawing and faces:
                    from mien.commands.annotate import annotate

                    annotate(open_picture(source), faces, drawing)
                    counts["drawing"] += 1
            except ReadError as error:
                bar.write(f"mien: {printable(str(error))}", file=sys.stderr)
                counts["error"] += 1
            else:
                for index, face in enumerate(faces):
                    writer.write(record(source, index, face))
                if not faces:
                    writer.write(no_face(source, "no face found"))
                counts["face"] += len(faces)
                counts["picture"] += 1
            bar.update()
            if stop():
                return


def _said(counts: Counter[str]) -> str:
    """What was read, and how much was not."""
    said = []
    if counts["picture"] or not counts["video"]:
        said.append(_counted(counts["picture"], "picture"))
    if counts["video"]:
        said.append(f"{_counted(counts['frame'], 'frame')} of {_counted(counts['video'], 'video')}")
    unread = f", {counts['error']} could not be read{' to the end' * bool(counts['video'])}" if counts["error"] else ""
    return " and ".join(said) + unread


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def outside(drawn: Path, pictures: Sequence[str], named: set[str]) -> list[str]:
    """The pictures without those that an earlier run has drawn into the folder, unless they were named themselves."""
    inside = os.path.join(os.path.realpath(drawn), "")
    return [name for name in pictures if name in named or not os.path.realpath(name).startswith(inside)]
