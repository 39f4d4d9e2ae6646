"""The faces of a video, frame by frame, with their expressions."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from mien.classifier import Answer
from mien.errors import ReadError
from mien.faces import Face
from mien.faces.measure import Measured
from mien.reader import Reader
from mien.video.cuts import CUT, Cuts
from mien.video.follow import Finder, Follower, Tracked
from mien.video.smooth import Exponential, Smoothing
from mien.video.source import DecodedFrame, Every, Video
from mien.video.temporal import TemporalSmoothing
from mien.video.thumbnails import Thumbnails

_HELD = 16  # frames held back, with their images, until a batch of faces is full


@dataclass(frozen=True, slots=True, eq=False)
class TrackedFace(Face):
    """A face in a video: what `Face` says, and who it is.

    box, score, landmarks, expression, probability, probabilities, rotation, doubtful, outputs, mesh: as of `Face`.
    track: the number of the person, from 1, the same from frame to frame; None without tracking.
    unsmoothed: what the network says of this very frame, where `probabilities` (and `expression` and `probability`) are
        smoothed over time; None without tracking, where nothing is smoothed.
    thumbnail: (64, 64, 3) uint8 RGB, the face and some of what is about it, where thumbnails were asked for and this is
        the best look at that person so far; otherwise None.
    """

    track: int | None
    unsmoothed: dict[str, float] | None
    thumbnail: np.ndarray | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True, eq=False)
class VideoFrame:
    """A frame that was read.

    number: of the frame, from 0, in the order in which they are shown; those passed over are counted, too.
    time: of the frame, in seconds from the video's beginning, as exact as the file is.
    faces: the largest first, or none.
    image: (H, W, 3) uint8 RGB, upright; None where images were not asked for.
    pts: the time in ticks of the video's time base.
    sound: the packets of audio that came before it; () where sound was not asked for.
    width, height: of the frame, in pixels, upright; they may change within a stream.
    cut: whether a scene begins with it, where people are tracked.
    """

    number: int
    time: float
    faces: list[TrackedFace]
    image: np.ndarray | None
    pts: int
    sound: tuple[Any, ...] = ()
    width: int | None = None
    height: int | None = None
    cut: bool = False


def read_video(
    source: str | os.PathLike[str] | int | Video,
    reader: Reader,
    *,
    every: int | str = 1,
    track: bool = False,
    smooth: float | Literal["temporal"] | Smoothing = 0.5,
    detect_every: int | str = "0.2s",
    cuts: float = CUT,
    images: bool = False,
    sound: bool = False,
    thumbnails: bool = False,
    batch_size: int = 32,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[VideoFrame]:
    """Read the faces in a video, in order, as it is decoded: memory does not grow with its length.

    for frame in read_video("clip.mp4", Reader.from_pretrained(), track=True):
        for face in frame.faces:
            print(frame.time, face.track, face.expression, face.probability)

    source: a file, 0 for the first camera, an address such as rtsp://…, or an opened `Video`, which also knows its
        `duration` in seconds.
    reader: finds the faces in a frame and reads them.
    every: read every N-th frame, or with "0.5s" the first of every half second.
    track: number the people, and smooth each one's probabilities.
    smooth: how that is done: exponentially, with a time constant of so many seconds (default 0.5, 0 for not at all),
        whatever the frame rate; by the network that the model's header names ("temporal"); or by a
        `mien.video.smooth.Smoothing`.
    detect_every: how often a tracked video is searched for faces in the whole frame: every so many frames that are
        read, or "0.2s" (default). In every frame between, faces are looked for only about where those known are
        expected, which costs a tenth and still gives each frame its own box and landmarks.
    cuts: how much a frame that is read has to differ from the one before to begin another scene, 0 to 255 (default 10).
        All tracks end there, and smoothing with them. inf: none does. `mien.video.cuts.Cuts` says how that is measured.
    images: give each frame its image.
    sound: hand audio packets through, for `AnnotatedVideo`.
    thumbnails: give faces a thumbnail where they are seen better than before.
    batch_size: how many faces the network reads at a time; of a camera or stream the answer comes frame by frame.
    stop: asked several times a second, from the thread that iterates; once true, what was read so far still comes.

    Raises ReadError for what is no video, at once, and where the rest of one cannot be read, after all frames that
    could; MienError for "temporal" with a model that has no such network; MissingExtra without PyAV; ValueError for
    impossible arguments.
    """
    if batch_size < 1:
        raise ValueError(f"a batch holds at least one face, not {batch_size}")
    if smooth == "temporal" and track:
        smooth = TemporalSmoothing(reader.classifier)
    elif isinstance(smooth, int | float):
        smooth = Exponential(smooth, reader.classifier.outputs)
    due, look = Every(every), Follower(reader, Every(detect_every), Cuts(cuts)) if track else Finder(reader)
    video = source if isinstance(source, Video) else Video(source)
    pictures = video.pictures(due, sound=sound, stop=stop)
    best = Thumbnails() if thumbnails else None
    frames = _read(
        pictures, look, _Joiner(reader, smooth if track else None), images, 1 if video.live else batch_size, best
    )
    return frames if video is source else _closing(video, frames)


def _closing(video: Video, frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
    with video, closing(frames):
        yield from frames


def _read(
    pictures: Iterator[DecodedFrame],
    look: Finder,
    join: "_Joiner",
    images: bool,
    batch_size: int,
    thumbnails: Thumbnails | None,
) -> Iterator[VideoFrame]:
    """While the network reads the faces of one batch of frames, those of the next are looked for."""
    most = 1 if batch_size == 1 else _HELD if images else 4 * batch_size  # frames in a batch
    batch: list[_Seen] = []
    busy: deque[tuple[list[_Seen], Future[np.ndarray]]] = deque()
    failed: ReadError | None = None
    classifier = join.reader.classifier

    def submit() -> None:
        crops = [crop for seen in batch for crop in seen.crops]
        busy.append((batch.copy(), pool.submit(lambda: classifier.read(np.stack(crops)) if crops else [])))
        batch.clear()

    with ThreadPoolExecutor(1, "mien") as pool, closing(pictures):
        while failed is None:
            try:
                picture = next(pictures, None)
            except ReadError as error:
                picture, failed = None, error
            if picture is None:
                break
            detections = look(picture)
            measured = join.reader.measures(picture.image, [detection for detection, _ in detections])
            crops = [
                classifier.crop(picture.image, *((detection.landmarks, detection.box) if detection else ()))
                for detection, _ in detections
            ]
            size = {"width": picture.image.shape[1], "height": picture.image.shape[0], "cut": look.cut}
            image = picture.image if images else None
            frame = VideoFrame(picture.number, picture.time, [], image, picture.pts, picture.sound, **size)
            shown = [thumbnails(picture.image, *each) if thumbnails else None for each in detections]
            batch.append(_Seen(frame, detections, crops, shown, measured))
            if sum(len(seen.crops) for seen in batch) >= batch_size or len(batch) >= most:
                submit()
            while busy and (batch_size == 1 or len(busy) > 1 or busy[0][1].done()):
                yield from join(*busy.popleft())
        if batch:
            submit()
        while busy:
            yield from join(*busy.popleft())
    if failed is not None:
        raise failed


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """A frame before the network has read its faces."""

    frame: VideoFrame
    detections: Sequence[Tracked]
    crops: Sequence[np.ndarray]
    thumbnails: Sequence[np.ndarray | None]
    measured: Sequence[Measured]


class _Joiner:
    """Puts together what was found and what the network said, in order; smooths it, if it is to be."""

    def __init__(self, reader: Reader, smoothing: Smoothing | None):
        self.reader, self._smoothing = reader, smoothing
        self._first = reader.classifier.outputs[0].name

    def __call__(self, batch: Sequence[_Seen], answer: Future[list[Answer]]) -> Iterator[VideoFrame]:
        answers = iter(answer.result())
        for seen in batch:
            time = seen.frame.time
            for (detection, id), thumbnail, measured in zip(
                seen.detections, seen.thumbnails, seen.measured, strict=True
            ):
                said, raw = next(answers), None
                smoothed = said if self._smoothing is None else self._smoothing(id, time, said)
                face = self.reader.face(detection, smoothed, measured=measured)
                if self._smoothing is not None:
                    raw = dict(zip(face.probabilities, map(float, said[self._first]), strict=True))
                values = (face.expression, face.probability, face.probabilities, id, raw)
                marks = {"rotation": face.rotation, "doubtful": face.doubtful, "outputs": face.outputs}
                marks |= {"mesh": face.mesh, "thumbnail": thumbnail}
                seen.frame.faces.append(TrackedFace(face.box, face.score, face.landmarks, *values, **marks))
            if self._smoothing is not None:
                self._smoothing.forget(time)
            yield seen.frame
