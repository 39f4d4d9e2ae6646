"""Videos, cameras and streams: who is seen when, and with which expression. Needs the extra [video]."""

from mien.video.read import TrackedFace, VideoFrame, read_video
from mien.video.source import Every, Video
from mien.video.track import Tracker

__all__ = ["Every", "TrackedFace", "Tracker", "Video", "VideoFrame", "read_video"]
