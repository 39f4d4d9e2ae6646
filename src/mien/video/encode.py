"""A video as it was read, with the faces drawn in and the sound kept."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType
from typing import Any

import cv2
import numpy as np

from mien.errors import MienError, require
from mien.faces.draw import draw
from mien.files import whole
from mien.video.read import VideoFrame
from mien.video.source import Video

_BORNE = frozenset("aac mp3 ac3 eac3 opus flac alac".split())  # what audio MP4 bears, and players play


def draw_frame(frame: VideoFrame) -> np.ndarray:
    """A frame that was read with its image, its faces drawn in: (H, W, 3) uint8 RGB."""
    names = ["" if face.track is None else str(face.track) for face in frame.faces]
    return np.asarray(draw(frame.image, frame.faces, names))


class AnnotatedVideo:
    """An MP4 (H.264) with a box and a label about each face, each frame at the time at which it was read.

    with Video("clip.mp4") as video, AnnotatedVideo("drawn.mp4", video) as drawn:
        for frame in read_video(video, reader, images=True, sound=True):
            drawn.write(frame)

    path: of the file to write.
    video: the one that is read, from which times and sound come.

    Only the frames that were read are in it. Audio is copied, packet by packet, where MP4 bears it, and otherwise
    encoded anew, as AAC. The file takes its name at the end, also after an interruption that is no exception; without
    frames there is no file. `frames` counts them.

    Raises MissingExtra without PyAV, and MienError where the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], video: Video):
        self._path, self._video, self._stack = os.fspath(path), video, ExitStack()
        self._av = require("av", "video")
        self._container: Any = None
        self._last, self._heard = -1, None
        self.frames = 0

    def __enter__(self) -> "AnnotatedVideo":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._container is None:
            return
        if kind is not None:
            with suppress(Exception):
                self._container.close()
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack, self._ffmpeg_errors():
            self._hear(self._video.rest)
            self._container.mux(self._pictures.encode())
            if self._coder:
                self._container.mux(self._coder.encode())
            self._container.close()

    def write(self, frame: VideoFrame) -> None:
        """frame: with its image, and with its sound where there is to be some."""
        drawn = draw_frame(frame)
        drawn = np.pad(drawn, ((0, drawn.shape[0] % 2), (0, drawn.shape[1] % 2), (0, 0)), "edge")  # as H.264 wants it
        with self._ffmpeg_errors():
            if self._container is None:
                self._open(drawn.shape[1::-1])
            if drawn.shape[1::-1] != self._size:
                drawn = cv2.resize(drawn, self._size, interpolation=cv2.INTER_AREA)
            picture = self._av.VideoFrame.from_ndarray(drawn).reformat(
                format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
            )
            self._last = picture.pts = max(frame.pts, self._last + 1)
            picture.time_base = self._video.time_base
            self._container.mux(self._pictures.encode(picture))
            self._hear(frame.sound)
        self.frames += 1

    def _open(self, size: tuple[int, int]) -> None:
        if "libx264" not in self._av.codecs_available:
            raise MienError(f"{self._path}: this PyAV has no encoder for H.264")
        file = self._stack.enter_context(whole(self._path))
        self._size = size
        self._container = self._av.open(file, "w", format="mp4")
        options = {"preset": "veryfast", "crf": "21", "bf": "0"}
        self._pictures = self._container.add_stream("libx264", rate=30, options=options)
        self._pictures.width, self._pictures.height = size
        self._pictures.pix_fmt = "yuv420p"
        context = self._pictures.codec_context
        context.time_base = self._pictures.time_base = self._video.time_base
        context.colorspace, context.color_range = 1, 1  # BT.709 and 16 to 235, as the pictures are converted
        audio, self._coder, self._copy = self._video.audio, None, None
        if audio is not None and audio.codec_context is not None:
            if audio.codec_context.codec.canonical_name in _BORNE:
                self._copy = self._container.add_stream_from_template(audio)
            else:
                self._coder = self._container.add_stream("aac", rate=audio.rate)
                self._coder.layout = "mono" if audio.channels == 1 else "stereo"
                self._resampler = self._av.AudioResampler("fltp", self._coder.layout, audio.rate)

    def _hear(self, packets: tuple[Any, ...]) -> None:
        for packet in packets:
            start = round(self._video.start / packet.time_base)
            if self._copy:
                if self._heard is not None and packet.dts <= self._heard:
                    continue  # where times start anew in the middle, MP4 cannot follow
                self._heard = packet.dts
                packet.pts, packet.dts = (packet.dts if packet.pts is None else packet.pts) - start, packet.dts - start
                packet.stream = self._copy
                self._container.mux(packet)
            elif self._coder:
                for heard in packet.decode():
                    heard.pts = None if heard.pts is None else heard.pts - start
                    for again in self._resampler.resample(heard):
                        self._container.mux(self._coder.encode(again))

    @contextmanager
    def _ffmpeg_errors(self) -> Iterator[None]:
        """Turns an error of ffmpeg into a MienError of one line."""
        try:
            yield
        except self._av.FFmpegError as error:
            raise MienError(f"{self._path}: {(error.strerror or str(error)).lower()}") from error
