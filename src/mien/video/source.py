"""Open a video, a camera or a stream, and take its frames, upright and with their times."""

import os
import queue
import re
import stat
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np

from mien.data.video import upright
from mien.errors import MienWarning, ReadError, require
from mien.faces.picture import MAX_PIXELS
from mien.faces.video import SCHEMES, camera, scheme

_CAMERAS = {"darwin": "avfoundation", "win32": "dshow"}  # by what ffmpeg reads them, elsewhere v4l2
_LIVE = SCHEMES - {"tcp", "http", "https"}  # what does not wait for those who are slow
_AHEAD = 4  # frames decoded before they are asked for
_GAP = 60  # seconds without a frame that are reported
_SILENCE = 10  # seconds without a word after which a stream is given up


class Every:
    """Which frames are due: every N-th, or the first of every so many seconds.

    what: N, or "N", or a number of seconds, such as "0.5s".

    Raises ValueError for anything else.
    """

    def __init__(self, what: int | str):
        found = re.fullmatch(r"(\d+)|(\d+(?:\.\d*)?|\.\d+)s", str(what))
        self.step = float(found[1] or found[2]) if found else 0
        if not 0 < self.step < 1e9:
            raise ValueError(f'{what}: neither a number of frames, such as 5, nor of seconds, such as "0.5s"')
        self.counts, self._next = bool(found[1]), 0.0

    def due(self, number: int, time: float) -> bool:
        """Whether this frame is; asked of each once, in order."""
        at = number if self.counts else time + 1e-6  # 0.6 may be a little less than thrice 0.2
        if self._next - self.step <= at < self._next:
            return False
        self._next = (at // self.step + 1) * self.step
        return True


@dataclass(frozen=True, slots=True, eq=False)
class DecodedFrame:
    """A frame as it was decoded.

    number: from 0.
    time: in seconds.
    pts: in ticks of the video's time base.
    image: (H, W, 3) uint8 RGB, upright.
    sound: packets of PyAV's, of the audio that came in since the last picture.
    """

    number: int
    time: float
    pts: int
    image: np.ndarray
    sound: tuple[Any, ...] = ()


@dataclass(slots=True)
class _State:
    """Of reading: audio not handed over yet, where the packets end, in seconds, and what went wrong."""

    heard: list[Any] = field(default_factory=list)
    end: Fraction = Fraction(0)
    begun: bool = False
    damaged: int = 0
    error: Exception | None = None


class Video:
    """An open video, also as a context; its pictures can be taken once.

    source: a file, the number of a camera (0 is /dev/video0 on Linux), or an address that ffmpeg can open.

    Its attributes:

        name       the source as text, without a password
        live       whether it goes on while nobody looks, so that who is slow misses frames
        duration   in seconds, None where nobody knows
        time_base  of the pictures' pts, in seconds
        audio      PyAV's first audio stream, or None
        rest       once the pictures are taken, the sound after the last one
        start      what is taken off their times, in seconds, once there is one

    Times are those of the file, pts × time base, counted from where the file begins, as players count; a live source
    begins with its first frame. A file is opened without the network, whatever it refers to.

    Raises ReadError for what is no video, MissingExtra without PyAV.
    """

    def __init__(self, source: str | os.PathLike[str] | int):
        source = os.fspath(source) if not isinstance(source, int) else str(source)
        self.name = re.sub("^(\\w+://)[^/]*@", r"\1", source)  # without a password
        av = require("av", "video")
        self._errors = av.FFmpegError
        device, kind = camera(source), scheme(source)
        self.live = device is not None or kind in _LIVE
        try:
            if device:
                self._container = av.open(device, format=_CAMERAS.get(sys.platform, "v4l2"))
            elif kind:
                options = {"rtsp_flags": "prefer_tcp"} if kind.startswith("rtsp") else {}
                self._container = av.open(source, container_options=options, timeout=_SILENCE)
            else:
                _check(source)
                path = f"file:{source}"  # a colon in a name is no protocol
                self._container = av.open(path, container_options={"protocol_whitelist": "file"})
        except (self._errors, OSError, ValueError) as error:
            raise ReadError(self.name, _reason(error)) from error
        try:
            self._stream = self._choose()
        except ReadError:
            self._container.close()
            raise
        self._stream.thread_type = "SLICE" if self.live else "AUTO"  # frames side by side come late
        self.time_base: Fraction = self._stream.time_base
        self.audio = self._container.streams.audio[0] if self._container.streams.audio else None
        length = self._container.duration
        self.rest: tuple[Any, ...] = ()
        self.start = Fraction(0)
        self._thread: threading.Thread | None = None
        self.duration = None if self.live or not length or length < 0 else length / 1_000_000

    def pictures(
        self, every: Every | None = None, *, sound: bool = False, stop: Callable[[], bool] = lambda: False
    ) -> Iterator[DecodedFrame]:
        """The frames that are due, in the order in which they are shown; decoded ahead in a thread of their own.

        sound: hand over the packets of `audio`, too. stop: asked several times a second; true ends the video.

        Raises ReadError where the rest cannot be read, after all that could. A packet that cannot be decoded is passed
        over, as players do; at the end a ReadError counts them.
        """
        ahead: queue.Queue[DecodedFrame | BaseException | None] = queue.Queue(_AHEAD)
        gone = threading.Event()
        work = (every or Every(1), sound, ahead, gone)
        self._thread = thread = threading.Thread(target=self._run, args=work, daemon=True)
        thread.start()
        try:
            while not stop():
                try:
                    item = ahead.get(timeout=0.1)
                except queue.Empty:
                    continue
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    return
                yield item
        finally:
            gone.set()
            thread.join(2)

    def close(self) -> None:
        """Let go of the file; what was handed out of its sound, and `audio`, must not be used after that."""
        if self._thread is None or not self._thread.is_alive():
            self._container.close()  # a thread that waits for a camera or a server is left to

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _choose(self) -> Any:
        from av.stream import Discard, Disposition

        streams = [s for s in self._container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise ReadError(self.name, "sound only" if self._container.streams.audio else "no pictures in it")
        stream = next((s for s in streams if s.disposition & Disposition.default), streams[0])
        others = [other for other in streams if other is not stream]
        for other in others:
            other.discard = Discard.all
        if others:
            left = ", ".join(f"stream {other.index}, {other.width}×{other.height}" for other in others)
            warnings.warn(f"{self.name}: only its default video stream is read, not {left}", MienWarning, 3)
        if stream.codec_context is None:
            raise ReadError(self.name, "damaged, or of a kind that cannot be decoded")
        if stream.width * stream.height > MAX_PIXELS:
            size = f"{stream.width}×{stream.height}"
            raise ReadError(self.name, f"{size}, more than {MAX_PIXELS // 10**6} million pixels")
        return stream

    def _run(self, every: Every, sound: bool, ahead: queue.Queue, gone: threading.Event) -> None:
        """The thread: puts pictures, then None or an error."""

        def put(item: Any) -> None:
            waiting = True
            while waiting and not gone.is_set():
                with suppress(queue.Full):
                    ahead.put(item, timeout=0.1)
                    waiting = False

        try:
            for make in self._frames(every, sound, gone):
                if not self.live or not ahead.full():
                    put(make())
            put(None)
        except BaseException as error:  # of whatever kind: who takes the pictures is to know
            put(error)

    def _frames(self, every: Every, sound: bool, gone: threading.Event) -> Iterator[Callable[[], DecodedFrame]]:
        """Makers of the pictures that are due: what is not made is not converted."""
        step = 1 / (self._stream.average_rate or self._stream.guessed_rate or 25)
        start, last, number = self._start(), None, 0
        state = _State()
        back, gaps = 0, []

        def make(frame: Any, number: int, time: float, pts: int) -> DecodedFrame:
            if frame.width * frame.height > MAX_PIXELS:
                raise ReadError(self.name, f"becomes {frame.width}×{frame.height} pixels large at {time:.1f} seconds")
            image, heard = upright(frame), tuple(state.heard)
            state.heard.clear()
            return DecodedFrame(number, time, pts, image, heard)

        for frames in self._decode(state, sound, gone):
            for frame in frames:
                pts = frame.pts if frame.pts is not None else frame.dts
                at = (0 if last is None else last + step) if pts is None else pts * self.time_base
                start = self.start = at if start is None else start
                if last is not None:
                    back += at <= last
                    gaps += [(float(last - start), float(at - start))] if at - last > _GAP else []
                last, time = at, float(at - start)
                if every.due(number, time):
                    yield partial(make, frame, number, time, round((at - start) / self.time_base))
                number += 1
        self.rest = tuple(state.heard)
        if back:
            what = f"{back:,} frames have times" if back > 1 else "a frame has a time"
            self._warn(f"{what} not later than the one before: people are numbered anew where time goes back")
        if gaps:
            more = f", and {len(gaps) - 1:,} gaps more of over {_GAP} seconds" if gaps[1:] else ""
            self._warn(f"no frame from {gaps[0][0]:.1f} to {gaps[0][1]:.1f} seconds{more}")
        end = float(state.end - (start or 0))
        if state.error and number:
            what = f"ended ({_reason(state.error)})" if self.live else "damaged or cut short"
            raise ReadError(self.name, f"{what} after {end:.1f} seconds") from state.error
        if state.error:
            raise ReadError(self.name, _reason(state.error)) from state.error
        if state.damaged:
            many = f"{state.damaged:,} frames" if state.damaged > 1 else "a frame"
            raise ReadError(self.name, f"damaged: {many} could not be decoded")
        if not number and not gone.is_set():
            raise ReadError(self.name, "damaged or cut short" if self.duration else "no pictures in it")
        own = self._stream.duration
        length = float(own * self.time_base) if own else self.duration or 0
        if not self.live and not gone.is_set() and length - end > max(0.5, length / 50):
            raise ReadError(self.name, f"cut short after {end:.1f} of {length:.1f} seconds")

    def _warn(self, what: str) -> None:
        warnings.warn(f"{self.name}: {what}", MienWarning, 3)

    def _decode(self, state: "_State", sound: bool, gone: threading.Event) -> Iterator[list[Any]]:
        """The frames of each packet, up to what the decoder holds back when no more can be read."""
        try:
            for packet in self._container.demux(self._stream, *([self.audio] if self.audio else [])):
                if gone.is_set():
                    return
                if packet.pts is not None:
                    state.end = max(state.end, (packet.pts + (packet.duration or 0)) * packet.time_base)
                if packet.stream is not self._stream:
                    if sound and packet.dts is not None:
                        state.heard.append(packet)
                    continue
                try:
                    frames = packet.decode()
                except self._errors:
                    state.damaged += state.begun or not self.live  # a stream is joined anywhere
                    continue
                state.begun |= bool(frames)
                yield frames
        except self._errors as error:
            state.error = error
            with suppress(self._errors):
                yield self._stream.codec_context.decode(None)

    def _start(self) -> Fraction | None:
        """Where time is 0, in seconds of the pts; None where the first frame says it."""
        begin = self._container.start_time
        if self.live or begin is None:
            return None
        begin = Fraction(begin, 1_000_000)  # rounded, unlike that of the stream that begins first
        exact = [s.start_time * s.time_base for s in self._container.streams if s.start_time is not None]
        return min([*exact, begin], key=lambda start: (abs(start - begin) > Fraction(1, 500_000), start == begin))


def _check(path: str) -> None:
    """Say what is wrong with a file before ffmpeg says it in its own words."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ReadError(path, "no such file") from error
    if stat.S_ISDIR(found.st_mode):
        raise ReadError(path, "a folder, not a video")
    if not stat.S_ISREG(found.st_mode):
        raise ReadError(path, "not a file")
    if not found.st_size:
        raise ReadError(path, "an empty file")


def _reason(error: Exception) -> str:
    av = require("av", "video")
    if isinstance(error, av.InvalidDataError):
        return "damaged, or no video"
    if isinstance(error, av.ExitError):
        return f"silent for {_SILENCE} seconds"
    if isinstance(error, FileNotFoundError):
        return "no such camera or address"
    return (getattr(error, "strerror", None) or str(error)).lower()
