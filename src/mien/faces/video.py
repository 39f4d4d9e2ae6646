"""What is taken for a video, by its name."""

import glob
import os
import re
import sys
from functools import cache
from urllib.parse import urlsplit

from mien.errors import ReadError
from mien.faces.fetch import serves_picture
from mien.faces.formats import KINDS, SUFFIXES
from mien.faces.sources import is_address

VIDEO_SUFFIXES = frozenset(".mp4 .avi .mov .mkv .webm .m4v .mpg .mpeg .wmv .flv .3gp .ogv .mts .m2ts".split())
"""What a file in a folder is called that is taken for a video."""

SCHEMES = frozenset("rtsp rtsps rtmp rtmps rtp udp srt tcp http https".split())
"""What an address begins with that is taken for a stream."""


def is_video(source: str) -> bool:
    """Whether a source is taken for a video; it need not be there.

    A number is a camera, unless a file or folder is called so; an address with one of SCHEMES is a stream, unless the
    path of an http:// or https:// one ends as a picture's, or, where it has no ending that is known, the server says
    that it is a picture; and a file is a video where its name ends in one of VIDEO_SUFFIXES, or in .ts, which in a
    folder may be anything.
    """
    if is_address(source):
        return not _serves_picture(source)
    if camera(source) is not None or scheme(source):
        return True
    if glob.has_magic(source) and not os.path.lexists(source):
        return False
    return os.path.splitext(source)[1].lower() in {*VIDEO_SUFFIXES, ".ts"} and not os.path.isdir(source)


@cache
def _serves_picture(address: str) -> bool:
    try:
        ending = os.path.splitext(urlsplit(address).path)[1].lower()
        if ending in SUFFIXES or ending in KINDS:
            return True
        return ending not in {*VIDEO_SUFFIXES, ".ts", ".m3u8", ".mpd"} and serves_picture(address, seconds=10)
    except (ReadError, ValueError):
        return False  # ffmpeg tells why it cannot be had


def camera(source: str) -> str | None:
    """The device of a camera, as ffmpeg names it; None where it is none.

    It is /dev/video0 of "0" and of "/dev/video0"; on macOS 0 itself; on Windows "video=NAME", which has to be named.
    """
    if sys.platform == "win32":
        return source if source.startswith("video=") else None
    if re.fullmatch(r"[0-9]{1,3}", source) and not os.path.lexists(source):
        return f"/dev/video{int(source)}" if sys.platform != "darwin" else str(int(source))
    return source if re.fullmatch(r"/dev/video[0-9]+", source) else None


def scheme(source: str) -> str:
    """One of SCHEMES, or nothing."""
    found = source.partition("://")[0].lower() if "://" in source else ""
    return found if found in SCHEMES else ""
