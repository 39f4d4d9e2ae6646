"""All heads of a picture, and how each is turned, all the way round: DirectMHP. torch comes with training alone."""

from mien.heads.annotations import Head, Picture, read_annotations, write_annotations
from mien.heads.detector import HeadDetector
from mien.heads.mark import mark
from mien.heads.measure import Measured, measure_detector, measure_heads

__all__ = [
    "Head",
    "HeadDetector",
    "Measured",
    "Picture",
    "mark",
    "measure_detector",
    "measure_heads",
    "read_annotations",
    "write_annotations",
]
