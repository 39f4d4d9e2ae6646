"""Videos for the page: read one, draw the faces into it, and tell what was seen so far while it is read."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

from mien.demo.show import problem
from mien.demo.timeline import reading, timeline
from mien.errors import MienError, ReadError
from mien.reader import Reader
from mien.video import AnnotatedVideo, Summary, Video, read_video

_OFTEN = 1.0  # seconds between two looks at what was read so far


class Clips:
    """Reads videos, one for each session at a time."""

    def __init__(self, reader: Reader):
        self.reader = reader
        self._running: dict[str, tuple[threading.Event, Path]] = {}  # by session: asked to stop; what was drawn

    def read(self, session: str, source: Path, name: str, drawn: Path) -> Iterator[tuple[str, bool]]:
        """HTML that shows what was seen so far, again and again, each time with whether that is the end.

        session: whose video it is.
        source: the video, which is deleted at the end.
        name: what the video was called.
        drawn: where an MP4 of it lies at the end; nothing is drawn where nothing could be read. An earlier one of this
            session is deleted.

        A video that is forgotten meanwhile stops without an end.
        """
        self.forget(session)
        stop = threading.Event()
        self._running[session] = stop, drawn
        summary, last, fault = Summary(self.reader.classifier.labels, self.reader.classifier.outputs[1:]), 0.0, ""
        summary.begin(name)
        shown = time.monotonic()
        try:
            video = Video(source)
            with AnnotatedVideo(drawn, video) as written:
                wanted = {"images": True, "sound": True, "thumbnails": True}
                frames = read_video(video, self.reader, track=True, **wanted, stop=stop.is_set)
                try:
                    for frame in frames:
                        written.write(frame)
                        summary.add(frame)
                        last = frame.time
                        if time.monotonic() - shown > _OFTEN:
                            shown = time.monotonic()
                            seen = timeline(summary, video.duration or last or 1) if summary.people else ""
                            yield reading(last, video.duration) + seen, False
                except ReadError as error:  # the rest cannot be read: what could be is kept
                    fault = problem(f"{name}: {error.reason}")
            if not self._wanted(session, stop):
                return
            summary.end()
            end = max([video.duration or 0, last, *(person.last for person in summary.people)])
            yield fault + timeline(summary, end or 1), True
        except MienError as error:
            yield problem(f"{name}: {error.reason}" if isinstance(error, ReadError) else error), True
        finally:
            source.unlink(missing_ok=True)
            if not self._wanted(session, stop):
                drawn.unlink(missing_ok=True)

    def _wanted(self, session: str, stop: threading.Event) -> bool:
        return self._running.get(session, (None,))[0] is stop

    def stop(self, session: str) -> None:
        """Read no further; what was read so far still comes."""
        if session in self._running:
            self._running[session][0].set()

    def forget(self, session: str) -> None:
        """Stop, and delete what was drawn."""
        self.stop(session)
        if session in self._running:
            self._running.pop(session)[1].unlink(missing_ok=True)
