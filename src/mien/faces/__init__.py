"""Faces in pictures: read the picture, find the faces, cut them out, draw them."""

from mien.faces.align import ARCFACE112, align, crop, resize, similarity
from mien.faces.detect import SEARCHES, Detection, Detector, YuNet
from mien.faces.face import Face
from mien.faces.faces import Faces
from mien.faces.formats import SUFFIXES
from mien.faces.picture import open_picture
from mien.faces.search import Detections, detect_or_retry, find_faces, find_framed, find_known, look_again
from mien.faces.sources import Source, find_pictures
from mien.faces.video import VIDEO_SUFFIXES, is_video

__all__ = [
    "ARCFACE112",
    "SEARCHES",
    "SUFFIXES",
    "VIDEO_SUFFIXES",
    "Detection",
    "Detections",
    "Detector",
    "Face",
    "Faces",
    "Source",
    "YuNet",
    "align",
    "crop",
    "detect_or_retry",
    "find_faces",
    "find_framed",
    "find_known",
    "find_pictures",
    "is_video",
    "look_again",
    "open_picture",
    "resize",
    "similarity",
]
