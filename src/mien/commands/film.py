"""The videos of `mien read`: read one after the other, until a signal ends it, or the window is closed."""

import argparse
import signal
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

from mien.commands.reference import Reference
from mien.commands.rows import Writer
from mien.commands.terminal import Progress, counted, people_table
from mien.commands.window import ViewWindow
from mien.console import interrupted, printable
from mien.errors import ReadError
from mien.files import whole
from mien.reader import Reader
from mien.video import AnnotatedVideo, Summary, Video, read_video, video_records
from mien.video.encode import draw_frame
from mien.video.events import write_events
from mien.video.timeline import plot


class Films:
    """Reads videos into a writer, a summary and drawings.

    While it is open as a context, the first SIGINT or SIGTERM only sets `signal`: what was read until then is written
    in whole files, and the command ends as one that was interrupted. A second SIGINT ends it at once.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        reader: Reader,
        bar: Progress,
        counts: Counter[str],
        reference: Reference | None = None,
        window: ViewWindow | None = None,
    ):
        self._window = window
        self._args, self._reader, self._bar, self._counts = args, reader, bar, counts
        self._summary = None
        if args.track and (args.summary or args.events or sys.stdout.isatty()):
            given = {"min_seconds": args.min_track, "onset": args.event_onset, "offset": args.event_offset}
            options = {name: value for name, value in given.items() if value is not None}
            options["change"] = reference.change if reference else None
            self._summary = Summary(reader.classifier.labels, reader.outputs[1:], **options)
        self._before: dict[int, Any] = {}
        self.signal = 0

    def __enter__(self) -> "Films":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as of a shell's background job
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _: Any) -> None:
        if self.signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def interrupted(self) -> bool:
        return bool(self.signal)

    def stop(self) -> bool:
        if self._window:
            self._window.look()
        return self.interrupted() or (self._window is not None and self._window.closed)

    def end(self) -> int:
        """The exit code after a signal."""
        if self.signal == signal.SIGINT:
            interrupted()
        return 128 + self.signal

    def read(self, pairs: Sequence[tuple[str, Path | None]], writer: Writer) -> None:
        """Each source, and the file into which it is drawn."""
        for number, (source, drawing) in enumerate(pairs):
            if self.stop():
                if not self.signal:
                    left = counted(len(pairs) - number, "more video")
                    self._bar.write(f"mien: the window was closed: {left} not read", file=sys.stderr)
                return
            self._counts["video"] += 1
            try:
                video = self._open(source)
                if video is not None:
                    with video:
                        self._read(video, drawing, writer)
            except ReadError as error:
                self._bar.write(f"mien: {printable(str(error))}", file=sys.stderr)
                self._counts["error"] += 1

    def _open(self, source: str) -> Video | None:
        """In a thread, since a server may be long in answering; None after a signal."""
        opened: list[Video | BaseException] = []

        def work() -> None:
            try:
                opened.append(Video(source))
            except BaseException as error:  # raised where it is waited for
                opened.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        while thread.is_alive() and not self.stop():
            thread.join(0.1)
        if opened and isinstance(opened[0], BaseException):
            raise opened[0]
        return opened[0] if opened else None

    def _read(self, video: Video, drawing: Path | None, writer: Writer) -> None:
        args, bar, window = self._args, self._bar, self._window
        bar.begin(video.duration, video.name)
        if self._summary:
            self._summary.begin(video.name)
        options = {"smooth": args.smooth, "detect_every": args.detect_every, "every": args.every, "cuts": args.cuts}
        frames = read_video(
            video,
            self._reader,
            track=args.track,
            images=drawing is not None or window is not None,
            sound=drawing is not None,
            thumbnails=args.summary is not None,
            batch_size=1 if window else args.batch_size,  # a frame is shown when it was read
            stop=self.stop,
            **{name: value for name, value in options.items() if value is not None},
        )
        failed = None
        if window:
            window.begin(video.name)
        with AnnotatedVideo(drawing, video) if drawing else nullcontext() as drawn:
            try:
                for frame in frames:
                    for record in video_records(video.name, frame):
                        writer.write(record)
                    if video.live and not args.output:
                        sys.stdout.flush()
                    if drawn:
                        drawn.write(frame)
                    if window:
                        window.show(draw_frame(frame), None if video.live else frame.time)
                    if self._summary:
                        self._summary.add(frame)
                    self._counts["frame"] += 1
                    self._counts["face"] += len(frame.faces)
                    bar.update(frame.time)
            except ReadError as error:
                failed = error
        if window and window.closed and not (self.signal or video.live):
            self._bar.write(f"mien: {printable(video.name)}: read until the window was closed", file=sys.stderr)
        if drawn and drawn.frames:
            self._counts["drawing"] += 1
        if self._summary:
            self._summary.end()
            if sys.stdout.isatty() and (rows := self._summary.rows(video.name)):
                self._bar.write("\n".join(["", *map(printable, people_table(rows)), ""]))
        if failed:
            raise failed

    def summarise(self) -> None:
        """Write what was seen of all videos, and say who is left out."""
        summary, args = self._summary, self._args
        if not summary:
            return
        streamed = args.output or sys.stdout.isatty()
        if path := args.summary:
            with whole(path) as file:
                summary.write(file, path.suffix, args.raw)
            picture = path.with_suffix(".png")
            with whole(picture) as file:
                plot(summary, file)
            if streamed:
                people = len(summary.people)
                self._bar.write(f"{path} and {picture}: {people:,} {'person' if people == 1 else 'people'}")
        if args.events:
            events = summary.events()
            with whole(args.events) as file:
                write_events(file, events, len(summary.widths) > 1, args.raw)
            if streamed:
                self._bar.write(f"{args.events}: {counted(len(events), 'event')}")
        if count := summary.flickers:
            who = "a track" if count == 1 else f"{count:,} tracks"
            left = f"{who} of less than {summary.min_seconds:g} s left out of summaries and events (--min-track)"
            self._bar.write(f"mien: {left}", file=sys.stderr)
