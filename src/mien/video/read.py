"""The faces of a video, frame by frame, with their expressions."""

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from mien.classifier import Answer
from mien.errors import ReadError
from mien.faces import Detection, Detector, Face, find_faces
from mien.faces.face import as_box
from mien.faces.measure import Measured
from mien.reader import Reader
from mien.video.source import Every, Picture, Video
from mien.video.track import Track, Tracker, overlaps

_LOOK, _AROUND = 192, 2.0  # pixels of the look between key frames, in which the face takes a half
_HELD = 16  # frames held back, with their images, until a batch of faces is full


@dataclass(frozen=True, slots=True, eq=False)
class TrackedFace(Face):
    """A face in a video: what `Face` says, and

    track: the number of the person, from 1, the same from frame to frame; None without tracking.
    unsmoothed: what the network says of this very frame, where `probabilities` (and `expression` and `probability`) are
        smoothed over time; None without tracking, where nothing is smoothed.
    """

    track: int | None
    unsmoothed: dict[str, float] | None


@dataclass(frozen=True, slots=True, eq=False)
class VideoFrame:
    """A frame that was read.

    number: of the frame, from 0, in the order in which they are shown, those passed over counted, too.
    time: of the frame, in seconds from the video's beginning, as exact as the file is.
    faces: the largest first, or without any. image: (H, W, 3) uint8 RGB, upright, where images were asked for.
    pts: the time in ticks of the video's time base; sound: packets of audio that came before it, where asked for.
    """

    number: int
    time: float
    faces: list[TrackedFace]
    image: np.ndarray | None
    pts: int
    sound: tuple[Any, ...] = ()


def read_video(
    source: str | os.PathLike[str] | int | Video,
    reader: Reader,
    *,
    every: int | str = 1,
    track: bool = False,
    smooth: float = 0.5,
    detect_every: int | str = "0.2s",
    images: bool = False,
    sound: bool = False,
    batch_size: int = 32,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[VideoFrame]:
    """Read the faces in a video, in order, as it is decoded: memory does not grow with its length.

    for frame in read_video("clip.mp4", Reader.from_pretrained(), track=True):
        for face in frame.faces:
            print(frame.time, face.track, face.expression, face.probability)

    source: a file, 0 for the first camera, an address such as rtsp://…, or an opened `Video`, which also knows its
        `duration` in seconds.
    every: read every N-th frame, or with "0.5s" the first of every half second.
    track: number the people, and smooth each one's probabilities: exponentially, with a time constant of `smooth`
        seconds (0 for not at all), whatever the frame rate. Faces are then looked for in the whole frame only as often
        as `detect_every` says (frames that are read, or seconds), and in every frame between only about where those
        known are expected, which costs a tenth and still gives each frame its own box and landmarks.
    images: give each frame its image. sound: hand audio packets through, for `AnnotatedVideo`.
    batch_size: how many faces the network reads at a time; of a camera or stream the answer comes frame by frame.
    stop: asked several times a second, from the thread that iterates; once true, what was read so far still comes.

    Raises ReadError for what is no video, at once, and where the rest of one cannot be read, after all frames that
    could; MissingExtra without PyAV; ValueError for impossible arguments.
    """
    if batch_size < 1:
        raise ValueError(f"a batch holds at least one face, not {batch_size}")
    if not 0 <= smooth < math.inf:
        raise ValueError(f"smooth is a time in seconds, 0 or more, not {smooth}")
    due, look = Every(every), _Follower(reader, Every(detect_every)) if track else _Finder(reader)
    video = source if isinstance(source, Video) else Video(source)
    pictures = video.pictures(due, sound=sound, stop=stop)
    frames = _read(pictures, look, _Smoother(reader, smooth, track), images, 1 if video.live else batch_size)
    return frames if video is source else _closing(video, frames)


def _closing(video: Video, frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
    with video, closing(frames):
        yield from frames


def _read(
    pictures: Iterator[Picture], look: "_Finder", smoother: "_Smoother", images: bool, batch_size: int
) -> Iterator[VideoFrame]:
    """While the network reads the faces of one batch of frames, those of the next are looked for."""
    most = 1 if batch_size == 1 else _HELD if images else 4 * batch_size  # frames in a batch
    batch: list[_Seen] = []
    busy: deque[tuple[list[_Seen], Future[np.ndarray]]] = deque()
    failed: ReadError | None = None
    classifier = smoother.reader.classifier

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
            measured = smoother.reader.measures(picture.image, [detection for detection, _ in detections])
            crops = [
                classifier.crop(picture.image, *((detection.landmarks, detection.box) if detection else ()))
                for detection, _ in detections
            ]
            frame = VideoFrame(
                picture.number, picture.time, [], picture.image if images else None, picture.pts, picture.sound
            )
            batch.append(_Seen(frame, detections, crops, measured))
            if sum(len(seen.crops) for seen in batch) >= batch_size or len(batch) >= most:
                submit()
            while busy and (batch_size == 1 or len(busy) > 1 or busy[0][1].done()):
                yield from smoother(*busy.popleft())
        if batch:
            submit()
        while busy:
            yield from smoother(*busy.popleft())
    if failed is not None:
        raise failed


Tracked = tuple[Detection | None, int | None]
"""A detection and its track; no detection where all of the frame is the face, and no track without tracking."""


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """A frame before the network has read its faces."""

    frame: VideoFrame
    detections: Sequence[Tracked]
    crops: Sequence[np.ndarray]
    measured: Sequence[Measured]


class _Finder:
    """Finds the faces of each frame as those of a picture, but without turns, and without tiles unless "full"."""

    def __init__(self, reader: Reader):
        self.detector, self.min_face = reader.detector, reader.min_face
        self._search = "full" if reader.search == "full" else "fast"

    def __call__(self, picture: Picture) -> list[Tracked]:
        return [(face, None) for face in self.find(picture.image)] if self.detector else [(None, None)]

    def find(self, image: np.ndarray) -> list[Detection]:
        return find_faces(self.detector, image, self.min_face, search=self._search, turn=False)

    def large_enough(self, faces: Sequence[Detection]) -> list[Detection]:
        return [face for face in faces if min(face.box[2:]) >= self.min_face]


class _Follower(_Finder):
    """Finds the faces of key frames so, and in between looks only where a face is expected.

    There it looks with the detector, too, at a square twice as wide as the face, brought to 192 pixels: landmarks that
    were carried along instead would drift, and how a crop is aligned changes what is read in it. Where a face is not
    seen again that was there a frame ago, the frame becomes a key frame; new faces appear in key frames only.
    """

    def __init__(self, reader: Reader, keys: Every):
        super().__init__(reader)
        self._keys, self._tracker, self._count, self._before = keys, Tracker(), 0, -math.inf

    def __call__(self, picture: Picture) -> list[Tracked]:
        if self.detector is None:
            return [(None, 1)]
        tracks = self._tracker.predict(picture.time, picture.image.shape[1::-1])
        key = self._keys.due(self._count, picture.time)
        faces: list[Detection] = []
        if not key and tracks:
            faces = self._look_near(picture.image, tracks)
            near = overlaps(np.array([t.box for t in tracks]), np.array([f.box for f in faces]).reshape(-1, 4))
            key = any(t.seen == self._before and not (row > 0.25).any() for t, row in zip(tracks, near, strict=True))
        if key:
            faces = self.find(picture.image)
        ids = self._tracker.update([face.box for face in faces], births=key)
        self._count, self._before = self._count + 1, picture.time
        found = [(face, id) for face, id in zip(faces, ids, strict=True) if id is not None]
        return sorted(found, key=lambda pair: -pair[0].box[2] * pair[0].box[3])

    def _look_near(self, image: np.ndarray, tracks: Sequence[Track]) -> list[Detection]:
        """What is seen about where the faces are expected, once each."""
        faces: list[Detection] = []
        for track in tracks:
            faces += look_near(self.detector, image, track.box, _AROUND + min(2, 2 * track.doubt))
        faces = sorted(self.large_enough(faces), key=lambda face: -face.score)
        boxes = np.array([face.box for face in faces]).reshape(-1, 4)
        same = np.triu(overlaps(boxes, boxes) > 0.4, 1).any(0)  # as one that is surer
        return [face for face, again in zip(faces, same, strict=True) if not again]


def look_near(detector: Detector, image: np.ndarray, box: np.ndarray, around: float = _AROUND) -> list[Detection]:
    """The faces in the square `around` times as wide as box (x, y, width, height), as the detector sees it brought to
    192 pixels; in pixels of image (H, W, 3) uint8."""
    side = max(box[2:].max() * around, 8)
    low = np.floor(box[:2] + (box[2:] - side) / 2).astype(int).clip(0)
    high = np.ceil(box[:2] + (box[2:] + side) / 2).astype(int).clip(0, image.shape[1::-1])
    if (high <= low).any():
        return []
    part = image[low[1] : high[1], low[0] : high[0]]
    size = np.rint((high - low) * (_LOOK / side)).astype(int).clip(1, _LOOK)
    smaller = size[0] < part.shape[1]
    part = cv2.resize(part, tuple(map(int, size)), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
    # always of one size, since OpenVINO prepares itself, and keeps memory, for each
    part = cv2.copyMakeBorder(part, 0, _LOOK - int(size[1]), 0, _LOOK - int(size[0]), cv2.BORDER_CONSTANT)
    find = getattr(detector, "find", detector)  # whatever size they have in this look
    ratio = (high - low) / size
    return [
        Detection(
            as_box([*(low + face.box[:2] * ratio), *(face.box[2:] * ratio)]),
            face.score,
            (low + face.landmarks * ratio).astype(np.float32),
        )
        for face in find(part)
    ]


class _Smoother:
    """Puts together what was found and what the network said, in order; smooths it."""

    def __init__(self, reader: Reader, smooth: float, track: bool):
        self.reader, self._smooth, self._track = reader, smooth, track
        self._before: dict[int, tuple[float, Answer]] = {}  # by track: when it was seen, and its smoothed answers
        outputs = reader.classifier.outputs
        self._first, self._turns = outputs[0].name, {output.name for output in outputs if output.kind == "angles"}

    def __call__(self, batch: Sequence[_Seen], answer: Future[list[Answer]]) -> Iterator[VideoFrame]:
        answers = iter(answer.result())
        for seen in batch:
            time = seen.frame.time
            for (detection, id), measured in zip(seen.detections, seen.measured, strict=True):
                said = next(answers)
                smoothed = self._smoothed(id, time, said) if self._track else said
                face = self.reader.face(detection, smoothed, measured=measured)
                raw = dict(zip(face.probabilities, map(float, said[self._first]), strict=True)) if self._track else None
                values = (face.expression, face.probability, face.probabilities, id, raw)
                marks = {"rotation": face.rotation, "doubtful": face.doubtful, "outputs": face.outputs}
                marks["mesh"] = face.mesh
                seen.frame.faces.append(TrackedFace(face.box, face.score, face.landmarks, *values, **marks))
            for id in [id for id, (at, _) in self._before.items() if time - at > 10]:
                del self._before[id]
            yield seen.frame

    def _smoothed(self, id: int, time: float, answer: Answer) -> Answer:
        """s + (1 - exp(-Δt / smooth)) (p - s): as fast whatever the frame rate, and less after a gap.

        Of angles, the difference is the way round that is shorter.
        """
        at, before = self._before.get(id, (-math.inf, answer))
        weight = np.float32(1 - math.exp(-max(0.0, time - at) / self._smooth) if self._smooth else 1.0)
        smoothed = {}
        for name, values in answer.items():
            step = values - before[name]
            if name in self._turns:
                step = (step + 180) % 360 - 180
            smoothed[name] = before[name] + weight * step
            if name in self._turns:
                smoothed[name] = (smoothed[name] + 180) % 360 - 180
        self._before[id] = time, smoothed
        return smoothed
