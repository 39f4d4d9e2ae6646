"""Videos, cameras and streams: who is seen when, and with which expression. Needs the extra [video]."""

from mien.video.encode import AnnotatedVideo
from mien.video.read import TrackedFace, VideoFrame, read_video
from mien.video.rows import video_rows
from mien.video.source import Every, Video
from mien.video.summary import Person, Summary
from mien.video.track import Tracker

__all__ = [
    "AnnotatedVideo",
    "Every",
    "Person",
    "Summary",
    "TrackedFace",
    "Tracker",
    "Video",
    "VideoFrame",
    "read_video",
    "video_rows",
]
