"""Frames of videos, decoded when they are asked for."""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mien.errors import ReadError, require
from mien.faces import VIDEO_SUFFIXES as SUFFIXES

__all__ = ["SUFFIXES", "Frame", "upright"]

_OPEN, _RECENT = 2, 16  # videos kept open, and frames kept of each: threads ask out of order


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a video.

    video: the file.
    number: of the frame, from 0, in the order in which they are shown.
    side: of a frame that shows two people, the "left" or the "right" half; "" is all of it.

    A video is decoded from its beginning on: frames asked for in order cost one pass, and going back costs another.
    """

    video: Path
    number: int
    side: Literal["", "left", "right"] = ""

    def __str__(self) -> str:
        return f"{self.video} frame {self.number + 1}"

    def image(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB, upright. Raises ReadError where there is no such frame, MissingExtra without PyAV."""
        errors = require("av", "video").FFmpegError
        try:
            image = _open(os.getpid(), self.video).frame(self.number)
        except OSError as error:
            raise ReadError(self, (error.strerror or str(error)).lower()) from error
        except errors as error:
            raise ReadError(self, f"damaged, or no video ({error.strerror or error})") from error
        except EOFError as error:
            raise ReadError(self, str(error)) from error
        half = image.shape[1] // 2
        return image[:, :half] if self.side == "left" else image[:, half:] if self.side == "right" else image


def upright(frame: Any) -> np.ndarray:
    """A frame of PyAV's as (H, W, 3) uint8 RGB, turned as the video says that it is to be shown."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))


class _Video:
    """An open video; threads may share it."""

    def __init__(self, path: Path):
        self._path, self._lock = path, threading.Lock()
        self._recent: OrderedDict[int, Any] = OrderedDict()
        self._next, self._frames = 0, self._decode()

    def frame(self, number: int) -> np.ndarray:
        with self._lock:
            if number not in self._recent:
                if number < self._next:
                    self._next, self._frames = 0, self._decode()
                while self._next <= number:
                    self._recent[self._next] = self._step()
                    self._next += 1
                    if len(self._recent) > _RECENT:
                        self._recent.popitem(last=False)
            frame = self._recent[number]
            return upright(frame)

    def _step(self) -> Any:
        try:
            return next(self._frames)
        except StopIteration:
            length, self._next, self._frames = self._next, 0, self._decode()
            raise EOFError(f"the video ends after {length:,} frames") from None
        except BaseException:
            self._next, self._frames = 0, self._decode()
            raise

    def _decode(self) -> Iterator[Any]:
        self._recent.clear()
        with require("av", "video").open(os.fspath(self._path)) as container:
            if not container.streams.video:
                raise EOFError("no pictures in it")
            yield from container.decode(video=0)


@lru_cache(_OPEN)
def _open(process: int, path: Path) -> _Video:
    """One for each process: forked ones would share the place in the file."""
    return _Video(path)
