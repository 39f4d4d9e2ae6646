"""Faces in pictures: read the picture, find the faces, cut them out."""

from mien.faces.align import ARCFACE112, align, crop, resize, similarity
from mien.faces.face import Face
from mien.faces.picture import Source, find_pictures, open_picture

__all__ = ["ARCFACE112", "Face", "Source", "align", "crop", "find_pictures", "open_picture", "resize", "similarity"]
