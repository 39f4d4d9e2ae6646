"""Videos, cameras and streams: who is seen when, and with which expression. Needs the extra [video]."""

import warnings
from typing import Any

from mien.video.encode import AnnotatedVideo
from mien.video.events import Event, Spotter
from mien.video.read import TrackedFace, VideoFrame, read_video
from mien.video.record import video_records
from mien.video.source import Every, Video
from mien.video.summary import Person, Summary
from mien.video.thumbnails import Thumbnails
from mien.video.track import Tracker

__all__ = [
    "AnnotatedVideo",
    "Event",
    "Every",
    "Person",
    "Spotter",
    "Summary",
    "Thumbnails",
    "TrackedFace",
    "Tracker",
    "Video",
    "VideoFrame",
    "read_video",
    "video_records",
]


def __getattr__(name: str) -> Any:
    if name == "video_rows":
        warnings.warn("mien.video.video_rows is now called video_records", DeprecationWarning, stacklevel=2)
        return video_records
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
