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

from mien.commands.annotate import Copies
from mien.commands.options import (
    add_reading_arguments,
    change,
    drawing_place,
    duration,
    events_file,
    every,
    folder,
    reading_options,
    share,
    smoothing,
    summary_file,
    table_file,
)
from mien.commands.reference import Reference, say_by
from mien.commands.rows import WRITERS, JsonLinesWriter, Writer
from mien.commands.terminal import Changes, Progress, TerminalTable, counted
from mien.commands.window import ViewWindow
from mien.console import printable
from mien.errors import ReadError, require
from mien.faces import VIDEO_SUFFIXES, find_pictures, is_video
from mien.faces.record import picture_records
from mien.faces.sources import is_address, is_zip
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
        "--raw",
        action="store_true",
        help="leave text in a .csv as it is; else an apostrophe stands before what a spreadsheet would compute",
    )
    parser.add_argument(
        "--annotate",
        type=drawing_place,
        metavar="DIR",
        help="draw the faces into copies of the pictures and videos; of one video, FILE.mp4 will do, too",
    )
    parser.add_argument(
        "--reference",
        metavar="PICTURE",
        help="of the same person with a neutral face: adds to each face its change, how much larger the log-odds of "
        "every expression are than there",
    )
    parser.add_argument("--crops", type=folder, metavar="DIR", help="write each face, cut out, as a .png file")
    parser.add_argument(
        "--blur", type=folder, metavar="DIR", help="write copies of the pictures in which the found faces are hidden"
    )
    videos = parser.add_argument_group("videos, cameras and streams")
    videos.add_argument("--video", action="store_true", help="take the sources for videos, whatever they are called")
    videos.add_argument(
        "--show", action="store_true", help="show each frame in a window, its faces drawn in; q, or closing it, ends it"
    )
    videos.add_argument(
        "--every", type=every, metavar="N|Ns", help="read every N-th frame, or with 0.5s one each half second"
    )
    videos.add_argument(
        "--track", action="store_true", help="number the people, look for them faster, and smooth their probabilities"
    )
    videos.add_argument(
        "--smooth",
        type=smoothing,
        metavar="SECONDS",
        help="time constant of that smoothing, 0 for none (default: 0.5), or temporal for the model's own network",
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
    videos.add_argument(
        "--events",
        type=events_file,
        metavar="FILE.csv",
        help="with --track: write a .csv with when each expression began, was strongest and ended",
    )
    videos.add_argument(
        "--event-onset",
        type=share,
        metavar="PROB",
        help="the probability that an expression has to reach (default: 0.6)",
    )
    videos.add_argument(
        "--event-offset",
        type=share,
        metavar="PROB",
        help="the probability below which it has ended, or not begun yet (default: 0.4)",
    )
    videos.add_argument(
        "--min-track",
        type=duration,
        metavar="Ns",
        help="leave people seen for less out of summary, timeline and events, not out of rows (default: 0.5s)",
    )
    videos.add_argument(
        "--cuts",
        type=change,
        metavar="CHANGE",
        help="how much of 255 a frame differs from the one before where another scene begins, and tracks end; off for "
        "none (default: 10)",
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
    copies = Copies(args, sources, films, set(args.source))
    sources, films = copies.sources, films & set(copies.sources)
    moving = bool(films)
    if moving:
        require("av", "video")
        if args.summary:
            require("matplotlib.figure", "video")
    _check(args, moving)
    window = ViewWindow() if args.show else None
    written = {"summary": [args.summary, args.summary.with_suffix(".png")] if args.summary else []}
    written["events"] = [args.events] if args.events else []
    for option, files in written.items():
        if lost := set(map(os.path.realpath, sources)) & set(map(os.path.realpath, files)):
            args.misuse(f"--{option} would overwrite {min(lost)}, which is to be read")
    others = [*written["summary"], *filter(None, [args.output])]
    if args.events and os.path.realpath(args.events) in map(os.path.realpath, others):
        args.misuse(f"--events would overwrite {args.events}, which is to be written, too")
    if args.reference and os.path.realpath(args.reference) in map(os.path.realpath, [*others, *written["events"]]):
        args.misuse(f"{args.reference} is to be read as the reference, and would be overwritten")

    reader = Reader.from_pretrained(**reading_options(args))
    outputs = reader.outputs
    copies.begin()
    counts = Counter(error=sum(error.rows for error in missed))
    with ExitStack() as stack:
        if window:
            stack.callback(window.close)
        bar = stack.enter_context(closing(Progress(len(sources))))
        say = say_by(lambda line: bar.write(line, file=sys.stderr))
        reference = Reference(reader, args.reference, say) if args.reference else None
        reels = None
        if moving:
            from mien.commands.film import Films

            reels = stack.enter_context(Films(args, reader, bar, counts, reference, window))
        if args.output:
            options = {"raw": args.raw, "change": reference is not None}
            writer = WRITERS[args.output.suffix](stack.enter_context(whole(args.output)), outputs, moving, **options)
        elif sys.stdout.isatty():
            writer = (Changes if moving else TerminalTable)(bar, sources, outputs, reader.doubt)
        else:
            writer = JsonLinesWriter(sys.stdout.buffer, outputs)
        if reference:
            writer = reference.into(writer)
        stack.enter_context(closing(writer))
        for note in [*notes, *map(str, missed)]:
            bar.write(f"mien: {printable(note)}", file=sys.stderr)
        for is_film, group in groupby(range(len(sources)), lambda number: sources[number] in films):
            numbers = list(group)
            if is_film:
                reels.read([(sources[number], copies.drawings[number]) for number in numbers], writer)
            else:
                _read_pictures(
                    numbers, args, reader, writer, bar, counts, copies, reels.interrupted if reels else lambda: False
                )
        if reels:
            reels.summarise()
    if args.output:
        print(f"{args.output}: {counted(counts['face'], 'face')} in {_read_text(counts)}")
    elif isinstance(writer, TerminalTable) and not moving and len(sources) > 1:
        shown = f": {writer.totals()}" if counts["face"] else ""
        print(f"{counted(counts['face'], 'face')} in {_read_text(counts)}{shown}")
    if args.output or sys.stdout.isatty():
        for line in copies.lines(counts):
            print(line)
    if args.blur and (unhidden := counts["picture"] - counts["blurred picture"]):
        what = counted(unhidden, "picture")
        print(
            f"mien: {args.blur}: without {what} in which no face was found: look whether somebody is", file=sys.stderr
        )
    if reels and reels.signal:
        return reels.end()
    return 1 if counts["error"] else 0


def find_sources(named: Sequence[str], video: bool = False) -> tuple[list[str], list[str], list[ReadError]]:
    """The pictures and videos that are named, in order; notes on videos that are not read; and what else is not.

    A folder, and a glob that spells no ending, means its pictures where there are any, and else its videos.

    video: files are videos, whatever they are called; folders and globs mean their videos.
    """
    sources: list[str] = []
    notes: list[str] = []
    missed: list[ReadError] = []
    for name in named:
        if is_address(name) or (is_video(name) and not name.lower().startswith("file://")):
            sources.append(name)
            continue
        errors: list[ReadError] = []
        found = find_pictures(name, VIDEO_SUFFIXES if video else None, missed=errors)
        several = found != [name] or os.path.isdir(name) or (glob.has_magic(name) and not os.path.lexists(name))
        if several and not video and not is_zip(name):
            videos = find_pictures(name, VIDEO_SUFFIXES)
            if videos != [name] and found in ([name], []):
                found = videos
            elif passed := len(set(videos) - set(found) - {name}):
                what = "a video" if passed == 1 else f"{passed:,} videos"
                notes.append(f"{name}: {what} beside the pictures not read; name them to have them read")
        sources += found
        missed += errors
    return sources, notes, missed


def _check(args: argparse.Namespace, moving: bool) -> None:
    """Options that say nothing here."""
    tracked = ("smooth", "detect_every", "summary", "events", "event_onset", "event_offset", "min_track", "cuts")
    for option in ("every", "track", "show", *tracked):
        name = f"--{option.replace('_', '-')}"
        given = getattr(args, option) not in (None, False)
        if given and not moving:
            args.misuse(f"{name} is for videos, and none is to be read")
        if given and not args.track and option in tracked:
            args.misuse(f"{name} needs --track")
    if moving:
        from mien.video.events import OFFSET, ONSET

        onset = ONSET if args.event_onset is None else args.event_onset
        offset = OFFSET if args.event_offset is None else args.event_offset
        if not 0 < offset <= onset:
            args.misuse(f"--event-offset {offset:g}: not above 0 and up to --event-onset, {onset:g}")


def _read_pictures(
    numbers: Sequence[int],
    args: argparse.Namespace,
    reader: Reader,
    writer: Writer,
    bar: "Progress",
    counts: Counter[str],
    copies: Copies,
    stop: Callable[[], bool],
) -> None:
    """Read the sources with these numbers."""
    bar.begin(len(numbers))
    sources = [copies.sources[number] for number in numbers]
    keep = {"keep": True} if copies.wanted else {}
    with closing(reader.read_many(sources, batch_size=args.batch_size, **keep)) as answers:
        for number, source, faces in zip(numbers, sources, answers, strict=True):
            try:
                if isinstance(faces, ReadError):
                    raise faces
                counts.update(copies.write(number, faces))
            except ReadError as error:
                bar.write(f"mien: {printable(str(error))}", file=sys.stderr)
                counts["error"] += 1
            else:
                for record in picture_records(source, faces):
                    writer.write(record)
                counts["face"] += len(faces)
                counts["picture"] += 1
            bar.update()
            if stop():
                return


def _read_text(counts: Counter[str]) -> str:
    """What was read, and how much was not."""
    parts = []
    if counts["picture"] or not counts["video"]:
        parts.append(counted(counts["picture"], "picture"))
    if counts["video"]:
        parts.append(f"{counted(counts['frame'], 'frame')} of {counted(counts['video'], 'video')}")
    unread = f", {counts['error']} could not be read{' to the end' * bool(counts['video'])}" if counts["error"] else ""
    return " and ".join(parts) + unread
